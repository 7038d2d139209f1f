"""Frontal chest radiographs, in the manner of the NIH, CheXpert and COVID-19 collections.

Anatomies are drawn in units of half the height of the thorax around its middle, the patient's right on the
left of the picture. The picture is a sum of what absorbs, so ribs cross the heart and fluid hides the
diaphragm. Images of a patient are repeated exposures. Masks are drawn where the added density is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from scipy.interpolate import PchipInterpolator

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.texture import (
    Pose,
    curve,
    ellipse,
    grain,
    grey,
    inside,
    ribbons,
    stamp,
    trees,
    within_borders,
)
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    ROWS,
    Field,
    bump,
    noise,
    paint,
    ribbon,
    smoothstep,
    soft_minimum,
)

_NORMAL, _LOBAR, _DIFFUSE, _EFFUSION = range(4)


# Heights at which the borders of the mediastinum are tabulated, and how many of them there are a unit.
_LEVELS = np.linspace(-1.7, 1.7, 681)
_LEVELS_PER_UNIT = 200


@dataclass(frozen=True)
class _Mediastinum:
    """What varies in the shadow between the lungs.

    Attributes:
        heart: distance of its borders from the midline, right and left.
        axis: of the heart, from 0 for vertical to 1 for horizontal.
        cava: distance of the superior vena cava's border from the midline.
        knob: how far the aortic arch bulges.
        trunk: how far the pulmonary trunk bulges; below 0, the waist of the heart is hollow.
        trachea: deviation to the patient's left at the carina.
        rotation: of the chest; shifts what lies in front against the spine.
        scoliosis: sideways bend of the spine.
    """

    heart: tuple[float, float]
    axis: float
    cava: float
    knob: float
    trunk: float
    trachea: float
    rotation: float
    scoliosis: float

    @classmethod
    def of(cls, patient: np.random.Generator, breadth: float, is_supine: bool) -> _Mediastinum:
        # Cardiothoracic ratio: normal hearts, some narrow ones, a tail of enlarged ones.
        ratio = float(
            np.clip(patient.normal(0.46, 0.045) + 0.03 * is_supine + 0.05 * patient.gamma(0.5), 0, 0.66)
        )
        right = patient.uniform(0.28, 0.38)
        return cls(
            heart=(1.8 * ratio * breadth * right, 1.8 * ratio * breadth * (1 - right)),
            axis=float(np.clip(3.5 * (ratio - 0.38) + patient.normal(0, 0.2), 0, 1)),
            cava=patient.uniform(0.1, 0.16) + 0.03 * is_supine,
            knob=patient.uniform(0.02, 0.1),
            trunk=patient.normal(0.015, 0.02),
            trachea=patient.normal(-0.02, 0.02),
            rotation=patient.normal(0, 0.03),
            scoliosis=patient.normal(0, 0.012) * (4 if patient.random() < 0.15 else 1),
        )

    def right(self, floor: float) -> tuple[list[float], list[float]]:
        """Heights, and distances of the right border from the midline: vena cava, atrium, cava again."""
        atrium, deep = self.heart[0], floor + 0.1
        levels = [
            -1.7,
            -1.05,
            -0.85,
            -0.6,
            -0.35,
            -0.2,
            -0.06,
            0.3 * deep,
            0.62 * deep,
            0.85 * deep,
            deep,
            1.7,
        ]
        cava = [0.26, 0.2, 0.9 * self.cava, self.cava, self.cava, self.cava - 0.01]
        return levels, [*cava, self.cava, 0.86 * atrium, atrium, 0.94 * atrium, 0.72 * atrium, 0.1]

    def left(self, floor: float) -> tuple[list[float], list[float]]:
        """Heights, and distances of the left border: subclavian artery, knob, window, trunk, ventricle."""
        apex, waist, deep = self.heart[1], 0.15 + self.trunk, floor + 0.1
        levels = [-1.7, -1.05, -0.8, -0.56, -0.46, -0.39, -0.32, -0.25, -0.15, -0.05]
        arch = 0.12 + self.knob
        borders = [
            0.26,
            0.19,
            0.1,
            0.1,
            0.7 * arch + 0.02,
            arch,
            0.85 * arch + 0.01,
            0.125,
            waist,
            waist + 0.02,
        ]
        # A horizontal heart bulges higher up; the apex of a vertical one only dips into the diaphragm.
        shares = np.array([0.42, 0.8, 0.98, 0.97, 0.74]) + np.array([0.14, 0.12, 0.02, 0, -0.06]) * self.axis
        levels += [0.28 * deep, 0.53 * deep, 0.74 * deep, 0.88 * deep, deep + 0.04, 1.7]
        return levels, [*borders, *(waist + shares * (apex - waist)).tolist(), 0.1]

    def distance(self, x: Field, y: Field, floor: float) -> Field:
        """Distance from the shadow, negative inside."""
        row = ((y - _LEVELS[0]) * _LEVELS_PER_UNIT).astype(np.intp).clip(0, len(_LEVELS) - 1)
        sides = []
        for sign, (levels, borders) in ((-1, self.right(floor)), (1, self.left(floor))):
            border = PchipInterpolator(levels, borders)(_LEVELS)
            # Across a slanting border the distance is less than along the row.
            slant = np.hypot(1, np.gradient(border, _LEVELS))
            beside = sign * (x - self.rotation * smoothstep(-1.0, 0.0, _LEVELS).take(row))
            sides.append((beside - border.take(row)) / slant.take(row))
        return np.asarray(np.maximum(sides[0], sides[1]), np.float64)

    def spine(self, y: Field) -> Field:
        """Where the middle of the spine lies."""
        return self.scoliosis * np.sin(3.2 * y + 0.4)


@dataclass(frozen=True)
class _Thorax:
    """What exposures of a patient share.

    Attributes:
        width: of each lung at its base, the right one first.
        apex: y of the tops of the lungs.
        domes: y of the tops of the diaphragm, right and left.
        peaks: where these tops lie, as shares of the widths.
        mediastinum: heart and vessels between the lungs.
        is_supine: lies in bed: the projection is anteroposterior, the heart larger, the lungs shorter.
        ribs: slope of the posterior ribs.
        breasts: absorption of the breasts, 0 for none to see.
        fat: absorption of the chest wall.
    """

    width: tuple[float, float]
    apex: float
    domes: tuple[float, float]
    peaks: tuple[float, float]
    mediastinum: _Mediastinum
    is_supine: bool
    ribs: float
    breasts: float
    fat: float

    @classmethod
    def of(cls, patient: np.random.Generator) -> _Thorax:
        is_supine = bool(patient.random() < 0.4)
        dome = patient.uniform(0.42, 0.62) - 0.1 * is_supine
        breadth = patient.uniform(0.76, 0.9)
        return cls(
            width=(breadth, breadth * patient.uniform(0.95, 1.03)),
            apex=patient.uniform(-0.92, -0.8),
            domes=(dome, dome + patient.uniform(-0.01, 0.11)),
            peaks=(patient.uniform(0.42, 0.58), patient.uniform(0.42, 0.6)),
            mediastinum=_Mediastinum.of(patient, breadth, is_supine),
            is_supine=is_supine,
            ribs=patient.uniform(0.2, 0.5),
            breasts=max(0.0, patient.uniform(-0.1, 0.1)),
            fat=patient.uniform(0.0, 0.09),
        )


@dataclass(frozen=True)
class _Lungs:
    """Distances, negative inside.

    Attributes:
        right, left: from the lungs, which go on behind the heart.
        right_space, left_space: from the pleural spaces, which go on below the lungs.
        mediastinum: from the shadow of heart and great vessels.
    """

    right: Field
    left: Field
    right_space: Field
    left_space: Field
    mediastinum: Field

    def union(self) -> Field:
        return np.minimum(self.right, self.left)

    def beside_heart(self) -> Field:
        """1 where no heart or great vessel lies in the way of the rays, else 0."""
        return smoothstep(-0.02, 0.02, self.mediastinum)


@dataclass(frozen=True)
class _Finding:
    """Absorption added, air taken away (0 to 1), where it shows, and what a report says."""

    added: Field
    mask: NDArray[np.bool_]
    report: Mapping[str, str]


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    thorax = _Thorax.of(patient)
    pose = _pose(patient, image)
    x, y = pose.grid()
    x = x + 0.02 * patient.normal() * np.cos(2 * y)
    lungs = _lungs(thorax, x, y, image.normal(0, 0.015))
    film = _soft_tissue(patient, thorax, lungs, x, y)
    film = film + _vessels(patient, pose, lungs) + _bones(patient, pose, thorax, x, y)
    finding = _finding(patient, pose, thorax, lungs, x, y, label)
    film = np.where(finding.added > 0, _absorbed(film, finding.added), film)
    film = _devices(patient, image, film, pose)
    seen, shown = _expose(patient, image, film)
    return Phantom(
        grey(seen), finding.mask & shown, {"view": "AP" if thorax.is_supine else "PA", **finding.report}
    )


def _absorbed(film: Field, added: Field) -> Field:
    """The film behind more water: it approaches, and hardly exceeds, the brightness of the mediastinum."""
    return np.asarray(film + added * np.maximum(0.82 - film, 0.05), np.float64)


def _pose(patient: np.random.Generator, image: np.random.Generator) -> Pose:
    """Collimation of the site; rotation and centring of the exposure."""
    scale = patient.uniform(68, 80)
    x, y = 79.5 + image.normal(0, 3, 2) + patient.normal(0, 3, 2)
    return Pose(x, y + 4, scale, image.normal(0, 0.04), patient.uniform(0.93, 1.06))


def _lungs(thorax: _Thorax, x: Field, y: Field, breath: float) -> _Lungs:
    """Outer wall, mediastinal border and diaphragm of each lung."""
    made = []
    for side, sign in enumerate((-1, 1)):
        u, width = sign * x, thorax.width[side]
        # Wide below, narrow at the apex, which lies nearer to the spine.
        wall = ellipse(u, y, (0.36 * width, 0.55), (0.64 * width, 0.55 - thorax.apex))
        below = ellipse(u, y, (0.36 * width, 0.5), (0.64 * width, 0.6))
        wall = np.where(y < 0.5, wall, np.maximum(below, u - width))
        inner = 0.08 + 0.02 * np.cos(3 * y + 0.5) - u
        space = -soft_minimum(-wall, -inner, 0.04)
        off = u / width - thorax.peaks[side]
        height = thorax.domes[side] + breath + np.where(off > 0, 1.35, 0.35) * np.square(off)
        made.append((-soft_minimum(-space, height - y, 0.012), space))
    mediastinum = thorax.mediastinum.distance(x, y, thorax.domes[1])
    return _Lungs(made[0][0], made[1][0], made[0][1], made[1][1], mediastinum)


def _soft_tissue(patient: np.random.Generator, thorax: _Thorax, lungs: _Lungs, x: Field, y: Field) -> Field:
    """Chest wall, mediastinum with heart, aorta and trachea, diaphragm, arms' folds, gas in the stomach."""
    shoulder = -1.0 + 0.2 * np.square(x) - 0.12 * np.exp(-np.square(x / 0.3))
    flank = np.abs(x) - 1.0 - 0.05 * np.cos(3 * y) - 0.3 * smoothstep(-0.1, -0.6, y)
    body = np.minimum(np.maximum(shoulder - y, flank), np.abs(x) - 0.22)
    skin = inside(body, 0.07)
    film = (0.5 + thorax.fat + 0.02 * noise(patient, 4)) * skin
    film *= 1 - 0.3 * smoothstep(0.8, 1.25, np.abs(x))
    film += 0.16 * smoothstep(0.1, 0.9, y) * skin
    air = np.zeros_like(x)
    for lung in (lungs.right, lungs.left):
        air = air + smoothstep(0.015, -0.03, lung) * (0.7 + 0.3 * smoothstep(0.0, -0.25, lung))
    # The shadow is densest in the middle; the lung behind it lets a little more through.
    shadow = inside(lungs.mediastinum, 0.035)
    depth = smoothstep(0.02, -0.16, lungs.mediastinum)
    film = film - 0.39 * air * skin * (1 - shadow * (0.66 + 0.2 * depth))
    film = film + 0.07 * (0.35 * shadow + 0.65 * depth) * smoothstep(0.75, 0.3, y) * skin
    film = film - 0.1 * _airway(thorax, x, y)
    if patient.random() < 0.7:
        film = film - patient.uniform(0.08, 0.2) * _stomach_gas(patient, thorax, x, y)
    return film + thorax.breasts * _breasts(patient, x, y)


def _airway(thorax: _Thorax, x: Field, y: Field) -> Field:
    """The column of air in the trachea down to the carina, and the main bronchi, the right one steeper."""
    carina, lean = -0.27, thorax.mediastinum.trachea
    middle = lean * smoothstep(-1.0, carina, y) + 0.5 * thorax.mediastinum.rotation
    column = inside(np.abs(x - middle) - 0.047, 0.025) * smoothstep(carina + 0.03, carina - 0.06, y)
    away, below = x - lean - 0.5 * thorax.mediastinum.rotation, y - carina
    right = bump(below + 0.9 * away, 0.045) * smoothstep(0.02, -0.02, away) * smoothstep(-0.2, -0.12, away)
    left = bump(below - 0.6 * away, 0.04) * smoothstep(-0.02, 0.02, away) * smoothstep(0.24, 0.14, away)
    return np.asarray(column + 0.55 * (right + left), np.float64)


def _stomach_gas(patient: np.random.Generator, thorax: _Thorax, x: Field, y: Field) -> Field:
    """The bubble under the left dome; it ends in a fluid level when the patient stands."""
    radii = patient.uniform(0.09, 0.2), patient.uniform(0.05, 0.11)
    centre = patient.uniform(0.28, 0.46), thorax.domes[1] + 0.06 + radii[1] + patient.uniform(0, 0.05)
    bubble = ellipse(x, y, centre, radii, patient.normal(0, 0.25))
    level = centre[1] + patient.uniform(0, 0.08) + thorax.is_supine
    return inside(np.maximum(bubble, y - level), 0.035)


def _breasts(patient: np.random.Generator, x: Field, y: Field) -> Field:
    """Shadows that end below in a rounded edge, over the lower lungs."""
    low = patient.uniform(0.35, 0.6)
    edge = ellipse(np.abs(x), y, (0.52, low - 0.3), (0.36, 0.36))
    return np.asarray(inside(edge, 0.06) * smoothstep(low - 0.6, low, y) * 1.3, np.float64)


def _vessels(patient: np.random.Generator, pose: Pose, lungs: _Lungs) -> Field:
    """Hila, and the arteries that branch from them, seen where there is air around them."""
    polygons = []
    for sign, hilum in ((-1, (-0.17, -0.06)), (1, (0.18, -0.12))):
        fan = np.array([-1.25, -0.75, -0.2, 0.25, 0.7, 1.05, 1.3]) + patient.normal(0, 0.12, 7)
        headings = fan if sign > 0 else np.pi - fan
        # Blood sinks: vessels of the bases and the descending arteries are the widest.
        girth = np.array([0.7, 0.75, 0.8, 1.0, 1.1, 1.45, 1.3])
        lengths, thickness = patient.uniform(0.17, 0.26, 7), girth * patient.uniform(0.036, 0.06, 7)
        paths, widths = trees(patient, hilum, headings, lengths, thickness, 3)
        polygons.append(ribbons(pose.to_pixels(paths), widths * pose.scale))
    branches = ndimage.gaussian_filter(paint(np.concatenate(polygons)), 0.7)
    fine = np.maximum(noise(patient, 26, octaves=2), 0)
    air = smoothstep(0.01, -0.05, lungs.union()) * (0.25 + 0.75 * lungs.beside_heart())
    x, y = pose.grid()
    # The left hilum stands higher than the right one.
    reach = patient.uniform(0.08, 0.13)
    hila = bump(np.hypot((np.abs(x) - 0.19) / 0.75, (y + 0.09 + 0.04 * np.sign(x)) / 1.4), reach)
    return np.asarray(air * (0.095 * branches + 0.015 * fine + 0.13 * hila), np.float64)


def _bones(patient: np.random.Generator, pose: Pose, thorax: _Thorax, x: Field, y: Field) -> Field:
    """Ribs, clavicles, scapulae and spine, as absorption added."""
    contrast = patient.uniform(0.7, 1.3)
    breadth = 0.5 * (thorax.width[0] + thorax.width[1]) + 0.05
    number = np.arange(10)
    level, drop = -0.86 + 0.155 * number, 0.1 + thorax.ribs * 0.5 + 0.02 * number
    reach = breadth * np.clip(0.52 + 0.13 * number, 0, 1.0)
    zero = np.zeros(10)
    posterior = np.stack(
        [
            [zero + 0.07, level],
            [0.4 * reach, level - 0.03],
            [0.78 * reach, level + 0.35 * drop],
            [reach, level + drop],
        ]
    )
    anterior = np.stack(
        [[reach, level + drop], [0.8 * reach, level + drop + 0.2], [0.45 * reach, level + drop + 0.3]]
    )
    backs, fronts = (
        _mirrored(pose, curve(np.transpose(line, (2, 0, 1)), 24)) for line in (posterior, anterior)
    )
    width = 0.058 * pose.scale
    rims = [ribbons(backs + np.array([0, half]), 0.7) for half in (-0.5 * width, 0.5 * width)]
    ribs = 0.075 * paint(ribbons(backs, width)) + 0.06 * paint(np.concatenate(rims))
    ribs += 0.04 * paint(ribbons(fronts, 1.2 * width))
    ribs *= 0.3 * smoothstep(1.05, 0.75, y) + 0.7 * smoothstep(0.75, 0.4, y)
    bones = contrast * ndimage.gaussian_filter(ribs, 0.6) + _shoulders(patient, pose, contrast)
    return np.asarray(bones + contrast * _spine(thorax.mediastinum, x, y), np.float64)


def _mirrored(pose: Pose, lines: Field) -> Field:
    """Pixels ``(2 n, points, 2)`` of lines ``(n, points, 2)`` and of their mirror images."""
    return pose.to_pixels(np.concatenate([lines, lines * [-1, 1]]))


def _shoulders(patient: np.random.Generator, pose: Pose, contrast: float) -> Field:
    """Clavicles and the edges of the scapulae."""
    lift, out = patient.normal(0, 0.05), patient.uniform(0.0, 0.15)
    clavicle = curve([(0.09, -0.66), (0.3, -0.74 + lift), (0.55, -0.8 + lift), (0.85, -0.93 + lift)], 24)
    blade = curve([(0.62, -0.62), (0.66, -0.3), (0.74, 0.02), (0.86, -0.28), (0.95, -0.62)], 24)
    head = np.array([(1.08, -0.72), (1.2, -0.6), (1.1, -0.45), (0.98, -0.55)])
    clavicles = ribbons(_mirrored(pose, clavicle[None]), np.linspace(0.085, 0.06, 24) * pose.scale)
    blades = [*_mirrored(pose, blade[None] + [out, 0]), *_mirrored(pose, head[None])]
    bone = 0.15 * ndimage.gaussian_filter(paint(clavicles), 0.7)
    return np.asarray(contrast * (bone + 0.055 * ndimage.gaussian_filter(paint(blades), 0.9)))


def _spine(mediastinum: _Mediastinum, x: Field, y: Field) -> Field:
    """Vertebral bodies with discs between them, and spinous processes, faint behind the mediastinum."""
    beside = x - mediastinum.spine(y)
    column = inside(np.abs(beside) - 0.085, 0.03) * smoothstep(1.0, 0.2, y)
    discs = bump(np.mod(y, 0.125) - 0.0625, 0.015)
    # Behind the axis of rotation, so they move against the mediastinum.
    spinous = bump(beside + mediastinum.rotation, 0.02) * bump(np.mod(y + 0.04, 0.125) - 0.0625, 0.025)
    return np.asarray(column * (0.04 - 0.03 * discs) + 0.03 * spinous, np.float64)


def _finding(
    patient: np.random.Generator,
    pose: Pose,
    thorax: _Thorax,
    lungs: _Lungs,
    x: Field,
    y: Field,
    label: int,
) -> _Finding:
    """The finding of the class."""
    if label == _LOBAR:
        return _lobar(patient, pose, lungs, x, y)
    if label == _DIFFUSE:
        return _diffuse(patient, lungs, x, y)
    if label == _EFFUSION:
        return _effusion(patient, thorax, lungs, x, y)
    return _Finding(
        np.zeros((SIZE, SIZE)), np.zeros((SIZE, SIZE), np.bool_), _report("none", "none", "none", "none")
    )


def _report(side: str, location: str, extent: str, pattern: str) -> dict[str, str]:
    return {"side": side, "location": location, "extent": extent, "pattern": pattern}


# Where consolidations of a lobe are centred: the corners of a box, right lung and left lung.
_LOBES: Mapping[int, Mapping[str, tuple[tuple[float, float], tuple[float, float]]]] = {
    -1: {
        "upper lobe": ((0.28, -0.58), (0.5, -0.2)),
        "middle lobe": ((0.38, 0.1), (0.54, 0.26)),
        "lower lobe": ((0.4, 0.1), (0.6, 0.4)),
    },
    1: {
        "upper lobe": ((0.28, -0.58), (0.5, -0.2)),
        "lingula": ((0.42, 0.05), (0.58, 0.28)),
        "lower lobe": ((0.22, 0.1), (0.58, 0.4)),
    },
}


def _lobar(patient: np.random.Generator, pose: Pose, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """Air spaces of a lobe or a segment filled in patches, with a sharp border at a fissure alone."""
    sign = int(patient.choice([-1, 1]))
    lung = lungs.right if sign < 0 else lungs.left
    lobe = str(patient.choice(list(_LOBES[sign])))
    low, high = np.array(_LOBES[sign][lobe])
    u, extent = sign * x, patient.uniform(0, 1)
    middle = patient.uniform(low, high)
    reach = 0.17 + 0.3 * extent
    radii = reach * patient.uniform(0.85, 1.25), reach * patient.uniform(0.8, 1.15)
    patches = noise(patient, 6, octaves=4)
    spread = np.hypot((u - middle[0]) / radii[0], (y - middle[1]) / radii[1])
    share = smoothstep(1.5, 0.4, spread + 0.42 * patches) * inside(lung, 0.03) * smoothstep(0.05, 0.22, u)
    share = share * _bounds(patient, lobe, u, y, middle)
    if lobe in ("middle lobe", "lingula"):
        # They touch the heart: its border vanishes, and nothing of them lies behind it.
        share = share * lungs.beside_heart()
    density = patient.uniform(0.48, 0.95)
    has_bronchi = bool(density > 0.6 and extent > 0.3 and patient.random() < 0.7)
    added = density * share * np.clip(0.96 - 0.14 * patches, 0.55, 1.1)
    if has_bronchi:
        added = added * (1 - 0.18 * _bronchi(patient, pose, sign, (float(middle[0]), float(middle[1]))))
    words = "small" if extent < 0.33 else "moderate" if extent < 0.67 else "large"
    pattern = "consolidation with air bronchograms" if has_bronchi else "patchy consolidation"
    pattern = pattern if density > 0.6 else "faint patchy opacity"
    report = _report("right" if sign < 0 else "left", lobe, words, pattern)
    return _Finding(added, _dense(added, lung), report)


def _bounds(patient: np.random.Generator, lobe: str, u: Field, y: Field, middle: Field) -> Field:
    """1 on a lobe's side of the fissure that the rays run along, if they do; the others do not show."""
    slope, bow, sharp = patient.normal(0, 0.12), patient.uniform(-0.3, 0.3), patient.uniform(0.015, 0.05)
    fissure = -0.03 + patient.normal(0, 0.04) + slope * (u - 0.4) + bow * np.square(u - 0.45)
    shows = patient.random() < 0.7
    if lobe == "upper lobe" and shows:
        return inside(y - fissure, sharp)
    if lobe in ("middle lobe", "lingula"):
        return inside(fissure + 0.04 - y, sharp if shows else 0.12)
    return np.ones_like(y)


def _dense(added: Field, lung: Field) -> NDArray[np.bool_]:
    """Where an opacity reaches nearly half of its greatest density."""
    smooth = ndimage.gaussian_filter(added * (lung < 0.01), 2.0)
    parts, _ = ndimage.label((smooth > 0.42 * smooth.max()) & (lung < 0.01))
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    # A reader would neither outline specks apart from the rest nor spare gaps within it.
    return np.asarray(ndimage.binary_fill_holes((sizes > 0.15 * sizes.max())[parts]))


def _bronchi(patient: np.random.Generator, pose: Pose, sign: int, middle: tuple[float, float]) -> Field:
    """Branching tubes from the hilum into a lobe."""
    start, end = np.array([sign * 0.18, -0.1]), np.array([sign * middle[0], middle[1]])
    heading = float(np.arctan2(end[1] - start[1], end[0] - start[0]))
    headings, two = heading + np.array([-0.35, 0.3]), np.ones(2)
    reach = 0.5 * float(np.hypot(*(end - start)))
    paths, widths = trees(patient, start, headings, reach * two, 0.034 * two, 2)
    tubes = ribbons(pose.to_pixels(paths), widths * pose.scale)
    return np.asarray(ndimage.gaussian_filter(paint(tubes), 0.9), np.float64)


def _diffuse(patient: np.random.Generator, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """Both lungs clouded: oedema like wings from the hila, ground glass, or a net of thickened septa."""
    pattern = str(patient.choice(["bat-wing opacities", "hazy ground glass", "reticular opacities"]))
    zones = ("perihilar",) if pattern == "bat-wing opacities" else ("basal", "peripheral", "all zones")
    zone = str(patient.choice(zones))
    severity = patient.uniform(0.4, 0.9)
    ragged = noise(patient, 5, octaves=3)
    across, down = np.abs(x) + 0.07 * ragged, y + 0.1 * ragged
    weight = {
        "perihilar": np.exp(-np.square((across - 0.12) / 0.42) - np.square((down - 0.02) / 0.48)),
        "basal": smoothstep(-0.45, 0.4, down),
        "peripheral": smoothstep(0.25, 0.68, across + 0.25 * smoothstep(-0.3, -0.8, y)),
        "all zones": 0.85 + 0.15 * smoothstep(-0.8, 0.4, down),
    }[zone]
    cloud = np.clip(0.8 - 0.2 * ragged + 0.12 * noise(patient, 17, octaves=2), 0.1, 1.3)
    if pattern == "reticular opacities":
        cloud = 0.45 * cloud + 0.45 * cloud * _net(patient)
    elif pattern == "hazy ground glass":
        cloud = 0.75 * cloud
    added = severity * weight * cloud * smoothstep(0.01, -0.04, lungs.union())
    # The heart lies before most of the lung behind it.
    added = added * (0.45 + 0.55 * lungs.beside_heart())
    grade = "mild" if severity < 0.55 else "moderate" if severity < 0.74 else "severe"
    smooth = ndimage.gaussian_filter(added, 3)
    right = lungs.right < lungs.left
    level = np.where(right, np.percentile(smooth[right], 97), np.percentile(smooth[~right], 97))
    mask = (lungs.union() < 0) & (smooth > 0.45 * level)
    return _Finding(np.minimum(added, 0.92), mask, _report("bilateral", zone, grade, pattern))


def _net(patient: np.random.Generator) -> Field:
    """Lines of thickened septa crossing each other, coarser in some lungs."""
    fine = int(patient.integers(44, 60))
    lines = np.minimum(np.abs(noise(patient, fine)), np.abs(noise(patient, int(0.85 * fine))))
    return np.asarray(ndimage.gaussian_filter(bump(lines, 0.25), 0.75), np.float64)


def _effusion(patient: np.random.Generator, thorax: _Thorax, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """Fluid in the pleural space: a meniscus in those who sit up, a veil in some who lie."""
    sign = int(patient.choice([-1, 1]))
    lung = lungs.right if sign < 0 else lungs.left
    amount = patient.uniform(0.1, 1)
    layers = bool(thorax.is_supine and patient.random() < 0.5)
    fluid = _veil if layers else _meniscus
    added = fluid(patient, thorax, lungs, sign, amount, x, y)
    words = "small" if amount < 0.33 else "moderate" if amount < 0.67 else "large"
    if layers:
        location, pattern = "hemithorax", "layering haze"
    else:
        location = "costophrenic angle" if amount < 0.33 else "lower hemithorax"
        pattern = "blunted angle" if amount < 0.33 else "meniscus"
    report = _report("right" if sign < 0 else "left", location, words, pattern)
    return _Finding(added, _dense(added, lung - 0.02), report)


def _meniscus(
    patient: np.random.Generator,
    thorax: _Thorax,
    lungs: _Lungs,
    sign: int,
    amount: float,
    x: Field,
    y: Field,
) -> Field:
    """Density of fluid whose surface climbs to the wall all the way, and a little to the mediastinum."""
    side = 0 if sign < 0 else 1
    space, lung = (lungs.right_space, lungs.right) if sign < 0 else (lungs.left_space, lungs.left)
    width, dome, u = thorax.width[side], thorax.domes[side], sign * x
    # Little fluid stays in the angle, below the dome, which remains visible.
    level = dome + 0.24 - 0.78 * amount
    climb = (0.22 + 0.2 * amount) * np.exp(-np.maximum(width - u, 0) / patient.uniform(0.18, 0.34))
    climb += 0.08 * amount * np.exp(-np.maximum(u - 0.12, 0) / 0.1)
    surface = level - climb + patient.normal(0, 0.06) * (u - 0.4) + 0.012 * noise(patient, 5)
    # Seen from the front the fluid thins out upwards: its upper edge is hazy.
    thickness = smoothstep(-0.05, 0.1 + 0.1 * amount, y - surface)
    density = patient.uniform(0.7, 0.86) * thickness * inside(space + 0.01, 0.03)
    # The abdomen is as dense without it, so the dome is lost between them.
    density = density * (1 - 0.65 * smoothstep(-0.02, 0.06, lung))
    density = density * smoothstep(dome + 0.45, dome + 0.1, y)
    # The lung above is compressed, and a thin layer of fluid follows the wall.
    haze = 0.22 * amount * inside(lung, 0.04) * smoothstep(0.4, 0.0, surface - y)
    rind = (
        0.3 * inside(lung, 0.02) * bump(lung, 0.025) * smoothstep(0.3, 0.0, surface - y) * (u > 0.5 * width)
    )
    return np.asarray(np.maximum(density, haze + rind) * smoothstep(0.0, 0.22, u), np.float64)


def _veil(
    patient: np.random.Generator,
    thorax: _Thorax,
    lungs: _Lungs,
    sign: int,
    amount: float,
    x: Field,
    y: Field,
) -> Field:
    """Density of fluid behind the lung of a patient who lies: denser downwards, without an edge."""
    lung = lungs.right if sign < 0 else lungs.left
    dome = thorax.domes[0 if sign < 0 else 1]
    top = dome - 0.75 - 0.5 * amount
    depth = smoothstep(top, dome + 0.1, y + 0.03 * noise(patient, 4)) * (0.45 + 0.4 * amount)
    # An apical cap, and blurred vessels rather than none.
    cap = 0.3 * amount * smoothstep(-0.55, -0.95, y)
    return np.asarray((depth + cap) * inside(lung - 0.01, 0.05) * smoothstep(0.0, 0.22, sign * x), np.float64)


def _devices(patient: np.random.Generator, image: np.random.Generator, film: Field, pose: Pose) -> Field:
    """Electrodes with their leads, a central line, a tube: with any finding or none."""
    if patient.random() < 0.35:
        discs, wires = np.zeros((SIZE, SIZE)), []
        for _ in range(int(patient.integers(2, 5))):
            at = patient.uniform([-0.7, -0.6], [0.7, 0.5]) + image.normal(0, 0.03, 2)
            centre = pose.to_pixels(at)
            discs = np.maximum(discs, bump(np.hypot(COLUMNS - centre[0], ROWS - centre[1]) - 1.2, 1.0))
            end = at + patient.uniform([-0.4, 0.5], [0.4, 1.2])
            bend = 0.5 * (at + end) + image.normal(0, 0.15, 2)
            wires.append(ribbon(pose.to_pixels(curve([at, bend, end], 30)), 1.0))
        film = film + 0.28 * discs + 0.16 * paint(wires)
    if patient.random() < 0.2:
        sign = patient.choice([-1, 1])
        path = [(sign * 0.5, -0.78), (sign * 0.2, -0.6), (-0.1, -0.4), (-0.1, patient.uniform(-0.2, 0.1))]
        film = film + 0.15 * paint([ribbon(pose.to_pixels(curve(path, 40)), 1.1)])
    if patient.random() < 0.12:
        tube = curve([(0.01, -1.2), (0.0, -0.7), (0.01, patient.uniform(-0.45, -0.3))], 20)
        film = film + 0.09 * paint([ribbon(pose.to_pixels(tube), 2.2)])
    return film


def _expose(
    patient: np.random.Generator, image: np.random.Generator, film: Field
) -> tuple[Field, NDArray[np.bool_]]:
    """The film as the site processes it, 0 to 1: scatter, edges, tone, noise, marks; and where it shows."""
    scatter = ndimage.gaussian_filter(film, 14)
    film = film + patient.uniform(-0.25, 0.3) * (film - scatter)
    film = film + patient.uniform(0, 0.8) * (film - ndimage.gaussian_filter(film, 1.5))
    film = ndimage.gaussian_filter(film, patient.uniform(0.3, 0.8))
    # Exposure is automatic: how much of the lungs is opaque does not show in the mean.
    level = film.mean() + patient.normal(0, 0.05) + image.normal(0, 0.02)
    contrast = patient.uniform(0.85, 1.35)
    tone = 0.5 + contrast * (film - level)
    # The toe and the shoulder of the tone curve.
    seen = np.where(tone < 0.15, 0.15 * np.exp((tone - 0.15) / 0.15), tone)
    seen = np.where(seen > 0.85, 1 - 0.15 * np.exp(-(seen - 0.85) / 0.15), seen)
    seen = seen + patient.uniform(0.006, 0.028) * grain(image, 0.5)
    return _marks(patient, image, seen)


def _marks(
    patient: np.random.Generator, image: np.random.Generator, seen: Field
) -> tuple[Field, NDArray[np.bool_]]:
    """Collimator borders, and the letter of the side, burnt in; and what the borders leave."""
    shown = within_borders(patient, 10, 0.3)
    seen = np.where(shown, seen, 0.02)
    if patient.random() < 0.5:
        is_left = patient.random() < 0.5
        x = int(image.integers(136, 148)) if is_left else int(image.integers(6, 16))
        letter = stamp("L" if is_left else "R", x, int(image.integers(6, 40)), 2)
        seen = np.maximum(seen, 0.95 * letter)
    return seen, shown


DATASET = PhantomDataset(
    key="phantom-chest-xray",
    title="Chest X-ray phantoms",
    modality="chest X-ray",
    anatomy="chest",
    class_names=("normal lungs", "lobar opacity", "diffuse opacity", "pleural effusion"),
    findings=(False, True, True, True),
    draw=_draw,
)
