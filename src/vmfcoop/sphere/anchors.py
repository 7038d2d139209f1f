"""Semantic anchors: where a vision-language model's own text field and the descriptions of a class agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vmfcoop.errors import UserError
from vmfcoop.sphere.vmf import VonMisesFisherFit, fit_vmf


@dataclass(frozen=True, eq=False)
class SemanticAnchors:
    """One anchor a class, and the laws it was computed from.

    Attributes:
        anchors: unit rows u_1 .. u_C, shape (C, d), in the dtype of the description embeddings.
        vocabulary_field: law fitted to the vocabulary.
        class_fields: laws fitted to the descriptions, one a class.
    """

    anchors: Tensor
    vocabulary_field: VonMisesFisherFit
    class_fields: tuple[VonMisesFisherFit, ...]


def semantic_anchors(
    vocabulary_embeddings: Tensor | VonMisesFisherFit,
    description_embeddings: Sequence[Tensor],
    estimator: str = "newton",
) -> SemanticAnchors:
    r"""Unified semantic anchor of every class.

    .. math:: u_i = \frac{\kappa_C \mu_C + \kappa_i \mu_i}{|\kappa_C \mu_C + \kappa_i \mu_i|}

    :math:`(\mu_C, \kappa_C)` is the von Mises-Fisher law of the vocabulary and :math:`(\mu_i, \kappa_i)` that
    of the descriptions of class i. The anchor is the mean direction of the product of the two densities, so
    the more concentrated field weighs more. Source: vMFCoOp, AAAI 2026, arXiv 2511.09540.

    Args:
        vocabulary_embeddings: unit rows, shape (V, d), or their fit.
        description_embeddings: for each of the C classes, unit rows of shape (n_i, d) with n_i >= 2; n_i may
            differ between classes.
        estimator: concentration estimate of every field, as in :func:`vmfcoop.sphere.fit_vmf`.

    Returns:
        The anchors, in the dtype of the description embeddings, and the fitted fields in float64.

    Raises:
        UserError: if a class has fewer than two descriptions, another dimension than the vocabulary, rows
            that cannot be fitted, or a field that cancels the vocabulary's; the message names the class.
            Also if there is no class, or if the vocabulary cannot be fitted.

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import semantic_anchors
        >>> vocabulary = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0]])
        >>> descriptions = torch.tensor([[0.0, 0.8, 0.6], [0.0, 0.6, 0.8]])
        >>> semantic_anchors(vocabulary, [descriptions]).anchors
        tensor([[0.0823, 0.7250, 0.6838]])
    """
    if len(description_embeddings) == 0:
        raise UserError("There are no classes: the sequence of description embeddings is empty.")
    vocabulary = _vocabulary_field(vocabulary_embeddings, estimator)
    dim = vocabulary.mean_direction.shape[-1]
    fields = tuple(
        _class_field(index, rows, dim, estimator) for index, rows in enumerate(description_embeddings)
    )
    anchors = torch.stack([_combine(index, vocabulary, field) for index, field in enumerate(fields)])
    return SemanticAnchors(anchors.to(description_embeddings[0].dtype), vocabulary, fields)


def _vocabulary_field(embeddings: Tensor | VonMisesFisherFit, estimator: str) -> VonMisesFisherFit:
    field = embeddings if isinstance(embeddings, VonMisesFisherFit) else fit_vmf(embeddings, estimator)
    if field.mean_direction.dim() != 1:
        raise UserError("The vocabulary must be one field: rows of shape (V, d), or the fit of such rows.")
    return field


def _class_field(index: int, rows: Tensor, dim: int, estimator: str) -> VonMisesFisherFit:
    if rows.dim() != 2 or rows.shape[1] != dim:
        raise UserError(
            f"The descriptions of class {index} have shape {tuple(rows.shape)}; needed is (n, {dim}), "
            f"the dimension of the vocabulary."
        )
    if len(rows) < 2:
        raise UserError(
            f"Class {index} needs at least 2 descriptions to show their spread, but has {len(rows)}."
        )
    try:
        return fit_vmf(rows, estimator)
    except UserError as error:
        raise UserError(f"Descriptions of class {index}: {error}") from error


def _combine(index: int, vocabulary: VonMisesFisherFit, field: VonMisesFisherFit) -> Tensor:
    total = vocabulary.concentration * vocabulary.mean_direction + field.concentration * field.mean_direction
    length: Tensor = torch.linalg.vector_norm(total)
    if bool(length <= 1e-12 * (vocabulary.concentration + field.concentration)):
        raise UserError(
            f"The fields of the vocabulary and of class {index} cancel or are both uniform, "
            f"so the class has no anchor."
        )
    return total / length
