"""The table of images that everything downstream works on, and the one way to load it."""

from __future__ import annotations

import errno
import hashlib
import json
import unicodedata
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.data.folder import list_folder, list_split_file
from vmfcoop.data.installed import datasets_folder
from vmfcoop.data.listing import Listing
from vmfcoop.data.patients import own_groups
from vmfcoop.data.references import with_window
from vmfcoop.data.registry import KNOWN_DATASETS, REGISTRY
from vmfcoop.data.splits import SPLITS, split_indices
from vmfcoop.data.table import list_table, read_groups
from vmfcoop.errors import UserError, unknown_name


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with labels and splits; arrays are read-only.

    Attributes:
        name: For people: the folder's or file's name, or the registry key.
        class_names: Names as prompts use them, by label, C in all.
        paths: Image files, n in all.
        labels: int64 ``(n,)``.
        split: ``'train'``, ``'val'`` or ``'test'``, ``(n,)``.
        groups: Group of each image ``(n,)`` as text, or None. Images of one patient share a group.
        root: Folder that paths count from in the fingerprint.

    Raises:
        ValueError: The lengths differ, a label is out of range, or a split has another name.
    """

    name: str
    class_names: tuple[str, ...]
    paths: tuple[Path, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    groups: NDArray[np.str_] | None = None
    root: Path = Path()

    def __post_init__(self) -> None:
        columns: dict[str, NDArray[Any]] = {
            "labels": np.array(self.labels, np.int64),
            "split": np.array(self.split, np.str_),
        }
        if self.groups is not None:
            columns["groups"] = np.array(self.groups, np.str_)
        for column, values in columns.items():
            if values.shape != (len(self.paths),):
                raise ValueError(f"{column} has shape {values.shape} for {len(self.paths)} paths")
            values.setflags(write=False)
            object.__setattr__(self, column, values)
        if len(self) and not (self.labels.min() >= 0 and self.labels.max() < len(self.class_names)):
            raise ValueError(f"labels must lie between 0 and {len(self.class_names) - 1}")
        if not np.isin(self.split, SPLITS).all():
            raise ValueError(f"splits must be among {SPLITS}")

    def __len__(self) -> int:
        return len(self.paths)

    def indices(self, split: str) -> NDArray[np.int64]:
        """Rows of a split, ascending."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        return np.flatnonzero(self.split == split).astype(np.int64)

    def take(self, rows: ArrayLike) -> Dataset:
        """The given rows, in that order, with the same classes."""
        rows = np.asarray(rows, np.int64)
        return Dataset(
            name=self.name,
            class_names=self.class_names,
            paths=tuple(self.paths[row] for row in rows),
            labels=self.labels[rows],
            split=self.split[rows],
            groups=None if self.groups is None else self.groups[rows],
            root=self.root,
        )

    def subset(self, split: str) -> Dataset:
        """The rows of one split."""
        return self.take(self.indices(split))

    def counts(self) -> dict[str, dict[str, int]]:
        """Images by split and class name, zeros included."""
        n_classes = len(self.class_names)
        by_split = {
            split: np.bincount(self.labels[self.indices(split)], minlength=n_classes) for split in SPLITS
        }
        return {
            split: {name: int(n) for name, n in zip(self.class_names, numbers, strict=True)}
            for split, numbers in by_split.items()
        }

    def leaking_groups(self) -> tuple[str, ...]:
        """Groups with images in more than one split, which make test figures look better than they are."""
        if self.groups is None:
            return ()
        pairs = np.unique(np.stack([self.groups, self.split]), axis=1)
        groups, splits_reached = np.unique(pairs[0], return_counts=True)
        return tuple(str(group) for group in groups[splits_reached > 1])

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over class names, relative paths, labels and splits; name and place do not count."""
        files = [self.file(row) for row in range(len(self))]
        content = [list(self.class_names), files, self.labels.tolist(), self.split.tolist()]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def file(self, row: int) -> str:
        """Path of a row's image from ``root``, or the whole path of one that lies elsewhere."""
        path = self.paths[row]
        # A table named by a relative path may list whole ones; however it is named, it is one table.
        root = self.root.absolute() if path.is_absolute() else self.root
        return (path.relative_to(root) if path.is_relative_to(root) else path).as_posix()


def load_dataset(
    spec: str | Path,
    *,
    test_fraction: float = 0.3,
    val_fraction: float = 0.2,
    seed: int = 0,
    groups: Path | None = None,
    class_names: Mapping[str, str] | None = None,
    window: str | None = None,
) -> Dataset:
    """Load the table of a dataset; pixels are read later.

    A spec is one of

    - a folder of class folders, images nested at will below them;
    - a folder with train (training), val (valid, validation) and test (testing) folders of class folders;
    - a folder with one ``split_*.json``, or that file, as the CoOp family publishes them;
    - a CSV ``path,label[,group][,split]`` with paths relative to its folder;
    - a key of ``KNOWN_DATASETS``.

    Splits that come with the data are kept. Where val alone is missing, ``val_fraction`` of the training
    images becomes val and test stays whole. Data without splits are split by the fractions; groups, from
    ``groups`` or from a ``groups.csv`` in the folder, then stay on one side; without any, DICOM images of one
    patient and slices of one file do (``own_groups``). Rows are sorted by path.

    Args:
        spec: Path or registry key.
        test_fraction: Share of test where the data have no splits.
        val_fraction: Share of val where the data have none; 0 for no val.
        seed: Seed of our splits.
        groups: CSV ``class,file,group`` or ``path,group``, paths relative to the folder of the images.
        class_names: Names for prompts by folder name or label; others have underscores made spaces.
        window: Values shown as black to white in DICOM and NIfTI files that choose none themselves:
            ``center,width`` or a CT window's name.

    Raises:
        UserError: Anything in the files or arguments that the user can mend.

    Warns:
        UserWarning: Splits that come with the data tear a group apart, or the registry knows a fault of the
            dataset.
    """
    name, listing = find_listing(spec)
    names = _display_names(listing, class_names or {})
    row_groups = groups_of(listing, groups)
    labels = np.array([row.label for row in listing.rows], np.int64)
    try:
        split = settle_splits(listing, labels, row_groups, names, (val_fraction, test_fraction), seed)
    except UserError as error:
        hint = "" if row_groups is None else " A group (a patient, a volume) stays in one split."
        raise UserError(f"{listing.source}: {error}{hint}") from error
    dataset = Dataset(
        name=name,
        class_names=names,
        paths=tuple(_windowed(listing.root / row.file, window) for row in listing.rows),
        labels=labels,
        split=split,
        groups=row_groups,
        root=listing.root,
    )
    _warn_of_leaks(dataset, listing.source)
    _warn_of_known_faults(dataset)
    return dataset


def _windowed(path: Path, window: str | None) -> Path:
    return path if window is None else with_window(path, window)


def find_listing(spec: str | Path) -> tuple[str, Listing]:
    """Name and images of a data spec, before groups and splits are settled; errors as ``load_dataset``."""
    path = existing_path(spec)
    if path is not None:
        name = path.resolve().name if path.is_dir() else path.stem
        return name, list_path(path)
    if str(spec) in KNOWN_DATASETS:
        return str(spec), list_path(KNOWN_DATASETS[str(spec)]())
    raise _unknown_spec(str(spec))


def existing_path(spec: str | Path) -> Path | None:
    """The file or folder that a data spec names, or None where it can only be a key.

    Raises:
        UserError: A folder on the way to it may not be looked into.
    """
    try:
        path = Path(spec).expanduser()
        return path if path.exists() else None
    except RuntimeError:  # ~ of an unknown user
        return None
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise UserError(f"{spec} cannot be read ({error.strerror}); check its permissions.") from error


def list_path(path: Path) -> Listing:
    """Images of a folder, a CSV or a split file; errors as ``load_dataset``."""
    readers = {".csv": list_table, ".json": list_split_file}
    if path.is_dir():
        return list_folder(path)
    if path.suffix.lower() not in readers:
        raise UserError(
            f"{path} is no dataset; give a folder (unpack an archive first), a CSV or a split JSON."
        )
    return readers[path.suffix.lower()](path)


def _unknown_spec(spec: str) -> UserError:
    error = unknown_name("dataset", spec, KNOWN_DATASETS)
    if str(error).endswith("?"):
        return error
    return UserError(
        f"Unknown dataset '{spec}', which is no existing path either; give a key that `vmfcoop data list` "
        "prints, a folder of class folders, a folder with split_*.json, or a CSV path,label[,group][,split]."
    )


def _display_names(listing: Listing, renamed: Mapping[str, str]) -> tuple[str, ...]:
    for key in renamed:
        if key not in listing.class_keys:
            raise unknown_name(f"class of {listing.source}", key, listing.class_keys)
    names = tuple(
        unicodedata.normalize("NFC", " ".join(renamed.get(key, key.replace("_", " ")).split()))
        for key in listing.class_keys
    )
    # Descriptions are looked up without regard to case, so names must differ without it too.
    folded = [name.casefold() for name in names]
    for label, name in enumerate(names):
        first = folded.index(folded[label])
        if not name:
            raise UserError(
                f"{listing.source} has a class '{listing.class_keys[label]}' without a name; rename it."
            )
        if first != label:
            keys = f"'{listing.class_keys[first]}' and '{listing.class_keys[label]}'"
            raise UserError(f"{listing.source} has the classes {keys}, both named '{name}'; rename one.")
    return names


def groups_of(listing: Listing, given: Path | None) -> NDArray[np.str_] | None:
    """Groups from the file given, the CSV's column, groups.csv beside the images, or the images' own."""
    if given is None and listing.has_groups:
        return np.array([row.group for row in listing.rows], np.str_)
    found = listing.root / "groups.csv"
    if given is None and (listing.source.suffix.lower() == ".csv" or not found.is_file()):
        return own_groups([listing.root / row.file for row in listing.rows])
    source = found if given is None else Path(given)
    by_file = read_groups(source)
    # Some disks and archives store accents apart from their letters, tables do not.
    files = [unicodedata.normalize("NFC", row.file) for row in listing.rows]
    _check_same_files(source, sorted(by_file.keys() - set(files)), "lists", "not in the dataset", "remove")
    _check_same_files(source, [f for f in files if f not in by_file], "lacks", "of the dataset", "add")
    return np.array([by_file[file] for file in files], np.str_)


def _check_same_files(source: Path, files: list[str], verb: str, where: str, mend: str) -> None:
    if files:
        raise UserError(
            f"{source} {verb} {len(files)} images {where}, the first being {files[0]}; {mend} these rows."
        )


def settle_splits(
    listing: Listing,
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    names: tuple[str, ...],
    fractions: tuple[float, float],
    seed: int,
) -> NDArray[np.str_]:
    """The listing's own splits, or ours by ``split_indices`` where it has none.

    Args:
        fractions: shares of val and test.
    """
    val_fraction, test_fraction = fractions
    if not listing.has_splits:
        shares = (1 - val_fraction - test_fraction, val_fraction, test_fraction)
        return split_indices(labels, groups, shares, seed, names)
    split = np.array([row.split for row in listing.rows], np.str_)
    if (split == "val").any() or val_fraction == 0:
        return split
    train = np.flatnonzero(split == "train")
    train_groups = None if groups is None else groups[train]
    split[train] = split_indices(
        labels[train], train_groups, (1 - val_fraction, val_fraction, 0.0), seed, names
    )
    return split


def _warn_of_leaks(dataset: Dataset, source: Path) -> None:
    leaking = dataset.leaking_groups()
    if leaking:
        warnings.warn(
            f"{source} puts {len(leaking)} groups in more than one split, the first being '{leaking[0]}'; "
            "test figures will look better than they are.",
            UserWarning,
            stacklevel=3,
        )


def _warn_of_known_faults(dataset: Dataset) -> None:
    known = REGISTRY.get(dataset.name)
    if known is None or known.classes_proposed or not dataset.root.is_relative_to(datasets_folder()):
        return
    if known.caveat:
        warnings.warn(
            f"{dataset.name} has a known fault, {known.caveat}: see `vmfcoop data show {dataset.name}`.",
            UserWarning,
            stacklevel=3,
        )
