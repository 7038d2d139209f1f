"""Dermatoscopy of pigmented skin lesions, in the manner of HAM10000.

Skin and lesions are layers of melanin and blood that absorb light; veils and glare lie on top. Images of a
patient show two lesions of the same skin under the same dermatoscope. Every class shows a lesion, so every
class has a mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    HALF,
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
    look_up,
    mix,
    noise,
    outline,
    paint,
    photograph,
    radius_at,
    ribbon,
    smoothstep,
    soft_minimum,
    vignette,
)

# Optical densities in red, green and blue of one unit of pigment.
_MELANIN = (0.43, 0.68, 0.95)
_BLOOD = (0.12, 0.78, 0.62)
_STALE_BLOOD = (0.62, 0.88, 0.58)
_BLUE_GREY = (0.44, 0.47, 0.55)
_SCAR = (0.86, 0.76, 0.74)
_WAXY = (0.66, 0.55, 0.44)


@dataclass
class _Lesion:
    """Layers of a lesion, each ``(SIZE, SIZE)``: pigments, veils (colour, opacity), body from 0 to 1."""

    body: Field
    melanin: Field
    blood: Field = field(default_factory=lambda: np.zeros((SIZE, SIZE)))
    stale_blood: Field = field(default_factory=lambda: np.zeros((SIZE, SIZE)))
    veils: list[tuple[tuple[float, ...], Field]] = field(default_factory=list)
    attributes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class _Pose:
    """Where a lesion lies: centre from -1 to 1, radius in the same unit, turn, ratio of its axes."""

    x: float
    y: float
    radius: float
    turn: float
    aspect: float

    def polar(self) -> tuple[Field, Field]:
        """Distance from the centre in radii and angle of every pixel."""
        across, down = X - self.x, Y - self.y
        along = across * np.cos(self.turn) + down * np.sin(self.turn)
        beside = down * np.cos(self.turn) - across * np.sin(self.turn)
        return np.hypot(along, beside / self.aspect) / self.radius, np.arctan2(beside / self.aspect, along)

    def point(self, distance: Field, angle: Field) -> Field:
        """Pixels ``(n, 2)`` at distances in radii and angles."""
        along, beside = distance * np.cos(angle), distance * np.sin(angle) * self.aspect
        x = self.x + self.radius * (along * np.cos(self.turn) - beside * np.sin(self.turn))
        y = self.y + self.radius * (along * np.sin(self.turn) + beside * np.cos(self.turn))
        return np.stack([(x + 1) * HALF - 0.5, (y + 1) * HALF - 0.5], axis=-1)


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    light, melanin, blood = _skin(patient, image)
    style = _Dermatoscope.of(patient)
    pose = _Pose(
        x=image.uniform(-0.16, 0.16),
        y=image.uniform(-0.16, 0.16),
        radius=image.uniform(0.4, 0.78),
        turn=image.uniform(0, 2 * np.pi),
        aspect=image.uniform(0.7, 1.0),
    )
    lesion = _LESIONS[label](patient, image, pose)
    scene = absorb(
        light,
        (melanin + lesion.melanin, _MELANIN),
        (blood + lesion.blood, _BLOOD),
        (lesion.stale_blood, _STALE_BLOOD),
    )
    for colour, opacity in lesion.veils:
        scene = mix(scene, colour, opacity)
    scene, hairs = _hair(patient, image, scene)
    scene = _bubbles(image, style, scene)
    seen = style.photograph(image, scene)
    mask = (lesion.body > 0.5) & style.field_of_view()
    size = "small" if pose.radius < 0.52 else "medium-sized" if pose.radius < 0.66 else "large"
    return Phantom(seen, mask, {"size": size, **lesion.attributes, "hair": hairs})


def _skin(patient: np.random.Generator, image: np.random.Generator) -> tuple[Field, Field, Field]:
    """Colour of pale skin ``(3,)``, and the melanin and blood that tone it."""
    light = np.array([0.97, 0.86, 0.80]) + patient.normal(0, 0.012, 3)
    tan, redness = patient.uniform(0.05, 0.5), patient.uniform(0.08, 0.38)
    furrows = cells(image, patient.uniform(5, 9), 1.0, _warp(image, 8, 2.5))
    melanin = tan * (1 + 0.16 * noise(image, 3, octaves=4)) + patient.uniform(0.02, 0.07) * bump(
        furrows.border, 0.9
    )
    blood = redness * (1 + 0.22 * noise(image, 3, octaves=4)) + 0.05 * np.abs(noise(image, 36))
    return light, np.maximum(melanin, 0), np.maximum(blood, 0)


def _warp(rng: np.random.Generator, bumps: int, reach: float) -> tuple[Field, Field]:
    return reach * noise(rng, bumps), reach * noise(rng, bumps)


def _nevus(patient: np.random.Generator, image: np.random.Generator, pose: _Pose) -> _Lesion:
    """One or two even browns, a regular structure, an edge that fades alike all around."""
    pattern = str(patient.choice(["reticular", "reticular", "globular", "homogeneous"]))
    distance, angle = pose.polar()
    distance = distance / radius_at(outline(image, patient.uniform(0.02, 0.07), waves=3), angle)
    fade = patient.uniform(0.08, 0.42)
    body = 1 - smoothstep(1 - fade, 1 + 0.4 * fade, distance + 0.025 * noise(image, 9))
    depth = patient.uniform(0.35, 1.25)
    centre = patient.uniform(-0.25, 0.7) * bump(distance, 0.55)
    mesh = cells(image, patient.uniform(4.6, 6.8), 0.85, _warp(image, 9, 1.8))
    fine = 1 + 0.12 * noise(image, 5, octaves=4)
    structure = {
        "reticular": blur(0.95 * bump(mesh.border, 1.1) - 0.3, 0.5) * (0.7 + 0.3 * noise(image, 6)),
        "globular": 0.8 * _rounded(image, mesh) * _by_cell(image, mesh, 0.3, 1.0) - 0.25,
        "homogeneous": 0.1 * noise(image, 26),
    }[pattern]
    melanin = body * np.maximum(depth * (1 + centre) * fine + structure * (0.45 + 0.4 * depth), 0.05)
    return _Lesion(
        body,
        melanin,
        blood=body * patient.uniform(0, 0.35) * (1 + 0.2 * noise(image, 4)),
        attributes={
            "symmetry": "symmetric",
            "border": "regular and fading" if fade > 0.22 else "regular and well defined",
            "colour": _brown(depth) if abs(centre.max()) < 0.3 else f"{_brown(depth)} with a darker centre",
            "structure": {
                "reticular": "regular pigment network",
                "globular": "regular globules",
                "homogeneous": "homogeneous pigment",
            }[pattern],
        },
    )


def _brown(depth: float) -> str:
    return "light brown" if depth < 0.65 else "medium brown" if depth < 1.0 else "dark brown"


def _by_cell(rng: np.random.Generator, mesh: Cells, low: float, high: float) -> Field:
    """A random value for every cell, ``(SIZE, SIZE)``."""
    return rng.uniform(low, high, len(mesh.seeds)).take(mesh.index)


def _rounded(rng: np.random.Generator, mesh: Cells) -> Field:
    """Round to oval bodies of unequal size, one in a cell: 1 inside, 0 between them."""
    room = mesh.spacing / np.sqrt(np.pi)
    radius = room * _by_cell(rng, mesh, 0.8, 1.25)
    tilt, stretch = _by_cell(rng, mesh, 0, np.pi), _by_cell(rng, mesh, 0.75, 1.0)
    along = mesh.across * np.cos(tilt) + mesh.down * np.sin(tilt)
    beside = mesh.down * np.cos(tilt) - mesh.across * np.sin(tilt)
    own_edge = radius - np.hypot(along, beside / stretch)
    within = soft_minimum(own_edge, mesh.border, 0.4 * room) + 0.1 * room
    return blur(smoothstep(0.0, 0.28 * room, within), 0.06 * room)


def _melanoma(patient: np.random.Generator, image: np.random.Generator, pose: _Pose) -> _Lesion:
    """Lobes off the centre, a ragged edge that is sharp in places, several colours, an atypical network."""
    severity = patient.uniform(0.25, 1.0)
    distance = _lobed_distance(image, pose, severity)
    fade = 0.08 + 0.28 * smoothstep(-1, 1.2, noise(image, 3))
    body = 1 - smoothstep(1 - fade, 1 + 0.3 * fade, distance)
    melanin = patient.uniform(0.45, 1.2) * (1 + 0.2 * noise(image, 5, octaves=4))
    melanin += patient.uniform(0.7, 1.5) * smoothstep(-0.2, 1.2, noise(image, 4, octaves=4))
    network, meshed = _atypical_network(image, severity)
    inside = 1 - smoothstep(0.72, 1.0, distance)
    lesion = _Lesion(body, body * np.maximum(melanin + network, 0.08))
    colours = _melanoma_colours(patient, image, lesion, inside, severity)
    structures = ["atypical pigment network"] if (meshed * body).sum() > 0.25 * body.sum() else []
    structures += _periphery(image, pose, lesion, distance, severity)
    lesion.attributes = {
        "symmetry": "asymmetric" if severity > 0.45 else "slightly asymmetric",
        "border": "irregular and notched" if severity > 0.5 else "irregular",
        "colour": _listed(colours),
        "structure": _listed(structures or ["irregular pigment"]),
    }
    return lesion


def _lobed_distance(image: np.random.Generator, pose: _Pose, severity: float) -> Field:
    """Distance in radii from the middle of two or three lobes that grew together, 1 at the ragged edge."""
    lobes = []
    for number in range(int(image.integers(2, 4))):
        away = 0.0 if number == 0 else image.uniform(0.25, 0.3 + 0.3 * severity)
        [[x, y]] = pose.point(np.array([away]), np.array([image.uniform(0, 2 * np.pi)]))
        radius = pose.radius * (1.0 if number == 0 else image.uniform(0.55, 0.8))
        lobe = _Pose((x + 0.5) / HALF - 1, (y + 0.5) / HALF - 1, radius, image.uniform(0, 6), pose.aspect)
        distance, angle = lobe.polar()
        lobes.append(distance / radius_at(outline(image, 0.05 + 0.08 * severity), angle))
    # A soft minimum rounds the notch between lobes.
    joined = -np.log(sum(np.exp(-9 * np.minimum(lobe, 6)) for lobe in lobes)) / 9 + 0.06
    ragged = (0.03 + 0.05 * severity) * (noise(image, 10) + 0.5 * noise(image, 22))
    return np.asarray(joined + ragged * smoothstep(0.4, 0.9, joined), np.float64)


def _atypical_network(image: np.random.Generator, severity: float) -> tuple[Field, Field]:
    """Melanin of thick, uneven meshes, and where they are (0 to 1)."""
    mesh = cells(image, image.uniform(5.5, 8.5), 1.3, _warp(image, 8, 3.0))
    thickness = 1.1 + 0.9 * severity * smoothstep(-1, 1, noise(image, 5))
    where = smoothstep(-0.3, 0.9, noise(image, 3, octaves=2))
    lines = blur(bump(mesh.border / thickness, 1.0), 0.6) * (0.75 + 0.35 * noise(image, 9)) * where
    return (0.5 + 0.5 * severity) * lines - 0.12 * where, where


def _melanoma_colours(
    patient: np.random.Generator, image: np.random.Generator, lesion: _Lesion, inside: Field, severity: float
) -> list[str]:
    """Add the colours beside brown, more of them to a more advanced tumour; return all of them."""
    chosen = patient.permutation(["black", "blue-grey", "red", "white"])[: 1 + round(2.4 * severity)]
    colours = ["light brown", "dark brown"]
    for colour in sorted(str(name) for name in chosen):
        patch = inside * smoothstep(0.2, 1.3, noise(image, 3, octaves=4))
        if patch.sum() < 60:
            continue
        colours.append(colour)
        if colour == "black":
            lesion.melanin = lesion.melanin + 2.6 * patch
        elif colour == "red":
            lesion.melanin = lesion.melanin * (1 - 0.7 * patch)
            lesion.blood = lesion.blood + 0.6 * patch * (1 + 0.3 * noise(image, 18))
        else:
            veil, opacity = (_BLUE_GREY, 0.72) if colour == "blue-grey" else (_SCAR, 0.6)
            lesion.veils.append((veil, opacity * patch * (1 + 0.1 * noise(image, 14))))
    return colours


def _periphery(
    image: np.random.Generator, pose: _Pose, lesion: _Lesion, distance: Field, severity: float
) -> list[str]:
    """Add irregular dots, and streaks over a stretch of the edge; return what was added."""
    added = []
    dots = int(image.integers(0, 6 + round(20 * severity)))
    centre = image.uniform(0, 2 * np.pi)
    if dots > 5:
        at = pose.point(image.uniform(0.2, 1.05, dots), centre + image.normal(0, 1.1, dots))
        at = at[look_up(distance, at[:, 0], at[:, 1]) < 1.02]
        radii = image.uniform(0.6, 2.3, (len(at), 1)) * image.uniform(0.8, 1.2, (len(at), 2))
        lesion.melanin = lesion.melanin + 1.6 * paint(ellipses(at, radii))
        added += ["irregular dots and globules"] if len(at) > 3 else []
    if image.random() < 0.65 * severity:
        streaks, name = _streaks(image, pose, distance, centre)
        lesion.melanin = lesion.melanin + streaks
        lesion.body = np.maximum(lesion.body, blur(np.minimum(streaks, 1), 1.2))
        added.append(name)
    return added


def _streaks(image: np.random.Generator, pose: _Pose, distance: Field, centre: float) -> tuple[Field, str]:
    """Melanin of growth over a stretch of the edge: fine streaming or knobbed pseudopods; and its name."""
    _, angle = pose.polar()
    knobbed = bool(image.random() < 0.4)
    rays = int(image.integers(24, 36) if knobbed else image.integers(60, 95))
    place = angle * rays / (2 * np.pi) + 0.3 * noise(image, 9)
    own = np.floor(place).astype(np.intp) % rays
    reach = image.uniform(0.06, 0.15, rays) if knobbed else 0.03 + 0.22 * image.beta(1.3, 2.2, rays)
    strength = image.uniform(0.3, 1, rays) * (image.random(rays) < 0.85)
    out = np.clip((distance - 0.9) / (reach + 0.1).take(own), 0, 1)
    # Streaming thins out; pseudopods end in a knob.
    width, fade = 0.34 - 0.18 * out, np.power(1 - out, 1.2)
    if knobbed:
        width, fade = 0.2 + 0.14 * bump(out - 0.72, 0.2), smoothstep(1, 0.85, out)
    away = np.abs(np.mod(angle - centre + np.pi, 2 * np.pi) - np.pi) + 0.12 * noise(image, 5)
    stretch = image.uniform(0.5, 1.1)
    amount = strength.take(own) * bump((np.mod(place, 1) - 0.5) / width, 1.0) * fade
    amount = amount * smoothstep(stretch, 0.55 * stretch, away) * smoothstep(0.7, 0.9, distance)
    return 1.7 * blur(amount, 0.5), "pseudopods" if knobbed else "peripheral streaks"


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _keratosis(patient: np.random.Generator, image: np.random.Generator, pose: _Pose) -> _Lesion:
    """A waxy plaque with a sharp, moth-eaten edge, fissures or ridges, milia-like cysts, plugged pores."""
    surface = str(patient.choice(["cerebriform", "cerebriform", "verrucous", "ridged"]))
    distance, angle = pose.polar()
    distance = distance / radius_at(outline(image, patient.uniform(0.04, 0.1)), angle)
    bitten = patient.uniform(0.01, 0.05) * (noise(image, 13) + 0.4 * noise(image, 30))
    body = 1 - smoothstep(0.96, 1.04, distance + bitten)
    depth = patient.uniform(0.3, 1.25)
    melanin = depth * (1 + 0.2 * noise(image, 4, octaves=4)) + 0.25 * bump(distance - 0.95, 0.12)
    melanin += patient.uniform(0.55, 1.1) * _keratosis_surface(image, surface)
    lesion = _Lesion(body, body * np.maximum(melanin, 0.05), blood=body * patient.uniform(0, 0.4))
    wax = patient.uniform(0.15, 0.5) * (1 + 0.25 * noise(image, 8, octaves=2))
    lesion.veils.append((_WAXY, body * np.clip(wax, 0, 1) * np.exp(-0.35 * lesion.melanin)))
    words = [
        {
            "cerebriform": "cerebriform fissures",
            "verrucous": "papillary surface",
            "ridged": "fingerprint-like ridges",
        }[surface]
    ]
    words += _cysts_and_plugs(image, pose, lesion)
    lesion.attributes = {
        "symmetry": "symmetric" if pose.aspect > 0.8 else "slightly asymmetric",
        "border": "sharply demarcated and moth-eaten" if bitten.std() > 0.03 else "sharply demarcated",
        "colour": "tan" if depth < 0.55 else "brown" if depth < 0.95 else "dark brown",
        "structure": _listed(words),
    }
    return lesion


def _keratosis_surface(image: np.random.Generator, surface: str) -> Field:
    """Melanin of the relief: keratin in clefts is dark."""
    if surface == "cerebriform":
        # Where winding folds cross zero, narrow clefts wind as between gyri.
        folds = _folds(image, image.uniform(15, 25), 0.35) + 0.15 * noise(image, 26)
        clefts = smoothstep(0.55, 0.0, np.abs(folds)) * (0.75 + 0.35 * noise(image, 5))
        return 0.8 * np.maximum(clefts, 0) - 0.22 * smoothstep(0.4, 1.4, np.abs(folds))
    if surface == "verrucous":
        mesh = cells(image, image.uniform(7, 12), 1.2, _warp(image, 8, 3.5))
        return 0.4 - 0.75 * _rounded(image, mesh) * _by_cell(image, mesh, 0.4, 1.0)
    worn = smoothstep(-0.9, 0.7, noise(image, 5, octaves=2))
    return np.asarray(0.55 * worn * (bump(_folds(image, image.uniform(9, 12), 0.22), 0.5) - 0.3), np.float64)


def _folds(image: np.random.Generator, wavelength: float, spread: float) -> Field:
    """Winding, branching folds of deviation 1: noise of about one wavelength and of every direction."""
    down, across = np.fft.fftfreq(SIZE)[:, None], np.fft.rfftfreq(SIZE)[None]
    ring = bump(np.hypot(down, across) * wavelength - 1, spread)
    folds = np.fft.irfft2(np.fft.rfft2(image.standard_normal((SIZE, SIZE))) * ring, (SIZE, SIZE))
    return np.asarray(folds / folds.std(), np.float64)


def _cysts_and_plugs(image: np.random.Generator, pose: _Pose, lesion: _Lesion) -> list[str]:
    """Add white cysts and dark plugs to the surface; return what was added."""
    added = []
    cysts, plugs = int(image.integers(0, 24)), int(image.integers(0, 18))
    if cysts > 4:
        at = pose.point(0.88 * np.sqrt(image.random(cysts)), image.uniform(0, 2 * np.pi, cysts))
        radii = image.gamma(4, 0.32, (cysts, 1)) * image.uniform(0.85, 1.15, (cysts, 2))
        pearls = blur(paint(ellipses(at, radii), image.uniform(0.5, 1, cysts)), 0.6)
        lesion.veils.append(((0.95, 0.90, 0.78), 0.85 * pearls * lesion.body))
        added.append("milia-like cysts")
    if plugs > 3:
        at = pose.point(0.85 * np.sqrt(image.random(plugs)), image.uniform(0, 2 * np.pi, plugs))
        radii = image.uniform(1.2, 3.6, (plugs, 1)) * image.uniform(0.6, 1.2, (plugs, 2))
        pores = paint(ellipses(at, radii, image.uniform(0, 3, plugs)), image.uniform(0.5, 1, plugs))
        # Keratin fills the pores, brown in the middle, with a paler rim where the epidermis turns down.
        lesion.melanin = lesion.melanin * (1 - 0.4 * blur(pores, 1.6)) + 2.2 * blur(pores, 0.7) * lesion.body
        added.append("comedo-like openings")
    return added


# Kinds of vascular lesions, and how stale their blood is: least and most.
_LAKES = {"confluent": (0.0, 0.6), "septate": (0.1, 0.7), "angiokeratoma": (0.6, 1.0)}
_LAKE_WORDS = {
    "confluent": "confluent lacunae",
    "septate": "lacunae between whitish septa",
    "angiokeratoma": "dark lacunae",
}


def _vascular(patient: np.random.Generator, image: np.random.Generator, pose: _Pose) -> _Lesion:
    """Lakes of red to blue-black blood: confluent, parted by whitish septa, or dark under a veil."""
    kind = str(patient.choice(list(_LAKES)))
    dark = patient.uniform(*_LAKES[kind])
    body, lakes, septa, own = _lacunae(patient, image, pose, kind)
    # Neighbouring lakes share much of their colour; confluent ones pass into each other.
    shade = 1 + 0.22 * own + 0.13 * noise(image, 5, octaves=4)
    stale = np.clip(dark + 0.3 * own + 0.12 * noise(image, 3, octaves=3), 0, 1)
    depth = patient.uniform(0.9, 1.8)
    lesion = _Lesion(
        body,
        0.75 * depth * lakes * np.maximum(stale - 0.5, 0) * shade + body * patient.uniform(0, 0.2),
        blood=depth * lakes * shade * (1 - 0.6 * stale) + body * patient.uniform(0.35, 0.9),
        stale_blood=1.1 * depth * lakes * shade * stale,
    )
    structure = [_LAKE_WORDS[kind]]
    if kind == "septate":
        lesion.veils.append(((0.88, 0.75, 0.74), body * septa * patient.uniform(0.15, 0.5)))
    structure += _veil_and_crust(patient, image, lesion, kind)
    lesion.attributes = {
        "symmetry": "symmetric" if pose.aspect > 0.8 else "slightly asymmetric",
        "border": "well defined and lobulated",
        "colour": "bright red" if dark < 0.3 else "red-purple" if dark < 0.7 else "purple to blue-black",
        "structure": _listed(structure),
    }
    return lesion


def _lacunae(
    patient: np.random.Generator, image: np.random.Generator, pose: _Pose, kind: str
) -> tuple[Field, Field, Field, Field]:
    """Body, lakes and septa, each from 0 to 1, and a value from -1 to 1 of each lake's own."""
    distance, angle = pose.polar()
    distance = distance / radius_at(outline(image, 0.06, waves=4), angle)
    spacing = patient.uniform(13, 26) * (0.6 + 0.6 * pose.radius)
    lobules = cells(image, spacing, 1.2, _warp(image, 9, 0.16 * spacing))
    # Blood presses from within, so lakes are rounded; the edge bulges a little with those that touch it.
    room = blur(lobules.border, 0.09 * spacing) / spacing
    edge = distance - 0.3 * np.clip(room, 0, 0.3) * pose.radius + 0.03 * noise(image, 9)
    lakes, septa = _lakes(image, lobules, room, kind)
    own = blur(_by_cell(image, lobules, -1, 1), 0.17 * spacing if kind == "confluent" else 1.5)
    return 1 - smoothstep(0.9, 1.0, edge), lakes * (1 - smoothstep(0.86, 0.97, edge)), septa, own


def _lakes(image: np.random.Generator, lobules: Cells, room: Field, kind: str) -> tuple[Field, Field]:
    """How far blood fills every pixel, and the septa between lakes, both from 0 to 1.

    ``room`` is the distance from the borders of the lobules in spacings.
    """
    # Septa are thick, thin, or missing where lakes have grown together.
    growth = noise(image, 4, octaves=2)
    if kind == "confluent":
        septa = smoothstep(0.14, 0.03, room) * smoothstep(-0.4, 1.4, growth)
        return 1 - 0.5 * septa, septa
    if kind == "septate":
        width = np.clip(0.08 + 0.05 * growth, 0.0, 0.2)
        septa = blur(smoothstep(width + 0.13, width - 0.03, room + 0.02 * noise(image, 14)), 0.8)
        septa = septa * smoothstep(-1.3, 0.2, growth)
        return 1 - 0.8 * septa, septa
    lakes = np.maximum(_rounded(image, lobules), 0.55 * smoothstep(-0.6, 0.8, noise(image, 4, octaves=2)))
    lakes = lakes * np.clip(_by_cell(image, lobules, 0.3, 1.5), 0, 1)
    return lakes, 1 - lakes


def _veil_and_crust(
    patient: np.random.Generator, image: np.random.Generator, lesion: _Lesion, kind: str
) -> list[str]:
    """Add the whitish veil of a thick horny layer and crusts of blood; return what was added."""
    added = []
    is_horny = kind == "angiokeratoma"
    veil = patient.uniform(0.3, 0.7) if is_horny else patient.uniform(-0.4, 0.5)
    if veil > 0.15:
        cover = veil * smoothstep(-0.6, 1.5, noise(image, 3, octaves=4))
        tone = (0.64, 0.60, 0.64) if is_horny else (0.87, 0.76, 0.78)
        lesion.veils.append((tone, lesion.body * cover))
        added.append("a whitish veil")
    if is_horny and image.random() < 0.4:
        crust = lesion.body * smoothstep(0.9, 1.6, noise(image, 4, octaves=4))
        lesion.veils.append(((0.20, 0.08, 0.07), 0.9 * crust))
        added.append("a haemorrhagic crust")
    return added


_LESIONS: tuple[Callable[[np.random.Generator, np.random.Generator, _Pose], _Lesion], ...] = (
    _nevus,
    _melanoma,
    _keratosis,
    _vascular,
)


def _hair(patient: np.random.Generator, image: np.random.Generator, scene: Field) -> tuple[Field, str]:
    """Hairs over the scene, of one colour and about one direction in a patient, and how many."""
    many = patient.random() < 0.45
    hairs = int(image.integers(3, 13)) if many else int(image.integers(0, 3))
    colour = np.array([[0.10, 0.07, 0.06], [0.30, 0.19, 0.12], [0.72, 0.62, 0.48]])[patient.integers(0, 3)]
    comb, thickness = patient.uniform(0, np.pi), patient.uniform(0.7, 1.5)
    strands = []
    for _ in range(hairs):
        heading = comb + image.normal(0, 0.45) + image.normal(0, 0.5) * np.linspace(-1, 1, 30)
        step = image.uniform(2, 7)
        path = np.cumsum(step * np.stack([np.cos(heading), np.sin(heading)], axis=1), axis=0)
        path += image.uniform(0, SIZE, 2) - path[15]
        strands.append(ribbon(path, thickness * np.linspace(1.2, 0.7, 30)))
    if not strands:
        return scene, "none"
    shadow = blur(paint(strands), 1.1)
    return mix(scene * (1 - 0.18 * shadow[..., None]), colour, 0.85 * paint(strands)), (
        "dense" if hairs > 6 else "sparse"
    )


def _bubbles(image: np.random.Generator, style: _Dermatoscope, scene: Field) -> Field:
    """Bubbles in the immersion gel: a dark rim, a bright crescent, a sharp reflection."""
    n = int(image.integers(1, 7)) if style.has_gel else 0
    scene = scene.copy()
    for _ in range(n):
        x, y, radius = image.uniform(0, SIZE), image.uniform(0, SIZE), image.gamma(3, 1.6)
        reach = radius + 5
        near = tuple(slice(max(0, int(at - reach)), int(at + reach) + 1) for at in (y, x))
        across, down = COLUMNS[near] - x, ROWS[near] - y
        distance = np.hypot(across, down)
        lit = 0.5 + 0.5 * np.cos(np.arctan2(down, across) - style.lamp)
        rimmed = mix(scene[near], (0.2, 0.13, 0.1), 0.3 * bump(distance - radius, 0.9))
        scene[near] = mix(rimmed, (1, 0.97, 0.94), 0.65 * lit**2 * bump(distance - radius + 1.3, 0.8))
    return scene


@dataclass(frozen=True)
class _Dermatoscope:
    """What every image of one device shares."""

    has_gel: bool
    lamp: float
    rim: float
    falloff: float
    tint: tuple[float, float, float]
    gamma: float
    grain: float
    ruler: bool
    shines: bool

    @classmethod
    def of(cls, patient: np.random.Generator) -> _Dermatoscope:
        """The device that a patient is seen with."""
        tint = 1 + patient.normal(0, 0.035, 3)
        return cls(
            has_gel=bool(patient.random() < 0.4),
            lamp=patient.uniform(0, 2 * np.pi),
            rim=patient.uniform(0.98, 1.25) if patient.random() < 0.35 else 2.0,
            falloff=patient.uniform(0.05, 0.45),
            tint=(float(tint[0]), float(tint[1]), float(tint[2])),
            gamma=patient.uniform(0.85, 1.25),
            grain=patient.uniform(0.004, 0.02),
            ruler=bool(patient.random() < 0.25),
            shines=bool(patient.random() < 0.4),
        )

    def field_of_view(self) -> np.ndarray[tuple[int, ...], np.dtype[np.bool_]]:
        """The pixels that the dark rim leaves free."""
        return np.asarray(np.hypot(X, Y) < self.rim)

    def photograph(
        self, image: np.random.Generator, scene: Field
    ) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        """The scene with ruler, glare, rim and the camera's own colours, uint8 ``(SIZE, SIZE, 3)``."""
        if self.ruler:
            scene = mix(scene, (0.12, 0.12, 0.13), 0.8 * _ruler(image))
        glare = blur(smoothstep(2.3, 3.8, noise(image, 34) + 1.2 * noise(image, 4)), 0.7)
        scene = mix(scene, (1, 0.98, 0.96), image.uniform(0.2, 0.8) * glare if self.shines else 0)
        scene = (
            scene * vignette(self.falloff, (image.uniform(-0.2, 0.2), image.uniform(-0.2, 0.2)))[..., None]
        )
        scene = scene * (1 - 0.96 * smoothstep(self.rim, self.rim + 0.05, np.hypot(X, Y)))[..., None]
        return photograph(
            image,
            scene,
            defocus=image.uniform(0.35, 1.0),
            grain=self.grain,
            gain=image.uniform(0.88, 1.06) * np.array(self.tint),
            gamma=self.gamma,
        )


def _ruler(image: np.random.Generator) -> Field:
    """Millimetre ticks along one side of the image."""
    spacing, start, inset = image.uniform(8, 13), image.uniform(0, 8), image.uniform(2, 9)
    at = np.arange(start, SIZE, spacing)
    length = np.where(np.arange(len(at)) % 5 == 0, 9.0, 5.0)
    ticks = [
        ribbon(np.array([[x, inset], [x, inset + long]]), 1.0) for x, long in zip(at, length, strict=True)
    ]
    return np.ascontiguousarray(np.rot90(paint(ticks), int(image.integers(0, 4))))


DATASET = PhantomDataset(
    key="phantom-dermatoscopy",
    title="Dermatoscopy phantoms",
    modality="dermatoscopy",
    anatomy="skin",
    class_names=("melanocytic nevus", "melanoma", "seborrheic keratosis", "vascular lesion"),
    findings=(True, True, True, True),
    draw=_draw,
)
