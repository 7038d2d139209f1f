"""CLAP against its equations written out: multipliers, loss, one optimisation step, and what they do."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.plain_encoder import PlainEncoder, around, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.base import make_config
from vmfcoop.methods.clap import CLAP, CLAPConfig, clap_loss
from vmfcoop.methods.zero_shot import own_class_probability
from vmfcoop.training import Batch

NAMES = ("nevus", "melanoma", "keratosis")


def support(encoder, shots=4, views=3, noise=0.25):
    features, labels = clusters(encoder, 3, shots, views, noise=noise)
    nothing = torch.empty(0, encoder.dim), torch.empty(0, dtype=torch.long)
    return Support(features, labels, NAMES, tuple((name,) for name in NAMES), *nothing)


def texts_of(encoder):
    return encoder.encode_texts([f"a photo of a {name}." for name in NAMES]).double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def softmax(logits):
    q = np.exp(logits - logits.max())
    return q / q.sum()


def plain_multipliers(f, y, t, s):
    means = []
    for i in range(len(t)):
        own = [softmax(s * row @ t.T)[i] for row, label in zip(f, y, strict=True) if label == i]
        means.append(sum(own) / len(own))
    return np.array(means)


def plain_loss(w, start, lambdas, f, y, s):
    ce = np.mean([-np.log(softmax(s * row @ unit(w).T)[i]) for row, i in zip(f, y, strict=True)])
    return ce + np.mean([lambdas[i] * np.sum((w[i] - start[i]) ** 2) for i in range(len(w))])


def plain_gradient(w, *args):
    gradient, h = np.zeros_like(w), 1e-5
    for index in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[index] = h
        gradient[index] = (plain_loss(w + step, *args) - plain_loss(w - step, *args)) / (2 * h)
    return gradient


@pytest.fixture
def rows():
    draw = np.random.default_rng(0)
    return unit(draw.normal(size=(7, 16))), np.array([0, 2, 1, 1, 0, 2, 2]), unit(draw.normal(size=(3, 16)))


def test_multipliers_are_the_mean_own_probability(rows):
    f, y, t = rows
    found = own_class_probability(torch.tensor(f), torch.tensor(y), torch.tensor(t), 9.0)
    assert np.allclose(found.numpy(), plain_multipliers(f, y, t, 9.0), rtol=1e-12)


def test_loss(rows):
    f, y, t = rows
    draw = np.random.default_rng(1)
    w, lambdas = 3 * t + draw.normal(size=t.shape), np.array([0.9, 0.1, 0.4])
    batch = Batch(torch.tensor(f), torch.tensor(y), 0.0)
    terms = clap_loss(torch.tensor(w), torch.tensor(3 * t), torch.tensor(lambdas), batch, 9.0)
    assert float(terms["loss"]) == pytest.approx(plain_loss(w, 3 * t, lambdas, f, y, 9.0), rel=1e-12)
    assert float(terms["ce"] + terms["penalty"]) == pytest.approx(float(terms["loss"]), rel=1e-12)


def test_two_optimisation_steps():
    """The second step has momentum, and a penalty that is no longer 0."""
    encoder = PlainEncoder()
    data = support(encoder, shots=2, views=1)
    config = CLAPConfig(epochs=2, warmup_epochs=0, learning_rate=0.2)
    fitted = CLAP(config).fit(data, encoder)
    f, y, t, s = data.image_features[:, 0].double().numpy(), data.labels.numpy(), texts_of(encoder), 20.0
    lambdas = plain_multipliers(f, y, t, s)
    start = math.sqrt(s) * t
    w, velocity, losses = start.copy(), np.zeros_like(t), []
    for rate in (0.2, 0.1):  # 0.2/2 (1 + cos 0), 0.2/2 (1 + cos pi/2)
        losses.append(plain_loss(w, start, lambdas, f, y, s))
        velocity = 0.9 * velocity + plain_gradient(w, start, lambdas, f, y, s)
        w = w - rate * velocity
    assert np.abs(unit(w) - t).max() > 0.01
    assert np.allclose(fitted.weight.numpy(), s * unit(w), atol=1e-4)
    assert np.allclose(fitted.extra["multipliers"].numpy(), lambdas, atol=1e-5)
    assert [row["loss"] for row in fitted.history] == pytest.approx(losses, rel=1e-5)
    assert torch.equal(fitted.bias, torch.zeros(3))


def test_multipliers_take_every_view():
    encoder = PlainEncoder()
    data = support(encoder, views=3)
    fitted = CLAP(CLAPConfig(epochs=1)).fit(data, encoder)
    f, y = data.image_features.flatten(0, 1).double().numpy(), data.labels.numpy().repeat(3)
    expected = plain_multipliers(f, y, texts_of(encoder), 20.0)
    assert np.allclose(fitted.extra["multipliers"].numpy(), expected, atol=1e-5)


def test_text_norm_scales_learning_rate_and_penalty():
    """A probe of length r at rate r^2 lr, with lambda / r^2, is the unit probe: the docstring's claim."""
    encoder = PlainEncoder()
    data = support(encoder, views=1)
    f, y, t = data.image_features[:, 0].double(), data.labels, torch.tensor(texts_of(encoder))
    lambdas = torch.tensor([0.9, 0.1, 0.4], dtype=torch.float64)
    ends = []
    for r in (1.0, 3.0):
        w = (r * t).requires_grad_()
        for _ in range(5):
            loss = clap_loss(w, r * t, lambdas / r**2, Batch(f, y, 0.0), 20.0)["loss"]
            (gradient,) = torch.autograd.grad(loss, w)
            w = (w - 0.01 * r**2 * gradient).detach().requires_grad_()
        ends.append(w.detach() / r)
    assert float((ends[0] - t).norm()) > 0.05
    assert torch.allclose(ends[0], ends[1], atol=1e-9)


def test_rows_have_the_length_of_the_logit_scale():
    encoder = PlainEncoder()
    weight = CLAP(CLAPConfig(epochs=5)).fit(support(encoder), encoder).weight
    assert torch.allclose(weight.norm(dim=1), torch.full((3,), 20.0), atol=1e-4)


def test_a_class_that_zero_shot_knows_stays_nearer_to_its_text():
    """Images of the first class lie on the side of its text, the other two have each other's texts."""
    encoder = PlainEncoder()
    t = torch.tensor(texts_of(encoder)).float()
    centres = torch.stack([t[0] - (t[1] + t[2]) / 2, t[2] - t[1], t[1] - t[2]])
    centres = torch.nn.functional.normalize(centres, dim=1)
    features, labels = around(centres, 8, 1, torch.Generator().manual_seed(0), noise=0.05)
    data = replace(support(encoder), image_features=features, labels=labels)
    fitted = CLAP().fit(data, encoder)
    cosines = (torch.nn.functional.normalize(fitted.weight, dim=1) * t).sum(dim=1)
    held = fitted.extra["multipliers"]
    assert float(held[0]) > 0.7 > 0.3 > float(held[1:].max())
    assert int(cosines.argmax()) == 0
    right = (fitted.logits(features[:, 0]).argmax(dim=1) == labels).float().mean()
    assert float(right) > 0.95


def test_validation_shots_are_not_looked_at():
    encoder = PlainEncoder()
    data = support(encoder)
    wrong = replace(data, validation_features=data.image_features[:, 0], validation_labels=2 - data.labels)
    method = CLAP(CLAPConfig(epochs=3))
    assert torch.equal(method.fit(data, encoder).weight, method.fit(wrong, encoder).weight)


def test_restored_and_new_names():
    encoder = PlainEncoder()
    data = support(encoder)
    method = CLAP(CLAPConfig(epochs=3))
    fitted = method.fit(data, encoder)
    restored = method.restore(fitted.state(), NAMES, encoder)
    queries = data.image_features[:, 0]
    assert torch.equal(restored.logits(queries), fitted.logits(queries))
    assert not fitted.logits(queries).requires_grad
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


def test_settings_are_the_public_ones_and_are_checked():
    config = CLAPConfig()
    assert (config.epochs, config.batch_size, config.learning_rate, config.momentum) == (300, 256, 0.1, 0.9)
    assert (config.weight_decay, config.warmup_epochs, config.warmup_learning_rate) == (0.0, 1, 1e-5)
    with pytest.raises(UserError, match="setting 'text_norm' cannot be"):
        make_config(CLAPConfig, {"text_norm": 0})
