"""vMFCoOp against its equations written out: every loss, the anchors, and one optimisation step."""

import math

import numpy as np
import pytest
import torch

from tests.plain_encoder import PlainEncoder, clusters
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.vmfcoop import (
    VMFCoOp,
    VMFCoOpConfig,
    anchor_loss,
    contrastive_temperature,
    reverse_cross_entropy,
    spherical_contrastive_loss,
    unified_anchors,
)
from vmfcoop.methods.zero_shot import own_class_probability
from vmfcoop.sphere import bessel_ratio
from vmfcoop.training import Batch

NAMES = ("nevus", "melanoma", "keratosis")
TEXTS = tuple(
    tuple(
        f"{article} {name} {ending}."
        for article in ("a", "one", "the")
        for ending in ("seen here", "on skin")
    )
    for name in NAMES
)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def vectors():
    draw = np.random.default_rng(0)
    return unit(draw.normal(size=(3, 16))), unit(draw.normal(size=(3, 16))), unit(draw.normal(size=(5, 16)))


def support(encoder, shots=2):
    features, labels = clusters(encoder, 3, shots)
    nothing = torch.empty(0, encoder.dim), torch.empty(0, dtype=torch.long)
    return Support(features, labels, NAMES, TEXTS, *nothing)


def plain_ce(logits, labels):
    return np.mean([np.log(np.exp(row).sum()) - row[y] for row, y in zip(logits, labels, strict=True)])


def test_anchor_loss(vectors):
    p, u, _ = vectors
    expected = np.mean([np.sum((p[i] - u[i]) ** 2) for i in range(3)])
    assert float(anchor_loss(torch.tensor(p), torch.tensor(u))) == pytest.approx(expected, rel=1e-12)


def test_contrastive_loss(vectors):
    p, u, _ = vectors
    expected = plain_ce(7.0 * p @ u.T, range(3))
    loss = spherical_contrastive_loss(torch.tensor(p), torch.tensor(u), 7.0)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_reverse_cross_entropy_is_the_sum_over_classes(vectors):
    p, _, f = vectors
    logits, labels = 9.0 * f @ p.T, [0, 2, 1, 1, 0]
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    log_y = np.full((5, 3), -6.0)
    log_y[range(5), labels] = 0.0
    expected = np.mean(-(q * log_y).sum(axis=1))
    loss = reverse_cross_entropy(torch.tensor(logits), torch.tensor(labels), -6.0)
    assert float(loss) == pytest.approx(expected, rel=1e-12)


def test_gates_are_the_probabilities_of_the_own_class(vectors):
    _, u, f = vectors
    labels = [0, 2, 1, 1, 0]
    q = np.exp(20 * f @ u.T)
    q /= q.sum(axis=1, keepdims=True)
    expected = [np.mean([q[j, i] for j in range(5) if labels[j] == i]) for i in range(3)]
    gates = own_class_probability(torch.tensor(f), torch.tensor(labels), torch.tensor(u), 20.0)
    assert gates.numpy() == pytest.approx(expected, rel=1e-12)


def test_gated_terms_are_smaller(vectors):
    encoder = PlainEncoder()
    data = support(encoder)
    one_step = {"epochs": 1, "batch_size": 6}
    plain, gated = (
        VMFCoOp(VMFCoOpConfig(gated=gated, **one_step)).fit(data, encoder).history[0]
        for gated in (False, True)
    )
    assert gated["ce"] == plain["ce"] and 0 < gated["anc"] < plain["anc"] and 0 < gated["sc"] < plain["sc"]


def test_temperature_is_a_half_cosine():
    for t in np.linspace(0, 1, 11):
        expected = 2.0 + 8.0 * 0.5 * (1 - math.cos(math.pi * t))
        assert contrastive_temperature(float(t), 2.0, 10.0) == pytest.approx(expected)


def test_unified_anchors_are_the_product_of_the_fields():
    encoder = PlainEncoder()
    anchors = unified_anchors(support(encoder), encoder, VMFCoOpConfig())
    words = encoder.encode_tokens(encoder.vocabulary_tokens()).double().numpy()

    def field(rows):
        resultant = rows.mean(axis=0)
        length = np.linalg.norm(resultant)
        low, high = 1e-6, 1e6
        for _ in range(200):  # A_d is increasing: bisection needs no derivative
            middle = (low + high) / 2
            inside = float(bessel_ratio(16, torch.tensor(middle, dtype=torch.float64)))
            low, high = (middle, high) if inside < length else (low, middle)
        return resultant / length, middle

    mu_c, kappa_c = field(words)
    for i, texts in enumerate(TEXTS):
        mu, kappa = field(encoder.encode_texts(list(texts)).double().numpy())
        fused = kappa_c * mu_c + kappa * mu
        assert np.allclose(anchors.anchors[i].numpy(), fused / np.linalg.norm(fused), atol=1e-5)


@pytest.mark.parametrize("anchors_in_sc", ["static", "dynamic"])
@pytest.mark.parametrize("per_shot", [False, True])
@pytest.mark.parametrize("gates", [None, (0.2, 0.9, 0.4)])
def test_total_loss(vectors, anchors_in_sc, per_shot, gates):
    p, u, f = vectors
    dynamic, labels = unit(u + 0.3), np.array([0, 2, 1, 1, 0])
    config = VMFCoOpConfig(
        lambda_anc=3.0,
        lambda_sc=0.7,
        rce_weight=0.2,
        contrastive_anchors=anchors_in_sc,
        per_shot=per_shot,
        tau_end=9.0,
    )
    batch = Batch(torch.tensor(f), torch.tensor(labels), 0.25)
    terms = VMFCoOp(config).losses(
        torch.tensor(p),
        torch.tensor(u),
        torch.tensor(dynamic),
        batch,
        20.0,
        shots=2,
        gates=None if gates is None else torch.tensor(gates),
    )

    logits = 20.0 * f @ p.T
    q = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    tau = 1 + 8 * (1 - math.cos(math.pi * 0.25)) / 2
    target = u if anchors_in_sc == "static" else dynamic
    share = 0.5 if per_shot else 1.0
    g = np.ones(3) if gates is None else np.array(gates)
    similarity = tau * p @ target.T
    rows = [np.log(np.exp(similarity[i]).sum()) - similarity[i, i] for i in range(3)]
    expected = (
        plain_ce(logits, labels)
        + 0.2 * np.mean(4.0 * (1 - q[range(5), labels]))
        + share * 3.0 * np.mean(g * ((p - dynamic) ** 2).sum(axis=1))
        + share * 0.7 * np.mean(g * rows)
    )
    assert float(terms["loss"]) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("switches", "expected"),
    [
        ({"anchor": False, "contrastive": False, "symmetric": False}, {"loss", "ce"}),
        ({"contrastive": False, "symmetric": False}, {"loss", "ce", "anc"}),
        ({"symmetric": False}, {"loss", "ce", "anc", "sc", "tau"}),
        ({"anchor": False, "contrastive": False}, {"loss", "ce", "rce"}),
        ({}, {"loss", "ce", "rce", "anc", "sc", "tau"}),
    ],
)
def test_ablation_rows_switch_the_terms(switches, expected):
    encoder = PlainEncoder()
    fitted = VMFCoOp(VMFCoOpConfig(epochs=1, **switches)).fit(support(encoder), encoder)
    assert set(fitted.history[0]) - {"epoch", "learning_rate"} == expected


def test_one_step_is_gradient_descent_on_the_equations():
    encoder = PlainEncoder()
    data = support(encoder, shots=2)
    config = VMFCoOpConfig(
        epochs=1,
        batch_size=6,
        warmup_epochs=0,
        learning_rate=0.05,
        lambda_anc=2.0,
        lambda_sc=0.5,
        weight_decay=0.01,
    )
    fitted = VMFCoOp(config).fit(data, encoder)

    tokens = encoder.tokenize([f"a photo of a {name}." for name in NAMES])
    fixed = encoder.token_embeddings(tokens.ids)
    length = len("a photo of a")
    start = fixed[0, 1 : 1 + length].clone()
    context, offsets = start.clone().requires_grad_(), torch.zeros(3, 16, requires_grad=True)
    scale = torch.ones((), requires_grad=True)
    u = unified_anchors(data, encoder, config).anchors
    rows = torch.cat([fixed[:, :1], context.expand(3, -1, -1), fixed[:, 1 + length :]], dim=1)
    p = encoder.encode_embeddings(rows, tokens.mask)
    target = u + scale * offsets
    target = target / target.norm(dim=1, keepdim=True)
    logits = 20.0 * data.image_features[:, 0] @ p.T
    log_q = logits.log_softmax(dim=1)
    true = torch.arange(6), data.labels
    loss = -log_q[true].mean() + 1.0 * 4.0 * (1 - log_q.exp()[true]).mean()
    loss = loss + 0.5 * 2.0 * ((p - target) ** 2).sum(dim=1).mean()
    loss = loss - 0.5 * 0.5 * (1.0 * p @ u.T).log_softmax(dim=1).diagonal().mean()
    loss.backward()

    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    for learned, begin, gradient in [
        (fitted.context, start, context.grad),
        (fitted.extra["anchor_offsets"], torch.zeros(3, 16), offsets.grad),
        (fitted.extra["anchor_scale"], torch.ones(()), scale.grad),
    ]:
        assert torch.allclose(learned, begin - 0.05 * (gradient + 0.01 * begin), atol=1e-5)


def test_token_vocabulary_needs_the_width_of_the_sphere():
    wide, narrow = PlainEncoder(dim=16, width=16), PlainEncoder(dim=16, width=8)
    config = VMFCoOpConfig(vocabulary="token")
    anchors = unified_anchors(support(wide), wide, config)
    expected = torch.nn.functional.normalize(wide.embedding[4:], dim=1).double().mean(dim=0)
    assert float(anchors.vocabulary_field.resultant_length) == pytest.approx(float(expected.norm()), rel=1e-5)
    with pytest.raises(UserError, match="width 16.*have 8.*vocabulary=encoded"):
        unified_anchors(support(narrow), narrow, config)


def test_anchors_pull_the_prompts():
    encoder = PlainEncoder()
    data = support(encoder)
    free = VMFCoOp(VMFCoOpConfig(anchor=False, contrastive=False)).fit(data, encoder)
    held = VMFCoOp(VMFCoOpConfig(lambda_anc=200.0, dynamic_anchors=False, learning_rate=0.0005)).fit(
        data, encoder
    )
    u = unified_anchors(data, encoder, VMFCoOpConfig()).anchors
    held_cosine, free_cosine = ((fit.class_embeddings * u).sum(dim=1).mean() for fit in (held, free))
    assert held_cosine > 0.99
    assert 1 - held_cosine < 0.5 * (1 - free_cosine)
