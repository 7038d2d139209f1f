"""Colorectal tissue in haematoxylin and eosin, in the manner of the patches of NCT-CRC-HE.

A section is two optical densities, one a stain; light passes through both. Images of a patient are patches of
one stained slide. The findings, which have masks, are tumour glands (their epithelium and lumens) and
lymphocytes (their aggregate); normal glands, stroma and adipose tissue are healthy and have none.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    ROWS,
    Cells,
    Field,
    X,
    Y,
    absorb,
    blur,
    bump,
    cells,
    ellipses,
    is_inside,
    look_up,
    noise,
    paint,
    photograph,
    scatter,
    smoothstep,
    soft_minimum,
    vignette,
)

# Stain vectors of Macenko et al. (2009).
_HAEMATOXYLIN = np.array([0.65, 0.70, 0.29])
_HAEMATOXYLIN_BLUE = np.array([0.5626, 0.7201, 0.4062])
_EOSIN = np.array([0.2159, 0.8012, 0.5581])


_Number = TypeVar("_Number", np.float64, np.intp)


@dataclass(frozen=True)
class _Slide:
    """What patches of one slide share.

    Attributes:
        haematoxylin, eosin: optical density ``(3,)`` of a unit of each stain.
        magnification: of all lengths.
        light: colour of empty glass ``(3,)``.
        defocus: usual blur in pixels.
        grain: noise of the scanner.
        gamma: tone curve of the scanner.
        stain: how strong the stains are, in words.
    """

    haematoxylin: Field
    eosin: Field
    magnification: float
    light: Field
    defocus: float
    grain: float
    gamma: float
    stain: str

    @classmethod
    def of(cls, patient: np.random.Generator) -> _Slide:
        """The slide of a patient."""
        share, strength, balance = (
            patient.uniform(0, 1),
            patient.uniform(0.7, 1.35),
            patient.uniform(0.8, 1.25),
        )
        blue = _HAEMATOXYLIN * share + _HAEMATOXYLIN_BLUE * (1 - share)
        return cls(
            haematoxylin=np.maximum(blue + patient.normal(0, 0.03, 3), 0.05) * strength * balance,
            eosin=np.maximum(_EOSIN + patient.normal(0, 0.03, 3), 0.05) * strength / balance,
            magnification=patient.uniform(0.85, 1.2),
            light=np.array([0.95, 0.93, 0.94]) + patient.normal(0, 0.018, 3),
            defocus=patient.uniform(0.25, 0.8),
            grain=patient.uniform(0.004, 0.014),
            gamma=patient.uniform(0.85, 1.2),
            stain="pale" if strength < 0.88 else "moderate" if strength < 1.15 else "strong",
        )


@dataclass
class _Section:
    """Optical densities of a section, nuclei yet to be painted, and what was found.

    Attributes:
        eosin, haematoxylin: amount of stain, ``(SIZE, SIZE)``.
        mask: of the finding, ``(SIZE, SIZE)``.
        attributes: for the report.
        nuclei, darkness: polygons and their amount of haematoxylin.
    """

    eosin: Field
    haematoxylin: Field
    mask: NDArray[np.bool_] = field(default_factory=lambda: np.zeros((SIZE, SIZE), np.bool_))
    attributes: dict[str, str] = field(default_factory=dict)
    nuclei: list[Field] = field(default_factory=list)
    darkness: list[Field] = field(default_factory=list)

    def add_nuclei(self, at: Field, radii: Field, angles: ArrayLike, darkness: Field) -> None:
        """Oval nuclei at ``(n, 2)`` with radii ``(n, 2)``, turned by ``angles``."""
        self.nuclei.append(ellipses(at, radii, angles))
        self.darkness.append(darkness)

    def with_nuclei(self, image: np.random.Generator) -> tuple[Field, Field]:
        """Haematoxylin and eosin with the nuclei: clumped chromatin, a membrane darker than the middle."""
        if not self.nuclei:
            return self.haematoxylin, self.eosin
        polygons, values = np.concatenate(self.nuclei), np.concatenate(self.darkness)
        amount = 2.5 * paint(polygons, values / 2.5)
        inside = np.minimum(amount / 0.6, 1)
        chromatin = 1 + 0.16 * noise(image, 52) - 0.22 * smoothstep(0.5, 1.0, blur(inside, 1.1))
        return self.haematoxylin * (1 - 0.5 * inside) + amount * chromatin, self.eosin * (1 - 0.55 * inside)


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    slide = _Slide.of(patient)
    section = _TISSUES[label](patient, image, slide.magnification * image.uniform(0.94, 1.06))
    haematoxylin, eosin = section.with_nuclei(image)
    thickness = 1 + 0.07 * noise(image, 2, octaves=2)
    if image.random() < 0.12:
        thickness = thickness + _fold(image)
    light = (
        slide.light
        * vignette(image.uniform(0, 0.12), (image.uniform(-0.4, 0.4), image.uniform(-0.4, 0.4)))[..., None]
    )
    scene = absorb(
        light,
        (np.maximum(haematoxylin, 0) * thickness, tuple(slide.haematoxylin)),
        (np.maximum(eosin, 0) * thickness, tuple(slide.eosin)),
    )
    seen = photograph(
        image,
        scene,
        defocus=slide.defocus + max(image.uniform(-0.8, 0.7), 0.0),
        grain=slide.grain,
        gain=image.uniform(0.95, 1.05),
        gamma=slide.gamma,
    )
    return Phantom(seen, section.mask, {**section.attributes, "stain": slide.stain})


def _fold(image: np.random.Generator) -> Field:
    """Where the section lies doubled: a band with a crest."""
    turn = image.uniform(0, 2 * np.pi)
    across = X * np.cos(turn) + Y * np.sin(turn) + 0.08 * noise(image, 3) - image.uniform(-0.7, 0.7)
    width = image.uniform(0.05, 0.13)
    return smoothstep(width, 0.8 * width, np.abs(across)) * (0.6 + 0.3 * bump(np.abs(across) - width, 0.02))


@dataclass(frozen=True)
class _Fibres:
    """Wavy fibres: their density from 0 to 1 and their direction in radians, ``(SIZE, SIZE)``."""

    density: Field
    direction: Field


def _fibres(image: np.random.Generator, waviness: float, turn: float, scale: float) -> _Fibres:
    """Collagen bundles that run along ``turn``, swaying by ``waviness`` pixels."""
    along = (COLUMNS - SIZE / 2) * np.cos(turn) + (ROWS - SIZE / 2) * np.sin(turn)
    across = (ROWS - SIZE / 2) * np.cos(turn) - (COLUMNS - SIZE / 2) * np.sin(turn)
    across = across + waviness * (noise(image, 3) + 0.3 * noise(image, 8))
    place = (SIZE / 2 + along / (1.5 * scale), SIZE / 2 + across / (1.5 * scale))
    coarse = look_up(noise(image, 24, 4), *place)
    fine = look_up(noise(image, 96, 8), *place)
    density = smoothstep(-2.2, 2.1, 0.9 * coarse + 1.2 * fine)
    slope = np.gradient(across)
    return _Fibres(density, np.arctan2(-slope[1], slope[0]))


def _connective_tissue(image: np.random.Generator, scale: float, turn: float, where: Field) -> _Section:
    """The loose ground between glands, with few spindle cells where a field is 1."""
    fibres = _fibres(image, 9.0, turn, scale)
    cloud = noise(image, 5, octaves=3)
    section = _Section(
        eosin=0.18 + 0.42 * fibres.density + 0.06 * cloud, haematoxylin=0.05 + 0.05 * fibres.density
    )
    _add_spindles(image, section, fibres, 12 * scale, scale, where)
    return section


def _add_spindles(
    image: np.random.Generator, section: _Section, fibres: _Fibres, spacing: float, scale: float, where: Field
) -> None:
    """Nuclei of fibroblasts along the fibres, where a field says with what probability."""
    at = scatter(image, spacing)
    at = at[image.random(len(at)) < look_up(where, at[:, 0], at[:, 1])]
    n = len(at)
    radii = np.stack([image.uniform(2.6, 5.2, n), image.uniform(0.7, 1.35, n)], axis=1) * scale
    turn = _nearest(fibres.direction, at) + image.normal(0, 0.16, n)
    section.add_nuclei(at, radii, turn, image.uniform(0.7, 1.4, n))


def _add_round_cells(
    image: np.random.Generator, section: _Section, spacing: float, scale: float, where: Field
) -> None:
    """Lymphocytes and plasma cells: small, round, dark; where a field says with what probability."""
    at = scatter(image, spacing, 1.0)
    at = at[image.random(len(at)) < look_up(where, at[:, 0], at[:, 1])]
    n = len(at)
    radii = image.uniform(1.75, 2.45, (n, 1)) * image.uniform(0.88, 1.1, (n, 2)) * scale
    section.add_nuclei(at, radii, image.uniform(0, np.pi, n), image.uniform(1.1, 1.9, n))


def _nearest(values: NDArray[_Number], points: Field) -> NDArray[_Number]:
    """Values of the pixels that points ``(..., 2)`` lie in."""
    pixel = np.clip(np.rint(points), 0, SIZE - 1).astype(np.intp)
    return values[pixel[..., 1], pixel[..., 0]]


@dataclass(frozen=True)
class _Glands:
    """Glands, one around each seed.

    Attributes:
        layout: the seeds and their neighbourhoods.
        depth: distance from the basement membrane in pixels, positive inside a gland, ``(SIZE, SIZE)``.
    """

    layout: Cells
    depth: Field

    def ring(self, depth: float, spacing: float) -> tuple[Field, Field]:
        """Points ``(n, 2)`` about ``spacing`` apart at a depth, and their outward angle ``(n,)``."""
        seeds = self.layout.seeds
        turns = max(int(2 * np.pi * 0.36 * self.layout.spacing / spacing), 6)
        angles = np.arange(turns) * 2 * np.pi / turns + 0.7 * np.arange(len(seeds))[:, None]
        outward = np.stack([np.cos(angles), np.sin(angles)], axis=-1)
        distances = np.arange(1.0, self.layout.spacing, 0.75)
        rays = seeds[:, None, None] + distances[:, None] * outward[:, :, None]
        own = np.arange(len(seeds))[:, None, None]
        hit = (
            (_nearest(self.depth, rays) >= depth)
            & is_inside(rays, -1)
            & (_nearest(self.layout.index, rays) == own)
        )
        last = hit.shape[2] - 1 - hit[:, :, ::-1].argmax(axis=2)
        at = np.take_along_axis(rays, last[..., None, None], axis=2)[:, :, 0]
        found = hit.any(axis=2) & is_inside(at, 0.5)
        return at[found], angles[found]


def _glands(
    image: np.random.Generator, spacing: float, size: tuple[float, float], irregularity: float, gap: float
) -> _Glands:
    """Glands with radii of ``size`` spacings, ``gap`` pixels apart; irregularity runs from 0 to 1."""
    reach, ragged = (2 + 8 * irregularity) * spacing / 60, 0.03 + 0.12 * irregularity
    layout = cells(
        image, spacing, 0.3 + 0.7 * irregularity, (reach * noise(image, 5), reach * noise(image, 5))
    )
    n = len(layout.seeds)
    angle = np.arctan2(layout.down, layout.across)
    radius = image.uniform(*size, n).take(layout.index)
    for wave in range(2, 6):
        amplitude, phase = image.normal(0, ragged / (wave - 1), n), image.uniform(0, 2 * np.pi, n)
        radius = radius * (1 + amplitude.take(layout.index) * np.cos(wave * angle + phase.take(layout.index)))
    own_edge = radius * spacing - np.hypot(layout.across, layout.down)
    return _Glands(layout, soft_minimum(own_edge, layout.border - gap / 2, 5.5))


def _normal_glands(patient: np.random.Generator, image: np.random.Generator, scale: float) -> _Section:
    """Evenly spaced round crypts: a single row of basal nuclei, goblet cells, a small lumen."""
    spacing = patient.uniform(48, 60) * scale
    glands = _glands(image, spacing, (0.39, 0.49), patient.uniform(0.0, 0.3), 5 * scale)
    section = _connective_tissue(image, scale, image.uniform(0, np.pi), smoothstep(-1, -3, glands.depth))
    _add_round_cells(
        image, section, 8.5 * scale, scale, smoothstep(-1.5, -4, glands.depth) * patient.uniform(0.4, 0.8)
    )
    inside = smoothstep(-0.7, 0.7, glands.depth)
    height = 13 * scale
    lumen = smoothstep(height, height + 2, glands.depth + 0.8 * noise(image, 30))
    section.eosin = section.eosin * (1 - inside) + inside * (0.52 + 0.05 * noise(image, 30)) * (
        1 - 0.9 * lumen
    )
    section.haematoxylin = section.haematoxylin * (1 - inside) + inside * 0.16 * (1 - lumen)
    goblets = patient.uniform(0.55, 1.0)
    _add_goblets(image, section, glands, scale, goblets)
    at, outward = glands.ring(2.4 * scale, 4.0 * scale)
    n = len(at)
    radii = np.stack([image.uniform(2.0, 2.9, n), image.uniform(1.3, 1.8, n)], axis=1) * scale
    at = at + image.normal(0, 0.4, (n, 2))
    section.add_nuclei(at, radii, outward + image.normal(0, 0.25, n), image.uniform(0.9, 1.35, n))
    section.attributes = {
        "architecture": "evenly spaced round crypts",
        "nuclei": "small, basal and uniform",
        "cells": "abundant goblet cells" if goblets > 0.8 else "goblet cells",
        "density": "regular",
    }
    return section


def _add_goblets(
    image: np.random.Generator, section: _Section, glands: _Glands, scale: float, share: float
) -> None:
    """Pale bluish drops of mucin between nuclei and lumen, pointing to the lumen."""
    at, outward = glands.ring(8.0 * scale, 4.6 * scale)
    chosen = image.random(len(at)) < share
    at, outward = at[chosen], outward[chosen]
    n = len(at)
    radii = np.stack([image.uniform(3.0, 4.4, n), image.uniform(1.7, 2.5, n)], axis=1) * scale
    mucin = blur(paint(ellipses(at, radii, outward), image.uniform(0.7, 1.0, n)), 0.5)
    section.eosin = section.eosin * (1 - 0.85 * mucin)
    section.haematoxylin = section.haematoxylin * (1 - 0.35 * mucin)


def _tumor_glands(patient: np.random.Generator, image: np.random.Generator, scale: float) -> _Section:
    """Crowded irregular glands with piled-up, large, dark nuclei; cribriform or necrotic in higher grades."""
    grade = patient.uniform(0, 1)
    spacing = patient.uniform(50, 78) * scale
    glands = _glands(image, spacing, (0.38, 0.6), 0.6 + 0.4 * grade, patient.uniform(3, 9) * scale)
    section = _connective_tissue(image, scale, image.uniform(0, np.pi), smoothstep(-1, -3, glands.depth))
    _add_round_cells(
        image, section, 9 * scale, scale, smoothstep(-1.5, -4, glands.depth) * patient.uniform(0.05, 0.5)
    )
    inside = smoothstep(-0.8, 0.8, glands.depth)
    height = patient.uniform(10, 14) * scale
    uneven = glands.depth + 2.2 * noise(image, 12) + 0.8 * noise(image, 30)
    lumen = smoothstep(height, height + 1.5, uneven)
    cribriform = grade > 0.55 and patient.random() < 0.7
    if cribriform:
        lumen = _cribriform_lumens(image, glands, scale)
    section.eosin = section.eosin * (1 - inside) + inside * (0.50 + 0.07 * noise(image, 18, octaves=2))
    section.haematoxylin = section.haematoxylin * (1 - inside) + inside * 0.34
    section.eosin, section.haematoxylin = (
        section.eosin * (1 - 0.93 * lumen),
        section.haematoxylin * (1 - 0.95 * lumen),
    )
    necrosis = patient.random() < 0.2 + 0.4 * grade
    if necrosis:
        _add_necrosis(image, section, lumen, scale)
    _add_tumor_nuclei(image, section, glands, lumen, scale, grade)
    section.mask = glands.depth > 0
    shapes = "cribriform glands" if cribriform else "crowded irregular glands"
    section.attributes = {
        "architecture": f"{shapes} with necrosis" if necrosis else shapes,
        "nuclei": "pseudostratified and hyperchromatic" if grade < 0.6 else "pleomorphic and hyperchromatic",
        "cells": "loss of goblet cells",
        "density": "crowded",
    }
    return section


def _cribriform_lumens(image: np.random.Generator, glands: _Glands, scale: float) -> Field:
    """Several round holes in each gland."""
    holes = cells(image, 19 * scale, 1.0, (2 * noise(image, 8), 2 * noise(image, 8)))
    room = np.minimum(holes.border - 2.6 * scale, 7.5 * scale - np.hypot(holes.across, holes.down))
    return smoothstep(0, 1.6, room) * smoothstep(5 * scale, 7 * scale, glands.depth)


def _add_necrosis(image: np.random.Generator, section: _Section, lumen: Field, scale: float) -> None:
    """Dirty debris in lumens: smudgy eosin and dust of nuclei."""
    debris = smoothstep(-0.5, 0.7, noise(image, 7, octaves=3)) * blur(lumen, 1.0)
    section.eosin = section.eosin + 0.6 * debris * (1 + 0.25 * noise(image, 40))
    section.haematoxylin = section.haematoxylin + 0.12 * debris
    at = scatter(image, 5 * scale, 1.0)
    at = at[look_up(debris, at[:, 0], at[:, 1]) > image.uniform(0.3, 1.3, len(at))]
    n = len(at)
    radii = image.uniform(0.5, 1.4, (n, 1)) * image.uniform(0.7, 1.2, (n, 2)) * scale
    section.add_nuclei(at, radii, image.uniform(0, np.pi, n), image.uniform(0.8, 1.7, n))


def _add_tumor_nuclei(
    image: np.random.Generator, section: _Section, glands: _Glands, lumen: Field, scale: float, grade: float
) -> None:
    """Nuclei at every height of the epithelium, upright on the membrane, unequal in size and darkness."""
    at = scatter(image, 4.1 * scale, 0.8)
    at = at[(_nearest(glands.depth, at) > 1.9 * scale) & (_nearest(lumen, at) < 0.3)]
    n = len(at)
    slope = np.gradient(glands.depth)
    upright = np.arctan2(_nearest(slope[0], at), _nearest(slope[1], at))
    size = np.exp(image.normal(0, 0.12 + 0.16 * grade, (n, 1))) * scale
    long, short = image.uniform(2.7, 4.1, n) - 0.6 * grade, image.uniform(1.4, 2.0, n) + 0.4 * grade
    turn = upright + image.normal(0, 0.18 + 0.4 * grade, n)
    section.add_nuclei(at, size * np.stack([long, short], axis=1), turn, image.uniform(0.8, 1.7, n))


def _stroma(patient: np.random.Generator, image: np.random.Generator, scale: float) -> _Section:
    """Bundles of collagen in waves, spindle nuclei along them, few round cells, perhaps capillaries."""
    waviness = patient.uniform(4, 15)
    cellularity = patient.uniform(0.3, 1.0)
    fibres = _fibres(image, waviness, image.uniform(0, np.pi), scale)
    clefts = smoothstep(0.38, 0.12, fibres.density) * smoothstep(-0.4, 0.8, noise(image, 5))
    eosin = (0.30 + 0.62 * fibres.density) * (1 + 0.12 * noise(image, 3, octaves=3)) * (1 - 0.75 * clefts)
    section = _Section(eosin, 0.04 + 0.07 * fibres.density)
    _add_spindles(
        image, section, fibres, 9.5 * scale, scale, cellularity * smoothstep(-2, 1.5, noise(image, 4))
    )
    _add_round_cells(
        image, section, 11 * scale, scale, patient.uniform(0, 0.5) * smoothstep(0.3, 1.6, noise(image, 4))
    )
    for _ in range(int(image.integers(0, 3))):
        _add_capillary(image, section, scale)
    section.attributes = {
        "architecture": "wavy collagen bundles" if waviness > 9 else "parallel collagen bundles",
        "nuclei": "spindle-shaped along the fibres",
        "cells": "fibroblasts",
        "density": "cellular" if cellularity > 0.65 else "sparse",
    }
    return section


def _add_capillary(image: np.random.Generator, section: _Section, scale: float) -> None:
    """A small vessel: a clear lumen with red cells, lined by flat nuclei."""
    centre = image.uniform(10, SIZE - 10, (1, 2))
    long, short, turn = image.uniform(5, 10) * scale, image.uniform(3, 5) * scale, image.uniform(0, np.pi)
    lumen = blur(paint(ellipses(centre, [[long, short]], [turn], 24)), 0.7)
    blood = lumen * smoothstep(0.1, 0.9, noise(image, 28))
    section.eosin = section.eosin * (1 - 0.92 * lumen) + 0.9 * blood * image.integers(0, 2)
    section.haematoxylin = section.haematoxylin * (1 - lumen)
    n = int(image.integers(4, 8))
    around = np.sort(image.uniform(0, 2 * np.pi, n))
    rim = ellipses(centre, [[long + 1, short + 1]], [turn], 64)[0][
        (around / (2 * np.pi) * 64).astype(np.intp)
    ]
    towards = np.arctan2(*(rim - centre).T[::-1]) + np.pi / 2
    section.add_nuclei(
        rim, np.array([[2.8, 0.9]]) * scale * np.ones((n, 1)), towards, image.uniform(0.9, 1.4, n)
    )


def _adipose(patient: np.random.Generator, image: np.random.Generator, scale: float) -> _Section:
    """Empty fat cells with thin walls, flat nuclei in the corners, here and there a strand of collagen."""
    spacing = patient.uniform(30, 52) * scale
    layout = cells(image, spacing, 0.9, (3.5 * noise(image, 4), 3.5 * noise(image, 4)))
    turn = image.uniform(0, np.pi)
    off = (Y - image.uniform(-0.7, 0.7)) * np.cos(turn) - X * np.sin(turn) + 0.12 * noise(image, 3)
    strand = smoothstep(0.03, -0.03, np.abs(off) - image.uniform(0.05, 0.16) + 0.02 * noise(image, 14))
    strand = strand * (image.random() < 0.45)
    # Walls are thickest where three cells meet.
    wall = bump(layout.border, 1.0 * scale * patient.uniform(0.8, 1.5)) * np.maximum(
        0.75 + 0.25 * noise(image, 9), 0.35
    )
    corner = smoothstep(0.42, 0.62, np.hypot(layout.across, layout.down) / spacing) * bump(layout.border, 2.2)
    fibres = _fibres(image, 8, turn, scale)
    eosin = np.maximum(0.55 * np.maximum(wall, 0.7 * corner), strand * (0.3 + 0.5 * fibres.density))
    section = _Section(eosin + 0.012 * np.abs(noise(image, 6)), 0.05 * wall)
    at = scatter(image, 6.5 * scale)
    share = patient.uniform(0.1, 0.3)
    at = at[(_nearest(layout.border, at) < 1.2) & (image.random(len(at)) < share)]
    slope = np.gradient(layout.border)
    along = np.arctan2(_nearest(slope[0], at), _nearest(slope[1], at)) + np.pi / 2
    n = len(at)
    radii = np.stack([image.uniform(2.0, 3.6, n), image.uniform(0.8, 1.4, n)], axis=1) * scale
    section.add_nuclei(at, radii, along, image.uniform(0.8, 1.4, n))
    _add_spindles(image, section, fibres, 11 * scale, scale, 0.7 * strand)
    section.attributes = {
        "architecture": "large empty polygonal cells with thin walls",
        "nuclei": "flattened at the walls",
        "cells": "adipocytes with a fibrous strand" if strand.mean() > 0.03 else "adipocytes",
        "density": "sparse",
    }
    return section


def _lymphocytes(patient: np.random.Generator, image: np.random.Generator, scale: float) -> _Section:
    """Small round dark nuclei side by side, in a sheet or an aggregate, over scant pale ground."""
    fills = patient.random() < 0.5
    centre = X * image.uniform(-0.6, 0.6) + Y * image.uniform(-0.6, 0.6)
    border = centre + 0.35 * noise(image, 3, octaves=2) + (0.9 if fills else image.uniform(0.0, 0.4))
    density = smoothstep(-0.15, 0.25, border)
    section = _connective_tissue(image, scale, image.uniform(0, np.pi), 1 - density)
    section.eosin = section.eosin * (1 - 0.35 * density)
    section.haematoxylin = section.haematoxylin + 0.14 * density
    packing = patient.uniform(5.2, 6.8)
    gaps = 0.95 - 0.5 * smoothstep(0.9, 1.8, noise(image, 7))
    _add_round_cells(image, section, packing * scale, scale, 0.04 + 0.92 * density * gaps)
    # Among them the larger, paler nuclei of activated cells and of the meshwork.
    at = scatter(image, 13 * scale)
    at = at[look_up(density, at[:, 0], at[:, 1]) > image.uniform(0.2, 1.6, len(at))]
    n = len(at)
    radii = image.uniform(2.5, 3.7, (n, 1)) * image.uniform(0.75, 1.1, (n, 2)) * scale
    section.add_nuclei(at, radii, image.uniform(0, np.pi, n), image.uniform(0.5, 0.9, n))
    section.mask = density > 0.5
    section.attributes = {
        "architecture": "diffuse sheet" if fills else "aggregate beside loose stroma",
        "nuclei": "small, round and dark",
        "cells": "lymphocytes with scant cytoplasm",
        "density": "dense" if packing < 6 else "moderately dense",
    }
    return section


_TISSUES: tuple[Callable[[np.random.Generator, np.random.Generator, float], _Section], ...] = (
    _normal_glands,
    _tumor_glands,
    _stroma,
    _adipose,
    _lymphocytes,
)

DATASET = PhantomDataset(
    key="phantom-histology",
    title="Histology phantoms",
    modality="H&E histology",
    anatomy="colon",
    class_names=("normal glands", "tumor glands", "stroma", "adipose tissue", "lymphocytes"),
    findings=(False, True, False, False, True),
    draw=_draw,
)
