"""GDA against its equations written out, the degenerate covariance, and the search of alpha."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.base import make_config
from vmfcoop.methods.gda import GDA, GDAConfig, discriminant

NAMES = ("nevus", "melanoma", "keratosis")


def support(encoder, shots=4, views=3, validation=0, noise=0.25):
    drawn, labels = clusters(encoder, 3, shots + validation, views, noise=noise)
    kept = torch.arange(len(labels)) % (shots + validation) < shots
    held = drawn[~kept][:, 0], labels[~kept]
    return Support(drawn[kept], labels[kept], NAMES, tuple((name,) for name in NAMES), *held)


def plain_discriminant(f, y, classes):
    """With the explicit inverse, S by numpy.cov of the centred rows."""
    means = np.stack([f[y == k].mean(axis=0) for k in range(classes)])
    centred = np.concatenate([f[y == k] - means[k] for k in range(classes)])
    n, d = f.shape
    s = np.cov(centred.T)
    precision = d * np.linalg.inv((n - 1) * s + np.trace(s) * np.eye(d))
    bias = [np.log(1 / classes) - m @ precision @ m / 2 for m in means]
    return means @ precision, np.array(bias)


@pytest.mark.parametrize("shots", [1, 4, 16])
@pytest.mark.parametrize("alpha", [0.0, 0.3])
def test_fused_logits(shots, alpha):
    encoder = PlainEncoder()
    data = support(encoder, shots)
    fitted = GDA(GDAConfig(default_alpha=alpha)).fit(data, encoder)
    f = data.image_features.double().numpy().reshape(-1, 16)
    weight, bias = plain_discriminant(f, data.labels.numpy().repeat(3), 3)
    t = encoder.encode_texts([f"a photo of a {name}." for name in NAMES]).double().numpy()
    queries = clusters(encoder, 3, 5, seed=1)[0][:, 0]
    for row, logits in zip(queries.double().numpy(), fitted.logits(queries).numpy(), strict=True):
        expected = [20.0 * row @ t[i] + alpha * (row @ weight[i] + bias[i]) for i in range(3)]
        assert np.allclose(logits, expected, rtol=1e-5, atol=1e-4)
    assert np.allclose(fitted.bias.numpy(), alpha * bias, rtol=1e-5)
    assert float(fitted.extra["alpha"]) == alpha


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([1e-3, 0.1, 1.0]), unequal=st.booleans())
def test_discriminant_whatever_the_spread_and_the_class_sizes(seed, spread, unequal):
    draw = np.random.default_rng(seed)
    y = np.array([0, 0, 1, 1, 2, 2] + [0, 0, 0] * unequal)
    f = draw.normal(size=(3, 8))[y] + spread * draw.normal(size=(len(y), 8))
    f /= np.linalg.norm(f, axis=1, keepdims=True)
    weight, bias = discriminant(torch.tensor(f), torch.tensor(y), 3, isotropic=20.0)
    expected_weight, expected_bias = plain_discriminant(f, y, 3)
    assert np.allclose(weight.numpy(), expected_weight, rtol=1e-7)
    assert np.allclose(bias.numpy(), expected_bias, rtol=1e-7)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), spread=st.sampled_from([0.02, 0.3]))
def test_discriminant_turns_with_the_features(seed, spread):
    """No axis is special: rotated samples give the rotated weight and the same bias."""
    draw = np.random.default_rng(seed)
    y = np.repeat(np.arange(3), 4)
    f = draw.normal(size=(3, 6))[y] + spread * draw.normal(size=(12, 6))
    rotation = np.linalg.qr(draw.normal(size=(6, 6)))[0]
    labels = torch.tensor(y)
    weight, bias = discriminant(torch.tensor(f), labels, 3, 20.0)
    turned, same = discriminant(torch.tensor(f @ rotation), labels, 3, 20.0)
    assert torch.allclose(turned, weight @ torch.tensor(rotation), rtol=1e-6, atol=1e-6)
    assert torch.allclose(same, bias, rtol=1e-8)


@pytest.mark.parametrize("views", [1, 3])
def test_one_shot_without_spread_is_the_nearest_mean(views):
    """One image a class, its views all equal: S = 0."""
    encoder = PlainEncoder()
    data = support(encoder, shots=1, views=1)
    data = replace(data, image_features=data.image_features.expand(-1, views, -1).contiguous())
    shots = data.image_features[:, 0]
    weight, bias = discriminant(shots.double(), data.labels, 3, isotropic=20.0)
    queries = clusters(encoder, 3, 40, seed=0)[0][:, 0]
    nearest = torch.cdist(queries, shots).argmin(dim=1)
    assert torch.equal((queries.double() @ weight.T + bias).argmax(dim=1), nearest)
    fitted = GDA(GDAConfig(default_alpha=0.5)).fit(data, encoder)
    t = encoder.encode_texts([f"a photo of a {name}." for name in NAMES])
    assert torch.allclose(fitted.weight, 20.0 * (t + 0.5 * shots), atol=1e-5)
    assert fitted.bias.isfinite().all()


def test_alpha_is_the_best_of_the_grid():
    encoder = PlainEncoder()
    data = support(encoder, validation=6, noise=0.6)
    fitted = GDA().fit(data, encoder)
    blind = replace(
        data,
        validation_features=data.validation_features[:0],
        validation_labels=data.validation_labels[:0],
    )
    scores = {}
    for alpha in (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0):
        logits = GDA(GDAConfig(default_alpha=alpha)).fit(blind, encoder).logits(data.validation_features)
        right = (logits.argmax(dim=1) == data.validation_labels).sum()
        log_q = logits.log_softmax(dim=1)[range(len(logits)), data.validation_labels]
        scores[alpha] = (int(right), float(log_q.mean()))
    assert len({right for right, _ in scores.values()}) > 1
    assert float(fitted.extra["alpha"]) == max(scores, key=scores.get)


@pytest.mark.parametrize(("shots", "alpha"), [(1, 1.0), (4, 35 / 16), (16, 143 / 16)])
def test_no_validation_shots_leave_the_default(shots, alpha):
    """9, 36 and 144 samples in 16 dimensions."""
    encoder = PlainEncoder()
    assert float(GDA().fit(support(encoder, shots), encoder).extra["alpha"]) == pytest.approx(alpha)


def test_default_alpha_gives_many_samples_the_precision_of_their_gaussians():
    encoder = PlainEncoder()
    data = support(encoder, shots=2000, views=1)
    fitted = GDA().fit(data, encoder)
    f, y = data.image_features[:, 0].double().numpy(), data.labels.numpy()
    means = np.stack([f[y == k].mean(axis=0) for k in range(3)])
    t = encoder.encode_texts([f"a photo of a {name}." for name in NAMES]).double().numpy()
    gaussians = fitted.weight.double().numpy() - 20.0 * t
    expected = np.linalg.solve(np.cov((f - means[y]).T), means.T).T
    assert np.allclose(gaussians, expected, atol=0.01 * np.abs(expected).max())


def test_restored_and_new_names():
    encoder = PlainEncoder()
    data = support(encoder)
    fitted = GDA().fit(data, encoder)
    restored = GDA().restore(fitted.state(), NAMES, encoder)
    queries = data.image_features[:, 0]
    assert torch.equal(restored.logits(queries), fitted.logits(queries))
    assert fitted.logits(queries).dtype == torch.float32
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


def test_settings_are_checked():
    with pytest.raises(UserError, match="setting 'default_alpha' cannot be"):
        make_config(GDAConfig, {"default_alpha": -1})
