"""Temperature and reliability against closed forms, a general optimiser and torchmetrics."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.stats import binomtest
from torchmetrics.functional.classification import multiclass_calibration_error

from vmfcoop.errors import UserError
from vmfcoop.evaluation.intervals import clopper_pearson
from vmfcoop.trust.calibration import (
    PRIOR_OCTAVES,
    calibration_scores,
    fit_temperature,
    reliability,
    tempered,
)


def drawn(count, classes, temperature, seed=0):
    """Logits, and labels that are drawn from softmax(logits / temperature)."""
    draw = np.random.default_rng(seed)
    logits = draw.normal(0, 4, (count, classes))
    shares = torch.from_numpy(logits / temperature).softmax(dim=1).numpy()
    labels = [draw.choice(classes, p=row / row.sum()) for row in shares]
    return torch.from_numpy(logits), torch.tensor(labels)


@pytest.mark.parametrize("wrong", [1, 2, 3])
def test_two_classes_have_a_closed_form(wrong):
    """With margins m and a share w of errors, the likelihood is highest at m / T = log((1 - w) / w)."""
    logits = torch.tensor([[5.0, 0.0]] * 10)
    labels = torch.tensor([1] * wrong + [0] * (10 - wrong))
    expected = 5 / np.log((10 - wrong) / wrong)
    assert fit_temperature(logits, labels, None) == pytest.approx(expected, rel=1e-6)


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.3, 1.0, 4.0]), prior=st.sampled_from([0.5, 2.0]))
def test_the_posterior_mode_is_that_of_a_general_optimiser(seed, scale, prior):
    logits, labels = drawn(20, 3, scale, seed)
    z, y = logits.numpy(), labels.numpy()

    def cost(octaves):
        scaled = z / 2 ** octaves[0]
        likelihood = scaled[np.arange(20), y] - np.log(np.exp(scaled).sum(axis=1))
        return octaves[0] ** 2 / (2 * prior**2) - likelihood.sum()

    best = min(
        (
            minimize(cost, [s], method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
            for s in (-2, 0, 2)
        ),
        key=lambda found: found.fun,
    )
    mine = np.log2(fit_temperature(logits, labels, prior))
    assert cost([mine]) <= best.fun + 1e-8
    assert mine == pytest.approx(best.x[0], abs=1e-4)


def test_many_images_find_the_temperature_in_spite_of_the_prior():
    logits, labels = drawn(4000, 4, 2.5)
    assert fit_temperature(logits, labels) == pytest.approx(2.5, rel=0.08)


def test_few_right_shots_keep_it_near_one_where_the_likelihood_runs_off():
    logits, labels = torch.tensor([[6.0, 0.0], [0.0, 5.0], [4.0, 0.0]]), torch.tensor([0, 1, 0])
    assert 1 / 32 <= fit_temperature(logits, labels, None) < 1 / 20
    assert 0.9 < fit_temperature(logits, labels) < 1


def test_without_shots_the_probabilities_stay_as_they_are():
    nothing = torch.empty(0, 3), torch.empty(0, dtype=torch.int64)
    assert fit_temperature(*nothing) == 1.0
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    assert (tempered(logits, 1.0) == logits.double().softmax(dim=1).numpy()).all()


def test_temperature_changes_no_prediction_and_scales_the_margin():
    logits, _ = drawn(50, 4, 1.0)
    warm = tempered(logits, 3.0)
    assert (warm.argmax(axis=1) == logits.numpy().argmax(axis=1)).all()
    margins = np.log(warm[:, 0] / warm[:, 1])
    assert margins == pytest.approx((logits[:, 0] - logits[:, 1]).numpy() / 3, abs=1e-9)


@pytest.mark.parametrize(
    ("logits", "labels", "pattern"),
    [
        (torch.zeros(3, 2), torch.zeros(2, dtype=torch.int64), "row a label"),
        (torch.tensor([[float("nan"), 0.0]]), torch.tensor([0]), "not finite"),
    ],
)
def test_bad_logits(logits, labels, pattern):
    with pytest.raises(UserError, match=pattern):
        fit_temperature(logits, labels)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), bins=st.integers(1, 20))
def test_the_diagram_holds_every_image_once_and_gives_torchmetrics_error(seed, bins):
    logits, labels = drawn(60, 3, 2.0, seed)
    shares = tempered(logits, 1.0)
    diagram = reliability(shares, labels.numpy(), bins)
    full = diagram.counts > 0
    assert diagram.counts.sum() == 60
    inside = diagram.confidence[full]
    assert (diagram.edges[:-1][full] <= inside).all() and (inside <= diagram.edges[1:][full]).all()
    assert (diagram.counts * np.nan_to_num(diagram.accuracy)).sum() == pytest.approx(
        (shares.argmax(axis=1) == labels.numpy()).sum()
    )
    oracle = multiclass_calibration_error(torch.from_numpy(shares), labels, 3, bins)
    assert diagram.ece == pytest.approx(float(oracle), abs=1e-6)


def test_intervals_are_scipys_and_a_sure_image_has_a_bin():
    diagram = reliability(np.array([[1.0, 0.0], [0.97, 0.03], [0.95, 0.05]]), np.array([0, 0, 1]), 10)
    exact = binomtest(2, 3).proportion_ci(method="exact")
    assert diagram.counts.tolist() == [0] * 9 + [3]
    assert (diagram.lower[9], diagram.upper[9]) == pytest.approx((exact.low, exact.high))
    assert np.isnan(diagram.lower[:9]).all() and np.isnan(diagram.accuracy[:9]).all()
    hits, counts = np.array([0, 5, 5, 17]), np.array([5, 5, 11, 40])
    lower, upper = clopper_pearson(hits, counts)
    for i in range(4):
        exact = binomtest(int(hits[i]), int(counts[i])).proportion_ci(method="exact")
        assert (lower[i], upper[i]) == pytest.approx((exact.low, exact.high))


def test_a_diagram_needs_images_and_bins():
    with pytest.raises(UserError, match="no images"):
        reliability(np.empty((0, 2)), np.empty(0, np.int64))
    with pytest.raises(UserError, match="at least 1 bin"):
        reliability(np.array([[1.0, 0.0]]), np.array([0]), 0)


def test_scores_in_closed_form():
    scores = calibration_scores(np.array([[0.8, 0.2], [0.4, 0.6]]), np.array([0, 0]))
    assert scores["nll"] == pytest.approx(-(np.log(0.8) + np.log(0.4)) / 2)
    assert scores["brier"] == pytest.approx((2 * 0.2**2 + 2 * 0.6**2) / 2)
    assert scores["ece"] == pytest.approx((0.2 + 0.6) / 2)
    assert np.isfinite(calibration_scores(np.array([[0.0, 1.0]]), np.array([0]))["nll"])


def test_the_prior_is_the_one_that_the_documentation_states():
    assert PRIOR_OCTAVES == 0.5
    logits, labels = torch.tensor([[6.0, 0.0]]), torch.tensor([0])
    temperature = fit_temperature(logits, labels)
    slope = np.log2(temperature) / PRIOR_OCTAVES**2
    # d/dlog2 T of log(1 + exp(-6 / T)) balances the slope of the prior.
    margin = 6 / temperature
    assert slope == pytest.approx(-np.log(2) * margin / (1 + np.exp(margin)), abs=1e-5)
