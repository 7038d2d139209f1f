"""Folders in the hub's format for transformers with seeded random weights, tiny and full size.

Weights are drawn at a gain above one, as in ``random_backbone.py``. Tokenizers are of the kinds that
published folders carry: CLIP's own byte pairs, a Unigram model (SigLIP, XLM-RoBERTa), byte pairs with byte
fallback (Gemma, of SigLIP 2) and WordPiece (BERT).
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from benchmarks.random_backbone import PREPROCESS, SPECIAL, random_weight, vocabulary, write_tokenizer
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file
from tokenizers import Tokenizer, normalizers, pre_tokenizers, processors, trainers
from tokenizers.models import BPE, Unigram
from transformers import AltCLIPConfig, CLIPConfig, SiglipConfig, VisionTextDualEncoderConfig

TokenizerKind = Literal["clip", "siglip", "gemma", "xlm-roberta", "bert"]
WeightFile = Literal["model.safetensors", "pytorch_model.bin"]
MODELS = {
    "clip": "CLIPModel",
    "siglip": "SiglipModel",
    "altclip": "AltCLIPModel",
    "vision-text-dual-encoder": "VisionTextDualEncoderModel",
}
# The marks of each vocabulary, in the order of their ids. SigLIP's has a padding mark that it does not use.
MARKS = {
    "siglip": ["<pad>", "</s>", "<unk>"],
    "gemma": ["<pad>", "<eos>", "<bos>", "<unk>"],
    "xlm-roberta": ["<s>", "<pad>", "</s>", "<unk>"],
}
CLIP_MARKS = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
LOGIT_SCALE = 2.6592
_TINY: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
_TINY_VISION = _TINY | {"image_size": 32, "patch_size": 8}
_SO400M: dict[str, Any] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "num_attention_heads": 16,
}


def tiny_clip(**text: Any) -> CLIPConfig:
    """CLIP in two layers of width 64, with the wrong end mark of old files; ``text`` changes the tower."""
    shape = _TINY | {"vocab_size": 49408, "max_position_embeddings": 32, "eos_token_id": 2}
    return CLIPConfig(text_config=shape | text, vision_config=_TINY_VISION, projection_dim=48)


def tiny_siglip() -> SiglipConfig:
    """SigLIP in two layers of width 64."""
    shape = _TINY | {"vocab_size": len(unigram("siglip")), "max_position_embeddings": 24}
    return SiglipConfig(text_config=shape, vision_config=_TINY_VISION)


def tiny_siglip2() -> SiglipConfig:
    """SigLIP 2 of a fixed resolution in two layers of width 64."""
    shape = _TINY | {"vocab_size": byte_pairs().get_vocab_size(), "max_position_embeddings": 24}
    return SiglipConfig(text_config=shape, vision_config=_TINY_VISION)


def tiny_altclip() -> AltCLIPConfig:
    """AltCLIP in two layers of width 64: an XLM-RoBERTa, whose positions begin at 2, and two projections."""
    shape = _TINY | {"vocab_size": len(unigram("xlm-roberta")), "max_position_embeddings": 34}
    return AltCLIPConfig(
        text_config=shape | {"project_dim": 56, "pad_token_id": 1},
        vision_config=_TINY_VISION,
        projection_dim=48,
    )


def tiny_dual_encoder(vision: str = "vit", text: str = "bert") -> VisionTextDualEncoderConfig:
    """A vision-text dual encoder in two layers of width 64, of towers named as in ``config.json``."""
    shape = _TINY | {"model_type": text, "max_position_embeddings": 34}
    if text == "bert":
        shape |= {"vocab_size": len(vocabulary())}
    else:
        shape |= {"vocab_size": len(unigram("xlm-roberta")), "pad_token_id": 1, "type_vocab_size": 1}
    return VisionTextDualEncoderConfig(
        vision_config=_TINY_VISION | {"model_type": vision}, text_config=shape, projection_dim=48
    )


def pubmedclip() -> CLIPConfig:
    """PubMedCLIP's architecture, OpenAI's ViT-B/32 (151 million weights)."""
    return CLIPConfig(text_config={"eos_token_id": 2})


def medsiglip() -> SiglipConfig:
    """MedSigLIP's architecture, both towers of SoViT-400m at 448 pixels (878 million weights)."""
    return SiglipConfig(
        text_config=_SO400M | {"vocab_size": 32000, "max_position_embeddings": 64},
        vision_config=_SO400M | {"image_size": 448, "patch_size": 14},
    )


@torch.no_grad()
def build(config: Any, seed: int = 0) -> Any:
    """A frozen dual encoder of transformers with seeded random weights and CLIP's first logit scale."""
    model = getattr(transformers, MODELS[config.model_type])(config)
    draw = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if name == "logit_scale":
            weight.fill_(LOGIT_SCALE)
        else:
            weight.copy_(random_weight(name.replace("patch_embedding", "patch"), weight, draw))
    return model.eval().requires_grad_(False)


def write_folder(
    folder: Path,
    config: Any,
    tokenizer: TokenizerKind | None = None,
    seed: int = 0,
    weights: WeightFile = "model.safetensors",
    shards: str = "5GB",
    half: bool = False,
) -> Path:
    """Write :func:`build`'s model with the files of a hub repository.

    Args:
        folder: is made.
        config: of a dual encoder of transformers.
        tokenizer: its kind; default that of the published models of the type.
        seed: of the weights.
        weights: name of the weight file; ``.bin`` carries constant index buffers as files of 2022 do.
        shards: the most bytes of one safetensors file.
        half: store half-precision numbers, to spare disk and time.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = build(config, seed)
    (model.half() if half else model).save_pretrained(folder, max_shard_size=shards)
    if weights == "pytorch_model.bin":
        _as_bin(folder)
    write_preprocessor(folder, config)
    write_hub_tokenizer(folder, tokenizer or _usual_tokenizer(config), config)
    return folder


def write_pubmedclip(folder: Path, half: bool = False) -> Path:
    """PubMedCLIP's architecture in the files of its repository: a ``.bin``, CLIP's vocabulary and merges."""
    return write_folder(folder, pubmedclip(), weights="pytorch_model.bin", half=half)


def write_medsiglip(folder: Path, half: bool = False) -> Path:
    """MedSigLIP's architecture with the small vocabulary of the tests: 32000 rows, of which few are used."""
    return write_folder(folder, medsiglip(), half=half)


def write_preprocessor(folder: Path, config: Any) -> None:
    """Write ``preprocessor_config.json`` as the published models of the type have it."""
    side = config.vision_config.image_size
    square = {"height": side, "width": side}
    half = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    settings: dict[str, Any] = {"do_resize": True, "do_normalize": True, "resample": 3}
    if config.model_type == "siglip":
        settings |= half | {"image_processor_type": "SiglipImageProcessor", "size": square}
    elif config.vision_config.model_type == "vit":
        settings |= half | {"image_processor_type": "ViTImageProcessor", "size": square, "resample": 2}
    else:
        settings |= {"feature_extractor_type": "CLIPFeatureExtractor", "size": side, "crop_size": side}
        settings |= {f"image_{key}": value for key, value in PREPROCESS.items()} | {"do_center_crop": True}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")


def write_hub_tokenizer(folder: Path, kind: TokenizerKind, config: Any) -> None:
    """Write the tokenizer files of a kind, for the context of a text tower."""
    length = config.text_config.max_position_embeddings
    if kind == "bert":
        write_tokenizer(folder, length)
    elif kind == "clip":
        _write_clip_tokenizer(folder, length)
    elif kind == "siglip":
        _write_unigram(folder, "siglip", "$A </s>", "SiglipTokenizer", length, {"pad_token": "</s>"})
    elif kind == "xlm-roberta":
        _write_unigram(folder, kind, "<s> $A </s>", "XLMRobertaTokenizer", length - 2, {"pad_token": "<pad>"})
    else:
        byte_pairs().save(str(folder / "tokenizer.json"))
        marks = {f"{mark[1:-1]}_token": mark for mark in MARKS["gemma"]}
        _write_settings(folder, "GemmaTokenizer", length, marks | {"add_bos_token": False})


def unigram(kind: str) -> list[tuple[str, float]]:
    """Pieces and scores of a Unigram vocabulary over the words of ``random_backbone.vocabulary``."""
    entries = [entry for entry in vocabulary() if entry not in SPECIAL and not entry.startswith("[")]
    words = [entry for entry in entries if not entry.startswith("##")]
    parts = [entry.removeprefix("##") for entry in entries if entry.startswith("##")]
    scores = dict.fromkeys(MARKS[kind], 0.0)
    scores |= {f"▁{word}": -3.0 for word in words}
    scores |= dict.fromkeys(("▁", *parts, *string.ascii_uppercase, *string.punctuation), -6.0)
    return list(scores.items())


def byte_pairs() -> Tokenizer:
    """Byte pairs with byte fallback over the same words, spaces being symbols of their own, as in Gemma."""
    tokenizer = Tokenizer(BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    words = [word for entry in vocabulary() if (word := entry.strip("#[]")).islower()]
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        special_tokens=MARKS["gemma"],
        initial_alphabet=["▁", *string.printable[:95]],
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words, *(f"▁{word}" for word in words)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    return tokenizer


def _usual_tokenizer(config: Any) -> TokenizerKind:
    if config.model_type == "vision-text-dual-encoder":
        return "bert" if config.text_config.model_type == "bert" else "xlm-roberta"
    kinds: dict[str, TokenizerKind] = {"clip": "clip", "siglip": "siglip", "altclip": "xlm-roberta"}
    return kinds[config.model_type]


def _write_clip_tokenizer(folder: Path, length: int) -> None:
    published = SimpleTokenizer()
    entries = {CLIP_MARKS.get(token, token): i for token, i in published.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(entries), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in published.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    begin, end = CLIP_MARKS.values()
    marks = {"bos_token": begin, "eos_token": end, "pad_token": end, "unk_token": end}
    _write_settings(folder, "CLIPTokenizer", length, marks)


def _write_unigram(
    folder: Path, kind: str, template: str, name: str, length: int, marks: dict[str, str]
) -> None:
    entries = unigram(kind)
    ids = {token: i for i, (token, _) in enumerate(entries)}
    tokenizer = Tokenizer(Unigram(entries, unk_id=ids["<unk>"]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    used = [mark for mark in MARKS[kind] if mark != "<pad>" or kind == "xlm-roberta"]
    tokenizer.add_special_tokens(used)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=template, special_tokens=[(mark, ids[mark]) for mark in used]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    marks = {"eos_token": "</s>", "unk_token": "<unk>"} | marks
    if kind == "xlm-roberta":
        marks |= {"bos_token": "<s>", "cls_token": "<s>", "sep_token": "</s>"}
    _write_settings(folder, name, length, marks)


def _write_settings(folder: Path, name: str, length: int, marks: dict[str, Any]) -> None:
    settings = {"tokenizer_class": name, "model_max_length": length, **marks}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")


def _as_bin(folder: Path) -> None:
    """Turn the safetensors file into a ``.bin`` as transformers wrote it in 2022."""
    state = load_file(folder / "model.safetensors")
    for name in list(state):
        tower, found, _ = name.partition(".position_embedding")
        if found:
            state[f"{tower}.position_ids"] = torch.arange(len(state[name]))[None]
    torch.save(state, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
