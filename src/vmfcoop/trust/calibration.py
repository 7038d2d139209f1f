"""Probabilities that mean what they say: temperature scaling, reliability by bin, scores before and after."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torch import Tensor

from vmfcoop.errors import UserError
from vmfcoop.evaluation.intervals import clopper_pearson
from vmfcoop.evaluation.metrics import CALIBRATION_BINS, classification_metrics

LARGEST_TEMPERATURE = 32.0
"""T is sought between its reciprocal and this."""

PRIOR_OCTAVES = 0.5
"""Standard deviation of the prior on log2 T; see :func:`fit_temperature`."""


def fit_temperature(logits: Tensor, labels: Tensor, prior_octaves: float | None = PRIOR_OCTAVES) -> float:
    r"""Temperature of the calibrated probabilities ``softmax(logits / T)``.

    .. math:: \hat T = \arg\min_T \; -\sum_i \log \mathrm{softmax}(z_i / T)_{y_i}
              + \frac{(\log_2 T)^2}{2 \sigma^2}

    The first term is that of Guo et al. (ICML 2017). With few shots all of them are often right; it then
    falls for T towards 0 without end, so the second, a log-normal prior about T = 1, keeps T within what so
    few images can show. With many images it is outweighed.

    Args:
        logits: of labelled images that the classifier was not trained on, shape ``(m, C)``; m may be 0.
        labels: shape ``(m,)``.
        prior_octaves: sigma, in factors of two; None for no prior (maximum likelihood, T between 1/32 and
            32).

    Returns:
        T; 1.0 where there is no image.

    Raises:
        UserError: the numbers of logits and labels differ, or a logit is not finite.

    Example:
        >>> import torch
        >>> sure, wrong_once = torch.tensor([[4.0, 0.0]] * 4), torch.tensor([0, 0, 0, 1])
        >>> round(fit_temperature(sure, wrong_once, prior_octaves=None), 3)  # 4 / T = log 3
        3.641
        >>> fit_temperature(torch.empty(0, 2), torch.empty(0, dtype=torch.int64))
        1.0
    """
    scores, truth = np.asarray(logits, np.float64), np.asarray(labels, np.int64)
    if scores.ndim != 2 or truth.shape != scores.shape[:1]:
        raise UserError(
            f"There are logits of shape {scores.shape} for labels of shape {truth.shape}; give a row a label."
        )
    if not np.isfinite(scores).all():
        raise UserError("A logit is not finite, so no temperature fits.")
    if len(truth) == 0:
        return 1.0

    def cost(octaves: float) -> float:
        likelihood = log_softmax(scores / 2**octaves, axis=1)[np.arange(len(truth)), truth].sum()
        prior = 0.0 if prior_octaves is None else octaves**2 / (2 * prior_octaves**2)
        return float(prior - likelihood)

    return float(2 ** _minimum(cost, float(np.log2(LARGEST_TEMPERATURE))))


def _minimum(cost: Callable[[float], float], bound: float) -> float:
    """Where a function is least in [-bound, bound]: a grid, as it may have several valleys, then Brent."""
    grid = np.linspace(-bound, bound, 81)
    best = int(np.argmin([cost(place) for place in grid]))
    around = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    refined = minimize_scalar(cost, bounds=around, method="bounded", options={"xatol": 1e-9})
    # At an end of the range the bounded search stops just short of it.
    return float(min((float(refined.x), float(grid[best])), key=cost))


def tempered(logits: Tensor, temperature: float) -> NDArray[np.float64]:
    """``softmax(logits / T)`` in float64, shape ``(n, C)``; at T = 1 to the bit the plain softmax."""
    probabilities: NDArray[np.float64] = (logits.detach().double() / temperature).softmax(dim=1).numpy()
    return probabilities


@dataclass(frozen=True, eq=False)
class Reliability:
    """A reliability diagram: how often the predicted class is right, by how probable it was said to be.

    Attributes:
        edges: of the B bins of the top probability, shape ``(B + 1,)``.
        counts: images in each bin, shape ``(B,)``.
        confidence: mean top probability, shape ``(B,)``; NaN in an empty bin.
        accuracy: share of right predictions, likewise.
        lower, upper: ends of the 95 % interval of the accuracy (Clopper & Pearson 1934), likewise.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]
    confidence: NDArray[np.float64]
    accuracy: NDArray[np.float64]
    lower: NDArray[np.float64]
    upper: NDArray[np.float64]

    @property
    def ece(self) -> float:
        """Expected calibration error: the mean of ``|accuracy - confidence|`` over images."""
        full = self.counts > 0
        gaps = np.abs(self.accuracy - self.confidence)[full]
        return float((self.counts[full] * gaps).sum() / self.counts.sum())


def reliability(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64], bins: int = CALIBRATION_BINS
) -> Reliability:
    """The reliability diagram of predicted probabilities.

    Args:
        probabilities: shape ``(n, C)``, rows sum to one.
        labels: shape ``(n,)``.
        bins: B, of equal width on [0, 1], closed below; the last one holds 1 too.

    Raises:
        UserError: there is no image, or no bin.

    Example:
        >>> diagram = reliability(np.array([[0.9, 0.1], [0.2, 0.8], [0.85, 0.15]]), np.array([0, 1, 1]), 5)
        >>> diagram.counts.tolist(), round(float(diagram.accuracy[4]), 3), round(diagram.ece, 3)
        ([0, 0, 0, 0, 3], 0.667, 0.183)
    """
    if len(labels) == 0:
        raise UserError("There are no images to draw a reliability diagram of.")
    if bins < 1:
        raise UserError(f"A reliability diagram needs at least 1 bin, not {bins}.")
    top = np.asarray(probabilities, np.float64).max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    place = np.clip(np.searchsorted(edges, top, side="right") - 1, 0, bins - 1)
    counts = np.bincount(place, minlength=bins).astype(np.int64)
    hits = np.bincount(place, weights=right, minlength=bins)
    with np.errstate(invalid="ignore"):
        confidence, accuracy = np.bincount(place, weights=top, minlength=bins) / counts, hits / counts
    lower, upper = clopper_pearson(hits, counts)
    return Reliability(edges, counts, confidence, accuracy, lower, upper)


def calibration_scores(
    probabilities: NDArray[np.floating[Any]], labels: NDArray[np.int64]
) -> dict[str, float]:
    """How well probabilities are calibrated: ``ece`` and ``brier`` as in ``metrics.json``, and ``nll``.

    ``nll`` is the mean negative log-probability of the true class, in nats.

    Args:
        probabilities: shape ``(n, C)``, rows sum to one.
        labels: shape ``(n,)``.

    Raises:
        UserError: there is no image.
    """
    names = [str(label) for label in range(probabilities.shape[1])]
    metrics = classification_metrics(probabilities, labels, names)
    true = probabilities[np.arange(len(labels)), labels]
    nll = -np.log(np.maximum(true, np.finfo(np.float64).tiny)).mean()
    return {"ece": metrics["ece"], "nll": float(nll), "brier": metrics["brier"]}
