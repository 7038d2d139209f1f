"""Backbones that were fetched or unpacked: folders below ``VMFCOOP_HOME/backbones``."""

from __future__ import annotations

import re
from pathlib import Path

from vmfcoop.files import home

MANIFEST = "manifest.json"


def backbones_folder() -> Path:
    """Folder of all backbones that were fetched or unpacked."""
    return home() / "backbones"


def backbone_home(spec: str) -> Path:
    """Folder of the backbone of a spec, whether it is there or not.

    Example:
        >>> backbone_home("open_clip:ViT-B-32/openai").name
        'open_clip--ViT-B-32--openai'
    """
    return backbones_folder() / re.sub(r"[/:]+", "--", spec)


def installed_folder(spec: str) -> Path | None:
    """The folder of a backbone that is here, by its spec."""
    folder = backbone_home(spec)
    return folder if (folder / MANIFEST).is_file() else None
