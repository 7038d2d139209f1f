"""LP++ against its equations written out: starts, steps, descent, and which iterate is kept."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.base import make_config
from vmfcoop.methods.lp_plus_plus import LPPlusPlus, LPPlusPlusConfig, Problem

NAMES = ("nevus", "melanoma", "keratosis")


def support(encoder, shots=4, views=1, validation=0, noise=0.25):
    drawn, labels = clusters(encoder, 3, shots + validation, views, noise=noise)
    kept = torch.arange(len(labels)) % (shots + validation) < shots
    held = drawn[~kept][:, 0], labels[~kept]
    return Support(drawn[kept], labels[kept], NAMES, tuple((name,) for name in NAMES), *held)


def texts_of(encoder):
    return encoder.encode_texts([f"a photo of a {name}." for name in NAMES]).double().numpy()


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def random_problem(seed, rows=9, classes=3, dim=5):
    draw = np.random.default_rng(seed)
    f, t = unit(draw.normal(size=(rows, dim))), unit(draw.normal(size=(classes, dim)))
    y = np.concatenate([np.arange(classes), draw.integers(classes, size=rows - classes)])
    return f, y, t, draw


def plain_loss(f, y, t, w, a):
    total = 0.0
    for row, label in zip(f, y, strict=True):
        logits = np.array([row @ (w[k] + a[k] * t[k]) for k in range(len(t))])
        top = logits.max()
        total += np.log(np.exp(logits - top).sum()) + top - logits[label]
    return total / len(f)


def plain_gradients(f, y, t, w, a):
    """By central differences of the loss: nothing is derived."""
    by_w, by_a, h = np.zeros_like(w), np.zeros_like(a), 1e-5
    for index in np.ndindex(w.shape):
        step = np.zeros_like(w)
        step[index] = h
        by_w[index] = (plain_loss(f, y, t, w + step, a) - plain_loss(f, y, t, w - step, a)) / (2 * h)
    for k in range(len(a)):
        step = np.zeros_like(a)
        step[k] = h
        by_a[k] = (plain_loss(f, y, t, w, a + step) - plain_loss(f, y, t, w, a - step)) / (2 * h)
    return by_w, by_a


def test_loss_and_gradients():
    f, y, t, draw = random_problem(0)
    w, a = draw.normal(size=(3, 5)), draw.normal(size=3)
    problem = Problem(torch.tensor(f), torch.tensor(y), torch.tensor(t))
    at = torch.tensor(w), torch.tensor(a)
    by_w, by_a = plain_gradients(f, y, t, w, a)
    assert problem.loss(*at) == pytest.approx(plain_loss(f, y, t, w, a), rel=1e-9)
    assert np.allclose(problem.prototype_gradient(*at).numpy(), by_w, atol=1e-8)
    assert np.allclose(problem.blend_gradient(*at).numpy(), by_a, atol=1e-8)


def test_step_sizes():
    f, y, t, _ = random_problem(1)
    problem = Problem(torch.tensor(f), torch.tensor(y), torch.tensor(t))
    largest = np.linalg.eigvalsh(sum(np.outer(row, row) for row in f))[-1]
    assert problem.prototype_step == pytest.approx(4 * 9 / largest, rel=1e-9)
    sums = [sum((row @ t[k]) ** 2 for row in f) for k in range(3)]
    assert problem.blend_step == pytest.approx(9 / (4 * max(sums)), rel=1e-9)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.0, 1.0, 30.0]), classes=st.integers(2, 6))
def test_no_block_step_raises_the_loss(seed, scale, classes):
    f, y, t, draw = random_problem(seed, rows=12, classes=classes)
    problem = Problem(torch.tensor(f), torch.tensor(y), torch.tensor(t))
    w, a = (
        torch.tensor(scale * draw.normal(size=(classes, 5))),
        torch.tensor(scale * draw.normal(size=classes)),
    )
    before = problem.loss(w, a)
    for step in range(12):
        if step % 3 < 2:
            w = w - problem.prototype_step * problem.prototype_gradient(w, a)
        else:
            a = a - problem.blend_step * problem.blend_gradient(w, a)
        after = problem.loss(w, a)
        assert after <= before + 1e-12 * max(1.0, before)
        before = after


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), scale=st.sampled_from([0.1, 3.0]))
def test_gradients_are_lipschitz_with_the_stated_constants(seed, scale):
    f, y, t, draw = random_problem(seed)
    problem = Problem(torch.tensor(f), torch.tensor(y), torch.tensor(t))
    w, v = (torch.tensor(scale * draw.normal(size=(3, 5))) for _ in range(2))
    a, b = (torch.tensor(scale * draw.normal(size=3)) for _ in range(2))
    moved = (problem.prototype_gradient(w, a) - problem.prototype_gradient(v, a)).norm()
    assert float(moved) <= 2 / problem.prototype_step * float((w - v).norm()) + 1e-12
    turned = (problem.blend_gradient(w, a) - problem.blend_gradient(w, b)).norm()
    assert float(turned) <= 1 / (8 * problem.blend_step) * float((a - b).norm()) + 1e-12


def plain_start(f, y, t, images):
    sums = np.stack([f[y == k].sum(axis=0) for k in range(3)]) * images / len(f)
    own = np.mean([np.mean([row @ t[k] for row in f[y == k]]) for k in range(3)])
    return sums, np.full(3, 250 * own)


@pytest.mark.parametrize("augmented", [False, True])
def test_starts_are_class_sums_and_the_mean_own_cosine(augmented):
    encoder = PlainEncoder()
    data = support(encoder, views=3)
    views = data.image_features if augmented else data.image_features[:, :1]
    f, y = views.flatten(0, 1).double(), data.labels.repeat_interleave(views.shape[1])
    t = texts_of(encoder)
    w, a = Problem(f, y, torch.tensor(t)).start(len(data.labels))
    sums, blend = plain_start(f.numpy(), y.numpy(), t, 12)
    assert np.allclose(w.numpy(), sums, atol=1e-12)
    assert np.allclose(a.numpy(), blend, atol=1e-9)


@pytest.mark.parametrize(("augmented", "momentum"), [(False, 0.0), (True, 0.0), (False, 0.9)])
def test_three_iterations(augmented, momentum):
    """Two prototype steps, a blending step at the new prototypes, and one prototype step more."""
    encoder = PlainEncoder()
    data = support(encoder, views=2, noise=0.6)
    config = LPPlusPlusConfig(iterations=3, prototype_steps=2, augmented=augmented, momentum=momentum)
    fitted = LPPlusPlus(config).fit(data, encoder)

    views = data.image_features if augmented else data.image_features[:, :1]
    f, y = views.flatten(0, 1).double().numpy(), data.labels.numpy().repeat(views.shape[1])
    t = texts_of(encoder)
    step_w = 4 * len(f) / np.linalg.eigvalsh(f.T @ f)[-1]
    step_a = len(f) / (4 * ((f @ t.T) ** 2).sum(axis=0).max())
    w, a = plain_start(f, y, t, 12)
    velocity = np.zeros_like(w)
    for blend_too in (False, True, False):
        velocity = momentum * velocity + plain_gradients(f, y, t, w, a)[0]
        w = w - step_w * velocity
        if blend_too:
            a = a - step_a * plain_gradients(f, y, t, w, a)[1]
    assert np.allclose(fitted.extra["blend"].numpy(), a, rtol=1e-5)
    assert np.allclose(fitted.weight.numpy(), w + a[:, None] * t, atol=1e-4)
    assert torch.equal(fitted.bias, torch.zeros(3))
    assert fitted.history[-1]["loss"] == pytest.approx(plain_loss(f, y, t, w, a), rel=1e-5)


def test_the_loss_of_a_fit_falls_throughout():
    encoder = PlainEncoder()
    history = LPPlusPlus().fit(support(encoder, noise=0.6), encoder).history
    losses = [row["loss"] for row in history]
    assert len(losses) == 300
    assert all(after <= before + 1e-12 for before, after in itertools.pairwise(losses))
    assert losses[-1] < 0.5 * losses[0]


def test_the_iterate_of_the_best_validation_accuracy_is_kept():
    encoder = PlainEncoder()
    data = support(encoder, shots=2, validation=20, noise=0.8)

    def accuracy(fitted):
        logits = fitted.logits(data.validation_features)
        return float((logits.argmax(dim=1) == data.validation_labels).double().mean())

    blind = Support(
        data.image_features,
        data.labels,
        NAMES,
        data.descriptions,
        data.validation_features[:0],
        data.validation_labels[:0],
    )
    every = [LPPlusPlus(LPPlusPlusConfig(iterations=i)).fit(blind, encoder) for i in range(1, 41)]
    best = max(range(40), key=lambda i: (accuracy(every[i]), i))
    kept = LPPlusPlus(LPPlusPlusConfig(iterations=40)).fit(data, encoder)
    assert len({accuracy(fitted) for fitted in every}) > 1
    assert torch.allclose(kept.weight, every[best].weight, atol=1e-6)


def test_restored_and_new_names():
    encoder = PlainEncoder()
    data = support(encoder)
    method = LPPlusPlus(LPPlusPlusConfig(iterations=5))
    fitted = method.fit(data, encoder)
    restored = method.restore(fitted.state(), NAMES, encoder)
    queries = data.image_features[:, 0]
    assert torch.equal(restored.logits(queries), fitted.logits(queries))
    assert fitted.logits(queries).dtype == torch.float32
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


def test_settings_are_checked():
    with pytest.raises(UserError, match="setting 'iterations' cannot be"):
        make_config(LPPlusPlusConfig, {"iterations": 0})
