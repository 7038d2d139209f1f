"""Contrast-enhanced T1 slices of the head, in the manner of the Figshare brain tumour collection.

Images of a patient are slices through one tumour in one plane, of the anatomies of ``brain_anatomy``.
Masks: the enhancing tumour with its necrotic core, without the oedema.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from vmfcoop.data.phantoms import brain_anatomy as anatomy
from vmfcoop.data.phantoms.brain_anatomy import CSF, ENHANCED, Build, Mass, Point, Section, Space
from vmfcoop.data.phantoms.core import SIZE, Phantom, PhantomDataset
from vmfcoop.data.phantoms.texture import Pose, blob, ellipse, grain, grey, inside, layer, rician
from vmfcoop.data.phantoms.tissue import (
    COLUMNS,
    ROWS,
    Field,
    X,
    Y,
    bump,
    look_up,
    noise,
    outline,
    smoothstep,
    soft_minimum,
)

_GLIOMA, _MENINGIOMA, _PITUITARY, _NORMAL = range(4)

_Site = tuple[float, float, str]
_Direction = tuple[float, str]


@dataclass(frozen=True)
class _View:
    """Where tumours grow in a section.

    Attributes:
        section: plane and level.
        glioma: middles of lobes on the right of the picture.
        dura: directions (radians, clockwise from the right) in which a ray from ``core`` meets dura.
        core: where those rays start.
        room: largest radius of a tumour in a lobe.
        falx: heights at which there is falx.
    """

    section: Section
    glioma: tuple[_Site, ...]
    dura: tuple[_Direction, ...]
    core: Point = (0.0, 0.0)
    room: float = 0.32
    falx: tuple[float, ...] = ()


def _convexity(*angles: float) -> tuple[_Direction, ...]:
    return tuple((angle, "convexity") for angle in angles)


_AXIAL_DURA, _CORONAL_DURA = _convexity(-0.9, -0.3, 0.4, 0.9), _convexity(-1.1, -0.6, -0.1)
_SAGITTAL_DURA = (*_convexity(-2.6, -2.0, -1.2, -0.6), (2.65, "olfactory groove"))
_SAGITTAL_LOBES = (
    (-0.4, -0.25, "frontal lobe"),
    (0.1, -0.5, "parietal lobe"),
    (0.45, -0.25, "occipital lobe"),
    (-0.2, -0.5, "frontal lobe"),
)

_VIEWS = (
    _View(
        anatomy.VENTRICULAR_AXIAL,
        (
            (0.33, -0.42, "frontal lobe"),
            (0.4, 0.05, "temporal lobe"),
            (0.36, 0.32, "parietal lobe"),
            (0.24, 0.52, "occipital lobe"),
        ),
        _AXIAL_DURA,
        falx=(-0.6, 0.58),
    ),
    _View(
        anatomy.SUPRAVENTRICULAR_AXIAL,
        ((0.28, -0.4, "frontal lobe"), (0.3, -0.1, "frontal lobe"), (0.28, 0.3, "parietal lobe")),
        _AXIAL_DURA,
        falx=(-0.5, 0.0, 0.4),
    ),
    _View(
        anatomy.MIDBRAIN_AXIAL,
        (
            (0.26, -0.45, "frontal lobe"),
            (0.42, 0.0, "temporal lobe"),
            (0.4, 0.25, "temporal lobe"),
            (0.28, 0.55, "occipital lobe"),
        ),
        ((-0.75, "sphenoid wing"), *_convexity(-0.2, 0.5)),
        room=0.25,
        falx=(-0.6,),
    ),
    _View(
        anatomy.PONTINE_AXIAL,
        ((0.38, -0.12, "temporal lobe"), (0.27, 0.45, "cerebellum"), (0.37, 0.05, "temporal lobe")),
        ((-1.0, "sphenoid wing"), *_convexity(-0.3, 0.3)),
        (0.36, -0.1),
        room=0.2,
    ),
    _View(
        anatomy.SELLAR_CORONAL,
        (
            (0.3, -0.45, "frontal lobe"),
            (0.4, 0.06, "temporal lobe"),
            (0.38, -0.25, "parietal lobe"),
            (0.32, -0.14, "insula"),
        ),
        _CORONAL_DURA,
        (0.0, -0.2),
        falx=(-0.62,),
    ),
    _View(
        anatomy.FRONTAL_CORONAL,
        ((0.28, -0.42, "frontal lobe"), (0.32, -0.15, "frontal lobe"), (0.2, -0.3, "frontal lobe")),
        (*_CORONAL_DURA, (0.8, "sphenoid wing")),
        (0.0, -0.2),
        falx=(-0.6,),
    ),
    _View(
        anatomy.ATRIAL_CORONAL,
        (
            (0.3, -0.42, "parietal lobe"),
            (0.42, -0.15, "parietal lobe"),
            (0.42, 0.02, "occipital lobe"),
            (0.24, 0.28, "cerebellum"),
        ),
        (*_CORONAL_DURA, (0.75, "tentorium")),
        (0.0, -0.25),
        room=0.26,
        falx=(-0.6,),
    ),
    _View(anatomy.MIDSAGITTAL, _SAGITTAL_LOBES, _SAGITTAL_DURA, (0.03, -0.25)),
    _View(
        anatomy.PARASAGITTAL,
        (*_SAGITTAL_LOBES, (-0.1, 0.05, "temporal lobe")),
        _SAGITTAL_DURA,
        (0.03, -0.25),
    ),
)


@dataclass(frozen=True)
class _Tumour:
    """A lesion before it is drawn: how the brain gives way, where it sits, and what a report says."""

    mass: Mass
    foot: Point
    side: str
    location: str


def _draw(patient: np.random.Generator, image: np.random.Generator, label: int) -> Phantom:
    """A slice through the head of a patient, as a ``PhantomDataset`` draws it."""
    view = _view(patient, label)
    plane = view.section.plane
    pose, mirrored = _pose(patient, image, plane)
    tumour = _tumour(patient, image, view, label)
    space = Space.around(pose, tumour.mass, view.section)
    head = view.section.draw(patient, space, Build.of(patient, image))
    head, share, findings = _with_tumour(patient, space, head, tumour, label)
    if plane == "coronal":
        # The coil receives less from the neck, and no one is asked to look at it.
        head = head * (1 - 0.6 * smoothstep(0.3, 0.9, space.at_rest[1]))
    head, share = _as_no_other(patient, head, share)
    seen, mask = _scan(patient, image, head), share > 0.5
    if mirrored:
        seen, mask = seen[:, ::-1], mask[:, ::-1]
    attributes = {"view": plane, "side": tumour.side, "location": tumour.location, **findings}
    return Phantom(grey(seen), np.ascontiguousarray(mask), attributes)


def _view(patient: np.random.Generator, label: int) -> _View:
    """A third of the patients in each plane; few levels show the sella."""
    plane = ("axial", "coronal", "sagittal")[patient.integers(0, 3)]
    views = [view for view in _VIEWS if view.section.plane == plane]
    shown = [view for view in views if label != _PITUITARY or view.section.sella is not None]
    return shown[patient.integers(len(shown))]


def _pose(patient: np.random.Generator, image: np.random.Generator, plane: str) -> tuple[Pose, bool]:
    """Field of view and lie of the head; the direction a sagittal face looks in is the site's."""
    coronal, sagittal = plane == "coronal", plane == "sagittal"
    # Coronal slices are centred on the brain, not on head and neck.
    scale = patient.uniform(*((74, 88) if coronal else (64, 76)))
    x, y = 79.5 + image.normal(0, 2, 2) + patient.normal(0, 2.5, 2)
    lower = 0.16 * scale if coronal else 4.0 if sagittal else 0.0
    turn = patient.normal(0, 0.06) + image.normal(0, 0.03)
    stretch = patient.uniform(0.88, 1.0 if coronal else 1.07)
    mirrored = sagittal and patient.random() < 0.3
    return Pose(x, y + lower, scale, turn, stretch), mirrored


def _as_no_other(patient: np.random.Generator, head: Field, share: Field) -> tuple[Field, Field]:
    """The head bent a little: no two have the same shape, and none is symmetric."""
    bend = patient.normal(0, 1, 3)
    across = 1.6 * noise(patient, 3) + 2.0 * bend[0] * X * Y + 0.8 * bend[1] * np.square(Y)
    down = 1.6 * noise(patient, 3) + 1.2 * bend[2] * np.square(X)
    x, y = COLUMNS + across, ROWS + down
    return look_up(head, x, y), look_up(share, x, y)


def _tumour(patient: np.random.Generator, image: np.random.Generator, view: _View, label: int) -> _Tumour:
    """Where the patient's tumour is; slices cut it at different widths."""
    sagittal, sella = view.section.plane == "sagittal", view.section.sella
    sign = 1.0 if sagittal else float(patient.choice([-1, 1]))
    side = "unspecified" if sagittal else "right" if sign < 0 else "left"
    # Most tumours are seen when they are large.
    size, cut = 1 - patient.uniform(0, 1) ** 1.4, image.uniform(0.85, 1.0)
    if label == _GLIOMA:
        x, y, location = view.glioma[patient.integers(len(view.glioma))]
        centre = (sign * (x + patient.normal(0, 0.03)), y + patient.normal(0, 0.04))
        # The cerebellum holds no tumour as large as the cerebrum's.
        radius = min(0.06 + 0.27 * size, 0.17 if location == "cerebellum" else view.room) * cut
        shift = 0.0 if sagittal else -sign * radius * patient.uniform(0.1, 0.5)
        return _Tumour(Mass(centre, radius, 0.3, shift), centre, side, location)
    if label == _MENINGIOMA:
        return _meningioma_site(patient, view, sign, side, min(0.085 + 0.2 * size, view.room) * cut)
    if label == _PITUITARY:
        assert sella is not None
        radius = (0.085 + 0.135 * size) * cut
        return _Tumour(Mass(sella, radius, 0.3, 0.0), sella, "midline", "sella")
    return _Tumour(Mass((0.0, 0.0), 1.0, 0.0, 0.0), (0.0, 0.0), "none", "none")


def _meningioma_site(
    patient: np.random.Generator, view: _View, sign: float, side: str, radius: float
) -> _Tumour:
    """On the falx, or where a ray from the core of the brain meets its surface."""
    shift = 0.0 if view.section.plane == "sagittal" else -sign * 0.15 * radius
    if view.falx and patient.random() < 0.3:
        y = float(patient.choice(view.falx))
        return _Tumour(Mass((sign * 0.8 * radius, y), radius, 0.4, 0.0), (0.0, y), side, "falx")
    angle, location = view.dura[patient.integers(len(view.dura))]
    angle += patient.normal(0, 0.1)
    # At the base there is less room, and the side must stay clear.
    radius = radius if location == "convexity" else min(radius, 0.19)
    along = np.arange(0.05, 1.2, 0.005)[None]
    ray = (view.core[0] + along * np.cos(angle), view.core[1] + along * np.sin(angle))
    reach = along[0, int(np.argmax(view.section.depth(*ray)[0] < 0))]
    out, flip = np.array([np.cos(angle), np.sin(angle)]), np.array([sign, 1.0])
    foot = view.core + reach * out
    cx, cy = (foot - 0.72 * radius * out) * flip
    fx, fy = foot * flip
    return _Tumour(Mass((float(cx), float(cy)), radius, 0.4, shift), (float(fx), float(fy)), side, location)


_Findings = Mapping[str, str]


def _with_tumour(
    patient: np.random.Generator, space: Space, head: Field, tumour: _Tumour, label: int
) -> tuple[Field, Field, _Findings]:
    """The head with the tumour, the share of it in each pixel, and the rest of the report."""
    if label == _NORMAL:
        return head, np.zeros((SIZE, SIZE)), _report("none", "none", "none", "none")
    grow = (_glioma, _meningioma, _pituitary)[label]
    return grow(patient, space, head, tumour)


def _report(size: str, margin: str, enhancement: str, oedema: str) -> _Findings:
    return {"size": size, "margin": margin, "enhancement": enhancement, "edema": oedema}


def _size(radius: float, large: float) -> str:
    """In words; what counts as large depends on the tumour."""
    return "small" if radius < 0.6 * large else "medium" if radius < large else "large"


def _glioma(
    patient: np.random.Generator, space: Space, head: Field, tumour: _Tumour
) -> tuple[Field, Field, _Findings]:
    """Infiltrates: oedema in fingers along the white matter, a ragged core of one of three kinds."""
    x, y, depth = space.at_rest
    within = inside(-depth - 0.01, 0.02)
    kind = str(patient.choice(["ring", "patchy", "faint"], p=[0.4, 0.38, 0.22]))
    core = _ragged(patient, x, y, tumour.mass)
    # What is dark around a tumour without a rim belongs to it.
    swelling = patient.uniform(0.05, 0.2) if kind == "ring" else patient.uniform(0.01, 0.07)
    reach = core - swelling * (0.75 + 0.6 * noise(patient, 9))
    dark = patient.uniform(0.3, 0.4)
    head = layer(head, dark, 0.9 * inside(reach, 0.06) * within * smoothstep(0.02, 0.1, depth))
    mottled = noise(patient, 18, octaves=2)
    if kind == "ring":
        tissue = _rim(patient, core, tumour.mass.radius, mottled)
    else:
        tissue = _patches(patient, core, mottled, 0.6 if kind == "patchy" else 0.85, dark - 0.03)
    share = inside(core, 0.03 if kind == "ring" else 0.06) * within
    oedema = "marked" if swelling > 0.12 else "mild" if swelling > 0.03 else "none"
    findings = _report(_size(tumour.mass.radius, 0.24), "infiltrative", kind, oedema)
    return layer(head, tissue, share), share, findings


def _ragged(patient: np.random.Generator, x: Field, y: Field, mass: Mass) -> Field:
    """Distance from the edge of two lobes that have grown together."""
    radius, turn = mass.radius, patient.uniform(0, 2 * np.pi)
    ragged = outline(patient, patient.uniform(0.08, 0.18), waves=5)
    core = blob(x, y, mass.centre, (radius, radius * patient.uniform(0.7, 0.95)), ragged, turn)
    off = radius * patient.uniform(0.5, 0.95)
    at = (mass.centre[0] + off * np.cos(turn + 1), mass.centre[1] + off * np.sin(turn + 1))
    second = radius * patient.uniform(0.3, 0.6)
    core = soft_minimum(core, ellipse(x, y, at, (second, second)), 0.05)
    return core + 0.13 * radius * noise(patient, 13) + 0.008 * noise(patient, 30)


def _rim(patient: np.random.Generator, core: Field, radius: float, mottled: Field) -> Field:
    """Enhancement of uneven thickness around necrosis, with nodules and septa."""
    thickness = (0.022 + 0.22 * radius * patient.uniform(0.25, 1)) * (1 + 0.55 * noise(patient, 9))
    necrosis = inside(core + thickness, 0.03)
    septa = bump(noise(patient, 8), 0.12) * patient.uniform(0, 0.7)
    bright = patient.uniform(0.75, 0.95) + 0.1 * mottled
    return layer(bright, 0.24 + 0.05 * mottled, necrosis * (1 - septa))


def _patches(
    patient: np.random.Generator, core: Field, mottled: Field, quantile: float, dark: float
) -> Field:
    """A dark tumour of which some enhances in clumps without a border."""
    clumps = noise(patient, 8) + 0.5 * mottled
    threshold = float(np.quantile(clumps[core < 0], quantile))
    patches = smoothstep(threshold - 0.3, threshold + 0.7, clumps) * inside(core + 0.03, 0.05)
    return layer(dark + 0.04 * mottled, 0.9 + 0.08 * mottled, patches)


def _meningioma(
    patient: np.random.Generator, space: Space, head: Field, tumour: _Tumour
) -> tuple[Field, Field, _Findings]:
    """Sits on dura, round and even, with a cleft of fluid towards the brain and a tail along the dura."""
    x, y, depth = space.at_rest
    radius, centre = tumour.mass.radius, tumour.mass.centre
    axis = np.arctan2(centre[1] - tumour.foot[1], centre[0] - tumour.foot[0])
    smooth = outline(patient, patient.uniform(0.03, 0.08), waves=4)
    body = blob(x, y, centre, (radius, radius * patient.uniform(0.95, 1.35)), smooth, axis)
    on_falx = tumour.location == "falx"
    dura = depth + 0.012
    free = soft_minimum(x * np.sign(centre[0]) + 0.01, dura, 0.02) if on_falx else dura
    room = smoothstep(-0.015, 0.015, free)
    swelling = patient.choice([0.0, 0.05, 0.1])
    halo = inside(body - swelling * (0.8 + 0.5 * noise(patient, 9)), 0.05) * (swelling > 0)
    head = layer(head, 0.36, 0.8 * halo * smoothstep(0.03, 0.08, depth) * room)
    head = layer(head, CSF, 0.65 * bump(body - 0.018, 0.018) * room * smoothstep(0, 0.02, depth))
    from_foot = np.hypot(x - tumour.foot[0], y - tumour.foot[1]) / radius
    tail = bump(free - 0.008, 0.025) * smoothstep(2.4, 1.3, from_foot)
    head = layer(head, ENHANCED, 0.9 * tail)
    uneven = patient.uniform(0.02, 0.06)
    value = patient.uniform(0.78, 0.94) + uneven * noise(patient, 14, octaves=2)
    share = inside(-soft_minimum(-body, free, 0.02), 0.018)
    oedema = ("none", "mild", "marked")[round(float(swelling) * 20)]
    findings = _report(_size(radius, 0.21), "well circumscribed", "homogeneous", oedema)
    return layer(head, value, share), share, findings


def _pituitary(
    patient: np.random.Generator, space: Space, head: Field, tumour: _Tumour
) -> tuple[Field, Field, _Findings]:
    """From a nodule of the gland to a figure of eight with its waist at the diaphragm of the sella."""
    x, y, _ = space.at_rest
    radius, (across, down) = tumour.mass.radius, tumour.foot
    upright = space.section.plane != "axial"
    smooth = outline(patient, 0.07, waves=4)
    macro = radius > 0.11
    low = min(radius, 0.11 + 0.15 * radius) if upright else radius
    body = blob(x, y, (across, down), (low * patient.uniform(0.95, 1.2), 0.85 * low), smooth)
    if macro and upright:
        top = 0.9 * radius * patient.uniform(0.8, 1.0)
        above = (across + patient.normal(0, 0.01), down - 0.75 * low - 0.8 * top)
        upper = blob(x, y, above, (top, 0.9 * top), outline(patient, 0.07, waves=4))
        body = soft_minimum(body, upper, 0.03)
    value = patient.uniform(0.76, 0.92) + 0.04 * noise(patient, 14)
    cystic = macro and patient.random() < 0.35
    hollow = ellipse(x, y, (across, down - 0.4 * low), (0.5 * low, 0.45 * low))
    value = layer(value, 0.34, inside(hollow + 0.01 * noise(patient, 12), 0.03) * cystic)
    head = layer(head, CSF, 0.6 * bump(body - 0.02, 0.016))
    share = inside(body, 0.018)
    enhancement = "heterogeneous" if cystic else "homogeneous"
    findings = _report(_size(radius, 0.18), "well circumscribed", enhancement, "none")
    return layer(head, value, share), share, findings


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
