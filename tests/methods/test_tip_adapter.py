"""Tip-Adapter and Tip-Adapter-F against their equations written out: cache, search, loss, one step."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.tip_adapter import CacheClassifier, TipAdapter, TipAdapterConfig
from vmfcoop.methods.tip_adapter_f import TipAdapterF, TipAdapterFConfig

NAMES = ("nevus", "melanoma", "keratosis")
BOTH = [(TipAdapter, TipAdapterConfig), (TipAdapterF, TipAdapterFConfig)]


def support(encoder, shots=4, views=1, validation=0, noise=0.25):
    features, labels = clusters(encoder, 3, shots, views, noise=noise)
    others, other_labels = clusters(encoder, 3, max(validation, 1), noise=noise)
    keep = len(others) if validation else 0
    return Support(features, labels, NAMES, ((),) * 3, others[:keep, 0], other_labels[:keep])


def class_embeddings(encoder):
    return encoder.encode_texts([f"a photo of a {name}." for name in NAMES])


def plain_keys(data):
    """Normalised mean over the views, image by image."""
    means = [np.mean(views, axis=0) for views in data.image_features.double().numpy()]
    return np.array([mean / np.sqrt(mean @ mean) for mean in means])


def plain_logits(f, t, keys, labels, alpha, beta, scale=20.0):
    logits = scale * f @ t.T
    for i, (key, label) in itertools.product(range(len(f)), zip(keys, labels, strict=True)):
        logits[i, label] += alpha * np.exp(-beta * (1 - f[i] @ key))
    return logits


@pytest.mark.parametrize("views", [1, 3])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 5.5), (7.0, 1.5)])
def test_logits(views, alpha, beta):
    encoder = PlainEncoder()
    data = support(encoder, views=views)
    fitted = TipAdapter(TipAdapterConfig(alpha=alpha, beta=beta)).fit(data, encoder)
    f = clusters(encoder, 3, 2, seed=5)[0][:, 0]
    t = class_embeddings(encoder).double().numpy()
    expected = plain_logits(f.double().numpy(), t, plain_keys(data), data.labels.tolist(), alpha, beta)
    logits = fitted.logits(f)
    assert logits.dtype == torch.float32
    assert np.allclose(logits.numpy(), expected, atol=1e-5)


def test_search_is_the_best_of_the_grid_and_the_first_of_the_best():
    encoder = PlainEncoder()
    data = support(encoder, shots=3, validation=20, noise=0.6)
    fitted = TipAdapter(TipAdapterConfig(search_max=30.0, search_steps=12)).fit(data, encoder)

    t, keys = class_embeddings(encoder).double().numpy(), plain_keys(data)
    f, truth = data.validation_features.double().numpy(), data.validation_labels.numpy()
    grid = np.geomspace(0.1, 30.0, 12)
    pairs = [(1.0, 5.5), *((alpha, beta) for beta in grid for alpha in grid)]
    right = [
        int((plain_logits(f, t, keys, data.labels.tolist(), *pair).argmax(axis=1) == truth).sum())
        for pair in pairs
    ]
    best = int(np.argmax(right))
    assert best > 0 and right[best] > right[0]
    assert (fitted.alpha, fitted.beta) == pytest.approx(pairs[best], rel=1e-5)


def test_search_only_replaces_by_better():
    encoder = PlainEncoder()
    data = support(encoder, validation=5, noise=0.02)
    fitted = TipAdapter(TipAdapterConfig(alpha=50.0, beta=3.0)).fit(data, encoder)
    right = fitted.logits(data.validation_features).argmax(dim=1) == data.validation_labels
    assert bool(right.all())
    assert (fitted.alpha, fitted.beta) == (50.0, 3.0)


@pytest.mark.parametrize(("method", "config"), BOTH)
def test_without_validation_or_search_the_settings_stand(method, config):
    encoder = PlainEncoder()
    bare = method(config(alpha=2.0, beta=3.0)).fit(support(encoder), encoder)
    asked = method(config(alpha=2.0, beta=3.0, search=False)).fit(
        support(encoder, validation=20, noise=0.6), encoder
    )
    assert (bare.alpha, bare.beta) == (asked.alpha, asked.beta) == (2.0, 3.0)


@given(alpha=st.floats(0, 50), beta=st.floats(0, 50), seed=st.integers(0, 1000))
@settings(max_examples=30, deadline=None)
def test_order_of_the_cache_does_not_matter_and_votes_are_bounded(alpha, beta, seed):
    encoder = PlainEncoder()
    keys, labels = clusters(encoder, 3, 4, seed=seed)
    keys = keys[:, 0]
    f = clusters(encoder, 3, 2, seed=seed + 1)[0][:, 0]
    t = class_embeddings(encoder)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(seed))
    cache = CacheClassifier(NAMES, t, 20.0, keys, labels, alpha, beta)
    shuffled = CacheClassifier(NAMES, t, 20.0, keys[order], labels[order], alpha, beta)
    assert torch.allclose(cache.logits(f), shuffled.logits(f), rtol=1e-4, atol=1e-4)
    added = cache.logits(f) - 20.0 * f @ t.T
    assert added.min() >= -1e-4 and added.max() <= 4 * alpha * (1 + 1e-4) + 1e-4


def test_one_step_is_adamw_on_the_cross_entropy():
    encoder = PlainEncoder()
    data = support(encoder)
    config = TipAdapterFConfig(epochs=1, learning_rate=0.02, weight_decay=0.1, alpha=3.0, beta=2.0)
    fitted = TipAdapterF(config).fit(data, encoder)

    f = data.image_features[:, 0]
    keys = torch.tensor(plain_keys(data), dtype=torch.float32, requires_grad=True)
    one_hot = torch.zeros(12, 3)
    one_hot[torch.arange(12), data.labels] = 1.0
    logits = 20.0 * f @ class_embeddings(encoder).T + 3.0 * torch.exp(-2.0 * (1 - f @ keys.T)) @ one_hot
    loss = -logits.log_softmax(dim=1)[torch.arange(12), data.labels].mean()
    loss.backward()

    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    gradient, begin = keys.grad, keys.detach()
    # The first step of Adam: both bias-corrected moments are the gradient's own.
    expected = begin * (1 - 0.02 * 0.1) - 0.02 * gradient / (gradient.abs() + 1e-8)
    sure = gradient.abs() > 1e-5  # below, the step's sign hangs on the order of a sum
    assert sure.float().mean() > 0.95
    assert torch.allclose(fitted.keys[sure], expected[sure], atol=1e-5)


def test_search_comes_after_training_and_leaves_the_keys():
    encoder = PlainEncoder()
    data = support(encoder, validation=20, noise=0.6)
    config = {"alpha": 0.1, "beta": 9.0, "learning_rate": 1e-4}
    searched = TipAdapterF(TipAdapterFConfig(**config)).fit(data, encoder)
    plain = TipAdapterF(TipAdapterFConfig(**config, search=False)).fit(data, encoder)
    assert torch.equal(searched.keys, plain.keys) and searched.history == plain.history
    assert (searched.alpha, searched.beta) != (0.1, 9.0)

    def right(fitted):
        return int((fitted.logits(data.validation_features).argmax(dim=1) == data.validation_labels).sum())

    assert right(searched) > right(plain)


def test_training_takes_the_views_and_leaves_the_support_as_it_was():
    encoder = PlainEncoder()
    data = support(encoder, views=3)
    before = data.image_features.clone()
    first, again, other = (
        TipAdapterF(TipAdapterFConfig(seed=seed)).fit(data, encoder).keys for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(data.image_features, before) and not data.image_features.requires_grad


@pytest.mark.parametrize(("method", "config"), BOTH)
def test_restored_from_its_state_and_bound_to_its_classes(method, config):
    encoder = PlainEncoder()
    data = support(encoder, validation=4)
    fitted = method(config()).fit(data, encoder)
    state = fitted.state()
    assert set(state) == {"class_embeddings", "logit_scale", "keys", "labels", "alpha", "beta"}
    assert not any(tensor.requires_grad for tensor in state.values())
    f = data.image_features[:, 0]
    restored = method(config()).restore(state, NAMES, encoder)
    assert torch.equal(restored.logits(f), fitted.logits(f))
    assert restored.class_names == NAMES
    assert not method.new_classes
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


@pytest.mark.parametrize(("method", "config"), BOTH)
def test_learns_what_the_text_tower_does_not_know(method, config):
    encoder = PlainEncoder()
    draw = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(3, 16, generator=draw), dim=1)
    features, labels = around(centres, 8, 2, draw, noise=0.1)
    val, val_labels = around(centres, 4, 1, draw, noise=0.1)
    tests, truth = around(centres, 50, 1, draw, noise=0.1)
    data = Support(features, labels, NAMES, ((),) * 3, val[:, 0], val_labels)
    fitted = method(config()).fit(data, encoder)
    zero_shot = 20.0 * tests[:, 0] @ class_embeddings(encoder).T

    def accuracy(logits):
        return float((logits.argmax(dim=1) == truth).float().mean())

    assert accuracy(fitted.logits(tests[:, 0])) > max(0.9, accuracy(zero_shot) + 0.1)
