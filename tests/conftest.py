"""Tiny backbones and images, written to temporary folders; no test asks the network for anything."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"

import numpy as np
import pytest
import torch
from benchmarks.random_backbone import write_folder
from PIL import Image
from transformers import BertConfig

from vmfcoop.backbones.open_clip import OpenClipEncoder, load_folder

TINY_VISION: dict[str, Any] = {"image_size": 32, "patch_size": 8, "width": 64, "layers": 2, "head_width": 32}
TINY_BERT_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": {
        "timm_model_name": "test_vit",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 160,
    },
    "text_cfg": {
        "hf_model_name": "nobody/tiny-bert",
        "hf_tokenizer_name": "nobody/tiny-bert",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 64,
    },
}
TINY_CLIP_CONFIG: dict[str, Any] = {
    "embed_dim": 64,
    "vision_cfg": TINY_VISION,
    "text_cfg": {"context_length": 32, "vocab_size": 49408, "width": 32, "heads": 4, "layers": 2},
}


def tiny_bert_shape() -> BertConfig:
    """Two layers of width 32."""
    return BertConfig(
        vocab_size=300,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Caches of the test session go to a temporary folder, and tests compute on one thread."""
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFCOOP_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def tiny_bert_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BiomedCLIP's family in small: a timm image tower and a BERT, d = 64, context length 64."""
    folder = write_folder(tmp_path_factory.mktemp("backbones") / "bert", TINY_BERT_CONFIG, tiny_bert_shape())
    tiny_bert_shape().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """OpenAI's family in small: open_clip's own towers, d = 64, context length 32."""
    return write_folder(tmp_path_factory.mktemp("backbones") / "clip", TINY_CLIP_CONFIG)


@pytest.fixture(scope="session")
def tiny_bert(tiny_bert_folder: Path) -> OpenClipEncoder:
    return load_folder(tiny_bert_folder)


@pytest.fixture(scope="session")
def tiny_clip(tiny_clip_folder: Path) -> OpenClipEncoder:
    return load_folder(tiny_clip_folder)


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three class folders of 12 PNG images of 40 x 40: noisy stripes, their direction and width by class."""
    root = tmp_path_factory.mktemp("images")
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:40, :40]
    waves = {"glioma_tumor": rows / 2, "meningioma_tumor": columns / 2, "normal_brain": (rows + columns) / 8}
    for name, wave in waves.items():
        (root / name).mkdir()
        for number in range(12):
            clean = 128 + 90 * np.sin(wave + draw.uniform(0, 2 * np.pi))
            pixels = np.clip(clean + draw.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).convert("RGB").save(root / name / f"{number:02d}.png")
    return root
