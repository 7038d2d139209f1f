r"""Ratios of modified Bessel functions and the normalising constant of the von Mises-Fisher law.

Every function here is a derivative of one scalar function, the log-partition

.. math:: \Phi_d(\kappa) = -\log C_d(\kappa), \qquad
          C_d(\kappa) = \frac{\kappa^{d/2-1}}{(2\pi)^{d/2} I_{d/2-1}(\kappa)},

so that :math:`\Phi' = A_d = I_{d/2} / I_{d/2-1}`, :math:`\Phi'' = A_d'`, and so on. The computation has two
steps, with no branch on :math:`\kappa`:

1. At a dimension whose Bessel order :math:`\nu = d/2-1` is at least 24, the uniform (Debye) expansion in
   :math:`1/\nu`, derived from the Riccati equation of the logarithmic derivative :math:`I_\nu'/I_\nu`. It
   holds for all :math:`\kappa \ge 0` at once.
2. For smaller dimensions, the three-term recurrence read downwards,
   :math:`A_d = \kappa / (d + \kappa A_{d+2})`. All its terms are positive, so it is stable.

The derivatives go through both steps in their own formulas. Differentiating the result with autograd, or with
:math:`A' = 1 - A^2 - (d-1) A/\kappa`, would lose all digits to cancellation at small and at large
:math:`\kappa`.

All functions return float64: a float32 input is widened first, because :math:`1 - A_d` and
:math:`\kappa + \log C_d` soon fall below float32 resolution. The dtype of gradients follows the input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction
from functools import lru_cache
from itertools import zip_longest
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from vmfcoop.errors import UserError

# Relative truncation error of A_d: below 1e-15 for every order from _MIN_ORDER on, worst near kappa = order.
_MIN_ORDER = 24
_TERMS = 12
# Elements a pass: a dozen float64 temporaries of this size stay in a core's second-level cache.
_CHUNK = 16_384
# On a nearly linear function, two steps leave at most 1e-8 (d = 2) and three leave rounding error.
_NEWTON_STEPS = 3

_Polynomial = list[Fraction]  # coefficients, lowest power first


def log_normalizer(dim: int, kappa: Tensor) -> Tensor:
    r"""Logarithm of the normalising constant of the von Mises-Fisher density.

    .. math:: \log C_d(\kappa) = (d/2-1) \log\kappa - (d/2) \log 2\pi - \log I_{d/2-1}(\kappa)

    At :math:`\kappa = 0` it is minus the log-area of the sphere. Its derivative is :math:`-A_d(\kappa)`.
    Source: Mardia & Jupp, *Directional Statistics*, 2000, section 9.3.

    Args:
        dim: dimension :math:`d \ge 2` of the space around the sphere :math:`S^{d-1}`.
        kappa: concentrations in [0, 1e12], any shape; float32 or float64.

    Returns:
        float64 tensor of kappa's shape, in nats; three times differentiable.

    Raises:
        UserError: if ``dim`` is not an integer of at least 2, or ``kappa`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import log_normalizer
        >>> log_normalizer(3, torch.tensor([0.0, 1.0]))  # -log(4 pi) at zero
        tensor([-2.5310, -2.6925], dtype=torch.float64)
    """
    return -_log_partition(dim, kappa, 0)


def bessel_ratio(dim: int, kappa: Tensor) -> Tensor:
    r"""Mean resultant length of a von Mises-Fisher law.

    .. math:: A_d(\kappa) = I_{d/2}(\kappa) / I_{d/2-1}(\kappa)

    It rises from 0 at :math:`\kappa = 0` (slope :math:`1/d`) towards 1. Negative input gives the odd
    continuation. Source: Mardia & Jupp, *Directional Statistics*, 2000, section 9.3.

    Args:
        dim: dimension :math:`d \ge 2` of the space around the sphere.
        kappa: concentrations in [0, 1e12], any shape; float32 or float64.

    Returns:
        float64 tensor of kappa's shape with values in [0, 1]; twice differentiable.

    Raises:
        UserError: if ``dim`` is not an integer of at least 2, or ``kappa`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import bessel_ratio
        >>> bessel_ratio(3, torch.tensor([1.0, 100.0]))  # coth(kappa) - 1/kappa
        tensor([0.3130, 0.9900], dtype=torch.float64)
    """
    return _log_partition(dim, kappa, 1)


def bessel_ratio_derivative(dim: int, kappa: Tensor) -> Tensor:
    r"""Derivative :math:`A_d'(\kappa) = 1 - A_d^2 - (d-1) A_d / \kappa`, without that formula's cancellation.

    It is the variance of :math:`\mu^\top x` under the law, and the Fisher information on :math:`\kappa`.

    Args:
        dim: dimension :math:`d \ge 2` of the space around the sphere.
        kappa: concentrations in [0, 1e12], any shape; float32 or float64.

    Returns:
        float64 tensor of kappa's shape with values in (0, 1/d]; once differentiable.

    Raises:
        UserError: if ``dim`` is not an integer of at least 2, or ``kappa`` is not a floating-point tensor.

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import bessel_ratio_derivative
        >>> bessel_ratio_derivative(4, torch.tensor([0.0, 10.0]))
        tensor([0.2500, 0.0141], dtype=torch.float64)
    """
    return _log_partition(dim, kappa, 2)


def inverse_bessel_ratio(dim: int, r: Tensor) -> Tensor:
    r"""Concentration :math:`\kappa` at which :math:`A_d(\kappa) = r`: the maximum-likelihood equation.

    Newton's method on :math:`A/(1-A^2)`, which is nearly linear in :math:`\kappa`, from the closed form of
    Banerjee et al. For r near 1 the residual is taken on :math:`1 - A`, so that :math:`\kappa` keeps full
    relative precision for the given double r. The gradient is implicit,
    :math:`d\kappa/dr = 1 / A_d'(\kappa)`.

    Source: Banerjee et al., JMLR 6:1345-1382, 2005 (start); Sra, Comput. Stat. 27:177-190, 2012 (Newton).

    Args:
        dim: dimension :math:`d \ge 2` of the space around the sphere.
        r: mean resultant lengths in [0, 1), any shape; float32 or float64.

    Returns:
        float64 tensor of r's shape; twice differentiable.

    Raises:
        UserError: if ``dim`` is not an integer of at least 2, or a value of ``r`` is outside [0, 1).

    Example:
        >>> import torch
        >>> from vmfcoop.sphere import inverse_bessel_ratio
        >>> inverse_bessel_ratio(512, torch.tensor([0.0, 0.1, 0.9]))
        tensor([   0.0000,   51.7152, 2421.0230], dtype=torch.float64)
    """
    _check(dim, r, "r")
    if not bool(((r >= 0) & (r < 1)).all()):
        raise UserError("A mean resultant length must lie in [0, 1); at 1 the concentration is infinite.")
    return cast(Tensor, _InverseBesselRatio.apply(r.to(torch.float64), dim))


def _log_partition(dim: int, kappa: Tensor, order: int) -> Tensor:
    """The ``order``-th derivative of the log-partition, as a node of the autograd graph."""
    _check(dim, kappa, "kappa")
    return cast(Tensor, _LogPartition.apply(kappa.to(torch.float64), dim, order))


def _check(dim: int, values: Tensor, name: str) -> None:
    if not isinstance(dim, int) or dim < 2:
        raise UserError(f"The dimension must be an integer of at least 2, not {dim!r}.")
    if not isinstance(values, Tensor) or not values.is_floating_point():
        raise UserError(f"{name} must be a floating-point tensor.")


class _LogPartition(torch.autograd.Function):
    """Derivative number ``order`` of the log-partition; its own derivative is number ``order + 1``."""

    @staticmethod
    def forward(ctx: Any, kappa: Tensor, dim: int, order: int) -> Tensor:
        ctx.save_for_backward(kappa)
        ctx.dim, ctx.order = dim, order
        return _in_chunks(lambda part: _cumulant(dim, part, order), kappa)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (kappa,) = ctx.saved_tensors
        if ctx.order == 3:
            raise NotImplementedError("The log-normaliser is differentiable three times only.")
        return grad * _log_partition(ctx.dim, kappa, ctx.order + 1), None, None


class _InverseBesselRatio(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, r: Tensor, dim: int) -> Tensor:
        kappa = _in_chunks(lambda part: _solve(dim, part), r)
        ctx.save_for_backward(kappa)
        ctx.dim = dim
        return kappa

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (kappa,) = ctx.saved_tensors
        return grad / bessel_ratio_derivative(ctx.dim, kappa), None


def _in_chunks(function: Callable[[Tensor], Tensor], values: Tensor) -> Tensor:
    """Apply an elementwise function block by block on the CPU, so that its temporaries stay in cache."""
    if values.device.type != "cpu" or values.numel() <= _CHUNK:
        return function(values)
    blocks = torch.split(values.reshape(-1), _CHUNK)
    return torch.cat([function(block) for block in blocks]).reshape(values.shape)


def _cumulant(dim: int, kappa: Tensor, order: int) -> Tensor:
    if order == 0:
        return _log_partition_value(dim, kappa)
    return _ratio_derivatives(dim, kappa, order)[-1]


def _log_partition_value(dim: int, kappa: Tensor) -> Tensor:
    """Debye expansion at the top dimension, then Phi_d = Phi_{d+2} + log((d + kappa A_{d+2}) / 2 pi)."""
    top = _top_dimension(dim)
    debye = _DebyePoint.at(top, kappa)
    nu, s = debye.nu, debye.s
    value = s + (nu + 1) * math.log(2 * math.pi) - nu * torch.log(nu + s) - 0.5 * torch.log(2 * math.pi * s)
    value += _horner(_debye_polynomials(top).log, debye.t)
    ratio = debye.ratio()
    product = torch.ones_like(kappa)  # at most 24 factors: no overflow up to kappa = 1e12
    for lower in range(top - 2, dim - 1, -2):
        denominator = kappa * ratio + lower
        product *= denominator / (2 * math.pi)
        ratio = kappa / denominator
    return value + torch.log(product)


def _ratio_derivatives(dim: int, kappa: Tensor, order: int) -> list[Tensor]:
    """[A, A', A''][:order] at ``dim``; each line below is the derivative of A = kappa / (d + kappa B)."""
    top = _top_dimension(dim)
    a, *higher = _DebyePoint.at(top, kappa).ratio_derivatives(order)
    for lower in range(top - 2, dim - 1, -2):
        b, derivatives = a, higher
        denominator = kappa * b + lower
        a = kappa / denominator
        higher = []
        if order >= 2:
            numerator = lower - kappa**2 * derivatives[0]
            higher.append(numerator / denominator**2)
        if order >= 3:
            change = 2 * derivatives[0] + kappa * derivatives[1]
            slope = b + kappa * derivatives[0]
            higher.append(-(kappa * change + 2 * higher[0] * slope * denominator) / denominator**2)
    return [a, *higher]


def _solve(dim: int, r: Tensor) -> Tensor:
    """Newton's method for f(A(kappa)) = f(r) with f(A) = A / (1 - A^2)."""
    kappa = r * (dim - r**2) / (1 - r**2)
    for _ in range(_NEWTON_STEPS):
        a, slope = _ratio_derivatives(dim, kappa, 2)
        complement = _ratio_complement(dim, kappa)
        error = torch.where(r > 0.5, complement - (1 - r), r - a)
        scale = (1 + r * a) * complement * (1 + a) / ((1 - r**2) * (1 + a**2))
        kappa = (kappa + error * scale / slope).clamp_min(0)
    return kappa


def _ratio_complement(dim: int, kappa: Tensor) -> Tensor:
    """1 - A_d with full relative precision, where 1 minus the rounded A_d would have none left."""
    top = _top_dimension(dim)
    debye = _DebyePoint.at(top, kappa)
    ratio, complement = debye.ratio(), debye.complement()
    for lower in range(top - 2, dim - 1, -2):
        denominator = kappa * ratio + lower
        complement = (lower - kappa * complement) / denominator
        ratio = kappa / denominator
    return complement


def _top_dimension(dim: int) -> int:
    """The dimension itself or, where its Bessel order is too low, the first of equal parity that will do."""
    steps = max(0, math.ceil(_MIN_ORDER + 1 - dim / 2))
    return dim + 2 * steps


class _DebyePoint(NamedTuple):
    """Variables of the uniform expansion: s = hypot(kappa, nu), t = nu / s and y = kappa / s."""

    dim: int
    nu: float
    s: Tensor
    t: Tensor
    y: Tensor

    @classmethod
    def at(cls, dim: int, kappa: Tensor) -> _DebyePoint:
        nu = dim / 2 - 1
        s = torch.sqrt(kappa**2 + nu**2)
        return cls(dim, nu, s, nu / s, kappa / s)

    def ratio(self) -> Tensor:
        """A = y (1 / (1 + t) + Q(t))."""
        correction = _horner(_debye_polynomials(self.dim).ratio, self.t)
        return self.y * (1 / (1 + self.t) + correction)

    def complement(self) -> Tensor:
        """1 - A, the leading part by 1 - y / (1 + t) = 2 t / (1 + t + y)."""
        correction = _horner(_debye_polynomials(self.dim).ratio, self.t)
        return 2 * self.t / (1 + self.t + self.y) - self.y * correction

    def ratio_derivatives(self, order: int) -> list[Tensor]:
        """[A, A', A''][:order], from dt/dkappa = -y t^2 / nu and dy/dkappa = t^3 / nu."""
        polynomials, t = _debye_polynomials(self.dim), self.t
        derivatives = [self.ratio()]
        if order >= 2:
            leading = 1 / (1 + t) + _horner(polynomials.first, t)
            derivatives.append(t**2 / self.nu * leading)
        if order >= 3:
            leading = (2 + t) / (1 + t) ** 2 + _horner(polynomials.second, t)
            derivatives.append(-self.y * t**3 / self.nu**2 * leading)
        return derivatives


def _horner(coefficients: tuple[float, ...], t: Tensor) -> Tensor:
    value = torch.full_like(t, coefficients[-1])
    for coefficient in reversed(coefficients[:-1]):
        value.mul_(t).add_(coefficient)
    return value


class _DebyePolynomials(NamedTuple):
    """Corrections to the leading Debye terms of log I_nu, A, A' and A'', summed over powers of 1/nu."""

    log: tuple[float, ...]
    ratio: tuple[float, ...]
    first: tuple[float, ...]
    second: tuple[float, ...]


@lru_cache(maxsize=64)
def _debye_polynomials(dim: int) -> _DebyePolynomials:
    """The expansion's terms at one order nu: exact rationals, collapsed into one polynomial in t each."""
    nu = Fraction(dim - 2, 2)
    terms = _debye_terms()
    q: _Polynomial = []
    for j, term in enumerate(terms, start=1):
        q = _add(q, [c / nu**j for c in term])
    # With A = y (1/(1+t) + Q): A' = t^2/nu (1/(1+t) + first) and A'' = -y t^3/nu^2 ((2+t)/(1+t)^2 + second).
    first = _add([Fraction(0), *q], _multiply([Fraction(-1), Fraction(0), Fraction(1)], _derivative(q)))
    second = _add([2 * c for c in first], [Fraction(0), *_derivative(first)])
    # A = d(log I)/dkappa - nu/kappa, and the leading log I already holds Q_1, through -log(s)/2.
    rest = _add(q, [-c / nu for c in terms[0]])
    log = [Fraction(0), *(-nu * c / (i + 1) for i, c in enumerate(rest[2:]))]
    return _DebyePolynomials(*(tuple(float(c) for c in polynomial) for polynomial in (log, q, first, second)))


@lru_cache(maxsize=1)
def _debye_terms() -> list[_Polynomial]:
    r"""Q_1 .. Q_J of :math:`I_\nu'/I_\nu = (s/\kappa) (1 + (1-t^2) \sum_j Q_j(t) \nu^{-j})`.

    With :math:`P = 1 + \sum_j P_j \nu^{-j}` for the bracket, the Riccati equation
    :math:`L' + L^2 + L/\kappa = 1 + \nu^2/\kappa^2` of :math:`L = I_\nu'/I_\nu` becomes
    :math:`P^2 = 1 + (t (1-t^2)/\nu) (t P' - P)`; equal powers of :math:`1/\nu` give each term from
    those before it.
    """
    one_minus_t2 = [Fraction(1), Fraction(0), Fraction(-1)]
    terms: list[_Polynomial] = [[Fraction(0), Fraction(-1, 2)]]
    for j in range(1, _TERMS):
        previous = _multiply(one_minus_t2, terms[-1])
        source = [Fraction(0), *((i - 1) * c for i, c in enumerate(previous))]
        products: _Polynomial = []
        for i in range(j):
            products = _add(products, _multiply(terms[i], terms[j - 1 - i]))
        terms.append([c / 2 for c in _add(source, [-c for c in _multiply(one_minus_t2, products)])])
    return terms


def _add(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    return [x + y for x, y in zip_longest(a, b, fillvalue=Fraction(0))]


def _multiply(a: _Polynomial, b: _Polynomial) -> _Polynomial:
    product = [Fraction(0)] * (len(a) + len(b) - 1)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            product[i + j] += x * y
    return product


def _derivative(a: _Polynomial) -> _Polynomial:
    return [i * c for i, c in enumerate(a)][1:]
