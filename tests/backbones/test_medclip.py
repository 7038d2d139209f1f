"""MedCLIP from its published checkpoint, against a forward pass written from the published description."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import pytest
import torch
from benchmarks.random_checkpoints import SWIN_TINY, swin_shapes, write_medclip, write_pmc_clip
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    VisionTextDualEncoderModel,
)

from tests.backbones.published_forward import bert_states, linear, resnet_maps, swin_maps, under
from tests.backbones.test_pmc_clip import CLOSE, TEXTS, Bomb
from vmfcoop.backbones.medclip import FAMILY, MedClipEncoder, grey_square, load_folder, recognises
from vmfcoop.errors import UserError

FILE = "pytorch_model.bin"
MEAN, STD = 0.5862785803043838, 0.27950088968644304
Vision = Literal["swin", "resnet"]
VISIONS: tuple[Vision, ...] = ("swin", "resnet")


class Case(NamedTuple):
    vision: Vision
    folder: Path
    encoder: MedClipEncoder


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> dict[Vision, Case]:
    root = tmp_path_factory.mktemp("medclip")
    folders = {vision: write_medclip(root / vision, vision, tiny=True) for vision in VISIONS}
    return {vision: Case(vision, folder, load_folder(folder)) for vision, folder in folders.items()}


@pytest.fixture(params=VISIONS)
def case(request: pytest.FixtureRequest, cases: dict[Vision, Case]) -> Case:
    return cases[request.param]


@pytest.fixture
def copied(cases: dict[Vision, Case], tmp_path: Path) -> Path:
    return shutil.copytree(cases["swin"].folder, tmp_path / "copy")


def stored(folder: Path) -> dict[str, Tensor]:
    return torch.load(folder / FILE, weights_only=True)  # type: ignore[no-any-return]


def grey_pixels(count: int = 3) -> Tensor:
    """Grey pictures that differ at every scale, as pixels of three equal channels."""
    draw = torch.Generator().manual_seed(1)
    coarse = nn.functional.interpolate(torch.randn(count, 1, 8, 8, generator=draw), (224, 224))
    return (coarse + 0.3 * torch.randn(count, 1, 224, 224, generator=draw)).expand(-1, 3, -1, -1)


def published_maps(folder: Path, pixels: Tensor) -> Tensor:
    vision = under(stored(folder), "vision_model.model.")
    return swin_maps(vision, pixels) if "layernorm.weight" in vision else resnet_maps(vision, pixels)


def published_images(folder: Path, pixels: Tensor) -> Tensor:
    vision = under(stored(folder), "vision_model.")
    projection = "projection_head" if "projection_head.weight" in vision else "model.fc"
    return normalize(linear(vision, projection, published_maps(folder, pixels).mean(dim=(2, 3))), dim=1)


def published_texts(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    """The published text model: mean over all positions, padding too, of hidden states 1, 2 and the last."""
    bert = under(stored(folder), "text_model.model.")
    states = bert_states(bert, bert["embeddings.word_embeddings.weight"][ids], mask)
    mean = torch.stack([states[1], states[2], states[-1]]).mean(dim=2).mean(dim=0)
    return normalize(linear(under(stored(folder), "text_model."), "projection_head", mean), dim=1)


def published_pixels(image: Image.Image) -> np.ndarray:
    """Wang et al.'s processor: grey, centred on a black square of at least 224 pixels, resized by bicubic."""
    width, height = image.size
    side = max(224, width, height)
    square = Image.new("L", (side, side), 0)
    square.paste(image, (int((side - width) / 2), int((side - height) / 2)))
    small = np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)) / 255
    return np.stack([(small - MEAN) / STD] * 3)


def test_images_are_the_published_features(case: Case) -> None:
    pixels = grey_pixels()
    torch.testing.assert_close(
        case.encoder.encode_images(pixels), published_images(case.folder, pixels), **CLOSE
    )


def test_a_text_alone_is_the_published_feature(case: Case) -> None:
    for text in TEXTS:
        tokens = case.encoder.tokenize([text])
        assert bool(tokens.mask.all())
        expected = published_texts(case.folder, tokens.ids, tokens.mask)
        torch.testing.assert_close(case.encoder.encode_texts([text]), expected, **CLOSE)


def test_a_text_in_a_batch_is_the_text_alone_which_the_published_code_does_not_keep(case: Case) -> None:
    alone = torch.cat([case.encoder.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(case.encoder.encode_texts(TEXTS), alone, **CLOSE)
    tokens = case.encoder.tokenize(TEXTS)
    together = published_texts(case.folder, tokens.ids, tokens.mask)
    difference = (together - alone).abs().amax(dim=1)
    longest = int(tokens.lengths.argmax())
    assert float(difference[longest]) < 1e-5
    assert all(float(value) > 1e-3 for row, value in enumerate(difference) if row != longest)


def test_trimmed_texts_and_their_gradients_are_the_padded_ones(case: Case) -> None:
    tokens = case.encoder.tokenize(TEXTS)
    rest = 77 - tokens.ids.shape[1]
    ids, mask = nn.functional.pad(tokens.ids, (0, rest)), nn.functional.pad(tokens.mask, (0, rest))
    short = case.encoder.token_embeddings(tokens.ids).requires_grad_()
    long = case.encoder.token_embeddings(ids).requires_grad_()
    target = torch.randn(len(TEXTS), 512, generator=torch.Generator().manual_seed(0))
    trimmed, full = (
        case.encoder.encode_embeddings(short, tokens.mask),
        case.encoder.encode_embeddings(long, mask),
    )
    (trimmed * target).sum().backward()
    (full * target).sum().backward()
    torch.testing.assert_close(trimmed, full, **CLOSE)
    assert short.grad is not None and long.grad is not None
    scale = float(short.grad.abs().max())
    assert scale > 1e-3
    assert float((short.grad - long.grad[:, : short.shape[1]]).abs().max()) < 1e-5 * scale
    assert float(long.grad[~mask].abs().max()) == 0


def test_an_image_is_encoded_alike_in_any_batch(case: Case) -> None:
    pixels = grey_pixels(2)
    single = torch.cat([case.encoder.encode_images(row[None]) for row in pixels])
    torch.testing.assert_close(case.encoder.encode_images(pixels), single, **CLOSE)


def test_attributes_say_what_the_files_say(case: Case) -> None:
    encoder = case.encoder
    assert (encoder.dim, encoder.token_width, encoder.begin_marks) == (512, 128, 1)
    assert (encoder.context_length, encoder.image_size) == (77, (224, 224))
    assert encoder.image_mean_std == ((MEAN,) * 3, (STD,) * 3)
    assert encoder.logit_scale == pytest.approx(math.exp(4.0))
    assert encoder.name == f"dir:{case.folder}" and load_folder(case.folder, "medclip").name == "medclip"
    assert not any(weight.requires_grad for weight in encoder._model.parameters())
    assert not any(module.training for module in encoder._model.modules())


def test_the_logit_scale_is_clamped_as_published(copied: Path) -> None:
    for stored_log, log in ((6.0, 4.6052), (-1.0, 0.0)):
        change(copied, lambda state, value=stored_log: state.update(logit_scale=torch.tensor(value)))
        assert load_folder(copied).logit_scale == pytest.approx(math.exp(log))


@pytest.mark.parametrize("size", [(300, 260), (250, 401), (224, 224), (90, 41)])
def test_images_are_preprocessed_as_published(size: tuple[int, int], cases: dict[Vision, Case]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    ours = cases["swin"].encoder.preprocess(image)
    np.testing.assert_allclose(ours.numpy(), published_pixels(image), atol=1e-5)
    assert grey_square(image).size == (max(224, *size),) * 2


def test_a_colour_view_is_encoded_by_its_luma(case: Case) -> None:
    colours = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(2))
    luma = (0.299 * colours[:, :1] + 0.587 * colours[:, 1:2] + 0.114 * colours[:, 2:]).expand_as(colours)
    features = case.encoder.encode_images(colours)
    torch.testing.assert_close(features, case.encoder.encode_images(luma), **CLOSE)
    assert (
        float((features - case.encoder.encode_images(colours[:, :1].expand_as(colours))).abs().max()) > 1e-4
    )


def test_texts_are_lowered_although_no_file_says_so(cases: dict[Vision, Case]) -> None:
    folder, encoder = cases["swin"].folder, cases["swin"].encoder
    assert sorted(path.name for path in folder.iterdir()) == [FILE, "vocab.txt"]
    assert torch.equal(encoder.tokenize(["Glioma BRAIN"]).ids, encoder.tokenize(["glioma brain"]).ids)
    assert len(encoder.tokenize(["glioma brain"]).ids[0]) == 4


def test_patch_activations_are_the_last_maps(case: Case) -> None:
    pixels = grey_pixels(1)
    expected = published_maps(case.folder, pixels)
    assert expected.shape == (1, {"swin": 128, "resnet": 2048}[case.vision], 7, 7)
    scale = float(expected.abs().max())
    torch.testing.assert_close(case.encoder.patch_activations(pixels), expected, atol=1e-5 * scale, rtol=0)
    assert float(expected.std(dim=(2, 3)).mean()) > 1e-2 * scale


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(precision: Any, case: Case) -> None:
    half = load_folder(case.folder).to("cpu", precision)
    assert half.precision == precision and half.fingerprint == case.encoder.fingerprint
    pixels = grey_pixels(1)
    for ours, exact in (
        (half.encode_images(pixels), case.encoder.encode_images(pixels)),
        (half.encode_texts(TEXTS), case.encoder.encode_texts(TEXTS)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours)))
        assert 0 < float((ours - exact).abs().max()) < 0.03


def test_both_checkpoints_are_recognised_however_they_were_written(
    case: Case, tmp_path: Path, copied: Path
) -> None:
    assert recognises(case.folder) and FAMILY.recognises(case.folder)
    torch.save(stored(case.folder), tmp_path / FILE, _use_new_zipfile_serialization=False)
    assert recognises(tmp_path)
    content = (case.folder / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[: len(content) // 2])
    assert recognises(tmp_path)


def test_other_models_are_not_recognised(
    tiny_bert_folder: Path, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    clip = CLIPModel(CLIPConfig(text_config={**sizes, "vocab_size": 60}, vision_config=sizes))
    bert = BertModel(BertConfig(**sizes, vocab_size=60))
    dual = VisionTextDualEncoderModel(
        vision_model=CLIPVisionModel(CLIPVisionConfig(**sizes)), text_model=bert
    )
    for number, model in enumerate((clip, dual, bert)):
        folder = tmp_path / str(number)
        model.config.save_pretrained(folder)
        torch.save(model.state_dict(), folder / FILE)
        assert not recognises(folder)
    pmc_clip = write_pmc_clip(tmp_path / "pmc_clip", tiny=True)
    assert not any(recognises(other) for other in (tiny_bert_folder, tiny_clip_folder, pmc_clip, tmp_path))


def test_a_file_with_code_is_neither_run_to_recognise_nor_to_load(copied: Path, tmp_path: Path) -> None:
    torch.save({"text_model.projection_head.weight": Bomb(tmp_path / "ran")}, copied / FILE)
    assert recognises(copied)
    with pytest.raises(UserError, match="hold more than tensors"):
        load_folder(copied)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.3, 0.99])
def test_a_truncated_file_is_refused(share: float, copied: Path) -> None:
    content = (copied / FILE).read_bytes()
    (copied / FILE).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"pytorch_model.bin' are damaged"):
        load_folder(copied)


def change(folder: Path, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    state = stored(folder)
    edit(state)
    torch.save(state, folder / FILE)


SWIN_BLOCK = "vision_model.model.encoder.layers.2.blocks.1"
EDITS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "no key projection": lambda state: state.pop(f"{SWIN_BLOCK}.attention.self.key.weight"),
    "no query projection": lambda state: state.pop(f"{SWIN_BLOCK}.attention.self.query.bias"),
    "no bias table": lambda state: state.pop(
        "vision_model.model.encoder.layers.1.blocks.0.attention.self.relative_position_bias_table"
    ),
    "no merging": lambda state: state.pop("vision_model.model.encoder.layers.0.downsample.reduction.weight"),
    "no image projection": lambda state: state.pop("vision_model.projection_head.weight"),
    "no text projection": lambda state: state.pop("text_model.projection_head.weight"),
    "no text layer norm": lambda state: state.pop("text_model.model.encoder.layer.1.output.LayerNorm.bias"),
    "no logit scale": lambda state: state.pop("logit_scale"),
    "more than the model": lambda state: state.update({"text_model.projection_head.bias": torch.zeros(512)}),
    "another shape": lambda state: state.update({f"{SWIN_BLOCK}.output.dense.weight": torch.zeros(64, 3)}),
    "another number of axes": lambda state: state.update(
        {"vision_model.model.embeddings.patch_embeddings.projection.weight": torch.zeros(16)}
    ),
    "two widths": lambda state: state.update({"vision_model.projection_head.weight": torch.zeros(256, 128)}),
}


@pytest.mark.parametrize("name", EDITS)
def test_weights_of_another_model_are_refused(name: str, copied: Path) -> None:
    change(copied, EDITS[name])
    with pytest.raises(UserError, match=r"pytorch_model.bin"):
        load_folder(copied)


def test_a_missing_checkpoint_or_tokenizer_is_named(copied: Path) -> None:
    (copied / "vocab.txt").unlink()
    with pytest.raises(UserError, match="emilyalsentzer/Bio_ClinicalBERT"):
        load_folder(copied)
    (copied / FILE).unlink()
    with pytest.raises(UserError, match=FILE):
        load_folder(copied)
    with pytest.raises(UserError, match="does not exist"):
        load_folder(copied / "nowhere")


def test_fingerprints_tell_weights_apart(cases: dict[Vision, Case], copied: Path) -> None:
    first = cases["swin"].encoder.fingerprint
    assert load_folder(copied).fingerprint == first != cases["resnet"].encoder.fingerprint
    change(copied, lambda state: state["vision_model.projection_head.weight"][0, 0].add_(1e-6))
    assert load_folder(copied).fingerprint != first


def test_the_published_layout_has_the_counted_tensors() -> None:
    """MedCLIP-ViT's checkpoint has 231 tensors in its image tower, 12 of them index buffers."""
    names = dict(swin_shapes(SWIN_TINY))
    assert len(names) == 231
    assert sum("relative_position_index" in name for name in names) == 12
    assert names["encoder.layers.3.blocks.1.attention.self.relative_position_bias_table"] == (169, 24)


@pytest.fixture(params=VISIONS)
def full_size(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    folder = write_medclip(tmp_path / "full", request.param, half=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_published_architecture_is_the_published_forward(full_size: Path) -> None:
    encoder = load_folder(full_size)
    assert (encoder.dim, encoder.token_width) == (512, 768)
    pixels = grey_pixels(2)
    torch.testing.assert_close(encoder.encode_images(pixels), published_images(full_size, pixels), **CLOSE)
    for text in TEXTS[:2]:
        tokens = encoder.tokenize([text])
        expected = published_texts(full_size, tokens.ids, tokens.mask)
        torch.testing.assert_close(encoder.encode_texts([text]), expected, **CLOSE)
    assert encoder.patch_activations(pixels).shape[2:] == (7, 7)
