from __future__ import annotations

from pathlib import Path

import pytest

import vmfcoop.descriptions
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import load_descriptions, packaged_descriptions
from vmfcoop.descriptions.quality import check_bank
from vmfcoop.descriptions.subject import dataset_subject

BANKS = Path(vmfcoop.descriptions.__file__).parent / "banks"
FILES = sorted(BANKS.glob("*.json"))
each_bank = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
PHANTOM_KEYS = sorted(PHANTOMS)


@pytest.mark.parametrize("key", PHANTOM_KEYS)
def test_every_phantom_has_a_bank(key: str) -> None:
    bank = packaged_descriptions(key)
    assert bank is not None and set(bank.descriptions) == set(PHANTOMS[key].class_names)
    assert bank.source == f"the package's descriptions of {key}"
    assert bank.fingerprint == load_descriptions(BANKS / f"{key}.json").fingerprint


@each_bank
def test_meta(path: Path) -> None:
    bank = load_descriptions(path)
    assert set(bank.meta) == {"source", "dataset", "meta"}
    assert bank.meta["source"] == "written for this project by a large language model"
    assert bank.meta["dataset"] == path.stem
    assert {"author", "date", "prompt", "note"} <= set(bank.meta["meta"])
    assert all(isinstance(value, str) and value for value in bank.meta["meta"].values())
    assert "no clinical text" in bank.meta["meta"]["note"]


@each_bank
def test_classes_are_those_of_the_dataset(path: Path) -> None:
    assert set(load_descriptions(path).descriptions) == set(dataset_subject(path.stem).class_names)


@each_bank
def test_no_faults(path: Path) -> None:
    """Fifty a class, 10 to 40 words, none like another, none of another class, each with its modality."""
    findings = check_bank(load_descriptions(path).descriptions, dataset_subject(path.stem), count=50)
    wrong = [f for f in findings if f.is_fault or f.kind in ("modality-unnamed", "uneven", "extra")]
    assert wrong == []


@each_bank
def test_most_sentences_name_their_class(path: Path) -> None:
    descriptions = load_descriptions(path).descriptions
    findings = check_bank(descriptions, dataset_subject(path.stem))
    for name, texts in descriptions.items():
        unnamed = [f for f in findings if f.kind == "class-unnamed" and f.class_name == name]
        assert len(unnamed) <= 0.65 * len(texts), (name, len(unnamed))


@each_bank
def test_plain_characters(path: Path) -> None:
    for texts in load_descriptions(path).descriptions.values():
        assert all(text.isascii() and text.isprintable() and text.endswith(".") for text in texts)


@pytest.mark.parametrize(
    "spec", ["lesions/", "phantom", "../banks/phantom-fundus", "phantom-fundus.json", ""]
)
def test_other_data_has_none(spec: str) -> None:
    assert packaged_descriptions(spec) is None
