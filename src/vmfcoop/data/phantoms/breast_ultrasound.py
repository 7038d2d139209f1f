"""B-mode ultrasound of the breast, in the manner of BUSI.

The image is formed as a scanner does it: tissue is a map of echogenicity and attenuation, scatterers are
complex Gaussian noise, a point spread function blurs them into speckle, and the envelope is compressed
logarithmically. Shadows and enhancement follow from the attenuation on the way. Images of a patient show one
lesion with other probe pressure, gain and speckle. Masks: the lesion without its halo.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.texture import (
    blob,
    curve,
    grain,
    grey,
    inside,
    layer,
    stamp,
    turned,
    within_borders,
)
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    HALF,
    ROWS,
    Field,
    bump,
    noise,
    outline,
    paint,
    radius_at,
    ribbon,
    smoothstep,
)

_BENIGN, _MALIGNANT, _NORMAL = range(3)

# Echogenicity in decibels.
_SKIN, _FAT_LOBULE, _GLAND, _SEPTUM, _MUSCLE_ECHO, _FASCIA = 12.0, -10.0, 1.0, 7.0, -9.0, 10.0


@dataclass(frozen=True)
class _Tissue:
    """Echogenicity in decibels, and attenuation in decibels a pixel above what the scanner compensates."""

    echo: Field
    loss: Field


@dataclass(frozen=True)
class _Lesion:
    """What images of one lesion share.

    Attributes:
        x, y: its centre in pixels.
        radii: horizontal and vertical half axes in pixels.
        turn: of the axes in radians.
        outline: radius over the angle.
        echo: decibels against the gland.
        loss: attenuation a pixel in decibels.
        halo: width of the echogenic rim in pixels, 0 for none.
        softness: width of the margin in pixels.
        calcifications: how many.
        report: of its look.
    """

    x: float
    y: float
    radii: tuple[float, float]
    turn: float
    outline: Field
    echo: float
    loss: float
    halo: float
    softness: float
    calcifications: int
    report: Mapping[str, str]

    def distance(self) -> Field:
        """From its margin in pixels, negative inside."""
        return blob(COLUMNS, ROWS, (self.x, self.y), self.radii, self.outline, self.turn)


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    tissue = _breast(patient)
    mask = np.zeros((SIZE, SIZE), np.bool_)
    lesion = _lesion(patient, label)
    lesion = replace(lesion, x=lesion.x + image.normal(0, 3), y=lesion.y + image.normal(0, 1.5))
    report = lesion.report
    if label != _NORMAL:
        distance = lesion.distance()
        tissue = _with_lesion(patient, tissue, lesion, distance)
        mask = distance < 0
    seen = _scan(patient, image, tissue)
    seen, shown = _screen(patient, image, seen, lesion)
    return Phantom(grey(seen), mask & shown, report)


def _breast(patient: np.random.Generator) -> _Tissue:
    """Skin, subcutaneous fat, gland, retromammary fat, pectoral muscle, sometimes ribs."""
    wave = 5 * noise(patient, 3, 4)
    depth = ROWS + wave
    skin = patient.uniform(5, 10)
    fat = skin + patient.uniform(10, 36)
    gland = fat + patient.uniform(40, 75)
    muscle = gland + patient.uniform(3, 12)
    chest = muscle + patient.uniform(14, 26)
    lobules = _fat_lobules(patient)
    echo = layer(lobules, _gland(patient), smoothstep(fat - 4, fat + 4, depth + 4 * noise(patient, 7)))
    echo = layer(echo, lobules, smoothstep(gland - 4, gland + 4, depth))
    fibres = 3.5 * noise(patient, 46, 7) + 2 * noise(patient, 60, 20)
    echo = layer(echo, _MUSCLE_ECHO + fibres, smoothstep(muscle - 1.5, muscle + 1.5, depth))
    echo = echo + 17 * bump(depth - muscle, 1.3) * (0.7 + 0.3 * noise(patient, 3, 8))
    echo = echo + 14 * bump(depth - chest, 1.6)
    echo = layer(echo, -16.0 + 0 * echo, smoothstep(chest + 2, chest + 10, depth))
    surface = ROWS + 0.2 * wave
    echo = layer(echo, _SKIN + 0 * echo, smoothstep(skin + 1, skin - 1, surface))
    echo = echo - 9 * bump(surface - 0.55 * skin, 0.22 * skin) + 1.5 * noise(patient, 20) * (surface < skin)
    loss = 0.05 * noise(patient, 5) * (depth < gland)
    tissue = _Tissue(echo, loss)
    tissue = _coopers(patient, tissue, fat)
    return _ribs(patient, tissue, chest) if patient.random() < 0.3 else tissue


def _fat_lobules(patient: np.random.Generator) -> Field:
    """Dark lobules between thin echogenic septa, flattened by the probe."""
    septa = np.minimum(np.abs(noise(patient, 8, 5)), np.abs(noise(patient, 7, 4)))
    return np.asarray(_FAT_LOBULE + 1.5 * noise(patient, 12) + (_SEPTUM - _FAT_LOBULE) * bump(septa, 0.11))


def _gland(patient: np.random.Generator) -> Field:
    """Fibroglandular tissue: bands along the skin, islands of fat, dark ducts, as dense as the patient's."""
    density = patient.uniform(-0.7, 1.1)
    bands = 2.6 * noise(patient, 26, 8) + 1.6 * noise(patient, 40, 16)
    islands = smoothstep(density, density + 0.5, noise(patient, 7, 5) + 0.35 * noise(patient, 14))
    ducts = bump(noise(patient, 9, 4), 0.12) * smoothstep(0.2, 0.9, noise(patient, 4))
    gland = layer(_GLAND + bands, _FAT_LOBULE + 2 + 0.6 * bands, 0.8 * islands)
    return layer(gland, -13.0 + 0 * gland, 0.7 * ducts)


def _coopers(patient: np.random.Generator, tissue: _Tissue, fat: float) -> _Tissue:
    """Ligaments that cross the fat obliquely, bright where they face the beam, with faint shadows."""
    lines = []
    for _ in range(int(patient.integers(2, 6))):
        x, lean = patient.uniform(0, SIZE), patient.uniform(-30, 30)
        points = [(x, 8), (x + 0.3 * lean, 0.5 * fat), (x + lean, fat), (x + 1.6 * lean, fat + 16)]
        lines.append(ribbon(curve(points, 16), np.full(16, patient.uniform(1.0, 2.2))))
    ligaments = ndimage.gaussian_filter(paint(lines), 0.6)
    return _Tissue(tissue.echo + 13 * ligaments, tissue.loss + 0.35 * ligaments)


def _ribs(patient: np.random.Generator, tissue: _Tissue, chest: float) -> _Tissue:
    """One or two ribs in cross section: a bright cap and a complete shadow."""
    echo, loss = tissue.echo, tissue.loss
    first = patient.uniform(10, 80)
    for x in (first, first + patient.uniform(75, 95)):
        half = patient.uniform(13, 21)
        top = chest - patient.uniform(4, 9) + 9 * np.square((COLUMNS - x) / half)
        near = smoothstep(half + 2, half - 4, np.abs(COLUMNS - x + 2 * noise(patient, 9)))
        echo = echo + 22 * bump(ROWS - top, 1.8) * near
        loss = loss + 3.0 * bump(ROWS - top - 2, 3.0) * near
    return _Tissue(echo, loss)


def _lesion(patient: np.random.Generator, label: int) -> _Lesion:
    """A lesion as its class tends to be; for normal breasts, a place that callipers may mark."""
    x, y = patient.uniform(48, 112), patient.uniform(52, 88)
    if label == _BENIGN:
        return _benign(patient, x, y)
    if label == _MALIGNANT:
        return _malignant(patient, x, y)
    words = ("size", "shape", "orientation", "margin", "echo pattern", "posterior features", "calcifications")
    plain = outline(patient, 0.05)
    radii = (patient.uniform(14, 32), patient.uniform(10, 20))
    return _Lesion(x, y, radii, 0.0, plain, 0.0, 0.0, 0.0, 1.0, 0, dict.fromkeys(words, "none"))


def _size(mean_radius: float) -> str:
    return "small" if mean_radius < 15 else "medium" if mean_radius < 22 else "large"


def _benign(patient: np.random.Generator, x: float, y: float) -> _Lesion:
    """Cyst or fibroadenoma: oval, parallel to the skin, circumscribed, sound passes easily."""
    width = patient.uniform(12, 34)
    flatness = patient.uniform(0.5, 0.92)
    cystic = patient.random() < 0.3
    gain = patient.choice([-0.32, -0.22, 0.02])
    lobed = patient.random() < 0.3
    calcified = bool(patient.random() < 0.12) and not cystic
    report = {
        "size": _size(width * np.sqrt(flatness)),
        "shape": "round" if flatness > 0.85 else "oval",
        "orientation": "parallel",
        "margin": "gently lobulated" if lobed else "circumscribed",
        "echo pattern": "anechoic" if cystic else "hypoechoic",
        "posterior features": "enhancement" if cystic or gain < 0 else "none",
        "calcifications": "coarse" if calcified else "none",
    }
    return _Lesion(
        x,
        y,
        (width, width * flatness),
        patient.normal(0, 0.12),
        outline(patient, 0.07 if lobed else 0.025, waves=3),
        -34.0 if cystic else patient.uniform(-17, -11),
        -0.32 if cystic else float(gain),
        0.0,
        patient.uniform(0.6, 1.6),
        3 * calcified,
        report,
    )


def _malignant(patient: np.random.Generator, x: float, y: float) -> _Lesion:
    """Carcinoma: irregular, often taller than wide, spiculated, angular or indistinct, absorbs sound."""
    height = patient.uniform(13, 30)
    slimness = patient.uniform(0.6, 0.95) if patient.random() < 0.65 else patient.uniform(1.05, 1.5)
    margin = str(patient.choice(["spiculated", "angular", "microlobulated", "indistinct"]))
    loss = float(patient.choice([0.45, 0.28, 0.02], p=[0.45, 0.3, 0.25]))
    calcifications = int(patient.integers(4, 12)) if patient.random() < 0.45 else 0
    report = {
        "size": _size(height * np.sqrt(slimness)),
        "shape": "irregular",
        "orientation": "not parallel" if slimness < 1 else "parallel",
        "margin": margin,
        "echo pattern": "hypoechoic",
        "posterior features": "shadowing" if loss > 0.1 else "none",
        "calcifications": "punctate" if calcifications else "none",
    }
    return _Lesion(
        x,
        y,
        (height * slimness, height),
        patient.normal(0, 0.25),
        _malignant_outline(patient, margin),
        patient.uniform(-20, -13),
        loss,
        patient.uniform(3, 7) if patient.random() < 0.75 else 0.0,
        5.0 if margin == "indistinct" else patient.uniform(1.2, 2.2),
        calcifications,
        report,
    )


def _malignant_outline(patient: np.random.Generator, margin: str) -> Field:
    """Radius over 256 angles."""
    radii = outline(patient, 0.13, waves=5)
    angles = np.arange(256) * 2 * np.pi / 256
    if margin == "microlobulated":
        return np.asarray(radii + 0.08 * np.abs(np.sin(patient.integers(5, 9) * angles + 1)), np.float64)
    spikes = np.zeros(256)
    sharp, count = (
        (0.09, patient.integers(8, 14)) if margin == "spiculated" else (0.22, patient.integers(3, 6))
    )
    for at in patient.uniform(0, 2 * np.pi, count if margin != "indistinct" else 3):
        away = np.abs((angles - at + np.pi) % (2 * np.pi) - np.pi)
        spikes = np.maximum(spikes, patient.uniform(0.15, 0.5) * np.clip(1 - away / (2 * sharp), 0, 1))
    return np.asarray(radii * (0.92 + spikes), np.float64)


def _with_lesion(patient: np.random.Generator, tissue: _Tissue, lesion: _Lesion, distance: Field) -> _Tissue:
    """The breast with the lesion in it: its echoes, its rim, what it takes from the beam."""
    share = inside(distance, lesion.softness)
    patchy = 1.6 * noise(patient, 14) + 1.2 * noise(patient, 24)
    echo = tissue.echo
    if lesion.halo:
        rim = bump(distance - 0.7 * lesion.halo, lesion.halo) * (1 - share)
        echo = layer(echo, np.maximum(echo, _GLAND + 5), 0.9 * rim * smoothstep(-1, 0.3, noise(patient, 7)))
    echo = layer(echo, lesion.echo + patchy * (lesion.echo > -30), share)
    loss = layer(tissue.loss, lesion.loss + 0 * distance, inside(distance, 3.0))
    if lesion.report["margin"] in ("circumscribed", "gently lobulated"):
        echo = echo + 9 * bump(distance, 1.0) * _facing(lesion)
        sides = bump(np.abs(COLUMNS - lesion.x) - lesion.radii[0] + 1, 2.2) * bump(ROWS - lesion.y, 8.0)
        loss = loss + 0.45 * sides
    echo = echo + _reflectors(patient, lesion)
    return _Tissue(echo, loss)


def _facing(lesion: _Lesion) -> Field:
    """How far the capsule lies across the beam: 1 above and below the lesion, 0 beside it."""
    u, v = turned(COLUMNS - lesion.x, ROWS - lesion.y, lesion.turn)
    u, v = u / lesion.radii[0], v / lesion.radii[1]
    return np.asarray(np.square(v) / (np.square(u) + np.square(v) + 1e-6), np.float64)


def _reflectors(patient: np.random.Generator, lesion: _Lesion) -> Field:
    """Calcifications inside the lesion, in decibels above it."""
    added = np.zeros((SIZE, SIZE))
    coarse = lesion.report["calcifications"] == "coarse"
    for _ in range(lesion.calcifications):
        angle, share = patient.uniform(0, 2 * np.pi), 0.75 * np.sqrt(patient.random())
        share *= float(radius_at(lesion.outline, angle))
        x = lesion.x + share * lesion.radii[0] * np.cos(angle)
        y = lesion.y + share * lesion.radii[1] * np.sin(angle)
        added += (26 if coarse else 22) * bump(np.hypot(COLUMNS - x, ROWS - y), 2.0 if coarse else 0.9)
    return added


def _scan(patient: np.random.Generator, image: np.random.Generator, tissue: _Tissue) -> Field:
    """B-mode image of the tissue: speckle of the site's probe, attenuation, gain, compression, 0 to 1."""
    focus, axial = patient.uniform(50, 110), patient.uniform(0.55, 0.95)
    narrow, wide = patient.uniform(0.8, 1.4), patient.uniform(1.9, 3.2)
    looks = int(patient.choice([1, 2, 3]))
    level = tissue.echo - np.cumsum(tissue.loss, axis=0)
    level = level - 0.03 * patient.uniform(0, 2.2) * np.maximum(ROWS - focus, 0)
    amplitude = 10 ** (level / 20)
    defocus = smoothstep(10, 75, np.abs(ROWS - focus))
    intensity = sum(_look(image, amplitude, axial, narrow, wide, defocus) for _ in range(looks)) / looks
    electronic = 10 ** (-patient.uniform(34, 42) / 20) * np.abs(grain(image, 0.5))
    decibels = 20 * np.log10(np.sqrt(intensity) + electronic + 1e-6)
    span, top = patient.uniform(44, 62), patient.uniform(11, 19) + image.normal(0, 1.2)
    tgc = 3 * noise(image, 2, 1)
    seen = np.clip((decibels + tgc - top) / span + 1, 0, 1) ** patient.uniform(0.85, 1.4)
    return np.asarray(ndimage.gaussian_filter(seen, patient.uniform(0.25, 0.6)), np.float64)


def _look(
    image: np.random.Generator, amplitude: Field, axial: float, narrow: float, wide: float, defocus: Field
) -> Field:
    """Intensity of fully developed speckle, ``|psf * scatterers|^2``, of mean ``amplitude`` squared.

    The lateral width of the point spread grows from the focus on, as a mixture of a narrow and a wide one.
    """
    total = np.zeros((SIZE, SIZE))
    for _ in range(2):
        scatterers = amplitude * image.standard_normal((SIZE, SIZE))
        near, far = (
            ndimage.gaussian_filter(scatterers, (axial, lateral), truncate=3)
            * np.sqrt(4 * np.pi * axial * lateral)
            for lateral in (narrow, wide)
        )
        total += np.square(layer(near, far, defocus)) / 2
    return total


def _screen(
    patient: np.random.Generator, image: np.random.Generator, seen: Field, lesion: _Lesion
) -> tuple[Field, NDArray[np.bool_]]:
    """What the console adds: black borders, the sector's edges, scales, callipers; and where tissue shows."""
    shown = within_borders(patient, 16, 0.4)
    if patient.random() < 0.25:
        slope = patient.uniform(0.05, 0.16)
        shown &= np.abs(COLUMNS + 0.5 - HALF) < HALF - slope * (SIZE - ROWS)
    seen = np.where(shown, seen, 0.01)
    if patient.random() < 0.35:
        seen = np.maximum(seen, 0.7 * ((ROWS % 20 == 10) & (COLUMNS >= SIZE - 5) & (COLUMNS < SIZE - 1)))
    if patient.random() < 0.15:
        bar = (np.abs(COLUMNS - 4) < 2.5) & (np.abs(ROWS - 40) < 26)
        seen = np.where(bar, (66 - ROWS) / 52, seen)
    if image.random() < 0.35:
        seen = np.maximum(seen, 0.9 * _callipers(lesion))
    return seen, shown


def _callipers(lesion: _Lesion) -> Field:
    """Crosses at the ends of two axes with dots between them; in normal breasts around nothing."""
    marks = np.zeros((SIZE, SIZE))
    for turn, radius in ((lesion.turn, lesion.radii[0]), (lesion.turn + np.pi / 2, lesion.radii[1])):
        reach = radius * float(radius_at(lesion.outline, turn - lesion.turn))
        step = np.array([np.cos(turn), np.sin(turn)])
        for sign in (-1, 1):
            x, y = np.array([lesion.x, lesion.y]) + sign * (reach + 1) * step
            marks = np.maximum(marks, stamp("+", int(x) - 1, int(y) - 2))
        dots = np.array([lesion.x, lesion.y]) + np.arange(-reach, reach, 5)[:, None] * step
        columns, rows = np.clip(np.rint(dots).astype(int), 0, SIZE - 1).T
        marks[rows, columns] = np.maximum(marks[rows, columns], 0.6)
    return marks


DATASET = PhantomDataset(
    key="phantom-breast-ultrasound",
    title="Breast ultrasound phantoms",
    modality="B-mode ultrasound",
    anatomy="breast",
    class_names=("benign tumor", "malignant tumor", "normal scan"),
    findings=(True, True, False),
    draw=_draw,
)
