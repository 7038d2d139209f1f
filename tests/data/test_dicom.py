from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.encaps import encapsulate
from pydicom.pixels import apply_modality_lut, apply_voi_lut, get_decoder, pixel_array
from pydicom.uid import (
    MPEG2MPML,
    CTImageStorage,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
)

from vmfcoop.data import dicom_codecs, dicom_file, image_io, read_image
from vmfcoop.data.dicom_file import READ_ATTRIBUTES, coded_size
from vmfcoop.errors import UserError

SECRET = "SECRET"


def example(name: str) -> Path:
    """One of the files that come inside pydicom's package."""
    path = get_testdata_file(name, download=False)
    assert path is not None, name
    return Path(path)


def write(path: Path, pixels: np.ndarray, syntax: str = ExplicitVRLittleEndian, **attributes: Any) -> Path:
    """Write a CT image ``(rows, columns[, 3])``, or several frames where NumberOfFrames is given."""
    dataset = Dataset()
    rows, columns = pixels.shape[1:3] if "NumberOfFrames" in attributes else pixels.shape[:2]
    colour = "RGB" in str(attributes.get("PhotometricInterpretation"))
    described = {
        "SOPClassUID": CTImageStorage,
        "Modality": "CT",
        "Rows": rows,
        "Columns": columns,
        "SamplesPerPixel": 3 if colour else 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8 * pixels.dtype.itemsize,
        "BitsStored": 8 * pixels.dtype.itemsize,
        "HighBit": 8 * pixels.dtype.itemsize - 1,
        "PixelRepresentation": int(pixels.dtype.kind == "i"),
    }
    if colour:
        described["PlanarConfiguration"] = 0
    for keyword, value in (described | attributes).items():
        setattr(dataset, keyword, value)
    if pixels.dtype.kind == "f":
        dataset.FloatPixelData = pixels.tobytes()
        for keyword in ("BitsStored", "HighBit", "PixelRepresentation"):
            delattr(dataset, keyword)
    elif "PixelData" not in dataset:
        dataset.PixelData = pixels.tobytes()
        dataset["PixelData"].VR = "OW"
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return path


def shown(name: Path | str) -> np.ndarray:
    """Grey of the picture, ``(H, W)``."""
    picture = read_image(name)
    assert picture.mode == "RGB"
    assert picture.info == {}
    channels = np.asarray(picture)
    assert (channels == channels[:, :, :1]).all()
    return channels[:, :, 0]


def in_window(values: np.ndarray, center: float, width: float) -> np.ndarray:
    return np.rint(255 * np.clip((values - center) / width + 0.5, 0, 1))


def refusal(name: Path | str) -> str:
    with pytest.raises(UserError) as caught:
        read_image(name)
    assert str(name).partition("#")[0] in str(caught.value)
    return str(caught.value)


# pydicom's own files against pydicom's own functions


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm",
        "MR_small_implicit.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_RLE.dcm",
        "MR_small_padded.dcm",
        "examples_overlay.dcm",
        "dicomdirtests/77654033/CR1/6154",
    ],
)
def test_window_of_the_file_is_pydicoms(name: str) -> None:
    path = example(name)
    dataset = pydicom.dcmread(path)
    stored = np.array([-(2 ** (dataset.BitsStored - 1)), 2 ** (dataset.BitsStored - 1) - 1])
    if dataset.PixelRepresentation == 0:
        stored = np.array([0, 2**dataset.BitsStored - 1])
    low, high = apply_modality_lut(stored, dataset)
    voi = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    unit = (voi - low) / (high - low)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        unit = 1 - unit
    assert np.abs(shown(path) - np.rint(255 * unit)).max() <= 1
    assert len(np.unique(unit)) > 10


@pytest.mark.parametrize(
    ("window", "center", "width"),
    [("lung", -600, 1500), ("bone", 400, 1800), ("soft-tissue", 40, 400), ("brain", 40, 80), ("0,9", 0, 9)],
)
def test_chosen_window_on_a_real_ct(window: str, center: float, width: float) -> None:
    path = example("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    assert np.abs(shown(f"{path}#window={window}") - in_window(hounsfield, center, width)).max() <= 1


def test_without_a_window_the_percentiles_of_the_frame() -> None:
    path = example("CT_small.dcm")
    dataset = pydicom.dcmread(path)
    values = apply_modality_lut(dataset.pixel_array, dataset)
    low, high = np.percentile(values[dataset.pixel_array != dataset.get("PixelPaddingValue")], (0.5, 99.5))
    assert np.abs(shown(path) - in_window(values, (low + high) / 2, high - low)).max() <= 1


@pytest.mark.parametrize(
    "name", ["examples_rgb_color.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm"]
)
def test_colour(name: str) -> None:
    path = example(name)
    assert (np.asarray(read_image(path)) == pixel_array(path, index=0)).all()


def test_palette_and_deep_colour() -> None:
    path = example("examples_palette.dcm")
    dataset = pydicom.dcmread(path)
    expected = pydicom.pixels.apply_color_lut(dataset.pixel_array, dataset) / 257
    assert np.abs(np.asarray(read_image(path)) - expected).max() <= 0.5
    stripes = np.asarray(read_image(example("SC_rgb_rle_16bit.dcm")))
    assert stripes[5, 50].tolist() == [255, 0, 0]
    assert (stripes == np.asarray(read_image(example("SC_rgb_rle.dcm")))).all()


def test_frames() -> None:
    path = example("rtdose.dcm")
    doses = pydicom.dcmread(path).pixel_array
    for frame, name in ((7, str(path)), (0, f"{path}#frame=0"), (14, f"{path}#frame=14")):
        low, high = np.percentile(doses[frame], (0.5, 99.5))
        assert np.abs(shown(name) - in_window(doses[frame], (low + high) / 2, high - low)).max() <= 1
    assert "no frame 15; choose 0 to 14" in refusal(f"{path}#frame=15")
    assert "no frame 1; choose the single one, 0" in refusal(f"{example('MR_small.dcm')}#frame=1")
    cine = example("examples_ybr_color.dcm")
    assert read_image(cine).tobytes() == read_image(f"{cine}#frame=15").tobytes()
    assert read_image(cine).tobytes() != read_image(f"{cine}#frame=0").tobytes()


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("dicomdirtests/DICOMDIR", "DICOMDIR, the index of a disc"),
        ("test-SR.dcm", "without an image (Comprehensive SR Storage)"),
        ("rtplan.dcm", "without an image (RT Plan Storage)"),
        ("rtstruct.dcm", "without an image (RT Structure Set Storage)"),
        ("waveform_ecg.dcm", "without an image"),
        ("MR_truncated.dcm", "truncated"),
        ("badVR.dcm", "damaged"),
        ("JPEG2000-embedded-sequence-delimiter.dcm", "more pixels"),  # states 3.7 thousand million columns
    ],
)
def test_files_without_a_readable_image(name: str, says: str) -> None:
    assert says in refusal(example(name))


def test_without_preamble(tmp_path: Path) -> None:
    whole = example("CT_small.dcm").read_bytes()
    expected = shown(example("CT_small.dcm"))
    meta_length = int.from_bytes(whole[140:144], "little")
    for name, start in (("meta.dcm", 132), ("dataset.dcm", 144 + meta_length)):
        (tmp_path / name).write_bytes(whole[start:])
        assert (shown(tmp_path / name) == expected).all()
    (tmp_path / "noise.dcm").write_bytes(np.random.default_rng(0).bytes(2000))
    assert "is no DICOM file" in refusal(tmp_path / "noise.dcm")


def test_content_decides_over_the_suffix(tmp_path: Path) -> None:
    content = example("MR_small.dcm").read_bytes()
    for name in ("IM0001", "a.png", "1.2.840.77"):
        (tmp_path / name).write_bytes(content)
        assert (shown(tmp_path / name) == shown(example("MR_small.dcm"))).all()


def test_syntax_that_lies_about_explicit_elements() -> None:
    # JPEG with the elements of implicit VR; the same picture is there uncompressed.
    lossy = np.asarray(read_image(example("SC_rgb_jpeg.dcm"))).astype(int)
    assert np.abs(lossy - np.asarray(read_image(example("SC_rgb_jpeg_dcmd.dcm")))).max() <= 8


# Compressed transfer syntaxes


@pytest.mark.parametrize(
    ("name", "module", "original", "apart"),
    [
        ("MR_small_jp2klossless.dcm", "openjpeg", "MR_small.dcm", 0),
        ("MR_small_jpeg_ls_lossless.dcm", "imagecodecs", "MR_small.dcm", 0),
        ("SC_rgb_jpeg_gdcm.dcm", "imagecodecs", "SC_rgb_rle.dcm", 0),
        ("SC_rgb_jls_lossy_sample.dcm", "imagecodecs", "SC_rgb_rle.dcm", 3),
        ("SC_rgb_jls_lossy_line.dcm", "imagecodecs", "SC_rgb_rle.dcm", 3),
        ("SC_rgb_gdcm_KY.dcm", "openjpeg", "SC_rgb_rle.dcm", 3),
    ],
)
def test_decoded_with_the_extra(name: str, module: str, original: str, apart: int) -> None:
    pytest.importorskip(module)
    decoded, plain = (np.asarray(read_image(example(n))).astype(int) for n in (name, original))
    assert np.abs(decoded - plain).max() <= apart


def test_twelve_bit_jpeg_and_deep_jpeg_2000_of_one_scan() -> None:
    pytest.importorskip("imagecodecs")
    pytest.importorskip("openjpeg")
    jpeg, jpeg_2000 = (shown(example(name)).astype(float) for name in ("JPGExtended.dcm", "JPEG2000.dcm"))
    assert np.corrcoef(jpeg.ravel(), jpeg_2000.ravel())[0, 1] > 0.95


@pytest.mark.parametrize("name", ["SC_rgb_jpeg_gdcm.dcm", "MR_small_jpeg_ls_lossless.dcm", "JPGExtended.dcm"])
def test_damaged_streams_do_not_end_the_process(tmp_path: Path, name: str) -> None:
    pytest.importorskip("imagecodecs")
    whole = example(name).read_bytes()
    draw = np.random.default_rng(5)
    path = tmp_path / "bad.dcm"
    refused = 0
    for _ in range(60):
        content = bytearray(whole)
        for at in draw.integers(len(whole) // 2, len(whole), 10):
            content[at] = draw.integers(256)
        path.write_bytes(content)
        try:
            read_image(path)
        except UserError:
            refused += 1
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "syntax", "says"),
    [
        ("MR_small_jp2klossless.dcm", JPEG2000Lossless, "JPEG 2000 Image Compression (Lossless Only)"),
        ("MR_small_jpeg_ls_lossless.dcm", JPEGLSLossless, "JPEG-LS Lossless Image Compression"),
        ("SC_rgb_jpeg_gdcm.dcm", JPEGLosslessSV1, "JPEG Lossless, Non-Hierarchical"),
        ("JPGExtended.dcm", JPEGExtended12Bit, "JPEG Extended (Process 2 and 4) with 12 bits"),
    ],
)
def test_missing_decoder(monkeypatch: pytest.MonkeyPatch, name: str, syntax: str, says: str) -> None:
    decoder = get_decoder(syntax)
    pillow = {"pillow": decoder._available["pillow"]} if syntax == JPEGExtended12Bit else {}
    monkeypatch.setattr(decoder, "_available", pillow)
    monkeypatch.setattr(dicom_codecs, "is_available", lambda uid: False)
    message = refusal(example(name))
    assert says in message
    assert "pip install 'vmfcoop[dicom]'" in message


def test_a_decoder_that_fails_where_another_may_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(src: bytes, runner: object) -> bytes:
        raise ValueError("not this kind")

    monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", {"pillow": fail})
    message = refusal(example("GDCMJ2K_TextGBR.dcm"))
    assert "could not be decoded; install another decoder with pip install 'vmfcoop[dicom]'" in message
    monkeypatch.setattr(get_decoder(JPEG2000Lossless), "_available", {"pylibjpeg": fail})
    assert "damaged" in refusal(example("GDCMJ2K_TextGBR.dcm"))


def test_syntax_without_any_decoder(tmp_path: Path) -> None:
    video = encapsulate([b"\x00\x00\x01\xb3" * 8])
    path = write(tmp_path / "a.dcm", np.zeros((4, 4), np.uint8), MPEG2MPML, PixelData=video)
    assert "MPEG2 Main Profile / Main Level, which is not read; convert" in refusal(path)
    path = write(tmp_path / "b.dcm", np.zeros((4, 4), np.uint8), "1.2.826.0.1.99", PixelData=video)
    assert "in an unknown transfer syntax; convert" in refusal(path)


def test_size_stated_by_compressed_frames() -> None:
    sof = b"\xff\xd8\xff\xe0\x00\x04ab\xff\xff\xc0\x00\x0b\x08\x12\x34\x56\x78\x01\x01\x11\x00"
    assert coded_size(sof) == (0x1234, 0x5678)
    assert coded_size(sof.replace(b"\xff\xc0", b"\xff\xf7")) == (0x1234, 0x5678)
    numbers = b"".join(number.to_bytes(4, "big") for number in (700, 500, 60, 100))
    siz = b"\xff\x4f\xff\x51\x00\x2f\x00\x00" + numbers
    assert coded_size(siz) == coded_size(b"\x00\x00\x00\x0cjP  \r\n" + siz) == (400, 640)
    for other in (b"", b"\xff\xd8", b"\x02\x00\x00\x00", sof[:12]):
        assert coded_size(other) == (0, 0)


# Values, on files written here


def test_monochrome1_padding_and_percentiles(tmp_path: Path) -> None:
    values = np.arange(-500, 500, dtype=np.int16).reshape(20, 50)
    values[0] = -2000
    described = {"RescaleSlope": 1, "RescaleIntercept": 0, "PixelPaddingValue": -2000}
    low, high = np.percentile(values[1:], (0.5, 99.5))
    expected = in_window(values, (low + high) / 2, high - low)
    path = write(tmp_path / "a.dcm", values, **described)
    assert np.abs(shown(path) - expected).max() <= 1
    inverted = shown(write(tmp_path / "b.dcm", values, PhotometricInterpretation="MONOCHROME1", **described))
    assert np.abs(inverted[1:] - (255 - expected[1:])).max() <= 1
    assert inverted[0].max() == 0
    values[1] = -1990
    path = write(
        tmp_path / "c.dcm",
        values,
        **described,
        PixelPaddingRangeLimit=-1990,
        WindowCenter=-2000,
        WindowWidth=9,
    )
    assert shown(path)[:2].max() == 0
    assert shown(path)[2:].min() == 255


def test_padding_whose_bits_were_written_as_unsigned(tmp_path: Path) -> None:
    values = np.full((4, 4), 100, np.int16)
    values[0] = -2000
    values[1] = 300
    path = write(tmp_path / "a.dcm", values)
    dataset = pydicom.dcmread(path)
    dataset.add_new("PixelPaddingValue", "US", 63536)
    dataset.save_as(path)
    assert shown(path)[:, 0].tolist() == [0, 255, 0, 0]


def test_depths(tmp_path: Path) -> None:
    grey = np.array([[10, 200]], np.uint8)
    assert shown(write(tmp_path / "a.dcm", grey)).tolist() == [[10, 200]]
    path = write(tmp_path / "b.dcm", grey, RescaleSlope=2, RescaleIntercept=0)
    assert shown(path).tolist() == [[0, 255]]
    colour = np.array([[[4095, 0, 2048]]], np.uint16)
    path = write(tmp_path / "c.dcm", colour, PhotometricInterpretation="RGB", BitsStored=12, HighBit=11)
    assert np.asarray(read_image(path)).tolist() == [[[255, 0, 128]]]
    path = write(tmp_path / "d.dcm", np.array([[1.0, 2, np.nan]], np.float32))
    assert shown(path).tolist() == [[0, 255, 0]]
    constant = np.full((2, 2), 7, np.uint16)
    assert shown(write(tmp_path / "e.dcm", constant)).max() == 0


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, [0, 0, 128, 255, 255]),
        ("LINEAR_EXACT", [0, 0, 128, 255, 255]),
        ("SIGMOID", [5, 30, 128, 225, 250]),
    ],
)
def test_voi_functions(tmp_path: Path, function: str | None, expected: list[int]) -> None:
    values = np.array([[-100, -50, 0, 50, 100]], np.int16)
    described = {"VOILUTFunction": function} if function else {}
    path = write(tmp_path / "a.dcm", values, WindowCenter=[0, 9], WindowWidth=[100, 9], **described)
    assert np.abs(shown(path)[0].astype(int) - expected).max() <= 2


def test_voi_and_modality_luts(tmp_path: Path) -> None:
    item = Dataset()
    item.LUTDescriptor = [4, 10, 12]
    item.add_new("LUTData", "US", [4095, 2048, 1024, 0])
    values = np.array([[0, 10, 11, 12, 13, 99]], np.uint16)
    path = write(tmp_path / "a.dcm", values, VOILUTSequence=[item], WindowCenter=1, WindowWidth=1)
    assert shown(path).tolist() == [[255, 255, 128, 64, 0, 0]]
    item.add_new("LUTData", "OW", np.array([4095, 2048, 1024, 0], "<u2").tobytes())
    item.LUTDescriptor = [4, 10, 12]
    path = write(tmp_path / "b.dcm", values, VOILUTSequence=[item], RescaleSlope=1, RescaleIntercept=0)
    assert shown(path).tolist() == [[255, 255, 128, 64, 0, 0]]
    item.ModalityLUTType = "US"
    path = write(tmp_path / "c.dcm", values, ModalityLUTSequence=[item])
    assert shown(f"{path}#window=2047.5,4095").tolist() == [[255, 255, 128, 64, 0, 0]]


def test_named_windows_need_hounsfield_units(tmp_path: Path) -> None:
    message = refusal(f"{example('MR_small.dcm')}#window=lung")
    assert "is for CT in Hounsfield units" in message
    bare = write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    assert "is for CT in Hounsfield units" in refusal(f"{bare}#window=brain")
    assert shown(f"{example('MR_small.dcm')}#window=500,900").any()
    assert "colour" in refusal(f"{example('examples_rgb_color.dcm')}#window=40,400")
    assert "slice= has no meaning for a DICOM file" in refusal(f"{bare}#slice=1")


@pytest.mark.parametrize(
    ("described", "size"),
    [
        ({"PixelSpacing": [2, 1]}, (10, 20)),
        ({"PixelSpacing": [1, 3]}, (30, 10)),
        ({"ImagerPixelSpacing": [1, 2]}, (20, 10)),
        ({"PixelAspectRatio": [3, 2]}, (10, 15)),
        ({"PixelSpacing": [1, 1], "PixelAspectRatio": [3, 2]}, (10, 10)),
        ({"PixelSpacing": [0, 1]}, (10, 10)),
        ({"PixelSpacing": None}, (10, 10)),
    ],
)
def test_square_pixels(tmp_path: Path, described: dict[str, Any], size: tuple[int, int]) -> None:
    assert read_image(write(tmp_path / "a.dcm", np.zeros((10, 10), np.uint8), **described)).size == size


def group(macro: str, **attributes: Any) -> Dataset:
    inner, outer = Dataset(), Dataset()
    for keyword, value in attributes.items():
        setattr(inner, keyword, value)
    setattr(outer, macro, [inner])
    return outer


def test_functional_groups_of_an_enhanced_ct(tmp_path: Path) -> None:
    frames = np.full((3, 2, 2), 1000, np.uint16)
    shared = group("PixelValueTransformationSequence", RescaleSlope=1, RescaleIntercept=-1000)
    shared.PixelMeasuresSequence = group("PixelMeasuresSequence", PixelSpacing=[2, 1]).PixelMeasuresSequence
    per_frame = [group("FrameVOILUTSequence", WindowCenter=c, WindowWidth=401) for c in (-100.5, 0.5, 100.5)]
    path = write(
        tmp_path / "a.dcm",
        frames,
        NumberOfFrames=3,
        SharedFunctionalGroupsSequence=[shared],
        PerFrameFunctionalGroupsSequence=per_frame,
    )
    assert [int(shown(f"{path}#frame={frame}")[0, 0]) for frame in range(3)] == [192, 128, 64]
    assert read_image(path).size == (2, 4)
    assert shown(f"{path}#window=soft-tissue").max() == in_window(np.array(0), 40, 400)


# Limits and damage


def test_pixel_limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((20, 20), np.uint8))
    cine = example("examples_ybr_color.dcm")
    stated = pydicom.dcmread(cine)
    stated.Rows = stated.Columns = 16
    stated.save_as(tmp_path / "liar.dcm")
    monkeypatch.setattr(image_io, "MAX_PIXELS", 399)
    monkeypatch.setattr(dicom_file, "decode", lambda *_: pytest.fail("decoded"))
    assert "has more pixels" in refusal(path)
    assert "has more pixels" in refusal(tmp_path / "liar.dcm")


def test_deflated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64)
    path = write(tmp_path / "a.dcm", values, DeflatedExplicitVRLittleEndian)
    assert (shown(path) == shown(write(tmp_path / "b.dcm", values))).all()
    monkeypatch.setattr(dicom_file, "MAX_INFLATED_BYTES", 8000)
    assert "inflates to more" in refusal(path)


@pytest.mark.parametrize(
    "name", ["CT_small.dcm", "MR_small_RLE.dcm", "examples_ybr_color.dcm", "image_dfl.dcm"]
)
def test_truncations(tmp_path: Path, name: str) -> None:
    whole = example(name).read_bytes()
    path = tmp_path / "cut.dcm"
    end = int(len(whole) * (0.5 if name == "examples_ybr_color.dcm" else 0.95))
    for length in [*range(0, 1500, 61), *range(1500, end, max(997, end // 20))]:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "copy it again" in message or "without an image" in message, (length, message)


@pytest.mark.parametrize("name", ["MR_small.dcm", "MR_small_RLE.dcm", "rtdose.dcm"])
def test_flipped_bytes_never_raise_anything_else(tmp_path: Path, name: str) -> None:
    whole = example(name).read_bytes()
    draw = np.random.default_rng(2)
    path = tmp_path / "bad.dcm"
    refused = 0
    for _ in range(120):
        content = bytearray(whole)
        for at in draw.integers(132, min(len(whole), 2500), 8):
            content[at] = draw.integers(256)
        path.write_bytes(content)
        try:
            assert read_image(path).mode == "RGB"
        except UserError:
            refused += 1
    assert 0 < refused < 120


def test_no_pixel_data(tmp_path: Path) -> None:
    path = write(tmp_path / "a.dcm", np.zeros((2, 2), np.uint8))
    dataset = pydicom.dcmread(path)
    del dataset.PixelData
    dataset.save_as(path)
    assert "no pixel data" in refusal(path)
    assert "colour space" in refusal(
        write(tmp_path / "b.dcm", np.zeros((2, 2), np.uint8), PhotometricInterpretation="HSV")
    )


# Patients


IDENTIFYING = {
    "PatientName": f"{SECRET}^JANE",
    "PatientID": SECRET,
    "OtherPatientIDs": SECRET,
    "AccessionNumber": SECRET,
    "InstitutionName": SECRET,
    "ReferringPhysicianName": SECRET,
    "StudyDescription": SECRET,
    "PatientComments": SECRET,
    "ImageComments": SECRET,
}


def identified(path: Path, **attributes: Any) -> Path:
    """An image with identifiers, some of them in attributes whose values pydicom would warn of."""
    path = write(path, np.arange(400, dtype=np.uint16).reshape(20, 20), **IDENTIFYING, **attributes)
    dataset = pydicom.dcmread(path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dataset.add_new("PatientBirthDate", "DA", SECRET)
        dataset.add_new("Modality", "CS", f"{SECRET}lower-case")
        dataset.add_new("WindowCenter", "LO", SECRET)
        dataset.add_new("SpecificCharacterSet", "CS", SECRET)
        dataset.save_as(path)
    return path


def test_identifiers_are_not_among_the_attributes_that_are_read() -> None:
    tags = [pydicom.datadict.tag_for_keyword(keyword) for keyword in READ_ATTRIBUTES]
    assert None not in tags
    groups = {tag >> 16 for tag in tags if tag is not None}
    assert groups <= {0x0008, 0x0018, 0x0028, 0x2050, 0x5200, 0x7FE0}
    assert {keyword for keyword, tag in zip(READ_ATTRIBUTES, tags, strict=True) if tag >> 16 == 8} == {
        "SOPClassUID",
        "Modality",
        "PixelPresentation",
    }


@pytest.mark.filterwarnings("always")
def test_nothing_says_who_the_patient_is(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    path = identified(tmp_path / "a.dcm")
    odd_colour = identified(tmp_path / "b.dcm", PhotometricInterpretation=SECRET)
    whole = path.read_bytes()
    assert whole.count(SECRET.encode()) > 10
    with pytest.warns(UserWarning, match=SECRET):
        str(pydicom.dcmread(path))
    caplog.clear()
    caplog.set_level(logging.DEBUG)
    told: list[str] = []
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        picture = read_image(path)
        assert picture.info == {}
        assert not picture.getexif()
        for length in range(0, len(whole), 17):
            (tmp_path / "cut.dcm").write_bytes(whole[:length])
            told += failure(tmp_path / "cut.dcm")
        for selection in ("window=lung", "frame=7", "slice=2"):
            told += failure(f"{path}#{selection}")
        told += failure(odd_colour)
        told += failure(example("badVR.dcm"))
    output = "".join(capfd.readouterr())
    assert len(told) > 20
    for text in (*told, *(str(warning.message) for warning in warned), caplog.text, output):
        assert SECRET not in text
        assert "1A" not in text


def failure(name: Path | str) -> list[str]:
    """All that the error holds, its causes too; empty where the image could be read."""
    try:
        read_image(name)
    except UserError as error:
        assert error.__cause__ is None
        assert error.__context__ is None or error.__suppress_context__
        return [str(error)]
    return []


def test_pydicoms_own_users_keep_their_log(caplog: pytest.LogCaptureFixture) -> None:
    read_image(example("MR_small.dcm"))
    logging.getLogger("pydicom").warning("for somebody else")
    assert "for somebody else" in caplog.text


def test_baseline_jpeg_is_read_without_the_extra() -> None:
    assert "pillow" in get_decoder(JPEGBaseline8Bit).available_plugins
    assert read_image(example("SC_rgb_jpeg_dcmtk.dcm")).size == (100, 100)
