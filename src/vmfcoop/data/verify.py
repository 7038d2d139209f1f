"""What is wrong with a dataset: unreadable files, copies, leaks across splits, counts that differ.

A test image with a near twin in train is classified by remembering the twin; figures on such a test split say
little about images of new patients. ``verify`` says how many there are, and what a rule that copies the label
of the twin would reach.
"""

from __future__ import annotations

import csv
import io
import os
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmfcoop.data.dataset import Dataset, existing_path, find_listing, load_dataset
from vmfcoop.data.image_io import is_image_path
from vmfcoop.data.installed import is_here, read_source
from vmfcoop.data.listing import Listing
from vmfcoop.data.phantoms.library import PHANTOMS
from vmfcoop.data.references import parse_reference
from vmfcoop.data.registry import DatasetInfo, find
from vmfcoop.data.splits import SPLITS
from vmfcoop.data.twins import FLAT, THRESHOLD, Fingerprints, Twins, find_twins, fingerprint_images, join
from vmfcoop.files import write_atomically
from vmfcoop.progress import ProgressReport, no_progress

TINY = 16
"""Pixels of the shorter side below which an image is called tiny."""

ODD_RATIO = 4
"""Factor between an image's shorter side and the median one from which its size is called odd."""

RARE_SHARE = 0.05
"""Share below which grey images among colour ones, or colour among grey, are called odd."""

SHOWN_OVERLAPS = 100
"""Pairs under two classes that are listed one by one; the file of all pairs has the rest."""


@dataclass(frozen=True)
class Remark:
    """An image and what is the matter with it; ``image`` counts from the dataset's root."""

    image: str
    split: str
    class_name: str
    reason: str


@dataclass(frozen=True)
class TwinPair:
    """Two images that are the same or nearly so; ``kind`` is 'same bytes', 'same pixels' or 'near'."""

    image_a: str
    split_a: str
    class_a: str
    image_b: str
    split_b: str
    class_b: str
    similarity: float
    kind: str


@dataclass(frozen=True)
class Leak:
    """Twins of a part of the test images outside of test.

    Attributes:
        images: Test images.
        twin_in_train: Those with a near or exact twin in train.
        twin_in_train_or_val: Those with one in train or val.
        copied_right: Those with a twin in train whose most similar twin there has their label.
        copied_right_or_val: The same for train and val.
    """

    images: int
    twin_in_train: int
    twin_in_train_or_val: int
    copied_right: int
    copied_right_or_val: int

    def as_json(self) -> dict[str, Any]:
        """Counts with the shares that follow from them; a share of nothing is null."""
        return asdict(self) | {
            "share_in_train": _share(self.twin_in_train, self.images),
            "share_in_train_or_val": _share(self.twin_in_train_or_val, self.images),
            "copy_accuracy": _share(self.copied_right, self.twin_in_train),
            "copy_accuracy_or_val": _share(self.copied_right_or_val, self.twin_in_train_or_val),
        }


@dataclass(frozen=True)
class Finding:
    """A sentence, and whether it makes test figures doubtful."""

    text: str
    doubtful: bool


@dataclass(frozen=True)
class Duplicates:
    """Numbers of twins.

    Attributes:
        same_bytes: Files beyond the first of each set with equal bytes.
        same_pixels: Images beyond the first of each set with equal pixels, the former included.
        pairs: Pairs of twins, exact and near.
        across_splits: Pairs whose images lie in two splits.
        clusters: Clusters of more than one image.
        largest_cluster: Images of the largest.
    """

    same_bytes: int
    same_pixels: int
    pairs: int
    across_splits: int
    clusters: int
    largest_cluster: int


@dataclass(frozen=True, eq=False)
class Verification:
    """What ``verify`` found.

    Attributes:
        dataset: What was looked at.
        info: The registry's entry, for a registry key.
        splits: ``'given'`` with the data, ``'made'`` and written at import, or ``'drawn'`` by the fractions
            and the seed at every call.
        mismatches: Where the data differ from the registry.
        unreadable: Images that cannot be read, all of them.
        odd: Images that are constant, flat, tiny, of odd size, or grey among coloured ones.
        unlisted: Image files beside the listed ones that the split file or CSV does not list.
        duplicates: Numbers of exact and near twins.
        overlaps: Pairs of twins under two classes, the first ``SHOWN_OVERLAPS``.
        n_overlaps: All of them.
        leaking_groups: Groups in more than one split.
        leak: Of all test images.
        leak_by_class: Of the test images of each class.
        threshold: Similarity from which images count as near twins.
        flips: Whether flipped and turned copies were looked for.
        fingerprints: Of the images.
        twins: Of the images.
    """

    dataset: Dataset
    info: DatasetInfo | None
    splits: str
    mismatches: tuple[str, ...]
    unreadable: tuple[Remark, ...]
    odd: tuple[Remark, ...]
    unlisted: tuple[str, ...]
    duplicates: Duplicates
    overlaps: tuple[TwinPair, ...]
    n_overlaps: int
    leaking_groups: tuple[str, ...]
    leak: Leak
    leak_by_class: dict[str, Leak]
    threshold: float
    flips: bool
    fingerprints: Fingerprints
    twins: Twins

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Sentences, the gravest first."""
        return tuple(_findings(self))

    @property
    def is_clean(self) -> bool:
        """Whether nothing was found that makes test figures doubtful."""
        return not any(finding.doubtful for finding in self.findings)

    @property
    def advice(self) -> str:
        """What to do, in a sentence."""
        return _advice(self)

    def as_json(self) -> dict[str, Any]:
        """Everything but the single pairs, which ``write_pairs`` writes."""
        return {
            "name": self.dataset.name,
            "images": len(self.dataset),
            "classes": list(self.dataset.class_names),
            "counts": self.dataset.counts(),
            "splits": self.splits,
            "clean": self.is_clean,
            "findings": [asdict(finding) for finding in self.findings],
            "advice": self.advice,
            "known_faults": list(self.info.faults) if self.info else [],
            "mismatches": list(self.mismatches),
            "unreadable": [asdict(remark) for remark in self.unreadable],
            "odd": [asdict(remark) for remark in self.odd],
            "unlisted": list(self.unlisted),
            "duplicates": asdict(self.duplicates),
            "class_overlap": {
                "pairs": self.n_overlaps,
                "listed": [asdict(pair) for pair in self.overlaps],
            },
            "leaking_groups": list(self.leaking_groups),
            "leak": self.leak.as_json(),
            "leak_by_class": {name: leak.as_json() for name, leak in self.leak_by_class.items()},
            "threshold": self.threshold,
            "flips": self.flips,
        }


def verify(
    spec: str | Path,
    *,
    groups: Path | None = None,
    test_fraction: float = 0.3,
    val_fraction: float = 0.2,
    seed: int = 0,
    class_names: Mapping[str, str] | None = None,
    threshold: float = THRESHOLD,
    flips: bool = False,
    progress: ProgressReport = no_progress,
) -> Verification:
    """Read every image of a dataset and look for what makes figures on it doubtful.

    Images that cannot be read are findings and stop nothing. Data without splits are split as
    ``load_dataset`` would split them, so the answer holds for a fit with the same arguments.

    Args:
        spec: Registry key, folder, CSV or split file, as ``load_dataset`` takes it.
        groups: CSV of groups, as ``load_dataset`` takes it.
        test_fraction: Share of test where the data have no splits.
        val_fraction: Share of val where the data have none.
        seed: Seed of such splits.
        class_names: Names by class folder.
        threshold: Similarity from which two images are near twins, see ``vmfcoop.data.twins``.
        flips: Whether flipped copies and copies turned by 90 degrees count; takes eight times as long.
        progress: Told of reading and comparing.

    Raises:
        UserError: The dataset cannot be listed, or an argument is out of range.
    """
    with warnings.catch_warnings():
        # What loading warns of, groups in two splits and known faults, is among what is reported.
        warnings.filterwarnings("ignore", ".*(in more than one split|has a known fault)", UserWarning)
        dataset = load_dataset(
            spec,
            test_fraction=test_fraction,
            val_fraction=val_fraction,
            seed=seed,
            groups=groups,
            class_names=class_names,
        )
    _, listing = find_listing(spec)
    is_key = existing_path(spec) is None and str(spec) not in PHANTOMS
    info = find(str(spec)) if is_key else None
    splits = _origin_of_splits(listing, info)
    fingerprints = fingerprint_images(dataset.paths, progress)
    twins = find_twins(fingerprints, dataset.split, threshold, flips, progress)
    overlaps = _overlaps(dataset, twins)
    return Verification(
        dataset=dataset,
        info=info,
        splits=splits,
        mismatches=() if info is None else tuple(_mismatches(dataset, info, splits)),
        unreadable=tuple(
            _remark(dataset, row, reason) for row, reason in sorted(fingerprints.unreadable.items())
        ),
        odd=tuple(_odd_images(dataset, fingerprints)),
        unlisted=_unlisted(listing),
        duplicates=_count_duplicates(dataset, fingerprints, twins),
        overlaps=tuple(_describe(dataset, fingerprints, twins, overlaps[:SHOWN_OVERLAPS])),
        n_overlaps=len(overlaps),
        leaking_groups=dataset.leaking_groups(),
        leak=_leak(dataset, twins, dataset.indices("test")),
        leak_by_class={
            name: _leak(dataset, twins, np.flatnonzero((dataset.split == "test") & (dataset.labels == label)))
            for label, name in enumerate(dataset.class_names)
        },
        threshold=threshold,
        flips=flips,
        fingerprints=fingerprints,
        twins=twins,
    )


def write_pairs(verification: Verification, path: Path) -> int:
    """Write all pairs of twins as a CSV with the fields of ``TwinPair``, most similar first.

    Returns:
        Pairs written; beyond ``twins.LISTED_PAIRS`` they are counted but not written.

    Raises:
        UserError: The file cannot be written.
    """
    dataset, twins = verification.dataset, verification.twins
    order = np.argsort(-twins.pairs()[2], kind="stable")
    rows = _describe(dataset, verification.fingerprints, twins, order)
    columns = list(TwinPair.__dataclass_fields__)
    write_atomically(path, _csv_text(columns, [list(asdict(pair).values()) for pair in rows]))
    return len(rows)


def write_groups(verification: Verification, path: Path) -> int:
    """Write ``path,group`` for ``load_dataset`` and ``fit --groups``: twins, and given groups, stay together.

    Groups are the connected components of twins and of the groups that the dataset has, numbered in the
    order of its images.

    Returns:
        Groups written.

    Raises:
        UserError: The file cannot be written.
    """
    dataset = verification.dataset
    clusters = verification.twins.clusters()
    if dataset.groups is not None:
        _, first, group = np.unique(dataset.groups, return_index=True, return_inverse=True)
        clusters = join(clusters, first[group], np.arange(len(dataset)))
    rows = [[dataset.file(row), int(cluster)] for row, cluster in enumerate(clusters)]
    write_atomically(path, _csv_text(["path", "group"], rows))
    return int(clusters.max()) + 1


def _csv_text(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _remark(dataset: Dataset, row: int, reason: str) -> Remark:
    class_name = dataset.class_names[dataset.labels[row]]
    return Remark(dataset.file(row), str(dataset.split[row]), class_name, reason)


def _origin_of_splits(listing: Listing, info: DatasetInfo | None) -> str:
    if not listing.has_splits:
        return "drawn"
    imported = info is not None and is_here(info.key) and read_source(info.key).get("split_origin") == "made"
    return "made" if imported else "given"


def _mismatches(dataset: Dataset, info: DatasetInfo, splits: str) -> list[str]:
    """Where names, order or counts differ from the registry; a split of our own has no counts to keep."""
    found = []
    names, wanted_names = ([name.casefold() for name in c] for c in (dataset.class_names, info.class_names))
    if not info.classes_proposed and names != wanted_names:
        kind = "order" if sorted(names) == sorted(wanted_names) else "names"
        found.append(
            f"The {kind} of the classes differ from the registry's: {', '.join(dataset.class_names)} here, "
            f"{', '.join(info.class_names)} there."
        )
    here = tuple(int((dataset.split == name).sum()) for name in SPLITS)
    if splits == "given" and info.splits is not None:
        wanted = tuple(getattr(info.splits, name) for name in SPLITS)
        if here != wanted:
            found.append(
                f"train/val/test hold {_slashed(here)} images, the official parts {_slashed(wanted)}."
            )
    if splits == "given" and info.splits is None and info.file_splits is not None:
        # Of these files only images with a single finding are taken; source.json counts the others.
        left_out = sum(read_source(info.key).get("left_out", {}).values())
        published = sum(getattr(info.file_splits, name) for name in SPLITS)
        if sum(here) + left_out != published:
            found.append(f"{sum(here):,} images and {left_out:,} left out, of {published:,} published.")
    return found


def _slashed(counts: Sequence[int]) -> str:
    return "/".join(map(str, counts))


def _odd_images(dataset: Dataset, fingerprints: Fingerprints) -> list[Remark]:
    readable = np.array([row not in fingerprints.unreadable for row in range(len(dataset))])
    if not readable.any():
        return []
    shorter = fingerprints.sizes.min(axis=1)
    median = float(np.median(shorter[readable]))
    grey_share = float(fingerprints.grey[readable].mean())
    found = []
    for row in np.flatnonzero(readable):
        reason = _oddity(fingerprints, int(row), median, grey_share)
        if reason:
            found.append(_remark(dataset, int(row), reason))
    return found


def _oddity(fingerprints: Fingerprints, row: int, median: float, grey_share: float) -> str:
    """Why an image is odd beside the others, or nothing."""
    (low, high), (width, height) = fingerprints.levels[row], fingerprints.sizes[row]
    grey = bool(fingerprints.grey[row])
    shorter, size = min(width, height), f"{width} x {height} pixels"
    if low == high:
        return f"constant: every pixel is {low:.0f}"
    if fingerprints.contrasts[row] < FLAT:
        return "flat: next to no contrast, so its twins cannot be found"
    if shorter < TINY:
        return f"tiny: {size}"
    if not median / ODD_RATIO < shorter < median * ODD_RATIO:
        return f"odd size: {size}, where the median shorter side is {median:.0f}"
    if 0 < (grey_share if grey else 1 - grey_share) < RARE_SHARE:
        return "grey among coloured images" if grey else "coloured among grey images"
    return ""


def _unlisted(listing: Listing) -> tuple[str, ...]:
    """Image files in the folders that the rows of a split file or CSV use, and that no row names."""
    if listing.source.is_dir():
        return ()
    listed = {parse_reference(listing.root / row.file).file for row in listing.rows}
    inside = [file.relative_to(listing.root) for file in listed if file.is_relative_to(listing.root)]
    found = {
        Path(folder) / name
        for top in {file.parts[0] for file in inside if len(file.parts) > 1}
        for folder, _, names in os.walk(listing.root / top)
        for name in names
        if not name.startswith(".")
    }
    if any(len(file.parts) == 1 for file in inside):
        found |= {path for path in listing.root.iterdir() if path.is_file()}
    return tuple(sorted(p.relative_to(listing.root).as_posix() for p in found - listed if is_image_path(p)))


def _count_duplicates(dataset: Dataset, fingerprints: Fingerprints, twins: Twins) -> Duplicates:
    first, second, _ = twins.pairs()
    sizes = np.bincount(twins.clusters(), minlength=1)
    return Duplicates(
        same_bytes=_copies(fingerprints.contents),
        same_pixels=_copies(fingerprints.pixels),
        pairs=twins.n_pairs,
        across_splits=int((dataset.split[first] != dataset.split[second]).sum()),
        clusters=int((sizes > 1).sum()),
        largest_cluster=int(sizes.max()),
    )


def _copies(digests: Sequence[str]) -> int:
    return sum(count - 1 for digest, count in Counter(digests).items() if digest)


def _overlaps(dataset: Dataset, twins: Twins) -> NDArray[np.int64]:
    """Numbers of the pairs under two classes, most similar first."""
    first, second, similarity = twins.pairs()
    rows = np.flatnonzero(dataset.labels[first] != dataset.labels[second])
    return np.asarray(rows[np.argsort(-similarity[rows], kind="stable")], np.int64)


def _describe(
    dataset: Dataset, fingerprints: Fingerprints, twins: Twins, numbers: NDArray[np.int64]
) -> list[TwinPair]:
    first, second, similarity = twins.pairs()
    found = []
    for a, b, r in zip(first[numbers], second[numbers], similarity[numbers], strict=True):
        one, other = (
            (dataset.file(row), str(dataset.split[row]), dataset.class_names[dataset.labels[row]])
            for row in (int(a), int(b))
        )
        found.append(
            TwinPair(*one, *other, min(round(float(r), 4), 1.0), _kind(fingerprints, int(a), int(b)))
        )
    return found


def _kind(fingerprints: Fingerprints, a: int, b: int) -> str:
    if fingerprints.contents[a] == fingerprints.contents[b]:
        return "same bytes"
    return "same pixels" if fingerprints.pixels[a] == fingerprints.pixels[b] else "near"


def _leak(dataset: Dataset, twins: Twins, rows: NDArray[np.int64]) -> Leak:
    train, val = (SPLITS.index(name) for name in ("train", "val"))
    nearest, similarity = twins.nearest[rows], twins.similarity[rows]
    in_train = nearest[:, train] >= 0
    in_either = in_train | (nearest[:, val] >= 0)
    better = np.where(similarity[:, val] > similarity[:, train], nearest[:, val], nearest[:, train])
    return Leak(
        images=len(rows),
        twin_in_train=int(in_train.sum()),
        twin_in_train_or_val=int(in_either.sum()),
        copied_right=int((in_train & _same_label(dataset, rows, nearest[:, train])).sum()),
        copied_right_or_val=int((in_either & _same_label(dataset, rows, better)).sum()),
    )


def _same_label(dataset: Dataset, rows: NDArray[np.int64], twins: NDArray[np.int64]) -> NDArray[np.bool_]:
    return np.asarray(dataset.labels[rows] == dataset.labels[twins], np.bool_)


def _findings(found: Verification) -> list[Finding]:
    candidates = (
        (_say_unreadable(found), True),
        *((mismatch, True) for mismatch in found.mismatches),
        (_say_leak(found), True),
        (_say_groups(found), True),
        # Copies under two classes: one label is wrong. Near twins under two classes may be two images.
        (_say_overlaps(found), any(pair.kind != "near" for pair in found.overlaps)),
        (_say_duplicates(found), False),
        (_say_odd(found), False),
        (_say_unlisted(found), False),
    )
    return [Finding(text, doubtful) for text, doubtful in candidates if text]


def _say_unreadable(found: Verification) -> str:
    return f"Images that cannot be read: {len(found.unreadable):,}." if found.unreadable else ""


def _say_leak(found: Verification) -> str:
    leak = found.leak
    if not leak.twin_in_train_or_val:
        return ""
    text = (
        f"Test images with a twin in train: {_of(leak.twin_in_train, leak.images)}; in train or val: "
        f"{_of(leak.twin_in_train_or_val, leak.images)}"
    )
    if leak.twin_in_train:
        right = leak.copied_right / leak.twin_in_train
        text += f"; copying the label of the twin in train is right for {right:.1%} of the former"
    return text + "."


def _say_groups(found: Verification) -> str:
    groups = found.leaking_groups
    if not groups:
        return ""
    return f"Groups in more than one split: {len(groups):,}, the first being '{groups[0]}'."


def _say_overlaps(found: Verification) -> str:
    return f"Pairs of twins under two classes: {found.n_overlaps:,}." if found.n_overlaps else ""


def _say_duplicates(found: Verification) -> str:
    counts = found.duplicates
    if not counts.pairs:
        return ""
    return (
        f"Pairs of twins: {counts.pairs:,}, of which {counts.across_splits:,} across splits. Clusters of "
        f"twins: {counts.clusters:,}, the largest of {counts.largest_cluster:,} images. Images that repeat "
        f"another's pixels: {counts.same_pixels:,}, its bytes: {counts.same_bytes:,}."
    )


def _say_odd(found: Verification) -> str:
    if not found.odd:
        return ""
    kinds = Counter(remark.reason.partition(":")[0] for remark in found.odd)
    listed = ", ".join(f"{count:,} {kind}" for kind, count in kinds.items())
    return f"Images unlike the rest: {len(found.odd):,} ({listed})."


def _say_unlisted(found: Verification) -> str:
    if not found.unlisted:
        return ""
    return (
        f"Image files that are listed nowhere: {len(found.unlisted):,}, the first being {found.unlisted[0]}."
    )


def _advice(found: Verification) -> str:
    if found.unreadable:
        return "Replace the unreadable images, or remove them from the dataset, and verify again."
    if found.leak.twin_in_train_or_val or found.leaking_groups:
        return _advice_on_leaks(found)
    if found.mismatches:
        return "This is not the published release: compare no figure on it with published ones."
    overlaps = ""
    if found.n_overlaps:
        overlaps = "Look at the pairs under two classes (--out pairs.csv) and correct what is wrong"
    if found.is_clean:
        clean = "Nothing was found that makes test figures doubtful"
        return f"{clean}; {overlaps[0].lower()}{overlaps[1:]}." if overlaps else f"{clean}."
    return f"{overlaps}."


def _advice_on_leaks(found: Verification) -> str:
    if found.splits == "drawn":
        return (
            "Write the clusters with --write-groups groups.csv and fit with --groups groups.csv: twins then "
            "stay in one split."
        )
    again = "leave the splits out of the data and fit with --groups groups.csv"
    if found.info is not None:
        key = found.info.key
        again = f"run `vmfcoop data import {key} --from FOLDER --groups groups.csv --resplit --replace`"
    return (
        "Quote figures on this split only beside others on it; for a split without leaks write the clusters "
        f"with --write-groups groups.csv and {again}."
    )


def _of(part: int, whole: int) -> str:
    return f"{part:,} of {whole:,} ({part / whole:.1%})"
