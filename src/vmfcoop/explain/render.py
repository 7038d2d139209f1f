"""Pictures of a saliency map: laid over its image, as a figure with colour bar and caption, as raw values.

Colours are matplotlib's viridis: its lightness rises evenly with the value, colour-blind readers tell it
apart, and its blue, green and yellow occur neither in grey radiographs nor in the pinks and browns of stained
tissue and skin, so that what is coloured is the map. Perceptually uniform maps that begin in black and end in
near white, such as inferno, look like a radiograph's own air and bone.
"""

from __future__ import annotations

import io
import textwrap
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps, style
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.explain.placement import Box

COLOURS = colormaps["viridis"]
OPACITY = 0.65
"""Of the map's highest value; lower ones are more transparent in proportion, and 0 leaves anatomy bare."""
VEIL, VEIL_GREY = 0.6, 128
"""Share and grey level of the veil on what the model does not see: visible on black air and on white."""
BAR_LABEL = "importance within this image"

_TITLE, _TEXT, _NOTE = 11, 9, 8
_STYLE: dict[str, Any] = {
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial", "Noto Sans CJK SC", "Noto Sans CJK JP"],
    "font.size": _TEXT,
    "axes.linewidth": 0.6,
}
_DPI = 150
_DRAWING = threading.RLock()
_LONGEST_PIXELS = 1110
"""Of a picture in a figure: as many as the widest panel has."""
_LONGEST, _WIDE, _LEAST = 3.6, 7.4, 0.9
"""Inches of a panel's longer side, beside and above another panel, and of its shorter side at least."""
_NARROWEST, _SHORTEST_BAR = 5.6, 2.4
_MARGIN, _GAP = 0.25, 0.2
_STACKED_FROM = 2.0
"""Width over height from which the overlay stands below the original."""


@dataclass(frozen=True)
class Caption:
    """What a figure says in words.

    Attributes:
        title: the class and its probability.
        subtitle: what the map shows, and the method it is made with.
        notes: sentences below the pictures.
    """

    title: str
    subtitle: str
    notes: tuple[str, ...] = ()


def blend(
    image: Image.Image,
    placed: NDArray[np.float32],
    box: tuple[float, float, float, float] | None = None,
) -> Image.Image:
    """The map over its image, the more opaque the higher, so that anatomy stays visible where the map is low.

    Args:
        image: the original, RGB.
        placed: a map in [0, 1] on its canvas, shape ``(height, width)``.
        box: what the model sees, as :func:`~vmfcoop.explain.placement.seen_box` gives it; the rest is veiled
            in grey.
    """
    below = np.asarray(image.convert("RGB"), np.float32)
    if box is not None:
        hidden = ~_seen(box, image.size)
        below = below + VEIL * hidden[..., None] * (VEIL_GREY - below)
    opacity = OPACITY * placed[..., None]
    above = 255 * COLOURS(placed, bytes=False)[..., :3].astype(np.float32)
    return Image.fromarray(np.rint((1 - opacity) * below + opacity * above).astype(np.uint8))


def _seen(box: tuple[float, float, float, float], size: tuple[int, int]) -> NDArray[np.bool_]:
    x, y = np.arange(size[0]) + 0.5, np.arange(size[1]) + 0.5
    return ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))


def shrunk(
    image: Image.Image, placed: NDArray[np.float32], box: Box | None, side: int
) -> tuple[Image.Image, NDArray[np.float32], Box | None]:
    """An image, its map and what the model sees of it, no longer than a side in pixels."""
    if max(image.size) <= side:
        return image, placed, box
    width, height = (max(1, round(edge * side / max(image.size))) for edge in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    map = Image.fromarray(placed).resize((width, height), Image.Resampling.BOX)
    across, down = width / image.width, height / image.height
    edges = box and Box(box[0] * across, box[1] * down, box[2] * across, box[3] * down)
    return small, np.clip(np.asarray(map), 0.0, 1.0), edges


def hidden_share(box: Box, size: tuple[int, int]) -> float:
    """Share of an image, in [0, 1], that the model does not see.

    Example:
        >>> hidden_share(Box(10.0, 0.0, 30.0, 20.0), (40, 20))
        0.5
    """
    width = min(box.right, size[0]) - max(box.left, 0.0)
    height = min(box.bottom, size[1]) - max(box.top, 0.0)
    return 1 - width * height / (size[0] * size[1])


def is_padded(box: Box, size: tuple[int, int]) -> bool:
    """Whether the model sees more than the image, by a hundredth of what it sees.

    Example:
        >>> is_padded(Box(0.0, -10.0, 40.0, 30.0), (40, 20)), is_padded(Box(10.0, 0.0, 30.0, 20.0), (40, 20))
        (True, False)
    """
    x, y = 0.01 * (box.right - box.left), 0.01 * (box.bottom - box.top)
    return box.left < -x or box.right > size[0] + x or box.top < -y or box.bottom > size[1] + y


def colour_bar(width: int = 256, height: int = 1) -> Image.Image:
    """The colours of 0 to 1, from left to right, over grey and with the opacity that overlays give them."""
    values = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return blend(Image.new("RGB", (width, height), (VEIL_GREY,) * 3), values)


def overlay_figure(
    image: Image.Image, placed: NDArray[np.float32], caption: Caption, box: Box | None = None
) -> Figure:
    """The original beside the overlay (above it, if wide), with colour bar, title and notes.

    Args:
        image: the original, RGB.
        placed: a map in [0, 1] on its canvas, shape ``(height, width)``.
        caption: what to say.
        box: what the model sees; the rest is veiled in the overlay, the edge drawn as a dashed line.
    """
    size = image.size
    image, placed, box = shrunk(image, placed, box, _LONGEST_PIXELS)
    with _drawing():
        layout = _Layout.of(size, caption)
        figure = Figure(figsize=layout.size, dpi=_DPI)
        layout.write(figure, layout.title, layout.size[1] - _MARGIN, "top", size=_TITLE, weight="bold")
        layout.write(figure, layout.subtitle, layout.below_title, "top", size=_TEXT)
        layout.write(figure, layout.notes, _MARGIN, "bottom", size=_NOTE, linespacing=1.25)
        _draw_picture(layout.axes(figure, layout.original), image, "original", None)
        _draw_picture(layout.axes(figure, layout.overlay), blend(image, placed, box), "with the map", box)
        _draw_bar(layout.axes(figure, layout.bar))
    return figure


@contextmanager
def _drawing() -> Iterator[None]:
    """The figures' style; scripts that no font here has become boxes, without a warning for each letter.

    matplotlib's style and Python's warnings are those of the whole process: one thread draws at a time.
    """
    with _DRAWING, style.context(["default", _STYLE]), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font", UserWarning)
        yield


_Rectangle = tuple[float, float, float, float]


@dataclass(frozen=True)
class _Layout:
    """Places in inches from the lower left corner; rectangles are left, bottom, width, height."""

    size: tuple[float, float]
    title: str
    subtitle: str
    notes: str
    below_title: float
    original: _Rectangle
    overlay: _Rectangle
    bar: _Rectangle

    @classmethod
    def of(cls, size: tuple[int, int], caption: Caption) -> _Layout:
        """The layout for an image of a width and height."""
        stacked = size[0] > _STACKED_FROM * size[1]
        scale = (_WIDE if stacked else _LONGEST) / max(size)
        width, height = (max(_LEAST, side * scale) for side in size)
        pictures = width if stacked else 2 * width + _GAP
        total = max(pictures, _NARROWEST) + 2 * _MARGIN
        title, subtitle, notes = (
            "\n".join(_wrapped(sentence, total - 2 * _MARGIN, points, weight) for sentence in text)
            for text, points, weight in (
                ((caption.title,), _TITLE, "bold"),
                ((caption.subtitle,), _TEXT, "normal"),
                (caption.notes, _NOTE, "normal"),
            )
        )
        foot = _MARGIN + _inches(notes, _NOTE) + 0.85
        rise = height + _GAP + 0.2 if stacked else 0.0
        left = (total - pictures) / 2
        overlay = (left if stacked else left + width + _GAP, foot, width, height)
        head = _inches(title, _TITLE) + _inches(subtitle, _TEXT) + 0.35
        tall = foot + rise + height + head + _MARGIN
        bar = max(width, _SHORTEST_BAR)
        return cls(
            (total, tall),
            title,
            subtitle,
            notes,
            tall - _MARGIN - _inches(title, _TITLE),
            (left, foot + rise, width, height),
            overlay,
            (min(overlay[0], total - _MARGIN - bar), foot - 0.3, bar, 0.13),
        )

    def axes(self, figure: Figure, place: _Rectangle) -> Any:
        """Axes at a place."""
        return figure.add_axes(tuple(part / self.size[i % 2] for i, part in enumerate(place)))  # type: ignore[arg-type]

    def write(self, figure: Figure, text: str, height: float, side: str, **font: Any) -> None:
        """Text at the left margin, whose top or bottom is at a height."""
        figure.text(_MARGIN / self.size[0], height / self.size[1], text, va=side, **font)


def _draw_picture(axes: Any, picture: Image.Image, name: str, box: Box | None) -> None:
    width, height = picture.size
    axes.imshow(np.asarray(picture), extent=(0, width, height, 0), aspect="equal")
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(name, size=_TEXT, pad=4)
    if box is not None:
        for places, draw in (((box.left, box.right), axes.axvline), ((box.top, box.bottom), axes.axhline)):
            longer = width if draw == axes.axvline else height
            for place in places:
                if 0.5 < place < longer - 0.5:
                    draw(place, color="white", linewidth=0.9)
                    draw(place, color="black", linewidth=0.9, linestyle=(0, (3, 3)))


def _draw_bar(axes: Any) -> None:
    axes.imshow(np.asarray(colour_bar()), extent=(0, 1, 0, 1), aspect="auto")
    axes.set(xticks=[0, 0.5, 1], yticks=[], xlabel=BAR_LABEL)
    axes.set_xticklabels(["0, none", "0.5", "1, the most"])
    labels = axes.get_xticklabels()
    labels[0].set_horizontalalignment("left")
    labels[-1].set_horizontalalignment("right")


def _wrapped(sentence: str, inches: float, points: float, weight: str) -> str:
    """A sentence on lines that are no wider than that."""
    font = FontProperties(size=points, weight=weight)
    letters = int(inches * 72 / (0.45 * points))
    while True:
        lines = textwrap.wrap(sentence, letters)
        widths = (text_to_path.get_text_width_height_descent(line, font, False)[0] for line in lines)
        if letters < 4 or max(widths, default=0) <= inches * 72:
            return "\n".join(lines)
        letters -= 2


def _inches(text: str, points: float) -> float:
    return (text.count("\n") + 1) * points * 1.25 / 72 if text else 0.0


def figure_picture(figure: Figure) -> Image.Image:
    """A figure as an RGB picture."""
    file = io.BytesIO()
    with _drawing():
        figure.savefig(file, format="rgba", dpi=_DPI)
    size = figure.canvas.get_width_height(physical=True)
    return Image.frombytes("RGBA", size, file.getvalue()).convert("RGB")


def png(picture: Image.Image) -> bytes:
    """A picture as the bytes of a PNG, without metadata; 16-bit greyscale where it has that depth."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def map_png16(placed: NDArray[np.float32]) -> bytes:
    """A map as a 16-bit greyscale PNG: 0 to 65535 are 0 to 1.

    Example:
        >>> import io
        >>> pixels = Image.open(io.BytesIO(map_png16(np.array([[0.0, 0.5, 1.0]], np.float32))))
        >>> np.asarray(pixels).tolist()
        [[0, 32768, 65535]]
    """
    return png(Image.fromarray(np.rint(65535 * placed.astype(np.float64)).astype(np.uint16)))


def map_npy(placed: NDArray[np.float32]) -> bytes:
    """A map as the bytes of a ``.npy`` file, float32."""
    file = io.BytesIO()
    np.save(file, placed.astype(np.float32), allow_pickle=False)
    return file.getvalue()


def percent(share: float) -> str:
    """A share in words.

    Example:
        >>> percent(0.8734), percent(0.0004)
        ('87.3 %', '< 0.1 %')
    """
    return "< 0.1 %" if 0 < share < 0.0005 else f"{100 * share:.1f} %"
