"""Every map against its equation, written out plainly, and against captum where that has it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from torch import Tensor, nn
from torch.nn.functional import interpolate, normalize

from tests.backbones.instances import write
from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.errors import UserError
from vmfcoop.explain import MAP_METHODS, class_target, direction_target, methods_for, saliency_maps
from vmfcoop.explain.attention_maps import readout
from vmfcoop.explain.gradient_maps import unit_range
from vmfcoop.explain.perturbation_maps import RiseConfig, random_masks
from vmfcoop.explain.targets import Target
from vmfcoop.methods.base import EmbeddingClassifier
from vmfcoop.methods.vmf_posterior import Frame, PosteriorClassifier
from vmfcoop.methods.zero_shot import name_embeddings

Loader = Callable[[str], FrozenEncoder]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Loader:
    """Small random instances of a family, each written once."""
    loaded: dict[str, FrozenEncoder] = {}

    def of(kind: str) -> FrozenEncoder:
        if kind not in loaded:
            folder: Path = tmp_path_factory.mktemp(kind)
            spec = "phantom" if kind == "phantom" else f"dir:{write(kind, folder)}"
            encoder = load_backbone(spec, "cpu")
            assert isinstance(encoder, FrozenEncoder)
            loaded[kind] = encoder
        return loaded[kind]

    return of


def pictures(encoder: FrozenEncoder, count: int = 2) -> Tensor:
    draw = torch.Generator().manual_seed(3)
    coarse = torch.randn(count, 3, 6, 6, generator=draw)
    return interpolate(coarse, encoder.image_size, mode="bicubic")


def some_target(encoder: FrozenEncoder) -> Target:
    direction = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(5))
    return direction_target(10 * direction, "a direction")


class PlainViT:
    """open_clip's ViT written out: attention of every block in the graph, and its head."""

    def __init__(self, encoder: FrozenEncoder, pixels: Tensor) -> None:
        self.visual = encoder._model.visual
        entered: list[Tensor] = []
        hook = self.visual.transformer.register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
        encoder._image_features(pixels)
        hook.remove()
        tokens = entered[0].detach().requires_grad_()
        self.attentions: list[Tensor] = []
        self.tokens: list[Tensor] = []
        for block in self.visual.transformer.resblocks:
            tokens = tokens + self._attended(block, block.ln_1(tokens))
            tokens = tokens + block.mlp(block.ln_2(tokens))
            self.tokens.append(tokens)

    def _attended(self, block: nn.Module, tokens: Tensor) -> Tensor:
        attention, (n, t, c) = block.attn, tokens.shape
        heads = attention.num_heads
        parts = (tokens @ attention.in_proj_weight.T + attention.in_proj_bias).split(c, dim=2)
        q, k, v = (part.reshape(n, t, heads, c // heads).transpose(1, 2) for part in parts)
        weights = torch.softmax(q @ k.transpose(2, 3) / (c // heads) ** 0.5, dim=3)
        self.attentions.append(weights)
        return attention.out_proj((weights @ v).transpose(1, 2).reshape(n, t, c))

    def feature(self, block: int = -1) -> Tensor:
        return normalize(self.visual.ln_post(self.tokens[block])[:, 0] @ self.visual.proj, dim=1)


def as_map(relevance: Tensor, pixels: Tensor) -> Tensor:
    """Relevance of the class token's row ``(n, t)`` -> what saliency_maps gives."""
    side = int((relevance.shape[1] - 1) ** 0.5)
    grid = relevance[:, 1:].detach().reshape(len(relevance), 1, side, side)
    return unit_range(interpolate(grid, pixels.shape[2:], mode="bilinear")[:, 0])


def test_a_trace_of_multihead_attention_is_the_plain_pass(load: Loader) -> None:
    encoder = load("open_clip")
    pixels, target = pictures(encoder), some_target(encoder)
    trace, plain = encoder.trace_images(pixels), PlainViT(encoder, pixels)
    torch.testing.assert_close(trace.features, plain.feature())
    for layer in range(2):
        torch.testing.assert_close(trace.block_features[layer], plain.feature(layer))
        torch.testing.assert_close(trace.attentions[layer], plain.attentions[layer])
    ours = trace.gradients(target.score(trace.features), trace.attentions)
    theirs = torch.autograd.grad(target.score(plain.feature()).sum(), plain.attentions)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, atol=1e-5, rtol=1e-4)
    only_class_token = torch.eye(trace.attentions[0].shape[-1])[:1].expand(2, -1)
    torch.testing.assert_close(readout(trace, target.score(trace.features)), only_class_token)


def test_rollout_is_the_product_of_attention_and_identity(load: Loader) -> None:
    encoder = load("open_clip")
    pixels = pictures(encoder)
    product = torch.eye(17)
    for attention in PlainViT(encoder, pixels).attentions:
        product = (attention.mean(dim=1) + torch.eye(17)) / 2 @ product
    ours = saliency_maps(encoder, pixels, some_target(encoder), "rollout")
    torch.testing.assert_close(ours, as_map(product[:, 0], pixels), atol=1e-5, rtol=0)
    other = direction_target(-torch.ones(encoder.dim), "another")
    assert torch.equal(ours, saliency_maps(encoder, pixels, other, "rollout"))


def test_gradient_weighted_attention_is_gathered_block_by_block(load: Loader) -> None:
    encoder = load("open_clip")
    pixels, target = pictures(encoder), some_target(encoder)
    plain = PlainViT(encoder, pixels)
    gradients = torch.autograd.grad(target.score(plain.feature()).sum(), plain.attentions)
    gathered = torch.eye(17).repeat(2, 1, 1)
    for attention, gradient in zip(plain.attentions, gradients, strict=True):
        gathered = gathered + (attention * gradient).clamp(min=0).mean(dim=1) @ gathered
    ours = saliency_maps(encoder, pixels, target, "chefer")
    torch.testing.assert_close(ours, as_map((gathered - torch.eye(17))[:, 0], pixels), atol=1e-5, rtol=0)


def test_legrad_is_the_mean_over_blocks_of_positive_gradients(load: Loader) -> None:
    encoder = load("open_clip")
    pixels, target = pictures(encoder), some_target(encoder)
    plain = PlainViT(encoder, pixels)
    total = torch.zeros(2, 17)
    for block, attention in enumerate(plain.attentions):
        (gradient,) = torch.autograd.grad(
            target.score(plain.feature(block)).sum(), [attention], retain_graph=True
        )
        for head in range(attention.shape[1]):
            for token in range(17):
                total += gradient[:, head, token].clamp(min=0)
    ours = saliency_maps(encoder, pixels, target, "legrad")
    torch.testing.assert_close(ours, as_map(total, pixels), atol=1e-5, rtol=0)


def test_grad_cam_is_that_of_captum(load: Loader) -> None:
    from captum.attr import LayerGradCam

    encoder = load("pmc-clip")
    pixels, target = pictures(encoder), some_target(encoder)

    def score(images: Tensor) -> Tensor:
        return target.score(normalize(encoder._image_features(images), dim=1))

    layer = encoder._model.image_encoder.layer4
    cam = LayerGradCam(score, layer).attribute(pixels.clone().requires_grad_(), relu_attributions=True)
    wanted = unit_range(interpolate(cam.detach(), pixels.shape[2:], mode="bilinear")[:, 0])
    torch.testing.assert_close(saliency_maps(encoder, pixels, target, "gradcam"), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("kind", ["pmc-clip", "open_clip", "transformers-siglip"])
def test_gscorecam_weighs_the_channels_of_largest_gradient_by_their_masks(load: Loader, kind: str) -> None:
    encoder = load(kind)
    pixels, target = pictures(encoder, 1), some_target(encoder)
    activations = encoder.patch_activations(pixels)[0]
    slopes = torch.stack([slope(encoder, pixels, target, k) for k in range(len(activations))])
    best = slopes.argsort(descending=True)[:5].tolist()
    scores = []
    for k in best:
        mask = interpolate(activations[None, None, k], pixels.shape[2:], mode="bilinear")[0, 0]
        if (span := float(mask.max() - mask.min())) > 0:
            mask = (mask - mask.min()) / span
        scores.append(float(target.score(encoder.encode_images(pixels * mask))))
    weights = np.exp(scores) / np.exp(scores).sum()
    summed = sum(float(w) * activations[k] for w, k in zip(weights, best, strict=True)).clamp(min=0)
    wanted = unit_range(interpolate(summed[None, None], pixels.shape[2:], mode="bilinear")[0])
    ours = saliency_maps(encoder, pixels, target, "gscorecam", settings={"channels": 5})
    torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=0)


def slope(encoder: FrozenEncoder, pixels: Tensor, target: Target, channel: int) -> Tensor:
    """Derivative of the score by one channel's sum over places, by central differences of the layer."""
    step, scores = 1e-2, []
    for sign in (1, -1):

        def nudge(_module: nn.Module, _args: object, output: Tensor, change: float = sign * step) -> Tensor:
            moved = output.clone()
            if output.dim() == 4:
                moved[:, channel] += change
            else:
                side = int(output.shape[1] ** 0.5)
                moved[:, output.shape[1] - side**2 :, channel] += change
            return moved

        assert encoder._spatial_layer is not None
        hook = encoder._spatial_layer.register_forward_hook(nudge)
        scores.append(float(target.score(encoder.encode_images(pixels))))
        hook.remove()
    return torch.tensor((scores[0] - scores[1]) / (2 * step))


def blurred(pixels: Tensor) -> Tensor:
    """Out of focus by a tenth of the shorter side, by scipy."""
    sigma = 0.1 * min(pixels.shape[2:])
    planes = [
        [gaussian_filter(p.numpy(), sigma, mode="nearest", radius=round(2 * sigma)) for p in i]
        for i in pixels
    ]
    return torch.from_numpy(np.array(planes))


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_occlusion_is_the_mean_fall_under_the_squares_that_hide_a_pixel(load: Loader, fill: str) -> None:
    encoder = load("pmc-clip")
    pixels, target = pictures(encoder), some_target(encoder)
    side = pixels.shape[2]
    window, step = round(0.25 * side), round(0.125 * side)
    falls, covered = torch.zeros(2, side, side), torch.zeros(side, side)
    whole = target.score(encoder.encode_images(pixels))
    other = blurred(pixels) if fill == "blur" else torch.zeros_like(pixels)
    corners = range(0, side - window + step, step)
    for top in corners:
        for left in corners:
            hidden = pixels.clone()
            place = (slice(top, top + window), slice(left, left + window))
            hidden[(..., *place)] = other[(..., *place)]
            falls[(slice(None), *place)] += (whole - target.score(encoder.encode_images(hidden)))[
                :, None, None
            ]
            covered[place] += 1
    wanted = unit_range((falls / covered).clamp(min=0))
    ours = saliency_maps(
        encoder, pixels, target, "occlusion", settings={"window": 0.25, "stride": 0.5, "fill": fill}
    )
    torch.testing.assert_close(ours, wanted, atol=1e-3, rtol=0)


@pytest.mark.parametrize("fill", ["blur", "mean"])
def test_rise_is_the_covariance_of_score_and_mask(load: Loader, fill: str) -> None:
    encoder = load("pmc-clip")
    pixels, target = pictures(encoder, 1), some_target(encoder)
    masks = random_masks(RiseConfig(masks=20, seed=4), *pixels.shape[2:])
    other = blurred(pixels) if fill == "blur" else torch.zeros_like(pixels)
    seen_images = [pixels * mask + other * (1 - mask) for mask in masks]
    scores = np.array([float(target.score(encoder.encode_images(image))) for image in seen_images])
    published = (torch.from_numpy(scores).float()[:, None, None] * masks).mean(dim=0) / 0.5
    seen = (masks - 0.5).mean(dim=0) / 0.5
    centred = published - float(scores.mean()) * (1 + seen)
    ours = saliency_maps(encoder, pixels, target, "rise", seed=4, settings={"masks": 20, "fill": fill})
    torch.testing.assert_close(ours[0], unit_range(centred.clamp(min=0)[None])[0], atol=1e-3, rtol=0)


def test_rise_masks_show_each_pixel_with_the_asked_probability() -> None:
    masks = random_masks(RiseConfig(masks=3000, cells=4, keep=0.3), 30, 41)
    assert masks.shape == (3000, 30, 41) and float(masks.min()) >= 0 and float(masks.max()) <= 1
    assert float((masks.mean(dim=0) - 0.3).abs().max()) < 0.04
    assert torch.equal(masks, random_masks(RiseConfig(masks=3000, cells=4, keep=0.3), 30, 41))
    assert not torch.equal(masks[:20], random_masks(RiseConfig(masks=20, cells=4, seed=1), 30, 41))


KINDS = ("open_clip-bert", "open_clip-siglip", "transformers-siglip", "transformers-vit-bert", "medclip-vit")


@pytest.mark.parametrize("kind", [*KINDS, "pmc-clip"])
def test_every_method_that_a_tower_offers_gives_a_map_and_the_others_say_why(load: Loader, kind: str) -> None:
    encoder = load(kind)
    pixels, target = pictures(encoder), some_target(encoder)
    offered = methods_for(encoder)
    assert {"gradcam", "gscorecam", "occlusion", "rise"} <= set(offered)
    assert ("legrad" in offered) == bool(encoder._blocks)
    quick = {"rise": {"masks": 4}, "gscorecam": {"channels": 4}, "occlusion": {"window": 0.5, "stride": 1}}
    for name in MAP_METHODS:
        if name not in offered:
            with pytest.raises(UserError, match="has none over the whole image"):
                saliency_maps(encoder, pixels, target, name)
            continue
        maps = saliency_maps(encoder, pixels, target, name, settings=quick.get(name))
        assert maps.shape == (2, *encoder.image_size) and maps.dtype == torch.float32
        assert maps.isfinite().all() and float(maps.min()) >= 0 and float(maps.max()) <= 1
        alone = saliency_maps(encoder, pixels[1:], target, name, settings=quick.get(name))
        torch.testing.assert_close(alone[0], maps[1], atol=1e-3, rtol=0)


def test_a_map_of_a_phantom_finds_the_lesion(load: Loader) -> None:
    """More of its energy inside than the lesion has of the picture, for the classes' own log-odds."""
    encoder, dataset = load("phantom"), PHANTOMS["phantom-brain-mri"]
    names = dataset.class_names
    fitted = EmbeddingClassifier(
        names, name_embeddings(encoder, names, "a photo of a {}."), encoder.logit_scale
    )
    label = dataset.findings.index(True)
    phantoms = [dataset.phantom(label, i) for i in range(4)]
    pixels = torch.stack([encoder.preprocess(Image.fromarray(p.image)) for p in phantoms])
    masks = torch.from_numpy(np.stack([p.mask for p in phantoms]))
    target = class_target(fitted, names[label])
    shares, quick = {}, {"occlusion": {"stride": 1}}
    for name in ("occlusion", "chefer"):
        maps = saliency_maps(encoder, pixels, target, name, settings=quick.get(name))
        shares[name] = float((maps * masks).sum() / maps.sum() / masks.float().mean())
    assert min(shares.values()) > 1.5, shares


def test_gradients_stop_at_nothing_and_change_no_weight(load: Loader) -> None:
    encoder = load("open_clip-bert")
    before = {key: value.clone() for key, value in encoder._model.state_dict().items()}
    pixels = pictures(encoder)
    for name in methods_for(encoder)[:5]:
        saliency_maps(encoder, pixels, some_target(encoder), name, settings=None)
    assert all(torch.equal(before[key], value) for key, value in encoder._model.state_dict().items())
    assert all(weight.grad is None for weight in encoder._model.parameters())


def test_names_and_settings_are_checked(load: Loader) -> None:
    encoder = load("pmc-clip")
    pixels, target = pictures(encoder, 1), some_target(encoder)
    with pytest.raises(UserError, match="did you mean 'gradcam'"):
        saliency_maps(encoder, pixels, target, "grad-cam")
    with pytest.raises(UserError, match="masks"):
        saliency_maps(encoder, pixels, target, "rise", settings={"mask": 3})
    with pytest.raises(UserError, match="masks"):
        saliency_maps(encoder, pixels, target, "rise", settings={"masks": 0})
    assert saliency_maps(encoder, pixels[:0], target).shape == (0, *encoder.image_size)


def test_targets_are_differences_of_logits() -> None:
    fitted = EmbeddingClassifier(("a", "b", "c"), normalize(torch.randn(3, 8), dim=1), 7.0)
    features = normalize(torch.randn(5, 8), dim=1)
    logits = fitted.logits(features).double()
    rest = logits[:, 1] - (logits[:, 0].exp() + logits[:, 2].exp()).log()
    torch.testing.assert_close(class_target(fitted, "b").score(features).double(), rest, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        class_target(fitted, 1, "c").score(features).double(), logits[:, 1] - logits[:, 2], atol=1e-5, rtol=0
    )
    assert torch.equal(class_target(fitted, "b", "none").score(features), fitted.logits(features)[:, 1])
    with pytest.raises(UserError, match="itself"):
        class_target(fitted, "b", 1)
    with pytest.raises(UserError, match="Unknown class 'd'"):
        class_target(fitted, "a", "d")


def test_the_posterior_alone_is_its_log_density() -> None:
    """Its logits are relative to the most probable class: that class's own is 0, whatever the image."""
    draw = torch.Generator().manual_seed(0)
    directions = normalize(torch.randn(3, 8, generator=draw, dtype=torch.float64), dim=1)
    frame = Frame(torch.eye(8), torch.zeros(8).double(), *map(_scalar, (1.0, 20.0, 0.0)))
    fitted = PosteriorClassifier(
        ("a", "b", "c"),
        directions,
        torch.tensor([5.0, 10.0, 30.0]).double(),
        frame,
        _scalar(5.0),
        _scalar(0.7),
        lambda *_: torch.zeros(0),
    )
    features = normalize(torch.randn(6, 8, generator=draw), dim=1).requires_grad_()
    scores = torch.stack([class_target(fitted, c, "none").score(features) for c in range(3)], dim=1)
    logits = fitted.logits(features)
    torch.testing.assert_close(scores - scores.amax(dim=1, keepdim=True), logits, atol=1e-4, rtol=0)
    mixture = (scores.double() / 0.7).exp().mean(dim=1).log()
    torch.testing.assert_close(mixture, fitted.log_density(features), atol=1e-4, rtol=0)
    (slopes,) = torch.autograd.grad(scores.gather(1, logits.argmax(dim=1, keepdim=True)).sum(), features)
    assert bool((slopes.norm(dim=1) > 0.1).all())
    assert class_target(fitted, "b", "none").name == "b (log density)"


def _scalar(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("kind", ["open_clip-bert", "pmc-clip"])
def test_another_thread_in_the_same_tower_neither_disturbs_a_trace_nor_is_disturbed(
    load: Loader, kind: str
) -> None:
    encoder = load(kind)
    mine, theirs = pictures(encoder, 3).split([1, 2])
    alone = encoder.trace_images(mine)
    features, activations = encoder.encode_images(theirs), encoder.patch_activations(theirs)
    met: list[Tensor] = []
    here = threading.get_ident()

    def meet(*_: object) -> None:
        """Once in the middle of this thread's pass, another thread makes whole passes."""
        if threading.get_ident() == here and not met:
            met.append(torch.empty(0))
            with ThreadPoolExecutor(1) as other:
                calls = [other.submit(pass_, theirs) for pass_ in passes]
                met.extend(call.result() for call in calls)

    passes = (encoder.encode_images, encoder.patch_activations)
    layer = encoder._blocks[-1] if encoder._blocks else encoder._spatial_layer
    assert layer is not None
    hook = layer.register_forward_pre_hook(meet)
    together = encoder.trace_images(mine)
    hook.remove()
    assert torch.equal(met[1], features) and torch.equal(met[2], activations)
    assert torch.equal(together.features, alone.features)
    assert torch.equal(together.block_features, alone.block_features)
    assert together.spatial is not None and alone.spatial is not None
    assert torch.equal(together.spatial, alone.spatial)
    for ours, known in zip(together.attentions, alone.attentions, strict=True):
        assert torch.equal(ours, known)
