from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmfcoop.data import Dataset, base_novel_classes, load_dataset, restrict_classes, sample_support
from vmfcoop.errors import UserError


def dataset(train: list[int], val: list[int], test: int = 2) -> Dataset:
    """Rows of all splits mixed: train[c] and val[c] images of class c, and as many of test for each."""
    rows = [(c, s) for c, n in enumerate(train) for s in ["train"] * n + ["val"] * val[c] + ["test"] * test]
    order = np.random.default_rng(7).permutation(len(rows))
    labels, split = zip(*(rows[i] for i in order), strict=True)
    return Dataset(
        name="made",
        class_names=tuple(f"class {c}" for c in range(len(train))),
        paths=tuple(Path(f"{i}.png") for i in range(len(rows))),
        labels=np.array(labels),
        split=np.array(split),
    )


@given(
    st.lists(st.tuples(st.integers(1, 70), st.integers(0, 6)), min_size=1, max_size=5),
    st.integers(1, 64),
    st.integers(0, 9),
)
def test_support_has_k_of_each_class(sizes: list[tuple[int, int]], shots: int, seed: int) -> None:
    data = dataset([max(n, shots) for n, _ in sizes], [m for _, m in sizes])
    support = sample_support(data, shots, seed)
    assert len(set(support.train)) == len(support.train)
    assert set(data.split[support.train]) == {"train"}
    assert np.bincount(data.labels[support.train]).tolist() == [shots] * len(sizes)
    assert set(data.split[support.val]) <= {"val"}
    val_counts = np.bincount(data.labels[support.val], minlength=len(sizes))
    assert val_counts.tolist() == [min(m, shots, 4) for _, m in sizes]


def test_seeds_give_different_supports() -> None:
    data = dataset([40, 40], [10, 10])
    supports = {tuple(sample_support(data, 4, seed).train) for seed in range(20)}
    assert len(supports) == 20
    assert (sample_support(data, 4, 3).train == sample_support(data, 4, 3).train).all()


def test_validation_shots_do_not_change_the_support() -> None:
    data = dataset([40, 40], [10, 10])
    support, bare = sample_support(data, 8, 1, val_shots=9), sample_support(data, 8, 1, val_shots=0)
    assert (support.train == bare.train).all()
    assert len(support.val) == 18
    assert bare.val.shape == (0,) and bare.val.dtype == np.int64


def test_every_image_can_be_drawn() -> None:
    data = dataset([5, 5], [0, 0])
    drawn = {row for seed in range(60) for row in sample_support(data, 1, seed).train}
    assert drawn == set(data.indices("train"))


def test_labels_alone() -> None:
    support = sample_support([1, 0, 1, 0, 0], 2, seed=0)
    assert [[1, 0, 1, 0, 0][row] for row in support.train] == [0, 0, 1, 1]
    assert len(support.val) == 0


def test_hash_randomisation_does_not_matter() -> None:
    code = "from vmfcoop.data import sample_support; print(sample_support([0, 1] * 30, 5, 2).train.tolist())"
    printed = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(printed) == 1


def test_too_few_images_name_class_count_and_largest_k() -> None:
    with pytest.raises(
        UserError, match=r"Class 'class 1' has 3 training images, .* 4 shots .* possible is 3"
    ):
        sample_support(dataset([9, 3], [0, 0]), 4)


def test_a_class_without_training_images() -> None:
    with pytest.raises(UserError, match=r"Class 'class 1' has 0 training images.*add training images"):
        sample_support(dataset([9, 0], [0, 0]), 4)


@pytest.mark.parametrize("arguments", [{"shots": 0}, {"shots": 1, "seed": -1}, {"shots": 1, "val_shots": -1}])
def test_arguments_out_of_range(arguments: dict[str, int]) -> None:
    with pytest.raises(UserError, match="choose at least 1 shot"):
        sample_support(dataset([9, 9], [1, 1]), **arguments)


def test_no_labels() -> None:
    with pytest.raises(UserError, match="no labels"):
        sample_support([], 1)


@given(st.integers(2, 50))
def test_base_classes_are_the_first_half(n: int) -> None:
    base, novel = base_novel_classes(n)
    assert base + novel == tuple(range(n))
    assert len(base) - len(novel) == n % 2


def test_base_novel_needs_two_classes() -> None:
    with pytest.raises(UserError, match="at least 2 classes"):
        base_novel_classes(1)


def test_restrict_relabels_in_the_order_given() -> None:
    data = dataset([3, 4, 5], [1, 1, 1])
    restricted = restrict_classes(data, [2, 0])
    assert restricted.class_names == ("class 2", "class 0")
    assert restricted.counts()["train"] == {"class 2": 5, "class 0": 3}
    names = {path: data.class_names[label] for path, label in zip(data.paths, data.labels, strict=True)}
    for path, label in zip(restricted.paths, restricted.labels, strict=True):
        assert names[path] == restricted.class_names[label]


@pytest.mark.parametrize("classes", [[], [0, 0], [3], [-1]])
def test_restrict_to_classes_that_are_not_there(classes: list[int]) -> None:
    with pytest.raises(UserError, match="Cannot restrict dataset 'made'"):
        restrict_classes(dataset([3, 4, 5], [1, 1, 1]), classes)


@pytest.mark.parametrize("shots", [1, 16])
def test_support_of_the_shared_data(shared_data: Path, shots: int) -> None:
    data = load_dataset(shared_data / "DermaMNIST")
    support = sample_support(data, shots, seed=1)
    assert np.bincount(data.labels[support.train]).tolist() == [shots] * 7
    assert np.bincount(data.labels[support.val]).tolist() == [min(shots, 4)] * 7
