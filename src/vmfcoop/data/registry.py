"""Datasets known by a key."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vmfcoop.data.phantoms.library import PHANTOMS, materialise

DatasetLocator = Callable[[], Path]
"""Puts the dataset in place if need be and returns its folder or file, in a layout ``load_dataset`` reads."""

KNOWN_DATASETS: dict[str, DatasetLocator] = {key: partial(materialise, key) for key in PHANTOMS}
"""Locator by key. ``load_dataset`` looks here for a spec that is not an existing path."""
