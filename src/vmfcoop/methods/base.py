"""What a method is: a validated config, ``fit`` on a support set, and a fitted classifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.progress import ProgressReport, no_progress

History = list[dict[str, float]]


@dataclass(frozen=True)
class Support:
    """What a method may see: the support set, the names and descriptions of its classes, validation shots.

    Attributes:
        image_features: unit features of V views an image, shape ``(n, V, d)``; view 0 is not augmented.
        labels: class indices, shape ``(n,)``, int64; every class occurs.
        class_names: C names as they go into a prompt.
        descriptions: C tuples of an LLM's descriptions, or of filled templates.
        validation_features: unit features of the validation shots, shape ``(m, d)``; m may be 0.
        validation_labels: shape ``(m,)``, int64.
    """

    image_features: Tensor
    labels: Tensor
    class_names: tuple[str, ...]
    descriptions: tuple[tuple[str, ...], ...]
    validation_features: Tensor
    validation_labels: Tensor

    @property
    def shots(self) -> int:
        """Images of the smallest class (K)."""
        return int(torch.bincount(self.labels, minlength=len(self.class_names)).min())


class MethodConfig(BaseModel):
    """Settings of a method; each is a field, so ``--set key=value`` and recipes check them.

    Attributes:
        seed: seed of everything random in training.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    seed: int = 0


class Fitted(ABC):
    """A fitted classifier: from unit image features to logits.

    Attributes:
        class_names: C names.
        history: one row an epoch (loss terms, learning rate), empty where nothing is trained.
    """

    class_names: tuple[str, ...]
    history: History

    @abstractmethod
    def logits(self, image_features: Tensor) -> Tensor:
        """Unit image features ``(n, d)`` -> logits ``(n, C)``, float32."""

    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> Fitted:
        """The classifier of other classes, where the method generalises to new ones.

        Args:
            class_names: their names.
            descriptions: texts about each, for methods that classify by them; without, filled templates.

        Raises:
            UserError: it does not.
        """
        raise UserError(
            "This classifier holds what it learned of its own classes only and cannot take new class names."
        )

    @abstractmethod
    def state(self) -> dict[str, Tensor]:
        """What was learned and what is needed to classify, as named CPU tensors, small beside the towers."""


@dataclass
class EmbeddingClassifier(Fitted):
    """Logits ``s f . P``: one unit class embedding a class.

    Attributes:
        class_names: C names.
        class_embeddings: P, unit rows, shape ``(C, d)``.
        logit_scale: s.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    logit_scale: float
    history: History = field(default_factory=list)

    def logits(self, image_features: Tensor) -> Tensor:
        return self.logit_scale * image_features @ self.class_embeddings.T

    def state(self) -> dict[str, Tensor]:
        scale = torch.tensor(self.logit_scale, dtype=torch.float64)
        return {"class_embeddings": self.class_embeddings, "logit_scale": scale}


@dataclass
class LinearClassifier(Fitted):
    """Logits ``f W^T + b``.

    Attributes:
        class_names: C names.
        weight: W, shape ``(C, d)``, float32.
        bias: b, shape ``(C,)``, float32.
        extra: further learned tensors, kept in the state.
    """

    class_names: tuple[str, ...]
    weight: Tensor
    bias: Tensor
    history: History = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, image_features: Tensor) -> Tensor:
        return image_features @ self.weight.T + self.bias

    def state(self) -> dict[str, Tensor]:
        return {"weight": self.weight, "bias": self.bias, **self.extra}

    @classmethod
    def restored(cls, state: Mapping[str, Tensor], class_names: Sequence[str]) -> LinearClassifier:
        """The classifier that :meth:`state` was taken from."""
        extra = {key: value for key, value in state.items() if key not in ("weight", "bias")}
        return cls(tuple(class_names), state["weight"], state["bias"], extra=extra)


ConfigT = TypeVar("ConfigT", bound=MethodConfig)
SettingsT = TypeVar("SettingsT", bound=BaseModel)


class Method(ABC, Generic[ConfigT]):
    """One way to adapt a frozen dual encoder to a support set; a subclass is one file.

    Attributes:
        name: as ``--method`` takes it.
        title: a line for tables.
        Config: its settings. A field ``epochs`` or ``iterations`` says that the method is trained in steps,
            so that a budget can set it.
        new_classes: whether what it fits classifies classes that it never saw (:meth:`Fitted.for_classes`).
        reads_descriptions: whether the texts about the classes change what it fits; others know names alone.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    Config: ClassVar[type[MethodConfig]]
    new_classes: bool = False
    reads_descriptions: bool = False

    def __init__(self, config: ConfigT | None = None) -> None:
        self.config: ConfigT = config if config is not None else self.Config()  # type: ignore[assignment]

    @abstractmethod
    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        """Adapt to a support set; the encoder is left as it was, bit for bit."""

    def fit_seeds(
        self,
        supports: Sequence[Support],
        seeds: Sequence[int],
        encoder: DualEncoder,
        progress: ProgressReport = no_progress,
    ) -> list[Fitted]:
        """Several fits that differ in support set and seed alone, one after the other.

        Methods whose trainings can share the text tower's work override this; the results are the same.
        """
        configs = [self.config.model_copy(update={"seed": seed}) for seed in seeds]
        return [
            type(self)(config).fit(support, encoder, progress)
            for config, support in zip(configs, supports, strict=True)
        ]

    def warm(self, encoder: DualEncoder) -> None:
        """Compute, for the encoder's cache, what every fit on this encoder shares; by default nothing."""

    @abstractmethod
    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        """The fitted classifier whose :meth:`Fitted.state` this is; its logits are the same to the bit."""


def make_config(config_class: type[SettingsT], settings: Mapping[str, Any]) -> SettingsT:
    """Settings by name -> a validated config (strings are read as what the field asks).

    Raises:
        UserError: an unknown key (with the nearest names) or a value that does not fit.
    """
    for key in settings:
        if key not in config_class.model_fields:
            raise unknown_name("setting", key, config_class.model_fields)
    try:
        return config_class(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise UserError(f"The setting '{key}' cannot be {first['input']!r}: {first['msg']}.") from error
