"""From measured values to the grey of a display: windows, robust ranges, square pixels, limits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.errors import UserError

WindowShape = Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]

ROBUST_PERCENTILES = (0.5, 99.5)
"""Percentiles shown as black and white where neither the file nor the user gives a window."""

_SQUARE_WITHIN = 0.01


@dataclass(frozen=True)
class Window:
    """Range of values that is shown: ``center - width / 2`` is black, ``center + width / 2`` white.

    Attributes:
        center: Middle of the range, for CT in Hounsfield units (HU).
        width: Length of the range, above 0.
        name: Name among ``CT_WINDOWS`` that the window was chosen by.

    Example:
        >>> str(Window(40.0, 400.0)), str(Window(-600.0, 1500.0, "lung"))
        ('40,400', 'lung')
    """

    center: float
    width: float
    name: str | None = None

    def __str__(self) -> str:
        return self.name or f"{_plain(self.center)},{_plain(self.width)}"


CT_WINDOWS: dict[str, Window] = {
    name: Window(center, width, name)
    for name, center, width in (
        ("lung", -600.0, 1500.0),
        ("bone", 400.0, 1800.0),
        ("soft-tissue", 40.0, 400.0),
        ("brain", 40.0, 80.0),
    )
}
"""Windows of CT by name, in Hounsfield units.

The values lie in the ranges that Radiopaedia's article "Windowing (CT)" calls typical (lungs W 1500 L -600,
bone W 1800 L 400, soft tissues W 350 to 400 L 20 to 60, brain W 80 L 40); hospitals differ in them.
"""


def parse_window(text: str) -> Window:
    """The window that a user names: ``center,width`` or a name of ``CT_WINDOWS``.

    Raises:
        UserError: It is neither, or the width is not above 0.

    Example:
        >>> parse_window("Soft tissue").width, parse_window("-600,1500").center
        (400.0, -600.0)
    """
    name = text.strip().lower().replace(" ", "-").replace("_", "-")
    if name in CT_WINDOWS:
        return CT_WINDOWS[name]
    try:
        center, width = (float(number) for number in text.split(","))
    except ValueError:
        center = width = math.nan
    if not (math.isfinite(center) and math.isfinite(width) and width > 0):
        raise UserError(
            f"'{text}' is no window; give center,width with a width above 0, such as 40,400, "
            f"or for CT one of {', '.join(CT_WINDOWS)}."
        )
    return Window(center, width)


def apply_window(
    values: NDArray[Any], window: Window, shape: WindowShape = "LINEAR_EXACT"
) -> NDArray[np.float64]:
    """Values of any shape to grey in [0, 1], 0 being black; values that are not finite become black.

    The three shapes are the VOI LUT functions of DICOM PS3.3 C.11.2.1.2 and C.11.2.1.3, for centre c and
    width w, the first two clipped to [0, 1]:

    - ``LINEAR_EXACT``: ``(x - c) / w + 1/2``
    - ``LINEAR``, DICOM's default, made for integers: ``(x - (c - 1/2)) / (w - 1) + 1/2``; it needs w >= 1,
      and narrower windows are taken as ``LINEAR_EXACT``
    - ``SIGMOID``: ``1 / (1 + exp(-4 (x - c) / w))``
    """
    center, width = window.center, window.width
    x = np.where(np.isfinite(values), values, -np.inf).astype(np.float64)
    if shape == "SIGMOID":
        with np.errstate(over="ignore"):
            return 1 / (1 + np.exp(-4 * (x - center) / width))
    if shape == "LINEAR" and width >= 1:
        center, width = center - 0.5, width - 1
    if width == 0:
        return (x > center).astype(np.float64)
    return np.clip((x - center) / width + 0.5, 0.0, 1.0)


def robust_window(values: NDArray[Any]) -> Window | None:
    """The window from the 0.5th to the 99.5th percentile of the finite values.

    Where the two are equal (a small mask on an empty background) it goes from the least to the greatest
    value; without any contrast it is None.
    """
    finite = values[np.isfinite(values)].astype(np.float64)
    if finite.size == 0:
        return None
    low, high = np.percentile(finite, ROBUST_PERCENTILES)
    if low == high:
        low, high = finite.min(), finite.max()
    return window_between(float(low), float(high))


def window_between(low: float, high: float) -> Window | None:
    """The window from ``low`` to ``high``; None where they are equal."""
    return Window((low + high) / 2, high - low) if high > low else None


def grey_picture(unit: NDArray[np.float64]) -> Image.Image:
    """Grey in [0, 1], ``(H, W)``, to a picture in mode ``RGB``."""
    return Image.fromarray(np.rint(255 * unit).astype(np.uint8)).convert("RGB")


def square_pixels(
    picture: Image.Image, height: float, width: float, file: Path, max_pixels: int
) -> Image.Image:
    """Resample a picture of oblong pixels so that they are square.

    The side with the larger spacing is enlarged (bilinear) to the smaller spacing, so nothing that was
    measured is lost. Spacings within 1 %, and ones that are missing or not positive, count as square.

    Args:
        picture: The picture as stored.
        height: Distance between the centres of adjacent rows, in any unit.
        width: Distance between the centres of adjacent columns, in the same unit.
        file: File to name in the message.
        max_pixels: Largest number of pixels of the result.

    Raises:
        UserError: The result would have more pixels than that.
    """
    known = math.isfinite(height) and math.isfinite(width) and min(height, width) > 0
    if not known or abs(height / width - 1) <= _SQUARE_WITHIN:
        return picture
    finest = min(height, width)
    scale = (width / finest, height / finest)
    if not picture.width * scale[0] * picture.height * scale[1] <= max_pixels:
        raise too_many_pixels(file, max_pixels)
    size = (round(picture.width * scale[0]), round(picture.height * scale[1]))
    return picture.resize(size, Image.Resampling.BILINEAR)


def too_many_pixels(file: Path | str, limit: int) -> UserError:
    """Error for an image beyond the limit against decompression bombs."""
    return UserError(
        f"{file} has more pixels than the {limit / 1e6:.0f} million that are read; downscale it."
    )


def _plain(number: float) -> str:
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else repr(number)
