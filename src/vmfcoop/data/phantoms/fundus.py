"""Colour photographs of the retina in a 45 degree field, in the manner of RetinaMNIST and ODIR.

The anatomy is drawn in a frame of its own: the optic disc in the origin, the fovea one unit towards the
temple, down positive. Images of a patient show one eye with other gaze, focus and light. Masks: the lesions
of diabetic retinopathy, the enlarged cup of glaucoma, and for cataract the whole field that is hazed.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    ROWS,
    Field,
    X,
    Y,
    absorb,
    blur,
    bump,
    ellipses,
    mix,
    noise,
    outline,
    paint,
    photograph,
    radius_at,
    ribbon,
    smoothstep,
)

_NORMAL, _RETINOPATHY, _GLAUCOMA, _CATARACT = range(4)
_FOVEA = np.array([1.0, 0.09])

# Optical densities in red, green and blue.
_VEIN_BLOOD = (0.55, 1.05, 0.75)
_ARTERY_BLOOD = (0.28, 0.85, 0.70)
_CHOROID_PIGMENT = (0.55, 0.80, 0.80)
_HAEMORRHAGE = (0.55, 1.05, 0.75)


@dataclass(frozen=True)
class _Vessel:
    """A path ``(n, 2)`` in the eye's frame with the widths along it ``(n,)``."""

    path: Field
    widths: Field
    is_artery: bool


@dataclass(frozen=True)
class _Eye:
    """What all images of an eye share.

    Attributes:
        side: 1 for a left eye, whose temple is on the right of the picture, and -1 for a right eye.
        disc_radius, disc_outline: of the optic disc.
        cup_ratio: vertical diameter of the cup in those of the disc.
        cup_outline: of the cup.
        crescent: width of the atrophy beside the disc in disc radii, 0 for none.
        vessels: arteries and veins, wide ones first.
        colour: of the fundus ``(3,)``.
        pigment: amount of choroidal pigment.
        tessellation: contrast of the choroidal vessels.
    """

    side: int
    disc_radius: float
    disc_outline: Field
    cup_ratio: float
    cup_outline: Field
    crescent: float
    vessels: tuple[_Vessel, ...]
    colour: Field
    pigment: float
    tessellation: float

    @classmethod
    def of(cls, patient: np.random.Generator, has_glaucoma: bool) -> _Eye:
        """The eye of a patient; glaucoma excavates the disc and pushes its vessels towards the nose."""
        ratio = patient.uniform(0.66, 0.9) if has_glaucoma else patient.uniform(0.2, 0.52)
        disc_radius = patient.uniform(0.23, 0.29)
        nasal = disc_radius * (0.55 * ratio if has_glaucoma else 0.15)
        tan = patient.uniform(0, 1)
        return cls(
            side=int(patient.choice([-1, 1])),
            disc_radius=disc_radius,
            disc_outline=outline(patient, 0.03, waves=3),
            cup_ratio=ratio,
            cup_outline=outline(patient, 0.05, waves=3),
            crescent=patient.uniform(0.12, 0.5)
            if patient.random() < (0.45 if has_glaucoma else 0.2)
            else 0.0,
            vessels=_vessel_tree(patient, nasal),
            colour=np.array([0.90 - 0.2 * tan, 0.50 - 0.17 * tan, 0.27 - 0.12 * tan])
            + patient.normal(0, 0.02, 3),
            pigment=patient.uniform(0.05, 0.4),
            tessellation=patient.uniform(0.0, 0.16),
        )


@dataclass(frozen=True)
class _View:
    """How a camera sees an eye: pixels a unit, where the disc lies, radius of the field, turn of the head."""

    side: int
    scale: float
    disc: Field
    turn: float
    field_radius: float

    def to_pixels(self, points: ArrayLike) -> Field:
        """Pixels of points ``(..., 2)`` in the eye's frame."""
        x, y = np.moveaxis(np.asarray(points, np.float64), -1, 0)
        across = self.side * (x * np.cos(self.turn) - y * np.sin(self.turn))
        down = x * np.sin(self.turn) + y * np.cos(self.turn)
        return self.disc + self.scale * np.stack([across, down], axis=-1)

    def grid(self) -> tuple[Field, Field]:
        """Coordinates of every pixel in the eye's frame."""
        across = self.side * (COLUMNS - self.disc[0]) / self.scale
        down = (ROWS - self.disc[1]) / self.scale
        x = across * np.cos(self.turn) + down * np.sin(self.turn)
        return x, down * np.cos(self.turn) - across * np.sin(self.turn)

    def field(self) -> Field:
        """1 inside the round field, 0 in the black around it."""
        return 1 - smoothstep(-0.015, 0.015, np.hypot(X, Y) - self.field_radius)


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    eye = _Eye.of(patient, label == _GLAUCOMA)
    view, centring = _view(patient, image, eye)
    scene, cup = _retina(image, eye, view)
    mask = np.zeros((SIZE, SIZE), np.bool_)
    severity, finding = "none", "no abnormality"
    if label == _RETINOPATHY:
        scene, mask, severity, finding = _retinopathy(patient, view, scene)
    elif label == _GLAUCOMA:
        mask = cup > 0.5
        severity = "moderate" if eye.cup_ratio < 0.78 else "advanced"
        finding = "enlarged cup with a thin rim" + (" and peripapillary atrophy" if eye.crescent else "")
    scene, defocus = _illuminate(image, view, scene)
    if label == _CATARACT:
        scene, mask, severity, finding = _cataract(patient, image, scene)
    seen = _photograph(patient, image, view, scene, defocus)
    attributes = {
        "eye": "left" if eye.side == 1 else "right",
        "view": centring,
        "cup-to-disc ratio": f"{eye.cup_ratio:.1f}",
        "severity": severity,
        "finding": finding,
    }
    return Phantom(seen, mask & (view.field() > 0.5), attributes)


def _view(patient: np.random.Generator, image: np.random.Generator, eye: _Eye) -> tuple[_View, str]:
    """Gaze on the macula, the disc or between; the camera and its field belong to the site."""
    field_radius = patient.uniform(0.9, 1.12)
    scale = 80 * field_radius / patient.uniform(1.35, 1.7) * image.uniform(0.95, 1.05)
    centring, gaze = [("macula-centred", 0.85), ("central", 0.5), ("disc-centred", 0.1)][image.integers(0, 3)]
    looked_at = np.array([gaze, 0.05]) + image.normal(0, 0.07, 2)
    turn = image.normal(0, 0.1)
    unplaced = _View(eye.side, scale, np.zeros(2), turn, field_radius)
    disc = np.array([SIZE / 2, SIZE / 2]) - unplaced.to_pixels(looked_at)
    return _View(eye.side, scale, disc, turn, field_radius), centring


def _vessel_tree(patient: np.random.Generator, nasal: float) -> tuple[_Vessel, ...]:
    """Arcades above and below towards temple and nose, an artery and a vein in each, with branches."""
    vessels: list[_Vessel] = []
    t = np.linspace(0, 1, 30)
    for temporal in (True, False):
        for up in (-1, 1):
            height = patient.uniform(0.72, 0.92) if temporal else patient.uniform(0.6, 1.1)
            for is_artery in (False, True):
                lift = height * (1 if is_artery else patient.uniform(0.86, 1.1))
                if temporal:
                    path = np.stack([2.3 * t**1.7, up * lift * np.sin(0.74 * np.pi * t**0.85)], axis=1)
                else:
                    path = np.stack([-1.5 * t**1.15, up * lift * t**0.8], axis=1)
                path += _meander(patient, 30, 0.028) - [nasal, 0]
                width = (
                    (0.036 if is_artery else 0.052) * patient.uniform(0.85, 1.1) * (1 if temporal else 0.8)
                )
                main = _Vessel(path, width * (1 - 0.55 * t), is_artery)
                vessels += [main, *_branches(patient, main, depth=2)]
    return tuple(sorted(vessels, key=lambda vessel: -float(vessel.widths[0])))


def _meander(rng: np.random.Generator, n: int, reach: float) -> Field:
    """Smooth deviations ``(n, 2)`` that start at 0."""
    steps = rng.standard_normal((n, 2))
    smooth = np.stack([np.convolve(steps[:, axis], np.ones(4) / 4, mode="same") for axis in (0, 1)], axis=1)
    walk = np.cumsum(smooth, axis=0)
    return np.asarray(reach * (walk - walk[0]) * 0.5, np.float64)


def _branches(rng: np.random.Generator, parent: _Vessel, depth: int) -> list[_Vessel]:
    """Thinner vessels that leave a vessel in turn to both sides and leave the fovea free."""
    found: list[_Vessel] = []
    n = len(parent.path)
    length = float(np.linalg.norm(np.diff(parent.path, axis=0), axis=1).sum())
    starts = np.sort(rng.uniform(0.12, 0.9, rng.poisson(0.6 + 1.6 * length)))
    for number, start in enumerate(starts):
        at = int(start * (n - 2))
        along = parent.path[at + 1] - parent.path[at]
        turn = (1 if number % 2 else -1) * rng.uniform(0.45, 1.0)
        steps = 18
        # Branches straighten out into the direction of their parent.
        heading = np.arctan2(along[1], along[0]) + turn * np.linspace(1, 0.25, steps)
        heading += np.cumsum(rng.normal(0, 0.07, steps))
        step = (0.15 + length * rng.uniform(0.2, 0.45)) / steps
        path = parent.path[at] + step * np.cumsum(
            np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0
        )
        path = np.concatenate([parent.path[at][None], path])
        free = int((np.linalg.norm(path - _FOVEA, axis=1) > 0.2).cumprod().sum())
        if free < 4:
            continue
        widths = parent.widths[at] * rng.uniform(0.5, 0.75) * np.linspace(1, 0.45, len(path))
        child = _Vessel(path[:free], widths[:free], parent.is_artery)
        found.append(child)
        if depth > 1:
            found += _branches(rng, child, depth - 1)
    return found


def _retina(image: np.random.Generator, eye: _Eye, view: _View) -> tuple[Field, Field]:
    """The healthy layers in even light, and the cup of the disc (0 to 1)."""
    x, y = view.grid()
    scene = absorb(eye.colour, *_choroid(image, eye, x, y))
    to_fovea = np.hypot(x - _FOVEA[0], y - _FOVEA[1])
    macula = 0.30 * bump(to_fovea, 0.30) + 0.28 * bump(to_fovea, 0.11)
    scene = absorb(scene, (macula, _CHOROID_PIGMENT))
    # Nerve fibres shine where they are thick: above and below the disc.
    sheen = bump(np.hypot(x - 0.1, y) - 0.42, 0.2) * smoothstep(0.1, 0.4, np.abs(y))
    scene = mix(scene, (1.0, 0.78, 0.50), 0.07 * sheen * (1 + 0.5 * noise(image, 20)))
    scene, cup = _disc(image, eye, scene, x, y)
    return _with_vessels(eye, view, scene), cup


def _choroid(
    image: np.random.Generator, eye: _Eye, x: Field, y: Field
) -> tuple[tuple[Field, tuple[float, ...]], ...]:
    """Pigment and deep vessels that show through the retina."""
    blotches = 1 + 0.3 * noise(image, 3, octaves=3)
    away = smoothstep(0.3, 1.5, np.hypot(x - 0.6, y))
    worms = bump(noise(image, 13) + 0.35 * noise(image, 26), 0.45)
    grain = 0.025 * noise(image, 48)
    pigment = eye.pigment * blotches + eye.tessellation * (0.3 + away) * (0.6 - worms) + grain
    return ((pigment, _CHOROID_PIGMENT), (0.12 * noise(image, 2, octaves=2), _ARTERY_BLOOD))


def _disc(image: np.random.Generator, eye: _Eye, scene: Field, x: Field, y: Field) -> tuple[Field, Field]:
    """The optic disc with its rim and cup, perhaps with a crescent of atrophy on the temporal side."""
    angle, distance = np.arctan2(y, x * 1.08), np.hypot(x * 1.08, y) / eye.disc_radius
    edge = distance / radius_at(eye.disc_outline, angle)
    if eye.crescent:
        shifted = np.hypot(x / eye.disc_radius - eye.crescent, y / eye.disc_radius)
        scene = mix(
            scene, (0.93, 0.70, 0.46), 0.6 * (1 - smoothstep(0.95, 1.1, shifted + 0.04 * noise(image, 20)))
        )
        scene = absorb(
            scene, (0.35 * bump(shifted - 1.08, 0.07) * smoothstep(-0.2, 0.4, x), _CHOROID_PIGMENT)
        )
    body = 1 - smoothstep(0.9, 1.08, edge)
    rim = np.array([0.98, 0.66, 0.40]) + 0.03 * noise(image, 24)[..., None]
    # The temporal rim is paler than the nasal one.
    rim = mix(rim, (1.0, 0.80, 0.56), 0.35 * smoothstep(-0.5, 0.8, x / eye.disc_radius))
    scene = mix(scene, rim, 0.92 * body)
    offset = 0.35 * (1 - eye.cup_ratio)
    cup_x, cup_y = x / eye.disc_radius - offset, y / eye.disc_radius
    cup_distance = np.hypot(cup_x * 1.05, cup_y) / eye.cup_ratio
    cup_edge = cup_distance / radius_at(eye.cup_outline, np.arctan2(cup_y, cup_x))
    cup = (1 - smoothstep(0.82, 1.12, cup_edge)) * body
    floor = np.array([1.0, 0.92, 0.72]) - 0.05 * np.maximum(noise(image, 40), 0)[..., None]
    return mix(scene, floor, 0.85 * cup), cup


def _with_vessels(eye: _Eye, view: _View, scene: Field) -> Field:
    """The scene under the vessels' blood, with the bright reflex along the middle of wide arteries."""
    for blood, is_artery in ((_VEIN_BLOOD, False), (_ARTERY_BLOOD, True)):
        drawn = [vessel for vessel in eye.vessels if vessel.is_artery == is_artery]
        widths = [np.maximum(vessel.widths * view.scale, 0.45) for vessel in drawn]
        paths = [view.to_pixels(vessel.path) for vessel in drawn]
        tubes = paint([ribbon(path, width) for path, width in zip(paths, widths, strict=True)])
        scene = absorb(scene, (0.75 * blur(tubes, 0.35), blood))
        if is_artery:
            wide = [ribbon(path, 0.35 * w) for path, w in zip(paths, widths, strict=True) if w[0] > 1.4]
            scene = mix(scene, (1.0, 0.70, 0.45), 0.35 * paint(wide))
    return scene


def _retinopathy(
    patient: np.random.Generator, view: _View, scene: Field
) -> tuple[Field, NDArray[np.bool_], str, str]:
    """Add the lesions of the patient; return the scene, where they are, and their severity and names."""
    grade = int(patient.integers(0, 3))
    names = ["microaneurysms"]
    dots = _spread(patient, (14, 24, 40)[grade])
    specks = _blots(patient, view, dots, (0.012, 0.021), elongation=1.1)
    blood = 0.85 * specks
    if grade > 0:
        names.append("dot and blot haemorrhages")
        blots = _blots(patient, view, _spread(patient, (0, 7, 20)[grade]), (0.022, 0.075), elongation=1.7)
        blood = np.maximum(blood, blots)
    scene = absorb(scene, (blur(blood, 0.5), _HAEMORRHAGE))
    mask = blood > 0.2
    if patient.random() < (0.25, 0.7, 0.9)[grade]:
        names.append("hard exudates")
        wax = _exudates(patient, view, (18, 40, 80)[grade])
        scene = mix(scene, (1.0, 0.88, 0.52), 0.85 * blur(wax, 0.35))
        mask |= wax > 0.25
    if grade == 2 or (grade == 1 and patient.random() < 0.3):
        names.append("cotton wool spots")
        wool = blur(_blots(patient, view, _spread(patient, 2 + 2 * grade), (0.05, 0.10), elongation=1.6), 1.3)
        scene = mix(scene, (0.98, 0.86, 0.68), 0.75 * wool)
        mask |= wool > 0.35
    listed = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    return scene, mask, ("mild", "moderate", "severe")[grade], listed


def _spread(rng: np.random.Generator, n: int) -> Field:
    """About ``n`` places ``(m, 2)`` around the macula, off the fovea and the disc."""
    angle, distance = rng.uniform(0, 2 * np.pi, 2 * n), rng.uniform(0.2, 1.15, 2 * n)
    at = np.array([0.65, 0.0]) + distance[:, None] * np.stack([np.cos(angle), 0.85 * np.sin(angle)], axis=1)
    free = (np.linalg.norm(at, axis=1) > 0.36) & (np.linalg.norm(at - _FOVEA, axis=1) > 0.12)
    return np.asarray(at[free][:n])


def _blots(
    rng: np.random.Generator, view: _View, at: Field, radii: tuple[float, float], elongation: float
) -> Field:
    """Irregular spots of a range of radii, stretched along the nerve fibres."""
    size = rng.uniform(*radii, (len(at), 1)) * np.sqrt(rng.uniform(0.5, 1, (len(at), 1)))
    stretch = rng.uniform(1, elongation, (len(at), 1))
    fibres = np.arctan2(at[:, 1], at[:, 0] + 0.4)
    spots = ellipses(at, np.concatenate([size * stretch, size], axis=1), fibres, corners=14)
    ragged = 1 + rng.normal(0, 0.16, (len(at), 14, 1))
    return paint(view.to_pixels(at[:, None] + (spots - at[:, None]) * ragged), rng.uniform(0.6, 1, len(at)))


def _exudates(rng: np.random.Generator, view: _View, n: int) -> Field:
    """Waxy specks in clusters, or in a ring as around a leaking vessel."""
    rings = 1 + n // 40
    groups = []
    for _ in range(rings):
        centre = _FOVEA + rng.normal(0, 0.32, 2)
        angle = rng.uniform(0, 2 * np.pi) + rng.uniform(-2.4, 2.4, n // rings)
        distance = rng.uniform(0.1, 0.28) + rng.normal(0, 0.045, n // rings)
        groups.append(centre + distance[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1))
    at = np.concatenate(groups)
    at = at[(np.linalg.norm(at, axis=1) > 0.36)]
    return _blots(rng, view, at, (0.011, 0.034), elongation=1.5)


def _illuminate(image: np.random.Generator, view: _View, scene: Field) -> tuple[Field, float]:
    """Uneven flash, flare at the rim, shadows of dust, slight haze: in healthy eyes too."""
    x, y = X - image.uniform(-0.3, 0.3), Y - image.uniform(-0.3, 0.3)
    falloff = image.uniform(0.15, 0.5)
    scene = scene * (1.1 - falloff * np.clip(np.square(x) + np.square(y), 0, 1.6))[..., None]
    around = np.cos(np.arctan2(Y, X) - image.uniform(0, 2 * np.pi))
    flare = smoothstep(0.78, 1.0, np.hypot(X, Y) / view.field_radius) * smoothstep(0.3, 1, around)
    scene = mix(scene, (0.95, 0.60, 0.42), image.uniform(0, 0.5) * flare * (image.random() < 0.35))
    for _ in range(int(image.integers(0, 3))):
        dust = bump(
            np.hypot(X - image.uniform(-0.8, 0.8), Y - image.uniform(-0.8, 0.8)), image.uniform(0.03, 0.08)
        )
        scene = scene * (1 - image.uniform(0.05, 0.2) * dust[..., None])
    scene = mix(scene, (0.62, 0.42, 0.28), max(image.uniform(-0.15, 0.22), 0.0))
    return scene, image.uniform(0.3, 1.1)


def _cataract(
    patient: np.random.Generator, image: np.random.Generator, scene: Field
) -> tuple[Field, NDArray[np.bool_], str, str]:
    """The scene through a cloudy lens: scattered, veiled and yellowed; the haze takes the whole field."""
    density = patient.uniform(0.08, 0.85)
    yellow = patient.uniform(0, 1)
    haze = (0.68, 0.56 - 0.06 * yellow, 0.46 - 0.26 * yellow)
    clouds = 0.25 + 0.5 * density + 0.07 * noise(image, 3, octaves=3)
    scene = blur(scene, 0.9 + 2.6 * density)
    scene = scene * (np.array([1.0, 0.97, 0.92 - 0.3 * yellow]) * (1 - 0.15 * density))
    scene = mix(scene, haze, np.clip(clouds, 0, 0.88))
    kind = "yellow haze" if yellow > 0.5 else "whitish haze"
    severity = "mild" if density < 0.35 else "moderate" if density < 0.6 else "dense"
    return scene, np.ones((SIZE, SIZE), np.bool_), severity, f"{kind} that blurs vessels and disc"


def _photograph(
    patient: np.random.Generator, image: np.random.Generator, view: _View, scene: Field, defocus: float
) -> NDArray[np.uint8]:
    """The scene in the round field as the site's camera renders it, uint8 ``(SIZE, SIZE, 3)``."""
    tint = 1 + patient.normal(0, 0.05, 3)
    gamma, grain = patient.uniform(0.9, 1.45), patient.uniform(0.004, 0.016)
    stop = image.uniform(0.85, 1.12)
    return photograph(
        image,
        mix(np.full((SIZE, SIZE, 3), 0.015), blur(scene, defocus), view.field()),
        defocus=0.3,
        grain=grain,
        gain=stop * tint,
        gamma=gamma,
    )


DATASET = PhantomDataset(
    key="phantom-fundus",
    title="Fundus phantoms",
    modality="colour fundus photography",
    anatomy="retina",
    class_names=("normal retina", "diabetic retinopathy", "glaucoma", "cataract"),
    findings=(False, True, True, True),
    draw=_draw,
)
