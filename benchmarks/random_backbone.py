"""Folders in open_clip's hub format with seeded random weights: stand-ins for models too large to ship.

The weights are drawn at a gain above one, not at the small scale that training starts from, so that features
of different texts and images lie apart and a wrong mask, position or bias shows in them.
"""

from __future__ import annotations

import json
import string
import tempfile
from pathlib import Path
from typing import Any

import open_clip
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors
from tokenizers.models import WordPiece
from torch import Tensor, nn
from transformers import BertConfig

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
_WORDS = (
    "a an the of in with and no or on to is photo image picture scan slide mri ct ultrasound x ray "
    "chest brain breast kidney lung colon skin retina liver heart knee tissue tumor tumour cyst stone "
    "cell lesion nodule opacity glioma meningioma pituitary carcinoma adenocarcinoma melanoma pneumonia "
    "cataract glaucoma normal benign malignant healthy diabetic viral covid showing shows large small "
    "bright dark round irregular border borders mass edema margin texture contrast left right upper "
    "lower region dense thin thick smooth vessel fluid signal enhancing ring bone disease optic disc "
    "nerve "
)
ENDINGS = ["s", "ed", "ing", "oma", "itis", "osis", "opathy", "scopy", "al", "ic", "ly", "tic"]

BIOMEDCLIP: dict[str, Any] = {
    "embed_dim": 512,
    "vision_cfg": {
        "timm_model_name": "vit_base_patch16_224",
        "timm_model_pretrained": False,
        "timm_pool": "",
        "timm_proj": "linear",
        "image_size": 224,
    },
    "text_cfg": {
        "hf_model_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_tokenizer_name": "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract",
        "hf_proj_type": "mlp",
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "context_length": 256,
    },
}
PREPROCESS = {
    "mean": [0.48145466, 0.4578275, 0.40821073],
    "std": [0.26862954, 0.26130258, 0.27577711],
}
GAIN = 1.5


def vocabulary() -> list[str]:
    """A WordPiece vocabulary in which every lower-case ASCII text has tokens, none of them unknown."""
    letters = list(string.ascii_lowercase + string.digits)
    words = [*letters, *string.punctuation, *(w for w in _WORDS.split() if len(w) > 1)]
    pieces = [f"##{piece}" for piece in [*letters, *ENDINGS]]
    return [*SPECIAL, *(f"[unused{i}]" for i in range(3)), *words, *pieces]


def write_tokenizer(folder: Path, context_length: int) -> None:
    """Write a BERT tokenizer over :func:`vocabulary` as a hub folder carries it."""
    entries = vocabulary()
    tokenizer = Tokenizer(WordPiece({t: i for i, t in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    marks = [(mark, entries.index(mark)) for mark in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", "[CLS] $A [SEP] $B [SEP]", marks
    )
    tokenizer.add_special_tokens(SPECIAL)
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "vocab.txt").write_text("\n".join(entries) + "\n", encoding="utf-8")
    settings = {f"{mark[1:-1].lower()}_token": mark for mark in SPECIAL}
    settings |= {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    settings |= {"model_max_length": context_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


@torch.no_grad()
def build(model_cfg: dict[str, Any], bert: BertConfig | None = None, seed: int = 0) -> nn.Module:
    """A frozen CLIP with seeded random weights; ``bert`` is the shape of a Hugging Face text tower."""
    text_cfg = dict(model_cfg["text_cfg"])
    with tempfile.TemporaryDirectory() as scratch:
        if bert is not None:
            bert.save_pretrained(scratch)
            text_cfg |= {"hf_model_name": scratch, "hf_model_pretrained": False}
        model = open_clip.CustomTextCLIP(**{**model_cfg, "text_cfg": text_cfg})
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.ndim > 0:
            weight.copy_(random_weight(name, weight, draw))
    return model.eval().requires_grad_(False)


def random_weight(name: str, weight: Tensor, draw: torch.Generator) -> Tensor:
    """Numbers for a weight of a tower, at a gain above one."""
    noise = torch.randn(weight.shape, generator=draw)
    if weight.ndim > 1 and ("embedding" in name or "token" in name or "pos_embed" in name):
        return 0.5 * noise
    if weight.ndim > 1:
        return GAIN * noise / weight[0].numel() ** 0.5
    return 0.1 * noise + (1.0 if name.endswith("weight") else 0.0)


def write_folder(
    folder: Path,
    model_cfg: dict[str, Any],
    bert: BertConfig | None = None,
    seed: int = 0,
    weights: str = "open_clip_model.safetensors",
    half: bool = False,
) -> Path:
    """Write :func:`build`'s model in hub format, without the text tower's ``config.json``.

    Args:
        folder: is made.
        model_cfg: as in ``open_clip_config.json``.
        bert: the shape of the Hugging Face text tower; a tokenizer is written for it.
        seed: of the weights.
        weights: name of the weight file; ``.bin`` carries BERT's constant index buffer as older files do.
        half: store half-precision numbers, to spare disk and time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": model_cfg, "preprocess_cfg": PREPROCESS}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    state = build(model_cfg, bert, seed).state_dict()
    state = {k: v.half() if half and v.is_floating_point() else v for k, v in state.items()}
    if bert is not None:
        write_tokenizer(folder, model_cfg["text_cfg"]["context_length"])
    if weights.endswith(".bin"):
        if bert is not None:
            positions = torch.arange(bert.max_position_embeddings)[None]
            state["text.transformer.embeddings.position_ids"] = positions
        torch.save(state, folder / weights)
    else:
        save_file(state, folder / weights)
    return folder


def write_biomedclip(folder: Path, half: bool = False) -> Path:
    """BiomedCLIP's architecture as its hub folder has it: a ``.bin``, and no ``config.json`` of the tower."""
    return write_folder(folder, BIOMEDCLIP, BertConfig(), weights="open_clip_pytorch_model.bin", half=half)
