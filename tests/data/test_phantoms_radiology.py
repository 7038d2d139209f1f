"""MRI, ultrasound, CT and X-ray phantoms: reproducible, true to their masks, shared within patients."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray

from vmfcoop.data.phantoms import abdominal_ct, brain_mri, breast_ultrasound, chest_xray
from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.texture import (
    Pose,
    blob,
    curve,
    ellipse,
    grain,
    inside,
    push,
    ribbons,
    rician,
    stamp,
    trees,
    within_borders,
)
from vmfcoop.data.phantoms.tissue import COLUMNS, ROWS, X, Y, blur, paint

DATASETS = {
    module.__name__.rpartition(".")[2]: module.DATASET
    for module in (brain_mri, breast_ultrasound, abdominal_ct, chest_xray)
}
CASES = [(name, label) for name, dataset in DATASETS.items() for label in range(len(dataset.class_names))]
IMAGES = 12

# Means of the 8 x 8 blocks of image 0 of every class, a byte each.
GOLDEN = {
    ("brain_mri", 0): (
        "0606244a53500d060633526a67517108134c7b907e88543831354a7284855f42"
        "234e5b537763473a074b4d4f61654c0e060c2e45533f140606062b252d281406"
    ),
    ("brain_mri", 1): (
        "1219474c441711102363b4a673571f105678c4b9ad77431058809f95a28e4e11"
        "48676f62667f4c111c7384406c7a4010113e60525a5a1f11122624372c301711"
    ),
    ("brain_mri", 2): (
        "0d0e100f100f0d0c0e0f475c582e0f0c0f5b87b4a17a3c0c0d7eccb2b6b8690d"
        "2c795bcd8690640d1e845f9c8a82230c1c9e8d729a570d0d0d105779613e0d0d"
    ),
    ("brain_mri", 3): (
        "0203041c24090303030f605d625b3c03034c688c7d7b551b035c7f93808d563e"
        "0560806b6b7c503d03485b5d64566016030b3e4d54451a030303352a25340303"
    ),
    ("breast_ultrasound", 0): (
        "09c7c3b9aca0a4081ea9b8c0beb1a51b37c1d5d3d3cbcb3e56d3dbc9b9c6c95c"
        "5fb9a4998fa699526394969b99968e5e537683949482735a445f626a65615b54"
    ),
    ("breast_ultrasound", 1): (
        "635c5d79715e7e7457626b8086637182958f8e88695d7d9ea1a5a5845e5c7fa8"
        "8793737254666e7d67686152675257605a562405101c230e282b1001090f1306"
    ),
    ("breast_ultrasound", 2): (
        "d0d9ccd8cbccc8d3bcbbc3d0d7d3c6b2cbb8cbbeb4d0c99eaea1aaa8a2adc09d"
        "a7b6b59b98a38f826384979593557f703b5a6961613254511e2e3232311a292b"
    ),
    ("abdominal_ct", 0): (
        "0000000000000000001431403232200121624d5056394346646a605d5c47455c"
        "635e4aa69f4c5d41336b80b6b87a4714021644565a370a000000000000000000"
    ),
    ("abdominal_ct", 1): (
        "000005110b0100000a4e47313a4b2f046ba37c4b4e68483984878a60564f4c88"
        "7c875caf925688a64b8387bab9827539082e62816a70260309090a0b0d070909"
    ),
    ("abdominal_ct", 2): (
        "0000000908010000002e5c31342f2a034393934f3e2f4d4c5692845358476143"
        "5d85759ba1659658196382b2b587883d010e466c696223050304040a0a060503"
    ),
    ("abdominal_ct", 3): (
        "000000020501000000083e4337402b0305537b54554b4f4c357d766c5d4a4260"
        "1c746d83bd575d4c083373aec79d681600092b5f614b0f020203030403030301"
    ),
    ("chest_xray", 0): (
        "44646665876659397a6c2f3588453f8679572d3c8b473d7b7e432c5790483e7d"
        "7d4236689f5b3f6e7e515c849f904370889c9e9e998d7571535c5a5a5b5b5b51"
    ),
    ("chest_xray", 1): (
        "171a3e94934a240a60857390abb2976a82863f6ca9b6a48562773670b1b1a470"
        "4e613f78ad655d694a5f447cb374506d457687a4bcaf776b3bb6c0c2c6c6bc61"
    ),
    ("chest_xray", 2): (
        "100f13834e0e0f1031748fb4a99e7b37a59d7ca98887b38f999076a68e79ad5f"
        "7c8f76b09986a452719486b6b7829653619ea9bbc2a9a64e42b7b2b2b3a8be43"
    ),
    ("chest_xray", 3): (
        "1d2f579f9751311c798e7f9b9281977e976c568a7c587d9e915b548f86536399"
        "835a5b9593575a8a805e5c98a4735b88838397a9ada1949092b6b8b5b7b7bb86"
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


def _around(mask: NDArray[np.bool_], reach: float) -> NDArray[np.bool_]:
    """Pixels beside a mask, not on its soft edge."""
    return (blur(mask.astype(float), reach) > 0.08) & (blur(mask.astype(float), 1.0) < 0.02)


def _inner(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels of a mask off its soft edge; all of it where it is small."""
    core = blur(mask.astype(float), 1.0) > 0.98
    return core if core.any() else mask


def _mean_inside_and_around(phantom: Phantom, reach: float = 5.0) -> tuple[float, float]:
    grey = phantom.image[..., 0].astype(float)
    return float(grey[_inner(phantom.mask)].mean()), float(grey[_around(phantom.mask, reach)].mean())


@pytest.mark.parametrize(("name", "label"), CASES)
def test_shapes_types_and_attributes(name: str, label: int) -> None:
    phantoms = _images(name, label)
    for phantom in phantoms:
        assert (phantom.image.shape, phantom.image.dtype) == ((SIZE, SIZE, 3), np.uint8)
        assert (phantom.mask.shape, phantom.mask.dtype) == ((SIZE, SIZE), np.bool_)
        assert (phantom.image == phantom.image[..., :1]).all()
        assert all(type(value) is str and value for value in phantom.attributes.values())


@pytest.mark.parametrize("name", DATASETS)
def test_attributes_have_the_same_keys_in_all_classes(name: str) -> None:
    labels = range(len(DATASETS[name].class_names))
    assert len({tuple(p.attributes) for label in labels for p in _images(name, label)}) == 1


@pytest.mark.parametrize(("name", "label"), CASES)
def test_mask_exactly_for_findings(name: str, label: int) -> None:
    sizes = [int(phantom.mask.sum()) for phantom in _images(name, label)]
    assert min(sizes) >= 4 if DATASETS[name].findings[label] else max(sizes) == 0


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


@pytest.mark.parametrize("name", DATASETS)
def test_brightness_does_not_give_the_class_away(name: str) -> None:
    """Means of classes lie within the spread of each of them."""
    labels = range(len(DATASETS[name].class_names))
    means = np.array([[p.image.mean() for p in _images(name, label)[::2]] for label in labels])
    for darker in means:
        for brighter in means:
            assert brighter.min() < darker.max()


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("brain_mri", ["view", "side", "location", "enhancement"]),
        ("breast_ultrasound", ["shape", "margin", "orientation", "size"]),
        ("abdominal_ct", ["phase", "side", "location"]),
        ("chest_xray", ["view", "side", "location", "extent"]),
    ],
)
def test_patients_share_anatomy_and_finding(name: str, shared: list[str]) -> None:
    labels = range(len(DATASETS[name].class_names))
    seen = set()
    for label in labels:
        by_image = [tuple(phantom.attributes[key] for key in shared) for phantom in _images(name, label)]
        assert by_image[0::2] == by_image[1::2]
        seen.update(by_image)
    assert len(seen) > len(labels)


@pytest.mark.parametrize("name", DATASETS)
def test_images_of_a_patient_are_alike(name: str) -> None:
    """They differ less from each other than from other patients' at the resolution of anatomy."""
    for label in range(len(DATASETS[name].class_names)):
        blocks = np.array([_block_means(p.image) for p in _images(name, label)], float)
        same = np.abs(blocks[0::2] - blocks[1::2]).mean()
        other = np.abs(blocks[0::2] - np.roll(blocks[1::2], 1, axis=0)).mean()
        assert same < 0.75 * other


@pytest.mark.parametrize("label", [1, 2])
def test_meningioma_and_pituitary_tumours_enhance(label: int) -> None:
    for phantom in _images("brain_mri", label):
        tumour, around = _mean_inside_and_around(phantom)
        assert tumour > 1.1 * around


def test_gliomas_hold_both_enhancement_and_necrosis() -> None:
    spreads = {0: [], 1: []}
    for label, found in spreads.items():
        for phantom in _images("brain_mri", label):
            grey = phantom.image[..., 0].astype(float)
            found.append(grey[phantom.mask].std() / grey[phantom.mask].mean())
    assert np.median(spreads[0]) > 2 * np.median(spreads[1])


def test_pituitary_tumours_lie_in_the_midline() -> None:
    for phantom in _images("brain_mri", 2):
        assert (phantom.attributes["location"], phantom.attributes["side"]) == ("sella", "midline")
        if phantom.attributes["view"] != "sagittal":
            head = np.nonzero(phantom.image[..., 0].max(axis=0) > 60)[0].mean()
            assert abs(np.nonzero(phantom.mask)[1].mean() - head) < 12


@pytest.mark.parametrize("label", [0, 1])
def test_brain_tumours_lie_on_the_side_they_say(label: int) -> None:
    """The patient's left is on the right of the picture."""
    for phantom in _images("brain_mri", label):
        head = np.nonzero(phantom.image[..., 0].max(axis=0) > 60)[0].mean()
        offset = np.nonzero(phantom.mask)[1].mean() - head
        side = phantom.attributes["side"]
        assert (side == "unspecified") == (phantom.attributes["view"] == "sagittal")
        assert side == "unspecified" or (side == "left") == (offset > 0)


@pytest.mark.parametrize("label", [0, 1])
def test_breast_lesions_are_darker_than_the_tissue_around(label: int) -> None:
    ratios = []
    for phantom in _images("breast_ultrasound", label):
        lesion, around = _mean_inside_and_around(phantom)
        ratios.append(lesion / around)
    assert np.median(ratios) < 0.85
    assert max(ratios) < 1.1


def test_orientation_of_breast_lesions_is_that_of_their_masks() -> None:
    for label in (0, 1):
        for phantom in _images("breast_ultrasound", label):
            rows, columns = np.nonzero(phantom.mask)
            if abs(rows.std() / columns.std() - 1) > 0.15:
                is_tall = rows.std() > columns.std()
                assert is_tall == (phantom.attributes["orientation"] == "not parallel")


def test_sound_passes_cysts_and_not_carcinomas_that_shadow() -> None:
    below = {"enhancement": [], "shadowing": []}
    for label in (0, 1):
        for phantom in _images("breast_ultrasound", label):
            kind = phantom.attributes["posterior features"]
            rows, columns = np.nonzero(phantom.mask)
            low, middle, half = rows.max() + 4, int(columns.mean()), max(3, int(0.4 * columns.std()))
            grey = phantom.image[low : low + 20, :, 0].astype(float)
            behind = grey[:, middle - half : middle + half].mean()
            if kind in below and low < SIZE - 25:
                below[kind].append(behind / np.delete(grey, np.unique(columns), axis=1).mean())
    assert np.median(below["enhancement"]) > 1.1
    assert np.median(below["shadowing"]) < 0.8


def test_speckle_follows_rayleigh() -> None:
    """Intensity of fully developed speckle is exponential: its deviation equals its mean."""
    flat = np.ones((SIZE, SIZE))
    rng = np.random.default_rng(0)
    looks = [breast_ultrasound._look(rng, flat, 0.8, 1.2, 2.0, 0 * flat) for _ in range(4)]
    intensity = np.stack(looks)
    assert intensity.mean() == pytest.approx(1, abs=0.05)
    assert intensity.std() == pytest.approx(intensity.mean(), rel=0.08)


def test_cysts_are_darker_than_the_enhanced_kidney_beside_them() -> None:
    enhanced = [p for p in _images("abdominal_ct", 1) if p.attributes["phase"] != "unenhanced"]
    assert enhanced
    for phantom in enhanced:
        grey = phantom.image[..., 0].astype(float)
        kidney = np.percentile(grey[_around(phantom.mask, 5.0)], 85)
        assert grey[_inner(phantom.mask)].mean() < kidney - 15


def test_stones_are_tiny_and_the_brightest_around() -> None:
    for phantom in _images("abdominal_ct", 2):
        stone, around = _mean_inside_and_around(phantom, 3.0)
        assert 4 <= phantom.mask.sum() < 80
        assert stone > around + 50


def test_solid_tumours_are_brighter_than_cysts() -> None:
    means = [
        np.median([p.image[..., 0][_inner(p.mask)].mean() for p in _images("abdominal_ct", label)])
        for label in (1, 3)
    ]
    assert means[1] > means[0] + 15


@pytest.mark.parametrize(("name", "labels"), [("abdominal_ct", (1, 2, 3)), ("chest_xray", (1, 3))])
def test_findings_of_the_trunk_lie_on_the_side_they_say(name: str, labels: tuple[int, ...]) -> None:
    for label in labels:
        for phantom in _images(name, label):
            offset = np.nonzero(phantom.mask)[1].mean() - SIZE / 2
            assert (offset > 0) == (phantom.attributes["side"] == "left")


@pytest.mark.parametrize("label", [1, 3])
def test_one_sided_opacities_are_brighter_than_the_other_lung(label: int) -> None:
    for phantom in _images("chest_xray", label):
        grey, mirrored = phantom.image[..., 0].astype(float), phantom.mask[:, ::-1]
        assert grey[phantom.mask].mean() > grey[mirrored].mean()


def test_diffuse_opacity_takes_both_lungs() -> None:
    for phantom in _images("chest_xray", 2):
        halves = phantom.mask[:, : SIZE // 2].sum(), phantom.mask[:, SIZE // 2 :].sum()
        assert min(halves) > 0.3 * max(halves)


def test_distances_are_true_near_the_edge() -> None:
    circle = ellipse(COLUMNS, ROWS, (80, 70), (30, 30))
    np.testing.assert_allclose(circle, np.hypot(COLUMNS - 80, ROWS - 70) - 30, atol=1e-4)
    same = blob(COLUMNS, ROWS, (80, 70), (30, 20), np.ones(256), 0.4)
    np.testing.assert_allclose(same, ellipse(COLUMNS, ROWS, (80, 70), (30, 20), 0.4))
    assert inside(circle, 1.0).sum() == pytest.approx(np.pi * 900, rel=0.01)


def test_pose_takes_points_where_the_grid_says_they_are() -> None:
    pose = Pose(70.0, 85.0, 60.0, 0.3, 1.1)
    column, row = np.rint(pose.to_pixels((0.4, -0.5))).astype(int)
    x, y = pose.grid()
    assert (x[row, column], y[row, column]) == pytest.approx((0.4, -0.5), abs=0.02)


def test_mass_pushes_tissue_outwards() -> None:
    x, y = push(X, Y, (0.0, 0.0), 0.2, 0.4)
    assert (np.hypot(x, y) <= np.hypot(X, Y)).all()
    np.testing.assert_allclose(x[0], X[0], atol=0.02)


@pytest.mark.parametrize("closed", [False, True])
def test_curves_pass_through_their_points(closed: bool) -> None:
    points = np.array([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0], [2.0, -1.0]])
    line = curve(points, 40 if closed else 31, closed)
    np.testing.assert_allclose(line[::10], points, atol=1e-12)
    both = curve(np.stack([points, points + 1]), len(line), closed)
    np.testing.assert_allclose(both[1], line + 1, atol=1e-12)


def test_vessels_fork_and_thin() -> None:
    one = np.ones(1)
    paths, widths = trees(np.random.default_rng(0), (0.0, 0.0), 0 * one, one, one, 3)
    assert (paths.shape, widths.shape) == ((15, 12, 2), (15, 12))
    np.testing.assert_array_equal(paths[1:3, 0], paths[[0, 0], -1])
    assert widths[7:].max() < 0.4


def test_ribbon_covers_its_length_by_its_width() -> None:
    line = np.stack([np.linspace(30, 130, 12), np.full(12, 80.0)], axis=1)
    assert paint(ribbons(line[None], 6.0)).sum() == pytest.approx(600, rel=0.06)


def test_noise_has_the_deviation_asked_for() -> None:
    rng = np.random.default_rng(0)
    assert grain(rng, 1.5).std() == pytest.approx(1)
    background = rician(rng, np.zeros((SIZE, SIZE)), 2.0)
    assert background.mean() == pytest.approx(2 * np.sqrt(np.pi / 2), rel=0.02)


def test_letters_and_borders_are_cut_at_the_edge() -> None:
    assert stamp("L", 20, 30, 2)[30:40, 20:26].sum() == 7 * 4
    assert stamp("R", SIZE - 2, -3, 2).sum() < stamp("R", 50, 50, 2).sum()
    shown = within_borders(np.random.default_rng(0), 9, 1.0)
    assert shown[10:-10, 10:-10].all()
    assert not shown.all()
