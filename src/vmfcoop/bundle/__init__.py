"""Bundles: all that a fit or a prediction needs in one archive, for machines without a network."""

from vmfcoop.bundle.packing import Packed, pack
from vmfcoop.bundle.unpacking import Unpacked, unpack

__all__ = ["Packed", "Unpacked", "pack", "unpack"]
