"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest
import torch

MODULES = (
    "errors",
    "backbones.base",
    "evaluation.metrics",
    "evaluation.protocols",
    "features",
    "methods.registry",
    "methods.vmfcoop",
    "training",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"vmfcoop.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=flags)
    assert result.attempted > 0 and result.failed == 0
