"""CoOp: context vectors learned by cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import Position, PromptConfig, PromptLearner, PromptMethod, PromptTask
from vmfcoop.training import Batch, Terms


class CoOpConfig(PromptConfig):
    """Settings of CoOp, as in the public BiomedCoOp comparison.

    Attributes:
        class_specific: a context for every class (CSC) instead of one for all; no new classes then.
        class_position: of the class name: at the ``end`` of the prompt, in the ``middle`` or at the
            ``front`` of the context.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.002, gt=0)
    class_specific: bool = False
    class_position: Position = "end"


class CoOp(PromptMethod[CoOpConfig]):
    """CoOp (Zhou et al., IJCV 2022): minimise ``CE(y, softmax(s f . P))`` over the context vectors."""

    name = "coop"
    title = "CoOp"
    Config = CoOpConfig

    def __init__(self, config: CoOpConfig | None = None) -> None:
        super().__init__(config)
        self.new_classes = not self.config.class_specific

    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        def losses(prompts: Tensor, batch: Batch) -> Terms:
            return {"loss": cross_entropy(encoder.logit_scale * batch.features @ prompts.T, batch.labels)}

        return [PromptTask(losses) for _ in supports]

    def prompts(self, names: Sequence[str], encoder: DualEncoder, copies: int) -> PromptLearner:
        config = self.config
        return PromptLearner(
            encoder, names, config.context_init, copies, config.class_position, config.class_specific
        )

    @property
    def position(self) -> Position:
        return self.config.class_position
