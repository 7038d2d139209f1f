"""Splits of our own for data that come without: stratified, and by groups where images belong together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.errors import UserError

SPLITS: tuple[str, str, str] = ("train", "val", "test")


def split_indices(
    labels: ArrayLike,
    groups: ArrayLike | None = None,
    fractions: tuple[float, float, float] = (0.5, 0.2, 0.3),
    seed: int = 0,
    class_names: Sequence[str] | None = None,
) -> NDArray[np.str_]:
    """Assign every image to train, val or test, with each class near the same fractions.

    Without groups every class is shuffled and cut. With groups (images of one patient, near-duplicates)
    a whole group goes to one side, also where it holds several classes; the fractions are then as near
    as the sizes of the groups allow. Every class reaches every split of a positive fraction.

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
        assigned = _place_groups(counts, shares, rng)[group_index]
        _check_reached(assigned, classes, names, shares)
    return np.asarray(SPLITS)[assigned]


def _check_fractions(fractions: tuple[float, float, float]) -> None:
    # A train share left over by 1 - 0.7 - 0.3 is 5e-17 in floating point, and meant as 0.
    if fractions[0] < 1e-9 or min(fractions) < 0 or abs(sum(fractions) - 1) > 1e-6:
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
    counts: NDArray[np.int64], shares: NDArray[np.float64], rng: np.random.Generator
) -> NDArray[np.int64]:
    """Split of each group, from the images it has of each class ``(G, C)``; unreachable demands stay unmet.

    Large groups go first, each to the split where it lowers the squared distance from the wanted counts
    most; distances are relative to the size of the class, so rare classes weigh as much as common ones.
    """
    totals = counts.sum(axis=0)
    wanted = shares[:, None] * totals
    filled = np.zeros_like(wanted)
    shuffled = rng.permutation(len(counts))
    order = shuffled[np.argsort(-counts[shuffled].sum(axis=1), kind="stable")]
    assigned = _reserve_groups(counts, shares, order)
    for group in order[assigned[order] >= 0]:
        filled[assigned[group]] += counts[group]
    for group in order[assigned[order] < 0]:
        growth = (counts[group] * (2 * (filled - wanted) + counts[group]) / totals**2).sum(axis=1)
        assigned[group] = np.argmin(np.where(shares > 0, growth, np.inf))
        filled[assigned[group]] += counts[group]
    return assigned


def _reserve_groups(
    counts: NDArray[np.int64], shares: NDArray[np.float64], order: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Give every class one group in every split, -1 for the groups left free.

    The rarest classes choose first. The smallest groups go to the smallest splits, which disturbs the
    fractions least.
    """
    assigned = np.full(len(counts), -1, np.int64)
    by_share = np.argsort(shares, kind="stable")
    for label in np.argsort((counts > 0).sum(axis=0), kind="stable"):
        holders = order[::-1][counts[order[::-1], label] > 0]
        for split in by_share[shares[by_share] > 0]:
            free = holders[assigned[holders] < 0]
            if len(free) and not (assigned[holders] == split).any():
                assigned[free[0]] = split
    return assigned


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
