"""The geometry of the sphere's view, against rotations, areas and samples."""

import math

import numpy as np
import pytest
import torch
from matplotlib.path import Path as Outline
from scipy import stats

from vmfcoop.reporting.sphere_view import Images, lambert, sphere_view, turned
from vmfcoop.sphere import VonMisesFisher, VonMisesFisherFit


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def uniform(n, d, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(n, d)))


def back(points):
    """The inverse of Lambert's projection."""
    r = np.linalg.norm(points, axis=1, keepdims=True)
    cosine = 1 - r**2 / 2
    return np.concatenate([cosine, points * np.sqrt(1 - r**2 / 4)], axis=1)


def around(mean, n, noise, seed):
    """Unit vectors about a direction."""
    return unit(mean + noise * np.random.default_rng(seed).normal(size=(n, len(mean))))


def clusters(means, n, noise, seed):
    """Images of classes about their means."""
    features = np.concatenate([around(mean, n, noise, seed + i) for i, mean in enumerate(means)])
    return Images(features, np.repeat(np.arange(len(means)), n))


def test_turning_is_a_rotation_in_the_plane_of_both():
    start, end, rows = *uniform(2, 9), uniform(50, 9, seed=1)
    moved = turned(rows, start, end)
    assert moved @ moved.T == pytest.approx(rows @ rows.T)
    assert turned(start[None], start, end)[0] == pytest.approx(end)
    basis = np.linalg.qr(np.stack([start, end]).T)[0]
    across = unit(rows - rows @ basis @ basis.T)
    assert turned(across, start, end) == pytest.approx(across)
    assert np.linalg.det(turned(np.eye(9), start, end)) == pytest.approx(1)


def test_lambert_keeps_areas_and_the_angle_from_the_pole():
    points = uniform(20_000, 3)
    plane = lambert(points)
    radius = np.linalg.norm(plane, axis=1)
    assert radius == pytest.approx(2 * np.sin(np.arccos(points[:, 0]) / 2))
    assert stats.kstest(radius**2 / 4, "uniform").pvalue > 0.01  # equal areas: uniform on the disc
    assert stats.kstest(np.arctan2(*plane.T) / (2 * np.pi) + 0.5, "uniform").pvalue > 0.01
    assert back(plane) == pytest.approx(points)


def test_what_lies_in_three_dimensions_is_seen_as_it_is():
    """Class texts of three dimensions inside sixteen: nothing is lost and every angle is the true one."""
    inside = np.linalg.qr(np.random.default_rng(3).normal(size=(16, 3)))[0]
    texts = unit(inside[:, 0] + 0.5 * uniform(5, 3) @ inside.T)
    view = sphere_view({"after": texts})
    assert view.kept["after"] == pytest.approx(1)
    seen = back(view.texts["after"])
    assert seen @ seen.T == pytest.approx(texts @ texts.T)
    pole = unit(texts.mean(axis=0))
    assert 2 * np.arcsin(np.linalg.norm(view.texts["after"], axis=1) / 2) == pytest.approx(
        np.arccos(texts @ pole)
    )


def test_frame_is_orthonormal_and_holds_the_most_of_the_classes_differences():
    texts = around(np.eye(40)[0], 6, 0.1, seed=0)
    view = sphere_view({"after": texts})
    assert view.frame @ view.frame.T == pytest.approx(np.eye(3))
    centred = texts - texts.mean(axis=0)
    flat = centred - np.outer(centred @ view.frame[0], view.frame[0])
    best = np.linalg.svd(flat)[1][:2]
    found = np.linalg.norm(flat @ view.frame[1:].T) ** 2
    assert found == pytest.approx((best**2).sum())
    total = (centred**2).sum()
    assert view.kept["after"] == pytest.approx((found + ((centred @ view.frame[0]) ** 2).sum()) / total)


def test_images_of_another_cone_are_turned_as_a_whole():
    texts, spread = (
        around(np.eye(30)[0], 3, 0.12, seed=0),
        0.12 * np.random.default_rng(5).normal(size=(3, 30)),
    )
    centre = unit(np.eye(30)[0] + np.eye(30)[7])
    support = clusters(unit(centre + spread), 8, 0.03, seed=1)
    test = clusters(unit(centre + spread), 20, 0.03, seed=9)
    view = sphere_view({"after": texts}, (), support, test)
    pole, mean = unit(texts.mean(axis=0)), unit(support.class_means().mean(axis=0))
    assert view.gap == pytest.approx(math.acos(pole @ mean))
    moved = turned(test.features, mean, pole)
    assert view.test == pytest.approx(lambert(unit(moved @ view.frame.T)))
    assert moved @ moved.T == pytest.approx(test.features @ test.features.T)
    assert np.linalg.norm(view.support.mean(axis=0)) < 0.1
    assert set(view.kept) == {"after", "support", "test"}
    assert view.kept["support"] > view.kept["test"] > 0


@pytest.mark.parametrize("kappa", [40.0, 900.0])
def test_half_of_a_fields_draws_are_seen_inside_its_cap(kappa):
    texts = around(np.eye(24)[0], 4, 0.15, seed=2)
    mean = torch.from_numpy(around(texts[0], 1, 0.12, seed=3)[0])
    fit = VonMisesFisherFit(mean, torch.tensor(kappa, dtype=torch.float64), torch.tensor(0.9), 50)
    view = sphere_view({"after": texts}, [fit] * 4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        draws = VonMisesFisher(mean, fit.concentration).sample((20_000,)).numpy()
    seen = lambert(unit(draws @ view.frame.T))
    for cap in view.caps:
        assert Outline(cap.outline).contains_points(seen).mean() == pytest.approx(0.5, abs=0.015)


def test_two_classes_take_their_second_direction_from_the_images():
    texts = around(np.eye(20)[0], 2, 0.2, seed=0)
    assert sphere_view({"after": texts}) is None
    support = clusters(texts, 10, 0.1, seed=4)
    view = sphere_view({"after": texts}, (), support)
    assert view.frame @ view.frame.T == pytest.approx(np.eye(3)) and view.support.shape == (20, 2)


def test_texts_of_a_zero_shot_run_are_enough():
    texts = around(np.eye(20)[0], 4, 0.2, seed=0)
    view = sphere_view({"before": texts}, (), clusters(texts, 5, 0.1, seed=1))
    assert set(view.texts) == {"before"} and set(view.kept) == {"before", "support"}


def test_frame_holds_the_marks_and_counts_what_lies_beyond():
    texts = around(np.eye(20)[0], 4, 0.05, seed=0)
    away = unit(texts - 1.2 * np.eye(20)[0] + 0.9 * (texts - texts.mean(axis=0)))
    support, test = clusters(texts, 50, 0.02, seed=1), clusters(texts, 50, 0.02, seed=8)
    test.features[0] = -test.features[0]
    view = sphere_view({"before": away, "after": texts}, (), support, test)
    assert np.linalg.norm(view.texts["after"], axis=1).max() < view.radius < 1
    assert view.beyond["before"] == 4 and view.beyond["after"] == 0
    assert view.beyond["test"] == (np.linalg.norm(view.test, axis=1) > view.radius).sum() >= 1


def test_the_same_every_time():
    texts = around(np.eye(20)[0], 4, 0.05, seed=0)
    one, two = (sphere_view({"after": texts.copy()}, (), clusters(texts, 5, 0.02, seed=1)) for _ in range(2))
    assert (one.frame == two.frame).all() and (one.support == two.support).all()


def test_images_close_to_the_pole_have_a_frame_of_their_own():
    texts = around(np.eye(30)[0], 4, 0.2, seed=0)
    near, wide = (clusters(unit(texts.mean(axis=0) + 0.1 * texts), 30, noise, 5) for noise in (0.02, 0.2))
    view = sphere_view({"after": texts}, (), near, near)
    close = view.enlarged()
    reach = np.linalg.norm(view.test, axis=1)
    assert np.quantile(reach, 0.99) < close.radius < view.radius / 2
    assert close.beyond["after"] == 4 and close.beyond["test"] == (reach > close.radius).sum()
    assert (close.test == view.test).all()
    assert sphere_view({"after": texts}, (), wide, wide).enlarged() is None
    assert sphere_view({"after": texts}).enlarged() is None
