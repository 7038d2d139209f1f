"""The embedded CLIP: small, in the hub's format, loaded by the code that loads any other, worth adapting."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from safetensors.torch import load_file

from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.open_clip import OpenClipEncoder
from vmfcoop.backbones.registry import PHANTOM_CLIP
from vmfcoop.data.phantoms import PHANTOMS

SHOWN = ("phantom-dermatoscopy", "phantom-chest-xray", "phantom-breast-ultrasound", "phantom-brain-mri")


@pytest.fixture(scope="module")
def encoder() -> OpenClipEncoder:
    found = load_backbone("phantom", "cpu")
    assert isinstance(found, OpenClipEncoder)
    return found


def test_folder_is_small_and_safe() -> None:
    assert {path.suffix for path in PHANTOM_CLIP.iterdir()} == {".json", ".safetensors", ".csv", ".md"}
    assert sum(path.stat().st_size for path in PHANTOM_CLIP.iterdir()) < 8 * 2**20
    weights = load_file(PHANTOM_CLIP / "open_clip_model.safetensors")
    assert {value.dtype for value in weights.values() if value.is_floating_point()} == {torch.float16}


def test_it_is_the_spec_of_a_folder_by_another_name(encoder: OpenClipEncoder) -> None:
    folder = load_backbone(f"dir:{PHANTOM_CLIP}", "cpu")
    assert (encoder.name, encoder.fingerprint) == ("phantom", folder.fingerprint)
    assert (encoder.dim, encoder.image_size, encoder.context_length) == (128, (160, 160), 64)
    assert json.loads((PHANTOM_CLIP / "open_clip_config.json").read_text())["model_cfg"]["embed_dim"] == 128


def test_every_word_of_the_class_names_is_known(encoder: OpenClipEncoder) -> None:
    vocabulary = set(encoder.vocabulary())
    assert 1000 < len(vocabulary) <= 2000
    for dataset in PHANTOMS.values():
        tokens = encoder.tokenize(list(dataset.class_names))
        assert not (tokens.ids == 1).any(), dataset.key  # [UNK]


def test_training_curve_is_that_of_a_model_that_learned() -> None:
    with (PHANTOM_CLIP / "training_curve.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["epoch"]) for row in rows] == list(range(1, len(rows) + 1))
    assert float(rows[-1]["loss"]) < float(rows[0]["loss"]) / 2
    assert float(rows[-1]["zero_shot"]) > float(rows[0]["zero_shot"]) + 0.15


def zero_shot(encoder: OpenClipEncoder, key: str, first: int = 5000, per_class: int = 24) -> float:
    """Share of fresh phantoms named rightly in "a photo of a ..."."""
    dataset = PHANTOMS[key]
    texts = encoder.encode_texts([f"a photo of a {name}." for name in dataset.class_names])
    right = 0
    for label in range(len(dataset.class_names)):
        images = [dataset.phantom(label, first + i).image for i in range(per_class)]
        pixels = torch.stack([torch.from_numpy(image).permute(2, 0, 1) for image in images]).float()
        right += int(((encoder.encode_images(pixels / 127.5 - 1) @ texts.T).argmax(1) == label).sum())
    return right / (per_class * len(dataset.class_names))


@pytest.mark.slow
@pytest.mark.parametrize("key", SHOWN)
def test_names_of_shown_findings_beat_chance(encoder: OpenClipEncoder, key: str) -> None:
    assert zero_shot(encoder, key) > 1 / len(PHANTOMS[key].class_names) + 0.1
