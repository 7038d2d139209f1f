"""How wide a von Mises-Fisher law is: the angle around its mean that holds a share of its mass."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from vmfcoop.errors import UserError

_Array = NDArray[np.float64]
# The density of an angle is smooth; this many nodes over 12 widths to either side leave an error below 1e-6.
_NODES = 513
_SIDE_NODES = 129
_WIDTHS = 12.0


def cap_angle(dim: int, kappa: float, share: float = 0.5) -> float:
    r"""Angular radius of the cap around the mean direction that holds a share of the law's mass.

    The angle has the density :math:`f(\theta) \propto e^{\kappa \cos\theta} \sin^{d-2}\theta` on
    :math:`[0, \pi]` (Mardia & Jupp, *Directional Statistics*, 2000, section 9.3); its distribution function
    is taken by quadrature. In many dimensions nearly all of the mass lies near one angle, about
    :math:`\arccos A_d(\kappa)`.

    Args:
        dim: dimension d of the space around the sphere, at least 2.
        kappa: concentration, at least 0.
        share: of the mass, between 0 and 1.

    Returns:
        Radians, in (0, pi).

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> round(math.degrees(cap_angle(3, 0.0)), 2), round(math.degrees(cap_angle(512, 1000.0)), 1)
        (90.0, 39.0)
    """
    _check(dim, 2, kappa, share)
    angles, weights = _angle_law(dim, kappa)
    reached = np.cumsum(weights) - weights / 2
    return float(np.interp(share, reached, angles))


def seen_cap_angle(dim: int, kappa: float, share: float = 0.5, alignment: float = 1.0) -> float:
    r"""The same for draws that are seen in a three-dimensional subspace and put back to length 1 there.

    A draw is :math:`x = t \mu + \sqrt{1-t^2}\, \xi`, with :math:`\xi` uniform on the unit sphere across
    :math:`\mu`. The subspace keeps of :math:`\mu` a part of length a (the alignment) and of :math:`\xi` three
    coordinates, the one along that part shortened by :math:`\sqrt{1-a^2}`. The angle that is seen, between
    draw and mean, has the distribution function

    .. math:: P(\phi \le r) = 1 - E_{t, z_1} (1 - q)^{(d-4)/2}, \qquad
        q = \min\Big(1, \frac{\tan^2 r\, (t a + \sqrt{1-t^2} \sqrt{1-a^2}\, z_1)^2}{(1-t^2)(1-z_1^2)}\Big),

    for :math:`r < \pi/2` where the bracket is positive, with :math:`z_1` a coordinate of :math:`\xi`: what is
    left of :math:`\xi` is uniform again, and the squared length of two of its coordinates is
    Beta(1, (d-4)/2). Most of :math:`\xi` lies outside the subspace, so the seen angle is far smaller than
    :func:`cap_angle`, as are the distances of single points in the same view.

    Args:
        dim: dimension d, at least 5.
        kappa: concentration, at least 0.
        share: of the mass, between 0 and 1.
        alignment: a, in (0, 1].

    Returns:
        Radians, in (0, pi).

    Raises:
        UserError: an argument is out of range.

    Example:
        >>> round(math.degrees(seen_cap_angle(512, 1000.0)), 2)
        2.42
    """
    _check(dim, 5, kappa, share)
    if not 0 < alignment <= 1:
        raise UserError(f"The alignment must lie in (0, 1], not {alignment}.")
    mass = _seen_mass(dim, kappa, alignment)
    return float(brentq(lambda r: mass(r) - share, 1e-9, math.pi - 1e-9, xtol=1e-9))


def _seen_mass(dim: int, kappa: float, alignment: float) -> Callable[[float], float]:
    """r -> P(phi <= r)."""
    angles, weights = _angle_law(dim, kappa)
    side, side_weights = _coordinate_law(dim - 1)
    t, s = np.cos(angles)[:, None], np.sin(angles)[:, None]
    along = t * alignment + s * math.sqrt(1 - alignment**2) * side
    across = (s**2 * (1 - side**2)).clip(min=1e-30)
    joint = weights[:, None] * side_weights

    def mass(r: float) -> float:
        limit = (math.tan(r) ** 2 * along**2 / across).clip(max=1)
        with np.errstate(divide="ignore"):
            within = -np.expm1((dim - 4) / 2 * np.log1p(-limit))
        # Beyond a right angle, all in front is inside, and of what is behind all but a cone around -mu.
        seen = np.where(along > 0, within, 0.0) if r <= math.pi / 2 else np.where(along > 0, 1.0, 1 - within)
        return float((joint * seen).sum())

    return mass


def _angle_law(dim: int, kappa: float) -> tuple[_Array, _Array]:
    """Nodes and probabilities of the angle to the mean direction."""
    root = dim - 2 + math.hypot(dim - 2, 2 * kappa)
    cosine = 2 * kappa / root if root else 1.0
    mode = math.acos(min(1.0, cosine))
    curvature = kappa * cosine + (dim - 2) / max(1 - cosine**2, 1e-12) if dim > 2 else kappa
    reach = _WIDTHS / math.sqrt(max(curvature, 1e-12))
    angles = np.linspace(max(0.0, mode - reach), min(math.pi, mode + reach), _NODES)
    with np.errstate(divide="ignore"):
        sines = (dim - 2) * np.log(np.sin(angles)) if dim > 2 else np.zeros(_NODES)
    return angles, _probabilities(kappa * np.cos(angles) + sines)


def _coordinate_law(dim: int) -> tuple[_Array, _Array]:
    """Nodes and probabilities of a coordinate of a uniform draw from the sphere in ``dim`` dimensions."""
    reach = min(1.0, _WIDTHS / math.sqrt(dim))
    nodes = np.linspace(-reach, reach, _SIDE_NODES)
    with np.errstate(divide="ignore"):
        # At dim = 3 the coordinate is uniform, and 0 log 0 is 0.
        logs = (dim - 3) / 2 * np.log(1 - nodes**2) if dim > 3 else np.zeros(_SIDE_NODES)
    return nodes, _probabilities(logs)


def _probabilities(log_density: _Array) -> _Array:
    """Trapezoidal weights times the density, summing to one."""
    density = np.exp(log_density - log_density.max())
    density[[0, -1]] /= 2
    normalised: _Array = density / density.sum()
    return normalised


def _check(dim: int, least: int, kappa: float, share: float) -> None:
    if dim < least or not kappa >= 0 or not 0 < share < 1:
        raise UserError(
            f"A cap needs a dimension of at least {least}, a concentration of at least 0 and a share between "
            f"0 and 1, not {dim}, {kappa} and {share}."
        )
