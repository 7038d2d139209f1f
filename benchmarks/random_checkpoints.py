"""PMC-CLIP's and MedCLIP's published files with seeded random weights, tiny and full size.

File names, tensor names and shapes are written out here from the published code, not taken from the libraries
that load them. The weights are drawn at a gain above one, as in ``random_backbone.py``.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from benchmarks.random_backbone import GAIN, vocabulary, write_tokenizer
from torch import Tensor

Shapes = Iterator[tuple[str, tuple[int, ...]]]
CONTEXT_LENGTH = 77


@dataclass(frozen=True)
class Bert:
    """Shape of a BERT text tower."""

    width: int
    layers: int
    entries: int
    positions: int = 512


@dataclass(frozen=True)
class ClipResNet:
    """Shape of CLIP's modified ResNet: channels after the stem, blocks, side of the last map, features."""

    width: int
    blocks: tuple[int, ...]
    side: int
    dim: int


@dataclass(frozen=True)
class Swin:
    """Shape of a Swin transformer."""

    width: int
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    window: int = 7


PUBMEDBERT = Bert(768, 12, 30522)
BIO_CLINICAL_BERT = Bert(768, 12, 28996)
TINY_BERT = Bert(128, 4, len(vocabulary()), positions=96)
CLIP_RESNET50 = ClipResNet(64, (3, 4, 6, 3), side=7, dim=768)
TINY_CLIP_RESNET = ClipResNet(8, (1, 2, 1, 1), side=2, dim=48)
SWIN_TINY = Swin(96, (2, 2, 6, 2), (3, 6, 12, 24))
TINY_SWIN = Swin(16, (2, 1, 2, 2), (1, 2, 4, 4))
RESNET50 = (3, 4, 6, 3)
TINY_RESNET = (1, 2, 1, 1)


def write_pmc_clip(folder: Path, tiny: bool = False, seed: int = 0, half: bool = False) -> Path:
    """Write PMC-CLIP's three files and the tokenizer of its text tower.

    Args:
        folder: is made.
        tiny: small towers instead of the published size.
        seed: of the weights.
        half: store half-precision numbers, to spare disk and time.
    """
    bert, image = (TINY_BERT, TINY_CLIP_RESNET) if tiny else (PUBMEDBERT, CLIP_RESNET50)
    draw = torch.Generator().manual_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(_drawn(clip_resnet_shapes(image), draw, half), folder / "image_encoder(resnet50).pth")
    torch.save(_drawn(bert_shapes(bert), draw, half), folder / "text_encoder.pth")
    projection = _random("projection.weight", (bert.width, image.dim), draw)
    torch.save(projection.half() if half else projection, folder / "text_projection_layer.pth")
    write_tokenizer(folder, CONTEXT_LENGTH)
    (folder / "tokenizer.json").unlink()
    return folder


def write_medclip(
    folder: Path,
    vision: Literal["swin", "resnet"] = "swin",
    tiny: bool = False,
    seed: int = 0,
    half: bool = False,
) -> Path:
    """Write MedCLIP's checkpoint and ``vocab.txt``, all that BioClinicalBERT's repository has of a tokenizer.

    Args:
        folder: is made.
        vision: MedCLIP-ViT (a Swin transformer) or MedCLIP-ResNet.
        tiny: small towers instead of the published size.
        seed: of the weights.
        half: store half-precision numbers, to spare disk and time.
    """
    bert = TINY_BERT if tiny else BIO_CLINICAL_BERT
    folder.mkdir(parents=True, exist_ok=True)
    shapes = medclip_shapes(bert, (TINY_SWIN if tiny else SWIN_TINY), 512)
    if vision == "resnet":
        shapes = medclip_shapes(bert, (TINY_RESNET if tiny else RESNET50), 512)
    torch.save(_drawn(shapes, torch.Generator().manual_seed(seed), half), folder / "pytorch_model.bin")
    write_tokenizer(folder, CONTEXT_LENGTH)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        (folder / file).unlink()
    return folder


def medclip_shapes(bert: Bert, vision: Swin | Sequence[int], dim: int) -> Shapes:
    """Names and shapes of MedCLIP's state dict; ``vision`` is a Swin or the block counts of a ResNet."""
    yield "logit_scale", ()
    if isinstance(vision, Swin):
        for name, shape in swin_shapes(vision):
            yield f"vision_model.model.{name}", shape
        yield "vision_model.projection_head.weight", (dim, vision.width * 2 ** (len(vision.depths) - 1))
    else:
        for name, shape in resnet_shapes(vision):
            yield f"vision_model.model.{name}", shape
        yield "vision_model.model.fc.weight", (dim, 2048)
    for name, shape in bert_shapes(bert):
        yield f"text_model.model.{name}", shape
    yield "text_model.projection_head.weight", (dim, bert.width)


def bert_shapes(bert: Bert) -> Shapes:
    """Names and shapes of transformers' ``BertModel`` as its releases of 2022 saved it."""
    width = bert.width
    yield "embeddings.position_ids", (1, bert.positions)
    yield "embeddings.word_embeddings.weight", (bert.entries, width)
    yield "embeddings.position_embeddings.weight", (bert.positions, width)
    yield "embeddings.token_type_embeddings.weight", (2, width)
    yield from _norm("embeddings.LayerNorm", width)
    for layer in range(bert.layers):
        block = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            yield from _linear(f"{block}.attention.self.{part}", width, width)
        yield from _linear(f"{block}.attention.output.dense", width, width)
        yield from _norm(f"{block}.attention.output.LayerNorm", width)
        yield from _linear(f"{block}.intermediate.dense", 4 * width, width)
        yield from _linear(f"{block}.output.dense", width, 4 * width)
        yield from _norm(f"{block}.output.LayerNorm", width)
    yield from _linear("pooler.dense", width, width)


def clip_resnet_shapes(net: ClipResNet) -> Shapes:
    """Names and shapes of the modified ResNet of CLIP and PMC-CLIP (three-layer stem, attention pool)."""
    stem = ((3, net.width // 2), (net.width // 2, net.width // 2), (net.width // 2, net.width))
    for number, (inputs, outputs) in enumerate(stem, start=1):
        yield f"conv{number}.weight", (outputs, inputs, 3, 3)
        yield from _batch_norm(f"bn{number}", outputs)
    yield from _bottlenecks(net.width, net.blocks)
    width = 32 * net.width
    yield "attnpool.positional_embedding", (net.side**2 + 1, width)
    for part in ("k_proj", "q_proj", "v_proj"):
        yield from _linear(f"attnpool.{part}", width, width)
    yield from _linear("attnpool.c_proj", net.dim, width)


def resnet_shapes(blocks: Sequence[int]) -> Shapes:
    """Names and shapes of torchvision's ResNet with bottlenecks, without its classifier."""
    yield "conv1.weight", (64, 3, 7, 7)
    yield from _batch_norm("bn1", 64)
    yield from _bottlenecks(64, blocks)


def swin_shapes(swin: Swin) -> Shapes:
    """Names and shapes of transformers' ``SwinModel`` as its releases of 2022 saved it, index buffers too."""
    yield "embeddings.patch_embeddings.projection.weight", (swin.width, 3, 4, 4)
    yield "embeddings.patch_embeddings.projection.bias", (swin.width,)
    yield from _norm("embeddings.norm", swin.width)
    for stage, (depth, heads) in enumerate(zip(swin.depths, swin.heads, strict=True)):
        width = swin.width * 2**stage
        for number in range(depth):
            block = f"encoder.layers.{stage}.blocks.{number}"
            attention = f"{block}.attention.self"
            yield from _norm(f"{block}.layernorm_before", width)
            yield f"{attention}.relative_position_bias_table", ((2 * swin.window - 1) ** 2, heads)
            yield f"{attention}.relative_position_index", (swin.window**2, swin.window**2)
            for part in ("query", "key", "value"):
                yield from _linear(f"{attention}.{part}", width, width)
            yield from _linear(f"{block}.attention.output.dense", width, width)
            yield from _norm(f"{block}.layernorm_after", width)
            yield from _linear(f"{block}.intermediate.dense", 4 * width, width)
            yield from _linear(f"{block}.output.dense", width, 4 * width)
        if stage + 1 < len(swin.depths):
            yield f"encoder.layers.{stage}.downsample.reduction.weight", (2 * width, 4 * width)
            yield from _norm(f"encoder.layers.{stage}.downsample.norm", 4 * width)
    yield from _norm("layernorm", width)


def relative_position_index(window: int) -> Tensor:
    """Row of the bias table for each pair of a window's positions, ``(window^2, window^2)``."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    down = rows.flatten()[:, None] - rows.flatten()[None, :] + window - 1
    right = columns.flatten()[:, None] - columns.flatten()[None, :] + window - 1
    return down * (2 * window - 1) + right


def _bottlenecks(width: int, blocks: Sequence[int]) -> Shapes:
    inputs = width
    for stage, count in enumerate(blocks, start=1):
        inner = width * 2 ** (stage - 1)
        for number in range(count):
            block = f"layer{stage}.{number}"
            yield f"{block}.conv1.weight", (inner, inputs, 1, 1)
            yield from _batch_norm(f"{block}.bn1", inner)
            yield f"{block}.conv2.weight", (inner, inner, 3, 3)
            yield from _batch_norm(f"{block}.bn2", inner)
            yield f"{block}.conv3.weight", (4 * inner, inner, 1, 1)
            yield from _batch_norm(f"{block}.bn3", 4 * inner)
            if number == 0:
                yield f"{block}.downsample.0.weight", (4 * inner, inputs, 1, 1)
                yield from _batch_norm(f"{block}.downsample.1", 4 * inner)
            inputs = 4 * inner


def _linear(name: str, outputs: int, inputs: int) -> Shapes:
    yield f"{name}.weight", (outputs, inputs)
    yield f"{name}.bias", (outputs,)


def _norm(name: str, width: int) -> Shapes:
    yield f"{name}.weight", (width,)
    yield f"{name}.bias", (width,)


def _batch_norm(name: str, width: int) -> Shapes:
    yield from _norm(name, width)
    yield f"{name}.running_mean", (width,)
    yield f"{name}.running_var", (width,)
    yield f"{name}.num_batches_tracked", ()


def _drawn(shapes: Shapes, draw: torch.Generator, half: bool) -> OrderedDict[str, Tensor]:
    state = OrderedDict((name, _random(name, shape, draw)) for name, shape in shapes)
    if half:
        return OrderedDict((k, v.half() if v.is_floating_point() else v) for k, v in state.items())
    return state


def _random(name: str, shape: tuple[int, ...], draw: torch.Generator) -> Tensor:
    if name.endswith("position_ids"):
        return torch.arange(shape[1])[None]
    if name.endswith("relative_position_index"):
        return relative_position_index(math.isqrt(shape[0]))
    if name.endswith("num_batches_tracked"):
        return torch.tensor(1000)
    if name == "logit_scale":
        return torch.tensor(4.0)
    noise = torch.randn(shape, generator=draw)
    if ("embedding" in name and len(shape) == 2) or name.endswith("bias_table"):
        return 0.5 * noise
    if len(shape) > 1:
        return GAIN * noise / noise[0].numel() ** 0.5
    if name.endswith("bn3.weight"):  # the branch of a block, kept small beside what it is added to
        return 0.3 + 0.1 * noise
    return 0.1 * noise + (1.0 if name.endswith(("weight", "running_var")) else 0.0)
