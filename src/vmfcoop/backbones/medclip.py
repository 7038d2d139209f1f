"""MedCLIP: Swin-tiny or ResNet-50 and BioClinicalBERT, from the checkpoint that its authors publish.

Wang et al., "MedCLIP: Contrastive Learning from Unpaired Medical Images and Text", EMNLP 2022,
arXiv 2210.10163; code and weights at https://github.com/RyanWangZf/MedCLIP.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from open_clip.transform import PreprocessCfg
from PIL import Image
from torch import Tensor, nn

from vmfcoop.backbones.base import Family
from vmfcoop.backbones.bert import build_bert, count_blocks, entry, load_tokenizer, run_bert
from vmfcoop.backbones.files import load_state, read_weights, require
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.backbones.text import TextTokenizer

WEIGHT_FILE = "pytorch_model.bin"
TOKENIZER_REPOSITORY = "emilyalsentzer/Bio_ClinicalBERT"
CONTEXT_LENGTH = 77
IMAGE_SIZE = 224
MEAN, STD = 0.5862785803043838, 0.27950088968644304
LARGEST_LOG_SCALE = 4.6052
"""The published model clamps the log of its logit scale to 0 ... 4.6052 before it is used."""

_TEXT_PROJECTION = "text_model.projection_head.weight"
_SWIN_PROJECTION = "vision_model.projection_head.weight"
_SWIN_PATCHES = "vision_model.model.embeddings.patch_embeddings.projection.weight"
_NAMES_LIE_WITHIN = 1 << 20
_LUMA = (0.299, 0.587, 0.114)


class MedClipEncoder(FrozenEncoder):
    """MedCLIP behind the seam.

    Images are grey, as the published processor makes them: luma, padded with black to a square of at least
    224 pixels, resized. Augmented views come as colour crops; the image tower takes their luma too.

    Texts are the mean of three layers' hidden states (first, second, last) over positions. The published
    code averages over all positions of a batch, padding among them, so that a text's feature depends on the
    longest text beside it. Ours averages over the text's own tokens: what the published code gives for a
    text alone.
    """

    def __init__(self, model: Any, tokenizer: TextTokenizer, name: str) -> None:
        preprocessing = PreprocessCfg(size=IMAGE_SIZE, mean=(MEAN,) * 3, std=(STD,) * 3)
        scale = float(model.logit_scale.detach().clamp(0, LARGEST_LOG_SCALE).exp())
        super().__init__(model, tokenizer, preprocessing, name, logit_scale=scale)

    @property
    def _embedding(self) -> nn.Embedding:
        return self._model.text_model.model.get_input_embeddings()  # type: ignore[no-any-return]

    @property
    def _settings(self) -> dict[str, Any]:
        return {**super()._settings, "colours": "grey", "resize": "square padded"}

    def preprocess(self, image: Image.Image) -> Tensor:
        return super().preprocess(grey_square(image))

    def _image_features(self, pixels: Tensor) -> Tensor:
        weights = pixels.new_tensor(_LUMA)[:, None, None]
        grey = (pixels * weights).sum(dim=1, keepdim=True).expand_as(pixels)
        return self._model.vision_model(grey)  # type: ignore[no-any-return]

    def _text_features(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        text_model = self._model.text_model
        states = run_bert(text_model.model, embeddings, mask, output_hidden_states=True).hidden_states
        tokens = torch.stack([states[1], states[2], states[-1]]).mean(dim=0)
        real = mask[..., None]
        mean = tokens.masked_fill(~real, 0).sum(dim=1) / real.sum(dim=1)
        return text_model.projection_head(mean)  # type: ignore[no-any-return]

    @property
    def _spatial_layer(self) -> nn.Module:
        return self._model.vision_model.spatial_layer  # type: ignore[no-any-return]


def grey_square(image: Image.Image) -> Image.Image:
    """Luma of an image, centred on a black square of its longer side, at least 224 pixels.

    Example:
        >>> grey_square(Image.new("RGB", (640, 480))).size
        (640, 640)
    """
    width, height = image.size
    side = max(IMAGE_SIZE, width, height)
    square = Image.new("L", (side, side))
    square.paste(image.convert("L"), ((side - width) // 2, (side - height) // 2))
    return square


class _SwinTower(nn.Module):
    """Swin transformer, mean over its patches, projection without bias."""

    def __init__(self, swin: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        from torchvision.ops import Permute

        self.model = swin
        self.spatial_layer = Permute([0, 3, 1, 2])
        self.projection_head = nn.Linear(width, dim, bias=False)

    def forward(self, pixels: Tensor) -> Tensor:
        model: Any = self.model
        maps = self.spatial_layer(model.forward_features(pixels))
        return self.projection_head(maps.mean(dim=(2, 3)))  # type: ignore[no-any-return]


class _ResNetTower(nn.Module):
    """torchvision's ResNet, its classifier replaced by a projection without bias."""

    def __init__(self, depths: list[int], dim: int) -> None:
        super().__init__()
        from torchvision.models.resnet import Bottleneck, ResNet

        self.model: Any = ResNet(Bottleneck, depths)
        self.model.fc = nn.Linear(self.model.fc.in_features, dim, bias=False)

    @property
    def spatial_layer(self) -> nn.Module:
        return self.model.layer4  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixels)  # type: ignore[no-any-return]


class _TextTower(nn.Module):
    def __init__(self, bert: nn.Module, width: int, dim: int) -> None:
        super().__init__()
        self.model = bert
        self.projection_head = nn.Linear(width, dim, bias=False)


class _MedClip(nn.Module):
    """Both towers and the logit scale under the names of the checkpoint."""

    def __init__(self, vision_model: nn.Module, text_model: nn.Module) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.text_model = text_model
        self.logit_scale = nn.Parameter(torch.zeros(()))


def recognises(folder: Path) -> bool:
    """Whether the weights name MedCLIP's text projection, which no model of transformers has.

    ``pytorch_model.bin`` is a file name of transformers too, so the names of the tensors decide. They lie in
    the first kilobytes of a torch file, whole or truncated; they are searched as bytes, nothing is unpickled.
    """
    path = folder / WEIGHT_FILE
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return _TEXT_PROJECTION.encode() in file.read(_NAMES_LIE_WITHIN)


def load_folder(folder: Path, name: str | None = None) -> MedClipEncoder:
    """Load a folder with MedCLIP's ``pytorch_model.bin``, asking nothing of the network.

    Both published checkpoints are read, MedCLIP-ViT (Swin-tiny) and MedCLIP-ResNet. The tokenizer, which
    the authors take from the hub, lies beside: ``vocab.txt`` of ``emilyalsentzer/Bio_ClinicalBERT``. Its
    vocabulary is cased, yet texts are lowered, as in the published code.

    Args:
        folder: the folder.
        name: spec string to record; default ``dir:FOLDER``.

    Raises:
        UserError: a file is missing or damaged, holds more than tensors, or is of another model.
    """
    folder = folder.expanduser().resolve()
    path = require(folder, WEIGHT_FILE, "a folder with MedCLIP's checkpoint")
    state = {k: v for k, v in read_weights(path).items() if not k.endswith("relative_position_index")}
    bert = build_bert(state, "text_model.model.", path)
    dim, width = entry(state, _TEXT_PROJECTION, path, axes=2).shape
    if _SWIN_PROJECTION in state:
        vision = _swin_tower(state, path, dim)
        state = {timm_name(key): value for key, value in _join_qkv(state, path).items()}
    else:
        vision = _resnet_tower(state, dim)
    model = _MedClip(vision, _TextTower(bert, width, dim))
    load_state(model, state, path, "MedCLIP's two towers")
    tokenizer = load_tokenizer(folder, TOKENIZER_REPOSITORY, CONTEXT_LENGTH, bert)
    return MedClipEncoder(model, tokenizer, name or f"dir:{folder}")


def _resnet_tower(state: Mapping[str, Tensor], dim: int) -> nn.Module:
    return _ResNetTower([count_blocks(state, f"vision_model.model.layer{i}.") for i in (1, 2, 3, 4)], dim)


def _swin_tower(state: Mapping[str, Tensor], path: Path, dim: int) -> nn.Module:
    """timm's Swin transformer, its widths, depths, heads and window read off the weights."""
    from timm.models.swin_transformer import SwinTransformer

    layers = "vision_model.model.encoder.layers."
    depths = [count_blocks(state, f"{layers}{i}.blocks.") for i in range(count_blocks(state, layers))]
    table = "blocks.0.attention.self.relative_position_bias_table"
    tables = [entry(state, f"{layers}{i}.{table}", path, axes=2).shape for i in range(len(depths))]
    patches = entry(state, _SWIN_PATCHES, path, axes=4).shape
    swin = SwinTransformer(
        img_size=IMAGE_SIZE,
        patch_size=patches[2],
        embed_dim=patches[0],
        depths=tuple(depths),
        num_heads=tuple(heads for _, heads in tables),
        window_size=(math.isqrt(tables[0][0]) + 1) // 2,
        num_classes=0,
        global_pool="",
    )
    for block in swin.modules():
        if hasattr(block, "fused_attn"):  # timm leaves torch's own attention off where a bias is added
            block.fused_attn = True
    return _SwinTower(swin, swin.num_features, dim)


def _join_qkv(state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Query, key and value of the image tower's attention as one tensor, in that order."""
    joined: dict[str, Tensor] = {}
    for key, value in state.items():
        part = re.fullmatch(r"(vision_model\..*attention\.self\.)(query|key|value)\.(weight|bias)", key)
        if part is None:
            joined[key] = value
        elif part[2] == "query":
            names = (f"{part[1]}{name}.{part[3]}" for name in ("query", "key", "value"))
            joined[f"{part[1]}qkv.{part[3]}"] = torch.cat([entry(state, name, path) for name in names])
    return joined


_TIMM_NAMES = (
    ("embeddings.patch_embeddings.projection.", "patch_embed.proj."),
    ("embeddings.norm.", "patch_embed.norm."),
    ("encoder.layers.", "layers."),
    (".attention.self.", ".attn."),
    (".attention.output.dense.", ".attn.proj."),
    (".layernorm_before.", ".norm1."),
    (".layernorm_after.", ".norm2."),
    (".intermediate.dense.", ".mlp.fc1."),
    (".output.dense.", ".mlp.fc2."),
    ("model.layernorm.", "model.norm."),
)


def timm_name(key: str) -> str:
    """The name in timm's Swin transformer of a tensor that transformers 4 named; others stay.

    timm counts a merging of patches to the stage that it leads to, transformers to the stage that it ends.

    Example:
        >>> timm_name("vision_model.model.encoder.layers.0.downsample.norm.weight")
        'vision_model.model.layers.1.downsample.norm.weight'
        >>> timm_name("vision_model.model.encoder.layers.0.blocks.1.output.dense.bias")
        'vision_model.model.layers.0.blocks.1.mlp.fc2.bias'
    """
    if not key.startswith("vision_model.model."):
        return key
    for theirs, ours in _TIMM_NAMES:
        key = key.replace(theirs, ours)
    return re.sub(r"layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) + 1}.downsample", key)


FAMILY = Family(
    name="medclip",
    title=f"MedCLIP: {WEIGHT_FILE}",
    recognises=recognises,
    load=load_folder,
    weight_files=(WEIGHT_FILE,),
    small_files=("*.json", "vocab.txt"),
)
