"""CoOp: context vectors learned by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, Method, Support
from vmfcoop.methods.prompt import PromptLearner, fitted_prompts, restore_prompts
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, TrainingConfig, optimise


class CoOpConfig(TrainingConfig):
    """Settings of CoOp, as in the public BiomedCoOp comparison.

    Attributes:
        context_init: words whose token embeddings start the context vectors.
    """

    epochs: int = Field(100, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.002, gt=0)
    context_init: str = "a photo of a"


class CoOp(Method[CoOpConfig]):
    """CoOp (Zhou et al., IJCV 2022), shared context: minimise ``CE(y, softmax(s f . P))`` over it."""

    name = "coop"
    title = "CoOp"
    Config = CoOpConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        prompts = PromptLearner(encoder, support.class_names, self.config.context_init)

        def objective(batch: Batch) -> dict[str, Tensor]:
            return {"loss": cross_entropy(encoder.logit_scale * batch.features @ prompts().T, batch.labels)}

        features, labels = support.image_features.to(encoder.device), support.labels.to(encoder.device)
        history = optimise(objective, [prompts.context], features, labels, self.config, progress)
        return fitted_prompts(prompts, support.class_names, self.config.context_init, encoder, history)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return restore_prompts(state, class_names, self.config.context_init, encoder)
