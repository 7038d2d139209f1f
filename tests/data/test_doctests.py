"""The examples in the docstrings run as printed."""

from __future__ import annotations

import doctest
from types import ModuleType

import pytest

from vmfcoop.data import few_shot, image_io, importing, splits
from vmfcoop.descriptions import bank


@pytest.mark.parametrize("module", [few_shot, image_io, importing, splits, bank])
def test_examples(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 0 and result.failed == 0
