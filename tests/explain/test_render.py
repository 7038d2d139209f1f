"""Pictures of a map: what the blend does to pixels, what the figure says and whether it fits, raw values."""

from __future__ import annotations

import io
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import matplotlib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from vmfcoop.explain import render
from vmfcoop.explain.placement import Box
from vmfcoop.explain.render import (
    BAR_LABEL,
    OPACITY,
    VEIL,
    Caption,
    blend,
    colour_bar,
    figure_picture,
    hidden_share,
    map_npy,
    map_png16,
    overlay_figure,
)

YELLOW, VIOLET = (253, 231, 37), (68, 1, 84)
"""The ends of viridis, as published."""


def photograph(width: int = 40, height: int = 30, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8))


def levels(picture: Image.Image) -> np.ndarray:
    return np.asarray(picture).astype(float)


def test_where_the_map_is_zero_the_image_is_bare() -> None:
    image = photograph()
    assert np.array_equal(blend(image, np.zeros((30, 40), np.float32)), image)


def test_at_its_highest_the_map_is_yellow_over_the_image() -> None:
    image = photograph()
    known = (1 - OPACITY) * levels(image) + OPACITY * np.array(YELLOW)
    assert np.abs(levels(blend(image, np.ones((30, 40), np.float32))) - known).max() <= 1


@given(value=st.floats(0, 1, width=32), grey=st.integers(0, 255))
def test_opacity_is_the_value(value: float, grey: int) -> None:
    """What a colour leaves of the difference of black and white below it is the transparency."""
    map = np.full((1, 1), value, np.float32)
    dark, bright = (levels(blend(Image.new("RGB", (1, 1), (g,) * 3), map)) for g in (0, 255))
    left = (bright - dark) / 255
    assert np.abs(left - (1 - OPACITY * value)).max() < 1 / 200
    between = levels(blend(Image.new("RGB", (1, 1), (grey,) * 3), map))
    assert np.abs(between - (dark + grey * left)).max() <= 1.5


def test_what_the_model_does_not_see_is_veiled_and_nothing_else() -> None:
    map = np.zeros((30, 40), np.float32)
    for shade in (0, 255):
        image = Image.new("RGB", (40, 30), (shade,) * 3)
        veiled = levels(blend(image, map, Box(10.0, -5.0, 30.0, 25.0)))
        assert (veiled[:25, 10:30] == shade).all()
        known = shade + VEIL * (128 - shade)
        assert np.abs(veiled[25:] - known).max() <= 1 and np.abs(veiled[:, :10] - known).max() <= 1
        assert abs(known - shade) > 70  # Visible on black and on white.


@given(
    box=st.tuples(st.floats(-50, 10), st.floats(-50, 10), st.floats(20, 90), st.floats(20, 90)),
)
def test_share_that_is_hidden_is_the_share_of_veiled_pixels(box: tuple[float, float, float, float]) -> None:
    size = (40, 30)
    finest = 20  # samples a pixel and axis
    x = (np.arange(size[0] * finest) + 0.5) / finest
    y = (np.arange(size[1] * finest) + 0.5) / finest
    seen = ((x > box[0]) & (x < box[2])).mean() * ((y > box[1]) & (y < box[3])).mean()
    assert hidden_share(Box(*box), size) == pytest.approx(1 - seen, abs=0.01)


def test_colour_bar_goes_from_bare_grey_to_yellow() -> None:
    bar = levels(colour_bar(101))[0]
    assert (bar[0] == 128).all()
    assert np.abs(bar[-1] - ((1 - OPACITY) * 128 + OPACITY * np.array(YELLOW))).max() <= 1
    # Blue leaves and yellow comes: along the bar, yellowness never falls once the map is visible.
    yellowness = bar[:, 1] - bar[:, 2]
    assert (np.diff(yellowness[25:]) >= -1).all()


def texts(figure: Figure) -> list[Any]:
    axes = [text for ax in figure.axes for text in (ax.title, ax.xaxis.label, *ax.get_xticklabels())]
    return [text for text in (*figure.texts, *axes) if text.get_text()]


def words(figure: Figure) -> str:
    return " ".join(" ".join(text.get_text() for text in texts(figure)).split())


CAPTION = Caption(
    "Predicted: glioma, 87.3 %", "Occlusion: what speaks for glioma", ("Not checked.", "Research.")
)


def test_the_figure_says_class_map_method_and_scale() -> None:
    said = words(overlay_figure(photograph(), np.zeros((30, 40), np.float32), CAPTION))
    for part in (
        CAPTION.title,
        CAPTION.subtitle,
        *CAPTION.notes,
        BAR_LABEL,
        "original",
        "with the map",
        "0.5",
    ):
        assert part in said


LONG = Caption(
    "Explained: " + "squamous cell carcinoma with an uncommonly long name " * 3,
    "Gradient-weighted attention: what speaks for " + "adenocarcinoma_" * 12,
    ("A note that goes on and on, " * 9, "Price: $5 and $6, x_1^2."),
)


@pytest.mark.parametrize("size", [(40, 30), (30, 40), (300, 20), (20, 300), (1, 1), (900, 600)])
@pytest.mark.parametrize("caption", [CAPTION, LONG], ids=["short", "long"])
def test_everything_fits_and_nothing_overlaps(size: tuple[int, int], caption: Caption) -> None:
    placed = np.zeros(size[::-1], np.float32)
    figure = overlay_figure(Image.new("RGB", size), placed, caption, Box(0, 0, size[0] / 2, size[1]))
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    page = figure.bbox
    boxes = [text.get_window_extent(renderer) for text in texts(figure)]
    for box in boxes:
        assert box.x0 >= page.x0 and box.x1 <= page.x1 and box.y0 >= page.y0 and box.y1 <= page.y1
    panels = [axes.get_window_extent(renderer) for axes in figure.axes]
    for i, one in enumerate(panels + boxes):
        for other in (panels + boxes)[i + 1 :]:
            assert not one.overlaps(other)
    if caption is LONG:
        assert "$5 and $6, x_1^2" in words(figure)  # Not set as mathematics.


def test_the_panels_show_original_and_overlay() -> None:
    """Colours of the rendered figure, panel by panel."""
    placed = np.zeros((40, 40), np.float32)
    placed[:, 20:] = 1.0
    figure = overlay_figure(Image.new("RGB", (40, 40), (200, 10, 10)), placed, CAPTION)
    picture = levels(figure_picture(figure))
    height, width = picture.shape[:2]
    found = []
    for axes in figure.axes[:2]:
        place = axes.get_position()
        row = round(height * (1 - (place.y0 + place.y1) / 2))
        for share in (0.25, 0.75):
            found.append(picture[row, round(width * (place.x0 + share * (place.x1 - place.x0)))])
    red = np.array([200, 10, 10])
    for at, known in zip(found, [red, red, red, 0.35 * red + 0.65 * np.array(YELLOW)], strict=True):
        assert np.abs(at - known).max() <= 2


def test_a_large_image_makes_no_larger_figure() -> None:
    small, large = (
        figure_picture(overlay_figure(Image.new("RGB", (n, n)), np.zeros((n, n), np.float32), CAPTION))
        for n in (50, 2000)
    )
    assert small.size == large.size


@settings(max_examples=25)
@given(seed=st.integers(0, 999), height=st.integers(1, 40), width=st.integers(1, 40))
def test_raw_maps_read_back(seed: int, height: int, width: int) -> None:
    map = np.random.default_rng(seed).random((height, width)).astype(np.float32)
    map.flat[0] = 1.0
    read = np.load(io.BytesIO(map_npy(map)), allow_pickle=False)
    assert read.dtype == np.float32 and np.array_equal(read, map)
    with Image.open(io.BytesIO(map_png16(map))) as image:
        assert image.format == "PNG" and image.mode.startswith("I;16")
        pixels = np.asarray(image)
    assert pixels.shape == (height, width) and pixels.flat[0] == 65535
    assert np.abs(pixels / 65535 - map).max() <= 0.5 / 65535 + 1e-9


def test_scripts_that_no_font_has_are_drawn_without_warnings(recwarn: pytest.WarningsRecorder) -> None:
    caption = Caption("Predicted: \N{YI SYLLABLE IT}\N{CUNEIFORM SIGN A}", "Occlusion")
    figure_picture(overlay_figure(photograph(), np.zeros((30, 40), np.float32), caption))
    assert not recwarn.list


def test_two_threads_that_draw_leave_matplotlib_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    entered, leave = threading.Event(), threading.Event()

    def draws_long() -> None:
        with render._drawing():
            entered.set()
            leave.wait(10)

    def draws() -> None:
        entered.wait(10)
        with render._drawing():
            pass

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(draws_long), pool.submit(draws)
        assert entered.wait(10) and not wait([second], timeout=0.1).done
        leave.set()
        first.result()
        second.result()
    assert dict(matplotlib.rcParams) == before
