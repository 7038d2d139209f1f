"""Zero-shot classification: no training, the class name in a template."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import one_hot

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import EmbeddingClassifier, Fitted, Method, MethodConfig, Support
from vmfcoop.progress import ProgressReport, no_progress

TEMPLATE = "a photo of a {}."


def name_embeddings(encoder: DualEncoder, class_names: Sequence[str], template: str = TEMPLATE) -> Tensor:
    """t_i: unit embeddings of the class names in a template, shape ``(C, d)``, CPU."""
    return encoder.encode_texts([template.format(name) for name in class_names])


def own_class_probability(features: Tensor, labels: Tensor, texts: Tensor, logit_scale: float) -> Tensor:
    """Mean zero-shot probability of class i over the images of class i, shape ``(C,)``.

    How far texts can be trusted on a support set: CLAP's multipliers (Silva-Rodriguez et al., CVPR 2024).

    Args:
        features: unit rows, shape ``(n, d)``.
        labels: shape ``(n,)``; every class occurs.
        texts: unit embedding of each class, shape ``(C, d)``.
        logit_scale: s.

    Example:
        >>> own_class_probability(torch.eye(2), torch.tensor([0, 1]), torch.eye(2), 0.0)
        tensor([0.5000, 0.5000])
    """
    members = one_hot(labels, len(texts)).to(features)
    probabilities = (logit_scale * features @ texts.T).softmax(dim=1)
    return (members * probabilities).sum(dim=0) / members.sum(dim=0)


class ZeroShotConfig(MethodConfig):
    """Settings of zero-shot classification.

    Attributes:
        template: where ``{}`` takes the class name.
    """

    template: str = TEMPLATE


@dataclass
class ZeroShotClassifier(EmbeddingClassifier):
    """Class embeddings straight from the text tower; new classes by their names."""

    encoder: DualEncoder | None = None
    template: str = TEMPLATE

    def for_classes(
        self, class_names: Sequence[str], descriptions: Sequence[Sequence[str]] | None = None
    ) -> Fitted:
        assert self.encoder is not None
        embeddings = name_embeddings(self.encoder, class_names, self.template)
        return ZeroShotClassifier(
            tuple(class_names), embeddings, self.logit_scale, [], self.encoder, self.template
        )


class ZeroShot(Method[ZeroShotConfig]):
    """Zero-shot CLIP (Radford et al., ICML 2021): ``argmax_i s f . t_i``, t_i of "a photo of a <class>."."""

    name = "zero-shot"
    title = "Zero-shot (name)"
    Config = ZeroShotConfig
    new_classes = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        names = support.class_names
        embeddings = name_embeddings(encoder, names, self.config.template)
        return ZeroShotClassifier(names, embeddings, encoder.logit_scale, [], encoder, self.config.template)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        scale = float(state["logit_scale"])
        return ZeroShotClassifier(
            tuple(class_names), state["class_embeddings"], scale, [], encoder, self.config.template
        )
