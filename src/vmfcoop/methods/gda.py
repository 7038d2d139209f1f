"""GDA: Gaussian discriminant analysis of image features, added to the zero-shot logits."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import one_hot

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, LinearClassifier, MethodConfig, Support
from vmfcoop.methods.linear import LinearMethod, samples, validation_score
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.progress import ProgressReport, no_progress

WEIGHTS = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0)
"""The grid of alpha (public code)."""

NO_SPREAD = 1e-12
"""Mean squared distance to the class mean, of unit features, that rounding alone can give."""


class GDAConfig(MethodConfig):
    """Settings of GDA.

    Attributes:
        default_alpha: weight of the discriminant where there are no validation shots; default
            ``max(1, (N - 1) / d)`` for N samples (our reading, see :class:`GDA`).
    """

    default_alpha: float | None = Field(None, ge=0)


def discriminant(features: Tensor, labels: Tensor, classes: int, isotropic: float) -> tuple[Tensor, Tensor]:
    """The linear discriminant of C Gaussians with one covariance S and equal priors.

    Bayes' rule with ``p(f | i) = N(m_i, S)`` and p_i = 1/C gives, up to a term that all classes share,
    ``log p(i | f) = f.S^-1 m_i + log p_i - m_i.S^-1 m_i / 2``. The precision is the empirical Bayes estimate
    of Kubokawa & Srivastava (2008), ``S^-1 = d ((N - 1) S + tr(S) I)^-1`` with S divided by N - 1: positive
    definite for any N, with a condition number of at most N. Where no sample differs from its class mean (one
    shot, one view) S = 0 tells nothing, and ``S^-1 = isotropic I`` leaves the classifier of the nearest mean.

    Args:
        features: shape ``(N, d)``, float64.
        labels: shape ``(N,)``; every class occurs.
        classes: C.
        isotropic: precision where S = 0.

    Returns:
        W ``(C, d)`` with rows ``S^-1 m_i``, and b ``(C,)``.
    """
    members = one_hot(labels, classes).double()
    means = members.T @ features / members.sum(dim=0)[:, None]
    centred = features - means[labels]
    count, dim = features.shape
    scatter = centred.T @ centred
    spread = scatter.trace()
    if spread <= NO_SPREAD * count:
        weight = isotropic * means
    else:
        shrunk = scatter + spread / (count - 1) * torch.eye(dim, dtype=torch.float64)
        weight = dim * torch.cholesky_solve(means.T, torch.linalg.cholesky(shrunk)).T
    prior = torch.full((classes,), 1 / classes, dtype=torch.float64)
    return weight, prior.log() - (means * weight).sum(dim=1) / 2


class GDA(LinearMethod[GDAConfig]):
    """GDA (Wang et al., ICLR 2024), training-free: logits ``s f.t_i + alpha (f.W_i + b_i)``.

    W and b are the :func:`discriminant` of all cached views of the support images. alpha is searched on the
    validation shots over 10^-4, 10^-3, .. 100 by accuracy, then by cross-entropy, then the smaller one. The
    sum is linear in f: one matrix and one bias.

    Without validation shots alpha is ``default_alpha``. With 1 the logits are the log posterior of the
    Gaussians whose prior is what zero-shot says of the image. The precision is made for N < d: for more
    samples it falls as d/N below that of the Gaussians, which alpha = (N - 1) / d undoes.
    """

    name = "gda"
    title = "GDA"
    Config = GDAConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        features, labels = samples(support, augmented=True)
        scale = encoder.logit_scale
        weight, bias = discriminant(features, labels, len(support.class_names), isotropic=scale)
        zero_shot = scale * name_embeddings(encoder, support.class_names).double()

        def fused(alpha: float) -> LinearClassifier:
            extra = {"alpha": torch.tensor(alpha, dtype=torch.float64)}
            total = (zero_shot + alpha * weight).float().contiguous()
            return LinearClassifier(support.class_names, total, (alpha * bias).float(), extra=extra)

        if len(support.validation_labels) == 0:
            given = self.config.default_alpha
            return fused(max(1.0, (len(features) - 1) / encoder.dim) if given is None else given)

        def score(fitted: LinearClassifier) -> tuple[float, float]:
            return validation_score(fitted.logits(support.validation_features), support.validation_labels)

        return max(map(fused, WEIGHTS), key=score)
