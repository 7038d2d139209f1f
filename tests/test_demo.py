"""The demo through its command: golden numbers on the embedded backbone, and what it leaves and shows."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
from rich.console import Console

from vmfcoop.backbones import load_backbone
from vmfcoop.demo import DEMO_METHODS, BaseToNovel, Demo
from vmfcoop.evaluation import draw_support, split_metrics
from vmfcoop.features import CachedEncoder
from vmfcoop.methods import make_method
from vmfcoop.pipeline import FitRequest
from vmfcoop.reporting.terminal import demo_report
from vmfcoop.run import read_run

pytestmark = pytest.mark.slow

# Means over the three seeds, by K = 1, 4, 16; base and novel classes at 16.
GOLDEN = {
    "zero-shot, class name": [0.6, 0.6, 0.6],
    "zero-shot, descriptions": [0.6, 0.6, 0.6],
    "CoOp": [0.631, 0.630, 0.778],
    "vMFCoOp": [0.615, 0.685, 0.787],
    "vMF posterior": [0.713, 0.809, 0.917],
}
GOLDEN_PAIRS = {
    "zero-shot, class name": (0.667, 0.514),
    "zero-shot, descriptions": (0.676, 1.0),
    "CoOp": (0.941, 0.528),
    "vMFCoOp": (0.963, 0.588),
    "vMF posterior": (0.951, 0.958),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("demo")


def demo_process(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process and a folder of its own, with the home of the test session."""
    return subprocess.run(
        [sys.executable, "-m", "vmfcoop", "demo", *arguments],
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "NO_COLOR": "1", "COLUMNS": "120"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def result(folder: Path) -> dict[str, Any]:
    done = demo_process(folder, "--json")
    assert done.returncode == 0, done.stderr
    content: dict[str, Any] = json.loads(done.stdout)
    return content


def test_golden_accuracies(result: dict[str, Any]) -> None:
    found = {method: [mean(seeds) for seeds in cells] for method, cells in result["accuracy"].items()}
    for method, cells in GOLDEN.items():
        assert found[method] == pytest.approx(cells, abs=0.03), method


def test_golden_base_to_novel(result: dict[str, Any]) -> None:
    for method, (base, novel) in GOLDEN_PAIRS.items():
        seeds = result["base_to_novel"][method]
        assert mean(seed["base"] for seed in seeds) == pytest.approx(base, abs=0.04), method
        assert mean(seed["novel"] for seed in seeds) == pytest.approx(novel, abs=0.04), method
        for seed in seeds:
            assert seed["harmonic_mean"] == pytest.approx(2 / (1 / seed["base"] + 1 / seed["novel"]))


def test_run_directory_holds_the_cell_of_the_table(result: dict[str, Any], folder: Path) -> None:
    run = read_run(folder / result["run"])
    assert run.record["backbone"]["spec"] == "phantom" and run.record["support"]["shots"] == 16
    assert run.metrics["accuracy"] == result["accuracy"]["vMFCoOp"][2][0]
    request = FitRequest(result["data"], backbone="phantom")
    encoder, table = CachedEncoder(load_backbone("phantom", "cpu")), request.dataset()
    bank = request.bank(table.class_names)
    support = draw_support(encoder, table, bank, shots=16, seed=1)
    fitted = make_method("vmfcoop", {"seed": 1}).fit(support, encoder)
    assert run.metrics["accuracy"] == pytest.approx(split_metrics(encoder, table, fitted)["accuracy"])


def test_examples_are_three_images_of_different_classes(result: dict[str, Any]) -> None:
    assert len({row["truth"] for row in result["examples"]}) == 3
    for row in result["examples"]:
        assert Path(row["image"]).is_file()
        assert sum(row["probabilities"].values()) == pytest.approx(1, abs=1e-4)
        assert row["predicted"] == max(row["probabilities"], key=row["probabilities"].get)


def test_report_shows_tables_cards_and_next_steps(result: dict[str, Any], folder: Path) -> None:
    pairs = {
        method: [BaseToNovel(seed["base"], seed["novel"]) for seed in seeds]
        for method, seeds in result["base_to_novel"].items()
    }
    run = read_run(folder / result["run"])
    demo = Demo(result["data"], tuple(result["shots"]), result["accuracy"], pairs, run, result["examples"])
    for colours in (True, False):
        console = Console(width=120, force_terminal=colours, color_system="truecolor" if colours else None)
        with console.capture() as capture:
            console.print(demo_report(demo, pictures=colours))
        text = capture.get()
        assert ("▀" in text) == colours
        chances = "chance is 20.0", "chance is 33.3 and 50.0"
        for expected in (
            *DEMO_METHODS,
            *chances,
            "K = 16",
            "harmonic mean",
            "truth:",
            "vmfcoop fit lesions/",
        ):
            assert expected in text


def test_says_what_is_wrong(folder: Path) -> None:
    done = demo_process(folder, "--data", "phantom-brain-mir")
    assert done.returncode == 2 and "did you mean 'phantom-brain-mri'" in done.stderr
    (folder / "mine").mkdir()
    (folder / "mine" / "thesis.txt").write_text("kept")
    done = demo_process(folder, "--out", "mine", "--overwrite")
    assert done.returncode == 2 and "is not a run directory" in done.stderr
    assert (folder / "mine" / "thesis.txt").read_text() == "kept"


@pytest.mark.parametrize("after", [6, 12])
def test_ctrl_c_ends_every_process_without_a_trace(result: dict[str, Any], folder: Path, after: int) -> None:
    command = [sys.executable, "-m", "vmfcoop", "demo", "--out", f"cut-{after}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        time.sleep(after)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    assert process.returncode == 2
    assert "Interrupted" in stderr and "Traceback" not in stderr
    assert not list(folder.glob(f".cut-{after}*"))
