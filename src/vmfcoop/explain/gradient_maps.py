"""Maps from the last spatial layer and its gradients: Grad-CAM and gScoreCAM."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.backbones.frozen import spatial_map
from vmfcoop.errors import UserError
from vmfcoop.explain.map_method import MapConfig, MapMethod, traced
from vmfcoop.explain.targets import Target
from vmfcoop.features import FittingBatches

MASKED_BYTES = 2**26
"""Bytes of masked images that are made at once."""


def activations_and_gradients(encoder: DualEncoder, pixels: Tensor, target: Target) -> tuple[Tensor, Tensor]:
    """Activations of the last spatial layer and the score's derivatives by them, both ``(n, c, h, w)``, CPU.

    Raises:
        UserError: the family names no such layer.
    """
    trace = traced(encoder, pixels)
    if trace.spatial is None:
        raise UserError(
            f"The backbone '{encoder.name}' offers no spatial layer; take --map occlusion or rise."
        )
    (gradients,) = trace.gradients(target.score(trace.features), [trace.spatial])
    # A layer behind the last block is also given the tokens of the blocks before it; the last are its own.
    own = (part[-len(pixels) :].detach() for part in (trace.spatial, gradients))
    activations, slopes = (spatial_map(part).float().cpu() for part in own)
    return activations, slopes


class GradCAM(MapMethod):
    r"""Grad-CAM: channels weighted by the score's mean derivative by them.

    .. math:: M = \mathrm{ReLU} \sum_k \alpha_k A_k, \qquad
              \alpha_k = \frac{1}{hw} \sum_{ij} \frac{\partial S}{\partial A_{kij}}

    In a ViT A are the patch tokens that the last attention reads.
    """

    name = "gradcam"
    title = "Grad-CAM"
    source = "Selvaraju et al., ICCV 2017"
    reads_layer = True

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        activations, gradients = activations_and_gradients(encoder, pixels, target)
        weights = gradients.mean(dim=(2, 3), keepdim=True)
        return (weights * activations).sum(dim=1).clamp(min=0)


class GScoreCAMConfig(MapConfig):
    """Settings of gScoreCAM.

    Attributes:
        channels: how many are tried, those of the largest mean gradient.
    """

    channels: int = Field(300, ge=1)


class GScoreCAM(MapMethod):
    r"""gScoreCAM: Score-CAM over the channels of largest mean gradient; the paper's choice for its figures.

    .. math:: M = \mathrm{ReLU} \sum_{k \in K} \alpha_k A_k, \qquad
              \alpha = \mathrm{softmax}_k\, S(x \odot \mathrm{up}(\bar A_k))

    K are the channels of largest mean gradient; :math:`\bar A_k` is a channel scaled to [0, 1], enlarged to
    the image's size and laid over the image, which is the backbone's mean colour where the channel is 0.
    """

    name = "gscorecam"
    title = "gScoreCAM"
    source = "Chen et al., ACCV 2022; Score-CAM: Wang et al., CVPR Workshops 2020"
    Config = GScoreCAMConfig
    reads_layer = True

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        activations, gradients = activations_and_gradients(encoder, pixels, target)
        batches = FittingBatches(encoder)
        return torch.stack(
            [
                self._map(image, channels, slopes, target, batches)
                for image, channels, slopes in zip(pixels, activations, gradients, strict=True)
            ]
        )

    def _map(
        self, image: Tensor, activations: Tensor, gradients: Tensor, target: Target, batches: FittingBatches
    ) -> Tensor:
        most = min(self.config.channels, len(activations))
        chosen = activations[gradients.mean(dim=(1, 2)).topk(most).indices]
        # Masks too are made some at a time: 4096 of them are 822 MB at 224 pixels.
        masks = (
            unit_range(interpolate(part[None], image.shape[1:], mode="bilinear")[0])
            for part in chosen.split(masked_at_once(image))
        )
        scores = torch.cat([masked_scores(image, part, target, batches) for part in masks])
        weights = scores.softmax(dim=0)
        return (weights[:, None, None] * chosen).sum(dim=0).clamp(min=0)


def masked_at_once(image: Tensor) -> int:
    """How many masked copies of an image ``(3, H, W)`` are made at once."""
    return max(1, MASKED_BYTES // (image.numel() * image.element_size()))


@torch.no_grad()
def masked_scores(
    image: Tensor, masks: Tensor, target: Target, batches: FittingBatches, hidden: Tensor | float = 0.0
) -> Tensor:
    """Scores of an image ``(3, H, W)`` seen through m masks ``(m, H, W)`` in [0, 1] -> ``(m,)``.

    Memory is bounded whatever m is: masked images are made and encoded some at a time.

    Args:
        image: pixels.
        masks: 1 where the image is seen.
        target: the score.
        batches: the image tower.
        hidden: what is seen where a mask is 0: pixels ``(3, H, W)``, or 0 for the backbone's mean colour.
    """
    parts = masks.split(masked_at_once(image))
    features = [batches.encode(hidden + part[:, None] * (image - hidden)) for part in parts]
    return target.score(torch.cat(features))


def unit_range(maps: Tensor) -> Tensor:
    """Each map ``(..., h, w)`` scaled to [0, 1]; one that is the same everywhere becomes 0.

    Example:
        >>> unit_range(torch.tensor([[[1.0, 3.0]], [[2.0, 2.0]]])).flatten()
        tensor([0., 1., 0., 0.])
    """
    low, high = (end(maps, dim=(-2, -1), keepdim=True) for end in (torch.amin, torch.amax))
    span = high - low
    return torch.where(span > 0, (maps - low) / span.where(span > 0, 1), 0)
