"""ProLIP: a regularised linear map of the image features, learned by cross-entropy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, Method, MethodConfig, Support
from vmfcoop.methods.image_adapter import ImageAdapterClassifier
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, Terms, TrainingConfig, optimise


class ProLIPConfig(MethodConfig):
    """Settings of ProLIP's variant without validation.

    The public code sets Adam's epsilon to 1e-4; here it is torch's 1e-8.

    Attributes:
        iterations: steps of Adam, each on the whole support set, one random view an image; cosine schedule.
        learning_rate: its start. The paper reports 1e-5, 1e-4, 1e-3 and 1e-2 side by side.
        penalty: lambda, weight of ``|A - I|_F^2``; without, 1/K.
    """

    iterations: int = Field(300, ge=1)
    learning_rate: float = Field(0.001, gt=0)
    penalty: float | None = Field(None, ge=0)


@dataclass
class ProLIPClassifier(ImageAdapterClassifier):
    """Logits ``s f' . t_i`` with ``f' = normalize(f A)``.

    Attributes:
        matrix: A, shape ``(d, d)``.
    """

    matrix: Tensor

    def adapted(self, image_features: Tensor) -> Tensor:
        return normalize(image_features @ self.matrix, dim=-1)

    def state(self) -> dict[str, Tensor]:
        return {
            "class_embeddings": self.class_embeddings,
            "logit_scale": torch.tensor(self.logit_scale, dtype=torch.float64),
            "matrix": self.matrix,
        }


class ProLIP(Method[ProLIPConfig]):
    """ProLIP (Fahes et al., 2024): minimise ``CE(y, softmax(s f' . t)) + lambda |A - I|_F^2`` over A.

    The paper (arXiv:2410.05270) fine-tunes the image tower's last matrix W, from its pretrained W0, with the
    penalty ``lambda |W - W0|_F^2``, and ``lambda = 1/K`` where there is no validation set. A method here sees
    unit features after that matrix, ``f = normalize(h W0)``, and learns ``f' = normalize(f A)``, from
    ``A = I``. That is the paper's ProLIP with ``W = W0 A``: ``normalize(f A) = normalize(h W0 A)``, since the
    unknown length of ``h W0`` cancels. The penalties are equal where W0 has orthonormal columns, since then
    ``|W0 A - W0|_F = |A - I|_F``. Where h is wider than f, the paper's W has more freedom than ``W0 A``. A
    bias of the projection, frozen in the paper, is mapped here with the rest. The paper calls this form the
    Regularised Linear Adapter, for towers whose weights cannot be reached.
    """

    name = "prolip"
    title = "ProLIP"
    Config = ProLIPConfig
    new_classes = True

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        identity = torch.eye(encoder.dim)
        weights = identity.clone().requires_grad_()
        embeddings = name_embeddings(encoder, support.class_names)
        classifier = ProLIPClassifier(support.class_names, embeddings, encoder.logit_scale, encoder, weights)
        penalty = 1 / support.shots if self.config.penalty is None else self.config.penalty

        def objective(batch: Batch) -> Terms:
            ce = cross_entropy(classifier.logits(batch.features), batch.labels)
            deviation = (weights - identity).square().sum()
            return {"loss": ce + penalty * deviation, "ce": ce, "deviation": deviation}

        features, labels = support.image_features, support.labels
        history = optimise(objective, [weights], features, labels, self._loop(len(labels)), progress)
        return replace(classifier, matrix=weights.detach(), history=history)

    def _loop(self, images: int) -> TrainingConfig:
        """Whole-set steps of Adam, which is AdamW without weight decay."""
        return TrainingConfig.model_validate(
            {
                "seed": self.config.seed,
                "epochs": self.config.iterations,
                "batch_size": images,
                "learning_rate": self.config.learning_rate,
                "optimizer": "adamw",
                "weight_decay": 0,
                "warmup_epochs": 0,
            }
        )

    def restore(
        self, state: Mapping[str, Tensor], class_names: Sequence[str], encoder: DualEncoder
    ) -> Fitted:
        return ProLIPClassifier(
            tuple(class_names),
            state["class_embeddings"],
            float(state["logit_scale"]),
            encoder,
            state["matrix"],
        )
