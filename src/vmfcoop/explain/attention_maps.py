"""Maps from the attention of a ViT: rollout, gradient-weighted attention, LeGrad."""

from __future__ import annotations

import torch
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.backbones.frozen import spatial_map
from vmfcoop.backbones.trace import ImageTrace
from vmfcoop.errors import UserError
from vmfcoop.explain.map_method import MapMethod, traced
from vmfcoop.explain.targets import Target


def attention_trace(encoder: DualEncoder, pixels: Tensor, method: str) -> ImageTrace:
    """A trace with the attention of every block.

    Raises:
        UserError: the tower is no ViT whose attention reaches over the whole image.
    """
    trace = traced(encoder, pixels)
    if not trace.attentions:
        raise UserError(
            f"'{method}' reads the attention of a ViT, and the image tower of '{encoder.name}' has none over "
            "the whole image; take --map gradcam, gscorecam, occlusion or rise."
        )
    return trace


def readout(trace: ImageTrace, scores: Tensor) -> Tensor:
    """Share of every token behind the last block in the feature, rows ``(n, t)`` that sum to one.

    The length of the score's derivative by the token: the class token alone where the tower reads that, all
    patches alike where it averages them, what the pooling attention weighs where it has one.
    """
    assert trace.tokens is not None
    (gradient,) = trace.gradients(scores, [trace.tokens])
    lengths: Tensor = torch.linalg.vector_norm(gradient.float().cpu(), dim=2)
    return lengths / lengths.sum(dim=1, keepdim=True).clamp(min=torch.finfo(lengths.dtype).tiny)


def patches(relevance: Tensor) -> Tensor:
    """Relevance of tokens ``(n, t)`` -> of the patches, ``(n, h, w)``."""
    return spatial_map(relevance[..., None])[:, 0]


class AttentionRollout(MapMethod):
    r"""Attention rollout: attention multiplied through the blocks, residual connections as the identity.

    .. math:: R = \prod_{l=L}^{1} \tfrac12 (\bar A_l + I)

    It knows neither class nor prompt: where a class token is read, the map is the same for all of them.
    """

    name = "rollout"
    title = "Attention rollout"
    source = "Abnar & Zuidema, ACL 2020"
    reads_attention = True
    reads_score = False

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        trace = attention_trace(encoder, pixels, self.name)
        relevance = readout(trace, target.score(trace.features))
        for attention in reversed(trace.attentions):
            mean = attention.detach().float().cpu().mean(dim=1)
            relevance = (relevance + (relevance[:, None] @ mean)[:, 0]) / 2
        return patches(relevance)


class GradientWeightedAttention(MapMethod):
    r"""Gradient-weighted attention: what raises the score, gathered through the blocks.

    .. math:: R \leftarrow R + \bar A_l R, \qquad
              \bar A_l = \frac1h \sum_h \left(\frac{\partial S}{\partial A_l^h} \odot A_l^h\right)^+, \qquad
              R_0 = I

    The row of R that the feature is read from is the map; see :func:`readout` for towers without a class
    token. The identity in R, a token's own relevance, is left out.
    """

    name = "chefer"
    title = "Gradient-weighted attention"
    source = "Chefer, Gur & Wolf, ICCV 2021"
    reads_attention = True

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        trace = attention_trace(encoder, pixels, self.name)
        scores = target.score(trace.features)
        start = relevance = readout(trace, scores)
        gradients = trace.gradients(scores, trace.attentions)
        # The row of (I + A_L) ... (I + A_1), from the left: no product of matrices is needed.
        for attention, gradient in zip(reversed(trace.attentions), reversed(gradients), strict=True):
            weighted = (attention.detach() * gradient).float().cpu().clamp(min=0).mean(dim=1)
            relevance = relevance + (relevance[:, None] @ weighted)[:, 0]
        return patches(relevance - start)


class LeGrad(MapMethod):
    r"""LeGrad: how the score of each block's own feature rises with its attention, averaged over the blocks.

    .. math:: M = \frac1L \sum_l \frac{1}{h t} \sum_{h, i}
              \left(\frac{\partial S(\bar z_l)}{\partial A_l^{h,i}}\right)^+

    :math:`\bar z_l` is the feature that the tower's own head makes of the tokens behind block l.
    """

    name = "legrad"
    title = "LeGrad"
    source = "Bousselham et al., ICCV 2025 (arXiv 2404.03214)"
    reads_attention = True

    def maps(self, encoder: DualEncoder, pixels: Tensor, target: Target) -> Tensor:
        trace = attention_trace(encoder, pixels, self.name)
        total = torch.zeros(len(pixels), trace.attentions[0].shape[-1])
        for features, attention in zip(trace.block_features, trace.attentions, strict=True):
            (gradient,) = trace.gradients(target.score(features), [attention])
            total += gradient.float().cpu().clamp(min=0).mean(dim=(1, 2))
        return patches(total / len(trace.attentions))
