"""Datasets known by a key."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

DatasetLocator = Callable[[], Path]
"""Puts the dataset in place if need be and returns its folder or file, in a layout ``load_dataset`` reads."""

KNOWN_DATASETS: dict[str, DatasetLocator] = {}
"""Locator by key. ``load_dataset`` looks here for a spec that is not an existing path."""
