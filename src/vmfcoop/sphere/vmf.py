"""The von Mises-Fisher law on the unit sphere: density, sampling, divergence and fits to unit vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributions import Beta, Distribution, constraints, register_kl

from vmfcoop.errors import UserError, unknown_name
from vmfcoop.sphere.bessel import (
    bessel_ratio,
    bessel_ratio_derivative,
    inverse_bessel_ratio,
    log_normalizer,
)

# How far a length may be from 1: above the rounding of half-precision features, below any real mistake.
_UNIT_TOLERANCE = 1e-3
# Rows whose mean squared distance from their mean is below this are equal up to rounding.
_MINIMUM_SPREAD = 1e-12
_CANCELLATION = 1e-6
_QUADRATURE_NODES = 64


class _UnitSphere(constraints.Constraint):
    """Vectors of length 1 along the last dimension."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return (_length(value) - 1).abs() <= _UNIT_TOLERANCE


unit_sphere = _UnitSphere()


class VonMisesFisher(Distribution):
    r"""Von Mises-Fisher distribution on the unit sphere :math:`S^{d-1}` in :math:`\mathbb{R}^d`.

    .. math:: p(x \mid \mu, \kappa) = C_d(\kappa) \exp(\kappa\, \mu^\top x)

    The density is taken with respect to the surface area of the sphere; at :math:`\kappa = 0` it is uniform.
    All computation is in float64, and results have the dtype of ``loc``. Source: Mardia & Jupp,
    *Directional Statistics*, 2000, section 9.3.

    Args:
        loc: mean directions :math:`\mu`, unit rows, shape (..., d) with d >= 2.
        concentration: :math:`\kappa \ge 0`, shape (...), broadcast against the rows of ``loc``.
        validate_args: check the arguments and every value given to :meth:`log_prob`.

    Raises:
        UserError: if ``loc`` has no last dimension of at least 2.
        ValueError: from torch, if validation is on and an argument is outside its constraint.

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import VonMisesFisher
        >>> law = VonMisesFisher(torch.tensor([0.0, 0.0, 1.0]), torch.tensor(2.0))
        >>> law.log_prob(torch.tensor([[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]))
        tensor([-1.1262, -3.1262])
        >>> law.mean
        tensor([0.0000, 0.0000, 0.5373])
        >>> law.sample((5,)).shape
        torch.Size([5, 3])
    """

    arg_constraints = {"loc": unit_sphere, "concentration": constraints.nonnegative}  # noqa: RUF012
    support = unit_sphere
    has_rsample = True

    def __init__(self, loc: Tensor, concentration: Tensor | float, validate_args: bool | None = None) -> None:
        if loc.dim() == 0 or loc.shape[-1] < 2:
            raise UserError(
                f"A mean direction needs at least 2 coordinates, but loc has shape {tuple(loc.shape)}."
            )
        kappa = torch.as_tensor(concentration, dtype=loc.dtype, device=loc.device)
        batch_shape = torch.Size(np.broadcast_shapes(loc.shape[:-1], kappa.shape))
        self.loc = loc.expand(batch_shape + loc.shape[-1:])
        self.concentration = kappa.expand(batch_shape)
        super().__init__(batch_shape, loc.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: VonMisesFisher | None = None) -> VonMisesFisher:
        """New distribution whose batch dimensions are expanded to ``batch_shape``; no memory is copied."""
        new: VonMisesFisher = self._get_checked_instance(VonMisesFisher, _instance)  # type: ignore[no-untyped-call]
        new.loc = self.loc.expand(torch.Size(batch_shape) + self.event_shape)
        new.concentration = self.concentration.expand(batch_shape)
        Distribution.__init__(new, torch.Size(batch_shape), self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def _dim(self) -> int:
        return self.event_shape[0]

    @property
    def _kappa(self) -> Tensor:
        return self.concentration.to(torch.float64)

    @property
    def mean(self) -> Tensor:
        r"""Expectation :math:`A_d(\kappa)\, \mu`, inside the unit ball; shape (..., d)."""
        return bessel_ratio(self._dim, self._kappa).unsqueeze(-1).to(self.loc.dtype) * self.loc

    @property
    def mode(self) -> Tensor:
        r"""Direction of highest density, :math:`\mu`; shape (..., d)."""
        return self.loc

    @property
    def variance(self) -> Tensor:
        r"""Variance of each coordinate, shape (..., d).

        The diagonal of :math:`(A_d/\kappa) (I - \mu\mu^\top) + A_d'\, \mu\mu^\top`, which is 1/d at
        :math:`\kappa = 0`.
        """
        kappa = self._kappa
        along = bessel_ratio_derivative(self._dim, kappa)
        positive = torch.where(kappa > 0, kappa, 1)  # keeps 0/0 out of the unused branch and its gradient
        across = torch.where(kappa > 0, bessel_ratio(self._dim, positive) / positive, 1 / self._dim)
        squared = _normalize(self.loc) ** 2
        return (across.unsqueeze(-1) * (1 - squared) + along.unsqueeze(-1) * squared).to(self.loc.dtype)

    def log_prob(self, value: Tensor) -> Tensor:
        r"""Log-density :math:`\log C_d(\kappa) + \kappa \mu^\top x` in nats.

        Args:
            value: unit rows, shape (..., d), broadcast against the batch shape.

        Returns:
            Log-densities, shape (...). Lengths are set to exactly 1 in float64 first: at
            :math:`\kappa = 10^6` the rounding of a float32 unit vector would shift the result by 0.1.

        Raises:
            ValueError: from torch, if validation is on and a row is not of unit length.
        """
        if self._validate_args:
            self._validate_sample(value)
        cosine = (_normalize(self.loc) * _normalize(value)).sum(-1)
        return (log_normalizer(self._dim, self._kappa) + self._kappa * cosine).to(self.loc.dtype)

    def entropy(self) -> Tensor:
        r"""Differential entropy :math:`-\log C_d(\kappa) - \kappa A_d(\kappa)` in nats, shape (...)."""
        dim, kappa = self._dim, self._kappa
        return (-log_normalizer(dim, kappa) - kappa * bessel_ratio(dim, kappa)).to(self.loc.dtype)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        r"""Draw samples that are differentiable in ``loc`` and ``concentration``.

        The angle to the pole comes from Wood's rejection scheme, the direction around it is uniform, and a
        reflection carries the pole to :math:`\mu`. Gradients: for ``loc`` the reflection is differentiated,
        with the sample relative to the pole held fixed; for ``concentration`` the angle :math:`\theta` is
        differentiated implicitly at a fixed value of its distribution function,
        :math:`d\theta/d\kappa = -\partial_\kappa F(\theta; \kappa) / f(\theta; \kappa)`. The rejection step
        therefore adds no bias. The ``concentration`` gradient cannot be differentiated again.

        Sources: Wood, Commun. Stat. Simul. 23:157-164, 1994; Davidson et al., UAI 2018 (reflection);
        Figurnov et al., NeurIPS 2018 (implicit gradients).

        Args:
            sample_shape: shape put before the batch shape.

        Returns:
            Unit rows of shape sample_shape + batch_shape + (d,), in the dtype of ``loc``.
        """
        shape = self._extended_shape(sample_shape)
        kappa = self._kappa.expand(shape[:-1])
        angle = _sample_angle(self._dim, kappa.detach())
        angle = cast(Tensor, _ImplicitAngle.apply(angle, kappa, self._dim)).unsqueeze(-1)
        noise = torch.randn((*shape[:-1], self._dim - 1), dtype=torch.float64, device=self.loc.device)
        around_pole = torch.cat([torch.cos(angle), torch.sin(angle) * _normalize(noise)], dim=-1)
        return _carry_pole_to(_normalize(self.loc), around_pole).to(self.loc.dtype)


@register_kl(VonMisesFisher, VonMisesFisher)  # type: ignore[untyped-decorator]
def _kl_von_mises_fisher(p: VonMisesFisher, q: VonMisesFisher) -> Tensor:
    """KL(p || q) = (kappa_p - kappa_q mu_p.mu_q) A(kappa_p) + log C(kappa_p) - log C(kappa_q)."""
    if p.event_shape != q.event_shape:
        raise UserError(f"The two laws live in dimensions {p.event_shape[0]} and {q.event_shape[0]}.")
    dim, kappa_p, kappa_q = p._dim, p._kappa, q._kappa
    cosine = (_normalize(p.loc) * _normalize(q.loc)).sum(-1)
    expected = (kappa_p - kappa_q * cosine) * bessel_ratio(dim, kappa_p)
    return (expected + log_normalizer(dim, kappa_p) - log_normalizer(dim, kappa_q)).to(p.loc.dtype)


def _length(vectors: Tensor) -> Tensor:
    """Lengths along the last dimension, which is dropped, in float64."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, dtype=torch.float64)
    return length


def _normalize(vectors: Tensor) -> Tensor:
    """The vectors at length 1, in float64."""
    return vectors / _length(vectors).unsqueeze(-1)


@torch.no_grad()
def _sample_angle(dim: int, kappa: Tensor) -> Tensor:
    """Angles to the mean direction, by rejection; a round redraws only what was rejected in the last."""
    flat = kappa.reshape(-1)
    angle = torch.empty_like(flat)
    pending = torch.arange(flat.numel(), device=flat.device)
    while pending.numel() > 0:
        proposal, accepted = _propose_angle(dim, flat[pending])
        angle[pending[accepted]] = proposal[accepted]
        pending = pending[~accepted]
    return angle.reshape(kappa.shape)


def _propose_angle(dim: int, kappa: Tensor) -> tuple[Tensor, Tensor]:
    """Wood's proposal (1 - (1+b) z) / (1 - (1-b) z), z ~ Beta, and whether each one is accepted.

    Everything is written in 1 - cos(angle), which stays exact where a large kappa crowds the cosine at 1.
    """
    width = dim - 1
    b = width / (2 * kappa + torch.sqrt(4 * kappa**2 + width**2))
    x0 = (1 - b) / (1 + b)
    one_minus_x0 = 2 * b / (1 + b)
    half = torch.full_like(kappa, width / 2)
    z = Beta(half, half, validate_args=False).sample()
    one_minus_cosine = 2 * b * z / (1 - (1 - b) * z)
    log_ratio = torch.log((one_minus_x0 + x0 * one_minus_cosine) / (one_minus_x0 * (1 + x0)))
    log_acceptance = kappa * (one_minus_x0 - one_minus_cosine) + width * log_ratio
    # Put as "not rejected", so that a kappa of NaN gives NaN samples and no endless loop.
    accepted = ~(torch.log(torch.rand_like(kappa)) > log_acceptance)
    return 2 * torch.asin(torch.sqrt(one_minus_cosine / 2).clamp_max(1)), accepted


class _ImplicitAngle(torch.autograd.Function):
    """Identity on sampled angles whose gradient in kappa is implicit; its quadrature runs only on demand."""

    @staticmethod
    def forward(ctx: Any, angle: Tensor, kappa: Tensor, dim: int) -> Tensor:
        ctx.save_for_backward(angle, kappa)
        ctx.dim = dim
        return angle.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor, None]:
        angle, kappa = ctx.saved_tensors
        return None, grad * _angle_slope(ctx.dim, angle, kappa), None


def _angle_slope(dim: int, angle: Tensor, kappa: Tensor) -> Tensor:
    """d(angle)/d(kappa) at a fixed value of the angle's distribution function.

    The angle has density f proportional to exp(kappa cos) sin^(d-2), so the slope is the integral of
    (cos - A) f over [angle, pi], divided by f(angle). Over [0, angle] it has the opposite sign and equal
    size; the side away from the mode is taken, where f falls off within a few widths of the peak.
    """
    angle = angle.clamp_min(1e-150)
    root = (dim - 2 + torch.sqrt((dim - 2) ** 2 + 4 * kappa**2)) / 2
    mode_cosine = kappa / root.clamp_min(1e-300)
    reach = 14 / torch.sqrt(kappa * mode_cosine + root)  # curvature of -log f at the mode, at most doubled
    end = torch.where(torch.cos(angle) > mode_cosine, angle - reach, angle + reach).clamp(0, torch.pi)
    mean_cosine = bessel_ratio(dim, kappa)
    nodes, weights = np.polynomial.legendre.leggauss(_QUADRATURE_NODES)
    integral = torch.zeros_like(angle)
    for node, weight in zip(nodes.tolist(), weights.tolist(), strict=True):
        phi = angle + (end - angle) * (1 + node) / 2
        cosine_change = -2 * torch.sin((phi + angle) / 2) * torch.sin((phi - angle) / 2)
        sine_change = torch.log(torch.sin(phi) / torch.sin(angle))
        density = torch.exp(kappa * cosine_change + (dim - 2) * sine_change)
        integral += weight * (torch.cos(phi) - mean_cosine) * density
    return integral * (end - angle) / 2


def _carry_pole_to(loc: Tensor, vectors: Tensor) -> Tensor:
    """Orthogonal map that takes e_1 to ``loc``, applied to ``vectors``.

    It is a reflection across loc + sign e_1, negated for sign = +1. With sign that of loc's first coordinate
    the vector never vanishes, so neither values nor gradients break down at loc = e_1 or -e_1.
    """
    sign = torch.where(loc[..., :1] > 0, 1.0, -1.0).to(loc.dtype)
    normal = torch.cat([loc[..., :1] + sign, loc[..., 1:]], dim=-1)
    projection = (normal * vectors).sum(-1, keepdim=True) / (1 + sign * loc[..., :1])
    return -sign * (vectors - normal * projection)


@dataclass(frozen=True, eq=False)
class VonMisesFisherFit:
    """A von Mises-Fisher law fitted to unit vectors; all tensors are float64.

    Attributes:
        mean_direction: unit vectors, shape (..., d).
        concentration: estimated kappa, shape (...).
        resultant_length: length R of the mean of the rows, shape (...), before any correction.
        count: number n of rows behind each estimate.
    """

    mean_direction: Tensor
    concentration: Tensor
    resultant_length: Tensor
    count: int

    def distribution(self) -> VonMisesFisher:
        """The fitted law, with batch shape (...)."""
        return VonMisesFisher(self.mean_direction, self.concentration)


def fit_vmf(x: Tensor, estimator: str = "newton", *, eps: float = 1e-12) -> VonMisesFisherFit:
    r"""Fit a von Mises-Fisher law to unit vectors.

    With :math:`\bar x` the mean of the rows and :math:`R = |\bar x|`, the mean direction is
    :math:`\bar x / R` and the concentration is, by ``estimator``:

    - ``newton``: the maximum-likelihood estimate, :math:`A_d(\kappa) = R`, to rounding error (Sra, Comput.
      Stat. 27:177-190, 2012);
    - ``banerjee``: the closed form :math:`R (d - R^2) / (1 - R^2 + \epsilon)` (Banerjee et al., JMLR
      6:1345-1382, 2005);
    - ``debiased``: as ``newton``, with :math:`R^2` replaced by its unbiased counterpart
      :math:`\max(0, (n R^2 - 1) / (n - 1))`. It takes out the length that n random directions add up to by
      chance, which at n much smaller than d passes for a high concentration; it can be exactly 0.

    Rows are set to length 1 in float64 first; everything is differentiable in ``x``.

    Args:
        x: unit rows, shape (..., n, d) with n >= 2 and d >= 2; leading dimensions are separate fits.
        estimator: ``newton``, ``banerjee`` or ``debiased``.
        eps: the :math:`\epsilon` of ``banerjee``; the other estimators do not use it.

    Returns:
        The fit, with float64 tensors of shapes (..., d) and (...).

    Raises:
        UserError: if the estimator is unknown; if d < 2 or n < 2; if a row is not finite or its length is
            more than 0.001 from 1; if all rows of a fit are equal (the concentration is infinite) or cancel
            (there is no mean direction).

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import fit_vmf
        >>> fit = fit_vmf(torch.tensor([[0.6, 0.8], [0.8, 0.6]]))
        >>> fit.mean_direction
        tensor([0.7071, 0.7071], dtype=torch.float64)
        >>> fit.concentration, fit.resultant_length
        (tensor(50.0026, dtype=torch.float64), tensor(0.9899, dtype=torch.float64))
    """
    if estimator not in _ESTIMATORS:
        raise unknown_name("estimator", estimator, _ESTIMATORS)
    _check_rows(x)
    rows = _normalize(x)
    mean = rows.mean(dim=-2)
    length = _length(mean)
    _check_spread(rows.detach(), mean.detach(), length.detach())
    count, dim = x.shape[-2:]
    concentration = _ESTIMATORS[estimator](length, dim, count, eps)
    return VonMisesFisherFit(mean / length.unsqueeze(-1), concentration, length, count)


def _newton(length: Tensor, dim: int, count: int, eps: float) -> Tensor:
    return inverse_bessel_ratio(dim, length)


def _banerjee(length: Tensor, dim: int, count: int, eps: float) -> Tensor:
    return length * (dim - length**2) / (1 - length**2 + eps)


def debiased_concentration(length: Tensor, dim: int, count: int) -> Tensor:
    """The estimate ``debiased`` of :func:`fit_vmf` from the resultant length of n unit vectors.

    R^2 loses what the sum of n random directions has by chance: R^2 <- max(0, (n R^2 - 1) / (n - 1)).

    Args:
        length: R, any shape, float64.
        dim: d.
        count: n >= 2.

    Returns:
        kappa, in that shape.
    """
    squared = (count * length**2 - 1) / (count - 1)
    positive = torch.where(squared > 0, squared, 1)  # the square root has no finite gradient at 0
    return inverse_bessel_ratio(dim, torch.where(squared > 0, positive.sqrt(), 0))


_ESTIMATORS: dict[str, Callable[[Tensor, int, int, float], Tensor]] = {
    "newton": _newton,
    "banerjee": _banerjee,
    "debiased": lambda length, dim, count, _eps: debiased_concentration(length, dim, count),
}


def _check_rows(x: Tensor) -> None:
    if not isinstance(x, Tensor) or not x.is_floating_point() or x.dim() < 2:
        raise UserError("The rows must be a floating-point tensor of shape (..., n, d).")
    count, dim = x.shape[-2:]
    if dim < 2:
        raise UserError(f"The rows have dimension {dim}; a sphere needs at least 2.")
    if count == 0:
        raise UserError("There are no rows to fit (n = 0).")
    if count == 1:
        raise UserError("One row has no spread, so its concentration is infinite; at least 2 are needed.")
    length = _length(x.detach())
    if not bool(torch.isfinite(length).all()):
        raise UserError(f"Row {_first(~torch.isfinite(length))} is not finite.")
    off = (length - 1).abs() > _UNIT_TOLERANCE
    if bool(off.any()):
        worst = length[off][0].item()
        raise UserError(f"Row {_first(off)} has length {worst:.4g}; divide every row by its length first.")


def _check_spread(rows: Tensor, mean: Tensor, length: Tensor) -> None:
    # 1 - R^2 is the spread too and needs no copy of the rows, but cancels where the rows nearly agree.
    spread = 1 - length.square()
    if bool((spread < _CANCELLATION).any()):
        spread = (rows - mean.unsqueeze(-2)).square().sum(-1).mean(-1)
    equal, cancelling = spread < _MINIMUM_SPREAD, length < _MINIMUM_SPREAD
    if bool(equal.any()):
        raise UserError(f"All rows{_of_fit(equal)} are equal, so the concentration is infinite.")
    if bool(cancelling.any()):
        raise UserError(f"The rows{_of_fit(cancelling)} cancel, so they have no mean direction.")


def _first(mask: Tensor) -> str:
    """Index of the first true element: ``3``, or ``(0, 3)`` in a batch."""
    index = tuple(mask.nonzero()[0].tolist())
    return str(index[0] if len(index) == 1 else index)


def _of_fit(mask: Tensor) -> str:
    return f" of fit {_first(mask)}" if mask.dim() > 0 else ""
