"""What names an image: a file, and perhaps a selection inside it, ``scan.nii.gz#axis=2&slice=40``."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vmfcoop.data.display import Window, parse_window
from vmfcoop.errors import UserError

SELECTORS = ("page", "frame", "axis", "slice", "window")
"""What may stand after the '#', in the order of the canonical form."""

DICOM_SUFFIXES = (".dcm", ".dicom")
NIFTI_SUFFIXES = (".nii", ".nii.gz")

FileKind = Literal["picture", "dicom", "nifti"]

_EXAMPLE = "scan.nii.gz#axis=2&slice=40"
_MAGIC_OFFSET = 128


@dataclass(frozen=True)
class ImageReference:
    """An image file and what is chosen inside it; ``str`` gives the canonical form.

    Attributes:
        file: The file itself.
        page: Page of a TIFF, from 0.
        frame: Frame of a GIF, WebP, APNG or DICOM file, or volume of a 4D NIfTI, from 0.
        axis: Axis of a NIfTI volume that slices are counted along: 0 sagittal, 1 coronal, 2 axial.
        slice: Slice along that axis, from 0.
        window: Values shown as black to white, for DICOM and NIfTI.

    Example:
        >>> str(parse_reference("ct.nii.gz#window=Lung&slice=40&axis=2"))
        'ct.nii.gz#axis=2&slice=40&window=lung'
    """

    file: Path
    page: int | None = None
    frame: int | None = None
    axis: int | None = None
    slice: int | None = None
    window: Window | None = None

    @property
    def selection(self) -> str:
        """The canonical text after the '#', empty where nothing is chosen."""
        chosen = ((key, getattr(self, key)) for key in SELECTORS)
        return "&".join(f"{key}={value}" for key, value in chosen if value is not None)

    def __str__(self) -> str:
        return f"{self.file}#{self.selection}" if self.selection else str(self.file)

    def require_only(self, kind: str, *selectors: str) -> None:
        """Raise UserError where something is chosen that this kind of file does not have."""
        for key in SELECTORS:
            if getattr(self, key) is not None and key not in selectors:
                raise UserError(
                    f"{self}: {key}= has no meaning for {kind}; choose with {' or '.join(selectors)}, "
                    "or leave it out."
                )

    def index(self, key: str, count: int, default: int) -> int:
        """The chosen page, frame or slice out of ``count``; UserError where it is beyond them."""
        chosen = getattr(self, key)
        if chosen is None:
            return default
        if chosen >= count:
            choices = f"0 to {count - 1}" if count > 1 else "the single one, 0"
            raise UserError(f"{self}: {self.file.name} has no {key} {chosen}; choose {choices}.")
        return int(chosen)


def parse_reference(path: Path | str) -> ImageReference:
    """Read an image's name, with a selection such as ``cine.dcm#frame=3`` or without.

    A file that exists under the literal name wins, '#' and all.

    Raises:
        UserError: What follows the '#' is unknown, malformed or chosen twice.
    """
    path = Path(path)
    name, mark, selection = path.name.rpartition("#")
    if not mark or not name or path.exists():
        return ImageReference(path)
    file = path.with_name(name)
    if "=" not in selection and not file.exists():
        return ImageReference(path)
    chosen: dict[str, int | Window] = {}
    for part in selection.split("&"):
        key, value = _parse_part(path, part)
        if key in chosen:
            raise UserError(f"{path} chooses {key} twice; keep one of them.")
        chosen[key] = value
    return ImageReference(file, **chosen)  # type: ignore[arg-type]


def _parse_part(path: Path, part: str) -> tuple[str, int | Window]:
    key, equals, value = part.partition("=")
    if key not in SELECTORS or not equals:
        raise UserError(
            f"{path}: '{part}' chooses nothing in an image; write {', '.join(SELECTORS[:-1])} or "
            f"{SELECTORS[-1]} with a value after the '#', as in {_EXAMPLE}."
        )
    if key == "window":
        try:
            return key, parse_window(value)
        except UserError as error:
            raise UserError(f"{path}: {error} In a CSV, put quotes around a path with a comma.") from None
    if not re.fullmatch(r"[0-9]{1,9}", value):
        raise UserError(f"{path}: {key}={value} is no number; count from 0, as in {_EXAMPLE}.")
    if key == "axis" and int(value) > 2:
        raise UserError(f"{path}: there is no axis {value}; choose 0 (sagittal), 1 (coronal) or 2 (axial).")
    return key, int(value)


def with_window(path: Path, window: str) -> Path:
    """The same image shown in a window, where it is DICOM or NIfTI and names none itself.

    Args:
        path: An image, perhaps with a selection.
        window: ``center,width`` or a name of ``CT_WINDOWS``.

    Raises:
        UserError: The window or the selection is malformed.
    """
    chosen = parse_window(window)
    reference = parse_reference(path)
    if reference.window is not None or file_kind(reference.file) == "picture":
        return path
    return Path(str(replace(reference, window=chosen)))


def file_kind(file: Path) -> FileKind:
    """Which reader a file needs: NIfTI by its suffix, DICOM by its magic bytes or suffix, or any picture."""
    name = file.name.lower()
    if name.endswith(NIFTI_SUFFIXES):
        return "nifti"
    return "dicom" if name.endswith(DICOM_SUFFIXES) or has_dicom_magic(file) else "picture"


def has_dicom_magic(file: Path) -> bool:
    """Whether the file starts as DICOM does: 128 bytes of any content, then ``DICM``."""
    try:
        with file.open("rb") as stream:
            return stream.read(_MAGIC_OFFSET + 4)[_MAGIC_OFFSET:] == b"DICM"
    except OSError:
        return False
