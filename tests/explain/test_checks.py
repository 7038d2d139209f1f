"""Checks of saliency maps against loops, scipy and a tower whose true maps are known."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats
from sklearn.metrics import auc
from torch import Tensor
from torch.nn.functional import normalize

from tests.plain_encoder import PlainEncoder
from vmfcoop.backbones import DualEncoder
from vmfcoop.data import Dataset, load_dataset
from vmfcoop.data.phantoms import materialise
from vmfcoop.errors import UserError
from vmfcoop.explain import MAP_METHODS, Target, class_target, saliency_maps
from vmfcoop.explain.checks import SaliencyChecks, check_maps
from vmfcoop.explain.curves import STEPS, blurred, curves, ranks
from vmfcoop.explain.estimates import Estimate, estimate
from vmfcoop.explain.map_method import MapMethod
from vmfcoop.explain.masks import mask_files, read_mask, seen_mask
from vmfcoop.explain.measuring import MapMeasures
from vmfcoop.explain.placement import seen_box
from vmfcoop.explain.randomisation import DIRECTIONS, NAMES, rank_correlation, stand_ins
from vmfcoop.explain.remembering import RememberingEncoder
from vmfcoop.explain.sample import Sample, draw_sample
from vmfcoop.explain.verdict import CRITERIA, judge
from vmfcoop.methods.base import EmbeddingClassifier, Fitted
from vmfcoop.methods.zero_shot import ZeroShotClassifier, name_embeddings

SIDE, QUADRANTS = 16, 4


class QuadrantEncoder(PlainEncoder):
    """Feature c is how much there is in quadrant c, beside a constant: the true map of class c is known."""

    def __init__(self, order: Sequence[int] = tuple(range(SIDE * SIDE))) -> None:
        super().__init__(dim=QUADRANTS + 1)
        self.image_size = (SIDE, SIDE)
        self._order = torch.tensor(order)

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.image_calls += len(pixels)
        flat = pixels.mean(dim=1).flatten(1)[:, self._order].reshape(-1, SIDE, SIDE)
        parts = flat.unfold(1, 8, 8).unfold(2, 8, 8).mean(dim=(3, 4)).flatten(1)
        return normalize(torch.cat([parts, torch.full((len(parts), 1), 4.0)], dim=1), dim=1)

    def randomised(self, share: float, seed: int = 0) -> DualEncoder:
        """The last pixels in another order, as a tower that looks for its classes elsewhere."""
        moved = math.ceil(share * SIDE * SIDE)
        order = np.arange(SIDE * SIDE)
        order[-moved:] = np.random.default_rng(seed).permutation(order[-moved:])
        return QuadrantEncoder(order.tolist())


def quadrant_sample(n: int = 8) -> Sample:
    """Bright noisy images, of which image i is brightest in quadrant i mod 4, its label."""
    draw = torch.Generator().manual_seed(0)
    labels = np.arange(n) % QUADRANTS
    masks = np.zeros((n, SIDE, SIDE), bool)
    for mask, label in zip(masks, labels.tolist(), strict=True):
        top, left = 8 * (label // 2), 8 * (label % 2)
        mask[top : top + 8, left : left + 8] = True
    pixels = 1 + 0.2 * torch.rand(n, 3, SIDE, SIDE, generator=draw) + torch.from_numpy(masks)[:, None] / 2
    return Sample(tuple(f"{i}.png" for i in range(n)), pixels, labels, masks)


def quadrant_classifier() -> EmbeddingClassifier:
    names = ("upper left", "upper right", "lower left", "lower right")
    return EmbeddingClassifier(names, torch.eye(QUADRANTS, QUADRANTS + 1), 30.0)


class Hide(MapMethod):
    """How far the score falls when a pixel is hidden, one at a time: true of this tower."""

    name, title, source = "hide", "Hide", "this test"

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        seen = 1 - torch.eye(SIDE * SIDE).reshape(-1, 1, SIDE, SIDE)
        hidden = target.score(encoder.encode_images((pixels[:, None] * seen).flatten(0, 1)))
        whole = target.score(encoder.encode_images(pixels))
        return (whole[:, None] - hidden.reshape(len(pixels), -1)).clamp(min=0).reshape(-1, SIDE, SIDE)


class Deaf(MapMethod):
    """What is bright: a map that hears neither class nor weights, though it lies on the finding."""

    name, title, source = "deaf", "Deaf", "this test"

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        return pixels.mean(dim=1)


class Noise(MapMethod):
    """Random numbers, others for every class and tower: hears everything, says nothing."""

    name, title, source = "noise", "Noise", "this test"

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        heard = float(target.score(encoder.encode_images(pixels)).double().sum())
        draw = torch.Generator().manual_seed(int(1e9 * abs(heard)) % 2**31)
        return torch.rand(len(pixels), SIDE, SIDE, generator=draw)


class Blank(MapMethod):
    """Nothing."""

    name, title, source = "blank", "Blank", "this test"

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        return torch.ones(len(pixels), SIDE, SIDE)


@pytest.fixture(scope="module")
def found() -> SaliencyChecks:
    """The checks of a true map and of three that must fail."""
    with pytest.MonkeyPatch.context() as patch:
        for method in (Hide, Deaf, Noise, Blank):
            patch.setitem(MAP_METHODS, method.name, method)
        return check_maps(
            RememberingEncoder(QuadrantEncoder()),
            quadrant_classifier(),
            quadrant_sample(),
            ["hide", "deaf", "noise", "blank"],
        )


def failed(found: SaliencyChecks, method: str) -> list[str]:
    verdict = found.methods[method].verdict
    assert verdict is not None
    assert verdict.passes == (not verdict.failed)
    return [criterion.name for criterion in verdict.failed]


def test_a_map_that_is_true_passes(found: SaliencyChecks) -> None:
    assert failed(found, "hide") == []
    numbers = found.methods["hide"].numbers
    assert numbers["energy"].mean == pytest.approx(1.0, abs=0.05)
    assert numbers["pointing"].mean == 1
    assert numbers["energy_gain"].mean == pytest.approx(numbers["energy"].mean - 0.25)


def test_a_map_that_is_the_same_for_any_prompt_fails_by_name(found: SaliencyChecks) -> None:
    assert failed(found, "deaf") == ["gibberish", "wrong-class", "weights"]
    numbers = found.methods["deaf"].numbers
    for name in ("rank_gibberish", "rank_wrong_class", "rank_weights_25", "rank_weights_100"):
        assert numbers[name].mean == pytest.approx(1.0)
    assert numbers["pointing"].mean == 1  # it lies on the finding all the same


def test_noise_fails_what_a_random_order_is_the_measure_of(found: SaliencyChecks) -> None:
    assert failed(found, "noise") == ["deletion", "insertion", "energy"]


def test_a_blank_map_fails_and_its_correlations_are_left_out_and_counted(found: SaliencyChecks) -> None:
    assert {"empty", "gibberish", "wrong-class", "weights", "energy"} <= set(failed(found, "blank"))
    assert found.methods["blank"].numbers["empty"].mean == 1
    assert found.methods["blank"].numbers["rank_gibberish"] == Estimate(None, None, None, 0, 8)


def test_the_cascade_has_half_of_the_images_at_the_end_and_an_eighth_on_the_way(
    found: SaliencyChecks,
) -> None:
    numbers = found.methods["hide"].numbers
    assert [numbers[f"rank_weights_{share}"].images for share in (25, 50, 75, 100)] == [1, 1, 1, 4]
    # A quarter of the pixels are those of the two lower quadrants' rows: the upper classes keep their maps.
    upper = found.methods["hide"].values["rank_weights_25"][:1]
    np.testing.assert_allclose(upper, 1.0, atol=1e-3)


def test_baselines_are_in_every_table(found: SaliencyChecks) -> None:
    assert set(found.baselines) == {"uniform", "random", "centre"}
    uniform, random, centre = (found.baselines[name].numbers for name in ("uniform", "random", "centre"))
    assert uniform["energy"].mean == pytest.approx(0.25)
    assert uniform["energy_gain"].mean == pytest.approx(0, abs=1e-7)
    assert random["energy"].mean == pytest.approx(0.25, abs=0.05)
    assert centre["energy"].mean == pytest.approx(0.25, abs=1e-6)  # quadrants share the middle alike
    assert all(row.verdict is None for row in found.baselines.values())
    assert {"deletion", "insertion"} <= set(random) & set(centre)


def test_json_holds_verdicts_by_method(found: SaliencyChecks, tmp_path: Path) -> None:
    written = json.loads(found.write(tmp_path).read_text())
    assert written == json.loads(json.dumps(found.as_json()))
    assert written["images"] == 8
    assert written["methods"]["hide"]["passes"] is True
    assert written["methods"]["deaf"]["failed"] == ["gibberish", "wrong-class", "weights"]
    assert written["settings"]["stand_ins"]["kind"] == DIRECTIONS
    assert [path.name for path in tmp_path.iterdir()] == ["explain_checks.json"]


def test_checks_repeat_and_need_no_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAP_METHODS, "noise", Noise)
    sample = replace(quadrant_sample(4), masks=None)
    encoders = (RememberingEncoder(QuadrantEncoder()) for _ in range(2))
    results = [check_maps(encoder, quadrant_classifier(), sample, ["noise"], seed=3) for encoder in encoders]
    assert results[0].as_json() == results[1].as_json()
    assert not results[0].has_masks
    verdict = results[0].methods["noise"].verdict
    assert verdict is not None and "energy" not in verdict.asked
    assert "uniform" not in results[0].baselines


def test_with_a_class_as_contrast_its_own_maps_are_not_compared() -> None:
    sample = quadrant_sample(12)
    kept = sample.labels != 3
    part = Sample(
        tuple(np.array(sample.files)[kept]), sample.pixels[kept], sample.labels[kept], sample.masks[kept]
    )
    measures = MapMeasures(RememberingEncoder(QuadrantEncoder()), quadrant_classifier(), part, "lower right")
    assert [measures.wrong_classes(c) for c in (0, 1, 2)] == [[1, 2], [0, 2], [0, 1]]
    with pytest.raises(UserError, match="Unknown class"):
        MapMeasures(RememberingEncoder(QuadrantEncoder()), quadrant_classifier(), part, "nowhere")


def test_of_many_classes_ten_are_drawn() -> None:
    names = tuple(map(str, range(40)))
    many = EmbeddingClassifier(names, normalize(torch.randn(40, QUADRANTS + 1), dim=1), 30.0)
    measures = MapMeasures(RememberingEncoder(QuadrantEncoder()), many, quadrant_sample(4))
    drawn = measures.wrong_classes(2)
    assert len(set(drawn)) == 10 and 2 not in drawn
    assert drawn == measures.wrong_classes(2)


# --- rank correlation


@settings(max_examples=60, deadline=None)
@given(
    arrays(np.float64, (2, 3, 4), elements=st.sampled_from([0.0, 0.1, 0.5, 1.0])),
    arrays(np.float64, (2, 3, 4), elements=st.floats(0, 1, width=16)),
)
def test_rank_correlation_is_spearmans(first: NDArray[np.float64], second: NDArray[np.float64]) -> None:
    found = rank_correlation(first, second)
    for rho, a, b in zip(found, first, second, strict=True):
        if len(np.unique(a)) == 1 or len(np.unique(b)) == 1:
            assert math.isnan(rho)
        else:
            assert rho == pytest.approx(stats.spearmanr(a.ravel(), b.ravel()).statistic, abs=1e-9)


# --- gibberish


def zero_shot(encoder: PlainEncoder, names: tuple[str, ...]) -> Fitted:
    return ZeroShotClassifier(names, name_embeddings(encoder, names), 20.0, [], encoder)


def test_a_gibberish_name_takes_the_place_of_the_class_and_of_no_other() -> None:
    encoder = PlainEncoder()
    fitted = zero_shot(encoder, ("cat", "dog", "emu"))
    features = normalize(torch.randn(5, encoder.dim, generator=torch.Generator().manual_seed(1)), dim=1)
    gibberish = stand_ins(fitted, features, seed=4)
    assert gibberish.kind == NAMES and len(set(gibberish.shown)) == 2
    wanted = 20.0 * features @ name_embeddings(encoder, gibberish.shown).T
    logits = fitted.logits(features)
    for i in range(2):
        rest = torch.log(logits[:, 0].exp() + logits[:, 2].exp())
        for contrast, other in (("rest", rest), ("none", torch.zeros(5)), ("emu", logits[:, 2])):
            score = gibberish.target(i, fitted, 1, contrast).score(features)
            torch.testing.assert_close(score, wanted[:, i] - other, atol=1e-4, rtol=1e-4)
    assert stand_ins(fitted, features, seed=5).shown != gibberish.shown


def test_without_new_names_random_directions_are_as_long_as_the_weights() -> None:
    embeddings = torch.diag(torch.tensor([1.0, 3.0, 5.0]))
    fitted = EmbeddingClassifier(("a", "b", "c"), embeddings, 2.0)
    features = normalize(torch.randn(4, 3, generator=torch.Generator().manual_seed(0)), dim=1)
    found = stand_ins(fitted, features, seed=0)
    assert (found.kind, found.shown) == (DIRECTIONS, ())
    for logit in found.logits:
        direction = logit(torch.eye(3))  # the score is linear: its weights are its values on the axes
        assert float(direction.norm()) == pytest.approx(2.0 * 3.0)
        torch.testing.assert_close(logit(features), features @ direction)


# --- deletion and insertion


def brightness(pixels: Tensor) -> NDArray[np.float64]:
    """A probability that is no linear function of pixels."""
    weights = torch.linspace(0.2, 3, pixels[0].numel()).reshape(pixels.shape[1:])
    found: NDArray[np.float64] = torch.sigmoid((weights * pixels).mean(dim=(1, 2, 3)) - 1).double().numpy()
    return found


def test_curves_are_what_a_loop_over_steps_and_pixels_gives() -> None:
    draw = torch.Generator().manual_seed(2)
    pixels, saliency = torch.rand(3, 7, 9, generator=draw), torch.rand(7, 9, generator=draw).numpy()
    found = curves(brightness, pixels, ranks(saliency, seed=0))
    falling = sorted((-saliency[y, x], y, x) for y in range(7) for x in range(9))
    soft = blurred(pixels)
    deletion, insertion = [], []
    for step in range(STEPS + 1):
        less, more = pixels.clone(), soft.clone()
        for _, y, x in falling[: round(step * 63 / STEPS)]:
            less[:, y, x] = pixels.mean(dim=(1, 2))
            more[:, y, x] = pixels[:, y, x]
        deletion.append(float(brightness(less[None])[0]))
        insertion.append(float(brightness(more[None])[0]))
    np.testing.assert_allclose(found.deletion, deletion, rtol=1e-5)
    np.testing.assert_allclose(found.insertion, insertion, rtol=1e-5)
    shares = np.linspace(0, 1, STEPS + 1)
    np.testing.assert_allclose(found.areas, (auc(shares, deletion), auc(shares, insertion)), rtol=1e-5)


def test_curves_do_not_depend_on_how_pixels_are_normalised() -> None:
    pixels, places = torch.rand(3, 8, 8), ranks(np.random.default_rng(0).random((8, 8)), 0)
    mean, std = torch.tensor([0.4, 0.5, 0.6])[:, None, None], torch.tensor([0.2, 0.3, 0.1])[:, None, None]
    plain = curves(brightness, pixels, places)
    scaled = curves(lambda x: brightness(x * std + mean), (pixels - mean) / std, places)
    np.testing.assert_allclose(plain.deletion, scaled.deletion, rtol=1e-4)
    np.testing.assert_allclose(plain.insertion, scaled.insertion, rtol=1e-4)


def test_the_blur_is_a_gaussian_as_scipy_computes_it() -> None:
    pixels = torch.rand(3, 64, 48)
    wanted = [ndimage.gaussian_filter(c, 64 / 32, mode="mirror", radius=6) for c in pixels.double().numpy()]
    np.testing.assert_allclose(blurred(pixels).numpy(), wanted, atol=1e-5)
    assert blurred(torch.rand(3, 2, 200)).shape == (3, 2, 200)  # narrower than the kernel


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (4, 5), elements=st.sampled_from([0.0, 0.3, 1.0])), st.integers(0, 5))
def test_ranks_are_an_order_that_the_map_agrees_with(saliency: NDArray[np.float64], seed: int) -> None:
    places = ranks(saliency, seed)
    assert sorted(places.ravel()) == list(range(20))
    in_order = saliency.ravel()[np.argsort(places.ravel())]
    assert (np.diff(in_order) <= 0).all()
    assert (places == ranks(saliency, seed)).all()


def test_ties_are_broken_by_chance_and_not_by_place() -> None:
    mean = np.mean([ranks(np.zeros((6, 6)), seed) for seed in range(400)], axis=0)
    # Every pixel's mean place is 17.5, with a standard error of sqrt((36^2 - 1) / 12 / 400) = 0.52.
    assert np.abs(mean - 17.5).max() < 4 * 0.52


# --- means and intervals


def test_the_interval_is_scipys_bootstrap() -> None:
    values = np.random.default_rng(0).gamma(2, size=40)
    found = estimate(values)
    oracle = stats.bootstrap((values,), np.mean, n_resamples=20_000, method="percentile", random_state=1)
    assert found.mean == pytest.approx(values.mean())
    width = oracle.confidence_interval.high - oracle.confidence_interval.low
    assert found.low == pytest.approx(oracle.confidence_interval.low, abs=0.05 * width)
    assert found.high == pytest.approx(oracle.confidence_interval.high, abs=0.05 * width)


def test_images_of_one_patient_are_one_witness() -> None:
    draw = np.random.default_rng(0)
    patients = np.repeat(np.arange(20), 8)
    values = draw.normal(size=20)[patients]
    names = np.array([f"patient {number:02d}" for number in patients])
    alone, grouped = estimate(values), estimate(values, names)
    by_patient = estimate(values[::8])
    assert alone.mean == grouped.mean == pytest.approx(by_patient.mean)
    assert (grouped.low, grouped.high) == pytest.approx((by_patient.low, by_patient.high))
    assert grouped.high - grouped.low > 2 * (alone.high - alone.low)  # sqrt(8) in expectation


def test_what_is_undefined_is_left_out_and_counted() -> None:
    values = [1.0, math.nan, 3.0, math.nan, 5.0]
    found = estimate(values, np.array(["a", "b", "b", "c", "c"]))
    assert (found.mean, found.images, found.undefined) == (3.0, 3, 2)
    assert estimate([math.nan] * 2) == Estimate(None, None, None, 0, 2)
    assert estimate([1.0, 2.0], np.array(["a", "a"])).low is None


# --- the verdict


def good_numbers() -> dict[str, Estimate]:
    middle = {"empty": 0.0, "deletion_gain": -0.2, "insertion_gain": 0.2, "energy_gain": 0.2}
    return {
        criterion.number: Estimate(m, m - 0.05, m + 0.05, 32, 0)
        for criterion in CRITERIA
        for m in [middle.get(criterion.number, 0.1)]
    }


@pytest.mark.parametrize(
    ("name", "interval"),
    [
        ("empty", (0.0, 0.11)),
        ("gibberish", (0.3, 0.51)),
        ("wrong-class", (0.3, 0.51)),
        ("weights", (0.1, 0.31)),
        ("weights", (-0.31, 0.1)),
        ("deletion", (-0.2, 0.0)),
        ("insertion", (0.0, 0.2)),
        ("energy", (-0.01, 0.3)),
    ],
)
def test_each_criterion_fails_alone_when_its_interval_reaches_the_bound(
    name: str, interval: tuple[float, float]
) -> None:
    numbers = good_numbers()
    assert judge(numbers).passes
    [criterion] = [criterion for criterion in CRITERIA if criterion.name == name]
    low, high = interval
    numbers[criterion.number] = Estimate((low + high) / 2, low, high, 32, 0)
    assert [fault.name for fault in judge(numbers).failed] == [name]


def test_a_negative_correlation_with_another_class_is_no_fault() -> None:
    opposite = Estimate(-1.0, -1.0, -1.0, 32, 0)
    assert judge({**good_numbers(), "rank_wrong_class": opposite}).passes


def test_what_has_no_interval_is_not_shown() -> None:
    verdict = judge({**good_numbers(), "rank_gibberish": Estimate(0.0, None, None, 2, 0)})
    assert [criterion.name for criterion in verdict.failed] == ["gibberish"]


# --- the remembering encoder


def test_equal_pixels_are_encoded_once_and_features_stay_the_same() -> None:
    plain, counted = PlainEncoder(), PlainEncoder()
    remembering = RememberingEncoder(counted)
    pixels = torch.rand(6, 3, 8, 8)
    mixed = pixels[[3, 0, 3, 5]]
    torch.testing.assert_close(remembering.encode_images(pixels[:4]), plain.encode_images(pixels[:4]))
    torch.testing.assert_close(remembering.encode_images(mixed), plain.encode_images(mixed))
    assert counted.image_calls == 5
    target = class_target(EmbeddingClassifier(("a", "b"), torch.eye(2, 16), 5.0), "a")
    for method in ("occlusion", "rise"):
        maps = saliency_maps(remembering, pixels, target, method)
        calls = counted.image_calls
        torch.testing.assert_close(maps, saliency_maps(plain, pixels, target, method))
        torch.testing.assert_close(maps, saliency_maps(remembering, pixels, target, method))
        assert counted.image_calls == calls


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vmfcoop.explain.remembering.MOST_BYTES", 4 * 16 * 3)
    counted = PlainEncoder()
    remembering = RememberingEncoder(counted)
    pixels = torch.rand(5, 3, 8, 8)
    for _ in range(2):
        remembering.encode_images(pixels)  # more at once than are kept
    assert counted.image_calls == 5 + 2


def test_shuffled_towers_are_remembered_apart() -> None:
    remembering = RememberingEncoder(QuadrantEncoder())
    pixels = quadrant_sample(2).pixels
    calls = []
    for seed in (0, 1, 0):
        shuffled = remembering.randomised(1.0, seed)
        before = QuadrantEncoder().randomised(1.0, seed).encode_images(pixels)
        torch.testing.assert_close(shuffled.encode_images(pixels), before)
        calls.append(shuffled._encoder.image_calls)
    assert calls == [2, 2, 0]


# --- images and masks


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = materialise("phantom-histology", tmp_path_factory.mktemp("phantoms"), per_class=10)
    return load_dataset(folder)


def test_images_with_findings_are_drawn_in_turn(phantoms: Dataset) -> None:
    encoder = PlainEncoder()
    sample = draw_sample(encoder, phantoms, 4, seed=1)
    assert sample.masks is not None and sample.masks.any(axis=(1, 2)).all()
    names = [phantoms.class_names[label] for label in sample.labels]
    assert names == ["lymphocytes", "tumor glands"] * 2
    assert sample.files == draw_sample(encoder, phantoms, 4, seed=1).files
    assert sample.files != draw_sample(encoder, phantoms, 4, seed=2).files
    test = {phantoms.file(row) for row in phantoms.indices("test")}
    assert set(sample.files) <= test
    alone = draw_sample(encoder, phantoms, 99, without=phantoms.class_names.index("lymphocytes"))
    assert {phantoms.class_names[label] for label in alone.labels} == {"tumor glands"}


def test_masks_beside_the_images_are_those_of_the_files(phantoms: Dataset) -> None:
    class Whole(PlainEncoder):
        def __init__(self) -> None:
            super().__init__()
            self.image_size = (160, 160)

        def preprocess(self, image: Image.Image) -> Tensor:
            return torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255

    sample = draw_sample(Whole(), phantoms, 2)
    assert sample.masks is not None
    for file, mask in zip(sample.files, sample.masks, strict=True):
        stored = np.asarray(Image.open(phantoms.root.parent / "masks" / file)) > 0
        assert (mask == stored).all()


def test_without_masks_every_class_is_drawn(image_folder: Path) -> None:
    table = load_dataset(image_folder)
    sample = draw_sample(PlainEncoder(), table, 5)
    assert sample.masks is None
    assert sample.labels.tolist() == [0, 1, 2, 0, 1]
    with pytest.raises(UserError, match="No test image"):
        draw_sample(PlainEncoder(), table, 0)


def test_a_folder_of_masks_is_taken_and_a_wrong_one_named(image_folder: Path, tmp_path: Path) -> None:
    table = load_dataset(image_folder)
    rows = table.indices("test")
    with pytest.raises(UserError, match=r"holds no mask of the \d+ images, such as"):
        mask_files(table, rows, tmp_path)
    file = tmp_path / table.file(int(rows[1]))
    file.parent.mkdir()
    drawn = np.zeros((40, 40), np.uint8)
    drawn[10:20, 30:] = 1  # labels from 1 on, as annotation tools write them
    Image.fromarray(drawn).save(file)
    assert mask_files(table, rows, tmp_path) == {int(rows[1]): file}
    sample = draw_sample(PlainEncoder(), table, 9, tmp_path)
    assert sample.files == (table.file(int(rows[1])),)
    assert sample.masks is not None and sample.masks[0].sum() == 2 * 2


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("a/scan.jpg", "a/scan.png"),
        ("a/scan.1.dcm#window=lung", "a/scan.1.png"),
        ("a/scan.nii.gz", "a/scan.png"),
        ("a/scan.nii.gz#axis=2&slice=4&window=lung", "a/scan.nii.gz#axis=2&slice=4.png"),
        ("a/cine.dcm#frame=3", "a/cine.dcm#frame=3.png"),
    ],
)
def test_a_mask_is_found_under_the_name_of_its_image(tmp_path: Path, image: str, mask: str) -> None:
    root, masks = tmp_path / "images", tmp_path / "masks"
    for file in (root / image.partition("#")[0], masks / mask):
        file.parent.mkdir(parents=True)
        file.touch()
    table = Dataset("one", ("a",), (root / image,), np.array([0]), np.array(["test"]), root=root)
    assert mask_files(table, np.array([0])) == {0: masks / mask}


@pytest.mark.parametrize("mode", ["1", "L", "P", "I;16", "RGB", "RGBA"])
def test_masks_of_any_depth_are_read(tmp_path: Path, mode: str) -> None:
    inside = np.zeros((4, 6), bool)
    inside[1:3, 2:] = True
    values: NDArray[Any] = {"I;16": inside * np.uint16(700), "1": inside}.get(mode, inside * np.uint8(3))
    image = Image.fromarray(values)
    if mode == "P":
        image.putpalette([0, 0, 0, 9, 9, 9, 80, 0, 0, 0, 0, 0])  # colour 3 is black, and yet inside
    elif mode in ("RGB", "RGBA"):
        image = Image.merge("RGB", [image, Image.new("L", image.size), Image.new("L", image.size)]).convert(
            mode
        )
    image.save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as stored:
        assert stored.mode == mode
    assert (read_mask(tmp_path / "mask.png", (6, 4)) == inside).all()


def test_masks_that_are_no_use_are_named(tmp_path: Path) -> None:
    Image.new("L", (6, 4)).save(tmp_path / "small.png")
    with pytest.raises(UserError, match=r"small.png' has 6 x 4 pixels, its image 8 x 4"):
        read_mask(tmp_path / "small.png", (8, 4))
    (tmp_path / "broken.png").write_bytes(b"\x89PNG")
    with pytest.raises(UserError, match=r"broken.png' cannot be read"):
        read_mask(tmp_path / "broken.png", (8, 4))


@settings(max_examples=40, deadline=None)
@given(arrays(np.bool_, (6, 9)), st.floats(-0.01, 0.01))
def test_a_mask_that_is_seen_whole_stays_as_it_is(mask: NDArray[np.bool_], shift: float) -> None:
    assert (seen_mask(mask, (shift, shift, 9 + shift, 6 + shift), (6, 9)) == mask).all()
    assert (seen_mask(mask, (2, 1, 8, 5), (4, 6)) == mask[1:5, 2:8]).all()
    assert (seen_mask(mask, (-3, -2, 12, 8), (10, 15)) == np.pad(mask, ((2, 2), (3, 3)))).all()
    assert (seen_mask(mask, (0, 0, 9, 6), (12, 18)) == mask.repeat(2, 0).repeat(2, 1)).all()


def test_a_mask_goes_where_the_encoder_sees_its_image(tiny_clip: DualEncoder) -> None:
    wide = Image.new("RGB", (96, 48))
    wide.paste((255, 255, 255), (36, 12, 60, 36))
    mask = np.asarray(wide.convert("L")) > 0
    seen = seen_mask(mask, seen_box(tiny_clip, wide.size), tiny_clip.image_size)
    pixels = tiny_clip.preprocess(wide).mean(dim=0).numpy()
    bright = pixels > (pixels.min() + pixels.max()) / 2
    assert (seen != bright).sum() <= 4  # of 1024: interpolation rounds the corners
    assert seen.any()
