"""Out-of-distribution scores: is an image of a kind that the classifier was fitted to at all?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.errors import UserError
from vmfcoop.methods import Fitted
from vmfcoop.methods.vmf_posterior import PosteriorClassifier, mean_cosine
from vmfcoop.sphere import fit_vmf, inverse_bessel_ratio, log_normalizer
from vmfcoop.trust.record import ClassFields

FALSE_ALARMS = 0.05
"""An image is flagged where its p-value is at most this."""

# The concentration is finite even where all images of a class are one.
_MAX_COSINE = 1 - 1e-6


def fit_image_fields(features: Tensor, labels: Tensor, classes: int) -> ClassFields:
    r"""Von Mises-Fisher fields of the classes, fitted to the plain support images.

    The mean direction is that of the class's images. K images in d dimensions say little of a concentration
    of their own, so all classes share one: :math:`A_d(\kappa)^2` is the mean cosine of two different images
    of one class, whose expectation it is (so that K much smaller than d does not inflate it). With one image
    a class, it is that of any two images, which makes the fields too wide rather than too narrow.

    Args:
        features: unit rows, shape ``(n, d)``.
        labels: shape ``(n,)``; every class occurs.
        classes: C, at least 2.
    """
    rows = features.double()
    members = torch.nn.functional.one_hot(labels, classes).double()
    sums, counts = members.T @ rows, members.sum(dim=0)
    if bool((counts > 1).any()):
        cosine = mean_cosine(sums, counts)
    else:
        cosine = mean_cosine(rows.sum(dim=0, keepdim=True), counts.sum()[None])
    kappa = inverse_bessel_ratio(rows.shape[1], cosine.clamp(0, _MAX_COSINE).sqrt())
    return ClassFields(normalize(sums, dim=1).float(), kappa.expand(classes).clone())


def fit_text_fields(embeddings: Sequence[Tensor]) -> ClassFields | None:
    """Von Mises-Fisher fields of the classes, fitted to their descriptions, as vMFCoOp has them.

    Args:
        embeddings: of each class's descriptions, unit rows, ``(n_i, d)``.

    Returns:
        The fields; None where a class has fewer than two descriptions, or all of them are one.
    """
    try:
        fits = [fit_vmf(texts) for texts in embeddings]
    except UserError:
        return None
    directions = torch.stack([fit.mean_direction for fit in fits])
    return ClassFields(directions.float(), torch.stack([fit.concentration for fit in fits]))


def mixture_log_density(features: Tensor, fields: ClassFields) -> Tensor:
    r"""Log-density of images under the equal mixture of class fields.

    .. math:: \log \frac1C \sum_c C_d(\kappa_c) \exp(\kappa_c \mu_c^\top x)

    Args:
        features: x, unit rows, shape ``(n, d)``.
        fields: the laws.

    Returns:
        Shape ``(n,)``, float64, in nats with respect to the area of the sphere.
    """
    x, directions = features.double(), normalize(fields.mean_directions.double(), dim=1)
    kappa = fields.concentrations.double()
    densities = log_normalizer(x.shape[1], kappa) + kappa * (x @ directions.T)
    return densities.logsumexp(dim=1) - math.log(len(kappa))


@dataclass(frozen=True, eq=False)
class Seen:
    """Images as a fitted classifier sees them.

    Attributes:
        features: unit rows, shape ``(n, d)``.
        logits: shape ``(n, C)``.
        fitted: the classifier.
        image_fields: class fields of the support images.
        text_fields: class fields of the descriptions, if any.
    """

    features: Tensor
    logits: Tensor
    fitted: Fitted
    image_fields: ClassFields
    text_fields: ClassFields | None


def _image_fields(seen: Seen) -> Tensor:
    return -mixture_log_density(seen.features, seen.image_fields)


def _text_fields(seen: Seen) -> Tensor | None:
    return None if seen.text_fields is None else -mixture_log_density(seen.features, seen.text_fields)


def _posterior(seen: Seen) -> Tensor | None:
    fitted = seen.fitted
    return -fitted.log_density(seen.features) if isinstance(fitted, PosteriorClassifier) else None


def _softmax(seen: Seen) -> Tensor:
    return 1 - seen.logits.double().softmax(dim=1).amax(dim=1)


def _energy(seen: Seen) -> Tensor:
    return -seen.logits.double().logsumexp(dim=1)


OOD_SCORES: dict[str, Callable[[Seen], Tensor | None]] = {
    "image-fields": _image_fields,
    "text-fields": _text_fields,
    "posterior": _posterior,
    "softmax": _softmax,
    "energy": _energy,
}
"""Scores by name; each is higher the further outside an image is, or None where the run has no such score:

- ``image-fields``: minus the log-density of the feature under the fields of the support images;
- ``text-fields``: minus that under the fields of the descriptions (methods that read descriptions);
- ``posterior``: minus the posterior's own log-density (``vmf-posterior`` and ``vmfcoop+``);
- ``softmax``: 1 less the probability of the predicted class (Hendrycks & Gimpel, ICLR 2017);
- ``energy``: ``-log sum_c exp(logit_c)`` (Liu et al., NeurIPS 2020). The posterior's logits are relative to
  the highest, so that theirs says what the softmax says.
"""

DEFAULT_OOD_SCORE = "image-fields"
"""The best by AUROC over methods and data (docs/trust.md)."""


def all_scores(seen: Seen) -> dict[str, Tensor]:
    """Every score that the run has, each ``(n,)``, float64."""
    found = {name: score(seen) for name, score in OOD_SCORES.items()}
    return {name: values.double() for name, values in found.items() if values is not None}


@dataclass(frozen=True, eq=False)
class Outside:
    """How far outside images are.

    Attributes:
        scores: higher is further outside, shape ``(n,)``.
        p_values: share of calibration images at least as far outside, shape ``(n,)``.
        flags: whether that share is at most 5 %, shape ``(n,)``.
    """

    scores: NDArray[np.float64]
    p_values: NDArray[np.float64]
    flags: NDArray[np.bool_]


def outside(scores: NDArray[np.float64], calibration: NDArray[np.float64]) -> Outside:
    r"""Judge out-of-distribution scores by those of calibration images.

    .. math:: p(x) = \frac{1 + \#\{i : s_i \ge s(x)\}}{n + 1}

    For an image that is exchangeable with the calibration images ``P(p <= a) <= a`` for every a (the
    conformal p-value of Vovk et al. 2005; Bates et al., Ann. Stat. 2023), so that at most 5 % of such images
    are flagged. With fewer than 19 calibration images no p-value reaches 0.05 and nothing is flagged.

    Args:
        scores: of the images, shape ``(m,)``.
        calibration: of the calibration images, shape ``(n,)``.

    Example:
        >>> verdict = outside(np.array([0.5, 100.0]), np.arange(19.0))
        >>> verdict.p_values.tolist(), verdict.flags.tolist()
        ([0.95, 0.05], [False, True])
    """
    ordered = np.sort(calibration)
    beyond = len(ordered) - np.searchsorted(ordered, scores, side="left")
    p_values = (1 + beyond) / (len(ordered) + 1)
    return Outside(scores, p_values, p_values <= FALSE_ALARMS)
