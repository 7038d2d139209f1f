"""Where a saliency map points, against masks of the findings: pointing game, energy, IoU and Dice.

All take n maps in [0, 1] and n masks, both ``(n, H, W)``, and give one number an image. Where an image has no
mask (none of its pixels is inside) there is nothing to be found, and the number is NaN, left out of means and
counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

Maps = NDArray[np.floating[Any]]
Masks = NDArray[np.bool_]
Scores = NDArray[np.float64]

FIXED_THRESHOLD = 0.5
"""A map is read as a mask where it reaches half of its range, unless a threshold is sought."""
SET_THRESHOLDS: NDArray[np.float64] = np.linspace(0.0, 1.0, 51)
GAUSSIAN_SPREAD = 0.25
"""Standard deviation of the centred Gaussian, as a share of each side."""


def pointing_game(maps: Maps, masks: Masks, tolerance: float = 0.0) -> Scores:
    """Whether the map's maximum lies on the finding (Zhang et al., IJCV 2018, Excitation Backprop).

    Several pixels may share the maximum, as in a map of coarse cells; the score is then the share of them
    that hit, what one of them drawn at random would score on average.

    Args:
        maps: shape ``(n, H, W)``.
        masks: shape ``(n, H, W)``.
        tolerance: pixels from the finding (Euclidean) at which a maximum still hits; the paper has 15 in
            photographs some 500 pixels wide.

    Raises:
        ValueError: the shapes differ, a map has negative or undefined numbers, or the tolerance is negative.

    Example:
        >>> maps = np.array([[[0.0, 1.0, 0.0]], [[1.0, 1.0, 0.0]]])
        >>> pointing_game(maps, np.array([[[False, False, True]], [[True, False, False]]])).tolist()
        [0.0, 0.5]
        >>> pointing_game(maps[:1], np.array([[[False, False, True]]]), tolerance=1).tolist()
        [1.0]
    """
    _check(maps, masks)
    if tolerance < 0:
        raise ValueError(f"a tolerance of {tolerance} pixels is negative")
    scores = np.full(len(maps), np.nan)
    for i in _with_mask(masks):
        near = distance_transform_edt(~masks[i]) <= tolerance
        scores[i] = near[maps[i] == maps[i].max()].mean()
    return scores


def energy_inside(maps: Maps, masks: Masks) -> Scores:
    """Share of the map's sum that lies inside (the energy-based pointing game, Wang et al., Score-CAM, 2020).

    sum_{x in mask} M(x) / sum_x M(x); a uniform map scores the mask's share of the area
    (:func:`area_share`). NaN also for a map that is zero everywhere.

    Raises:
        ValueError: as :func:`pointing_game`.

    Example:
        >>> energy_inside(np.array([[[0.2, 0.6, 0.0]]]), np.array([[[False, True, True]]])).round(3).tolist()
        [0.75]
    """
    _check(maps, masks)
    total = maps.sum(axis=(1, 2), dtype=np.float64)
    inside = (maps * masks).sum(axis=(1, 2), dtype=np.float64)
    defined = masks.any(axis=(1, 2)) & (total > 0)
    return np.where(defined, inside / np.where(defined, total, 1.0), np.nan)


def area_share(masks: Masks) -> Scores:
    """The mask's share of the image: the energy inside that a uniform map has.

    Example:
        >>> area_share(np.array([[[False, True, True, False]]])).tolist()
        [0.5]
    """
    return _undefined_without_mask(masks.mean(axis=(1, 2)), masks)


def iou(maps: Maps, masks: Masks, threshold: float = FIXED_THRESHOLD) -> Scores:
    """Intersection over union of the mask and of ``M >= threshold`` (Jaccard 1912).

    Raises:
        ValueError: as :func:`pointing_game`.

    Example:
        >>> iou(np.array([[[0.4, 0.6, 0.9]]]), np.array([[[True, True, False]]])).round(3).tolist()
        [0.333]
    """
    _check(maps, masks)
    marked = maps >= threshold
    both, either = (marked & masks).sum(axis=(1, 2)), (marked | masks).sum(axis=(1, 2))
    return _undefined_without_mask(both / np.maximum(either, 1), masks)


def dice(maps: Maps, masks: Masks, threshold: float = FIXED_THRESHOLD) -> Scores:
    """2 |A and B| / (|A| + |B|) of the mask and of ``M >= threshold`` (Dice 1945): 2 IoU / (1 + IoU).

    Raises:
        ValueError: as :func:`pointing_game`.

    Example:
        >>> dice(np.array([[[0.4, 0.6, 0.9]]]), np.array([[[True, True, False]]])).tolist()
        [0.5]
    """
    return dice_of_iou(iou(maps, masks, threshold))


def best_iou(maps: Maps, masks: Masks) -> Scores:
    """IoU at the threshold that suits each image best, found among all values of its map.

    Optimistic: the threshold is chosen with the mask in view, image by image. It bounds what any threshold
    could reach and tells how well the map ranks pixels, not how well a map is cut without knowing the answer.

    Raises:
        ValueError: as :func:`pointing_game`.

    Example:
        >>> best_iou(np.array([[[0.4, 0.6, 0.9]]]), np.array([[[True, True, False]]])).round(3).tolist()
        [0.667]
    """
    _check(maps, masks)
    scores = np.full(len(maps), np.nan)
    for i in _with_mask(masks):
        values = maps[i].ravel()
        falling = np.argsort(-values, kind="stable")
        hits, marked = masks[i].ravel()[falling].cumsum(), np.arange(1, values.size + 1)
        # A threshold takes all pixels of one value or none: cuts lie where the sorted values change.
        cuts = np.flatnonzero(np.diff(values[falling], append=-1.0))
        scores[i] = (hits / (marked + masks[i].sum() - hits))[cuts].max()
    return scores


def best_dice(maps: Maps, masks: Masks) -> Scores:
    """Dice at the threshold that suits each image best: that of :func:`best_iou`, and as optimistic."""
    return dice_of_iou(best_iou(maps, masks))


def dice_of_iou(scores: Scores) -> Scores:
    """Dice = 2 IoU / (1 + IoU)."""
    return 2 * scores / (1 + scores)


class SetBest(NamedTuple):
    """One threshold for a set of images, chosen with all of their masks in view.

    Attributes:
        threshold: the one of the highest mean; of several, the lowest.
        scores: at that threshold, shape ``(n,)``, NaN without a mask.
    """

    threshold: float
    scores: Scores


def best_over_set(
    maps: Maps,
    masks: Masks,
    score: Callable[[Maps, Masks, float], Scores] = iou,
) -> SetBest:
    """The score (:func:`iou` or :func:`dice`) at the one threshold whose mean over the set is highest.

    Optimistic too, but less than a threshold an image: one number is chosen with the masks in view, not n.

    Raises:
        ValueError: as :func:`pointing_game`, or no image has a mask.

    Example:
        >>> best = best_over_set(np.array([[[0.4, 0.6, 0.9]]]), np.array([[[True, True, False]]]))
        >>> best.threshold, best.scores.round(3).tolist()
        (0.0, [0.667])
    """
    if not masks.any():
        raise ValueError("no image has a mask")
    table = np.stack([score(maps, masks, float(threshold)) for threshold in SET_THRESHOLDS])
    chosen = int(np.nanmean(table, axis=1).argmax())
    return SetBest(float(SET_THRESHOLDS[chosen]), table[chosen])


def uniform_maps(shape: tuple[int, int, int]) -> Maps:
    """The baseline that marks everything alike, ``(n, H, W)``: its energy inside is the area share."""
    return np.ones(shape, np.float32)


def random_maps(shape: tuple[int, int, int], cells: tuple[int, int], seed: int) -> Maps:
    """The baseline of chance: independent uniform numbers, one a cell of a grid as coarse as the tower's.

    Args:
        shape: ``(n, H, W)``.
        cells: rows and columns of the grid.
        seed: of the numbers.
    """
    n, height, width = shape
    drawn = np.random.default_rng(seed).random((n, *cells), np.float32)
    rows, columns = (
        np.arange(side) * cell // side for side, cell in zip((height, width), cells, strict=True)
    )
    return drawn[:, rows[:, None], columns]


def centred_gaussians(shape: tuple[int, int, int], spread: float = GAUSSIAN_SPREAD) -> Maps:
    """The baseline that knows only that findings lie near the middle: exp(-(x^2 + y^2) / (2 spread^2)).

    Args:
        shape: ``(n, H, W)``.
        spread: x and y are counted from the centre, in shares of the width and of the height.

    Example:
        >>> centred_gaussians((1, 1, 3), 0.5).round(3)
        array([[[0.801, 1.   , 0.801]]], dtype=float32)
    """
    y, x = ((np.arange(side) + 0.5) / side - 0.5 for side in shape[1:])
    bell = np.exp(-(y[:, None] ** 2 + x**2) / (2 * spread**2))
    return np.broadcast_to(bell.astype(np.float32), shape)


def _check(maps: Maps, masks: Masks) -> None:
    if maps.ndim != 3 or maps.shape != masks.shape:
        raise ValueError(
            f"maps of shape {maps.shape} and masks of shape {masks.shape} must both be (n, H, W)"
        )
    if masks.dtype != np.bool_:
        raise ValueError(f"masks must be of type bool, not {masks.dtype}")
    if not (np.isfinite(maps).all() and (maps >= 0).all()):
        raise ValueError("maps must be finite and nowhere negative")


def _with_mask(masks: Masks) -> list[int]:
    return np.flatnonzero(masks.any(axis=(1, 2))).tolist()


def _undefined_without_mask(scores: Scores, masks: Masks) -> Scores:
    return np.where(masks.any(axis=(1, 2)), scores, np.nan)
