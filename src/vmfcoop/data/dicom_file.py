"""DICOM files opened and their frames decoded, through pydicom, within limits and without its messages."""

from __future__ import annotations

import io
import logging
import re
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from numpy.typing import NDArray

from vmfcoop.data.display import too_many_pixels
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.uid import UID

MAX_INFLATED_BYTES = 2**30
"""Largest content of a file in the transfer syntax Deflated Explicit VR, which must be inflated whole."""

READ_ATTRIBUTES = (
    "SOPClassUID",
    "Modality",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PixelSpacing",
    "ImagerPixelSpacing",
    "NominalScannedPixelSpacing",
    "PixelAspectRatio",
    "RescaleIntercept",
    "RescaleSlope",
    "ModalityLUTSequence",
    "WindowCenter",
    "WindowWidth",
    "VOILUTFunction",
    "VOILUTSequence",
    "PixelPresentation",
    "RedPaletteColorLookupTableDescriptor",
    "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor",
    "RedPaletteColorLookupTableData",
    "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
    "SegmentedRedPaletteColorLookupTableData",
    "SegmentedGreenPaletteColorLookupTableData",
    "SegmentedBluePaletteColorLookupTableData",
    "SharedFunctionalGroupsSequence",
    "PerFrameFunctionalGroupsSequence",
    "ExtendedOffsetTable",
    "ExtendedOffsetTableLengths",
)
"""The attributes that are decoded besides the pixels; all others are skipped over in the file."""

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_MEDIA_DIRECTORY = "1.2.840.10008.1.3.10"
_DEFLATED = "1.2.840.10008.1.2.1.99"
_EXTRA = "pip install 'vmfcoop[dicom]'"
_PIXEL_ELEMENT_HEAD = 12  # tag, VR, two reserved bytes and the length of an explicit Pixel Data element
_META_START = 132
_PYDICOM_MODULES = r"pydicom(\.|$)"

_reading: ContextVar[bool] = ContextVar("_reading", default=False)


class DicomSource(NamedTuple):
    """An opened image.

    Attributes:
        header: The read attributes, and the pixel data where there is no stream.
        syntax: The transfer syntax.
        stream: The open file, from which frames are read one by one.
        pixel_start: Where in the stream the pixel data element starts.
    """

    header: Dataset
    syntax: UID
    stream: BinaryIO | None = None
    pixel_start: int = 0


def open_dataset(file: Path, stream: BinaryIO) -> DicomSource:
    """Read the header of an open file; with a missing, wrong or deflated transfer syntax the whole of it.

    Raises:
        UserError: It is no DICOM file, a DICOMDIR, an object without an image, or inflates beyond the limit.
    """
    from pydicom import dcmread
    from pydicom.uid import UID, ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    stream = _with_preamble(file, stream)
    syntax = _transfer_syntax(stream)
    if syntax == _DEFLATED:
        _check_inflated_size(file, stream)
    elif syntax:
        _require_known(file, UID(syntax))
        header = dcmread(stream, stop_before_pixels=True, specific_tags=list(READ_ATTRIBUTES))
        _require_image(file, header)
        if _pixel_element_fits(stream, UID(syntax)):
            return DicomSource(header, UID(syntax), stream, stream.tell())
        stream.seek(0)
    dataset = dcmread(stream, force=True, specific_tags=[*READ_ATTRIBUTES, *_PIXELS])
    _require_image(file, dataset)
    if not syntax:
        implicit, little_endian = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little_endian else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    return DicomSource(dataset, dataset.file_meta.TransferSyntaxUID)


def _require_known(file: Path, syntax: UID) -> None:
    if syntax.is_private or syntax.type != "Transfer Syntax":
        raise UserError(
            f"{file} is in an unknown transfer syntax; convert it to Explicit VR Little Endian, which is "
            "uncompressed."
        )


def _pixel_element_fits(stream: BinaryIO, syntax: UID) -> bool:
    """Whether the element the stream stands at is explicit or implicit as the transfer syntax says."""
    head = stream.read(6)
    stream.seek(-len(head), io.SEEK_CUR)
    return (head[4:] in (b"OB", b"OW", b"OF", b"OD")) is not syntax.is_implicit_VR


def _with_preamble(file: Path, stream: BinaryIO) -> BinaryIO:
    """The stream itself, or, for a file that starts with its file meta information, one with a preamble."""
    head = stream.read(_META_START)
    stream.seek(0)
    if head[_META_START - 4 :] == b"DICM":
        return stream
    if not _looks_like_dicom(head):
        raise UserError(f"{file} is no DICOM file, or its beginning is damaged; copy it again.")
    if head[:2] == b"\x02\x00":
        return io.BytesIO(bytes(_META_START - 4) + b"DICM" + stream.read())
    return stream


def _looks_like_dicom(head: bytes) -> bool:
    """Whether bytes without a preamble start with a data element of group 0002 or 0008."""
    if head[:2] not in (b"\x02\x00", b"\x08\x00", b"\x00\x08"):
        return False
    explicit = re.fullmatch(rb"[A-Z]{2}", head[4:6]) is not None
    return explicit or (len(head) > 8 and int.from_bytes(head[4:8], "little") < 1024)


def _transfer_syntax(stream: BinaryIO) -> str:
    """Transfer Syntax UID of the file meta information, empty where there is none."""
    head = stream.read(2**16)
    stream.seek(0)
    found = re.search(rb"\x02\x00\x10\x00UI(..)([0-9.]+)", head, re.DOTALL)
    return found[2][: int.from_bytes(found[1], "little")].decode() if found else ""


def _check_inflated_size(file: Path, stream: BinaryIO) -> None:
    """Inflate a deflated dataset piece by piece, keeping nothing, until it ends or is beyond the limit."""
    head = stream.read(_META_START + 12)
    stream.seek(int.from_bytes(head[-4:], "little"), io.SEEK_CUR)
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    total, piece = 0, stream.read(2**16)
    while piece and not inflater.eof:
        total += len(inflater.decompress(piece, 2**24))
        if total > MAX_INFLATED_BYTES:
            raise UserError(
                f"{file} inflates to more than the {MAX_INFLATED_BYTES / 2**30:.0f} GiB that are read; "
                "store it uncompressed or split it."
            )
        piece = inflater.unconsumed_tail or stream.read(2**16)
    stream.seek(0)


def _require_image(file: Path, dataset: Dataset) -> None:
    from pydicom.uid import UID

    if str(getattr(dataset, "file_meta", {}).get("MediaStorageSOPClassUID", "")) == _MEDIA_DIRECTORY:
        raise UserError(f"{file} is a DICOMDIR, the index of a disc; name the image files it lists.")
    if "Rows" not in dataset or "Columns" not in dataset:
        uid = UID(str(dataset.get("SOPClassUID", "")))
        # Only a registered name is told: an unregistered UID could be anything.
        kind = f" ({uid.name})" if uid.name != uid else ""
        raise UserError(f"{file} is a DICOM object without an image{kind}; leave it out.")


def decode(file: Path, source: DicomSource, frame: int, frames: int, max_pixels: int) -> NDArray[Any]:
    """Stored values of one frame, ``(rows, columns)`` or ``(rows, columns, samples)``; YBR is made RGB.

    Raises:
        UserError: No decoder is there, the compressed frame states more pixels than ``max_pixels``, or the
            pixel data are damaged, truncated or absent.
    """
    from pydicom.pixels import pixel_array

    plugin = ""
    if source.syntax.is_encapsulated:
        plugin = _decoder_plugin(file, source)
        _check_coded_size(file, source, frame, frames, max_pixels)
    try:
        stored: NDArray[Any] = pixel_array(
            source.stream or source.header, index=frame, decoding_plugin=plugin
        )
        return stored
    except (KeyboardInterrupt, SystemExit):
        raise
    except MemoryError:
        raise UserError(f"{file} does not fit into memory; downscale it.") from None
    # Not Exception alone: a decoder written in Rust may panic, which Python sees as a BaseException.
    except BaseException:
        if _another_decoder_may_help(source.syntax):
            raise UserError(
                f"{file} is compressed as {source.syntax.name} and could not be decoded; install another "
                f"decoder with {_EXTRA}, or copy it again if it is damaged."
            ) from None
        raise UserError(f"{file} has damaged, truncated or no pixel data; copy it again.") from None


def _decoder_plugin(file: Path, source: DicomSource) -> str:
    """The plugin of pydicom's to decode with, empty to try those that are installed."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEGExtended12Bit

    from vmfcoop.data import dicom_codecs

    syntax = source.syntax
    dicom_codecs.register()
    try:
        plugins = set(get_decoder(syntax).available_plugins)
    except NotImplementedError:
        raise UserError(
            f"{file} is compressed as {syntax.name}, which is not read; convert it to an uncompressed "
            "transfer syntax."
        ) from None
    twelve_bits = syntax == JPEGExtended12Bit and int(source.header.get("BitsStored") or 8) > 8
    if not plugins - ({"pillow", "gdcm"} if twelve_bits else set()):
        raise UserError(
            f"{file} is compressed as {syntax.name}{' with 12 bits' if twelve_bits else ''} and no decoder "
            f"for that is installed; install one with {_EXTRA}."
        )
    return dicom_codecs.PLUGIN if dicom_codecs.PLUGIN in plugins else ""


def _another_decoder_may_help(syntax: UID) -> bool:
    """Whether JPEG 2000 was left to Pillow, which reads a part of it only."""
    from pydicom.pixels import get_decoder
    from pydicom.uid import JPEG2000TransferSyntaxes

    return syntax in JPEG2000TransferSyntaxes and "pylibjpeg" not in get_decoder(syntax).available_plugins


def _check_coded_size(file: Path, source: DicomSource, frame: int, frames: int, max_pixels: int) -> None:
    """Hold the size that a compressed frame states, which is what its decoder allocates, to the limit."""
    from pydicom.encaps import get_frame

    header = source.header
    if source.stream is None:
        buffer: BinaryIO = io.BytesIO(header.PixelData)
    else:
        buffer = source.stream
        buffer.seek(source.pixel_start + _PIXEL_ELEMENT_HEAD)
    offsets = None
    if "ExtendedOffsetTable" in header and "ExtendedOffsetTableLengths" in header:
        offsets = (header.ExtendedOffsetTable, header.ExtendedOffsetTableLengths)
    coded = get_frame(buffer, frame, number_of_frames=frames, extended_offsets=offsets)
    buffer.seek(0)
    rows, columns = coded_size(coded)
    if rows * columns > max_pixels:
        raise too_many_pixels(file, max_pixels)


def coded_size(coded: bytes) -> tuple[int, int]:
    """Rows and columns that a JPEG, JPEG-LS or JPEG 2000 stream states; (0, 0) for any other, such as RLE.

    Sources: the SOF and SIZ marker segments of ITU-T T.81 B.2.2, T.87 C.2.2 and T.800 A.5.1.
    """
    start = coded.find(b"\xff\x4f\xff\x51") if not coded.startswith(b"\xff\xd8") else -1
    if start >= 0:
        x, y, x_offset, y_offset = (
            int.from_bytes(coded[start + at : start + at + 4], "big") for at in (8, 12, 16, 20)
        )
        return max(0, y - y_offset), max(0, x - x_offset)
    at = 2 if coded.startswith(b"\xff\xd8") else len(coded)
    while at + 9 <= len(coded) and coded[at] == 0xFF:
        marker = coded[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:
            return int.from_bytes(coded[at + 5 : at + 7], "big"), int.from_bytes(
                coded[at + 7 : at + 9], "big"
            )
        at += 2 + int.from_bytes(coded[at + 2 : at + 4], "big")
    return 0, 0


class _WithholdWhileReading(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return not _reading.get()


_WITHHOLD = _WithholdWhileReading()


@contextmanager
def pydicom_silenced() -> Iterator[None]:
    """Keep back pydicom's log records of this read, and its warnings, which know no thread, altogether."""
    logging.getLogger("pydicom").addFilter(_WITHHOLD)
    first = warnings.filters[0] if warnings.filters else None
    if first is None or getattr(first[3], "pattern", None) != _PYDICOM_MODULES:
        warnings.filterwarnings("ignore", module=_PYDICOM_MODULES)
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def damaged(file: Path) -> UserError:
    return UserError(f"{file} is damaged or truncated, or no DICOM file; copy it again.")
