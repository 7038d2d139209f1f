"""Localisation against loops over pixels, scikit-learn's scores, and what must hold of any map."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from sklearn.metrics import f1_score, jaccard_score

from vmfcoop.explain.localisation import (
    SET_THRESHOLDS,
    area_share,
    best_dice,
    best_iou,
    best_over_set,
    centred_gaussians,
    dice,
    energy_inside,
    iou,
    pointing_game,
    random_maps,
    uniform_maps,
)

SHAPE = (3, 5, 7)
levels = st.sampled_from([0.0, 0.2, 0.25, 0.5, 0.75, 1.0])
some_maps = arrays(np.float64, SHAPE, elements=levels)
some_masks = arrays(np.bool_, SHAPE)


def looped(
    maps: NDArray[np.float64], masks: NDArray[np.bool_], tolerance: float
) -> list[tuple[float, float]]:
    """Pointing game and energy, pixel by pixel."""
    found = []
    for values, mask in zip(maps.tolist(), masks.tolist(), strict=True):
        pixels = [(y, x) for y in range(len(values)) for x in range(len(values[0]))]
        inside = [pixel for pixel in pixels if mask[pixel[0]][pixel[1]]]
        if not inside:
            found.append((math.nan, math.nan))
            continue
        highest = max(values[y][x] for y, x in pixels)
        tops = [pixel for pixel in pixels if values[pixel[0]][pixel[1]] == highest]
        hits = [top for top in tops if min(math.dist(top, other) for other in inside) <= tolerance]
        total = sum(values[y][x] for y, x in pixels)
        energy = sum(values[y][x] for y, x in inside) / total if total else math.nan
        found.append((len(hits) / len(tops), energy))
    return found


@settings(max_examples=60, deadline=None)
@given(some_maps, some_masks, st.sampled_from([0.0, 1.0, 1.5, 3.0]))
def test_pointing_and_energy_are_what_loops_over_pixels_find(
    maps: NDArray[np.float64], masks: NDArray[np.bool_], tolerance: float
) -> None:
    wanted = np.array(looped(maps, masks, tolerance))
    np.testing.assert_allclose(pointing_game(maps, masks, tolerance), wanted[:, 0], atol=1e-12)
    np.testing.assert_allclose(energy_inside(maps, masks), wanted[:, 1], atol=1e-12)


@settings(max_examples=60, deadline=None)
@given(some_maps, some_masks, levels)
def test_iou_and_dice_are_scikit_learns(
    maps: NDArray[np.float64], masks: NDArray[np.bool_], threshold: float
) -> None:
    for found, oracle in ((iou, jaccard_score), (dice, f1_score)):
        scores = found(maps, masks, threshold)
        for score, values, mask in zip(scores, maps, masks, strict=True):
            if mask.any():
                assert score == pytest.approx(oracle(mask.ravel(), values.ravel() >= threshold))
            else:
                assert math.isnan(score)


@settings(max_examples=60, deadline=None)
@given(some_maps, some_masks)
def test_the_best_threshold_is_the_best_of_all_values(
    maps: NDArray[np.float64], masks: NDArray[np.bool_]
) -> None:
    every = [0.0, 0.2, 0.25, 0.5, 0.75, 1.0]
    for best, score in ((best_iou, iou), (best_dice, dice)):
        # A threshold above the maximum marks nothing and scores 0; thresholds between values add none.
        wanted = np.max([score(maps, masks, value) for value in every], axis=0)
        np.testing.assert_allclose(best(maps, masks), wanted, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(some_maps, some_masks)
def test_one_threshold_for_the_set_lies_between_the_fixed_one_and_one_an_image(
    maps: NDArray[np.float64], masks: NDArray[np.bool_]
) -> None:
    if not masks.any():
        with pytest.raises(ValueError, match="no image has a mask"):
            best_over_set(maps, masks)
        return
    for score, best in ((iou, best_iou), (dice, best_dice)):
        found = best_over_set(maps, masks, score)
        means = [np.nanmean(score(maps, masks, float(t))) for t in SET_THRESHOLDS]
        assert np.nanmean(found.scores) == pytest.approx(max(means))
        assert found.threshold in SET_THRESHOLDS
        assert np.nanmean(score(maps, masks)) <= np.nanmean(found.scores) + 1e-12
        assert np.nanmean(found.scores) <= np.nanmean(best(maps, masks)) + 1e-12


@settings(max_examples=40, deadline=None)
@given(some_masks)
def test_a_uniform_map_has_the_area_share_everywhere(masks: NDArray[np.bool_]) -> None:
    uniform = uniform_maps(SHAPE)
    shares = [mask.mean() if mask.any() else math.nan for mask in masks]
    for scores in (
        area_share(masks),
        *(f(uniform, masks) for f in (energy_inside, pointing_game, iou, best_iou)),
    ):
        np.testing.assert_allclose(scores, shares, atol=1e-7)


@settings(max_examples=40, deadline=None)
@given(some_masks)
def test_the_mask_itself_is_a_perfect_map(masks: NDArray[np.bool_]) -> None:
    masks[:, 0, 0] = True
    for score in (pointing_game, energy_inside, iou, dice, best_iou, best_dice):
        np.testing.assert_allclose(score(masks.astype(np.float64), masks), 1.0)


@settings(max_examples=40, deadline=None)
@given(some_maps, some_masks, st.floats(0.1, 0.9))
def test_rank_scores_ignore_how_a_map_is_scaled_and_energy_its_unit(
    maps: NDArray[np.float64], masks: NDArray[np.bool_], power: float
) -> None:
    for score in (pointing_game, best_iou, best_dice):
        np.testing.assert_allclose(score(maps**power, masks), score(maps, masks))
    np.testing.assert_allclose(energy_inside(3 * maps, masks), energy_inside(maps, masks))


def test_ties_of_the_maximum_are_shared_whatever_their_place() -> None:
    maps = np.zeros((2, 4, 4))
    maps[:, 1:3, 1:3] = 1  # four pixels share the maximum
    masks = np.zeros((2, 4, 4), bool)
    masks[0, 1, 1], masks[1, 2, 1:] = True, True
    assert pointing_game(maps, masks).tolist() == [0.25, 0.5]


def test_tolerance_is_euclidean() -> None:
    maps, masks = np.zeros((1, 5, 5)), np.zeros((1, 5, 5), bool)
    maps[0, 0, 0], masks[0, 1, 1] = 1, True
    assert [pointing_game(maps, masks, t)[0] for t in (1, 1.41, 1.42)] == [0, 0, 1]


def test_an_empty_map_finds_nothing_but_has_no_energy_to_share() -> None:
    maps, masks = np.zeros((1, 4, 4)), np.zeros((1, 4, 4), bool)
    masks[0, :2] = True
    assert math.isnan(energy_inside(maps, masks)[0])
    assert iou(maps, masks)[0] == 0
    assert pointing_game(maps, masks)[0] == 0.5


def test_random_maps_are_seeded_cells_and_centre_lies_in_the_middle() -> None:
    drawn = random_maps((2, 12, 9), (4, 3), seed=1)
    assert drawn.shape == (2, 12, 9)
    assert len(np.unique(drawn[0])) == 12
    assert (drawn[:, :3, :3] == drawn[:, :1, :1]).all()
    assert (drawn == random_maps((2, 12, 9), (4, 3), seed=1)).all()
    assert (drawn != random_maps((2, 12, 9), (4, 3), seed=2)).all()
    bell = centred_gaussians((2, 11, 21))
    assert np.unravel_index(bell[1].argmax(), (11, 21)) == (5, 10)
    np.testing.assert_allclose(bell[0], bell[0, ::-1, ::-1])
    assert bell[0, 5, 0] == pytest.approx(math.exp(-((10 / 21) ** 2) / (2 * 0.25**2)), rel=1e-6)


def test_nonsense_is_refused() -> None:
    maps, masks = np.zeros((1, 2, 2)), np.zeros((1, 2, 2), bool)
    with pytest.raises(ValueError, match=r"\(n, H, W\)"):
        iou(maps, masks[:, :1])
    with pytest.raises(ValueError, match="bool"):
        iou(maps, masks.astype(int))  # type: ignore[arg-type]
    for wrong in (-0.1, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and nowhere negative"):
            energy_inside(np.full((1, 2, 2), wrong), masks)
    with pytest.raises(ValueError, match="negative"):
        pointing_game(maps, masks, tolerance=-1)
