"""Few-shot adaptation of biomedical vision-language models with von Mises-Fisher guided prompts.

The names below are the public API. They are imported when first used, so that ``import vmfcoop`` and
``vmfcoop --help`` do not wait for torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from vmfcoop.__about__ import __version__
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.backbones import DualEncoder, load_backbone
    from vmfcoop.classifier import FewShotClassifier
    from vmfcoop.data import load_dataset, read_image, sample_support
    from vmfcoop.descriptions import load_descriptions
    from vmfcoop.methods import METHODS, Method, Support, make_method
    from vmfcoop.sphere import VonMisesFisher, fit_vmf, semantic_anchors

_HOMES = {
    "DualEncoder": "backbones",
    "load_backbone": "backbones",
    "FewShotClassifier": "classifier",
    "load_dataset": "data",
    "read_image": "data",
    "sample_support": "data",
    "load_descriptions": "descriptions",
    "METHODS": "methods",
    "Method": "methods",
    "Support": "methods",
    "make_method": "methods",
    "VonMisesFisher": "sphere",
    "fit_vmf": "sphere",
    "semantic_anchors": "sphere",
}

__all__ = [
    "METHODS",
    "DualEncoder",
    "FewShotClassifier",
    "Method",
    "Support",
    "UserError",
    "VonMisesFisher",
    "__version__",
    "fit_vmf",
    "load_backbone",
    "load_dataset",
    "load_descriptions",
    "make_method",
    "read_image",
    "sample_support",
    "semantic_anchors",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"vmfcoop.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'vmfcoop' has no attribute '{name}'")
