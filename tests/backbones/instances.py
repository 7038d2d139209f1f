"""A small random instance of every family, and one full-size architecture of each, written as published."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from benchmarks.random_backbone import write_biomedclip, write_folder
from benchmarks.random_checkpoints import write_medclip, write_pmc_clip
from benchmarks.random_transformers import (
    tiny_altclip,
    tiny_clip,
    tiny_dual_encoder,
    tiny_siglip,
    tiny_siglip2,
    write_hub_tokenizer,
    write_pubmedclip,
)
from benchmarks.random_transformers import write_folder as write_transformers

from tests.conftest import TINY_BERT_CONFIG, TINY_CLIP_CONFIG, tiny_bert_shape

Writer = Callable[[Path], Path]


def _open_clip_bert(folder: Path) -> Path:
    write_folder(folder, TINY_BERT_CONFIG, tiny_bert_shape())
    tiny_bert_shape().save_pretrained(folder)
    return folder


# open_clip's own form of SigLIP: sigmoid bias, an image tower pooled by attention without a class token, a
# text tower that reads its padding and is pooled from the last position.
SIGLIP = {
    **TINY_BERT_CONFIG,
    "init_logit_bias": -10,
    "vision_cfg": {**TINY_BERT_CONFIG["vision_cfg"], "timm_model_name": "test_vit3", "timm_pool": "map"},
    "text_cfg": {
        "hf_tokenizer_name": "nobody/tiny-siglip",
        "tokenizer_kwargs": {"clean": "canonicalize"},
        "context_length": 24,
        "vocab_size": 300,
        "width": 32,
        "heads": 4,
        "layers": 2,
        "no_causal_mask": True,
        "proj_bias": True,
        "pool_type": "last",
        "norm_kwargs": {"eps": 1e-6},
    },
}


def _open_clip_siglip(folder: Path) -> Path:
    write_folder(folder, SIGLIP)
    write_hub_tokenizer(folder, "siglip", tiny_siglip())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"tokenizer_class": "T5Tokenizer"}))
    return folder


TINY: dict[str, Writer] = {
    "open_clip-bert": _open_clip_bert,
    "open_clip": lambda folder: write_folder(folder, TINY_CLIP_CONFIG),
    "open_clip-siglip": _open_clip_siglip,
    "transformers-clip": lambda folder: write_transformers(folder, tiny_clip()),
    "transformers-siglip": lambda folder: write_transformers(folder, tiny_siglip()),
    "transformers-siglip2": lambda folder: write_transformers(folder, tiny_siglip2(), "gemma"),
    "transformers-altclip": lambda folder: write_transformers(folder, tiny_altclip()),
    "transformers-vit-bert": lambda folder: write_transformers(folder, tiny_dual_encoder()),
    "pmc-clip": lambda folder: write_pmc_clip(folder, tiny=True),
    "medclip-vit": lambda folder: write_medclip(folder, tiny=True),
    "medclip-resnet": lambda folder: write_medclip(folder, "resnet", tiny=True),
}
FULL_SIZE: dict[str, Writer] = {
    "biomedclip": lambda folder: write_biomedclip(folder, half=True),
    "pubmedclip": lambda folder: write_pubmedclip(folder, half=True),
    "pmc-clip-full": lambda folder: write_pmc_clip(folder, half=True),
    "medclip-vit-full": lambda folder: write_medclip(folder, half=True),
}


def write(name: str, folder: Path) -> Path:
    """Write the instance of a name into a folder, which it returns."""
    return (TINY | FULL_SIZE)[name](folder)
