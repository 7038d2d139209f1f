"""Prediction sets against the papers' algorithms written out, and their coverage against its exact law."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom, binomtest

from vmfcoop.errors import UserError
from vmfcoop.trust.conformal import (
    CONFORMAL_METHODS,
    RAPS_FREE_RANKS,
    RAPS_PENALTY,
    SetRequest,
    conformal_quantile,
    coverage,
    covered_law,
    fit_sets,
    images_needed,
    order_needed,
)

NAMES = ["a", "b", "c", "d"]


def images(count, seed, classes=4, sharpness=1.5):
    """Probabilities of images, and labels that only partly follow them."""
    draw = np.random.default_rng(seed)
    logits = sharpness * draw.normal(size=(count, classes))
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    noisy = logits + draw.gumbel(size=logits.shape)
    return shares, noisy.argmax(axis=1)


def romano_set(shares, threshold, u=0.0, penalty=0.0, free=0):
    """Classes in order of probability until the threshold is passed, by a loop over the ranks."""
    order = sorted(range(len(shares)), key=lambda c: -shares[c])
    chosen, total = set(), 0.0
    for rank, c in enumerate(order, 1):
        if total + u * shares[c] + penalty * max(0, rank - free) <= threshold:
            chosen.add(c)
        total += shares[c]
    return chosen or {order[0]}


def brute_threshold(shares, labels, alpha, draws, penalty=0.0, free=0):
    """The smallest threshold among the scores at which enough calibration sets hold their class."""
    scores = []
    for row, label, u in zip(shares, labels, draws, strict=True):
        ahead = sum(p for p in row if p > row[label])
        rank = 1 + sum(p > row[label] for p in row)
        scores.append(ahead + u * row[label] + penalty * max(0, rank - free))
    needed = math.ceil((len(scores) + 1) * (1 - alpha) - 1e-9)
    enough = [t for t in scores if sum(s <= t for s in scores) >= needed]
    return min(enough, default=math.inf)


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    count=st.integers(3, 60),
    alpha=st.sampled_from([0.05, 0.1, 0.2, 0.5]),
    method=st.sampled_from(["aps", "raps"]),
    randomised=st.booleans(),
)
@pytest.mark.filterwarnings("ignore:At an error rate")
def test_aps_and_raps_are_the_papers_algorithms(seed, count, alpha, method, randomised):
    shares, labels = images(count, seed)
    new, _ = images(20, seed + 1)
    request = SetRequest(alpha, method, randomised=randomised, seed=seed)
    extra = {"penalty": RAPS_PENALTY, "free": RAPS_FREE_RANKS} if method == "raps" else {}
    streams = [np.random.default_rng((seed, stream)) for stream in (0, 1)]
    u, v = (s.random(n) if randomised else np.zeros(n) for s, n in zip(streams, (count, 20), strict=True))
    threshold = brute_threshold(shares, labels, alpha, u, **extra)
    predictor = fit_sets(request, shares, labels, NAMES)
    assert predictor.thresholds == pytest.approx(np.full(4, threshold))
    # At the threshold itself the two sums round differently, so the loop is given the package's.
    for row, mine, draw in zip(new, predictor.sets(new), v, strict=True):
        expected = romano_set(row, predictor.thresholds[0] + 1e-12, draw, **extra)
        assert set(np.flatnonzero(mine)) == expected


def test_lac_holds_the_classes_that_are_probable_enough():
    shares, labels = images(99, 0)
    predictor = fit_sets(SetRequest(0.1, "lac"), shares, labels, NAMES)
    least = np.sort(shares[np.arange(99), labels])[9]  # the 10th smallest: 90 of 100 at or above
    new, _ = images(200, 1)
    expected = new >= least - 1e-12
    empty = ~expected.any(axis=1)
    expected[empty, new[empty].argmax(axis=1)] = True
    assert (predictor.sets(new) == expected).all()


def covered_counts(request, n, m, repeats):
    """How many of m new images are covered, calibration and new images drawn anew every time."""
    counts = []
    for seed in range(repeats):
        shares, labels = images(n + m, (seed, 7), sharpness=0.6)
        sets = fit_sets(request, shares[:n], labels[:n], NAMES).sets(shares[n:])
        counts.append(int(sets[np.arange(m), labels[n:]].sum()))
    return np.array(counts)


@pytest.mark.parametrize("alpha", [0.05, 0.1, 0.2])
def test_the_coverage_of_exchangeable_images_follows_its_exact_law(alpha):
    """LAC of blunt probabilities: no ties and no empty sets, so the law is met from both sides."""
    n, m, repeats = 79, 40, 300
    law, counts = covered_law(n, m, alpha), covered_counts(SetRequest(alpha, "lac"), n, m, repeats)
    assert counts.mean() == pytest.approx(law.mean(), abs=4 * law.std() / math.sqrt(repeats))
    low, high = law.interval(0.95)
    expected = law.cdf(high) - law.cdf(low - 1)
    inside = ((low <= counts) & (counts <= high)).mean()
    assert inside == pytest.approx(expected, abs=4 * math.sqrt(expected * (1 - expected) / repeats))


@pytest.mark.filterwarnings("ignore:At an error rate")
@pytest.mark.parametrize("method", ["aps", "raps", "lac"])
@pytest.mark.parametrize("by_class", [False, True])
@pytest.mark.parametrize("randomised", [False, True])
def test_every_kind_of_set_covers_as_promised(method, by_class, randomised):
    n, m, repeats, alpha = 79, 40, 150, 0.1
    law = covered_law(n, m, alpha)
    counts = covered_counts(SetRequest(alpha, method, by_class, randomised), n, m, repeats)
    assert counts.mean() >= m * (1 - alpha) - 4 * law.std() / math.sqrt(repeats)
    assert counts.mean() < m  # and not by holding everything


def test_class_conditional_sets_hold_where_the_frequencies_differ():
    """A rare hard class is covered too little by one threshold, and as promised by its own."""
    draw = np.random.default_rng(0)

    def sample(count, rare):
        labels = (draw.random(count) < rare).astype(int)
        score = np.where(labels == 1, draw.normal(0.2, 1, count), draw.normal(-2, 1, count))
        share = 1 / (1 + np.exp(-score))
        return np.stack([1 - share, share], axis=1), labels

    shares, labels = sample(4000, 0.05)
    new, truth = sample(20000, 0.5)
    rates = {}
    for by_class in (False, True):
        sets = fit_sets(SetRequest(0.1, "lac", by_class), shares, labels, ["usual", "rare"]).sets(new)
        rates[by_class] = [sets[truth == c, c].mean() for c in (0, 1)]
    assert rates[False][1] < 0.75
    assert rates[True] == pytest.approx([0.9, 0.9], abs=0.06)


@given(n=st.integers(1, 400), per_mille=st.integers(1, 999))
@settings(max_examples=200, deadline=None)
def test_the_order_is_the_exact_ceiling(n, per_mille):
    exact = -(-(n + 1) * (1000 - per_mille) // 1000)
    assert order_needed(n, per_mille / 1000) == exact


def test_error_rates_at_the_ends_have_a_threshold_and_a_law():
    """At 1 - 1e-12 the least score of all is the threshold; at 1e-12 no number of images is enough."""
    scores = np.array([3.0, 1.0, 2.0])
    assert conformal_quantile(scores, 1 - 1e-12) == 1.0
    assert conformal_quantile(scores, 1e-12) == conformal_quantile(scores[:0], 1 - 1e-12) == math.inf
    low, high = covered_law(9, 10, 1 - 1e-12).interval(0.95)
    assert 0 <= low <= high <= 10
    assert [images_needed(alpha) for alpha in (0.05, 0.1, 0.5, 1 - 1e-12)] == [19, 9, 1, 1]


HARD_CASES = {
    "certain": lambda draw, n, c: np.eye(c)[draw.integers(0, c, n)],
    "uniform": lambda draw, n, c: np.full((n, c), 1 / c),
    "tied": lambda draw, n, c: draw.multinomial(4, np.full(c, 1 / c), n) / 4,
    "smooth": lambda draw, n, c: draw.dirichlet(np.full(c, 0.3), n),
}


@pytest.mark.filterwarnings("ignore:At an error rate")
@pytest.mark.parametrize("classes", [2, 40])
@pytest.mark.parametrize("case", HARD_CASES)
@pytest.mark.parametrize("by_class", [False, True])
def test_the_guarantee_is_exact_whatever_the_probabilities(case, classes, by_class):
    """Exchangeable images: each one of n left out in turn, the sets of the others hold 1 - alpha of them."""
    draw = np.random.default_rng(classes)
    names = [str(c) for c in range(classes)]
    for n in (1, 2, 5, 21):
        shares = HARD_CASES[case](draw, n, classes)
        labels = draw.integers(0, min(classes, 3), n)
        for alpha in (1e-9, 0.1, 0.5, 0.9, 1 - 1e-12):
            for method in CONFORMAL_METHODS:
                request, held = SetRequest(alpha, method, by_class), np.empty(n, bool)
                for i in range(n):
                    others = np.arange(n) != i
                    predictor = fit_sets(request, shares[others], labels[others], names)
                    held[i] = predictor.sets(shares[i : i + 1])[0, labels[i]]
                groups = [labels == c for c in np.unique(labels)] if by_class else [np.ones(n, bool)]
                assert all(held[group].mean() >= 1 - alpha - 1e-9 for group in groups)


def test_the_quantile_of_too_few_is_infinite():
    for alpha in (0.01, 0.05, 0.1, 0.25):
        least = math.ceil(1 / alpha) - 1
        scores = np.arange(least, dtype=float)
        assert conformal_quantile(scores, alpha) == least - 1
        assert conformal_quantile(scores[1:], alpha) == math.inf
    assert conformal_quantile(np.empty(0), 0.1) == math.inf


def test_too_few_calibration_images_give_all_classes_and_say_so():
    shares, labels = images(8, 0)
    with pytest.warns(UserWarning, match="need 9 calibration images, and there are 8; every set holds all"):
        predictor = fit_sets(SetRequest(0.1), shares, labels, NAMES)
    assert predictor.sets(images(5, 1)[0]).all()
    shares, labels = images(60, 0)
    labels[labels == 2] = 1
    with pytest.warns(UserWarning, match=r"every class needs 9 .* in every set: c \(0\)\."):
        predictor = fit_sets(SetRequest(0.1, class_conditional=True), shares, labels, NAMES)
    assert predictor.sets(images(50, 1)[0])[:, 2].all()
    assert not predictor.sets(images(50, 1)[0])[:, 1].all()


@pytest.mark.parametrize("method", ["aps", "raps", "lac"])
@pytest.mark.parametrize("randomised", [False, True])
def test_no_set_is_empty_and_all_hold_the_most_probable_classes(method, randomised):
    shares, labels = images(300, 3, sharpness=3)
    labels = shares.argmax(axis=1)  # always right: the thresholds are as low as they get
    sets = fit_sets(SetRequest(0.5, method, randomised=randomised), shares, labels, NAMES).sets(shares)
    assert sets.any(axis=1).all()
    least_inside = np.where(sets, shares, np.inf).min(axis=1)
    assert (np.where(sets, 0, shares).max(axis=1) <= least_inside).all()


def test_randomised_sets_are_the_same_for_a_seed():
    shares, labels = images(200, 0)
    new, _ = images(100, 1)
    first, again, other = (
        fit_sets(SetRequest(0.1, "aps", randomised=True, seed=seed), shares, labels, NAMES).sets(new)
        for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any()


def test_the_law_is_the_beta_binomial_that_a_simulation_gives():
    n, m, alpha = 19, 10, 0.1
    draw = np.random.default_rng(0)
    scores = draw.random((20000, n + m))
    thresholds = np.sort(scores[:, :n], axis=1)[:, order_needed(n, alpha) - 1]
    covered = (scores[:, n:] <= thresholds[:, None]).sum(axis=1)
    law = covered_law(n, m, alpha)
    shares = np.bincount(covered, minlength=m + 1) / 20000
    assert shares == pytest.approx(law.pmf(np.arange(m + 1)), abs=0.015)
    assert law.pmf(7) == pytest.approx(betabinom(10, 18, 2).pmf(7))


def test_coverage_counts_by_class():
    sets = np.array([[1, 0, 0], [1, 1, 0], [0, 1, 1], [0, 1, 0]], dtype=bool)
    found = coverage(sets, np.array([0, 1, 0, 1]), ["x", "y", "z"])
    exact = binomtest(3, 4).proportion_ci(method="exact")
    assert (found["n"], found["covered"], found["coverage"]) == (4, 3, 0.75)
    assert found["interval"] == pytest.approx([exact.low, exact.high])
    assert found["mean_size"] == 1.5 and found["sizes"] == [2, 2, 0]
    assert found["per_class"]["x"]["coverage"] == 0.5 and found["per_class"]["y"]["coverage"] == 1.0
    assert found["per_class"]["z"] == {
        "n": 0,
        "covered": 0,
        "coverage": None,
        "interval": None,
        "mean_size": None,
    }
    with pytest.raises(UserError, match="no images"):
        coverage(sets[:0], np.empty(0, np.int64), ["x", "y", "z"])


@pytest.mark.parametrize("alpha", [0.0, 1.0, -0.1, 5.0, float("nan")])
def test_an_error_rate_is_between_0_and_1(alpha):
    with pytest.raises(UserError, match="between 0 and 1"):
        SetRequest(alpha)


def test_an_unknown_method_is_named():
    with pytest.raises(UserError, match="Unknown conformal method 'asp'; did you mean 'aps'"):
        SetRequest(0.1, "asp")
