"""The open_clip family: BiomedCLIP, OpenAI's CLIP and every model in open_clip's hub format."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder, MaxPooler
from open_clip.modified_resnet import ModifiedResNet
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import QuickGELU, TextTransformer, VisionTransformer, text_global_pool
from PIL import Image
from safetensors import SafetensorError
from torch import Tensor, nn

from vmfcoop.backbones.base import Family, Tokens, real_lengths
from vmfcoop.backbones.files import (
    find_weights,
    first_line,
    load_state,
    read_json,
    read_weights,
    refuse_larger,
    require,
    require_tokenizer,
)
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.backbones.text import TextTokenizer, plain_entries, trimmed, until_end_mark
from vmfcoop.errors import UserError, unknown_name

CONFIG_FILE = "open_clip_config.json"
CHECKPOINT_FILE = "open_clip_pytorch_model.bin"
WEIGHT_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", CHECKPOINT_FILE)

_BERT_BASE: dict[str, Any] = {
    "model_type": "bert",
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}
# BiomedCLIP's hub folder names a text tower by a second hub repository and does not carry its config.json;
# the number of attention heads cannot be read off the weights, so the published architectures stand here.
KNOWN_TEXT_TOWERS: dict[str, dict[str, Any]] = {
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract": _BERT_BASE,
    "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract": _BERT_BASE,
    "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract-fulltext": _BERT_BASE,
    "microsoft/BiomedNLP-PubMedBERT-base-uncased-abstract-fulltext": _BERT_BASE,
    "bert-base-uncased": _BERT_BASE,
}


class OpenClipTokenizer(TextTokenizer):
    """open_clip's own tokenizers: its BPE, and its wrapper of transformers tokenizers.

    Args:
        tokenizer: one of open_clip's.
        tower: the text tower, which says where a text ends.
        known: size of its embedding table.
    """

    def __init__(self, tokenizer: Any, tower: Any, known: int) -> None:
        self._tokenizer, self._tower = tokenizer, tower
        self.context_length = int(tokenizer.context_length)
        self._bpe = isinstance(tokenizer, open_clip.SimpleTokenizer)
        if self._bpe:
            special = set(tokenizer.all_special_ids)
            self.pad_id = 0
            self.entries = {
                i: token for i, token in sorted(tokenizer.decoder.items()) if i not in special and i < known
            }
        else:
            self.pad_id = int(tokenizer.tokenizer.pad_token_id)
            self.entries = plain_entries(tokenizer.tokenizer, known)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        ids: Tensor = self._tokenizer(list(texts))
        return trimmed(ids, self._mask(ids))

    def full_length(self, text: str) -> int:
        if self._bpe:
            return len(self._tokenizer.encode(text)) + 2
        clean = self._tokenizer.clean_fn(text)
        return len(self._tokenizer.tokenizer(clean, truncation=False, verbose=False)["input_ids"])

    def _mask(self, ids: Tensor) -> Tensor:
        if getattr(self._tokenizer, "tokenizer_mode", ""):
            return torch.ones_like(ids, dtype=torch.bool)  # CLIPS puts a mark behind the padding.
        if isinstance(self._tower, HFTextEncoder):
            return ids.ne(self.pad_id)
        if self._tower.pool_type == "eos":
            return until_end_mark(ids, (ids == self._tower.eos_id).int().argmax(dim=1))
        if self._bpe or self._tower.pool_type == "argmax":
            # CLIP's padding id is also the token "!": the text ends at its end mark, the highest id.
            return until_end_mark(ids, ids.argmax(dim=1))
        # SigLIP pads with the end mark itself, so the first one of the padding is the text's own.
        ends = real_lengths(ids.ne(self.pad_id)) - int(self._tokenizer.tokenizer.eos_token_id != self.pad_id)
        return until_end_mark(ids, ends.clamp(max=ids.shape[1] - 1))


class OpenClipEncoder(FrozenEncoder):
    """A CLIP built by open_clip, frozen, behind the :class:`DualEncoder` seam.

    Two kinds of text tower are understood: Hugging Face towers (BiomedCLIP's BERT: bidirectional, masked
    padding, pooled from the first token or the mean) and open_clip's own ``TextTransformer`` (causal,
    pooled from the end mark; or without a mask over the full context length and pooled from its last
    position, as in SigLIP). SigLIP's sigmoid bias shifts all logits of an image alike, which a softmax over
    classes does not see.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess_cfg: PreprocessCfg, name: str) -> None:
        self._text: Any = _text_tower(model)
        tower = self._text if isinstance(self._text, TextTransformer) else None
        self._reads_padding = tower is not None and (
            tower.pool_type == "last" or (tower.attn_mask is None and not _masks_padding(tower))
        )
        known = int(self._embedding.weight.shape[0])
        super().__init__(model, OpenClipTokenizer(tokenizer, self._text, known), preprocess_cfg, name)

    @property
    def _settings(self) -> dict[str, Any]:
        # The activation is no weight, and open_clip's checkpoints of one shape differ in it.
        quick = any(isinstance(part, QuickGELU) for part in self._model.modules())
        return super()._settings | ({"quick_gelu": True} if quick else {})

    @property
    def _embedding(self) -> nn.Embedding:
        if isinstance(self._text, HFTextEncoder):
            return self._text.transformer.get_input_embeddings()  # type: ignore[no-any-return]
        return self._text.token_embedding  # type: ignore[no-any-return]

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self._model.encode_image(pixels)  # type: ignore[no-any-return]

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self._text, HFTextEncoder):
            output = self._text.transformer(inputs_embeds=embeddings, attention_mask=mask.long())
            return self._text.proj(self._text.pooler(output, mask.long()))  # type: ignore[no-any-return]
        tower, length = self._text, embeddings.shape[1]
        hidden = embeddings + tower.positional_embedding[:length]
        attention = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        if _masks_padding(tower):
            attention = torch.zeros(mask.shape, device=mask.device, dtype=hidden.dtype)
            attention = attention.masked_fill(~mask, float("-inf"))[:, None].expand(-1, length, -1)
            attention = attention.repeat_interleave(tower.heads, 0)
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=attention))
        return self._projected(self._pooled(hidden, mask))

    def _pooled(self, hidden: Tensor, mask: Tensor) -> Tensor:
        if self._text.pool_type in ("argmax", "eos"):
            return hidden[torch.arange(len(hidden)), real_lengths(mask) - 1]
        return text_global_pool(hidden, None, pool_type=self._text.pool_type)  # type: ignore[no-any-return]

    def _projected(self, pooled: Tensor) -> Tensor:
        projection = self._text.text_projection
        if projection is None:
            return pooled
        if isinstance(projection, nn.Linear):
            return projection(pooled)  # type: ignore[no-any-return]
        return pooled @ projection  # type: ignore[no-any-return]

    @property
    def _spatial_layer(self) -> nn.Module | None:
        visual = self._model.visual
        if isinstance(visual, VisionTransformer):
            return visual.transformer.resblocks[-1].ln_1  # type: ignore[no-any-return]
        if isinstance(visual, ModifiedResNet):
            return visual.layer4  # type: ignore[no-any-return]
        blocks = getattr(visual.trunk, "blocks", None)
        if blocks is not None and hasattr(blocks[-1], "norm1"):
            return blocks[-1].norm1  # type: ignore[no-any-return]
        return self._last_map

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        visual = self._model.visual
        if isinstance(visual, VisionTransformer):
            return list(visual.transformer.resblocks)
        blocks = getattr(getattr(visual, "trunk", None), "blocks", None)
        return list(blocks) if blocks is not None and hasattr(blocks[-1], "norm1") else []

    @cached_property
    def _last_map(self) -> nn.Module | None:
        """The last part of a timm CNN that gives a map; timm's families name theirs differently."""
        trunk, seen = self._model.visual.trunk, list[nn.Module]()

        def note(part: nn.Module, _inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor) and output.dim() == 4 and min(output.shape[2:]) > 1:
                seen.append(part)

        hooks = [part.register_forward_hook(note) for part in trunk.children()]
        weight = next(trunk.parameters())
        with torch.no_grad():
            trunk(torch.zeros(1, 3, *self.image_size, device=weight.device, dtype=weight.dtype))
        for hook in hooks:
            hook.remove()
        channels_last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        return None if channels_last or not seen else seen[-1]


def _masks_padding(tower: TextTransformer) -> bool:
    """Whether a bidirectional tower leaves the padding out of its attention."""
    return bool(getattr(tower, "use_pad_mask", False))


def load_folder(folder: Path, name: str | None = None) -> OpenClipEncoder:
    """Load a folder in open_clip's hub format, asking nothing of the network.

    The folder holds ``open_clip_config.json``, the weights (safetensors, or the hub's ``.bin``, read with
    ``weights_only=True``) and, for a Hugging Face text tower, tokenizer files; the tower's ``config.json``
    too, unless it is one of the published towers known here (BiomedCLIP's is).

    Args:
        folder: the folder.
        name: spec string to record; default ``dir:FOLDER``.

    Raises:
        UserError: a file is missing or damaged, or the weights do not fit the configuration.
    """
    folder = folder.expanduser().resolve()
    config = read_json(require(folder, CONFIG_FILE, "a folder in open_clip's hub format"))
    model_cfg = _model_cfg(config, folder)
    weights = find_weights(folder, WEIGHT_FILES)
    with _local_text_config(folder, model_cfg["text_cfg"]) as text_cfg:
        tokenizer = _build_tokenizer(folder, model_cfg["text_cfg"])
        model_cfg = {**model_cfg, "text_cfg": text_cfg}
        state = _read_state(weights)
        described_by = f"{CONFIG_FILE} beside them"
        refuse_larger(lambda: _build_model(model_cfg, folder), state, weights, described_by)
        model = _build_model(model_cfg, folder)
    load_state(model, state, weights, described_by)
    preprocessing = _preprocessing(config.get("preprocess_cfg"), model.visual.image_size, folder)
    return OpenClipEncoder(model, tokenizer, preprocessing, name or f"dir:{folder}")


def _preprocessing(settings: Any, size: Any, folder: Path) -> PreprocessCfg:
    """How images are prepared, for a tower of a size."""
    try:
        merged = merge_preprocess_dict(PreprocessCfg(), settings or {})
        preprocessing = PreprocessCfg(**{**merged, "size": size})
        image_transform_v2(preprocessing, is_train=False)(Image.new("RGB", (8, 8)))
    except Exception as error:  # open_clip asserts some settings, and passes others on to torchvision
        raise UserError(
            f"open_clip cannot prepare images as 'preprocess_cfg' in '{folder / CONFIG_FILE}' says "
            f"({first_line(error)})."
        ) from error
    return preprocessing


def checkpoint_config(
    architecture: str, text_cfg: Mapping[str, Any] | None = None, size: int | None = None
) -> dict[str, Any]:
    """What ``open_clip_config.json`` has to say of a bare checkpoint, which comes without one.

    Beside it the checkpoint itself is called :data:`CHECKPOINT_FILE` and loads with :func:`load_folder`:
    BMC-CLIP, PathGen-CLIP and UniMed-CLIP are published like that.

    Args:
        architecture: open_clip's name of the towers.
        text_cfg: of the text tower, where it is not the architecture's own.
        size: height and width of an image; default the architecture's.

    Raises:
        UserError: open_clip knows no such architecture.
    """
    model_cfg = open_clip.get_model_config(architecture)
    if model_cfg is None:
        raise unknown_name("open_clip model", architecture, open_clip.list_models())
    if text_cfg is not None:
        model_cfg = {**model_cfg, "text_cfg": dict(text_cfg)}
    settings = {"mean": open_clip.OPENAI_DATASET_MEAN, "std": open_clip.OPENAI_DATASET_STD}
    return {
        "model_cfg": model_cfg,
        "preprocess_cfg": {**settings, "size": size or model_cfg["vision_cfg"]["image_size"]},
    }


def load_named(spec: str, name: str | None = None) -> OpenClipEncoder:
    """Load ``MODEL/PRETRAINED`` from open_clip's own list (weights come from the hub or its cache).

    Args:
        spec: model and weights.
        name: spec string to record; default ``open_clip:MODEL/PRETRAINED``.

    Raises:
        UserError: unknown model or weights, or the hub cannot be reached and nothing is cached.
    """
    model_name, _, pretrained = spec.partition("/")
    if model_name not in open_clip.list_models():
        raise unknown_name("open_clip model", model_name, open_clip.list_models())
    tags = open_clip.list_pretrained_tags_by_model(model_name)
    if not pretrained or (pretrained not in tags and not Path(pretrained).is_file()):
        offer = ", ".join(tags) or "none published; give a local checkpoint file"
        raise UserError(f"'open_clip:{spec}' needs weights as 'open_clip:{model_name}/PRETRAINED': {offer}.")
    published = open_clip.get_pretrained_cfg(model_name, pretrained) or {}
    try:
        model, _, _ = open_clip.create_model_and_transforms(
            model_name,
            pretrained=pretrained,
            force_custom_text=True,
            # open_clip only warns where weights were trained with another activation than the name implies.
            force_quick_gelu=bool(published.get("quick_gelu")),
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except UnpicklingError as error:
        raise UserError(f"The weights '{pretrained}' are not a file of plain tensors.") from error
    except (OSError, RuntimeError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"open_clip could not load '{spec}' ({first_line(error)}); is the hub in reach?"
        ) from error
    preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
    return OpenClipEncoder(model, tokenizer, preprocess, name or f"open_clip:{spec}")


def _text_tower(model: nn.Module) -> Any:
    """The module that holds the text tower, if it is of a kind that prompts can be learned for."""
    tower = getattr(model, "text", None)
    if (isinstance(tower, HFTextEncoder) and not isinstance(tower.pooler, MaxPooler)) or (
        isinstance(tower, TextTransformer) and tower.cls_emb is None
    ):
        return tower
    raise UserError(f"The text tower of {type(model).__name__} is not one that prompts can be learned for.")


def _model_cfg(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The part of a configuration that describes both towers."""
    model_cfg = config.get("model_cfg")
    if isinstance(model_cfg, dict) and all(
        isinstance(model_cfg.get(tower), dict) for tower in ("vision_cfg", "text_cfg")
    ):
        return model_cfg
    raise UserError(
        f"'{folder / CONFIG_FILE}' has no 'model_cfg' with both towers; fetch it again from the model's hub."
    )


def _build_model(model_cfg: dict[str, Any], folder: Path) -> Any:
    kwargs = {k: v for k, v in model_cfg.items() if k != "custom_text"}
    kwargs["vision_cfg"] = {**model_cfg["vision_cfg"], "timm_model_pretrained": False}
    if "multimodal_cfg" in kwargs:
        raise UserError(f"'{folder}' holds a CoCa model; only dual encoders are supported.")
    if ":" in str(kwargs["vision_cfg"].get("timm_model_name")):
        raise UserError(
            f"'{folder / CONFIG_FILE}' takes its image tower's shape from elsewhere, not by name."
        )
    try:
        return open_clip.CustomTextCLIP(**kwargs)
    except Exception as error:  # what a strange configuration runs into differs from module to module
        raise UserError(
            f"open_clip cannot build what '{folder / CONFIG_FILE}' describes ({first_line(error)})."
        ) from error


@contextmanager
def _local_text_config(folder: Path, text_cfg: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A ``text_cfg`` whose ``hf_model_name`` is a local folder: no hub is asked for the tower's shape.

    open_clip calls ``AutoConfig.from_pretrained(hf_model_name)`` even where it will load all weights from a
    local file, and published folders name a hub repository there. A folder path in its place is all it needs.
    """
    if "hf_model_name" not in text_cfg:
        yield text_cfg
        return
    with tempfile.TemporaryDirectory() as scratch:
        config = _hf_config(folder, text_cfg["hf_model_name"])
        (Path(scratch) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield {**text_cfg, "hf_model_name": scratch, "hf_model_pretrained": False}


def _hf_config(folder: Path, hf_model_name: str) -> dict[str, Any]:
    if (folder / "config.json").is_file():
        return read_json(folder / "config.json")
    if hf_model_name in KNOWN_TEXT_TOWERS:
        return KNOWN_TEXT_TOWERS[hf_model_name]
    raise UserError(
        f"The backbone folder '{folder}' has no config.json for its text tower; "
        f"put the one of '{hf_model_name}' there."
    )


def _build_tokenizer(folder: Path, text_cfg: dict[str, Any]) -> Any:
    length = text_cfg.get("context_length", 77)
    settings = {**(text_cfg.get("tokenizer_kwargs") or {}), "context_length": length}
    own = not text_cfg.get("hf_tokenizer_name") and not text_cfg.get("hf_model_name")
    if not own:
        require_tokenizer(folder)
    try:
        if own:
            return open_clip.SimpleTokenizer(**settings)
        mode = text_cfg.get("tokenizer_mode")
        return HFTokenizer(str(folder), tokenizer_mode=mode, local_files_only=True, **settings)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise UserError(f"The tokenizer files in '{folder}' cannot be read ({first_line(error)}).") from error


def _read_state(path: Path) -> dict[str, Tensor]:
    """Named tensors under the names that a model with a text tower of its own gives them."""
    state = read_weights(path)
    if "text_projection" in state or "transformer.resblocks.0.ln_1.weight" in state:
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    # UniMed-CLIP's fork of open_clip calls the text tower so.
    return {re.sub(r"^text_encoder\.", "text.", name): value for name, value in state.items()}


FAMILY = Family(
    name="open_clip",
    title=f"open_clip: {CONFIG_FILE}",
    recognises=lambda folder: (folder / CONFIG_FILE).is_file(),
    load=load_folder,
    weight_files=WEIGHT_FILES,
    small_files=("*.json", "*.txt", "*.model"),
)
