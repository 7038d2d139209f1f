"""Reading backbone folders: weights without unpickling, JSON, and errors that name the file and the mend."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vmfcoop.errors import UserError

TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model")


def require(folder: Path, file: str, kind: str) -> Path:
    """The path of a file that a folder must hold.

    Args:
        folder: of the backbone.
        file: its name.
        kind: what such a folder is called, for the sentence.

    Raises:
        UserError: the folder or the file is not there.
    """
    if not folder.is_dir():
        raise UserError(f"The backbone folder '{folder}' does not exist.")
    if not (folder / file).is_file():
        raise UserError(f"The backbone folder '{folder}' has no {file}; is it {kind}?")
    return folder / file


def require_tokenizer(folder: Path, whose: str = "") -> None:
    """Check that a tokenizer lies in the folder.

    Args:
        folder: of the backbone.
        whose: the hub repository that has the right one, for the sentence.

    Raises:
        UserError: there is none.
    """
    if not any((folder / file).is_file() for file in TOKENIZER_FILES):
        origin = f" of '{whose}'" if whose else ""
        files = " or ".join(TOKENIZER_FILES)
        raise UserError(f"The backbone folder '{folder}' has no tokenizer; put {files}{origin} there.")


def find_weights(folder: Path, names: Sequence[str]) -> Path:
    """The first of the weight files, in the order of preference, that the folder holds.

    Raises:
        UserError: it holds none.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"The backbone folder '{folder}' has no weights; put {' or '.join(names)} there.")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is no JSON, or no object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a JSON object; fetch the file again.")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a torch file that holds tensors and nothing else.

    A checkpoint of a training (``{"state_dict": ...}``) gives its state dict.

    Raises:
        UserError: the file is damaged, or holds more than tensors; nothing in it is ever executed.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"The weights '{path}' are damaged ({first_line(error)}); fetch them again."
        ) from error
    except Exception as error:  # torch raises pickle's own error class for files that are not plain tensors
        raise UserError(f"The weights '{path}' hold more than tensors and were not loaded.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"The weights '{path}' are not a dictionary of named tensors.")
    return state


def load_state(model: nn.Module, state: Mapping[str, Tensor], path: Path, described_by: str) -> None:
    """Copy named tensors into a model: every one of it, and no others.

    Args:
        model: is filled.
        state: names as in the model's own state dict.
        path: where they come from, for the sentence.
        described_by: what gave the model its shape, for the sentence.

    Raises:
        UserError: a name is missing, too many, or of another shape.
    """
    expected = model.state_dict()
    # Older checkpoints carry a constant index buffer of the towers that newer libraries do not register.
    state = {k: v for k, v in state.items() if k in expected or not k.endswith("position_ids")}
    differ = sorted(set(expected) - set(state)) or sorted(set(state) - set(expected))
    if not differ:
        differ = sorted(k for k in expected if expected[k].shape != state[k].shape)
    if differ:
        raise UserError(
            f"The weights '{path}' do not fit {described_by} ({len(differ)} entries differ, "
            f"first '{differ[0]}'); the two must come from the same model."
        )
    model.load_state_dict(state)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    message = html.unescape(str(error)).strip()
    return message.splitlines()[0][:200] if message else type(error).__name__
