"""Statistics against closed forms, published values and scipy's own routes."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from vmfcoop.evaluation.statistics import (
    average_ranks,
    cliques,
    critical_difference,
    friedman,
    holm,
    paired_test,
    rank_methods,
    summarise,
)

# Demsar (2006), section 3.2: average ranks of C4.5, C4.5+m, C4.5+cf, C4.5+m+cf on 14 datasets.
DEMSAR = (3.143, 2.000, 2.893, 1.964)


def exact_signed_rank(gains):
    """Two-sided p-value by going through all signs (no ties, no zeros)."""
    ranks = np.abs(gains).argsort().argsort() + 1
    observed = min(ranks[gains > 0].sum(), ranks[gains < 0].sum())
    sums = [np.dot(ranks, signs) for signs in itertools.product((0, 1), repeat=len(gains))]
    total = ranks.sum()
    return np.mean([min(s, total - s) <= observed for s in sums])


def test_summary_by_hand():
    three = summarise([1.0, 2.0, 6.0])
    assert three.mean == 3.0 and three.std == pytest.approx(math.sqrt(7.0))
    # t of two degrees of freedom has a closed form: t = (2p - 1) / sqrt(2 p (1 - p)), p = 0.975.
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * math.sqrt(7.0) / math.sqrt(3)
    assert three.interval == pytest.approx((3.0 - half, 3.0 + half))


def test_single_value_has_no_spread():
    one = summarise([0.4])
    assert (one.n, one.mean, one.std, one.interval) == (1, 0.4, None, None)


@given(st.lists(st.integers(-100, 100), min_size=2, max_size=8, unique_by=abs))
def test_paired_test_is_the_exact_signed_rank_test(values):
    gains = np.array([v for v in values if v], dtype=float)
    if len(gains) < 2:
        return
    test = paired_test(gains, np.zeros(len(gains)))
    assert test.p_value == pytest.approx(exact_signed_rank(gains))
    assert (test.wins, test.losses, test.ties) == ((gains > 0).sum(), (gains < 0).sum(), 0)
    assert test.difference == summarise(gains)


def test_paired_test_of_many_cells_splits_zeros():
    gains = np.concatenate([np.arange(1, 61), np.zeros(20), -np.arange(1, 11)]) / 100
    mean_ranks = stats.rankdata(np.abs(gains))
    half_zeros = mean_ranks[gains == 0].sum() / 2
    smaller = min(mean_ranks[gains > 0].sum(), mean_ranks[gains < 0].sum()) + half_zeros
    n = len(gains)
    _, tied = np.unique(np.abs(gains[gains != 0]), return_counts=True)
    tied = np.append(tied, 20)
    variance = n * (n + 1) * (2 * n + 1) / 24 - (tied**3 - tied).sum() / 48
    z = (smaller - n * (n + 1) / 4) / math.sqrt(variance)
    test = paired_test(gains, np.zeros(n))
    assert test.p_value == pytest.approx(math.erfc(-z / math.sqrt(2)), rel=0.02)
    assert (test.wins, test.ties, test.losses) == (60, 20, 10)


def test_methods_that_agree_are_not_told_apart():
    test = paired_test([0.1 + 0.2, 0.5], [0.3, 0.5])
    assert (test.p_value, test.ties, test.difference.mean) == (1.0, 2, 0.0)


def test_paired_test_demands_matched_cells():
    with pytest.raises(ValueError):
        paired_test([0.1, 0.2], [0.1])


def test_holm_by_hand():
    assert holm([0.04, 0.001, 0.01, 0.6]) == pytest.approx([0.08, 0.004, 0.03, 0.6])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=9))
def test_holm_lies_between_raw_and_bonferroni_and_keeps_the_order(p_values):
    adjusted = holm(p_values)
    for raw, value in zip(p_values, adjusted, strict=True):
        assert raw <= value <= min(1.0, len(p_values) * raw)
    for (p, a), (q, b) in itertools.combinations(zip(p_values, adjusted, strict=True), 2):
        assert (p - q) * (a - b) >= 0


def test_ties_share_their_mean_rank_and_friedman_is_corrected():
    scores = np.array([[0.9, 0.9, 0.1], [0.5, 0.5, 0.5], [0.7, 0.8, 0.6], [0.3, 0.4, 0.2]])
    ranks = average_ranks(scores)
    assert ranks == pytest.approx([7.5 / 4, 5.5 / 4, 11 / 4])
    # By hand: 12 N / (k (k + 1)) (sum R^2 - k (k + 1)^2 / 4) over 1 - sum(t^3 - t) / (N k (k^2 - 1)).
    plain = 12 * 4 / 12 * ((7.5**2 + 5.5**2 + 11**2) / 16 - 12)
    assert friedman(scores)[0] == pytest.approx(plain / (1 - (6 + 24) / (4 * 24)))
    assert friedman(scores)[0] == pytest.approx(stats.friedmanchisquare(*scores.T).statistic)


@given(st.integers(0, 1000), st.integers(3, 6), st.integers(2, 12))
def test_friedman_without_ties_is_the_rank_formula(seed, methods, blocks):
    scores = np.random.default_rng(seed).random((blocks, methods))
    ranks = (scores[:, None, :] > scores[:, :, None]).sum(axis=2).mean(axis=0) + 1
    assert average_ranks(scores) == pytest.approx(ranks)
    chi_square = 12 * blocks / (methods * (methods + 1)) * (ranks**2).sum() - 3 * blocks * (methods + 1)
    found, p_value = friedman(scores)
    assert found == pytest.approx(chi_square, abs=1e-9)
    assert p_value == pytest.approx(stats.chi2.sf(chi_square, methods - 1))


def test_friedman_of_nothing_but_ties():
    assert friedman(np.full((5, 3), 0.25)) == (0.0, 1.0)


def test_friedman_needs_three_methods():
    with pytest.raises(ValueError):
        friedman([[1, 2], [2, 1]])


@pytest.mark.parametrize(
    ("methods", "q"),
    enumerate([1.960, 2.343, 2.569, 2.728, 2.850, 2.949, 3.031, 3.102, 3.164], start=2),
)
def test_critical_difference_has_the_published_quantiles(methods, q):
    """Demsar (2006), Table 5(a)."""
    root = math.sqrt(methods * (methods + 1) / (6 * 30))
    assert critical_difference(methods, 30) / root == pytest.approx(q, abs=0.0011)


def test_critical_difference_of_demsar():
    assert critical_difference(4, 14) == pytest.approx(1.25, abs=0.005)
    assert critical_difference(4, 14, alpha=0.10) == pytest.approx(1.12, abs=0.005)


@given(st.lists(st.floats(1, 20), min_size=2, max_size=12), st.floats(0, 8))
def test_cliques_are_maximal_and_cover_every_close_pair(ranks, difference):
    groups = [set(group) for group in cliques(ranks, difference)]
    for group in groups:
        assert max(ranks[i] for i in group) - min(ranks[i] for i in group) <= difference
    for a, b in itertools.permutations(groups, 2):
        assert not a <= b
    for i, j in itertools.combinations(range(len(ranks)), 2):
        close = abs(ranks[i] - ranks[j]) <= difference
        assert close == any({i, j} <= group for group in groups)


def test_cliques_of_demsar():
    """At 5 % the test tells no two apart; at 10 % C4.5 from both variants with m."""
    assert cliques(DEMSAR, critical_difference(4, 14)) == [(3, 1, 2, 0)]
    assert cliques(DEMSAR, critical_difference(4, 14, alpha=0.10)) == [(3, 1, 2), (2, 0)]


def test_ranking_puts_the_parts_together():
    scores = np.random.default_rng(0).random((40, 4)) + np.array([0, 0, 0.1, 3])
    ranking = rank_methods("abcd", scores)
    assert ranking.blocks == 40 and ranking.friedman == friedman(scores)
    assert ranking.ranks == tuple(average_ranks(scores))
    assert ranking.difference == critical_difference(4, 40)
    assert ranking.ranks[3] == 1.0 and all("d" not in group for group in ranking.cliques)
    assert rank_methods("ab", scores[:, :2]).friedman is None
