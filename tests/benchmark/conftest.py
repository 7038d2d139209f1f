"""Tiny recipes, and benchmark processes that tests may kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vmfcoop.benchmark.recipe import Recipe

SCRIPT = """
import sys
from pathlib import Path
from vmfcoop.benchmark.engine import run_benchmark
from vmfcoop.benchmark.recipe import Recipe

if __name__ == "__main__":
    recipe = Recipe.model_validate_json(Path(sys.argv[1]).read_text())
    try:
        outcome = run_benchmark(recipe, sys.argv[2], sys.argv[3], int(sys.argv[4]), stack=1)
    except KeyboardInterrupt:
        sys.exit("interrupted")
    print(outcome.done, outcome.reused, len(outcome.failed))
"""


@pytest.fixture(scope="session")
def four_classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four class folders of 10 noisy 24 x 24 images, brighter by class."""
    root = tmp_path_factory.mktemp("four")
    draw = np.random.default_rng(1)
    for label, name in enumerate(("cyst", "stone", "tumour", "normal_kidney")):
        (root / name).mkdir()
        for number in range(10):
            pixels = np.clip(draw.normal(40 + 50 * label, 30, (24, 24, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


@pytest.fixture
def make_recipe(image_folder: Path, tiny_bert_folder: Path) -> Callable[..., Recipe]:
    """A recipe of two methods on three classes; keywords replace its keys."""

    def make(**changes: Any) -> Recipe:
        content = {
            "backbones": [f"dir:{tiny_bert_folder}"],
            "data": [{"spec": str(image_folder), "name": "brain"}],
            "methods": ["zero-shot", {"name": "coop", "settings": {"epochs": 1}}],
            "shots": [1, 2],
            "seeds": [1, 2],
            "protocols": ["few-shot"],
            "views": 2,
            **changes,
        }
        return Recipe.model_validate(content)

    return make


class BenchProcess:
    """A benchmark in a process of its own, in a process group of its own."""

    def __init__(self, recipe: Recipe, out: Path, folder: Path, engine: str = "local", jobs: int = 1) -> None:
        self.out = out
        script, content = folder / "bench.py", folder / "recipe.json"
        script.write_text(SCRIPT)
        content.write_text(recipe.model_dump_json())
        self.process = subprocess.Popen(
            [sys.executable, str(script), str(content), str(out), engine, str(jobs)],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, what: str, count: int = 1, timeout: float = 90) -> list[Path]:
        """Files of the benchmark folder, as soon as there are so many with something in them.

        A process that is killed between making and signing its claim leaves one that nobody can know for its.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            found = [
                path for path in self.out.glob(what) if not path.name.startswith(".") and _has_content(path)
            ]
            if len(found) >= count:
                return found
            time.sleep(0.005)
        self.process.kill()
        raise AssertionError(f"{what} did not appear: {self.process.communicate()[1]}")

    def kill_a_worker(self) -> None:
        """Kill one of its processes, as soon as it is at a job."""
        pid = None
        while pid is None:
            for claim in self.wait_for("claims/*"):
                with suppress(OSError, ValueError):  # over, or not yet signed
                    pid = json.loads(claim.read_text())["pid"]
        assert pid != self.process.pid
        os.kill(pid, signal.SIGKILL)

    def interrupt(self, timeout: float = 60) -> str:
        """Ctrl-C: what its standard error says, once every process of the group is gone."""
        os.killpg(self.process.pid, signal.SIGINT)
        _, stderr = self.process.communicate(timeout=timeout)
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            try:
                os.killpg(self.process.pid, 0)
            except ProcessLookupError:
                return stderr
            time.sleep(0.05)
        raise AssertionError("a process lives on")

    def counts(self) -> tuple[int, int, int]:
        """Jobs done, reused and failed, when it has ended."""
        stdout, stderr = self.process.communicate(timeout=120)
        assert self.process.returncode == 0, stderr
        done, reused, failed = map(int, stdout.split())
        return done, reused, failed


@pytest.fixture
def bench_process(tmp_path: Path) -> Callable[..., BenchProcess]:
    def start(recipe: Recipe, out: Path, **options: Any) -> BenchProcess:
        return BenchProcess(recipe, out, tmp_path, **options)

    return start


def _has_content(path: Path) -> bool:
    try:
        return path.stat().st_size > 0
    except FileNotFoundError:
        return False
