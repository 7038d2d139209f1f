"""BiomedCoOp: prompts near the mean of an LLM's descriptions, with outlying descriptions left out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, kl_div, normalize

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import PromptConfig, PromptMethod, PromptTask
from vmfcoop.training import Batch, Terms


class BiomedCoOpConfig(PromptConfig):
    """Settings of BiomedCoOp; the public code tunes the two weights by dataset, these are its commonest.

    Attributes:
        sccm_weight: of the consistency with the mean description.
        kdsp_weight: of the distillation from the pruned descriptions.
        threshold: tau, how many standard deviations from the mean score a description may be; from 1 up some
            description always stays.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(4, ge=1)
    learning_rate: float = Field(0.0025, gt=0)
    sccm_weight: float = Field(0.5, ge=0)
    kdsp_weight: float = Field(0.5, ge=0)
    threshold: float = Field(1.5, ge=1)


def consistency_loss(prompts: Tensor, means: Tensor) -> Tensor:
    """SCCM: ``mean((P - E)^2)`` over all ``C x d`` entries -> scalar (the public code's scale)."""
    return (prompts - means).square().mean()


def kept_descriptions(scores: Tensor, threshold: float) -> Tensor:
    """Which descriptions stay: those whose standardised robust score is within the threshold.

    ``z_j = (score_j - median) / MAD``; j stays if ``|z_j - mean z| / std z <= tau``. The second
    standardisation undoes the first, which is therefore left out: median and MAD cancel, and MAD = 0 does no
    harm. Where all scores are equal, all stay.

    Args:
        scores: shape ``(J,)``.
        threshold: tau.

    Returns:
        Shape ``(J,)``, bool.

    Example:
        >>> kept_descriptions(torch.tensor([1.0, 1.1, 0.9, 1.0, 9.0]), 1.5)
        tensor([ True,  True,  True,  True, False])
    """
    deviation = scores - scores.mean()
    return deviation.abs() <= threshold * scores.std()


def pruned_means(features: Tensor, descriptions: Tensor, scale: float, threshold: float) -> Tensor:
    """``G_i = normalize(mean over kept j of e_ij)``, kept by ``score_j = mean_batch max_i s f . e_ij``.

    Args:
        features: unit image features of a batch, shape ``(b, d)``.
        descriptions: unit embeddings e_ij, shape ``(C, J, d)``.
        scale: s.
        threshold: tau.

    Returns:
        Unit rows, shape ``(C, d)``.
    """
    scores = scale * torch.einsum("bd,cjd->bcj", features, descriptions).amax(dim=1).mean(dim=0)
    kept = kept_descriptions(scores, threshold)
    return normalize(descriptions[:, kept].mean(dim=1), dim=1)


def pruned_distillation(logits: Tensor, teacher: Tensor) -> Tensor:
    """KDSP: ``KL(softmax(teacher) || softmax(logits)) / (b C)``, for rows ``(b, C)`` -> scalar."""
    divergence = kl_div(
        logits.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True
    )
    return divergence / logits.numel()


class BiomedCoOp(PromptMethod[BiomedCoOpConfig]):
    """BiomedCoOp (Koleilat et al., CVPR 2025): ``CE + w_1 SCCM + w_2 KDSP`` over the context vectors.

    SCCM is the mean squared difference of the prompts and ``E_i = normalize(mean_j e_ij)`` over the
    embeddings e_ij of the descriptions; KDSP distils the prediction ``s f . G`` of the descriptions that the
    batch does not find outlying. A description is judged by its index over all classes, so all classes use as
    many as the class with the fewest.
    """

    name = "biomedcoop"
    title = "BiomedCoOp"
    Config = BiomedCoOpConfig
    reads_descriptions = True

    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        config, scale = self.config, encoder.logit_scale
        count = min(len(texts) for texts in supports[0].descriptions)
        embedded = [encoder.encode_texts(list(texts[:count])) for texts in supports[0].descriptions]
        descriptions = torch.stack(embedded).to(encoder.device)
        means = normalize(descriptions.mean(dim=1), dim=1)

        def losses(prompts: Tensor, batch: Batch) -> Terms:
            logits = scale * batch.features @ prompts.T
            teacher = (
                scale * batch.features @ pruned_means(batch.features, descriptions, scale, config.threshold).T
            )
            ce = cross_entropy(logits, batch.labels)
            sccm, kdsp = consistency_loss(prompts, means), pruned_distillation(logits, teacher)
            total = ce + config.sccm_weight * sccm + config.kdsp_weight * kdsp
            return {"loss": total, "ce": ce, "sccm": sccm, "kdsp": kdsp}

        return [PromptTask(losses) for _ in supports]
