"""Deletion and insertion: how the probability of a class follows the pixels that a map ranks first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.integrate import trapezoid
from torch import Tensor
from torchvision.transforms.functional import gaussian_blur

STEPS = 20
BLUR = 1 / 32
"""Standard deviation of the blur that insertion starts from, as a share of the longer side (7 of 224)."""

Probability = Callable[[Tensor], NDArray[np.float64]]
"""Pixels ``(m, 3, H, W)`` -> the probability of the explained class, ``(m,)``."""


@dataclass(frozen=True)
class Curves:
    """What the probability of a class is after each step, for one image.

    Attributes:
        deletion: shape ``(steps + 1,)``, from the whole image to its mean grey.
        insertion: shape ``(steps + 1,)``, from the blurred image to the whole one.
    """

    deletion: NDArray[np.float64]
    insertion: NDArray[np.float64]

    @property
    def areas(self) -> tuple[float, float]:
        """Areas under both curves by the trapezoid, over the share of pixels, in [0, 1]."""
        return _area(self.deletion), _area(self.insertion)


def _area(curve: NDArray[np.float64]) -> float:
    return float(trapezoid(curve, dx=1 / STEPS))


def ranks(saliency: NDArray[np.floating[Any]], seed: int) -> NDArray[np.int64]:
    """The place of every pixel in the map's order, 0 for the highest; ties in a seeded random order.

    Ties by position would walk over the image from its upper left corner, which is a map of its own.

    Args:
        saliency: shape ``(H, W)``.
        seed: of the order among equals.

    Example:
        >>> ranks(np.array([[0.1, 0.9], [0.5, 0.2]]), seed=0).tolist()
        [[3, 0], [1, 2]]
    """
    values = saliency.ravel()
    shuffled = np.random.default_rng(seed).permutation(values.size)
    order = shuffled[np.argsort(-values[shuffled], kind="stable")]
    places = np.empty(values.size, np.int64)
    places[order] = np.arange(values.size)
    return places.reshape(saliency.shape)


def curves(probability: Probability, pixels: Tensor, places: NDArray[np.int64]) -> Curves:
    """Deletion and insertion curves of one image (Petsiuk et al., RISE, BMVC 2018).

    Deletion puts the image's mean grey (its mean in every channel) in place of the highest pixels, insertion
    puts them back into a blurred image, 1/20 of all pixels a step. A map that names what the class's
    probability rests on makes the first fall and the second rise early. What "early" is depends on image and
    classifier: compare the areas with those of a random order.

    Both fillings commute with the tower's normalisation of pixels, an affine map of each channel, so pixels
    may be normalised. The 41 images go to ``probability`` together.

    Args:
        probability: of the explained class.
        pixels: shape ``(3, H, W)``, normalised or not.
        places: of every pixel in the order, shape ``(H, W)``, as :func:`ranks` gives them.
    """
    taken = torch.from_numpy(places) < torch.tensor(_pixels_by_step(places.size))[:, None, None, None]
    mean = pixels.mean(dim=(1, 2), keepdim=True).expand_as(pixels)
    deleted = torch.where(taken, mean, pixels)
    inserted = torch.where(taken, pixels, blurred(pixels))
    found = probability(torch.cat([deleted, inserted[:-1]]))
    whole = found[:1]  # Where all pixels are in, the image is the one that deletion starts from.
    return Curves(found[: STEPS + 1], np.concatenate([found[STEPS + 1 :], whole]))


def blurred(pixels: Tensor) -> Tensor:
    """An image ``(3, H, W)`` without its details: a Gaussian of 1/32 of the longer side."""
    sigma = BLUR * max(pixels.shape[1:])
    width = min(2 * round(3 * sigma) + 1, 2 * min(pixels.shape[1:]) - 1)
    soft: Tensor = gaussian_blur(pixels, [width, width], [sigma, sigma])
    return soft


def _pixels_by_step(pixels: int) -> list[int]:
    return [round(step * pixels / STEPS) for step in range(STEPS + 1)]
