"""The open_clip family against open_clip itself: same features, same gradients, nothing asked of the hub."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import open_clip
import pytest
import torch
from benchmarks.random_backbone import BIOMEDCLIP, build, write_biomedclip, write_folder
from open_clip.tokenizer import HFTokenizer
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import normalize
from transformers import BertConfig

from tests.backbones.instances import SIGLIP
from tests.backbones.instances import write as write_instance
from tests.conftest import TINY_BERT_CONFIG, TINY_CLIP_CONFIG, tiny_bert_shape
from vmfcoop.backbones import Tokens
from vmfcoop.backbones.open_clip import CHECKPOINT_FILE, OpenClipEncoder, checkpoint_config, load_folder
from vmfcoop.errors import UserError
from vmfcoop.methods.prompt import PromptLearner

NAMES = ("glioma tumor", "normal brain", "squamous cell carcinoma of the lung")
TEXTS = (
    "a photo of a glioma tumor.",
    "brain",
    "A dark, ring-enhancing lesion with irregular borders and edema! 3 cm",
    "a",
)
SIGLIP_CONFIG = {
    **TINY_CLIP_CONFIG,
    "init_logit_bias": -10,
    "text_cfg": {
        **TINY_CLIP_CONFIG["text_cfg"],
        "context_length": 16,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_bias": True,
    },
}
END_MARK_CONFIG = {
    **TINY_CLIP_CONFIG,
    "text_cfg": {**TINY_CLIP_CONFIG["text_cfg"], "pool_type": "eos", "eos_id": 49407},
}
LAST_CONFIG = {**TINY_CLIP_CONFIG, "text_cfg": {**TINY_CLIP_CONFIG["text_cfg"], "pool_type": "last"}}


class Pair(NamedTuple):
    """Our encoder, and open_clip's own model and tokenizer over the same files."""

    ours: OpenClipEncoder
    model: Any
    tokenizer: Any


def hub_pair(folder: Path) -> Pair:
    """open_clip's own loader of a local hub folder, for text towers of its own."""
    model = open_clip.create_model(f"local-dir:{folder}", force_custom_text=True).eval()
    return Pair(load_folder(folder), model, open_clip.get_tokenizer(f"local-dir:{folder}"))


def bert_pair(folder: Path, model_cfg: dict[str, Any], bert: BertConfig, state: dict[str, Tensor]) -> Pair:
    """open_clip's own modules, its loader for them being one that asks the hub."""
    model = build(model_cfg, bert, seed=1)
    model.load_state_dict(state)
    length = model_cfg["text_cfg"]["context_length"]
    return Pair(load_folder(folder), model, HFTokenizer(str(folder), context_length=length))


@pytest.fixture(scope="module")
def bert_towers(tiny_bert_folder: Path) -> Pair:
    state = load_file(tiny_bert_folder / "open_clip_model.safetensors")
    return bert_pair(tiny_bert_folder, TINY_BERT_CONFIG, tiny_bert_shape(), state)


@pytest.fixture(scope="module")
def clip_towers(tiny_clip_folder: Path) -> Pair:
    return hub_pair(tiny_clip_folder)


@pytest.fixture(scope="module")
def siglip_towers(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return hub_pair(write_folder(tmp_path_factory.mktemp("siglip"), SIGLIP_CONFIG))


@pytest.fixture(scope="module")
def published_siglip_towers(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """As open_clip publishes SigLIP: a timm tower pooled by attention and a tokenizer of transformers."""
    folder = write_instance("open_clip-siglip", tmp_path_factory.mktemp("siglip"))
    model = build(SIGLIP, seed=0)
    model.load_state_dict(load_file(folder / "open_clip_model.safetensors"))
    tokenizer = HFTokenizer(str(folder), context_length=24, clean="canonicalize")
    return Pair(load_folder(folder), model, tokenizer)


@pytest.fixture(scope="module")
def end_mark_towers(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return hub_pair(write_folder(tmp_path_factory.mktemp("end_mark"), END_MARK_CONFIG))


@pytest.fixture(scope="module")
def last_towers(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return hub_pair(write_folder(tmp_path_factory.mktemp("last"), LAST_CONFIG))


@pytest.fixture(scope="module")
def biomedclip_towers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """The full architecture, in a folder that lacks ``config.json`` as the published one does."""
    folder = write_biomedclip(tmp_path_factory.mktemp("biomedclip"), half=True)
    assert not (folder / "config.json").exists()
    state = torch.load(folder / "open_clip_pytorch_model.bin", weights_only=True)
    state.pop("text.transformer.embeddings.position_ids")
    yield bert_pair(folder, BIOMEDCLIP, BertConfig(), state)
    shutil.rmtree(folder)


FAMILIES = (
    "bert_towers",
    "clip_towers",
    "siglip_towers",
    "published_siglip_towers",
    "end_mark_towers",
    "last_towers",
    pytest.param("biomedclip_towers", marks=pytest.mark.slow),
)


@pytest.fixture(params=FAMILIES)
def towers(request: pytest.FixtureRequest) -> Pair:
    return request.getfixturevalue(request.param)  # type: ignore[no-any-return]


def some_images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 50, 70, 3), dtype=np.uint8)
    return [Image.fromarray(picture) for picture in pixels]


def padded_features(towers: Pair, embeddings: Tensor, ids: Tensor) -> Tensor:
    """open_clip's own text pass over the full context length, with its embedding layer's output replaced."""
    text = towers.model.text
    layer = text.transformer.get_input_embeddings() if hasattr(text, "config") else text.token_embedding
    hook = layer.register_forward_hook(lambda *_: embeddings)
    try:
        return towers.model.encode_text(ids, normalize=True)  # type: ignore[no-any-return]
    finally:
        hook.remove()


def test_image_features_are_open_clips(towers: Pair) -> None:
    pixels = torch.stack([towers.ours.preprocess(image) for image in some_images()])
    assert pixels.shape == (2, 3, *towers.ours.image_size)
    with torch.no_grad():
        expected = towers.model.encode_image(pixels, normalize=True)
    features = towers.ours.encode_images(pixels)
    assert features.shape == (2, towers.ours.dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(features[0], features[1], atol=1e-3)


def test_preprocessing_is_open_clips(clip_towers: Pair, tiny_clip_folder: Path) -> None:
    _, _, transform = open_clip.create_model_and_transforms(
        f"local-dir:{tiny_clip_folder}", force_custom_text=True
    )
    for image in some_images():
        torch.testing.assert_close(clip_towers.ours.preprocess(image), transform(image))


def test_text_features_are_open_clips_at_full_context_length(towers: Pair) -> None:
    ids = towers.tokenizer(list(TEXTS))
    assert ids.shape[1] == towers.ours.context_length
    with torch.no_grad():
        expected = towers.model.encode_text(ids, normalize=True)
    features = towers.ours.encode_texts(TEXTS)
    assert features.shape == (len(TEXTS), towers.ours.dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert float((features @ features.T - torch.eye(len(TEXTS))).max()) < 0.999


def test_texts_longer_than_the_context_are_cut_as_open_clip_cuts_them(bert_towers: Pair) -> None:
    long = "a dark lesion with irregular borders " * 30
    with torch.no_grad():
        expected = bert_towers.model.encode_text(bert_towers.tokenizer([long]), normalize=True)
    assert bert_towers.ours.tokenize([long]).ids.shape[1] == bert_towers.ours.context_length
    torch.testing.assert_close(bert_towers.ours.encode_texts([long]), expected, atol=1e-5, rtol=0)


def test_a_text_that_spells_the_padding_mark_is_not_cut_at_it(bert_towers: Pair) -> None:
    texts = ["a photo [PAD] of a glioma tumor", "brain"]
    with torch.no_grad():
        expected = bert_towers.model.encode_text(bert_towers.tokenizer(texts), normalize=True)
    torch.testing.assert_close(bert_towers.ours.encode_texts(texts), expected, atol=1e-5, rtol=0)


def test_trimmed_prompts_and_their_gradients_are_the_padded_ones(towers: Pair) -> None:
    prompts = PromptLearner(towers.ours, NAMES)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prompts.context += 0.3 * torch.randn(prompts.context.shape, generator=draw)
    target = torch.randn(len(NAMES), towers.ours.dim, generator=draw)
    trimmed = prompts()[0]
    (trimmed * target).sum().backward()

    context = prompts.context[0].detach().clone().requires_grad_()
    ids = towers.tokenizer([f"a photo of a {name}." for name in NAMES])
    begin, end = towers.ours.begin_marks, towers.ours.begin_marks + len(context)
    plain = towers.ours.token_embeddings(ids)
    shared = context.expand(len(NAMES), -1, -1)
    padded = padded_features(towers, torch.cat([plain[:, :begin], shared, plain[:, end:]], dim=1), ids)
    (padded * target).sum().backward()

    torch.testing.assert_close(trimmed, padded, atol=1e-5, rtol=0)
    assert prompts.context.grad is not None and context.grad is not None
    scale = float(context.grad.abs().max())
    assert scale > 1e-3
    assert float((prompts.context.grad[0] - context.grad).abs().max()) < 1e-5 * scale


def test_a_text_is_encoded_alike_in_any_batch(towers: Pair) -> None:
    together = towers.ours.encode_texts(TEXTS)
    alone = torch.cat([towers.ours.encode_texts([text]) for text in TEXTS])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_batches_by_length_keep_the_order_of_the_texts(bert_towers: Pair) -> None:
    tokens = bert_towers.ours.tokenize(TEXTS)
    whole = bert_towers.ours.encode_tokens(tokens)
    torch.testing.assert_close(bert_towers.ours.encode_tokens(tokens, batch_size=1), whole, atol=1e-5, rtol=0)


def test_tokens_are_trimmed_whether_or_not_the_tower_reads_its_padding(towers: Pair) -> None:
    tokens = towers.ours.tokenize(["brain"])
    assert tokens.ids.shape[1] == towers.ours.begin_marks + 2
    assert bool(tokens.mask.all())
    assert towers.ours._reads_padding == (getattr(towers.model.text, "pool_type", "") == "last")


def test_weights_are_frozen_and_in_evaluation_mode(towers: Pair) -> None:
    modules = list(towers.ours._model.modules())
    assert not any(module.training for module in modules)
    assert not any(weight.requires_grad for weight in towers.ours._model.parameters())
    assert all(weight.dtype == torch.float32 for weight in towers.ours._model.parameters())


def test_learning_a_prompt_leaves_the_weights_bit_for_bit(towers: Pair) -> None:
    model = towers.ours._model
    before = {key: value.clone() for key, value in model.text.state_dict().items()}
    prompts = PromptLearner(towers.ours, NAMES)
    optimizer = torch.optim.SGD(prompts.parameters(), 0.1)
    prompts().sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.text.state_dict().items())
    assert all(weight.grad is None for weight in model.parameters())


def test_attributes_say_what_the_files_say(bert_towers: Pair, clip_towers: Pair) -> None:
    bert, clip = bert_towers.ours, clip_towers.ours
    assert (bert.dim, bert.token_width, bert.begin_marks, bert.context_length) == (64, 32, 1, 64)
    assert (clip.dim, clip.token_width, clip.begin_marks, clip.context_length) == (64, 32, 1, 32)
    assert (bert.image_size, clip.image_size) == ((160, 160), (32, 32))
    assert bert.logit_scale == pytest.approx(1 / 0.07)
    assert bert.image_mean_std[0] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert bert.name.startswith("dir:")


def test_vocabulary_has_neither_special_nor_unused_entries(bert_towers: Pair, clip_towers: Pair) -> None:
    entries = bert_towers.ours.vocabulary()
    assert not any(entry.startswith("[unused") or entry in ("[PAD]", "[CLS]", "[MASK]") for entry in entries)
    assert {"glioma", "##oma", "a"} <= set(entries)
    assert len(clip_towers.ours.vocabulary()) == 49406
    assert "<end_of_text>" not in clip_towers.ours.vocabulary()


def test_vocabulary_tokens_are_each_entry_between_its_marks(towers: Pair) -> None:
    entries, tokens = towers.ours.vocabulary(), towers.ours.vocabulary_tokens()
    assert len(tokens.ids) == len(entries)
    own = tokens.ids[:, towers.ours.begin_marks]
    assert torch.equal(own.unique(), own)
    for word in ("brain", "the"):
        row = next(entries.index(form) for form in (f"{word}</w>", f"▁{word}", word) if form in entries)
        expected = towers.ours.tokenize([word])
        assert torch.equal(tokens.ids[row], expected.ids[0])
        assert torch.equal(tokens.mask[row], expected.mask[0])


def test_encoded_vocabulary_and_its_seeded_sample(tiny_bert: OpenClipEncoder) -> None:
    full = tiny_bert.encode_vocabulary()
    assert full.shape == (len(tiny_bert.vocabulary()), 64)
    torch.testing.assert_close(full.norm(dim=1), torch.ones(len(full)))
    row = tiny_bert.vocabulary().index("glioma")
    torch.testing.assert_close(full[row], tiny_bert.encode_texts(["glioma"])[0], atol=1e-5, rtol=0)
    sample = tiny_bert.encode_vocabulary(20)
    assert torch.equal(sample, tiny_bert.encode_vocabulary(20))
    distance = torch.cdist(sample, full, compute_mode="donot_use_mm_for_euclid_dist").min(dim=1)
    assert len(sample) == 20 and float(distance.values.max()) < 1e-4
    assert torch.equal(distance.indices.sort().values, distance.indices)


@pytest.mark.parametrize("texts", [[], [""], ["brain", "  \n"], "brain"])
def test_no_text_or_an_empty_one_is_refused(tiny_bert: OpenClipEncoder, texts: Any) -> None:
    with pytest.raises(UserError, match=r"empty|no text"):
        tiny_bert.encode_texts(texts)


def test_token_embeddings_start_the_computation(tiny_clip: OpenClipEncoder) -> None:
    tokens = tiny_clip.tokenize(TEXTS)
    features = tiny_clip.encode_embeddings(tiny_clip.token_embeddings(tokens.ids), tokens.mask)
    torch.testing.assert_close(features, tiny_clip.encode_texts(TEXTS), atol=1e-5, rtol=0)
    torch.testing.assert_close(features, normalize(features, dim=1))


def in_a_new_process(code: str, *arguments: str, **environment: str) -> str:
    """What a Python program prints, run without this process's offline switch."""
    inherited = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**inherited, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


NO_NETWORK = """
import socket, sys

def refuse(*arguments, **settings):
    print("asked for", arguments, file=sys.stderr)
    raise SystemExit(3)

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from vmfcoop import load_backbone

encoder = load_backbone(f"dir:{sys.argv[1]}", "cpu")
encoder.encode_texts(["a photo of a brain."])
print(encoder.fingerprint)
"""


@pytest.mark.parametrize("fixture", ["tiny_bert_folder", "tiny_clip_folder"])
def test_a_folder_asks_nothing_of_the_network_and_has_one_fingerprint(
    fixture: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(fixture)
    if fixture == "tiny_bert_folder":
        config = json.loads((folder / "open_clip_config.json").read_text())
        assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "nobody/tiny-bert"
    there = in_a_new_process(NO_NETWORK, str(folder), HF_HOME=str(tmp_path))
    assert there == load_folder(folder).fingerprint


def test_pretrained_towers_named_in_a_folder_are_not_fetched(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    change_config(folder, "vision_cfg", timm_model_pretrained=True)
    change_config(folder, "text_cfg", hf_model_pretrained=True)
    there = in_a_new_process(NO_NETWORK, str(folder), HF_HOME=str(tmp_path / "empty"))
    assert there == load_folder(tiny_bert_folder).fingerprint


def change_config(folder: Path, part: str, **settings: Any) -> None:
    """Change settings of a tower, or of ``preprocess_cfg``, in a folder's configuration."""
    path = folder / "open_clip_config.json"
    config = json.loads(path.read_text())
    (config["model_cfg"] if part in config["model_cfg"] else config)[part] |= settings
    path.write_text(json.dumps(config))


def change_weight(folder: Path) -> None:
    state = load_file(folder / "open_clip_model.safetensors")
    state["visual.head.proj.weight"][0, 0] += 1e-6
    save_file(state, folder / "open_clip_model.safetensors")


def change_tokenizer(folder: Path) -> None:
    for file in ("tokenizer.json", "vocab.txt"):
        (folder / file).write_text((folder / file).read_text().replace("glioma", "gliomb"))


CHANGES = {
    "one weight": change_weight,
    "the vocabulary": change_tokenizer,
    "the mean of images": lambda folder: change_config(folder, "preprocess_cfg", mean=[0.5, 0.5, 0.5]),
    "the interpolation": lambda folder: change_config(folder, "preprocess_cfg", interpolation="bilinear"),
    "the context length": lambda folder: change_config(folder, "text_cfg", context_length=63),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_fingerprint_tells_apart(change: str, tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    assert load_folder(folder).fingerprint == load_folder(tiny_bert_folder).fingerprint
    CHANGES[change](folder)
    assert load_folder(folder).fingerprint != load_folder(tiny_bert_folder).fingerprint


def test_the_fingerprint_does_not_hang_on_the_weights_format(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    state = load_file(folder / "open_clip_model.safetensors")
    (folder / "open_clip_model.safetensors").unlink()
    torch.save({"state_dict": state, "epoch": 3}, folder / "open_clip_pytorch_model.bin")
    assert load_folder(folder).fingerprint == load_folder(tiny_bert_folder).fingerprint


def bare_checkpoint(folder: Path, state: dict[str, Tensor]) -> None:
    """Turn a folder's weights into what a training loop on several devices saves, as UniMed-CLIP's is."""
    (folder / "open_clip_model.safetensors").unlink()
    named = {f"module.{re.sub('^text[.]', 'text_encoder.', key)}": value for key, value in state.items()}
    content = {"epoch": 7, "best": np.float64(0.5), "state_dict": named, "optimizer": {"state": {}}}
    torch.save(content, folder / CHECKPOINT_FILE)


def test_a_checkpoint_of_a_training_loads(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    bare_checkpoint(folder, load_file(folder / "open_clip_model.safetensors"))
    assert load_folder(folder).fingerprint == load_folder(tiny_bert_folder).fingerprint


def test_a_checkpoint_without_configuration_gets_that_of_its_architecture(tmp_path: Path) -> None:
    """UniMed-CLIP's towers: a ViT with quick GELU, and BiomedBERT without its pooling layer."""
    own = dict(TINY_BERT_CONFIG["text_cfg"]) | {"context_length": 64}
    config = checkpoint_config("ViT-B-16-quickgelu", own)
    assert config["model_cfg"]["quick_gelu"] and config["model_cfg"]["text_cfg"] == own
    assert config["preprocess_cfg"]["size"] == 224
    small = {**config["model_cfg"], "embed_dim": 64, "vision_cfg": TINY_CLIP_CONFIG["vision_cfg"]}
    folder = write_folder(tmp_path / "unimed", small, tiny_bert_shape())
    tiny_bert_shape().save_pretrained(folder)
    model = bert_pair(folder, small, tiny_bert_shape(), load_file(folder / "open_clip_model.safetensors"))
    bare_checkpoint(folder, load_file(folder / "open_clip_model.safetensors"))
    encoder = load_folder(folder)
    assert any(type(module).__name__ == "QuickGELU" for module in encoder._model.visual.modules())
    pixels = torch.stack([encoder.preprocess(image) for image in some_images()])
    torch.testing.assert_close(encoder.encode_images(pixels), model.ours.encode_images(pixels))
    with torch.no_grad():
        expected = model.model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(encoder.encode_images(pixels), expected, atol=1e-5, rtol=0)


def test_an_architecture_that_open_clip_does_not_know_is_named() -> None:
    with pytest.raises(UserError, match="Unknown open_clip model 'ViT-B-17'; did you mean"):
        checkpoint_config("ViT-B-17")


def test_a_vocabulary_file_is_tokenizer_enough(tiny_bert_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_bert_folder, tmp_path / "bert")
    (folder / "tokenizer.json").unlink()
    expected = load_folder(tiny_bert_folder).tokenize(TEXTS)
    tokens = load_folder(folder).tokenize(TEXTS)
    assert isinstance(tokens, Tokens) and torch.equal(tokens.ids, expected.ids)


def test_openai_style_weights_without_a_text_prefix_load(tiny_clip_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_clip_folder, tmp_path / "clip")
    state = load_file(folder / "open_clip_model.safetensors")
    save_file({k.removeprefix("text."): v for k, v in state.items()}, folder / "open_clip_model.safetensors")
    assert load_folder(folder).fingerprint == load_folder(tiny_clip_folder).fingerprint


def test_moving_to_the_same_device_changes_nothing(tiny_clip: OpenClipEncoder) -> None:
    assert tiny_clip.to("cpu") is tiny_clip and tiny_clip.device == torch.device("cpu")


def test_patch_activations_are_the_patch_tokens_before_the_last_attention(clip_towers: Pair) -> None:
    pixels = torch.stack([clip_towers.ours.preprocess(image) for image in some_images()])
    seen: list[Tensor] = []
    layer = clip_towers.model.visual.transformer.resblocks[-1].ln_1
    hook = layer.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        clip_towers.model.encode_image(pixels)
    hook.remove()
    maps = clip_towers.ours.patch_activations(pixels)
    assert maps.shape == (2, 64, 4, 4)
    torch.testing.assert_close(maps[1, :, 2, 3], seen[0][1, 1 + 2 * 4 + 3], atol=1e-5, rtol=0)


def test_patch_activations_of_a_timm_tower(bert_towers: Pair) -> None:
    pixels = torch.stack([bert_towers.ours.preprocess(image) for image in some_images()])
    maps = bert_towers.ours.patch_activations(pixels)
    assert maps.shape[0] == 2 and maps.shape[2:] == (10, 10)
    assert maps.isfinite().all() and float(maps.std()) > 0
