from __future__ import annotations

import builtins
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmfcoop.data import as_rgb, image_io, is_image_path, read_image
from vmfcoop.errors import UserError


def pixels(image: Image.Image) -> list[list[list[int]]]:
    assert image.mode == "RGB"
    return np.asarray(image).tolist()


def saved(image: Image.Image, path: Path, **options: object) -> Image.Image:
    image.save(path, **options)
    return read_image(path)


def grey(*values: int) -> list[list[list[int]]]:
    return [[[value] * 3 for value in values]]


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "gif", "webp"])
def test_lossless_formats_keep_eight_bit_grey(tmp_path: Path, suffix: str) -> None:
    image = Image.fromarray(np.array([[0, 100, 255]], np.uint8))
    options = {"lossless": True} if suffix == "webp" else {}
    assert pixels(saved(image, tmp_path / f"a.{suffix}", **options)) == grey(0, 100, 255)


def test_jpeg_is_read_near_its_colour(tmp_path: Path) -> None:
    read = saved(Image.new("RGB", (8, 8), (200, 100, 50)), tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(read).astype(int) - [200, 100, 50]).max() <= 4


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 128, 255], [0, 128, 255]),  # 8 bits in a 16-bit file
        ([0, 1023, 4095], [0, 64, 255]),  # 12 bits
        ([0, 1023, 3000], [0, 64, 187]),  # 12 bits, white not reached
        ([0, 5000, 16383], [0, 78, 255]),  # 14 bits
        ([0, 257 * 100, 65535], [0, 100, 255]),  # 16 bits
    ],
)
def test_deep_grey_is_divided_by_its_depth(
    tmp_path: Path, suffix: str, values: list[int], expected: list[int]
) -> None:
    image = Image.fromarray(np.array([values], np.uint16))
    assert pixels(saved(image, tmp_path / f"a.{suffix}")) == grey(*expected)


def test_signed_32_bit_is_stretched_when_negative(tmp_path: Path) -> None:
    hounsfield = Image.fromarray(np.array([[-1000, 0, 1000]], np.int32))
    assert hounsfield.mode == "I"
    assert pixels(saved(hounsfield, tmp_path / "a.tif")) == grey(0, 128, 255)


def test_32_bit_within_12_bits_is_12_bits(tmp_path: Path) -> None:
    assert pixels(saved(Image.fromarray(np.array([[0, 4095]], np.int32)), tmp_path / "a.tif")) == grey(0, 255)


def test_float_file_is_stretched_and_nan_is_black(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0.2, 0.3, 0.4, np.nan]], np.float32))
    assert pixels(saved(image, tmp_path / "a.tif")) == grey(0, 128, 255, 0)


def test_constant_float_file_is_black(tmp_path: Path) -> None:
    assert pixels(saved(Image.fromarray(np.full((1, 2), 7.0, np.float32)), tmp_path / "a.tif")) == grey(0, 0)


def test_palette(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, tmp_path / "a.png")) == [[[10, 20, 30], [200, 100, 0]]]


def test_transparent_palette_entry_is_black(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 0])
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, tmp_path / "a.png", transparency=0)) == [[[0, 0, 0], [200, 100, 0]]]


def test_alpha_is_composited_on_black(tmp_path: Path) -> None:
    image = Image.new("RGBA", (3, 1), (200, 100, 50, 255))
    image.putpixel((1, 0), (200, 100, 50, 0))
    image.putpixel((2, 0), (200, 100, 50, 128))
    assert pixels(saved(image, tmp_path / "a.png")) == [[[200, 100, 50], [0, 0, 0], [100, 50, 25]]]


def test_grey_with_alpha(tmp_path: Path) -> None:
    image = Image.new("LA", (2, 1), (200, 255))
    image.putpixel((1, 0), (200, 0))
    assert pixels(saved(image, tmp_path / "a.png")) == grey(200, 0)


def test_cmyk(tmp_path: Path) -> None:
    image = Image.new("CMYK", (1, 1), (0, 255, 255, 0))
    assert pixels(saved(image, tmp_path / "a.tif")) == [[[255, 0, 0]]]


def test_one_bit(tmp_path: Path) -> None:
    image = Image.new("1", (2, 1))
    image.putpixel((1, 0), 1)
    assert pixels(saved(image, tmp_path / "a.png")) == grey(0, 255)


@pytest.mark.parametrize("options", [{}, {"compression": "tiff_lzw"}])
@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, suffix: str, options: dict[str, str]
) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    mirrored = stored[:, ::-1]
    # The EXIF standard's meaning of 1 to 8, clockwise quarter turns being k = -1.
    upright = [
        stored,
        mirrored,
        np.rot90(stored, 2),
        np.rot90(mirrored, 2),
        stored.T,
        np.rot90(stored, -1),
        np.rot90(stored, 2).T,
        np.rot90(stored, 1),
    ][orientation - 1]
    exif = Image.Exif()
    exif[0x0112] = orientation
    read = saved(Image.fromarray(stored), tmp_path / f"a.{suffix}", exif=exif, **options)
    assert np.asarray(read)[:, :, 0].tolist() == upright.tolist()


def test_exif_orientation_of_deep_grey(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    read = saved(Image.fromarray(np.array([[0, 65535]], np.uint16)), tmp_path / "a.png", exif=exif)
    assert pixels(read) == grey(255, 0)


@pytest.mark.parametrize("suffix", ["gif", "png", "tif", "webp"])
def test_first_frame_of_several(tmp_path: Path, suffix: str) -> None:
    first, second = Image.new("RGB", (4, 4), (255, 0, 0)), Image.new("RGB", (4, 4), (0, 0, 255))
    options = {"lossless": True} if suffix == "webp" else {}
    read = saved(first, tmp_path / f"a.{suffix}", save_all=True, append_images=[second], **options)
    assert pixels(read)[0][0] == [255, 0, 0]


def test_format_is_told_from_content(tmp_path: Path) -> None:
    Image.new("L", (1, 1), 9).save(tmp_path / "a.jpg", "PNG")
    assert pixels(read_image(tmp_path / "a.jpg")) == grey(9)


def write_truncated(path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, "PNG")
    path.write_bytes(path.read_bytes()[:2000])


@pytest.mark.parametrize(
    ("name", "write", "says"),
    [
        ("empty.png", lambda p: p.touch(), "truncated or not an image"),
        ("text.png", lambda p: p.write_text("hello"), "truncated or not an image"),
        ("half.png", write_truncated, "truncated or not an image"),
        ("header.jpg", lambda p: p.write_bytes(b"\xff\xd8\xff\xe0"), "truncated or not an image"),
        ("drawing.png", lambda p: Image.new("L", (2, 2)).save(p, "EPS"), "truncated or not an image"),
        ("missing.png", lambda p: None, "does not exist"),
        ("folder.png", lambda p: p.mkdir(), "is a folder"),
        ("scan.dcm", lambda p: p.touch(), "no DICOM file"),
        ("brain.nii.gz", lambda p: p.touch(), "no NIfTI file"),
        ("brain.NII", lambda p: p.touch(), "no NIfTI file"),
        ("missing.png#frame=0", lambda p: None, "does not exist"),
    ],
)
def test_unreadable_files_are_named(tmp_path: Path, name: str, write: object, says: str) -> None:
    path = tmp_path / name
    write(path)
    with pytest.raises(UserError, match=says) as caught:
        read_image(path)
    assert str(path).partition("#")[0] in str(caught.value)


def test_every_truncation_of_a_jpeg_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.jpg"
    Image.effect_noise((40, 40), 60).save(path)
    whole = path.read_bytes()
    for length in range(0, len(whole) - 40, 37):
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.jpg is truncated"):
            read_image(path)


def test_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "huge.png"
    Image.new("L", (20, 20)).save(path)
    monkeypatch.setattr(image_io, "MAX_PIXELS", 399)
    with pytest.raises(UserError, match=r"huge\.png has more pixels"):
        read_image(path)


def test_pillows_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (20, 20)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(UserError, match=r"bomb\.png has more pixels.*downscale"):
        read_image(path)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.array([[0, 7, 255]], np.uint8), grey(0, 7, 255)),
        (np.array([[[7]]], np.uint8), grey(7)),
        (np.array([[False, True]]), grey(0, 255)),
        (np.array([[0, 4095]], np.uint16), grey(0, 255)),
        (np.array([[0, 65535]], ">u2"), grey(0, 255)),
        (np.array([[0, 255]], np.int64), grey(0, 255)),
        (np.array([[0, 100_000]], np.int64), grey(0, 255)),
        (np.array([[0.0, 0.5]]), grey(0, 128)),
        (np.array([[-1.0, 1.0]], np.float16), grey(0, 255)),
        (np.array([[np.inf, 2.0, 4.0]]), grey(0, 0, 255)),
        (np.array([[[1, 2, 3]]], np.uint8), [[[1, 2, 3]]]),
        (np.array([[[0.0, 0.2, 1.0]]], np.float32), [[[0, 51, 255]]]),
        (np.array([[[200, 100, 50, 0], [1, 2, 3, 255]]], np.uint8), [[[0, 0, 0], [1, 2, 3]]]),
        (np.array([[[4095, 0, 0, 65535]]], np.uint16), [[[255, 0, 0]]]),
    ],
)
def test_arrays(array: np.ndarray, expected: list[list[list[int]]]) -> None:
    assert pixels(as_rgb(array)) == expected


def test_array_of_rgb_is_not_changed() -> None:
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    assert (np.asarray(as_rgb(array[::-1])) == array[::-1]).all()


@pytest.mark.parametrize(
    "array",
    [np.zeros((3, 4, 5)), np.zeros(4), np.zeros((0, 3)), np.array([["a"]]), np.zeros((2, 2), complex)],
)
def test_array_of_another_form(array: np.ndarray) -> None:
    with pytest.raises(UserError, match="An image array must be"):
        as_rgb(array)


def test_mode_without_an_rgb_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="mode La has no RGB form"):
        as_rgb(Image.new("La", (2, 2)))
    Image.new("L", (2, 2)).save(tmp_path / "a.png")
    monkeypatch.setattr(image_io.ImageOps, "exif_transpose", lambda image: Image.new("La", (2, 2)))
    with pytest.raises(UserError, match=r"a\.png: A picture of mode La"):
        read_image(tmp_path / "a.png")


def grey_stack(path: Path, values: list[int], key: str) -> None:
    first, *others = (Image.new("L", (4, 4), value).convert("RGB") for value in values)
    options = {"lossless": True} if key == "webp" else {}
    first.save(path, save_all=True, append_images=others, **options)


@pytest.mark.parametrize(("suffix", "key"), [("tif", "page"), ("gif", "frame"), ("webp", "frame")])
def test_page_or_frame_that_is_named(tmp_path: Path, suffix: str, key: str) -> None:
    path = tmp_path / f"a.{suffix}"
    grey_stack(path, [10, 90, 200], suffix)
    shown = [pixels(read_image(f"{path}#{key}={index}"))[0][0] for index in range(3)]
    assert shown == [[10] * 3, [90] * 3, [200] * 3]
    with pytest.raises(UserError, match=rf"{key} 3; choose 0 to 2"):
        read_image(f"{path}#{key}=3")


def test_frame_of_an_animated_png(tmp_path: Path) -> None:
    grey_stack(tmp_path / "a.png", [10, 90], "png")
    assert pixels(read_image(tmp_path / "a.png#frame=1"))[0][0] == [90] * 3


def test_pages_have_their_own_size_and_orientation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    second = Image.new("L", (6, 2), 0)
    second.putpixel((0, 0), 255)
    second.encoderinfo = {"exif": exif}
    path = tmp_path / "a.tif"
    Image.new("L", (4, 4)).save(path, save_all=True, append_images=[second])
    shown = np.asarray(read_image(f"{path}#page=1"))[:, :, 0]
    assert shown.shape == (6, 2)
    assert shown[0, 1] == 255
    monkeypatch.setattr(image_io, "MAX_PIXELS", 11)
    with pytest.raises(UserError, match="more pixels"):
        read_image(f"{path}#page=1")


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("page=1", "has no page 1; choose the single one, 0"),
        ("slice=1", "slice= has no meaning for a picture"),
        ("window=lung", "window= has no meaning for a picture"),
        ("page=0&frame=0", "same thing"),
    ],
)
def test_selections_that_do_not_fit_a_picture(tmp_path: Path, selection: str, says: str) -> None:
    Image.new("L", (4, 4)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=says):
        read_image(tmp_path / f"a.png#{selection}")


def test_no_metadata_is_returned(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "DOE^JANE"
    read = saved(Image.new("RGB", (4, 4)), tmp_path / "a.jpg", exif=exif, dpi=(72, 72), comment=b"DOE")
    assert read.info == {}
    assert not read.getexif()


def test_names_of_images(tmp_path: Path) -> None:
    for name in (
        "a/b.TIFF",
        "a.dcm",
        "a.DICOM",
        "a.nii",
        "a.NII.GZ",
        "a.dcm#frame=2",
        "a.nii.gz#x",
        "a#1.png",
    ):
        assert is_image_path(Path(name)), name
    for name in ("Thumbs.db", "notes", "a.gz", "a.nii.txt", "#", "1.2.840.1"):
        assert not is_image_path(Path(name)), name


def test_dicom_without_a_suffix_is_told_by_its_content(tmp_path: Path) -> None:
    magic = bytes(128) + b"DICM"
    for name in ("IM000001", "1.2.840.113619.2.55", "DICOMDIR", "report.pdf"):
        (tmp_path / name).write_bytes(magic)
    (tmp_path / "LICENSE").write_bytes(b"x" * 200)
    found = {path.name for path in tmp_path.iterdir() if is_image_path(path)}
    assert found == {"IM000001", "1.2.840.113619.2.55"}


@pytest.mark.parametrize("suffix", [".png", ".dcm", ".nii.gz"])
def test_files_that_may_not_be_read(tmp_path: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / f"closed{suffix}"
    file.write_bytes(b"content")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(file))

    for owner in (Path, builtins, gzip):
        monkeypatch.setattr(owner, "open", refuse)
    with pytest.raises(UserError, match="closed.* may not be read; change its permissions"):
        read_image(file)


def test_a_folder_that_may_not_be_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, **_: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", refuse)
    with pytest.raises(UserError, match="may not be read; change its permissions"):
        read_image(tmp_path / "a.png")


@pytest.mark.parametrize("name", ["x" * 5000, "x" * 5000 + ".dcm", "x" * 5000 + ".nii#slice=1"])
def test_names_that_no_disk_could_hold(name: str) -> None:
    with pytest.raises(UserError, match="cannot be read .*; check the path"):
        read_image(name)
