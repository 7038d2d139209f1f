"""The phantom datasets by key, as folders of images that ``load_dataset`` reads and as contact sheets."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from vmfcoop.data.phantoms import (
    abdominal_ct,
    brain_mri,
    breast_ultrasound,
    chest_xray,
    dermatoscopy,
    fundus,
    histology,
)
from vmfcoop.data.phantoms.core import IMAGES_PER_PATIENT, SIZE, Phantom, PhantomDataset
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.files import full_disk_is_said, home, write_atomically
from vmfcoop.progress import ProgressReport, no_progress

PHANTOMS: dict[str, PhantomDataset] = {
    module.DATASET.key: module.DATASET
    for module in (
        dermatoscopy,
        fundus,
        histology,
        brain_mri,
        breast_ultrasound,
        abdominal_ct,
        chest_xray,
    )
}
"""Every phantom dataset by its key."""

_VERSION = 2
"""Part of the folders' names: raise it with any change to what is drawn."""

_GAP, _MARGIN, _LABELS, _TEXT = 6, 12, 150, 17
_OUTLINE = (70, 255, 120)


def materialise(
    key: str, folder: Path | None = None, per_class: int = 120, progress: ProgressReport = no_progress
) -> Path:
    """Draw a phantom dataset to disk unless it is there already, and return the folder of its images.

    ``<folder>/<key>-<version>-<images a class>`` gets ``images``, with a folder a class and a ``groups.csv``
    that names the patient of each image, and beside it ``masks``, with the findings' masks under the same
    names. Class folders have the classes' names with underscores for spaces; ``load_dataset`` sorts them, so
    its labels may differ from the phantom's, and names are what to match by. The folder appears whole or not
    at all, and of two processes at it one keeps what the other made.

    Args:
        key: Of ``PHANTOMS``.
        folder: Where phantoms are kept; ``phantoms`` in the home folder if None.
        per_class: Images of each class.
        progress: Told of every image.

    Raises:
        UserError: There is no such key, no image is asked for, or the disk is full or not writable.
    """
    dataset = _find(key)
    if per_class < 1:
        raise UserError(f"{key} needs at least 1 image a class, not {per_class}.")
    parent = home() / "phantoms" if folder is None else Path(folder)
    place = parent / f"{key}-{_VERSION}-{per_class}"
    if not place.is_dir():
        with full_disk_is_said(parent):
            _draw_into_place(dataset, place, per_class, progress)
    return place / "images"


def _find(key: str) -> PhantomDataset:
    if key not in PHANTOMS:
        raise unknown_name("phantom dataset", key, PHANTOMS)
    return PHANTOMS[key]


def _draw_into_place(dataset: PhantomDataset, place: Path, per_class: int, progress: ProgressReport) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}."))
    try:
        _write(dataset, scratch, per_class, progress)
        scratch.chmod(0o755)
        scratch.rename(place)
    except OSError:
        # A folder that is there by now is another process's, whole and the same.
        if not place.is_dir():
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write(dataset: PhantomDataset, folder: Path, per_class: int, progress: ProgressReport) -> None:
    """Write the images, masks and groups of a dataset."""
    rows, total = ["class,file,group"], per_class * len(dataset.class_names)
    for label, class_name in enumerate(dataset.class_names):
        class_folder = class_name.replace(" ", "_")
        for kind in ("images", "masks") if dataset.findings[label] else ("images",):
            (folder / kind / class_folder).mkdir(parents=True)
        for index in range(per_class):
            phantom, file = dataset.phantom(label, index), f"{index:04d}.png"
            Image.fromarray(phantom.image).save(folder / "images" / class_folder / file)
            if dataset.findings[label]:
                mask = Image.fromarray(phantom.mask.astype(np.uint8) * 255)
                mask.save(folder / "masks" / class_folder / file)
            rows.append(f"{class_folder},{file},{dataset.patient(label, index)}")
            progress(f"Drawing {dataset.title.lower()}", len(rows) - 1, total)
    write_atomically(folder / "images" / "groups.csv", "\n".join(rows) + "\n")


def contact_sheet(key: str, columns: int = 8, outlines: bool = True) -> Image.Image:
    """A labelled grid of a phantom dataset: a row a class, a column a patient.

    Args:
        key: Of ``PHANTOMS``.
        columns: Images of each class.
        outlines: Whether to draw the outlines of findings.

    Raises:
        UserError: There is no such key, or no image is asked for.
    """
    dataset = _find(key)
    if columns < 1:
        raise UserError(f"A contact sheet needs at least 1 column, not {columns}.")
    top, step = _MARGIN + 2 * _TEXT, SIZE + _GAP
    width = 2 * _MARGIN + _LABELS + columns * step - _GAP
    height = top + len(dataset.class_names) * step - _GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(_TEXT)
    pen.text((_MARGIN, _MARGIN), dataset.title, "black", font)
    for label, class_name in enumerate(dataset.class_names):
        y = top + label * step
        text = class_name.replace(" ", "\n")
        pen.multiline_text((_MARGIN, y + SIZE // 2), text, "black", font, anchor="lm", spacing=6)
        for column in range(columns):
            phantom = dataset.phantom(label, column * IMAGES_PER_PATIENT)
            tile = _with_outline(phantom) if outlines else phantom.image
            sheet.paste(Image.fromarray(tile), (_MARGIN + _LABELS + column * step, y))
    return sheet


def _with_outline(phantom: Phantom) -> NDArray[np.uint8]:
    """The image with the mask's own outermost pixels coloured."""
    mask = np.pad(phantom.mask, 1)
    enclosed = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    outlined = phantom.image.copy()
    outlined[phantom.mask & ~enclosed] = _OUTLINE
    return outlined
