"""An encoder that remembers the features of pixels it has seen, for maps of one image for many scores."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder, Precision
from vmfcoop.backbones.wrapped import WrappedEncoder

MOST_BYTES = 2**28
"""Bytes of features that are kept; what was kept first is forgotten first."""


class RememberingEncoder(WrappedEncoder):
    """A dual encoder that encodes equal pixels once.

    Occlusion, RISE and gScoreCAM put the same altered images to the tower for every class, prompt and
    classifier; only the score of the features differs.

    Args:
        encoder: the encoder to wrap; it must not be moved meanwhile.
        features: what is remembered already.
    """

    def __init__(self, encoder: DualEncoder, features: dict[bytes, Tensor] | None = None) -> None:
        super().__init__(encoder)
        self._features = {} if features is None else features
        self._of_randomised: dict[tuple[float, int], dict[bytes, Tensor]] = {}
        self._most = max(1, MOST_BYTES // (4 * encoder.dim))

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

    def to(self, device: torch.device | str, precision: Precision | None = None) -> DualEncoder:
        raise RuntimeError("move the encoder before its features are remembered")
