"""DICOM images to pictures, through pydicom; nothing that could name a patient is read, kept or printed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.data.dicom_file import damaged, decode, open_dataset, pydicom_silenced
from vmfcoop.data.display import (
    Window,
    WindowShape,
    apply_window,
    grey_picture,
    robust_window,
    square_pixels,
    too_many_pixels,
)
from vmfcoop.data.references import ImageReference
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset

_COLOURS = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def read_dicom(reference: ImageReference, max_pixels: int) -> Image.Image:
    """Read one frame of a DICOM image as RGB, as a viewer would first show it.

    - Frame: ``frame``, by default ``count // 2``, the middle one of several.
    - Grey: modality LUT or rescale; then the chosen ``window``, else the file's VOI LUT, else its first
      window with its VOI LUT function, else 8 bits as they are, else the 0.5th to 99.5th percentile of the
      frame without its padding. MONOCHROME1 is inverted; padding is black.
    - Colour: RGB, YBR and PALETTE COLOR become 8-bit RGB; no window is applied.
    - Pixels that are not square by their spacing or aspect ratio are made so, the coarser side enlarged.
    - Enhanced (multi-frame) objects have rescale, window and spacing taken from their functional groups.

    Only ``READ_ATTRIBUTES`` are decoded. Overlays, presentation states and ICC profiles are not applied, and
    text that is burned into the pixels stays there. pydicom's own warnings, which quote values, are silenced
    for the process.

    Args:
        reference: File, with ``frame`` and ``window`` where they are chosen.
        max_pixels: Largest number of pixels of a frame, by the header and by the compressed stream.

    Raises:
        UserError: The file is damaged or truncated, holds no image, is larger than the limits, needs a
            decoder that is not installed, or the selection does not fit it. No message quotes the file.
        PermissionError: The file may not be read.
    """
    reference.require_only("a DICOM file", "frame", "window")
    with pydicom_silenced():
        try:
            return _render(reference, max_pixels)
        except (UserError, PermissionError):
            raise
        # pydicom's errors quote values: without their text, and not as the cause.
        except Exception:
            raise damaged(reference.file) from None


def _render(reference: ImageReference, max_pixels: int) -> Image.Image:
    file = reference.file
    with file.open("rb") as stream:
        source = open_dataset(file, stream)
        header = source.header
        frames = int(header.get("NumberOfFrames") or 1)
        frame = reference.index("frame", frames, frames // 2)
        if header.Rows * header.Columns > max_pixels:
            raise too_many_pixels(file, max_pixels)
        stored = decode(file, source, frame, frames, max_pixels)
    if str(header.PhotometricInterpretation).startswith("MONOCHROME"):
        picture = _grey(reference, header, frame, stored)
    else:
        picture = _colour(reference, header, stored)
    height, width = _spacing(header, frame)
    return square_pixels(picture, height, width, file, max_pixels)


def _grey(reference: ImageReference, header: Dataset, frame: int, stored: NDArray[Any]) -> Image.Image:
    from pydicom.pixels import apply_modality_lut

    rescale = _describing(header, frame, "PixelValueTransformationSequence")
    if rescale.get("ModalityLUTSequence"):
        values = _looked_up(stored, rescale.ModalityLUTSequence[0], header)
    else:
        values = apply_modality_lut(stored, rescale)
    padding = _padding(header, stored)
    if reference.window is not None:
        _require_window_fits(reference, header, rescale)
        unit = apply_window(values, reference.window)
    else:
        unit = _default_grey(header, frame, values, padding, rescaled=_is_rescaled(rescale))
    if header.PhotometricInterpretation == "MONOCHROME1":
        unit = np.where(np.isfinite(values), 1 - unit, 0.0)
    unit[padding] = 0.0
    return grey_picture(unit)


def _default_grey(
    header: Dataset, frame: int, values: NDArray[Any], padding: NDArray[np.bool_], *, rescaled: bool
) -> NDArray[np.float64]:
    """Grey in [0, 1] by the file's own VOI LUT or window, or by what the values are."""
    voi = _describing(header, frame, "FrameVOILUTSequence")
    if voi.get("VOILUTSequence"):
        lut = voi.VOILUTSequence[0]
        white = 2.0 ** int(lut.LUTDescriptor[2]) - 1
        return np.clip(_looked_up(values, lut, header) / white, 0.0, 1.0)
    window = _first_window(voi)
    if window is not None:
        return apply_window(values, window, _window_shape(voi))
    unsigned_bytes = header.get("BitsStored") == 8 and header.get("PixelRepresentation") == 0
    if unsigned_bytes and not rescaled:
        return np.asarray(values / 255.0, np.float64)
    window = robust_window(values[~padding])
    return np.zeros(values.shape) if window is None else apply_window(values, window)


def _looked_up(values: NDArray[Any], item: Dataset, header: Dataset) -> NDArray[np.float64]:
    """Values through a modality or VOI LUT (PS3.3 C.11.1.1.1, C.11.2.1.1); its ends serve all beyond them."""
    entries, first, _ = (int(number) for number in item.LUTDescriptor)
    entries = entries or 2**16
    if isinstance(item.LUTData, bytes):
        word = "<u2" if header.original_encoding[1] else ">u2"
        table = np.frombuffer(item.LUTData, "u1" if len(item.LUTData) < 2 * entries else word, entries)
    else:
        table = np.asarray(item.LUTData)
    finite = np.nan_to_num(values.astype(np.float64), nan=-np.inf)
    index = np.clip(np.rint(finite) - first, 0, entries - 1).astype(np.int64)
    return np.asarray(table[index], np.float64)


def _first_window(voi: Dataset) -> Window | None:
    center, width = (_first_number(voi.get(keyword)) for keyword in ("WindowCenter", "WindowWidth"))
    if center is None or width is None or not (math.isfinite(center) and width > 0):
        return None
    return Window(center, width)


def _window_shape(voi: Dataset) -> WindowShape:
    stated = str(voi.get("VOILUTFunction") or "LINEAR").upper()
    return "SIGMOID" if stated == "SIGMOID" else "LINEAR_EXACT" if stated == "LINEAR_EXACT" else "LINEAR"


def _require_window_fits(reference: ImageReference, header: Dataset, rescale: Dataset) -> None:
    in_hounsfield = header.get("Modality") == "CT" and "RescaleSlope" in rescale
    if reference.window is not None and reference.window.name and not in_hounsfield:
        raise UserError(
            f"{reference}: the window '{reference.window.name}' is for CT in Hounsfield units, which this "
            "image is not; give center,width."
        )


def _is_rescaled(rescale: Dataset) -> bool:
    slope, intercept = rescale.get("RescaleSlope"), rescale.get("RescaleIntercept")
    identity = slope in (None, 1) and intercept in (None, 0)
    return not identity or bool(rescale.get("ModalityLUTSequence"))


def _padding(header: Dataset, stored: NDArray[Any]) -> NDArray[np.bool_]:
    """Pixels that only fill the rectangle: Pixel Padding Value up to its Range Limit (PS3.3 C.7.5.1.1.2)."""
    value = _first_number(header.get("PixelPaddingValue"))
    if value is None or stored.dtype.kind not in "iu":
        return np.zeros(stored.shape, bool)
    limit = _first_number(header.get("PixelPaddingRangeLimit"))
    # Some writers give the bits of a negative value as unsigned: wrap them as the pixels' type does.
    ends = np.array([value, value if limit is None else limit]).astype(np.int64).astype(stored.dtype)
    padding: NDArray[np.bool_] = (stored >= ends.min()) & (stored <= ends.max())
    return padding


def _colour(reference: ImageReference, header: Dataset, stored: NDArray[Any]) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    if reference.window is not None:
        raise UserError(f"{reference}: a window has no meaning for colour; leave it out.")
    if header.PhotometricInterpretation == "PALETTE COLOR":
        bits = int(header.RedPaletteColorLookupTableDescriptor[2])
        channels = apply_color_lut(stored, header)[..., :3]
    elif header.PhotometricInterpretation in _COLOURS and stored.shape[2:] == (3,):
        bits, channels = int(header.BitsStored), stored
    else:
        raise UserError(
            f"{reference.file} is in a colour space that is not read; convert it to RGB or greyscale."
        )
    if bits != 8:
        channels = np.rint(channels * (255.0 / (2.0**bits - 1))).clip(0, 255)
    return Image.fromarray(np.ascontiguousarray(channels.astype(np.uint8)))


def _spacing(header: Dataset, frame: int) -> tuple[float, float]:
    """Height and width of a pixel in some unit; (1, 1) where the file does not say."""
    measures = _describing(header, frame, "PixelMeasuresSequence")
    for source, keyword in (
        (measures, "PixelSpacing"),
        (header, "ImagerPixelSpacing"),
        (header, "NominalScannedPixelSpacing"),
        (header, "PixelAspectRatio"),
    ):
        value = source.get(keyword)
        if value is not None and not isinstance(value, str) and len(value) == 2:
            return float(value[0]), float(value[1])
    return 1.0, 1.0


def _describing(header: Dataset, frame: int, macro: str) -> Dataset:
    """What holds a group of attributes for a frame: its functional group, the shared one, or the header."""
    per_frame = header.get("PerFrameFunctionalGroupsSequence") or []
    shared = header.get("SharedFunctionalGroupsSequence") or []
    for group in (*per_frame[frame : frame + 1], *shared[:1]):
        if group.get(macro):
            item: Dataset = group[macro].value[0]
            return item
    return header


def _first_number(value: Any) -> float | None:
    """The first of one or several numbers, None where there is none."""
    if value is None or isinstance(value, str):
        return None
    first = value if isinstance(value, (int, float)) else next(iter(value), None)
    return None if first is None else float(first)
