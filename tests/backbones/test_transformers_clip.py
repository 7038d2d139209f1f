"""The transformers family against transformers itself: same pixels, features, gradients, and no network."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import transformers
from benchmarks.random_transformers import (
    MODELS,
    tiny_altclip,
    tiny_clip,
    tiny_dual_encoder,
    tiny_siglip,
    tiny_siglip2,
    write_folder,
    write_pubmedclip,
)
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from torch.nn.functional import normalize

from tests.backbones.test_registry import Bomb
from vmfcoop.backbones.transformers_clip import FAMILY, KINDS, TransformersEncoder, load_folder
from vmfcoop.errors import UserError
from vmfcoop.methods.prompt import PromptLearner

NAMES = ("glioma tumor", "normal brain", "squamous cell carcinoma of the lung")
TEXTS = (
    "a photo of a glioma tumor.",
    "brain",
    "A dark, ring-enhancing lesion; edema!",
    "a",
)
WEIGHTS = "model.safetensors"
BIN = "pytorch_model.bin"
PREPROCESSOR = "preprocessor_config.json"
INSTANCES: dict[str, Callable[[Path], Path]] = {
    "clip": lambda folder: write_folder(folder, tiny_clip()),
    "clip-end-mark": lambda folder: write_folder(folder, tiny_clip(eos_token_id=49407)),
    "siglip": lambda folder: write_folder(folder, tiny_siglip()),
    "siglip2": lambda folder: write_folder(folder, tiny_siglip2(), "gemma"),
    "altclip": lambda folder: write_folder(folder, tiny_altclip()),
    "vit-bert": lambda folder: write_folder(folder, tiny_dual_encoder()),
    "clip-roberta": lambda folder: write_folder(folder, tiny_dual_encoder("clip_vision_model", "roberta")),
    "vit-xlm-roberta": lambda folder: write_folder(folder, tiny_dual_encoder("vit", "xlm-roberta")),
    "pubmedclip": lambda folder: write_pubmedclip(folder, half=True),
}
TINY = [name for name in INSTANCES if name != "pubmedclip"]


class Pair(NamedTuple):
    """Our encoder, and the library's own model over the same folder."""

    folder: Path
    ours: TransformersEncoder
    model: Any

    def ids_and_mask(self, texts: list[str]) -> tuple[Tensor, Tensor | None]:
        """The library's own tokens at the full context length; SigLIP's are never masked."""
        # The library's class for SigLIP wants the sentencepiece package, even beside a tokenizer.json.
        siglip = self.model.config.model_type == "siglip"
        reader = transformers.PreTrainedTokenizerFast if siglip else transformers.AutoTokenizer
        batch = reader.from_pretrained(str(self.folder))(
            [self.clean(text) for text in texts],
            max_length=self.ours.context_length,
            padding="max_length",
            padding_side="right",
            truncation=True,
            return_tensors="pt",
        )
        return batch["input_ids"], None if siglip else batch["attention_mask"]

    def clean(self, text: str) -> str:
        """What SigLIP's published tokenizer class does to a text, and what SigLIP 2 was trained on."""
        if self.model.config.model_type != "siglip":
            return text
        if "Gemma" in (self.folder / "tokenizer_config.json").read_text():
            return text.lower()
        return " ".join("".join(c for c in text.lower() if c not in string.punctuation).split())

    def text_features(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        return rows(self.model.get_text_features(input_ids=ids, attention_mask=mask))


def rows(output: Any) -> Tensor:
    """Unit features of what ``get_*_features`` returns: a tensor, or in version 5 an output object."""
    return normalize(output if isinstance(output, Tensor) else output.pooler_output, dim=-1)


def library_model(folder: Path) -> Any:
    model_type = json.loads((folder / "config.json").read_text())["model_type"]
    model_class = getattr(transformers, MODELS[model_type])
    return model_class.from_pretrained(str(folder), dtype=torch.float32).eval()


def pair(folder: Path) -> Pair:
    return Pair(folder, load_folder(folder), library_model(folder))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Pair]]:
    """Writes an instance on its first use; full-size ones are taken away again."""
    pairs: dict[str, Pair] = {}

    def get(name: str) -> Pair:
        if name not in pairs:
            pairs[name] = pair(INSTANCES[name](tmp_path_factory.mktemp("transformers") / name))
        return pairs[name]

    yield get
    for made in pairs.values():
        shutil.rmtree(made.folder)


@pytest.fixture(params=[*TINY, pytest.param("pubmedclip", marks=pytest.mark.slow)])
def towers(request: pytest.FixtureRequest, written: Callable[[str], Pair]) -> Pair:
    return written(request.param)


@pytest.fixture
def copy(written: Callable[[str], Pair], tmp_path: Path) -> Callable[[str], Path]:
    """A copy of an instance's folder, to change."""
    return lambda name: shutil.copytree(written(name).folder, tmp_path / name)


def some_images(*sizes: tuple[int, int]) -> list[Image.Image]:
    draw = np.random.default_rng(0)
    pictures = [draw.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes or ((50, 70), (64, 48))]
    return [Image.fromarray(picture) for picture in pictures]


def change_json(path: Path, **settings: Any) -> None:
    """Change top-level settings, or with ``part__name`` those of a part."""
    content = json.loads(path.read_text())
    for key, value in settings.items():
        part, _, name = key.rpartition("__")
        (content[part] if part else content)[name] = value
    path.write_text(json.dumps(content))


def test_image_features_are_the_librarys(towers: Pair) -> None:
    pixels = torch.stack([towers.ours.preprocess(image) for image in some_images()])
    assert pixels.shape == (2, 3, *towers.ours.image_size)
    with torch.no_grad():
        expected = rows(towers.model.get_image_features(pixel_values=pixels))
    features = towers.ours.encode_images(pixels)
    assert features.shape == (2, towers.ours.dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert not torch.allclose(features[0], features[1], atol=1e-2)


@pytest.mark.parametrize("name", ["clip", "siglip", "vit-bert"])
def test_pixels_are_those_of_the_librarys_processors(name: str, written: Callable[[str], Pair]) -> None:
    ours, folder = written(name).ours, str(written(name).folder)
    over_pil = transformers.AutoImageProcessor.from_pretrained(folder, backend="pil")
    over_tensors = transformers.AutoImageProcessor.from_pretrained(folder)
    level = 1 / (255 * torch.tensor(ours.image_mean_std[1])[:, None, None])
    for image in some_images((50, 70), (300, 451), (31, 29), (500, 353)):
        pixels = ours.preprocess(image)
        torch.testing.assert_close(pixels, over_pil(image, return_tensors="pt").pixel_values[0])
        away = (pixels - over_tensors(image, return_tensors="pt").pixel_values[0]).abs() / level
        assert float(away.max()) < 1.01 and float((away > 0.5).float().mean()) < 0.02


def test_text_features_are_the_librarys_at_full_context_length(towers: Pair) -> None:
    ids, mask = towers.ids_and_mask(list(TEXTS))
    assert ids.shape[1] == towers.ours.context_length
    with torch.no_grad():
        expected = towers.text_features(ids, mask)
    features = towers.ours.encode_texts(TEXTS)
    assert features.shape == (len(TEXTS), towers.ours.dim)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert float((features @ features.T - torch.eye(len(TEXTS))).max()) < 0.995


def test_trimmed_prompts_and_their_gradients_are_the_padded_ones(towers: Pair) -> None:
    prompts = PromptLearner(towers.ours, NAMES)
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        prompts.context += 0.3 * prompts.context.std() * torch.randn(prompts.context.shape, generator=draw)
    target = torch.randn(len(NAMES), towers.ours.dim, generator=draw)
    trimmed = prompts()[0]
    (trimmed * target).sum().backward()

    context = prompts.context[0].detach().clone().requires_grad_()
    ids, mask = towers.ids_and_mask([f"a photo of a {name}." for name in NAMES])
    begin, end = towers.ours.begin_marks, towers.ours.begin_marks + len(context)
    plain = towers.ours.token_embeddings(ids)
    prompt = torch.cat([plain[:, :begin], context.expand(len(NAMES), -1, -1), plain[:, end:]], dim=1)
    text = towers.model.text_model
    layer = text.embeddings.token_embedding if hasattr(text, "head") else text.get_input_embeddings()
    hook = layer.register_forward_hook(lambda *_: prompt)
    padded = towers.text_features(ids, mask)
    hook.remove()
    (padded * target).sum().backward()

    torch.testing.assert_close(trimmed, padded, atol=1e-5, rtol=0)
    assert prompts.context.grad is not None and context.grad is not None
    scale = float(context.grad.abs().max())
    assert scale > 1e-3
    assert float((prompts.context.grad[0] - context.grad).abs().max()) < 1e-4 * scale


@pytest.mark.parametrize("name", ["clip", "siglip", "altclip", "vit-bert"])
def test_texts_longer_than_the_context_are_cut_as_the_library_cuts_them(
    name: str, written: Callable[[str], Pair]
) -> None:
    towers, long = written(name), "a dark lesion with irregular borders " * 10
    with torch.no_grad():
        expected = towers.text_features(*towers.ids_and_mask([long]))
    with pytest.warns(UserWarning, match="cut"):
        features = towers.ours.encode_texts([long])
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["clip", "clip-end-mark"])
def test_clip_pools_from_the_first_end_mark_that_a_text_has(
    name: str, written: Callable[[str], Pair]
) -> None:
    towers = written(name)
    texts = ["a photo <|endoftext|> of a brain", "a photo", "brain"]
    with torch.no_grad():
        expected = towers.text_features(*towers.ids_and_mask(texts))
    features = towers.ours.encode_texts(texts)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(features[0], features[1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("end_id", [2, 49407])
def test_an_added_token_draws_the_pooling_only_in_old_configurations(end_id: int, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "clip", tiny_clip(vocab_size=49409, eos_token_id=end_id))
    tokenizer = transformers.CLIPTokenizer.from_pretrained(str(folder))
    tokenizer.add_tokens(["gliomatosis"])
    tokenizer.save_pretrained(folder)
    towers, texts = pair(folder), ["a gliomatosis of the brain", "a gliomatosis"]
    with torch.no_grad():
        expected = towers.text_features(*towers.ids_and_mask(texts))
    features = towers.ours.encode_texts(texts)
    torch.testing.assert_close(features, expected, atol=1e-5, rtol=0)
    assert torch.allclose(features[0], features[1], atol=1e-5) == (end_id == 2)


def test_texts_are_given_to_siglip_as_it_was_trained(written: Callable[[str], Pair]) -> None:
    first, second = written("siglip").ours, written("siglip2").ours
    for ours, same in ((first, "A  photo of a Brain!"), (second, "A photo of a Brain")):
        assert torch.equal(ours.tokenize([same]).ids, ours.tokenize(["a photo of a brain"]).ids)
    plain, spoken = first.tokenize(["x ray"]).ids, first.tokenize(["x-ray"]).ids
    assert plain.shape != spoken.shape or not torch.equal(plain, spoken)
    assert second.tokenize(["brain"]).ids.shape[1] + 1 == second.tokenize(["brain."]).ids.shape[1]


@pytest.mark.parametrize("template", [None, "<bos> $A", "<bos> $A <eos>"])
def test_siglip_gets_one_end_mark_whatever_the_tokenizer_file_says(
    template: str | None, copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy("siglip2")
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    marks = [("<eos>", 1), ("<bos>", 2)]
    tokenizer.post_processor = template and TemplateProcessing(single=template, special_tokens=marks)
    tokenizer.save(str(folder / "tokenizer.json"))
    tokens, expected = load_folder(folder).tokenize(TEXTS), written("siglip2").ours.tokenize(TEXTS)
    assert torch.equal(tokens.ids, expected.ids) and torch.equal(tokens.mask, expected.mask)
    assert tokens.ids[1].tolist()[:2] == [expected.ids[1, 0], 1]


def test_attributes_say_what_the_files_say(written: Callable[[str], Pair]) -> None:
    said = {name: written(name).ours for name in TINY}
    assert [e.dim for e in said.values()] == [48, 48, 64, 64, 48, 48, 48, 48]
    assert [e.context_length for e in said.values()] == [32, 32, 24, 24, 32, 34, 32, 32]
    assert [e.begin_marks for e in said.values()] == [1, 1, 0, 0, 1, 1, 1, 1]
    assert {(e.token_width, e.image_size) for e in said.values()} == {(64, (32, 32))}
    assert said["clip"].logit_scale == pytest.approx(1 / 0.07, rel=1e-4)
    assert said["clip"].image_mean_std[0] == pytest.approx((0.48145466, 0.4578275, 0.40821073))
    assert said["siglip"].image_mean_std == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert said["clip"].name == f"dir:{written('clip').folder}"
    assert load_folder(written("clip").folder, "pubmedclip").name == "pubmedclip"


@pytest.mark.parametrize(
    ("name", "positions"), [("clip", 32), ("siglip", 24), ("altclip", 32), ("vit-bert", 34)]
)
def test_without_a_length_in_the_tokenizers_file_the_positions_end_a_text(
    name: str, positions: int, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["model_max_length"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    ours = load_folder(folder)
    assert ours.context_length == positions
    with pytest.warns(UserWarning, match="cut"):
        assert ours.encode_texts(["a dark lesion with irregular borders " * 10]).isfinite().all()


def test_vocabulary_has_no_special_entries(written: Callable[[str], Pair]) -> None:
    marks = {"<s>", "</s>", "<pad>", "<unk>", "<bos>", "<eos>", "<|endoftext|>", "<|startoftext|>", "[PAD]"}
    for name, word in (
        ("clip", "brain</w>"),
        ("siglip", "▁brain"),
        ("siglip2", "brain"),
        ("altclip", "▁brain"),
    ):
        ours = written(name).ours
        entries, tokens = ours.vocabulary(), ours.vocabulary_tokens()
        assert not marks & set(entries) and len(entries) == len(tokens.ids)
        row, expected = entries.index(word), ours.tokenize(["brain"])
        assert torch.equal(tokens.ids[row], expected.ids[0]) and torch.equal(
            tokens.mask[row], expected.mask[0]
        )
    assert len(written("clip").ours.vocabulary()) == 49406


def test_patch_activations_are_what_the_last_attention_reads(written: Callable[[str], Pair]) -> None:
    for name in ("clip", "siglip", "vit-bert"):
        towers = written(name)
        pixels = torch.stack([towers.ours.preprocess(image) for image in some_images()])
        with torch.no_grad():
            output = towers.model.vision_model(pixel_values=pixels, output_hidden_states=True)
            if name == "siglip":
                tokens = output.last_hidden_state
            elif name == "clip":
                tokens = towers.model.vision_model.encoder.layers[-1].layer_norm1(output.hidden_states[-2])
            else:
                tokens = towers.model.vision_model.layers[-1].layernorm_before(output.hidden_states[-2])
        maps = towers.ours.patch_activations(pixels)
        assert maps.shape == (2, 64, 4, 4)
        patches = maps.flatten(2).transpose(1, 2)
        torch.testing.assert_close(patches, tokens[:, -16:], atol=1e-5, rtol=0)


def test_weights_are_frozen_float32_and_attend_by_sdpa(towers: Pair) -> None:
    model = towers.ours._model
    assert all(weight.dtype == torch.float32 and not weight.requires_grad for weight in model.parameters())
    assert not any(module.training for module in model.modules())
    shapes = (model.config, model.text_model.config, model.vision_model.config)
    assert {shape._attn_implementation for shape in shapes} == {"sdpa"}


def in_bin(folder: Path) -> None:
    torch.save({"state_dict": load_file(folder / WEIGHTS), "epoch": 3}, folder / BIN)
    (folder / WEIGHTS).unlink()


def in_shards(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    shards = {f"model-{i:05}-of-00003.safetensors": sorted(state)[i::3] for i in range(3)}
    for shard, names in shards.items():
        save_file({name: state[name] for name in names}, folder / shard)
    index = {"weight_map": {name: shard for shard, names in shards.items() for name in names}}
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


def in_bin_shards(folder: Path) -> None:
    state = load_file(folder / WEIGHTS)
    for i in range(2):
        torch.save({name: state[name] for name in sorted(state)[i::2]}, folder / f"part{i}.bin")
    index = {"weight_map": {name: f"part{i % 2}.bin" for i, name in enumerate(sorted(state))}}
    (folder / f"{BIN}.index.json").write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("stored", [in_bin, in_shards, in_bin_shards])
def test_weights_may_lie_in_other_files(
    stored: Callable[[Path], None], copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy("clip")
    stored(folder)
    assert FAMILY.recognises(folder)
    assert load_folder(folder).fingerprint == written("clip").ours.fingerprint


@pytest.mark.parametrize(
    ("name", "older"),
    [
        ("clip-roberta", lambda key: key.replace("vision_model.", "vision_model.vision_model.", 1)),
        ("vit-bert", lambda key: key.replace("LayerNorm.weight", "LayerNorm.gamma")),
        ("vit-bert", lambda key: key.replace("LayerNorm.bias", "LayerNorm.beta")),
        ("altclip", lambda key: key.replace("vision_model.encoder.layer.", "vision_model.encoder.layers.")),
    ],
)
def test_weights_keep_their_meaning_under_names_of_earlier_versions(
    name: str, older: Callable[[str], str], copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy(name)
    state = load_file(folder / WEIGHTS)
    renamed = {older(key): value for key, value in state.items()}
    assert set(renamed) != set(state)
    save_file(renamed | {"text_model.embeddings.position_ids": torch.arange(34)[None]}, folder / WEIGHTS)
    assert load_folder(folder).fingerprint == written(name).ours.fingerprint


@pytest.mark.parametrize("part", ["vision_config", "text_config"])
def test_the_fingerprint_tells_activations_apart(
    part: str, copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy("clip")
    change_json(folder / "config.json", **{f"{part}__hidden_act": "gelu"})
    assert load_folder(folder).fingerprint != written("clip").ours.fingerprint


def test_half_precision_on_disk_computes_in_float32(tmp_path: Path) -> None:
    towers = pair(write_folder(tmp_path / "half", tiny_siglip(), half=True))
    assert json.loads((towers.folder / "config.json").read_text())["dtype"] == "float16"
    assert load_file(towers.folder / WEIGHTS)["logit_scale"].dtype == torch.float16
    with torch.no_grad():
        expected = towers.text_features(*towers.ids_and_mask(list(TEXTS)))
    torch.testing.assert_close(towers.ours.encode_texts(TEXTS), expected, atol=1e-5, rtol=0)
    assert all(weight.dtype == torch.float32 for weight in towers.ours._model.parameters())


def test_a_processor_file_may_hold_the_image_processor(
    copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy("clip")
    settings = json.loads((folder / PREPROCESSOR).read_text()) | {
        "image_processor_type": "CLIPImageProcessor"
    }
    (folder / PREPROCESSOR).unlink()
    processor = {"processor_class": "CLIPProcessor", "image_processor": settings}
    (folder / "processor_config.json").write_text(json.dumps(processor))
    assert load_folder(folder).fingerprint == written("clip").ours.fingerprint


def test_a_vocabulary_file_is_tokenizer_enough_for_bert(
    copy: Callable[[str], Path], written: Callable[[str], Pair]
) -> None:
    folder = copy("vit-bert")
    (folder / "tokenizer.json").unlink()
    assert torch.equal(load_folder(folder).tokenize(TEXTS).ids, written("vit-bert").ours.tokenize(TEXTS).ids)


NO_NETWORK = """
import socket, sys
from pathlib import Path

def refuse(*arguments, **settings):
    print("asked for", arguments)
    raise SystemExit(3)

socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
from vmfcoop.backbones.transformers_clip import load_folder

for folder in sys.argv[1:]:
    encoder = load_folder(Path(folder))
    encoder.encode_texts(["a photo of a brain."])
    print(encoder.fingerprint)
"""


def test_folders_ask_nothing_of_the_network_and_load_without_a_word(
    written: Callable[[str], Pair], tmp_path: Path
) -> None:
    names = ("clip", "siglip", "altclip", "vit-bert")
    inherited = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-c", NO_NETWORK, *(str(written(name).folder) for name in names)],
        env={**inherited, "OMP_NUM_THREADS": "1", "HF_HOME": str(tmp_path), "PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.split() == [written(name).ours.fingerprint for name in names]
    assert done.stderr == ""


def test_what_transformers_says_elsewhere_is_left_as_it_was(written: Callable[[str], Pair]) -> None:
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    load_folder(written("siglip").folder)
    with pytest.raises(UserError):
        load_folder(written("siglip").folder / "nowhere")
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


def test_folders_of_other_families_are_not_recognised(
    copy: Callable[[str], Path], tiny_bert_folder: Path, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    assert (tiny_bert_folder / "config.json").is_file()
    assert not any(FAMILY.recognises(folder) for folder in (tiny_bert_folder, tiny_clip_folder, tmp_path))
    assert FAMILY.recognises(copy("siglip"))


def refusal(folder: Path) -> str:
    """The message of the UserError that a folder gives: one sentence of one line."""
    with pytest.raises(UserError) as caught:
        load_folder(folder)
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600 and str(folder) in message
    return message


@pytest.mark.parametrize(
    ("name", "files", "named"),
    [
        ("clip", ["config.json"], "config.json"),
        ("clip", [WEIGHTS], "model.safetensors or"),
        ("clip", [PREPROCESSOR], PREPROCESSOR),
        ("clip", ["vocab.json"], "vocab.json"),
        ("clip", ["merges.txt"], "merges"),
        ("siglip", ["tokenizer.json"], "spiece.model"),
        ("siglip", ["tokenizer_config.json"], "tokenizer_config.json"),
        ("altclip", ["tokenizer_config.json"], "tokenizer_config.json"),
    ],
)
def test_the_missing_file_is_named(
    name: str, files: list[str], named: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    for file in files:
        (folder / file).unlink()
    assert named in refusal(folder)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nowhere")


def test_a_piece_model_alone_needs_its_library_or_is_read_by_it(copy: Callable[[str], Path]) -> None:
    folder = copy("siglip")
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"no pieces")
    message = refusal(folder)
    assert "sentencepiece" in message or "cannot be read" in message


@pytest.mark.parametrize("file", ["config.json", PREPROCESSOR, "tokenizer_config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x80"])
def test_a_broken_json_file_is_refused(file: str, content: str, copy: Callable[[str], Path]) -> None:
    folder = copy("siglip")
    (folder / file).write_text(content, encoding="latin-1")
    message = refusal(folder)
    assert str(folder / file) in message or ("tokenizer" in file and "tokenizer" in message)


@pytest.mark.parametrize("shard", ["../other.bin", "/other.bin", "", [1], None, "absent.bin"])
def test_an_index_that_names_no_file_of_the_folder_is_refused(
    shard: Any, copy: Callable[[str], Path]
) -> None:
    folder = copy("clip")
    torch.save({"a": torch.zeros(1)}, folder.parent / "other.bin")
    (folder / WEIGHTS).unlink()
    (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"{WEIGHTS}.index.json" in refusal(folder)


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "intermediate_size"])
def test_a_model_far_larger_than_its_weights_is_refused(key: str, copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    shape = json.loads((folder / "config.json").read_text())["text_config"]
    change_json(folder / "config.json", text_config=shape | {key: 10**6})
    assert re.search(r"hold [\d,]+ numbers where config.json .* describes a model of", refusal(folder))


@pytest.mark.parametrize("kept", [0, 4, 1000, 50_000])
def test_truncated_weights_are_named(kept: int, copy: Callable[[str], Path]) -> None:
    folder = copy("siglip")
    whole = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(whole[:kept])
    assert f"'{folder / WEIGHTS}' are damaged" in refusal(folder)


def test_a_pickled_object_is_refused_and_not_run(copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder, mark = copy("clip"), tmp_path / "exploded"
    (folder / WEIGHTS).unlink()
    for save in (torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))):
        save({"text_projection.weight": Bomb(mark)}, folder / BIN)
        assert "more than tensors" in refusal(folder)
    assert not mark.exists()


@pytest.mark.parametrize("file", ["config.json", PREPROCESSOR, "tokenizer_config.json"])
def test_code_in_a_folder_is_never_run(file: str, copy: Callable[[str], Path], tmp_path: Path) -> None:
    folder, mark = copy("vit-bert"), tmp_path / "ran"
    (folder / "own.py").write_text(f"open({str(mark)!r}, 'w').close()\nclass Own: pass\n")
    names = ("AutoConfig", "AutoModel", "AutoImageProcessor", "AutoProcessor")
    change_json(
        folder / file, auto_map={**dict.fromkeys(names, "own.Own"), "AutoTokenizer": ["own.Own", None]}
    )
    load_folder(folder)
    if file == "tokenizer_config.json":
        change_json(folder / file, tokenizer_class="Own")
        refusal(folder)
    assert not mark.exists()


@pytest.mark.parametrize("fault", ["shape", "missing", "further"])
def test_weights_of_another_model_are_refused(fault: str, copy: Callable[[str], Path]) -> None:
    folder, entry = copy("vit-bert"), "text_projection.weight"
    state = load_file(folder / WEIGHTS)
    if fault == "shape":
        state[entry] = state[entry][:-1].clone()
    elif fault == "missing":
        del state[entry]
    else:
        entry = "text_projection.bias"
        state[entry] = torch.zeros(2)
    save_file(state, folder / WEIGHTS)
    message = refusal(folder)
    assert str(folder / WEIGHTS) in message and f"'{entry}'" in message and "do not fit" in message


@pytest.mark.parametrize("fault", ["absent", "empty", "elsewhere", "number"])
def test_an_index_must_name_files_of_its_folder(fault: str, copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    in_shards(folder)
    index = folder / f"{WEIGHTS}.index.json"
    if fault == "absent":
        (folder / "model-00002-of-00003.safetensors").unlink()
        assert "no model-00002-of-00003.safetensors" in refusal(folder)
        return
    outside = shutil.copy(folder / "model-00002-of-00003.safetensors", folder.parent)
    names: dict[str, Any] = {"empty": {}, "elsewhere": {"a": f"../{Path(outside).name}"}, "number": {"a": 3}}
    change_json(index, weight_map=names[fault])
    assert f"'{index}'" in refusal(folder)


def test_other_model_types_are_told_what_is_supported(copy: Callable[[str], Path]) -> None:
    folder = copy("clip")
    for model_type in ("blip", "clip_vision_model", None, ["clip"]):
        change_json(folder / "config.json", model_type=model_type)
        message = refusal(folder)
        assert str(model_type) in message and all(kind in message for kind in KINDS)
    change_json(folder / "config.json", model_type="siglip2")
    message = refusal(folder)
    assert "NaFlex" in message and "fixed resolution" in message


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("clip", {"text_config": "small"}, "text_config"),
        ("clip", {"text_config__hidden_act": "no_such_act"}, "cannot build"),
        ("clip", {"vision_config__num_attention_heads": 7}, "config.json"),
        ("clip", {"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
        ("clip", {"text_config__eos_token_id": 5}, "49407"),
        ("clip", {"text_config__vocab_size": 300}, "the 300 of the text tower"),
        ("clip", {"projection_dim": 50}, "do not fit"),
        ("clip", {"vision_config__image_size": 64}, "64 x 64"),
        ("siglip", {"vision_config__vision_use_head": False}, "vision_use_head"),
        ("vit-bert", {"vision_config__model_type": "swin"}, "'swin' and 'bert'"),
        ("vit-bert", {"text_config__model_type": "distilbert"}, "'vit' and 'distilbert'"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(
    name: str, settings: dict[str, Any], said: str, copy: Callable[[str], Path]
) -> None:
    folder = copy(name)
    change_json(folder / "config.json", **settings)
    assert said in refusal(folder)


def test_the_tokenizer_of_another_model_is_refused(copy: Callable[[str], Path]) -> None:
    folder, other = copy("clip"), copy("vit-bert")
    for file in ("tokenizer.json", "vocab.txt", "tokenizer_config.json"):
        (other / file).unlink()
    for file in ("vocab.json", "merges.txt", "tokenizer_config.json"):
        shutil.copy(folder / file, other)
    assert "knows more entries than the" in refusal(other)


NOT_DONE: dict[str, dict[str, Any]] = {
    "do_resize": {"do_resize": False},
    "do_rescale": {"do_rescale": False},
    "factor": {"rescale_factor": 1 / 127.5},
    "a factor in words": {"rescale_factor": "1/255"},
    "lanczos": {"resample": 1},
    "a word": {"resample": "bicubic"},
    "larger than its crop": {"size": {"shortest_edge": 40}},
    "no crop": {"do_center_crop": False},
    "longest edge": {"size": {"longest_edge": 32}, "do_center_crop": False},
    "padding": {"do_pad": True},
    "one mean": {"image_mean": 0.5},
    "two deviations": {"image_std": [0.5, 0.5]},
    "deviation of none": {"image_std": [0.5, 0.5, 0]},
    "deviation of no number": {"image_std": [0.5, 0.5, float("nan")]},
    "another processor": {"image_processor_type": "BitImageProcessor"},
    "an unknown processor": {"image_processor_type": "NobodysImageProcessor"},
    "no size": {"size": "large"},
}


@pytest.mark.parametrize("what", NOT_DONE)
def test_preprocessing_that_open_clip_has_no_words_for_is_refused(
    what: str, copy: Callable[[str], Path]
) -> None:
    folder = copy("clip")
    change_json(folder / PREPROCESSOR, **NOT_DONE[what])
    assert str(folder / PREPROCESSOR) in refusal(folder)


def test_preprocessing_without_normalisation_or_with_a_square_size_is_done(
    copy: Callable[[str], Path],
) -> None:
    folder, image = copy("clip"), some_images()[0]
    square = {"height": 32, "width": 32}
    for settings in ({"do_normalize": False}, {"size": square}, {"size": square, "do_center_crop": False}):
        change_json(folder / PREPROCESSOR, **settings)
        over_pil = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil")
        expected = over_pil(image, return_tensors="pt").pixel_values[0]
        torch.testing.assert_close(load_folder(folder).preprocess(image), expected)
