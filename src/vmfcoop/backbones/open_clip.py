"""The open_clip family: BiomedCLIP, OpenAI's CLIP and every model in open_clip's hub format."""

from __future__ import annotations

import hashlib
import html
import json
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import open_clip
import torch
from open_clip.hf_model import HFTextEncoder
from open_clip.tokenizer import HFTokenizer
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from open_clip.transformer import TextTransformer, text_global_pool
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from vmfcoop.backbones.base import DualEncoder, Tokens, real_lengths
from vmfcoop.errors import UserError, unknown_name

CONFIG_FILE = "open_clip_config.json"
WEIGHT_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt")
HUB_FILES = [CONFIG_FILE, *WEIGHT_FILES, "*.json", "vocab.txt"]

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


class OpenClipEncoder(DualEncoder):
    """A CLIP built by open_clip, frozen, behind the :class:`DualEncoder` seam.

    Two kinds of text tower are understood: Hugging Face towers (BiomedCLIP's BERT: bidirectional, masked
    padding, pooled from the first token or the mean) and open_clip's own ``TextTransformer`` (causal,
    pooled from the end mark, or without a mask at the full context length as in SigLIP).
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess_cfg: PreprocessCfg, name: str) -> None:
        self.name = name
        self.device = torch.device("cpu")
        self._model: Any = model.float().eval().requires_grad_(False)
        self._tokenizer = tokenizer
        self._preprocess_cfg = preprocess_cfg
        self._transform = image_transform_v2(preprocess_cfg, is_train=False)
        self._text: Any = _text_tower(model)
        self.context_length = int(tokenizer.context_length)
        # Without a causal mask, or pooled from the last position, the padding is part of the text (SigLIP):
        # never trimmed.
        self._reads_padding = isinstance(self._text, TextTransformer) and (
            self._text.pool_type == "last" or self._text.attn_mask is None
        )
        first = tokenizer(["a", "zebra"])[:, 0]
        self.begin_marks = int(first[0] == first[1])
        self.token_width = int(self._embedding.weight.shape[1])
        size = preprocess_cfg.size
        self.image_size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        self.logit_scale = float(model.logit_scale.exp())
        self.dim = int(self.encode_embeddings(*self._probe()).shape[1])

    @property
    def _embedding(self) -> nn.Embedding:
        if isinstance(self._text, HFTextEncoder):
            return self._text.transformer.get_input_embeddings()  # type: ignore[no-any-return]
        return self._text.token_embedding  # type: ignore[no-any-return]

    def _probe(self) -> tuple[Tensor, Tensor]:
        tokens = self.tokenize(["a"])
        return self.token_embeddings(tokens.ids), tokens.mask

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over weights, buffers, vocabulary and preprocessing (first 32 hex digits)."""
        digest = hashlib.sha256()
        for key, value in sorted(self._model.state_dict().items()):
            digest.update(f"{key} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().cpu().contiguous().numpy().tobytes())
        digest.update("\n".join(self.vocabulary()).encode())
        settings = {**vars(self._preprocess_cfg), "size": self.image_size, "context": self.context_length}
        digest.update(json.dumps(settings, sort_keys=True).encode())
        return digest.hexdigest()[:32]

    @property
    def image_mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        return tuple(self._preprocess_cfg.mean), tuple(self._preprocess_cfg.std)

    def preprocess(self, image: Image.Image) -> Tensor:
        return self._transform(image)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        features = self._model.encode_image(pixels.to(self.device), normalize=True)
        return features.float().cpu()  # type: ignore[no-any-return]

    def tokenize(self, texts: Sequence[str]) -> Tokens:
        if isinstance(texts, str) or not texts:
            raise UserError("There is no text to encode; give a list with at least one.")
        for position, text in enumerate(texts):
            if not text.strip():
                raise UserError(f"Text {position} of {len(texts)} is empty; an empty text has no direction.")
        ids: Tensor = self._tokenizer(list(texts))
        mask = self._mask(ids)
        longest = int(real_lengths(mask).max())
        return Tokens(ids[:, :longest].to(self.device), mask[:, :longest].to(self.device))

    def _mask(self, ids: Tensor) -> Tensor:
        if self._reads_padding:
            return torch.ones_like(ids, dtype=torch.bool)
        if isinstance(self._text, HFTextEncoder):
            return ids.ne(self._text.config.pad_token_id)
        # CLIP's padding id is also the token "!": the text ends at its end mark.
        ends = (
            ids.argmax(dim=1)
            if self._text.pool_type == "argmax"
            else (ids == self._text.eos_id).int().argmax(1)
        )
        return torch.arange(ids.shape[1], device=ids.device) <= ends[:, None]

    def token_embeddings(self, ids: Tensor) -> Tensor:
        return self._embedding(ids)  # type: ignore[no-any-return]

    def encode_embeddings(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        if isinstance(self._text, HFTextEncoder):
            attention = mask.long()
            output = self._text.transformer(inputs_embeds=embeddings, attention_mask=attention)
            features = self._text.proj(self._text.pooler(output, attention))
        else:
            features = self._encode_text_transformer(embeddings, mask)
        return nn.functional.normalize(features, dim=-1)

    def _encode_text_transformer(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        tower, length = self._text, embeddings.shape[1]
        hidden = embeddings + tower.positional_embedding[:length]
        attention = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        hidden = tower.ln_final(tower.transformer(hidden, attn_mask=attention))
        if tower.pool_type in ("argmax", "eos"):
            pooled = hidden[torch.arange(len(hidden)), real_lengths(mask) - 1]
        else:
            pooled = text_global_pool(hidden, None, pool_type=tower.pool_type)
        if tower.text_projection is None:
            return pooled  # type: ignore[no-any-return]
        if isinstance(tower.text_projection, nn.Linear):
            return tower.text_projection(pooled)  # type: ignore[no-any-return]
        return pooled @ tower.text_projection  # type: ignore[no-any-return]

    @cached_property
    def _vocabulary(self) -> dict[int, str]:
        """Id -> entry, without special and unused tokens."""
        if isinstance(self._tokenizer, open_clip.SimpleTokenizer):
            special = set(self._tokenizer.all_special_ids)
            entries = self._tokenizer.decoder
        else:
            special = set(self._tokenizer.tokenizer.all_special_ids)
            entries = {i: token for token, i in self._tokenizer.tokenizer.get_vocab().items()}
        known = self._embedding.weight.shape[0]
        return {
            i: entries[i]
            for i in sorted(entries)
            if i not in special and i < known and not entries[i].startswith("[unused")
        }

    def vocabulary(self) -> list[str]:
        return list(self._vocabulary.values())

    def vocabulary_tokens(self) -> Tokens:
        # A text of one entry: take the marks and the padding of a real one and put each id in its place.
        pattern = self.tokenize(["a"])
        entries = torch.tensor(list(self._vocabulary), device=self.device)
        ids = pattern.ids.repeat(len(entries), 1)
        ids[:, self.begin_marks] = entries
        return Tokens(ids, pattern.mask.repeat(len(entries), 1))

    def to(self, device: torch.device | str) -> OpenClipEncoder:
        self.device = torch.device(device)
        self._model.to(self.device)
        return self


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
    config = _read_json(_require(folder, CONFIG_FILE))
    model_cfg = _model_cfg(config, folder)
    weights = next((folder / f for f in WEIGHT_FILES if (folder / f).is_file()), None)
    if weights is None:
        raise UserError(
            f"The backbone folder '{folder}' has no weights; put {' or '.join(WEIGHT_FILES)} there."
        )
    with _local_text_config(folder, model_cfg["text_cfg"]) as text_cfg:
        tokenizer = _build_tokenizer(folder, model_cfg["text_cfg"])
        model = _build_model({**model_cfg, "text_cfg": text_cfg}, folder)
    _load_weights(model, weights)
    settings = merge_preprocess_dict(PreprocessCfg(), config.get("preprocess_cfg", {}))
    preprocess = PreprocessCfg(**{**settings, "size": model.visual.image_size})
    return OpenClipEncoder(model, tokenizer, preprocess, name or f"dir:{folder}")


def load_named(spec: str) -> OpenClipEncoder:
    """Load ``MODEL/PRETRAINED`` from open_clip's own list (weights come from the hub or its cache).

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
    try:
        model, _, _ = open_clip.create_model_and_transforms(
            model_name, pretrained=pretrained, force_custom_text=True
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except UnpicklingError as error:
        raise UserError(f"The weights '{pretrained}' are not a file of plain tensors.") from error
    except (OSError, RuntimeError, SafetensorError, KeyError, ValueError) as error:
        raise UserError(
            f"open_clip could not load '{spec}' ({_first_line(error)}); is the hub in reach?"
        ) from error
    preprocess = PreprocessCfg(**model.visual.preprocess_cfg)
    return OpenClipEncoder(model, tokenizer, preprocess, f"open_clip:{spec}")


def load_hub(repository: str, name: str) -> OpenClipEncoder:
    """Fetch a hub repository in open_clip format (or take it from the hub's cache) and load it.

    Raises:
        UserError: neither the hub nor its cache can give it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        folder = snapshot_download(repository, allow_patterns=HUB_FILES)
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"The backbone '{name}' ({repository}) is not in the local hub cache and the hub gave no copy; "
            "copy its folder from a connected machine and use 'dir:FOLDER'."
        ) from error
    return load_folder(Path(folder), name)


def _text_tower(model: nn.Module) -> Any:
    """The module that holds the text tower, if it is of a kind that prompts can be learned for."""
    tower = getattr(model, "text", None)
    if isinstance(tower, HFTextEncoder) or (isinstance(tower, TextTransformer) and tower.cls_emb is None):
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
    try:
        return open_clip.CustomTextCLIP(**kwargs)
    except (TypeError, RuntimeError, KeyError, ValueError) as error:
        raise UserError(
            f"open_clip cannot build what '{folder / CONFIG_FILE}' describes ({_first_line(error)})."
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
        return _read_json(folder / "config.json")
    if hf_model_name in KNOWN_TEXT_TOWERS:
        return KNOWN_TEXT_TOWERS[hf_model_name]
    raise UserError(
        f"The backbone folder '{folder}' has no config.json for its text tower; "
        f"put the one of '{hf_model_name}' there."
    )


def _build_tokenizer(folder: Path, text_cfg: dict[str, Any]) -> Any:
    settings = {**text_cfg.get("tokenizer_kwargs", {}), "context_length": text_cfg.get("context_length", 77)}
    if not text_cfg.get("hf_tokenizer_name") and not text_cfg.get("hf_model_name"):
        return open_clip.SimpleTokenizer(**settings)
    if not any((folder / f).is_file() for f in TOKENIZER_FILES):
        raise UserError(
            f"The backbone folder '{folder}' has no tokenizer; put {' or '.join(TOKENIZER_FILES)} there."
        )
    try:
        mode = text_cfg.get("tokenizer_mode")
        return HFTokenizer(str(folder), tokenizer_mode=mode, local_files_only=True, **settings)
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise UserError(
            f"The tokenizer files in '{folder}' cannot be read ({_first_line(error)})."
        ) from error


def _load_weights(model: nn.Module, path: Path) -> None:
    state = _read_weights(path)
    if "text_projection" in state or "transformer.resblocks.0.ln_1.weight" in state:
        state = open_clip.model.convert_to_custom_text_state_dict(state)
    expected = model.state_dict()
    # Older checkpoints carry a constant index buffer of BERT that newer libraries do not register.
    state = {k: v for k, v in state.items() if k in expected or not k.endswith("position_ids")}
    missing = sorted(set(expected) - set(state)) or sorted(set(state) - set(expected))
    if not missing:
        missing = sorted(k for k in expected if expected[k].shape != state[k].shape)
    if missing:
        raise UserError(
            f"The weights '{path}' do not fit {CONFIG_FILE} beside them ({len(missing)} entries differ, "
            f"first '{missing[0]}'); the two files must come from the same model."
        )
    model.load_state_dict(state)


def _read_weights(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)  # type: ignore[no-any-return]
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        raise UserError(
            f"The weights '{path}' are damaged ({_first_line(error)}); fetch them again."
        ) from error
    except Exception as error:  # torch raises pickle's own error class for files that are not plain tensors
        raise UserError(f"The weights '{path}' hold more than tensors and were not loaded.") from error
    state = state.get("state_dict", state) if isinstance(state, dict) else {}
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"The weights '{path}' are not a dictionary of named tensors.")
    return state


def _require(folder: Path, file: str) -> Path:
    if not folder.is_dir():
        raise UserError(f"The backbone folder '{folder}' does not exist.")
    if not (folder / file).is_file():
        raise UserError(
            f"The backbone folder '{folder}' has no {file}; is it a folder in open_clip's hub format?"
        )
    return folder / file


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); fetch the file again.") from error
    if not isinstance(content, dict):
        raise UserError(f"'{path}' is not a JSON object; fetch the file again.")
    return content


def _first_line(error: BaseException) -> str:
    return (
        html.unescape(str(error)).strip().splitlines()[0][:200]
        if str(error).strip()
        else type(error).__name__
    )
