"""Unpacking: what is fine comes out whole, what is not does nothing at all."""

import io
import stat
import struct
import zipfile

import pytest

from vmfcoop.data import archives
from vmfcoop.data.archives import DamagedArchiveError, Limits, unpack
from vmfcoop.errors import UserError

from .archive_server import zip_of


@pytest.fixture
def attempt(tmp_path):
    """Unpack content into a folder and return the files that lie there."""

    def run(content, limits=None):
        archive, folder = tmp_path / "a.zip", tmp_path / "into"
        archive.write_bytes(content)
        folder.mkdir(exist_ok=True)
        try:
            unpack(archive, folder, limits)
        finally:
            found = sorted(
                path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
            )
            run.found = [file for file in found if file != "a.zip"]
        return run.found

    return run


def with_info(name, change, data=b"x"):
    """A zip with one entry whose header was changed before it was written."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        info = zipfile.ZipInfo("placeholder")
        info.filename = name
        change(info)
        archive.writestr(info, data)
    return content.getvalue()


def test_files_come_out_and_system_litter_stays(attempt):
    content = {"A/x.png": b"1", "A/deep/y.png": b"22", "__MACOSX/A/._x.png": b"3", "A/.DS_Store": b"4"}
    assert attempt(zip_of(content)) == ["into/A/deep/y.png", "into/A/x.png"]


def test_backslashes_of_windows_zips_are_separators(attempt):
    assert attempt(zip_of({"A\\": b"", "A\\x.png": b"1"})) == ["into/A/x.png"]


def test_inner_archives_stay_packed(attempt):
    assert attempt(zip_of({"inner.zip": zip_of({"x.png": b"1"})})) == ["into/inner.zip"]


@pytest.mark.parametrize(
    "name",
    [
        "../out.png",
        "A/../../out.png",
        "/abs/out.png",
        "..\\out.png",
        "C:/out.png",
        "A/x\x00.png",
        "A/x\n.png",
    ],
)
def test_paths_out_of_the_folder_are_refused(attempt, name):
    content = with_info(name, lambda info: setattr(info, "orig_filename", name))
    with pytest.raises(UserError, match="leads out of its folder"):
        attempt(content)
    assert attempt.found == []


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO])
def test_links_and_devices_are_refused(attempt, kind):
    content = with_info(
        "A/link", lambda info: setattr(info, "external_attr", (kind | 0o777) << 16), b"/etc/passwd"
    )
    with pytest.raises(UserError, match="link or a device"):
        attempt(content)
    assert attempt.found == []


def test_encrypted_files_are_refused(attempt):
    content = bytearray(zip_of({"x.png": b"1"}))
    directory = content.index(b"PK\x01\x02")
    struct.pack_into("<H", content, directory + 8, 1)
    with pytest.raises(UserError, match="encrypted"):
        attempt(bytes(content))


def test_other_packing_than_deflate_is_refused(attempt):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.png", b"1")
    with pytest.raises(UserError, match="not packed by deflate"):
        attempt(content.getvalue())


@pytest.mark.parametrize(
    "names",
    [
        ("A/x.png", "a/X.PNG"),
        ("A/x.png", "A\\x.png"),
        ("\u00e4.png", "a\u0308.png"),
        ("A", "A/x.png"),
        ("a/x.png", "A"),
    ],
)
def test_two_names_of_one_place_are_refused(attempt, names):
    with pytest.raises(UserError, match="names of one file|both a file and a folder"):
        attempt(zip_of(dict.fromkeys(names, b"1")))
    assert attempt.found == []


@pytest.mark.parametrize(
    ("limits", "files"),
    [
        (Limits(files=2), {"a": b"1", "b": b"1", "c": b"1"}),
        (Limits(total=5), {"a": b"123", "b": b"123"}),
        (Limits(file=3), {"a": b"1234"}),
        (Limits(ratio=10, ratio_from=1000), {"a": b"0" * 100_000}),
        (Limits(ratio=10, ratio_from=1000), {f"{i}": b"0" * 900 for i in range(50)}),
    ],
    ids=["count", "total", "one file", "ratio of a file", "ratio of all"],
)
def test_bombs_are_refused_before_a_byte_is_written(attempt, limits, files):
    with pytest.raises(UserError, match="more than a dataset of images does"):
        attempt(zip_of(files), limits)
    assert attempt.found == []


def test_a_real_bomb_breaks_the_default_limits(attempt):
    with pytest.raises(UserError, match="packed into"):
        attempt(zip_of({"bomb.png": b"\0" * (20 << 20)}))


def test_a_lying_size_cannot_pass_the_checksum(attempt):
    content = bytearray(zip_of({"x.png": b"0123456789" * 50}))
    struct.pack_into("<I", content, content.index(b"PK\x01\x02") + 24, 7)
    with pytest.raises(DamagedArchiveError):
        attempt(bytes(content))


@pytest.mark.parametrize("cut", [0, 10, -30, -1])
def test_a_cut_archive_is_said_to_be_damaged(attempt, cut):
    with pytest.raises(DamagedArchiveError, match="damaged or no zip"):
        attempt(zip_of({"x.png": b"123"})[:cut])


def test_a_changed_byte_is_found(attempt):
    content = bytearray(zip_of({"x.png": bytes(range(200))}))
    content[60] ^= 0xFF
    with pytest.raises(DamagedArchiveError):
        attempt(bytes(content))


def test_a_table_of_contents_that_points_before_the_start_is_damage(attempt):
    whole = bytearray(zip_of({"a/1.png": b"image" * 9}))
    entry = whole.rindex(b"PK\x01\x02")
    end = whole.rindex(b"PK\x05\x06")
    # The table is said to start one byte further on, so that all offsets lead one byte too far back.
    whole[end + 16 : end + 20] = struct.pack("<I", entry + 1)
    whole[entry + 42 : entry + 46] = struct.pack("<I", 0)
    with pytest.raises(DamagedArchiveError, match=r"a\.zip is damaged"):
        attempt(bytes(whole))
    assert attempt.found == []


def test_names_that_are_no_text_are_damage(attempt):
    whole = zip_of({"a/\u00e4.png": b"image"})
    with pytest.raises(DamagedArchiveError, match=r"a\.zip is damaged"):
        attempt(whole.replace("\u00e4".encode(), b"\xff\xfe"))


def test_too_little_space_is_said_before_unpacking(attempt, monkeypatch):
    usage = type("Usage", (), {"free": 1000})()
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(UserError, match="unpack a.zip takes .* left; free some space"):
        attempt(zip_of({"x.png": b"1" * 5000}))
    assert attempt.found == []


def test_progress_counts_files(tmp_path):
    (tmp_path / "a.zip").write_bytes(zip_of({"x": b"1", "y": b"2"}))
    seen = []
    archives.unpack(tmp_path / "a.zip", tmp_path, progress=lambda *step: seen.append(step))
    assert seen == [("Unpacking a.zip", 1, 2), ("Unpacking a.zip", 2, 2)]
