"""The linear probe against logistic regression written out: its optimum, two classes, the search of C."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from tests.plain_encoder import PlainEncoder, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.base import make_config
from vmfcoop.methods.linear import validation_score
from vmfcoop.methods.linear_probe import LinearProbe, LinearProbeConfig


def support(classes=3, shots=4, views=1, validation=0, noise=0.25, seed=0):
    encoder = PlainEncoder(dim=6)
    drawn, labels = clusters(encoder, classes, shots + validation, views, seed, noise)
    kept = torch.arange(len(labels)) % (shots + validation) < shots
    names = tuple(f"finding {i}" for i in range(classes))
    held = drawn[~kept][:, 0], labels[~kept]
    return Support(drawn[kept], labels[kept], names, tuple((name,) for name in names), *held), encoder


def newton(features, labels, classes, c, weights):
    """The optimum of 1/2 |W|^2 + C sum_n w_n CE_n by Newton's method on all weights and biases at once."""
    rows = np.hstack([features, np.ones((len(features), 1))])
    width = rows.shape[1]
    ridge = np.tile(np.append(np.ones(width - 1), 1e-10), classes)  # the bias is free up to a shift
    theta = np.zeros(classes * width)
    for _ in range(50):
        logits = rows @ theta.reshape(classes, width).T
        q = np.exp(logits - logits.max(axis=1, keepdims=True))
        q /= q.sum(axis=1, keepdims=True)
        gradient, hessian = ridge * theta, np.diag(ridge)
        for n, row in enumerate(rows):
            residual = q[n] - np.eye(classes)[labels[n]]
            gradient += c * weights[n] * np.kron(residual, row)
            curvature = np.diag(q[n]) - np.outer(q[n], q[n])
            hessian += c * weights[n] * np.kron(curvature, np.outer(row, row))
        theta -= np.linalg.solve(hessian, gradient)
    theta = theta.reshape(classes, width)
    return theta[:, :-1], theta[:, -1]


def centred(logits):
    return logits - logits.mean(axis=1, keepdims=True)


@pytest.mark.parametrize("c", [0.1, 10.0])
@pytest.mark.parametrize("augmented", [False, True])
def test_three_classes_are_at_the_optimum(c, augmented):
    data, encoder = support(views=3)
    fitted = LinearProbe(LinearProbeConfig(default_c=c, augmented=augmented, tolerance=1e-9)).fit(
        data, encoder
    )
    views = data.image_features if augmented else data.image_features[:, :1]
    rows = views.flatten(0, 1).double().numpy()
    labels = data.labels.numpy().repeat(views.shape[1])
    weight, bias = newton(rows, labels, 3, c, np.full(len(rows), 1 / views.shape[1]))
    assert np.allclose(fitted.weight.numpy(), weight, atol=1e-5)
    queries = np.random.default_rng(0).normal(size=(20, 6)) / 3
    expected = queries @ weight.T + bias
    logits = fitted.logits(torch.tensor(queries).float()).numpy()
    assert np.allclose(centred(logits), centred(expected), atol=1e-5)


def test_two_classes_have_two_opposite_rows_and_the_probabilities_of_one_vector():
    data, encoder = support(classes=2)
    fitted = LinearProbe(LinearProbeConfig(default_c=3.0, tolerance=1e-9)).fit(data, encoder)
    rows, signs = data.image_features[:, 0].double().numpy(), 2.0 * data.labels.numpy() - 1
    vector, bias = np.zeros(6), 0.0
    for _ in range(4000):  # gradient descent on 1/2 |w|^2 + C sum log(1 + exp(-y (w.f + b)))
        slope = -3.0 * signs / (1 + np.exp(signs * (rows @ vector + bias)))
        vector, bias = vector - 0.05 * (vector + slope @ rows), bias - 0.05 * slope.sum()
    assert fitted.weight.shape == (2, 6) and fitted.bias.shape == (2,)
    assert torch.equal(fitted.weight[0], -fitted.weight[1])
    assert torch.equal(fitted.bias[0], -fitted.bias[1])
    queries = np.random.default_rng(0).normal(size=(20, 6)) / 3
    probabilities = fitted.logits(torch.tensor(queries).float()).softmax(dim=1)[:, 1].numpy()
    assert np.allclose(probabilities, 1 / (1 + np.exp(-(queries @ vector + bias))), atol=1e-5)


def test_search_keeps_the_best_of_every_c_that_it_may_try():
    """No C of the coarse grid beats the kept one, and a pass over the finest grid explains the choice."""
    data, encoder = support(validation=6, noise=0.6, seed=3)
    steps = []
    probe = LinearProbe()
    fitted = probe.fit(data, encoder, lambda task, done, total: steps.append((done, total)))

    def score(c):
        logits = probe.fit_c(data, c).logits(data.validation_features).double()
        accuracy = float((logits.argmax(dim=1) == data.validation_labels).double().mean())
        log_q = logits.log_softmax(dim=1)[range(len(logits)), data.validation_labels]
        return round(accuracy, 9), float(log_q.mean())

    chosen = float(fitted.extra["c"])
    coarse = max(score(10.0**e) for e in range(-6, 7, 2))
    assert score(chosen) >= coarse
    assert np.log10(chosen) * 8 == pytest.approx(round(np.log10(chosen) * 8), abs=1e-9)
    best = max(range(-6, 7, 2), key=lambda e: score(10.0**e))
    for width in (1.0, 0.5, 0.25, 0.125):
        best = max((best, best - width, best + width), key=lambda e: score(10.0**e))
    assert chosen == pytest.approx(10.0**best)
    assert steps == [(i, 15) for i in range(1, 16)]


def test_search_stays_within_its_limits():
    """One shot at its own place: any C is right, and the likelihood asks for ever larger ones."""
    data, encoder = support(shots=1)
    same = Support(
        data.image_features,
        data.labels,
        data.class_names,
        data.descriptions,
        data.image_features[:, 0],
        data.labels,
    )
    fitted = LinearProbe().fit(same, encoder)
    assert 1e5 <= float(fitted.extra["c"]) <= 1e6


def test_no_validation_shots_leave_the_default():
    data, encoder = support()
    fitted = LinearProbe(LinearProbeConfig(default_c=2.5)).fit(data, encoder)
    assert float(fitted.extra["c"]) == 2.5


@pytest.mark.parametrize("shots", [1, 16])
@pytest.mark.parametrize("classes", [2, 40])
def test_every_fit_of_the_search_converges_without_a_warning(classes, shots):
    data, encoder = support(classes, shots, views=2, validation=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LinearProbe().fit(data, encoder)
        LinearProbe(LinearProbeConfig(augmented=True)).fit(data, encoder)


def test_too_few_iterations_are_said():
    data, encoder = support(noise=1.0, shots=16)
    with pytest.warns(ConvergenceWarning):
        LinearProbe(LinearProbeConfig(default_c=1e6, max_iterations=2)).fit(data, encoder)


def test_views_count_only_where_asked():
    data, encoder = support(views=3)
    plain = LinearProbe().fit(data, encoder)
    moved = Support(
        torch.cat([data.image_features[:, :1], -data.image_features[:, 1:]], dim=1),
        data.labels,
        data.class_names,
        data.descriptions,
        data.validation_features,
        data.validation_labels,
    )
    assert torch.equal(LinearProbe().fit(moved, encoder).weight, plain.weight)
    augmented = LinearProbe(LinearProbeConfig(augmented=True))
    assert not torch.allclose(augmented.fit(moved, encoder).weight, augmented.fit(data, encoder).weight)


def test_validation_score_orders_by_accuracy_then_likelihood():
    labels = torch.tensor([0, 1])
    right, barely = torch.tensor([[3.0, 0.0], [0.0, 3.0]]), torch.tensor([[0.1, 0.0], [0.0, 0.1]])
    half = torch.tensor([[9.0, 0.0], [0.1, 0.0]])
    scores = [validation_score(logits, labels) for logits in (right, barely, half)]
    assert scores[0] > scores[1] > scores[2]
    assert scores[1] == (1.0, pytest.approx(-np.log1p(np.exp(-0.1)), rel=1e-5))
    assert scores[2][0] == 0.5


def test_restored_probe_and_new_names():
    data, encoder = support()
    fitted = LinearProbe().fit(data, encoder)
    restored = LinearProbe().restore(fitted.state(), data.class_names, encoder)
    queries = data.image_features[:, 0]
    assert torch.equal(restored.logits(queries), fitted.logits(queries))
    assert set(restored.state()) == {"weight", "bias", "c"}
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


def test_settings_are_checked():
    with pytest.raises(UserError, match="setting 'default_c' cannot be"):
        make_config(LinearProbeConfig, {"default_c": 0})
