"""Conformal prediction sets: the classes that cannot be ruled out at a chosen error rate."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import betabinom

from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation.intervals import clopper_pearson

RAPS_FREE_RANKS = 1
"""k_reg of RAPS: the classes that a set may have without a penalty."""

RAPS_PENALTY = 0.01
"""lambda of RAPS: added to the score for every further class."""

Probabilities = NDArray[np.floating[Any]]


def adaptive_scores(probabilities: Probabilities, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """APS scores of every class: the probability of all classes ahead of it, and a share of its own.

    ``s(x, y) = sum_{k: p_k > p_y} p_k + u p_y`` (Romano, Sesia & Candes, NeurIPS 2020). u = 0 is their
    deterministic form: the set is the most probable classes until the threshold is reached, the class that
    reaches it included; it is never empty. Equal probabilities are ordered by class index.

    Args:
        probabilities: shape ``(n, C)``.
        draws: u in [0, 1), one an image, shape ``(n,)``.

    Returns:
        Shape ``(n, C)``; the less plausible the class, the higher.
    """
    order = np.argsort(-probabilities, axis=1, kind="stable")
    sorted_shares = np.take_along_axis(np.asarray(probabilities, np.float64), order, axis=1)
    # The sum of the classes before, not the running sum less the own share, which rounds away from 0.
    ahead = np.pad(np.cumsum(sorted_shares, axis=1)[:, :-1], ((0, 0), (1, 0)))
    scores = np.empty_like(sorted_shares)
    np.put_along_axis(scores, order, ahead + draws[:, None] * sorted_shares, axis=1)
    return scores


def regularised_scores(probabilities: Probabilities, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """RAPS scores: APS plus ``lambda max(0, rank(y) - k_reg)``, so that sets have fewer improbable classes.

    Angelopoulos, Bates, Malik & Jordan, ICLR 2021, with lambda = 0.01 and k_reg = 1. Ranks count from 1.

    Args:
        probabilities, draws: as :func:`adaptive_scores` has them.
    """
    ranks = np.argsort(np.argsort(-probabilities, axis=1, kind="stable"), axis=1) + 1
    penalty = RAPS_PENALTY * np.maximum(0, ranks - RAPS_FREE_RANKS)
    return adaptive_scores(probabilities, draws) + penalty


def threshold_scores(probabilities: Probabilities, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """LAC scores ``1 - p_y`` (Sadinle, Lei & Wasserman, JASA 2019): the smallest sets on average.

    Args:
        probabilities: shape ``(n, C)``.
        draws: not used; nothing is random here.
    """
    return 1 - np.asarray(probabilities, np.float64)


CONFORMAL_METHODS: dict[str, Callable[[Probabilities, NDArray[np.float64]], NDArray[np.float64]]] = {
    "aps": adaptive_scores,
    "raps": regularised_scores,
    "lac": threshold_scores,
}
"""Scores by the method's name; a set holds the classes whose score is at most the threshold."""

DEFAULT_CONFORMAL_METHOD = "lac"
"""The smallest sets at the same coverage, as measured (docs/trust.md)."""


@dataclass(frozen=True)
class SetRequest:
    """Which prediction sets are wanted.

    Attributes:
        alpha: error rate: the share of images whose set may lack the true class.
        method: of ``CONFORMAL_METHODS``.
        class_conditional: hold the rate within every class (Mondrian), at the cost of larger sets.
        randomised: draw the u of APS and RAPS: coverage is then 1 - alpha and not more, but the same image
            may get another set with another seed.
        seed: of those draws.

    Raises:
        UserError: alpha is not between 0 and 1, or there is no such method.
    """

    alpha: float
    method: str = DEFAULT_CONFORMAL_METHOD
    class_conditional: bool = False
    randomised: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise UserError(
                f"The error rate of prediction sets is {self.alpha:g}; choose one between 0 and 1, as 0.1."
            )
        if self.method not in CONFORMAL_METHODS:
            raise unknown_name("conformal method", self.method, CONFORMAL_METHODS)

    def scores(self, probabilities: Probabilities, stream: int) -> NDArray[np.float64]:
        """Scores of every class, ``(n, C)``; calibration and prediction draw from streams of their own."""
        draw = np.random.default_rng((self.seed, stream))
        draws = draw.random(len(probabilities)) if self.randomised else np.zeros(len(probabilities))
        return CONFORMAL_METHODS[self.method](probabilities, draws)


@dataclass(frozen=True, eq=False)
class SetPredictor:
    """Thresholds that turn class probabilities into prediction sets.

    Attributes:
        request: what was asked for.
        thresholds: of the score, one a class, all alike unless class-conditional; inf where there are too
            few calibration images, shape ``(C,)``.
        counts: calibration images behind each threshold, shape ``(C,)``.
    """

    request: SetRequest
    thresholds: NDArray[np.float64]
    counts: NDArray[np.int64]

    def sets(self, probabilities: Probabilities) -> NDArray[np.bool_]:
        """Which classes are in the set of each image, shape ``(n, C)``.

        A set that would be empty (LAC, and the randomised methods) gets the most probable class, so that it
        names something; that can only raise the coverage.

        Args:
            probabilities: of the same classifier as in calibration, shape ``(n, C)``.
        """
        inside = self.request.scores(probabilities, stream=1) <= self.thresholds
        empty = ~inside.any(axis=1)
        inside[empty, probabilities[empty].argmax(axis=1)] = True
        return inside

    def usual_coverage(self, images: int) -> tuple[float, float] | None:
        """Where the coverage of so many exchangeable images lies in 95 % of cases (see :func:`covered_law`).

        None for class-conditional sets, whose law depends on the classes of the images, and where there are
        too few calibration images for a threshold.
        """
        if self.request.class_conditional or np.isinf(self.thresholds[0]):
            return None
        low, high = covered_law(int(self.counts[0]), images, self.request.alpha).interval(0.95)
        return float(low) / images, float(high) / images


def fit_sets(
    request: SetRequest,
    probabilities: Probabilities,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
) -> SetPredictor:
    r"""Split conformal prediction: thresholds from calibration images.

    With scores :math:`s_1 .. s_n` of the true classes of the calibration images, the threshold is the
    :math:`\lceil (n + 1)(1 - \alpha) \rceil`-th smallest, and infinite where that is more than n (Vovk,
    Gammerman & Shafer 2005; Lei et al. 2018). If the calibration images and a new one are exchangeable,

    .. math:: P(y \in \text{set}(x)) \ge 1 - \alpha,

    over draws of the calibration images and the new one together; given one calibration set the coverage
    varies (see :func:`covered_law`). The guarantee holds for any classifier, good or bad: a bad one gets
    large sets. It does not hold where the new images differ from the calibration images (another scanner,
    another hospital), where several images are of one patient (they are not exchangeable one by one), or
    where the class frequencies differ. Against the last, ``class_conditional`` takes a threshold a class
    from that class's images, and :math:`P(y \in \text{set}(x) \mid y = c) \ge 1 - \alpha` for every c.

    Args:
        request: error rate, method and options.
        probabilities: of the calibration images, none of which the classifier or its settings were chosen
            by, shape ``(n, C)``.
        labels: their classes, shape ``(n,)``.
        class_names: C names, for warnings.

    Warns:
        UserWarning: too few calibration images for alpha, so that sets hold all classes, or those without a
            threshold.

    Example:
        >>> shares = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]])
        >>> predictor = fit_sets(SetRequest(0.2, "lac"), shares, np.array([0, 0, 1, 1]), ["a", "b"])
        >>> predictor.thresholds.round(3).tolist()  # the 4th smallest of 0.1, 0.2, 0.3, 0.6
        [0.6, 0.6]
        >>> predictor.sets(np.array([[0.95, 0.05], [0.5, 0.5]])).tolist()
        [[True, False], [True, True]]
    """
    rows = np.arange(len(labels))
    scores = request.scores(probabilities, stream=0)[rows, labels]
    classes = len(class_names)
    if request.class_conditional:
        groups = [scores[labels == label] for label in range(classes)]
    else:
        groups = [scores] * classes
    thresholds = np.array([conformal_quantile(group, request.alpha) for group in groups])
    counts = np.array([len(group) for group in groups], np.int64)
    _warn_of_too_few(request, thresholds, counts, class_names)
    return SetPredictor(request, thresholds, counts)


def order_needed(count: int, alpha: float) -> int:
    """``ceil((n + 1)(1 - alpha))``: which of n sorted scores is the threshold; n + 1 where none is."""
    # Counted from the other end: (n + 1)(1 - alpha) rounds above whole numbers, as 100 x 0.55 does.
    return max(1, count + 1 - math.floor((count + 1) * alpha + 1e-9))


def images_needed(alpha: float) -> int:
    """Calibration images without which every set holds all classes: ``ceil(1 / alpha) - 1``, at least 1.

    Example:
        >>> images_needed(0.1), images_needed(0.05)
        (9, 19)
    """
    return max(1, math.ceil(1 / alpha - 1e-9) - 1)


def conformal_quantile(scores: NDArray[np.float64], alpha: float) -> float:
    """The ``ceil((n + 1)(1 - alpha))``-th smallest of n scores; inf where n is too small for it.

    Example:
        >>> conformal_quantile(np.arange(1.0, 10.0), 0.1), conformal_quantile(np.arange(1.0, 9.0), 0.1)
        (9.0, inf)
    """
    order = order_needed(len(scores), alpha)
    return float(np.sort(scores)[order - 1]) if order <= len(scores) else math.inf


def covered_law(calibration: int, images: int, alpha: float) -> Any:
    """Law of how many of m exchangeable images are covered, calibration set and images drawn anew.

    Beta-binomial (m, k, n + 1 - k) with ``k = ceil((n + 1)(1 - alpha))``, exact for scores without ties
    (Vovk, ACML 2012; Angelopoulos & Bates 2023, section 3.2); with ties or sets that are never empty more
    are covered. It is wider than the binomial law, which takes the calibration set for infinite.

    Args:
        calibration: n, at least ``ceil(1 / alpha) - 1``.
        images: m.
        alpha: error rate.

    Returns:
        A frozen scipy distribution.

    Example:
        >>> law = covered_law(99, 200, 0.1)
        >>> float(law.mean()), tuple(map(float, law.interval(0.95)))
        (180.0, (164.0, 192.0))
    """
    order = order_needed(calibration, alpha)
    return betabinom(images, order, calibration + 1 - order)


def coverage(
    sets: NDArray[np.bool_], labels: NDArray[np.int64], class_names: Sequence[str]
) -> dict[str, Any]:
    """How often sets hold the true class, and how large they are, as plain numbers ready for JSON.

    Args:
        sets: shape ``(n, C)``.
        labels: shape ``(n,)``.
        class_names: C names.

    Returns:
        ``n``, ``covered``, ``coverage``, ``interval`` (its 95 % interval, Clopper & Pearson 1934, which
        takes the images as independent), ``mean_size``, ``sizes`` (images by size of their set, from 1 to
        C), and ``per_class`` with the same of every class's own images (None where it has none).

    Raises:
        UserError: there is no image.
    """
    if len(labels) == 0:
        raise UserError("There are no images to measure the coverage of prediction sets on.")
    held, size = sets[np.arange(len(labels)), labels], sets.sum(axis=1)
    per_class = {
        name: _counted(held[labels == label], size[labels == label]) for label, name in enumerate(class_names)
    }
    sizes = np.bincount(size, minlength=len(class_names) + 1)[1:]
    return {**_counted(held, size), "sizes": sizes.tolist(), "per_class": per_class}


def _counted(held: NDArray[np.bool_], size: NDArray[np.int64]) -> dict[str, Any]:
    if len(held) == 0:
        return {"n": 0, "covered": 0, "coverage": None, "interval": None, "mean_size": None}
    ends = clopper_pearson(np.array(held.sum()), np.array(len(held)))
    return {
        "n": len(held),
        "covered": int(held.sum()),
        "coverage": float(held.mean()),
        "interval": [float(end) for end in ends],
        "mean_size": float(size.mean()),
    }


def _warn_of_too_few(
    request: SetRequest,
    thresholds: NDArray[np.float64],
    counts: NDArray[np.int64],
    class_names: Sequence[str],
) -> None:
    short = np.flatnonzero(np.isinf(thresholds)).tolist()
    if not short:
        return
    needed = images_needed(request.alpha)
    if request.class_conditional:
        who = ", ".join(f"{class_names[label]} ({counts[label]})" for label in short)
        warnings.warn(
            f"At an error rate of {request.alpha:g} every class needs {needed} calibration images; these "
            f"have fewer and are in every set: {who}.",
            UserWarning,
            stacklevel=3,
        )
    else:
        warnings.warn(
            f"At an error rate of {request.alpha:g} prediction sets need {needed} calibration images, and "
            f"there are {counts[0]}; every set holds all classes.",
            UserWarning,
            stacklevel=3,
        )
