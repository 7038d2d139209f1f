"""Bring images that a user has into the place of a registry dataset, with splits that never change again."""

from __future__ import annotations

import csv
import difflib
import hashlib
import io
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmfcoop.data.dataset import existing_path, groups_of, list_path, settle_splits
from vmfcoop.data.downloads import require_space
from vmfcoop.data.folder import subfolders
from vmfcoop.data.installed import (
    data_path,
    dataset_home,
    datasets_folder,
    install,
    is_here,
    one_at_a_time,
    refuse_existing,
    staging,
)
from vmfcoop.data.listing import Listing, Row
from vmfcoop.data.references import parse_reference
from vmfcoop.data.registry import REGISTRY_VERSION, DatasetInfo, find
from vmfcoop.data.splits import SPLITS
from vmfcoop.data.twins import fingerprint_images
from vmfcoop.errors import UserError
from vmfcoop.progress import ProgressReport, no_progress

IMAGES = "images"
"""Folder of an imported dataset that holds its images, split file and groups.csv."""

HASHED_DIGITS = 12
"""Hexadecimal digits of SHA-256 that replace a group's name on request: 48 bits."""

_COPIERS = 4


@dataclass(frozen=True)
class ImportRequest:
    """What to import and how.

    Attributes:
        key: Of the registry.
        source: Folder of class folders, or of train, val and test folders of them; folder with a
            ``split_*.json``; that file; CSV ``path,label[,group][,split]``; or the dataset's own folder.
        groups: CSV ``class,file,group`` or ``path,group``; a ``groups.csv`` in the folder is found.
        class_names: Class of the registry by folder name or label, where they differ by more than case,
            underscores and hyphens.
        test_fraction: Share of test where the source has no splits.
        val_fraction: Share of val where it has none.
        seed: Seed of such splits.
        resplit: Whether to leave the source's own splits aside.
        link: Whether to make symbolic links to the source's files instead of copies.
        skip_unreadable: Whether to leave images out that cannot be read.
        hash_groups: Whether to write hashes in place of the groups' names.
        replace: Whether to take the place of a dataset that is there.
    """

    key: str
    source: Path
    groups: Path | None = None
    class_names: Mapping[str, str] | None = None
    test_fraction: float = 0.3
    val_fraction: float = 0.2
    seed: int = 0
    resplit: bool = False
    link: bool = False
    skip_unreadable: bool = False
    hash_groups: bool = False
    replace: bool = False


@dataclass(frozen=True)
class Imported:
    """What was imported.

    Attributes:
        key: Of the registry.
        folder: The dataset's folder.
        class_names: In label order.
        images: Images taken.
        splits: Images of train, val and test.
        split_origin: ``'given'`` with the source, or ``'made'`` here.
        groups: Number of groups, None where images have none.
        linked: Whether images are symbolic links.
        skipped: Images left out as they cannot be read, with the reason.
        remarks: Sentences on what a user has to know.
    """

    key: str
    folder: Path
    class_names: tuple[str, ...]
    images: int
    splits: dict[str, int]
    split_origin: str
    groups: int | None
    linked: bool
    skipped: dict[str, str]
    remarks: tuple[str, ...]

    def as_json(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"folder": str(self.folder)}


@dataclass(frozen=True)
class _Plan:
    """What will be written: source files by their new places, and images with all that belongs to them."""

    names: tuple[str, ...]
    files: dict[str, Path]
    targets: tuple[str, ...]
    labels: NDArray[np.int64]
    split: NDArray[np.str_]
    groups: NDArray[np.str_] | None


def import_dataset(request: ImportRequest, progress: ProgressReport = no_progress) -> Imported:
    """Check a user's images, split them if need be, and put them in the place of a registry dataset.

    Every image is opened first; then the images are copied, a split file ``split_<key>.json`` of the CoOp
    family's form and ``groups.csv`` are written beside them, and the folder is moved into place, whole or not
    at all. The source is only read. Labels have the registry's order. Splits of the source are kept; others
    are made by ``split_indices``, by group where there are groups. DICOM and NIfTI files are copied as they
    are, headers with patient identifiers included.

    For UK Biobank the participant of each image must be known: ``<class>/<participant>/<file>``, or groups
    from a CSV. Other classes than the registry proposes are taken there, in the source's order.

    Args:
        request: What to import and how.
        progress: Told of reading and copying.

    Raises:
        UserError: The source has other classes or lacks some, an image cannot be read, participants are
            unknown or torn apart, the dataset is there already, or the disk is full.
    """
    info = find(request.key)
    if is_here(info.key) and not request.replace:
        raise refuse_existing(info.key)
    _refuse_links_into_itself(request, info)
    listing = _list_source(info, request)
    names, labels_by_key = _match_classes(info, listing, request.class_names or {})
    groups = _groups(info, listing, request.groups)
    listing, groups, skipped = _readable(listing, groups, request.skip_unreadable, progress)
    labels = np.array([labels_by_key[row.label] for row in listing.rows], np.int64)
    split = _split(request, listing, labels, groups, names)
    _refuse_torn_participants(info, listing, groups, split)
    if groups is not None and request.hash_groups:
        groups = np.array([hashed(str(group)) for group in groups], np.str_)
    plan = _Plan(names, *_places(listing, names, labels), labels, split, groups)
    origin = "given" if listing.has_splits else "made"
    remarks = tuple(_remarks(info, plan, origin, request))
    folder = _write(info, request, plan, origin, skipped, remarks, progress)
    return Imported(
        key=info.key,
        folder=folder,
        class_names=names,
        images=len(labels),
        splits=_sizes(split),
        split_origin=origin,
        groups=None if groups is None else len(set(groups.tolist())),
        linked=request.link,
        skipped=skipped,
        remarks=remarks,
    )


def hashed(group: str) -> str:
    """The first digits of a group name's SHA-256.

    It hides names from a casual reader and is no anonymisation: whoever can list the possible names, such as
    all patient numbers of a hospital, finds the one behind a hash.

    Example:
        >>> hashed("patient 7")
        '380e1c6279a5'
    """
    return hashlib.sha256(group.encode()).hexdigest()[:HASHED_DIGITS]


def _refuse_links_into_itself(request: ImportRequest, info: DatasetInfo) -> None:
    place = dataset_home(info.key).resolve()
    if request.link and request.source.resolve().is_relative_to(place):
        raise UserError(
            f"'{request.source}' is what would be replaced, so it cannot be linked; leave out --link."
        )


def _list_source(info: DatasetInfo, request: ImportRequest) -> Listing:
    source = existing_path(request.source)
    if source is None:
        raise UserError(f"'{request.source}' does not exist; give the folder or CSV of your images.")
    if is_here(info.key) and source.resolve() == dataset_home(info.key).resolve():
        source = data_path(info.key)
    if source.is_dir() and not list(source.glob("split_*.json")):
        # The published archives unpack to a folder in a folder.
        inner = [path for path in subfolders(source) if list(path.glob("split_*.json"))]
        source = inner[0] if len(inner) == 1 else source
    listing = list_path(source)
    return replace(listing, has_splits=False) if request.resplit else listing


def _plain(name: str) -> str:
    """A class name without regard to case, underscores, hyphens and repeated spaces."""
    return " ".join(re.split(r"[\s_-]+", name.casefold())).strip()


def _match_classes(
    info: DatasetInfo, listing: Listing, renamed: Mapping[str, str]
) -> tuple[tuple[str, ...], list[int]]:
    """Class names in label order, and the new label of each class of the listing."""
    for folder in renamed:
        if folder not in listing.class_keys:
            raise UserError(
                f"--class-name names '{folder}', which {listing.source} does not have; its classes are "
                f"{', '.join(listing.class_keys)}."
            )
    found = [_plain(renamed.get(key, key)) for key in listing.class_keys]
    wanted = [_plain(name) for name in info.class_names]
    if info.classes_proposed and set(found) != set(wanted):
        names = tuple(renamed.get(key, key.replace("_", " ")) for key in listing.class_keys)
        _refuse_twice(listing, found)
        return names, list(range(len(names)))
    if set(found) != set(wanted):
        raise _other_classes(info, listing, found, wanted)
    _refuse_twice(listing, found)
    return info.class_names, [wanted.index(name) for name in found]


def _refuse_twice(listing: Listing, found: list[str]) -> None:
    name, count = Counter(found).most_common(1)[0]
    if count > 1:
        keys = " and ".join(f"'{key}'" for key, n in zip(listing.class_keys, found, strict=True) if n == name)
        raise UserError(f"{listing.source} has the classes {keys}, both '{name}'; merge them.")


def _other_classes(info: DatasetInfo, listing: Listing, found: list[str], wanted: list[str]) -> UserError:
    """One sentence on classes that are missing and folders that are unknown."""
    missing = [name for name in wanted if name not in found]
    unknown = [key for key, name in zip(listing.class_keys, found, strict=True) if name not in wanted]
    parts = []
    if missing:
        parts.append("lacks " + ", ".join(f"'{name}'" for name in missing))
    if unknown:
        parts.append("has the unknown " + ", ".join(f"'{key}'" for key in unknown))
    mend = f"the classes of {info.key} are {', '.join(info.class_names)}"
    if unknown and missing:
        near = (difflib.get_close_matches(_plain(unknown[0]), missing, 1, 0.0) or missing)[0]
        mend += f"; rename the folders, or say which is which with --class-name '{unknown[0]}={near}'"
    elif unknown:
        mend += "; move the others out of the folder"
    else:
        mend += "; add their images"
    return UserError(f"{listing.source} {' and '.join(parts)}: {mend}.")


def _groups(info: DatasetInfo, listing: Listing, given: Path | None) -> NDArray[np.str_] | None:
    if info.access != "apply":
        return groups_of(listing, given)
    known = given is not None or listing.has_groups or (listing.root / "groups.csv").is_file()
    if known:
        return groups_of(listing, given)
    folders = [_participant(row, listing) for row in listing.rows]
    if not all(folders):
        raise UserError(
            f"{listing.source} does not say which participant {listing.rows[folders.index('')].file} shows, "
            f"so images of one participant of {info.key} could lie in train and test; lay the images out as "
            "<class>/<participant>/<file>, or name the participant of each image in a CSV (column group) or "
            "with --groups."
        )
    return np.array(folders, np.str_)


def _participant(row: Row, listing: Listing) -> str:
    """The folder below the class's, '' where there is none."""
    parts = PurePosixPath(row.file).parts
    class_folder = listing.class_keys[row.label]
    if not listing.source.is_dir() or class_folder not in parts:
        return ""
    below = parts[parts.index(class_folder) + 1 :]
    return below[0] if len(below) > 1 else ""


def _readable(
    listing: Listing, groups: NDArray[np.str_] | None, skip: bool, progress: ProgressReport
) -> tuple[Listing, NDArray[np.str_] | None, dict[str, str]]:
    """The listing without images that cannot be read, if that is wanted, and why each was left out."""
    unreadable = fingerprint_images([listing.root / row.file for row in listing.rows], progress).unreadable
    if unreadable and not skip:
        first = unreadable[min(unreadable)].rstrip(".")
        raise UserError(
            f"{len(unreadable)} of {len(listing.rows)} images cannot be read, so nothing was imported; the "
            f"first: {first} (or add --skip-unreadable to leave them out)."
        )
    kept = [number for number in range(len(listing.rows)) if number not in unreadable]
    if not kept:
        raise UserError(f"No image of {listing.source} can be read, so nothing was imported.")
    skipped = {listing.rows[number].file: reason for number, reason in sorted(unreadable.items())}
    rows = tuple(listing.rows[number] for number in kept)
    return replace(listing, rows=rows), None if groups is None else groups[kept], skipped


def _split(
    request: ImportRequest,
    listing: Listing,
    labels: NDArray[np.int64],
    groups: NDArray[np.str_] | None,
    names: tuple[str, ...],
) -> NDArray[np.str_]:
    fractions = request.val_fraction, request.test_fraction
    try:
        return settle_splits(listing, labels, groups, names, fractions, request.seed)
    except UserError as error:
        raise UserError(f"{listing.source}: {error}") from error


def _refuse_torn_participants(
    info: DatasetInfo,
    listing: Listing,
    groups: NDArray[np.str_] | None,
    split: NDArray[np.str_],
) -> None:
    """UK Biobank only: published splits of the others are kept with their faults."""
    torn = _torn(groups, split)
    if info.access == "apply" and torn:
        raise UserError(
            f"{listing.source} puts images of {len(torn)} participants in more than one split; add --resplit "
            "for a split by participant."
        )


def _torn(groups: NDArray[np.str_] | None, split: NDArray[np.str_]) -> list[str]:
    """Groups in more than one split."""
    if groups is None:
        return []
    pairs = set(zip(groups.tolist(), split.tolist(), strict=True))
    return sorted(group for group, count in Counter(group for group, _ in pairs).items() if count > 1)


def _places(
    listing: Listing, names: Sequence[str], labels: NDArray[np.int64]
) -> tuple[dict[str, Path], tuple[str, ...]]:
    """The source file of each file below the dataset's folder, and the reference of each image there.

    Relative paths are kept, so that groups and lists of pairs made for the source hold for the copy. Files
    from elsewhere go to a folder named after their class.
    """
    files: dict[str, Path] = {}
    targets = []
    for row, label in zip(listing.rows, labels, strict=True):
        reference = parse_reference(listing.root / row.file)
        # A '#' may also belong to the name of the file itself.
        wanted = row.file.rpartition("#")[0] if reference.selection else row.file
        target = _target(PurePosixPath(wanted), names[label], reference.file, files)
        targets.append(f"{target}#{reference.selection}" if reference.selection else target)
    return files, tuple(targets)


def _target(wanted: PurePosixPath, class_name: str, file: Path, taken: dict[str, Path]) -> str:
    if wanted.is_absolute() or ".." in wanted.parts:
        wanted = PurePosixPath(class_name.replace(" ", "_")) / wanted.name
    target, number = wanted, 1
    while taken.setdefault(target.as_posix(), file) != file:
        number += 1
        target = wanted.with_name(f"{number}_{wanted.name}")
    return target.as_posix()


def _write(
    info: DatasetInfo,
    request: ImportRequest,
    plan: _Plan,
    origin: str,
    skipped: Mapping[str, str],
    remarks: Sequence[str],
    progress: ProgressReport,
) -> Path:
    if not request.link:
        needed = sum(file.stat().st_size for file in set(plan.files.values()))
        require_space(datasets_folder(), needed, f"import {info.key}")
    with one_at_a_time(info.key, progress), staging(info.key) as folder:
        images = folder / IMAGES
        images.mkdir()
        _bring(images, plan, request.link, progress)
        split_file = f"split_{info.key}.json"
        (images / split_file).write_text(_split_text(plan), encoding="utf-8")
        if plan.groups is not None:
            (images / "groups.csv").write_text(_groups_text(plan), encoding="utf-8")
        record = {
            "key": info.key,
            "title": info.title,
            "data": f"{IMAGES}/{split_file}",
            "source": {"kind": "import", "path": str(request.source.resolve()), "linked": request.link},
            "imported": datetime.now(UTC).isoformat(timespec="seconds"),
            "registry_version": REGISTRY_VERSION,
            "licence": info.licence,
            "class_names": list(plan.names),
            "files": len(plan.targets),
            "splits": _sizes(plan.split),
            "split_origin": origin,
            "split_seed": request.seed if origin == "made" else None,
            "left_out": {"unreadable": len(skipped)} if skipped else {},
            "remarks": list(remarks),
        }
        return install(info.key, folder, record, request.replace)


def _bring(images: Path, plan: _Plan, link: bool, progress: ProgressReport) -> None:
    """Copy or link every file once; several images may be parts of one file."""
    for parent in {(images / target).parent for target in plan.files}:
        parent.mkdir(parents=True, exist_ok=True)

    def bring(target: str) -> None:
        if link:
            (images / target).symlink_to(plan.files[target].resolve())
        else:
            shutil.copyfile(plan.files[target], images / target)

    with ThreadPoolExecutor(_COPIERS) as pool:
        for done, _ in enumerate(pool.map(bring, plan.files), 1):
            progress("Linking images" if link else "Copying images", done, len(plan.files))


def _split_text(plan: _Plan) -> str:
    parts: dict[str, list[list[Any]]] = {name: [] for name in SPLITS}
    for target, label, split in zip(plan.targets, plan.labels.tolist(), plan.split.tolist(), strict=True):
        parts[split].append([target, label, plan.names[label]])
    return json.dumps(parts, indent=1, ensure_ascii=False) + "\n"


def _groups_text(plan: _Plan) -> str:
    text = io.StringIO()
    assert plan.groups is not None
    rows = zip(plan.targets, plan.groups.tolist(), strict=True)
    csv.writer(text, lineterminator="\n").writerows([("path", "group"), *rows])
    return text.getvalue()


def _sizes(split: NDArray[np.str_]) -> dict[str, int]:
    return {name: int((split == name).sum()) for name in SPLITS}


def _remarks(info: DatasetInfo, plan: _Plan, origin: str, request: ImportRequest) -> list[str]:
    remarks = []
    if origin == "made":
        unit = "by image, as no groups were given" if plan.groups is None else "by group"
        remarks.append(f"The split was made at import, {unit}, with seed {request.seed}.")
    sizes, official = tuple(_sizes(plan.split).values()), info.splits
    if official is not None and sizes != (official.train, official.val, official.test):
        remarks.append(
            f"train/val/test hold {'/'.join(map(str, sizes))} images, the official parts "
            f"{official.train}/{official.val}/{official.test}: figures do not compare with published ones."
        )
    torn = _torn(plan.groups, plan.split)
    if torn:
        remarks.append(
            f"The given split puts {len(torn)} groups in more than one part; --resplit mends that."
        )
    if request.hash_groups and plan.groups is not None:
        remarks.append(
            "Groups are hashed, which is no anonymisation: who knows the possible names can find them, and "
            "file names and headers are as they were."
        )
    if request.link:
        remarks.append("The images are symbolic links: the source must stay where it is.")
    return remarks
