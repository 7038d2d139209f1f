"""Any image file or array to an 8-bit RGB picture, the one form every backbone's preprocessing takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vmfcoop.data.dicom import read_dicom
from vmfcoop.data.display import too_many_pixels
from vmfcoop.data.nifti import read_nifti
from vmfcoop.data.references import (
    DICOM_SUFFIXES,
    NIFTI_SUFFIXES,
    ImageReference,
    file_kind,
    has_dicom_magic,
    parse_reference,
)
from vmfcoop.errors import UserError

PICTURE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"})
IMAGE_SUFFIXES: frozenset[str] = PICTURE_SUFFIXES | {*DICOM_SUFFIXES, *NIFTI_SUFFIXES}

MAX_PIXELS = 178_956_970
"""Largest width x height read: Pillow's own limit for decompression bombs (512 MB as 24-bit RGB)."""

# Named formats only: Pillow would otherwise hand an EPS to Ghostscript, whatever its suffix says.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_SUFFIXES = tuple(sorted(IMAGE_SUFFIXES))
# Depths of real detectors. 10 bits are left out: a dark 12-bit image would pass for a bright 10-bit one.
_WHITE_LEVELS = (255, 4095, 16383, 65535)


def is_image_path(path: Path) -> bool:
    """Whether the file name ends as one of the formats that are read, or the file is DICOM without a suffix.

    A selection after a '#' does not count. Names without a suffix, and those that end in a number as UIDs do,
    are looked into for DICOM's magic bytes; the index DICOMDIR is no image.

    Example:
        >>> is_image_path(Path("scan.PNG")), is_image_path(Path("brain.nii.gz#slice=3"))
        (True, True)
        >>> is_image_path(Path("notes.txt"))
        False
    """
    file = path
    if not path.name.lower().endswith(_SUFFIXES) and "#" in path.name:
        file = path.with_name(path.name.rpartition("#")[0] or path.name)
    if file.name.lower().endswith(_SUFFIXES):
        return True
    looked_into = not file.suffix or file.suffix[1:].isdecimal()
    return looked_into and file.name.upper() != "DICOMDIR" and file.is_file() and has_dicom_magic(file)


def read_image(path: Path | str) -> Image.Image:
    """Read an image as RGB, without any of the file's metadata.

    The path may carry a selection, as ``parse_reference`` reads it: ``stack.tif#page=2``,
    ``cine.dcm#frame=3&window=40,400``, ``scan.nii.gz#axis=2&slice=40``.

    Pictures (PNG, JPEG, TIFF, BMP, WebP, GIF) are told apart by their content, not by their suffix, and
    turned upright by their EXIF orientation; of an animation or a multi-page TIFF the first frame counts
    unless ``frame`` or ``page`` names another. ``as_rgb`` says how grey, deep, floating-point and transparent
    pixels become RGB. ``read_dicom`` and ``read_nifti`` say how these two are shown.

    Returns:
        Picture in mode ``RGB``.

    Raises:
        UserError: The file is missing, a folder, empty, truncated, not an image, larger than
            ``MAX_PIXELS``, needs a decoder that is not installed, or has no such page, frame or slice.
    """
    try:
        return _read(path)
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions.") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path of the image.") from error


def _read(path: Path | str) -> Image.Image:
    reference = parse_reference(path)
    _check_file(reference.file)
    kind = file_kind(reference.file)
    if kind == "dicom":
        return read_dicom(reference, MAX_PIXELS)
    if kind == "nifti":
        return read_nifti(reference, MAX_PIXELS)
    return _read_picture(reference)


def _read_picture(reference: ImageReference) -> Image.Image:
    reference.require_only("a picture that is neither DICOM nor NIfTI", "page", "frame")
    file = reference.file
    try:
        # From an open file: given a path, Pillow maps plain TIFFs into memory, and then garbles those whose
        # orientation swaps width and height.
        with file.open("rb") as stream, Image.open(stream, formats=_FORMATS) as image:
            _turn_to(image, reference)
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            picture = as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise too_many_pixels(file, MAX_PIXELS) from error
    except UserError as error:
        raise UserError(f"{reference}: {error}") from error
    except PermissionError:
        raise
    # Damaged files make the decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise UserError(f"{file} is truncated or not an image; replace or remove it.") from error
    picture.info = {}
    return picture


def _turn_to(image: Image.Image, reference: ImageReference) -> None:
    """Go to the page or frame that is chosen."""
    if reference.page is not None and reference.frame is not None:
        raise UserError("page and frame are the same thing here; keep one of them.")
    key = "frame" if reference.page is None else "page"
    if reference.page is not None or reference.frame is not None:
        image.seek(reference.index(key, getattr(image, "n_frames", 1), 0))


def _check_file(path: Path) -> None:
    if path.is_dir():
        raise UserError(f"{path} is a folder, not an image; name an image file in it.")
    if not path.exists():
        raise UserError(f"{path} does not exist; check the path of the image.")


def as_rgb(image: Image.Image | NDArray[Any]) -> Image.Image:
    """Convert a picture or an array to mode RGB.

    - Alpha, a transparent palette entry included, is composited on black, the background of scans.
    - Integers deeper than 8 bits are divided by the white level of their depth, the smallest of 8, 12, 14
      and 16 bits that holds the image's maximum, so images of one detector keep their relative
      brightness. Negative values (Hounsfield units) or values beyond 16 bits are stretched min-max.
    - Floating-point pictures (mode F) are stretched min-max: such files have no common white level.
      Floating-point arrays inside [0, 1] are taken as they are, 1 being white; others are stretched
      min-max. Values that are not finite become black.

    Args:
        image: Picture of any mode, or array ``(H, W)``, ``(H, W, 1)``, ``(H, W, 3)`` or ``(H, W, 4)`` of
            bool, integers or floats.

    Returns:
        Picture in mode ``RGB``.

    Raises:
        UserError: The array has another shape or type, or the picture a mode without an RGB form.

    Example:
        >>> as_rgb(np.array([[0, 4095]], dtype=np.uint16)).getpixel((1, 0))
        (255, 255, 255)
    """
    if isinstance(image, np.ndarray):
        return _array_as_rgb(image)
    if image.mode == "F":
        return Image.fromarray(_stretch(np.asarray(image))).convert("RGB")
    if image.mode.startswith("I"):
        return Image.fromarray(_to_uint8(np.asarray(image))).convert("RGB")
    try:
        if image.has_transparency_data:
            return _on_black(image.convert("RGBA"))
        return image.convert("RGB")
    except ValueError as error:
        raise UserError(
            f"A picture of mode {image.mode} has no RGB form; convert it to RGB or grey first."
        ) from error


def _array_as_rgb(array: NDArray[Any]) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    shape_fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not shape_fits or array.size == 0 or array.dtype.kind not in "buif":
        raise UserError(
            "An image array must be (H, W), (H, W, 3) or (H, W, 4) of bool, integers or floats, "
            f"not {array.shape} of {array.dtype}; put the channels last and convert the type."
        )
    if array.ndim == 3 and array.shape[2] == 4:
        # Alpha has a range of its own: opaque 16-bit alpha must not set the white level of 12-bit colour.
        colour, alpha = _to_uint8(array[:, :, :3]), _to_uint8(array[:, :, 3:])
        return _on_black(Image.fromarray(np.concatenate([colour, alpha], axis=2)))
    return Image.fromarray(_to_uint8(array)).convert("RGB")


def _on_black(rgba: Image.Image) -> Image.Image:
    black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
    return Image.alpha_composite(black, rgba).convert("RGB")


def _to_uint8(array: NDArray[Any]) -> NDArray[np.uint8]:
    if array.dtype == np.uint8:
        return np.ascontiguousarray(array)
    if array.dtype.kind == "b":
        return array.astype(np.uint8) * np.uint8(255)
    if array.dtype.kind == "f":
        inside_unit = bool(((array >= 0) & (array <= 1)).all())
        return _scale(array, 0.0, 1.0) if inside_unit else _stretch(array)
    lowest, highest = int(array.min()), int(array.max())
    if lowest < 0 or highest > _WHITE_LEVELS[-1]:
        return _stretch(array)
    white = next(level for level in _WHITE_LEVELS if highest <= level)
    return _scale(array, 0.0, float(white))


def _stretch(array: NDArray[Any]) -> NDArray[np.uint8]:
    finite = array[np.isfinite(array)].astype(np.float64)
    if finite.size == 0 or finite.min() == finite.max():
        return np.zeros(array.shape, np.uint8)
    return _scale(np.where(np.isfinite(array), array, finite.min()), finite.min(), finite.max())


def _scale(array: NDArray[Any], black: float, white: float) -> NDArray[np.uint8]:
    unit = (array.astype(np.float64) - black) / (white - black)
    return np.rint(255 * unit).astype(np.uint8)
