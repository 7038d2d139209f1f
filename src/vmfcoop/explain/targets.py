"""What a saliency map explains: a score of image features, such as the log-odds of a class."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from vmfcoop.errors import UserError, unknown_name
from vmfcoop.methods.base import Fitted
from vmfcoop.methods.vmf_posterior import PosteriorClassifier, log_predictive

REST, NONE = "rest", "none"
"""Contrasts that are no class: all other classes together, and nothing."""


@dataclass(frozen=True)
class Target:
    """A score to explain.

    Attributes:
        name: in words, such as "melanoma rather than the rest".
        score: unit image features ``(n, d)`` -> scores ``(n,)``, differentiable.
    """

    name: str
    score: Callable[[Tensor], Tensor]


def class_target(fitted: Fitted, wanted: str | int, contrast: str | int = REST) -> Target:
    r"""The score of a class of a fitted classifier, with logits :math:`z`.

    .. math:: z_c - \log \sum_{k \ne c} e^{z_k}, \qquad z_c - z_d, \qquad z_c

    for the contrasts rest, class d and none. The first is the log-odds of the class. The logit alone also
    rises with whatever all classes have in common, such as being a brain at all. The logits of the vMF
    posterior are relative to its most probable class; the score of a class alone is its log density there.

    Args:
        fitted: the classifier.
        wanted: class c, its name or index.
        contrast: ``rest``, ``none``, or class d, its name or index.

    Raises:
        UserError: there is no such class, or it is contrasted with itself.

    Example:
        >>> import torch
        >>> from vmfcoop.methods.base import EmbeddingClassifier
        >>> fitted = EmbeddingClassifier(("a", "b"), torch.eye(2), 10.0)
        >>> class_target(fitted, "b", "a").score(torch.tensor([[0.6, 0.8]]))
        tensor([2.])
    """
    c = class_index(fitted, wanted)
    name = fitted.class_names[c]
    if contrast == NONE:
        words = f"{name} (log density)" if isinstance(fitted, PosteriorClassifier) else name
        return Target(words, lambda features: class_scores(fitted, features)[:, c])
    if contrast == REST:

        def odds(features: Tensor) -> Tensor:
            logits = fitted.logits(features)
            return log_odds(logits[:, c], logits, c)

        return Target(f"{name} rather than the rest", odds)
    d = class_index(fitted, contrast)
    if c == d:
        raise UserError(f"The class '{name}' cannot be contrasted with itself; name another, rest or none.")

    def difference(features: Tensor) -> Tensor:
        logits = fitted.logits(features)
        return logits[:, c] - logits[:, d]

    return Target(f"{name} rather than {fitted.class_names[d]}", difference)


def log_odds(logit: Tensor, logits: Tensor, c: int) -> Tensor:
    """z - log sum_{k != c} exp z_k, z ``(n,)`` in the place of class c, logits ``(n, C)`` -> ``(n,)``."""
    others = [k for k in range(logits.shape[1]) if k != c]
    return logit - logits[:, others].logsumexp(dim=1)


def class_scores(fitted: Fitted, features: Tensor) -> Tensor:
    """What says each class by itself, whatever the others: ``(n, d)`` -> ``(n, C)``, float32, differentiable.

    The logits; T log p(x | class) of the vMF posterior, whose logits are relative to the largest of them.
    """
    if not isinstance(fitted, PosteriorClassifier):
        return fitted.logits(features)
    points = fitted.frame.images(features.double())
    densities = log_predictive(points, fitted.class_embeddings, fitted.concentrations, fitted.frame.kappa)
    return (fitted.temperature * densities).float()


def direction_target(direction: Tensor, name: str) -> Target:
    """The score ``f . direction``, for a direction ``(d,)`` that is no class, as that of a free prompt."""
    return Target(name, lambda features: features @ direction.to(features))


def class_index(fitted: Fitted, wanted: str | int) -> int:
    """Index of a class by name or index.

    Raises:
        UserError: there is no such class; the near names are listed.
    """
    names = fitted.class_names
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return wanted
    if wanted in names:
        return names.index(str(wanted))
    raise unknown_name("class", str(wanted), names)
