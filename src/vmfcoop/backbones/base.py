"""The one seam between methods and CLIP models: a frozen dual encoder onto the unit sphere."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vmfcoop.backbones.trace import ImageTrace
from vmfcoop.errors import UserError

Precision = Literal["fp32", "bf16", "fp16"]
DTYPES: dict[Precision, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


class Tokens(NamedTuple):
    """Tokenised texts, padded to the longest of them only.

    Attributes:
        ids: token ids, shape ``(n, L)``, int64.
        mask: True at real tokens (begin and end marks among them), shape ``(n, L)``, bool.
    """

    ids: Tensor
    mask: Tensor

    @property
    def lengths(self) -> Tensor:
        """Positions up to and with the last real token of each text, shape ``(n,)``, int64."""
        return real_lengths(self.mask)


def real_lengths(mask: Tensor) -> Tensor:
    """Positions up to and with the last True of each row, shape ``(n,)``, int64.

    Not their sum: a text that spells the padding mark out has a hole in its mask.

    Example:
        >>> real_lengths(torch.tensor([[True, False, True, False]]))
        tensor([3])
    """
    return (mask * torch.arange(1, mask.shape[1] + 1, device=mask.device)).amax(dim=1)


class DualEncoder(ABC):
    """A frozen image tower and a frozen text tower that end on the unit sphere of ``R^dim``.

    Methods see a CLIP through these names only, so that every method runs on every family. All weights
    are frozen and in evaluation mode (no dropout, no statistics updated); gradients reach the arguments of
    :meth:`encode_embeddings`, never the weights.

    Attributes:
        name: the spec string that loads this encoder again.
        dim: width d of the shared embedding space.
        token_width: width w of the text tower's token embeddings.
        begin_marks: how many marks precede the first token of a text (1 for BERT and CLIP, 0 for SigLIP).
        context_length: the most tokens of a text, begin and end marks included.
        image_size: height and width in pixels of an input image.
        logit_scale: s = exp(logit_scale parameter); logits are ``s * image . text``.
        device: where the weights lie.
        precision: numbers that the towers compute with; features are unit rows in float32 whatever it is.
    """

    name: str
    dim: int
    token_width: int
    begin_marks: int
    context_length: int
    image_size: tuple[int, int]
    logit_scale: float
    device: torch.device
    precision: Precision = "fp32"

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hash of weights, tokenizer and preprocessing, equal over processes and machines."""

    @property
    def parameters(self) -> int | None:
        """Weights of both towers, where the family counts them."""
        return None

    @property
    @abstractmethod
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation that normalise the three channels of an image in [0, 1]."""

    @abstractmethod
    def preprocess(self, image: Image.Image) -> Tensor:
        """The model's own test-time transform of an RGB image -> pixels of shape ``(3, H, W)``, float32."""

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Pixels ``(n, 3, H, W)`` -> unit image features ``(n, d)``, float32, without gradient."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tokens:
        """Texts -> tokens padded to the longest of them.

        Texts longer than the context are cut, with a warning that names the first of them.

        Raises:
            UserError: if there is no text, or one is empty or holds nothing that the tokenizer reads.
        """

    @abstractmethod
    def token_embeddings(self, ids: Tensor) -> Tensor:
        """Token ids ``(n, L)`` -> input embeddings ``(n, L, w)``, before positions are added."""

    @abstractmethod
    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Input embeddings ``(n, L, w)`` and mask ``(n, L)`` -> unit text features ``(n, d)``.

        Differentiable with respect to ``embeddings``. L may be anything up to the context length: the
        result does not depend on how many masked positions follow a text.
        """

    @abstractmethod
    def vocabulary(self) -> list[str]:
        """The tokenizer's entries without special and unused ones, in the order of their ids."""

    @abstractmethod
    def vocabulary_tokens(self) -> Tokens:
        """Each entry of :meth:`vocabulary` as a text of its own (begin mark, entry, end mark)."""

    @abstractmethod
    def to(self, device: torch.device | str, precision: Precision | None = None) -> DualEncoder:
        """Move the weights, and round them where a precision is named; returns the encoder itself.

        Raises:
            UserError: the weights were rounded before, to another precision.
        """

    def patch_activations(self, pixels: Tensor) -> Tensor:
        """Activations of the image tower's last spatial layer, for saliency maps.

        Pixels ``(n, 3, H, W)`` -> ``(n, c, h, w)``, float32, on the CPU, without gradient. In a ViT these are
        the patch tokens as the last attention reads them: behind it they no longer reach the image feature.

        Raises:
            NotImplementedError: where the family does not offer them.
        """
        raise NotImplementedError(f"the backbone '{self.name}' offers no patch activations")

    def trace_images(self, pixels: Tensor) -> ImageTrace:
        """A pass through the image tower with its graph, activations and attention, for saliency maps.

        Pixels ``(n, 3, H, W)``; the features are those of :meth:`encode_images`, to rounding.

        Raises:
            NotImplementedError: where the family does not offer it.
        """
        raise NotImplementedError(f"the backbone '{self.name}' cannot be looked into")

    def randomised(self, share: float, seed: int = 0) -> DualEncoder:
        """A copy whose image tower has unlearned its last layers, to test maps by (Adebayo et al. 2018).

        Args:
            share: of the layers with weights, counted from the features backwards; each of their tensors is
                shuffled within itself. 1 shuffles all.
            seed: of the shuffles.

        Raises:
            NotImplementedError: where the family does not offer it.
        """
        raise NotImplementedError(f"the backbone '{self.name}' cannot be randomised")

    def finite(self, features: Tensor) -> Tensor:
        """The features themselves, if all of their numbers are finite.

        Raises:
            UserError: one is not; damaged weights, or activations beyond what the precision holds.
        """
        if bool(features.isfinite().all()):
            return features
        mend = (
            "its weights are damaged, fetch them again"
            if self.precision == "fp32"
            else "they overflow there, take --precision fp32"
        )
        raise UserError(f"'{self.name}' gives features in {self.precision} that are no numbers; {mend}.")

    @torch.no_grad()
    def encode_tokens(self, tokens: Tokens, batch_size: int = 256) -> Tensor:
        """Tokens of n texts -> unit text features ``(n, d)``, float32, without gradient.

        Texts of like length go together, each batch trimmed to its own longest text: the result is the
        same, padding is not computed.
        """
        lengths = tokens.lengths
        order = torch.argsort(lengths, stable=True)
        features = torch.empty(len(order), self.dim)
        for rows in order.split(batch_size):
            longest = int(lengths[rows].max())
            ids = tokens.ids[rows, :longest].to(self.device)
            mask = tokens.mask[rows, :longest].to(self.device)
            features[rows] = self.encode_embeddings(self.token_embeddings(ids), mask).float().cpu()
        return self.finite(features)

    def encode_texts(self, texts: Sequence[str]) -> Tensor:
        """Texts -> unit text features ``(n, d)``, float32, on the CPU, without gradient."""
        return self.encode_tokens(self.tokenize(texts))

    def encode_vocabulary(self, sample: int | None = None) -> Tensor:
        """Vocabulary entries as texts of their own -> unit features ``(V, d)``, float32, on the CPU.

        Args:
            sample: if given, only a seeded random sample of that many entries, for slow machines.
        """
        tokens = self.vocabulary_tokens()
        if sample is not None and sample < len(tokens.ids):
            rows = torch.randperm(len(tokens.ids), generator=torch.Generator().manual_seed(0))[:sample]
            tokens = Tokens(tokens.ids[rows.sort().values], tokens.mask[rows.sort().values])
        return self.encode_tokens(tokens, batch_size=512)


@dataclass(frozen=True)
class Family:
    """A kind of CLIP: how its folder is recognised, fetched and loaded.

    Attributes:
        name: as in the catalogue.
        title: the format and the file that marks it, for a reader.
        recognises: whether a folder is of this kind; cheap, and True for no other family's folder.
        load: a folder and the spec string to record (default ``dir:FOLDER``) -> the encoder, asking nothing
            of the network; raises UserError for what is missing or damaged.
        weight_files: names of weight files, the preferred first; one of them is fetched.
        small_files: patterns of the other files that loading needs.
    """

    name: str
    title: str
    recognises: Callable[[Path], bool]
    load: Callable[[Path, str | None], DualEncoder]
    weight_files: tuple[str, ...]
    small_files: tuple[str, ...]
