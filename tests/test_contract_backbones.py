"""What every backbone owes: run on each family in small, and on one full-size architecture of each."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from tests.backbones.instances import FULL_SIZE, TINY, write
from vmfcoop.backbones import DualEncoder, Tokens, load_backbone
from vmfcoop.backbones.frozen import FrozenEncoder
from vmfcoop.errors import UserError
from vmfcoop.methods.prompt import PromptLearner

TEXTS = (
    "a photo of a glioma tumor",
    "brain",
    "a dark lesion with irregular borders",
    "an mri of the brain",
)
NAMES = ("glioma tumor", "normal brain", "cyst")
INSTANCES = [*TINY, *(pytest.param(name, marks=pytest.mark.slow) for name in FULL_SIZE)]


@pytest.fixture(scope="module", params=INSTANCES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(request.param, tmp_path_factory.mktemp("backbone"))


@pytest.fixture(scope="module")
def load(folder: Path) -> Callable[[], FrozenEncoder]:
    """Loads the instance anew."""

    def fresh() -> FrozenEncoder:
        encoder = load_backbone(f"dir:{folder}", "cpu")
        assert isinstance(encoder, FrozenEncoder)
        return encoder

    return fresh


@pytest.fixture(scope="module")
def encoder(load: Callable[[], FrozenEncoder]) -> FrozenEncoder:
    return load()


def some_pixels(encoder: DualEncoder) -> Tensor:
    """Three noisy pictures, dark to bright, striped the one way, the other, and not at all."""
    draw = np.random.default_rng(0)
    rows, columns = np.mgrid[:50, :70, :1][:2]
    plain = [40 + 30 * np.sin(rows / 2), 120 + 90 * np.sin(columns / 5), np.full((50, 70, 1), 215)]
    noisy = [picture + draw.normal(0, 20, (50, 70, 3)) for picture in plain]
    images = [Image.fromarray(picture.clip(0, 255).astype(np.uint8)) for picture in noisy]
    return torch.stack([encoder.preprocess(image) for image in images])


def cosines(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(dim=1)


def is_unit(rows: Tensor) -> bool:
    return rows.dtype == torch.float32 and torch.allclose(rows.norm(dim=1), torch.ones(len(rows)), atol=1e-5)


def test_attributes_fit_what_comes_out(encoder: FrozenEncoder) -> None:
    pixels, tokens = some_pixels(encoder), encoder.tokenize(TEXTS)
    assert pixels.shape == (3, 3, *encoder.image_size) and pixels.dtype == torch.float32
    assert encoder.token_embeddings(tokens.ids).shape == (*tokens.ids.shape, encoder.token_width)
    assert tokens.ids.shape == tokens.mask.shape and tokens.mask.dtype == torch.bool
    assert encoder.begin_marks in (0, 1) and encoder.context_length > tokens.ids.shape[1]
    assert 1 < encoder.logit_scale < 1000
    assert [len(part) for part in encoder.image_mean_std] == [3, 3]
    assert encoder.precision == "fp32" and encoder.parameters > 0


def test_features_are_unit_rows_that_tell_inputs_apart(encoder: FrozenEncoder) -> None:
    images, texts = encoder.encode_images(some_pixels(encoder)), encoder.encode_texts(TEXTS)
    for features, count in ((images, 3), (texts, len(TEXTS))):
        assert features.shape == (count, encoder.dim) and is_unit(features)
        assert not features.requires_grad
        assert float((features @ features.T - 2 * torch.eye(count)).max()) < 0.9999


def padded(encoder: FrozenEncoder, tokens: Tokens) -> Tokens:
    """Tokens up to the context length, as the libraries pad them."""
    rest = encoder.context_length - tokens.ids.shape[1]
    ids = torch.nn.functional.pad(tokens.ids, (0, rest), value=encoder._tokenizer.pad_id)
    return Tokens(ids, torch.nn.functional.pad(tokens.mask, (0, rest), value=False))


def test_trimmed_texts_are_the_padded_ones(encoder: FrozenEncoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    assert tokens.ids.shape[1] == int(tokens.lengths.max()) < encoder.context_length
    long = padded(encoder, tokens)
    features = [encoder.encode_embeddings(encoder.token_embeddings(t.ids), t.mask) for t in (tokens, long)]
    torch.testing.assert_close(*features, atol=1e-5, rtol=0)


def test_gradients_of_the_context_are_those_of_padded_prompts(encoder: FrozenEncoder) -> None:
    draw = torch.Generator().manual_seed(0)
    tokens = encoder.tokenize([f"a photo of a {name}" for name in NAMES])
    target = torch.randn(len(NAMES), encoder.dim, generator=draw)
    begin = encoder.begin_marks
    start = encoder.token_embeddings(tokens.ids)[0, begin : begin + 4].detach()
    moved = start + 0.3 * start.std() * torch.randn(start.shape, generator=draw)
    gradients = []
    for t in (tokens, padded(encoder, tokens)):
        context = moved.clone().requires_grad_()
        plain = encoder.token_embeddings(t.ids).detach()
        shared = context.expand(len(NAMES), -1, -1)
        prompts = torch.cat([plain[:, :begin], shared, plain[:, begin + 4 :]], dim=1)
        (encoder.encode_embeddings(prompts, t.mask) * target).sum().backward()
        gradients.append(context.grad)
    scale = float(gradients[0].abs().max())
    assert scale > 0
    assert float((gradients[0] - gradients[1]).abs().max()) < 1e-4 * scale


def test_an_untrained_prompt_is_the_zero_shot_text(encoder: FrozenEncoder) -> None:
    texts = encoder.encode_texts([f"a photo of a {name}." for name in NAMES])
    for position in ("end", "middle", "front"):
        prompts = PromptLearner(encoder, NAMES, position=position)().detach()[0]
        agree = torch.allclose(prompts, texts, atol=1e-5)
        assert agree == (position == "end")
    words = [f"{name} a photo of a." for name in NAMES]
    ordered = encoder.tokenize([f"a photo of a {name}." for name in NAMES])
    # Byte pairs with spaces of their own (Gemma's) have other tokens for a word that begins a text.
    if torch.equal(encoder.tokenize(words).ids.sort().values, ordered.ids.sort().values):
        torch.testing.assert_close(prompts, encoder.encode_texts(words), atol=1e-5, rtol=0)


def test_the_batch_plays_no_part(encoder: FrozenEncoder) -> None:
    pixels = some_pixels(encoder)
    alone = torch.cat([encoder.encode_images(part) for part in pixels.split(1)])
    torch.testing.assert_close(encoder.encode_images(pixels), alone, atol=1e-5, rtol=0)
    alone = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), alone, atol=1e-5, rtol=0)


def test_the_same_input_gives_the_same_bits(
    encoder: FrozenEncoder, load: Callable[[], FrozenEncoder]
) -> None:
    again = load()
    for one, other in ((encoder, encoder), (encoder, again)):
        assert torch.equal(one.encode_texts(TEXTS), other.encode_texts(TEXTS))
        assert torch.equal(one.encode_images(some_pixels(one)), other.encode_images(some_pixels(other)))


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_rounded_towers_give_nearly_the_same_unit_rows(
    precision: str, encoder: FrozenEncoder, load: Callable[[], FrozenEncoder]
) -> None:
    if precision == "fp16" and encoder.parameters > 10**8:
        pytest.skip("CPUs have no fast kernels for fp16; the small instances have it")
    rounded = load().to("cpu", precision)
    assert rounded.precision == precision
    assert all(weight.element_size() == 2 for weight in rounded._model.parameters())
    texts, images = rounded.encode_texts(TEXTS), rounded.encode_images(some_pixels(rounded))
    assert is_unit(texts) and is_unit(images)
    # Random weights at a gain above one let rounding grow from layer to layer, as trained ones do not.
    least = 0.9 if precision == "bf16" else 0.99
    assert float(cosines(texts, encoder.encode_texts(TEXTS)).min()) > least
    assert float(cosines(images, encoder.encode_images(some_pixels(encoder))).min()) > least
    assert not torch.equal(texts, encoder.encode_texts(TEXTS))
    assert rounded.fingerprint == encoder.fingerprint
    context = PromptLearner(rounded, NAMES)
    context().sum().backward()
    gradient = context.context.grad
    assert gradient is not None and gradient.dtype == torch.float32 and gradient.isfinite().all()
    with pytest.raises(UserError, match="load it again"):
        rounded.to("cpu", "fp32")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_another_device_gives_the_same_features(load: Callable[[], FrozenEncoder]) -> None:
    here = load()
    texts, images = here.encode_texts(TEXTS), here.encode_images(some_pixels(here))
    there = here.to("cuda")
    assert there.device.type == "cuda" and there.tokenize(TEXTS).ids.device.type == "cuda"
    torch.testing.assert_close(there.encode_texts(TEXTS), texts, atol=1e-3, rtol=0)
    torch.testing.assert_close(there.encode_images(some_pixels(there)), images, atol=1e-3, rtol=0)


def test_gradients_reach_the_embeddings_and_no_weight(encoder: FrozenEncoder) -> None:
    tokens = encoder.tokenize(TEXTS)
    embeddings = encoder.token_embeddings(tokens.ids).detach().requires_grad_()
    encoder.encode_embeddings(embeddings, tokens.mask)[:, 0].sum().backward()
    gradient = embeddings.grad
    assert gradient is not None
    assert float(gradient[0].abs().sum()) > 0
    assert float(gradient[~tokens.mask].abs().sum()) == 0
    assert all(weight.grad is None and not weight.requires_grad for weight in encoder._model.parameters())
    assert not any(module.training for module in encoder._model.modules())


def test_vocabulary_has_no_special_or_unused_entry_and_each_is_a_text(encoder: FrozenEncoder) -> None:
    entries, tokens = encoder.vocabulary(), encoder.vocabulary_tokens()
    assert len(entries) == len(tokens.ids) == len(tokens.mask) > 100
    marks = (
        "[unused",
        "<unused",
        "[PAD]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "<pad>",
        "<s>",
        "</s>",
        "<start_of",
        "<end_of",
    )
    assert not [entry for entry in entries if entry.startswith(marks)]
    own = tokens.ids[:, encoder.begin_marks]
    assert torch.equal(own.unique(), own) and int(own.max()) < encoder._embedding.weight.shape[0]
    sample = encoder.encode_vocabulary(16)
    assert sample.shape == (16, encoder.dim) and is_unit(sample)
    word = next(entry for entry in entries if entry.strip("▁Ġ").removesuffix("</w>") == "brain")
    row = entries.index(word)
    pair = Tokens(tokens.ids[row : row + 1], tokens.mask[row : row + 1])
    torch.testing.assert_close(
        encoder.encode_tokens(pair), encoder.encode_texts(["brain"]), atol=1e-5, rtol=0
    )


def test_a_text_longer_than_the_context_is_cut_with_a_warning(
    encoder: FrozenEncoder, recwarn: pytest.WarningsRecorder
) -> None:
    long = "lesion " * (encoder.context_length + 3)
    encoder.encode_texts(["brain", "lesion " * 3])
    assert not recwarn.list
    with pytest.warns(UserWarning, match=f"longer than {encoder.context_length} tokens.*cut.*'lesion"):
        tokens = encoder.tokenize(["brain", long])
    assert tokens.ids.shape[1] == encoder.context_length
    with pytest.warns(UserWarning, match=r"2 texts are longer"):
        encoder.tokenize([long, "brain", long])
    with pytest.warns(UserWarning, match="cut"):
        PromptLearner(encoder, [long.strip(), "brain"])


@pytest.mark.parametrize("texts", [[], [""], ["brain", "  \n"], "brain"])
def test_no_text_or_an_empty_one_is_refused(encoder: FrozenEncoder, texts: list[str]) -> None:
    with pytest.raises(UserError, match=r"empty|no text"):
        encoder.tokenize(texts)


def test_a_text_that_the_tokenizer_reads_nothing_of_is_refused(encoder: FrozenEncoder) -> None:
    read = []
    for text in ("...", "!", "\x00", "\u200b", "\ufeff", "\N{BRAIN}", "\u0648\u0631\u0645"):
        try:
            # Beside a longer text, so that padding plays no part.
            ids, mask = encoder.tokenize([text, TEXTS[2]])
        except UserError as error:
            assert repr(text) in str(error) and "empty to the tokenizer" in str(error)
        else:
            bare, _ = encoder._tokenizer(["", TEXTS[2]])
            assert not torch.equal(ids[0], bare[0])
            read.append(text)
            assert is_unit(encoder.encode_tokens(Tokens(ids, mask)))
    assert "\N{BRAIN}" in read and len(read) >= 2
    with pytest.raises(UserError, match=r"'gl\\udce4nzend' is not valid Unicode"):
        encoder.tokenize(["brain", "gl\udce4nzend"])


@pytest.mark.parametrize("tower", ["text", "image"])
def test_weights_that_are_no_numbers_give_a_sentence_and_no_feature(
    tower: str, load: Callable[[], FrozenEncoder]
) -> None:
    damaged = load()
    pixels = some_pixels(damaged)
    for weight in damaged._model.parameters():
        weight.data.fill_(torch.nan)
    with pytest.raises(UserError, match="fp32 that are no numbers; its weights are damaged"):
        damaged.encode_texts(TEXTS) if tower == "text" else damaged.encode_images(pixels)


def test_attention_is_the_fused_one(encoder: FrozenEncoder) -> None:
    """Nothing that keeps a matrix of attention weights: torch's own kernel everywhere."""
    slow = []
    for name, module in encoder._model.named_modules():
        implementation = getattr(getattr(module, "config", None), "_attn_implementation", "sdpa")
        if implementation != "sdpa" or getattr(module, "fused_attn", True) is not True:
            slow.append(name)
    assert not slow


def test_patch_activations_are_a_map(encoder: FrozenEncoder) -> None:
    pixels = some_pixels(encoder)
    maps = encoder.patch_activations(pixels)
    height, width = encoder.image_size
    assert maps.dim() == 4 and maps.dtype == torch.float32 and not maps.requires_grad
    assert len(maps) == 3 and maps.shape[2] * width == maps.shape[3] * height
    assert maps.isfinite().all() and float(maps.std()) > 0
    # A map is of places: what stands in the upper left of the picture changes it there the most.
    pixels[:, :, : height // 4, : width // 4] = 2.0
    change = (encoder.patch_activations(pixels) - maps).abs().sum(dim=1)
    middle = maps.shape[2] // 2
    assert change[:, :middle, :middle].mean() > change[:, middle:, middle:].mean()


def test_a_trace_is_the_image_pass_with_its_graph(encoder: FrozenEncoder) -> None:
    pixels = some_pixels(encoder)
    plain, trace = encoder.encode_images(pixels), encoder.trace_images(pixels)
    torch.testing.assert_close(trace.features.detach(), plain, atol=1e-5, rtol=0)
    assert trace.spatial is not None and len(trace.attentions) in (0, len(trace.block_features))
    for weights in trace.attentions:
        assert trace.tokens is not None and weights.shape[2:] == 2 * (trace.tokens.shape[1],)
        torch.testing.assert_close(weights.sum(dim=-1), torch.ones(weights.shape[:-1]))
    if len(trace.block_features):
        assert torch.equal(trace.block_features[-1], trace.features)
    score = trace.features @ plain[1]
    parts = trace.gradients(score[:1], [trace.spatial, *trace.attentions])
    for part in parts:
        assert part.isfinite().all() and float(part[-3].abs().sum()) > 0
        # A score of the first image does not depend on the others.
        assert float(part[-2:].abs().max()) == 0
    assert torch.equal(encoder.encode_images(pixels), plain)


def test_gradients_of_a_trace_are_slopes_of_the_score(encoder: FrozenEncoder) -> None:
    pixels, draw = some_pixels(encoder)[:1], torch.Generator().manual_seed(1)
    trace = encoder.trace_images(pixels)
    wanted = torch.randn(encoder.dim, generator=draw)
    (gradient,) = trace.gradients(trace.features @ wanted, [trace.spatial])
    assert trace.spatial is not None and encoder._spatial_layer is not None
    step = 1e-2 * gradient[-1:] / gradient[-1:].norm()
    scores = []
    for sign in (1, -1):
        hook = encoder._spatial_layer.register_forward_hook(
            lambda _module, _inputs, output, sign=sign: output + sign * step
        )
        scores.append(float(encoder.encode_images(pixels) @ wanted))
        hook.remove()
    assert (scores[0] - scores[1]) / 2e-2 == pytest.approx(float(gradient[-1:].norm()), rel=0.02)


def test_a_randomised_copy_has_unlearned_from_the_top_down(encoder: FrozenEncoder) -> None:
    if (encoder.parameters or 0) > 5e7:
        pytest.skip("a minute of copying full-size towers; the small ones are of the same classes")
    pixels = some_pixels(encoder)
    plain, name = encoder.encode_images(pixels), encoder.name
    half, whole = encoder.randomised(0.5), encoder.randomised(1.0)
    assert torch.equal(encoder.randomised(0.0).encode_images(pixels), plain)
    assert torch.equal(encoder.encode_images(pixels), plain) and encoder.name == name
    features = half.encode_images(pixels)
    assert torch.equal(features, encoder.randomised(0.5).encode_images(pixels))
    assert not torch.equal(features, encoder.randomised(0.5, seed=1).encode_images(pixels))
    assert len({encoder.fingerprint, half.fingerprint, whole.fingerprint}) == 3
    texts = [copy.encode_texts(["brain"]) for copy in (encoder, half, whole)]
    for text in texts[1:]:
        torch.testing.assert_close(text, texts[0], atol=1e-6, rtol=0)
    changed = {key for key, value in weights_of(encoder).items() if not value.equal(weights_of(half)[key])}
    all_changed = {
        key for key, value in weights_of(encoder).items() if not value.equal(weights_of(whole)[key])
    }
    assert changed < all_changed
    kept = {key: value for key, value in weights_of(encoder).items() if key in all_changed}
    for key, value in kept.items():
        assert value.flatten().sort().values.equal(weights_of(whole)[key].flatten().sort().values)


def weights_of(encoder: FrozenEncoder) -> dict[str, Tensor]:
    return dict(encoder._model.named_parameters())


FINGERPRINTS = """
import json, sys
from vmfcoop import load_backbone
print(json.dumps([load_backbone(f"dir:{folder}", "cpu").fingerprint for folder in sys.argv[1:]]))
"""


def test_fingerprints_are_equal_over_processes_and_all_different(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    folders = [write(name, tmp_path_factory.mktemp("backbone")) for name in TINY]
    here = [load_backbone(f"dir:{folder}", "cpu").fingerprint for folder in folders]
    done = subprocess.run(
        [sys.executable, "-c", FINGERPRINTS, *map(str, folders)],
        env={**os.environ, "PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == here
    assert len(set(here)) == len(here)


def test_fingerprint_changes_with_one_weight_and_with_the_preprocessing(
    encoder: FrozenEncoder, load: Callable[[], FrozenEncoder]
) -> None:
    other = load()
    last = list(other._model.parameters())[-1]
    last.data.view(-1)[-1] += 1e-3
    assert other.fingerprint != encoder.fingerprint
    other = load()
    other._preprocessing = dataclasses.replace(other._preprocessing, interpolation="nearest")
    assert other.fingerprint != encoder.fingerprint
