"""CLIP-Adapter: a small residual network on the image features, learned by cross-entropy."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize, relu

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, Method, Support
from vmfcoop.methods.image_adapter import ImageAdapterClassifier
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, Terms, TrainingConfig, optimise


class CLIPAdapterConfig(TrainingConfig):
    """Settings of CLIP-Adapter: epochs, learning rate and ratio of the public BiomedCoOp comparison.

    The batch size is the paper's; momentum and weight decay are those of CoOp's trainer, which the paper's
    public code uses.

    Attributes:
        ratio: a, share of the adapter in the adapted feature; the paper's public code has 0.2.
        reduction: the adapter's hidden layer has ``d // reduction`` units.
    """

    epochs: int = Field(20, ge=1)
    batch_size: int = Field(32, ge=1)
    learning_rate: float = Field(0.01, gt=0)
    ratio: float = Field(0.5, ge=0, le=1)
    reduction: int = Field(4, ge=1)


@dataclass
class CLIPAdapterClassifier(ImageAdapterClassifier):
    """Logits ``s f' . t_i`` with ``f' = normalize(a A(f) + (1 - a) f)``, ``A(f) = ReLU(W2 ReLU(W1 f))``.

    Attributes:
        down: W1, shape ``(h, d)``.
        up: W2, shape ``(d, h)``.
        ratio: a.
    """

    down: Tensor
    up: Tensor
    ratio: float

    def adapted(self, image_features: Tensor) -> Tensor:
        adapter = relu(relu(image_features @ self.down.T) @ self.up.T)
        return normalize(self.ratio * adapter + (1 - self.ratio) * image_features, dim=-1)

    def state(self) -> dict[str, Tensor]:
        return {
            "class_embeddings": self.class_embeddings,
            "logit_scale": torch.tensor(self.logit_scale, dtype=torch.float64),
            "down": self.down,
            "up": self.up,
            "ratio": torch.tensor(self.ratio, dtype=torch.float64),
        }


class CLIPAdapter(Method[CLIPAdapterConfig]):
    """CLIP-Adapter (Gao et al., IJCV 2024): minimise ``CE(y, softmax(s f' . t))`` over W1 and W2.

    The visual adapter of the paper: ``f' = normalize(a ReLU(W2 ReLU(W1 f)) + (1 - a) f)``, without biases as
    in its public code. The adapter is on the image side, so it classifies new classes by their names.
    """

    name = "clip-adapter"
    title = "CLIP-Adapter"
    Config = CLIPAdapterConfig
    new_classes = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        config, dim = self.config, encoder.dim
        draw = torch.Generator().manual_seed(config.seed)
        hidden = max(1, dim // config.reduction)
        down, up = initial_weight(hidden, dim, draw), initial_weight(dim, hidden, draw)
        embeddings = name_embeddings(encoder, support.class_names)
        classifier = CLIPAdapterClassifier(
            support.class_names, embeddings, encoder.logit_scale, encoder, down, up, config.ratio
        )

        def objective(batch: Batch) -> Terms:
            return {"loss": cross_entropy(classifier.logits(batch.features), batch.labels)}

        history = optimise(objective, [down, up], support.image_features, support.labels, config, progress)
        return replace(classifier, down=down.detach(), up=up.detach(), history=history)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return CLIPAdapterClassifier(
            tuple(class_names),
            state["class_embeddings"],
            float(state["logit_scale"]),
            encoder,
            state["down"],
            state["up"],
            float(state["ratio"]),
        )


def initial_weight(rows: int, columns: int, draw: torch.Generator) -> Tensor:
    """A learned weight as ``torch.nn.Linear`` starts it: uniform within ``1 / sqrt(columns)`` of zero."""
    bound = 1 / math.sqrt(columns)
    return torch.empty(rows, columns).uniform_(-bound, bound, generator=draw).requires_grad_()
