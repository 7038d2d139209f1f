"""PMC-CLIP from its three published files, against a forward pass written from the published description."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.random_backbone import vocabulary
from benchmarks.random_checkpoints import CLIP_RESNET50, clip_resnet_shapes, write_pmc_clip
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import normalize

from tests.backbones.published_forward import (
    attention_pool,
    bert_pooler,
    bert_states,
    clip_resnet_maps,
    under,
)
from vmfcoop.backbones.pmc_clip import FAMILY, PmcClipEncoder, load_folder, recognises
from vmfcoop.errors import UserError

FILES = ("image_encoder(resnet50).pth", "text_encoder.pth", "text_projection_layer.pth")
TEXTS = [
    "a photo of a glioma tumor.",
    "brain",
    "an ultrasound scan of a benign breast lesion, dark and round",
]
CLOSE = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pmc_clip(tmp_path_factory.mktemp("pmc_clip") / "tiny", tiny=True)


@pytest.fixture(scope="module")
def encoder(folder: Path) -> PmcClipEncoder:
    return load_folder(folder)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(folder, tmp_path / "copy")


@pytest.fixture(scope="module")
def trained(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> PmcClipEncoder:
    """The same weights in the pass of the authors' training code."""
    copy = shutil.copytree(folder, tmp_path_factory.mktemp("pmc_clip") / "training")
    (copy / "pmc_clip_config.json").write_text('{"forward": "training"}')
    return load_folder(copy)


def stored(folder: Path, file: str) -> Any:
    return torch.load(folder / file, weights_only=True)


def pixels_for(encoder: PmcClipEncoder, count: int = 3) -> Tensor:
    """Pictures that differ at every scale, as pixels."""
    draw = torch.Generator().manual_seed(1)
    coarse = nn.functional.interpolate(torch.randn(count, 3, 4, 4, generator=draw), encoder.image_size)
    return coarse + 0.3 * torch.randn(count, 3, *encoder.image_size, generator=draw)


def published_images(folder: Path, pixels: Tensor, heads: int = 8) -> Tensor:
    state = under(stored(folder, FILES[0]), "")
    return normalize(attention_pool(state, clip_resnet_maps(state, pixels), heads), dim=1)


def published_texts(folder: Path, ids: Tensor, mask: Tensor) -> Tensor:
    """BiomedCoOp's text encoder: pooler output of the masked text, times the projection."""
    state = under(stored(folder, FILES[1]), "")
    last = bert_states(state, state["embeddings.word_embeddings.weight"][ids], mask)[-1]
    return normalize(bert_pooler(state, last) @ stored(folder, FILES[2]).float(), dim=1)


def padded(encoder: PmcClipEncoder, texts: list[str]) -> tuple[Tensor, Tensor]:
    """Ids and mask as the published code has them: padded with zeros to 77 tokens."""
    tokens = encoder.tokenize(texts)
    rest = (0, 77 - tokens.ids.shape[1])
    return nn.functional.pad(tokens.ids, rest), nn.functional.pad(tokens.mask, rest)


def test_images_are_the_published_features(encoder: PmcClipEncoder, folder: Path) -> None:
    pixels = pixels_for(encoder)
    features = encoder.encode_images(pixels)
    torch.testing.assert_close(features, published_images(folder, pixels), **CLOSE)
    assert float((features - published_images(folder, pixels, heads=32)).abs().max()) > 1e-4


def test_texts_are_the_published_features(encoder: PmcClipEncoder, folder: Path) -> None:
    ids, mask = padded(encoder, TEXTS)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), published_texts(folder, ids, mask), **CLOSE)


def test_the_training_pass_is_chosen_by_a_file(trained: PmcClipEncoder, folder: Path) -> None:
    pixels = pixels_for(trained)
    torch.testing.assert_close(
        trained.encode_images(pixels), published_images(folder, pixels, heads=32), **CLOSE
    )
    state = under(stored(folder, FILES[1]), "")
    ids, _ = padded(trained, TEXTS)
    last = bert_states(state, state["embeddings.word_embeddings.weight"][ids])[-1]
    expected = normalize(last[:, 0] @ stored(folder, FILES[2]), dim=1)
    torch.testing.assert_close(trained.encode_texts(TEXTS), expected, **CLOSE)


def test_the_two_passes_have_two_fingerprints(
    encoder: PmcClipEncoder, trained: PmcClipEncoder, copied: Path
) -> None:
    assert encoder.fingerprint == load_folder(copied).fingerprint != trained.fingerprint
    (copied / "pmc_clip_config.json").write_text('{"forward": "biomedcoop"}')
    assert load_folder(copied).fingerprint == encoder.fingerprint


def test_trimmed_texts_and_their_gradients_are_the_padded_ones(
    encoder: PmcClipEncoder, trained: PmcClipEncoder
) -> None:
    for each in (encoder, trained):
        tokens = each.tokenize(TEXTS)
        ids, mask = padded(each, TEXTS)
        short = each.token_embeddings(tokens.ids).requires_grad_()
        long = each.token_embeddings(ids).requires_grad_()
        target = torch.randn(len(TEXTS), each.dim, generator=torch.Generator().manual_seed(0))
        trimmed, full = each.encode_embeddings(short, tokens.mask), each.encode_embeddings(long, mask)
        (trimmed * target).sum().backward()
        (full * target).sum().backward()
        torch.testing.assert_close(trimmed, full, **CLOSE)
        assert short.grad is not None and long.grad is not None
        scale = float(short.grad.abs().max())
        assert scale > 1e-3
        difference = (short.grad - long.grad[:, : short.shape[1]]).abs().max()
        assert float(difference) < 1e-5 * scale


def test_a_text_and_an_image_are_encoded_alike_in_any_batch(encoder: PmcClipEncoder) -> None:
    alone = torch.cat([encoder.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(encoder.encode_texts(TEXTS), alone, **CLOSE)
    pixels = pixels_for(encoder)
    single = torch.cat([encoder.encode_images(row[None]) for row in pixels])
    torch.testing.assert_close(encoder.encode_images(pixels), single, **CLOSE)


def test_attributes_say_what_the_files_say(encoder: PmcClipEncoder, folder: Path) -> None:
    assert (encoder.dim, encoder.token_width, encoder.begin_marks) == (48, 128, 1)
    assert (encoder.context_length, encoder.image_size) == (77, (64, 64))
    assert encoder.logit_scale == pytest.approx(math.exp(4.4292))
    assert encoder.name == f"dir:{folder}" and load_folder(folder, "pmc-clip").name == "pmc-clip"
    assert not any(weight.requires_grad for weight in encoder._model.parameters())
    assert not any(module.training for module in encoder._model.modules())


def test_an_image_is_resized_by_its_shorter_side_and_cropped(encoder: PmcClipEncoder) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (90, 130, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    left = round((92 - 64) / 2)
    crop = image.resize((int(64 * 130 / 90), 64), Image.Resampling.BICUBIC).crop((left, 0, left + 64, 64))
    mean, std = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])
    expected = (np.asarray(crop) / 255 - mean) / std
    np.testing.assert_allclose(encoder.preprocess(image).numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_patch_activations_are_the_last_stage(encoder: PmcClipEncoder, folder: Path) -> None:
    pixels = pixels_for(encoder)
    expected = clip_resnet_maps(under(stored(folder, FILES[0]), ""), pixels)
    assert expected.shape == (3, 256, 2, 2) and float(expected.std()) > 0.1
    torch.testing.assert_close(encoder.patch_activations(pixels), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_stays_near(precision: Any, encoder: PmcClipEncoder, folder: Path) -> None:
    half = load_folder(folder).to("cpu", precision)
    assert half.precision == precision and half.fingerprint == encoder.fingerprint
    pixels = pixels_for(encoder)
    for ours, exact in (
        (half.encode_images(pixels), encoder.encode_images(pixels)),
        (half.encode_texts(TEXTS), encoder.encode_texts(TEXTS)),
    ):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.norm(dim=1), torch.ones(len(ours)))
        difference = float((ours - exact).abs().max())
        assert 0 < difference < 0.03


def test_only_folders_with_its_files_are_recognised(
    folder: Path, tiny_bert_folder: Path, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    assert recognises(folder) and FAMILY.recognises(folder)
    assert not any(recognises(other) for other in (tiny_bert_folder, tiny_clip_folder, tmp_path))
    (tmp_path / "text_encoder.pth").write_bytes(b"")
    assert not recognises(tmp_path)


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(file: str, copied: Path) -> None:
    (copied / file).unlink()
    assert recognises(copied)
    with pytest.raises(UserError) as caught:
        load_folder(copied)
    assert file in str(caught.value)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_truncated_file_is_refused(file: str, share: float, copied: Path) -> None:
    content = (copied / file).read_bytes()
    (copied / file).write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError) as caught:
        load_folder(copied)
    assert file in str(caught.value) and "damaged" in str(caught.value)


class Bomb:
    """A pickle that would make a file if it were run."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("file", FILES)
def test_a_file_with_code_is_refused_and_not_run(file: str, copied: Path, tmp_path: Path) -> None:
    torch.save({"weight": Bomb(tmp_path / "ran")}, copied / file)
    with pytest.raises(UserError, match="hold more than tensors"):
        load_folder(copied)
    assert not (tmp_path / "ran").exists()


def change(folder: Path, file: str, edit: Callable[[dict[str, Tensor]], Any]) -> None:
    state = stored(folder, file)
    edit(state)
    torch.save(state, folder / file)


def image_of_other_shape(folder: Path) -> None:
    change(folder, FILES[0], lambda state: state.update({"layer3.0.conv2.weight": torch.zeros(9, 9, 3, 3)}))


def image_without_attention_pool(folder: Path) -> None:
    change(folder, FILES[0], lambda state: [state.pop(k) for k in list(state) if "attnpool" in k])


def image_with_more(folder: Path) -> None:
    change(folder, FILES[0], lambda state: state.update(head=torch.zeros(3)))


def text_without_a_layer_norm(folder: Path) -> None:
    change(folder, FILES[1], lambda state: state.pop("encoder.layer.2.output.LayerNorm.bias"))


def text_with_flat_embeddings(folder: Path) -> None:
    name = "embeddings.word_embeddings.weight"
    change(folder, FILES[1], lambda state: state.update({name: torch.zeros(5)}))


def projection_of_other_width(folder: Path) -> None:
    torch.save(torch.zeros(128, 40), folder / FILES[2])


def projection_in_a_dictionary(folder: Path) -> None:
    torch.save({"weight": torch.zeros(128, 48)}, folder / FILES[2])


@pytest.mark.parametrize(
    ("edit", "file"),
    [
        (image_of_other_shape, FILES[0]),
        (image_without_attention_pool, FILES[0]),
        (image_with_more, FILES[0]),
        (text_without_a_layer_norm, FILES[1]),
        (text_with_flat_embeddings, FILES[1]),
        (projection_of_other_width, FILES[2]),
        (projection_in_a_dictionary, FILES[2]),
    ],
)
def test_weights_of_another_model_are_refused(edit: Callable[[Path], None], file: str, copied: Path) -> None:
    edit(copied)
    with pytest.raises(UserError) as caught:
        load_folder(copied)
    assert file in str(caught.value)


def test_a_projection_stored_as_a_parameter_loads(copied: Path, encoder: PmcClipEncoder) -> None:
    torch.save(nn.Parameter(stored(copied, FILES[2])), copied / FILES[2])
    assert load_folder(copied).fingerprint == encoder.fingerprint


@pytest.mark.parametrize("content", ['{"forward": "other"}', "{}", "[1]", "{"])
def test_an_unknown_pass_is_refused(content: str, copied: Path) -> None:
    (copied / "pmc_clip_config.json").write_text(content)
    with pytest.raises(UserError, match="pmc_clip_config.json"):
        load_folder(copied)


def test_without_a_tokenizer_the_right_one_is_named(copied: Path) -> None:
    (copied / "vocab.txt").unlink()
    with pytest.raises(UserError, match="microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract"):
        load_folder(copied)


def test_a_tokenizer_of_a_larger_vocabulary_or_a_damaged_one_is_refused(copied: Path) -> None:
    with (copied / "vocab.txt").open("a") as file:
        file.write("further\n")
    rows = len(vocabulary())
    expected = f"has {rows + 1} entries and the text tower {rows}; put the tokenizer files of"
    with pytest.raises(UserError, match=expected):
        load_folder(copied)
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        load_folder(copied)


def test_a_text_longer_than_the_context_is_cut_with_a_warning(encoder: PmcClipEncoder) -> None:
    with pytest.warns(UserWarning, match="longer than 77 tokens"):
        tokens = encoder.tokenize(["brain " * 100])
    assert tokens.ids.shape == (1, 77) and int(tokens.ids[0, -1]) == 3


def test_the_published_layout_has_the_names_of_the_authors_code() -> None:
    names = dict(clip_resnet_shapes(CLIP_RESNET50))
    assert len(names) == 339
    assert names["attnpool.positional_embedding"] == (50, 2048)
    assert names["layer4.2.conv3.weight"] == (2048, 512, 1, 1)
    assert names["layer2.0.downsample.0.weight"] == (512, 256, 1, 1)


@pytest.fixture
def full_size(tmp_path: Path) -> Iterator[Path]:
    folder = write_pmc_clip(tmp_path / "full", half=True)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.slow
def test_the_published_architecture_is_the_published_forward(full_size: Path) -> None:
    encoder = load_folder(full_size)
    assert (encoder.dim, encoder.token_width, encoder.image_size) == (768, 768, (224, 224))
    pixels = pixels_for(encoder, 2)
    torch.testing.assert_close(encoder.encode_images(pixels), published_images(full_size, pixels), **CLOSE)
    ids, mask = padded(encoder, TEXTS)
    torch.testing.assert_close(encoder.encode_texts(TEXTS), published_texts(full_size, ids, mask), **CLOSE)
    assert encoder.patch_activations(pixels).shape == (2, 2048, 7, 7)
