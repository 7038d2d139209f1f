"""Pictures inside a page: thumbnails, and mistakes with what the classifier looked at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vmfcoop.data.image_io import read_image
from vmfcoop.explain.maps import saliency_maps
from vmfcoop.explain.placement import place_map, seen_box
from vmfcoop.explain.render import blend
from vmfcoop.explain.targets import class_target
from vmfcoop.pipeline import OpenRun
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.reporting.page import picture_uri

THUMBNAIL, PICTURE = 88, 256
"""Pixels of the longer side."""

MOST_THUMBNAILS = 240
FEWEST_A_CLASS = 4

_QUALITY = 80


@dataclass(frozen=True)
class Thumbnails:
    """Support images of one class.

    Attributes:
        name: of the class.
        pictures: file name and picture of each that is shown.
        left_out: how many are not shown.
    """

    name: str
    pictures: tuple[tuple[str, str], ...]
    left_out: int


@dataclass(frozen=True)
class Mistake:
    """A test image that was taken for another class.

    Attributes:
        file: its name in the data.
        true, predicted: class names.
        p_true, p_predicted: their probabilities.
        picture: the image.
        overlay: the map over it, or None.
    """

    file: str
    true: str
    predicted: str
    p_true: float
    p_predicted: float
    picture: str
    overlay: str | None


def data_uri(image: Image.Image, longest: int) -> str:
    """A picture of at most so many pixels a side as a JPEG in a ``data:`` address; never enlarged.

    Example:
        >>> data_uri(Image.new("RGB", (4, 4)), 88)[:23]
        'data:image/jpeg;base64,'
    """
    small = image.convert("RGB")
    small.thumbnail((longest, longest), Image.Resampling.LANCZOS)
    return picture_uri(small, "JPEG", quality=_QUALITY, optimize=True)


def thumbnails(
    files: Sequence[str], paths: Sequence[Path], labels: Sequence[int], names: Sequence[str]
) -> list[Thumbnails]:
    """The support images of every class, the first ones where there are very many.

    Raises:
        UserError: an image cannot be read.
    """
    most = max(FEWEST_A_CLASS, MOST_THUMBNAILS // len(names))
    found = []
    for label, name in enumerate(names):
        mine = [row for row, own in enumerate(labels) if own == label]
        shown = tuple((files[row], data_uri(read_image(paths[row]), THUMBNAIL)) for row in mine[:most])
        found.append(Thumbnails(name, shown, len(mine) - len(shown)))
    return found


def mistakes(
    opened: OpenRun,
    files: Sequence[str],
    paths: Sequence[Path],
    labels: Sequence[int],
    probabilities: np.ndarray[tuple[int, ...], np.dtype[np.float64]],
    method: str | None,
    progress: ProgressReport = no_progress,
) -> list[Mistake]:
    """Wrongly classified images with maps of what speaks for the predicted class rather than the true one.

    Args:
        opened: the run.
        files, paths: names and places of m images.
        labels: their true classes.
        probabilities: shape ``(m, C)``.
        method: a key of ``MAP_METHODS``; None for no maps.
        progress: told of every map.

    Raises:
        UserError: an image cannot be read, or the tower does not offer the method.
    """
    names = opened.run.class_names
    found = []
    for number, (file, path, true, shares) in enumerate(
        zip(files, paths, labels, probabilities, strict=True)
    ):
        predicted = int(shares.argmax())
        image = read_image(path)
        overlay = None
        if method is not None:
            progress("maps of mistakes", number, len(files))
            overlay = data_uri(_overlay(opened, image, predicted, int(true), method), PICTURE)
        found.append(
            Mistake(
                file,
                names[int(true)],
                names[predicted],
                float(shares[int(true)]),
                float(shares[predicted]),
                data_uri(image, PICTURE),
                overlay,
            )
        )
    if method is not None and files:
        progress("maps of mistakes", len(files), len(files))
    return found


def _overlay(opened: OpenRun, image: Image.Image, predicted: int, true: int, method: str) -> Image.Image:
    target = class_target(opened.fitted, predicted, true)
    found = saliency_maps(opened.encoder, opened.encoder.preprocess(image)[None], target, method)
    box = seen_box(opened.encoder, image.size)
    return blend(image, place_map(found[0].numpy(), box, image.size), box)
