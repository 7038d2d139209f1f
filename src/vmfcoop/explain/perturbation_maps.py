"""Maps of any tower, from its answers to altered images: occlusion and RISE."""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate, pad
from torchvision.transforms.v2.functional import gaussian_blur

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.explain.gradient_maps import MASKED_BYTES, masked_scores
from vmfcoop.explain.map_method import MapConfig, MapMethod
from vmfcoop.explain.targets import Target
from vmfcoop.features import FittingBatches

BLUR = 0.1
"""Standard deviation of the blur that hides, as a share of the image's shorter side."""


class PerturbationConfig(MapConfig):
    """Settings of methods that hide parts of an image.

    Attributes:
        fill: what stands in a hidden part: ``blur``, the image itself out of focus, or ``mean``, the
            backbone's mean colour, a grey patch that on a black ground is a thing of its own.
    """

    fill: Literal["blur", "mean"] = "blur"


class OcclusionConfig(PerturbationConfig):
    """Settings of occlusion.

    Attributes:
        window: side of the square that hides a part, as a share of the image's shorter side.
        stride: from one place of the square to the next, as a share of its side.
    """

    window: float = Field(0.15, gt=0, le=1)
    stride: float = Field(0.5, gt=0, le=1)


class Occlusion(MapMethod):
    """Occlusion: how far the score falls while a square is hidden, out of focus or in the mean colour.

    The mean over the squares that hide a pixel, as captum computes it; where the score rises, 0.
    """

    name = "occlusion"
    title = "Occlusion"
    source = "Zeiler & Fergus, ECCV 2014"
    Config = OcclusionConfig

    @torch.no_grad()
    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        from captum.attr import Occlusion as CaptumOcclusion

        batches = FittingBatches(encoder)
        side = max(1, round(self.config.window * min(pixels.shape[2:])))
        step = max(1, round(self.config.stride * side))
        occlusion = CaptumOcclusion(lambda images: target.score(batches.encode(images)))
        falls = occlusion.attribute(
            pixels,
            baselines=hidden(pixels, self.config.fill),
            sliding_window_shapes=(3, side, side),
            strides=(3, step, step),
            perturbations_per_eval=max(1, MASKED_BYTES // (4 * pixels.numel())),
        )
        found: Tensor = falls[:, 0].clamp(min=0)
        return found


class RiseConfig(PerturbationConfig):
    """Settings of RISE.

    Attributes:
        masks: how many random masks; the map's noise falls with their square root.
        cells: of a mask, along each side.
        keep: probability that a cell is seen.
    """

    masks: int = Field(500, ge=1)
    cells: int = Field(8, ge=2)
    keep: float = Field(0.5, gt=0, lt=1)


class Rise(MapMethod):
    r"""RISE: the score's covariance with being seen, over random masks.

    .. math:: M = \frac{1}{N p} \sum_i (S(x \odot m_i) - \bar S)\, (m_i - p)

    The published estimate takes neither mean off: in expectation it is this one and a constant, with more
    variance. The same masks serve all images.
    """

    name = "rise"
    title = "RISE"
    source = "Petsiuk, Das & Saenko, BMVC 2018"
    Config = RiseConfig

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        height, width = pixels.shape[2:]
        masks = random_masks(self.config, height, width)
        batches = FittingBatches(encoder)
        found = []
        for image, fill in zip(pixels, hidden(pixels, self.config.fill), strict=True):
            scores = masked_scores(image, masks, target, batches, fill)
            rises = (scores - scores.mean()) / (len(masks) * self.config.keep)
            found.append(torch.einsum("m,mhw->hw", rises.to(masks), masks - self.config.keep))
        return torch.stack(found).clamp(min=0)


def hidden(pixels: Tensor, fill: str) -> Tensor:
    """What stands in hidden parts of images, pixels ``(n, 3, H, W)``; see :class:`PerturbationConfig`."""
    if fill == "mean":
        return torch.zeros_like(pixels)
    sigma = BLUR * min(pixels.shape[2:])
    size = 2 * round(2 * sigma) + 1
    padded = pad(pixels, (size // 2,) * 4, mode="replicate")
    blurred: Tensor = gaussian_blur(padded, [size, size], [sigma, sigma])
    inner = (slice(size // 2, -(size // 2)),) * 2
    return blurred[:, :, inner[0], inner[1]]


def random_masks(config: RiseConfig, height: int, width: int) -> Tensor:
    """Grids of seen and hidden cells, enlarged smoothly, cut at random offsets: ``(N, height, width)``."""
    draw = torch.Generator().manual_seed(config.seed)
    cell = [math.ceil(side / config.cells) for side in (height, width)]
    grids = (torch.rand(config.masks, 1, config.cells, config.cells, generator=draw) < config.keep).float()
    size = [(config.cells + 1) * side for side in cell]
    masks = torch.empty(config.masks, height, width)
    offsets = [torch.randint(side, (config.masks,), generator=draw).tolist() for side in cell]
    for row, (grid, top, left) in enumerate(zip(grids, *offsets, strict=True)):
        large = interpolate(grid[None], size, mode="bilinear", align_corners=False)[0, 0]
        masks[row] = large[top : top + height, left : left + width]
    return masks
