"""Support sets of K shots a class, and the halves of the classes for base-to-novel generalisation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.data.dataset import Dataset
from vmfcoop.errors import UserError

MAX_DEFAULT_VAL_SHOTS = 4
"""Validation shots a class are ``min(K, 4)`` unless given, as in CoOp's protocol."""


class FewShotIndices(NamedTuple):
    """Rows of a dataset drawn for few-shot learning, ordered by class.

    Attributes:
        train: Support set, ``(C * K,)``.
        val: Validation shots, ``(m,)``; fewer than asked for where the val split has fewer.
    """

    train: NDArray[np.int64]
    val: NDArray[np.int64]


def sample_support(
    dataset: Dataset | ArrayLike, shots: int, seed: int = 0, val_shots: int | None = None
) -> FewShotIndices:
    """Draw K images of each class from the train split, and validation shots from the val split.

    The draw depends on the seed and on the order of the rows alone, which ``load_dataset`` keeps sorted.
    Training and validation have random streams of their own: the support set of a seed stays the same
    whatever ``val_shots`` is.

    Args:
        dataset: A dataset, or labels ``(n,)`` of images that may all be trained on.
        shots: K, training images a class.
        seed: Which support set.
        val_shots: Validation images a class; default ``min(K, 4)``.

    Returns:
        Row numbers of the support set and of the validation shots.

    Raises:
        UserError: A class has fewer than K training images, or an argument is out of range.

    Example:
        >>> sample_support([0, 0, 0, 1, 1, 1], shots=2, seed=1).train.shape
        (4,)
    """
    if shots < 1 or seed < 0 or (val_shots is not None and val_shots < 0):
        raise UserError(
            f"Cannot draw {shots} shots with seed {seed} and {val_shots} validation shots; "
            "choose at least 1 shot, and a seed and validation shots of at least 0."
        )
    if isinstance(dataset, Dataset):
        labels, train, val = dataset.labels, dataset.split == "train", dataset.split == "val"
        names: Sequence[str] = dataset.class_names
    else:
        labels = np.asarray(dataset, dtype=np.int64)
        train, val = np.ones(len(labels), bool), np.zeros(len(labels), bool)
        names = [str(label) for label in range(int(labels.max(initial=-1)) + 1)]
    _check_shots(np.bincount(labels[train], minlength=len(names)), shots, names)
    if val_shots is None:
        val_shots = min(shots, MAX_DEFAULT_VAL_SHOTS)
    return FewShotIndices(
        train=_draw(labels, train, len(names), shots, np.random.default_rng([seed, 0])),
        val=_draw(labels, val, len(names), val_shots, np.random.default_rng([seed, 1])),
    )


def _check_shots(available: NDArray[np.int64], shots: int, names: Sequence[str]) -> None:
    if len(names) == 0:
        raise UserError("There are no labels to draw shots from; pass at least one image of each class.")
    scarcest = int(np.argmin(available))
    largest = int(available[scarcest])
    if largest < shots:
        mend = f"the largest number of shots possible is {largest}" if largest else "add training images"
        raise UserError(
            f"Class '{names[scarcest]}' has {largest} training image{'s' if largest != 1 else ''}, "
            f"fewer than the {shots} shots asked for; {mend}."
        )


def _draw(
    labels: NDArray[np.int64], pool: NDArray[np.bool_], n_classes: int, shots: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    drawn = []
    for label in range(n_classes):
        members = np.flatnonzero(pool & (labels == label))
        drawn.append(np.sort(rng.permutation(members)[:shots]))
    return np.concatenate(drawn).astype(np.int64)


def base_novel_classes(n_classes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Halve the classes in label order: the first ``ceil(n / 2)`` are base, the others novel.

    Raises:
        UserError: There are fewer than two classes.

    Example:
        >>> base_novel_classes(5)
        ((0, 1, 2), (3, 4))
    """
    if n_classes < 2:
        raise UserError(f"Base-to-novel needs at least 2 classes, not {n_classes}; add class folders.")
    n_base = (n_classes + 1) // 2
    return tuple(range(n_base)), tuple(range(n_base, n_classes))


def restrict_classes(dataset: Dataset, class_indices: Sequence[int]) -> Dataset:
    """The images of some classes, relabelled 0, 1, ... in the order given.

    Raises:
        UserError: A class occurs twice or does not exist, or none is given.
    """
    chosen = [int(index) for index in class_indices]
    n_classes = len(dataset.class_names)
    if not chosen or len(set(chosen)) < len(chosen) or not set(chosen) <= set(range(n_classes)):
        raise UserError(
            f"Cannot restrict dataset '{dataset.name}' to classes {chosen}; "
            f"name each of 0 to {n_classes - 1} at most once and at least one."
        )
    relabel = np.full(n_classes, -1, np.int64)
    relabel[chosen] = np.arange(len(chosen))
    kept = np.flatnonzero(relabel[dataset.labels] >= 0)
    rows = dataset.take(kept)
    return Dataset(
        name=dataset.name,
        class_names=tuple(dataset.class_names[index] for index in chosen),
        paths=rows.paths,
        labels=relabel[rows.labels],
        split=rows.split,
        groups=rows.groups,
        root=dataset.root,
    )
