"""Fingerprints and twins: what an edit leaves alike, what is told apart, what the cache keeps."""

from __future__ import annotations

import io
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageEnhance, ImageOps
from scipy.ndimage import gaussian_filter

import vmfcoop.data.twins as twins_module
from vmfcoop.data import load_dataset
from vmfcoop.data.twins import (
    THRESHOLD,
    Standardiser,
    Twins,
    find_twins,
    fingerprint_images,
    join,
    near_pairs,
    perceptual_hash,
    turned,
)
from vmfcoop.errors import UserError


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def texture(seed: int, size: tuple[int, int] = (160, 120)) -> Image.Image:
    """A smooth random picture, its own at every seed."""
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0]))
    smooth = gaussian_filter(noise, 5) + 0.4 * gaussian_filter(noise, 2)
    scaled = (smooth - smooth.min()) / np.ptp(smooth)
    return Image.fromarray(np.rint(30 + 180 * scaled).astype(np.uint8)).convert("RGB")


def jpeg(image: Image.Image, quality: int) -> Image.Image:
    content = io.BytesIO()
    image.save(content, "JPEG", quality=quality)
    return Image.open(content)


EDITS = {
    "jpeg": lambda image: jpeg(image, 20),
    "half size": lambda image: image.resize((80, 60)),
    "other shape": lambda image: image.resize((150, 150)),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.5),
    "gamma": lambda image: image.point(lambda level: 255 * (level / 255) ** 1.5),
    "crop of 1 %": lambda image: image.crop((1, 1, 159, 119)),
    "grey": lambda image: image.convert("L"),
}
TURNS = {
    "mirror": ImageOps.mirror,
    "flip": ImageOps.flip,
    "quarter": lambda image: image.rotate(90, expand=True),
    "half": lambda image: image.rotate(180),
    "transpose": lambda image: image.transpose(Image.Transpose.TRANSPOSE),
}


@pytest.fixture(scope="module")
def hashes() -> NDArray[np.float32]:
    return np.stack([perceptual_hash(texture(seed)) for seed in range(40)])


def pairs_of(hashes: NDArray[np.float32], **options: object) -> set[tuple[int, int]]:
    return {
        (int(a), int(b)) for found in near_pairs(hashes, **options) for a, b in zip(*found[:2], strict=True)
    }


@pytest.mark.parametrize("edit", EDITS)
def test_an_edit_is_a_near_twin_and_nothing_else_is(hashes: NDArray[np.float32], edit: str) -> None:
    edited = perceptual_hash(EDITS[edit](texture(7)))
    assert pairs_of(np.vstack([hashes, edited])) == {(7, 40)}


@pytest.mark.parametrize("turn", TURNS)
def test_turned_copies_are_found_on_request_only(hashes: NDArray[np.float32], turn: str) -> None:
    every = np.vstack([hashes, perceptual_hash(TURNS[turn](texture(7)))])
    assert pairs_of(every) == set()
    assert pairs_of(every, flips=True) == {(7, 40)}


def test_turned_hashes_are_those_of_turned_images() -> None:
    image = texture(3, (128, 128))
    of_hash = list(turned(perceptual_hash(image)[None]))
    transposed = image.transpose(Image.Transpose.TRANSPOSE)
    of_image = [
        perceptual_hash(picture)
        for base in (image, transposed)
        for picture in (base, ImageOps.mirror(base), ImageOps.flip(base), base.rotate(180))
    ]
    assert len(of_hash) == 8
    for one, other in zip(of_hash, of_image, strict=True):
        np.testing.assert_allclose(one[0], other, atol=0.02)


def test_similarity_is_the_cosine_of_standardised_gradients(hashes: NDArray[np.float32]) -> None:
    """The linear map against the definition, worked out on images."""
    from scipy.fft import idctn

    spectra = np.zeros((40, 32, 32))
    weights = np.hypot(np.arange(16)[:, None], np.arange(16))
    weights[0, 0] = 1
    spectra[:, :16, :16] = hashes.reshape(-1, 16, 16) / weights
    images = idctn(spectra, axes=(1, 2), norm="ortho")
    gradients = np.stack([np.diff(images, axis=2)[:, 1:], np.diff(images, axis=1)[:, :, 1:]], axis=-1)
    centred = gradients - gradients.sum(axis=0) / 60
    variance = (centred**2).sum(axis=-1).mean(axis=0)
    variance = (40 * variance + 20 * variance.mean()) / 60 + variance.mean() / 10
    z = (centred / np.sqrt(variance)[..., None]).reshape(40, -1)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    standardised = Standardiser(hashes)(hashes)
    np.testing.assert_allclose(standardised @ standardised.T, z @ z.T, atol=2e-4)


def test_a_shared_outline_makes_no_twins() -> None:
    """A bright disc on black, as in fundus photographs, with a texture of its own in each."""
    y, x = np.mgrid[:120, :120]
    disc = (x - 60) ** 2 + (y - 60) ** 2 < 50**2
    pictures = []
    for seed in range(60):
        inside = np.asarray(texture(seed, (120, 120)).convert("L"), float)
        levels = 150 + (inside - inside[disc].mean()) / 5
        pictures.append(Image.fromarray(np.where(disc, levels, 0).astype(np.uint8)))
    hashes = np.stack([perceptual_hash(picture) for picture in [*pictures, jpeg(pictures[5], 60)]])
    plain = np.triu(hashes @ hashes.T, 1)
    assert (plain > 0.95).sum() > 1000
    assert pairs_of(hashes) == {(5, 60)}


def test_two_images_alone_are_compared() -> None:
    one, copy, other = texture(1), jpeg(texture(1), 60), texture(2)
    assert pairs_of(np.stack([perceptual_hash(one), perceptual_hash(copy)])) == {(0, 1)}
    assert pairs_of(np.stack([perceptual_hash(one), perceptual_hash(other)])) == set()


def test_flat_images_have_no_near_twins() -> None:
    noise = np.random.default_rng(0).integers(100, 103, (2, 64, 64), np.uint8)
    flat = [Image.fromarray(picture) for picture in noise]
    hashes = np.stack([perceptual_hash(picture) for picture in flat])
    assert not hashes.any()
    assert pairs_of(np.vstack([hashes, perceptual_hash(texture(0))])) == set()


def test_tiles_hold_every_pair_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    hashes = rng.normal(size=(300, 256)).astype(np.float32)
    hashes[150:250] = hashes[:100] + 0.1 * rng.normal(size=(100, 256))
    hashes /= np.linalg.norm(hashes, axis=1, keepdims=True)
    whole = pairs_of(hashes)
    assert whole == {(row, row + 150) for row in range(100)}
    monkeypatch.setattr(twins_module, "_TILE_ROWS", 16)
    monkeypatch.setattr(twins_module, "_TILE_COLUMNS", 64)
    listed = [(int(a), int(b)) for found in near_pairs(hashes) for a, b in zip(*found[:2], strict=True)]
    assert len(listed) == len(whole) and set(listed) == whole


def test_memory_of_the_search_stays_bounded() -> None:
    """All similarities of 12,000 images would take 576 MB."""
    hashes = np.random.default_rng(0).normal(size=(12_000, 256)).astype(np.float32)
    hashes /= np.linalg.norm(hashes, axis=1, keepdims=True)
    tracemalloc.start()
    found = sum(len(first) for first, _, _ in near_pairs(hashes))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == 0 and peak < 150e6


def test_nearest_twin_by_split_and_clusters() -> None:
    split = np.array(["train", "train", "val", "test", "test", "test"])
    twins = Twins(split)
    twins.add((np.array([0, 1]), np.array([3, 3]), np.array([0.9, 0.95], np.float32)))
    twins.add((np.array([2, 4]), np.array([4, 5]), np.array([0.92, 0.99], np.float32)))
    assert twins.nearest[3].tolist() == [1, -1, -1]
    assert twins.nearest[4].tolist() == [-1, 2, 5]
    assert twins.nearest[5].tolist() == [-1, -1, 4]
    assert twins.similarity[3, 0] == np.float32(0.95)
    assert twins.clusters().tolist() == [0, 0, 1, 0, 1, 1]
    assert twins.n_pairs == 4


def test_equal_twins_give_the_lower_row() -> None:
    twins = Twins(np.array(["train", "train", "test"]))
    twins.add((np.array([0, 1]), np.array([2, 2]), np.array([1, 1], np.float32)))
    assert twins.nearest[2, 0] == 0


def test_pairs_beyond_the_list_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(twins_module, "LISTED_PAIRS", 2)
    twins = Twins(np.array(["train"] * 4 + ["test"]))
    first = np.arange(4)
    twins.add((first, first + 1, np.full(4, 0.9, np.float32)))
    assert twins.n_pairs == 4 and len(twins.pairs()[0]) == 2
    assert twins.clusters().tolist() == [0] * 5
    assert twins.nearest[4, 0] == 3


def test_join_numbers_clusters_by_first_rows() -> None:
    joined = join(np.arange(6), np.array([4, 1]), np.array([2, 5]))
    assert joined.tolist() == [0, 1, 2, 3, 2, 1]


# Fingerprints of files


def write(path: Path, image: Image.Image) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return path


def test_fingerprints_say_what_is_equal(tmp_path: Path) -> None:
    first = write(tmp_path / "a.png", texture(0))
    same_bytes = tmp_path / "b.png"
    same_bytes.write_bytes(first.read_bytes())
    same_pixels = write(tmp_path / "c.bmp", texture(0))
    other = write(tmp_path / "d.png", texture(1))
    found = fingerprint_images([first, same_bytes, same_pixels, other])
    assert found.contents[0] == found.contents[1] != found.contents[2]
    assert found.pixels[0] == found.pixels[1] == found.pixels[2] != found.pixels[3]
    assert found.sizes.tolist() == [[160, 120]] * 4 and found.grey.all()
    twins = find_twins(found, np.array(["train", "test", "test", "test"]))
    assert {(int(a), int(b)) for a, b in zip(*twins.pairs()[:2], strict=True)} == {(0, 1), (0, 2), (1, 2)}


def test_same_pixels_of_another_size_differ(tmp_path: Path) -> None:
    wide = write(tmp_path / "a.png", Image.new("RGB", (8, 2), "red"))
    tall = write(tmp_path / "b.png", Image.new("RGB", (2, 8), "red"))
    found = fingerprint_images([wide, tall])
    assert found.pixels[0] != found.pixels[1]


def test_unreadable_images_are_all_named_and_stop_nothing(tmp_path: Path) -> None:
    good = write(tmp_path / "good.png", texture(0))
    broken, copy, empty = (tmp_path / name for name in ("broken.jpg", "copy.jpg", "empty.png"))
    for path in (broken, copy):
        path.write_bytes(b"\xff\xd8 not really")
    empty.touch()
    found = fingerprint_images([broken, good, copy, empty, tmp_path / "missing.png"])
    assert sorted(found.unreadable) == [0, 2, 3, 4]
    for row, name in ((0, "broken.jpg"), (2, "copy.jpg"), (3, "empty.png"), (4, "missing.png")):
        assert name in found.unreadable[row]
    assert found.contents[0] == found.pixels[0] == "" and found.contents[1]
    twins = find_twins(found, np.array(["train"] * 5))
    assert twins.n_pairs == 0


def test_flat_copies_are_twins(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.png", Image.new("L", (20, 20), 7)) for name in "abcd"]
    twins = find_twins(fingerprint_images(files), np.array(["train", "test", "test", "val"]))
    assert twins.nearest[1, 0] == 0 and twins.nearest[2, 0] == 0 and twins.nearest[3, 2] == 1
    assert len(set(twins.clusters().tolist())) == 1


def test_a_second_reading_decodes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write(tmp_path / f"{seed}.png", texture(seed)) for seed in range(3)]
    first = fingerprint_images(files)
    moved = files[0].rename(tmp_path / "moved.png")

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} was decoded again")

    monkeypatch.setattr(twins_module, "read_image", refuse)
    again = fingerprint_images([moved, *files[1:]])
    assert again.contents == first.contents and again.pixels == first.pixels
    np.testing.assert_array_equal(again.hashes, first.hashes)
    np.testing.assert_array_equal(again.levels, first.levels)
    assert again.sizes.tolist() == first.sizes.tolist() and again.grey.tolist() == first.grey.tolist()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", texture(0))
    before = fingerprint_images([path])
    write(path, texture(1))
    assert fingerprint_images([path]).pixels != before.pixels


def test_pages_of_one_file_are_images_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    texture(0).save(path, save_all=True, append_images=[texture(1)])
    found = fingerprint_images([Path(f"{path}#page=0"), Path(f"{path}#page=1")])
    assert not found.unreadable
    assert found.contents[0] != found.contents[1] and found.pixels[0] != found.pixels[1]


def test_progress_is_told(tmp_path: Path) -> None:
    files = [write(tmp_path / f"{seed}.png", texture(seed)) for seed in range(3)]
    told: list[tuple[str, int, int]] = []
    found = fingerprint_images(files, lambda *step: told.append(step))
    find_twins(found, np.array(["train"] * 3), progress=lambda *step: told.append(step))
    assert told == [("Reading images", 3, 3), ("Comparing images", 3, 3)]


@pytest.mark.parametrize("threshold", [0.0, -1.0, 1.2])
def test_thresholds_out_of_range(tmp_path: Path, threshold: float) -> None:
    found = fingerprint_images([write(tmp_path / "a.png", texture(0))])
    with pytest.raises(UserError, match="above 0 and at most 1"):
        find_twins(found, np.array(["train"]), threshold)


# Real images


def test_real_groups_are_found(shared_data: Path) -> None:
    """The calibration of docs/verify-import.md."""
    busi = load_dataset(shared_data / "BUSI")
    hashes = fingerprint_images(busi.paths).hashes
    first, second, _ = (np.concatenate(column) for column in zip(*near_pairs(hashes), strict=True))
    assert busi.groups is not None
    inside = busi.groups[first] == busi.groups[second]
    same_group = np.triu(busi.groups[:, None] == busi.groups, 1).sum()
    assert inside.sum() / same_group > 0.98 and inside.mean() > 0.93
    assert (busi.labels[first] == busi.labels[second])[~inside].all()


def test_different_lesions_are_no_twins(shared_data: Path) -> None:
    lesions = load_dataset(shared_data / "DermaMNIST")
    hashes = fingerprint_images(lesions.paths).hashes
    assert pairs_of(hashes, threshold=THRESHOLD) == set()
