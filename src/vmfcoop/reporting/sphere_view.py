"""The sphere of images and texts, seen along the directions in which the classes differ.

The view is the projection on three orthonormal directions: the pole, which is the mean direction of the
class texts, and the two principal directions of the differences between the classes. A point of the sphere in
d dimensions is projected, put back to length 1, and drawn in Lambert's azimuthal equal-area projection about
the pole. What is lost is said: the share of variance that the view keeps.

Image features lie in another cone than texts (the modality gap, Liang et al., NeurIPS 2022). They are turned
as a whole, in the plane of both means, so that their mean falls on the pole: angles between images stay as
they are, and the angle of the turn is reported.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vmfcoop.sphere import VonMisesFisherFit
from vmfcoop.sphere.caps import seen_cap_angle

CAP_SHARE = 0.5
"""Share of a field's draws that are seen inside its cap."""

FRAME_SHARE = 0.99
"""Share of the images that the frame is large enough for."""

ENLARGED_BELOW = 0.5
"""Reach of the images as a share of the frame, from which down they have a frame of their own as well."""

_CAP_POINTS = 73
_FLAT = 1e-8

Array = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Cap:
    """The outline of the region that holds half of a field's draws, as they are seen.

    Attributes:
        outline: points of the plane, shape ``(m, 2)``.
    """

    outline: Array


@dataclass(frozen=True, eq=False)
class SphereView:
    """Points of the plane, at ``2 sin(angle / 2)`` from the pole.

    Attributes:
        frame: pole and two principal directions, orthonormal rows, ``(3, d)``.
        texts: by kind (``before``, ``after``, ``anchors``), one point a class, ``(C, 2)``.
        caps: of the fields of the descriptions, one a class; empty where there are none.
        support: of the support images, ``(n, 2)``, or None.
        test: of the test images, ``(N, 2)``, or None.
        gap: angle between the mean directions of images and texts, in radians, or None without images.
        kept: share of the variance that the view keeps, by what varies.
        radius: of the frame, in the plane.
        beyond: how many points of each kind, and test images, lie outside the frame.
    """

    frame: Array
    texts: dict[str, Array]
    caps: tuple[Cap, ...]
    support: Array | None
    test: Array | None
    gap: float | None
    kept: dict[str, float]
    radius: float
    beyond: dict[str, int]

    def enlarged(self) -> SphereView | None:
        """The view in a frame about the images; None where its frame is not much larger than they are."""
        images = [np.linalg.norm(cloud, axis=1) for cloud in (self.support, self.test) if cloud is not None]
        if not images:
            return None
        radius = 1.06 * float(np.quantile(np.concatenate(images), FRAME_SHARE))
        if radius > ENLARGED_BELOW * self.radius:
            return None
        beyond = {kind: _beyond(rows, radius) for kind, rows in (*self.texts.items(), ("test", self.test))}
        return replace(self, radius=radius, beyond=beyond)


@dataclass(frozen=True, eq=False)
class Images:
    """Unit image features ``(n, d)`` and their classes ``(n,)``."""

    features: Array
    labels: NDArray[np.int64]

    def class_means(self) -> Array:
        """Mean direction of every class that occurs, unit rows."""
        means = [self.features[self.labels == label].mean(axis=0) for label in np.unique(self.labels)]
        return _unit(np.array(means))


def sphere_view(
    texts: Mapping[str, ArrayLike],
    fields: Sequence[VonMisesFisherFit] = (),
    support: Images | None = None,
    test: Images | None = None,
) -> SphereView | None:
    """The view of a run.

    Args:
        texts: unit embeddings of the classes by kind, ``(C, d)`` each; the pole is the mean of ``after``, or
            of the last kind where nothing was learned.
        fields: of the descriptions, one a class.
        support: support images; without them no image is drawn, as their mean is what images are turned by.
        test: test images.

    Returns:
        The view; None where there is no second direction to see, as with one class without images.
    """
    points = {kind: np.asarray(rows, np.float64) for kind, rows in texts.items()}
    pole = _unit(points.get("after", list(points.values())[-1]).mean(axis=0))
    gap = None
    if support is not None:
        centre = _unit(support.class_means().mean(axis=0))
        gap = float(np.arccos(np.clip(centre @ pole, -1, 1)))
        support = Images(turned(support.features, centre, pole), support.labels)
        test = None if test is None else Images(turned(test.features, centre, pole), test.labels)
    else:
        test = None
    learned = {kind: rows for kind, rows in points.items() if kind != "before"}
    families = learned or dict(points)
    if support is not None:
        families["support"] = support.class_means()
    frame = _frame(pole, list(families.values()), support)
    if frame is None:
        return None
    kept = {kind: _kept(rows, frame) for kind, rows in families.items()}
    if test is not None:
        kept["test"] = _kept(test.features, frame)
    return _drawn(frame, points, fields, support, test, gap, kept)


def turned(rows: Array, start: Array, end: Array) -> Array:
    """Rows turned by the rotation that carries one unit vector to another and moves nothing across both.

    ``x - ((a + b) . x) / (1 + a . b) (a + b) + 2 (a . x) b``, for a and b that are not opposite.

    Example:
        >>> turned(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), np.eye(3)[0], np.eye(3)[1]).tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    both = start + end
    along = rows @ both / max(1 + float(start @ end), 1e-12)
    result: Array = rows - np.outer(along, both) + 2 * np.outer(rows @ start, end)
    return result


def lambert(directions: Array) -> Array:
    """Unit rows ``(n, 3)``, the pole along the first axis -> points of the plane ``(n, 2)``.

    Equal areas of the sphere are equal areas of the plane; a point at the angle a from the pole is
    ``2 sin(a / 2)`` from the origin.

    Example:
        >>> lambert(np.array([[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])).round(4).tolist()
        [[0.0, 0.0], [0.0, 1.4142]]
    """
    scale = np.sqrt(2 / (1 + directions[:, :1]).clip(min=1e-12))
    plane: Array = scale * directions[:, 1:]
    return plane


def _frame(pole: Array, families: Sequence[Array], support: Images | None) -> Array | None:
    """Pole and two principal directions, orthonormal rows ``(3, d)``.

    Every family of class directions counts alike, whatever its spread. Where the classes span one direction
    only (two classes), the images give the second.
    """
    spreads = [_across(rows - rows.mean(axis=0), pole[None]) for rows in families]
    scaled = [spread / np.linalg.norm(spread) for spread in spreads if np.linalg.norm(spread) > _FLAT]
    directions = _principal(np.concatenate(scaled)) if scaled else np.empty((0, len(pole)))
    if len(directions) < 2 and support is not None:
        known = np.concatenate([pole[None], directions])
        rest = _across(support.features - support.features.mean(axis=0), known)
        directions = np.concatenate([directions, _principal(rest)])
    return np.concatenate([pole[None], directions[:2]]) if len(directions) >= 2 else None


def _principal(rows: Array) -> Array:
    """Right singular vectors that matter, strongest first, each with its largest entry positive."""
    _, values, vectors = np.linalg.svd(rows, full_matrices=False)
    kept = vectors[values > 1e-6 * max(values.max(initial=0), _FLAT)]
    largest = np.abs(kept).argmax(axis=1)
    oriented: Array = kept * np.sign(kept[np.arange(len(kept)), largest])[:, None]
    return oriented


def _across(rows: Array, directions: Array) -> Array:
    """Rows without their parts along orthonormal directions."""
    result: Array = rows - rows @ directions.T @ directions
    return result


def _kept(rows: Array, frame: Array) -> float:
    """Share of the variance of the rows along the frame's three directions."""
    centred = rows - rows.mean(axis=0)
    total = float((centred**2).sum())
    return float(((centred @ frame.T) ** 2).sum()) / total if total > _FLAT else 1.0


def _drawn(
    frame: Array,
    texts: Mapping[str, Array],
    fields: Sequence[VonMisesFisherFit],
    support: Images | None,
    test: Images | None,
    gap: float | None,
    kept: dict[str, float],
) -> SphereView:
    def seen(rows: Array) -> Array:
        return lambert(_unit(rows @ frame.T))

    points = {kind: seen(rows) for kind, rows in texts.items()}
    caps = tuple(_cap(field, frame) for field in fields)
    shots = None if support is None else seen(support.features)
    images = None if test is None else seen(test.features)
    radius = min(2.0, 1.06 * _reach(points, [cap.outline for cap in caps], [shots, images]))
    beyond = {kind: _beyond(rows, radius) for kind, rows in (*points.items(), ("test", images))}
    return SphereView(frame, points, caps, shots, images, gap, kept, radius, beyond)


def _reach(texts: Mapping[str, Array], outlines: Sequence[Array], clouds: Sequence[Array | None]) -> float:
    """Distance from the pole that the frame has to hold: all marks, but not every last image.

    Prompts before training may lie far off; they widen the frame by a quarter at most.
    """

    def farthest(rows: Array) -> float:
        return float(np.linalg.norm(rows, axis=1).max())

    marks = [rows for kind, rows in texts.items() if kind != "before"]
    reach = max(map(farthest, [*marks, *outlines]), default=0.0)
    images = [np.linalg.norm(cloud, axis=1) for cloud in clouds if cloud is not None]
    if images:
        reach = max(reach, float(np.quantile(np.concatenate(images), FRAME_SHARE)))
    if "before" in texts:
        before = farthest(texts["before"])
        reach = max(reach, min(before, 1.25 * reach) if reach else before)
    return reach


def _beyond(rows: Array | None, radius: float) -> int:
    return 0 if rows is None else int((np.linalg.norm(rows, axis=1) > radius).sum())


def _cap(field: VonMisesFisherFit, frame: Array) -> Cap:
    mean = frame @ np.asarray(field.mean_direction, np.float64)
    alignment = float(np.clip(np.linalg.norm(mean), 1e-3, 1))
    centre = mean / alignment
    dim = frame.shape[1]
    angle = seen_cap_angle(dim, float(field.concentration), CAP_SHARE, alignment)
    first, second = _principal(_across(np.eye(3), centre[None]))[:2]
    turn = np.linspace(0, 2 * math.pi, _CAP_POINTS)[:, None]
    around = np.cos(turn) * first + np.sin(turn) * second
    return Cap(lambert(math.cos(angle) * centre + math.sin(angle) * around))


def _unit(rows: NDArray[np.floating[Any]]) -> Array:
    lengths = np.linalg.norm(rows, axis=-1, keepdims=True)
    result: Array = rows / np.maximum(lengths, 1e-12)
    return result
