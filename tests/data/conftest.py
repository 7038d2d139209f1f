"""Small datasets on disk, and the real ones where they are at hand."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def make_images(tmp_path: Path) -> Callable[..., Path]:
    """Write 2 x 2 PNG files at paths relative to a new folder, and return the folder."""

    def make(*files: str, under: str = "set") -> Path:
        root = tmp_path / under
        for file in files:
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (2, 2)).save(root / file, "PNG")
        return root

    return make


@pytest.fixture
def shared_data() -> Path:
    folder = os.environ.get("VMFCOOP_TEST_DATA")
    if folder is None:
        pytest.skip("VMFCOOP_TEST_DATA is not set")
    return Path(folder) / "data"
