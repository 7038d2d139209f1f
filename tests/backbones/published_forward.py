"""Forward passes of published towers over named tensors, written from papers and code, no library model."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

State = Mapping[str, Tensor]


def under(state: State, prefix: str) -> dict[str, Tensor]:
    """The tensors below a prefix, without it, in float32."""
    return {k.removeprefix(prefix): v.float() for k, v in state.items() if k.startswith(prefix)}


def linear(state: State, name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state.get(f"{name}.bias"))


def layer_norm(state: State, name: str, x: Tensor, eps: float) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"], eps)


def bert_states(state: State, embeddings: Tensor, mask: Tensor | None = None) -> list[Tensor]:
    """BERT (Devlin et al. 2019): hidden states ``(n, L, w)`` after the embeddings and after each layer."""
    length, width = embeddings.shape[1:]
    positions = state["embeddings.position_embeddings.weight"][:length]
    x = embeddings + positions + state["embeddings.token_type_embeddings.weight"][0]
    states = [layer_norm(state, "embeddings.LayerNorm", x, 1e-12)]
    bias = torch.zeros(len(x), length) if mask is None else torch.where(mask, 0.0, -torch.inf)
    layers = len({k.split(".")[2] for k in state if k.startswith("encoder.layer.")})
    for layer in range(layers):
        block = f"encoder.layer.{layer}"
        x = states[-1]
        q, k, v = (
            linear(state, f"{block}.attention.self.{part}", x)
            .unflatten(-1, (width // 64, 64))
            .transpose(1, 2)
            for part in ("query", "key", "value")
        )
        weights = (q @ k.transpose(-1, -2) / math.sqrt(64) + bias[:, None, None]).softmax(dim=-1)
        mixed = linear(state, f"{block}.attention.output.dense", (weights @ v).transpose(1, 2).flatten(2))
        x = layer_norm(state, f"{block}.attention.output.LayerNorm", x + mixed, 1e-12)
        inner = F.gelu(linear(state, f"{block}.intermediate.dense", x))
        out = linear(state, f"{block}.output.dense", inner)
        states.append(layer_norm(state, f"{block}.output.LayerNorm", x + out, 1e-12))
    return states


def bert_pooler(state: State, last: Tensor) -> Tensor:
    """Tanh of a dense layer over the first token."""
    return linear(state, "pooler.dense", last[:, 0]).tanh()


def batch_norm(state: State, name: str, x: Tensor) -> Tensor:
    mean, var, weight, bias = (
        state[f"{name}.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return (x - mean) / (var + 1e-5).sqrt() * weight + bias


def conv_norm(state: State, conv: str, norm: str, x: Tensor, stride: int = 1) -> Tensor:
    weight = state[f"{conv}.weight"]
    return batch_norm(state, norm, F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2))


def bottlenecks(state: State, x: Tensor, pooled: bool) -> Tensor:
    """The four stages of a ResNet with bottlenecks.

    ``pooled``: the first block of stages 2 to 4 halves the map by an average pool before its last convolution
    and in its shortcut (CLIP); else by the stride of its 3 x 3 convolution and of its shortcut (torchvision).
    """
    for stage in (1, 2, 3, 4):
        for number in range(len({k.split(".")[1] for k in state if k.startswith(f"layer{stage}.")})):
            block = f"layer{stage}.{number}"
            stride = 2 if stage > 1 and number == 0 else 1
            strided = 1 if pooled else stride
            out = conv_norm(state, f"{block}.conv1", f"{block}.bn1", x).relu()
            out = conv_norm(state, f"{block}.conv2", f"{block}.bn2", out, strided).relu()
            if pooled:
                out = F.avg_pool2d(out, stride)
                shortcut = F.avg_pool2d(x, stride)
            else:
                shortcut = x
            out = conv_norm(state, f"{block}.conv3", f"{block}.bn3", out)
            if f"{block}.downsample.0.weight" in state:
                names = (f"{block}.downsample.0", f"{block}.downsample.1")
                shortcut = conv_norm(state, *names, shortcut, strided)
            x = (out + shortcut).relu()
    return x


def clip_resnet_maps(state: State, pixels: Tensor) -> Tensor:
    """CLIP's modified ResNet (Radford et al. 2021) up to the last stage: ``(n, c, h, w)``."""
    x = pixels
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = conv_norm(state, f"conv{number}", f"bn{number}", x, stride).relu()
    return bottlenecks(state, F.avg_pool2d(x, 2), pooled=True)


def attention_pool(state: State, maps: Tensor, heads: int) -> Tensor:
    """The mean of the positions, as the query, attends to itself and to all positions."""
    tokens = maps.flatten(2).transpose(1, 2)
    tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
    tokens = tokens + state["attnpool.positional_embedding"]
    q, k, v = (
        linear(state, f"attnpool.{part}", tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in ("q_proj", "k_proj", "v_proj")
    )
    weights = (q[:, :, :1] @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(dim=-1)
    return linear(state, "attnpool.c_proj", (weights @ v).transpose(1, 2).flatten(1))


def resnet_maps(state: State, pixels: Tensor) -> Tensor:
    """torchvision's ResNet with bottlenecks up to the last stage: ``(n, c, h, w)``."""
    x = conv_norm(state, "conv1", "bn1", pixels, 2).relu()
    return bottlenecks(state, F.max_pool2d(x, 3, 2, 1), pooled=False)


def swin_maps(state: State, pixels: Tensor, window: int = 7) -> Tensor:
    """Swin transformer (Liu et al. 2021) up to the last layer norm: ``(n, c, h, w)``."""
    projection = "embeddings.patch_embeddings.projection"
    x = F.conv2d(pixels, state[f"{projection}.weight"], state[f"{projection}.bias"], stride=4)
    x = layer_norm(state, "embeddings.norm", x.permute(0, 2, 3, 1), 1e-5)
    stages = len({k.split(".")[2] for k in state if k.startswith("encoder.layers.")})
    for stage in range(stages):
        prefix = f"encoder.layers.{stage}"
        for number in range(len({k.split(".")[4] for k in state if k.startswith(f"{prefix}.blocks.")})):
            block = under(state, f"{prefix}.blocks.{number}.")
            shift = window // 2 if number % 2 and x.shape[1] > window else 0
            mixed = window_attention(block, layer_norm(block, "layernorm_before", x, 1e-5), window, shift)
            x = x + mixed
            inner = F.gelu(linear(block, "intermediate.dense", layer_norm(block, "layernorm_after", x, 1e-5)))
            x = x + linear(block, "output.dense", inner)
        if stage + 1 < stages:
            merged = [x[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
            x = layer_norm(state, f"{prefix}.downsample.norm", torch.cat(merged, dim=-1), 1e-5)
            x = linear(state, f"{prefix}.downsample.reduction", x)
    return layer_norm(state, "layernorm", x, 1e-5).permute(0, 3, 1, 2)


def window_attention(block: State, x: Tensor, window: int, shift: int) -> Tensor:
    """Attention of each position to those of its window; nothing is seen over the seam of a rolled map."""
    side = x.shape[1]
    table, index = (block[f"attention.self.relative_position_{part}"] for part in ("bias_table", "index"))
    heads = table.shape[1]
    bias = table[index.long()].permute(2, 0, 1)
    place = torch.arange(side)
    region = (place >= side - window).int() + (place >= side - shift).int() if shift else place * 0
    out = torch.empty_like(x)
    rolled = x.roll((-shift, -shift), dims=(1, 2))
    for top in range(0, side, window):
        for left in range(0, side, window):
            rows, columns = slice(top, top + window), slice(left, left + window)
            tokens = rolled[:, rows, columns].flatten(1, 2)
            q, k, v = (
                linear(block, f"attention.self.{part}", tokens).unflatten(-1, (heads, -1)).transpose(1, 2)
                for part in ("query", "key", "value")
            )
            regions = (3 * region[rows, None] + region[None, columns]).flatten()
            seam = torch.where(regions[:, None] == regions[None, :], 0.0, -100.0)
            scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias + seam
            mixed = linear(
                block, "attention.output.dense", (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
            )
            out[:, rows, columns] = mixed.unflatten(1, (window, window))
    return out.roll((shift, shift), dims=(1, 2))
