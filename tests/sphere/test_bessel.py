"""Bessel ratios and the normaliser against mpmath, at 50 digits and more."""

from __future__ import annotations

import doctest
from functools import cache
from typing import NamedTuple

import mpmath as mp
import numpy as np
import pytest
import scipy.special
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vmfcoop.errors import UserError
from vmfcoop.sphere import bessel, bessel_ratio, bessel_ratio_derivative, inverse_bessel_ratio, log_normalizer

DIMS = [2, 3, 5, 16, 64, 128, 512, 768, 1024, 2048, 4096]
KAPPAS = torch.logspace(-6, 8, 61, dtype=torch.float64)


class Exact(NamedTuple):
    """log C, A, 1 - A, A' and A'' at one (d, kappa)."""

    log_c: mp.mpf
    ratio: mp.mpf
    complement: mp.mpf
    first: mp.mpf
    second: mp.mpf


@cache
def exact(dim: int, kappa: float) -> Exact:
    with mp.workdps(80):  # 30 digits to spare for the cancellation in the derivatives
        k, nu = mp.mpf(kappa), mp.mpf(dim) / 2 - 1
        lower = mp.besseli(nu, k, maxterms=10**7)
        a = mp.besseli(nu + 1, k, maxterms=10**7) / lower
        log_c = nu * mp.log(k) - (nu + 1) * mp.log(2 * mp.pi) - mp.log(lower)
        first = 1 - a**2 - (dim - 1) * a / k
        second = -2 * a * first - (dim - 1) * (first / k - a / k**2)
        return Exact(log_c, a, 1 - a, first, second)


def grid(dim: int) -> list[Exact]:
    return [exact(dim, kappa) for kappa in KAPPAS.tolist()]


def relative_errors(values: torch.Tensor, expected: list[mp.mpf]) -> list[float]:
    return [float(abs(mp.mpf(v) / e - 1)) for v, e in zip(values.tolist(), expected, strict=True)]


@pytest.mark.parametrize("dim", DIMS)
def test_ratio_matches_mpmath(dim: int) -> None:
    assert max(relative_errors(bessel_ratio(dim, KAPPAS), [e.ratio for e in grid(dim)])) < 5e-15


@pytest.mark.parametrize("dim", DIMS)
def test_log_normalizer_matches_mpmath(dim: int) -> None:
    for value, e in zip(log_normalizer(dim, KAPPAS).tolist(), grid(dim), strict=True):
        assert abs(mp.mpf(value) - e.log_c) < max(1e-13 * abs(e.log_c), 1e-11)


@pytest.mark.parametrize("dim", [64, 128, 512, 768, 1024, 2048, 4096])  # below, log C is negative throughout
def test_log_normalizer_stays_accurate_where_it_crosses_zero(dim: int) -> None:
    assert log_normalizer(dim, torch.zeros(())) > 0
    low, high = torch.tensor(0.0, dtype=torch.float64), torch.tensor(1e8, dtype=torch.float64)
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if log_normalizer(dim, middle) > 0 else (low, middle)
    nearby = low * torch.linspace(0.99, 1.01, 5, dtype=torch.float64)
    for kappa, value in zip(nearby.tolist(), log_normalizer(dim, nearby).tolist(), strict=True):
        assert abs(mp.mpf(value) - exact(dim, kappa).log_c) < 1e-10


@pytest.mark.parametrize("dim", DIMS)
def test_gradients_match_mpmath(dim: int) -> None:
    kappa = KAPPAS.clone().requires_grad_()
    expected = grid(dim)
    (of_log,) = torch.autograd.grad(log_normalizer(dim, kappa).sum(), kappa, create_graph=True)
    (of_of_log,) = torch.autograd.grad(of_log.sum(), kappa)
    (of_ratio,) = torch.autograd.grad(bessel_ratio(dim, kappa).sum(), kappa, create_graph=True)
    (of_of_ratio,) = torch.autograd.grad(of_ratio.sum(), kappa)
    assert max(relative_errors(of_log, [-e.ratio for e in expected])) < 5e-15
    assert max(relative_errors(of_of_log, [-e.first for e in expected])) < 2e-12
    assert max(relative_errors(of_ratio, [e.first for e in expected])) < 2e-12
    assert max(relative_errors(of_of_ratio, [e.second for e in expected])) < 2e-12
    torch.testing.assert_close(of_ratio, bessel_ratio_derivative(dim, kappa), rtol=0, atol=0)


@pytest.mark.parametrize("dim", [2, 5, 64])
def test_derivative_matches_numerical_differentiation_in_mpmath(dim: int) -> None:
    for kappa in (0.01, 1.0, 40.0):
        with mp.workdps(60):
            half = mp.mpf(dim) / 2
            slope = mp.diff(lambda k, h=half: mp.besseli(h, k) / mp.besseli(h - 1, k), kappa)
        value = bessel_ratio_derivative(dim, torch.tensor(kappa, dtype=torch.float64)).item()
        assert abs(value / slope - 1) < 1e-12


@pytest.mark.parametrize("dim", DIMS)
def test_inverse_recovers_kappa_to_full_precision_for_the_given_double(dim: int) -> None:
    """The exact A at kappa is rounded to r; the exact solution at r differs by the rounding over A'."""
    r = torch.tensor([float(e.ratio) for e in grid(dim)], dtype=torch.float64)
    usable = r < 1 - 1e-12
    solved = inverse_bessel_ratio(dim, r[usable])
    pairs = [(k, e) for k, e, u in zip(KAPPAS.tolist(), grid(dim), usable.tolist(), strict=True) if u]
    for value, given_r, (kappa, e) in zip(solved.tolist(), r[usable].tolist(), pairs, strict=True):
        expected = mp.mpf(kappa) + (mp.mpf(given_r) - e.ratio) / e.first
        # The first-order correction leaves a second-order remainder.
        remainder = abs(e.second / e.first**3 * (mp.mpf(given_r) - e.ratio) ** 2)
        assert abs(value - expected) < 2e-12 * expected + remainder


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5000), st.floats(-6, 8))
def test_round_trip_through_the_ratio(dim: int, log_kappa: float) -> None:
    kappa = torch.tensor(10.0**log_kappa, dtype=torch.float64)
    ratio = bessel_ratio(dim, kappa)
    rounding = 2**-52 / (kappa * bessel_ratio_derivative(dim, kappa))  # what rounding A costs in kappa
    back = inverse_bessel_ratio(dim, ratio)
    assert abs(back / kappa - 1) < 1e-12 + 8 * rounding


@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5000), st.floats(0, 1 - 1e-9))
def test_round_trip_through_the_inverse(dim: int, r: float) -> None:
    value = bessel_ratio(dim, inverse_bessel_ratio(dim, torch.tensor(r, dtype=torch.float64)))
    assert abs(value.item() - r) <= 4e-15 * r


@pytest.mark.parametrize("dim", [2, 3, 16, 512])
def test_inverse_gradients(dim: int) -> None:
    for kappa in (1e-3, 0.7, 30.0, 1e4):
        e = exact(dim, kappa)
        r = torch.tensor(float(e.ratio), dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(inverse_bessel_ratio(dim, r), r, create_graph=True)
        (second,) = torch.autograd.grad(first, r)
        assert abs(first.item() * e.first - 1) < 1e-9
        assert abs(second.item() / (-e.second / e.first**3) - 1) < 1e-7


@pytest.mark.parametrize("dim", DIMS)
def test_limits_at_zero(dim: int) -> None:
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    area = mp.log(2) + mp.mpf(dim) / 2 * mp.log(mp.pi) - mp.loggamma(mp.mpf(dim) / 2)
    assert abs(log_normalizer(dim, zero).item() + area) < 1e-13 * abs(area)
    assert bessel_ratio(dim, zero).item() == 0
    assert inverse_bessel_ratio(dim, zero.detach()).item() == 0
    assert bessel_ratio_derivative(dim, zero).item() == pytest.approx(1 / dim, rel=1e-15)
    bessel_ratio_derivative(dim, zero).backward()
    assert zero.grad is not None and zero.grad.item() == 0


@pytest.mark.parametrize("dim", range(2, 17))
def test_agrees_with_scipy_where_scipy_is_right(dim: int) -> None:
    kappa = np.logspace(-1, 2.5, 50)
    lower, upper = scipy.special.ive(dim / 2 - 1, kappa), scipy.special.ive(dim / 2, kappa)
    ours = bessel_ratio(dim, torch.from_numpy(kappa)).numpy()
    np.testing.assert_allclose(ours, upper / lower, rtol=1e-12)
    log_c = (dim / 2 - 1) * np.log(kappa) - dim / 2 * np.log(2 * np.pi) - np.log(lower) - kappa
    np.testing.assert_allclose(
        log_normalizer(dim, torch.from_numpy(kappa)).numpy(), log_c, rtol=1e-12, atol=1e-12
    )


def test_dimension_three_closed_form() -> None:
    kappa = torch.logspace(0, 2, 40, dtype=torch.float64)
    torch.testing.assert_close(bessel_ratio(3, kappa), 1 / torch.tanh(kappa) - 1 / kappa, rtol=1e-14, atol=0)


def test_the_step_from_recurrence_to_expansion_is_seamless() -> None:
    """Either side of the dimension (50) above which no recurrence is used."""
    for dim in range(44, 56):
        expected = [exact(dim, kappa).ratio for kappa in (0.1, 10.0, 60.0, 1e4)]
        values = bessel_ratio(dim, torch.tensor([0.1, 10.0, 60.0, 1e4], dtype=torch.float64))
        assert max(relative_errors(values, expected)) < 2e-15


def test_negative_kappa_is_the_odd_continuation() -> None:
    torch.testing.assert_close(bessel_ratio(7, -KAPPAS), -bessel_ratio(7, KAPPAS), rtol=0, atol=0)


def test_large_and_strided_input_equals_elementwise_calls() -> None:
    kappa = torch.logspace(-3, 5, 40_000, dtype=torch.float64).reshape(200, 200).T
    for function in (bessel_ratio, log_normalizer, bessel_ratio_derivative):
        values = function(9, kappa)
        assert values.shape == kappa.shape
        torch.testing.assert_close(values[17, 150], function(9, kappa[17, 150]), rtol=1e-14, atol=0)
    assert bessel_ratio(9, torch.zeros(0)).shape == (0,)


def test_float32_input_is_widened() -> None:
    kappa = torch.tensor([0.5, 80.0], requires_grad=True)
    ratio = bessel_ratio(4, kappa)
    assert ratio.dtype == torch.float64
    torch.testing.assert_close(ratio, bessel_ratio(4, kappa.detach().double()), rtol=0, atol=0)
    ratio.sum().backward()
    assert kappa.grad is not None and kappa.grad.dtype == torch.float32


@pytest.mark.parametrize("dim", [2, 9, 50, 4096])
def test_finite_and_right_to_the_end_of_the_stated_range(dim: int) -> None:
    kappa = torch.tensor(1e12, dtype=torch.float64)
    e = exact(dim, 1e12)
    assert abs(log_normalizer(dim, kappa).item() / e.log_c - 1) < 1e-15
    assert abs(bessel_ratio_derivative(dim, kappa).item() / e.first - 1) < 2e-12
    assert abs(inverse_bessel_ratio(dim, bessel_ratio(dim, kappa)) / 1e12 - 1) < 1e-3


def test_nan_stays_nan_and_does_not_spread() -> None:
    values = bessel_ratio(4, torch.tensor([float("nan"), 1.0]))
    assert values.isnan().tolist() == [True, False]


@pytest.mark.parametrize("dim", [1, 0, -3, 2.5, True])
def test_bad_dimension(dim: int) -> None:
    for function in (bessel_ratio, log_normalizer, bessel_ratio_derivative, inverse_bessel_ratio):
        with pytest.raises(UserError, match="integer of at least 2"):
            function(dim, torch.tensor(0.5))


@pytest.mark.parametrize("r", [1.0, -0.1, 1.5, float("nan")])
def test_resultant_length_outside_its_range(r: float) -> None:
    with pytest.raises(UserError, match=r"\[0, 1\)"):
        inverse_bessel_ratio(3, torch.tensor([0.2, r]))


def test_integer_tensor_is_refused() -> None:
    with pytest.raises(UserError, match="floating-point"):
        bessel_ratio(3, torch.tensor([1, 2]))


def test_fourth_derivative_is_refused_rather_than_wrong() -> None:
    kappa = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    value = bessel_ratio_derivative(3, kappa)
    (second,) = torch.autograd.grad(value, kappa, create_graph=True)
    with pytest.raises(NotImplementedError, match="three times"):
        torch.autograd.grad(second, kappa)


def test_docstring_examples() -> None:
    results = doctest.testmod(bessel)
    assert results.attempted > 0 and results.failed == 0
