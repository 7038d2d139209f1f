"""The images of a dataset for a bundle: those that its table lists, and what the table is read from."""

from __future__ import annotations

import csv
import io
import json
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from vmfcoop.bundle.archive import Content
from vmfcoop.bundle.manifest import PackedData
from vmfcoop.data import KNOWN_DATASETS, Dataset
from vmfcoop.data.dataset import existing_path, find_listing
from vmfcoop.data.listing import Listing
from vmfcoop.data.references import parse_reference
from vmfcoop.data.splits import SPLITS
from vmfcoop.errors import UserError

Load = Callable[[str, Path | None], Dataset]
"""A data spec and the CSV of its groups -> the table, with all other settings as they were recorded."""


@dataclass
class CollectedData:
    """A dataset to pack.

    Attributes:
        part: its entry in the manifest.
        contents: its files by path in the bundle.
        table: as it was loaded.
        remarks: sentences on what a user must know.
    """

    part: PackedData
    contents: dict[str, Content]
    table: Dataset
    remarks: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """Where the files of a dataset go, as paths below its folder in the bundle.

    Attributes:
        spec: the data spec, below that folder; empty for the folder itself.
        files: content by path.
        groups: content of the CSV of groups, where one was given.
        remarks: as in :class:`CollectedData`.
    """

    spec: str
    files: dict[str, Content]
    groups: Content | None
    remarks: tuple[str, ...] = ()


def collect_data(name: str, spec: str, groups: Path | None, load: Load, scratch: Path) -> CollectedData:
    """Find the images that a dataset lists, and lay them out so that the same table is read elsewhere.

    Only listed images are taken, with the split file, the CSV or the ``groups.csv`` that the table is read
    from. The layout stays as it is. A table whose images lie outside its folder is written anew, with paths
    that count from the folder that holds them all. The outcome is proved by loading it: from links to the
    images in ``scratch`` the same classes, labels, splits and groups must come.

    Args:
        name: of the dataset's folder in the bundle.
        spec: data spec.
        groups: CSV of groups, where one was given.
        load: loads the table.
        scratch: an empty folder on a file system with symbolic links.

    Raises:
        UserError: the data are at fault, or their table cannot be carried to another place.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table, (_, listing) = load(spec, groups), find_listing(spec)
    inside = all(_is_inside(row.file) for row in listing.rows)
    layout = _as_it_is(spec, listing, groups) if inside else _rewritten(listing, table, groups)
    contents: dict[str, Content] = {f"data/{name}/{path}": file for path, file in layout.files.items()}
    path = str(PurePosixPath("data", name, layout.spec))
    packed_groups = None
    if layout.groups is not None:
        packed_groups = f"groups/{name}.csv"
        contents[packed_groups] = layout.groups
    again = _load_from_links(path, packed_groups, contents, load, scratch)
    if not _is_same_table(table, again):
        raise UserError(f"'{spec}' would be read otherwise in another place; give it splits of its own.")
    counts = {split: int((table.split == split).sum()) for split in SPLITS}
    part = PackedData(
        name=name, spec=spec, path=path, groups=packed_groups, images=counts, fingerprint=again.fingerprint
    )
    return CollectedData(part, contents, table, list(layout.remarks))


def _is_inside(file: str) -> bool:
    path = PurePosixPath(file)
    return not path.is_absolute() and ".." not in path.parts


def _as_it_is(spec: str, listing: Listing, groups: Path | None) -> _Layout:
    """The dataset's own layout, of all its files those that count."""
    source = listing.source
    base = source if source.is_dir() else source.parent
    below = listing.root.relative_to(base)
    files: dict[str, Content] = {}
    for row in listing.rows:
        image = parse_reference(listing.root / row.file).file
        files[image.relative_to(base).as_posix()] = image
    if source.is_file():
        files[source.name] = source
    if (listing.root / "groups.csv").is_file() and groups is None and source.suffix.lower() != ".csv":
        files[(below / "groups.csv").as_posix()] = listing.root / "groups.csv"
    place = existing_path(spec) or KNOWN_DATASETS[spec]()
    return _Layout("" if place.is_dir() else place.name, files, groups, _said_of_links(spec, files, base))


def _said_of_links(spec: str, files: dict[str, Content], base: Path) -> tuple[str, ...]:
    root = base.resolve()
    leading_out = [
        path for path in files.values() if isinstance(path, Path) and not path.resolve().is_relative_to(root)
    ]
    if not leading_out:
        return ()
    return (
        f"{len(leading_out)} files of '{spec}' are links out of its folder, the first '{leading_out[0]}'; "
        "what they lead to is in the bundle.",
    )


def _rewritten(listing: Listing, table: Dataset, groups: Path | None) -> _Layout:
    """Images anywhere, below the folder that holds them all, and a table with paths from there."""
    references = [parse_reference(listing.root / row.file) for row in listing.rows]
    images = [reference.file.parent.resolve() / reference.file.name for reference in references]
    common = Path(os.path.commonpath([image.parent for image in images]))
    names = [image.relative_to(common).as_posix() for image in images]
    files: dict[str, Content] = {f"images/{n}": image for n, image in zip(names, images, strict=True)}
    chosen = [f"#{reference.selection}" if reference.selection else "" for reference in references]
    placed = [f"images/{name}{selection}" for name, selection in zip(names, chosen, strict=True)]
    if placed != sorted(placed):
        raise UserError(
            f"'{listing.source}' lists images below its folder and others elsewhere, so its order cannot be "
            "kept; bring them into one folder."
        )
    is_csv = listing.source.suffix.lower() == ".csv"
    text = _csv_table(listing, placed) if is_csv else _split_file(listing, placed)
    files[listing.source.name] = text.encode()
    given = None
    if groups is not None and table.groups is not None:
        given = _csv_text(("path", "group"), zip(placed, table.groups.tolist(), strict=True)).encode()
    remark = f"The images of '{listing.source}' lie outside its folder; they were packed from '{common}'."
    return _Layout(listing.source.name, files, given, (remark,))


def _csv_table(listing: Listing, files: list[str]) -> str:
    columns = ["path", "label", *(["group"] if listing.has_groups else [])]
    columns += ["split"] if listing.has_splits else []
    rows = []
    for file, row in zip(files, listing.rows, strict=True):
        values = {
            "path": file,
            "label": listing.class_keys[row.label],
            "group": row.group,
            "split": row.split,
        }
        rows.append([values[column] for column in columns])
    return _csv_text(columns, rows)


def _split_file(listing: Listing, files: list[str]) -> str:
    parts: dict[str, list[list[str | int]]] = {split: [] for split in SPLITS}
    for file, row in zip(files, listing.rows, strict=True):
        parts[str(row.split)].append([file, row.label, listing.class_keys[row.label]])
    return json.dumps(parts, indent=1, ensure_ascii=False) + "\n"


def _csv_text(columns: Sequence[str], rows: Iterable[Sequence[str | None]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    return text.getvalue()


def _load_from_links(
    path: str, groups: str | None, contents: dict[str, Content], load: Load, scratch: Path
) -> Dataset:
    """The table that the bundle will give, from a folder of links to the images."""
    for name, content in contents.items():
        target = scratch / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, Path):
            target.symlink_to(content.absolute())
        else:
            target.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load(str(scratch / path), scratch / groups if groups else None)


def _is_same_table(one: Dataset, other: Dataset) -> bool:
    def same(a: NDArray[np.generic] | None, b: NDArray[np.generic] | None) -> bool:
        return (a is None and b is None) or (a is not None and b is not None and np.array_equal(a, b))

    return (
        one.class_names == other.class_names
        and same(one.labels, other.labels)
        and same(one.split, other.split)
        and same(one.groups, other.groups)
    )
