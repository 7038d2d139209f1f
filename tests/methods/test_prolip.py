"""ProLIP against its equations written out: the map, the penalty, steps of Adam, the paper's projection."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.methods import Support
from vmfcoop.methods.prolip import ProLIP, ProLIPClassifier, ProLIPConfig

NAMES = ("nevus", "melanoma", "keratosis")


def support(encoder, shots=4, views=1):
    features, labels = clusters(encoder, 3, shots, views)
    nothing = torch.empty(0, encoder.dim), torch.empty(0, dtype=torch.long)
    return Support(features, labels, NAMES, ((),) * 3, *nothing)


def class_embeddings(encoder, names=NAMES):
    return encoder.encode_texts([f"a photo of a {name}." for name in names])


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_logits():
    draw = np.random.default_rng(0)
    f, t = unit(draw.normal(size=(5, 16))), unit(draw.normal(size=(3, 16)))
    matrix = np.eye(16) + 0.2 * draw.normal(size=(16, 16))
    expected = np.zeros((5, 3))
    for i, k in np.ndindex(5, 3):
        mapped = sum(f[i, a] * matrix[a] for a in range(16))
        expected[i, k] = 20.0 * mapped @ t[k] / np.sqrt(mapped @ mapped)
    f, t, matrix = (torch.tensor(x, dtype=torch.float32) for x in (f, t, matrix))
    fitted = ProLIPClassifier(NAMES, t, 20.0, PlainEncoder(), matrix)
    assert np.allclose(fitted.logits(f).numpy(), expected, atol=1e-5)


@given(seed=st.integers(0, 1000), length=st.floats(0.1, 100))
@settings(max_examples=30, deadline=None)
def test_it_is_the_paper_s_projection_within_the_range_of_the_pretrained_one(seed, length):
    """``normalize(h W)`` for ``W = W0 A`` and any length of h; the same penalty for orthonormal W0."""
    draw = np.random.default_rng(seed)
    pretrained = np.linalg.qr(draw.normal(size=(24, 16)))[0]
    matrix = np.eye(16) + 0.2 * draw.normal(size=(16, 16))
    before = length * draw.normal(size=(5, 24))
    tuned = pretrained @ matrix

    fitted = ProLIPClassifier(NAMES, torch.empty(3, 16), 20.0, PlainEncoder(), torch.tensor(matrix))
    adapted = fitted.adapted(torch.tensor(unit(before @ pretrained)))
    assert np.allclose(adapted.numpy(), unit(before @ tuned), atol=1e-9)
    assert np.linalg.norm(tuned - pretrained) == pytest.approx(np.linalg.norm(matrix - np.eye(16)), rel=1e-9)


@pytest.mark.parametrize("penalty", [None, 0.0, 2.0])
def test_two_steps_are_adam_on_the_penalised_cross_entropy(penalty):
    encoder = PlainEncoder()
    data = support(encoder, shots=4)
    config = ProLIPConfig(iterations=2, learning_rate=0.02, penalty=penalty)
    fitted = ProLIP(config).fit(data, encoder)

    weight = 1 / 4 if penalty is None else penalty
    f, t = data.image_features[:, 0].double(), class_embeddings(encoder).double()
    matrix = torch.eye(16, dtype=torch.float64)
    first, second = torch.zeros_like(matrix), torch.zeros_like(matrix)
    for step, rate in ((1, 0.02), (2, 0.01)):  # cosine: (1 + cos(pi / 2)) / 2 is one half
        leaf = matrix.clone().requires_grad_()
        mapped = f @ leaf
        logits = 20.0 * (mapped / mapped.norm(dim=1, keepdim=True)) @ t.T
        ce = -logits.log_softmax(dim=1)[torch.arange(12), data.labels].mean()
        deviation = ((leaf - torch.eye(16)) ** 2).sum()
        loss = ce + weight * deviation
        loss.backward()
        row = fitted.history[step - 1]
        found = [row["learning_rate"], row["loss"], row["ce"], row["deviation"]]
        assert found == pytest.approx([rate, loss.item(), ce.item(), deviation.item()], rel=1e-5, abs=1e-6)
        first = 0.9 * first + 0.1 * leaf.grad
        second = 0.999 * second + 0.001 * leaf.grad**2
        moments = first / (1 - 0.9**step), second / (1 - 0.999**step)
        matrix = matrix - rate * moments[0] / (moments[1].sqrt() + 1e-8)
    assert torch.allclose(fitted.matrix.double(), matrix, atol=1e-5)


def test_every_step_sees_the_whole_support_set_and_the_seed_draws_the_views():
    encoder = PlainEncoder()
    one, many = support(encoder), support(encoder, views=3)
    config = [ProLIPConfig(iterations=20, seed=seed) for seed in (1, 1, 2)]
    alone = [ProLIP(each).fit(one, encoder).matrix for each in config]
    assert torch.equal(alone[0], alone[1])
    assert torch.allclose(alone[0], alone[2], atol=1e-5)
    views = [ProLIP(each).fit(many, encoder) for each in config]
    assert len(views[0].history) == 20
    assert torch.equal(views[0].matrix, views[1].matrix)
    assert not torch.allclose(views[0].matrix, views[2].matrix, atol=1e-5)


def test_penalty_holds_the_map_near_the_identity():
    encoder = PlainEncoder()
    data = support(encoder)
    distances = [
        float(
            (ProLIP(ProLIPConfig(penalty=penalty)).fit(data, encoder).matrix - torch.eye(16)).square().sum()
        )
        for penalty in (0.0, 1.0, 100.0)
    ]
    assert distances[0] > 2 * distances[1] > 4 * distances[2]


def test_new_classes_go_through_the_same_map():
    encoder = PlainEncoder()
    data = support(encoder)
    fitted = ProLIP(ProLIPConfig(iterations=30)).fit(data, encoder)
    f = data.image_features[:, 0]
    other = fitted.for_classes(["cyst", "stone"])
    mapped = f @ fitted.matrix
    t = class_embeddings(encoder, ["cyst", "stone"])
    assert other.class_names == ("cyst", "stone") and other.history == []
    assert torch.allclose(
        other.logits(f), 20.0 * (mapped / mapped.norm(dim=1, keepdim=True)) @ t.T, atol=1e-5
    )
    assert torch.equal(fitted.for_classes(NAMES).logits(f), fitted.logits(f))


def test_restored_from_its_state():
    encoder = PlainEncoder()
    data = support(encoder)
    fitted = ProLIP(ProLIPConfig(iterations=30)).fit(data, encoder)
    state = fitted.state()
    assert set(state) == {"class_embeddings", "logit_scale", "matrix"}
    assert not any(tensor.requires_grad for tensor in state.values())
    f = data.image_features[:, 0]
    assert torch.equal(ProLIP().restore(state, NAMES, encoder).logits(f), fitted.logits(f))


def test_learns_what_the_text_tower_does_not_know():
    encoder = PlainEncoder()
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 16, generator=draw), dim=1)
    features, labels = around(centres, 8, 2, draw, noise=0.1)
    tests, truth = around(centres, 50, 1, draw, noise=0.1)
    nothing = torch.empty(0, 16), torch.empty(0, dtype=torch.long)
    fitted = ProLIP().fit(Support(features, labels, NAMES, ((),) * 3, *nothing), encoder)
    zero_shot = 20.0 * tests[:, 0] @ class_embeddings(encoder).T

    def accuracy(logits):
        return float((logits.argmax(dim=1) == truth).float().mean())

    assert fitted.history[-1]["ce"] < 0.8 * fitted.history[0]["ce"]
    assert accuracy(fitted.logits(tests[:, 0])) > max(0.8, accuracy(zero_shot) + 0.1)
