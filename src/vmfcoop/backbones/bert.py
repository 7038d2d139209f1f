"""What the families with a BERT text tower share: its shape read off the weights, its tokenizer, its pass."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vmfcoop.backbones.files import first_line, require_tokenizer
from vmfcoop.backbones.text import HFTextTokenizer
from vmfcoop.errors import UserError

HEAD_WIDTH = 64
"""Width of an attention head in every published BERT, tiny to large; the weights do not tell it."""


def entry(state: Mapping[str, Tensor], key: str, path: Path, axes: int | None = None) -> Tensor:
    """A named tensor.

    Args:
        state: named tensors.
        key: the name.
        path: where they come from, for the sentence.
        axes: how many it must have.

    Raises:
        UserError: the file has no tensor of that name and number of axes.
    """
    value = state.get(key)
    if value is None or (axes is not None and value.dim() != axes):
        raise UserError(
            f"The weights '{path}' have no entry '{key}' of the published kind; are they of another model?"
        )
    return value


def count_blocks(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered blocks follow a prefix: 12 for ``encoder.layer.0...`` to ``encoder.layer.11...``.

    Example:
        >>> count_blocks({"layer.0.weight": torch.zeros(1), "layer.1.weight": torch.zeros(1)}, "layer.")
        2
    """
    rests = [key.removeprefix(prefix) for key in state if key.startswith(prefix)]
    return len({rest.split(".")[0] for rest in rests if rest.split(".")[0].isdigit()})


def build_bert(state: Mapping[str, Tensor], prefix: str, path: Path) -> Any:
    """A transformers ``BertModel`` of the shape of the weights under a prefix, not yet filled.

    What weights cannot tell is as in every published BERT: heads of 64, exact GELU, layer norms with 1e-12.

    Args:
        state: named tensors.
        prefix: in front of ``embeddings`` and ``encoder``.
        path: where the tensors come from, for the sentence.

    Raises:
        UserError: an entry of a BERT is missing.
    """
    from transformers import BertConfig, BertModel

    def sizes(name: str) -> tuple[int, ...]:
        return tuple(entry(state, f"{prefix}{name}.weight", path, axes=2).shape)

    vocabulary, width = sizes("embeddings.word_embeddings")
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        num_hidden_layers=count_blocks(state, f"{prefix}encoder.layer."),
        num_attention_heads=max(1, width // HEAD_WIDTH),
        intermediate_size=sizes("encoder.layer.0.intermediate.dense")[0],
        max_position_embeddings=sizes("embeddings.position_embeddings")[0],
        type_vocab_size=sizes("embeddings.token_type_embeddings")[0],
        attn_implementation="sdpa",
    )
    return BertModel(config)


def load_tokenizer(folder: Path, whose: str, context_length: int, bert: Any) -> HFTextTokenizer:
    """A BERT tokenizer from ``tokenizer.json`` or ``vocab.txt``, in lower case where no file says otherwise.

    Args:
        folder: holds the files.
        whose: the hub repository that has the right ones, for the sentences.
        context_length: the most tokens of a text; a shorter table of positions limits it.
        bert: the text tower.

    Raises:
        UserError: the files are missing, damaged, or of a larger vocabulary than the tower's.
    """
    from transformers import BertTokenizerFast

    require_tokenizer(folder, whose)
    try:
        tokenizer = BertTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise UserError(
            f"The tokenizer files in '{folder}' cannot be read ({first_line(error)}); "
            f"put those of '{whose}' there."
        ) from error
    known = int(bert.config.vocab_size)
    entries = 1 + max(tokenizer.get_vocab().values(), default=0)
    reader = HFTextTokenizer(tokenizer, min(context_length, bert.config.max_position_embeddings), known)
    if entries > known or not reader.entries:
        raise UserError(
            f"The tokenizer in '{folder}' has {entries} entries and the text tower {known}; "
            f"put the tokenizer files of '{whose}' there."
        )
    return reader


def run_bert(bert: Any, embeddings: Tensor, mask: Tensor, **wanted: bool) -> Any:
    """The tower's output for input embeddings ``(n, L, w)``; masked positions are attended to by none."""
    return bert(inputs_embeds=embeddings, attention_mask=mask.to(torch.long), return_dict=True, **wanted)
