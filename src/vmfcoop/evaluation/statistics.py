"""Comparing methods: spread over seeds, paired tests, ranks and the critical difference."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

ROUNDING = 12
"""Decimals that differences and scores are rounded to, so that equal shares count as equal."""


@dataclass(frozen=True)
class Summary:
    """A sample in three numbers; spread and interval are None for a single value.

    Attributes:
        n: how many values.
        mean: their mean.
        std: standard deviation with n - 1.
        interval: lower and upper end of the mean's 95 % interval.
    """

    n: int
    mean: float
    std: float | None
    interval: tuple[float, float] | None


def summarise(values: ArrayLike, confidence: float = 0.95) -> Summary:
    """Mean, standard deviation (n - 1) and the interval of the mean by Student's t.

    The interval is mean -+ t_{(1 + confidence) / 2, n - 1} std / sqrt(n) (Student 1908): it takes the values
    for independent draws of a normal law.

    Args:
        values: one number a seed, at least one.
        confidence: of the interval.

    Example:
        >>> three = summarise([0.70, 0.72, 0.74])
        >>> round(three.mean, 3), round(three.std, 3), [round(end, 3) for end in three.interval]
        (0.72, 0.02, [0.67, 0.77])
        >>> summarise([0.7])
        Summary(n=1, mean=0.7, std=None, interval=None)
    """
    sample = np.asarray(values, np.float64)
    centre = float(sample.mean())
    if len(sample) == 1:
        return Summary(1, centre, None, None)
    std = float(sample.std(ddof=1))
    half = float(stats.t.ppf((1 + confidence) / 2, len(sample) - 1)) * std / math.sqrt(len(sample))
    return Summary(len(sample), centre, std, (centre - half, centre + half))


@dataclass(frozen=True)
class PairedTest:
    """Two methods over the same cells.

    Attributes:
        difference: of ``first - second``, with its 95 % interval.
        p_value: of the two-sided Wilcoxon signed-rank test.
        wins, ties, losses: of the first.
    """

    difference: Summary
    p_value: float
    wins: int
    ties: int
    losses: int


def paired_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Wilcoxon's signed-rank test (1945) of paired scores, two-sided, with the mean difference.

    Absolute differences are ranked; the statistic is the smaller of the rank sums of gains and of losses.
    Zero differences are ranked too and their rank sum is split between both sides (``zsplit``), as Demsar
    (2006, section 3.1.3) advises, so cells where both methods agree speak for no difference. The p-value is
    exact for small samples without ties, as scipy chooses.

    The test takes cells for independent. Cells of one dataset (its shots and seeds) are not: they share
    images and difficulty, so a p-value over cells is too small. Means over each dataset, one pair a
    dataset, are the cautious input to the same test.

    Args:
        first, second: scores of the two methods, cell by cell, same length, at least one.

    Raises:
        ValueError: lengths differ.

    Example:
        >>> test = paired_test([0.9, 0.8, 0.7, 0.6, 0.5], [0.8, 0.6, 0.4, 0.2, 0.5])
        >>> test.wins, test.ties, test.losses, test.p_value
        (4, 1, 0, 0.125)
    """
    pairs = zip(np.asarray(first, np.float64), np.asarray(second, np.float64), strict=True)
    gains = np.array([a - b for a, b in pairs]).round(ROUNDING)
    p_value = float(stats.wilcoxon(gains, zero_method="zsplit").pvalue) if gains.any() else 1.0
    won, lost = int((gains > 0).sum()), int((gains < 0).sum())
    return PairedTest(summarise(gains), p_value, won, len(gains) - won - lost, lost)


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of a family of tests, adjusted by Holm's step-down method (1979), in the order given.

    With p_(1) <= ... <= p_(m) the adjusted value is the running maximum of (m - i + 1) p_(i), cut at 1;
    rejecting those up to alpha keeps the chance of any false rejection at alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    adjusted = np.empty_like(p)
    adjusted[order] = np.minimum(stepped, 1.0)
    return [float(value) for value in adjusted]


def average_ranks(scores: ArrayLike) -> NDArray[np.float64]:
    """Mean rank of every method over blocks; rank 1 is the highest score, ties share their mean rank.

    Args:
        scores: shape ``(blocks, methods)``, higher is better.

    Returns:
        Shape ``(methods,)``; they sum to k (k + 1) / 2.

    Example:
        >>> average_ranks([[0.9, 0.8, 0.7], [0.6, 0.6, 0.5]]).tolist()
        [1.25, 1.75, 3.0]
    """
    ranks = stats.rankdata(-np.asarray(scores).round(ROUNDING), axis=1)
    return np.asarray(ranks.mean(axis=0), np.float64)


def friedman(scores: ArrayLike) -> tuple[float, float]:
    """Friedman's chi-square (1937) for no difference between methods, corrected for ties; and its p-value.

    Without ties 12 N / (k (k + 1)) (sum_j R_j^2 - k (k + 1)^2 / 4), R_j the average ranks over N blocks.

    Args:
        scores: shape ``(blocks, methods)`` with at least three methods.

    Returns:
        (0, 1) where every block is tied throughout.

    Raises:
        ValueError: fewer than three methods.

    Example:
        >>> chi_square, p = friedman([[3, 2, 1], [3, 2, 1], [3, 2, 1]])
        >>> round(chi_square, 6), round(p, 4)
        (6.0, 0.0498)
    """
    table = np.asarray(scores, np.float64).round(ROUNDING)
    if table.shape[1] >= 3 and (table == table[:, :1]).all():
        return 0.0, 1.0
    found = stats.friedmanchisquare(*table.T)
    return float(found.statistic), float(found.pvalue)


def critical_difference(methods: int, blocks: int, alpha: float = 0.05) -> float:
    """Nemenyi's critical difference of average ranks (Demsar 2006, section 3.2.2).

    CD = q_alpha sqrt(k (k + 1) / (6 N)), q_alpha the upper quantile of the studentised range of k groups with
    infinite degrees of freedom, over sqrt(2).

    Args:
        methods: k, at least two.
        blocks: N.
        alpha: of the family of all pairs.

    Example:
        >>> round(critical_difference(4, 14), 2)
        1.25
    """
    quantile = float(stats.studentized_range.ppf(1 - alpha, methods, np.inf)) / math.sqrt(2)
    return quantile * math.sqrt(methods * (methods + 1) / (6 * blocks))


def cliques(ranks: Sequence[float] | NDArray[np.float64], difference: float) -> list[tuple[int, ...]]:
    """Largest groups of methods whose average ranks span no more than the critical difference.

    Args:
        ranks: average ranks.
        difference: critical difference.

    Returns:
        Groups of two and more, as indices into ``ranks`` from best to worst: the bars of the diagram.

    Example:
        >>> cliques([1.0, 3.2, 1.8, 2.6], 1.0)
        [(0, 2), (2, 3), (3, 1)]
    """
    order = [int(i) for i in np.argsort(ranks, kind="stable")]
    found: list[tuple[int, ...]] = []
    reached = 0
    for start, first in enumerate(order):
        end = start + sum(ranks[i] - ranks[first] <= difference for i in order[start:])
        if end - start > 1 and end > reached:
            found.append(tuple(order[start:end]))
            reached = end
    return found


@dataclass(frozen=True)
class Ranking:
    """Methods ranked over blocks.

    Attributes:
        methods: names, in the order given.
        ranks: average rank of each.
        blocks: N.
        friedman: chi-square and p-value; None for two methods.
        difference: Nemenyi's critical difference at 5 %.
        cliques: names of methods not told apart.
    """

    methods: tuple[str, ...]
    ranks: tuple[float, ...]
    blocks: int
    friedman: tuple[float, float] | None
    difference: float
    cliques: tuple[tuple[str, ...], ...]


def rank_methods(methods: Sequence[str], scores: ArrayLike) -> Ranking:
    """Average ranks, Friedman's test, critical difference and cliques of at least two methods.

    Args:
        methods: k names.
        scores: shape ``(blocks, k)``, higher is better.

    Example:
        >>> ranking = rank_methods(["a", "b"], [[0.9, 0.8], [0.7, 0.6]])
        >>> ranking.ranks, round(ranking.difference, 3), ranking.cliques
        ((1.0, 2.0), 1.386, (('a', 'b'),))
    """
    table: NDArray[Any] = np.asarray(scores, np.float64)
    ranks = average_ranks(table)
    difference = critical_difference(len(methods), len(table))
    groups = cliques(ranks, difference)
    return Ranking(
        tuple(methods),
        tuple(float(rank) for rank in ranks),
        len(table),
        friedman(table) if len(methods) > 2 else None,
        difference,
        tuple(tuple(methods[i] for i in group) for group in groups),
    )
