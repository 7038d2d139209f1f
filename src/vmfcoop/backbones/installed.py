"""Backbones that were fetched or unpacked: folders below ``VMFCOOP_HOME/backbones``, each with a manifest.

A folder is prepared under a hidden name beside its place and then renamed: no reader sees half of one. Its
name is a backbone spec of its own.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from vmfcoop.__about__ import __version__
from vmfcoop.backbones.base import DualEncoder
from vmfcoop.data.downloads import checksum
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said, home, lock_held
from vmfcoop.progress import ProgressReport, no_progress

MANIFEST = "manifest.json"
FORMAT = 1
"""Of manifests of backbones; readers refuse a higher one."""


@contextmanager
def unreadable_is_said(path: Path) -> Iterator[None]:
    """Name the file that cannot be read, so that no place to write to is taken for it.

    Raises:
        UserError: naming it.
    """
    try:
        yield
    except OSError as error:
        raise UserError(f"'{path}' cannot be read ({error.strerror}); see to its permissions.") from error


class FileRecord(BaseModel):
    """What a file must be.

    Attributes:
        sha256: checksum in hexadecimal digits.
        bytes: size.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    bytes: Annotated[int, Field(ge=0)]

    @classmethod
    def of(cls, path: Path, progress: ProgressReport = no_progress) -> FileRecord:
        """The record of a file as it is."""
        with unreadable_is_said(path):
            return cls(sha256=checksum(path, progress=progress), bytes=path.stat().st_size)


class BackboneManifest(BaseModel):
    """What a folder of a backbone is, where it came from, and what its files must be.

    Attributes:
        format: of this record.
        spec: backbone spec that it was made from.
        family: name of the family that loads it.
        title: for people, where known.
        fingerprint: of the loaded encoder.
        parameters: weights of both towers, where the family counts them.
        dim, context_length, image_size: of the encoder.
        repository: hub repository that it was fetched from.
        revision: of the repository, where one was asked for.
        commit: of the repository.
        urls: addresses of plain files.
        tokenizer: ``owner/name@commit`` of the repository that lent the tokenizer.
        licence: its name, where known.
        limits: what it may be used for, where known.
        terms: address of the licence's text, where known.
        fetched: date and time in UTC; None for what was not fetched.
        vmfcoop: version that wrote it.
        files: every file of the folder but this record, by name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int = FORMAT
    spec: str
    family: str
    title: str = ""
    fingerprint: str
    parameters: int | None = None
    dim: int
    context_length: int
    image_size: tuple[int, int]
    repository: str | None = None
    revision: str | None = None
    commit: str | None = None
    urls: tuple[str, ...] = ()
    tokenizer: str | None = None
    licence: str = ""
    limits: str = ""
    terms: str | None = None
    fetched: str | None = None
    vmfcoop: str
    files: dict[str, FileRecord]

    def as_text(self) -> str:
        """JSON text, the same for the same content."""
        return json.dumps(self.model_dump(mode="json"), indent=1, ensure_ascii=False) + "\n"


def backbones_folder() -> Path:
    """Folder of all backbones that were fetched or unpacked."""
    return home() / "backbones"


def folder_name(spec: str) -> str:
    """Name of the folder of a spec: letters, digits and the signs ``. _ + @ -``, never hidden.

    Example:
        >>> folder_name("open_clip:ViT-B-32/openai")
        'open_clip--ViT-B-32--openai'
    """
    return re.sub(r"[^\w.+@-]+", "--", spec).lstrip(".-") or "backbone"


def backbone_home(spec: str) -> Path:
    """Folder of the backbone of a spec, whether it is there or not."""
    return backbones_folder() / folder_name(spec)


def installed_folder(spec: str) -> Path | None:
    """The folder of a backbone that is here, by its spec or by the folder's name."""
    folder = backbone_home(spec)
    return folder if (folder / MANIFEST).is_file() else None


def installed_backbones() -> Iterator[tuple[Path, BackboneManifest]]:
    """Every backbone that is here, with its manifest; folders with a damaged one are passed over."""
    for path in sorted(backbones_folder().glob(f"*/{MANIFEST}")):
        if not path.parent.name.startswith("."):
            try:
                yield path.parent, read_manifest(path.parent)
            except UserError:
                continue


def find_by_fingerprint(fingerprint: str) -> Path | None:
    """The folder of a backbone that is here, by the fingerprint of its encoder."""
    return next((folder for folder, found in installed_backbones() if found.fingerprint == fingerprint), None)


def recorded_spec(spec: str, fingerprint: str) -> str:
    """The spec that loads, on this machine, the backbone that a run recorded on perhaps another.

    It is the recorded one wherever that names something here. Else it is that of a fetched or unpacked
    backbone with the recorded fingerprint; without one, the recorded spec again, whose error says what is
    missing.

    Args:
        spec: as recorded.
        fingerprint: as recorded.
    """
    kind, _, rest = spec.partition(":")
    if spec == "phantom" or (kind == "dir" and Path(rest).is_dir()):
        return spec
    folder = installed_folder(spec)
    if folder is not None and read_manifest(folder).fingerprint == fingerprint:
        return spec
    found = find_by_fingerprint(fingerprint)
    return spec if found is None else found.name


def read_manifest(folder: Path) -> BackboneManifest:
    """The manifest of a backbone's folder.

    Raises:
        UserError: there is none, it is damaged, or a newer version wrote it.
    """
    path = folder / MANIFEST
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(
            f"'{folder}' has no {MANIFEST}; name a folder that 'vmfcoop backbones fetch' or 'vmfcoop unpack' "
            "wrote."
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"'{path}' cannot be read; fetch or unpack the backbone again.") from error
    if isinstance(content, dict) and isinstance(content.get("format"), int) and content["format"] > FORMAT:
        raise UserError(
            f"'{path}' has format {content['format']}; this version of vmfcoop reads {FORMAT}, update it."
        )
    try:
        return BackboneManifest.model_validate(content)
    except ValidationError as error:
        raise UserError(
            f"'{path}' is no manifest of a backbone; fetch or unpack the backbone again."
        ) from error


def record_files(
    folder: Path, names: Iterable[str], progress: ProgressReport = no_progress
) -> dict[str, FileRecord]:
    """Checksums and sizes of files of a folder, by name, sorted."""
    return {name: FileRecord.of(folder / name, progress) for name in sorted(names)}


def manifest_of(
    folder: Path,
    spec: str,
    family: str,
    encoder: DualEncoder,
    progress: ProgressReport = no_progress,
    **known: Any,
) -> BackboneManifest:
    """The manifest of a folder whose encoder was loaded.

    Args:
        folder: all its visible files are recorded.
        spec: backbone spec that it was made from.
        family: name of the family that loaded it.
        encoder: that it gave.
        progress: told of checksums.
        **known: further fields of :class:`BackboneManifest`.
    """
    return BackboneManifest(
        spec=spec,
        family=family,
        fingerprint=encoder.fingerprint,
        parameters=encoder.parameters,
        dim=encoder.dim,
        context_length=encoder.context_length,
        image_size=encoder.image_size,
        vmfcoop=__version__,
        files=record_files(folder, set(visible_names(folder)) - {MANIFEST}, progress),
        **known,
    )


def verify_folder(folder: Path, progress: ProgressReport = no_progress) -> BackboneManifest:
    """Compare a backbone's folder with its manifest, file by file.

    Raises:
        UserError: a file is missing, changed or not of the manifest; the sentence names the first.
    """
    manifest = read_manifest(folder)
    mend = "fetch or unpack the backbone again"
    for name, record in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"'{path}' is missing; {mend}.")
        size = path.stat().st_size
        if size != record.bytes:
            raise UserError(
                f"'{path}' was changed: it has {size} bytes, its manifest {record.bytes}; {mend}."
            )
        if FileRecord.of(path, progress) != record:
            raise UserError(f"'{path}' was changed: its SHA-256 is not that of its manifest; {mend}.")
    # A loader prefers one name of weights to another, so a file put beside them can take their place.
    further = sorted(set(visible_names(folder)) - set(manifest.files) - {MANIFEST})
    if further:
        raise UserError(
            f"'{folder / further[0]}' is not in the manifest ({len(further)} files are not); remove it."
        )
    return manifest


def visible_names(folder: Path) -> list[str]:
    """Names of the files of a folder itself, sorted; hidden ones are left out."""
    return sorted(path.name for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def new_place(folder: Path) -> Path:
    """The full path of a folder that is to be written as a whole, links followed.

    Such a folder is renamed to its place, and sets aside an empty one that is there.

    Raises:
        UserError: it is a disk's own folder, which cannot be renamed, or a shell may be in it.
    """
    place = folder.expanduser().resolve()
    if os.path.ismount(place):
        raise UserError(f"'{place}' is a whole disk; name a folder on it, such as '{place / 'NAME'}'.")
    if Path.cwd().is_relative_to(place):
        raise UserError(f"'{place}' is the current folder or holds it; name a new folder.")
    return place


def tag_of(place: Path) -> str:
    """A name for a place, to keep what belongs to it below ``VMFCOOP_HOME``."""
    return hashlib.sha256(str(place.absolute()).encode()).hexdigest()[:16]


@contextmanager
def one_at_a_time(place: Path, progress: ProgressReport = no_progress) -> Iterator[None]:
    """Keep other processes from writing the same folder meanwhile; a process that dies lets go.

    Raises:
        UserError: the disk is full or ``VMFCOOP_HOME`` not writable.
    """
    waiting = f"Waiting for another process that writes {place.name}"
    with lock_held(home() / "locks" / f"{tag_of(place)}.lock", lambda: progress(waiting, 0, 1)):
        yield


@contextmanager
def clean_folder(folder: Path) -> Iterator[Path]:
    """An empty folder to prepare something in, removed at the end; what a killed process left there goes.

    Raises:
        UserError: the disk is full or not writable, here or while the folder is filled.
    """
    with full_disk_is_said(folder.parent):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def put_in_place(staged: Path, place: Path) -> None:
    """Rename a finished folder to its place; what is there is set aside, and put back should that fail."""
    with full_disk_is_said(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.old."))
        try:
            old = aside / place.name
            if place.exists():
                place.rename(old)
            try:
                staged.rename(place)
            except OSError:
                if old.exists():
                    old.rename(place)
                raise
        finally:
            shutil.rmtree(aside, ignore_errors=True)
