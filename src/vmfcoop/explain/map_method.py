"""What a saliency method is: settings, and maps of images for a score."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.backbones.trace import ImageTrace
from vmfcoop.errors import UserError
from vmfcoop.explain.targets import Target

TRACED_AT_ONCE = 2
"""Images whose graph is held at once: of a ViT-B/16 it takes 130 to 160 MB an image, and more at once are no
faster on a CPU."""


class MapConfig(BaseModel):
    """Settings of a saliency method.

    Attributes:
        seed: of everything random.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)

    seed: int = 0


class MapMethod(ABC):
    """One way to make saliency maps.

    Attributes:
        name: as ``--map`` takes it.
        title: for tables and captions.
        source: where it was published.
        Config: its settings.
        reads_attention: whether it needs a ViT.
        reads_layer: whether it needs the last spatial layer.
        reads_score: whether the map depends on the score at all.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    source: ClassVar[str]
    Config: ClassVar[type[MapConfig]] = MapConfig
    reads_attention: ClassVar[bool] = False
    reads_layer: ClassVar[bool] = False
    reads_score: ClassVar[bool] = True

    def __init__(self, config: Any = None) -> None:
        self.config: Any = config if config is not None else self.Config()

    @abstractmethod
    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        """Pixels ``(n, 3, H, W)`` -> evidence for the score by place, ``(n, h, w)``, at any resolution.

        Larger is more; what speaks against the score is 0.

        Raises:
            UserError: the image tower does not offer what the method reads.
        """


def traced(encoder: DualEncoder, pixels: Tensor) -> ImageTrace:
    """A trace of the image tower.

    Raises:
        UserError: the family cannot be looked into.
    """
    try:
        return encoder.trace_images(pixels)
    except NotImplementedError as error:
        raise UserError(
            f"The image tower of '{encoder.name}' cannot be looked into; take --map occlusion or rise."
        ) from error
