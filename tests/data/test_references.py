from __future__ import annotations

import doctest
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vmfcoop import features
from vmfcoop.data import display, recent, references
from vmfcoop.data.display import CT_WINDOWS, Window, apply_window, parse_window, robust_window, square_pixels
from vmfcoop.data.listing import check_files_exist
from vmfcoop.data.recent import RecentReads
from vmfcoop.data.references import ImageReference, parse_reference, with_window
from vmfcoop.errors import UserError
from vmfcoop.features import content_hash


@pytest.mark.parametrize("module", [references, display, recent])
def test_examples(module: object) -> None:
    results = doctest.testmod(module)
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a/b.png", ImageReference(Path("a/b.png"))),
        ("a/b.tif#page=2", ImageReference(Path("a/b.tif"), page=2)),
        ("c.dcm#frame=3", ImageReference(Path("c.dcm"), frame=3)),
        ("c.dcm#window=40,400", ImageReference(Path("c.dcm"), window=Window(40, 400))),
        (
            "v.nii.gz#axis=2&slice=40&window=lung",
            ImageReference(Path("v.nii.gz"), axis=2, slice=40, window=CT_WINDOWS["lung"]),
        ),
        ("odd#name.dcm#frame=1", ImageReference(Path("odd#name.dcm"), frame=1)),
        ("missing#1.png", ImageReference(Path("missing#1.png"))),
        ("folder#1/a.png", ImageReference(Path("folder#1/a.png"))),
    ],
)
def test_parse(text: str, expected: ImageReference) -> None:
    assert parse_reference(text) == expected
    assert str(parse_reference(Path(text))) == text


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("v.nii#slice=040&axis=0", "v.nii#axis=0&slice=40"),
        ("c.dcm#window=40.0,4e2", "c.dcm#window=40,400"),
        ("c.dcm#window=-0.5,1.25&frame=0", "c.dcm#frame=0&window=-0.5,1.25"),
        ("c.dcm#window=Soft_Tissue", "c.dcm#window=soft-tissue"),
    ],
)
def test_canonical_form(text: str, canonical: str) -> None:
    assert str(parse_reference(text)) == canonical
    assert str(parse_reference(canonical)) == canonical


@pytest.mark.parametrize(
    ("selection", "says"),
    [
        ("slise=4", "page, frame, axis, slice or window"),
        ("frame", "'frame' chooses nothing"),
        ("frame=", "no number"),
        ("frame=-1", "count from 0"),
        ("frame=1.5", "no number"),
        ("frame=\u0661", "no number"),
        ("frame=99999999999", "no number"),
        ("axis=3", "0 (sagittal), 1 (coronal) or 2 (axial)"),
        ("frame=1&frame=2", "twice"),
        ("frame=1&", "page, frame, axis"),
        ("window=40", "quotes"),
        ("window=40,0", "width above 0"),
        ("window=nan,4", "is no window"),
        ("window=liver", "lung, bone, soft-tissue, brain"),
    ],
)
def test_malformed_selections(tmp_path: Path, selection: str, says: str) -> None:
    (tmp_path / "a.dcm").touch()
    path = tmp_path / f"a.dcm#{selection}"
    with pytest.raises(UserError) as caught:
        parse_reference(path)
    assert str(path) in str(caught.value)
    assert says in str(caught.value)


def test_a_file_of_the_literal_name_wins(tmp_path: Path) -> None:
    literal = tmp_path / "a.png#frame=1"
    Image.new("L", (2, 2)).save(literal, "PNG")
    assert parse_reference(literal) == ImageReference(literal)


def test_with_window(tmp_path: Path) -> None:
    magic = tmp_path / "IM0001"
    magic.write_bytes(bytes(128) + b"DICM")
    png = tmp_path / "a.png"
    Image.new("L", (2, 2)).save(png)
    assert with_window(Path("c.dcm"), "40,400") == Path("c.dcm#window=40,400")
    assert with_window(Path("v.nii.gz#slice=3"), "lung") == Path("v.nii.gz#slice=3&window=lung")
    assert with_window(Path("c.dcm#window=1,2"), "lung") == Path("c.dcm#window=1,2")
    assert with_window(magic, "bone") == Path(f"{magic}#window=bone")
    assert with_window(png, "lung") == png
    with pytest.raises(UserError, match="is no window"):
        with_window(png, "liver")


def test_listed_files_may_carry_selections(tmp_path: Path) -> None:
    (tmp_path / "v.nii.gz").touch()
    check_files_exist(tmp_path, tmp_path, ["v.nii.gz", "v.nii.gz#axis=1&slice=4"])
    with pytest.raises(UserError, match="lists 1 of 2 files that are missing.*w.nii#slice=1"):
        check_files_exist(tmp_path, tmp_path, ["v.nii.gz#slice=1", "w.nii#slice=1"])
    with pytest.raises(UserError, match="slyce"):
        check_files_exist(tmp_path, tmp_path, ["v.nii.gz#slyce=1"])


# Windows


def test_window_edges() -> None:
    values = np.array([-1000.0, -160, -60, 40, 240, 3000, np.nan])
    assert apply_window(values, parse_window("40,400")).tolist() == [0, 0, 0.25, 0.5, 1, 1, 0]


def test_dicom_window_functions() -> None:
    # PS3.3 C.11.2.1.2.1, its example of c = 2048, w = 4096 and an output of 0 to 255.
    values = np.array([-1, 0, 1, 4094, 4095, 4096])
    shown = 255 * apply_window(values, Window(2048, 4096), "LINEAR")
    assert shown == pytest.approx([0, 0, 255 / 4095, 255 * 4094 / 4095, 255, 255])
    # Its example of c = 0, w = 1: below zero black, from zero on white.
    assert apply_window(np.array([-1, 0]), Window(0, 1), "LINEAR").tolist() == [0, 1]
    sigmoid = apply_window(np.array([0.0, 10, -np.inf]), Window(0, 40), "SIGMOID")
    assert sigmoid == pytest.approx([0.5, 1 / (1 + np.exp(-1)), 0])


def test_robust_window() -> None:
    values = np.arange(1001.0)
    window = robust_window(np.append(values, [np.nan, np.inf]))
    assert window is not None
    assert (window.center, window.width) == pytest.approx((500, 990))
    mask = np.zeros(10_000)
    mask[3] = 7
    assert robust_window(mask) == Window(3.5, 7)
    assert robust_window(np.full(4, 2.0)) is None
    assert robust_window(np.array([np.nan])) is None


def test_square_pixels(tmp_path: Path) -> None:
    picture = Image.new("RGB", (10, 10))
    sizes = {
        (1.0, 1.0): (10, 10),
        (1.0, 1.009): (10, 10),
        (3.0, 1.0): (10, 30),
        (0.5, 1.0): (20, 10),
        (0.0, 1.0): (10, 10),
        (-1.0, 1.0): (10, 10),
        (float("nan"), 1.0): (10, 10),
    }
    for spacing, size in sizes.items():
        assert square_pixels(picture, *spacing, tmp_path, 1000).size == size
    for ratio in (11, 1e300):
        with pytest.raises(UserError, match="more pixels"):
            square_pixels(picture, ratio, 1.0, tmp_path, 1000)


# Hashes and repeated reads


def test_plain_files_keep_their_hash(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"content")
    assert content_hash(tmp_path / "a.png") == hashlib.sha256(b"content").hexdigest()


def test_selections_are_hashed_with_one_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "v.nii"
    file.write_bytes(b"volume")
    reads = []
    whole = features._file_hash
    monkeypatch.setattr(features, "_file_hash", lambda path: (reads.append(path), whole(path))[1])
    with ThreadPoolExecutor(8) as pool:
        hashes = list(pool.map(content_hash, [tmp_path / f"v.nii#slice={i}" for i in range(50)]))
    assert len(set(hashes)) == 50
    assert reads == [file]
    assert content_hash(tmp_path / "v.nii#slice=7") == content_hash(tmp_path / "v.nii#slice=07") == hashes[7]
    file.write_bytes(b"another volume")
    assert content_hash(tmp_path / "v.nii#slice=7") != hashes[7]
    with pytest.raises(UserError, match="cannot be opened"):
        content_hash(tmp_path / "w.nii#slice=7")


def test_recent_reads_forget_the_oldest_and_errors(tmp_path: Path) -> None:
    reads: list[str] = []
    kept = RecentReads[str](capacity=5, weight=len)

    def get(name: str) -> str:
        if not (tmp_path / name).exists():
            (tmp_path / name).touch()
        return kept.get(tmp_path / name, None, lambda: (reads.append(name), name)[1])

    for name in ("aa", "bb", "aa", "cc", "aa", "bb", "too-long", "aa"):
        assert get(name) == name
    assert reads == ["aa", "bb", "cc", "bb", "too-long", "aa"]
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            kept.get(tmp_path / "aa", "fails", lambda: str(1 / 0))
