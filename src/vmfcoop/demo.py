"""The demo: the main job on drawn images and the embedded CLIP, in a minute, with nothing to download."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.benchmark.engine import run_benchmark
from vmfcoop.benchmark.recipe import DataEntry, MethodEntry, Recipe
from vmfcoop.benchmark.results import Cell, read_bench
from vmfcoop.data import Dataset
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation import harmonic_mean
from vmfcoop.pipeline import FitRequest, run_fit
from vmfcoop.predicting import predict_images
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.reporting.run_report import write_run_report
from vmfcoop.run import REPORT, Run, refuse_existing

DEMO_METHODS: dict[str, str] = {
    "zero-shot, class name": "zero-shot",
    "zero-shot, descriptions": "zero-shot-ensemble",
    "CoOp": "coop",
    "vMFCoOp": "vmfcoop",
    "vMF posterior": "vmf-posterior",
}
"""Methods by their name in the table."""
SHOTS, SEEDS = (1, 4, 16), (1, 2, 3)
SHOWN_MISTAKES = 2
"""In the report: a map takes most of a second."""


@dataclass(frozen=True)
class BaseToNovel:
    """Accuracies of base to novel.

    Attributes:
        base: on test images of the base classes, which the support set holds.
        novel: on test images of the others, by their names (and descriptions).
    """

    base: float
    novel: float

    @property
    def harmonic_mean(self) -> float:
        """Of both."""
        return harmonic_mean(self.base, self.novel)


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        data: key of the phantom dataset.
        shots: the numbers of support images a class.
        accuracy: by method, then for every K the test accuracy of every seed.
        generalisation: by method, the base-to-novel accuracies of every seed, at the most shots; empty for
            datasets of fewer than four classes.
        run: run directory of vMFCoOp at the most shots and the first seed.
        examples: of three test images, file, truth and class probabilities by that run.
    """

    data: str
    shots: tuple[int, ...]
    accuracy: dict[str, list[list[float]]]
    generalisation: dict[str, list[BaseToNovel]]
    run: Run
    examples: list[dict[str, Any]]

    @property
    def report(self) -> Path:
        """The run's page."""
        return self.run.folder / REPORT

    def as_json(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        pairs = {
            method: [{**asdict(seed), "harmonic_mean": seed.harmonic_mean} for seed in seeds]
            for method, seeds in self.generalisation.items()
        }
        return {
            "data": self.data,
            "shots": list(self.shots),
            "accuracy": self.accuracy,
            "base_to_novel": pairs,
            "run": str(self.run.folder),
            "report": str(self.report),
            "examples": self.examples,
        }


def run_demo(
    data: str,
    out: Path,
    overwrite: bool = False,
    progress: ProgressReport = no_progress,
    device: str = "cpu",
) -> Demo:
    """Methods at every K and seed on a phantom dataset, base to novel, a run with its report, predictions.

    It is a small benchmark, a fit and its report: jobs run in processes of their own, so a script that calls
    this does so below ``if __name__ == "__main__"``.

    Args:
        data: key of a phantom dataset.
        out: run directory of vMFCoOp at the most shots and the first seed.
        overwrite: replace the run directory if it is there.
        progress: told of drawing, encoding and fits.
        device: where the towers run; the embedded ones are so small that a GPU is not faster.

    Raises:
        UserError: no such dataset or device, or ``out`` exists.
    """
    if data not in PHANTOMS:
        raise unknown_name("phantom dataset", data, PHANTOMS)
    resolve_device(device)
    refuse_existing(out, overwrite)
    cells = _benchmark(data, device, progress)
    request = FitRequest(data, backbone="phantom", shots=max(SHOTS), seed=SEEDS[0], device=device)
    run = run_fit(request, out, overwrite, ["vmfcoop", "demo", "--data", data])
    accuracy = {
        title: [[_accuracy(cell, "test") for cell in _of(cells, "few-shot", title, k)] for k in SHOTS]
        for title in DEMO_METHODS
    }
    pairs = {title: _of(cells, "base-to-novel", title, max(SHOTS)) for title in DEMO_METHODS}
    generalisation = {
        title: [BaseToNovel(_accuracy(cell, "base"), _accuracy(cell, "novel")) for cell in found]
        for title, found in pairs.items()
        if found
    }
    examples = _examples(run, request.dataset(), device)
    write_run_report(out, device=device, shown_mistakes=SHOWN_MISTAKES, progress=progress)
    return Demo(data, SHOTS, accuracy, generalisation, run, examples)


def _benchmark(data: str, device: str, progress: ProgressReport) -> Sequence[Cell]:
    """Every method, K and seed, each method with its own number of steps."""
    recipe = Recipe(
        name="demo",
        backbones=["phantom"],
        data=[DataEntry(spec=data)],
        methods=[MethodEntry(name=name, title=title) for title, name in DEMO_METHODS.items()],
        shots=list(SHOTS),
        seeds=list(SEEDS),
        protocols=["few-shot", "base-to-novel"],
        budgets=["paper"],
        base_to_novel_shots=max(SHOTS),
        device=device,
    )
    with tempfile.TemporaryDirectory() as folder:
        outcome = run_benchmark(recipe, folder, progress=progress)
        if outcome.failed:
            raise UserError(f"{outcome.failed[0].job}: {outcome.failed[0].message}")
        return read_bench(folder).cells


def _of(cells: Sequence[Cell], protocol: str, method: str, shots: int) -> list[Cell]:
    found = [cell for cell in cells if (cell.protocol, cell.method, cell.shots) == (protocol, method, shots)]
    return sorted(found, key=lambda cell: cell.seed)


def _accuracy(cell: Cell, part: str) -> float:
    return float(cell.result[part]["accuracy"])


def _examples(run: Run, table: Dataset, device: str, count: int = 3) -> list[dict[str, Any]]:
    """Test images of different classes, drawn by a fixed seed, with the run's predictions."""
    order = np.random.default_rng(0).permutation(table.indices("test"))
    rows = {int(table.labels[row]): int(row) for row in order}
    chosen = list(rows.values())[:count]
    predictions = predict_images(run.folder, [table.paths[row] for row in chosen], device=device)
    truths = [table.class_names[table.labels[row]] for row in chosen]
    return [{**row, "truth": truth} for row, truth in zip(predictions.rows(), truths, strict=True)]
