"""Zero-shot classification by descriptions: the mean of what an LLM says of each class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binom
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.descriptions.bank import template_bank
from vmfcoop.methods.base import EmbeddingClassifier, Fitted, Method, MethodConfig, Support
from vmfcoop.progress import ProgressReport, no_progress

MISLEADING = 0.01
"""Level of the test whether descriptions recognise fewer images than chance would."""


def description_means(encoder: DualEncoder, descriptions: Sequence[Sequence[str]]) -> Tensor:
    """``normalize(mean_j e_ij)`` over the unit embeddings of each class's texts, shape ``(C, d)``, CPU."""
    means = [encoder.encode_texts(list(texts)).mean(dim=0) for texts in descriptions]
    return normalize(torch.stack(means), dim=1)


@dataclass(frozen=True)
class TextCheck:
    """How well the descriptions alone recognise images whose classes are known.

    Attributes:
        images: n of them.
        recognised: how many lie nearest the mean of their own class's descriptions.
        chance: 1 / C.
    """

    images: int
    recognised: int
    chance: float

    @property
    def misleads(self) -> bool:
        """Whether so few would be rare by chance: ``P(X <= recognised) < 0.01``, X binomial (n, 1 / C)."""
        return bool(binom.cdf(self.recognised, self.images, self.chance) < MISLEADING)


def check_texts(support: Support, encoder: DualEncoder) -> TextCheck:
    """Classify the plain support and validation images by the means of the descriptions."""
    features = torch.cat([support.image_features[:, 0], support.validation_features]).cpu()
    labels = torch.cat([support.labels, support.validation_labels]).cpu()
    nearest = (features @ description_means(encoder, support.descriptions).T).argmax(dim=1)
    return TextCheck(len(labels), int((nearest == labels).sum()), 1 / len(support.class_names))


@dataclass
class EnsembleClassifier(EmbeddingClassifier):
    """Class embeddings from descriptions; new classes by theirs, or by filled templates."""

    encoder: DualEncoder | None = None

    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> Fitted:
        assert self.encoder is not None
        texts = descriptions or template_bank(class_names).for_classes(class_names)
        means = description_means(self.encoder, texts)
        return EnsembleClassifier(tuple(class_names), means, self.logit_scale, [], self.encoder)


class ZeroShotEnsemble(Method[MethodConfig]):
    """Zero-shot CLIP with a prompt ensemble: ``argmax_i s f . normalize(mean_j e_ij)``.

    Radford et al., ICML 2021, section 3.1.4, with an LLM's descriptions as the ensemble (Menon & Vondrick,
    ICLR 2023).
    """

    name = "zero-shot-ensemble"
    title = "Zero-shot (descriptions)"
    Config = MethodConfig
    new_classes = True
    reads_descriptions = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        means = description_means(encoder, support.descriptions)
        return EnsembleClassifier(support.class_names, means, encoder.logit_scale, [], encoder)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        scale = float(state["logit_scale"])
        return EnsembleClassifier(tuple(class_names), state["class_embeddings"], scale, [], encoder)
