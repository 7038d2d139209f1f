"""The von Mises-Fisher distribution and its fits."""

from __future__ import annotations

import doctest
import math

import mpmath as mp
import numpy as np
import pytest
import scipy.stats
import torch
from scipy import integrate
from torch import Tensor
from torch.distributions import kl_divergence

from vmfcoop.errors import UserError
from vmfcoop.sphere import VonMisesFisher, bessel_ratio, bessel_ratio_derivative, fit_vmf, vmf

F64 = torch.float64


def unit(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator, dtype=F64), dim=-1).to(
        dtype
    )


def first_axis(dim: int, dtype: torch.dtype = F64) -> Tensor:
    return torch.eye(dim, dtype=dtype)[0]


def expectation(law: VonMisesFisher, of_log_density: bool = False) -> float:
    """Integral of p, or of -p log p, by quadrature over the angle to the mean direction."""
    dim = law.event_shape[0]
    log_ring = math.log(2) + (dim - 1) / 2 * math.log(math.pi) - math.lgamma((dim - 1) / 2)

    def integrand(angle: float) -> float:
        point = torch.zeros(dim, dtype=F64)
        point[0], point[1] = math.cos(angle), math.sin(angle)
        log_density = law.log_prob(point).item()
        ring = math.exp(log_ring + log_density) * math.sin(angle) ** (dim - 2)
        return -ring * log_density if of_log_density else ring

    return integrate.quad(
        integrand, 0, math.pi, points=[0.02, 0.1, 0.5], epsabs=1e-11, epsrel=1e-11, limit=200
    )[0]


# Density


@pytest.mark.parametrize("dim", [2, 3, 5])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 50.0, 3_000.0])
def test_density_integrates_to_one_and_entropy_is_its_integral(dim: int, kappa: float) -> None:
    law = VonMisesFisher(first_axis(dim), kappa)
    assert expectation(law) == pytest.approx(1, abs=1e-8)
    assert expectation(law, of_log_density=True) == pytest.approx(law.entropy().item(), abs=1e-7)


def test_log_prob_matches_scipy() -> None:
    for dim in (2, 3, 8, 16):
        for kappa in (0.5, 10.0, 300.0):
            loc, points = unit(dim), unit(20, dim, seed=1)
            expected = scipy.stats.vonmises_fisher(loc.numpy(), kappa).logpdf(points.numpy())
            np.testing.assert_allclose(
                VonMisesFisher(loc, kappa).log_prob(points), expected, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("dim", [2, 64, 512, 4096])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 1e3, 1e6])
def test_float32_follows_float64(dim: int, kappa: float) -> None:
    loc = first_axis(dim)
    points = VonMisesFisher(loc, kappa).sample((20,)).float()
    single, double = VonMisesFisher(loc.float(), kappa), VonMisesFisher(loc, kappa)
    assert single.log_prob(points).dtype == torch.float32
    torch.testing.assert_close(
        single.log_prob(points).double(), double.log_prob(points.double()), rtol=1e-6, atol=1e-5
    )
    for attribute in ("mean", "mode", "variance"):
        a, b = getattr(single, attribute), getattr(double, attribute)
        assert a.dtype == torch.float32
        torch.testing.assert_close(a.double(), b, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(single.entropy().double(), double.entropy(), rtol=1e-6, atol=1e-5)


def test_log_prob_gradients() -> None:
    loc, kappa, x = (
        unit(6).requires_grad_(),
        torch.tensor(7.0, dtype=F64, requires_grad=True),
        unit(6, seed=1),
    )
    grad_loc, grad_kappa = torch.autograd.grad(VonMisesFisher(loc, kappa).log_prob(x), (loc, kappa))
    cosine = (loc * x).sum().detach()
    torch.testing.assert_close(grad_kappa, (cosine - bessel_ratio(6, kappa)).detach())
    torch.testing.assert_close(grad_loc, 7.0 * (x - cosine * loc.detach()))  # tangential part of kappa x


# Shapes and arguments


def test_batch_shapes_broadcast_and_expand() -> None:
    law = VonMisesFisher(unit(3, 5), torch.tensor([[1.0], [9.0]], dtype=F64))
    assert law.batch_shape == (2, 3) and law.event_shape == (5,)
    assert law.sample((4,)).shape == (4, 2, 3, 5)
    assert law.log_prob(unit(4, 2, 3, 5)).shape == (4, 2, 3)
    assert law.mean.shape == law.variance.shape == law.mode.shape == (2, 3, 5)
    assert law.entropy().shape == (2, 3)
    wide = law.expand((7, 2, 3))
    assert wide.batch_shape == (7, 2, 3) and wide.sample().shape == (7, 2, 3, 5)
    torch.testing.assert_close(wide.entropy()[4], law.entropy())
    torch.testing.assert_close(wide.log_prob(unit(5))[6], law.log_prob(unit(5)))
    assert "loc" in repr(law)


def test_constraints_are_checked() -> None:
    with pytest.raises(ValueError, match="loc"):
        VonMisesFisher(torch.tensor([1.0, 1.0]), 1.0)
    with pytest.raises(ValueError, match="concentration"):
        VonMisesFisher(torch.tensor([1.0, 0.0]), -1.0)
    with pytest.raises(ValueError, match="support"):
        VonMisesFisher(torch.tensor([1.0, 0.0]), 1.0).log_prob(torch.tensor([1.0, 1.0]))
    VonMisesFisher(torch.tensor([1.0, 0.0]), 1.0, validate_args=False).log_prob(torch.tensor([1.0, 1.0]))


@pytest.mark.parametrize("loc", [torch.tensor(1.0), torch.ones(4, 1)])
def test_a_sphere_needs_two_dimensions(loc: Tensor) -> None:
    with pytest.raises(UserError, match="at least 2 coordinates"):
        VonMisesFisher(loc, 1.0)


# Sampling


@pytest.mark.parametrize("dim", [2, 3, 5, 64, 512, 4096])
@pytest.mark.parametrize("kappa", [0.0, 1e-3, 1.0, 30.0, 1e3, 1e6])
def test_sample_moments(dim: int, kappa: float) -> None:
    count = 400 if dim == 4096 else 4_000
    torch.manual_seed(dim)
    loc, k = unit(dim), torch.tensor(kappa, dtype=F64)
    x = VonMisesFisher(loc, kappa).sample((count,))
    torch.testing.assert_close(x.norm(dim=-1), torch.ones(count, dtype=F64), rtol=1e-12, atol=0)

    cosine = x @ loc
    a, variance = bessel_ratio(dim, k), bessel_ratio_derivative(dim, k)
    assert abs(cosine.mean() - a) < 4 * (variance / count).sqrt()
    second = cosine**2
    assert abs(second.mean() - (variance + a**2)) < 4.5 * second.std() / math.sqrt(count)

    across = x @ torch.nn.functional.normalize(unit(dim, seed=1) - (unit(dim, seed=1) @ loc) * loc, dim=-1)
    across_variance = (1 - variance - a**2).clamp_min(0) / (dim - 1)
    assert abs(across.mean()) < 4 * (across_variance / count).sqrt() + 1e-12
    assert abs((across**2).mean() - across_variance) < 4.5 * (across**2).std() / math.sqrt(count) + 1e-12


@pytest.mark.parametrize("dim", [2, 3, 10])
@pytest.mark.parametrize("kappa", [0.0, 2.0, 200.0])
def test_radial_part_has_the_right_distribution(dim: int, kappa: float) -> None:
    torch.manual_seed(5)
    angle = torch.acos(VonMisesFisher(first_axis(dim), kappa).sample((3_000,))[:, 0].clamp(-1, 1)).numpy()
    grid = np.linspace(0, math.pi, 20_001)
    density = np.exp(kappa * (np.cos(grid) - 1)) * np.sin(grid) ** (dim - 2)
    cdf = np.concatenate([[0], np.cumsum((density[1:] + density[:-1]) / 2)])
    assert scipy.stats.kstest(angle, lambda t: np.interp(t, grid, cdf / cdf[-1])).pvalue > 1e-3


def test_batched_sampling_uses_each_row_s_own_parameters() -> None:
    torch.manual_seed(0)
    loc, kappa = unit(3, 8), torch.tensor([0.5, 20.0, 2_000.0], dtype=F64)
    mean = VonMisesFisher(loc, kappa).sample((5_000,)).mean(0)
    torch.testing.assert_close(mean, bessel_ratio(8, kappa).unsqueeze(-1) * loc, rtol=0, atol=0.03)


def test_poles_and_their_neighbours() -> None:
    """The map from the pole must not break down where the mean direction is on the first axis."""
    torch.manual_seed(0)
    nudge = torch.tensor([0.0, 1e-9, 0.0], dtype=F64)
    locs = torch.stack([first_axis(3), -first_axis(3), first_axis(3) + nudge, -first_axis(3) + nudge])
    loc = locs.requires_grad_()
    x = VonMisesFisher(loc, 1e6).rsample((50,))
    assert (((x * loc).sum(-1) - 1).abs() < 1e-4).all()
    x.sum().backward()
    assert loc.grad is not None and loc.grad.isfinite().all()


def test_sampling_ends_for_an_unchecked_concentration() -> None:
    kappa = torch.tensor([float("nan"), float("inf"), 1.0], dtype=F64)
    x = VonMisesFisher(first_axis(3), kappa, validate_args=False).sample()
    assert x.isnan().all(-1).tolist() == [True, False, False]
    torch.testing.assert_close(x[1], first_axis(3))


def test_sampling_is_reproducible_and_sample_has_no_graph() -> None:
    law = VonMisesFisher(unit(6).requires_grad_(), torch.tensor(3.0, dtype=F64, requires_grad=True))
    torch.manual_seed(1)
    first = law.sample((5,))
    torch.manual_seed(1)
    torch.testing.assert_close(law.rsample((5,)).detach(), first, rtol=0, atol=0)
    assert not first.requires_grad
    assert VonMisesFisher(unit(6, dtype=torch.float32), 3.0).sample().dtype == torch.float32
    assert law.sample((0,)).shape == (0, 6)


# Reparameterisation gradients


@pytest.mark.parametrize("dim", [2, 3, 5, 64, 512, 4096])
@pytest.mark.parametrize("kappa", [1e-3, 1.0, 30.0, 1e3, 1e6])
def test_rsample_gradient_of_the_mean_cosine_is_the_ratio_s_derivative(dim: int, kappa: float) -> None:
    count = 400 if dim == 4096 else 4_000
    torch.manual_seed(dim)
    k = torch.full((count,), kappa, dtype=F64, requires_grad=True)  # one kappa a sample: gradients by sample
    cosine = VonMisesFisher(first_axis(dim), k).rsample()[:, 0]
    (slope,) = torch.autograd.grad(cosine.sum(), k)
    expected = bessel_ratio_derivative(dim, torch.tensor(kappa, dtype=F64))
    assert (slope >= 0).all()
    assert abs(slope.mean() - expected) < 4 * slope.std() / math.sqrt(count) + 1e-9 * expected


@pytest.mark.parametrize("dim", [2, 3, 7, 64, 4096])
@pytest.mark.parametrize("kappa", [0.01, 1.0, 40.0, 1e4])
def test_implicit_slope_matches_quadrature_in_mpmath(dim: int, kappa: float) -> None:
    """At angles spread over the law, against the integral of (cos - A) f from the angle to pi."""
    torch.manual_seed(0)
    cosines = VonMisesFisher(first_axis(dim), kappa).sample((400,))[:, 0]
    angles = torch.acos(cosines.quantile(torch.tensor([0.0, 0.1, 0.5, 0.9, 1.0], dtype=F64)))
    slopes = vmf._angle_slope(dim, angles, torch.full_like(angles, kappa))
    width = min(1.0, 1 / math.sqrt(kappa + dim / 2))
    with mp.workdps(40):
        ratio = exact_ratio(dim, kappa)
        for angle, slope in zip(angles.tolist(), slopes.tolist(), strict=True):

            def weighted(phi: mp.mpf, angle: float = angle) -> mp.mpf:
                falling = mp.exp(kappa * (mp.cos(phi) - mp.cos(angle)))
                return (mp.cos(phi) - ratio) * falling * (mp.sin(phi) / mp.sin(angle)) ** (dim - 2)

            splits = [angle + step * width for step in (1, 3, 6, 12, 25)]
            expected = mp.quad(weighted, [angle, *(split for split in splits if split < 3.1), mp.pi])
            assert slope == pytest.approx(float(expected), rel=1e-7)


def test_rsample_gradient_of_loc() -> None:
    """d E[v.x] / d loc = A (v - (v.mu) mu), because the mean is A mu and loc is normalised."""
    torch.manual_seed(0)
    loc, v = unit(5).requires_grad_(), unit(5, seed=2)
    x = VonMisesFisher(loc, 4.0).rsample((20_000,))
    (grad,) = torch.autograd.grad((x @ v).mean(), loc)
    mu = loc.detach()
    expected = bessel_ratio(5, torch.tensor(4.0)) * (v - (v @ mu) * mu)
    torch.testing.assert_close(grad, expected, rtol=0, atol=0.02)


def test_rsample_refuses_second_derivatives() -> None:
    kappa = torch.tensor(3.0, dtype=F64, requires_grad=True)
    (grad,) = torch.autograd.grad(VonMisesFisher(unit(4), kappa).rsample().sum(), kappa, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.backward()


# Moments and divergences


@pytest.mark.parametrize("kappa", [0.0, 1e-8, 3.0, 1e4])
def test_variance_is_the_diagonal_of_the_covariance(kappa: float) -> None:
    torch.manual_seed(0)
    law = VonMisesFisher(unit(4), kappa)
    x = law.sample((40_000,))
    torch.testing.assert_close(law.variance, x.var(0), rtol=0.04, atol=0)
    total = law.variance.sum() + (law.mean**2).sum()  # E |x|^2
    assert total.item() == pytest.approx(1, abs=1e-12)


def test_variance_has_finite_gradients_at_zero() -> None:
    kappa = torch.zeros((), dtype=F64, requires_grad=True)
    VonMisesFisher(unit(4), kappa).variance.sum().backward()
    assert kappa.grad is not None and kappa.grad.item() == 0


@pytest.mark.parametrize("dim", [2, 3, 64, 512])
@pytest.mark.parametrize("kappa_p, kappa_q", [(0.0, 3.0), (5.0, 0.0), (2.0, 9.0), (300.0, 100.0)])
def test_kl_matches_monte_carlo(dim: int, kappa_p: float, kappa_q: float) -> None:
    torch.manual_seed(1)
    p, q = VonMisesFisher(unit(dim), kappa_p), VonMisesFisher(unit(dim, seed=1), kappa_q)
    x = p.sample((5_000,))
    difference = p.log_prob(x) - q.log_prob(x)
    bound = 4.5 * difference.std() / math.sqrt(len(x)) + 1e-10
    assert abs(kl_divergence(p, q) - difference.mean()) < bound


def test_kl_of_a_law_from_itself_is_zero_and_from_the_uniform_is_the_entropy_gap() -> None:
    for dim, kappa in ((2, 0.5), (512, 80.0), (4096, 1e6)):
        p, uniform = VonMisesFisher(unit(dim), kappa), VonMisesFisher(unit(dim), 0.0)
        assert abs(kl_divergence(p, p).item()) < 1e-9
        gap = (uniform.entropy() - p.entropy()).item()
        assert kl_divergence(p, uniform).item() == pytest.approx(gap, rel=1e-9)


def test_kl_between_dimensions_is_refused() -> None:
    with pytest.raises(UserError, match="dimensions 3 and 4"):
        kl_divergence(VonMisesFisher(unit(3), 1.0), VonMisesFisher(unit(4), 1.0))


# Fits


def exact_ratio(dim: int, kappa: float) -> mp.mpf:
    with mp.workdps(50):
        half = mp.mpf(dim) / 2
        return mp.besseli(half, kappa, maxterms=10**6) / mp.besseli(half - 1, kappa, maxterms=10**6)


@pytest.mark.parametrize("dim", [2, 3, 16, 512, 1024])
@pytest.mark.parametrize("kappa", [0.1, 5.0, 300.0, 2e4])
def test_newton_solves_the_likelihood_equation(dim: int, kappa: float) -> None:
    torch.manual_seed(dim)
    fit = fit_vmf(VonMisesFisher(unit(dim), kappa).sample((50,)))
    assert abs(exact_ratio(dim, fit.concentration.item()) / fit.resultant_length.item() - 1) < 1e-12


def test_newton_maximises_the_likelihood_over_direction_and_concentration() -> None:
    torch.manual_seed(0)
    x = VonMisesFisher(unit(8), 12.0).sample((100,))
    fit = fit_vmf(x)
    best = fit.distribution().log_prob(x).sum()
    for factor in (0.99, 1.01):
        assert VonMisesFisher(fit.mean_direction, factor * fit.concentration).log_prob(x).sum() < best
    turned = torch.nn.functional.normalize(fit.mean_direction + 0.01 * unit(8, seed=3), dim=-1)
    assert VonMisesFisher(turned, fit.concentration).log_prob(x).sum() < best


def test_fit_recovers_the_parameters() -> None:
    torch.manual_seed(0)
    law = VonMisesFisher(unit(16), 40.0)
    fit = fit_vmf(law.sample((20_000,)))
    information = bessel_ratio_derivative(16, torch.tensor(40.0, dtype=F64))
    assert abs(fit.concentration - 40) < 4 / (20_000 * information).sqrt()
    assert (fit.mean_direction @ law.loc).item() > 0.9999


def test_banerjee_is_the_closed_form() -> None:
    x = unit(30, 64)
    fit = fit_vmf(x, "banerjee", eps=1e-3)
    r = x.mean(0).norm()
    torch.testing.assert_close(fit.concentration, r * (64 - r**2) / (1 - r**2 + 1e-3), rtol=1e-13, atol=0)
    torch.testing.assert_close(fit.resultant_length, r, rtol=1e-13, atol=0)


def test_debiased_takes_out_what_chance_adds() -> None:
    """Fifty isotropic vectors in 512 dimensions pass for kappa = 73."""
    x = torch.stack([unit(50, 512, seed=seed) for seed in range(40)])
    assert fit_vmf(x).concentration.mean().item() == pytest.approx(73, abs=2)
    debiased = fit_vmf(x, "debiased").concentration
    assert debiased.mean().item() < 10 and (debiased == 0).any()


def test_debiased_formula_and_consistency() -> None:
    torch.manual_seed(0)
    x = VonMisesFisher(unit(512), 400.0).sample((200, 50))
    fit = fit_vmf(x, "debiased")
    r = ((50 * fit.resultant_length**2 - 1) / 49).sqrt()
    torch.testing.assert_close(bessel_ratio(512, fit.concentration), r, rtol=1e-12, atol=0)
    assert fit.concentration.mean().item() == pytest.approx(400, rel=0.01)
    assert fit_vmf(x).concentration.mean().item() > 410


def test_fit_is_batched_and_differentiable() -> None:
    x = unit(3, 4, 10, 6)
    fit = fit_vmf(x)
    assert fit.mean_direction.shape == (3, 4, 6) and fit.concentration.shape == (3, 4) and fit.count == 10
    assert fit.distribution().batch_shape == (3, 4)
    single = fit_vmf(x[2, 1])
    torch.testing.assert_close(fit.concentration[2, 1], single.concentration, rtol=1e-12, atol=0)
    torch.testing.assert_close(fit.mean_direction[2, 1], single.mean_direction, rtol=1e-12, atol=1e-14)
    for estimator in ("newton", "banerjee", "debiased"):
        rows = unit(7, 4).requires_grad_()
        assert torch.autograd.gradcheck(
            lambda rows, e=estimator: fit_vmf(rows, e).concentration, rows, rtol=1e-5
        )


def test_debiased_gradient_is_finite_where_the_estimate_is_zero() -> None:
    x = torch.tensor([[1.0, 0.0], [-0.6, 0.8]], dtype=F64, requires_grad=True)
    fit = fit_vmf(x, "debiased")
    assert fit.concentration.item() == 0
    fit.concentration.backward()
    assert x.grad is not None and (x.grad == 0).all()


def test_float32_and_half_rows() -> None:
    x = unit(40, 512, dtype=torch.float32)
    fit = fit_vmf(x)
    assert fit.concentration.dtype == fit.mean_direction.dtype == F64
    torch.testing.assert_close(fit.mean_direction.norm(), torch.ones((), dtype=F64))
    torch.testing.assert_close(fit.concentration, fit_vmf(x.double()).concentration, rtol=1e-12, atol=0)
    assert fit_vmf(x.half()).concentration.item() == pytest.approx(fit.concentration.item(), rel=1e-3)


def test_nearly_equal_rows_have_a_finite_concentration() -> None:
    torch.manual_seed(0)
    fit = fit_vmf(VonMisesFisher(unit(8), 1e9).sample((50,)))
    assert fit.concentration.item() == pytest.approx(1e9, rel=0.3)


NOT_FINITE = torch.tensor([[1.0, 0.0], [float("nan"), 0.0]])


@pytest.mark.parametrize(
    "x, sentence",
    [
        (torch.tensor([[1.0, 0.0], [0.0, 1.1]]), "Row 1 has length 1.1; divide"),
        (torch.stack([torch.eye(2), 2 * torch.eye(2)]), r"Row \(1, 0\) has length 2;"),
        (NOT_FINITE, "Row 1 is not finite"),
        (torch.zeros(0, 4), "no rows to fit"),
        (torch.eye(4)[:1], "One row has no spread"),
        (torch.eye(4)[:1].repeat(5, 1), "All rows are equal, so the concentration is infinite"),
        (torch.stack([torch.eye(2), torch.tensor([[1.0, 0.0]]).repeat(2, 1)]), "All rows of fit 1 are equal"),
        (torch.tensor([[1.0, 0.0], [-1.0, 0.0]]), "The rows cancel"),
        (torch.ones(5, 1), "dimension 1; a sphere needs at least 2"),
        (torch.ones(5), r"shape \(\.\.\., n, d\)"),
        (torch.ones(5, 3, dtype=torch.int64), "floating-point"),
    ],
)
def test_fit_errors(x: Tensor, sentence: str) -> None:
    for estimator in ("newton", "banerjee", "debiased"):
        with pytest.raises(UserError, match=sentence):
            fit_vmf(x, estimator)


def test_unknown_estimator() -> None:
    with pytest.raises(UserError, match="Unknown estimator 'newtn'; did you mean 'newton'"):
        fit_vmf(unit(5, 3), "newtn")


def test_docstring_examples() -> None:
    results = doctest.testmod(vmf)
    assert results.attempted > 0 and results.failed == 0
