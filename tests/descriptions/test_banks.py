from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

import vmfcoop.descriptions
from vmfcoop.descriptions import load_descriptions, packaged_descriptions

BANKS = Path(vmfcoop.descriptions.__file__).parent / "banks"
FILES = sorted(BANKS.glob("*.json"))
CLASSES = {
    "phantom-abdominal-ct": {"normal kidney", "kidney cyst", "kidney stone", "kidney tumor"},
    "phantom-brain-mri": {"glioma tumor", "meningioma tumor", "pituitary tumor", "normal brain"},
    "phantom-breast-ultrasound": {"benign tumor", "malignant tumor", "normal scan"},
    "phantom-chest-xray": {"normal lungs", "lobar opacity", "diffuse opacity", "pleural effusion"},
    "phantom-dermatoscopy": {"melanocytic nevus", "melanoma", "seborrheic keratosis", "vascular lesion"},
    "phantom-fundus": {"normal retina", "diabetic retinopathy", "glaucoma", "cataract"},
    "phantom-histology": {"normal glands", "tumor glands", "stroma", "adipose tissue", "lymphocytes"},
}
MODALITY = {
    "phantom-abdominal-ct": r"\bct\b|computed tomography",
    "phantom-brain-mri": r"\bmri?\b|magnetic resonance",
    "phantom-breast-ultrasound": r"ultraso|sonogra",
    "phantom-chest-xray": r"x-ray|radiograph",
    "phantom-dermatoscopy": r"dermatoscop|dermoscop",
    "phantom-fundus": r"fundus|retinal photograph",
    "phantom-histology": r"histolog|h&e",
}
each_bank = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)


def words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[a-z0-9]+", text.lower()))


def test_every_phantom_has_a_bank() -> None:
    assert {path.stem for path in FILES} >= set(CLASSES)


@each_bank
def test_meta(path: Path) -> None:
    bank = load_descriptions(path)
    assert set(bank.meta) == {"source", "dataset", "meta"}
    assert bank.meta["source"] == "written for this project by a large language model"
    assert bank.meta["dataset"] == path.stem
    assert set(bank.meta["meta"]) == {"author", "date", "prompt", "note"}
    assert all(isinstance(value, str) and value for value in bank.meta["meta"].values())


@each_bank
def test_classes(path: Path) -> None:
    bank = load_descriptions(path)
    assert set(bank.descriptions) == CLASSES.get(path.stem, set(bank.descriptions))


@each_bank
def test_fifty_distinct_texts_a_class(path: Path) -> None:
    for name, texts in load_descriptions(path).descriptions.items():
        assert len(texts) == 50, name
        assert len({" ".join(text.lower().split()) for text in texts}) == 50, name


@each_bank
def test_no_two_texts_of_a_class_overlap(path: Path) -> None:
    for texts in load_descriptions(path).descriptions.values():
        for one, other in itertools.combinations(texts, 2):
            a, b = words(one), words(other)
            assert len(a & b) / len(a | b) <= 0.9, (one, other)


@each_bank
def test_length_and_characters(path: Path) -> None:
    for texts in load_descriptions(path).descriptions.values():
        for text in texts:
            assert 10 <= len(text.split()) <= 40, text
            assert text.isascii() and text.isprintable(), text


@each_bank
def test_texts_name_the_modality(path: Path) -> None:
    pattern = MODALITY.get(path.stem, "")
    for texts in load_descriptions(path).descriptions.values():
        for text in texts:
            assert re.search(pattern, text.lower()), text


@each_bank
def test_other_classes_are_hardly_named(path: Path) -> None:
    descriptions = load_descriptions(path).descriptions
    for name, other in itertools.permutations(descriptions, 2):
        found = [t for t in descriptions[name] if re.search(rf"\b{re.escape(other)}\b", t.lower())]
        assert len(found) <= 3, (name, other, found)


@pytest.mark.parametrize("key", CLASSES)
def test_chosen_by_dataset_key(key: str) -> None:
    bank = packaged_descriptions(key)
    assert bank is not None and set(bank.descriptions) == CLASSES[key]
    assert bank.source == f"the package's descriptions of {key}"
    assert bank.fingerprint == load_descriptions(BANKS / f"{key}.json").fingerprint


@pytest.mark.parametrize(
    "spec", ["lesions/", "phantom", "../banks/phantom-fundus", "phantom-fundus.json", ""]
)
def test_other_data_has_none(spec: str) -> None:
    assert packaged_descriptions(spec) is None
