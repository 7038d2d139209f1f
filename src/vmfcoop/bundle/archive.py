"""Bundles as files: a plain tar whose bytes depend on its content alone, or a folder; read with care."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import tarfile
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Protocol, cast

from vmfcoop.backbones.installed import FileRecord, put_in_place, unreadable_is_said
from vmfcoop.bundle.manifest import MANIFEST, BundleManifest, parse_manifest
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.progress import ProgressReport, no_progress

Content = Path | bytes
"""A file's content: a file on this disk, links followed, or the bytes themselves."""

_CHUNK = 1 << 20
_LARGEST_READ = 256 << 20
"""Bytes that are read at once at most: a hostile tar can name a header of any size."""

_MOST_FILES = 1_000_000


class Reader(Protocol):
    """The files of a bundle."""

    manifest: BundleManifest

    def open(self, name: str) -> IO[bytes]:
        """A file to read, by its path in the bundle."""
        ...


def write_bundle(
    to: Path,
    manifest: BundleManifest,
    contents: Mapping[str, Content],
    scratch: Path,
    progress: ProgressReport = no_progress,
) -> str | None:
    """Write a bundle whole or not at all: a tar where the name ends in ``.tar``, else a folder.

    The manifest comes first, the files follow by name; times, owners and modes of the tar are constants.

    Args:
        to: where to; what is there is replaced.
        manifest: names every file of ``contents``.
        contents: by path in the bundle.
        scratch: a folder on the same disk.
        progress: told of bytes.

    Returns:
        SHA-256 of the tar; None of a folder.

    Raises:
        UserError: the names of two files are one on some systems; the disk is full or cannot hold so large a
            file; or a file changed since its checksum was taken.
    """
    fault = _fault_of(contents)
    if fault is not None:
        raise UserError(f"{to.name} was not packed: {fault}; rename what is so called.")
    everything = {MANIFEST: manifest.as_text().encode(), **dict(sorted(contents.items()))}
    with full_disk_is_said(to.parent), _large_file_is_said(to):
        if to.suffix == ".tar":
            digest = _write_tar(scratch / to.name, manifest, everything, progress)
            (scratch / to.name).replace(to)
            return digest
        _write_folder(scratch / to.name, manifest, everything, progress)
        put_in_place(scratch / to.name, to)
        return None


@contextmanager
def _large_file_is_said(to: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EFBIG:
            raise
        raise UserError(
            f"A file of '{to}' would be larger than its disk allows (4 GB on FAT); name a folder in place "
            "of a .tar, or another disk."
        ) from error


def _write_tar(
    path: Path, manifest: BundleManifest, contents: Mapping[str, Content], progress: ProgressReport
) -> str:
    with path.open("wb") as file:
        hashing = _HashingFile(file)
        with tarfile.TarFile(fileobj=cast(IO[bytes], hashing), mode="w", format=tarfile.PAX_FORMAT) as tar:
            for name, source in _with_progress(manifest, contents, progress):
                member = tarfile.TarInfo(name)
                member.size, member.mode = _size(source), 0o644
                with _opened(source) as stream:
                    checked = _CheckedStream(stream)
                    tar.addfile(member, cast(IO[bytes], checked))
                _require_unchanged(name, source, manifest, checked.hexdigest())
    return hashing.hexdigest()


def _write_folder(
    folder: Path, manifest: BundleManifest, contents: Mapping[str, Content], progress: ProgressReport
) -> None:
    folder.mkdir()
    for name, source in _with_progress(manifest, contents, progress):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        with _opened(source) as stream, target.open("xb") as file:
            checked = _CheckedStream(stream)
            shutil.copyfileobj(checked, file, _CHUNK)
        _require_unchanged(name, source, manifest, checked.hexdigest())


def _with_progress(
    manifest: BundleManifest, contents: Mapping[str, Content], progress: ProgressReport
) -> Iterator[tuple[str, Content]]:
    done = 0
    for name, source in contents.items():
        yield name, source
        done += _size(source)
        progress("Writing the bundle (MB)", done // 1_000_000, manifest.bytes // 1_000_000)


def _require_unchanged(name: str, source: Content, manifest: BundleManifest, digest: str) -> None:
    if name != MANIFEST and manifest.files[name].sha256 != digest:
        raise UserError(f"'{name}' changed while it was packed; repeat the command.")


def _size(source: Content) -> int:
    return source.stat().st_size if isinstance(source, Path) else len(source)


def _opened(source: Content) -> IO[bytes]:
    if isinstance(source, bytes):
        return io.BytesIO(source)
    with unreadable_is_said(source):
        return source.open("rb")


def records_of(
    contents: Mapping[str, Content], progress: ProgressReport = no_progress
) -> dict[str, FileRecord]:
    """Checksums and sizes of files to pack, by path in the bundle, sorted."""
    total, done, records = sum(map(_size, contents.values())), 0, {}
    for name, source in sorted(contents.items()):
        if isinstance(source, Path):
            records[name] = FileRecord.of(source)
        else:
            records[name] = FileRecord(sha256=hashlib.sha256(source).hexdigest(), bytes=len(source))
        done += records[name].bytes
        progress("Reading what is packed (MB)", done // 1_000_000, total // 1_000_000)
    return records


class _HashingFile:
    """A file to write, and the checksum of what was written."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._digest = hashlib.sha256()

    def write(self, data: bytes) -> int:
        self._digest.update(data)
        return self._file.write(data)

    def tell(self) -> int:
        return self._file.tell()

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


class _CheckedStream:
    """A file to read, and the checksum of what was read."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@contextmanager
def open_bundle(bundle: Path) -> Iterator[Reader]:
    """Open a bundle for reading; its list of files is checked against its manifest, their content is not yet.

    Raises:
        UserError: it is missing, damaged, cut off, of a newer format, or not what ``pack`` writes: paths out
            of its folder, links, devices, sparse files, names twice, files that the manifest lacks.
    """
    if bundle.is_dir():
        yield _Folder(bundle)
        return
    try:
        file = bundle.open("rb")
    except FileNotFoundError as error:
        raise UserError(f"The bundle '{bundle}' does not exist; check its path.") from error
    except OSError as error:
        raise UserError(f"The bundle '{bundle}' cannot be read ({error.strerror}).") from error
    with file:
        yield _Tar(bundle.name, file)


class _Tar:
    """The files of a tar, none of them unpacked."""

    def __init__(self, name: str, file: IO[bytes]) -> None:
        self._name = name
        try:
            self._tar = tarfile.TarFile(fileobj=cast(IO[bytes], _CarefulFile(file, name)))
            self._members = self._read_members()
            text = self._read_manifest()
        except (tarfile.TarError, EOFError, OSError, ValueError) as error:
            if isinstance(error, UserError):
                raise
            raise _damaged(name, str(error)) from error
        self.manifest = parse_manifest(text, name)
        _check_files(name, {key: found.size for key, found in self._members.items()}, self.manifest)

    def _read_members(self) -> dict[str, tarfile.TarInfo]:
        found: dict[str, tarfile.TarInfo] = {}
        for member in self._tar:
            if member.type not in (tarfile.REGTYPE, tarfile.AREGTYPE) or member.issparse():
                raise _refused(self._name, f"{member.name!r} in it is no plain file")
            if member.name in found:
                raise _refused(self._name, f"{member.name!r} is in it twice")
            if len(found) >= _MOST_FILES:
                raise _refused(self._name, f"it holds more than {_MOST_FILES} files")
            found[member.name] = member
        return found

    def _read_manifest(self) -> bytes:
        if MANIFEST not in self._members:
            raise UserError(f"{self._name} is no bundle: it has no {MANIFEST}; give one that 'pack' wrote.")
        with self.open(MANIFEST) as stream:
            del self._members[MANIFEST]
            return stream.read()

    def open(self, name: str) -> IO[bytes]:
        stream = self._tar.extractfile(self._members[name])
        assert stream is not None
        return stream


class _Folder:
    """The files of a folder that its manifest names; whatever else lies there is left alone."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        path = folder / MANIFEST
        if not path.is_file():
            raise UserError(f"'{folder}' is no bundle: it has no {MANIFEST}; give one that 'pack' wrote.")
        with _opened(path) as stream:
            self.manifest = parse_manifest(stream.read(), str(folder))
        _require_safe(str(folder), self.manifest.files)
        _check_files(str(folder), dict(self._sizes()), self.manifest)

    def _sizes(self) -> Iterator[tuple[str, int]]:
        root = self._folder.resolve()
        for name in self.manifest.files:
            path = self._folder / name
            if path.resolve() != root / name:
                raise _refused(str(self._folder), f"{name!r} in it is a link")
            if path.is_file():
                yield name, path.stat().st_size

    def open(self, name: str) -> IO[bytes]:
        return _opened(self._folder / name)


class _CarefulFile:
    """A file whose headers cannot ask for all memory."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file, self._name = file, name
        self.seek: Callable[..., int] = file.seek
        self.tell: Callable[[], int] = file.tell

    def read(self, size: int = -1) -> bytes:
        if size > _LARGEST_READ:
            raise _refused(self._name, "a header in it is too large")
        return self._file.read(size)


def _check_files(name: str, sizes: Mapping[str, int], manifest: BundleManifest) -> None:
    """Every file of the manifest is there in its size, no other is, and each is a plain name of its own."""
    further = sorted(set(sizes) - set(manifest.files))
    if further:
        raise _refused(name, f"its manifest does not list {further[0]!r}")
    absent = sorted(set(manifest.files) - set(sizes))
    if absent:
        raise _damaged(name, f"{len(absent)} of {len(manifest.files)} files are missing, first {absent[0]!r}")
    for file, record in manifest.files.items():
        if sizes[file] != record.bytes:
            raise _damaged(name, f"{file!r} has {sizes[file]} bytes and not {record.bytes}")
    _require_safe(name, manifest.files)


def _require_safe(bundle: str, names: Iterable[str]) -> None:
    fault = _fault_of(names)
    if fault is not None:
        raise _refused(bundle, fault)


def _fault_of(names: Iterable[str]) -> str | None:
    """Why files of these paths cannot be side by side in a folder on every system; None if they can."""
    seen: dict[str, str] = {}
    for name in names:
        fault = _fault_of_name(name)
        if fault is not None:
            return fault
        if seen.setdefault(_folded(name), name) != name:
            return f"{seen[_folded(name)]!r} and {name!r} in it are names of one file on some systems"
    for name in seen.values():
        for parent in PurePosixPath(name).parents:
            if _folded(str(parent)) in seen:
                return f"{str(parent)!r} in it is both a file and a folder"
    return None


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()


def _fault_of_name(name: str) -> str | None:
    path = PurePosixPath(name)
    odd = any(ord(letter) < 32 for letter in name) or "\\" in name or str(path) != name
    drive = len(name) > 1 and name[1] == ":"
    if odd or drive or path.is_absolute() or ".." in path.parts or not path.parts:
        return f"it holds the path {name!r}, which leads out of its folder on some systems"
    if any(len(part.encode("utf-8", "surrogateescape")) > 255 for part in path.parts):
        return f"it holds a name that is too long, {name[:60]!r}…"
    return None


def extract(reader: Reader, places: Mapping[str, Path], progress: ProgressReport = no_progress) -> None:
    """Copy files out of a bundle, each held against its checksum.

    Args:
        reader: of the bundle.
        places: where to, by path in the bundle; parents are made.
        progress: told of bytes.

    Raises:
        UserError: a checksum differs, or the bundle is damaged.
    """
    manifest, done = reader.manifest, 0
    for name, target in places.items():
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            with reader.open(name) as stream, target.open("xb") as file:
                checked = _CheckedStream(stream)
                shutil.copyfileobj(checked, file, _CHUNK)
        except tarfile.TarError as error:
            raise UserError(f"The bundle is damaged at {name!r} ({error}); copy it anew.") from error
        if checked.hexdigest() != manifest.files[name].sha256:
            raise UserError(
                f"{name!r} in the bundle is not what was packed (its SHA-256 differs), so nothing was "
                "installed; copy the bundle anew."
            )
        done += manifest.files[name].bytes
        progress("Unpacking (MB)", done // 1_000_000, manifest.bytes // 1_000_000)


def _refused(name: str, why: str) -> UserError:
    return UserError(f"{name} was not unpacked: {why}; it is not what 'vmfcoop pack' writes.")


def _damaged(name: str, why: str) -> UserError:
    return UserError(f"{name} is damaged, cut off or no bundle ({why}); copy it anew.")
