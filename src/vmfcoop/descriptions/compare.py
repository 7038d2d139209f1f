"""Two banks beside each other: what was added and taken away, and which tells the classes apart better."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.descriptions.bank import class_key
from vmfcoop.descriptions.geometry import BankGeometry, angle, bank_geometry
from vmfcoop.descriptions.quality import same_text
from vmfcoop.errors import UserError

Texts = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class ClassDifference:
    """One class in two banks A and B; a bank that lacks the class has no sentences of it.

    Attributes:
        name: the class, as A spells it if it has it.
        counts: sentences in A and in B.
        kept: sentences of A that B has, but for case, spaces and punctuation.
        added: sentences of B that A lacks.
        removed: sentences of A that B lacks.
    """

    name: str
    counts: tuple[int, int]
    kept: tuple[str, ...]
    added: tuple[str, ...]
    removed: tuple[str, ...]


@dataclass(frozen=True)
class GeometryDifference:
    """One class of two banks on a backbone.

    Attributes:
        name: the class.
        cosine: between its mean directions in A and B.
        concentrations: kappa in A and in B, maximum likelihood.
        anchor_shift: angle in degrees between its unified anchors in A and B.
    """

    name: str
    cosine: float
    concentrations: tuple[float, float]
    anchor_shift: float


def compare_texts(a: Texts, b: Texts) -> list[ClassDifference]:
    """What changed from A to B, a class at a time: A's classes first, then those only B has."""
    names = {class_key(name): name for name in (*b, *a)}
    keys = list(dict.fromkeys(class_key(name) for name in (*a, *b)))
    by_key = [{class_key(name): tuple(texts) for name, texts in bank.items()} for bank in (a, b)]
    return [_compare_class(names[key], *(bank.get(key, ()) for bank in by_key)) for key in keys]


def _compare_class(name: str, a: Sequence[str], b: Sequence[str]) -> ClassDifference:
    in_a, in_b = ({same_text(text) for text in texts} for texts in (a, b))
    return ClassDifference(
        name,
        (len(a), len(b)),
        tuple(text for text in a if same_text(text) in in_b),
        tuple(text for text in b if same_text(text) not in in_a),
        tuple(text for text in a if same_text(text) not in in_b),
    )


@dataclass(frozen=True, eq=False)
class BankComparison:
    """Two banks on one backbone, by the classes that both have.

    Attributes:
        a: geometry of A.
        b: geometry of B.
        classes: one entry a class.
    """

    a: BankGeometry
    b: BankGeometry
    classes: tuple[GeometryDifference, ...]

    def verdict(self) -> str:
        """Which bank tells the classes apart better, where chance does not explain the difference."""
        if len(self.classes) < 2:
            return "The banks share fewer than two classes, so there is nothing to tell apart."
        shares = [geometry.accuracy for geometry in (self.a, self.b)]
        figures = (
            f"{shares[0]:.1%} of the sentences of A and {shares[1]:.1%} of B lie nearest to their own class"
        )
        spread = math.sqrt(sum(_variance(geometry) for geometry in (self.a, self.b)))
        if abs(shares[1] - shares[0]) <= 2 * spread:
            return f"Both tell the classes apart about equally well: {figures}. Texts alone were looked at."
        better = "B" if shares[1] > shares[0] else "A"
        return f"{better} tells the classes apart better: {figures}. Texts alone were looked at."


def compare_geometry(
    a: Texts, b: Texts, encoder: DualEncoder, vocabulary_sample: int | None = None
) -> BankComparison:
    """Compare two banks on a backbone, by the classes that both have.

    Raises:
        UserError: they share no class, or one cannot be fitted (see :func:`bank_geometry`).
    """
    in_b = {class_key(name): texts for name, texts in b.items()}
    shared = [name for name in a if class_key(name) in in_b]
    if not shared:
        raise UserError("The two banks share no class; compare banks of the same classes.")
    one = bank_geometry({name: a[name] for name in shared}, encoder, vocabulary_sample)
    other = bank_geometry({name: in_b[class_key(name)] for name in shared}, encoder, vocabulary_sample)
    classes = tuple(
        GeometryDifference(
            name,
            float(one.mean_directions[i] @ other.mean_directions[i]),
            (one.classes[i].concentration, other.classes[i].concentration),
            angle(one.anchors[i], other.anchors[i]),
        )
        for i, name in enumerate(shared)
    )
    return BankComparison(one, other, classes)


def _variance(geometry: BankGeometry) -> float:
    """Binomial variance of the mean over classes of the shares of sentences nearest to their own class."""
    shares = [(entry.own_accuracy, entry.count) for entry in geometry.classes]
    return sum(share * (1 - share) / count for share, count in shares) / len(shares) ** 2
