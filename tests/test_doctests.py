"""The examples in docstrings run and print what they say."""

import doctest
import importlib
from pathlib import Path

import pytest
import torch

import vmfcoop

PACKAGE = Path(vmfcoop.__file__).parent
MODULES = sorted(
    ".".join(file.relative_to(PACKAGE).with_suffix("").parts)
    for file in PACKAGE.rglob("*.py")
    if any(">>>" in line and "+SKIP" not in line for line in file.read_text(encoding="utf-8").splitlines())
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"vmfcoop.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=flags)
    assert result.attempted > 0 and result.failed == 0
