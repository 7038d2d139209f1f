"""Tip-Adapter-F: Tip-Adapter whose cache keys are learned by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, Method, Support
from vmfcoop.methods.tip_adapter import CacheClassifier, TipAdapterConfig, searched, support_cache
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, Terms, TrainingConfig, optimise


class TipAdapterFConfig(TrainingConfig, TipAdapterConfig):
    """Settings of Tip-Adapter-F, those of the paper and its public code.

    The public code sets AdamW's epsilon to 1e-4; here it is torch's 1e-8.
    """

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(0.001, gt=0)
    optimizer: Literal["sgd", "adamw"] = "adamw"
    weight_decay: float = Field(0.01, ge=0)
    warmup_epochs: int = Field(0, ge=0)


class TipAdapterF(Method[TipAdapterFConfig]):
    """Tip-Adapter-F (Zhang et al., ECCV 2022, section 3): ``CE`` of Tip-Adapter's logits over the keys F.

    Training has alpha and beta as configured; they are searched on the validation shots once, after it. The
    epochs are never chosen by accuracy: the last step's keys are kept.
    """

    name = "tip-adapter-f"
    title = "Tip-Adapter-F"
    Config = TipAdapterFConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        cache = support_cache(support, encoder, self.config)
        keys = cache.keys.requires_grad_()

        def objective(batch: Batch) -> Terms:
            return {"loss": cross_entropy(cache.logits(batch.features), batch.labels)}

        history = optimise(objective, [keys], support.image_features, support.labels, self.config, progress)
        return searched(replace(cache, keys=keys.detach(), history=history), support, self.config)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return CacheClassifier.restored(state, class_names)
