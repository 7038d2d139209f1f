"""The healthy head on T1-weighted MRI after contrast: its sections in three planes, patient by patient.

Anatomies are drawn in units of half the head's height around its middle, x to the right and y down. A
``Section`` draws the signal of a ``Build`` in a ``Space``, where the brain gives way to a ``Mass``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import ndimage

from vmfcoop.data.phantoms.core import SIZE
from vmfcoop.data.phantoms.texture import Pose, curve, ellipse, inside, layer, push, ribbons
from vmfcoop.data.phantoms.tissue import COLUMNS, Field, bump, look_up, noise, paint, smoothstep, soft_minimum

# Signals on T1 after contrast.
CSF, ENHANCED = 0.15, 0.97
_AIR, _BONE, _MUSCLE, _GREY, _MARROW, _WHITE, _FAT = 0.03, 0.08, 0.36, 0.47, 0.5, 0.66, 0.92

_SKULL = 0.175
"""Depth of the brain below the skin of the calvarium."""

Point = tuple[float, float]
_Ellipse = tuple[Point, Point, float]
"""Centre, radii and turn."""
_Stroke = tuple[ArrayLike, ArrayLike]
"""Points ``(n, 2)`` of a smooth line, and widths along it."""
_Oval = tuple[Point, Point, float, float]
"""Centre, radii, turn and signal of an elliptic structure."""


@dataclass(frozen=True)
class Build:
    """What differs between patients in all of their slices.

    Attributes:
        fat: signal of fat; low after fat suppression.
        scalp: thickness of the fat under the scalp, about 1.
        ventricles, sulci: width of the fluid, from young to atrophic, about 1.
        level: where in the range of a section the slice lies, 0 to 1.
    """

    fat: float
    scalp: float
    ventricles: float
    sulci: float
    level: float

    @classmethod
    def of(cls, patient: np.random.Generator, image: np.random.Generator) -> Build:
        """Drawn from the streams of a patient and a slice; age widens ventricles and sulci together."""
        age = patient.random()
        return cls(
            fat=_FAT * patient.choice([1.0, 0.85, 0.65, 0.4]),
            scalp=patient.uniform(0.5, 1.8),
            ventricles=(0.65 + 1.1 * age * age) * patient.uniform(0.85, 1.2) * image.uniform(0.9, 1.1),
            sulci=(0.35 + 1.2 * age) * patient.uniform(0.85, 1.15),
            level=float(np.clip(patient.uniform(0, 1) + image.uniform(-0.08, 0.08), 0, 1)),
        )


@dataclass(frozen=True)
class Mass:
    """How the brain gives way to a tumour: away from it, and as a whole towards the other side.

    Attributes:
        centre, radius: of the tumour.
        effect: strength of the push away from the centre.
        shift: of the midline, to the right of the picture.
    """

    centre: Point
    radius: float
    effect: float
    shift: float

    def give(self, x: Field, y: Field, depth: Field) -> tuple[Field, Field]:
        """How far tissue at a place has come; the skull does not give way."""
        if self.effect == 0:
            return np.zeros_like(x), np.zeros_like(y)
        room = smoothstep(-0.02, 0.16, depth)
        from_x, from_y = push(x, y, self.centre, self.radius, self.effect)
        far = np.exp(-(np.square(x - self.centre[0]) + np.square(y - self.centre[1])) / 0.45)
        return (x - from_x + self.shift * far) * room, (y - from_y) * room


@dataclass(frozen=True)
class Section:
    """A plane and level.

    Attributes:
        plane: as reports say it.
        draw: (patient stream, space, build) -> signal.
        depth: (x, y) -> depth below the surface of the brain.
        sella: the pituitary gland; None where the level misses it.
    """

    plane: str
    draw: Callable[[np.random.Generator, Space, Build], Field]
    depth: Callable[[Field, Field], Field]
    sella: Point | None = None


@dataclass(frozen=True)
class Space:
    """The head in the image.

    Attributes:
        pose: its place.
        x, y: coordinates of every pixel, pushed aside where there is a mass.
        at_rest: coordinates and depth of every pixel were there none.
        mass: what pushes.
        section: what is cut.
    """

    pose: Pose
    x: Field
    y: Field
    at_rest: tuple[Field, Field, Field]
    mass: Mass
    section: Section

    @classmethod
    def around(cls, pose: Pose, mass: Mass, section: Section) -> Space:
        x, y = pose.grid()
        at_rest = x, y, section.depth(x, y)
        across, down = mass.give(*at_rest)
        return cls(pose, x - across, y - down, at_rest, mass, section)

    @property
    def symmetric(self) -> bool:
        """Whether the two sides of the picture mirror each other."""
        return self.section.plane != "sagittal"

    def paint(self, strokes: Sequence[_Stroke], widening: float = 1.0) -> Field:
        """Smooth lines, and where the slice is symmetric also their mirror images."""
        polygons: list[Field] = []
        for points, widths in strokes:
            knots = np.asarray(points, np.float64)
            sides = np.stack([knots, knots * [-1, 1]]) if self.symmetric else knots[None]
            paths = curve(sides, 24)
            x, y = paths[..., 0], paths[..., 1]
            moved = paths + np.stack(self.mass.give(x, y, self.section.depth(x, y)), axis=-1)
            given = np.asarray(widths, np.float64) * widening * self.pose.scale
            width = np.interp(np.linspace(0, 1, 24), np.linspace(0, 1, len(given)), given)
            polygons.extend(ribbons(self.pose.to_pixels(moved), width))
        return paint(polygons)


def _ovals(space: Space, image: Field, ovals: Sequence[_Oval], softness: float = 0.015) -> Field:
    """Elliptic structures, of both sides where the slice is symmetric, each on top of those before it."""
    image, slack = image.copy(), 0.24 if space.mass.effect else 0.04
    for centre, radii, turn, value in ovals:
        for side in (1, -1) if space.symmetric and centre[0] else (1,):
            # Only pixels that it may reach: most structures are small.
            column, row = space.pose.to_pixels((side * centre[0], centre[1]))
            reach = 1.1 * space.pose.scale * (max(radii) + softness + slack)
            box = tuple(slice(max(0, int(at - reach)), max(0, int(at + reach) + 2)) for at in (row, column))
            share = inside(ellipse(side * space.x[box], space.y[box], centre, radii, turn), softness)
            image[box] = layer(image[box], value, share)
    return image


def _between(low: Sequence[_Stroke], high: Sequence[_Stroke], share: float) -> list[_Stroke]:
    """Lines on the way from those of one level to those of another."""

    def mixed(a: ArrayLike, b: ArrayLike) -> Field:
        return np.asarray((1 - share) * np.asarray(a) + share * np.asarray(b), np.float64)

    pairs = zip(low, high, strict=True)
    return [(mixed(points, others), mixed(widths, wide)) for (points, widths), (others, wide) in pairs]


def _folded(
    patient: np.random.Generator, x: Field, y: Field, depth: Field, sulci: float, reach: float | Field = 0.2
) -> Field:
    """Cerebral tissue at a depth below the surface: sulci run inwards between ribbons of grey matter."""
    angle = np.arctan2(x, -y) + 0.13 * noise(patient, 9)
    around = (angle + np.pi) / (2 * np.pi) * SIZE
    waves = look_up(noise(patient, 3, 58), around, depth / 0.55 * SIZE)
    depths = reach * (1 + 0.3 * np.interp(around, COLUMNS[0], noise(patient, 1, 24)[SIZE // 2]))
    here = smoothstep(depths, 0.45 * depths, depth)
    islands = noise(patient, 15) + 0.6 * noise(patient, 24)
    ribbon_share = np.maximum(bump(waves, 0.8) * here, smoothstep(0.075, 0.035, depth))
    inner = 0.6 * bump(islands, 0.5) * smoothstep(0.36, 0.2, depth)
    tissue = layer(np.full_like(x, _WHITE), _GREY, np.maximum(ribbon_share, inner))
    tissue += 0.012 * noise(patient, 5) + 0.014 * islands
    fluid = bump(waves, 0.08 + 0.25 * sulci) * here * smoothstep(-0.02, 0.02, depth)
    # Atrophy parts the brain from the skull as well.
    rim = smoothstep(0.035 * (sulci - 0.7), 0.0, depth) if sulci > 0.75 else 0.0
    return layer(tissue, CSF + 0.05, np.maximum(0.85 * fluid, 0.8 * rim))


def _beside(x: Field, middle: float) -> Field:
    """Offset from the middle of the hemisphere or lobe of a side; not mirrored, so that sides differ."""
    return np.asarray(x - np.where(x < 0, -middle, middle), np.float64)


def _foliated(patient: np.random.Generator, distance: Field, course: Field | None = None) -> Field:
    """Cerebellum: thin folia that follow its outline or a ``course``, and a branching white core."""
    course = 110 * distance if course is None else course
    folia = np.sin(course + 3 * noise(patient, 7) + 2.2 * noise(patient, 18))
    lobules = bump(noise(patient, 7, 12), 0.25) * smoothstep(-0.2, -0.05, distance)
    core = inside(distance + 0.12 + 0.035 * noise(patient, 12), 0.04)
    cortex = layer(_GREY + 0.08 * folia, CSF, 0.5 * lobules)
    return layer(cortex, _WHITE - 0.02, 0.75 * core)


def _fan(x: Field, y: Field, centre: Point, folia: float) -> Field:
    """Course of folia that spread from the fourth ventricle, as in sagittal slices."""
    return np.asarray(folia * np.arctan2(y - centre[1], x - centre[0]), np.float64)


def _scalp(x: Field, y: Field, cerebrum: _Ellipse) -> Field:
    """Distance from the skin over a cerebrum, negative inside."""
    centre, (across, down), turn = cerebrum
    return ellipse(x, y, centre, (across + _SKULL, down + _SKULL), turn)


def _calvarium(patient: np.random.Generator, distance: Field, build: Build) -> Field:
    """Skin, fat, two tables of bone with marrow between them, and dura, by distance from the skin."""
    depth = -distance + 0.006 * noise(patient, 5)
    skin = 0.05 * (1 - build.scalp)
    cutis = 0.55 * build.fat + 0.2
    at = [skin - 0.01, skin + 0.006, skin + 0.012, skin + 0.024, 0.066, 0.08, 0.142, 0.15, 0.158, 0.168]
    signal = [0, cutis, cutis, build.fat, build.fat, _BONE, _BONE, 0.34, 0.34, CSF]
    marrow = 0.5 * _MARROW * patient.uniform(0.4, 1.2) * (1 + 0.25 * noise(patient, 20))
    diploe = np.interp(depth, [0.088, 0.102, 0.113, 0.127], [0, 1, 1, 0])
    return layer(np.interp(depth, at, signal), np.maximum(marrow, _BONE), diploe)


def _fissure(patient: np.random.Generator, brain: Field, x: Field, where: Field, sulci: float) -> Field:
    """The brain parted along x = 0, with the falx in the gap."""
    off = np.abs(x + 0.008 * noise(patient, 5))
    brain = layer(brain, _GREY, bump(off, 0.055) * where)
    brain = layer(brain, CSF, bump(off, 0.01 + 0.013 * sulci) * where)
    return layer(brain, 0.62, 0.8 * bump(off, 0.009) * where)


def _axial_depth(x: Field, y: Field) -> Field:
    return -_SKULL - ellipse(x * (1 - 0.1 * y), y, (0, 0), (0.8, 1.0))


# Lateral ventricles: at the level of the thalami, and of their bodies above them.
_HORNS: list[_Stroke] = [
    ([(0.17, -0.4), (0.09, -0.29), (0.05, -0.16), (0.055, -0.08)], [0.03, 0.1, 0.06, 0.03]),
    ([(0.06, -0.1), (0.1, 0.1), (0.22, 0.3), (0.27, 0.42), (0.2, 0.56)], [0.01, 0.03, 0.11, 0.1, 0.02]),
]
_BODIES: list[_Stroke] = [
    ([(0.17, -0.34), (0.11, -0.24), (0.075, -0.08), (0.085, 0.06)], [0.02, 0.1, 0.1, 0.08]),
    ([(0.085, 0.0), (0.11, 0.12), (0.17, 0.24), (0.2, 0.31), (0.19, 0.38)], [0.08, 0.09, 0.1, 0.07, 0.02]),
]
_THIRD: list[_Stroke] = [([(0, -0.06), (0, 0.06), (0, 0.16)], [0.01, 0.035, 0.02])]
_INSULA = [(0.66, -0.26), (0.5, -0.16), (0.43, -0.02), (0.46, 0.12)]
_CAUDATE: _Oval = ((0.15, -0.24), (0.05, 0.11), -0.3, _GREY + 0.03)
_THALAMI: list[_Oval] = [
    ((0.12, 0.07), (0.08, 0.13), -0.4, _GREY + 0.03),
    ((0.28, -0.06), (0.07, 0.16), -0.25, _GREY + 0.03),
]


def _ventricular_axial(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through the lateral ventricles, between the deep nuclei and the bodies above them."""
    x, y, low = space.x, space.y, 1 - build.level
    depth = _axial_depth(x, y)
    head = _calvarium(patient, -_SKULL - depth, build)
    brain = _folded(patient, x, y, depth, build.sulci)
    wide = low * np.array([0.16, 0.14, 0.12, 0.04])
    brain = layer(brain, _GREY, space.paint([(_INSULA, wide)]))
    brain = layer(brain, CSF, 0.9 * space.paint([(_INSULA, 0.3 * wide)], 0.4 + 0.6 * build.sulci))
    # The thalami fade into the white matter above them.
    thalami = [(*oval[:3], low * oval[3] + build.level * _WHITE) for oval in _THALAMI]
    brain = _ovals(space, brain, [*thalami, _CAUDATE])
    water = space.paint(_between(_HORNS, _BODIES, build.level), build.ventricles)
    brain = layer(brain, CSF, np.maximum(water, low * space.paint(_THIRD, build.ventricles)))
    plexus = space.paint([([(0.18, 0.27), (0.22, 0.34), (0.24, 0.41)], [0.01, 0.05, 0.02])])
    brain = layer(brain, 0.8, 0.7 * low * plexus)
    callosum = inside(ellipse(x, y, (0, 0.02), (0.03, 0.3)), 0.02) * build.level
    brain = layer(brain, _WHITE, callosum)
    open_from = 0.34 + 0.06 * build.level
    gap = smoothstep(open_from, open_from + 0.08, np.abs(y + 0.02))
    brain = _fissure(patient, brain, x, gap, build.sulci)
    return _with_sinus(space, layer(head, brain, inside(-depth, 0.012)), 0.83, 1)


VENTRICULAR_AXIAL = Section("axial", _ventricular_axial, _axial_depth)


def _with_sinus(space: Space, head: Field, y: float, way: int) -> Field:
    """The superior sagittal sinus in cross-section, its base towards the skull."""
    sinus = space.paint([([(0, y - 0.04 * way), (0, y), (0, y + 0.03 * way)], [0.02, 0.06, 0.09])])
    return layer(head, ENHANCED, 0.9 * sinus)


def _supraventricular_depth(x: Field, y: Field) -> Field:
    return -_SKULL - ellipse(x * (1 - 0.06 * y), y, (0, 0.02), (0.75, 0.93))


def _supraventricular_axial(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice above the ventricles: the white matter of the centrum semiovale, or sulci only further up."""
    x, y = space.x, space.y
    depth = _supraventricular_depth(x, y)
    head = _calvarium(patient, -_SKULL - depth, build)
    # The medial surface of a hemisphere is folded as well.
    own_depth = soft_minimum(depth, 0.9 * np.abs(x) + 0.02, 0.04)
    brain = _folded(patient, _beside(x, 0.3), y, own_depth, build.sulci, 0.12 + 0.06 * build.level)
    central = [([(0.6, -0.12), (0.45, -0.02), (0.32, 0.02), (0.2, 0.12)], [0.14, 0.12, 0.11, 0.02])]
    brain = layer(brain, _GREY, 0.8 * space.paint(central))
    brain = layer(brain, CSF + 0.05, 0.8 * space.paint(central, 0.12 + 0.12 * build.sulci))
    brain = _fissure(patient, brain, x, np.ones_like(x), build.sulci)
    head = layer(head, brain, inside(-depth, 0.012))
    head = _with_sinus(space, head, 0.78, 1)
    return _with_sinus(space, head, -0.74, -1)


SUPRAVENTRICULAR_AXIAL = Section("axial", _supraventricular_axial, _supraventricular_depth)


_CISTERNS: list[_Stroke] = [
    ([(0, -0.38), (0, -0.24), (0, -0.14), (0, -0.03)], [0.02, 0.05, 0.22, 0.08]),
    ([(0.04, -0.17), (0.2, -0.2), (0.4, -0.16), (0.6, -0.26)], [0.09, 0.045, 0.04, 0.06]),
    ([(0.07, -0.08), (0.19, 0.04), (0.16, 0.16), (0.0, 0.21)], [0.03, 0.02, 0.025, 0.06]),
]
_MIDBRAIN: list[_Oval] = [
    ((0, 0.08), (0.13, 0.09), 0.0, _WHITE - 0.06),
    ((0.095, 0.0), (0.055, 0.1), -0.6, _WHITE - 0.03),
    ((0.05, 0.035), (0.03, 0.03), 0.0, _GREY + 0.06),
    ((0, 0.125), (0.014, 0.014), 0.0, CSF + 0.06),
]
_WILLIS: list[_Stroke] = [
    ([(0.07, -0.16), (0.2, -0.2), (0.34, -0.18), (0.46, -0.2)], [0.035, 0.03, 0.025, 0.015]),
    ([(0.01, -0.1), (0.08, -0.11), (0.16, -0.06), (0.19, 0.02)], [0.02, 0.02, 0.015, 0.004]),
]
_TEMPORAL_HORNS: list[_Stroke] = [([(0.34, -0.06), (0.37, 0.06), (0.34, 0.2)], [0.01, 0.025, 0.02])]
_TENTORIUM: list[_Stroke] = [
    ([(0.03, 0.24), (0.16, 0.34), (0.27, 0.5), (0.32, 0.66)], [0.02, 0.022, 0.02, 0.02])
]


def _midbrain_axial(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through the suprasellar cistern, the midbrain, the temporal lobes and the upper vermis."""
    x, y = space.x, space.y
    depth = _axial_depth(x, y)
    head = _calvarium(patient, -_SKULL - depth, build)
    brain = _folded(patient, x, y + 0.05, depth, build.sulci, 0.17)
    sylvian = [([(0.68, -0.3), (0.5, -0.2), (0.36, -0.16)], [0.16, 0.13, 0.08])]
    brain = layer(brain, _GREY, space.paint(sylvian))
    brain = layer(brain, _GREY, 0.7 * inside(ellipse(np.abs(x), y, (0.27, 0.02), (0.09, 0.13), -0.3), 0.06))
    brain = _fissure(patient, brain, x, smoothstep(0.3, 0.4, np.abs(y)), build.sulci)
    vermis = ellipse(x, y, (0, 0.4 + 0.05 * build.level), (0.15 + 0.1 * (1 - build.level), 0.18))
    brain = layer(brain, CSF, 0.4 * inside(vermis - 0.012, 0.02))
    brain = layer(brain, _foliated(patient, vermis, 70 * y + 60 * np.square(x)), 0.65 * inside(vermis, 0.03))
    brain = layer(brain, 0.8, 0.7 * space.paint(_TENTORIUM))
    brain = layer(brain, CSF, space.paint(_CISTERNS, 0.75 + 0.25 * build.sulci))
    brain = layer(brain, CSF, space.paint(_TEMPORAL_HORNS, build.ventricles))
    brain = _ovals(space, brain, _MIDBRAIN, 0.02)
    brain = layer(brain, _GREY, 0.8 * inside(ellipse(x, y, (0, -0.19), (0.07, 0.022)), 0.015))
    brain = layer(brain, ENHANCED, 0.75 * space.paint(_WILLIS))
    return _with_sinus(space, layer(head, brain, inside(-depth, 0.012)), 0.83, 1)


MIDBRAIN_AXIAL = Section("axial", _midbrain_axial, _axial_depth)


_TEMPORAL_LOBE: _Ellipse = ((0.38, -0.1), (0.27, 0.37), -0.12)
_CEREBELLUM: _Ellipse = ((0, 0.44), (0.53, 0.37), 0.0)
_PONS: _Ellipse = ((0, 0.13), (0.16, 0.15), 0.0)
_PONTINE_SELLA = (0.0, -0.22)
_SINUSES: list[_Stroke] = [([(0.5, 0.32), (0.56, 0.5), (0.42, 0.76)], [0.03, 0.06, 0.05])]
_PONTINE_HORNS: list[_Stroke] = [([(0.32, -0.16), (0.34, -0.05), (0.33, 0.06)], [0.01, 0.03, 0.02])]


def _pontine_depth(x: Field, y: Field) -> Field:
    supratentorial = ellipse(np.abs(x), y, *_TEMPORAL_LOBE)
    return -np.minimum(np.minimum(supratentorial, ellipse(x, y, *_CEREBELLUM)), ellipse(x, y, *_PONS))


def _pontine_axial(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through orbits, sella, temporal lobes, pons and cerebellum."""
    x, y = space.x, space.y
    distance = ellipse(x * (1 + 0.1 * y), y, (0, 0), (0.78, 1.0))
    head = _calvarium(patient, distance, build)
    base = _BONE + 0.1 + 0.09 * noise(patient, 14, octaves=2)
    head = layer(head, base, inside(distance + 0.15, 0.02))
    head = _ovals(space, head, [((0.63, -0.38), (0.07, 0.22), 0.25, _MUSCLE)], 0.02)
    head = _orbits(patient, space, head, build)
    head = layer(head, CSF, inside(ellipse(x, y, (0, -0.08), (0.21, 0.17)), 0.03))
    temporal = ellipse(np.abs(x), y, *_TEMPORAL_LOBE)
    lobes = _folded(patient, _beside(x, 0.38), y + 0.1, -temporal, build.sulci)
    head = layer(head, lobes, inside(temporal, 0.015))
    head = layer(head, CSF, space.paint(_PONTINE_HORNS, build.ventricles))
    cerebellum = ellipse(x, y, *_CEREBELLUM)
    head = layer(head, CSF, inside(cerebellum - 0.025, 0.015))
    head = layer(head, _foliated(patient, cerebellum), inside(cerebellum, 0.012))
    peduncles = ellipse(np.abs(x), y, (0.2, 0.24), (0.14, 0.07), 0.5)
    stem = np.minimum(ellipse(x, y, *_PONS), peduncles)
    head = layer(head, _WHITE - 0.05 + 0.015 * noise(patient, 12), inside(stem, 0.02))
    fourth = inside(ellipse(x, y, (0, 0.3), (0.09 * build.ventricles, 0.04)), 0.02)
    head = layer(layer(head, CSF, fourth), 0.88, 0.8 * space.paint(_SINUSES))
    return _with_sellar_region(space, head, _PONTINE_SELLA, behind=True)


PONTINE_AXIAL = Section("axial", _pontine_axial, _pontine_depth, _PONTINE_SELLA)


def _orbits(patient: np.random.Generator, space: Space, head: Field, build: Build) -> Field:
    """Eyes in their fat with muscles, and the air cells of the ethmoid between them."""
    # A higher slice passes above the lenses.
    lens = 0.5 if build.level < 0.5 else 0.2
    parts: list[_Oval] = [
        ((0.27, -0.56), (0.17, 0.27), 0.3, 0.35 + 0.5 * build.fat),
        ((0.15, -0.52), (0.025, 0.16), 0.3, 0.5),
        ((0.38, -0.52), (0.025, 0.16), 0.3, 0.5),
        ((0.24, -0.48), (0.025, 0.17), 0.3, 0.5),
        ((0.3, -0.7), (0.145, 0.145), 0.0, 0.6),
        ((0.3, -0.7), (0.12, 0.12), 0.0, 0.2),
        ((0.3, -0.79), (0.06, 0.025), 0.0, lens),
    ]
    head = _ovals(space, head, parts)
    cells = noise(patient, 16)
    ethmoid = inside(ellipse(space.x, space.y, (0, -0.6), (0.1, 0.27)), 0.02)
    return layer(head, np.where(np.abs(cells) < 0.4, 0.55, _AIR), ethmoid)


def _with_sellar_region(space: Space, head: Field, sella: Point, behind: bool) -> Field:
    """The normal gland, the carotid arteries at its sides, and the basilar artery where it is cut."""
    vessels: list[_Oval] = [((0.145, sella[1] + 0.015), (0.03, 0.035), 0.0, 0.9)]
    if behind:
        vessels.append(((0, sella[1] + 0.18), (0.022, 0.022), 0.0, ENHANCED))
    return _ovals(space, head, [(sella, (0.075, 0.035), 0.0, 0.7), *vessels])


_CORONAL_CEREBRUM: _Ellipse = ((0, -0.2), (0.66, 0.63), 0.0)


def _sellar_depth(x: Field, y: Field) -> Field:
    above_base = 0.06 - y + 0.9 * np.square(x)
    temporal = -ellipse(np.abs(x), y, (0.4, 0.1), (0.25, 0.21), 0.25)
    return np.maximum(soft_minimum(-ellipse(x, y, *_CORONAL_CEREBRUM), above_base, 0.03), temporal)


_CORONAL_SELLA = (0.0, 0.19)
_SYLVIAN = [(0.64, 0.0), (0.5, -0.06), (0.4, -0.1), (0.4, -0.24)]
_CALLOSUM: list[_Stroke] = [([(-0.2, -0.4), (0, -0.36), (0.2, -0.4)], [0.03, 0.07, 0.03])]
_CORONAL_NUCLEI: list[_Oval] = [
    ((0.28, -0.12), (0.07, 0.11), 0.3, _GREY + 0.03),
    ((0.12, -0.14), (0.08, 0.08), 0.0, _GREY + 0.03),
]
_CORONAL_WATER: list[_Stroke] = [
    ([(0.025, -0.27), (0.1, -0.28), (0.22, -0.34)], [0.05, 0.09, 0.03]),
    ([(0, -0.2), (0, -0.1), (0, 0.02)], [0.02, 0.035, 0.03]),
]
_INFERIOR_HORNS: list[_Stroke] = [([(0.26, 0.12), (0.31, 0.09), (0.36, 0.13)], [0.01, 0.035, 0.01])]


def _sellar_coronal(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through sella, third ventricle and temporal lobes, with the pharynx below."""
    x, y = space.x, space.y
    head = _coronal_head(patient, space, build, (0.6, 0.85))
    head = _ovals(space, head, _PTERYGOID, 0.025)
    depth = _sellar_depth(x, y)
    brain = _folded(patient, x, y + 0.1, depth, build.sulci, 0.2 - 0.1 * smoothstep(-0.05, 0.1, y))
    brain = _with_sylvian(space, brain, build)
    brain = layer(brain, _WHITE + 0.06, space.paint(_CALLOSUM))
    brain = _ovals(space, brain, _CORONAL_NUCLEI)
    brain = layer(brain, CSF, space.paint(_CORONAL_WATER, build.ventricles))
    brain = layer(brain, CSF, build.level * space.paint(_INFERIOR_HORNS, build.ventricles))
    brain = _fissure(patient, brain, x, smoothstep(-0.36, -0.44, y), build.sulci)
    head = layer(head, CSF, inside(ellipse(x, y, (0, 0.1), (0.2, 0.1)), 0.03))
    head = layer(head, brain, inside(-depth, 0.012))
    return _with_sellar_region(space, _with_sinus(space, head, -0.8, -1), _CORONAL_SELLA, behind=False)


SELLAR_CORONAL = Section("coronal", _sellar_coronal, _sellar_depth, _CORONAL_SELLA)


def _with_sylvian(space: Space, brain: Field, build: Build) -> Field:
    """Sylvian fissures and insulae of a coronal slice."""
    brain = layer(brain, _GREY, space.paint([(_SYLVIAN, [0.16, 0.15, 0.13, 0.06])]))
    gap = space.paint([(_SYLVIAN, [0.05, 0.04, 0.03, 0.02])], 0.4 + 0.7 * build.sulci)
    return layer(brain, CSF, 0.9 * gap)


def _coronal_head(patient: np.random.Generator, space: Space, build: Build, jaw: Point) -> Field:
    """Calvarium, and soft tissue of the face or neck below it, of half axes ``jaw``."""
    x, y = space.x, space.y
    vault = _scalp(x, y, _CORONAL_CEREBRUM)
    distance = soft_minimum(vault, ellipse(x, y, (0, 0.55), jaw), 0.05)
    return _face(patient, _calvarium(patient, vault, build), distance, smoothstep(0.1, 0.28, y), build.fat)


def _face(patient: np.random.Generator, head: Field, distance: Field, where: Field, fat: float) -> Field:
    """Soft tissue of the face and neck below the calvarium: fat under the skin, then muscle."""
    strands = noise(patient, 11, octaves=2)
    tissue = layer(_MUSCLE + 0.07 * strands, 0.85 * fat, 0.8 * smoothstep(0.2, 1.0, strands))
    tissue = layer(tissue, fat, smoothstep(-0.09, -0.06, distance + 0.015 * strands))
    return layer(head, tissue, where) * inside(distance, 0.012)


# Skull base, sphenoid sinus with its septum, muscles of the jaw between fat, and the airway.
_PTERYGOID: list[_Oval] = [
    ((0.3, 0.34), (0.26, 0.045), 0.2, _BONE + 0.14),
    ((0, 0.33), (0.21, 0.13), 0.0, _BONE + 0.12),
    ((0.07, 0.35), (0.085, 0.065), 0.25, _AIR),
    ((0, 0.33), (0.009, 0.08), 0.0, 0.36),
    ((0.27, 0.56), (0.1, 0.15), 0.3, _MUSCLE),
    ((0.56, 0.4), (0.05, 0.19), 0.12, _MUSCLE + 0.02),
    ((0.46, 0.68), (0.03, 0.18), 0.12, _BONE + 0.12),
    ((0.53, 0.74), (0.05, 0.17), 0.1, _MUSCLE - 0.03),
    ((0, 0.52), (0.1, 0.035), 0.0, 0.5),
    ((0, 0.58), (0.07, 0.03), 0.0, _AIR + 0.06),
    ((0, 0.72), (0.18, 0.1), 0.0, _MUSCLE + 0.08),
]


def _frontal_depth(x: Field, y: Field) -> Field:
    cerebrum = -ellipse(x, y, (0, -0.2), (0.62, 0.63))
    above_base = 0.03 - y + 0.35 * np.square(x) - 0.05 * bump(np.abs(x) - 0.24, 0.16)
    return np.maximum(soft_minimum(cerebrum, above_base, 0.05), _temporal_poles(x, y))


def _temporal_poles(x: Field, y: Field) -> Field:
    """Depth in the poles of the temporal lobes."""
    return -ellipse(np.abs(x), y, (0.43, 0.12), (0.19, 0.15), 0.2)


_FRONTAL_HORNS: list[_Stroke] = [
    ([(0.03, -0.17), (0.06, -0.24), (0.12, -0.29), (0.22, -0.33)], [0.03, 0.07, 0.07, 0.02])
]
_STRIATUM: list[_Oval] = [
    ((0.17, -0.21), (0.06, 0.09), 0.5, _GREY + 0.03),
    ((0.3, -0.12), (0.06, 0.11), 0.25, _GREY + 0.03),
    ((0.17, -0.08), (0.1, 0.035), 0.2, _GREY + 0.03),
]
# Orbits with muscles and nerve, ethmoid cells, nose with turbinates, and maxillary sinuses.
_ORBITAL: list[_Oval] = [
    ((0.28, 0.28), (0.17, 0.15), 0.0, 0.8),
    ((0.28, 0.16), (0.07, 0.025), 0.0, _MUSCLE + 0.1),
    ((0.28, 0.4), (0.07, 0.025), 0.0, _MUSCLE + 0.1),
    ((0.15, 0.28), (0.025, 0.07), 0.0, _MUSCLE + 0.1),
    ((0.41, 0.28), (0.025, 0.07), 0.0, _MUSCLE + 0.1),
    ((0.27, 0.28), (0.035, 0.035), 0.0, _MUSCLE + 0.14),
    ((0, 0.27), (0.1, 0.17), 0.0, _AIR + 0.03),
    ((0.05, 0.27), (0.008, 0.15), 0.0, 0.42),
    ((0, 0.58), (0.13, 0.18), 0.0, _AIR + 0.02),
    ((0, 0.55), (0.014, 0.2), 0.0, 0.5),
    ((0.085, 0.6), (0.035, 0.075), 0.2, 0.7),
    ((0.085, 0.45), (0.025, 0.045), 0.2, 0.66),
    ((0.3, 0.61), (0.11, 0.17), 0.45, _AIR + 0.02),
    ((0.58, 0.42), (0.05, 0.17), 0.12, _MUSCLE + 0.02),
]


def _frontal_coronal(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through the frontal horns, the poles of the temporal lobes and the orbits."""
    x, y = space.x, space.y
    head = _coronal_head(patient, space, build, (0.58, 0.8))
    bone = inside(np.abs(y - 0.14 - 0.2 * np.square(x)) - 0.09, 0.03) * inside(np.abs(x) - 0.55, 0.05)
    head = layer(head, _BONE + 0.04, bone)
    orbit = [(c, r, t, v * (0.45 + 0.6 * build.fat) if v == 0.8 else v) for c, r, t, v in _ORBITAL]
    head = _ovals(space, head, orbit, 0.02)
    depth = _frontal_depth(x, y)
    brain = _folded(patient, x, y + 0.18, depth, build.sulci, 0.23 - 0.13 * smoothstep(-0.08, 0.05, y))
    apart = smoothstep(0.05, 0.0, np.abs(_temporal_poles(x, y) + 0.01)) * smoothstep(-0.1, 0.02, y)
    brain = layer(brain, CSF, 0.5 * (apart * inside(np.abs(x) - 0.6, 0.03)))
    if build.level < 0.6:
        brain = _ovals(space, brain, _STRIATUM, 0.02)
        brain = layer(brain, _WHITE + 0.06, space.paint(_CALLOSUM))
        brain = layer(brain, CSF, space.paint(_FRONTAL_HORNS, build.ventricles))
        gap = np.maximum(smoothstep(-0.36, -0.44, y), smoothstep(-0.12, -0.05, y))
    else:
        gap = np.ones_like(x)
    brain = _fissure(patient, brain, x, gap, build.sulci)
    return _with_sinus(space, layer(head, brain, inside(-depth, 0.012)), -0.8, -1)


FRONTAL_CORONAL = Section("coronal", _frontal_coronal, _frontal_depth)


def _tent(x: Field) -> Field:
    """Height of the tentorium in a coronal slice behind the brain stem."""
    return np.asarray(0.04 + 0.3 * np.sqrt(np.square(x) + 0.002), np.float64)


def _supratentorial(x: Field, y: Field) -> Field:
    """Depth in the cerebrum above the tentorium."""
    return soft_minimum(-ellipse(x, y, *_CORONAL_CEREBRUM), _tent(x) - y, 0.02)


def _hindlobes(x: Field, y: Field) -> Field:
    """Distance from the cerebellum below the tentorium, negative inside."""
    return np.maximum(ellipse(x, y, (0, 0.26), (0.5, 0.25)), _tent(x) + 0.03 - y)


def _atrial_depth(x: Field, y: Field) -> Field:
    return np.maximum(_supratentorial(x, y), -_hindlobes(x, y))


_ATRIA: list[_Stroke] = [([(0.15, -0.22), (0.23, -0.12), (0.28, 0.0), (0.3, 0.06)], [0.02, 0.1, 0.11, 0.03])]
_ATRIAL_PLEXUS: list[_Stroke] = [([(0.21, -0.1), (0.25, -0.03), (0.26, 0.03)], [0.02, 0.05, 0.02])]
_NUCHAL: list[_Oval] = [
    ((0, 0.5), (0.52, 0.06), 0.0, _BONE + 0.1),
    ((0, 0.56), (0.09, 0.14), 0.0, CSF),
    ((0, 0.62), (0.05, 0.2), 0.0, _WHITE - 0.06),
    ((0.2, 0.66), (0.1, 0.11), 0.0, _MUSCLE),
    ((0.37, 0.6), (0.07, 0.14), 0.2, _MUSCLE + 0.02),
]


def _atrial_coronal(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through the atria of the ventricles, the tentorium and the cerebellum."""
    x, y = space.x, space.y
    head = _coronal_head(patient, space, build, (0.48, 0.75))
    head = layer(head, _BONE + 0.03, inside(ellipse(x, y, (0, 0.22), (0.64, 0.36)), 0.03))
    # Further back the neck's muscles take the place of the cord.
    head = _ovals(space, head, _NUCHAL if build.level < 0.5 else [_NUCHAL[0], *_NUCHAL[3:]], 0.03)
    head = layer(head, CSF, inside(np.maximum(ellipse(x, y, (0, 0.24), (0.55, 0.3)), _tent(x) - y), 0.02))
    brain = _folded(patient, x, y + 0.12, soft_minimum(_atrial_depth(x, y), _tent(x) - y, 0.01), build.sulci)
    splenium = space.paint([([(-0.24, -0.2), (0, -0.13), (0.24, -0.2)], [0.03, 0.08, 0.03])])
    brain = layer(brain, _WHITE + 0.06, (1 - build.level) * splenium)
    wide = build.ventricles * (1 - 0.5 * build.level)
    brain = layer(brain, CSF, space.paint(_ATRIA, wide))
    brain = layer(brain, 0.82, 0.7 * space.paint(_ATRIAL_PLEXUS, wide))
    low = 0.2 * build.level
    brain = _fissure(patient, brain, x, smoothstep(-0.16 + low, -0.24 + low, y), build.sulci)
    head = layer(head, brain, inside(-_supratentorial(x, y), 0.012))
    lobes = _hindlobes(x, y)
    head = layer(head, _foliated(patient, lobes), inside(lobes, 0.015))
    head = _ovals(space, head, [((0, 0.24), (0.05 * build.ventricles, 0.03), 0.0, CSF)], 0.02)
    head = layer(head, 0.85, 0.75 * bump(_tent(x) + 0.012 - y, 0.014) * inside(np.abs(x) - 0.56, 0.02))
    head = _ovals(space, head, [((0.56, 0.2), (0.06, 0.035), 0.4, 0.92)])
    return _with_sinus(space, head, -0.8, -1)


ATRIAL_CORONAL = Section("coronal", _atrial_coronal, _atrial_depth)


_MIDSAGITTAL_CEREBRUM: _Ellipse = ((0.03, -0.26), (0.74, 0.54), 0.0)


def _midsagittal_depth(x: Field, y: Field) -> Field:
    cerebrum = -ellipse(x, y, *_MIDSAGITTAL_CEREBRUM)
    floor = 0.06 - y + 0.05 * x + 0.1 * smoothstep(0.1, 0.3, x) - 0.05 * smoothstep(0.0, -0.4, x)
    return soft_minimum(cerebrum, floor, 0.05)


_ARCH: list[_Stroke] = [
    (
        [(-0.22, -0.1), (-0.31, -0.2), (-0.2, -0.34), (0.02, -0.37), (0.22, -0.32), (0.3, -0.2)],
        [0.02, 0.07, 0.055, 0.05, 0.055, 0.08],
    )
]
_ARCH_BODY: list[_Stroke] = [
    ([(-0.24, -0.16), (-0.14, -0.27), (0.05, -0.29), (0.22, -0.22)], [0.05, 0.1, 0.09, 0.05])
]
_SAGITTAL_SELLA = (-0.12, 0.1)
_STALK: list[_Stroke] = [([(-0.09, 0.0), (-0.1, 0.06), (-0.11, 0.1)], [0.02, 0.015, 0.02])]


def _midsagittal(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice near the midline with the face to the left."""
    x, y = space.x, space.y
    vault = _scalp(x, y, _MIDSAGITTAL_CEREBRUM)
    head = _calvarium(patient, vault, build)
    head = _profile(patient, space, head, vault, build.fat, patient.uniform(0.9, 1.0))
    head = _with_airways(space, _ovals(space, head, _MEDIAL_FACE, 0.03))
    depth = _midsagittal_depth(x, y)
    brain = _folded(patient, x, y + 0.15, depth, build.sulci, 0.2 + 0.06 * build.level)
    brain = layer(brain, CSF, 0.9 * space.paint(_ARCH_BODY, build.ventricles))
    brain = layer(brain, _GREY - 0.02, 0.7 * space.paint(_ARCH, 2.1))
    brain = layer(brain, _WHITE + 0.1, space.paint(_ARCH, 1.15 - 0.2 * build.ventricles))
    brain = _ovals(space, brain, [((0.07, -0.14), (0.15, 0.085), 0.0, _GREY + 0.04)], 0.02)
    head = layer(head, brain, inside(-depth, 0.012))
    head = _hindbrain(patient, space, head, build.ventricles)
    gland = inside(ellipse(x, y, _SAGITTAL_SELLA, (0.055, 0.035)), 0.015)
    return layer(head, 0.82, np.maximum(gland, 0.8 * space.paint(_STALK)))


MIDSAGITTAL = Section("sagittal", _midsagittal, _midsagittal_depth, _SAGITTAL_SELLA)


_PARASAGITTAL_CEREBRUM: _Ellipse = ((0.03, -0.25), (0.71, 0.53), 0.0)


def _parasagittal_depth(x: Field, y: Field) -> Field:
    cerebrum = -ellipse(x, y, *_PARASAGITTAL_CEREBRUM)
    floor = 0.0 - y + 0.12 * smoothstep(0.05, 0.25, x)
    temporal = -ellipse(x, y, (-0.05, 0.07), (0.3, 0.17), 0.1)
    return np.maximum(soft_minimum(cerebrum, floor, 0.05), temporal)


_LATERAL_VENTRICLE: list[_Stroke] = [
    (
        [(-0.34, -0.15), (-0.24, -0.26), (0.02, -0.3), (0.22, -0.22), (0.3, -0.1), (0.2, 0.03), (0.0, 0.08)],
        [0.01, 0.06, 0.05, 0.06, 0.085, 0.03, 0.01],
    )
]
_LATERAL_PLEXUS: list[_Stroke] = [([(0.15, -0.22), (0.25, -0.14), (0.25, -0.04)], [0.01, 0.035, 0.02])]
_LATERAL_NUCLEI: list[_Oval] = [
    ((0.07, -0.13), (0.12, 0.1), 0.0, _GREY + 0.05),
    ((-0.16, -0.12), (0.12, 0.09), -0.2, _GREY + 0.01),
]
# Orbit with globe, nerve and muscles, maxillary sinus, and muscles of the jaw and the neck.
_LATERAL_FACE: list[_Oval] = [
    ((-0.6, 0.08), (0.2, 0.14), 0.1, 0.75),
    ((-0.53, 0.0), (0.16, 0.02), 0.15, _MUSCLE + 0.1),
    ((-0.53, 0.17), (0.16, 0.02), -0.15, _MUSCLE + 0.1),
    ((-0.5, 0.09), (0.14, 0.02), 0.0, _MUSCLE + 0.12),
    ((-0.7, 0.07), (0.115, 0.115), 0.0, 0.55),
    ((-0.7, 0.07), (0.095, 0.095), 0.0, 0.2),
    ((-0.55, 0.4), (0.19, 0.14), 0.1, _AIR),
    ((-0.2, 0.42), (0.13, 0.16), 0.3, _MUSCLE),
    ((-0.45, 0.72), (0.3, 0.12), 0.1, _MUSCLE + 0.06),
    ((0.05, 0.36), (0.14, 0.09), 0.0, _BONE + 0.05),
    ((0.16, 0.75), (0.09, 0.32), -0.1, _MUSCLE),
    ((0.42, 0.72), (0.09, 0.28), 0.1, _MUSCLE + 0.03),
]


def _parasagittal(patient: np.random.Generator, space: Space, build: Build) -> Field:
    """Slice through a lateral ventricle, the temporal lobe, a hemisphere of the cerebellum and an orbit."""
    x, y = space.x, space.y
    vault = _scalp(x, y, _PARASAGITTAL_CEREBRUM)
    head = _profile(patient, space, _calvarium(patient, vault, build), vault, build.fat, 0.84)
    head = _ovals(space, head, _LATERAL_FACE, 0.025)
    base = inside(np.abs(y - 0.27 + 0.1 * x) - 0.05, 0.03) * inside(np.abs(x + 0.05) - 0.32, 0.03)
    head = layer(head, _BONE + 0.06, base)
    depth = _parasagittal_depth(x, y)
    brain = _folded(patient, x, y + 0.13, depth, build.sulci, 0.24 - 0.14 * smoothstep(-0.1, 0.05, y))
    brain = _ovals(space, brain, _LATERAL_NUCLEI, 0.025)
    wide = build.ventricles * (1.1 - 0.6 * build.level)
    brain = layer(brain, CSF, space.paint(_LATERAL_VENTRICLE, wide))
    brain = layer(brain, 0.8, 0.7 * space.paint(_LATERAL_PLEXUS, wide))
    fossa = ellipse(x, y, (0.41, 0.2), (0.3, 0.24), 0.15)
    head = layer(head, _BONE, inside(fossa - 0.04, 0.02))
    head = layer(head, CSF, inside(fossa, 0.02))
    cerebellum = ellipse(x, y, (0.41, 0.2), (0.27, 0.21), 0.15)
    head = layer(
        head, _foliated(patient, cerebellum, _fan(x, y, (0.22, 0.22), 34)), inside(cerebellum, 0.012)
    )
    head = layer(head, brain, inside(-depth, 0.012))
    tent = space.paint([([(0.2, 0.1), (0.4, 0.04), (0.66, 0.08)], [0.012, 0.016, 0.03])])
    return layer(head, 0.8, 0.7 * tent)


PARASAGITTAL = Section("sagittal", _parasagittal, _parasagittal_depth)


def _profile(
    patient: np.random.Generator, space: Space, head: Field, vault: Field, fat: float, nose: float
) -> Field:
    """Soft tissue of the face and the neck of a sagittal slice."""
    x, y = space.x, space.y
    face = [(-0.8, -0.3), (-0.82, 0.0), (-nose, 0.24), (-0.84, 0.34), (-0.88, 0.48), (-0.84, 0.56)]
    neck = [(-0.84, 0.72), (-0.62, 0.84), (-0.3, 0.94), (-0.26, 1.4), (0.6, 1.4), (0.56, 0.7), (0.7, 0.2)]
    contour = curve([*face, *neck, (0.5, -0.3), (-0.4, -0.5)], 100, closed=True)
    skin = paint([space.pose.to_pixels(contour)])
    depth = np.minimum(ndimage.distance_transform_edt(skin > 0.5) / space.pose.scale, 1)
    below = smoothstep(0.0, 0.03, y - 0.1 + 0.12 * x) * smoothstep(-0.03, 0.0, vault + 0.17)
    strands = noise(patient, 12, octaves=2)
    tissue = layer(_MUSCLE + 0.06 * strands, 0.8 * fat, 0.8 * smoothstep(0.3, 1.2, strands))
    tissue = layer(tissue, fat, smoothstep(0.08, 0.05, depth))
    return layer(head, tissue, skin * np.maximum(below, inside(-vault, 0.01)))


# Sphenoid, frontal sinus, nasal cavity, tongue and front of the lower jaw.
_MEDIAL_FACE: list[_Oval] = [
    ((-0.27, 0.22), (0.13, 0.1), 0.2, _AIR),
    ((-0.66, -0.02), (0.05, 0.1), 0.2, _AIR),
    ((-0.58, 0.3), (0.22, 0.06), -0.1, _AIR),
    ((-0.55, 0.62), (0.24, 0.15), 0.15, _MUSCLE + 0.08),
    ((-0.78, 0.68), (0.05, 0.09), 0.1, 0.7),
]
_TURBINATE: list[_Stroke] = [([(-0.74, 0.31), (-0.58, 0.29), (-0.42, 0.31)], [0.02, 0.05, 0.03])]
_PALATE: list[_Stroke] = [
    ([(-0.8, 0.42), (-0.55, 0.4), (-0.35, 0.42), (-0.22, 0.56)], [0.04, 0.04, 0.04, 0.05])
]
_PHARYNX: list[_Stroke] = [
    ([(-0.3, 0.34), (-0.17, 0.4), (-0.14, 0.65), (-0.16, 1.3)], [0.08, 0.1, 0.07, 0.09])
]


def _with_airways(space: Space, head: Field) -> Field:
    """Turbinate, pharynx and palate of the midline."""
    for strokes, value in ((_TURBINATE, 0.6), (_PHARYNX, _AIR), (_PALATE, 0.55)):
        head = layer(head, value, space.paint(strokes))
    return head


_STEM_LINE = [(0.06, -0.06), (0.08, 0.08), (0.1, 0.2), (0.16, 0.4), (0.2, 0.7), (0.18, 1.4)]
_CLIVUS: list[_Stroke] = [([(-0.07, 0.15), (-0.02, 0.26), (0.04, 0.42)], [0.08, 0.1, 0.04])]
_FOURTH: list[_Stroke] = [([(0.17, 0.08), (0.22, 0.18), (0.24, 0.2), (0.19, 0.32)], [0.02, 0.05, 0.06, 0.02])]


def _hindbrain(patient: np.random.Generator, space: Space, head: Field, ventricles: float) -> Field:
    """Clivus, brain stem and cord in their cerebrospinal fluid, cerebellum, vertebrae."""
    x, y = space.x, space.y
    fossa = inside(ellipse(x, y, (0.3, 0.16), (0.4, 0.26)), 0.02)
    head = layer(head, CSF, fossa)
    head = layer(head, CSF, space.paint([(_STEM_LINE, [0.2, 0.24, 0.3, 0.2, 0.17, 0.17])]))
    head = layer(head, 0.72, space.paint(_CLIVUS))
    for number in range(5):
        centre = (0.03 + 0.012 * number, 0.56 + 0.17 * number)
        bone = ellipse(x, y, centre, (0.075, 0.068), 0.1)
        head = layer(layer(head, _BONE + 0.1, inside(bone - 0.02, 0.015)), 0.55, inside(bone, 0.02))
    cerebellum = ellipse(x, y, (0.43, 0.2), (0.23, 0.2), 0.3)
    head = layer(
        head, _foliated(patient, cerebellum, _fan(x, y, (0.26, 0.19), 26)), inside(cerebellum, 0.012)
    )
    stem = space.paint([(_STEM_LINE, [0.13, 0.14, 0.21, 0.11, 0.085, 0.085])])
    head = layer(head, _WHITE - 0.03 + 0.02 * noise(patient, 14), stem)
    return layer(head, CSF, np.minimum(1, space.paint(_FOURTH) * (0.5 + 0.5 * ventricles)))
