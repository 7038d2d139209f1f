"""CLAP: a linear probe held to the text embeddings, each class as firmly as zero-shot deserves."""

from __future__ import annotations

import math

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.methods.base import Fitted, LinearClassifier, Support
from vmfcoop.methods.linear import LinearMethod, samples
from vmfcoop.methods.zero_shot import name_embeddings, own_class_probability
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.training import Batch, Terms, TrainingConfig, optimise


class CLAPConfig(TrainingConfig):
    """Settings of CLAP, those of the public code where it has them.

    Attributes:
        text_norm: r, the length of the text embeddings that the probe starts at; default the square root of
            the logit scale (our reading, see :class:`CLAP`).
    """

    epochs: int = Field(300, ge=1)
    batch_size: int = Field(256, ge=1)
    learning_rate: float = Field(0.1, gt=0)
    weight_decay: float = Field(0.0, ge=0)
    text_norm: float | None = Field(None, gt=0)


def clap_loss(weight: Tensor, start: Tensor, lambdas: Tensor, batch: Batch, logit_scale: float) -> Terms:
    """``CE(y, softmax(s f.w_i / |w_i|)) + 1/C sum_i lambda_i |w_i - r t_i|^2``.

    Args:
        weight: w, shape ``(C, d)``.
        start: r t, shape ``(C, d)``.
        lambdas: shape ``(C,)``.
        batch: image features and labels.
        logit_scale: s.
    """
    logits = logit_scale * batch.features @ normalize(weight, dim=1).T
    ce = cross_entropy(logits, batch.labels)
    penalty = (lambdas * (weight - start).square().sum(dim=1)).mean()
    return {"loss": ce + penalty, "ce": ce, "penalty": penalty}


class CLAP(LinearMethod[CLAPConfig]):
    """CLAP (Silva-Rodriguez et al., CVPR 2024): a linear probe from the text embeddings, without validation.

    It minimises :func:`clap_loss` from ``w_i = r t_i``, with multipliers lambda_i as in the public code,
    :func:`own_class_probability`, fixed throughout: a class that zero-shot recognises on the support set is
    held to its text, another is free to follow its images. All cached views are used. The fitted weight is
    ``s w_i / |w_i|``, the bias is 0.

    The logits do not depend on the length of w, but step and penalty do: seen from ``w / r`` the learning
    rate is divided by r^2 and the penalty multiplied by it. The public code has the length that the text
    tower gives before normalisation; here embeddings are unit vectors, so r is a setting. With r^2 = s the
    penalty of a w of length r is ``2 lambda_i (s - s cos(w_i, t_i))``: a loss of logit, alike for all
    backbones.
    """

    name = "clap"
    title = "CLAP"
    Config = CLAPConfig

    def fit(self, support: Support, encoder: DualEncoder, progress: ProgressReport = no_progress) -> Fitted:
        scale, device = encoder.logit_scale, encoder.device
        texts = name_embeddings(encoder, support.class_names)
        views = samples(support, augmented=True)
        lambdas = own_class_probability(*views, texts.double(), scale).float()
        start = ((self.config.text_norm or math.sqrt(scale)) * texts).to(device)
        weight, held = nn.Parameter(start.clone()), lambdas.to(device)
        history = optimise(
            lambda batch: clap_loss(weight, start, held, batch, scale),
            [weight],
            support.image_features.to(device),
            support.labels.to(device),
            self.config,
            progress,
        )
        directions = scale * normalize(weight.detach(), dim=1).cpu()
        bias = torch.zeros(len(directions))
        return LinearClassifier(support.class_names, directions, bias, history, {"multipliers": lambdas})
