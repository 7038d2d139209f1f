"""Zip archives of unknown origin, unpacked so that they can do no harm."""

from __future__ import annotations

import errno
import shutil
import stat
import struct
import unicodedata
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmfcoop.data.downloads import megabytes, require_space
from vmfcoop.errors import UserError
from vmfcoop.progress import ProgressReport, no_progress

_LEFT_OUT = ("__MACOSX", "Thumbs.db", "desktop.ini")


@dataclass(frozen=True)
class Limits:
    """What an archive may unpack to at most; the defaults are several times the largest dataset known.

    Attributes:
        files: Number of files.
        total: Bytes of all files.
        file: Bytes of one file.
        ratio: Unpacked over packed bytes, of a file above ``ratio_from`` bytes and of the whole.
        ratio_from: Smaller files may have any ratio: a blank image or a short list packs well.
    """

    files: int = 500_000
    total: int = 100 << 30
    file: int = 4 << 30
    ratio: float = 100.0
    ratio_from: int = 8 << 20


class DamagedArchiveError(UserError):
    """An archive that is cut off, changed on the way, or no archive at all."""


def unpack(
    archive: Path, folder: Path, limits: Limits | None = None, progress: ProgressReport = no_progress
) -> int:
    """Unpack a zip into an existing folder and return the number of files.

    Everything is checked against the table of contents before the first byte is written. Hidden files,
    ``__MACOSX`` and the like are left out; archives inside stay packed.

    Raises:
        DamagedArchiveError: the file is no zip, is cut off, or a checksum in it fails.
        UserError: the archive holds something that must not be unpacked (a path out of the folder, a link or
            a device, two names for one file, an encrypted file), breaks a limit, or finds too little space.
    """
    try:
        with zipfile.ZipFile(archive) as content:
            members = _checked(archive.name, content.infolist(), limits or Limits())
            require_space(folder, sum(info.file_size for info, _ in members), f"unpack {archive.name}")
            for done, (info, path) in enumerate(members, start=1):
                _write(content, info, folder / path)
                progress(f"Unpacking {archive.name}", done, len(members))
    except (
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        NotImplementedError,
        struct.error,
        UnicodeDecodeError,
    ) as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        # A wrong offset in the table of contents makes zipfile seek to before the start.
        if error.errno != errno.EINVAL:
            raise
        raise _damaged(archive, error) from error
    return len(members)


def _damaged(archive: Path, error: Exception) -> DamagedArchiveError:
    return DamagedArchiveError(f"{archive.name} is damaged or no zip archive ({error}).")


def _write(content: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with content.open(info) as source, target.open("xb") as file:
        shutil.copyfileobj(source, file, 1 << 20)


def _checked(
    name: str, infos: list[zipfile.ZipInfo], limits: Limits
) -> list[tuple[zipfile.ZipInfo, PurePosixPath]]:
    """The files to unpack with their places; nothing that must not be unpacked is among them."""
    if len(infos) > 2 * limits.files:
        raise _too_large(name, f"{len(infos)} entries")
    members = []
    for info in infos:
        path = _safe_path(name, info)
        _check_kind(name, info)
        if not info.orig_filename.endswith(("/", "\\")) and not _left_out(path):
            members.append((info, path))
    _check_names(name, [path for _, path in members])
    _check_sizes(name, [info for info, _ in members], limits)
    return members


def _safe_path(name: str, info: zipfile.ZipInfo) -> PurePosixPath:
    text = info.orig_filename.replace("\\", "/")
    path = PurePosixPath(text)
    odd = any(ord(letter) < 32 or letter == ":" for letter in text)
    if odd or path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(
            f"{name} was not unpacked: it holds the path {text!r}, which leads out of its folder."
        )
    if any(len(part.encode()) > 255 for part in path.parts) or len(text.encode()) > 1024:
        raise UserError(f"{name} was not unpacked: it holds a path that is too long, {text[:60]!r}….")
    return path


def _check_kind(name: str, info: zipfile.ZipInfo) -> None:
    kind = stat.S_IFMT(info.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise UserError(
            f"{name} was not unpacked: {info.filename!r} in it is a link or a device, not a file."
        )
    if info.flag_bits & 0x1:
        raise UserError(f"{name} was not unpacked: {info.filename!r} in it is encrypted.")
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise UserError(f"{name} was not unpacked: {info.filename!r} in it is not packed by deflate.")


def _check_names(name: str, paths: list[PurePosixPath]) -> None:
    """No two names for one file, also where case and form of accents do not count, and no file as folder."""
    seen: dict[str, PurePosixPath] = {}
    for path in paths:
        first = seen.setdefault(_folded(path), path)
        if first is not path:
            raise UserError(f"{name} was not unpacked: '{first}' and '{path}' in it are names of one file.")
    for path in paths:
        for parent in path.parents:
            if _folded(parent) in seen:
                raise UserError(f"{name} was not unpacked: '{parent}' in it is both a file and a folder.")


def _folded(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _check_sizes(name: str, infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    total, packed = sum(info.file_size for info in infos), sum(info.compress_size for info in infos)
    if len(infos) > limits.files:
        raise _too_large(name, f"{len(infos)} files")
    if total > limits.total:
        raise _too_large(name, megabytes(total))
    if total > limits.ratio_from and total > limits.ratio * packed:
        raise _too_large(name, f"{megabytes(total)}, packed into {megabytes(packed)}")
    for info in infos:
        if info.file_size > limits.file:
            raise _too_large(name, f"{info.filename!r} of {megabytes(info.file_size)}")
        if info.file_size > limits.ratio_from and info.file_size > limits.ratio * info.compress_size:
            packed_size = megabytes(info.compress_size)
            raise _too_large(
                name, f"{info.filename!r} of {megabytes(info.file_size)}, packed into {packed_size}"
            )


def _too_large(name: str, what: str) -> UserError:
    return UserError(f"{name} was not unpacked: it holds {what}, more than a dataset of images does.")


def _left_out(path: PurePosixPath) -> bool:
    return any(part.startswith(".") or part in _LEFT_OUT for part in path.parts)
