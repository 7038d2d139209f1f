"""How a bank lies on a backbone's sphere: the von Mises-Fisher law of every class, and what it says of them.

All of it looks at texts alone. Whether the images of a class lie near its texts is another matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.descriptions.quality import Finding
from vmfcoop.errors import UserError
from vmfcoop.sphere import (
    VonMisesFisherFit,
    fit_vmf,
    inverse_bessel_ratio,
    log_normalizer,
    semantic_anchors,
)

OUTLIER_SCORE = 3.5
"""Modified z-score from which a value is an outlier (Iglewicz & Hoaglin, 1993)."""

MIN_FOR_OUTLIERS = 5
"""Fewest sentences of a class among which one can be called an outlier."""

HARDLY_APART = 0.8
"""Texts hardly tell two classes apart if less than this share of their sentences is nearer to the own one.

Guessing gives 0.5."""

_DEGREES = ((0.9, "well"), (0.7, "partly"), (0.0, "poorly"))
_MAD_TO_SIGMA = 0.6745
_LARGEST_RESULTANT = 1 - 1e-9


@dataclass(frozen=True)
class ClassGeometry:
    """One class on the sphere. Sentences are numbered from 0.

    Attributes:
        name: the class.
        count: its sentences n.
        resultant_length: R, the length of the mean of their unit embeddings.
        concentration: maximum-likelihood kappa.
        concentration_debiased: kappa without the length that n random directions add up to by chance.
        anchor_shift: angle in degrees from the mean direction to the unified anchor.
        own_accuracy: share of its sentences nearest to their own class's mean direction, each one's own
            contribution to it left out.
        log_densities: of each sentence in nats, under the law of the others of its class; empty for n < 3.
        outliers: sentences of low density, see :func:`density_outliers`.
        strays: sentence -> the class whose mean direction is nearer than its own.
        truncated: sentences whose last word lies beyond the context length.
        most_typical: the sentence of highest density under the class's law.
        least_typical: that of lowest density.
    """

    name: str
    count: int
    resultant_length: float
    concentration: float
    concentration_debiased: float
    anchor_shift: float
    own_accuracy: float
    log_densities: tuple[float, ...]
    outliers: tuple[int, ...]
    strays: Mapping[int, str]
    truncated: tuple[int, ...]
    most_typical: int
    least_typical: int


@dataclass(frozen=True, eq=False)
class BankGeometry:
    """A bank on a backbone.

    Attributes:
        backbone: spec of the backbone.
        dim: d.
        context_length: tokens the backbone reads of a text.
        classes: one entry a class, in the bank's order.
        vocabulary_concentration: kappa of the field of the vocabulary.
        vocabulary_resultant_length: its R.
        mean_directions: unit rows, ``(C, d)``, float64.
        anchors: unified anchors, unit rows, ``(C, d)``, float64.
        pair_accuracy: ``(C, C)``, for each two classes the share of their sentences (mean of the two
            shares) nearer to their own mean direction, left out of it, than to the other's; 1 on the
            diagonal.
    """

    backbone: str
    dim: int
    context_length: int
    classes: tuple[ClassGeometry, ...]
    vocabulary_concentration: float
    vocabulary_resultant_length: float
    mean_directions: Tensor
    anchors: Tensor
    pair_accuracy: Tensor

    @property
    def mean_cosines(self) -> Tensor:
        """Cosines between the mean directions of classes, ``(C, C)``."""
        return self.mean_directions @ self.mean_directions.T

    @property
    def anchor_cosines(self) -> Tensor:
        """Cosines between the unified anchors, ``(C, C)``."""
        return self.anchors @ self.anchors.T

    @property
    def accuracy(self) -> float:
        """Nearest-mean accuracy of sentences, each left out of its own mean; the mean over classes."""
        return sum(entry.own_accuracy for entry in self.classes) / len(self.classes)

    def close_pairs(self) -> list[tuple[int, int]]:
        """Pairs of classes that texts hardly tell apart, by :data:`HARDLY_APART`, the worst first."""
        pairs = [(i, j) for j in range(len(self.classes)) for i in range(j)]
        bad = [(i, j) for i, j in pairs if float(self.pair_accuracy[i, j]) < HARDLY_APART]
        return sorted(bad, key=lambda pair: float(self.pair_accuracy[pair]))

    def advice(self) -> str:
        """What it means, in plain words: how well texts tell the classes apart, and what that leaves open."""
        count = len(self.classes)
        if count < 2:
            return "There is one class, so there is nothing to tell apart."
        degree = next(word for least, word in _DEGREES if self.accuracy >= least)
        sentences = [
            f"On {self.backbone} these sentences tell the classes apart {degree}: {self.accuracy:.0%} lie "
            f"nearest to the mean direction of their own class (guessing: {1 / count:.0%})."
        ]
        for i, j in self.close_pairs()[:3]:
            pair = f"'{self.classes[i].name}' and '{self.classes[j].name}'"
            right, cosine = float(self.pair_accuracy[i, j]), float(self.anchor_cosines[i, j])
            sentences.append(
                f"Hardly told apart by text are {pair}: {right:.0%} right between the two (guessing: 50%), "
                f"cosine of their anchors {cosine:.2f}; descriptions may help little there."
            )
        sentences.append(
            "This is the side of the texts alone: whether images lie near the texts of their class, "
            "only fit and evaluate show."
        )
        return " ".join(sentences)


def as_dict(geometry: BankGeometry, descriptions: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """A geometry as plain values for JSON, with the sentences that it names spelled out."""
    return {
        "backbone": geometry.backbone,
        "dim": geometry.dim,
        "context_length": geometry.context_length,
        "vocabulary": {
            "concentration": geometry.vocabulary_concentration,
            "resultant_length": geometry.vocabulary_resultant_length,
        },
        "accuracy": geometry.accuracy,
        "classes": [_class_as_dict(entry, descriptions[entry.name]) for entry in geometry.classes],
        "mean_cosines": geometry.mean_cosines.tolist(),
        "anchor_cosines": geometry.anchor_cosines.tolist(),
        "pair_accuracy": geometry.pair_accuracy.tolist(),
        "advice": geometry.advice(),
    }


def backbone_findings(geometry: BankGeometry, descriptions: Mapping[str, Sequence[str]]) -> list[Finding]:
    """What a backbone adds to the checks of a bank: truncated sentences, strays, outliers."""
    found: list[Finding] = []
    for entry in geometry.classes:
        texts = descriptions[entry.name]
        cut = f"more than {geometry.context_length} tokens"
        seen = [
            *(("truncated", i, cut) for i in entry.truncated),
            *(("stray", i, f"nearer to '{other}'") for i, other in entry.strays.items()),
            *(("outlier", i, f"log-density {entry.log_densities[i]:.1f}") for i in entry.outliers),
        ]
        found += [Finding(kind, entry.name, detail, i + 1, texts[i]) for kind, i, detail in seen]
    return found


def _class_as_dict(entry: ClassGeometry, texts: Sequence[str]) -> dict[str, Any]:
    def named(positions: Sequence[int]) -> list[dict[str, Any]]:
        return [{"number": i + 1, "text": texts[i]} for i in positions]

    densities = list(entry.log_densities) or None
    return {
        "name": entry.name,
        "count": entry.count,
        "resultant_length": entry.resultant_length,
        "concentration": entry.concentration,
        "concentration_debiased": entry.concentration_debiased,
        "anchor_shift_degrees": entry.anchor_shift,
        "own_accuracy": entry.own_accuracy,
        "log_densities": densities,
        "most_typical": named([entry.most_typical])[0],
        "least_typical": named([entry.least_typical])[0],
        "outliers": named(entry.outliers),
        "strays": [{**named([i])[0], "nearer_to": other} for i, other in entry.strays.items()],
        "truncated": named(entry.truncated),
    }


def bank_geometry(
    descriptions: Mapping[str, Sequence[str]], encoder: DualEncoder, vocabulary_sample: int | None = None
) -> BankGeometry:
    """Look at descriptions on a backbone.

    Args:
        descriptions: for each class, at least two sentences that the backbone tells apart.
        encoder: the backbone; a ``CachedEncoder`` keeps what it computes.
        vocabulary_sample: for slow machines, fit the vocabulary's field to a sample of so many entries.

    Raises:
        UserError: a class has fewer than two sentences, or ones that are all the same to the backbone.
    """
    names = list(descriptions)
    rows = [_unit(encoder.encode_texts(list(descriptions[name]))) for name in names]
    fits = [_fit(name, embeddings) for name, embeddings in zip(names, rows, strict=True)]
    means = torch.stack([fit.mean_direction for fit in fits])
    vocabulary = fit_vmf(encoder.encode_vocabulary(vocabulary_sample))
    anchors = semantic_anchors(vocabulary, rows).anchors
    cosines = [_held_out_cosines(embeddings, means, i) for i, embeddings in enumerate(rows)]
    classes = tuple(
        ClassGeometry(
            name=names[i],
            anchor_shift=angle(means[i], anchors[i]),
            truncated=truncated_texts(descriptions[names[i]], encoder),
            **_spread(rows[i], fits[i]),
            **_neighbours(cosines[i], i, names),
        )
        for i in range(len(names))
    )
    return BankGeometry(
        encoder.name,
        encoder.dim,
        encoder.context_length,
        classes,
        float(vocabulary.concentration),
        float(vocabulary.resultant_length),
        means,
        anchors,
        _pair_accuracy(cosines),
    )


def angle(one: Tensor, other: Tensor) -> float:
    """Angle between two unit vectors in degrees, exact also where they nearly agree.

    Example:
        >>> round(angle(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])), 6)
        90.0
    """
    # Kahan's form: the arc cosine of a float64 loses everything below 1e-8 radian.
    apart, together = (torch.linalg.vector_norm(v.double()) for v in (one - other, one + other))
    return math.degrees(2 * math.atan2(float(apart), float(together)))


def held_out_log_densities(rows: Tensor) -> Tensor:
    r"""Log-density of every row under the law of the others.

    .. math:: \log C_d(\kappa_{-i}) + \kappa_{-i}\, \mu_{-i}^\top x_i, \quad
              A_d(\kappa_{-i}) = R_{-i} = \frac{|\sum_{j \ne i} x_j|}{n - 1}

    Args:
        rows: unit rows, shape ``(n, d)``, float64, n >= 3.

    Returns:
        Shape ``(n,)``, in nats. Where the others are all equal, R counts as 1 - 1e-9.
    """
    rest = rows.sum(dim=0) - rows
    length = torch.linalg.vector_norm(rest, dim=1)
    resultant = (length / (len(rows) - 1)).clamp_max(_LARGEST_RESULTANT)
    kappa = inverse_bessel_ratio(rows.shape[1], resultant)
    cosine = (rest * rows).sum(dim=1) / length.clamp_min(1e-12)
    densities: Tensor = log_normalizer(rows.shape[1], kappa) + kappa * cosine
    return densities


def density_outliers(log_densities: Sequence[float]) -> tuple[int, ...]:
    """Sentences whose log-density is low beyond what the others' spread explains.

    With m the median and MAD the median absolute deviation, those with ``0.6745 (m - x) / MAD > 3.5`` (the
    modified z-score of Iglewicz & Hoaglin, 1993, on its low side). Half of the values cannot move the
    threshold. Among fewer than five values, or where MAD = 0, there are none.

    Example:
        >>> density_outliers([10.0, 11.0, 12.0, 11.5, 10.5, -30.0])
        (5,)
    """
    if len(log_densities) < MIN_FOR_OUTLIERS:
        return ()
    values = torch.tensor(log_densities, dtype=torch.float64)
    below = values.quantile(0.5) - values
    deviation = below.abs().quantile(0.5)
    if deviation == 0:
        return ()
    return tuple(torch.nonzero(_MAD_TO_SIGMA * below / deviation > OUTLIER_SCORE).flatten().tolist())


def truncated_texts(texts: Sequence[str], encoder: DualEncoder) -> tuple[int, ...]:
    """Texts whose last word lies beyond the context length: without it the tokens are the same."""
    found = []
    for position, text in enumerate(texts):
        start, _, _ = text.rstrip().rpartition(" ")
        if start:
            tokens = encoder.tokenize([text, start])
            if bool((tokens.ids[0] == tokens.ids[1]).all() and (tokens.mask[0] == tokens.mask[1]).all()):
                found.append(position)
    return tuple(found)


def _unit(rows: Tensor) -> Tensor:
    doubled = rows.double()
    unit: Tensor = doubled / torch.linalg.vector_norm(doubled, dim=1, keepdim=True)
    return unit


def _fit(name: str, rows: Tensor) -> VonMisesFisherFit:
    try:
        return fit_vmf(rows)
    except UserError as error:
        raise UserError(
            f"The sentences of '{name}' have no law on this backbone: {str(error).rstrip('.')}; "
            "add different ones."
        ) from error


def _held_out_cosines(rows: Tensor, means: Tensor, own: int) -> Tensor:
    """Cosines ``(n, C)`` of a class's rows to every mean direction, each row left out of its own."""
    rest = rows.sum(dim=0) - rows
    cosines = rows @ means.T
    cosines[:, own] = (rest * rows).sum(dim=1) / torch.linalg.vector_norm(rest, dim=1).clamp_min(1e-12)
    return cosines


def _spread(rows: Tensor, fit: VonMisesFisherFit) -> dict[str, Any]:
    densities = tuple(held_out_log_densities(rows).tolist()) if len(rows) > 2 else ()
    typical = rows @ fit.mean_direction
    return {
        "count": len(rows),
        "resultant_length": float(fit.resultant_length),
        "concentration": float(fit.concentration),
        "concentration_debiased": float(fit_vmf(rows, "debiased").concentration),
        "log_densities": densities,
        "outliers": density_outliers(densities),
        "most_typical": int(typical.argmax()),
        "least_typical": int(typical.argmin()),
    }


def _neighbours(cosines: Tensor, own: int, names: Sequence[str]) -> dict[str, Any]:
    nearest = cosines.argmax(dim=1)
    # A tie is not nearer: only what exceeds the own mean direction counts.
    strays = (cosines > cosines[:, [own]]).any(dim=1)
    found = {int(i): names[int(nearest[i])] for i in torch.nonzero(strays).flatten()}
    return {"strays": found, "own_accuracy": 1 - len(found) / len(cosines)}


def _pair_accuracy(cosines: Sequence[Tensor]) -> Tensor:
    right = torch.stack([(rows[:, [i]] >= rows).double().mean(dim=0) for i, rows in enumerate(cosines)])
    return (right + right.T) / 2
