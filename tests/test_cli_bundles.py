"""Machines without a network, by command: a bundle is carried over, and nothing asks the network."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tests.backbones.instances import TINY, write
from vmfcoop.backbones.catalogue import catalogue
from vmfcoop.cli import app

NAMES = ("glioma tumor", "meningioma tumor", "normal brain")

BLOCKER = '''
"""Refuses every connection and every look-up of a name in this process and its children, and notes them."""
import os
import socket

_LOG = os.environ["NETWORK_LOG"]
_connect, _connect_ex, _sendto = socket.socket.connect, socket.socket.connect_ex, socket.socket.sendto

def _refuse(what):
    with open(_LOG, "a") as log:
        log.write(f"{what}\\n")
    raise OSError(101, "Network is unreachable")

def _only_local(call):
    def guarded(self, *arguments):
        if self.family in (socket.AF_INET, socket.AF_INET6):
            _refuse(arguments)
        return call(self, *arguments)
    return guarded

socket.socket.connect = _only_local(_connect)
socket.socket.connect_ex = _only_local(_connect_ex)
socket.socket.sendto = _only_local(_sendto)
socket.getaddrinfo = lambda *arguments, **_: _refuse(arguments)
socket.gethostbyname = lambda *arguments: _refuse(arguments)
'''

COMMANDS = """
import json, sys
from vmfcoop.cli import app

if __name__ == "__main__":  # The benchmark starts processes that import this file.
    for command in json.loads(sys.argv[1]):
        try:
            app(command)
        except SystemExit as end:
            if end.code:
                sys.exit(f"{command} gave {end.code}")
"""


def vmfcoop(*arguments: Any) -> Any:
    """Run a command in this process."""
    environment = {"COLUMNS": "300", "NO_COLOR": "1"}
    result = CliRunner().invoke(app, list(map(str, arguments)), env=environment)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(result: Any) -> str:
    """Exit code 2, nothing on stdout, and one sentence on stderr, which is returned."""
    assert result.exit_code == 2 and result.stdout == ""
    messages = [line for line in result.stderr.splitlines() if line.startswith("Error:")]
    assert len(messages) == 1
    return messages[0]


@pytest.fixture(scope="module")
def origin(
    image_folder: Path, tiny_bert_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A connected machine: data, descriptions, a recipe and a run, with bundles of the last two."""
    root = tmp_path_factory.mktemp("connected")
    shutil.copytree(image_folder, root / "lesions")
    shutil.copytree(tiny_bert_folder, root / "bert")
    texts = {name: [f"a scan with {name}", f"{name} seen from above"] for name in NAMES}
    (root / "texts.json").write_text(json.dumps(texts))
    recipe = {
        "backbones": ["dir:bert"],
        "data": [{"spec": "lesions", "descriptions": "texts.json"}],
        "methods": ["zero-shot", "tip-adapter"],
        "shots": [1],
        "seeds": [1],
        "protocols": ["few-shot"],
        "views": 1,
    }
    (root / "lesions.yaml").write_text(yaml.safe_dump(recipe))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VMFCOOP_HOME", str(root / "home"))
        fit = [
            "fit",
            root / "lesions",
            "--backbone",
            f"dir:{root / 'bert'}",
            "--shots",
            2,
            "--out",
            root / "run",
        ]
        more = ["--descriptions", root / "texts.json", "--set", "epochs=1", "--set", "vocabulary_sample=32"]
        assert vmfcoop(*fit, *more).exit_code == 0
        assert vmfcoop("pack", root / "run", "--data", "--to", root / "run.tar").exit_code == 0
        assert vmfcoop("pack", root / "lesions.yaml", "--data", "--to", root / "recipe.tar").exit_code == 0
    yield root


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, and a home of its own."""
    monkeypatch.setenv("VMFCOOP_HOME", str(tmp_path / "home"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


def test_pack_says_what_is_in_the_bundle(origin: Path, machine: Path) -> None:
    result = vmfcoop("pack", origin / "run", "--data", "--to", machine / "b.tar")
    assert result.exit_code == 0, result.stderr
    assert re.search(r"Packed the run run into .*b\.tar: \d+ files, \d", result.stdout)
    assert "Images of lesions: 36 (18 train, 6 val, 12 test)" in result.stdout
    assert "name the images it was fitted and tested on" in result.stdout
    assert "Licence, before you pass it on" in result.stdout
    assert re.search(r"SHA-256: [0-9a-f]{64}", result.stdout)
    assert "Next, on the other machine: vmfcoop unpack b.tar" in result.stdout
    light = vmfcoop("pack", origin / "run", "--to", machine / "light.tar")
    assert "Images: none" in light.stdout


def test_pack_and_unpack_as_json(origin: Path, machine: Path) -> None:
    packed = json.loads(vmfcoop("pack", origin / "run", "--to", "b.tar", "--json").stdout)
    assert packed["kind"] == "run" and packed["bundle"] == str(machine / "b.tar") and packed["data"] == []
    unpacked = json.loads(vmfcoop("unpack", "b.tar", "--json").stdout)
    assert unpacked["run"] == str(machine / "b" / "run") and not unpacked["was_here"]
    (name,) = unpacked["backbone_folders"]
    assert unpacked["next"][0] == f"vmfcoop predict {machine / 'b' / 'run'} IMAGES --out predictions.csv"
    assert unpacked["next"][-1].startswith(f"vmfcoop fit DATA --backbone {name} --descriptions ")


def test_unpack_prints_commands_that_run(origin: Path, machine: Path) -> None:
    result = vmfcoop("unpack", origin / "run.tar", "--to", machine / "a folder")
    assert result.exit_code == 0 and "files are as they were packed" in result.stdout
    commands = [line.strip() for line in result.stdout.partition("Next:")[2].splitlines() if line.strip()]
    assert f"vmfcoop evaluate '{machine / 'a folder' / 'run'}'" in commands
    assert vmfcoop("evaluate", machine / "a folder" / "run").exit_code == 0
    again = vmfcoop("unpack", origin / "run.tar", "--to", machine / "a folder")
    assert "was here already" in again.stdout
    recipe = vmfcoop("unpack", origin / "recipe.tar")
    assert f"vmfcoop benchmark {machine / 'recipe' / 'lesions.yaml'} --out runs/lesions" in recipe.stdout


def test_what_cannot_be_packed_or_unpacked_is_one_sentence(origin: Path, machine: Path) -> None:
    assert "neither a run directory" in refused(vmfcoop("pack", machine, "--to", "b.tar"))
    assert "is there already" in refused(vmfcoop("pack", origin / "run", "--to", origin / "run.tar"))
    assert "does not exist" in refused(vmfcoop("unpack", "nowhere.tar"))
    content = (origin / "run.tar").read_bytes()
    Path("cut.tar").write_bytes(content[: len(content) // 2])
    assert "copy it anew" in refused(vmfcoop("unpack", "cut.tar"))


def test_the_list_has_every_key_and_what_else_is_here(origin: Path, machine: Path) -> None:
    vmfcoop("unpack", origin / "run.tar")
    listed = json.loads(vmfcoop("backbones", "list", "--json").stdout)
    assert [row["key"] for row in listed["backbones"]] == list(catalogue())
    here = [row["key"] for row in listed["backbones"] if row["here"]]
    (other,) = listed["others"]
    assert here == ["phantom"] and other["backbone"].startswith("bert-") and other["dim"] == 64
    text = vmfcoop("backbones", "list").stdout
    assert "biomedclip" in text and f"Also here: {other['backbone']}" in text


def test_verify_names_the_changed_file(origin: Path, machine: Path) -> None:
    vmfcoop("unpack", origin / "run.tar")
    (folder,) = (path for path in (machine.parent / "home" / "backbones").iterdir() if path.name[0] != ".")
    for name in (folder.name, str(folder), f"dir:{folder}"):
        result = vmfcoop("backbones", "verify", name)
        assert result.exit_code == 0 and "All 6 files" in result.stdout
    assert json.loads(vmfcoop("backbones", "verify", folder.name, "--json").stdout)["verified"] == 6
    (folder / "vocab.txt").write_text("x")
    assert f"'{folder / 'vocab.txt'}' was changed" in refused(vmfcoop("backbones", "verify", folder.name))
    assert "neither a folder nor a backbone" in refused(vmfcoop("backbones", "verify", "biomedclip"))
    assert "has no manifest.json" in refused(vmfcoop("backbones", "verify", machine))


def test_show_says_what_is_known_of_one_that_is_here_and_of_one_that_is_not(
    origin: Path, machine: Path
) -> None:
    vmfcoop("unpack", origin / "run.tar")
    (folder,) = (path for path in (machine.parent / "home" / "backbones").iterdir() if path.name[0] != ".")
    here = json.loads(vmfcoop("backbones", "show", folder.name, "--json").stdout)
    assert here["folder"] == str(folder) and here["parameters"] > 0 and here["precision"] == "fp32"
    assert {"fingerprint", "dim", "context_length", "vocabulary", "logit_scale"} <= set(here)
    gone = json.loads(vmfcoop("backbones", "show", "medsiglip", "--json").stdout)
    assert gone["here"] is False and gone["gated"] and gone["terms"].startswith("https://")
    assert "vmfcoop backbones fetch medsiglip --to FOLDER" in vmfcoop("backbones", "show", "medsiglip").stdout
    phantom = json.loads(vmfcoop("backbones", "show", "phantom", "--json").stdout)
    assert phantom["licence"] == "Apache-2.0" and phantom["limits"]


def test_fetch_says_the_licence_before_it_fails(machine: Path) -> None:
    result = vmfcoop("backbones", "fetch", "medsiglip")
    assert "Licence of medsiglip: Health AI Developer Foundations terms of use" in result.stderr
    assert "on a connected machine" in refused(result)
    assert "nothing to fetch" in refused(vmfcoop("backbones", "fetch", "phantom"))


# Nothing is asked of the network.


def run_offline(
    commands: list[list[str]], folder: Path, environment: dict[str, str], in_namespace: bool
) -> list[str]:
    """Run commands in one process without a network; return what they tried to reach."""
    (folder / "blocker").mkdir()
    (folder / "blocker" / "sitecustomize.py").write_text(BLOCKER)
    (folder / "commands.py").write_text(COMMANDS)
    log = folder / "network.log"
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "VMFCOOP", "TRANSFORMERS"))}
    paths = [str(folder / "blocker"), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {
        "PYTHONPATH": os.pathsep.join(paths),
        "NETWORK_LOG": str(log),
        "VMFCOOP_HOME": str(folder / "fresh-home"),
        "HF_HOME": str(folder / "fresh-hf"),
        "HOME": str(folder / "fresh-user"),
        "OMP_NUM_THREADS": "1",
    }
    begin = ["unshare", "-rn"] if in_namespace else []
    done = subprocess.run(
        [*begin, sys.executable, str(folder / "commands.py"), json.dumps(commands)],
        env=kept | own | environment,
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return log.read_text().splitlines() if log.exists() else []


def has_namespaces() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-rn", "true"], capture_output=True, check=False).returncode == 0


def test_the_blocker_blocks_and_notes_what_is_tried(tmp_path: Path) -> None:
    """What the tests below rely on: a fetch does ask the network."""
    commands = [["backbones", "fetch", "biomedclip"]]
    with pytest.raises(AssertionError, match="gave no copy"):
        run_offline(commands, tmp_path, {}, in_namespace=False)
    assert "huggingface.co" in (tmp_path / "network.log").read_text()


@pytest.fixture
def bundles(origin: Path) -> Iterator[Path]:
    """The bundles alone: the backbone, the images and the descriptions that they were made of are gone."""
    parts = ("bert", "lesions", "texts.json")
    for part in parts:
        (origin / part).rename(origin / f"gone-{part}")
    yield origin
    for part in parts:
        (origin / f"gone-{part}").rename(origin / part)


def commands_of_a_bundle(origin: Path, folder: Path) -> tuple[str, list[list[str]]]:
    """The name of the backbone in the bundle of a run, and commands that unpack it and predict."""
    shutil.copy(origin / "run.tar", folder)
    with tarfile.open(origin / "run.tar") as tar:
        name = next(member.split("/")[1] for member in tar.getnames() if member.startswith("backbones/"))
    predict = ["predict", "run/run", "run/data/lesions", "--out", "predictions.csv"]
    return name, [["unpack", "run.tar"], predict, ["evaluate", "run/run"]]


def shows_of_every_family(folder: Path) -> list[list[str]]:
    return [["backbones", "show", f"dir:{write(name, folder / 'models' / name)}"] for name in TINY]


def test_fit_predict_evaluate_and_benchmark_ask_nothing_of_the_network(bundles: Path, tmp_path: Path) -> None:
    """In a network namespace without any interface where the system allows it."""
    name, commands = commands_of_a_bundle(bundles, tmp_path)
    shutil.copy(bundles / "recipe.tar", tmp_path)
    images, texts = "run/data/lesions", "run/descriptions/descriptions.json"
    commands += [
        ["backbones", "list"],
        ["backbones", "verify", name],
        ["fit", images, "--backbone", name, "--method", "tip-adapter", "--shots", "1", "--out", "new"],
        ["descriptions", "show", texts, "--backbone", name],
        ["pack", "new", "--to", "new.tar"],
        ["unpack", "recipe.tar"],
        ["benchmark", "recipe/lesions.yaml", "--out", "bench", "--jobs", "2"],
        ["report", "bench"],
        *shows_of_every_family(tmp_path),
    ]
    assert run_offline(commands, tmp_path, {}, in_namespace=has_namespaces()) == []
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 37
    assert (tmp_path / "new.tar").is_file() and (tmp_path / "bench" / "report").is_dir()
    assert len(list((tmp_path / "bench" / "jobs").glob("*.json"))) == 2
    assert not (tmp_path / "fresh-hf").exists()


def test_nor_where_the_hub_is_told_to_be_offline(bundles: Path, tmp_path: Path) -> None:
    commands = commands_of_a_bundle(bundles, tmp_path)[1] + shows_of_every_family(tmp_path)
    assert run_offline(commands, tmp_path, {"HF_HUB_OFFLINE": "1"}, in_namespace=False) == []
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 37
