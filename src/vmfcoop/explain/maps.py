"""Saliency maps of a dual encoder's image tower, by name, for any score of its features."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from vmfcoop.backbones.base import DualEncoder
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.explain.attention_maps import AttentionRollout, GradientWeightedAttention, LeGrad
from vmfcoop.explain.gradient_maps import GradCAM, GScoreCAM, unit_range
from vmfcoop.explain.map_method import TRACED_AT_ONCE, MapMethod, traced
from vmfcoop.explain.perturbation_maps import Occlusion, Rise
from vmfcoop.explain.targets import Target
from vmfcoop.methods.base import make_config
from vmfcoop.progress import ProgressReport, no_progress

MAP_METHODS: dict[str, type[MapMethod]] = {
    method.name: method
    for method in (GScoreCAM, GradCAM, AttentionRollout, GradientWeightedAttention, LeGrad, Occlusion, Rise)
}
"""Every saliency method by its name."""

DEFAULT_METHOD = "occlusion"


def saliency_maps(
    encoder: DualEncoder,
    pixels: Tensor,
    target: Target,
    method: str = DEFAULT_METHOD,
    *,
    seed: int = 0,
    settings: Mapping[str, Any] | None = None,
    progress: ProgressReport = no_progress,
) -> Tensor:
    """Maps of what in an image raises a score.

    Args:
        encoder: the backbone.
        pixels: n images as :meth:`DualEncoder.preprocess` gives them, shape ``(n, 3, H, W)``.
        target: the score to explain, such as :func:`vmfcoop.explain.class_target`.
        method: a key of :data:`MAP_METHODS`.
        seed: of everything random.
        settings: of the method, by name.
        progress: told of every few images.

    Returns:
        Shape ``(n, H, W)``, float32, on the CPU, each map scaled to [0, 1]: only places of one image compare.
        A map that is the same everywhere is 0.

    Raises:
        UserError: unknown method or setting, or the image tower does not offer what the method reads.
    """
    if method not in MAP_METHODS:
        raise unknown_name("saliency method", method, MAP_METHODS)
    chosen = MAP_METHODS[method]
    maker = chosen(make_config(chosen.Config, {"seed": seed, **(settings or {})}))
    found = []
    for start in range(0, len(pixels), TRACED_AT_ONCE):
        progress("saliency maps", start, len(pixels))
        part = pixels[start : start + TRACED_AT_ONCE].float()
        maps = maker.maps(encoder, part, target).detach().float()
        found.append(unit_range(interpolate(maps[:, None], part.shape[2:], mode="bilinear")[:, 0]))
    progress("saliency maps", len(pixels), len(pixels))
    return torch.cat(found) if found else torch.empty(0, *pixels.shape[2:])


def methods_for(encoder: DualEncoder) -> tuple[str, ...]:
    """The saliency methods that a backbone's image tower offers, found by one pass through it."""
    blank = torch.zeros(1, 3, *encoder.image_size)
    try:
        trace = traced(encoder, blank)
    except UserError:
        return tuple(
            name for name, method in MAP_METHODS.items() if not (method.reads_attention or method.reads_layer)
        )
    return tuple(
        name
        for name, method in MAP_METHODS.items()
        if (trace.attentions or not method.reads_attention)
        and (trace.spatial is not None or not method.reads_layer)
    )
