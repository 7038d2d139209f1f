"""Confidence intervals of metrics: against closed forms, repeated tables and simulated coverage."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfcoop.errors import UserError
from vmfcoop.evaluation import classification_metrics
from vmfcoop.evaluation.intervals import OVERALL, PER_CLASS, metric_intervals, weighted_metrics, wilson

NAMES = ("cyst", "stone", "tumor")


def table(n, classes=3, seed=0, skill=2.0):
    """Probabilities that know something, in steps of a hundredth so that there are ties."""
    draw = np.random.default_rng(seed)
    labels = draw.integers(0, classes, n)
    logits = draw.normal(size=(n, classes)) + skill * np.eye(classes)[labels]
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rounded = np.round(shares, 2)
    return rounded / rounded.sum(axis=1, keepdims=True), labels


@pytest.mark.parametrize(("hits", "n"), [(0, 5), (3, 7), (90, 100), (12, 12)])
def test_wilson_solves_its_equation(hits, n):
    found, z = wilson(hits, n), 1.959963984540054
    for end in (found.low, found.high):
        assert (hits / n - end) ** 2 == pytest.approx(z**2 * end * (1 - end) / n, abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(0, 0), (4, 3), (-1, 3)])
def test_wilson_says_what_is_no_share(hits, n):
    with pytest.raises(UserError, match="is no share"):
        wilson(hits, n)


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 30), st.integers(0, 1000), st.integers(2, 4))
def test_weights_are_repetitions(n, seed, classes):
    """Every metric of a weighted table is that of the table with its rows repeated."""
    probabilities, labels = table(n, classes, seed, skill=0.5)
    weights = np.random.default_rng(seed).integers(0, 3, (1, n)).astype(float)
    weights[0, 0] = 1
    rows = np.repeat(np.arange(n), weights[0].astype(int))
    expected = classification_metrics(probabilities[rows], labels[rows], list("abcd"[:classes]))
    found = weighted_metrics(probabilities, labels, weights)
    for key in OVERALL:
        value = expected[key]
        assert math.isnan(found[key][0]) if value is None else found[key][0] == pytest.approx(value)
    for i, row in enumerate(expected["per_class"].values()):
        for key in PER_CLASS:
            if row["support"] and row[key] is not None:
                assert found[key][0, i] == pytest.approx(row[key])


def test_independent_images_have_wilsons_interval_where_it_applies():
    probabilities, labels = table(150)
    right = probabilities.argmax(axis=1) == labels
    found = metric_intervals(probabilities, labels)
    assert found.overall["accuracy"] == wilson(int(right.sum()), 150) and found.groups is None
    for i, interval in enumerate(found.per_class["recall"]):
        assert interval == wilson(int(right[labels == i].sum()), int((labels == i).sum()))


def test_intervals_hold_the_metrics_themselves():
    probabilities, labels = table(150)
    found, metrics = (
        metric_intervals(probabilities, labels),
        classification_metrics(probabilities, labels, NAMES),
    )
    for key, interval in found.overall.items():
        assert interval.low < metrics[key] < interval.high, key
    for i, row in enumerate(metrics["per_class"].values()):
        for key in PER_CLASS:
            assert found.per_class[key][i].low < row[key] < found.per_class[key][i].high


def test_copies_of_an_image_in_one_group_add_nothing():
    """Five copies of everything, grouped with their original: the same intervals as without the copies."""
    probabilities, labels = table(60)
    once = metric_intervals(probabilities, labels, np.arange(60).astype(str))
    groups = np.repeat(np.arange(60).astype(str), 5)
    copied = metric_intervals(np.repeat(probabilities, 5, axis=0), np.repeat(labels, 5), groups)
    assert copied.groups == once.groups == 60
    for key in OVERALL:
        assert (copied.overall[key].low, copied.overall[key].high) == pytest.approx(
            (once.overall[key].low, once.overall[key].high)
        )
    ungrouped = metric_intervals(np.repeat(probabilities, 5, axis=0), np.repeat(labels, 5))
    for key in OVERALL:
        width = copied.overall[key].high - copied.overall[key].low
        assert width > 1.6 * (ungrouped.overall[key].high - ungrouped.overall[key].low)


def test_grouped_intervals_cover_what_they_claim_and_ungrouped_ones_do_not():
    """Patients of six images whose difficulty they share: 95 % intervals of the accuracy in 120 studies."""
    draw = np.random.default_rng(1)
    covered = {True: 0, False: 0}
    groups = np.repeat(np.arange(40).astype(str), 6)
    for _ in range(120):
        ease = np.repeat(draw.beta(0.8, 0.2, size=40), 6)  # mean 0.8, correlated by 0.5 within a patient
        right = draw.random(240) < ease
        labels = draw.integers(0, 2, 240)
        probabilities = np.eye(2)[np.where(right, labels, 1 - labels)]
        for grouped in covered:
            own = groups if grouped else None
            interval = metric_intervals(probabilities, labels, own, draws=200).overall["accuracy"]
            covered[grouped] += interval.low <= 0.8 <= interval.high
    assert covered[True] >= 104  # 0.95 less what 40 groups cost the bootstrap, less three standard errors
    assert covered[False] <= 98  # the design effect of 3.5 makes 0.71 of a 0.95


def test_all_right_is_not_certain():
    labels = np.arange(30) % 3
    groups = (np.arange(30) // 3).astype(str)
    found = metric_intervals(np.eye(3)[labels], labels, groups)
    assert found.overall["accuracy"] == wilson(10, 10)
    assert found.per_class["recall"][0] == found.per_class["precision"][0] == wilson(10, 10)
    assert metric_intervals(np.eye(3)[labels], labels).per_class["precision"][1] == wilson(10, 10)
    wrong = metric_intervals(np.eye(3)[(labels + 1) % 3], labels, groups)
    assert wrong.overall["accuracy"] == wilson(0, 10)
    never = np.tile([0.5, 0.5, 0.0], (30, 1))
    assert metric_intervals(never, labels).per_class["precision"][2] is None


def test_classes_that_do_not_occur_have_none():
    probabilities, labels = table(40)
    probabilities, labels = probabilities[labels < 2], labels[labels < 2]
    found = metric_intervals(probabilities, labels)
    assert "macro_auroc" not in found.overall
    assert found.per_class["recall"][2] is None and found.per_class["auroc"][2] is None
    assert found.per_class["auroc"][0] is not None


def test_the_same_every_time_and_in_blocks_of_any_size(monkeypatch):
    probabilities, labels = table(50)
    once = metric_intervals(probabilities, labels)
    assert metric_intervals(probabilities, labels) == once
    monkeypatch.setattr("vmfcoop.evaluation.intervals._AT_ONCE", 3000)
    assert metric_intervals(probabilities, labels) == once


def test_no_images_no_intervals():
    with pytest.raises(UserError, match="no images"):
        metric_intervals(np.empty((0, 3)), np.empty(0, np.int64))


def test_one_group_says_nothing_of_others():
    probabilities, labels = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), np.array([0, 1, 1])
    found = metric_intervals(probabilities, labels, np.array(["a"] * 3))
    assert found.groups == 1 and found.overall == {}
    assert all(column == (None, None) for column in found.per_class.values())
