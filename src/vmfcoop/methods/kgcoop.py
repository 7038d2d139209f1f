"""KgCoOp: prompts held near the hand-written ones."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import PromptConfig, PromptMethod, PromptTask
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.training import Batch, Terms


class KgCoOpConfig(PromptConfig):
    """Settings of KgCoOp, as in the public BiomedCoOp comparison.

    Attributes:
        knowledge_weight: w, the weight of the distance to the hand-written prompts (8 in the paper).
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(128, ge=1)
    learning_rate: float = Field(0.002, gt=0)
    knowledge_weight: float = Field(8.0, ge=0)


def knowledge_loss(prompts: Tensor, texts: Tensor) -> Tensor:
    """``1/C sum_i (1 - P_i . t_i)``, for unit rows ``(C, d)`` twice -> scalar; half their squared distance.

    Example:
        >>> import torch
        >>> knowledge_loss(torch.eye(2), torch.eye(2).flip(0))
        tensor(1.)
    """
    return 1 - (prompts * texts).sum(dim=1).mean()


class KgCoOp(PromptMethod[KgCoOpConfig]):
    """KgCoOp (Yao et al., CVPR 2023): minimise ``CE(y, softmax(s f . P)) + w 1/C sum_i (1 - P_i . t_i)``.

    t_i is the unit embedding of "a photo of a <class i>."; the paper writes the distance as
    ``|P_i - t_i|^2``, its code as ``1 - cos``, which is half of it. Here the code's form.
    """

    name = "kgcoop"
    title = "KgCoOp"
    Config = KgCoOpConfig

    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        texts = name_embeddings(encoder, supports[0].class_names).to(encoder.device)

        def losses(prompts: Tensor, batch: Batch) -> Terms:
            ce = cross_entropy(encoder.logit_scale * batch.features @ prompts.T, batch.labels)
            knowledge = knowledge_loss(prompts, texts)
            return {"loss": ce + self.config.knowledge_weight * knowledge, "ce": ce, "knowledge": knowledge}

        return [PromptTask(losses) for _ in supports]
