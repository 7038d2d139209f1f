"""Axial CT slices through the kidneys in a soft tissue window, in the manner of the CT Kidney collection.

Anatomies are drawn in Hounsfield units over units of half the body's width, the patient's right on the left
of the picture. Images of a patient are neighbouring slices of one scan. Masks: cyst, stone or tumour.
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
    blob,
    curve,
    ellipse,
    grain,
    grey,
    inside,
    layer,
    ribbons,
    turned,
    wander,
)
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    ROWS,
    Field,
    bump,
    ellipses,
    noise,
    outline,
    paint,
    smoothstep,
    soft_minimum,
)

_NORMAL, _CYST, _STONE, _TUMOUR = range(4)

# Hounsfield units of what contrast does not change.
_AIR, _FAT, _WATER, _MUSCLE, _TRABECULAR, _CORTICAL = -1000.0, -100.0, 5.0, 55.0, 150.0, 500.0


@dataclass(frozen=True)
class _Phase:
    """Hounsfield units at a time after contrast."""

    name: str
    cortex: float
    medulla: float
    aorta: float
    vein: float
    liver: float
    spleen: float
    tumour: float


_PHASES = (
    _Phase("unenhanced", 38, 36, 42, 40, 58, 48, 44),
    _Phase("corticomedullary", 165, 100, 270, 110, 78, 122, 108),
    _Phase("nephrographic", 150, 142, 150, 144, 112, 120, 78),
)
_HOW_OFTEN = (0.25, 0.35, 0.4)


@dataclass(frozen=True)
class _Kidney:
    """One kidney in the body's units; ``sign`` is -1 for the right one, on the left of the picture."""

    sign: int
    x: float
    y: float
    radii: tuple[float, float]
    turn: float
    outline: Field
    hilum: float

    def axes(self, x: Field, y: Field) -> tuple[Field, Field]:
        """Coordinates from its centre: towards its hilum, and along its length."""
        u, v = turned(-self.sign * (x - self.x), y - self.y, self.turn)
        return u, v

    def point(self, inwards: float, along: float) -> tuple[float, float]:
        """The body's coordinates of a place in shares of the half axes."""
        u, v = inwards * self.radii[0], along * self.radii[1]
        cos, sin = np.cos(self.turn), np.sin(self.turn)
        return float(self.x - self.sign * (u * cos - v * sin)), float(self.y + u * sin + v * cos)


@dataclass(frozen=True)
class _Site:
    """A scanner: window and grain."""

    level: float
    width: float
    noise: float
    sharpness: float


@dataclass(frozen=True)
class _Finding:
    """The body with the finding, where it is, and what a report says."""

    body: Field
    mask: NDArray[np.bool_]
    report: Mapping[str, str]


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    phase = _PHASES[patient.choice(3, p=_HOW_OFTEN)]
    # Most protocols are moderately noisy, a few are low-dose.
    deviation = 5 + 11 * patient.random() ** 3
    site = _Site(patient.uniform(35, 65), patient.uniform(330, 440), deviation, patient.uniform(0.45, 0.8))
    pose = _pose(patient, image)
    x, y = pose.grid()
    x, y = x + 0.008 * noise(image, 4), y + 0.008 * noise(image, 4)
    thickness = patient.uniform(0.03, 0.14)
    body = _trunk(patient, pose, x, y, thickness)
    cavity = _cavity(x, y, thickness)
    body = _organs(patient, image, pose, body, x, y, cavity, phase)
    kidneys = _kidneys(patient, image)
    for kidney in kidneys:
        body = _with_kidney(patient, pose, body, kidney, x, y, phase)
    found = _finding(patient, image, body, kidneys, x, y, cavity, phase, label)
    seen = _scan(patient, image, pose, found.body, site)
    return Phantom(grey(seen), found.mask, {"phase": phase.name, **found.report})


def _pose(patient: np.random.Generator, image: np.random.Generator) -> Pose:
    """Field of view of the site; shape and lie of the patient."""
    scale = patient.uniform(87, 107)
    x, y = 79.5 + patient.normal(0, 3, 2) + image.normal(0, 1, 2)
    return Pose(x, y - 2, scale, patient.normal(0, 0.05), patient.uniform(0.96, 1.05))


def _cavity(x: Field, y: Field, thickness: float) -> Field:
    """Distance from the inside of the muscular wall."""
    return ellipse(x, y, (0, -0.06), (0.86 - thickness, 0.61 - thickness))


def _trunk(patient: np.random.Generator, pose: Pose, x: Field, y: Field, thickness: float) -> Field:
    """Skin, fat, muscular wall with ribs, fat of the cavity, spine and the muscles beside it."""
    shape = 1 - 0.02 * np.cos(3 * np.arctan2(y, x))
    skin = ellipse(x * shape, y, (0, 0), (0.95, 0.7)) + 0.006 * noise(patient, 5)
    strands = noise(patient, 26)
    body = layer(np.full_like(x, _AIR), 10.0, inside(skin, 0.015))
    body = layer(body, _FAT + 6 * strands, inside(skin + 0.022, 0.015))
    cavity = _cavity(x, y, thickness)
    wall = inside(cavity - 0.065 - 0.012 * noise(patient, 6), 0.018)
    body = layer(body, _MUSCLE + 6 * strands, wall)
    fasciae = bump(cavity - 0.025, 0.006) + bump(cavity - 0.045, 0.006)
    body = layer(body, _FAT + 40, 0.6 * fasciae * smoothstep(0.2, -0.1, y))
    body = layer(body, _FAT + 7 * strands, inside(cavity, 0.015))
    body = _back(patient, body, x, y)
    return _ribs(patient, pose, body, thickness)


def _back(patient: np.random.Generator, body: Field, x: Field, y: Field) -> Field:
    """Erector spinae, psoas, and a vertebra with its canal and processes."""
    side, marbling = np.abs(x), noise(patient, 22)
    for centre, radii, turn in (
        ((0.2, 0.47), (0.17, 0.13), 0.05),
        ((0.4, 0.41), (0.12, 0.065), -0.35),
        ((0.19, 0.2), (0.075, 0.125), -0.1),
    ):
        muscle = ellipse(side, y, centre, radii, turn)
        body = layer(body, _MUSCLE - 18 * smoothstep(0.9, 2.2, marbling), inside(muscle, 0.015))
    vertebra = ellipse(x, y, (0, 0.17), (0.155, 0.125))
    arch = ellipse(x, y, (0, 0.34), (0.11, 0.09))
    spinous = ellipse(x, y, (0, 0.47), (0.025, 0.11))
    transverse = ellipse(side, y, (0.19, 0.33), (0.13, 0.025), -0.12)
    processes = np.minimum(np.minimum(arch, spinous), transverse)
    trabeculae = _TRABECULAR + 22 * noise(patient, 34)
    body = layer(body, trabeculae + 90, inside(processes, 0.018))
    body = layer(body, _CORTICAL, 0.45 * bump(processes, 0.012))
    body = layer(body, trabeculae, inside(vertebra, 0.015))
    body = layer(body, _CORTICAL, 0.7 * bump(vertebra + 0.008, 0.013))
    return layer(body, 25.0, inside(ellipse(x, y, (0, 0.335), (0.07, 0.055)), 0.015))


def _ribs(patient: np.random.Generator, pose: Pose, body: Field, thickness: float) -> Field:
    """Short oblique cuts of ribs in the wall, more of them behind."""
    behind = np.where(patient.random(6) < 0.35, -0.6, 1.0) * patient.uniform(0.05, 1.1, 6)
    middles = np.where(patient.random(6) < 0.5, behind, np.pi - behind)
    angles = middles[:, None] + patient.uniform(0.06, 0.16, (6, 1)) * np.linspace(-1, 1, 10)
    wall = np.stack([(0.9 - thickness) * np.cos(angles), (0.65 - thickness) * np.sin(angles) - 0.06], axis=-1)
    taper = np.sqrt(1 - np.square(np.linspace(-0.95, 0.95, 10)))
    paths = pose.to_pixels(wall)
    body = layer(body, _CORTICAL, paint(ribbons(paths, 0.05 * pose.scale * taper)))
    return layer(body, _TRABECULAR + 60, paint(ribbons(paths[:, 1:-1], 0.02 * pose.scale * taper[1:-1])))


def _organs(
    patient: np.random.Generator,
    image: np.random.Generator,
    pose: Pose,
    body: Field,
    x: Field,
    y: Field,
    cavity: Field,
    phase: _Phase,
) -> Field:
    """Liver, gall bladder, spleen, gut and great vessels."""
    room = inside(cavity + 0.01, 0.015)
    extent = patient.uniform(0.75, 1.15)
    liver = blob(x, y, (-0.55, -0.17), (0.36 * extent, 0.36), outline(patient, 0.07, waves=4), 0.25)
    liver = np.maximum(liver, -ellipse(x, y, (-0.3, 0.2), (0.26, 0.25)))
    spleen = blob(x, y, (0.7, 0.03), (0.12, 0.25 * patient.uniform(0.4, 1.1)), outline(patient, 0.05), 0.15)
    steatosis = max(0.0, patient.normal(0, 18))
    body = _gut(patient, image, pose, body, x, y, cavity)
    body = layer(body, phase.spleen, inside(spleen, 0.018) * room)
    body = layer(body, _liver(patient, pose, phase, steatosis), inside(liver, 0.018) * room)
    if patient.random() < 0.3:
        bladder = ellipse(x, y, (-0.36, -0.27), (0.085, 0.07), 0.4)
        body = layer(body, 8.0, inside(bladder, 0.018))
    return _great_vessels(patient, body, x, y, phase)


def _liver(patient: np.random.Generator, pose: Pose, phase: _Phase, steatosis: float) -> Field:
    """Parenchyma with its veins, brighter or darker than it as fat and contrast have it."""
    paths = wander(patient, (-0.36, -0.12), patient.uniform(2.2, 4.0, 6), 0.4, 0.7)
    veins = paint(ribbons(pose.to_pixels(paths), np.linspace(2.6, 1.0, 12)))
    tissue = phase.liver - steatosis + 3 * noise(patient, 20)
    return layer(tissue, phase.vein + 10 * (phase.name == "nephrographic"), 0.8 * veins)


def _great_vessels(patient: np.random.Generator, body: Field, x: Field, y: Field, phase: _Phase) -> Field:
    """Aorta, perhaps with calcified plaque, and the vena cava, flat or round."""
    at, radius = (0.05, 0.0), patient.uniform(0.045, 0.065)
    aorta = ellipse(x, y, at, (radius, radius))
    cava = ellipse(x, y, (-0.11, 0.0), (0.065, patient.uniform(0.035, 0.06)), 0.2)
    mesenteric = ellipse(x, y, (0.03, -0.13), (0.022, 0.022))
    body = layer(body, phase.vein, inside(cava, 0.015))
    body = layer(body, phase.aorta, np.maximum(inside(aorta, 0.015), inside(mesenteric, 0.015)))
    if patient.random() < 0.35:
        away = np.abs(
            (np.arctan2(y - at[1], x - at[0]) - patient.uniform(-3, 3) + np.pi) % (2 * np.pi) - np.pi
        )
        plaque = bump(aorta + 0.006, 0.01) * smoothstep(0.6, 0.3, away)
        body = layer(body, 650.0, plaque)
    return body


def _gut(
    patient: np.random.Generator,
    image: np.random.Generator,
    pose: Pose,
    body: Field,
    x: Field,
    y: Field,
    cavity: Field,
) -> Field:
    """Pancreas and duodenum, loops of small bowel, colon with gas and faeces, mesenteric vessels."""
    oral = patient.choice([0.0, 0.0, 0.0, 0.0, 230.0])
    n = int(patient.integers(9, 17))
    at = np.stack([patient.uniform(-0.25, 0.62, n), patient.uniform(-0.46, -0.15, n)], axis=1)
    at += image.normal(0, 0.012, (n, 2))
    radii = patient.uniform(0.045, 0.095, (n, 2))
    turns = patient.uniform(0, np.pi, n)
    room = inside(cavity + 0.02, 0.02)
    walls = paint(pose.to_pixels(ellipses(at, radii, turns, 20)))
    lumens = paint(pose.to_pixels(ellipses(at, radii - 0.022, turns, 20)))
    vessels = wander(patient, (0.04, -0.15), patient.uniform(-2.8, 0.2, 9), 0.32, 0.6)
    strands = paint(ribbons(pose.to_pixels(vessels), np.linspace(1.3, 0.6, 12)))
    body = layer(body, 70.0, 0.8 * strands * room)
    pancreas = curve([(-0.2, -0.12), (-0.05, -0.2), (0.15, -0.17), (0.34, -0.1)], 24)
    body = layer(body, 62 + 20 * noise(patient, 26), paint(ribbons(pose.to_pixels(pancreas)[None], 8.0)))
    body = layer(body, 52.0, walls * room)
    body = layer(body, 20 + oral + 14 * noise(patient, 24), lumens * room)
    faeces = np.where(noise(patient, 46) > 0.8, -500.0, 25 + 25 * noise(patient, 30))
    for centre in ((0.69, 0.0), (-0.64, 0.02), (0.1, -0.47), (0.36, -0.44), (-0.2, -0.46)):
        if patient.random() < 0.75:
            body = _colon(patient, body, x, y, centre, room, faeces)
    return body


def _colon(
    patient: np.random.Generator,
    body: Field,
    x: Field,
    y: Field,
    centre: tuple[float, float],
    room: Field,
    faeces: Field,
) -> Field:
    """A haustrated loop with faeces, and gas above a level."""
    radii = patient.uniform(0.065, 0.11, 2)
    wall = blob(x, y, centre, (radii[0], radii[1]), outline(patient, 0.09, waves=4))
    body = layer(body, 50.0, inside(wall, 0.015) * room)
    level = y - centre[1] - radii[1] * patient.uniform(-1.2, 1.0)
    content = layer(faeces, -900.0, inside(level, 0.012))
    return layer(body, content, inside(wall + 0.02, 0.014) * room)


def _kidneys(patient: np.random.Generator, image: np.random.Generator) -> tuple[_Kidney, _Kidney]:
    """Right and left kidney, each at its own height of the slice."""
    made = []
    size = patient.uniform(0.9, 1.15)
    for sign in (-1, 1):
        level = patient.uniform(0.85, 1.05) * image.uniform(0.94, 1.02)
        radii = (0.164 * size * level, 0.196 * size * level * patient.uniform(0.9, 1.12))
        x, y = sign * (0.455 + patient.normal(0, 0.015)), 0.12 + patient.normal(0, 0.025)
        shape, hilum = outline(patient, 0.03, waves=4), patient.uniform(0.5, 0.95) * image.uniform(0.9, 1.1)
        made.append(_Kidney(sign, x, y, radii, -0.55 + patient.normal(0, 0.15), shape, hilum))
    return made[0], made[1]


def _with_kidney(
    patient: np.random.Generator,
    pose: Pose,
    body: Field,
    kidney: _Kidney,
    x: Field,
    y: Field,
    phase: _Phase,
) -> Field:
    """A kidney in its fat: cortex, pyramids, sinus, vein and artery to the great vessels."""
    vessel = curve([kidney.point(0.3, 0.0), kidney.point(1.2, -0.05), (kidney.sign * 0.1, 0.0)], 20)
    drawn = paint(ribbons(pose.to_pixels(vessel)[None], np.linspace(2.0, 3.4, 20)))
    mottle, wrinkles = noise(patient, 22), noise(patient, 9)
    body = layer(body, phase.vein, drawn * smoothstep(0.1, 0.13, np.abs(x)))
    near = _window(pose, kidney)
    fat = _in_fat(body[near], kidney, x[near], y[near], wrinkles[near])
    fat = layer(fat, phase.vein, drawn[near])
    body[near] = _parenchyma(fat, kidney, x[near], y[near], mottle[near], phase, drawn[near])
    return body


def _window(pose: Pose, kidney: _Kidney) -> tuple[slice, slice]:
    """Rows and columns around a kidney, which are all that changes with it."""
    column, row = pose.to_pixels((kidney.x, kidney.y))
    reach = 0.42 * pose.scale
    rows = slice(max(int(row - reach), 0), int(row + reach))
    return rows, slice(max(int(column - reach), 0), int(column + reach))


def _in_fat(body: Field, kidney: _Kidney, x: Field, y: Field, wrinkles: Field) -> Field:
    """Perirenal fat inside its fascia."""
    u, v = kidney.axes(x, y)
    edge = blob(u, v, (0, 0), kidney.radii, kidney.outline)
    body = layer(body, _FAT, inside(edge - 0.035, 0.03))
    return layer(body, _FAT + 60, 0.35 * bump(edge - 0.05 - 0.01 * wrinkles, 0.008))


def _parenchyma(
    body: Field, kidney: _Kidney, x: Field, y: Field, mottle: Field, phase: _Phase, vessel: Field
) -> Field:
    """Cortex and pyramids around the fat of the sinus, with the pelvis in it."""
    u, v = kidney.axes(x, y)
    deep, long = kidney.radii
    edge = blob(u, v, (0, 0), kidney.radii, kidney.outline)
    gate = ellipse(u, v, (deep, 0), (0.62 * deep, 0.3 * long * kidney.hilum))
    sinus = ellipse(u, v, (0.3 * deep, 0), (0.45 * deep, 0.5 * long * kidney.hilum))
    sinus = soft_minimum(gate, sinus, 0.02) + 0.008 * mottle
    pyramids = smoothstep(-0.2, 0.4, np.cos(9 * np.arctan2(v, u - 0.3 * deep)))
    medulla = pyramids * smoothstep(-0.03, -0.045, edge) * smoothstep(0.0, 0.02, sinus)
    tissue = phase.cortex + (phase.medulla - phase.cortex) * medulla + 4 * mottle
    kept = inside(edge, 0.014)
    body = layer(body, tissue, kept * smoothstep(-0.008, 0.012, sinus))
    body = layer(body, _FAT + 12, inside(sinus, 0.012) * kept * (1 - 0.6 * vessel))
    return layer(body, 8.0, inside(ellipse(u, v, (0.42 * deep, 0), (0.2 * deep, 0.16 * long)), 0.015))


def _finding(
    patient: np.random.Generator,
    image: np.random.Generator,
    body: Field,
    kidneys: tuple[_Kidney, _Kidney],
    x: Field,
    y: Field,
    cavity: Field,
    phase: _Phase,
    label: int,
) -> _Finding:
    """The finding of the class in one of the kidneys."""
    kidney = kidneys[patient.integers(0, 2)]
    # A slice cuts a round finding above or below its middle, and muscles of the back stop it from growing.
    cut = image.uniform(0.85, 1.0)
    room = np.maximum(cavity, -ellipse(np.abs(x), y, (0.4, 0.41), (0.12, 0.065), -0.35))
    if label == _CYST:
        return _cyst(patient, body, kidney, x, y, room, cut)
    if label == _STONE:
        return _stone(patient, body, kidney, x, y, cut)
    if label == _TUMOUR:
        return _tumour(patient, body, kidney, x, y, room, phase, cut)
    words = ("side", "location", "size", "density", "margin")
    return _Finding(body, np.zeros((SIZE, SIZE), np.bool_), dict.fromkeys(words, "none"))


def _report(kidney: _Kidney, location: str, size: str, density: str, margin: str) -> dict[str, str]:
    side = "right" if kidney.sign < 0 else "left"
    return {"side": side, "location": location, "size": size, "density": density, "margin": margin}


def _on_rim(patient: np.random.Generator, depth: float) -> tuple[float, float, str]:
    """A place at a relative depth on the anterior, lateral or posterior rim, in shares of the half axes."""
    name, angle = [("anterior", -1.9), ("lateral", -2.9), ("posterior", 2.3)][patient.integers(0, 3)]
    angle += patient.normal(0, 0.2)
    return float(depth * np.cos(angle)), float(depth * np.sin(angle)), name


def _with_space(
    kidney: _Kidney, inwards: float, along: float, radius: float, x: Field, y: Field, room: Field
) -> tuple[float, float]:
    """The body's coordinates of a place, drawn into the kidney until most of a round finding has room."""
    for share in np.linspace(1, 0.4, 7):
        at = kidney.point(float(share) * inwards, float(share) * along)
        nearest = np.argmin(np.square(x - at[0]) + np.square(y - at[1]))
        if room.flat[nearest] < -0.75 * radius:
            break
    return at


def _size(radius: float, large: float) -> str:
    return "small" if radius < 0.6 * large else "medium" if radius < large else "large"


def _cyst(
    patient: np.random.Generator, body: Field, kidney: _Kidney, x: Field, y: Field, room: Field, cut: float
) -> _Finding:
    """Water in a thin wall, round and even, bulging out or, where it is small, buried."""
    extent = patient.uniform(0.07, 0.175)
    radius = extent * cut
    inwards, along, place = _on_rim(patient, patient.uniform(min(0.95, 6 * extent), 1.2))
    at = _with_space(kidney, inwards, along, radius, x, y, room)
    edge = blob(x, y, at, (radius, radius * patient.uniform(0.92, 1.08)), outline(patient, 0.015, waves=3))
    edge = -soft_minimum(-edge, -room, 0.02)
    body = layer(body, 35.0, 0.6 * bump(edge, 0.012))
    body = layer(body, patient.uniform(-4, 10), inside(edge, 0.014))
    report = _report(kidney, place, _size(radius, 0.13), "water density", "smooth and thin-walled")
    return _Finding(body, edge < 0, report)


def _stone(
    patient: np.random.Generator, body: Field, kidney: _Kidney, x: Field, y: Field, cut: float
) -> _Finding:
    """One or two calculi or a staghorn in the collecting system, which may be dilated."""
    places = (("renal pelvis", 0.4, 0.0), ("anterior calyx", 0.16, -0.38), ("posterior calyx", 0.16, 0.38))
    first, second = patient.permutation(3)[:2]
    where, inwards, along = places[first]
    inwards, along = inwards + patient.normal(0, 0.04), along + patient.normal(0, 0.04)
    kind, ragged = patient.random(), outline(patient, 0.1)
    if patient.random() < 0.4:
        body = _dilated(patient, body, kidney, x, y)
    if kind < 0.2:
        where, radius = "renal pelvis", 0.036
        edge = _staghorn(kidney, x, y, patient.uniform(0.85, 1.0) * (0.7 + 0.3 * cut))
    else:
        radius = patient.uniform(0.027, 0.046 if kind < 0.75 else 0.032) * (0.6 + 0.4 * cut)
        shape, turn = (radius * patient.uniform(0.75, 1.0), radius), patient.uniform(0, np.pi)
        edge = blob(x, y, kidney.point(inwards, along), shape, ragged, turn)
        if kind >= 0.75:
            beside = (0.8 * radius, 0.9 * radius)
            edge = np.minimum(edge, ellipse(x, y, kidney.point(*places[second][1:]), beside, turn))
    body = layer(body, patient.uniform(600, 1300), inside(edge, 0.012))
    report = _report(kidney, where, _size(radius, 0.038), "calcific density", "sharp")
    return _Finding(body, edge < 0.003, report)


def _dilated(patient: np.random.Generator, body: Field, kidney: _Kidney, x: Field, y: Field) -> Field:
    """Hydronephrosis: urine widens the pelvis and, behind it, the calyces."""
    u, v = kidney.axes(x, y)
    deep, long = kidney.radii
    grade = patient.uniform(0.75, 1.15)
    urine = ellipse(u, v, (0.5 * deep, 0), (0.5 * deep * grade, 0.27 * long * grade))
    for along in (-0.4, 0.0, 0.4):
        centre = ((0.12 - 0.1 * (along == 0)) * deep, along * long)
        calyx = ellipse(u, v, centre, (0.24 * deep * grade, 0.17 * long * grade), -along)
        urine = soft_minimum(urine, calyx, 0.03)
    return layer(body, 8.0, inside(urine, 0.016))


def _staghorn(kidney: _Kidney, x: Field, y: Field, extent: float) -> Field:
    """Distance from a cast of the pelvis with a branch to each of two calyces."""
    u, v = kidney.axes(x, y)
    deep, long = kidney.radii
    cast = ellipse(u, v, (0.4 * deep, 0), (0.036 * extent, 0.022 * extent))
    for side in (-1, 1):
        centre = (0.24 * deep, 0.2 * side * long)
        branch = ellipse(u, v, centre, (0.016 * extent, 0.036 * extent), 0.6 * side)
        cast = soft_minimum(cast, branch, 0.008)
    return cast


def _tumour(
    patient: np.random.Generator,
    body: Field,
    kidney: _Kidney,
    x: Field,
    y: Field,
    room: Field,
    phase: _Phase,
    cut: float,
) -> _Finding:
    """A solid mass that bulges out of the kidney, lobulated, unevenly enhancing, necrotic in the middle."""
    radius = patient.uniform(0.09, 0.21) * cut
    inwards, along, place = _on_rim(patient, 0.75 + 1.6 * radius)
    at = _with_space(kidney, inwards, along, radius, x, y, room)
    ragged = outline(patient, patient.uniform(0.05, 0.1))
    edge = blob(x, y, at, (radius, radius * patient.uniform(0.8, 1.15)), ragged, patient.uniform(0, np.pi))
    edge = -soft_minimum(-edge, -room, 0.02)
    mottled = noise(patient, 11) + 0.6 * noise(patient, 22)
    swing = 0.28 * phase.tumour + 6
    necrotic = smoothstep(0.1, 0.9, mottled) * smoothstep(-0.015, -0.05, edge) * (radius > 0.09)
    tissue = layer(phase.tumour + swing * noise(patient, 18), 16.0, necrotic)
    body = layer(body, _FAT + 55, 0.5 * bump(edge - 0.03, 0.03) * smoothstep(0.2, 1, noise(patient, 20)))
    body = layer(body, tissue, inside(edge, 0.018))
    margin = "lobulated" if ragged.std() > 0.07 else "well-defined"
    report = _report(kidney, place, _size(radius, 0.16), "heterogeneous solid", margin)
    return _Finding(body, edge < 0, report)


def _scan(
    patient: np.random.Generator, image: np.random.Generator, pose: Pose, body: Field, site: _Site
) -> Field:
    """The slice as reconstructed and windowed: table, beam hardening, streaks, correlated noise, 0 to 1."""
    x, y = pose.grid()
    if patient.random() < 0.7:
        surface = y - 0.76 + 0.13 * np.square(x)
        table = np.maximum(bump(surface, 0.022), bump(surface - 0.1, 0.022)) * (np.abs(x) < 0.95)
        body = np.maximum(body, layer(np.full_like(x, _AIR), 40.0, table))
    seen = ndimage.gaussian_filter(body, site.sharpness)
    # The middle of a wide body gets the fewest photons, and more along its width than across it.
    dark = np.exp(-np.square(x / 0.7) - np.square(y / 0.5))
    speckle = site.noise * (0.5 + 0.9 * dark) * grain(image, 0.75)
    lengthwise = ndimage.gaussian_filter(image.standard_normal((SIZE, SIZE)), (0.6, 7.0))
    seen = seen + speckle + 1.6 * site.noise * dark * lengthwise
    if image.random() < 0.2:
        seen = seen + _streaks(image)
    return np.asarray((seen - site.level) / site.width + 0.5, np.float64)


def _streaks(image: np.random.Generator) -> Field:
    """Bright and dark rays from something dense or moving."""
    x, y = image.uniform(20, 140), image.uniform(30, 130)
    angle = np.arctan2(ROWS - y, COLUMNS - x)
    waves = sum(np.cos(order * angle + image.uniform(0, 6)) for order in (4, 10, 16, 22))
    fading = np.exp(-np.hypot(ROWS - y, COLUMNS - x) / 60)
    return np.asarray(image.uniform(6, 18) * waves * fading, np.float64)


DATASET = PhantomDataset(
    key="phantom-abdominal-ct",
    title="Abdominal CT phantoms",
    modality="abdominal CT",
    anatomy="kidney",
    class_names=("normal kidney", "kidney cyst", "kidney stone", "kidney tumor"),
    findings=(False, True, True, True),
    draw=_draw,
)
