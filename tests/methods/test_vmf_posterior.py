"""The vMF posterior against integrals over the sphere and its equations written out; as a classifier."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.plain_encoder import PlainEncoder, around
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.errors import UserError
from vmfcoop.methods import Support
from vmfcoop.methods.base import make_config
from vmfcoop.methods.vmf_posterior import (
    Evidence,
    VMFPosterior,
    VMFPosteriorConfig,
    fit_frame,
    log_evidence,
    log_predictive,
    mean_cosine,
    posterior,
    shot_folds,
)
from vmfcoop.methods.vmf_posterior_plus import VMFCoOpPlus, VMFCoOpPlusConfig
from vmfcoop.methods.zero_shot_ensemble import description_means
from vmfcoop.sphere import bessel_ratio, log_normalizer

NAMES = ("cyst", "stone", "mass")


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def support_of(encoder, shots=4, views=3, noise=0.25, seed=0, names=NAMES):
    centres = torch.nn.functional.normalize(
        torch.randn(len(names), encoder.dim, generator=torch.Generator().manual_seed(9)), dim=1
    )
    features, labels = around(centres, shots, views, torch.Generator().manual_seed(seed), noise)
    texts = tuple(template_bank(names).for_classes(names))
    return Support(features, labels, names, texts, features[:0, 0], labels[:0])


def sphere_grid():
    """Nodes on S^2 and their areas: Gauss-Legendre in the height, equal steps around."""
    heights, weights = np.polynomial.legendre.leggauss(200)
    angles = 2 * np.pi * np.arange(400) / 400
    z, phi = np.meshgrid(heights, angles, indexing="ij")
    r = np.sqrt(1 - z**2)
    points = np.stack([r * np.cos(phi), r * np.sin(phi), z], axis=-1).reshape(-1, 3)
    return points, np.repeat(weights, 400) * 2 * np.pi / 400


def vmf3(x, mu, kappa):
    """The density on S^2, with its elementary normaliser."""
    return kappa / (4 * np.pi * np.sinh(kappa)) * np.exp(kappa * x @ mu)


@pytest.fixture(scope="module")
def three_dimensional():
    draw = np.random.default_rng(1)
    u, images, query = (unit(draw.normal(size=shape)) for shape in ((3,), (4, 3), (5, 3)))
    return u, images, query, 2.5, 6.0


def laws(u, images, kappa_0, kappa):
    sums = torch.tensor(images.sum(axis=0))[None]
    scalars = torch.tensor([kappa_0], dtype=torch.float64), torch.tensor(kappa, dtype=torch.float64)
    return torch.tensor(u)[None], *scalars, sums


def test_posterior_is_prior_times_likelihood(three_dimensional):
    u, images, _, kappa_0, kappa = three_dimensional
    grid, area = sphere_grid()
    density = vmf3(grid, u, kappa_0) * np.prod([vmf3(grid, x, kappa) for x in images], axis=0)
    mean = (density * area) @ grid / (density @ area)
    directions, concentrations = posterior(*laws(u, images, kappa_0, kappa))
    assert np.allclose(unit(mean), directions[0, 0].numpy(), atol=1e-8)
    expected = float(bessel_ratio(3, concentrations[0, 0]))
    assert np.linalg.norm(mean) == pytest.approx(expected, rel=1e-8)


def test_evidence_is_the_integral_over_directions(three_dimensional):
    u, images, _, kappa_0, kappa = three_dimensional
    grid, area = sphere_grid()
    density = vmf3(grid, u, kappa_0) * np.prod([vmf3(grid, x, kappa) for x in images], axis=0)
    found = log_evidence(*laws(u, images, kappa_0, kappa), torch.tensor([4.0], dtype=torch.float64))
    assert float(found) == pytest.approx(math.log(density @ area), rel=1e-8)


def test_predictive_is_the_integral_of_likelihood_over_posterior(three_dimensional):
    u, images, query, kappa_0, kappa = three_dimensional
    grid, area = sphere_grid()
    density = vmf3(grid, u, kappa_0) * np.prod([vmf3(grid, x, kappa) for x in images], axis=0)
    density /= density @ area
    expected = [math.log((vmf3(grid, x, kappa) * density) @ area) for x in query]
    prior, first, width, sums = laws(u, images, kappa_0, kappa)
    found = log_predictive(torch.tensor(query), *posterior(prior, first, width, sums), width)
    assert np.allclose(found[0, :, 0].numpy(), expected, atol=1e-8)


def test_predictive_integrates_to_one(three_dimensional):
    u, images, _, kappa_0, kappa = three_dimensional
    grid, area = sphere_grid()
    prior, first, width, sums = laws(u, images, kappa_0, kappa)
    found = log_predictive(torch.tensor(grid), *posterior(prior, first, width, sums), width)
    assert np.exp(found[0, :, 0].numpy()) @ area == pytest.approx(1.0, rel=1e-8)


def test_frame_and_posterior_are_the_equations_written_out():
    encoder, d = PlainEncoder(), 16
    data = support_of(encoder, shots=4, views=3)
    fitted = VMFPosterior(VMFPosteriorConfig(strength=3.0)).fit(data, encoder)

    views = data.image_features.double().numpy()
    plain, labels = views[:, 0], data.labels.numpy()
    texts = description_means(encoder, data.descriptions).double().numpy()
    contrasts = texts - texts.mean(axis=0)
    scatter, freedom = np.zeros((d, d)), 0
    for i in range(3):
        residual = plain[labels == i] - plain[labels == i].mean(axis=0)
        scatter += residual.T @ residual
        freedom += len(residual) - 1
    for image in views:
        residual = image - image.mean(axis=0)
        scatter += residual.T @ residual / 2
        freedom += 1
    covariance = scatter / freedom
    covariance /= np.trace(covariance) / d
    root = np.linalg.cholesky((freedom * covariance + d * np.eye(d)) / (freedom + d))
    inside = unit(views @ np.linalg.inv(root).T)
    means = np.stack([inside[labels == i, 0].mean(axis=0) for i in range(3)])
    centre = means.mean(axis=0)
    moved = contrasts @ root
    scale = np.linalg.norm(means - centre, axis=1).mean() / np.linalg.norm(moved, axis=1).mean()
    prior = unit(centre + scale * moved)
    directions = unit(3.0 * prior + 4 * means)
    assert np.allclose(fitted.frame.root.numpy(), root, atol=1e-6)
    assert np.allclose(fitted.class_embeddings.numpy(), directions, atol=1e-6)

    pairs = [inside[a, 0] @ inside[b, 0] for a in range(12) for b in range(a) if labels[a] == labels[b]]
    of_views = [image[a] @ image[b] for image in inside for a in range(3) for b in range(a)]
    cosine = (9 * np.mean(pairs) + 3 * np.mean(of_views)) / 12
    assert float(bessel_ratio(d, fitted.frame.kappa)) == pytest.approx(math.sqrt(cosine), rel=1e-5)
    about = unit(inside - centre)
    pairs = [about[a, 0] @ about[b, 0] for a in range(12) for b in range(a) if labels[a] == labels[b]]
    of_views = [image[a] @ image[b] for image in about for a in range(3) for b in range(a)]
    signal = (9 * np.mean(pairs) + 3 * np.mean(of_views)) / 12
    assert float(fitted.frame.noise) == pytest.approx((1 - signal) / signal, rel=1e-5)

    kappa, kappa_0 = float(fitted.frame.kappa), 3.0 * float(fitted.frame.kappa)
    own = np.linalg.norm(kappa_0 * prior + kappa * 4 * means, axis=1)
    query = unit(plain[:5] @ np.linalg.inv(root).T)
    length = np.linalg.norm(own[:, None, None] * directions[:, None] + kappa * query, axis=2).T
    densities = sum(
        sign * log_normalizer(d, torch.tensor(value, dtype=torch.float64)).numpy()
        for sign, value in ((1, kappa), (1, own), (-1, length))
    )
    logits = fitted.logits(data.image_features[:5, 0]).numpy()
    expected = float(fitted.temperature) * densities
    assert np.allclose(
        logits - logits.mean(1, keepdims=True), expected - expected.mean(1, keepdims=True), atol=1e-4
    )
    mixture = np.log(np.exp(densities - densities.max()).mean(axis=1)) + densities.max()
    assert np.allclose(fitted.log_density(data.image_features[:5, 0]).numpy(), mixture, atol=1e-5)


def held_out_score(data, encoder, config, strength, temperature, noise):
    """Class likelihood of every shot given the others, and the hyperpriors."""
    total = 0.0
    for shot in range(3):
        out = torch.arange(len(data.labels)) % 3 == shot
        rest = Support(
            data.image_features[~out],
            data.labels[~out],
            data.class_names,
            data.descriptions,
            *[data.labels[:0]] * 2,
        )
        fixed = VMFPosteriorConfig(strength=strength)
        fitted = VMFPosterior(fixed).fit(rest, encoder)
        shares = torch.log_softmax(
            temperature / float(fitted.temperature) * fitted.logits(data.image_features[out, 0]).double(),
            dim=1,
        )
        total += float(shares[torch.arange(3), data.labels[out]].sum())
    usual = math.log2(strength / (config.usual_strength * noise)) / config.strength_spread
    warm = math.log2(temperature / config.usual_temperature) / config.temperature_spread
    return total - usual**2 / 2 - warm**2 / 2


def test_rule_maximises_the_held_out_likelihood():
    encoder, config = PlainEncoder(), VMFPosteriorConfig()
    data = support_of(encoder, shots=3, noise=0.6)
    fitted = VMFPosterior(config).fit(data, encoder)
    noise = float(fitted.frame.noise)
    chosen = float(fitted.kappa_0 / fitted.frame.kappa), float(fitted.temperature)
    best = held_out_score(data, encoder, config, *chosen, noise)
    for factor in (0.5, 1.0, 2.0):
        for other in (0.5, 1.0, 2.0):
            found = held_out_score(data, encoder, config, chosen[0] * factor, chosen[1] * other, noise)
            assert found <= best + 1e-4


def test_one_shot_takes_the_usual_strength():
    encoder = PlainEncoder()
    fitted = VMFPosterior().fit(support_of(encoder, shots=1), encoder)
    assert float(fitted.kappa_0 / fitted.frame.kappa) == pytest.approx(
        4 * float(fitted.frame.noise), rel=1e-12
    )


def test_evidence_rule_takes_the_most_likely_strength():
    encoder = PlainEncoder()
    data = support_of(encoder, shots=4)
    fitted = VMFPosterior(VMFPosteriorConfig(rule="evidence")).fit(data, encoder)
    frame, d = fitted.frame, 16
    images = frame.images(data.image_features[:, 0].double())
    sums = torch.stack([images[data.labels == i].sum(dim=0) for i in range(3)])
    texts = description_means(encoder, data.descriptions).double()
    prior = frame.prior(texts - texts.mean(dim=0))

    def evidence(strength):
        first = torch.tensor(strength, dtype=torch.float64) * frame.kappa
        length = (first * prior + frame.kappa * sums).norm(dim=1)
        return float((log_normalizer(d, first) - log_normalizer(d, length)).sum())

    chosen = float(fitted.kappa_0 / frame.kappa)
    assert all(evidence(2.0**power) <= evidence(chosen) + 1e-9 for power in np.arange(-5, 8.5, 0.5))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), shots=st.integers(1, 4))
def test_order_of_images_and_rotation_of_the_sphere_change_nothing(seed, shots):
    encoder = PlainEncoder()
    data = support_of(encoder, shots=shots, seed=seed)
    members = torch.nn.functional.one_hot(data.labels).double()
    contrasts = torch.randn(3, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rotation = torch.linalg.qr(
        torch.randn(16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    )[0]
    order = torch.randperm(len(members), generator=torch.Generator().manual_seed(seed))
    views = data.image_features.double()
    first = fit_frame(Evidence(views, members), contrasts, True)
    other = fit_frame(Evidence(views[order] @ rotation, members[order]), contrasts @ rotation, True)
    assert torch.allclose(first.kappa, other.kappa, rtol=1e-4)
    assert torch.allclose(first.noise, other.noise, rtol=1e-4)
    products = [
        f.images(v) @ f.prior(c).T
        for f, v, c in (
            (first, views[:, 0], contrasts),
            (other, views[:, 0] @ rotation, contrasts @ rotation),
        )
    ]
    assert torch.allclose(*products, atol=1e-5)


def test_mean_cosine_is_that_of_pairs():
    rows = torch.tensor(unit(np.random.default_rng(0).normal(size=(5, 4))))
    pairs = [float(rows[i] @ rows[j]) for i, j in ((0, 1), (2, 3), (2, 4), (3, 4))]
    sums = torch.stack([rows[:2].sum(dim=0), rows[2:].sum(dim=0)])
    assert float(mean_cosine(sums, torch.tensor([2.0, 3.0]))) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_folds_go_round_the_shots():
    assert shot_folds(torch.tensor([0, 0, 0, 1, 1, 1]), 2).tolist() == [0, 1, 0, 0, 1, 0]


def test_a_class_with_one_image_among_larger_ones():
    encoder = PlainEncoder()
    data = support_of(encoder, shots=3)
    kept = torch.tensor([0, 1, 2, 3, 6, 7])  # three, one and two images
    part = Support(
        data.image_features[kept], data.labels[kept], NAMES, data.descriptions, *[data.labels[:0]] * 2
    )
    for method in (VMFPosterior(), VMFCoOpPlus(VMFCoOpPlusConfig(epochs=1))):
        logits = method.fit(part, encoder).logits(data.image_features[:, 0])
        assert logits.isfinite().all() and (logits.argmax(dim=1) == data.labels).all()


def test_equal_images_and_one_class_stay_finite():
    encoder = PlainEncoder()
    data = support_of(encoder, shots=2, views=1, noise=0.0)
    assert VMFPosterior().fit(data, encoder).logits(data.image_features[:, 0]).isfinite().all()
    alone = support_of(encoder, shots=1, views=1, names=("cyst",))
    assert VMFPosterior().fit(alone, encoder).logits(alone.image_features[:, 0]).tolist() == [[0.0]]


def test_more_evidence_outgrows_a_wrong_prior():
    """The texts point to the next class's images: one shot is not enough, sixteen are."""
    encoder = PlainEncoder()
    texts = tuple(template_bank(NAMES).for_classes(NAMES))
    means = description_means(encoder, texts)
    centres = torch.nn.functional.normalize(means - means.mean(dim=0), dim=1).roll(1, 0)
    draw = torch.Generator().manual_seed(0)
    query, truth = around(centres, 50, 1, draw, 0.25)

    def accuracy(shots):
        features, labels = around(centres, shots, 3, draw, 0.25)
        data = Support(features, labels, NAMES, texts, features[:0, 0], labels[:0])
        fitted = VMFPosterior().fit(data, encoder)
        return float((fitted.logits(query[:, 0]).argmax(dim=1) == truth).float().mean())

    assert accuracy(1) < 0.5
    assert accuracy(16) > 0.9


def test_density_is_lower_far_from_every_class():
    encoder = PlainEncoder()
    data = support_of(encoder, shots=8)
    fitted = VMFPosterior().fit(data, encoder)
    near = fitted.log_density(support_of(encoder, shots=8, seed=5).image_features[:, 0])
    far = fitted.log_density(
        torch.nn.functional.normalize(-data.image_features.mean(dim=(0, 1))[None], dim=1)
    )
    assert near.dtype == torch.float64 and near.shape == (24,)
    assert float(near.min()) > float(far)


@pytest.mark.parametrize(
    "method",
    [
        VMFPosterior(),
        VMFPosterior(VMFPosteriorConfig(prior="anchors")),
        VMFCoOpPlus(VMFCoOpPlusConfig(epochs=2)),
        VMFCoOpPlus(VMFCoOpPlusConfig(epochs=2, held_out_prompts=True)),
    ],
)
def test_restored_and_new_classes(method):
    encoder = PlainEncoder()
    data = support_of(encoder)
    fitted = method.fit(data, encoder)
    restored = method.restore(fitted.state(), NAMES, encoder)
    query = data.image_features[:, 0]
    assert torch.equal(fitted.logits(query), restored.logits(query))
    assert all(torch.equal(restored.state()[key], value) for key, value in fitted.state().items())
    other = fitted.for_classes(["polyp", "stone", "ulcer"])
    assert torch.equal(other.class_embeddings[1], fitted.class_embeddings[1])
    assert torch.equal(restored.for_classes(["polyp", "stone", "ulcer"]).logits(query), other.logits(query))
    assert float(other.concentrations[0]) == float(fitted.kappa_0)


def test_new_classes_are_the_prior_of_their_texts():
    encoder = PlainEncoder()
    fitted = VMFPosterior().fit(support_of(encoder), encoder)
    texts = (("a polyp seen here",), ("an ulcer", "a deep ulcer"))
    found = fitted.for_classes(["polyp", "ulcer"], texts)
    contrasts = description_means(encoder, texts).double()
    contrasts = (contrasts - contrasts.mean(dim=0)).numpy() @ fitted.frame.root.double().numpy()
    expected = unit(fitted.frame.image_mean.numpy() + float(fitted.frame.text_scale) * contrasts)
    assert np.allclose(found.class_embeddings.numpy(), expected, atol=1e-10)


def test_held_out_prompts_see_no_image_of_their_fold():
    """Prompts learned without a fold do not change when its images do."""
    encoder = PlainEncoder()
    data = support_of(encoder, shots=2)
    seen = []

    class Recorder(VMFCoOpPlus):
        def _learn(self, supports, *rest):
            seen.append([support.image_features for support in supports])
            return super()._learn(supports, *rest)

    Recorder(VMFCoOpPlusConfig(epochs=1, held_out_prompts=True)).fit(data, encoder)
    whole, parts = seen
    assert torch.equal(whole[0], data.image_features)
    for fold, features in enumerate(parts):
        assert torch.equal(features, data.image_features[torch.arange(6) % 2 != fold])


def test_plus_with_several_seeds_is_plus_with_each():
    encoder = PlainEncoder()
    supports = [support_of(encoder, seed=seed) for seed in (1, 2)]
    config = VMFCoOpPlusConfig(epochs=2, held_out_prompts=True)
    together = VMFCoOpPlus(config).fit_seeds(supports, [1, 2], encoder)
    for fit, data, seed in zip(together, supports, (1, 2), strict=True):
        alone = VMFCoOpPlus(config.model_copy(update={"seed": seed})).fit(data, encoder)
        query = data.image_features[:, 0]
        assert torch.allclose(fit.logits(query), alone.logits(query), atol=1e-3)
        assert fit.history[-1]["epoch"] == 1


def test_settings_are_checked():
    with pytest.raises(UserError, match="'strength' cannot be"):
        make_config(VMFPosteriorConfig, {"strength": "0"})
    assert make_config(VMFCoOpPlusConfig, {"epochs": "7", "strength": "2"}).epochs == 7
