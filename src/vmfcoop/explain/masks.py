"""Masks of findings on disk, as an encoder's input shows them."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.data import Dataset
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError

IMAGES, MASKS = "images", "masks"
"""Names of folders side by side, as the phantoms have them."""


def mask_files(table: Dataset, rows: NDArray[np.int64], folder: Path | None = None) -> dict[int, Path]:
    """The mask file of every row that has one.

    A mask lies under its image's relative path, with the ending ``.png``: ``melanoma/0001.png`` for
    ``melanoma/0001.jpg``; ``scan.nii.gz#axis=2&slice=40.png`` for a slice, frame or page of a file.

    Args:
        table: the dataset.
        rows: of the images in question.
        folder: where masks lie; without, ``masks`` beside a dataset's folder ``images``, if it is there.

    Raises:
        UserError: the folder that was given has no mask of any of the images.
    """
    place = folder or _beside(table)
    if place is None:
        return {}
    named = {int(row): place / _relative(table, int(row)) for row in rows}
    found = {row: file for row, file in named.items() if file.is_file()}
    if folder and not found:
        example = next(iter(named.values()), place)
        raise UserError(
            f"The folder '{folder}' holds no mask of the {len(rows)} images, such as '{example}'; give each "
            "mask the relative path of its image, with the ending .png."
        )
    return found


def _beside(table: Dataset) -> Path | None:
    place = table.root.parent / MASKS
    return place if table.root.name == IMAGES and place.is_dir() else None


def _relative(table: Dataset, row: int) -> Path:
    reference = parse_reference(table.paths[row])
    file = reference.file
    place = file.relative_to(table.root) if file.is_relative_to(table.root) else Path(file.name)
    chosen = replace(reference, window=None).selection
    stem = place.name.removesuffix(".nii.gz") if place.name.endswith(".nii.gz") else place.stem
    return place.with_name(f"{place.name}#{chosen}.png" if chosen else f"{stem}.png")


def read_mask(file: Path, size: tuple[int, int]) -> NDArray[np.bool_]:
    """A mask file as ``(height, width)``; what is not 0 in some colour is inside.

    Args:
        file: a PNG or another picture, of any depth, grey or colour; transparency does not count.
        size: width and height of its image.

    Raises:
        UserError: it cannot be read, or has another size.
    """
    try:
        with Image.open(file) as image:
            values = np.asarray(image.convert("RGB") if image.mode in ("RGBA", "LA", "PA", "RGBX") else image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"The mask '{file}' cannot be read ({error}); replace it.") from error
    if values.shape[1::-1] != size:
        found, wanted = (f"{width} x {height}" for width, height in (values.shape[1::-1], size))
        raise UserError(f"The mask '{file}' has {found} pixels, its image {wanted}; give it the same size.")
    return np.asarray(values.any(axis=2) if values.ndim == 3 else values, np.bool_)


def seen_mask(
    mask: NDArray[np.bool_], box: tuple[float, float, float, float], shape: tuple[int, int]
) -> NDArray[np.bool_]:
    """A mask of an image, as the encoder's input shows it: an input pixel half covered is inside.

    Args:
        mask: shape ``(height, width)``.
        box: the part of the image that the encoder sees, see :func:`vmfcoop.explain.placement.seen_box`.
        shape: height and width of the input.

    Example:
        >>> seen_mask(np.eye(4, dtype=bool).repeat(2, 0), (0, 0, 4, 8), (4, 4)).diagonal().tolist()
        [True, True, True, True]
    """
    reach = max(1, *(math.ceil(max(-box[i], box[i + 2] - mask.shape[1 - i])) for i in (0, 1)))
    padded = Image.fromarray(np.pad(mask, reach).astype(np.uint8) * 255)
    region = (box[0] + reach, box[1] + reach, box[2] + reach, box[3] + reach)
    shown = padded.resize(shape[::-1], Image.Resampling.BOX, box=region)
    return np.asarray(shown) >= 128
