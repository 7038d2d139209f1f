"""What of an image an encoder sees, against the arithmetic of known preprocessing; maps laid back onto it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from scipy.ndimage import map_coordinates
from torchvision import transforms

from tests.backbones.instances import TINY
from tests.plain_encoder import PlainEncoder
from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.medclip import grey_square
from vmfcoop.backbones.open_clip import OpenClipEncoder
from vmfcoop.explain.placement import place_map, seen_box

Box = tuple[float, float, float, float]


class Preprocessed(PlainEncoder):
    """An encoder of which only the preprocessing matters."""

    def __init__(self, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        super().__init__()
        self.transform = transform
        self.calls = 0

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        self.calls += 1
        return self.transform(image)


def open_clip(
    size: int | tuple[int, int], mode: str, interpolation: str = "bicubic", fill: int = 0
) -> Preprocessed:
    config = PreprocessCfg(size=size, resize_mode=mode, interpolation=interpolation, fill_color=fill)
    return Preprocessed(image_transform_v2(config, is_train=False))


def known_box(mode: str, size: tuple[int, int], side: int) -> Box:
    """The box by the arithmetic of torchvision and open_clip: resize, then crop or pad to the side."""
    width, height = size
    if mode == "squash":
        return (0.0, 0.0, width, height)
    if mode == "shortest":
        short = min(size)
        resized = tuple(side if edge == short else int(side * edge / short) for edge in size)
        offset = tuple(round((edge - side) / 2) for edge in resized)
    else:
        resized = tuple(round(edge * side / max(size)) for edge in size)
        offset = tuple(-((side - edge) // 2) for edge in resized)
    x, y = width / resized[0], height / resized[1]
    return (offset[0] * x, offset[1] * y, (offset[0] + side) * x, (offset[1] + side) * y)


def unit(box: Box, sides: tuple[int, int]) -> tuple[float, float]:
    """What counts as one pixel of interpolation: of the original or of the input, the larger."""
    return max(1.0, (box[2] - box[0]) / sides[0]), max(1.0, (box[3] - box[1]) / sides[1])


def assert_near(
    found: Box, known: Box, size: tuple[int, int], sides: tuple[int, int], within: float = 0.2
) -> None:
    """The ends of what is seen of the image lie at the same place of the input."""
    for axis, scale in enumerate(unit(known, sides)):
        first, last = known[axis], known[axis + 2]
        for end in (max(0, first), min(size[axis], last)):
            right = (end - first) / (last - first)
            given = (end - found[axis]) / (found[axis + 2] - found[axis])
            assert abs(given - right) * (last - first) < within * scale, (found, known)


@settings(max_examples=25, deadline=None)
@given(
    width=st.integers(2, 900),
    height=st.integers(2, 900),
    side=st.sampled_from([32, 160, 224, 336]),
    mode=st.sampled_from(["shortest", "longest", "squash"]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
@example(width=5, height=4, side=32, mode="shortest", interpolation="bicubic")
@example(width=28, height=28, side=224, mode="shortest", interpolation="bicubic")
@example(width=12, height=900, side=224, mode="shortest", interpolation="bicubic")
@example(width=900, height=6, side=224, mode="longest", interpolation="bilinear")
@example(width=2000, height=1333, side=224, mode="longest", interpolation="bicubic")
def test_box_is_that_of_open_clips_preprocessing(
    width: int, height: int, side: int, mode: str, interpolation: str
) -> None:
    longest, shortest = max(width, height), min(width, height)
    assume(longest / shortest <= 100 and round(shortest * side / longest) >= 1)
    found = seen_box(open_clip(side, mode, interpolation), (width, height))
    assert_near(found, known_box(mode, (width, height), side), (width, height), (side, side))


@settings(max_examples=15, deadline=None)
@given(width=st.integers(8, 700), height=st.integers(8, 700))
@example(width=60, height=100)
@example(width=226, height=224)
@example(width=419, height=422)
def test_grey_images_padded_to_a_square_reach_beyond_the_image(width: int, height: int) -> None:
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    found = seen_box(Preprocessed(lambda image: transform(grey_square(image))), (width, height))
    side = max(224, width, height)
    left, top = -((side - width) // 2), -((side - height) // 2)
    assert_near(found, (left, top, left + side, top + side), (width, height), (224, 224))


def test_white_padding_is_padding() -> None:
    found = seen_box(open_clip(64, "longest", fill=255), (200, 100))
    assert_near(found, (0, -50, 200, 150), (200, 100), (64, 64))


def test_an_input_that_is_no_square() -> None:
    found = seen_box(open_clip((96, 160), "shortest"), (400, 300))
    # 160 / 400 is the larger ratio: the width fits, and 96 of 120 rows are left.
    assert_near(found, (0, 30, 400, 270), (400, 300), (160, 96))


def test_resize_and_smaller_crop() -> None:
    steps = [transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor()]
    found = seen_box(Preprocessed(transforms.Compose(steps)), (512, 768))
    assert_near(found, (32, 160, 480, 608), (512, 768), (224, 224))


def test_a_crop_of_one_corner() -> None:
    def corner(image: Image.Image) -> torch.Tensor:
        part = image.crop((30, 10, 130, 90)).resize((64, 64), Image.Resampling.LANCZOS)
        return transforms.functional.to_tensor(part)

    assert_near(seen_box(Preprocessed(corner), (300, 200)), (30, 10, 130, 90), (300, 200), (64, 64))


def test_every_family_that_crops_squares_sees_a_square_image_whole(
    tiny_clip: OpenClipEncoder, tiny_bert: OpenClipEncoder
) -> None:
    for encoder in (tiny_clip, tiny_bert):
        assert_near(seen_box(encoder, (40, 40)), (0, 0, 40, 40), (40, 40), encoder.image_size)


def test_medclip_itself(tmp_path: Path) -> None:
    encoder = load_backbone(f"dir:{TINY['medclip-vit'](tmp_path)}")
    assert_near(seen_box(encoder, (300, 500)), (-100, 0, 400, 500), (300, 500), encoder.image_size)


def test_a_size_is_measured_once() -> None:
    encoder = open_clip(32, "shortest")
    first = seen_box(encoder, (50, 40))
    calls = encoder.calls
    assert seen_box(encoder, (50, 40)) == first and encoder.calls == calls
    seen_box(encoder, (40, 50))
    assert encoder.calls > calls


@settings(max_examples=15, deadline=None)
@given(
    width=st.integers(40, 500),
    height=st.integers(40, 500),
    across=st.floats(0.35, 0.65),
    down=st.floats(0.35, 0.65),
    mode=st.sampled_from(["shortest", "longest", "squash", "square"]),
)
def test_a_dot_comes_back_to_its_place(
    width: int, height: int, across: float, down: float, mode: str
) -> None:
    transform = image_transform_v2(PreprocessCfg(size=224), is_train=False)
    encoder = (
        Preprocessed(lambda image: transform(grey_square(image)))
        if mode == "square"
        else open_clip(224, mode)
    )
    short = min(width, height)
    centre = (width / 2 + (across - 0.5) * short, height / 2 + (down - 0.5) * short)
    y, x = np.mgrid[:height, :width] + 0.5
    dot = np.exp(-((x - centre[0]) ** 2 + (y - centre[1]) ** 2) / (2 * (short / 25) ** 2))
    pixels = encoder.preprocess(Image.fromarray(np.uint8(255 * dot)).convert("RGB"))
    blank = encoder.preprocess(Image.new("RGB", (width, height)))
    seen = (pixels - blank).sum(dim=0).numpy()
    box = seen_box(encoder, (width, height))
    placed = place_map(np.clip(seen / seen.max(), 0, 1).astype(np.float32), box, (width, height))
    weights = np.where(placed > 0.3, placed, 0)
    found = (x * weights).sum() / weights.sum(), (y * weights).sum() / weights.sum()
    step_x, step_y = unit(box, (224, 224))
    assert abs(found[0] - centre[0]) < step_x and abs(found[1] - centre[1]) < step_y


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**16),
    size=st.tuples(st.integers(20, 60), st.integers(20, 60)),
    left=st.floats(-20, 15),
    top=st.floats(-20, 15),
    width=st.floats(12, 70),
    height=st.floats(12, 70),
)
def test_enlarged_maps_are_bilinear(
    seed: int, size: tuple[int, int], left: float, top: float, width: float, height: float
) -> None:
    """Against scipy's interpolation, for maps coarser than the image."""
    map = np.random.default_rng(seed).random((7, 10)).astype(np.float32)
    box = (left, top, left + width, top + height)
    placed = place_map(map, box, size)
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    columns, rows = (x - left) / width * 10 - 0.5, (y - top) / height * 7 - 0.5
    known = map_coordinates(
        np.pad(map, 4, mode="edge"),
        np.meshgrid(rows + 4, columns + 4, indexing="ij"),
        order=1,
        mode="nearest",
    )
    inside = ((y >= box[1]) & (y <= box[3]))[:, None] & ((x >= box[0]) & (x <= box[2]))
    assert placed.shape == (size[1], size[0]) and placed.dtype == np.float32
    assert (placed[~inside] == 0).all()
    np.testing.assert_allclose(placed[inside], known[inside], atol=2e-5)


@pytest.mark.parametrize("level", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("size", [(1, 1), (3, 200), (28, 28), (500, 40)])
def test_a_flat_map_stays_flat(size: tuple[int, int], level: float) -> None:
    placed = place_map(np.full((224, 224), level, np.float32), (0, 0, *size), size)
    np.testing.assert_allclose(placed, level, atol=1e-6)


def test_a_finer_map_is_averaged() -> None:
    stripes = np.tile(np.array([0.0, 1.0], np.float32), (224, 112))
    placed = place_map(stripes, (0.0, 0.0, 28.0, 28.0), (28, 28))
    assert np.abs(placed - 0.5).max() < 0.1


def test_what_lies_on_padding_is_cut() -> None:
    map = np.zeros((100, 100), np.float32)
    map[:24] = 1.0
    placed = place_map(map, (0.0, -50.0, 200.0, 150.0), (200, 100))
    assert placed.max() == 0.0


def test_a_box_beside_the_image_shows_nothing() -> None:
    assert not place_map(np.ones((4, 4), np.float32), (50.0, 0.0, 60.0, 10.0), (40, 10)).any()
    assert math.isclose(
        float(place_map(np.ones((4, 4), np.float32), (-5.0, -5.0, 60.0, 60.0), (40, 10)).min()), 1.0
    )
