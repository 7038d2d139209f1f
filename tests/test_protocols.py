"""Protocols: what a method may see, and base-to-novel on a method whose answers are known."""

import dataclasses

import numpy as np
import pytest
import torch

from tests.plain_encoder import PlainEncoder
from vmfcoop import load_dataset
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.evaluation import BaseToNovel, base_to_novel, draw_support, split_accuracy
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import make_method


@pytest.fixture
def setting(image_folder, tmp_path):
    table = load_dataset(image_folder)
    return CachedEncoder(PlainEncoder(), tmp_path), table, template_bank(table.class_names)


def test_support_holds_training_images_only(setting):
    encoder, table, bank = setting
    support = draw_support(encoder, table, bank, shots=2, seed=1, views=3)
    assert support.image_features.shape == (6, 3, 16) and support.shots == 2
    rows = {
        split: encoder.encode_image_files(table.subset(split).paths)[:, 0]
        for split in ("train", "val", "test")
    }

    def inside(features, split):
        return [bool((rows[split] == row).all(dim=1).any()) for row in features]

    assert all(inside(support.image_features[:, 0], "train"))
    assert not any(inside(support.image_features[:, 0], "test"))
    assert all(inside(support.validation_features, "val"))


def test_labels_of_test_images_do_not_reach_fit(setting):
    """Another labelling of the test split changes nothing that a method learns."""
    encoder, table, bank = setting
    labels = table.labels.copy()
    test = table.indices("test")
    labels[test] = np.roll(labels[test], 1)
    other = dataclasses.replace(table, labels=labels)
    states = [
        make_method("coop", {"epochs": 2}).fit(draw_support(encoder, t, bank, 2, 1), encoder).state()
        for t in (table, other)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def test_base_to_novel_is_zero_shot_for_zero_shot(setting):
    encoder, table, bank = setting
    scores = base_to_novel(encoder, table, bank, make_method("zero-shot"), seed=1, shots=2)
    embeddings = encoder.encode_texts([f"a photo of a {name}." for name in table.class_names])
    rows = table.indices("test")
    features = encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]
    logits, labels = features @ embeddings.T, torch.from_numpy(table.labels[rows])
    base = labels < 2
    assert scores.base == pytest.approx(float((logits[base, :2].argmax(1) == labels[base]).float().mean()))
    assert scores.novel == 1.0  # one class is left of three


def test_harmonic_mean():
    assert BaseToNovel(0.8, 0.4).harmonic_mean == pytest.approx(2 / (1 / 0.8 + 1 / 0.4))
    assert BaseToNovel(0.0, 0.0).harmonic_mean == 0.0


def test_split_accuracy_counts(setting):
    encoder, table, bank = setting
    fitted = make_method("zero-shot").fit(draw_support(encoder, table, bank, 1, 1), encoder)
    rows = table.indices("val")
    features = encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]
    right = fitted.logits(features).argmax(1).numpy() == table.labels[rows]
    assert split_accuracy(encoder, table, fitted, "val") == pytest.approx(right.mean())
