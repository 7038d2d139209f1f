"""Frontal chest radiographs, in the manner of the NIH, CheXpert and COVID-19 collections.

Anatomies are drawn in units of half the height of the thorax around its middle, the patient's right on the
left of the picture. The picture is a sum of what absorbs, so ribs cross the heart and fluid hides the
diaphragm. Images of a patient are repeated exposures. Masks: the lobe, the fluid, or the opacified lungs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.texture import (
    Pose,
    curve,
    ellipse,
    grain,
    grey,
    inside,
    layer,
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


@dataclass(frozen=True)
class _Thorax:
    """What exposures of a patient share.

    Attributes:
        width: of each lung at its base, the right one first.
        apex: y of the tops of the lungs.
        domes: y of the tops of the diaphragm, right and left.
        heart: radius of the heart.
        is_supine: lies in bed: the projection is anteroposterior, the heart larger, the lungs shorter.
        ribs: slope of the posterior ribs.
        breasts: absorption of the breasts, 0 for none to see.
        fat: absorption of the chest wall.
    """

    width: tuple[float, float]
    apex: float
    domes: tuple[float, float]
    heart: float
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
            domes=(dome, dome + patient.uniform(0.03, 0.12)),
            heart=patient.uniform(0.25, 0.33) * (1.14 if is_supine else 1.0),
            is_supine=is_supine,
            ribs=patient.uniform(0.2, 0.5),
            breasts=max(0.0, patient.uniform(-0.1, 0.1)),
            fat=patient.uniform(0.0, 0.09),
        )


@dataclass(frozen=True)
class _Lungs:
    """Distances from the lungs (negative inside), and from the pleural spaces that go on below."""

    right: Field
    left: Field
    right_space: Field
    left_space: Field

    def union(self) -> Field:
        return np.minimum(self.right, self.left)


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
    return np.asarray(film + added * np.maximum(0.86 - film, 0.05), np.float64)


def _pose(patient: np.random.Generator, image: np.random.Generator) -> Pose:
    """Collimation of the site; rotation and centring of the exposure."""
    scale = patient.uniform(68, 80)
    x, y = 79.5 + image.normal(0, 3, 2) + patient.normal(0, 3, 2)
    return Pose(x, y + 4, scale, image.normal(0, 0.04), patient.uniform(0.93, 1.06))


def _lungs(thorax: _Thorax, x: Field, y: Field, breath: float) -> _Lungs:
    """Outer wall, mediastinal border and diaphragm of each lung."""
    made = []
    for sign, width, dome in ((-1, thorax.width[0], thorax.domes[0]), (1, thorax.width[1], thorax.domes[1])):
        u = sign * x
        # Wide below, narrow at the apex, which lies nearer to the spine.
        wall = ellipse(u, y, (0.36 * width, 0.55), (0.64 * width, 0.55 - thorax.apex))
        below = ellipse(u, y, (0.36 * width, 0.5), (0.64 * width, 0.6))
        wall = np.where(y < 0.5, wall, np.maximum(below, u - width))
        inner = 0.1 + 0.03 * np.cos(3 * y + 0.5) - u
        space = -soft_minimum(-wall, -inner, 0.04)
        height = dome + breath + 0.75 * np.square(np.maximum(u - 0.5 * width, 0) / width) * 4 * 0.45
        height = height + 0.12 * np.square(np.minimum(u - 0.5 * width, 0) / width)
        made.append((-soft_minimum(-space, height - y, 0.012), space))
    return _Lungs(made[0][0], made[1][0], made[0][1], made[1][1])


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
    mediastinum = inside(np.abs(x + 0.01) - 0.09 - 0.07 * smoothstep(-0.3, -0.9, y), 0.09)
    film = film + 0.13 * mediastinum * (1 - 0.6 * smoothstep(0.3, 0.8, y)) - 0.39 * air * skin
    film = _heart(patient, thorax, film, x, y)
    trachea = inside(np.abs(x + 0.015) - 0.045, 0.025) * smoothstep(-0.18, -0.3, y)
    film = film - 0.09 * trachea
    for sign in (-1, 1):
        bronchus = bump(y + 0.2 - 0.7 * np.abs(x), 0.035) * inside(np.abs(x - sign * 0.11) - 0.1, 0.05)
        film = film - 0.05 * bronchus
    if patient.random() < 0.7:
        bubble = ellipse(x, y, (0.36, thorax.domes[1] + 0.17), (0.16, 0.08))
        film = film - 0.2 * inside(bubble, 0.03)
    return film + thorax.breasts * _breasts(patient, x, y)


def _heart(patient: np.random.Generator, thorax: _Thorax, film: Field, x: Field, y: Field) -> Field:
    """The heart on the diaphragm, mostly left of the spine, aortic knob and pulmonary trunk above it."""
    radius = thorax.heart
    floor = thorax.domes[1]
    left = ellipse(x, y, (0.16, floor - 0.22), (radius * 1.2, radius * 0.92), 0.6)
    right = ellipse(x, y, (-0.06, floor - 0.27), (radius * 0.62, radius * 0.9))
    shape = soft_minimum(left, right, 0.08)
    shadow = inside(np.maximum(shape, y - floor - 0.12), 0.035)
    knob = ellipse(x, y, (0.12, -0.36), (0.1, 0.095))
    trunk = ellipse(x, y, (0.13, -0.16), (0.1, 0.13))
    great = inside(np.minimum(knob, trunk), 0.03)
    return layer(film, np.maximum(film, 0.66 + 0.03 * noise(patient, 3)), np.maximum(shadow, 0.75 * great))


def _breasts(patient: np.random.Generator, x: Field, y: Field) -> Field:
    """Shadows that end below in a rounded edge, over the lower lungs."""
    low = patient.uniform(0.35, 0.6)
    edge = ellipse(np.abs(x), y, (0.52, low - 0.3), (0.36, 0.36))
    return np.asarray(inside(edge, 0.06) * smoothstep(low - 0.6, low, y) * 1.3, np.float64)


def _vessels(patient: np.random.Generator, pose: Pose, lungs: _Lungs) -> Field:
    """Hila, and the arteries that branch from them, seen where there is air around them."""
    polygons = []
    for sign, hilum in ((-1, (-0.17, -0.08)), (1, (0.19, -0.13))):
        fan = np.array([-1.25, -0.75, -0.2, 0.25, 0.7, 1.05, 1.3]) + patient.normal(0, 0.12, 7)
        headings = fan if sign > 0 else np.pi - fan
        lengths, thickness = patient.uniform(0.17, 0.26, 7), patient.uniform(0.03, 0.055, 7)
        paths, widths = trees(patient, hilum, headings, lengths, thickness, 3)
        polygons.append(ribbons(pose.to_pixels(paths), widths * pose.scale))
    branches = ndimage.gaussian_filter(paint(np.concatenate(polygons)), 0.7)
    fine = np.maximum(noise(patient, 26, octaves=2), 0)
    air = smoothstep(0.01, -0.05, lungs.union())
    x, y = pose.grid()
    hila = bump(np.hypot((np.abs(x) - 0.2) / 0.8, (y + 0.08) / 1.3), 0.13)
    return np.asarray(air * (0.085 * branches + 0.015 * fine + 0.13 * hila), np.float64)


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
    ribs *= smoothstep(1.05, 0.75, y)
    bones = contrast * ndimage.gaussian_filter(ribs, 0.6) + _shoulders(patient, pose, contrast)
    return np.asarray(bones + contrast * _spine(x, y), np.float64)


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


def _spine(x: Field, y: Field) -> Field:
    """Vertebral bodies with discs between them, and spinous processes, faint behind the mediastinum."""
    column = inside(np.abs(x) - 0.085, 0.02)
    discs = bump(np.mod(y, 0.125) - 0.0625, 0.015)
    spinous = bump(x, 0.02) * bump(np.mod(y + 0.04, 0.125) - 0.0625, 0.025)
    return np.asarray(column * (0.05 - 0.035 * discs) + 0.04 * spinous, np.float64)


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


def _lobar(patient: np.random.Generator, pose: Pose, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """One lobe filled, with a straight border at a fissure and air left in its bronchi."""
    sign = int(patient.choice([-1, 1]))
    lung = lungs.right if sign < 0 else lungs.left
    lobes = ("upper lobe", "middle lobe", "lower lobe") if sign < 0 else ("upper lobe", "lower lobe")
    lobe = str(patient.choice(lobes))
    u = sign * x
    fissure = -0.06 + patient.normal(0, 0.05) + patient.normal(0, 0.15) * (u - 0.4)
    feathered = 0.05 * noise(patient, 7, octaves=2)
    if lobe == "upper lobe":
        area, middle = y - fissure + 0.2 * feathered, (0.38, -0.45)
    elif lobe == "middle lobe":
        area, middle = (
            np.maximum(fissure - y + 0.2 * feathered, y - fissure - 0.4 - 0.25 * u + feathered),
            (0.35, 0.15),
        )
    else:
        area, middle = fissure + 0.22 - 0.35 * (u - 0.3) - y + feathered, (0.42, 0.38)
    extent = patient.uniform(0.25, 1.0)
    spread = np.hypot(u - middle[0], y - middle[1]) - 0.2 - 0.4 * extent + 2.2 * feathered
    share = inside(np.maximum(area, lung), 0.04) * inside(spread, 0.14)
    density = patient.uniform(0.55, 0.95) * (1 + 0.12 * noise(patient, 9, octaves=2))
    bronchi = _bronchi(patient, pose, sign, middle)
    words = "small" if extent < 0.45 else "moderate" if extent < 0.75 else "large"
    report = _report("right" if sign < 0 else "left", lobe, words, "consolidation with air bronchograms")
    return _Finding(density * share * (1 - 0.3 * bronchi), share > 0.5, report)


def _bronchi(patient: np.random.Generator, pose: Pose, sign: int, middle: tuple[float, float]) -> Field:
    """Branching tubes from the hilum into a lobe."""
    start, end = np.array([sign * 0.18, -0.1]), np.array([sign * middle[0], middle[1]])
    heading = float(np.arctan2(end[1] - start[1], end[0] - start[0]))
    headings, two = heading + np.array([-0.3, 0.25]), np.ones(2)
    paths, widths = trees(patient, start, headings, 0.24 * two, 0.034 * two, 3)
    tubes = ribbons(pose.to_pixels(paths), widths * pose.scale)
    return np.asarray(ndimage.gaussian_filter(paint(tubes), 0.8), np.float64)


def _diffuse(patient: np.random.Generator, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """Both lungs hazy with fine lines, most at the hila, at the bases, outside or everywhere."""
    union = lungs.union()
    zone = str(patient.choice(["perihilar", "basal", "peripheral", "all zones"]))
    weight = {
        "perihilar": np.exp(-np.square((np.abs(x) - 0.25) / 0.38) - np.square((y + 0.02) / 0.5)),
        "basal": smoothstep(-0.5, 0.45, y),
        "peripheral": smoothstep(0.3, 0.7, np.abs(x) + 0.15 * smoothstep(-0.4, -0.8, y)),
        "all zones": np.ones_like(x),
    }[zone]
    severity = patient.uniform(0.45, 0.95)
    cloud = np.clip(0.75 + 0.4 * noise(patient, 5, octaves=3), 0.1, 1.6)
    net = np.minimum(np.abs(noise(patient, 38)), np.abs(noise(patient, 52)))
    coarseness = patient.uniform(0.0, 0.3)
    reticular = coarseness * ndimage.gaussian_filter(bump(net, 0.3), 0.6)
    added = severity * (0.3 + 0.7 * weight) * (cloud * 0.8 + reticular) * smoothstep(0.01, -0.04, union)
    grade = "mild" if severity < 0.6 else "moderate" if severity < 0.78 else "severe"
    pattern = "reticular opacities" if coarseness > 0.15 else "hazy ground glass"
    mask = (union < -0.01) & (weight > 0.4)
    return _Finding(np.minimum(added, 0.95), mask, _report("bilateral", zone, grade, pattern))


def _effusion(patient: np.random.Generator, thorax: _Thorax, lungs: _Lungs, x: Field, y: Field) -> _Finding:
    """Fluid in the pleural space: it hides the diaphragm and climbs along the wall in a meniscus."""
    sign = int(patient.choice([-1, 1]))
    space, lung = (lungs.right_space, lungs.right) if sign < 0 else (lungs.left_space, lungs.left)
    width, dome = (thorax.width[0], thorax.domes[0]) if sign < 0 else (thorax.width[1], thorax.domes[1])
    amount = patient.uniform(0, 1)
    u = sign * x
    level = dome + 0.12 - 0.75 * amount
    climb = (0.14 + 0.14 * amount) * np.exp(-np.maximum(width - u, 0) / 0.13)
    climb += 0.05 * np.exp(-np.maximum(u - 0.12, 0) / 0.08)
    surface = level - climb + 0.01 * noise(patient, 4)
    fluid = np.maximum(surface - y, space + 0.012)
    share = inside(fluid, 0.035)
    density = patient.uniform(0.82, 0.98) * smoothstep(-0.11, 0.14, y - surface)
    density = density * smoothstep(dome + 0.4, dome + 0.05, y)
    # Below the level the lung is compressed, so the last of its air above it is hazy.
    haze = 0.15 * amount * inside(lung, 0.04) * smoothstep(0.35, 0.0, surface - y)
    words = "small" if amount < 0.33 else "moderate" if amount < 0.67 else "large"
    side = "right" if sign < 0 else "left"
    mask = (fluid < 0) & (lung < 0.03)
    report = _report(side, "costophrenic angle" if amount < 0.33 else "lower hemithorax", words, "meniscus")
    return _Finding(np.maximum(density * share, haze), mask, report)


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
