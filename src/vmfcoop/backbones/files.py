"""Reading backbone folders: weights without unpickling, JSON, and errors that name the file and the mend."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vmfcoop.errors import UserError

_TORCH_MARKS = (b"PK", b"\x80")  # a zip archive, or the pickle protocol of torch before 1.6
_BUFFERS = 10**7
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
    except (
        ValueError,
        RecursionError,
    ) as error:  # not JSON, not UTF-8, a number or a nesting too long to read
        raise UserError(f"'{path}' is not valid JSON ({first_line(error)}); fetch the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a JSON object; fetch the file again.")
    return content


def read_weights(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, or of a torch file that holds tensors and nothing else.

    A checkpoint of a training (``{"state_dict": ...}``) gives its state dict.

    Raises:
        UserError: the file is damaged, or holds more than tensors; nothing in it is ever executed.
    """
    content: Any = _read_safetensors(path) if path.suffix == ".safetensors" else read_torch(path)
    state: Any = content.get("state_dict", content) if isinstance(content, dict) else {}
    if not state or not all(_is_plain(value) for value in state.values()):
        raise UserError(f"The weights '{path}' are not a dictionary of named tensors.")
    if all(name.startswith("module.") for name in state):  # saved by a training on several devices
        return {name.removeprefix("module."): value for name, value in state.items()}
    return state  # type: ignore[no-any-return]


def _is_plain(value: Any) -> bool:
    """Whether a value is a tensor of real numbers, not sparse, quantised or without content."""
    return (
        isinstance(value, Tensor)
        and value.layout == torch.strided
        and not (value.is_complex() or value.is_quantized or value.is_meta)
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)  # type: ignore[no-any-return]
    except (SafetensorError, OSError) as error:
        raise _damaged(path, error) from error


def read_torch(path: Path) -> Any:
    """What a torch file holds, if that is tensors and plain values.

    Raises:
        UserError: the file is damaged, or holds more than tensors; nothing in it is ever executed.
    """
    with path.open("rb") as file:
        start = file.read(4096)
    if not start.startswith(_TORCH_MARKS):
        text = "text, such as an error page or a pointer to the file" if start.isascii() else "no torch file"
        raise _damaged(path, ValueError(text if start else "empty"))
    try:
        with torch.serialization.safe_globals(_numpy_scalars()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError) as error:
        raise _damaged(path, error) from error
    except Exception as error:  # torch raises pickle's own error class for files that are not plain tensors
        raise UserError(f"The weights '{path}' hold more than tensors and were not loaded.") from error


def _damaged(path: Path, error: BaseException) -> UserError:
    return UserError(f"The weights '{path}' are damaged ({first_line(error)}); fetch them again.")


def _numpy_scalars() -> list[Any]:
    """What a numpy number in a file is made of; training loops put one beside the tensors, a best score."""
    scalar = np.float64(0).__reduce__()[0]
    made_of = [scalar, np.dtype, np.dtypes.Float64DType, np.dtypes.Float32DType, np.dtypes.Int64DType]
    return [*made_of, (scalar, "numpy.core.multiarray.scalar")]  # its name in files of numpy before 2


def refuse_larger(
    build: Callable[[], nn.Module], state: Mapping[str, Tensor], path: Path, described_by: str
) -> None:
    """Refuse a model that is far larger than its weights, before it is given any memory.

    Args:
        build: makes the model; done here on torch's meta device.
        state: its weights.
        path: where they come from, for the sentence.
        described_by: what gave the model its shape, for the sentence.

    Raises:
        UserError: it has more than twice the numbers of the weights (constant buffers are not among them).
    """
    with torch.device("meta"):
        model = build()
    described = sum(part.numel() for part in (*model.parameters(), *model.buffers()))
    held = sum(part.numel() for part in state.values())
    if described > 2 * held + _BUFFERS:
        raise UserError(
            f"The weights '{path}' hold {held:,} numbers where {described_by} describes a model of "
            f"{described:,}; the two must come from the same model."
        )


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
        raise misfit(path, described_by, differ)
    model.load_state_dict(state)


def misfit(path: Path, described_by: str, differ: Sequence[str]) -> UserError:
    """The error for weights that are not those of a model; ``differ`` names entries."""
    return UserError(
        f"The weights '{path}' do not fit {described_by} ({len(differ)} entries differ, "
        f"first '{differ[0]}'); the two must come from the same model."
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's message, at most 200 characters."""
    message = html.unescape(str(error)).strip()
    return message.splitlines()[0][:200] if message else type(error).__name__
