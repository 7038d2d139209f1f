"""Dermatoscopy, fundus and histology phantoms: reproducible, true to their masks, shared within patients."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from vmfcoop.data.phantoms import dermatoscopy, fundus, histology
from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.tissue import blur, cells, noise, paint

DATASETS = {
    module.__name__.rpartition(".")[2]: module.DATASET for module in (dermatoscopy, fundus, histology)
}
CASES = [(name, label) for name, dataset in DATASETS.items() for label in range(len(dataset.class_names))]
IMAGES = 12

# Means of the 8 x 8 blocks of image 0 of every class, a byte each.
GOLDEN = {
    ("dermatoscopy", 0): (
        "147799918d896711729fa49795928b6091957d768f96897b8b7c595c63948e7c"
        "898e74647699907d899091939798907d5e7c8692929090661059808685816513"
    ),
    ("dermatoscopy", 1): (
        "797485a19697908883809c97979c99927d9099907c989d95869f845e29249390"
        "8d9e5b4d1921a096898e6a532535948c807d7b968480918a6e7986878880897e"
    ),
    ("dermatoscopy", 2): (
        "676e7980766b656177737c84807970687d827a80848078707e846f6969797f76"
        "767264686b8883797d7c7e7b79867c74817f7e82857f786c7c7e7c8386817867"
    ),
    ("dermatoscopy", 3): (
        "68767f817b79726770705e545a777f71743a3740395c8b7e773d4144383a8c85"
        "7d6f4032272a67807a84483b2526527577867e574e60766d6f7d84837e797167"
    ),
    ("fundus", 0): (
        "0406243c3b270604063d5556565c4b07265763646265612f3b566a84866c6e4f"
        "3d5f6e7c8074745229616a70777c6c3007506e77787c57070407315151350704"
    ),
    ("fundus", 1): (
        "02051319170f04010620252a2922140319293131362e1e0e25333b414e332216"
        "2a313c4b6f3c2c1c1e383f4042382714072d383f3c332105020824332e1f0601"
    ),
    ("fundus", 2): (
        "010216242216020101283d3f37362601113947443e3c3012203a46724c3c3321"
        "213f4761413f372312384f4c3f3c3918022542494a4737020102172d301e0201"
    ),
    ("fundus", 3): (
        "0102223c3c210201023c5d5d5c5b3c02205c5c5f5e5e5e223b5d5d746d5b5a3a"
        "395a5a5e5c5852351d4e54574e494a1a0233504d47472e0201021c2f2c190201"
    ),
    ("histology", 0): (
        "b7bbbfb1b0b4b5bbb6a5b0acb4a9abc1adb9b5aca8aca5baa5cea2b9afb5beb7"
        "b5a4b5a7acb2bcb8c2aab8beb5b8c7b9b3afc5afb7b8bac1b7b9b4abb1b4b4b2"
    ),
    ("histology", 1): (
        "a7b1b7b3b1aeae9c9ab1b5a0b0b2ada495a7f1bea5aca9aaa98cc1c8a89d93bb"
        "a3a99691b4abbcb1b4aaa4a0a5b89eaea99bb9afb9a3b6abb9b4a5acc3a97e9c"
    ),
    ("histology", 2): (
        "a4a5aac9c1b49893a7b0b1abadacab9299adbbb2b0aea68fbaa99c9fa4b29791"
        "9b949c9997978e959da392a4b4afafb6a09eb2c3c0b3b5a797b08d7e7d7e8789"
    ),
    ("histology", 3): (
        "e5dce9ece5ede3dce6e1e7eaeef0eee5e0e3e3dfedf4f3e4e8efedefede2e9ec"
        "bfbab4edf7eff6eadee1ebd4d2e1ece6e8dfeff3e8dcd0c7e6dce5e6f0ede5de"
    ),
    ("histology", 4): (
        "c5cad3cac1c8c9bebac6ccc3b6c6c4b9b3b9c3c1b4c7c3b7b1c8c4bec9cabcb1"
        "c2c5c2bbc8bfb6babdbdb6bcb5beb8aeb6b7c4cec7bbb1a9b6bdc7d3d1bdb1a7"
    ),
}


@cache
def _images(name: str, label: int) -> list[Phantom]:
    return [DATASETS[name].phantom(label, index) for index in range(IMAGES)]


def _block_means(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    block = SIZE // 8
    means = image.reshape(8, block, 8, block, 3).mean(axis=(1, 3, 4))
    return np.asarray(np.rint(means), np.uint8)


def _digest() -> str:
    """Of two images of every class, with their masks and attributes."""
    digest = hashlib.sha256()
    for name, label in CASES:
        for index in (0, 7):
            phantom = DATASETS[name].phantom(label, index)
            digest.update(phantom.image.tobytes() + phantom.mask.tobytes())
            digest.update(repr(dict(phantom.attributes)).encode())
    return digest.hexdigest()


@pytest.mark.parametrize(("name", "label"), CASES)
def test_shapes_types_and_attributes(name: str, label: int) -> None:
    phantoms = _images(name, label)
    for phantom in phantoms:
        assert (phantom.image.shape, phantom.image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (phantom.mask.shape, phantom.mask.dtype) == ((SIZE, SIZE), np.bool_)
        assert phantom.attributes.keys() == phantoms[0].attributes.keys()
        assert all(type(value) is str and value for value in phantom.attributes.values())


@pytest.mark.parametrize(("name", "label"), CASES)
def test_mask_exactly_for_findings(name: str, label: int) -> None:
    assert {bool(p.mask.any()) for p in _images(name, label)} == {DATASETS[name].findings[label]}


@pytest.mark.parametrize(("name", "label"), CASES)
def test_images_differ(name: str, label: int) -> None:
    assert len({phantom.image.tobytes() for phantom in _images(name, label)}) == IMAGES


@pytest.mark.parametrize(("name", "label"), CASES)
def test_looks_as_it_did(name: str, label: int) -> None:
    golden = np.frombuffer(bytes.fromhex(GOLDEN[name, label]), np.uint8).reshape(8, 8).astype(int)
    seen = _block_means(DATASETS[name].phantom(label, 0).image)
    np.testing.assert_allclose(seen, golden, atol=2)


def test_same_bytes_in_another_process() -> None:
    environment = {**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", f"from {__name__} import _digest; print(_digest())"]
    other = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == _digest()


def test_global_random_state_is_neither_read_nor_changed() -> None:
    np.random.seed(0)
    first = _digest()
    state = np.random.get_state()[1]
    np.random.seed(1)
    assert _digest() == first
    np.random.seed(0)
    np.testing.assert_array_equal(np.random.get_state()[1], state)


@pytest.mark.parametrize("dataset", DATASETS.values(), ids=DATASETS)
def test_only_images_that_exist(dataset: PhantomDataset) -> None:
    for label, index in [(-1, 0), (len(dataset.class_names), 0), (0, -1)]:
        with pytest.raises(IndexError, match=dataset.key):
            dataset.phantom(label, index)


@pytest.mark.parametrize("label", range(4))
def test_skin_lesions_differ_from_the_skin_around_them(label: int) -> None:
    for phantom in _images("dermatoscopy", label):
        mask = phantom.mask.astype(float)
        around = (blur(mask, 7) > 0.05) & (blur(mask, 2) < 0.02) & (phantom.image.max(axis=2) > 30)
        inside, outside = phantom.image[phantom.mask].mean(axis=0), phantom.image[around].mean(axis=0)
        assert np.abs(inside - outside).max() > 15


def test_retinopathy_mask_lies_on_small_spots() -> None:
    for phantom in _images("fundus", 1):
        green = phantom.image[..., 1].astype(float)
        contrast = np.abs(green - blur(green, 3))
        field = blur((phantom.image.max(axis=2) > 25).astype(float), 4) > 0.99
        assert contrast[phantom.mask & field].mean() > 1.1 * contrast[field & ~phantom.mask].mean()
        assert phantom.mask.mean() < 0.12


def test_glaucoma_mask_is_the_bright_cup() -> None:
    for phantom in _images("fundus", 2):
        green, field = phantom.image[..., 1], phantom.image.max(axis=2) > 25
        assert green[phantom.mask].mean() > 1.6 * green[field & ~phantom.mask].mean()
        rows, columns = np.nonzero(phantom.mask)
        assert max(np.ptp(rows), np.ptp(columns)) < 50


def test_cup_is_larger_in_glaucoma_alone() -> None:
    ratios = [{float(p.attributes["cup-to-disc ratio"]) for p in _images("fundus", c)} for c in range(4)]
    assert min(ratios[2]) >= 0.7 > max(ratios[0] | ratios[1] | ratios[3])


def test_cataract_mask_is_the_whole_field() -> None:
    for phantom in _images("fundus", 3):
        brightness = phantom.image.max(axis=2)
        assert (brightness[phantom.mask] > 30).mean() > 0.99
        assert (brightness[~phantom.mask] < 60).mean() > 0.95


@pytest.mark.parametrize(("label", "factor"), [(1, 1.3), (4, 1.15)])
def test_masks_of_tissue_hold_more_nuclei(label: int, factor: float) -> None:
    for phantom in _images("histology", label):
        if (~phantom.mask).mean() < 0.05:
            continue
        # Red is what haematoxylin absorbs and eosin hardly does.
        density = -np.log((phantom.image[..., 0] + 1.0) / 256)
        assert density[phantom.mask].mean() > factor * density[~phantom.mask].mean()


@pytest.mark.parametrize(
    ("name", "shared"),
    [("fundus", ["eye", "cup-to-disc ratio", "severity", "finding"]), ("histology", ["stain"])],
)
def test_patients_share_anatomy_or_slide(name: str, shared: list[str]) -> None:
    for label in range(len(DATASETS[name].class_names)):
        phantoms = _images(name, label)
        by_image = [tuple(phantom.attributes[key] for key in shared) for phantom in phantoms]
        assert by_image[0::2] == by_image[1::2]
    assert len({tuple(p.attributes[k] for k in shared) for c in range(4) for p in _images(name, c)}) > 2


def test_patients_share_the_dermatoscope() -> None:
    by_image = [
        bool(phantom.image[:3, :3].max() < 60)
        for label in range(4)
        for phantom in _images("dermatoscopy", label)
    ]
    assert by_image[0::2] == by_image[1::2]
    assert set(by_image) == {False, True}


def test_vessels_are_the_patients_own() -> None:
    """Streams are independent: other images of a patient keep the tree, other patients have another."""
    trees = [fundus._Eye.of(np.random.default_rng(seed), False).vessels for seed in (3, 3, 4)]
    for first, second in zip(trees[0], trees[1], strict=True):
        np.testing.assert_array_equal(first.path, second.path)
    assert not np.array_equal(trees[0][0].path, trees[2][0].path)


def test_noise_is_standardised_and_smooth() -> None:
    field = noise(np.random.default_rng(0), 5)
    assert field.mean() == pytest.approx(0, abs=1e-12)
    assert field.std() == pytest.approx(1)
    assert np.abs(np.diff(field, axis=0)).max() < 0.3


def test_cells_agree_with_all_distances() -> None:
    """The search among neighbouring seeds finds what a search among all of them finds."""
    layout = cells(np.random.default_rng(1), 14.0, 1.0)
    rows, columns = np.mgrid[:SIZE:7, :SIZE:7]
    points = np.stack([columns, rows], axis=-1)[..., None, :]
    distance = np.sort(np.linalg.norm(points - layout.seeds, axis=-1), axis=-1)
    own = np.hypot(layout.across, layout.down)[::7, ::7]
    assert np.mean(np.isclose(own, distance[..., 0])) > 0.99
    assert (layout.border >= 0).all()


def test_blur_keeps_brightness() -> None:
    spot = np.zeros((SIZE, SIZE))
    spot[80, 80] = 1
    blurred = blur(spot, 2.0)
    assert blurred.sum() == pytest.approx(1)
    assert blurred[80, 80] == pytest.approx(1 / (2 * np.pi * 4), rel=0.02)
    np.testing.assert_allclose(blur(np.ones((SIZE, SIZE, 3)), 3.0), 1)


def test_paint_covers_the_area_of_a_polygon() -> None:
    square = np.array([[9.5, 19.5], [29.5, 19.5], [29.5, 59.5], [9.5, 59.5]])
    assert paint([square]).sum() == pytest.approx(20 * 40, rel=0.02)
