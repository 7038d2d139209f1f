"""A dual encoder of any width: characters as tokens, one hidden layer, no library behind it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from vmfcoop.backbones import DualEncoder, Tokens
from vmfcoop.backbones.base import Precision
from vmfcoop.errors import UserError

CHARACTERS = " abcdefghijklmnopqrstuvwxyz0123456789.-"
PAD, BEGIN, END, FIRST = 0, 1, 2, 3


class PlainEncoder(DualEncoder):
    """Text: weighted character embeddings, tanh layers, masked mean, projection. Images: a product."""

    def __init__(self, dim: int = 16, width: int = 8, seed: int = 0) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.name, self.dim, self.token_width = f"plain-{dim}-{seed}", dim, width
        self.begin_marks, self.context_length, self.image_size = 1, 96, (8, 8)
        self.logit_scale, self.device = 20.0, torch.device("cpu")
        self.embedding = torch.randn(FIRST + len(CHARACTERS), width, generator=draw)
        self.hidden = torch.randn(width, 4 * width, generator=draw)
        self.projection = torch.randn(4 * width, dim, generator=draw)
        self.position = 1 + 0.5 * torch.rand(self.context_length, generator=draw)
        self.pixels = torch.randn(3 * 64, dim, generator=draw)
        self.image_calls = 0
        self.text_calls = 0

    @property
    def fingerprint(self) -> str:
        return self.name

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def preprocess(self, image: Image.Image) -> Tensor:
        small = image.resize((8, 8))
        return torch.tensor(list(small.tobytes())).reshape(8, 8, 3).permute(2, 0, 1) / 127.5 - 1

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.image_calls += len(pixels)
        return normalize(pixels.flatten(1) @ self.pixels, dim=1)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        if not texts or any(not text.strip() for text in texts):
            raise UserError("A text is empty.")
        self.text_calls += len(texts)
        rows = [[BEGIN, *(FIRST + CHARACTERS.index(c) for c in text.lower()), END] for text in texts]
        longest = max(map(len, rows))
        ids = torch.tensor([row + [PAD] * (longest - len(row)) for row in rows])
        return Tokens(ids, ids != PAD)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        return self.embedding[ids]

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        hidden = torch.tanh(embeddings * self.position[: embeddings.shape[1], None]) @ self.hidden
        weights = mask.unsqueeze(-1).float()
        pooled = (hidden.tanh() * weights).sum(dim=1) / weights.sum(dim=1)
        return normalize(pooled @ self.projection, dim=-1)

    def vocabulary(self) -> list[str]:
        return list(CHARACTERS[1:])

    def vocabulary_tokens(self) -> Tokens:
        return self.tokenize(self.vocabulary())

    def to(self, device: torch.device | str, precision: Precision | None = None) -> PlainEncoder:
        return self


def clusters(
    encoder: DualEncoder, classes: int, shots: int, views: int = 1, seed: int = 0, noise: float = 0.25
) -> tuple[Tensor, Tensor]:
    """Image features around one random direction a class: ``(C * K, V, d)`` and labels ``(C * K,)``."""
    draw = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(classes, encoder.dim, generator=draw), dim=-1)
    return around(centres, shots, views, draw, noise)


def around(
    centres: Tensor, shots: int, views: int, draw: torch.Generator, noise: float
) -> tuple[Tensor, Tensor]:
    """Image features around given unit class directions ``(C, d)``."""
    classes, dim = centres.shape
    spread = noise * torch.randn(classes, shots, views, dim, generator=draw)
    features = normalize(centres[:, None, None] + spread, dim=-1).flatten(0, 1)
    return features, torch.arange(classes).repeat_interleave(shots)
