"""What of an image an encoder sees, and a map of what it sees laid back onto the image.

Nothing here knows a family's preprocessing: images whose grey tells the place are sent through it.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.backbones.base import DualEncoder

FEWEST_PIXELS = 32
"""Of a side that is measured; of a smaller image the same image enlarged is."""
FEWEST_COLUMNS = 3
KERNEL_REACH = 2
"""Source pixels (or columns, where they are larger) that bicubic interpolation reads beside one."""
PADDED = 0.98
GOLDEN = (math.sqrt(5) - 1) / 2
"""Share of a grey level from column to column: with it rounding errors spread evenly and cancel."""
BLACK, WHITE = 28, 228
"""Of the images that are sent through: interpolation may overshoot at padding without being cut off."""
DITHER = 8
RAMPS = 4
"""Steep ramps, one after the other, tell more than one that rises over all that is seen."""


class Box(NamedTuple):
    """A rectangle in pixels of the original image, which begins at (0, 0); it may reach beyond the image."""

    left: float
    top: float
    right: float
    bottom: float


Numbers = NDArray[np.floating[Any]]
Interval = tuple[float, float]

_boxes: WeakKeyDictionary[DualEncoder, dict[tuple[int, int], Box]] = WeakKeyDictionary()


def seen_box(encoder: DualEncoder, size: tuple[int, int]) -> Box:
    """The rectangle of an image that becomes the encoder's input.

    Inside the image where preprocessing crops, around it where preprocessing pads. Preprocessing is taken to
    scale each axis evenly; what it does is measured: a white and a black image tell what is padding, grey
    ramps tell which column of the original lies under each column of the input, and a line is fitted to
    that by least squares, away from the image's edges, where interpolation bends it.

    Args:
        encoder: its ``preprocess`` is called; nothing is encoded. A result is kept for the next image.
        size: width and height of the image.
    """
    known = _boxes.setdefault(encoder, {})
    if size not in known:
        probe = _Probe(encoder, size)
        (left, right), (top, bottom) = probe.interval(0), probe.interval(1)
        known[size] = Box(left, top, right, bottom)
    return known[size]


class _Probe:
    """Images of one size whose grey depends on one coordinate, seen through an encoder's preprocessing."""

    def __init__(self, encoder: DualEncoder, size: tuple[int, int]) -> None:
        self._encoder, self._size = encoder, size
        self._black = self._seen(np.full(size[::-1], BLACK, np.uint8))
        # Zero where preprocessing pads, with whatever colour.
        self._range = self._seen(np.full(size[::-1], WHITE, np.uint8)) - self._black

    def interval(self, axis: int) -> Interval:
        """First and last coordinate along an axis (0: x, 1: y) that the input shows."""
        coverage = self._coverage(axis)
        if coverage.min() < PADDED * coverage.max():
            return _padded_interval(coverage, self._size[axis])
        times = math.ceil(FEWEST_PIXELS / self._size[axis])
        if times == 1:
            return self._cropped_interval(axis)
        enlarged = _Probe(self._encoder, (times * self._size[0], times * self._size[1]))
        first, last = enlarged._cropped_interval(axis)
        return first / times, last / times

    def _coverage(self, axis: int) -> Numbers:
        """How much of the image each column (or row) of the input shows, in some unit."""
        return np.asarray(self._range.sum(axis=axis))

    def _cropped_interval(self, axis: int) -> Interval:
        """The interval along an axis without padding."""
        length, columns = self._size[axis], self._range.shape[1 - axis]
        places = np.arange(columns) + 0.5
        slope, start = _line(places, self._coordinates(axis, length / 2, length / (WHITE - BLACK)))
        # Of a long image a few pixels only may be seen, within one level of the ramp.
        slope = max(slope, length / (WHITE - BLACK) / columns)
        middle = start + slope * columns / 2
        start = middle - slope * columns / 2
        reach = KERNEL_REACH * max(1.0, slope)
        part = slope * columns / RAMPS
        per_column = slope * (WHITE - BLACK) / (part + 2 * reach)
        step = slope / (max(0, math.floor(per_column - GOLDEN)) + min(GOLDEN, per_column))
        known, seen = np.zeros(columns, bool), np.zeros(columns)
        for ramp in range(RAMPS):
            centre = start + part * (ramp + 0.5)
            found = self._coordinates(axis, centre, step)
            on_ramp = np.abs(found - centre) < part / 2 + slope
            seen[on_ramp], known = found[on_ramp], known | on_ramp
        used = known & (seen > reach) & (seen < length - reach)
        if used.sum() < FEWEST_COLUMNS:
            return 0.0, float(length)
        slope, start = _line(places[used], seen[used])
        return start, start + slope * columns

    def _coordinates(self, axis: int, centre: float, step: float) -> Numbers:
        """The coordinate under each column (or row) of the input, by a ramp of one grey level a step."""
        grey = (BLACK + WHITE) / 2
        levels = grey + (np.arange(self._size[axis]) + 0.5 - centre) / step
        # Rows (or columns) are rounded at different thresholds, which cancels in their sum.
        thresholds = (np.arange(DITHER) + 0.5) / DITHER - 0.5
        stripes = np.rint(levels + thresholds[:, None]).clip(BLACK, WHITE).astype(np.uint8)
        image = stripes[np.arange(self._size[1 - axis]) % DITHER]
        ramp = self._seen(image if axis == 0 else image.T) - self._black
        share = ramp.sum(axis=axis) / self._coverage(axis)
        return np.asarray(centre + step * (WHITE - BLACK) * (share - 0.5))

    def _seen(self, grey: NDArray[np.uint8]) -> Numbers:
        """A preprocessed grey image, summed over channels, ``(H, W)``."""
        image = Image.fromarray(np.ascontiguousarray(grey)).convert("RGB")
        return np.asarray(self._encoder.preprocess(image).double().sum(dim=0))


def _padded_interval(coverage: Numbers, length: int) -> Interval:
    """The interval along a padded axis: what is padded is not cropped, so all of the length is seen.

    The image's edges lie where the coverage passes half of its level, between the centres of two columns.
    """
    half = float(np.median(coverage[coverage > coverage.max() / 2])) / 2
    above = np.flatnonzero(coverage > half)
    first, last = _crossing(coverage, half, above[0], -1), _crossing(coverage, half, above[-1], 1)
    slope = length / (last - first)
    return -slope * first, slope * (len(coverage) - first)


def _crossing(coverage: Numbers, half: float, column: int, side: int) -> float:
    """Where beside a column, that has it, the coverage passes half of its level.

    The input's first and last column have nothing beside them: there, padding is the part that they lack.
    """
    beside = column + side
    if not 0 <= beside < len(coverage):
        lacking = max(0.0, 1 - coverage[column] / (2 * half))
        return float(max(column, beside) - side * lacking)
    share = (coverage[column] - half) / (coverage[column] - coverage[beside])
    return float(column + 0.5 + side * share)


def _line(x: Numbers, y: Numbers) -> tuple[float, float]:
    """Slope and intercept of the least-squares line."""
    centred = x - x.mean()
    slope = float((centred * y).sum() / max(float((centred**2).sum()), 1e-12))
    return slope, float(y.mean() - slope * x.mean())


def place_map(
    map: NDArray[np.float32], box: tuple[float, float, float, float], size: tuple[int, int]
) -> NDArray[np.float32]:
    """A map of an encoder's input, on the canvas of the original image; 0 where the encoder sees nothing.

    Interpolated linearly, and averaged where the original is the coarser of the two, so that values stay
    within the map's own. What of the map lies beyond the image, on padding, is cut off.

    Args:
        map: values in [0, 1], shape ``(H, W)``.
        box: as :func:`seen_box` gives it.
        size: width and height of the original.

    Returns:
        Shape ``(height, width)``.

    Example:
        >>> place_map(np.ones((4, 4), np.float32), (1.0, 0.0, 3.0, 2.0), (4, 2))
        array([[0., 1., 1., 0.],
               [0., 1., 1., 0.]], dtype=float32)
    """
    placed = np.zeros((size[1], size[0]), np.float32)
    x0, x1 = _inside(box[0], box[2], size[0])
    y0, y1 = _inside(box[1], box[3], size[1])
    if x0 >= x1 or y0 >= y1:
        return placed
    per_x = map.shape[1] / (box[2] - box[0])
    per_y = map.shape[0] / (box[3] - box[1])
    # The outermost pixels reach beyond the box by up to half of themselves.
    pad_x, pad_y = math.ceil(per_x / 2) + 1, math.ceil(per_y / 2) + 1
    padded = Image.fromarray(np.pad(map.astype(np.float32), ((pad_y, pad_y), (pad_x, pad_x)), mode="edge"))
    region = (
        pad_x + (x0 - box[0]) * per_x,
        pad_y + (y0 - box[1]) * per_y,
        pad_x + (x1 - box[0]) * per_x,
        pad_y + (y1 - box[1]) * per_y,
    )
    resized = padded.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=region)
    placed[y0:y1, x0:x1] = np.clip(np.asarray(resized), 0.0, 1.0)
    return placed


def _inside(first: float, last: float, length: int) -> tuple[int, int]:
    """The pixels of an image whose centres lie within an interval, as a range."""
    return max(0, math.ceil(first - 0.5)), min(length, math.floor(last - 0.5) + 1)
