"""Tip-Adapter: a cache of the support images votes beside the zero-shot classifier; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, History, Method, MethodConfig, Support
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.progress import ProgressReport, no_progress

GRID_START = 0.1
"""Smallest alpha and beta tried, as in the public code."""


class TipAdapterConfig(MethodConfig):
    """Settings of the cache.

    ``alpha`` and ``beta`` default to those of the paper on ImageNet. The grid of the search is logarithmic,
    since both are scales; it ends where that of the public few-shot comparisons ends.

    Attributes:
        alpha: weight of the cache against the zero-shot logits.
        beta: sharpness of the votes.
        search: choose both by the accuracy on the validation shots, where there are any.
        search_max: largest alpha and beta tried.
        search_steps: values of each tried.
    """

    alpha: float = Field(1.0, ge=0)
    beta: float = Field(5.5, ge=0)
    search: bool = True
    search_max: float = Field(50.0, gt=GRID_START)
    search_steps: int = Field(40, ge=2)


@dataclass
class CacheClassifier(Fitted):
    """Logits ``s f T^T + alpha exp(-beta (1 - f F^T)) L``.

    Attributes:
        class_names: C names.
        class_embeddings: T, unit rows, shape ``(C, d)``.
        logit_scale: s.
        keys: F, one row a support image, shape ``(n, d)``.
        labels: class of each key, shape ``(n,)``, int64; L is their one-hot matrix.
        alpha, beta: weight and sharpness of the cache.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    logit_scale: float
    keys: Tensor
    labels: Tensor
    alpha: float
    beta: float
    history: History = field(default_factory=list)

    def text_logits(self, image_features: Tensor) -> Tensor:
        """``s f T^T``, shape ``(n, C)``."""
        return self.logit_scale * image_features @ self.class_embeddings.T

    def votes(self, image_features: Tensor, beta: float) -> Tensor:
        """``exp(-beta (1 - f F^T)) L``, shape ``(n, C)``."""
        affinities = torch.exp(-beta * (1 - image_features @ self.keys.T))
        return affinities @ one_hot(self.labels, len(self.class_names)).to(affinities.dtype)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.text_logits(image_features) + self.alpha * self.votes(image_features, self.beta)

    def state(self) -> dict[str, Tensor]:
        numbers = {"logit_scale": self.logit_scale, "alpha": self.alpha, "beta": self.beta}
        return {
            "class_embeddings": self.class_embeddings,
            "keys": self.keys,
            "labels": self.labels,
            **{key: torch.tensor(value, dtype=torch.float64) for key, value in numbers.items()},
        }

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], class_names: Sequence[str]) -> CacheClassifier:
        """The classifier that :meth:`state` was taken from."""
        return cls(
            tuple(class_names),
            state["class_embeddings"],
            float(state["logit_scale"]),
            state["keys"],
            state["labels"],
            float(state["alpha"]),
            float(state["beta"]),
        )


class TipAdapter(Method[TipAdapterConfig]):
    """Tip-Adapter (Zhang et al., ECCV 2022, section 3): ``s f T^T + alpha exp(-beta (1 - f F^T)) L``.

    T are the embeddings of the class names, F the normalised means over each support image's views, L their
    one-hot labels. The cache belongs to its classes: no new ones.
    """

    name = "tip-adapter"
    title = "Tip-Adapter"
    Config = TipAdapterConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        return searched(support_cache(support, encoder, self.config), support, self.config)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return CacheClassifier.restored(state, class_names)


def support_cache(support: Support, encoder: DualEncoder, config: TipAdapterConfig) -> CacheClassifier:
    """The cache of a support set, with alpha and beta as configured."""
    return CacheClassifier(
        support.class_names,
        name_embeddings(encoder, support.class_names),
        encoder.logit_scale,
        normalize(support.image_features.mean(dim=1), dim=1),
        support.labels,
        config.alpha,
        config.beta,
    )


@torch.no_grad()
def searched(cache: CacheClassifier, support: Support, config: TipAdapterConfig) -> CacheClassifier:
    """The cache with the alpha and beta that classify the most validation shots.

    Only a strictly better pair replaces the cache's own, and the first of several best is taken, in the order
    of beta, then alpha; so ties and an empty validation set leave the cache's own.
    """
    features, labels = support.validation_features, support.validation_labels
    if not config.search or len(labels) == 0:
        return cache
    grid = torch.logspace(math.log10(GRID_START), math.log10(config.search_max), config.search_steps)
    text = cache.text_logits(features)
    most = int((cache.logits(features).argmax(dim=1) == labels).sum())
    alpha, beta = cache.alpha, cache.beta
    for tried in grid.tolist():
        logits = text + grid[:, None, None] * cache.votes(features, tried)
        right = (logits.argmax(dim=2) == labels).sum(dim=1)
        best = int(right.argmax())
        if right[best] > most:
            most, alpha, beta = int(right[best]), float(grid[best]), tried
    return replace(cache, alpha=alpha, beta=beta)
