"""Other things to explain than the class: gibberish in its place; and how alike two maps are."""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import rankdata
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.errors import UserError
from vmfcoop.explain.targets import NONE, REST, Target, class_index, class_scores, log_odds
from vmfcoop.methods.base import Fitted

GIBBERISH = 2
NAMES, DIRECTIONS = "names", "directions"
"""What stands in for a class: a gibberish name in the prompt; a random direction where there is none."""


def rank_correlation(
    first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]
) -> NDArray[np.float64]:
    """Spearman's rank correlation (1904) of two maps over their pixels, ties given their mean rank.

    Args:
        first, second: n maps, shape ``(n, H, W)``.

    Returns:
        Shape ``(n,)``; NaN where a map is the same everywhere, which orders nothing.

    Example:
        >>> one, other = np.array([[[1.0, 2.0], [3.0, 3.0]]]), np.array([[[4.0, 3.0], [1.0, 1.0]]])
        >>> rank_correlation(one, other).round(6).tolist()
        [-1.0]
    """
    x, y = (_centred_ranks(maps.reshape(len(maps), -1)) for maps in (first, second))
    lengths = np.sqrt((x**2).sum(axis=1) * (y**2).sum(axis=1))
    return np.where(lengths > 0, (x * y).sum(axis=1) / np.where(lengths > 0, lengths, 1.0), np.nan)


def _centred_ranks(rows: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    ranks = rankdata(rows, axis=1) if len(rows) else np.empty_like(rows, np.float64)
    return np.asarray(ranks - (rows.shape[1] + 1) / 2, np.float64)


@dataclass(frozen=True)
class StandIns:
    """Scores in which something meaningless takes the place of a class.

    Attributes:
        kind: ``names`` or ``directions``.
        shown: the gibberish names; none for directions.
        logits: each unit image features ``(n, d)`` -> ``(n,)``.
    """

    kind: str
    shown: tuple[str, ...]
    logits: tuple[Callable[[Tensor], Tensor], ...]

    def target(self, i: int, fitted: Fitted, c: int, contrast: str) -> Target:
        """The score of class c with the i-th of them in its place, all other logits being as they were."""
        return in_place_of(fitted, c, contrast, self.logits[i])


def stand_ins(fitted: Fitted, features: Tensor, seed: int) -> StandIns:
    """Gibberish names as classes of the fitted classifier; random directions if it takes no new names.

    A direction is drawn uniformly and has the mean length of the derivatives of the classes' logits by the
    image feature, for a linear classifier that of its weights.

    Args:
        fitted: the classifier.
        features: unit image features ``(n, d)`` at which the length is taken.
        seed: of the draws.
    """
    names = gibberish_names(GIBBERISH, seed)
    try:
        other = fitted.for_classes(names)
    except UserError:
        draw = torch.Generator().manual_seed(seed)
        drawn = normalize(torch.randn(GIBBERISH, features.shape[1], generator=draw), dim=1)
        directions = drawn * _mean_slope(fitted, features)
        return StandIns(DIRECTIONS, (), tuple(_along(direction) for direction in directions))
    return StandIns(NAMES, tuple(names), tuple(_logit_of(other, i) for i in range(GIBBERISH)))


def gibberish_names(count: int, seed: int) -> list[str]:
    """Names of two words of random letters.

    Example:
        >>> gibberish_names(2, seed=0)
        ['qnhibbae qxnpzsq', 'oyhvra woats']
    """
    draw = np.random.default_rng(seed)
    letters = np.array(list(string.ascii_lowercase))

    def word() -> str:
        return "".join(draw.choice(letters, draw.integers(3, 9)))

    return [f"{word()} {word()}" for _ in range(count)]


def in_place_of(fitted: Fitted, c: int, contrast: str, logit: Callable[[Tensor], Tensor]) -> Target:
    """The score of class c with another logit in the place of its own, see :func:`class_target`."""

    def score(features: Tensor) -> Tensor:
        if contrast == NONE:
            return logit(features)
        logits = class_scores(fitted, features)
        if contrast == REST:
            return log_odds(logit(features), logits, c)
        return logit(features) - logits[:, class_index(fitted, contrast)]

    return Target(f"gibberish in place of {fitted.class_names[c]}", score)


def _logit_of(fitted: Fitted, i: int) -> Callable[[Tensor], Tensor]:
    return lambda features: class_scores(fitted, features)[:, i]


def _along(direction: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda features: features @ direction.to(features)


def _mean_slope(fitted: Fitted, features: Tensor) -> float:
    leaf = features.detach().requires_grad_()
    logits = class_scores(fitted, leaf)
    slopes = [
        torch.autograd.grad(logits[:, c].sum(), leaf, retain_graph=True)[0].norm(dim=1).mean()
        for c in range(logits.shape[1])
    ]
    return float(torch.stack(slopes).mean())
