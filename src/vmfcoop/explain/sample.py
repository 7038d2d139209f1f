"""Test images to check saliency maps on, with masks of their findings where they are known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.data import Dataset
from vmfcoop.data.image_io import read_image
from vmfcoop.errors import UserError
from vmfcoop.explain.masks import mask_files, read_mask, seen_mask
from vmfcoop.explain.placement import seen_box


@dataclass(frozen=True)
class Sample:
    """Images to check maps on.

    Attributes:
        files: n names, as the dataset has them.
        pixels: preprocessed, shape ``(n, 3, H, W)``.
        labels: true classes, which are the ones explained, shape ``(n,)``.
        masks: of the findings, as the encoder sees them, shape ``(n, H, W)``; None where none is known.
        groups: of each image, shape ``(n,)``, or None.
    """

    files: tuple[str, ...]
    pixels: Tensor
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None
    groups: NDArray[np.str_] | None = None

    def __len__(self) -> int:
        return len(self.files)


def draw_sample(
    encoder: DualEncoder,
    table: Dataset,
    images: int,
    masks: Path | None = None,
    seed: int = 0,
    without: int | None = None,
) -> Sample:
    """Draw test images, from each class in turn for as long as it has any.

    Where masks are known of some images, only those are drawn from: classes without a finding have none.

    Args:
        encoder: whose preprocessing the images and masks go through.
        table: the dataset.
        images: how many.
        masks: folder of masks, see :func:`vmfcoop.explain.masks.mask_files`.
        seed: of the draw.
        without: a class to leave out.

    Raises:
        UserError: there is none to draw, or an image or a mask cannot be read.
    """
    rows = table.indices("test")
    rows = rows if without is None else rows[table.labels[rows] != without]
    known = mask_files(table, rows, masks)
    rows = np.array(sorted(known), np.int64) if known else rows
    if images < 1 or not len(rows):
        raise UserError(
            f"No test image of '{table.name}' is left to check maps on; ask for at least 1 of them."
        )
    rows = _in_turn(rows, table.labels[rows], seed)[:images]
    pictures = [read_image(table.paths[row]) for row in rows]
    return Sample(
        files=tuple(table.file(row) for row in rows),
        pixels=torch.stack([encoder.preprocess(picture) for picture in pictures]),
        labels=table.labels[rows],
        masks=_masks(encoder, [known[row] for row in rows.tolist()], pictures) if known else None,
        groups=None if table.groups is None else table.groups[rows],
    )


def _in_turn(rows: NDArray[np.int64], labels: NDArray[np.int64], seed: int) -> NDArray[np.int64]:
    """All rows, in a seeded order that takes one of every class in turn."""
    turns = np.empty(len(rows), np.int64)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        turns[own] = np.random.default_rng([seed, label]).permutation(len(own))
    return rows[np.lexsort((labels, turns))]


def _masks(encoder: DualEncoder, files: list[Path], pictures: list[Image.Image]) -> NDArray[np.bool_]:
    pairs = zip(files, pictures, strict=True)
    return np.stack(
        [
            seen_mask(read_mask(file, picture.size), seen_box(encoder, picture.size), encoder.image_size)
            for file, picture in pairs
        ]
    )
