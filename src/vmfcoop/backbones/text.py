"""Tokenizers behind one face: texts to ids and mask, trimmed to the longest text."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from vmfcoop.backbones.base import Tokens, real_lengths


class TextTokenizer(ABC):
    """What a text tower's tokenizer gives.

    Attributes:
        context_length: the most tokens of a text, begin and end marks included.
        pad_id: the id that follows a text up to the longest of its batch.
        entries: id -> entry of the vocabulary, without special and unused ones, in the order of the ids.
    """

    context_length: int
    pad_id: int
    entries: dict[int, str]

    @abstractmethod
    def __call__(self, texts: Sequence[str]) -> Tokens:
        """Texts -> tokens, trimmed to the longest text; those longer than the context lose their end."""

    @abstractmethod
    def full_length(self, text: str) -> int:
        """Tokens of a text before it is cut, marks included."""

    @property
    def begin_marks(self) -> int:
        """How many marks precede the first token of a text."""
        first = self(["a", "zebra"]).ids[:, 0]
        return int(first[0] == first[1])

    def cut(self, texts: Sequence[str], tokens: Tokens) -> list[int]:
        """Which of the texts lost tokens to the context length; only those that fill it are looked at."""
        full = (tokens.lengths == self.context_length).nonzero().flatten().tolist()
        return [row for row in full if self.full_length(texts[row]) > self.context_length]


class HFTextTokenizer(TextTokenizer):
    """Any tokenizer of transformers.

    Args:
        tokenizer: it, with a padding token.
        context_length: the most tokens of a text, marks included.
        known: size of the text tower's embedding table; entries beyond it are left out.
        clean: applied to each text first.
    """

    def __init__(
        self, tokenizer: Any, context_length: int, known: int, clean: Callable[[str], str] | None = None
    ) -> None:
        self.tokenizer = tokenizer
        # Some published tokenizers pad on the left; a text begins at position 0 here.
        tokenizer.padding_side = "right"
        self.context_length = context_length
        self.pad_id = int(tokenizer.pad_token_id)
        self.entries = plain_entries(tokenizer, known)
        self._clean = clean or str

    def __call__(self, texts: Sequence[str]) -> Tokens:
        cleaned = [self._clean(text) for text in texts]
        batch = self.tokenizer(
            cleaned,
            max_length=self.context_length,
            truncation=True,
            padding="longest",
            return_attention_mask=True,
            return_tensors="pt",
        )
        return Tokens(batch["input_ids"], batch["attention_mask"].bool())

    def full_length(self, text: str) -> int:
        return len(self.tokenizer(self._clean(text), truncation=False, verbose=False)["input_ids"])


def plain_entries(tokenizer: Any, known: int) -> dict[int, str]:
    """The vocabulary of a transformers tokenizer without special and unused entries, by id.

    Args:
        tokenizer: it.
        known: ids from here on have no row in the text tower's embedding table.
    """
    special = set(tokenizer.all_special_ids)
    # SigLIP pads with its end mark; the padding mark of its vocabulary is not special to transformers.
    unused = ("[unused", "<unused", "<pad>")
    found = sorted((i, token) for token, i in tokenizer.get_vocab().items())
    return {i: token for i, token in found if i not in special and i < known and not token.startswith(unused)}


def trimmed(ids: Tensor, mask: Tensor) -> Tokens:
    """Padded ids and mask ``(n, L)`` -> tokens as long as the longest text."""
    longest = int(real_lengths(mask).max())
    return Tokens(ids[:, :longest], mask[:, :longest])


def until_end_mark(ids: Tensor, ends: Tensor) -> Tensor:
    """Mask ``(n, L)`` of the positions up to and with the end mark at ``ends (n,)``."""
    return torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]
