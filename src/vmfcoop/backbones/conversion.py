"""Folders in open_clip's hub format from what is published otherwise: a name of its list, a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg
from open_clip.transformer import QuickGELU
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.backbones.files import first_line, read_weights
from vmfcoop.backbones.open_clip import CONFIG_FILE, WEIGHT_FILES, checkpoint_config, load_folder, load_named
from vmfcoop.errors import UserError
from vmfcoop.files import disk_full

_SAME = 1e-5
"""The most by which features of a written folder may differ from those of the model it was made from."""


def write_named(model: str, folder: Path) -> None:
    """Write ``MODEL/PRETRAINED`` of open_clip's list as a folder that loads without a network.

    The folder is loaded again and its features are compared with those of open_clip's own model.

    Args:
        model: model and weights; they come from the hub or its cache.
        folder: exists; files of these names are replaced.

    Raises:
        UserError: as :func:`~vmfcoop.backbones.open_clip.load_named`; the disk is full; or the folder gives
            other features.
    """
    encoder = load_named(model)
    name = model.partition("/")[0]
    config = open_clip.get_model_config(name)
    built: Any = encoder._model
    if any(isinstance(module, QuickGELU) for module in built.modules()):
        config["quick_gelu"] = True
    preprocess_cfg = asdict(PreprocessCfg(**built.visual.preprocess_cfg))
    _write_config(folder, {"model_cfg": config, "preprocess_cfg": preprocess_cfg})
    if "hf_model_name" in config["text_cfg"]:
        built.text.config.save_pretrained(folder)
    tokenizer = open_clip.get_tokenizer(name)
    if isinstance(tokenizer, HFTokenizer):
        tokenizer.save_pretrained(folder)
    _write_weights(folder, built.state_dict())
    if not _gives_the_same(encoder, load_folder(folder)):
        raise UserError(
            f"'{model}' cannot be written as a folder that gives the same features; use it online."
        )


def write_checkpoint(
    checkpoint: Path, architecture: str, text_cfg: Mapping[str, Any] | None, folder: Path
) -> None:
    """Write a bare checkpoint of open_clip's training loop as a folder: its weights, and a configuration.

    What a training needs beside the weights (the optimiser's state) is left out.

    Args:
        checkpoint: the file.
        architecture: open_clip's name of the towers.
        text_cfg: of the text tower, where it is not the architecture's own.
        folder: exists; files of these names are replaced.

    Raises:
        UserError: the architecture is unknown, the checkpoint damaged or no file of tensors, or the disk
            full.
    """
    _write_config(folder, checkpoint_config(architecture, text_cfg))
    _write_weights(folder, read_weights(checkpoint))


def _write_config(folder: Path, content: Mapping[str, Any]) -> None:
    (folder / CONFIG_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_weights(folder: Path, state: Mapping[str, Tensor]) -> None:
    # Tensors that share memory, as tied weights do, are copies of their own in the file.
    tensors = {name: value.detach().clone().contiguous() for name, value in state.items()}
    try:
        save_file(tensors, folder / WEIGHT_FILES[0])
    except SafetensorError as error:
        if "space" in str(error) or "os error 28" in str(error):
            raise disk_full(folder) from error
        raise UserError(f"The weights cannot be written to '{folder}' ({first_line(error)}).") from error


def _gives_the_same(one: DualEncoder, other: DualEncoder) -> bool:
    pixels = torch.rand(1, 3, *one.image_size, generator=torch.Generator().manual_seed(0))
    ramp = Image.linear_gradient("L").convert("RGB")
    pairs = (
        (one.encode_images(pixels), other.encode_images(pixels)),
        (one.preprocess(ramp), other.preprocess(ramp)),
        (one.encode_texts(["a photo of a lesion."]), other.encode_texts(["a photo of a lesion."])),
    )
    return one.fingerprint == other.fingerprint and all(
        a.shape == b.shape and float((a - b).abs().max()) <= _SAME for a, b in pairs
    )
