"""Fetching backbones from a server that speaks the hub's protocol: what arrives, is resumed, is refused."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import open_clip
import pytest
import torch
from benchmarks import random_transformers
from benchmarks.random_backbone import write_folder
from benchmarks.random_checkpoints import write_medclip, write_pmc_clip
from huggingface_hub import constants
from open_clip.transform import PreprocessCfg
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from tests.backbones.hub_server import COMMIT, OTHER_COMMIT, HubServer, serving
from tests.conftest import TINY_CLIP_CONFIG
from vmfcoop.backbones import conversion, load_backbone, sources
from vmfcoop.backbones import fetching as fetching_module
from vmfcoop.backbones.catalogue import PublishedBackbone, catalogue
from vmfcoop.backbones.fetching import fetch_backbone, is_here
from vmfcoop.backbones.installed import (
    MANIFEST,
    backbone_home,
    backbones_folder,
    find_by_fingerprint,
    folder_name,
    read_manifest,
    recorded_spec,
    verify_folder,
)
from vmfcoop.backbones.open_clip import OpenClipEncoder
from vmfcoop.cli import app
from vmfcoop.data import downloads
from vmfcoop.errors import UserError

BIOMEDCLIP = "microsoft/BiomedCLIP-PubMedBERT_256-vit_base_patch16_224"
WEIGHTS = "open_clip_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A running hub that may be asked; an empty home and cache; no token; no waiting."""
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(downloads, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    with serving() as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.address)
        template = server.address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        yield server


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put an entry into the catalogue; its addresses may be plain http."""

    def add(key: str, **known: Any) -> None:
        usual = {
            "family": "open_clip",
            "domain": "radiology",
            "title": key,
            "licence": "MIT",
            "limits": "None.",
        }
        entry = PublishedBackbone.model_construct(key=key, source="https://nowhere", **(usual | known))
        entries = {**catalogue(), key: entry}
        for module in (sources, fetching_module):
            monkeypatch.setattr(module, "catalogue", lambda: entries)

    return add


def refusal(spec: str, **options: Any) -> str:
    """The message of the UserError that fetching gives: one line."""
    with pytest.raises(UserError) as caught:
        fetch_backbone(spec, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def left_behind(folder: Path) -> list[str]:
    return [path.name for path in folder.glob(".*")]


def test_what_is_fetched_loads_by_its_key_and_asks_nobody(hub: HubServer, tiny_bert_folder: Path) -> None:
    hub.publish(BIOMEDCLIP, tiny_bert_folder)
    assert not is_here("biomedclip")
    place = fetch_backbone("biomedclip")
    hub.requests.clear()
    encoder = load_backbone("biomedclip", "cpu")
    assert encoder.name == "biomedclip" and place == backbone_home("biomedclip") and is_here("biomedclip")
    assert encoder.fingerprint == load_backbone(f"dir:{tiny_bert_folder}", "cpu").fingerprint
    assert fetch_backbone("biomedclip") == place and hub.requests == []
    assert left_behind(backbones_folder()) == []


def test_the_manifest_says_what_came_from_where(hub: HubServer, tiny_bert_folder: Path) -> None:
    hub.publish(BIOMEDCLIP, tiny_bert_folder)
    manifest = read_manifest(fetch_backbone("biomedclip"))
    assert (manifest.spec, manifest.family, manifest.dim) == ("biomedclip", "open_clip", 64)
    assert (manifest.repository, manifest.commit) == (BIOMEDCLIP, COMMIT)
    assert manifest.licence == "MIT" and "out of scope" in manifest.limits
    assert manifest.parameters and manifest.fetched and manifest.vmfcoop
    assert set(manifest.files) == set(hub.repositories[BIOMEDCLIP])
    assert manifest.files[WEIGHTS].bytes == len(hub.repositories[BIOMEDCLIP][WEIGHTS])


def test_only_what_loading_needs_is_downloaded_and_the_licence(
    hub: HubServer, tiny_bert_folder: Path
) -> None:
    hub.publish("nobody/clip", tiny_bert_folder)
    more = dict.fromkeys(("README.md", "flax_model.msgpack", "onnx/config.json", "logo.png"), b"0")
    hub.repositories["nobody/clip"] |= more | {
        "LICENSE": b"Do as you like.",
        "open_clip_pytorch_model.bin": b"0",
    }
    hub.cards["nobody/clip"] = {"license": "apache-2.0"}
    place = fetch_backbone("hf:nobody/clip")
    wanted = {path.name for path in tiny_bert_folder.iterdir()} | {"LICENSE"}
    assert set(hub.given()) == wanted
    assert {path.name for path in place.iterdir()} == wanted | {MANIFEST}
    assert read_manifest(place).licence == "apache-2.0"


def test_a_folder_to_carry_loads_as_dir(hub: HubServer, tiny_clip_folder: Path, tmp_path: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    stick = tmp_path / "usb" / "clip"
    assert fetch_backbone("open_clip:hf-hub:nobody/clip", stick) == stick
    assert load_backbone(f"dir:{stick}", "cpu").dim == 64 and not backbones_folder().exists()
    assert [path.name for path in stick.parent.iterdir()] == ["clip"]


def test_what_was_fetched_before_is_copied_not_downloaded(
    hub: HubServer, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    fetch_backbone("hf:nobody/clip")
    hub.requests.clear()
    stick = fetch_backbone("hf:nobody/clip", tmp_path / "usb")
    assert hub.requests == [] and verify_folder(stick).commit == COMMIT


def test_the_hubs_own_cache_is_used_online_and_offline(
    hub: HubServer, tiny_clip_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    first = load_backbone("hf:nobody/clip", "cpu")
    hub.requests.clear()
    assert load_backbone("hf:nobody/clip", "cpu").fingerprint == first.fingerprint and hub.requests == []
    fetch_backbone("hf:nobody/clip")
    assert hub.given() == []
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    shutil.rmtree(backbones_folder())
    manifest = read_manifest(fetch_backbone("hf:nobody/clip"))
    assert manifest.commit == COMMIT and manifest.fingerprint == first.fingerprint


def test_a_name_of_open_clips_list_is_here_once_the_hubs_cache_has_it(hub: HubServer, tmp_path: Path) -> None:
    assert not is_here("clip-vit-b-16")
    folder = tmp_path / "hub" / "models--timm--vit_base_patch16_clip_224.openai"
    (folder / "snapshots" / COMMIT).mkdir(parents=True)
    assert not is_here("clip-vit-b-16")
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(COMMIT)
    (folder / "snapshots" / COMMIT / WEIGHTS).write_bytes(b"0")
    assert is_here("clip-vit-b-16") and not is_here("siglip-vit-b-16") and not is_here("pmc-clip")


@pytest.mark.parametrize("form", ["whole", "sharded", "bin"])
def test_folders_of_transformers(form: str, hub: HubServer, tmp_path: Path) -> None:
    folder = random_transformers.write_folder(tmp_path / "clip", random_transformers.tiny_clip())
    expected = load_backbone(f"dir:{folder}", "cpu").fingerprint
    weights = folder / "model.safetensors"
    if form == "sharded":
        write_shards(weights)
    elif form == "bin":
        torch.save(load_file(weights), folder / "pytorch_model.bin")
        weights.unlink()
    hub.publish("flaviagiammarino/pubmed-clip-vit-base-patch32", folder)
    place = fetch_backbone("pubmedclip")
    assert read_manifest(place).family == "transformers"
    assert load_backbone("pubmedclip", "cpu").fingerprint == expected
    assert load_backbone("hf:flaviagiammarino/pubmed-clip-vit-base-patch32", "cpu").fingerprint == expected


def write_shards(weights: Path) -> None:
    """Weights in two files and their index, as transformers writes large ones."""
    state = load_file(weights)
    names = sorted(state)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: state[name] for name in own}, weights.with_name(file), {"format": "pt"})
    where = {name: file for file, own in parts.items() for name in own}
    index = json.dumps({"metadata": {}, "weight_map": where})
    weights.with_name(f"{weights.name}.index.json").write_text(index)
    weights.unlink()


def test_a_missing_shard_is_said(hub: HubServer, tmp_path: Path) -> None:
    folder = random_transformers.write_folder(tmp_path / "clip", random_transformers.tiny_clip())
    write_shards(folder / "model.safetensors")
    (folder / "model-00002-of-00002.safetensors").unlink()
    hub.publish("nobody/clip", folder)
    message = refusal("hf:nobody/clip")
    assert "model-00002-of-00002.safetensors" in message and ".part" not in message
    assert not backbone_home("hf:nobody/clip").exists() and left_behind(backbones_folder()) == []


def test_plain_addresses_and_a_borrowed_tokenizer(hub: HubServer, publish: Any, tmp_path: Path) -> None:
    folder = write_pmc_clip(tmp_path / "pmc", tiny=True)
    expected = load_backbone(f"dir:{folder}", "cpu").fingerprint
    files = [path.name for path in folder.glob("*.pth")]
    hub.repositories["datasets/nobody/pmc_oa"] = {file: (folder / file).read_bytes() for file in files}
    hub.repositories["nobody/bert"] = {
        path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".pth"
    } | {"pytorch_model.bin": b"0", "README.md": b"0"}
    publish(
        "pmc",
        family="pmc-clip",
        urls=tuple(f"https://huggingface.co/datasets/nobody/pmc_oa/resolve/main/{file}" for file in files),
        files=tuple(files),
        tokenizer="nobody/bert",
    )
    place = fetch_backbone("pmc")
    manifest = verify_folder(place)
    assert manifest.fingerprint == expected and manifest.tokenizer == f"nobody/bert@{COMMIT}"
    assert len(manifest.urls) == 3 and "pytorch_model.bin" not in hub.given()
    assert load_backbone("pmc", "cpu").name == "pmc"


def test_a_zip_archive_at_a_plain_address(hub: HubServer, publish: Any, tmp_path: Path) -> None:
    folder = write_medclip(tmp_path / "medclip", tiny=True)
    hub.repositories["nobody/bert"] = {"vocab.txt": (folder / "vocab.txt").read_bytes()}
    archive = tmp_path / "medclip.zip"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as content:
        content.write(folder / "pytorch_model.bin", "medclip/pytorch_model.bin")
    hub.plain["/medclip.zip"] = archive.read_bytes()
    publish(
        "med",
        family="medclip",
        urls=(f"{hub.address}/medclip.zip",),
        files=("pytorch_model.bin",),
        tokenizer="nobody/bert",
    )
    place = fetch_backbone("med")
    expected = load_backbone(f"dir:{folder}", "cpu").fingerprint
    assert {path.name for path in place.iterdir()} == {"pytorch_model.bin", "vocab.txt", MANIFEST}
    assert read_manifest(place).fingerprint == expected
    hub.plain["/medclip.zip"] = archive.read_bytes()[:-40]
    assert "repeat the command to download it again" in refusal("med", replace=True)
    assert verify_folder(place).fingerprint == expected
    hub.plain["/medclip.zip"] = archive.read_bytes()
    fetch_backbone("med", replace=True)
    assert left_behind(backbones_folder()) == []


@pytest.fixture
def tiny_model_name(tmp_path: Path) -> Iterator[str]:
    """A small architecture in open_clip's own list; NAME-plain is the same without quick GELU."""
    registry = open_clip.factory
    before = dict(registry._MODEL_CONFIGS), list(registry._MODEL_CONFIG_PATHS)
    (tmp_path / "configs").mkdir()
    quick = {**TINY_CLIP_CONFIG, "quick_gelu": True}
    (tmp_path / "configs" / "vmfcoop-tiny.json").write_text(json.dumps(quick))
    (tmp_path / "configs" / "vmfcoop-tiny-plain.json").write_text(json.dumps(TINY_CLIP_CONFIG))
    open_clip.add_model_config(tmp_path / "configs")
    yield "vmfcoop-tiny"
    registry._MODEL_CONFIGS.clear()
    registry._MODEL_CONFIGS.update(before[0])
    registry._MODEL_CONFIG_PATHS[:] = before[1]


@pytest.mark.parametrize("on_hub", [True, False])
def test_a_bare_checkpoint_becomes_a_folder(
    on_hub: bool, hub: HubServer, publish: Any, tiny_model_name: str, tmp_path: Path
) -> None:
    quick = {**TINY_CLIP_CONFIG, "quick_gelu": True}
    folder = write_folder(tmp_path / "clip", quick)
    state = {f"module.{name}": value for name, value in load_file(folder / WEIGHTS).items()}
    torch.save({"epoch": 3, "state_dict": state, "optimizer": {}}, tmp_path / "bare.pt")
    if on_hub:
        hub.repositories["nobody/bare"] = {"bare.pt": (tmp_path / "bare.pt").read_bytes(), "LICENSE": b"MIT"}
        known: dict[str, Any] = {"repository": "nobody/bare"}
    else:
        hub.plain["/bare.pt"] = (tmp_path / "bare.pt").read_bytes()
        known = {"urls": (f"{hub.address}/bare.pt",), "files": ("bare.pt",)}
    publish("bare", checkpoint="bare.pt", architecture=tiny_model_name, **known)
    place = fetch_backbone("bare")
    ours, expected = load_backbone("bare", "cpu"), load_backbone(f"dir:{folder}", "cpu")
    assert torch.equal(ours.encode_texts(["a cyst"]), expected.encode_texts(["a cyst"]))
    names = {"open_clip_config.json", WEIGHTS, MANIFEST, *(["LICENSE"] if on_hub else [])}
    assert {path.name for path in place.iterdir()} == names


def test_a_name_of_open_clips_list_becomes_a_folder(
    hub: HubServer, tiny_model_name: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "clip", {**TINY_CLIP_CONFIG, "quick_gelu": True})
    spec = f"open_clip:{tiny_model_name}/{folder / WEIGHTS}"
    online = load_backbone(spec, "cpu")
    stick = fetch_backbone(spec, tmp_path / "usb")
    offline = load_backbone(f"dir:{stick}", "cpu")
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(online.encode_images(pixels), offline.encode_images(pixels))
    assert torch.equal(online.encode_texts(["a cyst"]), offline.encode_texts(["a cyst"]))
    assert json.loads((stick / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"]
    fetch_backbone(spec)
    assert load_backbone(spec, "cpu").name == spec and hub.given() == []


def test_an_activation_that_only_the_weights_ask_for_is_written(
    tiny_model_name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As open_clip's list says of OpenAI's weights, whose architectures have two names there."""

    plain = f"{tiny_model_name}-plain"

    def with_quick_gelu(name: str) -> OpenClipEncoder:
        model = open_clip.create_model(plain, force_quick_gelu=True, force_custom_text=True)
        settings = PreprocessCfg(**model.visual.preprocess_cfg)
        return OpenClipEncoder(model, open_clip.get_tokenizer(plain), settings, name)

    assert "quick_gelu" not in open_clip.get_model_config(plain)
    monkeypatch.setattr(conversion, "load_named", with_quick_gelu)
    conversion.write_named(f"{plain}/openai", tmp_path)
    assert json.loads((tmp_path / "open_clip_config.json").read_text())["model_cfg"]["quick_gelu"]


def test_a_cut_connection_is_resumed_in_the_same_fetch(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    hub.close_after = [1_000_000, 2_000_000]
    fetch_backbone("hf:nobody/clip")
    ranges = [wanted for kind, path, wanted, _ in hub.requests if kind == "GET" and WEIGHTS in path]
    assert ranges == [None, "bytes=1000000-", "bytes=3000000-"]


def test_an_interrupted_fetch_goes_on_in_the_next_one(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    hub.close_after = [1_000_000] + [0] * 5
    assert "repeat the command, it goes on from there" in refusal("hf:nobody/clip")
    assert not backbone_home("hf:nobody/clip").exists()
    hub.requests.clear()
    fetch_backbone("hf:nobody/clip")
    ranges = [wanted for kind, path, wanted, _ in hub.requests if kind == "GET" and WEIGHTS in path]
    assert ranges == ["bytes=1000000-"] and left_behind(backbones_folder()) == []


def test_a_new_commit_starts_clean(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    hub.close_after = [1_000_000] + [0] * 5
    refusal("hf:nobody/clip")
    hub.commit = OTHER_COMMIT
    hub.requests.clear()
    assert read_manifest(fetch_backbone("hf:nobody/clip")).commit == OTHER_COMMIT
    ranges = [wanted for kind, path, wanted, _ in hub.requests if kind == "GET" and WEIGHTS in path]
    assert ranges == [None] and left_behind(backbones_folder()) == []


def test_a_wrong_checksum_is_refused_and_not_kept(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    hub.etags[WEIGHTS] = "0" * 64
    assert f"{WEIGHTS} is not the file that its publisher states" in refusal("hf:nobody/clip")
    hub.etags.clear()
    fetch_backbone("hf:nobody/clip")


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_repository_is_told_how_to_get_in(
    status: int, hub: HubServer, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.gated_status = status
    hub.publish("google/medsiglip-448", tiny_clip_folder)
    hub.gated.add("google/medsiglip-448")
    for spec in ("medsiglip", "hf:google/medsiglip-448"):
        message = refusal(spec)
        assert "https://huggingface.co/google/medsiglip-448" in message and "HF_TOKEN" in message
    with pytest.raises(UserError, match="accepted its terms"):
        load_backbone("hf:google/medsiglip-448", "cpu")
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: "hf_secret")
    assert fetch_backbone("hf:google/medsiglip-448").is_dir()
    assert "hf_secret" not in (backbone_home("hf:google/medsiglip-448") / MANIFEST).read_text()


def test_what_is_not_there_is_said(hub: HubServer, tiny_clip_folder: Path) -> None:
    assert "no model repository 'nobody/nothing'" in refusal("hf:nobody/nothing")
    assert "no model repository 'not a name'" in refusal("hf:not a name")
    hub.publish("nobody/clip", tiny_clip_folder)
    assert "no such revision" in refusal("hf:nobody/clip", revision="v9")
    del hub.repositories["nobody/clip"][WEIGHTS]
    assert f"no {WEIGHTS}" in refusal("hf:nobody/clip")
    hub.repositories["nobody/data"] = {"README.md": b"0"}
    assert "no backbone of a known format" in refusal("hf:nobody/data")


def test_a_revision_is_fetched_and_another_one_is_not_taken_for_it(
    hub: HubServer, tiny_clip_folder: Path
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    assert read_manifest(fetch_backbone("hf:nobody/clip", revision=COMMIT)).revision == COMMIT
    assert "--replace" in refusal("hf:nobody/clip", revision=OTHER_COMMIT)
    hub.commit = OTHER_COMMIT
    place = fetch_backbone("hf:nobody/clip", revision=OTHER_COMMIT, replace=True)
    assert read_manifest(place).commit == OTHER_COMMIT
    assert "no revisions" in refusal("open_clip:ViT-B-32/openai", revision="main")


@pytest.mark.parametrize("way", ["HF_HUB_OFFLINE", "no server"])
def test_without_a_network_the_way_out_is_told(
    way: str, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "HF_HUB_OFFLINE":
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    else:
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for act in (lambda: fetch_backbone("biomedclip"), lambda: load_backbone("biomedclip", "cpu")):
        with pytest.raises(UserError, match="backbones fetch biomedclip --to FOLDER' on a connected machine"):
            act()
    assert not backbone_home("biomedclip").exists()


def test_what_is_no_spec_to_fetch_is_refused(hub: HubServer, tmp_path: Path) -> None:
    assert "did you mean 'biomedclip'" in refusal("biomedclib")
    assert "comes with the package" in refusal("phantom")
    assert "nothing to fetch" in refusal(f"dir:{tmp_path}")
    assert "Unknown backbone" in refusal("..")
    assert folder_name("../x") == "x" and folder_name("hf:../..") == "hf--..--.."


def test_other_files_are_never_replaced(hub: HubServer, tiny_clip_folder: Path, tmp_path: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    for replace in (False, True):
        assert "choose another folder" in refusal("hf:nobody/clip", to=tmp_path / "mine", replace=replace)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "x"
    fetch_backbone("hf:nobody/clip", tmp_path / "usb")
    assert "holds the backbone 'hf:nobody/clip'" in refusal("biomedclip", to=tmp_path / "usb")


def test_the_current_folder_and_a_whole_disk_are_refused_before_any_download(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert "is the current folder" in refusal("hf:nobody/clip", to=Path())
    assert "is a whole disk; name a folder on it" in refusal("hf:nobody/clip", to=Path("/"))
    assert hub.requests == []


def test_the_next_command_can_be_pasted_whatever_the_folder(
    hub: HubServer, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    place = tmp_path / "ward's stick" / "clip"
    done = CliRunner().invoke(app, ["backbones", "fetch", "hf:nobody/clip", "--to", str(place)])
    command = done.stdout.partition("Next: ")[2]
    assert done.exit_code == 0 and shlex.split(command)[-2:] == ["--backbone", f"dir:{place.resolve()}"]


def test_a_failed_replace_leaves_the_old_one(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    place = fetch_backbone("hf:nobody/clip")
    hub.etags[WEIGHTS] = "0" * 64
    refusal("hf:nobody/clip", replace=True)
    assert verify_folder(place).commit == COMMIT


def test_a_full_disk_is_one_sentence(
    hub: HubServer, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_append", full)
    assert "is full; free some space" in refusal("hf:nobody/clip")
    assert not backbone_home("hf:nobody/clip").exists()


def _fetch_in_process(spec: str, address: str) -> None:
    constants.HF_HUB_OFFLINE, constants.ENDPOINT = False, address
    constants.HUGGINGFACE_CO_URL_TEMPLATE = address + "/{repo_id}/resolve/{revision}/{filename}"
    fetch_backbone(spec)


def test_two_processes_fetch_one_backbone_once(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=_fetch_in_process, args=("hf:nobody/clip", hub.address)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert hub.given().count(WEIGHTS) == 1 and verify_folder(backbone_home("hf:nobody/clip"))


def test_a_killed_fetch_leaves_nothing_that_loads_and_is_gone_on_with(
    hub: HubServer, tiny_clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    hub.hold_after = 1_500_000
    context = multiprocessing.get_context("fork")
    worker = context.Process(target=_fetch_in_process, args=("hf:nobody/clip", hub.address))
    worker.start()
    assert hub.held.wait(30)
    time.sleep(0.2)
    worker.kill()
    worker.join(30)
    hub.hold_after = None
    hub.release.set()
    assert worker.exitcode == -signal.SIGKILL and not is_here("hf:nobody/clip")
    hub.requests.clear()
    fetch_backbone("hf:nobody/clip")
    ranges = [wanted for kind, path, wanted, _ in hub.requests if kind == "GET" and WEIGHTS in path]
    assert ranges[0] is not None and left_behind(backbones_folder()) == []


def test_a_changed_missing_or_added_file_is_named(hub: HubServer, tiny_clip_folder: Path) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    place = fetch_backbone("hf:nobody/clip")
    weights = place / WEIGHTS
    content = weights.read_bytes()
    for damage in (content[:-1], content[:-1] + b"!"):
        weights.write_bytes(damage)
        with pytest.raises(UserError, match=f"'{weights}' was changed"):
            verify_folder(place)
    weights.write_bytes(content)
    verify_folder(place)
    (place / "open_clip_pytorch_model.safetensors").write_bytes(b"0")
    with pytest.raises(UserError, match="is not in the manifest"):
        verify_folder(place)
    weights.unlink()
    with pytest.raises(UserError, match=f"'{weights}' is missing"):
        verify_folder(place)


@pytest.mark.parametrize("content", ["", "[]", '{"format": 1}', "\x00"])
def test_a_damaged_manifest_is_said(content: str, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(UserError, match="fetch or unpack the backbone again"):
        read_manifest(tmp_path)


def test_a_manifest_of_a_newer_version_is_said(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text('{"format": 2}')
    with pytest.raises(UserError, match="has format 2; this version of vmfcoop reads 1, update it"):
        read_manifest(tmp_path)
    with pytest.raises(UserError, match="has no manifest.json"):
        read_manifest(tmp_path / "nowhere")


def test_a_recorded_backbone_is_found_by_its_fingerprint(
    hub: HubServer, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    hub.publish("nobody/clip", tiny_clip_folder)
    place = fetch_backbone("hf:nobody/clip")
    fingerprint = read_manifest(place).fingerprint
    gone = f"dir:{tmp_path / 'gone'}"
    assert find_by_fingerprint(fingerprint) == place and find_by_fingerprint("0") is None
    assert recorded_spec(gone, fingerprint) == place.name
    assert load_backbone(place.name, "cpu").fingerprint == fingerprint
    assert recorded_spec(gone, "0") == gone and recorded_spec("phantom", "0") == "phantom"
    here = f"dir:{tiny_clip_folder}"
    assert recorded_spec(here, fingerprint) == here
    assert recorded_spec("hf:nobody/clip", fingerprint) == "hf:nobody/clip"


def test_the_environment_variables_of_the_hub_are_heard(
    hub: HubServer, tiny_clip_folder: Path, tmp_path: Path
) -> None:
    hub.publish(BIOMEDCLIP, tiny_clip_folder)
    hub.gated.add(BIOMEDCLIP)
    environment = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_secret"}
    done = subprocess.run(
        [sys.executable, "-m", "vmfcoop", "backbones", "fetch", "biomedclip", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["commit"] == COMMIT and "Licence of biomedclip: MIT" in done.stderr
    assert {token for kind, path, _, token in hub.requests if WEIGHTS in path} == {"Bearer hf_secret"}
