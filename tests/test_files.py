"""Files are written whole or not at all."""

import errno
import os
import subprocess
from pathlib import Path

import pytest

from vmfcoop.errors import UserError
from vmfcoop.files import home, write_atomically


def test_content_and_nothing_beside_it(tmp_path):
    write_atomically(tmp_path / "new" / "a.txt", "grün")
    write_atomically(tmp_path / "new" / "a.txt", b"bytes")
    assert (tmp_path / "new" / "a.txt").read_bytes() == b"bytes"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.txt"]


@pytest.mark.parametrize(
    ("code", "message"), [(errno.ENOSPC, "is full; free some space"), (errno.EROFS, "is not writable")]
)
def test_failure_leaves_the_old_file(tmp_path, monkeypatch, code, message):
    write_atomically(tmp_path / "a.txt", "old")

    def refuse(self, target):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(UserError, match=message):
        write_atomically(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_pipe_is_written_into_and_stays_a_pipe(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    write_atomically(pipe, "content")
    assert reader.communicate(timeout=20)[0] == b"content"
    assert pipe.is_fifo() and list(tmp_path.iterdir()) == [pipe]


def test_what_stands_in_the_way_is_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"folder' is a folder; choose another name"):
        write_atomically(tmp_path / "folder", "x")
    for target in (tmp_path / "file" / "x.txt", tmp_path / "file" / "deeper" / "x.txt"):
        with pytest.raises(UserError, match=r"file(/deeper)?' is a file where a folder should be"):
            write_atomically(target, "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_home_is_the_variable_or_the_platforms_cache(monkeypatch):
    monkeypatch.setenv("VMFCOOP_HOME", "~/elsewhere")
    assert home() == Path.home() / "elsewhere"
    monkeypatch.delenv("VMFCOOP_HOME")
    assert home().name == "vmfcoop"
