from __future__ import annotations

import gzip
import itertools
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, ornt_transform

from vmfcoop.data import image_io, nifti, read_image
from vmfcoop.data.display import CT_WINDOWS
from vmfcoop.errors import UserError

EXAMPLES = Path(nibabel.__file__).parent / "tests" / "data"
RAS = np.diag([1.0, 1.0, 1.0, 1.0])


def save(path: Path, data: np.ndarray, affine: np.ndarray = RAS) -> Path:
    nibabel.save(nibabel.Nifti1Image(data, affine), path)
    return path


def bare_header(shape: tuple[int, ...], dtype: type) -> nibabel.Nifti1Header:
    """Header of a single file whose voxels start at byte 352."""
    header = nibabel.Nifti1Header()
    header.set_data_shape(shape)
    header.set_data_dtype(dtype)
    header["vox_offset"] = 352
    header["magic"] = b"n+1"
    header.set_sform(RAS, 1)
    return header


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


def counting(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(np.prod(shape), dtype=np.int16).reshape(shape)


# Orientation


def test_radiological_display_of_the_right_anterior_superior_corner(tmp_path: Path) -> None:
    data = np.zeros((4, 5, 6), np.int16)
    data[3, 4, 5] = 100
    path = save(tmp_path / "a.nii", data)
    expected = {"axis=2&slice=5": (5, 4), "axis=1&slice=4": (6, 4), "axis=0&slice=3": (6, 5)}
    for selection, shape in expected.items():
        grey = shown(f"{path}#{selection}&window=50,100")
        assert grey.shape == shape
        # Right is on the left, anterior or superior on top, and anterior on the left of a sagittal slice.
        assert grey[0, 0] == 255
        assert grey.sum() == 255


def test_default_is_the_middle_axial_slice(tmp_path: Path) -> None:
    data = counting((4, 5, 6))
    path = save(tmp_path / "a.nii.gz", data)
    grey = shown(f"{path}#window=60,120")
    assert (grey == in_window(data[::-1, ::-1, 3].T, 60, 120)).all()
    assert (grey == shown(f"{path}#axis=2&slice=3&window=60,120")).all()


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_every_stored_orientation_shows_the_same(tmp_path: Path, suffix: str) -> None:
    data = counting((3, 4, 5))
    image = nibabel.Nifti1Image(data, np.diag([1.0, 2.0, 3.0, 1.0]))
    slices = ["axis=0&slice=1", "axis=1&slice=1", "axis=2&slice=1"]
    reference = [
        read_image(f"{save(tmp_path / f'ras.{suffix}', data, image.affine)}#{s}").tobytes() for s in slices
    ]
    assert len(set(reference)) == 3
    for order in itertools.permutations(range(3)):
        for flips in itertools.product((0, 1), repeat=3):
            codes = tuple(
                "RAS"[axis] if not flip else "LPI"[axis] for axis, flip in zip(order, flips, strict=True)
            )
            moved = image.as_reoriented(ornt_transform(axcodes2ornt("RAS"), axcodes2ornt(codes)))
            path = tmp_path / f"{''.join(codes)}.{suffix}"
            nibabel.save(moved, path)
            assert nibabel.aff2axcodes(nibabel.load(path).affine) == codes
            assert [read_image(f"{path}#{s}").tobytes() for s in slices] == reference, codes


def test_oblong_voxels_are_made_square(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", counting((4, 5, 6)), np.diag([0.5, 1.0, 3.0, 1.0]))
    assert read_image(f"{path}#axis=2").size == (4, 10)
    assert read_image(f"{path}#axis=1").size == (4, 36)
    assert read_image(f"{path}#axis=0").size == (5, 18)


def test_slices_of_a_real_brain_match_nibabel() -> None:
    image = nibabel.as_closest_canonical(nibabel.load(EXAMPLES / "anatomical.nii"))
    data = image.get_fdata()
    low, high = np.percentile(data, (0.5, 99.5))
    for axis, position in ((0, 3), (1, 20), (2, 12)):
        expected = in_window(np.take(data, position, axis=axis)[::-1, ::-1].T, (low + high) / 2, high - low)
        grey = shown(EXAMPLES / f"anatomical.nii#axis={axis}&slice={position}")
        assert np.abs(grey - expected).max() <= 1


def test_nifti_2() -> None:
    assert shown(EXAMPLES / "example_nifti2.nii.gz").size


# Values


def test_black_and_white_are_those_of_the_volume(tmp_path: Path) -> None:
    data = np.zeros((10, 10, 10), np.float32)
    data[..., 2] = np.linspace(0, 50, 100).reshape(10, 10)
    data[..., 7] = np.linspace(0, 1000, 100).reshape(10, 10)
    data[0, 0, 7] = np.nan
    path = save(tmp_path / "a.nii", data)
    low, high = np.percentile(data[np.isfinite(data)], (0.5, 99.5))
    expected = in_window(data[..., 2][::-1, ::-1].T, (low + high) / 2, high - low)
    assert np.abs(shown(f"{path}#slice=2") - expected).max() <= 1
    assert shown(f"{path}#slice=2").max() < 20
    assert shown(f"{path}#slice=7")[-1, -1] == 0  # not a number
    assert shown(f"{path}#slice=0").max() == 0


def test_a_mask_between_the_grid_points_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nifti, "_RANGE_VOXELS", 100)
    data = np.zeros((20, 20, 20), np.uint8)
    data[7, 7, 7] = 1
    grey = shown(f"{save(tmp_path / 'a.nii', data)}#slice=7")
    assert grey.max() == 255
    assert grey.sum() == 255


def test_constant_volume_is_black(tmp_path: Path) -> None:
    assert shown(save(tmp_path / "a.nii.gz", np.full((3, 3, 3), 7, np.int16))).max() == 0


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_slope_and_intercept(tmp_path: Path, suffix: str) -> None:
    header = bare_header((4, 4, 4), np.int16)
    header.set_slope_inter(2.0, -1000.0)
    content = header.binaryblock + bytes(4) + np.full(64, 200, np.int16).tobytes()
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(gzip.compress(content) if suffix == "nii.gz" else content)
    assert set(np.unique(shown(f"{path}#window=lung"))) == {128}


@pytest.mark.parametrize("name", list(CT_WINDOWS))
def test_ct_windows(tmp_path: Path, name: str) -> None:
    hounsfield = np.linspace(-1024, 3071, 64).reshape(4, 4, 4)
    path = save(tmp_path / "a.nii", hounsfield)
    window = {"lung": (-600, 1500), "bone": (400, 1800), "soft-tissue": (40, 400), "brain": (40, 80)}[name]
    expected = in_window(hounsfield[::-1, ::-1, 2].T, *window)
    assert np.abs(shown(f"{path}#window={name}") - expected).max() <= 1


def test_volumes_of_a_series(tmp_path: Path) -> None:
    data = np.zeros((3, 3, 3, 2, 2), np.int16)
    for number, (t, u) in enumerate(((0, 0), (1, 0), (0, 1), (1, 1))):
        data[..., t, u] = 10 * number
    for suffix in ("nii", "nii.gz"):
        path = save(tmp_path / f"a.{suffix}", data)
        levels = [shown(f"{path}#frame={frame}&window=40,80").max() for frame in range(4)]
        assert levels == [0, 32, 64, 96]
        assert shown(f"{path}#window=40,80").max() == 0
        with pytest.raises(UserError, match=r"no frame 4; choose 0 to 3"):
            read_image(f"{path}#frame=4")


def test_a_single_slice_without_a_third_dimension(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", counting((4, 5)))
    assert read_image(path).size == (4, 5)


def test_colour_voxels(tmp_path: Path) -> None:
    data = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    data[1, 1, 1] = (200, 100, 50)
    path = save(tmp_path / "a.nii", data)
    assert np.asarray(read_image(path))[0, 0].tolist() == [200, 100, 50]
    with pytest.raises(UserError, match="colour"):
        read_image(f"{path}#window=1,2")


# Limits, damage, selections


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("slice=6", "no slice 6; choose 0 to 5"),
        ("axis=0&slice=4", "no slice 4; choose 0 to 3"),
        ("frame=1", "no frame 1; choose the single one, 0"),
        ("page=0", "page= has no meaning for a NIfTI file"),
    ],
)
def test_selections_that_do_not_fit(tmp_path: Path, selection: str, says: str) -> None:
    path = save(tmp_path / "a.nii", counting((4, 5, 6)))
    with pytest.raises(UserError, match=says):
        read_image(f"{path}#{selection}")


@pytest.mark.parametrize("suffix", ["nii", "nii.gz"])
def test_every_truncation_is_a_user_error(tmp_path: Path, suffix: str) -> None:
    noise = np.random.default_rng(0).integers(0, 4000, (12, 12, 12)).astype(np.int16)
    whole = save(tmp_path / f"whole.{suffix}", noise).read_bytes()
    path = tmp_path / f"cut.{suffix}"
    for length in [*range(0, 400, 13), *range(400, len(whole) - 1, 211), len(whole) - 12]:
        path.write_bytes(whole[:length])
        with pytest.raises(UserError, match=r"cut\.nii(\.gz)? is truncated or no NIfTI"):
            read_image(path)


@pytest.mark.filterwarnings("ignore")
def test_damaged_headers_never_raise_anything_else(tmp_path: Path) -> None:
    whole = bytearray(save(tmp_path / "whole.nii", counting((6, 6, 6))).read_bytes())
    path = tmp_path / "bad.nii"
    draw = np.random.default_rng(1)
    refused = 0
    for _ in range(300):
        content = whole.copy()
        for at in draw.integers(0, 352, 3):
            content[at] = draw.integers(256)
        path.write_bytes(content)
        try:
            assert read_image(path).mode == "RGB"
        except UserError:
            refused += 1
    assert 0 < refused < 300


def test_complex_numbers_and_no_orientation(tmp_path: Path) -> None:
    path = save(tmp_path / "a.nii", np.zeros((2, 2, 2), np.complex64))
    with pytest.raises(UserError, match="complex numbers"):
        read_image(path)
    image = nibabel.Nifti1Image(counting((2, 2, 2)), RAS)
    image.header["srow_x"] = 0
    image.header["sform_code"] = 1
    (tmp_path / "b.nii").write_bytes(image.header.binaryblock + bytes(4) + bytes(16))
    with pytest.raises(UserError, match="no valid orientation"):
        read_image(tmp_path / "b.nii")


def test_slices_beyond_the_pixel_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save(tmp_path / "a.nii", counting((4, 5, 6)))
    monkeypatch.setattr(image_io, "MAX_PIXELS", 20)
    assert read_image(f"{path}#axis=2").size == (4, 5)
    with pytest.raises(UserError, match=r"a\.nii.* has more pixels"):
        read_image(f"{path}#axis=0")


@pytest.mark.parametrize("limit", ["MAX_VOLUME_BYTES", "MAX_FILE_BYTES"])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str) -> None:
    path = save(tmp_path / "bomb.nii.gz", np.zeros((256, 256, 256), np.int16))
    assert path.stat().st_size < 200_000
    monkeypatch.setattr(nifti, limit, 2**24)
    tracemalloc.start()
    with pytest.raises(UserError, match="larger than the 0 GiB"):
        read_image(path)
    assert tracemalloc.get_traced_memory()[1] < 2**22
    tracemalloc.stop()


def test_a_header_that_promises_more_than_deflate_can_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header = bare_header((1000, 1000, 1000), np.uint8)
    path = tmp_path / "a.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    monkeypatch.setattr(nifti, "_proxy", lambda layout: pytest.fail("read beyond the header"))
    with pytest.raises(UserError, match="truncated"):
        read_image(path)


def test_only_the_needed_slice_is_read(tmp_path: Path) -> None:
    header = bare_header((1024, 1024, 1000), np.int16)
    path = tmp_path / "sparse.nii"
    with path.open("wb") as stream:
        stream.write(header.binaryblock + bytes(4))
        stream.seek(352 + 2 * 1024 * 1024 * 700)
        stream.write(np.full(1024 * 1024, 40, np.int16).tobytes())
        stream.truncate(352 + 2 * 1024 * 1024 * 1000)
    tracemalloc.start()
    assert set(np.unique(shown(f"{path}#slice=700&window=brain"))) == {128}
    assert tracemalloc.get_traced_memory()[1] < 2**26
    tracemalloc.stop()


def test_slices_of_one_compressed_volume_are_inflated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = counting((8, 8, 20))
    path = save(tmp_path / "a.nii.gz", data)
    proxies = []
    proxy = nifti._proxy
    monkeypatch.setattr(nifti, "_proxy", lambda layout: (proxies.append(layout.file), proxy(layout))[1])
    names = [f"{path}#slice={position}&window=640,1280" for position in range(20)]
    with ThreadPoolExecutor(8) as pool:
        pictures = list(pool.map(shown, names))
    assert len(proxies) == 1
    for position, grey in enumerate(pictures):
        assert np.abs(grey - in_window(data[::-1, ::-1, position].T, 640, 1280)).max() <= 1
    save(path, data[::-1])
    assert (shown(names[3]) != pictures[3]).any()
    assert len(proxies) == 2
