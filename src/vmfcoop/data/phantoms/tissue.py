"""What the colour phantoms are made of: noise, cells, outlines, drawn shapes, pigments, lenses, sensors.

Fields are float64 of shape ``(SIZE, SIZE)``, points are ``(x, y)`` in pixels, colours run from 0 to 1.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from vmfcoop.data.phantoms.core import SIZE

Field = NDArray[np.float64]

HALF = SIZE / 2
_SUPERSAMPLING = 4

ROWS, COLUMNS = np.mgrid[:SIZE, :SIZE].astype(np.float64)
Y, X = (ROWS + 0.5) / HALF - 1, (COLUMNS + 0.5) / HALF - 1
"""Coordinates in pixels, and from -1 to 1 over the image."""
for _grid in (ROWS, COLUMNS, Y, X):
    _grid.setflags(write=False)


def smoothstep(low: float | Field, high: float | Field, values: Field) -> Field:
    """0 below ``low``, 1 above ``high``, smooth between; the other way round where ``low > high``."""
    t = np.clip((values - low) / (high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float64)


def soft_minimum(a: Field, b: Field, width: float) -> Field:
    """The smaller of two fields, rounded off where they differ by less than about ``width``."""
    return np.asarray(0.5 * (a + b - np.sqrt(np.square(a - b) + width * width)), np.float64)


def bump(values: Field, width: float) -> Field:
    """1 where the values are 0, falling off as a Gaussian."""
    return np.asarray(np.exp(-np.square(values / width)), np.float64)


def noise(rng: np.random.Generator, rows: int, columns: int | None = None, octaves: int = 1) -> Field:
    """Smooth noise of mean 0 and deviation 1 with about ``rows`` by ``columns`` bumps in its first octave."""
    field = np.zeros((SIZE, SIZE))
    for octave in range(octaves):
        down, across = rows << octave, (columns or rows) << octave
        knots = rng.standard_normal((down + 3, across + 3))
        first, weights = _spline(down)
        strips = sum(weight[:, None] * knots[first + step] for step, weight in enumerate(weights))
        first, weights = _spline(across)
        field += 0.55**octave * sum(weight * strips[:, first + step] for step, weight in enumerate(weights))
    return np.asarray((field - field.mean()) / field.std(), np.float64)


@lru_cache(maxsize=64)
def _spline(cells: int) -> tuple[NDArray[np.intp], Field]:
    """Uniform cubic B-splines: the first of four knots of each pixel, and their weights ``(4, SIZE)``."""
    at = (np.arange(SIZE) + 0.5) * cells / SIZE
    first = np.floor(at).astype(np.intp)
    t = at - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6
    return first, weights


def blur(image: Field, sigma: float) -> Field:
    """Gaussian blur of a field or of an image ``(SIZE, SIZE, channels)``; edges are continued."""
    reach = int(np.ceil(3 * sigma))
    weights = np.exp(-0.5 * np.square(np.arange(-reach, reach + 1) / max(sigma, 1e-9)))
    weights /= weights.sum()
    for axis in (0, 1):
        # Sums of shifted images: a product with a matrix would wait for BLAS's threads.
        margins = [(reach, reach) if axis == at else (0, 0) for at in range(image.ndim)]
        padded = np.pad(image, margins, mode="edge")
        shifted = padded if axis == 0 else np.swapaxes(padded, 0, 1)
        total = sum(weight * shifted[start : start + SIZE] for start, weight in enumerate(weights))
        image = np.asarray(total if axis == 0 else np.swapaxes(total, 0, 1), np.float64)
    return image


def look_up(field: Field, x: ArrayLike, y: ArrayLike) -> Field:
    """Bilinear values of a field at pixel positions, those outside taken to the edge."""
    across, down = (np.clip(np.asarray(at, np.float64), 0, SIZE - 1.001) for at in (x, y))
    left, top = across.astype(np.intp), down.astype(np.intp)
    right_share, low_share = across - left, down - top
    upper = field[top, left] * (1 - right_share) + field[top, left + 1] * right_share
    lower = field[top + 1, left] * (1 - right_share) + field[top + 1, left + 1] * right_share
    return np.asarray(upper * (1 - low_share) + lower * low_share, np.float64)


def is_inside(points: Field, margin: float = 0.0) -> NDArray[np.bool_]:
    """Which points ``(..., 2)`` lie on the image, ``(...,)``."""
    return np.asarray(((points >= margin) & (points <= SIZE - 1 - margin)).all(axis=-1))


@dataclass(frozen=True, eq=False)
class Cells:
    """A division of the image into the neighbourhoods of seeds.

    Attributes:
        across, down: offset of a pixel from its seed in pixels, ``(SIZE, SIZE)``.
        border: distance of a pixel from the border of its cell in pixels, ``(SIZE, SIZE)``.
        index: seed of each pixel, int ``(SIZE, SIZE)``.
        seeds: positions ``(n, 2)``, some of them beside the image.
        spacing: of the seeds in pixels.
    """

    across: Field
    down: Field
    border: Field
    index: NDArray[np.intp]
    seeds: Field
    spacing: float


def cells(
    rng: np.random.Generator, spacing: float, jitter: float, warp: tuple[Field, Field] | None = None
) -> Cells:
    """Seeds on staggered rows, displaced by up to half ``jitter`` spacings; ``warp`` (x, y) bends borders."""
    x, y = (COLUMNS, ROWS) if warp is None else (COLUMNS + warp[0], ROWS + warp[1])
    margin = 2 + int(np.ceil((max(-x.min(), -y.min(), x.max() - SIZE, y.max() - SIZE, 0)) / spacing))
    n = int(np.ceil(SIZE / spacing)) + 2 * margin
    lattice = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1) - margin + 0.5
    lattice[1::2, :, 0] += 0.5
    seeds = ((lattice + rng.uniform(-0.5, 0.5, lattice.shape) * jitter) * spacing).reshape(-1, 2)
    seed_x, seed_y = np.ascontiguousarray(seeds.T)
    # A row that is shifted by half a cell is looked up from half a cell further left.
    row = np.floor(y / spacing).astype(np.intp) + margin
    first = second = np.full((SIZE, SIZE), np.inf)
    nearest = runner_up = np.zeros((SIZE, SIZE), np.intp)
    for step in (-1, 0, 1):
        stagger = 0.5 * ((row + step) % 2)
        column = np.floor(x / spacing - stagger).astype(np.intp) + margin
        for shift in (-1, 0, 1):
            index = (row + step) * n + column + shift
            squared = np.square(x - seed_x.take(index)) + np.square(y - seed_y.take(index))
            closer, second_closer = squared < first, squared < second
            runner_up = np.where(closer, nearest, np.where(second_closer, index, runner_up))
            second = np.where(closer, first, np.where(second_closer, squared, second))
            nearest, first = np.where(closer, index, nearest), np.where(closer, squared, first)
    own_x, own_y = seed_x.take(nearest), seed_y.take(nearest)
    between = np.hypot(own_x - seed_x.take(runner_up), own_y - seed_y.take(runner_up))
    return Cells(x - own_x, y - own_y, (second - first) / (2 * between), nearest, seeds, spacing)


def scatter(rng: np.random.Generator, spacing: float, jitter: float = 0.9) -> Field:
    """Positions ``(n, 2)`` over the image, irregular but nowhere on top of each other."""
    n = int(SIZE / spacing) + 1
    lattice = np.stack(np.meshgrid(np.arange(n), np.arange(n)), axis=-1) + 0.5
    lattice[1::2, :, 0] += 0.5
    return np.asarray(((lattice + rng.uniform(-0.5, 0.5, lattice.shape) * jitter) * spacing).reshape(-1, 2))


def outline(rng: np.random.Generator, irregularity: float, waves: int = 6) -> Field:
    """Radius over 256 angles of a closed outline: mean 1, deviation about ``irregularity``."""
    order = np.arange(2, 2 + waves)
    amplitude = rng.standard_normal(waves) / order
    phase = rng.uniform(0, 2 * np.pi, waves)
    angles = np.arange(256)[:, None] * 2 * np.pi / 256
    wave = (amplitude * np.cos(order * angles + phase)).sum(axis=1)
    return np.asarray(np.clip(1 + irregularity * wave / max(wave.std(), 1e-9), 0.3, 2))


def radius_at(radii: Field, angles: ArrayLike) -> Field:
    """Radius of an outline at angles in radians."""
    place = np.asarray(angles, np.float64) % (2 * np.pi) * 256 / (2 * np.pi)
    return np.asarray(np.interp(place, np.arange(257), np.append(radii, radii[0])), np.float64)


def ellipses(centres: Field, radii: ArrayLike, angles: ArrayLike = 0.0, corners: int = 12) -> Field:
    """Polygons ``(n, corners, 2)`` of ellipses with radii ``(n, 2)``, the first along ``angles`` ``(n,)``."""
    turn = np.arange(corners) * 2 * np.pi / corners
    radii, angles = np.asarray(radii, np.float64), np.asarray(angles, np.float64)[..., None]
    long, short = radii[..., :1] * np.cos(turn), radii[..., 1:] * np.sin(turn)
    x = long * np.cos(angles) - short * np.sin(angles)
    y = long * np.sin(angles) + short * np.cos(angles)
    return np.asarray(np.asarray(centres)[:, None, :] + np.stack(np.broadcast_arrays(x, y), axis=-1))


def ribbon(path: Field, widths: ArrayLike) -> Field:
    """Polygon of a line along ``path`` ``(n, 2)`` whose width changes on the way."""
    along = np.gradient(path, axis=0)
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), 1e-9)
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.asarray(widths).reshape(-1, 1) / 2
    return np.concatenate([path + across, (path - across)[::-1]])


def paint(polygons: Iterable[Field], values: Sequence[float] | Field | None = None) -> Field:
    """Polygons with antialiased edges on a field of zeros, of value 1 or ``values``; later ones cover."""
    canvas = Image.new("L", (SIZE * _SUPERSAMPLING, SIZE * _SUPERSAMPLING))
    pen = ImageDraw.Draw(canvas)
    for number, polygon in enumerate(polygons):
        value = 1.0 if values is None else float(values[number])
        corners = ((polygon + 0.5) * _SUPERSAMPLING).ravel().tolist()
        pen.polygon(corners, fill=round(255 * min(max(value, 0.0), 1.0)))
    return np.asarray(canvas.reduce(_SUPERSAMPLING), np.float64) / 255


def mix(image: Field, colour: ArrayLike, share: ArrayLike) -> Field:
    """An image ``(SIZE, SIZE, 3)`` with a share (a number or a field) of a colour or a second image."""
    share = np.asarray(share, np.float64)
    share = share[..., None] if share.ndim == 2 else share
    return np.asarray(image + (np.asarray(colour) - image) * share, np.float64)


def absorb(light: Field, *pigments: tuple[Field, Sequence[float]]) -> Field:
    """Light ``(3,)`` or ``(SIZE, SIZE, 3)`` after layers of pigments, by Beer and Lambert.

    Args:
        light: What comes in.
        pigments: Amount ``(SIZE, SIZE)`` and optical density in red, green and blue of each.
    """
    density = sum(amount[..., None] * np.asarray(colour) for amount, colour in pigments)
    return np.asarray(light * np.exp(-density), np.float64)


def vignette(strength: float, centre: tuple[float, float] = (0.0, 0.0)) -> Field:
    """Brightness that falls from 1 in the centre (in -1 to 1) to ``1 - strength`` in the corners."""
    squared = np.square(X - centre[0]) + np.square(Y - centre[1])
    return np.asarray(1 - strength * np.clip(squared / 2, 0, 1), np.float64)


def photograph(
    rng: np.random.Generator, image: Field, *, defocus: float, grain: float, gain: ArrayLike, gamma: float
) -> NDArray[np.uint8]:
    """What a camera makes of a scene: blur, white balance, tone curve, grain, 8 bits.

    Args:
        rng: Of the grain.
        image: The scene ``(SIZE, SIZE, 3)``.
        defocus: Deviation of the blur in pixels.
        grain: Deviation of the noise.
        gain: Of each channel, or of all.
        gamma: Exponent of the tone curve.
    """
    seen = np.clip(blur(image, defocus) * np.asarray(gain), 0, 1) ** gamma
    seen += grain * (rng.standard_normal((SIZE, SIZE, 1)) + 0.5 * rng.standard_normal((SIZE, SIZE, 3)))
    return np.asarray(np.rint(np.clip(seen, 0, 1) * 255), np.uint8)
