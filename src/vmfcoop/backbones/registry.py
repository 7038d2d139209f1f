"""Backbones by spec string."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.errors import UserError, unknown_name


@dataclass(frozen=True)
class HubBackbone:
    """A published CLIP in open_clip's hub format: where it lies and what its licence asks."""

    repository: str
    title: str
    licence: str


HUB_BACKBONES: dict[str, HubBackbone] = {
    "biomedclip": HubBackbone(
        "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224",
        "BiomedCLIP (ViT-B/16 224, PubMedBERT, 256 tokens, d = 512)",
        "MIT; for research, not for clinical decisions",
    ),
}

PHANTOM_CLIP = Path(__file__).parent / "phantom_clip"
"""The embedded CLIP, trained on phantoms by ``scripts/train_phantom_clip.py``; its card lies beside it."""


def load_backbone(spec: str, device: str = "auto") -> DualEncoder:
    """Load a frozen dual encoder.

    Args:
        spec: ``biomedclip`` (from the hub or its local cache), ``phantom`` (embedded, knows the package's
            phantoms only), ``open_clip:MODEL/PRETRAINED``, ``open_clip:hf-hub:REPOSITORY``, or
            ``dir:FOLDER`` (open_clip's hub format; no network).
        device: ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.

    Raises:
        UserError: unknown spec (with the nearest names), a missing or damaged file, no such device.

    Example:
        >>> encoder = load_backbone("phantom", "cpu")
        >>> encoder.encode_texts(["an MRI of a glioma"]).shape
        torch.Size([1, 128])
    """
    from vmfcoop.backbones import open_clip

    target = resolve_device(device)
    kind, _, rest = spec.partition(":")
    if spec in HUB_BACKBONES:
        return open_clip.load_hub(HUB_BACKBONES[spec].repository, spec).to(target)
    if spec == "phantom":
        return open_clip.load_folder(PHANTOM_CLIP, spec).to(target)
    if kind == "dir" and rest:
        return open_clip.load_folder(Path(rest)).to(target)
    if kind == "open_clip" and rest.startswith("hf-hub:"):
        return open_clip.load_hub(rest.removeprefix("hf-hub:"), spec).to(target)
    if kind == "open_clip" and rest:
        return open_clip.load_named(rest).to(target)
    if Path(spec).expanduser().is_dir():
        raise UserError(f"'{spec}' is a folder; to load the backbone in it, write 'dir:{spec}'.")
    raise unknown_name(
        "backbone", spec, [*HUB_BACKBONES, "phantom", "open_clip:MODEL/PRETRAINED", "dir:FOLDER"]
    )


def resolve_device(device: str) -> torch.device:
    """``auto`` or a torch device string -> a device that is there.

    Raises:
        UserError: the device is unknown to torch or absent.
    """
    if device == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"The device '{device}' is not available here; try --device cpu.") from error
    return torch.device(device)
