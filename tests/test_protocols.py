"""Protocols: what a method may see, and base-to-novel on a method whose answers are known."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.plain_encoder import PlainEncoder
from tests.test_contract_methods import quick
from vmfcoop import load_dataset
from vmfcoop.data import restrict_classes
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.errors import UserError
from vmfcoop.evaluation import (
    base_to_novel,
    cross_dataset,
    draw_support,
    few_shot,
    harmonic_mean,
    split_metrics,
)
from vmfcoop.evaluation.protocols import budget_settings, training_steps
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import METHODS, make_method
from vmfcoop.methods.base import make_config


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


@pytest.mark.parametrize("name", METHODS)
def test_labels_of_test_images_are_out_of_reach_of_every_method(setting, name):
    """A table whose test rows carry no usable label or readable image fits to the bit as the whole one."""
    encoder, table, bank = setting
    draw_support(encoder, table, bank, 2, 1)
    held = np.isin(table.split, ["train", "val"])
    paths = tuple(p if keep else Path("/nowhere/test.png") for p, keep in zip(table.paths, held, strict=True))
    blind = dataclasses.replace(table, paths=paths, labels=np.where(held, table.labels, 0))
    settings = {"seed": 1, **quick(name)}
    states = [
        make_method(name, settings).fit(draw_support(encoder, t, bank, 2, 1), encoder).state()
        for t in (table, blind)
    ]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])


def plain_accuracy(encoder, table, rows, classes):
    """Share of rows right by the class names among some classes, counted here."""
    embeddings = encoder.encode_texts([f"a photo of a {table.class_names[i]}." for i in classes])
    features = encoder.encode_image_files([table.paths[i] for i in rows])[:, 0]
    predicted = np.array(classes)[(features @ embeddings.T).argmax(1).numpy()]
    return float((predicted == table.labels[rows]).mean())


@pytest.fixture
def four_classes(setting, tmp_path_factory):
    """The same images with a fourth class made of the second half of the first."""
    encoder, table, _ = setting
    first = np.flatnonzero(table.labels == 0)
    labels = table.labels.copy()
    labels[first[::2]] = 3
    split = table.split.copy()
    split[first] = ["train", "train"] * 2 + ["val", "val"] + ["test", "test"] * 3
    names = (*table.class_names, "cyst")
    table = dataclasses.replace(table, labels=labels, split=split, class_names=names, groups=None)
    return encoder, table, template_bank(names)


def test_base_to_novel_needs_two_novel_classes(setting):
    with pytest.raises(UserError, match="at least 4 classes"):
        base_to_novel(*setting, make_method("zero-shot"), seeds=[1], shots=2)


def test_base_to_novel_is_zero_shot_for_zero_shot(four_classes):
    encoder, table, bank = four_classes
    (scores,) = base_to_novel(encoder, table, bank, make_method("zero-shot"), seeds=[1], shots=2)
    rows = table.indices("test")
    base = rows[table.labels[rows] < 2]
    assert scores["base"]["accuracy"] == pytest.approx(plain_accuracy(encoder, table, base, [0, 1]))
    novel = rows[table.labels[rows] >= 2]
    assert scores["novel"]["accuracy"] == pytest.approx(plain_accuracy(encoder, table, novel, [2, 3]))
    assert scores["steps"] == 0 and scores["seconds"]["fit"] >= 0


def test_novel_is_empty_where_a_method_takes_no_new_classes(four_classes):
    encoder, table, bank = four_classes
    method = make_method("coop", {"epochs": 1, "class_specific": True})
    assert not method.new_classes
    (scores,) = base_to_novel(encoder, table, bank, method, seeds=[1], shots=2)
    assert scores["novel"] is None and scores["base"]["n"] > 0


def test_few_shot_of_two_seeds_is_each_seed_alone(setting):
    encoder, table, bank = setting
    method = make_method("coop", {"epochs": 2})
    together = few_shot(encoder, table, bank, method, shots=2, seeds=[1, 2], views=2)
    for seed, scores in zip([1, 2], together, strict=True):
        fitted = make_method("coop", {"epochs": 2, "seed": seed}).fit(
            draw_support(encoder, table, bank, 2, seed, views=2), encoder
        )
        alone = split_metrics(encoder, table, fitted)
        assert scores["test"]["confusion_matrix"] == alone["confusion_matrix"]
        assert scores["test"]["ece"] == pytest.approx(alone["ece"], abs=1e-6)
        assert scores["steps"] == 2


def test_cross_dataset_tests_both(setting):
    encoder, table, bank = setting
    other = restrict_classes(table, [2, 0])
    other_bank = template_bank(other.class_names)
    (scores,) = cross_dataset(encoder, table, bank, other, other_bank, make_method("zero-shot"), 1, [1])
    rows = table.indices("test")
    two = rows[table.labels[rows] != 1]
    assert scores["source"]["accuracy"] == pytest.approx(plain_accuracy(encoder, table, rows, [0, 1, 2]))
    assert scores["target"]["accuracy"] == pytest.approx(plain_accuracy(encoder, table, two, [2, 0]))
    (same,) = cross_dataset(encoder, table, bank, table, bank, make_method("coop", {"epochs": 1}), 1, [1])
    assert same["target"] == same["source"]


def test_budgets():
    coop, plain = METHODS["coop"].Config, METHODS["zero-shot"].Config
    assert budget_settings(coop, "paper", 64) == {} == budget_settings(plain, "equal", 64)
    steps = set()
    for method in METHODS.values():
        settings = budget_settings(method.Config, "equal", 30, epochs=10, batch_size=4)
        if settings.keys() & {"epochs", "iterations"}:
            steps.add(training_steps(make_config(method.Config, settings), 30))
    assert steps == {80}  # ten epochs of eight batches of at most four


def test_harmonic_mean():
    assert harmonic_mean(0.8, 0.4) == pytest.approx(2 / (1 / 0.8 + 1 / 0.4))
    assert harmonic_mean(0.0, 0.0) == 0.0
