"""Phantoms: drawn images with known findings, for trying everything without patients' data."""

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.library import PHANTOMS, contact_sheet, materialise

__all__ = ["PHANTOMS", "SIZE", "Phantom", "PhantomDataset", "contact_sheet", "materialise"]
