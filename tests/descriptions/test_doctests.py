"""The examples in docstrings run and print what they say."""

from __future__ import annotations

import doctest
import importlib

import pytest
import torch

MODULES = ("answers", "bank", "geometry", "llm", "quality", "subject")


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    module = importlib.import_module(f"vmfcoop.descriptions.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted > 0 and result.failed == 0
