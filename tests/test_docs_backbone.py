"""The walk through a new backbone works as written: the page's code is run and kept to the contract."""

from __future__ import annotations

import importlib.util
import inspect
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from benchmarks.random_backbone import vocabulary, write_tokenizer
from safetensors.torch import save_file

from tests import test_contract_backbones as contract
from tests.conftest import tiny_bert_shape
from vmfcoop import FewShotClassifier
from vmfcoop.backbones import registry
from vmfcoop.backbones.base import Family
from vmfcoop.backbones.frozen import FrozenEncoder

PAGE = Path(__file__).parent.parent / "docs" / "add-a-backbone.md"


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The page's module."""
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[0]
    assert len(code.splitlines()) < 80
    file = tmp_path_factory.mktemp("docs") / "ward_clip.py"
    file.write_text(code)
    spec = importlib.util.spec_from_file_location("ward_clip", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["ward_clip"] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules["ward_clip"]


@pytest.fixture(scope="module")
def folder(family: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ward-clip")
    bert = tiny_bert_shape().to_dict() | {"vocab_size": len(vocabulary())}
    shape = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    config = {"dim": 32, "context_length": 48, "bert": {key: bert[key] for key in shape}}
    (folder / family.CONFIG_FILE).write_text(json.dumps(config))
    torch.manual_seed(0)
    model = family.WardClip(config["dim"], config["bert"])
    with torch.no_grad():
        for name, weight in model.text.named_parameters():
            if weight.dim() > 1:
                weight.normal_(0, 0.5 if "embedding" in name else weight.shape[1] ** -0.5)
    save_file(model.state_dict(), folder / family.WEIGHT_FILE)
    write_tokenizer(folder, 48)
    return folder


def test_the_registry_finds_and_loads_it(family: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known: tuple[Family, ...] = registry.families()
    assert not any(other.recognises(folder) for other in known)
    monkeypatch.setattr(registry, "families", lambda: (*known, family.FAMILY))
    assert isinstance(registry.load_backbone(f"dir:{folder}", "cpu"), family.WardClipEncoder)


DEMANDS = [
    demand
    for name, demand in inspect.getmembers(contract, inspect.isfunction)
    if name.startswith("test_")
    and {"encoder"} <= set(inspect.signature(demand).parameters) <= {"encoder", "load"}
]


@pytest.mark.parametrize("demand", DEMANDS, ids=lambda demand: demand.__name__)
def test_it_keeps_the_contract(demand: Any, family: Any, folder: Path) -> None:
    def load() -> FrozenEncoder:
        return family.load_folder(folder)  # type: ignore[no-any-return]

    given = {"encoder": load(), "load": load}
    demand(**{name: given[name] for name in inspect.signature(demand).parameters})


def test_the_estimator_takes_the_object(family: Any, folder: Path, image_folder: Path) -> None:
    files = sorted(image_folder.glob("*/0[0-3].png"))
    labels = [file.parent.name for file in files]
    classifier = FewShotClassifier(family.load_folder(folder), "coop", settings={"epochs": 2}, views=2)
    assert classifier.fit(files, labels).predict_proba(files).shape == (12, 3)
