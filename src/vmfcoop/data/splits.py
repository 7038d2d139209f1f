"""Splits of our own for data that come without: stratified, and by groups where images belong together."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.model_selection import StratifiedGroupKFold

from vmfcoop.errors import UserError

SPLITS: tuple[str, str, str] = ("train", "val", "test")

FOLDS = 20
"""Parts that groups are cut into before these are dealt out to the splits: 5 % of the images each."""


def split_indices(
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Assign every image to train, val or test, with each class near the same fractions.

    Without groups every class is shuffled and cut. With groups (images of one patient, near-duplicates)
    a whole group goes to one side, also where it holds several classes: scikit-learn's
    ``StratifiedGroupKFold`` makes folds, which are dealt out to the splits, and the fractions are as near as
    the sizes of the groups allow. Every class reaches every split of a positive fraction.

    Args:
        labels: Class of each image, ``(n,)``.
        groups: Group of each image, ``(n,)``, or None.
        fractions: Shares of train, val and test; they sum to 1, val and test may be 0.
        seed: Seed of the shuffle.
        class_names: Names for error messages, indexed by label.

    Returns:
        ``'train'``, ``'val'`` or ``'test'`` for each image, ``(n,)``.

    Raises:
        UserError: The fractions are no partition, or a class has too few images or groups for the splits.

    Example:
        >>> split_indices([0, 0, 1, 1], fractions=(0.5, 0.0, 0.5), seed=1).tolist()
        ['train', 'test', 'train', 'test']
    """
    _check_fractions(fractions)
    values, classes = np.unique(np.asarray(labels), return_inverse=True)
    names = [class_names[int(v)] if class_names is not None else str(v) for v in values]
    rng = np.random.default_rng(seed)
    shares = np.asarray(fractions, dtype=np.float64)
    if groups is None:
        _check_units(np.bincount(classes, minlength=len(values)), "image", names, shares)
        assigned = _cut_classes(classes, shares, rng)
    else:
        _, group_index = np.unique(np.asarray(groups), return_inverse=True)
        counts = _group_counts(group_index, classes)
        _check_units((counts > 0).sum(axis=0), "group", names, shares)
        assigned = _place_groups(classes, group_index, shares, seed)[group_index]
        _check_reached(assigned, classes, names, shares)
    return np.asarray(SPLITS)[assigned]


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    # A train share left over by 1 - 0.7 - 0.3 is 5e-17 in floating point, and meant as 0.
    if not (fractions[0] >= 1e-9 and min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):
        train, val, test = fractions
        raise UserError(
            f"The split fractions train {train:.3g}, val {val:.3g} and test {test:.3g} are no partition; "
            "choose val and test of at least 0 that sum to less than 1."
        )


def _check_units(
    units: NDArray[np.int64], unit: str, names: Sequence[str], shares: NDArray[np.float64]
) -> None:
    needed = int((shares > 0).sum())
    for name, count in zip(names, units, strict=True):
        if count < needed:
            raise UserError(
                f"Class '{name}' has {count} {unit}{'s' if count != 1 else ''}, too few to reach each of the "
                f"{needed} splits; add images, or set the fraction of val or test to 0."
            )


def _cut_classes(
    classes: NDArray[np.intp], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    assigned = np.empty(len(classes), np.int64)
    for label in range(int(classes.max()) + 1):
        members = rng.permutation(np.flatnonzero(classes == label))
        assigned[members] = np.repeat(np.arange(len(shares)), _part_sizes(len(members), shares))
    return assigned


def _part_sizes(n: int, shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Whole numbers that sum to n, nearest the shares, at least 1 for each positive share."""
    ideal = n * shares
    sizes = np.maximum(np.floor(ideal), shares > 0).astype(np.int64)
    while sizes.sum() < n:
        sizes[np.argmax(ideal - sizes)] += 1
    while sizes.sum() > n:
        sizes[np.argmax(np.where(sizes > 1, sizes - ideal, -np.inf))] -= 1
    return sizes


def _group_counts(group_index: NDArray[np.intp], classes: NDArray[np.intp]) -> NDArray[np.int64]:
    counts = np.zeros((int(group_index.max()) + 1, int(classes.max()) + 1), np.int64)
    np.add.at(counts, (group_index, classes), 1)
    return counts


def _place_groups(
    classes: NDArray[np.intp], group_index: NDArray[np.intp], shares: NDArray[np.float64], seed: int
) -> NDArray[np.int64]:
    """Split of each group: scikit-learn's stratified group folds, dealt out to the splits."""
    counts = _group_counts(group_index, classes)
    folds = _fold_of_groups(classes, group_index, min(FOLDS, len(counts)), seed)
    in_fold = np.zeros((int(folds.max()) + 1, counts.shape[1]), np.int64)
    np.add.at(in_fold, folds, counts)
    assigned = _deal(in_fold, shares)[folds]
    _reach_every_split(assigned, counts, shares)
    return assigned


def _deal(in_fold: NDArray[np.int64], shares: NDArray[np.float64]) -> NDArray[np.int64]:
    """Split of each fold, from the images it has of each class ``(F, C)``.

    Large folds go first, each to the split where it lowers the squared distance from the wanted counts most;
    distances are relative to the size of the class, so rare classes weigh as much as common ones.
    """
    totals = in_fold.sum(axis=0)
    wanted = shares[:, None] * totals
    filled = np.zeros_like(wanted)
    dealt = np.empty(len(in_fold), np.int64)
    for fold in np.argsort(-in_fold.sum(axis=1), kind="stable"):
        growth = (in_fold[fold] * (2 * (filled - wanted) + in_fold[fold]) / totals**2).sum(axis=1)
        dealt[fold] = np.argmin(np.where(shares > 0, growth, np.inf))
        filled[dealt[fold]] += in_fold[fold]
    return dealt


def _fold_of_groups(
    classes: NDArray[np.intp], group_index: NDArray[np.intp], n_folds: int, seed: int
) -> NDArray[np.int64]:
    fold = np.zeros(int(group_index.max()) + 1, np.int64)
    n_folds = min(n_folds, int(np.bincount(classes).max()))
    if n_folds < 2:
        return fold
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Classes with fewer images than folds are what _reach_every_split is for.
        warnings.simplefilter("ignore", UserWarning)
        parts = list(splitter.split(np.empty(len(classes)), classes, group_index))
    for number, (_, rows) in enumerate(parts):
        fold[group_index[rows]] = number
    return fold


def _reach_every_split(
    assigned: NDArray[np.int64], counts: NDArray[np.int64], shares: NDArray[np.float64]
) -> None:
    """Move the smallest groups that bring every class to every split; demands that none can meet stay unmet.

    Folds are balanced over all classes at once and may leave a class of few groups out of a split. The
    rarest classes choose first, and no move takes a class's last group from a split.
    """
    sizes = counts.sum(axis=1)
    for label in np.argsort((counts > 0).sum(axis=0), kind="stable"):
        holders = np.flatnonzero(counts[:, label])
        holders = holders[np.argsort(sizes[holders], kind="stable")]
        for split in np.flatnonzero(shares > 0):
            if not (assigned[holders] == split).any():
                movable = [group for group in holders if _can_leave(group, assigned, counts)]
                if movable:
                    assigned[movable[0]] = split


def _can_leave(group: np.int64, assigned: NDArray[np.int64], counts: NDArray[np.int64]) -> bool:
    """Whether every class of the group stays in the group's split without it."""
    others = assigned == assigned[group]
    others[group] = False
    return bool((counts[others][:, counts[group] > 0] > 0).any(axis=0).all())


def _check_reached(
    assigned: NDArray[np.int64], classes: NDArray[np.intp], names: Sequence[str], shares: NDArray[np.float64]
) -> None:
    for label, name in enumerate(names):
        for split in np.flatnonzero(shares > 0):
            if not ((classes == label) & (assigned == split)).any():
                raise UserError(
                    f"Class '{name}' cannot reach the {SPLITS[split]} split as it shares groups with others; "
                    "add images, or set the fraction of val or test to 0."
                )
