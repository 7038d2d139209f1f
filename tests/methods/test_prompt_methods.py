"""CoOp, KgCoOp, ProGrad, BiomedCoOp and CoCoOp against their equations written out, and one step of each."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.methods.equations import (
    NAMES,
    ONE_STEP,
    TEXTS,
    WORDS,
    plain_cross_entropy,
    plain_divergence,
    plain_prompts,
    start_context,
    stepped,
    support_set,
    unit,
)
from tests.plain_encoder import PlainEncoder
from vmfcoop.errors import UserError
from vmfcoop.methods import make_method
from vmfcoop.methods.biomedcoop import kept_descriptions
from vmfcoop.methods.cocoop import meta_net
from vmfcoop.methods.prograd import projected_gradient

SCALE = 20.0


@pytest.fixture
def encoder():
    return PlainEncoder()


@pytest.fixture
def support(encoder):
    return support_set(encoder)


def hand_written(encoder):
    return encoder.encode_texts([f"{WORDS} {name}." for name in NAMES])


def fit(name, support, encoder, **settings):
    return make_method(name, {**ONE_STEP, **settings}).fit(support, encoder)


def test_coop(encoder, support):
    fitted = fit("coop", support, encoder)
    context = start_context(encoder).requires_grad_()
    logits = SCALE * support.image_features[:, 0] @ plain_prompts(encoder, context).T
    loss = plain_cross_entropy(logits, support.labels)
    loss.backward()
    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)
    embeddings = plain_prompts(encoder, fitted.context)
    assert torch.allclose(fitted.class_embeddings, embeddings, atol=1e-6)


def test_coop_with_class_specific_context(encoder, support):
    fitted = fit("coop", support, encoder, class_specific=True)
    context = start_context(encoder).repeat(3, 1, 1).requires_grad_()
    logits = SCALE * support.image_features[:, 0] @ plain_prompts(encoder, context).T
    plain_cross_entropy(logits, support.labels).backward()
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)
    with pytest.raises(UserError, match="cannot take new class names"):
        fitted.for_classes(["cyst"])


@pytest.mark.parametrize("position", ["middle", "front"])
def test_coop_with_the_class_name_elsewhere(encoder, support, position):
    fitted = fit("coop", support, encoder, class_position=position)
    half = len(WORDS) // 2 if position == "middle" else 0
    context = start_context(encoder).requires_grad_()
    rows, texts = [], [f"{WORDS} {name}." for name in NAMES]
    longest = max(map(len, texts)) + 2
    for text in texts:
        ids = encoder.tokenize([text])
        fixed, end = encoder.token_embeddings(ids.ids)[0], 1 + len(WORDS)
        name = fixed[end : end + len(text) - len(WORDS) - 1]
        pad = encoder.embedding[:1].expand(longest - len(text) - 2, -1)
        tail = fixed[end + len(name) :]
        rows.append(torch.cat([fixed[:1], context[:half], name, context[half:], tail, pad]))
    mask = encoder.tokenize(texts).mask
    prompts = encoder.encode_embeddings(torch.stack(rows), mask)
    plain_cross_entropy(SCALE * support.image_features[:, 0] @ prompts.T, support.labels).backward()
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)
    again = fitted.for_classes(NAMES)
    assert torch.allclose(again.class_embeddings, fitted.class_embeddings, atol=1e-6)


def test_kgcoop(encoder, support):
    # Off the hand-written prompts, where the knowledge loss and its gradient would be zero.
    fitted = fit("kgcoop", support, encoder, knowledge_weight=3.0, context_init="this scan of")
    words = "this scan of"
    tokens = encoder.tokenize([f"{words} {name}." for name in NAMES])
    fixed = encoder.token_embeddings(tokens.ids)
    context = fixed[0, 1 : 1 + len(words)].clone().requires_grad_()
    rows = torch.cat([fixed[:, :1], context.expand(3, -1, -1), fixed[:, 1 + len(words) :]], dim=1)
    prompts = encoder.encode_embeddings(rows, tokens.mask)
    t = hand_written(encoder)
    ce = plain_cross_entropy(SCALE * support.image_features[:, 0] @ prompts.T, support.labels)
    loss = ce + 3.0 * sum(1 - prompts[i] @ t[i] for i in range(3)) / 3
    loss.backward()
    assert fitted.history[0]["knowledge"] > 0.01
    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)


@pytest.mark.parametrize("seed", [0, 3])
def test_prograd(encoder, seed):
    support = support_set(encoder, seed=seed)
    fitted = fit("prograd", support, encoder, temperature=2.0, context_init="one view x")
    words = "one view x"
    tokens = encoder.tokenize([f"{words} {name}." for name in NAMES])
    fixed = encoder.token_embeddings(tokens.ids)
    context = fixed[0, 1 : 1 + len(words)].clone().requires_grad_()
    rows = torch.cat([fixed[:, :1], context.expand(3, -1, -1), fixed[:, 1 + len(words) :]], dim=1)
    prompts, f = encoder.encode_embeddings(rows, tokens.mask), support.image_features[:, 0]
    logits, teacher = SCALE * f @ prompts.T, SCALE * f @ hand_written(encoder).T
    ce = plain_cross_entropy(logits, support.labels)
    kl = 4.0 * plain_divergence(teacher / 2, logits / 2) / len(f)
    (g_d,) = torch.autograd.grad(ce, context, retain_graph=True)
    (g_g,) = torch.autograd.grad(kl, context)
    dot = float((g_d * g_g).sum())
    gradient = g_d if dot >= 0 else g_d - dot / float((g_g * g_g).sum()) * g_g
    assert float(kl.detach()) > 0.01, "the teacher is the hand-written prompt, not the student"
    assert fitted.history[0]["kl"] == pytest.approx(float(kl.detach()), rel=1e-4)
    assert torch.allclose(fitted.context, stepped(context.detach(), gradient), atol=1e-5)


@given(st.integers(0, 10_000), st.floats(0, 1))
def test_prograd_never_goes_against_the_general_direction(seed, projection):
    draw = torch.Generator().manual_seed(seed)
    domain, general = torch.randn(2, 5, 7, generator=draw, dtype=torch.float64)
    moved = projected_gradient(domain, general, projection)
    if (domain * general).sum() >= 0:
        assert torch.equal(moved, domain)
    else:
        left = (1 - projection) * (domain * general).sum()
        assert float((moved * general).sum()) == pytest.approx(float(left), abs=1e-9)


def plain_kept(scores, threshold):
    """The public description: robust scores by median and MAD, then standardised by mean and std."""
    median = scores.median()
    z = (scores - median) / (scores - median).abs().median()
    return ((z - z.mean()) / z.std()).abs() <= threshold


@given(st.lists(st.integers(-5000, 5000), min_size=5, max_size=30, unique=True), st.floats(1, 3))
def test_pruning_is_the_robust_score_standardised(values, threshold):
    scores = torch.tensor(values, dtype=torch.float64) / 100
    deviation = ((scores - scores.mean()) / scores.std()).abs()
    if ((deviation - threshold).abs() < 1e-6).any():
        return
    assert torch.equal(kept_descriptions(scores, threshold), plain_kept(scores, threshold))
    assert kept_descriptions(scores, threshold).any()


def test_pruning_of_equal_scores_keeps_all():
    assert kept_descriptions(torch.full((6,), 2.0), 1.5).all()


def test_biomedcoop(encoder, support):
    settings = {"sccm_weight": 40.0, "kdsp_weight": 5.0, "threshold": 1.0}
    fitted = fit("biomedcoop", support, encoder, **settings)
    context, f = start_context(encoder).requires_grad_(), support.image_features[:, 0]
    prompts = plain_prompts(encoder, context)
    e = torch.stack([encoder.encode_texts(list(texts)) for texts in TEXTS])
    scores = torch.tensor(
        [sum(max(SCALE * float(x @ e[i, j]) for i in range(3)) for x in f) / len(f) for j in range(6)]
    )
    kept = [j for j in range(6) if plain_kept(scores, 1.0)[j]]
    assert 0 < len(kept) < 6
    means, pruned = unit(e.mean(dim=1)), unit(e[:, kept].mean(dim=1))
    logits = SCALE * f @ prompts.T
    loss = (
        plain_cross_entropy(logits, support.labels)
        + 40.0 * ((prompts - means) ** 2).sum() / (3 * 16)
        + 5.0 * plain_divergence(SCALE * f @ pruned.T, logits) / (6 * 3)
    )
    loss.backward()
    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)


def test_cocoop(encoder, support):
    fitted = fit("cocoop", support, encoder, seed=5)
    net = {key: value.clone().requires_grad_() for key, value in meta_net(16, 8, 5).items()}
    context, f = start_context(encoder).requires_grad_(), support.image_features[:, 0]
    assert net["down.weight"].shape == (1, 16) and net["up.weight"].shape == (8, 1)
    logits = []
    for x in f:
        hidden = (net["down.weight"] @ x + net["down.bias"]).clamp(min=0)
        shift = net["up.weight"] @ hidden + net["up.bias"]
        logits.append(SCALE * plain_prompts(encoder, context + shift) @ x)
    loss = plain_cross_entropy(torch.stack(logits), support.labels)
    loss.backward()
    assert fitted.history[0]["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert torch.allclose(fitted.context, stepped(context.detach(), context.grad), atol=1e-5)
    for key, value in net.items():
        assert torch.allclose(fitted.net[key], stepped(value.detach(), value.grad), atol=1e-5), key


def test_cocoop_logits_are_a_prompt_an_image(encoder, support):
    fitted = fit("cocoop", support, encoder)
    f = support.image_features[:, 0]
    hidden = (f @ fitted.net["down.weight"].T + fitted.net["down.bias"]).relu()
    shifts = hidden @ fitted.net["up.weight"].T + fitted.net["up.bias"]
    expected = [
        SCALE * plain_prompts(encoder, fitted.context + shift) @ x for x, shift in zip(f, shifts, strict=True)
    ]
    assert torch.allclose(fitted.logits(f), torch.stack(expected), atol=1e-4)
    assert fitted.logits(f[:0]).shape == (0, 3)


@pytest.mark.parametrize("name", ["coop", "kgcoop", "prograd", "biomedcoop", "vmfcoop"])
@pytest.mark.parametrize("settings", [{}, {"class_specific": True}])
def test_seeds_side_by_side_are_each_alone(encoder, name, settings):
    """Three support sets and seeds in one text batch give the numbers of three trainings of their own."""
    if settings and name != "coop":
        return
    supports = [support_set(encoder, shots=4, seed=seed) for seed in (1, 2, 3)]
    options = {"epochs": 5, "batch_size": 5, "learning_rate": 0.01, **settings}
    together = make_method(name, options).fit_seeds(supports, [1, 2, 3], encoder)
    for seed, support, fitted in zip([1, 2, 3], supports, together, strict=True):
        alone = make_method(name, {**options, "seed": seed}).fit(support, encoder)
        assert alone.state().keys() == fitted.state().keys()
        for key, value in alone.state().items():
            assert torch.allclose(value, fitted.state()[key], atol=1e-5), key
        for row, other in zip(alone.history, fitted.history, strict=True):
            assert row == pytest.approx(other, rel=1e-5, abs=1e-6)
