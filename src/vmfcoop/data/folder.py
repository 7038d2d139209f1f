"""Readers of folders: class folders, train/val/test folders of them, and official split files."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from vmfcoop.data.image_io import is_image_path
from vmfcoop.data.listing import SPLIT_ALIASES, Listing, Row, check_files_exist, is_there
from vmfcoop.errors import UserError

_SPLIT_FILE_FORM = '{"train": [["relative/path.png", 0, "class name"], ...], "val": [...], "test": [...]}'


def list_folder(root: Path) -> Listing:
    """List a dataset folder: by its ``split_*.json``, by train/val/test folders, or by class folders.

    Folders beside train, val and test are no part of the dataset; hidden files and ``__MACOSX`` never are.

    Raises:
        UserError: There are no class folders, one is empty, or the split file or folders are at fault.
    """
    split_files = sorted(path for path in root.glob("split_*.json") if not _is_hidden(path.name))
    if len(split_files) > 1:
        found = ", ".join(path.name for path in split_files)
        raise UserError(f"{root} holds several split files ({found}); name the one to use as the dataset.")
    if split_files:
        return list_split_file(split_files[0])
    folders = subfolders(root)
    splits = [
        SPLIT_ALIASES[folder.name.lower()] for folder in folders if folder.name.lower() in SPLIT_ALIASES
    ]
    if "train" in splits or len(splits) > 1:
        return _list_split_folders(root, folders)
    return _list_class_folders(root, folders)


def _list_class_folders(root: Path, folders: list[Path]) -> Listing:
    _require_class_folders(root, folders)
    rows = [Row(file, label) for label, folder in enumerate(folders) for file in _images_in(folder, root)]
    return Listing(root, root, tuple(folder.name for folder in folders), tuple(rows))


def _list_split_folders(root: Path, folders: list[Path]) -> Listing:
    by_split: dict[str, list[Path]] = {}
    for folder in folders:
        split = SPLIT_ALIASES.get(folder.name.lower())
        if split in by_split:
            raise UserError(f"{root} holds more than one {split} folder; merge {folder.name} into the other.")
        if split is not None:
            by_split[split] = subfolders(folder)
            _require_class_folders(folder, by_split[split])
    keys = sorted({folder.name for class_folders in by_split.values() for folder in class_folders})
    rows = [
        Row(file, keys.index(folder.name), split)
        for split, class_folders in by_split.items()
        for folder in class_folders
        for file in _images_in(folder, root)
    ]
    return Listing(root, root, tuple(keys), tuple(rows), has_splits=True)


def list_split_file(path: Path) -> Listing:
    """List the images of a split file of the CoOp family.

    Its form is ``{"train": [[relative path, label, class name], ...], "val": ..., "test": ...}``. Paths
    count from the file's folder or from a sub-folder of it, and classes have the order of their labels.

    Raises:
        UserError: The file is no JSON of that form, labels and names contradict each other, or images
            are missing.
    """
    entries = _split_entries(path)
    names = _names_by_label(path, [(label, name) for _, label, name, _ in entries])
    files = [file for file, _, _, _ in entries]
    root = _image_root(path.parent, files)
    check_files_exist(path, root, files)
    rows = tuple(Row(file, label, split) for file, label, _, split in entries)
    return Listing(path, root, names, rows, has_splits=True)


def _split_entries(path: Path) -> list[tuple[str, int, str, str]]:
    """All (file, label, class name, split) of a split file."""
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not valid JSON; correct it or download it again.") from error
    if not isinstance(content, dict) or "train" not in content or "test" not in content:
        raise UserError(f"{path} is no split file; give it the form {_SPLIT_FILE_FORM}.")
    entries = []
    for split in ("train", "val", "test"):
        part = content.get(split, [])
        for entry in part if isinstance(part, list) else [part]:
            if not _is_split_entry(entry):
                raise UserError(
                    f"{path} has the entry {json.dumps(entry)[:80]} in {split}; give entries the form "
                    '["relative/path.png", 0, "class name"].'
                )
            entries.append((PurePosixPath(entry[0]).as_posix(), entry[1], entry[2], split))
    return entries


def _is_split_entry(entry: Any) -> bool:
    return isinstance(entry, list) and [type(value) for value in entry] == [str, int, str]


def _names_by_label(path: Path, pairs: list[tuple[int, str]]) -> tuple[str, ...]:
    names: dict[int, str] = {}
    for label, name in pairs:
        if names.setdefault(label, name) != name:
            raise UserError(
                f"{path} calls label {label} '{names[label]}' and '{name}'; give each label one class name."
            )
    labels = sorted(names)
    if labels != list(range(len(labels))) or not labels:
        raise UserError(f"{path} has labels {labels[:8]}; number the classes 0, 1, 2, ... without gaps.")
    return tuple(names[label] for label in labels)


def _image_root(folder: Path, files: list[str]) -> Path:
    """The folder itself or the sub-folder that holds most of the first listed files."""
    candidates = [folder, *subfolders(folder)]
    first = files[:20]
    return max(candidates, key=lambda candidate: sum(_holds(candidate, file) for file in first))


def _holds(folder: Path, file: str) -> bool:
    # Without its file a name with a '#' may be no selection either.
    try:
        return is_there(folder, file)
    except UserError:
        return False


def _require_class_folders(root: Path, folders: list[Path]) -> None:
    if not folders:
        raise UserError(
            f"{root} has no class folders; put the images of each class in a folder named after it."
        )


def _images_in(folder: Path, root: Path) -> list[str]:
    """Paths of a class folder's images relative to the root; UserError where there is none."""
    files = [path for path in visible_files(folder) if is_image_path(path)]
    if not files:
        raise UserError(
            f"Class folder {folder} holds no images; add some (PNG, JPEG, TIFF, BMP, WebP, GIF, DICOM or "
            "NIfTI) or remove it."
        )
    return [path.relative_to(root).as_posix() for path in files]


def visible_files(folder: Path) -> Iterator[Path]:
    """Files at any depth. Links to folders elsewhere are followed, once each; links in a circle are not."""
    top, seen = folder.resolve(), set()
    for directory, inner, files in os.walk(folder, followlinks=True, onerror=_refuse_unreadable):
        here = Path(directory).resolve()
        if here in seen:
            inner.clear()
            continue
        seen.add(here)
        inner[:] = sorted(
            name for name in inner if not _is_hidden(name) and _leads_on(Path(directory) / name, here, top)
        )
        yield from (Path(directory) / name for name in files if not _is_hidden(name))


def _leads_on(folder: Path, here: Path, top: Path) -> bool:
    """Whether a folder is no link, or one to neither a part of ``top`` nor what holds it or ``here``."""
    if not folder.is_symlink():
        return True
    target = folder.resolve()
    return not any(
        (target.is_relative_to(top), top.is_relative_to(target), here.is_relative_to(target)),
    )


def subfolders(root: Path) -> list[Path]:
    """Folders in a folder, hidden ones left out; UserError where it may not be looked into."""
    try:
        return sorted(path for path in root.iterdir() if path.is_dir() and not _is_hidden(path.name))
    except OSError as error:
        _refuse_unreadable(error)
        raise


def _refuse_unreadable(error: OSError) -> None:
    raise UserError(f"{error.filename} cannot be read ({error.strerror}); check its permissions.") from error


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name == "__MACOSX"
