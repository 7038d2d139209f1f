"""Metrics against counts done by hand and against scikit-learn's other routes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    roc_auc_score,
)

from vmfcoop.errors import UserError
from vmfcoop.evaluation import classification_metrics


def test_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]])
    metrics = classification_metrics(probabilities, np.array([0, 0, 1, 1]), ["a", "b"])
    assert metrics["accuracy"] == 0.75
    assert metrics["confusion_matrix"] == [[2, 0], [1, 1]]
    assert metrics["per_class"]["a"] == {
        "precision": 2 / 3,
        "recall": 1.0,
        "f1": 0.8,
        "support": 2,
        "auroc": 0.75,
    }
    # Twice the binary score, as both classes count: squares of .1, .4, .3 and .8.
    assert metrics["brier"] == pytest.approx(2 * (0.01 + 0.16 + 0.09 + 0.64) / 4)
    assert metrics["chance"] == metrics["majority"] == 0.5
    assert metrics["macro_auroc"] == 0.75
    # Bins of width 1/15 hold one image each: |1 - .9|, |1 - .6|, |1 - .7|, |0 - .8|, a quarter each.
    assert metrics["ece"] == pytest.approx((0.1 + 0.4 + 0.3 + 0.8) / 4)


@given(st.integers(0, 10_000), st.integers(2, 6))
def test_agrees_with_scikit_learn(seed, classes):
    draw = np.random.default_rng(seed)
    labels = np.concatenate([np.arange(classes), draw.integers(0, classes, 40)])
    probabilities = draw.dirichlet(np.ones(classes), len(labels))
    metrics = classification_metrics(probabilities, labels, [str(i) for i in range(classes)])
    predicted = probabilities.argmax(axis=1)
    scores = probabilities if classes > 2 else probabilities[:, 1]
    assert metrics["accuracy"] == pytest.approx(accuracy_score(labels, predicted))
    assert metrics["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert metrics["macro_f1"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["macro_auroc"] == pytest.approx(roc_auc_score(labels, scores, multi_class="ovr"))
    one_by_one = [brier_score_loss(labels == i, probabilities[:, i]) for i in range(classes)]
    assert metrics["brier"] == pytest.approx(sum(one_by_one))
    for i in range(classes):
        area = roc_auc_score(labels == i, probabilities[:, i])
        assert metrics["per_class"][str(i)]["auroc"] == pytest.approx(area)
    assert metrics["chance"] == 1 / classes
    assert metrics["majority"] == max((labels == i).mean() for i in range(classes))


def test_absent_class_leaves_no_auroc_and_does_not_count():
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1]])
    metrics = classification_metrics(probabilities, np.array([0, 1]), ["a", "b", "c"])
    assert metrics["macro_auroc"] is metrics["per_class"]["c"]["auroc"] is None
    assert metrics["per_class"]["a"]["auroc"] == 1.0
    assert metrics["balanced_accuracy"] == metrics["macro_f1"] == 1.0


def test_worst_brier_score_and_majority_of_unequal_classes():
    wrong = classification_metrics(np.eye(3)[[1, 1, 1, 2]], np.array([0, 0, 0, 1]), ["a", "b", "c"])
    assert wrong["brier"] == 2.0
    assert wrong["majority"] == 0.75 and wrong["chance"] == 1 / 3


def test_single_class():
    """The novel half of three classes is one: nothing can go wrong, and no area is defined."""
    metrics = classification_metrics(np.ones((4, 1)), np.zeros(4, dtype=np.int64), ["a"])
    assert metrics["accuracy"] == metrics["chance"] == metrics["majority"] == 1.0
    assert metrics["ece"] == metrics["brier"] == 0.0
    assert metrics["macro_auroc"] is metrics["per_class"]["a"]["auroc"] is None


def test_nothing_to_evaluate():
    with pytest.raises(UserError, match="no images to evaluate"):
        classification_metrics(np.empty((0, 2)), np.empty(0, dtype=np.int64), ["a", "b"])
