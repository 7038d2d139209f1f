"""CLIP-Adapter against its equations written out: the adapted feature, the loss, one step, new classes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.methods import Support
from vmfcoop.methods.clip_adapter import CLIPAdapter, CLIPAdapterClassifier, CLIPAdapterConfig

NAMES = ("nevus", "melanoma", "keratosis")


def support(encoder, shots=4, views=1):
    features, labels = clusters(encoder, 3, shots, views)
    nothing = torch.empty(0, encoder.dim), torch.empty(0, dtype=torch.long)
    return Support(features, labels, NAMES, ((),) * 3, *nothing)


def class_embeddings(encoder, names=NAMES):
    return encoder.encode_texts([f"a photo of a {name}." for name in names])


def start(dim, hidden, seed):
    """Both weights as torch.nn.Linear draws its own."""
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.nn.init.kaiming_uniform_(torch.empty(*shape), a=math.sqrt(5), generator=draw)
        for shape in ((hidden, dim), (dim, hidden))
    ]


def plain_logits(f, down, up, t, ratio, scale):
    adapter = (f @ down.T).clamp(min=0)
    adapter = (adapter @ up.T).clamp(min=0)
    mixed = ratio * adapter + (1 - ratio) * f
    return scale * (mixed / mixed.norm(dim=1, keepdim=True)) @ t.T


@pytest.mark.parametrize("ratio", [0.2, 0.5, 0.9])
def test_logits(ratio):
    draw = np.random.default_rng(0)
    f, t = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in draw.normal(size=(2, 5, 16)))
    down, up = draw.normal(size=(4, 16)), draw.normal(size=(16, 4))
    expected = np.zeros((5, 3))
    for i in range(5):
        hidden = np.maximum(down @ f[i], 0)
        mixed = ratio * np.maximum(up @ hidden, 0) + (1 - ratio) * f[i]
        expected[i] = 20.0 * t[:3] @ (mixed / np.sqrt(mixed @ mixed))
    f, t, down, up = (torch.tensor(x, dtype=torch.float32) for x in (f, t, down, up))
    fitted = CLIPAdapterClassifier(NAMES, t[:3], 20.0, PlainEncoder(), down, up, ratio)
    assert np.allclose(fitted.logits(f).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_one_step_is_gradient_descent_on_the_cross_entropy(ratio):
    encoder = PlainEncoder()
    data = support(encoder)
    config = CLIPAdapterConfig(
        epochs=1, warmup_epochs=0, learning_rate=0.05, weight_decay=0.01, ratio=ratio, seed=3
    )
    fitted = CLIPAdapter(config).fit(data, encoder)

    down, up = (weight.requires_grad_() for weight in start(16, 4, seed=3))
    f = data.image_features[:, 0]
    logits = plain_logits(f, down, up, class_embeddings(encoder), ratio, 20.0)
    loss = -logits.log_softmax(dim=1)[torch.arange(12), data.labels].mean()
    loss.backward()

    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for learned, weight in ((fitted.down, down), (fitted.up, up)):
        assert weight.grad.abs().max() > 0.01
        expected = weight.detach() - 0.05 * (weight.grad + 0.01 * weight.detach())
        assert torch.allclose(learned, expected, atol=1e-5)


def test_seed_decides_and_the_global_generator_is_left_alone():
    encoder = PlainEncoder()
    data = support(encoder, views=3)
    before = torch.get_rng_state()
    first = CLIPAdapter(CLIPAdapterConfig(seed=1)).fit(data, encoder)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(1)
    again = CLIPAdapter(CLIPAdapterConfig(seed=1)).fit(data, encoder)
    other = CLIPAdapter(CLIPAdapterConfig(seed=2)).fit(data, encoder)
    assert torch.equal(first.down, again.down) and torch.equal(first.up, again.up)
    assert not torch.equal(first.down, other.down)


@given(ratio=st.floats(0, 0.99), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_adapted_features_are_unit_and_ratio_zero_is_zero_shot(ratio, seed):
    encoder = PlainEncoder()
    down, up = start(16, 4, seed)
    f = clusters(encoder, 3, 2, seed=seed)[0][:, 0]
    t = class_embeddings(encoder)
    fitted = CLIPAdapterClassifier(NAMES, t, 20.0, encoder, down, up, ratio)
    assert torch.allclose(fitted.adapted(f).norm(dim=1), torch.ones(6), atol=1e-5)
    none = CLIPAdapterClassifier(NAMES, t, 20.0, encoder, down, up, 0.0)
    assert torch.allclose(none.logits(f), 20.0 * f @ t.T, atol=1e-5)


def test_new_classes_go_through_the_same_adapter():
    encoder = PlainEncoder()
    data = support(encoder)
    fitted = CLIPAdapter().fit(data, encoder)
    f = data.image_features[:, 0]
    other = fitted.for_classes(["cyst", "stone"])
    expected = plain_logits(
        f, fitted.down, fitted.up, class_embeddings(encoder, ["cyst", "stone"]), 0.5, 20.0
    )
    assert other.class_names == ("cyst", "stone") and other.history == []
    assert torch.allclose(other.logits(f), expected, atol=1e-5)
    assert torch.equal(fitted.for_classes(NAMES).logits(f), fitted.logits(f))


def test_restored_from_its_state():
    encoder = PlainEncoder()
    data = support(encoder)
    fitted = CLIPAdapter(CLIPAdapterConfig(ratio=0.3)).fit(data, encoder)
    state = fitted.state()
    assert set(state) == {"class_embeddings", "logit_scale", "down", "up", "ratio"}
    assert not any(tensor.requires_grad for tensor in state.values())
    restored = CLIPAdapter().restore(state, NAMES, encoder)
    f = data.image_features[:, 0]
    assert torch.equal(restored.logits(f), fitted.logits(f))
    assert torch.equal(restored.for_classes(["cyst"]).logits(f), fitted.for_classes(["cyst"]).logits(f))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_learns_what_the_text_tower_does_not_know(seed):
    encoder = PlainEncoder(dim=64)
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 64, generator=draw), dim=1)
    features, labels = around(centres, 16, 2, draw, noise=0.1)
    tests, truth = around(centres, 50, 1, draw, noise=0.1)
    nothing = torch.empty(0, 64), torch.empty(0, dtype=torch.long)
    data = Support(features, labels, NAMES, ((),) * 3, *nothing)
    fitted = CLIPAdapter(CLIPAdapterConfig(epochs=50, batch_size=4, seed=seed)).fit(data, encoder)
    zero_shot = 20.0 * tests[:, 0] @ class_embeddings(encoder).T

    def accuracy(logits):
        return float((logits.argmax(dim=1) == truth).float().mean())

    assert fitted.history[-1]["loss"] < 0.8 * fitted.history[0]["loss"]
    assert accuracy(fitted.logits(tests[:, 0])) > max(0.9, accuracy(zero_shot) + 0.1)
