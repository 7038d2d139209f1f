"""Where files live and how they are written: to a temporary name, then renamed."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import platformdirs

from vmfcoop.errors import UserError


def home() -> Path:
    """Folder of caches and downloads: ``VMFCOOP_HOME``, or the platform's cache folder."""
    return Path(os.environ.get("VMFCOOP_HOME") or platformdirs.user_cache_dir("vmfcoop")).expanduser()


@contextmanager
def full_disk_is_said(folder: Path) -> Iterator[None]:
    """Turn 'no space left' and 'not writable' into a sentence that says what to do.

    Raises:
        UserError: naming the folder.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise disk_full(folder) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise UserError(f"'{folder}' is not writable; choose another place.") from error
        if error.errno in (errno.EISDIR, errno.ENOTDIR, errno.EEXIST):
            raise UserError(f"A file cannot be written to '{folder}': {_in_the_way(error)}.") from error
        raise


def _in_the_way(error: OSError) -> str:
    found = error.filename2 or error.filename
    kind = "a folder" if error.errno == errno.EISDIR else "a file where a folder should be"
    return f"'{found}' is {kind}; choose another name"


def disk_full(folder: Path) -> UserError:
    """The error for a full disk."""
    return UserError(f"The disk that holds '{folder}' is full; free some space and repeat the command.")


@contextmanager
def lock_held(file: Path, busy: Callable[[], object]) -> Iterator[None]:
    """Hold a lock file, whose folder is made; the lock ends with its process, however that ends.

    Args:
        file: the lock.
        busy: called where another process holds it; unless it raises, the lock is then waited for.

    Raises:
        UserError: the disk is full or the folder not writable.
    """
    from filelock import FileLock, Timeout

    with full_disk_is_said(file.parent):
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            busy()
            lock.acquire()
    try:
        yield
    finally:
        lock.release()


def write_atomically(path: Path, content: bytes | str) -> None:
    """Write a file under a temporary name beside it, then rename: readers see all of it or none.

    What is neither file nor folder (``/dev/null``, a pipe) is written into, not replaced.

    Raises:
        UserError: the disk is full or the folder not writable; a file that was there stays as it was.
    """
    data = content.encode("utf-8") if isinstance(content, str) else content
    with full_disk_is_said(path.parent):
        if path.exists() and not (path.is_file() or path.is_dir()):
            path.write_bytes(data)
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(scratch).chmod(0o644)
            Path(scratch).replace(path)
        except BaseException:
            Path(scratch).unlink(missing_ok=True)
            raise
