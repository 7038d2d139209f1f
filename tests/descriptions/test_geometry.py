"""The geometry of a bank against numpy and, on the ordinary sphere, against closed forms."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.plain_encoder import PlainEncoder
from vmfcoop.backbones import DualEncoder, load_backbone
from vmfcoop.descriptions import load_descriptions
from vmfcoop.descriptions.compare import compare_geometry, compare_texts
from vmfcoop.descriptions.geometry import (
    BankGeometry,
    angle,
    as_dict,
    backbone_findings,
    bank_geometry,
    density_outliers,
    held_out_log_densities,
    truncated_texts,
)
from vmfcoop.errors import UserError
from vmfcoop.features import CachedEncoder

Rows = np.ndarray


class Points(PlainEncoder):
    """A text tower that reads its unit vector from a table."""

    def __init__(self, table: dict[str, Rows], vocabulary: Rows) -> None:
        super().__init__(dim=vocabulary.shape[1])
        self.table, self.entries = table, vocabulary

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor(np.stack([self.table[text] for text in texts]), dtype=torch.float32)

    def encode_vocabulary(self, sample: int | None = None) -> Tensor:
        rows = self.entries if sample is None else self.entries[:sample]
        return torch.tensor(rows, dtype=torch.float32)


def unit(rows: Rows) -> Rows:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def cloud(mean: Sequence[float], spread: float, n: int, seed: int) -> Rows:
    draw = np.random.default_rng(seed)
    return unit(np.asarray(mean, float) + spread * draw.normal(size=(n, len(mean))))


def banked(clouds: dict[str, Rows], vocabulary: Rows) -> tuple[dict[str, list[str]], Points]:
    """A bank of made-up sentences and the encoder that places them."""
    texts = {name: [f"{name} {i}" for i in range(len(rows))] for name, rows in clouds.items()}
    table = {text: row for name, rows in clouds.items() for text, row in zip(texts[name], rows, strict=True)}
    return texts, Points(table, vocabulary)


CLOUDS = {
    "north": cloud([0, 0, 1], 0.3, 40, 1),
    "east": cloud([1, 0, 0.2], 0.4, 30, 2),
    "north-east": cloud([0.7, 0, 1], 0.3, 25, 3),
}
VOCABULARY = cloud([0.2, 1, 0.3], 0.8, 200, 4)


@pytest.fixture(scope="module")
def sphere() -> tuple[dict[str, list[str]], BankGeometry]:
    texts, encoder = banked(CLOUDS, VOCABULARY)
    return texts, bank_geometry(texts, encoder)


def float32(rows: Rows) -> Rows:
    return unit(rows.astype(np.float32).astype(np.float64))


def kappa_3(resultant: float) -> float:
    """The root of A_3(kappa) = coth(kappa) - 1 / kappa = R, by bisection."""
    low, high = 1e-9, 1e6
    for _ in range(200):
        middle = math.sqrt(low * high)
        if 1 / math.tanh(middle) - 1 / middle < resultant:
            low = middle
        else:
            high = middle
    return low


def test_laws_on_the_ordinary_sphere(sphere: tuple[dict[str, list[str]], BankGeometry]) -> None:
    _, geometry = sphere
    for entry, mean_direction in zip(geometry.classes, geometry.mean_directions, strict=True):
        rows = float32(CLOUDS[entry.name])
        mean = rows.mean(axis=0)
        R, n = np.linalg.norm(mean), len(rows)
        assert entry.count == n
        assert entry.resultant_length == pytest.approx(R, abs=1e-12)
        np.testing.assert_allclose(mean_direction.numpy(), mean / R, atol=1e-12)
        assert entry.concentration == pytest.approx(kappa_3(R), rel=1e-9)
        debiased = math.sqrt((n * R**2 - 1) / (n - 1))
        assert entry.concentration_debiased == pytest.approx(kappa_3(debiased), rel=1e-9)


def test_anchors(sphere: tuple[dict[str, list[str]], BankGeometry]) -> None:
    _, geometry = sphere
    field = float32(VOCABULARY).mean(axis=0)
    R = np.linalg.norm(field)
    assert geometry.vocabulary_concentration == pytest.approx(kappa_3(R), rel=1e-9)
    assert geometry.vocabulary_resultant_length == pytest.approx(R, abs=1e-12)
    for i, entry in enumerate(geometry.classes):
        mean = float32(CLOUDS[entry.name]).mean(axis=0)
        total = kappa_3(R) * field / R + kappa_3(np.linalg.norm(mean)) * mean / np.linalg.norm(mean)
        anchor = unit(total)
        np.testing.assert_allclose(geometry.anchors[i].numpy(), anchor, atol=1e-9)
        degrees = math.degrees(math.acos(np.clip(anchor @ unit(mean), -1, 1)))
        assert entry.anchor_shift == pytest.approx(degrees, abs=1e-6)
    np.testing.assert_allclose(
        geometry.anchor_cosines.numpy(), geometry.anchors.numpy() @ geometry.anchors.numpy().T
    )
    np.testing.assert_allclose(np.diag(geometry.mean_cosines.numpy()), 1)


def test_densities_on_the_ordinary_sphere(sphere: tuple[dict[str, list[str]], BankGeometry]) -> None:
    """log p(x) = log(kappa / (4 pi sinh kappa)) + kappa cos, each law fitted to the other rows."""
    _, geometry = sphere
    for entry in geometry.classes:
        rows = float32(CLOUDS[entry.name])
        expected = []
        for i, row in enumerate(rows):
            mean = np.delete(rows, i, axis=0).mean(axis=0)
            kappa = kappa_3(np.linalg.norm(mean))
            expected.append(math.log(kappa / (4 * math.pi * math.sinh(kappa))) + kappa * (unit(mean) @ row))
        np.testing.assert_allclose(entry.log_densities, expected, rtol=1e-8, atol=1e-8)
        cosines = rows @ unit(rows.mean(axis=0))
        assert (entry.most_typical, entry.least_typical) == (cosines.argmax(), cosines.argmin())


def test_strays_and_accuracies(sphere: tuple[dict[str, list[str]], BankGeometry]) -> None:
    _, geometry = sphere
    names = list(CLOUDS)
    means = {name: unit(float32(rows).mean(axis=0)) for name, rows in CLOUDS.items()}
    right = np.ones((3, 3))
    for i, name in enumerate(names):
        rows, strays, wins = float32(CLOUDS[name]), {}, np.zeros(3)
        for k, row in enumerate(rows):
            own = unit(np.delete(rows, k, axis=0).mean(axis=0)) @ row
            cosines = np.array([means[other] @ row if other != name else own for other in names])
            wins += own >= cosines
            if cosines.max() > own:
                strays[k] = names[int(cosines.argmax())]
        assert geometry.classes[i].strays == strays
        assert geometry.classes[i].own_accuracy == pytest.approx(1 - len(strays) / len(rows))
        right[i] = wins / len(rows)
    assert any(entry.strays for entry in geometry.classes)
    np.testing.assert_allclose(geometry.pair_accuracy.numpy(), (right + right.T) / 2)
    assert geometry.accuracy == pytest.approx(np.mean([c.own_accuracy for c in geometry.classes]))


def test_leaving_out_matters() -> None:
    """Two sentences on either side of their mean: each is nearest to it only because it is part of it."""
    clouds = {
        "a": unit(np.array([[1, 0.6, 0], [1, -0.6, 0.0]])),
        "b": unit(np.array([[1, 0.5, 0.3], [1, -0.5, 0.3]])),
    }
    texts, encoder = banked(clouds, VOCABULARY)
    geometry = bank_geometry(texts, encoder)
    assert geometry.accuracy == 0.0
    assert all(entry.log_densities == () and entry.outliers == () for entry in geometry.classes)


def test_outliers() -> None:
    rows = cloud([0, 0, 0, 1], 0.15, 30, 5)
    rows[7] = unit(np.array([1.0, 0.2, 0.0, 0.1]))
    texts, encoder = banked({"a": rows, "b": cloud([1, 0, 0, 0], 0.15, 30, 6)}, cloud([0, 1, 0, 0], 1, 50, 7))
    geometry = bank_geometry(texts, encoder)
    assert geometry.classes[0].outliers == (7,) and geometry.classes[0].least_typical == 7
    assert geometry.classes[0].strays == {7: "b"}
    found = {(f.kind, f.class_name, f.position, f.is_fault) for f in backbone_findings(geometry, texts)}
    assert {("outlier", "a", 8, False), ("stray", "a", 8, False)} <= found


def test_threshold_of_outliers() -> None:
    values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    median, mad = 4.0, 2.0
    edge = median - 3.5 * mad / 0.6745
    assert density_outliers([*values[1:], edge - 5]) == (6,)
    assert density_outliers([2.0, 3.0, 4.0, 5.0, 6.0, 4.0, edge]) == (6,)
    assert density_outliers([*values, 100.0]) == ()
    assert density_outliers([1.0, 1.0, 1.0, 1.0, -9.0]) == ()
    assert density_outliers([1.0, 2.0, 3.0, -99.0]) == ()


def test_others_that_are_all_equal() -> None:
    rows = torch.tensor([[1.0, 0.0, 0.0]] * 4 + [[0.0, 1.0, 0.0]], dtype=torch.float64)
    densities = held_out_log_densities(rows)
    assert bool(torch.isfinite(densities).all()) and int(densities.argmin()) == 4


def test_angle_of_near_directions() -> None:
    one = torch.tensor([1.0, 0.0], dtype=torch.float64)
    other = torch.tensor([math.cos(1e-10), math.sin(1e-10)], dtype=torch.float64)
    assert angle(one, other) == pytest.approx(math.degrees(1e-10), rel=1e-6)
    assert angle(one, -one) == pytest.approx(180)


def test_sentences_that_a_backbone_cannot_tell_apart() -> None:
    same = np.tile([[0.0, 0.0, 1.0]], (3, 1))
    texts, encoder = banked({"a": same, "b": CLOUDS["east"]}, VOCABULARY)
    with pytest.raises(UserError, match="sentences of 'a' .*equal"):
        bank_geometry(texts, encoder)


def test_advice_follows_the_figures() -> None:
    apart = {"a": cloud([0, 0, 1], 0.1, 20, 1), "b": cloud([1, 0, 0], 0.1, 20, 2)}
    texts, encoder = banked(apart, VOCABULARY)
    advice = bank_geometry(texts, encoder).advice()
    assert "tell the classes apart well: 100%" in advice and "guessing: 50%" in advice
    assert "Hardly" not in advice and "texts alone" in advice
    mixed = {"a": cloud([0, 0, 1], 0.5, 40, 1), "b": cloud([0, 0.05, 1], 0.5, 40, 2), "c": apart["b"]}
    texts, encoder = banked(mixed, VOCABULARY)
    geometry = bank_geometry(texts, encoder)
    assert geometry.close_pairs() == [(0, 1)]
    assert "Hardly told apart by text are 'a' and 'b'" in geometry.advice()
    texts, encoder = banked({"a": apart["a"]}, VOCABULARY)
    alone = bank_geometry(texts, encoder)
    assert "nothing to tell apart" in alone.advice()


@pytest.fixture(scope="module")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> DualEncoder:
    return CachedEncoder(load_backbone("phantom"), tmp_path_factory.mktemp("cache"))


def test_packaged_bank_on_the_embedded_backbone(phantom: DualEncoder) -> None:
    bank = load_descriptions("phantom-dermatoscopy").descriptions
    geometry = bank_geometry(bank, phantom)
    names = list(bank)
    rows = {n: float32(phantom.encode_texts(list(bank[n])).numpy()) for n in names}
    means = np.stack([unit(rows[n].mean(axis=0)) for n in names])
    np.testing.assert_allclose(geometry.mean_cosines.numpy(), means @ means.T, atol=1e-6)
    for i, (name, entry) in enumerate(zip(names, geometry.classes, strict=True)):
        R, d = np.linalg.norm(rows[name].mean(axis=0)), phantom.dim
        assert entry.resultant_length == pytest.approx(R, abs=1e-6)
        # Banerjee's closed form lies within a few percent of the exact root at this width.
        assert entry.concentration == pytest.approx(R * (d - R**2) / (1 - R**2), rel=0.05)
        assert entry.concentration_debiased < entry.concentration
        own = np.stack([unit(np.delete(rows[name], k, 0).mean(0)) for k in range(50)])
        cosines = rows[name] @ means.T
        cosines[:, i] = (own * rows[name]).sum(axis=1)
        assert entry.own_accuracy == pytest.approx((cosines.argmax(axis=1) == i).mean())
        assert entry.truncated == ()
    assert geometry.accuracy > 0.9 and "apart well" in geometry.advice()
    facts = json.loads(json.dumps(as_dict(geometry, bank)))
    assert facts["classes"][0]["most_typical"]["text"] in bank[names[0]]


@pytest.mark.parametrize("backbone", ["tiny_bert", "tiny_clip"])
def test_truncated_sentences(backbone: str, request: pytest.FixtureRequest) -> None:
    encoder: DualEncoder = request.getfixturevalue(backbone)
    length = encoder.context_length

    def tokens(text: str) -> int:
        return int(encoder.tokenize([text]).lengths[0])

    word = "a"
    per_word = tokens("a a a") - tokens("a a")
    marks = tokens("a") - per_word
    fits = (length - marks) // per_word
    texts = [" ".join([word] * count) for count in (1, 2, fits - 1, fits, fits + 1, 3 * fits)]
    assert truncated_texts(texts, encoder) == (4, 5)


def test_truncation_is_a_fault(tiny_clip: DualEncoder) -> None:
    texts = {"a": ["a " * 60 + "b", "a b c", "c d"], "b": ["x y", "y z z"]}
    geometry = bank_geometry(texts, tiny_clip, vocabulary_sample=64)
    assert geometry.classes[0].truncated == (0,)
    found = [f for f in backbone_findings(geometry, texts) if f.is_fault]
    assert [(f.kind, f.class_name, f.position) for f in found] == [("truncated", "a", 1)]
    assert "32 tokens" in found[0].detail


def test_compare_texts() -> None:
    a = {"Kidney Cyst": ("A round cyst.", "Dark fluid."), "stone": ("Bright.", "Dense.")}
    b = {"kidney_cyst": ("a ROUND cyst", "Thin wall."), "tumor": ("Ragged.", "Solid.")}
    cyst, stone, tumor = compare_texts(a, b)
    assert (cyst.name, cyst.counts) == ("Kidney Cyst", (2, 2))
    assert (cyst.kept, cyst.added, cyst.removed) == (("A round cyst.",), ("Thin wall.",), ("Dark fluid.",))
    assert stone.counts == (2, 0) and stone.removed == a["stone"] and stone.added == ()
    assert tumor.counts == (0, 2) and tumor.added == b["tumor"]


def test_compare_geometry() -> None:
    near = {
        name: cloud(mean, 0.6, 60, i)
        for i, (name, mean) in enumerate({"a": [0, 0, 1], "b": [0, 0.3, 1]}.items())
    }
    far = {"a 2": near["a"], "b": cloud([1, 0, 0], 0.1, 60, 9)}
    texts_a, one = banked(near, VOCABULARY)
    texts_b, other = banked(far, VOCABULARY)
    b = {"a": texts_b["a 2"], "b": [f"far {i}" for i in range(60)]}
    table = other.table | one.table | dict(zip(b["b"], far["b"], strict=True))
    encoder = Points(table, VOCABULARY)
    found = compare_geometry(texts_a, b, encoder)
    same, moved = found.classes
    assert same.cosine == pytest.approx(1) and same.anchor_shift == pytest.approx(0, abs=1e-6)
    means = [unit(float32(rows).mean(axis=0)) for rows in (near["b"], far["b"])]
    assert moved.cosine == pytest.approx(means[0] @ means[1])
    assert moved.concentrations[1] > moved.concentrations[0]
    one_anchor, other_anchor = found.a.anchors[1].numpy(), found.b.anchors[1].numpy()
    assert moved.anchor_shift == pytest.approx(math.degrees(math.acos(one_anchor @ other_anchor)), abs=1e-6)
    assert found.verdict().startswith("B tells the classes apart better")
    assert compare_geometry(b, texts_a, encoder).verdict().startswith("A tells")
    assert "about equally" in compare_geometry(texts_a, texts_a, encoder).verdict()
    with pytest.raises(UserError, match="share no class"):
        compare_geometry(texts_a, {"z": texts_a["a"]}, encoder)
    assert "fewer than two" in compare_geometry(texts_a, {"a": texts_a["a"]}, encoder).verdict()


def test_small_differences_are_left_to_chance() -> None:
    means = {"a": [0, 0, 1], "b": [0, 0.3, 1]}
    banks, table = [], {}
    for bank in (0, 1):
        clouds = {name: cloud(mean, 0.5, 40, 10 * bank + i) for i, (name, mean) in enumerate(means.items())}
        banks.append({name: [f"{bank} {name} {i}" for i in range(40)] for name in means})
        for name, rows in clouds.items():
            table |= dict(zip(banks[-1][name], rows, strict=True))
    found = compare_geometry(*banks, Points(table, VOCABULARY))
    one, other = found.a.accuracy, found.b.accuracy
    error = math.sqrt(one * (1 - one) / 80 + other * (1 - other) / 80)
    assert 0 < abs(one - other) < 1.5 * error
    assert "about equally" in found.verdict()


def test_real_file_round_trip(tmp_path: Path, phantom: DualEncoder) -> None:
    path = tmp_path / "bank.txt"
    path.write_text(
        "# melanoma\n- A dark mole.\n- An uneven border.\n\n# nevus\n1. An even mole.\n2. A round mole.\n"
    )
    geometry = bank_geometry(load_descriptions(path).descriptions, phantom)
    assert [entry.count for entry in geometry.classes] == [2, 2]
