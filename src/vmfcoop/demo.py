"""The demo: the main job on drawn images and the embedded CLIP, in a minute, with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vmfcoop.backbones import load_backbone
from vmfcoop.data import Dataset
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import DescriptionBank
from vmfcoop.errors import unknown_name
from vmfcoop.evaluation import BaseToNovel, base_to_novel, draw_support, split_accuracy
from vmfcoop.features import CachedEncoder
from vmfcoop.memory import keep_freed_memory
from vmfcoop.methods import make_method
from vmfcoop.pipeline import FitRequest, draw_phantoms, predict_images, run_fit
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import Run, refuse_existing

DEMO_DATA = "phantom-abdominal-ct"
"""A dataset whose findings the embedded CLIP never saw in its training."""
ZERO_SHOT, DESCRIPTIONS, COOP, VMFCOOP = (
    "zero-shot, class name",
    "zero-shot, descriptions",
    "CoOp",
    "vMFCoOp",
)
DEMO_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    ZERO_SHOT: ("zero-shot", {}),
    DESCRIPTIONS: ("zero-shot", {"text": "descriptions"}),
    COOP: ("coop", {}),
    VMFCOOP: ("vmfcoop", {}),
}
"""Method and settings by the name in the table."""


@dataclass(frozen=True)
class Demo:
    """What the demo found.

    Attributes:
        data: key of the phantom dataset.
        shots: the numbers of support images a class.
        accuracy: by method, then for every K the test accuracy of every seed.
        generalisation: by method, the base-to-novel accuracies of every seed; 16 shots of the base classes.
        run: run directory of vMFCoOp at the most shots and the first seed.
        examples: of three test images, file, truth and class probabilities by that run.
    """

    data: str
    shots: tuple[int, ...]
    accuracy: dict[str, list[list[float]]]
    generalisation: dict[str, list[BaseToNovel]]
    run: Run
    examples: list[dict[str, Any]]

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
            "examples": self.examples,
        }


def run_demo(
    out: Path,
    data: str = DEMO_DATA,
    shots: Sequence[int] = (1, 4, 16),
    seeds: Sequence[int] = (1, 2, 3),
    overwrite: bool = False,
    progress: ProgressReport = no_progress,
) -> Demo:
    """Methods at every K and seed on a phantom dataset, base-to-novel, a run directory, three predictions.

    Args:
        out: run directory of vMFCoOp at the most shots and the first seed.
        data: key of a phantom dataset.
        shots: numbers of support images a class.
        seeds: of support sets and training.
        overwrite: replace the run directory if it is there.
        progress: told of drawing, encoding and every fit.

    Raises:
        UserError: no such dataset, or ``out`` exists.
    """
    if data not in PHANTOMS:
        raise unknown_name("phantom dataset", data, PHANTOMS)
    refuse_existing(out, overwrite)
    keep_freed_memory()
    draw_phantoms(data, progress)
    request = FitRequest(data, backbone="phantom", shots=max(shots), seed=seeds[0])
    table, bank = request.dataset(), request.bank()
    assert bank is not None
    encoder = CachedEncoder(load_backbone("phantom", request.device), progress=progress)
    accuracy = _few_shot(encoder, table, bank, shots, seeds, progress)
    generalisation = _generalisation(encoder, table, bank, seeds, progress)
    run = run_fit(request, out, overwrite, ["vmfcoop", "demo", "--data", data], progress)
    return Demo(data, tuple(shots), accuracy, generalisation, run, _examples(run, table))


def _few_shot(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    shots: Sequence[int],
    seeds: Sequence[int],
    progress: ProgressReport,
) -> dict[str, list[list[float]]]:
    """By method, for every K, the accuracies of the seeds."""
    cells = [(k, seed) for k in shots for seed in seeds]
    supports = [draw_support(encoder, table, bank, k, seed) for k, seed in cells]
    found: dict[str, list[list[float]]] = {}
    for title, (name, settings) in DEMO_METHODS.items():
        found[title] = [[] for _ in shots]
        for done, ((k, seed), support) in enumerate(zip(cells, supports, strict=True)):
            progress(f"fit {title}", done, len(cells))
            fitted = make_method(name, {"seed": seed, **settings}).fit(support, encoder)
            found[title][list(shots).index(k)].append(split_accuracy(encoder, table, fitted))
        progress(f"fit {title}", len(cells), len(cells))
    return found


def _generalisation(
    encoder: CachedEncoder,
    table: Dataset,
    bank: DescriptionBank,
    seeds: Sequence[int],
    progress: ProgressReport,
) -> dict[str, list[BaseToNovel]]:
    """By method; that of descriptions is left out, since novel classes are known by their names alone."""
    titles = [title for title in DEMO_METHODS if title != DESCRIPTIONS]
    found: dict[str, list[BaseToNovel]] = {title: [] for title in titles}
    cells = [(title, seed) for title in titles for seed in seeds]
    for done, (title, seed) in enumerate(cells):
        progress("base to novel", done, len(cells))
        name, settings = DEMO_METHODS[title]
        method = make_method(name, {"seed": seed, **settings})
        found[title].append(base_to_novel(encoder, table, bank, method, seed))
    progress("base to novel", len(cells), len(cells))
    return found


def _examples(run: Run, table: Dataset, count: int = 3) -> list[dict[str, Any]]:
    """Test images of different classes, drawn by a fixed seed, with the run's predictions."""
    order = np.random.default_rng(0).permutation(table.indices("test"))
    rows = {int(table.labels[row]): int(row) for row in order}
    chosen = list(rows.values())[:count]
    predictions = predict_images(run.folder, [table.paths[row] for row in chosen])
    truths = [table.class_names[table.labels[row]] for row in chosen]
    return [{**row, "truth": truth} for row, truth in zip(predictions.rows(), truths, strict=True)]
