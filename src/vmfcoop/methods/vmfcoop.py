"""vMFCoOp: context vectors guided by unified semantic anchors on the sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.errors import UserError
from vmfcoop.methods.base import Support
from vmfcoop.methods.prompt import PromptConfig, PromptMethod, PromptTask
from vmfcoop.methods.zero_shot import own_class_probability
from vmfcoop.sphere import SemanticAnchors, semantic_anchors
from vmfcoop.training import Batch, Terms


class VMFCoOpConfig(PromptConfig):
    """Settings of vMFCoOp. Where the paper is silent the field says so: the choice is our reading.

    Attributes:
        estimator: of the concentrations: ``newton`` (exact MLE), ``banerjee`` (the paper's closed form) or
            ``debiased`` (removes the resultant length that chance alone gives).
        vocabulary: which embeddings carry the CLIP field: ``encoded`` (each entry through the text tower;
            our reading) or ``token`` (raw token embeddings, only where they have the width d).
        vocabulary_sample: a seeded sample of so many entries instead of all, for slow machines.
        anchor: switch of L_anc.
        contrastive: switch of L_sc.
        symmetric: switch of the reverse term of L_SCE; without it plain cross-entropy stays.
        lambda_anc: weight of L_anc (the paper prints none).
        lambda_sc: weight of L_sc (the paper prints none).
        per_shot: divide both weights by the shots K: the anchors are a prior, which the data outgrow.
        rce_weight: weight of the reverse cross-entropy (our reading).
        rce_log_zero: A, what log 0 is taken for (our reading).
        tau_start: tau_0 of the contrastive temperature (our reading).
        tau_end: tau_max; default the backbone's logit scale (our reading).
        dynamic_anchors: learn offsets delta_i and the scale alpha in L_anc (paper).
        alpha_start: alpha at the start (our reading).
        contrastive_anchors: anchors in L_sc: ``static`` u_i (our reading) or ``dynamic``.
        gated: weigh the terms of each class in L_anc and L_sc by how well its anchor recognises its support
            images (:func:`own_class_probability`); our addition, off by default.
    """

    estimator: Literal["newton", "banerjee", "debiased"] = "newton"
    vocabulary: Literal["encoded", "token"] = "encoded"
    vocabulary_sample: int | None = Field(None, ge=2)
    anchor: bool = True
    contrastive: bool = True
    symmetric: bool = True
    lambda_anc: float = Field(10.0, ge=0)
    lambda_sc: float = Field(1.0, ge=0)
    per_shot: bool = True
    rce_weight: float = Field(1.0, ge=0)
    rce_log_zero: float = Field(-4.0, lt=0)
    tau_start: float = Field(1.0, gt=0)
    tau_end: float | None = Field(None, gt=0)
    dynamic_anchors: bool = True
    alpha_start: float = 1.0
    contrastive_anchors: Literal["static", "dynamic"] = "static"
    gated: bool = False


def anchor_loss(prompts: Tensor, anchors: Tensor, gates: Tensor | None = None) -> Tensor:
    """L_anc = 1/C sum_i g_i |P_i - u_i|^2, for unit rows ``(C, d)`` -> scalar; g_i = 1 without gates.

    Example:
        >>> anchor_loss(torch.eye(2), torch.eye(2).flip(0))
        tensor(2.)
    """
    distances = (prompts - anchors).square().sum(dim=1)
    return (distances if gates is None else gates * distances).mean()


def spherical_contrastive_loss(
    prompts: Tensor, anchors: Tensor, temperature: float, gates: Tensor | None = None
) -> Tensor:
    """L_sc: row-wise cross-entropy of ``S = tau P U^T`` against the diagonal, ``(C, d)`` twice -> scalar.

    With gates g_i the cross-entropy of row i counts g_i times.

    Example:
        >>> spherical_contrastive_loss(torch.eye(2), torch.eye(2), 0.0)
        tensor(0.6931)
    """
    similarity = temperature * prompts @ anchors.T
    rows = cross_entropy(similarity, torch.arange(len(prompts), device=prompts.device), reduction="none")
    return (rows if gates is None else gates * rows).mean()


def reverse_cross_entropy(logits: Tensor, labels: Tensor, log_zero: float = -4.0) -> Tensor:
    """RCE = -sum_k q_k log y_k = -A (1 - q_y), with log 0 := A (Wang et al., ICCV 2019), the mean over rows.

    Args:
        logits: shape ``(b, C)``; q is their softmax.
        labels: shape ``(b,)``.
        log_zero: A.

    Example:
        >>> reverse_cross_entropy(torch.zeros(1, 2), torch.tensor([0]))
        tensor(2.)
    """
    correct = logits.softmax(dim=1).gather(1, labels[:, None])
    return -log_zero * (1 - correct).mean()


def contrastive_temperature(progress: float, start: float, end: float) -> float:
    """tau(t) rises from tau_0 to tau_max along a half cosine over training.

    Example:
        >>> [round(contrastive_temperature(t, 1.0, 25.0), 6) for t in (0.0, 0.5, 1.0)]
        [1.0, 13.0, 25.0]
    """
    return start + (end - start) * (1 - math.cos(math.pi * progress)) / 2


def unified_anchors(support: Support, encoder: DualEncoder, config: VMFCoOpConfig) -> SemanticAnchors:
    """The fields of the vocabulary and of every class's descriptions, fused.

    Raises:
        UserError: ``vocabulary="token"`` where the token embeddings have another width than d.
    """
    entries = vocabulary_embeddings(encoder, config)
    descriptions = [encoder.encode_texts(list(texts)) for texts in support.descriptions]
    return semantic_anchors(entries, descriptions, estimator=config.estimator)


def vocabulary_embeddings(encoder: DualEncoder, config: VMFCoOpConfig) -> Tensor:
    """The unit embeddings that carry the CLIP field, shape ``(V, d)``, CPU.

    Raises:
        UserError: ``vocabulary="token"`` where the token embeddings have another width than d.
    """
    if config.vocabulary == "encoded":
        return encoder.encode_vocabulary(config.vocabulary_sample)
    if encoder.token_width == encoder.dim:
        tokens = encoder.vocabulary_tokens()
        ids = tokens.ids[:, encoder.begin_marks : encoder.begin_marks + 1]
        return normalize(encoder.token_embeddings(ids)[:, 0].detach().float().cpu(), dim=1)
    raise UserError(
        f"vocabulary=token needs token embeddings of width {encoder.dim}, those of '{encoder.name}' have "
        f"{encoder.token_width}; use vocabulary=encoded."
    )


def _summary(fields: SemanticAnchors) -> dict[str, Tensor]:
    """Concentrations and resultant lengths of the fields: the vocabulary's, then those of the C classes."""
    fits = [fields.vocabulary_field, *fields.class_fields]
    return {
        "field_concentrations": torch.stack([fit.concentration for fit in fits]),
        "field_resultant_lengths": torch.stack([fit.resultant_length for fit in fits]),
    }


class VMFCoOp(PromptMethod[VMFCoOpConfig]):
    """vMFCoOp (AAAI 2026): ``L = lambda_anc L_anc + lambda_sc L_sc + L_SCE`` over the shared context vectors.

    ``L_SCE = CE(y, q) + w RCE`` with ``q = softmax(s f . P)``; L_anc pulls every prompt to its dynamic anchor
    ``normalize(u_i + alpha delta_i)``, L_sc sets the prompts apart along the anchors. See docs/method.md.
    """

    name = "vmfcoop"
    title = "vMFCoOp"
    Config = VMFCoOpConfig
    reads_descriptions = True

    def warm(self, encoder: DualEncoder) -> None:
        vocabulary_embeddings(encoder, self.config)

    def tasks(self, supports: Sequence[Support], encoder: DualEncoder) -> list[PromptTask]:
        fields = unified_anchors(supports[0], encoder, self.config)
        return [self._task(fields, support, encoder) for support in supports]

    def _task(self, fields: SemanticAnchors, support: Support, encoder: DualEncoder) -> PromptTask:
        learned = self.config.dynamic_anchors
        anchors = fields.anchors.float().to(encoder.device)
        plain, labels = (part.to(encoder.device) for part in (support.image_features[:, 0], support.labels))
        gates = (
            own_class_probability(plain, labels, anchors, encoder.logit_scale) if self.config.gated else None
        )
        offsets = nn.Parameter(torch.zeros_like(anchors), requires_grad=learned)
        start = torch.tensor(self.config.alpha_start, device=encoder.device)
        scale = nn.Parameter(start, requires_grad=learned)

        def losses(prompts: Tensor, batch: Batch) -> Terms:
            dynamic = normalize(anchors + scale * offsets, dim=1)
            return self.losses(prompts, anchors, dynamic, batch, encoder.logit_scale, support.shots, gates)

        extra = {"anchors": anchors, "anchor_offsets": offsets, "anchor_scale": scale, **_summary(fields)}
        return PromptTask(losses, [offsets, scale] if learned else [], extra)

    def losses(
        self,
        prompts: Tensor,
        anchors: Tensor,
        dynamic: Tensor,
        batch: Batch,
        logit_scale: float,
        shots: int,
        gates: Tensor | None = None,
    ) -> Terms:
        """Every term, the total, and the contrastive temperature ``tau``, which the history keeps.

        Args:
            prompts: P, unit rows, shape ``(C, d)``.
            anchors: u, unit rows, shape ``(C, d)``.
            dynamic: dynamic anchors, unit rows, shape ``(C, d)``.
            batch: image features and labels.
            logit_scale: s.
            shots: K, for ``per_shot``.
            gates: weights of the classes in L_anc and L_sc, shape ``(C,)``; without, 1.
        """
        config = self.config
        logits = logit_scale * batch.features @ prompts.T
        terms = {"ce": cross_entropy(logits, batch.labels)}
        total = terms["ce"]
        if config.symmetric:
            terms["rce"] = reverse_cross_entropy(logits, batch.labels, config.rce_log_zero)
            total = total + config.rce_weight * terms["rce"]
        share = 1 / shots if config.per_shot else 1.0
        if config.anchor:
            terms["anc"] = anchor_loss(prompts, dynamic, gates)
            total = total + share * config.lambda_anc * terms["anc"]
        if config.contrastive:
            temperature = contrastive_temperature(
                batch.progress, config.tau_start, config.tau_end or logit_scale
            )
            targets = anchors if config.contrastive_anchors == "static" else dynamic
            terms["sc"] = spherical_contrastive_loss(prompts, targets, temperature, gates)
            terms["tau"] = torch.tensor(temperature)
            total = total + share * config.lambda_sc * terms["sc"]
        return {"loss": total, **terms}
