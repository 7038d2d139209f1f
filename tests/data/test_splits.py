from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfcoop.data import split_indices
from vmfcoop.errors import UserError

FRACTIONS = st.sampled_from(
    [(0.5, 0.2, 0.3), (0.8, 0.1, 0.1), (0.7, 0.0, 0.3), (0.8, 0.2, 0.0), (1.0, 0.0, 0.0)]
)


@given(st.lists(st.integers(3, 60), min_size=1, max_size=5), FRACTIONS, st.integers(0, 5))
def test_classes_are_cut_at_the_fractions(
    sizes: list[int], fractions: tuple[float, float, float], seed: int
) -> None:
    labels = np.repeat(np.arange(len(sizes)), sizes)
    split = split_indices(labels, None, fractions, seed)
    for label, size in enumerate(sizes):
        for name, fraction in zip(("train", "val", "test"), fractions, strict=True):
            count = ((split == name) & (labels == label)).sum()
            assert count == 0 if fraction == 0 else count >= 1
            assert abs(count - fraction * size) <= 2


@given(st.data(), FRACTIONS, st.integers(0, 5))
def test_groups_stay_together_and_classes_reach_every_split(
    data: st.DataObject, fractions: tuple[float, float, float], seed: int
) -> None:
    n_classes = data.draw(st.integers(1, 4))
    sizes = data.draw(st.lists(st.integers(1, 6), min_size=3 * n_classes, max_size=20 * n_classes))
    groups = np.repeat(np.arange(len(sizes)), sizes)
    labels = groups % n_classes
    split = split_indices(labels, groups, fractions, seed)
    for group in range(len(sizes)):
        assert len(set(split[groups == group])) == 1
    for label in range(n_classes):
        n = (labels == label).sum()
        for name, fraction in zip(("train", "val", "test"), fractions, strict=True):
            count = ((split == name) & (labels == label)).sum()
            assert (count > 0) == (fraction > 0)
            if len(sizes) >= 12 * n_classes:
                assert abs(count - fraction * n) <= max(6, n / 4)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 30)), min_size=60, max_size=200))
def test_groups_of_several_classes_stay_together(rows: list[tuple[int, int]]) -> None:
    labels, groups = np.array(rows).T
    try:
        split = split_indices(labels, groups)
    except UserError:
        return
    for group in set(groups):
        assert len(set(split[groups == group])) == 1
    assert all(set(split[labels == label]) == {"train", "val", "test"} for label in set(labels))


@pytest.mark.parametrize("grouped", [False, True])
def test_seed_decides_alone(grouped: bool) -> None:
    labels = np.repeat([0, 1], 40)
    groups = np.arange(80) // 2 if grouped else None
    assert (split_indices(labels, groups, seed=3) == split_indices(labels, groups, seed=3)).all()
    assert (split_indices(labels, groups, seed=3) != split_indices(labels, groups, seed=4)).any()


def test_names_of_groups_do_not_matter() -> None:
    labels = np.repeat([0, 1], 40)
    groups = np.arange(80) // 2
    names = np.array([f"patient {group:03d}" for group in groups])
    assert (split_indices(labels, groups) == split_indices(labels, names)).all()


def test_one_large_group_does_not_spoil_the_fractions() -> None:
    groups = np.concatenate([np.zeros(40, int), np.arange(1, 161)])
    split = split_indices(np.zeros(200, int), groups)
    counts = np.array([(split == name).sum() for name in ("train", "val", "test")])
    assert np.abs(counts - [100, 40, 60]).max() <= 6


@pytest.mark.parametrize(
    "fractions", [(0.0, 0.7, 0.3), (1 - 0.7 - 0.3, 0.7, 0.3), (1.2, -0.2, 0.0), (0.5, 0.1, 0.1)]
)
def test_fractions_that_are_no_partition(fractions: tuple[float, float, float]) -> None:
    with pytest.raises(UserError, match="no partition"):
        split_indices([0, 0, 0, 1, 1, 1], fractions=fractions)


def test_too_few_images_name_the_class() -> None:
    with pytest.raises(UserError, match=r"Class 'drusen' has 2 images, too few .* 3 splits"):
        split_indices([0, 0, 0, 1, 1], class_names=["normal", "drusen"])


def test_too_few_groups_name_the_class() -> None:
    with pytest.raises(UserError, match=r"Class '1' has 1 group, too few"):
        split_indices([0, 0, 0, 1, 1, 1], groups=[1, 2, 3, 4, 4, 4])


def test_a_class_kept_out_of_a_split_by_shared_groups() -> None:
    # Each class has two groups but must share one of the three that there are, so val or test runs dry.
    labels = [0, 0, 1, 1, 2, 2, 3, 3]
    groups = [0, 1, 1, 2, 0, 2, 0, 1]
    with pytest.raises(UserError, match=r"Class '\d' cannot reach the \w+ split"):
        split_indices(labels, groups, (0.5, 0.0, 0.5))
