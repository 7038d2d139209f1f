"""What the grey phantoms are made of besides ``tissue``: poses, shapes by distance, trees, scanners' noise.

Fields are float64 of shape ``(SIZE, SIZE)``, points are ``(x, y)``. Anatomies are drawn in units of their
own, x to the right and y down; a ``Pose`` takes them to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline

from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.data.phantoms.tissue import COLUMNS, ROWS, Field, is_inside, radius_at

# Glyphs of 5 rows of 3 pixels, for what is burnt into images; fonts differ between platforms.
_GLYPHS = {
    "0": "###,#.#,#.#,#.#,###",
    "1": ".#.,##.,.#.,.#.,###",
    "2": "##.,..#,.#.,#..,###",
    "3": "##.,..#,.#.,..#,##.",
    "4": "#.#,#.#,###,..#,..#",
    "5": "###,#..,##.,..#,##.",
    "6": ".##,#..,###,#.#,###",
    "7": "###,..#,.#.,.#.,.#.",
    "8": "###,#.#,###,#.#,###",
    "9": "###,#.#,###,..#,##.",
    "A": ".#.,#.#,###,#.#,#.#",
    "L": "#..,#..,#..,#..,###",
    "P": "##.,#.#,##.,#..,#..",
    "R": "##.,#.#,##.,#.#,#.#",
    "+": "...,.#.,###,.#.,...",
}


@dataclass(frozen=True)
class Pose:
    """Where an anatomy lies on the image.

    Attributes:
        x, y: its origin in pixels.
        scale: pixels a unit.
        turn: clockwise, in radians.
        stretch: how much wider than high a unit is.
    """

    x: float
    y: float
    scale: float
    turn: float = 0.0
    stretch: float = 1.0

    def grid(self) -> tuple[Field, Field]:
        """Coordinates of every pixel in the anatomy's units."""
        across, down = (COLUMNS - self.x) / self.scale, (ROWS - self.y) / self.scale
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return (across * cos + down * sin) / self.stretch, down * cos - across * sin

    def to_pixels(self, points: ArrayLike) -> Field:
        """Pixels of points ``(..., 2)`` of the anatomy."""
        x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        across, down = self.stretch * x * cos - y * sin, self.stretch * x * sin + y * cos
        return np.asarray(np.stack([self.x + self.scale * across, self.y + self.scale * down], axis=-1))


def ellipse(x: Field, y: Field, centre: Sequence[float], radii: Sequence[float], turn: float = 0.0) -> Field:
    """Distance from an ellipse, about true near its edge and negative inside."""
    u, v = _squares(x, y, centre, radii, turn)
    level = np.sqrt(u + v)
    return np.asarray(level * (level - 1) / _slope(u, v, radii), np.float64)


def blob(
    x: Field,
    y: Field,
    centre: Sequence[float],
    radii: Sequence[float],
    outline: Field,
    turn: float = 0.0,
) -> Field:
    """Distance from an ellipse whose radius varies as an ``outline`` of ``tissue``, negative inside."""
    u, v = turned(x - centre[0], y - centre[1], turn)
    # Reading a fine table is several times faster than interpolating at every pixel.
    fine = radius_at(outline, np.arange(1024) * np.pi / 512)
    angle = np.arctan2(v / radii[1], u / radii[0]) * (512 / np.pi)
    edge = fine.take(angle.astype(np.intp) & 1023)
    u, v = _squares(x, y, centre, radii, turn)
    level = np.sqrt(u + v)
    return np.asarray(level * (level - edge) / _slope(u, v, radii), np.float64)


def _squares(
    x: Field, y: Field, centre: Sequence[float], radii: Sequence[float], turn: float
) -> tuple[Field, Field]:
    """Squares of the coordinates along the axes of an ellipse, in its half axes; never 0."""
    u, v = turned(x - centre[0], y - centre[1], turn)
    return np.square(u / radii[0]) + 1e-12, np.square(v / radii[1]) + 1e-12


def _slope(u: Field, v: Field, radii: Sequence[float]) -> Field:
    """How fast the level of an ellipse rises, from the squares of its coordinates."""
    return np.asarray(np.sqrt(u / radii[0] ** 2 + v / radii[1] ** 2), np.float64)


def turned(x: Field, y: Field, turn: float) -> tuple[Field, Field]:
    """Coordinates along axes that are turned clockwise."""
    if turn == 0:
        return x, y
    cos, sin = np.cos(turn), np.sin(turn)
    return np.asarray(x * cos + y * sin), np.asarray(y * cos - x * sin)


def inside(distance: Field, softness: float) -> Field:
    """1 where a distance is negative and 0 where it is positive, with an edge of some softness."""
    share = distance * (-0.5 / softness)
    share += 0.5
    np.clip(share, 0, 1, out=share)
    return np.asarray(share * share * (3 - 2 * share), np.float64)


def layer(image: Field, value: float | Field, share: Field) -> Field:
    """An image covered by a value, or by an other image, as far as ``share`` says."""
    return np.asarray(image + (value - image) * share, np.float64)


def push(x: Field, y: Field, centre: Sequence[float], radius: float, strength: float) -> tuple[Field, Field]:
    """Coordinates of where tissue came from that a mass now presses away from its centre."""
    u, v = x - centre[0], y - centre[1]
    share = strength * np.exp(-(np.square(u) + np.square(v)) / (2.2 * radius) ** 2)
    return np.asarray(x - u * share), np.asarray(y - v * share)


def curve(points: ArrayLike, n: int = 40, closed: bool = False) -> Field:
    """Smooth lines ``(..., n, 2)`` through points ``(..., m, 2)``, which divide a line into equal times."""
    knots = np.asarray(points, np.float64)
    return np.asarray(np.einsum("nm,...md->...nd", _natural_spline(knots.shape[-2], n, closed), knots))


@lru_cache(maxsize=64)
def _natural_spline(m: int, n: int, closed: bool) -> Field:
    """Weights ``(n, m)`` of the knots of a cubic spline at ``n`` times."""
    unit = np.eye(m)
    if closed:
        unit = np.concatenate([unit, unit[:1]])
    spline = CubicSpline(np.arange(len(unit)), unit, bc_type="periodic" if closed else "natural")
    return np.asarray(spline(np.linspace(0, len(unit) - 1, n, endpoint=not closed)), np.float64)


def wander(
    rng: np.random.Generator, starts: ArrayLike, headings: ArrayLike, lengths: ArrayLike, bend: float
) -> Field:
    """Lines ``(n, 12, 2)`` that set out from ``(n, 2)`` in directions ``(n,)`` and change them on the way."""
    heading, start = np.asarray(headings, np.float64), np.asarray(starts, np.float64)
    turns = bend * np.cumsum(rng.standard_normal((len(heading), 11)), axis=1) / np.sqrt(11)
    along = heading[:, None] + turns
    steps = np.stack([np.cos(along), np.sin(along)], axis=-1)
    steps *= np.broadcast_to(np.asarray(lengths, np.float64), heading.shape)[:, None, None] / 11
    walks = np.concatenate([np.zeros((len(heading), 1, 2)), np.cumsum(steps, axis=1)], axis=1)
    return np.asarray(walks + np.broadcast_to(start, (len(heading), 2))[:, None])


def trees(
    rng: np.random.Generator,
    starts: ArrayLike,
    headings: Field,
    lengths: Field,
    widths: Field,
    depth: int,
) -> tuple[Field, Field]:
    """Paths ``(m, 12, 2)`` and widths ``(m, 12)`` of ``n`` vessels that fork ``depth`` times."""
    paths = wander(rng, starts, headings, lengths, 0.25)
    along = widths[:, None] * np.linspace(1, 0.72, 12)
    if not depth:
        return paths, along
    side = np.tile([-1.0, 1.0], len(headings))
    turns = np.repeat(headings, 2) + side * rng.uniform(0.2, 0.65, len(side))
    reach = np.repeat(lengths, 2) * rng.uniform(0.6, 0.95, len(side))
    width = np.repeat(widths, 2) * rng.uniform(0.55, 0.72, len(side))
    further, thinner = trees(rng, np.repeat(paths[:, -1], 2, axis=0), turns, reach, width, depth - 1)
    return np.concatenate([paths, further]), np.concatenate([along, thinner])


def ribbons(paths: Field, widths: ArrayLike) -> Field:
    """Polygons ``(n, 2 points, 2)`` of lines along ``paths`` ``(n, points, 2)``, of widths as broadcast."""
    along = np.gradient(paths, axis=1)
    along /= np.maximum(np.sqrt(np.square(along).sum(axis=-1, keepdims=True)), 1e-9)
    half = np.broadcast_to(np.asarray(widths, np.float64), paths.shape[:2])[..., None] / 2
    across = np.stack([-along[..., 1], along[..., 0]], axis=-1) * half
    return np.concatenate([paths + across, (paths - across)[:, ::-1]], axis=1)


def grain(rng: np.random.Generator, sigma: float) -> Field:
    """Noise of deviation 1 whose neighbours resemble each other within ``sigma`` pixels."""
    field = ndimage.gaussian_filter(rng.standard_normal((SIZE, SIZE)), sigma, mode="wrap")
    return np.asarray(field / max(float(field.std()), 1e-9), np.float64)


def rician(rng: np.random.Generator, image: Field, deviation: float) -> Field:
    """An image as the magnitude of a complex signal with noise in both of its parts."""
    real, imaginary = deviation * rng.standard_normal((2, SIZE, SIZE))
    return np.asarray(np.hypot(image + real, imaginary), np.float64)


def grey(image: Field) -> NDArray[np.uint8]:
    """A field from 0 to 1 as uint8 RGB ``(SIZE, SIZE, 3)``."""
    levels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8)
    return np.repeat(levels[..., None], 3, axis=2)


def within_borders(rng: np.random.Generator, reach: int, probability: float) -> NDArray[np.bool_]:
    """Pixels that black borders leave, each of which is there with a probability, up to ``reach`` wide."""
    left, right, top, bottom = rng.integers(0, reach, 4) * (rng.random(4) < probability)
    shown = np.zeros((SIZE, SIZE), np.bool_)
    shown[top : SIZE - bottom, left : SIZE - right] = True
    return shown


def stamp(text: str, x: int, y: int, magnification: int = 1) -> Field:
    """Letters with their upper left corner at a pixel: 1 on them, 0 elsewhere; cut off at the edges."""
    canvas = np.zeros((SIZE, SIZE))
    for number, letter in enumerate(text):
        bits = np.array([[cell == "#" for cell in row] for row in _GLYPHS[letter].split(",")])
        rows, columns = np.nonzero(np.kron(bits, np.ones((magnification, magnification))))
        at = np.stack([columns + x + 4 * number * magnification, rows + y], axis=1)
        at = at[is_inside(at.astype(np.float64))]
        canvas[at[:, 1], at[:, 0]] = 1
    return canvas
