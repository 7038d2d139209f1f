"""Caps that hold a share of a von Mises-Fisher law, against closed forms and samples."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from vmfcoop.errors import UserError
from vmfcoop.sphere import VonMisesFisher, bessel_ratio
from vmfcoop.sphere.caps import cap_angle, seen_cap_angle

SHARES = (0.1, 0.5, 0.9, 0.99)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kappa", [0.01, 0.5, 5.0, 300.0, 1e4])
def test_on_the_ordinary_sphere_it_is_the_closed_form(kappa, share):
    cosine = 1 + math.log1p(-share * -math.expm1(-2 * kappa)) / kappa
    assert cap_angle(3, kappa, share) == pytest.approx(math.acos(cosine), rel=1e-4)


@pytest.mark.parametrize("share", SHARES)
@pytest.mark.parametrize("kappa", [0.5, 4.0, 100.0])
def test_on_the_circle_it_is_scipys_quantile(kappa, share):
    assert cap_angle(2, kappa, share) == pytest.approx(stats.vonmises(kappa).ppf((1 + share) / 2), rel=1e-3)


@pytest.mark.parametrize("dim", [4, 64, 768])
def test_uniform_law_splits_at_the_equator(dim):
    assert cap_angle(dim, 0.0) == pytest.approx(math.pi / 2, abs=1e-6)


def test_in_many_dimensions_half_the_mass_is_at_the_mean_cosine():
    for dim, kappa in ((512, 50.0), (512, 1000.0), (2048, 1e5)):
        mean = math.acos(float(bessel_ratio(dim, torch.tensor(kappa, dtype=torch.float64))))
        assert cap_angle(dim, kappa) == pytest.approx(mean, rel=5e-3)


def samples(dim, kappa, alignment, count=60_000):
    mean = torch.zeros(dim, dtype=torch.float64)
    mean[0], mean[-1] = alignment, math.sqrt(1 - alignment**2)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = VonMisesFisher(mean, torch.tensor(kappa, dtype=torch.float64)).sample((count,))
    return mean, draws


@pytest.mark.parametrize(
    ("dim", "kappa", "alignment"),
    [(5, 3.0, 0.7), (6, 0.5, 1.0), (8, 20.0, 0.3), (64, 90.0, 1.0), (64, 90.0, 0.6), (64, 1e5, 0.9)],
)
def test_shares_of_samples(dim, kappa, alignment):
    mean, draws = samples(dim, kappa, alignment)
    angles = torch.acos((draws @ mean).clamp(-1, 1))
    seen = torch.atan2(draws[:, 1:3].norm(dim=1), draws[:, 0])
    for share in SHARES:
        tolerance = 4 * math.sqrt(share * (1 - share) / len(draws)) + 1e-3
        for found, limit in (
            (angles, cap_angle(dim, kappa, share)),
            (seen, seen_cap_angle(dim, kappa, share, alignment)),
        ):
            assert float((found <= limit).double().mean()) == pytest.approx(share, abs=tolerance)


@pytest.mark.parametrize("dim", [5, 16, 512])
@pytest.mark.parametrize("share", SHARES)
def test_a_uniform_law_is_seen_as_uniform_on_the_ordinary_sphere(dim, share):
    assert seen_cap_angle(dim, 0.0, share) == pytest.approx(math.acos(1 - 2 * share), rel=5e-3)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 600), st.floats(0.1, 1e5), st.floats(0.05, 0.95))
def test_narrower_with_concentration_and_in_the_view(dim, kappa, share):
    assert cap_angle(dim, 2 * kappa, share) < cap_angle(dim, kappa, share)
    assert seen_cap_angle(dim, 2 * kappa, share) < seen_cap_angle(dim, kappa, share)
    if cap_angle(dim, kappa, 0.99) < math.pi / 2:
        assert seen_cap_angle(dim, kappa, share) < cap_angle(dim, kappa, share)


@settings(max_examples=30, deadline=None)
@given(st.integers(5, 600), st.floats(0, 1e5))
def test_wider_for_more_mass(dim, kappa):
    widths = [cap_angle(dim, kappa, share) for share in SHARES]
    assert (np.diff(widths) > 0).all() and widths[0] > 0 and widths[-1] < math.pi


@pytest.mark.parametrize(
    "arguments", [(1, 1.0, 0.5), (8, -1.0, 0.5), (8, math.nan, 0.5), (8, 1.0, 0.0), (8, 1.0, 1.0)]
)
def test_says_what_is_out_of_range(arguments):
    for function in (cap_angle, seen_cap_angle):
        with pytest.raises(UserError, match="A cap needs"):
            function(*arguments)


@pytest.mark.parametrize("alignment", [0.0, -0.5, 1.5])
def test_says_what_alignment_is_out_of_range(alignment):
    with pytest.raises(UserError, match="alignment"):
        seen_cap_angle(8, 1.0, 0.5, alignment)
