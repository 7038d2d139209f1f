"""LP++: a linear probe whose weights blend visual prototypes with the text embeddings."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, one_hot

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, History, LinearClassifier, MethodConfig, Support
from vmfcoop.methods.linear import LinearMethod, samples
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.progress import ProgressReport, no_progress

BLEND_START = 250.0
"""The blending starts at so many times the mean cosine of images and their class name (public code)."""


class LPPlusPlusConfig(MethodConfig):
    """Settings of LP++.

    Attributes:
        iterations: full-batch steps of the prototypes.
        prototype_steps: of them before each step of the blending (public code).
        momentum: of the prototype steps; 0 makes every step a descent, the public code takes 0.9.
        augmented: fit on all cached views of an image instead of the plain one.
    """

    iterations: int = Field(300, ge=1)
    prototype_steps: int = Field(10, ge=1)
    momentum: float = Field(0.0, ge=0, lt=1)
    augmented: bool = False


class Problem:
    """The loss of LP++ over N rows, ``L(w, a) = -1/N sum_n log softmax_k(f_n.w_k + a_k f_n.t_k)_{y_n}``.

    L is convex. With r the residual ``softmax - onehot`` its gradients are ``dL/dw_k = 1/N sum_n r_nk f_n``
    and ``dL/da_k = 1/N sum_n r_nk f_n.t_k``. The Hessian of log-sum-exp has no eigenvalue above 1/2, so they
    are Lipschitz with ``L_w = lambda_max(F^T F) / 2N`` and ``L_a = max_k sum_n (f_n.t_k)^2 / 2N``. A step of
    1/L minimises the quadratic majoriser of a block, and no step up to 2/L can raise the loss. The steps here
    are those of the public code: 2/L_w, which is 1/L of a single w_k, and 1/(8 L_a).

    Args:
        features: f, unit rows, shape ``(N, d)``, float64.
        labels: shape ``(N,)``.
        texts: t, unit rows, shape ``(C, d)``, float64.

    Attributes:
        prototype_step: ``4N / lambda_max(F^T F)``.
        blend_step: ``N / (4 max_k sum_n (f_n.t_k)^2)``.
    """

    def __init__(self, features: Tensor, labels: Tensor, texts: Tensor) -> None:
        self.features, self.labels = features, labels
        self.targets = one_hot(labels, len(texts)).double()
        self.cosines = features @ texts.T
        rows = len(features)
        self.prototype_step = 4 * rows / float(torch.linalg.eigvalsh(features.T @ features)[-1])
        self.blend_step = rows / (4 * float(self.cosines.square().sum(dim=0).max()))

    def start(self, images: int) -> tuple[Tensor, Tensor]:
        """w_k: the sum of the features of class k over images; a: 250 times the mean own cosine.

        Args:
            images: n, so that the V views of an image count as one in the sum.

        Returns:
            w ``(C, d)`` and a ``(C,)``.
        """
        sums = self.targets.T @ self.features * images / len(self.features)
        class_means = (self.targets * self.cosines).sum(dim=0) / self.targets.sum(dim=0)
        return sums, (BLEND_START * class_means.mean()).expand(len(sums)).clone()

    def logits(self, prototypes: Tensor, blend: Tensor) -> Tensor:
        """``f_n.(w_k + a_k t_k)``, shape ``(N, C)``."""
        return self.features @ prototypes.T + blend * self.cosines

    def loss(self, prototypes: Tensor, blend: Tensor) -> float:
        """L(w, a)."""
        return float(cross_entropy(self.logits(prototypes, blend), self.labels))

    def prototype_gradient(self, prototypes: Tensor, blend: Tensor) -> Tensor:
        """dL/dw, shape ``(C, d)``."""
        return self._residual(prototypes, blend).T @ self.features / len(self.features)

    def blend_gradient(self, prototypes: Tensor, blend: Tensor) -> Tensor:
        """dL/da, shape ``(C,)``."""
        return (self._residual(prototypes, blend) * self.cosines).mean(dim=0)

    def _residual(self, prototypes: Tensor, blend: Tensor) -> Tensor:
        return self.logits(prototypes, blend).softmax(dim=1) - self.targets


class LPPlusPlus(LinearMethod[LPPlusPlusConfig]):
    """LP++ (Huang et al., CVPR 2024): logits ``f.(w_k + a_k t_k)`` with prototypes w and blending a learned.

    Full-batch block coordinate descent on :class:`Problem`, every step size from the data: ten steps of w,
    then one of a at the new w. The iterate of the best validation accuracy is kept, the later one of equal
    ones; without validation shots the last.

    Steps, starts and the alternation are those of the authors' code. Its momentum is off by default, because
    with it the loss may rise, and its randomly started bias is left out, because the logits have none.
    """

    name = "lp++"
    title = "LP++"
    Config = LPPlusPlusConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        config = self.config
        texts = name_embeddings(encoder, support.class_names).double()
        problem = Problem(*samples(support, config.augmented), texts)
        prototypes, blend = problem.start(len(support.labels))
        best_accuracy, best = 0.0, (prototypes, blend)
        velocity = torch.zeros_like(prototypes)
        history: History = []
        for iteration in range(config.iterations):
            velocity = config.momentum * velocity + problem.prototype_gradient(prototypes, blend)
            prototypes = prototypes - problem.prototype_step * velocity
            if (iteration + 1) % config.prototype_steps == 0:
                blend = blend - problem.blend_step * problem.blend_gradient(prototypes, blend)
            accuracy = validation_accuracy(support, prototypes + blend[:, None] * texts)
            if accuracy >= best_accuracy:
                best_accuracy, best = accuracy, (prototypes, blend)
            history.append({"epoch": iteration, "loss": problem.loss(prototypes, blend)})
            progress("train", iteration + 1, config.iterations)
        weight = best[0] + best[1][:, None] * texts
        bias = torch.zeros(len(weight))
        extra = {"blend": best[1].float()}
        return LinearClassifier(support.class_names, weight.float(), bias, history, extra)


def validation_accuracy(support: Support, weight: Tensor) -> float:
    """Share of the validation shots that ``argmax f W^T`` gets right; 0 where there are none."""
    if len(support.validation_labels) == 0:
        return 0.0
    logits = support.validation_features.double() @ weight.T
    return float((logits.argmax(dim=1) == support.validation_labels).double().mean())
