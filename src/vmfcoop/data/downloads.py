"""Downloads of large files: resumed after an interruption, also by a later process, and then checked."""

from __future__ import annotations

import glob
import hashlib
import http.client
import shutil
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path

from vmfcoop.__about__ import __version__
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.progress import ProgressReport, no_progress

ATTEMPTS = 5
"""Connections in a row that bring nothing before a download gives up."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; each further pause is twice as long."""
TIMEOUT = 30.0
_CHUNK = 1 << 20
_MARGIN = 64 << 20

_Response = http.client.HTTPResponse


@dataclass(frozen=True)
class Remote:
    """A file on a server.

    Attributes:
        name: For messages and progress.
        url: Its address, http or https.
        size: Bytes, where known beforehand.
        sha256: Checksum, where known.
        md5: Checksum, where known.
        token: Bearer token for the server of ``url`` itself; it does not follow redirects.
        revision: Commit it belongs to, for the record.
    """

    name: str
    url: str
    size: int | None = None
    sha256: str | None = None
    md5: str | None = None
    token: str | None = field(default=None, repr=False)
    revision: str | None = None

    @property
    def tag(self) -> str:
        """Short name of this content, so that a part of an older one is never continued."""
        known = self.sha256 or self.md5 or hashlib.sha256(f"{self.url} {self.size}".encode()).hexdigest()
        return known[:16]


class ChecksumError(UserError):
    """A file is not what its publisher states."""


class _InterruptedError(Exception):
    """A connection ended early; what came is kept."""


def download(remote: Remote, to: Path, progress: ProgressReport = no_progress) -> Path:
    """Download a file unless it is there, going on from what an interrupted attempt left.

    The bytes go to a hidden ``.part`` file beside ``to``, which takes its place once its size and checksums
    are those stated. A file that is there already counts if it is as stated. A server that cannot resume
    starts over.

    Raises:
        UserError: no network, an answer of the server that the user has to know of, too little space, or a
            checksum that differs (the part is then removed).
    """
    if to.is_file() and _is_as_stated(to, remote, progress):
        return to
    if urllib.parse.urlsplit(remote.url).scheme not in ("http", "https"):
        raise UserError(f"'{remote.url}' is no http address.")
    part = to.with_name(f".{to.name}.{remote.tag}.part")
    with full_disk_is_said(to.parent):
        to.parent.mkdir(parents=True, exist_ok=True)
        _fill(remote, part, progress)
        try:
            verify(part, remote.name, sha256=remote.sha256, md5=remote.md5, progress=progress)
        except ChecksumError:
            part.unlink(missing_ok=True)
            raise
        part.replace(to)
        for stale in to.parent.glob(f".{glob.escape(to.name)}.*.part"):
            stale.unlink(missing_ok=True)
    return to


def _is_as_stated(path: Path, remote: Remote, progress: ProgressReport) -> bool:
    if remote.size is not None and _size(path) != remote.size:
        return False
    try:
        verify(path, remote.name, sha256=remote.sha256, md5=remote.md5, progress=progress)
    except ChecksumError:
        return False
    return True


def _fill(remote: Remote, part: Path, progress: ProgressReport) -> None:
    """Connect until the part is whole, with pauses that grow while nothing comes."""
    failures, furthest = 0, _size(part)
    while True:
        try:
            _continue(remote, part, progress)
            return
        except _InterruptedError as interruption:
            failures = 0 if _size(part) > furthest else failures + 1
            furthest = max(furthest, _size(part))
            if failures >= ATTEMPTS:
                raise UserError(
                    f"The download of {remote.name} stopped after {megabytes(_size(part))} ({interruption}); "
                    "check the network and repeat the command, it goes on from there."
                ) from interruption
            time.sleep(FIRST_PAUSE * 2 ** max(0, failures - 1))


def _continue(remote: Remote, part: Path, progress: ProgressReport) -> None:
    have = _size(part)
    if remote.size is not None and have == remote.size:
        return
    with _open(remote, have) as response:
        start = _first_byte(response)
        total = (
            start + int(response.headers["Content-Length"]) if response.headers["Content-Length"] else None
        )
        if start not in (0, have) or (total and remote.size and total != remote.size):
            part.unlink(missing_ok=True)
            raise _InterruptedError("the server's file changed")
        require_space(part.parent, (total or 0) - start, f"download {remote.name}")
        _append(response, part, start, remote.name, total, progress)
    if total is not None and _size(part) < total:
        raise _InterruptedError("the connection was closed")


def _open(remote: Remote, have: int) -> _Response:
    request = urllib.request.Request(remote.url, headers={"User-Agent": f"vmfcoop/{__version__}"})
    if remote.token:
        request.add_unredirected_header("Authorization", f"Bearer {remote.token}")
    if have:
        request.add_header("Range", f"bytes={have}-")
    try:
        response: _Response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and have:
            return _open(remote, 0)
        if error.code in (408, 429) or error.code >= 500:
            raise _InterruptedError(f"the server answered {error.code} {error.reason}") from error
        raise refused(remote.name, remote.url, error.code) from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedError(_reason(error)) from error
    return response


def _first_byte(response: _Response) -> int:
    """Where the body starts in the file: the whole file comes where the server does not resume."""
    if response.status != 206:
        return 0
    unit, _, span = (response.headers["Content-Range"] or "").partition(" ")
    first = span.partition("-")[0]
    return int(first) if unit == "bytes" and first.isdecimal() else -1


def _append(
    response: _Response, part: Path, start: int, name: str, total: int | None, progress: ProgressReport
) -> None:
    with part.open("ab") as file:
        file.truncate(start)
        done = start
        while True:
            try:
                chunk = response.read(_CHUNK)
            except (OSError, http.client.HTTPException) as error:
                raise _InterruptedError(_reason(error)) from error
            if not chunk:
                return
            file.write(chunk)
            done += len(chunk)
            progress(f"Downloading {name} (MB)", done // 1_000_000, (total or done) // 1_000_000)


def verify(
    path: Path,
    name: str,
    *,
    sha256: str | None = None,
    md5: str | None = None,
    progress: ProgressReport = no_progress,
) -> None:
    """Compare a file with the checksums stated for it.

    Raises:
        ChecksumError: one differs.
    """
    for kind, stated in (("sha256", sha256), ("md5", md5)):
        if stated and checksum(path, kind, progress) != stated:
            raise ChecksumError(
                f"The download of {name} is not the file that its publisher states ({kind} {stated[:12]}… "
                "differs); it was removed, repeat the command."
            )


def checksum(path: Path, kind: str = "sha256", progress: ProgressReport = no_progress) -> str:
    """Checksum of a file in hexadecimal digits, ``kind`` as hashlib names it."""
    digest, total, done = hashlib.new(kind, usedforsecurity=False), _size(path), 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            progress(f"Checking {path.name.strip('.')[:40]} (MB)", done // 1_000_000, total // 1_000_000)
    return digest.hexdigest()


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Raise UserError where the disk of a folder has less room than needed, and a little to spare."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed + _MARGIN > free:
        raise UserError(
            f"To {purpose} takes {megabytes(needed + _MARGIN)} with some to spare, and the disk that holds "
            f"'{folder}' has {megabytes(free)} left; free some space or set VMFCOOP_HOME to a folder on "
            "another disk."
        )


def refused(name: str, url: str, status: int) -> UserError:
    """The error for an answer of the server that no repetition mends."""
    if status in (401, 403):
        return UserError(
            f"{name} is not open to you ({url} answered {status}); accept its terms on the page and, on the "
            "Hugging Face hub, log in with `hf auth login` or set HF_TOKEN."
        )
    if status in (404, 410):
        return UserError(
            f"{name} is not at {url} (answer {status}); look on the page of its publisher where it went."
        )
    return UserError(f"{name} could not be downloaded: {url} answered {status}.")


def megabytes(size: int) -> str:
    """A size for people."""
    return f"{size / 1e9:.1f} GB" if size >= 1_000_000_000 else f"{size / 1e6:.1f} MB"


def _reason(error: BaseException) -> str:
    cause = getattr(error, "reason", None) or error
    return str(cause) or type(cause).__name__


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
