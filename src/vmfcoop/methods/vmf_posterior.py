"""Class directions as von Mises-Fisher posteriors: texts are the prior, support images the evidence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.methods.base import Fitted, History, Method, MethodConfig, Support
from vmfcoop.methods.zero_shot_ensemble import description_means
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.sphere import inverse_bessel_ratio, log_normalizer, semantic_anchors

# Half octaves of kappa_0 / kappa and of the temperature.
_STRENGTHS = torch.exp2(torch.arange(-5, 8.5, 0.5, dtype=torch.float64))
_TEMPERATURES = torch.exp2(torch.arange(-7, 1.5, 0.5, dtype=torch.float64))
_MAX_FOLDS = 8
# Shares of signal outside of this say no more than "all noise" and "no noise".
_SHARES = (0.02, 0.98)
# The concentration is finite even where all images of a class are one.
_MAX_COSINE = 1 - 1e-6


TextsOf = Callable[[Sequence[str], Sequence[Sequence[str]]], Tensor]
"""Class names and descriptions -> text embeddings ``(C, d)``."""


class PosteriorConfig(MethodConfig):
    """Settings of the posterior; every default was chosen once for all data (docs/vmf-posterior.md).

    Attributes:
        strength: rho = kappa_0 / kappa, how many images the prior counts as; without, by the rule.
        rule: how rho is chosen from the support set: ``held-out`` class likelihood, or ``evidence`` (type-II
            maximum likelihood).
        whiten: shrink the directions in which images of one class differ.
        augmented: learn the noise of one image from all cached views, not from the plain ones alone.
        usual_strength: centre of the hyperprior on rho where an image's noise equals its signal.
        strength_spread: standard deviation of the hyperprior on rho, in octaves.
        usual_temperature: centre of the hyperprior on the temperature.
        temperature_spread: its standard deviation, in octaves.
    """

    strength: float | None = Field(None, gt=0)
    rule: Literal["held-out", "evidence"] = "held-out"
    whiten: bool = True
    augmented: bool = True
    usual_strength: float = Field(4.0, gt=0)
    strength_spread: float = Field(1.0, gt=0)
    usual_temperature: float = Field(0.06, gt=0)
    temperature_spread: float = Field(1.0, gt=0)


class VMFPosteriorConfig(PosteriorConfig):
    """Settings of the posterior with texts as its prior.

    Attributes:
        prior: the texts of a class: the mean of its ``descriptions``, or vMFCoOp's ``anchors``.
        vocabulary_sample: for anchors, as in vMFCoOp.
    """

    prior: Literal["descriptions", "anchors"] = "descriptions"
    vocabulary_sample: int | None = Field(None, ge=2)


def posterior(prior: Tensor, kappa_0: Tensor, kappa: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
    """Posterior vMF law of a class direction: ``kappa_n m_n = kappa_0 u + kappa sum_j x_j``.

    Args:
        prior: u, unit rows, shape ``(C, d)``.
        kappa_0: prior concentrations, shape ``(R,)``.
        kappa: concentration of the images of a class, scalar.
        sums: ``sum_j x_j`` of each class, shape ``(C, d)``.

    Returns:
        Mean directions m_n, unit rows, shape ``(R, C, d)``, and concentrations kappa_n, shape ``(R, C)``.
    """
    total = kappa_0[:, None, None] * prior + kappa * sums
    length: Tensor = torch.linalg.vector_norm(total, dim=2)
    return total / length[..., None], length


def log_predictive(features: Tensor, directions: Tensor, concentrations: Tensor, kappa: Tensor) -> Tensor:
    """Log-density of an image under a class, its direction integrated out.

    ``log p(x) = log C_d(kappa) + log C_d(kappa_n) - log C_d(|kappa_n m_n + kappa x|)``

    Args:
        features: x, unit rows, shape ``(n, d)``.
        directions: m_n, unit rows, shape ``(..., C, d)``.
        concentrations: kappa_n, shape ``(..., C)``.
        kappa: scalar.

    Returns:
        Shape ``(..., n, C)``, float64, in nats.
    """
    dim = features.shape[1]
    own = concentrations[..., None, :]
    cosines = features @ directions.transpose(-1, -2)
    length = (own.square() + kappa.square() + 2 * kappa * own * cosines).clamp_min(0).sqrt()
    return log_normalizer(dim, kappa) + log_normalizer(dim, own) - log_normalizer(dim, length)


def log_evidence(prior: Tensor, kappa_0: Tensor, kappa: Tensor, sums: Tensor, counts: Tensor) -> Tensor:
    """Log marginal likelihood of the support, the class directions integrated out, shape ``(R,)``.

    ``sum_i [log C_d(kappa_0) + n_i log C_d(kappa) - log C_d(|kappa_0 u_i + kappa sum_j x_j|)]``

    Args:
        prior, kappa_0, kappa, sums: as :func:`posterior` has them.
        counts: n_i, shape ``(C,)``.
    """
    dim = prior.shape[1]
    _, length = posterior(prior, kappa_0, kappa, sums)
    start = log_normalizer(dim, kappa_0)[:, None] + counts * log_normalizer(dim, kappa)
    return (start - log_normalizer(dim, length)).sum(dim=1)


def mean_cosine(groups: Tensor, counts: Tensor) -> Tensor:
    """Mean cosine of two different unit rows of one group, from the sums ``(G, d)`` of ``(G,)`` rows each."""
    pairs = (counts * (counts - 1)).sum()
    return (groups.square().sum(dim=1) - counts).sum() / pairs


@dataclass(frozen=True)
class Frame:
    """The sphere on which the posterior is computed, fitted to support images.

    Attributes:
        root: lower Cholesky factor L of the within-class covariance, shape ``(d, d)``, float32, to be kept in
            a state; images become ``normalize(L^-1 x)``.
        image_mean: of the images there, the mean of the class means, shape ``(d,)``.
        text_scale: length of an image contrast over that of a text contrast.
        kappa: concentration of the images of one class.
        noise: noise-to-signal ratio of an image about ``image_mean``.
    """

    root: Tensor
    image_mean: Tensor
    text_scale: Tensor
    kappa: Tensor
    noise: Tensor

    def images(self, features: Tensor) -> Tensor:
        """Unit rows of the backbone's sphere, shape ``(..., d)``, float64 -> unit rows of this one."""
        flat = features.flatten(0, -2)
        solved = torch.linalg.solve_triangular(self.root.double(), flat.T, upper=False).T
        return normalize(solved, dim=1).reshape(features.shape)

    def prior(self, contrasts: Tensor) -> Tensor:
        """Text contrasts ``(C, d)`` -> prior directions u: the image mean moved by each, unit rows.

        A text is a weight on image features, so it becomes ``L^T t``: its products with images stay as they
        are.
        """
        return normalize(self.image_mean + self.text_scale * (contrasts @ self.root.double()), dim=1)


@dataclass(frozen=True)
class Evidence:
    """Support images in float64, or some of them.

    Attributes:
        views: unit rows, shape ``(n, V, d)``; view 0 is plain.
        members: one row an image that is 1 at its class, shape ``(n, C)``.
    """

    views: Tensor
    members: Tensor

    def part(self, rows: Tensor) -> Evidence:
        """Some of the images."""
        return Evidence(self.views[rows], self.members[rows])

    @property
    def plain(self) -> Tensor:
        return self.views[:, 0]

    @property
    def counts(self) -> Tensor:
        """n_i, shape ``(C,)``."""
        return self.members.sum(dim=0)

    def class_means(self, features: Tensor) -> Tensor:
        """Means by class of one row an image, shape ``(C, d)``; 0 where a class has none."""
        return self.members.T @ features / self.counts.clamp_min(1)[:, None]


def fit_frame(evidence: Evidence, contrasts: Tensor, whiten: bool) -> Frame:
    """The frame of support images and of text contrasts ``(C, d)``."""
    dim = contrasts.shape[1]
    root = _covariance_root(evidence) if whiten else torch.eye(dim)
    zero = torch.zeros((), dtype=torch.float64)
    views = Frame(root, zero, zero, zero, zero).images(evidence.views)
    means = evidence.class_means(views[:, 0])[evidence.counts > 0]
    centre = means.mean(dim=0)
    length = torch.linalg.vector_norm(means - centre, dim=1).mean()
    text_length = torch.linalg.vector_norm(contrasts @ root.double(), dim=1).mean()
    scale = length / text_length if length > 0 and text_length > 0 else torch.ones_like(length)
    cosine = _within_cosine(views, evidence, torch.zeros_like(centre)).clamp(0, _MAX_COSINE)
    signal = _within_cosine(views, evidence, centre).clamp(*_SHARES)
    return Frame(root, centre, scale, inverse_bessel_ratio(dim, cosine.sqrt()), (1 - signal) / signal)


def _covariance_root(evidence: Evidence) -> Tensor:
    """Cholesky factor of the pooled within-class covariance, shrunk to a multiple of the identity.

    Residuals from class means have n - C degrees of freedom; those of an image's views from their mean count
    as one an image. The shrinkage is the empirical Bayes one of an inverse Wishart prior with d degrees of
    freedom (Kubokawa & Srivastava, J. Multivar. Anal. 99:1906-1928, 2008): its weight is d / (d + dof).
    """
    views = evidence.views
    count, number, dim = views.shape
    residuals = evidence.plain - evidence.members @ evidence.class_means(evidence.plain)
    scatter = residuals.T @ residuals
    freedom = float((evidence.counts - 1).clamp_min(0).sum())
    if number > 1:
        spread = (views - views.mean(dim=1, keepdim=True)).flatten(0, 1)
        scatter = scatter + spread.T @ spread / (number - 1)
        freedom += count
    mean_variance = scatter.trace() / dim
    if mean_variance <= 0:
        return torch.eye(dim)
    identity = torch.eye(dim, dtype=torch.float64)
    root: Tensor = torch.linalg.cholesky(
        (freedom * scatter / mean_variance + dim * identity) / (freedom + dim)
    )
    return root.float()


def _within_cosine(views: Tensor, evidence: Evidence, centre: Tensor) -> Tensor:
    """Mean cosine, about a centre, of two images of a class, pooled with that of two views of an image.

    Views weigh as one image a class: with one shot they are all there is to see of the noise. Without views
    and pairs it is 1/2: as much noise as signal.
    """
    around = normalize(views - centre, dim=2)
    cosine, weight = torch.zeros((), dtype=torch.float64), 0.0
    number, present = views.shape[1], int((evidence.counts > 0).sum())
    if number > 1:
        cosine += present * mean_cosine(around.sum(dim=1), cosine.new_full((len(views),), number))
        weight += present
    pairs = float((evidence.counts - 1).clamp_min(0).sum())
    if pairs:
        cosine += pairs * mean_cosine(evidence.members.T @ around[:, 0], evidence.counts)
        weight += pairs
    return cosine / weight if weight else cosine + 0.5


@dataclass
class PosteriorClassifier(Fitted):
    """Logits ``T log p(x | class)`` from the posterior predictive density of each class.

    New classes are known by their texts alone: their law is the prior. Their contrasts are taken about the
    mean of the texts that are asked for together; classes of the support set keep their posterior.

    Attributes:
        class_names: C names.
        class_embeddings: m_n, posterior mean directions on the frame's sphere, shape ``(C, d)``, float64.
        concentrations: kappa_n, shape ``(C,)``, float64.
        frame: that sphere.
        kappa_0: prior concentration, scalar.
        temperature: T, scalar.
        texts_of: names and descriptions -> text embeddings ``(C, d)``, for new classes.
        extra: further tensors to keep in the state.
    """

    class_names: tuple[str, ...]
    class_embeddings: Tensor
    concentrations: Tensor
    frame: Frame
    kappa_0: Tensor
    temperature: Tensor
    texts_of: TextsOf
    history: History = field(default_factory=list)
    extra: dict[str, Tensor] = field(default_factory=dict)

    def logits(self, image_features: Tensor) -> Tensor:
        densities = self.temperature * self._log_densities(image_features)
        return (densities - densities.amax(dim=1, keepdim=True)).float()

    @torch.no_grad()
    def log_density(self, image_features: Tensor) -> Tensor:
        """Log-density of images under the equal mixture of the classes, to reject what is none of them.

        Args:
            image_features: unit rows, shape ``(n, d)``.

        Returns:
            Shape ``(n,)``, float64, nats, with respect to the area of the frame's sphere.
        """
        return self._log_densities(image_features).logsumexp(dim=1) - math.log(len(self.class_names))

    def _log_densities(self, image_features: Tensor) -> Tensor:
        features = self.frame.images(image_features.double())
        return log_predictive(features, self.class_embeddings, self.concentrations, self.frame.kappa)

    @torch.no_grad()
    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> PosteriorClassifier:
        texts = descriptions or template_bank(class_names).for_classes(class_names)
        directions = self.frame.prior(_contrasts(self.texts_of(class_names, texts)))
        concentrations = self.kappa_0.repeat(len(class_names))
        for row, name in enumerate(class_names):
            if name in self.class_names:
                known = self.class_names.index(name)
                directions[row] = self.class_embeddings[known]
                concentrations[row] = self.concentrations[known]
        return PosteriorClassifier(
            tuple(class_names),
            directions,
            concentrations,
            self.frame,
            self.kappa_0,
            self.temperature,
            self.texts_of,
        )

    def state(self) -> dict[str, Tensor]:
        frame = self.frame
        return {
            "class_embeddings": self.class_embeddings,
            "concentrations": self.concentrations,
            "root": frame.root,
            "image_mean": frame.image_mean,
            "text_scale": frame.text_scale,
            "kappa": frame.kappa,
            "noise": frame.noise,
            "kappa_0": self.kappa_0,
            "temperature": self.temperature,
            **self.extra,
        }

    @classmethod
    def restored(
        cls, state: Mapping[str, Tensor], class_names: Sequence[str], texts_of: TextsOf
    ) -> PosteriorClassifier:
        """The classifier that :meth:`state` was taken from."""
        frame = Frame(*(state[key] for key in ("root", "image_mean", "text_scale", "kappa", "noise")))
        return cls(
            tuple(class_names),
            state["class_embeddings"],
            state["concentrations"],
            frame,
            state["kappa_0"],
            state["temperature"],
            texts_of,
        )


def _contrasts(texts: Tensor) -> Tensor:
    """Text embeddings ``(C, d)`` -> their differences from the mean, float64."""
    wide = texts.double()
    return wide - wide.mean(dim=0)


def shot_folds(labels: Tensor, most: int = _MAX_FOLDS) -> Tensor:
    """Number of the fold that holds each image out, shape ``(n,)``: the shots of a class go round the folds.

    There are ``min(K, most)`` folds, K being the images of the largest class.

    Example:
        >>> shot_folds(torch.tensor([0, 0, 1, 1, 1]))
        tensor([0, 1, 0, 1, 2])
    """
    members = one_hot(labels)
    shot = (members.cumsum(dim=0) * members).sum(dim=1) - 1
    return shot % most


def fit_posterior(
    support: Support,
    texts: Tensor,
    held_out_texts: Sequence[Tensor],
    folds: Tensor,
    texts_of: TextsOf,
    config: PosteriorConfig,
) -> PosteriorClassifier:
    """Choose rho and the temperature from the support set, and take the posterior with them.

    Args:
        support: images and labels.
        texts: prior text embeddings of the classes, shape ``(C, d)``.
        held_out_texts: for each fold, those that do not know its images.
        folds: number of the fold that holds each image out, shape ``(n,)``.
        texts_of: for new classes.
        config: settings.
    """
    views = support.image_features.double().cpu()
    members = one_hot(support.labels.cpu(), len(support.class_names)).double()
    evidence = Evidence(views if config.augmented else views[:, :1], members)
    contrasts = _contrasts(texts)
    frame = fit_frame(evidence, contrasts, config.whiten)
    sums = evidence.members.T @ frame.images(evidence.plain)
    strengths = _strengths(frame, contrasts, sums, evidence, config)
    held_out = _held_out(evidence, folds, held_out_texts, strengths, config)
    strength, temperature = _choose(held_out, evidence, strengths, frame, config)
    kappa_0 = strength * frame.kappa
    directions, concentrations = posterior(frame.prior(contrasts), kappa_0[None], frame.kappa, sums)
    return PosteriorClassifier(
        support.class_names, directions[0], concentrations[0], frame, kappa_0, temperature, texts_of
    )


def _strengths(
    frame: Frame, contrasts: Tensor, sums: Tensor, evidence: Evidence, config: PosteriorConfig
) -> Tensor:
    """The values of rho that remain to choose from before any image is held out, shape ``(R,)``."""
    if config.strength is not None:
        return torch.tensor([config.strength], dtype=torch.float64)
    if config.rule == "evidence":
        kappa_0 = _STRENGTHS * frame.kappa
        found = log_evidence(frame.prior(contrasts), kappa_0, frame.kappa, sums, evidence.counts)
        return _STRENGTHS[found.argmax()][None]
    if int(evidence.counts.max()) == 1:
        return (config.usual_strength * frame.noise)[None]
    return _STRENGTHS


def _held_out(
    evidence: Evidence,
    folds: Tensor,
    texts: Sequence[Tensor],
    strengths: Tensor,
    config: PosteriorConfig,
) -> Tensor:
    """Log predictive densities of every image under the posteriors of the others, shape ``(R, n, C)``.

    With one shot nothing is left to learn from: the prior alone is scored, in the frame of the whole set.
    """
    found = torch.empty(len(strengths), *evidence.members.shape, dtype=torch.float64)
    for fold, embeddings in enumerate(texts):
        out = folds == fold
        alone = bool(out.all())
        rest = evidence if alone else evidence.part(~out)
        contrasts = _contrasts(embeddings)
        frame = fit_frame(rest, contrasts, config.whiten)
        images = frame.images(rest.plain)
        sums = torch.zeros_like(contrasts) if alone else rest.members.T @ images
        laws = posterior(frame.prior(contrasts), strengths * frame.kappa, frame.kappa, sums)
        found[:, out] = log_predictive(frame.images(evidence.plain[out]), *laws, frame.kappa)
    return found


def _choose(
    held_out: Tensor, evidence: Evidence, strengths: Tensor, frame: Frame, config: PosteriorConfig
) -> tuple[Tensor, Tensor]:
    """rho and the temperature of the highest held-out class likelihood times hyperpriors, scalars.

    Both hyperpriors are normal in the logarithm. That on rho is centred on ``usual_strength`` times the
    noise-to-signal ratio of an image.
    """
    likelihood = torch.stack(
        [((t * held_out).log_softmax(dim=-1) * evidence.members).sum(dim=(-1, -2)) for t in _TEMPERATURES]
    )
    strength = (strengths / (config.usual_strength * frame.noise)).log2() / config.strength_spread
    temperature = (_TEMPERATURES / config.usual_temperature).log2() / config.temperature_spread
    score = likelihood - strength.square() / 2 - temperature.square()[:, None] / 2
    best = int(score.argmax())
    row, column = divmod(best, len(strengths))
    return strengths[column], _TEMPERATURES[row]


class VMFPosterior(Method[VMFPosteriorConfig]):
    """Posterior of a class direction on the sphere: ``kappa_n m_n = kappa_0 u + kappa sum_j x_j``.

    Texts give the prior direction u, support images x_j the evidence; classes are compared by the predictive
    density of an image. Nothing is trained. See docs/vmf-posterior.md.
    """

    name = "vmf-posterior"
    title = "vMF posterior"
    Config = VMFPosteriorConfig
    new_classes = True
    reads_descriptions = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        texts_of = self._texts_of(encoder)
        texts = texts_of(support.class_names, support.descriptions)
        folds = shot_folds(support.labels.cpu())
        count = int(folds.max()) + 1
        return fit_posterior(support, texts, [texts] * count, folds, texts_of, self.config)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return PosteriorClassifier.restored(state, class_names, self._texts_of(encoder))

    def _texts_of(self, encoder: DualEncoder) -> TextsOf:
        def descriptions(names: Sequence[str], texts: Sequence[Sequence[str]]) -> Tensor:
            return description_means(encoder, texts)

        def anchors(names: Sequence[str], texts: Sequence[Sequence[str]]) -> Tensor:
            entries = encoder.encode_vocabulary(self.config.vocabulary_sample)
            return semantic_anchors(entries, [encoder.encode_texts(list(rows)) for rows in texts]).anchors

        return descriptions if self.config.prior == "descriptions" else anchors
