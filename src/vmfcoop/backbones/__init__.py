"""CLIP models behind one seam, :class:`DualEncoder`."""

from vmfcoop.backbones.base import DualEncoder, Tokens
from vmfcoop.backbones.catalogue import PublishedBackbone, catalogue
from vmfcoop.backbones.registry import load_backbone

__all__ = ["DualEncoder", "PublishedBackbone", "Tokens", "catalogue", "load_backbone"]
