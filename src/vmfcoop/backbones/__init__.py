"""CLIP models behind one seam, :class:`DualEncoder`."""

from vmfcoop.backbones.base import DualEncoder, Tokens
from vmfcoop.backbones.registry import HUB_BACKBONES, HubBackbone, load_backbone

__all__ = ["HUB_BACKBONES", "DualEncoder", "HubBackbone", "Tokens", "load_backbone"]
