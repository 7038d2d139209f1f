"""Contrast-enhanced T1 slices of the head, in the manner of the Figshare brain tumour collection.

Anatomies are drawn in units of half the head's height around its middle. Images of a patient are slices
through one tumour in one plane. Masks: the enhancing tumour with its necrotic core, without the oedema.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
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
    push,
    ribbons,
    rician,
)
from vmfcoop.data.phantoms.tissue import (
    Field,
    X,
    Y,
    bump,
    look_up,
    noise,
    outline,
    paint,
    smoothstep,
    soft_minimum,
)

_GLIOMA, _MENINGIOMA, _PITUITARY, _NORMAL = range(4)

# Signals on T1 after contrast.
_AIR, _BONE, _CSF, _MUSCLE = 0.03, 0.08, 0.15, 0.36
_GREY, _WHITE, _MARROW, _FAT, _ENHANCED = 0.47, 0.66, 0.5, 0.92, 0.97

_SKULL = 0.175
"""Depth of the brain below the skin of the calvarium."""


@dataclass(frozen=True)
class _Space:
    """The head in the image: coordinates of every pixel, pushed aside where there is a mass."""

    pose: Pose
    x: Field
    y: Field
    centre: tuple[float, float] = (0.0, 0.0)
    radius: float = 1.0
    strength: float = 0.0

    @classmethod
    def around(cls, pose: Pose, centre: tuple[float, float], radius: float, strength: float) -> _Space:
        return cls(pose, *push(*pose.grid(), centre, radius, strength), centre, radius, strength)

    def paint(self, lines: ArrayLike, widths: ArrayLike) -> Field:
        """Smooth lines through points ``(lines, points, 2)``, of widths ``(points,)``."""
        paths = curve(lines, 24)
        away = paths - self.centre
        share = self.strength * np.exp(-np.square(away).sum(axis=-1) / (2.2 * self.radius) ** 2)
        given = np.asarray(widths, np.float64)
        width = np.interp(np.linspace(0, 1, 24), np.linspace(0, 1, len(given)), given) * self.pose.scale
        return paint(ribbons(self.pose.to_pixels(paths + away * share[..., None]), width))


def _both_sides(line: ArrayLike) -> Field:
    """A line ``(points, 2)`` and its mirror image, ``(2, points, 2)``."""
    one = np.asarray(line, np.float64)
    return np.stack([one, one * [-1, 1]])


def _pairs(x: Field, y: Field, centre: tuple[float, float], radii: tuple[float, float], turn: float) -> Field:
    """Distance from an ellipse and its mirror image."""
    return ellipse(np.abs(x), y, centre, radii, turn)


def _folded(patient: np.random.Generator, x: Field, y: Field, depth: Field, width: float) -> Field:
    """Cerebral tissue at a depth below the surface: sulci run inwards between ribbons of grey matter."""
    angle = np.arctan2(x, -y) + 0.13 * noise(patient, 9)
    around = (angle + np.pi) / (2 * np.pi) * SIZE
    waves = look_up(noise(patient, 3, 58), around, depth / 0.55 * SIZE)
    reach = 0.2 + 0.06 * look_up(noise(patient, 1, 24), around, np.full_like(x, SIZE / 2))
    here = smoothstep(reach, 0.45 * reach, depth)
    islands = noise(patient, 15) + 0.6 * noise(patient, 24)
    ribbon_share = np.maximum(bump(waves, 0.8) * here, smoothstep(0.075, 0.035, depth))
    inner = 0.6 * bump(islands, 0.5) * smoothstep(0.36, 0.2, depth)
    tissue = layer(np.full_like(x, _WHITE), _GREY, np.maximum(ribbon_share, inner))
    tissue += 0.012 * noise(patient, 5) + 0.014 * islands
    sulci = bump(waves, 0.15 + 0.2 * width) * here * smoothstep(-0.02, 0.02, depth)
    return layer(tissue, _CSF + 0.05, 0.85 * sulci)


def _foliated(patient: np.random.Generator, distance: Field) -> Field:
    """Cerebellum: thin folia that follow its outline, and a branching white core."""
    folia = np.sin(110 * distance + 4 * noise(patient, 7) + 2.2 * noise(patient, 18))
    lobules = bump(noise(patient, 7, 12), 0.25) * smoothstep(-0.2, -0.05, distance)
    core = inside(distance + 0.13 + 0.035 * noise(patient, 12), 0.04)
    cortex = layer(_GREY + 0.11 * folia, _CSF, 0.5 * lobules)
    return layer(cortex, _WHITE - 0.02, 0.75 * core)


def _calvarium(patient: np.random.Generator, distance: Field, fat: float) -> Field:
    """Skin, fat, two tables of bone with marrow between them, and dura, by distance from the skin."""
    depth = -distance + 0.006 * noise(patient, 5)
    head = np.full_like(depth, _CSF)
    marrow = 0.5 * _MARROW * patient.uniform(0.4, 1.2) * (1 + 0.25 * noise(patient, 20))
    for low, high, value in (
        (-0.03, 0.015, 0.55 * fat + 0.2),
        (0.012, 0.075, fat),
        (0.07, 0.15, _BONE),
        (0.095, 0.12, np.maximum(marrow, _BONE)),
        (0.15, 0.158, 0.34),
    ):
        share = smoothstep(low - 0.008, low + 0.008, depth) * smoothstep(high + 0.008, high - 0.008, depth)
        head = layer(head, value, share)
    return head * inside(distance, 0.012)


def _axial_depth(x: Field, y: Field) -> Field:
    return -_SKULL - ellipse(x * (1 - 0.1 * y), y, (0, 0), (0.8, 1.0))


def _axial(patient: np.random.Generator, space: _Space, fat: float, ventricles: float) -> Field:
    """Slice through the bodies of the lateral ventricles and the deep nuclei."""
    x, y = space.x, space.y
    depth = _axial_depth(x, y)
    head = _calvarium(patient, -_SKULL - depth, fat)
    brain = _folded(patient, x, y, depth, ventricles)
    insula = _both_sides([(0.66, -0.26), (0.5, -0.16), (0.43, -0.02), (0.46, 0.12)])
    brain = layer(brain, _GREY, space.paint(insula, [0.16, 0.14, 0.12, 0.04]))
    brain = layer(brain, _CSF, 0.9 * space.paint(insula, np.array([0.05, 0.04, 0.03, 0.01]) * ventricles))
    for centre, radii, turn in (
        ((0.15, -0.24), (0.05, 0.11), -0.3),
        ((0.12, 0.07), (0.08, 0.13), -0.4),
        ((0.28, -0.06), (0.07, 0.16), -0.25),
    ):
        brain = layer(brain, _GREY + 0.02, 0.9 * inside(_pairs(x, y, centre, radii, turn), 0.015))
    horns = _both_sides([(0.17, -0.4), (0.09, -0.29), (0.05, -0.16), (0.055, -0.08)])
    atria = _both_sides([(0.06, -0.1), (0.1, 0.1), (0.22, 0.3), (0.27, 0.42), (0.2, 0.56)])
    water = np.maximum(
        space.paint(horns, np.array([0.03, 0.1, 0.06, 0.03]) * ventricles),
        space.paint(atria, np.array([0.01, 0.03, 0.11, 0.1, 0.02]) * ventricles),
    )
    third = space.paint([[(0, -0.06), (0, 0.06), (0, 0.16)]], np.array([0.01, 0.035, 0.02]) * ventricles)
    brain = layer(brain, _CSF, np.maximum(water, third))
    plexus = space.paint(_both_sides([(0.2, 0.29), (0.24, 0.36), (0.25, 0.42)]), [0.01, 0.05, 0.02])
    brain = layer(brain, 0.8, 0.7 * plexus)
    brain = _fissure(patient, brain, x, smoothstep(0.34, 0.42, np.abs(y + 0.02)))
    head = layer(head, brain, inside(-depth, 0.012))
    sinus = space.paint([[(0, 0.79), (0, 0.83), (0, 0.86)]], [0.03, 0.06, 0.1])
    return layer(head, _ENHANCED, 0.9 * sinus)


def _fissure(patient: np.random.Generator, brain: Field, x: Field, where: Field) -> Field:
    """The brain parted along x = 0, with the falx in the gap."""
    off = np.abs(x + 0.008 * noise(patient, 5))
    brain = layer(brain, _GREY, bump(off, 0.055) * where)
    brain = layer(brain, _CSF, bump(off, 0.022) * where)
    return layer(brain, 0.62, 0.8 * bump(off, 0.009) * where)


def _low_axial_depth(x: Field, y: Field) -> Field:
    temporal = -_pairs(x, y, (0.38, -0.1), (0.27, 0.37), -0.12)
    behind = -ellipse(x, y, (0, 0.44), (0.53, 0.37))
    stem = -ellipse(x, y, (0, 0.13), (0.16, 0.15))
    return np.maximum(np.maximum(temporal, behind), stem)


def _low_axial(patient: np.random.Generator, space: _Space, fat: float, ventricles: float) -> Field:
    """Slice through orbits, sella, temporal lobes, pons and cerebellum."""
    x, y = space.x, space.y
    distance = ellipse(x * (1 + 0.1 * y), y, (0, 0), (0.78, 1.0))
    head = _calvarium(patient, distance, fat)
    base = _BONE + 0.1 + 0.09 * noise(patient, 14, octaves=2)
    head = layer(head, base, inside(distance + 0.15, 0.02))
    head = layer(head, _MUSCLE, inside(_pairs(x, y, (0.63, -0.38), (0.07, 0.22), 0.25), 0.02))
    head = _orbits(patient, head, x, y, fat)
    head = layer(head, _CSF, inside(ellipse(x, y, (0, -0.08), (0.21, 0.17)), 0.03))
    temporal = -_pairs(x, y, (0.38, -0.1), (0.27, 0.37), -0.12)
    head = layer(
        head, _folded(patient, np.abs(x) - 0.38, y + 0.1, temporal, ventricles), inside(-temporal, 0.015)
    )
    horn = space.paint(_both_sides([(0.32, -0.16), (0.34, -0.05), (0.33, 0.06)]), [0.01, 0.03, 0.02])
    head = layer(head, _CSF, horn)
    cerebellum = ellipse(x, y, (0, 0.44), (0.53, 0.37))
    head = layer(head, _CSF, inside(cerebellum - 0.025, 0.015))
    head = layer(head, _foliated(patient, cerebellum), inside(cerebellum, 0.012))
    stem = np.minimum(ellipse(x, y, (0, 0.13), (0.16, 0.15)), _pairs(x, y, (0.2, 0.24), (0.14, 0.07), 0.5))
    head = layer(head, _WHITE - 0.05 + 0.015 * noise(patient, 12), inside(stem, 0.02))
    fourth = inside(ellipse(x, y, (0, 0.3), (0.09 * ventricles, 0.04)), 0.02)
    head = layer(head, _CSF, fourth)
    sinuses = space.paint(_both_sides([(0.5, 0.32), (0.56, 0.5), (0.42, 0.76)]), [0.03, 0.06, 0.05])
    head = layer(head, 0.88, sinuses * 0.8)
    return _sellar(head, x, y, _LOW_AXIAL_SELLA, behind=True)


def _orbits(patient: np.random.Generator, head: Field, x: Field, y: Field, fat: float) -> Field:
    """Eyes in their fat with muscles, and the air cells of the ethmoid between them."""
    cone = _pairs(x, y, (0.27, -0.56), (0.17, 0.27), 0.3)
    head = layer(head, 0.35 + 0.5 * fat, inside(cone, 0.02))
    for centre, radii in (((0.15, -0.52), (0.025, 0.16)), ((0.38, -0.52), (0.025, 0.16))):
        head = layer(head, 0.5, inside(_pairs(x, y, centre, radii, 0.3), 0.015))
    head = layer(head, 0.5, inside(_pairs(x, y, (0.24, -0.48), (0.025, 0.17), 0.3), 0.015))
    globe = _pairs(x, y, (0.3, -0.7), (0.135, 0.135), 0)
    head = layer(head, 0.6, inside(globe - 0.01, 0.012))
    head = layer(head, 0.2, inside(globe + 0.015, 0.012))
    head = layer(head, 0.5, inside(_pairs(x, y, (0.3, -0.79), (0.06, 0.025), 0), 0.012))
    cells = noise(patient, 16)
    ethmoid = inside(ellipse(x, y, (0, -0.6), (0.1, 0.27)), 0.02)
    return layer(head, np.where(np.abs(cells) < 0.4, 0.55, _AIR), ethmoid)


def _sellar(head: Field, x: Field, y: Field, sella: tuple[float, float], behind: bool) -> Field:
    """The normal gland, the carotid arteries at its sides, and the basilar artery where it is cut."""
    gland = inside(ellipse(x, y, sella, (0.075, 0.035)), 0.015)
    head = layer(head, 0.7, gland)
    carotids = inside(_pairs(x, y, (0.145, sella[1] + 0.015), (0.03, 0.035), 0), 0.015)
    head = layer(head, _ENHANCED, 0.85 * carotids)
    if not behind:
        return head
    return layer(head, _ENHANCED, inside(ellipse(x, y, (0, sella[1] + 0.18), (0.022, 0.022)), 0.02))


def _coronal_depth(x: Field, y: Field) -> Field:
    cerebrum = -ellipse(x, y, (0, -0.2), (0.66, 0.63))
    above_base = 0.06 - y + 0.9 * np.square(x)
    temporal = -_pairs(x, y, (0.4, 0.1), (0.25, 0.21), 0.25)
    return np.maximum(soft_minimum(cerebrum, above_base, 0.03), temporal)


def _coronal(patient: np.random.Generator, space: _Space, fat: float, ventricles: float) -> Field:
    """Slice through sella, third ventricle and temporal lobes, with the pharynx below."""
    x, y = space.x, space.y
    vault = ellipse(x, y, (0, -0.2), (0.66 + _SKULL, 0.63 + _SKULL))
    distance = np.minimum(vault, ellipse(x, y, (0, 0.55), (0.64, 0.85)))
    head = _face(patient, _calvarium(patient, vault, fat), distance, smoothstep(0.1, 0.28, y), fat)
    head = _pharynx(patient, head, x, y)
    depth = _coronal_depth(x, y)
    brain = _folded(patient, x, y + 0.1, depth, ventricles)
    sylvian = _both_sides([(0.64, 0.0), (0.5, -0.06), (0.4, -0.1), (0.4, -0.24)])
    brain = layer(brain, _GREY, space.paint(sylvian, [0.16, 0.15, 0.13, 0.06]))
    brain = layer(brain, _CSF, 0.9 * space.paint(sylvian, np.array([0.05, 0.04, 0.03, 0.02]) * ventricles))
    callosum = space.paint([[(-0.2, -0.4), (0, -0.36), (0.2, -0.4)]], [0.03, 0.07, 0.03])
    brain = layer(brain, _WHITE + 0.06, callosum)
    for centre, radii, turn in (((0.28, -0.12), (0.07, 0.11), 0.3), ((0.12, -0.14), (0.08, 0.08), 0.0)):
        brain = layer(brain, _GREY + 0.02, 0.9 * inside(_pairs(x, y, centre, radii, turn), 0.015))
    horns = _both_sides([(0.025, -0.27), (0.1, -0.28), (0.22, -0.34)])
    third = [[(0, -0.2), (0, -0.1), (0, 0.02)]]
    brain = layer(brain, _CSF, space.paint(horns, np.array([0.05, 0.09, 0.03]) * ventricles))
    brain = layer(brain, _CSF, space.paint(third, np.array([0.02, 0.035, 0.03]) * ventricles))
    brain = _fissure(patient, brain, x, smoothstep(-0.36, -0.44, y))
    head = layer(head, _CSF, inside(ellipse(x, y, (0, 0.1), (0.2, 0.1)), 0.03))
    head = layer(head, brain, inside(-depth, 0.012))
    sinus = space.paint([[(0, -0.77), (0, -0.8), (0, -0.84)]], [0.02, 0.06, 0.09])
    return _sellar(layer(head, _ENHANCED, 0.9 * sinus), x, y, _CORONAL_SELLA, behind=False)


def _face(patient: np.random.Generator, head: Field, distance: Field, where: Field, fat: float) -> Field:
    """Soft tissue of the face and neck below the calvarium: fat under the skin, then muscle."""
    strands = noise(patient, 11, octaves=2)
    tissue = layer(_MUSCLE + 0.07 * strands, 0.85 * fat, 0.8 * smoothstep(0.2, 1.0, strands))
    tissue = layer(tissue, fat, smoothstep(-0.09, -0.06, distance + 0.015 * strands))
    return layer(head, tissue, where) * inside(distance, 0.012)


def _pharynx(patient: np.random.Generator, head: Field, x: Field, y: Field) -> Field:
    """Sphenoid sinus, muscles of the jaw, its rami, and the airway of a coronal slice."""
    base = inside(np.abs(y - 0.34 - 0.05 * np.cos(6 * x)) - 0.035, 0.02) * (np.abs(x) < 0.6)
    head = layer(head, _BONE + 0.05, base)
    head = layer(head, _BONE, inside(ellipse(x, y, (0, 0.33), (0.24, 0.14)), 0.02))
    head = layer(head, _AIR, inside(ellipse(x, y, (0, 0.34), (0.19, 0.09)), 0.02))
    head = layer(
        head, 0.5, 0.8 * bump(x + 0.02, 0.012) * inside(ellipse(x, y, (0, 0.34), (0.19, 0.09)), 0.02)
    )
    for centre, radii, turn in (((0.3, 0.55), (0.1, 0.17), 0.2), ((0.57, 0.42), (0.05, 0.2), 0.1)):
        pterygoid = inside(_pairs(x, y, centre, radii, turn), 0.02)
        head = layer(head, _MUSCLE + 0.03 * noise(patient, 25, 12), pterygoid)
    ramus = _pairs(x, y, (0.46, 0.62), (0.04, 0.23), 0.08)
    head = layer(head, _BONE, inside(ramus, 0.012))
    head = layer(head, 0.75, inside(ramus + 0.02, 0.012))
    head = layer(head, _AIR, inside(ellipse(x, y, (0, 0.62), (0.12, 0.07)), 0.03))
    return layer(head, _MUSCLE + 0.06, inside(ellipse(x, y, (0, 0.9), (0.28, 0.17)), 0.04))


def _sagittal_depth(x: Field, y: Field) -> Field:
    cerebrum = -ellipse(x, y, (0.03, -0.26), (0.74, 0.54))
    floor = 0.06 - y + 0.05 * x + 0.1 * smoothstep(0.1, 0.3, x) - 0.05 * smoothstep(0.0, -0.4, x)
    return soft_minimum(cerebrum, floor, 0.05)


def _sagittal(patient: np.random.Generator, space: _Space, fat: float, ventricles: float) -> Field:
    """Slice near the midline with the face to the left."""
    x, y = space.x, space.y
    vault = ellipse(x, y, (0.03, -0.26), (0.74 + _SKULL, 0.54 + _SKULL))
    head = _calvarium(patient, vault, fat)
    head = _profile(patient, space, head, vault, fat)
    depth = _sagittal_depth(x, y)
    brain = _folded(patient, x, y + 0.15, depth, ventricles)
    body = [[(-0.24, -0.16), (-0.14, -0.27), (0.05, -0.29), (0.22, -0.22)]]
    brain = layer(brain, _CSF, 0.9 * space.paint(body, np.array([0.05, 0.1, 0.09, 0.05]) * ventricles))
    callosum = [[(-0.22, -0.1), (-0.31, -0.2), (-0.2, -0.34), (0.02, -0.37), (0.22, -0.32), (0.3, -0.2)]]
    brain = layer(brain, _GREY - 0.02, 0.7 * space.paint(callosum, [0.1, 0.14, 0.12, 0.12, 0.12, 0.12]))
    brain = layer(brain, _WHITE + 0.1, space.paint(callosum, [0.02, 0.07, 0.055, 0.05, 0.055, 0.08]))
    brain = layer(brain, _GREY + 0.04, inside(ellipse(x, y, (0.07, -0.14), (0.15, 0.085)), 0.02))
    head = layer(head, brain, inside(-depth, 0.012))
    head = _hindbrain(patient, space, head, ventricles)
    gland = inside(ellipse(x, y, _SAGITTAL_SELLA, (0.055, 0.035)), 0.015)
    stalk = space.paint([[(-0.09, 0.0), (-0.1, 0.06), (-0.11, 0.1)]], [0.02, 0.015, 0.02])
    return layer(head, 0.82, np.maximum(gland, 0.8 * stalk))


def _profile(patient: np.random.Generator, space: _Space, head: Field, vault: Field, fat: float) -> Field:
    """Face, mouth, airway and neck of a sagittal slice."""
    x, y = space.x, space.y
    nose = patient.uniform(0.9, 1.0)
    face = [(-0.8, -0.3), (-0.82, 0.0), (-nose, 0.24), (-0.84, 0.34), (-0.88, 0.48), (-0.84, 0.56)]
    neck = [(-0.84, 0.72), (-0.62, 0.84), (-0.3, 0.94), (-0.26, 1.4), (0.6, 1.4), (0.56, 0.7), (0.7, 0.2)]
    contour = curve([*face, *neck, (0.5, -0.3), (-0.4, -0.5)], 100, closed=True)
    skin = paint([space.pose.to_pixels(contour)])
    depth = np.minimum(ndimage.distance_transform_edt(skin > 0.5) / space.pose.scale, 1)
    below = smoothstep(0.0, 0.03, y - 0.1 + 0.12 * x) * smoothstep(-0.03, 0.0, vault + 0.17)
    strands = noise(patient, 12, octaves=2)
    tissue = layer(_MUSCLE + 0.06 * strands, 0.8 * fat, 0.8 * smoothstep(0.3, 1.2, strands))
    tissue = layer(tissue, fat, smoothstep(0.08, 0.05, depth))
    head = layer(head, tissue, skin * np.maximum(below, inside(-vault, 0.01)))
    for centre, radii, turn, value in (
        ((-0.27, 0.22), (0.13, 0.1), 0.2, _AIR),
        ((-0.66, -0.02), (0.05, 0.1), 0.2, _AIR),
        ((-0.58, 0.3), (0.22, 0.06), -0.1, _AIR),
        ((-0.55, 0.62), (0.24, 0.15), 0.15, _MUSCLE + 0.08),
        ((-0.78, 0.68), (0.05, 0.09), 0.1, 0.7),
    ):
        head = layer(head, value, inside(ellipse(x, y, centre, radii, turn), 0.03))
    turbinate = space.paint([[(-0.74, 0.31), (-0.58, 0.29), (-0.42, 0.31)]], [0.02, 0.05, 0.03])
    palate = space.paint(
        [[(-0.8, 0.42), (-0.55, 0.4), (-0.35, 0.42), (-0.22, 0.56)]], [0.04, 0.04, 0.04, 0.05]
    )
    airway = space.paint([[(-0.3, 0.34), (-0.17, 0.4), (-0.14, 0.65), (-0.16, 1.3)]], [0.08, 0.1, 0.07, 0.09])
    head = layer(layer(head, 0.6, turbinate), _AIR, airway)
    return layer(head, 0.55, palate)


def _hindbrain(patient: np.random.Generator, space: _Space, head: Field, ventricles: float) -> Field:
    """Clivus, brain stem and cord in their cerebrospinal fluid, cerebellum, vertebrae."""
    x, y = space.x, space.y
    fossa = inside(ellipse(x, y, (0.3, 0.16), (0.4, 0.26)), 0.02)
    head = layer(head, _CSF, fossa)
    line = [[(0.06, -0.06), (0.08, 0.08), (0.1, 0.2), (0.16, 0.4), (0.2, 0.7), (0.18, 1.4)]]
    head = layer(head, _CSF, space.paint(line, [0.2, 0.24, 0.3, 0.2, 0.17, 0.17]))
    clivus = space.paint([[(-0.07, 0.15), (-0.02, 0.26), (0.04, 0.42)]], [0.08, 0.1, 0.04])
    head = layer(head, 0.72, clivus)
    for number in range(5):
        centre = (0.03 + 0.012 * number, 0.56 + 0.17 * number)
        bone = ellipse(x, y, centre, (0.075, 0.068), 0.1)
        head = layer(layer(head, _BONE + 0.1, inside(bone - 0.02, 0.015)), 0.55, inside(bone, 0.02))
    cerebellum = ellipse(x, y, (0.43, 0.2), (0.23, 0.2), 0.3)
    head = layer(head, _foliated(patient, cerebellum), inside(cerebellum, 0.012))
    stem = space.paint(line, [0.13, 0.14, 0.21, 0.11, 0.085, 0.085])
    head = layer(head, _WHITE - 0.03 + 0.02 * noise(patient, 14), stem)
    fourth = space.paint([[(0.17, 0.08), (0.22, 0.18), (0.24, 0.2), (0.19, 0.32)]], [0.02, 0.05, 0.06, 0.02])
    return layer(head, _CSF, np.minimum(1, fourth * (0.5 + 0.5 * ventricles)))


_LOW_AXIAL_SELLA, _CORONAL_SELLA, _SAGITTAL_SELLA = (0.0, -0.22), (0.0, 0.19), (-0.12, 0.1)
_Site = tuple[float, float, str]


@dataclass(frozen=True)
class _View:
    """A plane and level.

    Attributes:
        plane: as reports say it.
        draw: (patient stream, space, signal of fat, width of the ventricles) -> signal.
        depth: below the surface of the brain.
        glioma: middles of lobes on the right of the picture.
        dura: directions (radians, clockwise from the right) in which a ray from ``core`` meets dura.
        core: where those rays start.
        sella: the gland; None where the level misses it.
    """

    plane: str
    draw: Callable[[np.random.Generator, _Space, float, float], Field]
    depth: Callable[[Field, Field], Field]
    glioma: tuple[_Site, ...]
    dura: tuple[tuple[float, str], ...]
    core: tuple[float, float]
    sella: tuple[float, float] | None


_AXIAL = _View(
    "axial",
    _axial,
    _axial_depth,
    (
        (0.33, -0.42, "frontal lobe"),
        (0.4, 0.05, "temporal lobe"),
        (0.36, 0.32, "parietal lobe"),
        (0.24, 0.52, "occipital lobe"),
    ),
    ((-0.9, "convexity"), (-0.3, "convexity"), (0.4, "convexity"), (0.9, "convexity")),
    (0.0, 0.0),
    None,
)
_LOW_AXIAL = _View(
    "axial",
    _low_axial,
    _low_axial_depth,
    ((0.38, -0.12, "temporal lobe"), (0.27, 0.45, "cerebellum"), (0.37, 0.05, "temporal lobe")),
    ((-1.0, "sphenoid wing"), (-0.3, "convexity"), (0.3, "convexity")),
    (0.36, -0.1),
    _LOW_AXIAL_SELLA,
)
_CORONAL = _View(
    "coronal",
    _coronal,
    _coronal_depth,
    ((0.32, -0.42, "frontal lobe"), (0.4, 0.06, "temporal lobe"), (0.36, -0.25, "parietal lobe")),
    ((-1.1, "convexity"), (-0.6, "convexity"), (-0.1, "convexity")),
    (0.0, -0.2),
    _CORONAL_SELLA,
)
_SAGITTAL = _View(
    "sagittal",
    _sagittal,
    _sagittal_depth,
    ((-0.4, -0.25, "frontal lobe"), (0.1, -0.5, "parietal lobe"), (0.45, -0.25, "occipital lobe")),
    ((-2.6, "convexity"), (-2.0, "convexity"), (-1.2, "convexity"), (-0.6, "convexity")),
    (0.03, -0.25),
    _SAGITTAL_SELLA,
)


@dataclass(frozen=True)
class _Tumour:
    """A lesion before it is drawn: where, how large, how the brain gives way, and what a report says."""

    centre: tuple[float, float]
    radius: float
    effect: float
    foot: tuple[float, float]
    side: str
    location: str


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    view = _view(patient, label)
    pose, mirrored = _pose(patient, image, view)
    tumour = _tumour(patient, image, view, label)
    space = _Space.around(pose, tumour.centre, tumour.radius, tumour.effect)
    fat = _FAT * patient.choice([1.0, 0.85, 0.45])
    widening = patient.uniform(0.7, 1.5) * image.uniform(0.85, 1.15)
    head = view.draw(patient, space, fat, widening)
    head, mask, findings = _with_tumour(patient, head, view, pose, tumour, label)
    seen = _scan(patient, image, head)
    if mirrored:
        seen, mask = seen[:, ::-1], mask[:, ::-1]
    attributes = {"view": view.plane, "side": tumour.side, "location": tumour.location, **findings}
    return Phantom(grey(seen), np.ascontiguousarray(mask), attributes)


def _view(patient: np.random.Generator, label: int) -> _View:
    """A third of the patients in each plane; only low axial slices show the sella."""
    plane, low = patient.integers(0, 3), patient.random() < 0.5
    if plane == 0:
        return _LOW_AXIAL if low or label == _PITUITARY else _AXIAL
    return _CORONAL if plane == 1 else _SAGITTAL


def _pose(patient: np.random.Generator, image: np.random.Generator, view: _View) -> tuple[Pose, bool]:
    """Field of view and lie of the head; the direction a sagittal face looks in is the site's."""
    scale = patient.uniform(62, 77)
    x, y = 79.5 + image.normal(0, 2, 2) + patient.normal(0, 2.5, 2)
    turn = patient.normal(0, 0.06) + image.normal(0, 0.03)
    stretch = patient.uniform(0.92, 1.06)
    mirrored = view.plane == "sagittal" and patient.random() < 0.3
    return Pose(x, y + 4, scale, turn, stretch), mirrored


def _tumour(patient: np.random.Generator, image: np.random.Generator, view: _View, label: int) -> _Tumour:
    """Where the patient's tumour is; slices cut it at different widths."""
    sign = float(patient.choice([-1, 1])) if view.plane != "sagittal" else 1.0
    side = "unspecified" if view.plane == "sagittal" else "right" if sign < 0 else "left"
    size, cut = patient.uniform(0, 1), image.uniform(0.82, 1.0)
    if label == _GLIOMA:
        x, y, location = view.glioma[patient.integers(len(view.glioma))]
        centre = (sign * (x + patient.normal(0, 0.03)), y + patient.normal(0, 0.04))
        return _Tumour(centre, (0.13 + 0.15 * size) * cut, 0.3, centre, side, location)
    if label == _MENINGIOMA:
        return _meningioma_site(patient, view, sign, side, (0.1 + 0.14 * size) * cut)
    if label == _PITUITARY:
        assert view.sella is not None
        radius = (0.085 + 0.1 * size) * cut
        lift = 0.0 if view is _LOW_AXIAL else -0.45 * radius
        centre = (view.sella[0], view.sella[1] + lift)
        return _Tumour(centre, radius, 0.25, centre, "midline", "sella")
    return _Tumour((0.0, 0.0), 1.0, 0.0, (0.0, 0.0), "none", "none")


def _meningioma_site(
    patient: np.random.Generator, view: _View, sign: float, side: str, radius: float
) -> _Tumour:
    """On the falx, or where a ray from the core of the brain meets its surface."""
    if view in (_AXIAL, _CORONAL) and patient.random() < 0.3:
        y = -0.62 if view is _CORONAL else patient.choice([-0.6, 0.58])
        return _Tumour((sign * 0.8 * radius, y), radius, 0.4, (0.0, y), side, "falx")
    angle, location = view.dura[patient.integers(len(view.dura))]
    angle += patient.normal(0, 0.1)
    along = np.arange(0.05, 1.2, 0.005)[None]
    ray = (view.core[0] + along * np.cos(angle), view.core[1] + along * np.sin(angle))
    reach = along[0, int(np.argmax(view.depth(*ray)[0] < 0))]
    foot, out = np.array(view.core), np.array([np.cos(angle), np.sin(angle)])
    foot = foot + reach * out
    centre = foot - 0.72 * radius * out
    flip = np.array([sign, 1.0])
    (cx, cy), (fx, fy) = centre * flip, foot * flip
    return _Tumour((float(cx), float(cy)), radius, 0.4, (float(fx), float(fy)), side, location)


_Findings = Mapping[str, str]


def _with_tumour(
    patient: np.random.Generator, head: Field, view: _View, pose: Pose, tumour: _Tumour, label: int
) -> tuple[Field, NDArray[np.bool_], _Findings]:
    """The head with the tumour, its mask, and the rest of the report."""
    x, y = pose.grid()
    depth = view.depth(x, y)
    if label == _GLIOMA:
        return _glioma(patient, head, x, y, depth, tumour)
    if label == _MENINGIOMA:
        return _meningioma(patient, head, x, y, depth, tumour)
    if label == _PITUITARY:
        return _pituitary(patient, head, x, y, tumour)
    return head, np.zeros((SIZE, SIZE), np.bool_), _report("none", "none", "none", "none")


def _report(size: str, margin: str, enhancement: str, oedema: str) -> _Findings:
    return {"size": size, "margin": margin, "enhancement": enhancement, "edema": oedema}


def _size(radius: float, large: float) -> str:
    """In words; what counts as large depends on the tumour."""
    return "small" if radius < 0.65 * large else "medium" if radius < large else "large"


def _glioma(
    patient: np.random.Generator, head: Field, x: Field, y: Field, depth: Field, tumour: _Tumour
) -> tuple[Field, NDArray[np.bool_], _Findings]:
    """Infiltrates: oedema in fingers along the white matter, a ragged ring around necrosis or patches."""
    within = inside(-depth - 0.01, 0.02)
    radius, ratio = tumour.radius, patient.uniform(0.75, 1.0)
    turn, ragged = patient.uniform(0, np.pi), outline(patient, patient.uniform(0.06, 0.12), waves=4)
    core = blob(x, y, tumour.centre, (radius, radius * ratio), ragged, turn)
    core += 0.1 * radius * noise(patient, 13) + 0.008 * noise(patient, 30)
    swelling = patient.uniform(0.05, 0.22)
    reach = core - swelling * (0.75 + 0.55 * noise(patient, 9))
    head = layer(head, 0.33, 0.9 * inside(reach, 0.05) * within * smoothstep(0.03, 0.1, depth))
    kind = patient.choice(["ring", "ring", "patchy"])
    mottled = noise(patient, 18, octaves=2)
    if kind == "ring":
        thickness = (0.028 + 0.2 * radius * patient.uniform(0.3, 1)) * (1 + 0.4 * noise(patient, 7))
        necrosis = inside(core + thickness, 0.03)
        tissue = layer(0.88 + 0.1 * mottled, 0.24 + 0.05 * mottled, necrosis)
    else:
        clumps = noise(patient, 9) + 0.4 * mottled
        # Some of every such tumour enhances.
        threshold = float(np.quantile(clumps[core < 0], 0.6))
        patches = smoothstep(threshold - 0.2, threshold + 0.4, clumps)
        tissue = layer(0.36 + 0.04 * mottled, 0.85 + 0.08 * mottled, patches)
    share = inside(core, 0.03) * within
    oedema = "marked" if swelling > 0.12 else "mild"
    findings = _report(_size(radius, 0.22), "infiltrative", str(kind), oedema)
    return layer(head, tissue, share), share > 0.5, findings


def _meningioma(
    patient: np.random.Generator, head: Field, x: Field, y: Field, depth: Field, tumour: _Tumour
) -> tuple[Field, NDArray[np.bool_], _Findings]:
    """Sits on dura, round and even, with a cleft of fluid towards the brain and a tail along the dura."""
    radius = tumour.radius
    axis = np.arctan2(tumour.centre[1] - tumour.foot[1], tumour.centre[0] - tumour.foot[0])
    smooth = outline(patient, 0.045, waves=4)
    body = blob(x, y, tumour.centre, (radius, radius * patient.uniform(1.0, 1.3)), smooth, axis)
    on_falx = tumour.location == "falx"
    free = x * np.sign(tumour.centre[0]) + 0.01 if on_falx else depth + 0.012
    room = smoothstep(-0.015, 0.015, free)
    swelling = patient.choice([0.0, 0.05, 0.1])
    halo = inside(body - swelling * (0.8 + 0.5 * noise(patient, 9)), 0.05) * (swelling > 0)
    head = layer(head, 0.36, 0.8 * halo * smoothstep(0.03, 0.08, depth) * room)
    head = layer(head, _CSF, 0.65 * bump(body - 0.018, 0.018) * room * smoothstep(0, 0.02, depth))
    from_foot = np.hypot(x - tumour.foot[0], y - tumour.foot[1]) / radius
    tail = bump(free - 0.006, 0.02) * smoothstep(2.1, 1.1, from_foot)
    head = layer(head, _ENHANCED, 0.9 * tail)
    value = patient.uniform(0.84, 0.98) + 0.025 * noise(patient, 14)
    share = inside(body, 0.018) * room
    oedema = ("none", "mild", "marked")[round(float(swelling) * 20)]
    findings = _report(_size(radius, 0.19), "well circumscribed", "homogeneous", oedema)
    return layer(head, value, share), share > 0.5, findings


def _pituitary(
    patient: np.random.Generator, head: Field, x: Field, y: Field, tumour: _Tumour
) -> tuple[Field, NDArray[np.bool_], _Findings]:
    """Fills the sella, bulges above it with a waist, sometimes with a cyst."""
    radius, smooth = tumour.radius, outline(patient, 0.06, waves=4)
    body = blob(x, y, tumour.centre, (radius, radius * patient.uniform(0.85, 1.2)), smooth)
    if patient.random() < 0.5:
        above = (tumour.centre[0] + patient.normal(0, 0.01), tumour.centre[1] - radius * 0.9)
        body = soft_minimum(body, ellipse(x, y, above, (0.7 * radius, 0.65 * radius)), 0.02)
    value = patient.uniform(0.74, 0.92) + 0.04 * noise(patient, 14)
    cystic = patient.random() < 0.3
    hollow = ellipse(x, y, tumour.centre, (0.5 * radius, 0.4 * radius))
    value = layer(value, 0.34, inside(hollow, 0.03) * cystic)
    head = layer(head, _CSF, 0.6 * bump(body - 0.02, 0.016))
    share = inside(body, 0.018)
    enhancement = "heterogeneous" if cystic else "homogeneous"
    findings = _report(_size(radius, 0.15), "well circumscribed", enhancement, "none")
    return layer(head, value, share), share > 0.5, findings


def _scan(patient: np.random.Generator, image: np.random.Generator, head: Field) -> Field:
    """What the site's scanner makes of the signal: resolution, ghosts, coil shading, noise, window."""
    blurred = ndimage.gaussian_filter(head, patient.uniform(0.45, 0.95))
    ghost = max(0.0, image.normal(0.0, 0.05))
    shift = int(image.integers(12, 70))
    blurred = blurred + ghost * (np.roll(blurred, shift, 0) + np.roll(blurred, -shift, 0)) * 0.5
    shading = patient.normal(0, 0.14, 4)
    coil = np.exp(shading[0] * X + shading[1] * Y - np.abs(shading[2]) * (X * X + Y * Y) + shading[3] * X * Y)
    contrast = patient.uniform(0.8, 1.25)
    signal = rician(image, blurred * coil, patient.uniform(0.008, 0.035))
    signal = signal + 0.01 * grain(image, 1.0)
    gain = patient.uniform(0.85, 1.25) * image.uniform(0.95, 1.05)
    return np.asarray(gain * np.clip(signal, 0, None) ** contrast, np.float64)


DATASET = PhantomDataset(
    key="phantom-brain-mri",
    title="Brain MRI phantoms",
    modality="contrast-enhanced T1-weighted MRI",
    anatomy="brain",
    class_names=("glioma tumor", "meningioma tumor", "pituitary tumor", "normal brain"),
    findings=(True, True, True, False),
    draw=_draw,
)
