"""Where fetched and imported datasets lie, and the one way they get there: whole or not at all.

``<home>/datasets/<key>`` holds ``source.json`` (what it is and where it came from) and the images. A dataset
is prepared in a hidden folder beside its place and then renamed, so that no reader ever sees half of one.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said, home, lock_held, write_atomically
from vmfcoop.progress import ProgressReport, no_progress

SOURCE_FILE = "source.json"
_ATTEMPTS = 20


def datasets_folder() -> Path:
    """Folder of all datasets that were fetched or imported."""
    return home() / "datasets"


def dataset_home(key: str) -> Path:
    """Folder of one dataset, whether it is there or not.

    Raises:
        UserError: the key is no plain name.
    """
    if not key or key.startswith(".") or any(mark in key for mark in "/\\:\0"):
        raise UserError(f"'{key}' is no key of a dataset; use letters, digits, '-' and '@'.")
    return datasets_folder() / key


def is_here(key: str) -> bool:
    """Whether the dataset was fetched or imported."""
    return (dataset_home(key) / SOURCE_FILE).is_file()


def read_source(key: str) -> dict[str, Any]:
    """What ``source.json`` says of a dataset that is here.

    Raises:
        UserError: it is not here, or the file is no JSON object of the form that ``install`` is given.
    """
    path = dataset_home(key) / SOURCE_FILE
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{key} is not here; there is no '{path}'.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"'{path}' cannot be read; fetch or import {key} again with --replace.") from error
    if not isinstance(record, dict) or not isinstance(record.get("data"), str):
        raise UserError(f"'{path}' does not name the data; fetch or import {key} again with --replace.")
    if not (_are_counts(record.get("splits", {})) and _are_counts(record.get("left_out", {}))):
        raise UserError(f"'{path}' has no valid counts; fetch or import {key} again with --replace.")
    return record


def _are_counts(value: Any) -> bool:
    return isinstance(value, dict) and all(type(count) is int for count in value.values())


def data_path(key: str) -> Path:
    """The folder or split file of a dataset that is here, for ``load_dataset``.

    Raises:
        UserError: the dataset is not here, or what ``source.json`` names is gone.
    """
    path = dataset_home(key) / str(read_source(key)["data"])
    if not path.exists():
        raise UserError(f"'{path}' is gone; fetch or import {key} again with --replace.")
    return path


@contextmanager
def one_at_a_time(key: str, progress: ProgressReport = no_progress) -> Iterator[None]:
    """Keep other processes from preparing the same dataset meanwhile; a process that dies lets go.

    What a process left that was killed while it prepared the dataset is removed.

    Raises:
        UserError: the disk is full or the folder not writable.
    """
    place, waiting = dataset_home(key), f"Waiting for another process that prepares {key}"
    with lock_held(place.parent / f".{key}.lock", lambda: progress(waiting, 0, 1)):
        _clear_leftovers(place)
        yield


def _clear_leftovers(place: Path) -> None:
    """Remove half-prepared folders; a dataset that was set aside and not replaced goes back to its place."""
    for leftover in sorted(path for path in place.parent.glob(f".{place.name}.*") if path.is_dir()):
        if leftover.name.startswith(f".{place.name}.old."):
            for old in leftover.iterdir():
                if not place.exists():
                    old.rename(place)
        shutil.rmtree(leftover, ignore_errors=True)


@contextmanager
def staging(key: str) -> Iterator[Path]:
    """An empty folder beside the dataset's place to prepare it in; what is not installed is removed.

    Raises:
        UserError: the disk is full or the folder not writable, here or while the folder is filled.
    """
    place = dataset_home(key)
    with full_disk_is_said(place.parent):
        place.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{key}."))
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def install(key: str, staged: Path, record: dict[str, Any], replace: bool = False) -> Path:
    """Move a prepared folder to the dataset's place, with its ``source.json``.

    Args:
        key: Of the dataset.
        staged: The folder that ``staging`` gave, filled.
        record: For ``source.json``; ``record["data"]`` is what ``load_dataset`` reads, as a path relative to
            the folder.
        replace: Whether to take the place of a dataset that is there already.

    Returns:
        The dataset's folder.

    Raises:
        UserError: the dataset is there and is not to be replaced, or the disk is full or not writable.
        ValueError: the record names no data in the folder.
    """
    place = dataset_home(key)
    data = record.get("data")
    if not isinstance(data, str) or not (staged / data).exists():
        raise ValueError(f"the record of {key} names no data in {staged}: {data!r}")
    with full_disk_is_said(place.parent):
        write_atomically(staged / SOURCE_FILE, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        staged.chmod(0o755)
        if replace:
            _rename_over(staged, place)
        else:
            _rename_to_new(key, staged, place)
    return place


def refuse_existing(key: str) -> UserError:
    """The error for a dataset that is there already."""
    return UserError(
        f"{key} is here already, in '{dataset_home(key)}'; add --replace to put a new one there."
    )


def _rename_to_new(key: str, staged: Path, place: Path) -> None:
    try:
        staged.rename(place)
    except OSError as error:
        # Renaming a folder onto one with files in it fails; so does the slower of two processes.
        if place.exists():
            raise refuse_existing(key) from error
        raise


def _rename_over(staged: Path, place: Path) -> None:
    """Set the old folder aside, rename, and put the old one back should that fail."""
    aside = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.old."))
    try:
        for attempt in range(_ATTEMPTS):
            old = aside / str(attempt)
            had_old = _set_aside(place, old)
            try:
                staged.rename(place)
                return
            except OSError:
                # Where another process put its dataset in between, that one is set aside in turn.
                if place.exists() and attempt + 1 < _ATTEMPTS:
                    continue
                if had_old and not place.exists():
                    old.rename(place)
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _set_aside(place: Path, old: Path) -> bool:
    try:
        place.rename(old)
    except FileNotFoundError:
        return False
    return True
