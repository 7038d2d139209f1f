"""A differentiable look inside an image tower: activations, attention, what each block says of the image."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, multi_head_attention_forward, normalize, scaled_dot_product_attention
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class ImageTrace:
    """One pass of n images through an image tower, with its graph, so that scores can be derived.

    Attributes:
        features: unit image features, shape ``(n, d)``, float32, on the CPU, in the graph.
        block_features: the features that the tower's own head (norm, pooling, projection) makes of the tokens
            behind each of L transformer blocks, unit rows, shape ``(L, n, d)``; those behind the last are
            ``features``. L = 0 for a CNN.
        attentions: attention weights of every block, L of shape ``(n, heads, t, t)``, rows sum to one; empty
            for a CNN, and for a tower whose attention does not reach over the whole image (Swin).
        spatial: output of the layer that :meth:`DualEncoder.patch_activations` gives, as the tower has it;
            None where the family names no such layer.
        tokens: tokens behind the last block, shape ``(n, t, c)``; None for a CNN.
    """

    features: Tensor
    block_features: Tensor
    attentions: tuple[Tensor, ...]
    spatial: Tensor | None
    tokens: Tensor | None

    def gradients(self, scores: Tensor, of: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Derivatives of the sum of scores by parts of the trace; zeros where they do not depend on it."""
        return torch.autograd.grad(
            scores.sum(), list(of), retain_graph=True, allow_unused=True, materialize_grads=True
        )


class AttentionRecorder(TorchFunctionMode):
    """Keeps the weights of every self-attention that is computed inside it, in the graph.

    torch's fused kernel never has them, so inside it attention is computed as it is written. Only the thread
    that enters sees a difference.

    Attributes:
        weights: one entry an attention, shape ``(n, heads, t, t)``.

    Example:
        >>> query = torch.zeros(1, 2, 3, 4)
        >>> with AttentionRecorder() as recorder:
        ...     _ = scaled_dot_product_attention(query, query, query)
        >>> recorder.weights[0].shape
        torch.Size([1, 2, 3, 3])
    """

    def __init__(self) -> None:
        super().__init__()
        self.weights: list[Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute what is asked, attention in the open."""
        kwargs = kwargs or {}
        if func is scaled_dot_product_attention and not kwargs.get("enable_gqa", False):
            return self._attend(*args, **kwargs)
        if func is multi_head_attention_forward and _is_plain_self_attention(args, kwargs):
            return self._packed(*args, **kwargs), None
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        """softmax(Q K^T / sqrt(width) + mask) V, for ``(n, heads, t, width)``."""
        logits = query @ key.transpose(-2, -1) * (scale or 1 / math.sqrt(query.shape[-1]))
        if is_causal:
            attn_mask = logits.new_ones(logits.shape[-2:], dtype=torch.bool).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            logits = logits.masked_fill(~attn_mask, -math.inf)
        elif attn_mask is not None:
            logits = logits + attn_mask
        weights = logits.softmax(dim=-1)
        if query.shape[-2] == key.shape[-2]:
            self.weights.append(weights)
        return weights @ value

    def _packed(self, query: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What ``nn.MultiheadAttention`` computes of tokens ``(t, n, c)``."""
        heads, in_weight, in_bias = args[3], args[4], args[5]
        out_weight, out_bias = args[10], args[11]
        length, count, width = query.shape
        parts = linear(query, in_weight, in_bias).chunk(3, dim=-1)
        queries, keys, values = (part.reshape(length, count, heads, -1).permute(1, 2, 0, 3) for part in parts)
        mixed = self._attend(queries, keys, values)
        return linear(mixed.permute(2, 0, 1, 3).reshape(length, count, width), out_weight, out_bias)


def _is_plain_self_attention(args: Sequence[Any], kwargs: dict[str, Any]) -> bool:
    """Whether tokens attend to each other, unmasked, with packed matrices: as in every CLIP's image tower."""
    masked = kwargs.get("attn_mask") is not None or kwargs.get("key_padding_mask") is not None
    return len(args) >= 12 and args[0] is args[1] is args[2] and args[5] is not None and not masked


def trace(
    run: Callable[[Tensor], Tensor], pixels: Tensor, spatial: nn.Module | None, blocks: Sequence[nn.Module]
) -> ImageTrace:
    """Run an image tower on pixels and keep what passes.

    The tokens behind all blocks go through the tower's head together, as L times as many images, so that the
    head is used as the tower uses it, whatever it is.

    Args:
        run: the image tower, pixels ``(n, 3, H, W)`` -> features ``(n, d)``.
        pixels: in the tower's precision, on its device.
        spatial: the layer whose output to keep.
        blocks: the tower's transformer blocks in order; none for a CNN.
    """
    kept: list[Tensor] = []
    tokens: list[Tensor] = []
    own = threading.get_ident()

    # Another thread may be in the same tower: its pass is neither kept nor changed.
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if threading.get_ident() == own:
            kept.append(output)

    def keep_tokens(module: nn.Module, _inputs: Any, output: Any) -> Any:
        if threading.get_ident() != own:
            return None
        tokens.append(output[0] if isinstance(output, tuple) else output)
        if module is not blocks[-1]:
            return None
        every = torch.cat(tokens)
        return (every, *output[1:]) if isinstance(output, tuple) else every

    hooks = [block.register_forward_hook(keep_tokens) for block in blocks]
    hooks += [spatial.register_forward_hook(keep)] if spatial is not None else []
    try:
        with torch.enable_grad(), AttentionRecorder() as recorder:
            features = run(pixels.detach().requires_grad_())
    finally:
        for hook in hooks:
            hook.remove()
    unit = normalize(features.float(), dim=-1).cpu().reshape(-1, len(pixels), features.shape[-1])
    length = tokens[-1].shape[1] if tokens else 0
    attentions = [weights for weights in recorder.weights if weights.shape[-1] == length]
    return ImageTrace(
        features=unit[-1],
        block_features=unit if blocks else unit[:0],
        attentions=tuple(attentions) if len(attentions) == len(blocks) else (),
        spatial=kept[-1] if kept else None,
        tokens=tokens[-1] if tokens else None,
    )


def shuffle_top_layers(model: nn.Module, run: Callable[[], object], share: float, seed: int) -> None:
    """Shuffle the weights of the last layers that a pass goes through, each tensor within itself, in place.

    Each layer keeps the distribution of its weights and loses what they learned: the cascading randomisation
    of Adebayo et al. (NeurIPS 2018), with the layer's own values in place of fresh ones.

    Args:
        model: holds the layers.
        run: the pass that says which layers there are and in which order they are done.
        share: of the layers, from the last one backwards; 1 shuffles all.
        seed: of the shuffles.
    """
    layers = _layers_in_order(model, run)
    draw = torch.Generator().manual_seed(seed)
    for weights in layers[len(layers) - math.ceil(share * len(layers)) :]:
        for weight in weights:
            order = torch.randperm(weight.numel(), generator=draw).to(weight.device)
            weight.data = weight.detach().flatten()[order].reshape(weight.shape)


def _layers_in_order(model: nn.Module, run: Callable[[], object]) -> list[list[nn.Parameter]]:
    """Weights by layer, in the order in which a pass is done with them.

    Positions and class tokens that a tower holds itself are used before its layers, its projection behind.
    Weights of a part that is never called (the matrices in ``nn.MultiheadAttention``) are its owner's.
    """
    called: list[tuple[nn.Module, bool]] = []
    hooks = [
        part.register_forward_pre_hook(lambda m, _i: called.append((m, False))) for part in model.modules()
    ]
    hooks += [
        part.register_forward_hook(lambda m, _i, _o: called.append((m, True))) for part in model.modules()
    ]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    known = {part for part, _ in called}
    layers, seen = [], set[nn.Parameter]()
    for part, done in called:
        wanted = [w for name, w in _own_weights(part, known) if done != _is_used_first(part, name, known)]
        fresh = [weight for weight in wanted if weight not in seen]
        seen.update(fresh)
        layers += [fresh] if fresh else []
    return layers


def _own_weights(part: nn.Module, called: set[nn.Module]) -> list[tuple[str, nn.Parameter]]:
    own = list(part.named_parameters(recurse=False))
    for name, child in part.named_children():
        own += [(f"{name}.{key}", w) for key, w in _own_weights(child, called)] if child not in called else []
    return own


def _is_used_first(part: nn.Module, name: str, called: set[nn.Module]) -> bool:
    has_layers = any(child in called for child in part.children())
    return has_layers and ("embed" in name or "token" in name)
