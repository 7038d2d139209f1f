"""CoCoOp: context vectors that shift with every image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, History, Method, Support
from vmfcoop.methods.prompt import PromptConfig, PromptLearner
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, optimise

REDUCTION = 16
PROMPTS_AT_ONCE = 256


class CoCoOpConfig(PromptConfig):
    """Settings of CoCoOp, as in the public BiomedCoOp comparison."""

    epochs: int = Field(10, ge=1)
    batch_size: int = Field(1, ge=1)
    learning_rate: float = Field(0.001, gt=0)


MetaNet = dict[str, Tensor]
"""``down.weight (h, d)``, ``down.bias``, ``up.weight (w, h)``, ``up.bias``, with h = max(1, d / 16)."""


def meta_net(dim: int, width: int, seed: int) -> MetaNet:
    """The two layers at their start, torch's own: uniform within ``1 / sqrt(fan in)``."""
    draw = torch.Generator().manual_seed(seed)
    hidden = max(1, dim // REDUCTION)
    layers: MetaNet = {}
    for name, outputs, inputs in (("down", hidden, dim), ("up", width, hidden)):
        bound = 1 / math.sqrt(inputs)
        layers[f"{name}.weight"] = (2 * torch.rand(outputs, inputs, generator=draw) - 1) * bound
        layers[f"{name}.bias"] = (2 * torch.rand(outputs, generator=draw) - 1) * bound
    return layers


def context_shift(net: Mapping[str, Tensor], features: Tensor) -> Tensor:
    """``pi(f) = W_2 relu(W_1 f + b_1) + b_2``: unit image features ``(b, d)`` -> ``(b, w)``."""
    hidden = relu(features @ net["down.weight"].T + net["down.bias"])
    return hidden @ net["up.weight"].T + net["up.bias"]


def image_logits(
    prompts: PromptLearner, context: Tensor, net: Mapping[str, Tensor], features: Tensor, scale: float
) -> Tensor:
    """``s f_b . P_i(f_b)`` with every context vector of image b moved by ``pi(f_b)``, shape ``(b, C)``."""
    contexts = context + context_shift(net, features)[:, None]
    return scale * torch.einsum("bd,bcd->bc", features, prompts(contexts))


@dataclass
class CoCoOpClassifier(Fitted):
    """Prompts of their own for every image; new classes reuse context and meta-net.

    Attributes:
        class_names: C names.
        context: learned context vectors, shape ``(M, w)``, CPU.
        net: the meta-net, CPU.
        context_init: the words that the context began as.
        encoder: the text tower, which every prediction goes through.
    """

    class_names: tuple[str, ...]
    context: Tensor
    net: MetaNet
    context_init: str
    encoder: DualEncoder
    history: History = field(default_factory=list)

    def logits(self, image_features: Tensor) -> Tensor:
        prompts = PromptLearner(self.encoder, self.class_names, self.context_init)
        device = self.encoder.device
        context, net = self.context.to(device), {key: value.to(device) for key, value in self.net.items()}
        parts = image_features.to(device).split(max(1, PROMPTS_AT_ONCE // len(self.class_names)))
        scale = self.encoder.logit_scale
        rows = [image_logits(prompts, context, net, part, scale).float().cpu() for part in parts]
        return torch.cat(rows) if rows else torch.empty(0, len(self.class_names))

    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> Fitted:
        return CoCoOpClassifier(tuple(class_names), self.context, self.net, self.context_init, self.encoder)

    def state(self) -> dict[str, Tensor]:
        return {"context": self.context, **self.net}


class CoCoOp(Method[CoCoOpConfig]):
    """CoCoOp (Zhou et al., CVPR 2022): ``CE(y, softmax(s f . P(f)))`` over context vectors and a meta-net.

    The prompts of image f have the context ``v_m + pi(f)``, pi = Linear(d, d/16), ReLU, Linear(d/16, w).
    """

    name = "cocoop"
    title = "CoCoOp"
    Config = CoCoOpConfig
    new_classes = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        device, config = encoder.device, self.config
        prompts = PromptLearner(encoder, support.class_names, config.context_init)
        context = nn.Parameter(prompts.context.detach()[0])
        start = meta_net(encoder.dim, encoder.token_width, config.seed)
        net = {key: nn.Parameter(value.to(device)) for key, value in start.items()}

        def objective(batch: Batch) -> dict[str, Tensor]:
            logits = image_logits(prompts, context, net, batch.features, encoder.logit_scale)
            return {"loss": cross_entropy(logits, batch.labels)}

        features, labels = support.image_features.to(device), support.labels.to(device)
        history = optimise(objective, [context, *net.values()], features, labels, config, progress)
        learned = {key: value.detach().cpu() for key, value in net.items()}
        return CoCoOpClassifier(
            support.class_names, context.detach().cpu(), learned, config.context_init, encoder, history
        )

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        net = {key: value for key, value in state.items() if key != "context"}
        return CoCoOpClassifier(tuple(class_names), state["context"], net, self.config.context_init, encoder)
