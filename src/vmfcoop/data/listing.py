"""What a reader finds on disk, and the checks that all readers share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError

SPLIT_ALIASES: dict[str, str] = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}


@dataclass(frozen=True)
class Row:
    """One image as listed: path relative to the listing's root (POSIX), label, official split, group."""

    file: str
    label: int
    split: str | None = None
    group: str | None = None


@dataclass(frozen=True)
class Listing:
    """Images and classes as found, before groups and splits of our own are settled.

    Attributes:
        source: File or folder to name in messages.
        root: Folder that relative paths count from.
        class_keys: Classes in label order, as written on disk.
        rows: Sorted by path, so that one set of images gives the same order from any layout.
        has_splits: Whether the source assigns images to splits itself.
        has_groups: Whether the source gives each image a group itself.
    """

    source: Path
    root: Path
    class_keys: tuple[str, ...]
    rows: tuple[Row, ...]
    has_splits: bool = False
    has_groups: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rows", tuple(sorted(self.rows, key=lambda row: row.file)))
        if len(self.class_keys) < 2:
            raise UserError(
                f"{self.source} has the single class '{self.class_keys[0]}'; add a second one to tell apart."
            )
        if self.has_splits:
            self._check_splits()

    def _check_splits(self) -> None:
        for split in ("train", "test"):
            if not any(row.split == split for row in self.rows):
                raise UserError(
                    f"{self.source} assigns no image to {split}; add some, or leave the splits out."
                )
        trained = {row.label for row in self.rows if row.split == "train"}
        for label, key in enumerate(self.class_keys):
            if label not in trained:
                raise UserError(f"{self.source} has no training image of class '{key}'; add some or drop it.")


def check_files_exist(source: Path, root: Path, files: Sequence[str]) -> None:
    """Raise UserError naming the first listed file that is missing, and how many are.

    Files may carry a selection (``scan.nii.gz#slice=40``); a malformed one is a UserError too.
    """
    missing = [file for file in files if not is_there(root, file)]
    if missing:
        slashes = "write / for \\ in the paths" if "\\" in missing[0] else "correct the paths"
        raise UserError(
            f"{source} lists {len(missing)} of {len(files)} files that are missing, the first being "
            f"{missing[0]}; {slashes}, which count from {root}, or restore the files."
        )


def is_there(root: Path, file: str) -> bool:
    """Whether a listed file, perhaps with a selection, exists; a name no disk could hold does not."""
    try:
        return parse_reference(root / file).file.is_file()
    except OSError:
        return False
