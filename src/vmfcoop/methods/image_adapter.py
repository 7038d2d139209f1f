"""What methods share that learn on the image side: adapted image features before the embeddings of names."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Self

from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, History
from vmfcoop.methods.zero_shot import name_embeddings


@dataclass
class ImageAdapterClassifier(Fitted):
    """Logits ``s f' . t_i`` with an adapted image feature f'; new classes by the embeddings of their names.

    Attributes:
        class_names: C names.
        class_embeddings: t, unit rows, shape ``(C, d)``.
        logit_scale: s.
        encoder: for the embeddings of new class names.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    logit_scale: float
    encoder: DualEncoder
    history: History = field(default_factory=list, kw_only=True)

    @abstractmethod
    def adapted(self, image_features: Tensor) -> Tensor:
        """f', unit rows, shape ``(n, d)``."""

    def logits(self, image_features: Tensor) -> Tensor:
        return self.logit_scale * self.adapted(image_features) @ self.class_embeddings.T

    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> Self:
        embeddings = name_embeddings(self.encoder, class_names)
        return replace(self, class_names=tuple(class_names), class_embeddings=embeddings, history=[])
