"""Spec strings: what loads, and one sentence for everything that does not."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip.tokenizer import HFTokenizer
from safetensors.torch import load_file, save_file
from transformers import BertConfig

from tests.conftest import TINY_CLIP_CONFIG
from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.registry import resolve_device
from vmfcoop.errors import UserError

WEIGHTS = "open_clip_model.safetensors"
HUB_WEIGHTS = "open_clip_pytorch_model.bin"
CONFIG = "open_clip_config.json"


class Bomb:
    """A pickle that writes a file where it is loaded without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return Path.touch, (self.path,)


def refusal(spec: str) -> str:
    """The message of the UserError that a spec gives: one sentence of one line."""
    with pytest.raises(UserError) as caught:
        load_backbone(spec, "cpu")
    message = str(caught.value)
    assert "\n" not in message and len(message) < 600
    return message


@pytest.fixture
def bert_copy(tiny_bert_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_bert_folder, tmp_path / "bert")


def test_an_unknown_name_gets_the_nearest_ones() -> None:
    assert "did you mean 'biomedclip'" in refusal("biomedclib")
    message = refusal("resnet")
    assert "'resnet'" in message and "'medclip-resnet'" in message and "dir:FOLDER" in message
    assert "Unknown backbone" in refusal("dir:")


def test_a_bare_folder_is_told_how_to_write_it(tiny_bert_folder: Path) -> None:
    assert f"'dir:{tiny_bert_folder}'" in refusal(str(tiny_bert_folder))


def test_a_folder_spec_loads_and_its_name_loads_it_again(tiny_clip_folder: Path) -> None:
    encoder = load_backbone(f"dir:{tiny_clip_folder}", "cpu")
    assert load_backbone(encoder.name, "cpu").fingerprint == encoder.fingerprint


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert f"'{tmp_path / 'nowhere'}' does not exist" in refusal(f"dir:{tmp_path / 'nowhere'}")


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ([CONFIG], CONFIG),
        ([WEIGHTS], HUB_WEIGHTS),
        (["tokenizer.json", "vocab.txt"], "tokenizer.json"),
        (["config.json"], "config.json"),
    ],
)
def test_the_missing_file_is_named(files: list[str], named: str, bert_copy: Path) -> None:
    for file in files:
        (bert_copy / file).unlink()
    message = refusal(f"dir:{bert_copy}")
    assert named in message and str(bert_copy) in message


@pytest.mark.parametrize("file", [CONFIG, "config.json", "tokenizer.json"])
@pytest.mark.parametrize("content", ["", "{", "[1, 2]", "\x80", "[" * 99_999, '{"a": ' + "9" * 5000 + "}"])
def test_a_broken_json_file_is_named(file: str, content: str, bert_copy: Path) -> None:
    (bert_copy / file).write_text(content, encoding="latin-1")
    message = refusal(f"dir:{bert_copy}")
    assert str(bert_copy / file) in message or ("tokenizer" in file and str(bert_copy) in message)


@pytest.mark.parametrize(
    "model_cfg",
    [
        None,
        "ViT-B-32",
        {},
        {"embed_dim": 64, "vision_cfg": {}},
        {"embed_dim": 64, "vision_cfg": {}, "text_cfg": "BERT"},
        {"embed_dim": 64, "vision_cfg": {"timm_model_name": "no_such_model"}, "text_cfg": {}},
        {"embed_dim": 64, "vision_cfg": {"depth_of_nothing": 3}, "text_cfg": {}},
        {"embed_dim": 64, "vision_cfg": {}, "text_cfg": {}, "multimodal_cfg": {}},
    ],
)
def test_a_configuration_that_describes_no_clip_is_refused(model_cfg: Any, bert_copy: Path) -> None:
    (bert_copy / CONFIG).write_text(json.dumps({"model_cfg": model_cfg}))
    assert str(bert_copy) in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize(
    "settings",
    [[1], {"std": [0, 0, 0]}, {"std": "abc"}, {"interpolation": "magic"}, {"mode": "L"}],
)
def test_a_preparation_of_images_that_cannot_be_is_refused(settings: Any, bert_copy: Path) -> None:
    config = json.loads((bert_copy / CONFIG).read_text())
    (bert_copy / CONFIG).write_text(json.dumps(config | {"preprocess_cfg": settings}))
    assert f"'preprocess_cfg' in '{bert_copy / CONFIG}'" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize(
    ("tower", "change", "said"),
    [
        ("text_cfg", {"hf_pooler_type": "max_pooler"}, "prompts can be learned"),
        ("text_cfg", {"tokenizer_kwargs": {"clean": "magic"}}, "magic"),
        ("vision_cfg", {"timm_model_name": "hf-hub:nobody/tower"}, "from elsewhere"),
    ],
)
def test_towers_that_cannot_be_are_refused(
    tower: str, change: dict[str, Any], said: str, bert_copy: Path
) -> None:
    config = json.loads((bert_copy / CONFIG).read_text())
    config["model_cfg"][tower] |= change
    (bert_copy / CONFIG).write_text(json.dumps(config))
    assert said in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("key", ["hidden_size", "vocab_size", "max_position_embeddings"])
def test_a_model_far_larger_than_its_weights_is_refused_before_it_is_built(
    key: str, bert_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = json.loads((bert_copy / "config.json").read_text())
    (bert_copy / "config.json").write_text(json.dumps(config | {key: 10**6}))
    devices = []
    build = open_clip.CustomTextCLIP

    def noting(**kwargs: Any) -> Any:
        devices.append(torch.get_default_device().type)
        return build(**kwargs)

    monkeypatch.setattr(open_clip, "CustomTextCLIP", noting)
    assert "the two must come from the same model" in refusal(f"dir:{bert_copy}")
    assert devices == ["meta"]


@pytest.mark.parametrize(
    "content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"<!doctype html>"]
)
def test_what_came_in_place_of_weights_is_told(content: bytes, bert_copy: Path) -> None:
    (bert_copy / WEIGHTS).unlink()
    (bert_copy / HUB_WEIGHTS).write_bytes(content)
    said = "damaged (text, such as an error page or a pointer" if content else "damaged (empty)"
    assert said in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("strange", [torch.Tensor.to_sparse, lambda w: w.to("meta"), lambda w: w * 1j])
def test_weights_that_are_not_plain_are_refused(strange: Callable[..., Any], bert_copy: Path) -> None:
    state = load_file(bert_copy / WEIGHTS)
    torch.save({k: strange(v) if v.dim() == 2 else v for k, v in state.items()}, bert_copy / HUB_WEIGHTS)
    (bert_copy / WEIGHTS).unlink()
    assert "not a dictionary of named tensors" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("scale", [float("nan"), 1000.0])
def test_a_logit_scale_that_is_no_number_is_refused(scale: float, bert_copy: Path) -> None:
    state = load_file(bert_copy / WEIGHTS)
    save_file(state | {"logit_scale": torch.tensor(scale)}, bert_copy / WEIGHTS)
    assert "logit scale" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("kept", [0, 4, 1000, 50_000])
def test_truncated_safetensors_are_called_damaged(kept: int, bert_copy: Path) -> None:
    whole = (bert_copy / WEIGHTS).read_bytes()
    (bert_copy / WEIGHTS).write_bytes(whole[:kept])
    assert f"'{bert_copy / WEIGHTS}' are damaged" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("kept", [0, 10, 50_000])
def test_truncated_hub_weights_are_named(kept: int, bert_copy: Path) -> None:
    torch.save(load_file(bert_copy / WEIGHTS), bert_copy / HUB_WEIGHTS)
    (bert_copy / WEIGHTS).unlink()
    whole = (bert_copy / HUB_WEIGHTS).read_bytes()
    (bert_copy / HUB_WEIGHTS).write_bytes(whole[:kept])
    assert f"'{bert_copy / HUB_WEIGHTS}'" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize(
    "save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content, 2))]
)
def test_a_pickled_object_is_refused_and_not_run(
    save: Callable[[Any, Path], None], bert_copy: Path, tmp_path: Path
) -> None:
    mark = tmp_path / "exploded"
    (bert_copy / WEIGHTS).unlink()
    save({"visual.head.proj.weight": Bomb(mark)}, bert_copy / HUB_WEIGHTS)
    assert "more than tensors" in refusal(f"dir:{bert_copy}")
    assert not mark.exists()


@pytest.mark.parametrize("content", [[1, 2], {}, {"epoch": 3}, torch.zeros(3)])
def test_weights_without_names_are_refused(content: Any, bert_copy: Path) -> None:
    (bert_copy / WEIGHTS).unlink()
    torch.save(content, bert_copy / HUB_WEIGHTS)
    assert "named tensors" in refusal(f"dir:{bert_copy}")


@pytest.mark.parametrize("fault", ["shape", "missing", "further"])
def test_weights_of_another_model_are_refused(fault: str, bert_copy: Path) -> None:
    state = load_file(bert_copy / WEIGHTS)
    entry = "text.proj.0.weight"
    if fault == "shape":
        state[entry] = state[entry][:-1].clone()
    elif fault == "missing":
        del state[entry]
    else:
        entry = "text.proj.9.weight"
        state[entry] = torch.zeros(2)
    save_file(state, bert_copy / WEIGHTS)
    message = refusal(f"dir:{bert_copy}")
    assert str(bert_copy / WEIGHTS) in message and f"'{entry}'" in message and "do not fit" in message


def test_names_that_open_clip_does_not_know() -> None:
    with pytest.raises(UserError, match="Unknown open_clip model 'NoSuchModel'"):
        load_backbone("open_clip:NoSuchModel/x", "cpu")
    assert "'ViT-B-32'" in refusal("open_clip:ViT-B-33/openai")
    message = refusal("open_clip:ViT-B-32/nosuchtag")
    assert "openai" in message and "open_clip:ViT-B-32/PRETRAINED" in message
    assert "PRETRAINED" in refusal("open_clip:ViT-B-32")


def test_a_device_that_is_not_here_is_named(tiny_clip_folder: Path) -> None:
    for device in ("cuda:99", "abacus"):
        with pytest.raises(UserError, match=f"'{device}' is not available"):
            load_backbone(f"dir:{tiny_clip_folder}", device)
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in ("cpu", "cuda", "mps")


@pytest.fixture
def tiny_model_name(tmp_path: Path) -> Iterator[str]:
    """A small architecture in open_clip's own list, for as long as a test runs."""
    registry = open_clip.factory
    before = dict(registry._MODEL_CONFIGS), list(registry._MODEL_CONFIG_PATHS)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "vmfcoop-tiny.json").write_text(json.dumps(TINY_CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "configs")
    yield "vmfcoop-tiny"
    registry._MODEL_CONFIGS.clear()
    registry._MODEL_CONFIGS.update(before[0])
    registry._MODEL_CONFIG_PATHS[:] = before[1]


def test_a_named_model_with_a_checkpoint_file(tiny_model_name: str, tiny_clip_folder: Path) -> None:
    spec = f"open_clip:{tiny_model_name}/{tiny_clip_folder / WEIGHTS}"
    encoder, folder = load_backbone(spec, "cpu"), load_backbone(f"dir:{tiny_clip_folder}", "cpu")
    assert encoder.name == spec and encoder.fingerprint == folder.fingerprint
    texts = ["a photo of a glioma tumor."]
    assert torch.equal(encoder.encode_texts(texts), folder.encode_texts(texts))


def test_a_named_model_has_the_activation_that_its_weights_were_trained_with(
    tiny_model_name: str, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenAI's weights go with "quick" GELU, which the names of the architectures (ViT-B-16) do not say."""
    assert open_clip.get_pretrained_cfg("ViT-B-16", "openai")["quick_gelu"]
    spec = f"{tiny_model_name}/{tiny_clip_folder / WEIGHTS}"
    plain = load_backbone(f"open_clip:{spec}", "cpu")
    monkeypatch.setattr(open_clip, "get_pretrained_cfg", lambda *_: {"quick_gelu": True})
    quick = load_backbone(f"open_clip:{spec}", "cpu")
    assert quick.fingerprint != plain.fingerprint
    pixels = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(quick.encode_images(pixels), plain.encode_images(pixels), atol=1e-4)


def test_a_named_model_with_a_bad_checkpoint_file(tiny_model_name: str, tmp_path: Path) -> None:
    def refuse(content: bytes, file: str = "weights.pt") -> str:
        (tmp_path / file).write_bytes(content)
        return refusal(f"open_clip:{tiny_model_name}/{tmp_path / file}")

    assert "weights.pt" in refuse(pickle.dumps(Bomb(tmp_path / "exploded"), 2))
    assert not (tmp_path / "exploded").exists()
    assert "weights.pt" in refuse(b"no weights")
    assert "weights.safetensors" in refuse(b"no weights", "weights.safetensors")
    assert "none published" in refusal(f"open_clip:{tiny_model_name}/{tmp_path / 'nowhere.pt'}")


OFFLINE = """
import sys
from vmfcoop import load_backbone
from vmfcoop.errors import UserError

for spec in sys.argv[1:]:
    try:
        load_backbone(spec, "cpu")
    except UserError as error:
        print(error)
"""


def test_hub_specs_offline_with_an_empty_cache_are_told_the_way_out(tmp_path: Path) -> None:
    specs = ["biomedclip", "open_clip:hf-hub:nobody/clip", "open_clip:ViT-B-32/laion2b_s34b_b79k"]
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE, *specs],
        env={**os.environ, "HF_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    biomedclip, hub, named = done.stdout.strip().splitlines()
    assert "'biomedclip'" in biomedclip and "dir:FOLDER" in biomedclip
    assert "nobody/clip" in hub and "dir:FOLDER" in hub
    assert "ViT-B-32/laion2b_s34b_b79k" in named and "hub in reach" in named


def test_a_hub_repository_in_the_cache_loads_under_its_name(
    tiny_bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(tiny_bert_folder))
    assert load_backbone("biomedclip", "cpu").name == "biomedclip"
    assert load_backbone("open_clip:hf-hub:nobody/clip", "cpu").name == "open_clip:hf-hub:nobody/clip"


@pytest.mark.slow
def test_the_small_trained_model_is_open_clips_own() -> None:
    root = os.environ.get("VMFCOOP_TEST_DATA")
    if root is None:
        pytest.skip("VMFCOOP_TEST_DATA is not set")
    folder = Path(root) / "models" / "mini-biomed-clip"
    encoder = load_backbone(f"dir:{folder}", "cpu")
    assert encoder.dim == 512 and encoder.context_length == 128
    config = json.loads((folder / CONFIG).read_text())["model_cfg"]
    config["text_cfg"] |= {"hf_model_name": str(folder), "hf_model_pretrained": False}
    model = open_clip.CustomTextCLIP(**config).eval()
    model.load_state_dict(load_file(folder / WEIGHTS))
    assert isinstance(model.text.config, BertConfig)
    texts = ["an MRI of a glioma", "a photo of a normal brain.", "ultrasound"]
    pixels = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        text = model.encode_text(HFTokenizer(str(folder), context_length=128)(texts), normalize=True)
        image = model.encode_image(pixels, normalize=True)
    torch.testing.assert_close(encoder.encode_texts(texts), text, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_images(pixels), image, atol=1e-5, rtol=0)
