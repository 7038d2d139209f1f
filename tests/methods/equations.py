"""Plain pieces that the tests of prompt methods derive their equations from."""

from __future__ import annotations

import torch
from torch import Tensor

from tests.plain_encoder import PlainEncoder, clusters
from vmfcoop.methods import Support

NAMES = ("nevus", "melanoma", "keratosis")
TEXTS = tuple(
    tuple(f"{article} {name} {end}." for article in ("a", "one", "the") for end in ("seen here", "on skin"))
    for name in NAMES
)
WORDS = "a photo of a"


def support_set(encoder: PlainEncoder, shots: int = 2, seed: int = 0) -> Support:
    """Three classes, one view an image, no validation shots."""
    features, labels = clusters(encoder, len(NAMES), shots, seed=seed)
    return Support(features, labels, NAMES, TEXTS, torch.empty(0, encoder.dim), labels[:0])


def start_context(encoder: PlainEncoder) -> Tensor:
    """Token embeddings of the initial words, ``(M, w)``; characters are this encoder's tokens."""
    tokens = encoder.tokenize([f"{WORDS} {NAMES[0]}."])
    return encoder.token_embeddings(tokens.ids)[0, 1 : 1 + len(WORDS)].clone()


def plain_prompts(encoder: PlainEncoder, context: Tensor) -> Tensor:
    """P ``(C, d)``: the context ``(M, w)`` or ``(C, M, w)`` in place of the initial words of every prompt."""
    tokens = encoder.tokenize([f"{WORDS} {name}." for name in NAMES])
    fixed = encoder.token_embeddings(tokens.ids)
    vectors = context.expand(len(NAMES), -1, -1)
    rows = torch.cat([fixed[:, :1], vectors, fixed[:, 1 + len(WORDS) :]], dim=1)
    return encoder.encode_embeddings(rows, tokens.mask)


def unit(rows: Tensor) -> Tensor:
    """Rows over their length."""
    return rows / rows.pow(2).sum(dim=-1, keepdim=True).sqrt()


def plain_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """``mean(log sum exp - logit of the label)``."""
    return (logits.exp().sum(dim=1).log() - logits[torch.arange(len(labels)), labels]).mean()


def plain_divergence(teacher: Tensor, student: Tensor) -> Tensor:
    """``sum_ik p_ik log(p_ik / q_ik)`` for p, q the softmax of both, ``(b, C)`` each -> scalar."""
    p = teacher.exp() / teacher.exp().sum(dim=1, keepdim=True)
    q = student.exp() / student.exp().sum(dim=1, keepdim=True)
    return (p * (p / q).log()).sum()


ONE_STEP = {"epochs": 1, "batch_size": 6, "warmup_epochs": 0, "learning_rate": 0.05, "weight_decay": 0.01}
"""One step of plain gradient descent with weight decay over all six images (momentum starts at zero)."""


def stepped(start: Tensor, gradient: Tensor) -> Tensor:
    """Where :data:`ONE_STEP` takes a parameter."""
    return start - 0.05 * (gradient + 0.01 * start)
