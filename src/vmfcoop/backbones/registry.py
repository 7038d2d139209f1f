"""Backbones by spec string."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from pathlib import Path

import torch

from vmfcoop.backbones.base import DTYPES, DualEncoder, Family, Precision
from vmfcoop.backbones.catalogue import PublishedBackbone, catalogue
from vmfcoop.backbones.hub import family_of, hub_folder
from vmfcoop.backbones.installed import installed_folder
from vmfcoop.errors import UserError, unknown_name

PHANTOM_CLIP = Path(__file__).parent / "phantom_clip"
"""The embedded CLIP, trained on phantoms by ``scripts/train_phantom_clip.py``; its card lies beside it."""

FAMILY_MODULES = ("open_clip", "pmc_clip", "medclip", "transformers_clip")
"""One file a family; the first that recognises a folder loads it. The last one takes any ``config.json``."""


@cache
def families() -> tuple[Family, ...]:
    """All families; importing them imports their libraries, so only where a backbone is wanted."""
    return tuple(import_module(f"vmfcoop.backbones.{name}").FAMILY for name in FAMILY_MODULES)


def load_backbone(spec: str, device: str = "auto", precision: str = "fp32") -> DualEncoder:
    """Load a frozen dual encoder.

    Args:
        spec: a key of the catalogue (``biomedclip``, ``pubmedclip``, ...: fetched, or from the hub or its
            local cache), ``phantom`` (embedded, knows the package's phantoms only), ``hf:REPOSITORY``,
            ``open_clip:MODEL/PRETRAINED``, or ``dir:FOLDER`` (any family's format; no network).
        device: ``auto`` (CUDA, then MPS, then CPU), ``cpu``, ``cuda``, ``cuda:N`` or ``mps``.
        precision: ``fp32``, ``bf16``, ``fp16``, or ``auto`` (bf16 where the device is built for it).

    Raises:
        UserError: unknown spec (with the nearest names), a missing or damaged file, no such device.

    Example:
        >>> encoder = load_backbone("phantom", "cpu")
        >>> encoder.encode_texts(["an MRI of a glioma"]).shape
        torch.Size([1, 128])
    """
    target = resolve_device(device)
    rounded = resolve_precision(precision, target)
    return _load(spec).to(target, rounded)


def _load(spec: str) -> DualEncoder:
    from vmfcoop.backbones import open_clip

    if installed_folder(spec) is None:
        kind, _, rest = spec.partition(":")
        if kind == "open_clip" and rest and not rest.startswith("hf-hub:"):
            return open_clip.load_named(rest, spec)
        if spec in catalogue() and catalogue()[spec].model:
            return open_clip.load_named(str(catalogue()[spec].model), spec)
    folder, family = locate(spec)
    return family.load(folder, None if spec.startswith("dir:") else spec)


def locate(spec: str) -> tuple[Path, Family]:
    """The local folder of a spec and its family; what is not here is fetched into the hub's cache.

    Raises:
        UserError: as :func:`load_backbone`; a model of open_clip's own list has a folder only once fetched.
    """
    kind, _, rest = spec.partition(":")
    if spec == "phantom":
        return PHANTOM_CLIP, family_of(PHANTOM_CLIP, families())
    if kind == "dir" and rest:
        folder = Path(rest).expanduser().resolve()
        return folder, family_of(folder, families())
    installed = installed_folder(spec)
    if installed is not None:
        return installed, family_of(installed, families())
    if spec in catalogue():
        return _published(catalogue()[spec])
    if kind == "hf" and rest:
        return hub_folder(rest, spec, families())
    if kind == "open_clip" and rest.startswith("hf-hub:"):
        return hub_folder(rest.removeprefix("hf-hub:"), spec, [_family("open_clip")])
    if Path(spec).expanduser().is_dir():
        raise UserError(f"'{spec}' is a folder; to load the backbone in it, write 'dir:{spec}'.")
    hint = (
        "'vmfcoop backbones list' shows all; others load as dir:FOLDER, hf:REPOSITORY or "
        "open_clip:MODEL/PRETRAINED."
    )
    raise UserError(f"{unknown_name('backbone', spec, catalogue())} {hint}")


def _published(entry: PublishedBackbone) -> tuple[Path, Family]:
    if entry.repository is None or entry.checkpoint or entry.tokenizer:
        raise UserError(
            f"'{entry.key}' is put together from several published files; "
            f"run 'vmfcoop backbones fetch {entry.key}' first."
        )
    return hub_folder(entry.repository, entry.key, [_family(entry.family)])


def _family(name: str) -> Family:
    return next(family for family in families() if family.name == name)


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


def resolve_precision(precision: str, device: torch.device) -> Precision:
    """``auto`` or a name -> the precision that the towers compute with.

    ``auto`` is bf16 on CUDA devices that are built for it and fp32 elsewhere.

    Raises:
        UserError: the name is unknown.
    """
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        return "bf16" if fast else "fp32"
    if precision not in DTYPES:
        raise unknown_name("precision", precision, [*DTYPES, "auto"])
    return precision
