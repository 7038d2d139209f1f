"""Class fields against scipy's law and a mixture written out; p-values against counting."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import vonmises_fisher
from torch.nn.functional import normalize

from vmfcoop.methods.base import EmbeddingClassifier, LinearClassifier
from vmfcoop.sphere import VonMisesFisher, fit_vmf
from vmfcoop.trust.ood import (
    FALSE_ALARMS,
    OOD_SCORES,
    Seen,
    all_scores,
    fit_image_fields,
    fit_text_fields,
    mixture_log_density,
    outside,
)
from vmfcoop.trust.record import ClassFields


def sphere_images(counts, kappa, dim, seed=0):
    """Draws from one law a class, and their labels."""
    torch.manual_seed(seed)
    means = normalize(torch.randn(len(counts), dim, dtype=torch.float64), dim=1)
    rows = [VonMisesFisher(mean, kappa).sample((n,)) for mean, n in zip(means, counts, strict=True)]
    return torch.cat(rows).float(), torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)), means


def test_the_mixture_is_scipys():
    features, *_ = sphere_images([5, 7], 20.0, 3)
    fields = ClassFields(
        normalize(torch.tensor([[1.0, 0.0, 0.2], [0.0, 1.0, 0.0]]), dim=1),
        torch.tensor([3.0, 50.0], dtype=torch.float64),
    )
    laws = [
        vonmises_fisher(mean.double().numpy() / np.linalg.norm(mean.double()), kappa)
        for mean, kappa in zip(fields.mean_directions, (3.0, 50.0), strict=True)
    ]
    expected = [math.log(np.mean([law.pdf(x / np.linalg.norm(x)) for law in laws])) for x in features.numpy()]
    # scipy takes unit rows in float64; the features' lengths are off by float32 rounding.
    assert mixture_log_density(features, fields).numpy() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(("kappa", "dim"), [(40.0, 8), (200.0, 128)])
def test_few_images_do_not_inflate_the_concentration(kappa, dim):
    """Over many supports of 4 shots the debiased fit is near the truth, where the MLE is far above it."""
    mine, plain = [], []
    for seed in range(30):
        features, labels, _ = sphere_images([4] * 5, kappa, dim, seed)
        mine.append(float(fit_image_fields(features, labels, 5).concentrations[0]))
        plain.append(float(fit_vmf(features[:4]).concentration))
    assert np.mean(mine) == pytest.approx(kappa, rel=0.1)
    assert np.mean(plain) > 1.3 * kappa


def test_directions_are_those_of_the_class_means():
    features, labels, _ = sphere_images([3, 6, 2], 30.0, 16)
    fields = fit_image_fields(features, labels, 3)
    for c in range(3):
        mean = features[labels == c].double().mean(dim=0)
        assert fields.mean_directions[c].double() @ (mean / mean.norm()) == pytest.approx(1, abs=1e-6)


def test_one_shot_and_equal_images_have_finite_fields():
    features, _, _ = sphere_images([1, 1, 1], 30.0, 16)
    fields = fit_image_fields(features, torch.arange(3), 3)
    assert (
        torch.isfinite(fields.concentrations).all() and (fields.mean_directions - features).abs().max() < 1e-6
    )
    twice = fit_image_fields(features.repeat(2, 1), torch.arange(3).repeat(2), 3)
    assert torch.isfinite(mixture_log_density(features, twice)).all()
    assert (twice.concentrations > fields.concentrations).all()


def test_text_fields_are_the_fits_or_absent():
    texts, _, _ = sphere_images([5], 60.0, 8)
    other, _, _ = sphere_images([4], 60.0, 8, seed=1)
    fields = fit_text_fields([texts, other])
    for row, rows in enumerate((texts, other)):
        fit = fit_vmf(rows)
        assert fields.mean_directions[row].double() == pytest.approx(fit.mean_direction, abs=1e-6)
        assert fields.concentrations[row] == pytest.approx(fit.concentration)
    assert fit_text_fields([texts, other[:1]]) is None


def seen(fitted, features, text_fields=None):
    image_fields = fit_image_fields(features, torch.arange(len(features)) % 2, 2)
    return Seen(features, fitted.logits(features), fitted, image_fields, text_fields)


def test_scores_of_logits_in_closed_form_and_absent_ones():
    features, _, _ = sphere_images([6], 5.0, 4)
    fitted = LinearClassifier(("a", "b"), torch.randn(2, 4), torch.zeros(2))
    scores = all_scores(seen(fitted, features))
    logits = fitted.logits(features).double().numpy()
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert scores["softmax"].numpy() == pytest.approx(1 - shares.max(axis=1))
    assert scores["energy"].numpy() == pytest.approx(-np.log(np.exp(logits).sum(axis=1)))
    assert set(scores) == {"image-fields", "softmax", "energy"}
    assert all(values.dtype == torch.float64 for values in scores.values())
    assert set(OOD_SCORES) > set(scores)


def test_images_of_another_kind_are_further_outside():
    inside, labels, means = sphere_images([20, 20], 80.0, 32)
    elsewhere, _, _ = sphere_images([20], 80.0, 32, seed=5)
    fitted = EmbeddingClassifier(("a", "b"), means.float(), 10.0)
    fields = fit_image_fields(inside, labels, 2)

    def score(features):
        return all_scores(Seen(features, fitted.logits(features), fitted, fields, fields))

    for name in ("image-fields", "text-fields"):
        assert score(elsewhere)[name].min() > score(inside)[name].max()


@settings(max_examples=40, deadline=None)
@given(
    scores=st.lists(st.integers(0, 8), min_size=1, max_size=10),
    calibration=st.lists(st.integers(0, 8), max_size=30),
)
def test_p_values_count_the_calibration_images_as_far_out(scores, calibration):
    verdict = outside(np.array(scores, float), np.array(calibration, float))
    for score, p, flag in zip(scores, verdict.p_values, verdict.flags, strict=True):
        expected = (1 + sum(c >= score for c in calibration)) / (len(calibration) + 1)
        assert p == expected and flag == (expected <= FALSE_ALARMS)


@pytest.mark.parametrize("n", [19, 80, 256])
def test_at_most_five_percent_of_exchangeable_images_are_flagged(n):
    draw = np.random.default_rng(n)
    flagged = [outside(row[n:], row[:n]).flags.mean() for row in draw.normal(size=(400, n + 50))]
    # An image is flagged if it is among the floor((n + 1) / 20) highest of n + 1.
    expected = math.floor((n + 1) * FALSE_ALARMS) / (n + 1)
    assert expected <= 0.05
    assert np.mean(flagged) == pytest.approx(expected, abs=4 * np.std(flagged) / 20)


def test_with_18_calibration_images_nothing_is_flagged():
    assert not outside(np.array([1e9]), np.arange(18.0)).flags.any()
    assert outside(np.array([1e9]), np.arange(19.0)).flags.all()
