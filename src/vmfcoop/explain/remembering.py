"""An encoder that remembers the features of pixels it has seen, for maps of one image for many scores."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder, Precision, Tokens
from vmfcoop.backbones.trace import ImageTrace

MOST_BYTES = 2**28
"""Bytes of features that are kept; what was kept first is forgotten first."""


class RememberingEncoder(DualEncoder):
    """A dual encoder that encodes equal pixels once.

    Occlusion, RISE and gScoreCAM put the same altered images to the tower for every class, prompt and
    classifier; only the score of the features differs. Everything but :meth:`encode_images` and
    :meth:`randomised` is the wrapped encoder's own.

    Args:
        encoder: the encoder to wrap; it must not be moved meanwhile.
        features: what is remembered already.
    """

    def __init__(self, encoder: DualEncoder, features: dict[bytes, Tensor] | None = None) -> None:
        self._encoder = encoder
        self._features = {} if features is None else features
        self._of_randomised: dict[tuple[float, int], dict[bytes, Tensor]] = {}
        self._most = max(1, MOST_BYTES // (4 * encoder.dim))
        self.name, self.dim, self.token_width = encoder.name, encoder.dim, encoder.token_width
        self.begin_marks, self.context_length = encoder.begin_marks, encoder.context_length
        self.image_size, self.logit_scale = encoder.image_size, encoder.logit_scale
        self.device, self.precision = encoder.device, encoder.precision

    def encode_images(self, pixels: Tensor) -> Tensor:
        keys = [hashlib.sha256(image.numpy().tobytes()).digest() for image in pixels.float().cpu()]
        found = {key: self._features[key] for key in keys if key in self._features}
        absent = {key: row for row, key in enumerate(keys) if key not in found}
        if absent:
            fresh = self._encoder.encode_images(pixels[list(absent.values())])
            found |= dict(zip(absent, fresh, strict=True))
            self._remember({key: found[key] for key in absent})
        return torch.stack([found[key] for key in keys]) if keys else torch.empty(0, self.dim)

    def _remember(self, fresh: dict[bytes, Tensor]) -> None:
        self._features.update(fresh)
        for key in list(self._features)[: max(0, len(self._features) - self._most)]:
            del self._features[key]

    def randomised(self, share: float, seed: int = 0) -> DualEncoder:
        # Their features are kept, they are not: each is a copy of both towers.
        features = self._of_randomised.setdefault((share, seed), {})
        return RememberingEncoder(self._encoder.randomised(share, seed), features)

    @property
    def fingerprint(self) -> str:
        return self._encoder.fingerprint

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return self._encoder.image_mean_std

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._encoder.preprocess(image)

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

    def to(self, device: torch.device | str, precision: Precision | None = None) -> DualEncoder:
        raise RuntimeError("move the encoder before its features are remembered")
