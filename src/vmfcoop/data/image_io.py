"""Any image file or array to an 8-bit RGB picture, the one form every backbone's preprocessing takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from vmfcoop.errors import UserError

IMAGE_SUFFIXES: frozenset[str] = frozenset(
    {".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp", ".gif"}
)

MAX_PIXELS = 178_956_970
"""Largest width x height read: Pillow's own limit for decompression bombs (512 MB as 24-bit RGB)."""

# Named formats only: Pillow would otherwise hand an EPS to Ghostscript, whatever its suffix says.
_FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF")
_VOLUME_SUFFIXES = (".dcm", ".dicom", ".nii", ".nii.gz")
# Depths of real detectors. 10 bits are left out: a dark 12-bit image would pass for a bright 10-bit one.
_WHITE_LEVELS = (255, 4095, 16383, 65535)


def is_image_path(path: Path) -> bool:
    """Whether the file name ends as one of the image formats that are read.

    Example:
        >>> is_image_path(Path("scan.PNG")), is_image_path(Path("notes.txt"))
        (True, False)
    """
    return path.suffix.lower() in IMAGE_SUFFIXES


def is_volume_path(path: Path) -> bool:
    """Whether the file name ends as DICOM or NIfTI, which this version does not read.

    Example:
        >>> is_volume_path(Path("brain.nii.gz"))
        True
    """
    return path.name.lower().endswith(_VOLUME_SUFFIXES)


def read_image(path: Path | str) -> Image.Image:
    """Read an image file as RGB, upright by its EXIF orientation.

    The format is told from the content, not from the suffix; of an animation or a multi-page TIFF the
    first frame counts. ``as_rgb`` says how grey, deep, floating-point and transparent pixels become RGB.

    Returns:
        Picture in mode ``RGB``.

    Raises:
        UserError: The file is missing, a folder, empty, truncated, not an image, larger than
            ``MAX_PIXELS``, or DICOM or NIfTI.
    """
    path = Path(path)
    _check_file(path)
    try:
        # From an open file: given a path, Pillow maps plain TIFFs into memory, and then garbles those whose
        # orientation swaps width and height.
        with path.open("rb") as file, Image.open(file, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return as_rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(
            f"{path} has more pixels than the {MAX_PIXELS / 1e6:.0f} million that are read; downscale it."
        ) from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except PermissionError as error:
        raise UserError(f"{path} may not be read; change its permissions.") from error
    # Damaged files make the decoders raise nearly anything: OSError, SyntaxError, struct.error, KeyError.
    except Exception as error:
        raise UserError(f"{path} is truncated or not an image; replace or remove it.") from error


def _check_file(path: Path) -> None:
    if is_volume_path(path):
        raise UserError(
            f"{path} is DICOM or NIfTI, but this version reads PNG, JPEG, TIFF, BMP, WebP and GIF; "
            "convert it to one of these."
        )
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
