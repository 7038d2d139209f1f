"""The examples in docstrings run and print what they say."""

import doctest
import importlib

import pytest
import torch

MODULES = (
    "errors",
    "backbones.base",
    "benchmark.published",
    "evaluation.metrics",
    "evaluation.protocols",
    "evaluation.statistics",
    "features",
    "methods.biomedcoop",
    "methods.kgcoop",
    "methods.linear",
    "methods.prograd",
    "methods.registry",
    "methods.vmfcoop",
    "methods.zero_shot",
    "reporting.figures",
    "training",
)


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(f"vmfcoop.{name}")
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    result = doctest.testmod(module, extraglobs={"torch": torch}, optionflags=flags)
    assert result.attempted > 0 and result.failed == 0
