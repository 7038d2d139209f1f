"""The transformers family: CLIP, SigLIP, AltCLIP and vision-text dual encoders in the hub's folder format."""

from __future__ import annotations

import hashlib
import math
import string
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from open_clip.transform import PreprocessCfg
from tokenizers.processors import TemplateProcessing
from torch import Tensor, nn

from vmfcoop.backbones.base import Family, Tokens, real_lengths
from vmfcoop.backbones.files import (
    find_weights,
    first_line,
    misfit,
    read_json,
    read_weights,
    refuse_larger,
    require,
    require_tokenizer,
)
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.backbones.text import HFTextTokenizer, trimmed, until_end_mark
from vmfcoop.errors import UserError

CONFIG_FILE = "config.json"
WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
SHARD_INDEX = ".index.json"
PREPROCESSOR_FILE = "preprocessor_config.json"
PROCESSOR_FILE = "processor_config.json"
_FORMAT = "a folder in the hub's format for transformers"

_IMAGE_PROCESSORS = ("CLIPImageProcessor", "SiglipImageProcessor", "ViTImageProcessor")
_IMAGE_STEPS = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}
_VISION_TOWERS = ("clip_vision_model", "vit")
_TEXT_TOWERS = ("bert", "roberta", "xlm-roberta")
_FIRST_NORMS = ("layer_norm1", "layernorm_before")
# What a tower computes with its weights, beyond what their shapes say.
_COMPUTED = ("model_type", "hidden_act", "num_attention_heads", "layer_norm_eps")
# Configurations of 2021 and 2022 name this id where CLIP's end mark is another one; transformers then pools
# from the largest id of a text (https://github.com/huggingface/transformers/pull/24777).
_WRONG_END_ID = 2


class ClipTokenizer(HFTextTokenizer):
    """A CLIP tokenizer whose texts end where the tower pools them: a causal tower sees nothing behind.

    Args:
        tokenizer: of transformers.
        context_length: the most tokens of a text, marks included.
        known: size of the text tower's embedding table.
        end_id: the tower pools from the first of it; None: from the first of the largest id.
    """

    def __init__(self, tokenizer: Any, context_length: int, known: int, end_id: int | None) -> None:
        self._end_id = end_id
        super().__init__(tokenizer, context_length, known)

    def __call__(self, texts: Sequence[str]) -> Tokens:
        ids = super().__call__(texts).ids
        ends = ids.argmax(dim=1) if self._end_id is None else (ids == self._end_id).int().argmax(dim=1)
        return trimmed(ids, until_end_mark(ids, ends))


class TransformersEncoder(FrozenEncoder):
    """A dual encoder built by transformers: what its kinds share.

    A kind gives the text pass over input embeddings, which transformers' own ``get_text_features`` has no
    argument for, and reads its tokenizer.
    """

    @staticmethod
    def read_tokenizer(folder: Path, shape: Any) -> HFTextTokenizer:
        """The tokenizer of a folder, for a text tower of the shape that its configuration describes."""
        raise NotImplementedError

    def _named_tensors(self) -> list[tuple[str, Tensor]]:
        # By content: versions of transformers give the same weights other names.
        tensors = [value.detach().cpu().contiguous() for value in self._model.state_dict().values()]
        named = [(hashlib.sha256(value.numpy().tobytes()).hexdigest(), value) for value in tensors]
        return sorted(named, key=lambda pair: (pair[0], tuple(pair[1].shape)))

    @property
    def _settings(self) -> dict[str, Any]:
        shapes = {"image": self._model.config.vision_config, "text": self._model.config.text_config}
        computed = {tower: [getattr(shape, key) for key in _COMPUTED] for tower, shape in shapes.items()}
        return {**super()._settings, **computed}

    @property
    def _embedding(self) -> nn.Embedding:
        return self._model.text_model.embeddings.token_embedding  # type: ignore[no-any-return]

    def _image_features(self, pixels: Tensor) -> Tensor:
        pooled = self._model.vision_model(pixel_values=pixels).pooler_output
        return self._model.visual_projection(pooled)  # type: ignore[no-any-return]

    @property
    def _spatial_layer(self) -> nn.Module | None:
        layers: dict[str, nn.Module] = dict(self._model.vision_model.named_modules())
        return layers[[name for name in layers if name.endswith(_FIRST_NORMS)][-1]]

    @property
    def _blocks(self) -> Sequence[nn.Module]:
        parts: dict[str, nn.Module] = dict(self._model.vision_model.named_modules())
        return [parts[name.rpartition(".")[0]] for name in parts if name.endswith(_FIRST_NORMS)]


class ClipEncoder(TransformersEncoder):
    """``CLIPModel``: causal text tower, pooled from the end mark."""

    @staticmethod
    def read_tokenizer(folder: Path, shape: Any) -> HFTextTokenizer:
        tokenizer, end_id = _auto_tokenizer(folder, shape.vocab_size), shape.eos_token_id
        if end_id not in (_WRONG_END_ID, tokenizer.eos_token_id):
            raise UserError(
                f"The tokenizer in '{folder}' ends texts with id {tokenizer.eos_token_id}, and {CONFIG_FILE} "
                f"says {end_id}; the two must come from the same model."
            )
        length = min(tokenizer.model_max_length, shape.max_position_embeddings)
        first_of = None if end_id == _WRONG_END_ID else end_id
        return ClipTokenizer(tokenizer, length, shape.vocab_size, first_of)

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        tower, length = self._model.text_model, embeddings.shape[1]
        hidden = tower.embeddings(inputs_embeds=embeddings)
        future = hidden.new_full((length, length), torch.finfo(hidden.dtype).min).triu(1)
        future = future.expand(len(hidden), 1, length, length)
        hidden = tower.encoder(inputs_embeds=hidden, attention_mask=future)[0]
        ends = real_lengths(mask) - 1
        pooled = tower.final_layer_norm(hidden)[torch.arange(len(hidden), device=ends.device), ends]
        return self._model.text_projection(pooled)  # type: ignore[no-any-return]


class SiglipEncoder(TransformersEncoder):
    """``SiglipModel``: bidirectional text tower over the padding too, pooled from the last position.

    Checkpoints of SigLIP 2 with a fixed resolution (a Gemma tokenizer) are of this kind; both read texts that
    end with one mark and begin with none.
    """

    _reads_padding = True

    @staticmethod
    def read_tokenizer(folder: Path, shape: Any) -> HFTextTokenizer:
        tokenizer = _siglip_tokenizer(folder, shape.vocab_size)
        length = min(tokenizer.model_max_length, shape.max_position_embeddings)
        return HFTextTokenizer(tokenizer, length, shape.vocab_size, _siglip_cleaning(folder))

    def _image_features(self, pixels: Tensor) -> Tensor:
        return self._model.vision_model(pixel_values=pixels).pooler_output  # type: ignore[no-any-return]

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        tower = self._model.text_model
        hidden = tower.encoder(inputs_embeds=tower.embeddings(inputs_embeds=embeddings))[0]
        return tower.head(tower.final_layer_norm(hidden)[:, -1])  # type: ignore[no-any-return]

    @property
    def _spatial_layer(self) -> nn.Module | None:
        # What the pooling attention reads.
        return self._model.vision_model.post_layernorm  # type: ignore[no-any-return]


class BertTextEncoder(TransformersEncoder):
    """``AltCLIPModel`` and ``VisionTextDualEncoderModel``: a BERT or RoBERTa, pooled from the first mark."""

    @staticmethod
    def read_tokenizer(folder: Path, shape: Any) -> HFTextTokenizer:
        tokenizer = _auto_tokenizer(folder, shape.vocab_size)
        # RoBERTa numbers its positions from the one behind the padding's.
        begin = 0 if shape.model_type == "bert" else shape.pad_token_id + 1
        length = min(tokenizer.model_max_length, shape.max_position_embeddings - begin)
        return HFTextTokenizer(tokenizer, length, shape.vocab_size)

    @property
    def _embedding(self) -> nn.Embedding:
        return self._model.text_model.get_input_embeddings()  # type: ignore[no-any-return]

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        output = self._model.text_model(inputs_embeds=embeddings, attention_mask=mask.long())
        return self._model.text_projection(output.pooler_output)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Kind:
    """A model type of ``config.json``: transformers' class for it, and our encoder over it."""

    model: str
    encoder: type[TransformersEncoder]


KINDS = {
    "clip": Kind("CLIPModel", ClipEncoder),
    "siglip": Kind("SiglipModel", SiglipEncoder),
    "altclip": Kind("AltCLIPModel", BertTextEncoder),
    "vision-text-dual-encoder": Kind("VisionTextDualEncoderModel", BertTextEncoder),
}


def load_folder(folder: Path, name: str | None = None) -> TransformersEncoder:
    """Load a folder in the hub's format for transformers, asking nothing of the network.

    The folder holds ``config.json``, the weights (safetensors or ``.bin``, whole or in shards with their
    index; never unpickled), tokenizer files, and ``preprocessor_config.json``.

    Args:
        folder: the folder.
        name: spec string to record; default ``dir:FOLDER``.

    Raises:
        UserError: a file is missing or damaged, the weights do not fit the configuration, the model is of a
            type that is not supported, or its images are prepared in a way that is not.
    """
    folder = folder.expanduser().resolve()
    settings = read_json(require(folder, CONFIG_FILE, _FORMAT))
    kind = _kind(settings, folder)
    weights = find_weights(folder, [f + end for f in WEIGHT_FILES for end in ("", SHARD_INDEX)])
    require_tokenizer(folder)
    with _quiet_transformers():
        config = _config(kind, settings, folder)
        preprocessing = _preprocessing(folder, config)
        tokenizer = kind.encoder.read_tokenizer(folder, config.text_config)
        model = _model(kind, config, _state(weights), weights)
    return kind.encoder(model, tokenizer, preprocessing, name or f"dir:{folder}")


def canonical(text: str) -> str:
    """A text as SigLIP was trained on it: lower case, no punctuation, single spaces.

    Example:
        >>> canonical("A  ring-enhancing lesion, 3.5 cm!")
        'a ringenhancing lesion 35 cm'
    """
    return " ".join(text.lower().translate(str.maketrans("", "", string.punctuation)).split())


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No progress bars, and no remarks on what is checked here, while transformers builds something."""
    log = transformers.utils.logging
    level, bars = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(level)
        if bars:
            log.enable_progress_bar()


def _kind(settings: dict[str, Any], folder: Path) -> Kind:
    model_type = str(settings.get("model_type"))
    if model_type == "siglip2":
        raise UserError(
            f"'{folder}' holds a NaFlex model of SigLIP 2, whose images vary in size; take a checkpoint of "
            "SigLIP 2 with a fixed resolution."
        )
    if model_type not in KINDS:
        known = ", ".join(KINDS)
        raise UserError(
            f"'{folder / CONFIG_FILE}' describes a model of type '{model_type}'; supported are {known} "
            "(a folder in open_clip's format has open_clip_config.json beside it)."
        )
    return KINDS[model_type]


def _config(kind: Kind, settings: dict[str, Any], folder: Path) -> Any:
    path = folder / CONFIG_FILE
    try:
        config = getattr(transformers, kind.model).config_class.from_dict(settings)
        vision, text = config.vision_config.model_type, config.text_config.model_type
    except Exception as error:  # each version of transformers checks configurations with errors of its own
        raise UserError(f"transformers cannot read '{path}' ({first_line(error)}).") from error
    if kind.model == "VisionTextDualEncoderModel" and (
        vision not in _VISION_TOWERS or text not in _TEXT_TOWERS
    ):
        raise UserError(
            f"'{path}' joins the towers '{vision}' and '{text}'; supported are "
            f"{' and '.join(_VISION_TOWERS)} for images, {', '.join(_TEXT_TOWERS)} for texts."
        )
    if getattr(config.vision_config, "vision_use_head", True) is False:
        raise UserError(f"'{path}' describes an image tower without its pooling head (vision_use_head).")
    if settings.get("quantization_config"):
        raise UserError(f"'{path}' describes quantised weights; take the checkpoint that is not quantised.")
    return config


def _state(path: Path) -> dict[str, Tensor]:
    """Named tensors of a weight file, or of all the shards that an index names."""
    if not path.name.endswith(SHARD_INDEX):
        return read_weights(path)
    index = read_json(path).get("weight_map")
    shards = list(index.values()) if isinstance(index, dict) else []
    if not shards or not all(isinstance(shard, str) and Path(shard).name == shard != "" for shard in shards):
        raise UserError(f"'{path}' names no weight files of its own folder; fetch it again.")
    state: dict[str, Tensor] = {}
    for shard in sorted(set(shards)):
        state |= read_weights(require(path.parent, shard, f"whole ({path.name} names that file)"))
    return state


def _model(kind: Kind, config: Any, state: dict[str, Tensor], path: Path) -> Any:
    """The model with its weights; transformers knows the names that they had in its earlier versions."""
    model_class = getattr(transformers, kind.model)
    attention = {"attn_implementation": "sdpa"} if model_class._supports_sdpa else {}
    try:
        refuse_larger(lambda: model_class(config), state, path, f"{CONFIG_FILE} beside them")
        model, found = model_class.from_pretrained(
            None,
            config=config,
            state_dict=state,
            torch_dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
            **attention,
        )
    except UserError:
        raise
    except Exception as error:  # what a strange configuration runs into differs from module to module
        raise UserError(
            f"transformers cannot build what '{path.parent / CONFIG_FILE}' describes ({first_line(error)})."
        ) from error
    differ = sorted(
        {*found["missing_keys"], *found["unexpected_keys"], *(entry[0] for entry in found["mismatched_keys"])}
    )
    # Older checkpoints carry a constant index buffer of the towers that newer libraries do not register.
    differ = [name for name in differ if not name.endswith("position_ids")]
    if differ:
        raise misfit(path, f"{CONFIG_FILE} beside them", differ)
    return model


def _auto_tokenizer(folder: Path, rows: int) -> Any:
    """transformers' own tokenizer of a folder; code that lies in the folder is never run."""
    return _read_tokenizer(transformers.AutoTokenizer, folder, rows)


def _siglip_tokenizer(folder: Path, rows: int) -> Any:
    """The tokenizer of ``tokenizer.json`` with SigLIP's marks, or that of ``spiece.model``."""
    if not (folder / "tokenizer.json").is_file():
        return _auto_tokenizer(folder, rows)
    tokenizer = _read_tokenizer(transformers.PreTrainedTokenizerFast, folder, rows)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {tokenizer.eos_token}", special_tokens=[end]
    )
    return tokenizer


def _siglip_cleaning(folder: Path) -> Callable[[str], str]:
    """What is done to a text first: SigLIP's canonical form, or lower case for SigLIP 2.

    The class that SigLIP 2's folders name keeps capitals, on which the towers were not trained:
    https://huggingface.co/google/siglip2-base-patch16-224/discussions/22
    """
    path = folder / "tokenizer_config.json"
    name = str(read_json(path).get("tokenizer_class")) if path.is_file() else ""
    return str.lower if name.startswith(("Gemma", "Siglip2")) else canonical


def _read_tokenizer(reader: Any, folder: Path, rows: int) -> Any:
    """The tokenizer that a class of transformers reads from a folder, for an embedding table of some rows."""
    try:
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except ImportError as error:
        raise UserError(
            f"The tokenizer in '{folder}' needs the packages sentencepiece and protobuf; install them, or "
            "put the model's tokenizer.json there."
        ) from error
    except Exception as error:  # the tokenizers library raises bare Exception for a damaged tokenizer.json
        raise UserError(f"The tokenizer files in '{folder}' cannot be read ({first_line(error)}).") from error
    if not tokenizer.pad_token or not (tokenizer.eos_token or tokenizer.sep_token):
        raise UserError(
            f"The tokenizer in '{folder}' has no padding or no end mark; put the model's "
            "tokenizer_config.json there."
        )
    if max(tokenizer.pad_token_id, *tokenizer("a")["input_ids"]) >= rows:
        raise UserError(
            f"The tokenizer in '{folder}' knows more entries than the {rows} of the text tower that "
            f"{CONFIG_FILE} describes; the two must come from the same model."
        )
    return tokenizer


def _preprocessing(folder: Path, config: Any) -> PreprocessCfg:
    """What the folder's image processor does, as open_clip's test-time transform does it.

    Raises:
        UserError: its file is missing or damaged, or asks for what that transform cannot do.
    """
    path = _preprocessor_path(folder)
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
        preprocessing = preprocess_cfg(processor.to_dict(), path)
    except UserError:
        raise
    except Exception as error:  # unknown processors and strange settings raise errors of many kinds
        raise UserError(f"transformers cannot read '{path}' ({first_line(error)}).") from error
    side, size = config.vision_config.image_size, preprocessing.input_size[1:]
    if size != (side, side):
        raise UserError(
            f"'{path}' prepares images of {size[0]} x {size[1]} pixels, {CONFIG_FILE} beside it describes a "
            f"tower for {side} x {side}; the two must come from the same model."
        )
    return preprocessing


def _preprocessor_path(folder: Path) -> Path:
    """The file with the settings of the image processor: alone, or within those of a processor."""
    alone, within = folder / PREPROCESSOR_FILE, folder / PROCESSOR_FILE
    if not alone.is_file() and within.is_file() and "image_processor" in read_json(within):
        return within
    read_json(require(folder, PREPROCESSOR_FILE, _FORMAT))
    return alone


def preprocess_cfg(settings: dict[str, Any], path: Path) -> PreprocessCfg:
    """Settings of an image processor of transformers -> those of open_clip's test-time transform.

    The pixels are those of transformers' processors over PIL; its processors over tensors round a few of them
    to the next of the 256 levels. Where the longer edge keeps an odd number of pixels too many, the middle is
    cut as OpenAI's transform does it, which may be one pixel from where transformers cuts.

    Args:
        settings: the processor's ``to_dict()``.
        path: the file that they come from, for the sentence.

    Raises:
        UserError: they ask for what open_clip's transform does not do.
    """
    name = str(settings.get("image_processor_type"))
    if name.removesuffix("Fast").removesuffix("Pil") not in _IMAGE_PROCESSORS:
        raise _not_expressible(path, f"the image processor {name}")
    for step in sorted(key for key in settings if key.startswith("do_")):
        if settings[step] and step not in _IMAGE_STEPS:
            raise _not_expressible(path, step)
    if not settings["do_resize"] or not settings["do_rescale"]:
        raise _not_expressible(path, "images that are not resized or not rescaled")
    if abs(settings["rescale_factor"] * 255 - 1) > 1e-6:
        raise _not_expressible(path, f"a rescale_factor of {settings['rescale_factor']}")
    if settings["resample"] not in _INTERPOLATIONS:
        raise _not_expressible(path, f"resample = {settings['resample']}")
    size, mode = _size_and_mode(settings, path)
    return PreprocessCfg(
        size=size,
        mean=_three_numbers(settings, "image_mean", path) if settings["do_normalize"] else (0.0, 0.0, 0.0),
        std=_three_numbers(settings, "image_std", path) if settings["do_normalize"] else (1.0, 1.0, 1.0),
        interpolation=_INTERPOLATIONS[settings["resample"]],
        resize_mode=mode,
    )


def _three_numbers(settings: dict[str, Any], key: str, path: Path) -> tuple[float, ...]:
    values = settings[key]
    if (
        isinstance(values, list | tuple)
        and len(values) == 3
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
        and (key != "image_std" or min(values) > 0)
    ):
        return tuple(float(value) for value in values)
    raise _not_expressible(path, f"{key} = {values}")


def _size_and_mode(settings: dict[str, Any], path: Path) -> tuple[int | tuple[int, int], str]:
    """Size of the transform, and whether it squashes images or crops what is left of the longer edge."""
    size = dict(settings["size"])
    crop = dict(settings["crop_size"]) if settings.get("do_center_crop") else None
    if set(size) == {"height", "width"} and crop in (None, size):
        return (size["height"], size["width"]), "squash"
    edge = size.get("shortest_edge")
    if set(size) == {"shortest_edge"} and crop == {"height": edge, "width": edge}:
        return int(size["shortest_edge"]), "shortest"
    raise _not_expressible(path, f"size = {size} with crop_size = {crop}")


def _not_expressible(path: Path, what: str) -> UserError:
    return UserError(f"'{path}' asks for {what}, which the image transforms of this package do not do.")


def _recognises(folder: Path) -> bool:
    return (folder / CONFIG_FILE).is_file() and not (folder / "open_clip_config.json").is_file()


FAMILY = Family(
    name="transformers",
    title="the hub's format for transformers",
    recognises=_recognises,
    load=load_folder,
    weight_files=WEIGHT_FILES,
    small_files=("*.json", "*.txt", "*.model"),
)
