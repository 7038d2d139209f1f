"""What every family shares: frozen torch modules, their tokenizer and transform, behind the seam."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import warnings
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from vmfcoop.backbones.base import DTYPES, DualEncoder, Precision, Tokens
from vmfcoop.backbones.text import TextTokenizer
from vmfcoop.backbones.trace import ImageTrace, shuffle_top_layers, trace
from vmfcoop.errors import UserError


class FrozenEncoder(DualEncoder):
    """A dual encoder over torch modules; a family gives the two passes and says where its layers are.

    To write: :attr:`_embedding`, :meth:`_image_features`, :meth:`_text_features` and, where saliency is
    possible, :attr:`_spatial_layer` and :attr:`_blocks`. ``docs/add-a-backbone.md`` walks through one.

    Args:
        model: a torch module of both towers and the logit scale; the fingerprint is taken of all of it.
        tokenizer: of the text tower.
        preprocessing: size, mean, standard deviation, interpolation and resizing of images.
        name: the spec string that loads it again.
        logit_scale: s; by default ``exp(model.logit_scale)``.

    Attributes:
        _reads_padding: whether the text tower attends to, or pools from, the padding (SigLIP): then each text
            is filled up to the context length with the padding's embedding before the tower sees it, and
            tokens stay trimmed for everyone else.
    """

    _reads_padding = False

    def __init__(
        self,
        model: Any,
        tokenizer: TextTokenizer,
        preprocessing: PreprocessCfg,
        name: str,
        logit_scale: float | None = None,
    ) -> None:
        self.name = name
        self.device = torch.device("cpu")
        self.precision: Precision = "fp32"
        self._model = model.float().eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._preprocessing = preprocessing
        self._transform = image_transform_v2(preprocessing, is_train=False)
        self.context_length = tokenizer.context_length
        self.begin_marks = tokenizer.begin_marks
        self.token_width = int(self._embedding.weight.shape[1])
        size = preprocessing.size
        self.image_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.logit_scale = float(self._model.logit_scale.exp()) if logit_scale is None else logit_scale
        if not 0 < self.logit_scale < math.inf:
            raise UserError(f"The logit scale of '{name}' is {self.logit_scale}; its weights are damaged.")
        tokens = tokenizer(["a"])
        text = self.encode_embeddings(self.token_embeddings(tokens.ids), tokens.mask)
        self.dim = int(self.finite(text).shape[1])

    @property
    @abstractmethod
    def _embedding(self) -> nn.Embedding:
        """The text tower's token embeddings."""

    @abstractmethod
    def _image_features(self, pixels: Tensor) -> Tensor:
        """Pixels ``(n, 3, H, W)``, in the tower's precision -> features ``(n, d)`` of any length."""

    @abstractmethod
    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Input embeddings ``(n, L, w)``, in the tower's precision, and mask -> features ``(n, d)``."""

    @property
    def _spatial_layer(self) -> nn.Module | None:
        """The image tower's layer whose output :meth:`patch_activations` gives; None if there is none."""
        return None

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        """The image tower's transformer blocks, tokens ``(n, t, c)`` to tokens, in order; none in a CNN."""
        return ()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, buffers, vocabulary and preprocessing (first 32 hex digits)."""
        digest = hashlib.sha256()
        for key, value in self._named_tensors():
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        digest.update("\n".join(self.vocabulary()).encode())
        digest.update(json.dumps(self._settings, sort_keys=True).encode())
        return digest.hexdigest()[:32]

    def _named_tensors(self) -> list[tuple[str, Tensor]]:
        """Weights and buffers by name, in an order of their own."""
        return sorted(self._model.state_dict().items())

    @property
    def _settings(self) -> dict[str, Any]:
        """What features depend on beside weights and vocabulary; a family adds its own."""
        return {**vars(self._preprocessing), "size": self.image_size, "context": self.context_length}

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(self._preprocessing.mean), tuple(self._preprocessing.std)

    @property
    def parameters(self) -> int:
        return sum(weight.numel() for weight in self._model.parameters())

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._transform(image)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        features = self._image_features(pixels.to(self.device, DTYPES[self.precision]))
        return self.finite(normalize(features.float(), dim=-1).cpu())

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        if isinstance(texts, str) or not texts:
            raise UserError("There is no text to encode; give a list with at least one.")
        for position, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"Text {position} of {len(texts)} is empty; an empty text has no direction.")
            if any("\ud800" <= character <= "\udfff" for character in text):
                raise UserError(f"The text {text!a} is not valid Unicode; name it in other characters.")
        tokens = self._with_words(texts)
        self._warn_of_cut(texts, self._tokenizer.cut(texts, tokens))
        return Tokens(tokens.ids.to(self.device), tokens.mask.to(self.device))

    def _with_words(self, texts: Sequence[str]) -> Tokens:
        """Tokens of texts, of which none may be what an empty one is: SigLIP reads no punctuation."""
        ids, mask = self._tokenizer(["", *texts])
        bare = (ids[1:] == ids[0]).all(dim=1).nonzero().flatten().tolist()
        if bare:
            raise UserError(
                f"The text {texts[bare[0]]!r} is empty to the tokenizer of '{self.name}', which reads none "
                "of its characters; name it in words."
            )
        return Tokens(ids[1:], mask[1:])

    def _warn_of_cut(self, texts: Sequence[str], cut: Sequence[int]) -> None:
        if not cut:
            return
        first = texts[cut[0]] if len(texts[cut[0]]) <= 120 else f"{texts[cut[0]][:120]}..."
        whose = f"A text is longer than {self.context_length} tokens, what '{self.name}' reads, and was cut"
        if len(cut) > 1:
            whose = (
                f"{len(cut)} texts are longer than {self.context_length} tokens, what '{self.name}' reads, "
                "and were cut; the first"
            )
        warnings.warn(f"{whose}: '{first}'.", UserWarning, stacklevel=3)

    def token_embeddings(self, ids: Tensor) -> Tensor:
        return self._embedding(ids).float()  # type: ignore[no-any-return]

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        if self._reads_padding:
            embeddings, mask = self._filled_up(embeddings, mask)
        features = self._text_features(embeddings.to(DTYPES[self.precision]), mask)
        unit = normalize(features.float(), dim=-1)
        # Contexts are learned through here: in fp16 a step may leave its range, which ends at 65504.
        return self.finite(unit) if self.precision == "fp16" else unit

    def _filled_up(self, embeddings: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Each text followed by the padding's embedding up to the context length, all of it real."""
        padding = self._embedding.weight[self._tokenizer.pad_id].to(embeddings.dtype)
        filled = torch.where(mask[..., None], embeddings, padding)
        rest = padding.expand(len(filled), self.context_length - filled.shape[1], -1)
        return torch.cat([filled, rest], dim=1), mask.new_ones(len(mask), self.context_length)

    def vocabulary(self) -> list[str]:
        return list(self._tokenizer.entries.values())

    def vocabulary_tokens(self) -> Tokens:
        # A text of one entry: take the marks of a real one and put each id in its place.
        pattern = self._tokenizer(["a"])
        ids = pattern.ids.repeat(len(self._tokenizer.entries), 1)
        ids[:, self.begin_marks] = torch.tensor(list(self._tokenizer.entries))
        mask = pattern.mask.repeat(len(ids), 1)
        return Tokens(ids.to(self.device), mask.to(self.device))

    def to(self, device: torch.device | str, precision: Precision | None = None) -> FrozenEncoder:
        wanted = precision or self.precision
        if wanted != self.precision:
            if self.precision != "fp32":
                raise UserError(
                    f"'{self.name}' was rounded to {self.precision}; load it again to have it in {wanted}."
                )
            _ = self.fingerprint  # of the weights as published, before they are rounded
        self.device, self.precision = torch.device(device), wanted
        self._model.to(self.device, DTYPES[wanted])
        return self

    @torch.no_grad()
    def patch_activations(self, pixels: Tensor) -> Tensor:
        layer = self._spatial_layer
        if layer is None:
            return super().patch_activations(pixels)
        kept: list[Tensor] = []
        hook = layer.register_forward_hook(lambda _module, _inputs, output: kept.append(output))
        try:
            self._image_features(pixels.to(self.device, DTYPES[self.precision]))
        finally:
            hook.remove()
        return spatial_map(kept[-1]).float().cpu()

    def trace_images(self, pixels: Tensor) -> ImageTrace:
        pixels = pixels.to(self.device, DTYPES[self.precision])
        found = trace(self._image_features, pixels, self._spatial_layer, self._blocks)
        self.finite(found.features)
        return found

    def randomised(self, share: float, seed: int = 0) -> FrozenEncoder:
        other = copy.deepcopy(self)
        other.__dict__.pop("fingerprint", None)
        other.name = f"{self.name} with {share:.0%} of its image tower's layers shuffled"
        pixels = torch.zeros(1, 3, *self.image_size, device=self.device, dtype=DTYPES[self.precision])
        with torch.no_grad():
            shuffle_top_layers(other._model, lambda: other._image_features(pixels), share, seed)
        return other


def spatial_map(activations: Tensor) -> Tensor:
    """A layer's output as a map ``(n, c, h, w)``: that of a CNN, or the patch tokens of a square ViT.

    Tokens ``(n, p + h w, c)`` lose the p prefix tokens (class, registers) in front of the patches, h = w
    being the largest side that the tokens fill.

    Example:
        >>> spatial_map(torch.zeros(2, 1 + 14 * 14, 8)).shape
        torch.Size([2, 8, 14, 14])
    """
    if activations.dim() == 4:
        return activations
    side = math.isqrt(activations.shape[1])
    patches = activations[:, activations.shape[1] - side * side :]
    return patches.transpose(1, 2).reshape(len(patches), -1, side, side)
