"""A mean over images and its interval by the bootstrap, whole groups (patients) at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.evaluation.intervals import CONFIDENCE, DRAWS, resampled_counts


@dataclass(frozen=True)
class Estimate:
    """The mean of a number over images.

    Attributes:
        mean: over the images where it is defined; None where it is on none.
        low, high: ends of its 95 % interval; None where fewer than two groups have the number.
        images: images where it is defined.
        undefined: images where it is not, left out of all of the above.
    """

    mean: float | None
    low: float | None
    high: float | None
    images: int
    undefined: int

    def as_json(self) -> dict[str, float | int | None]:
        """Plain numbers, rounded to six decimals."""
        ends = {"mean": self.mean, "low": self.low, "high": self.high}
        rounded = {key: None if value is None else round(value, 6) for key, value in ends.items()}
        return {**rounded, "images": self.images, "undefined": self.undefined}


def estimate(values: ArrayLike, groups: NDArray[np.str_] | None = None, seed: int = 0) -> Estimate:
    """Mean and 95 % percentile interval of the bootstrap (Efron 1979), NaN left out and counted.

    Images are drawn anew with replacement, and where there are groups whole groups are: images of one patient
    are no independent witnesses. For the paired comparison of two maps give the differences, image by image.

    Args:
        values: one number an image, shape ``(n,)``.
        groups: the group of each image, shape ``(n,)``; without, each image is one of its own.
        seed: of the draws.

    Example:
        >>> estimate([0.0, 1.0, float("nan")])
        Estimate(mean=0.5, low=0.0, high=1.0, images=2, undefined=1)
    """
    numbers = np.asarray(values, np.float64)
    defined = ~np.isnan(numbers)
    kept = numbers[defined]
    if not len(kept):
        return Estimate(None, None, None, 0, len(numbers))
    names = np.arange(len(numbers)) if groups is None else groups
    low, high = _interval(kept, names[defined], seed)
    return Estimate(float(kept.mean()), low, high, len(kept), int((~defined).sum()))


def _interval(
    values: NDArray[np.float64], names: NDArray[Any], seed: int
) -> tuple[float | None, float | None]:
    group_of = np.unique(names, return_inverse=True)[1]
    sizes = np.bincount(group_of)
    if len(sizes) < 2:
        return None, None
    sums = np.bincount(group_of, values)
    blocks = resampled_counts(group_of, DRAWS, seed)
    means = np.concatenate([(times @ sums) / (times @ sizes) for times in blocks])
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
