"""ProGrad: only steps that do not go against what zero-shot CLIP knows."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import PromptConfig, PromptLearner, PromptMethod, PromptTask
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.training import Batch, Terms

ROUNDING = 1e-5


class ProGradConfig(PromptConfig):
    """Settings of ProGrad, as in the public BiomedCoOp comparison.

    Attributes:
        temperature: T, which softens both distributions in the divergence.
        projection: lambda, how much of the conflicting part is taken away; 1 takes all.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.002, gt=0)
    temperature: float = Field(1.0, gt=0)
    projection: float = Field(1.0, ge=0)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 1.0) -> Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(logits / T))``, the mean over rows ``(b, C)`` -> scalar."""
    student = (logits / temperature).log_softmax(dim=1)
    target = (teacher / temperature).log_softmax(dim=1)
    return kl_div(student, target, reduction="batchmean", log_target=True) * temperature**2


def projected_gradient(domain: Tensor, general: Tensor, projection: float = 1.0) -> Tensor:
    """``g_d`` where it agrees with ``g_g``, else without its part along it: equation 4 of the paper.

    ``g_d`` if ``g_d . g_g >= 0``, else ``g_d - lambda (g_d . g_g / |g_g|^2) g_g``. At the start of training
    the student is its teacher and g_g is rounding error without a direction: below 1e-5 |g_d| it has no say.

    Args:
        domain: g_d, gradient of the cross-entropy, of any shape.
        general: g_g, gradient of the divergence from the zero-shot prediction, of the same shape.
        projection: lambda.

    Example:
        >>> projected_gradient(torch.tensor([1.0, 1.0]), torch.tensor([-1.0, 0.0]))
        tensor([0., 1.])
    """
    agreement = (domain * general).sum()
    if agreement >= 0 or general.norm() <= ROUNDING * domain.norm():
        return domain
    return domain - projection * agreement / general.square().sum() * general


class ProGrad(PromptMethod[ProGradConfig]):
    """ProGrad (Zhu et al., ICCV 2023): descend along ``g_d = grad CE``, less what conflicts with ``g_g``.

    ``g_g = grad KL(zero-shot || prompted)`` with the frozen hand-written prompts "a photo of a <class>." as
    the teacher.
    """

    name = "prograd"
    title = "ProGrad"
    Config = ProGradConfig

    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        scale = encoder.logit_scale
        texts = name_embeddings(encoder, supports[0].class_names).to(encoder.device)

        def losses(prompts: Tensor, batch: Batch) -> Terms:
            logits = scale * batch.features @ prompts.T
            ce = cross_entropy(logits, batch.labels)
            kl = distillation_loss(logits, scale * batch.features @ texts.T, self.config.temperature)
            return {"loss": ce, "kl": kl}

        return [PromptTask(losses) for _ in supports]

    def backward(self, terms: Sequence[Terms], prompts: PromptLearner) -> None:
        context = prompts.context
        general = torch.autograd.grad(
            torch.stack([row["kl"] for row in terms]).sum(), context, retain_graph=True
        )[0]
        domain = torch.autograd.grad(torch.stack([row["loss"] for row in terms]).sum(), context)[0]
        context.grad = torch.stack(
            [projected_gradient(d, g, self.config.projection) for d, g in zip(domain, general, strict=True)]
        )
