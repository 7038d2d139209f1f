"""A dual encoder around another one: everything is the other's own unless a subclass says otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder, Precision, Tokens
from vmfcoop.backbones.trace import ImageTrace


class WrappedEncoder(DualEncoder):
    """A dual encoder that passes everything on.

    Args:
        encoder: the encoder to wrap.
    """

    def __init__(self, encoder: DualEncoder) -> None:
        self._encoder = encoder
        self.name, self.dim, self.token_width = encoder.name, encoder.dim, encoder.token_width
        self.begin_marks, self.context_length = encoder.begin_marks, encoder.context_length
        self.image_size, self.logit_scale = encoder.image_size, encoder.logit_scale
        self.device, self.precision = encoder.device, encoder.precision

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def parameters(self) -> int | None:
        return self._encoder.parameters

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._encoder.image_mean_std

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._encoder.preprocess(image)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return self._encoder.encode_images(pixels)

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        return self._encoder.tokenize(texts)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        return self._encoder.token_embeddings(ids)

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        return self._encoder.encode_embeddings(embeddings, mask)

    def vocabulary(self) -> list[str]:
        return self._encoder.vocabulary()

    def vocabulary_tokens(self) -> Tokens:
        return self._encoder.vocabulary_tokens()

    def patch_activations(self, pixels: Tensor) -> Tensor:
        return self._encoder.patch_activations(pixels)

    def trace_images(self, pixels: Tensor) -> ImageTrace:
        return self._encoder.trace_images(pixels)

    def randomised(self, share: float, seed: int = 0) -> DualEncoder:
        return self._encoder.randomised(share, seed)

    def to(self, device: torch.device | str, precision: Precision | None = None) -> DualEncoder:
        self._encoder.to(device, precision)
        self.device, self.precision = self._encoder.device, self._encoder.precision
        return self
