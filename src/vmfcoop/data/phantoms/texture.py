"""What the grey phantoms are made of besides ``tissue``: poses, shapes by distance, trees, scanners' noise.

Fields are float64 of shape ``(SIZE, SIZE)``, points are ``(x, y)``. Anatomies are drawn in units of their
own, x to the right and y down; a ``Pose`` takes them to pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.interpolate import CubicSpline

from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.data.phantoms.tissue import COLUMNS, ROWS, Field, is_inside, radius_at, smoothstep

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
    u, v = turned(x - centre[0], y - centre[1], turn)
    u, v = u / radii[0], v / radii[1]
    level = np.hypot(u, v)
    slope = np.hypot(u / radii[0], v / radii[1])
    return np.asarray(level * (level - 1) / np.maximum(slope, 1e-6), np.float64)


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
    u, v = u / radii[0], v / radii[1]
    level = np.hypot(u, v)
    edge = radius_at(outline, np.arctan2(v, u))
    slope = np.hypot(u / radii[0], v / radii[1])
    return np.asarray(level * (level - edge) / np.maximum(slope, 1e-6), np.float64)


def turned(x: Field, y: Field, turn: float) -> tuple[Field, Field]:
    """Coordinates along axes that are turned clockwise."""
    cos, sin = np.cos(turn), np.sin(turn)
    return np.asarray(x * cos + y * sin), np.asarray(y * cos - x * sin)


def inside(distance: Field, softness: float) -> Field:
    """1 where a distance is negative and 0 where it is positive, with an edge of some softness."""
    return smoothstep(softness, -softness, distance)


def layer(image: Field, value: float | Field, share: Field) -> Field:
    """An image covered by a value, or by an other image, as far as ``share`` says."""
    return np.asarray(image + (value - image) * share, np.float64)


def push(x: Field, y: Field, centre: Sequence[float], radius: float, strength: float) -> tuple[Field, Field]:
    """Coordinates of where tissue came from that a mass now presses away from its centre."""
    u, v = x - centre[0], y - centre[1]
    share = strength * np.exp(-(np.square(u) + np.square(v)) / (2.2 * radius) ** 2)
    return np.asarray(x - u * share), np.asarray(y - v * share)


def curve(points: ArrayLike, n: int = 40, closed: bool = False) -> Field:
    """Smooth line ``(n, 2)`` through points ``(m, 2)``."""
    knots = np.asarray(points, np.float64)
    if closed:
        knots = np.concatenate([knots, knots[:1]])
    at = np.append(0.0, np.cumsum(np.sqrt(np.linalg.norm(np.diff(knots, axis=0), axis=1))))
    spline = CubicSpline(at, knots, bc_type="periodic" if closed else "natural")
    return np.asarray(spline(np.linspace(0, at[-1], n, endpoint=not closed)), np.float64)


def wander(rng: np.random.Generator, start: ArrayLike, heading: float, length: float, bend: float) -> Field:
    """A line ``(12, 2)`` that sets out in a direction and changes it on the way."""
    headings = heading + bend * np.cumsum(rng.standard_normal(11)) / np.sqrt(11)
    steps = np.stack([np.cos(headings), np.sin(headings)], axis=1) * length / 11
    return np.concatenate([np.zeros((1, 2)), np.cumsum(steps, axis=0)]) + np.asarray(start, np.float64)


def tree(
    rng: np.random.Generator,
    start: ArrayLike,
    heading: float,
    length: float,
    width: float,
    depth: int,
    spread: float = 0.55,
) -> list[tuple[Field, Field]]:
    """Paths ``(12, 2)`` and their widths ``(12,)`` of a vessel that forks ``depth`` times, thinner each time."""
    path = wander(rng, start, heading, length, 0.25)
    found = [(path, width * np.linspace(1, 0.72, len(path)))]
    if depth:
        for side in (-1, 1):
            turn = heading + side * spread * rng.uniform(0.4, 1.2)
            reach = length * rng.uniform(0.6, 0.95)
            found += tree(rng, path[-1], turn, reach, width * rng.uniform(0.55, 0.72), depth - 1, spread)
    return found


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
