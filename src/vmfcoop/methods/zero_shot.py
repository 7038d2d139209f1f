"""Zero-shot classification: no training, the class name in a template or the mean of its descriptions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import EmbeddingClassifier, Fitted, Method, MethodConfig, Support
from vmfcoop.progress import ProgressReport, no_progress


class ZeroShotConfig(MethodConfig):
    """Settings of zero-shot classification.

    Attributes:
        text: ``name`` for the template with the class name; ``descriptions`` for the normalised mean of the
            embeddings of the class's descriptions.
        template: where ``{}`` takes the class name.
    """

    text: Literal["name", "descriptions"] = "name"
    template: str = "a photo of a {}."


@dataclass
class ZeroShotClassifier(EmbeddingClassifier):
    """Class embeddings straight from the text tower; new classes by their names."""

    encoder: DualEncoder | None = None
    template: str = "a photo of a {}."

    def for_classes(self, class_names: Sequence[str]) -> Fitted:
        assert self.encoder is not None
        texts = [self.template.format(name) for name in class_names]
        return ZeroShotClassifier(
            tuple(class_names),
            self.encoder.encode_texts(texts),
            self.logit_scale,
            [],
            self.encoder,
            self.template,
        )


class ZeroShot(Method[ZeroShotConfig]):
    """Zero-shot CLIP (Radford et al., ICML 2021): ``argmax_i s f . t_i``.

    t_i is the unit embedding of "a photo of a <class i>.", or ``normalize(mean_j e_ij)`` over the unit
    embeddings e_ij of the class's descriptions.
    """

    name = "zero-shot"
    title = "Zero-shot"
    Config = ZeroShotConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        if self.config.text == "name":
            embeddings = encoder.encode_texts(
                [self.config.template.format(name) for name in support.class_names]
            )
        else:
            means = [encoder.encode_texts(list(texts)).mean(dim=0) for texts in support.descriptions]
            embeddings = torch.nn.functional.normalize(torch.stack(means), dim=1)
        return self._classifier(support.class_names, embeddings, encoder.logit_scale, encoder)

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return self._classifier(class_names, state["class_embeddings"], float(state["logit_scale"]), encoder)

    def _classifier(
        self, names: Sequence[str], embeddings: Tensor, scale: float, encoder: DualEncoder
    ) -> Fitted:
        return ZeroShotClassifier(tuple(names), embeddings, scale, [], encoder, self.config.template)
