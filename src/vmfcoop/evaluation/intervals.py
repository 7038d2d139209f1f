"""How sure a figure is: Wilson's interval for a share, and the bootstrap over images or groups of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, binomtest

from vmfcoop.errors import UserError

DRAWS = 2000
CONFIDENCE = 0.95
_AT_ONCE = 4_000_000
"""Numbers of one array of weights, so that ten thousand images need no gigabytes."""

_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A confidence interval.

    Attributes:
        low, high: its ends.
    """

    low: float
    high: float


def wilson(hits: int, n: int) -> Interval:
    """95 % interval of a share of n independent images (Wilson, JASA 22:209-212, 1927).

    Raises:
        UserError: n is 0, or hits do not lie between 0 and n.

    Example:
        >>> wilson(8, 10)
        Interval(low=0.4901..., high=0.9433...)
    """
    if n < 1 or not 0 <= hits <= n:
        raise UserError(f"{hits} of {n} is no share.")
    found = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return Interval(float(found.low), float(found.high))


def clopper_pearson(
    hits: NDArray[Any], counts: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Exact 95 % interval of a share (Clopper & Pearson, Biometrika 1934); NaN where there is no trial.

    Args:
        hits: successes, any shape.
        counts: trials, the same shape.

    Returns:
        Lower and upper ends, in that shape.

    Example:
        >>> lower, upper = clopper_pearson(np.array([0, 9]), np.array([10, 10]))
        >>> lower.round(3).tolist(), upper.round(3).tolist()
        ([0.0, 0.555], [0.308, 0.997])
    """
    hits, counts = np.asarray(hits, np.float64), np.asarray(counts, np.float64)
    tail = (1 - CONFIDENCE) / 2
    lower = np.where(hits > 0, beta.ppf(tail, hits, counts - hits + 1), 0.0)
    upper = np.where(hits < counts, beta.ppf(1 - tail, hits + 1, counts - hits), 1.0)
    return np.where(counts > 0, lower, np.nan), np.where(counts > 0, upper, np.nan)


@dataclass(frozen=True)
class MetricIntervals:
    """Intervals of the metrics of one table of predictions.

    Attributes:
        overall: by the names of :func:`vmfcoop.evaluation.classification_metrics`.
        per_class: by metric (``precision``, ``recall``, ``f1``, ``auroc``), one a class; None where a class
            does not occur, or is all there is.
        groups: how many groups were drawn, or None where images were.
    """

    overall: Mapping[str, Interval]
    per_class: Mapping[str, tuple[Interval | None, ...]]
    groups: int | None


def metric_intervals(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> MetricIntervals:
    """Intervals of the metrics of a table of predictions, overall and of every class.

    Independent images: Wilson's interval for accuracy and recall, percentiles of the bootstrap (Efron &
    Tibshirani 1993, chapter 13) for the others. Images in groups (of a patient) are not independent, and
    intervals that take them for so are too narrow: there whole groups are drawn, for every metric (the
    cluster bootstrap, Davison & Hinkley 1997, section 3.8). Where all images are right or all are wrong, no
    resample shows any spread; accuracy, recall and precision then get Wilson's interval of as many images as
    there are groups (or images). One group alone says nothing of others: there are no intervals then.

    Args:
        probabilities: shape ``(n, C)``, rows sum to one.
        labels: shape ``(n,)``.
        groups: group of each image, ``(n,)``, or None.
        draws: resamples.
        seed: of the draws.

    Raises:
        UserError: there are no images.
    """
    if len(labels) == 0:
        raise UserError("There are no images to evaluate.")
    if groups is not None and len(np.unique(groups)) == 1:
        return MetricIntervals({}, dict.fromkeys(PER_CLASS, (None,) * probabilities.shape[1]), 1)
    found = _resampled(probabilities, labels, groups, draws, seed)
    tails = (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE))
    overall = {key: _percentiles(found[key], tails) for key in OVERALL}
    per_class = {key: [_percentiles(column, tails) for column in found[key].T] for key in PER_CLASS}
    predicted = probabilities.argmax(axis=1)
    right = predicted == labels
    everything = np.ones(len(labels), bool)
    overall["accuracy"] = _of_share(right, everything, groups, overall["accuracy"])
    alone = np.arange(len(labels)).astype(np.str_) if groups is None else groups
    for i in range(probabilities.shape[1]):
        recall, precision = per_class["recall"], per_class["precision"]
        recall[i] = _of_share(right, labels == i, groups, recall[i])
        precision[i] = _of_share(right, predicted == i, alone, precision[i])
    return MetricIntervals(
        {key: interval for key, interval in overall.items() if interval is not None},
        {key: tuple(column) for key, column in per_class.items()},
        None if groups is None else len(np.unique(groups)),
    )


OVERALL = ("accuracy", "balanced_accuracy", "macro_f1", "macro_auroc", "brier")
PER_CLASS = ("precision", "recall", "f1", "auroc")


def _of_share(
    right: NDArray[np.bool_],
    mine: NDArray[np.bool_],
    groups: NDArray[np.str_] | None,
    drawn: Interval | None,
) -> Interval | None:
    """Of the share of right ones among some images: what was drawn, where it was and shows a spread."""
    hits, count = int(right[mine].sum()), int(mine.sum())
    if count == 0:
        return None
    if groups is None:
        return wilson(hits, count)
    number = len(np.unique(groups[mine]))
    return drawn if 0 < hits < count else wilson(number if hits else 0, number)


def _percentiles(values: _Array, tails: tuple[float, float]) -> Interval | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = np.percentile(known, tails)
    return Interval(float(low), float(high))


def _resampled(
    probabilities: NDArray[np.floating[Any]],
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    draws: int,
    seed: int,
) -> dict[str, _Array]:
    """Every metric of every resample: ``(draws,)``, or ``(draws, C)`` of a class; NaN where undefined."""
    n = len(labels)
    unit = np.arange(n) if groups is None else np.unique(groups, return_inverse=True)[1]
    parts = [
        weighted_metrics(probabilities, labels, counts[:, unit])
        for counts in resampled_counts(unit, draws, seed)
    ]
    return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}


def resampled_counts(unit: NDArray[np.int64], draws: int, seed: int) -> Iterator[_Array]:
    """How often each unit is drawn, in blocks of resamples ``(b, units)``.

    Args:
        unit: of each image, 0 to units - 1, shape ``(n,)``.
        draws: resamples.
        seed: of the draws.
    """
    count = int(unit.max()) + 1
    draw = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // len(unit))
    for start in range(0, draws, block):
        size = min(block, draws - start)
        yield draw.multinomial(count, np.full(count, 1 / count), size=size).astype(np.float64)


def weighted_metrics(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], weights: _Array
) -> dict[str, _Array]:
    """Metrics of tables of predictions in which image j stands ``weights[b, j]`` times.

    Args:
        probabilities: shape ``(n, C)``.
        labels: shape ``(n,)``.
        weights: shape ``(B, n)``.

    Returns:
        By the names of :func:`vmfcoop.evaluation.classification_metrics`, ``(B,)`` or, of classes,
        ``(B, C)``; NaN where undefined.
    """
    classes = probabilities.shape[1]
    truth = np.eye(classes)[labels]
    predicted = np.eye(classes)[probabilities.argmax(axis=1)]
    total = weights.sum(axis=1)
    support, named, hits = weights @ truth, weights @ predicted, weights @ (truth * predicted)
    recall, precision = _ratio(hits, support), _ratio(hits, named, empty=0.0)
    f1 = _ratio(2 * hits, support + named, empty=0.0)
    f1_of_present = np.where(support > 0, f1, np.nan)
    auroc = np.stack([_auroc(truth[:, i] > 0, probabilities[:, i], weights) for i in range(classes)], axis=1)
    return {
        "accuracy": hits.sum(axis=1) / total,
        "balanced_accuracy": np.nanmean(recall, axis=1),
        "macro_f1": np.nanmean(f1_of_present, axis=1),
        "macro_auroc": auroc.mean(axis=1),
        "brier": weights @ ((probabilities - truth) ** 2).sum(axis=1) / total,
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "auroc": auroc,
    }


def _ratio(numerator: _Array, denominator: _Array, empty: float = np.nan) -> _Array:
    return np.divide(numerator, denominator, out=np.full_like(numerator, empty), where=denominator > 0)


def _auroc(positive: NDArray[np.bool_], scores: NDArray[np.floating[Any]], weights: _Array) -> _Array:
    """Share of pairs in which the positive image scores higher, ties counting half, of every resample."""
    values, rank = np.unique(scores, return_inverse=True)
    ordered = np.zeros((len(weights), len(values), 2))
    order = np.argsort(rank, kind="stable")
    starts = np.searchsorted(rank[order], np.arange(len(values)))
    for side, mine in enumerate((positive, ~positive)):
        ordered[:, :, side] = np.add.reduceat(weights[:, order] * mine[order], starts, axis=1)
    above, below = ordered[:, :, 0], ordered[:, :, 1]
    lower = below.cumsum(axis=1) - below / 2
    return _ratio((above * lower).sum(axis=1), above.sum(axis=1) * below.sum(axis=1))
