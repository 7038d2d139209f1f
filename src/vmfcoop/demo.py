"""The demo: the main job on drawn images and the embedded CLIP, in a minute, with nothing to download."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vmfcoop.backbones import load_backbone
from vmfcoop.data import Dataset
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.errors import unknown_name
from vmfcoop.evaluation import base_to_novel, draw_support, few_shot, harmonic_mean
from vmfcoop.features import CachedEncoder
from vmfcoop.memory import keep_freed_memory
from vmfcoop.methods import make_method
from vmfcoop.pipeline import FitRequest, draw_phantoms, predict_images, run_fit
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import Run, refuse_existing

ZERO_SHOT, DESCRIPTIONS, COOP, VMFCOOP = (
    "zero-shot, class name",
    "zero-shot, descriptions",
    "CoOp",
    "vMFCoOp",
)
DEMO_METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    ZERO_SHOT: ("zero-shot", {}),
    DESCRIPTIONS: ("zero-shot-ensemble", {}),
    COOP: ("coop", {}),
    VMFCOOP: ("vmfcoop", {}),
}
"""Method and settings by the name in the table."""
SHOTS, SEEDS = (1, 4, 16), (1, 2, 3)
MAX_PROCESSES = 4


@dataclass(frozen=True)
class BaseToNovel:
    """Accuracies of base to novel.

    Attributes:
        base: on test images of the base classes, which the support set holds.
        novel: on test images of the others, by their names alone.
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
        generalisation: by method, the base-to-novel accuracies of every seed, at the most shots.
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


def run_demo(data: str, out: Path, overwrite: bool = False, progress: ProgressReport = no_progress) -> Demo:
    """Methods at every K and seed on a phantom dataset, base to novel, a run directory, three predictions.

    Fits run in processes of their own: a script that calls this does so below ``if __name__ == "__main__"``.

    Args:
        data: key of a phantom dataset.
        out: run directory of vMFCoOp at the most shots and the first seed.
        overwrite: replace the run directory if it is there.
        progress: told of drawing, encoding and fits.

    Raises:
        UserError: no such dataset, or ``out`` exists.
    """
    if data not in PHANTOMS:
        raise unknown_name("phantom dataset", data, PHANTOMS)
    refuse_existing(out, overwrite)
    draw_phantoms(data, progress)
    table = _Bench(data, progress).warm()
    the_run = (VMFCOOP, max(SHOTS), SEEDS[0])
    jobs = sorted({*_cells(), *_pairs()} - {the_run}, key=_longest_first)
    with _workers(data) as pool:
        with _deaf_to_interrupts():
            waiting = {pool.submit(_work, job): job for job in jobs}
        request = FitRequest(data, backbone="phantom", shots=max(SHOTS), seed=SEEDS[0], device="cpu")
        run = run_fit(request, out, overwrite, ["vmfcoop", "demo", "--data", data])
        found: dict[Job, Any] = {the_run: run.metrics["accuracy"]}
        for done in as_completed(waiting):
            found[waiting[done]] = done.result()
            progress("fit and test", len(found), len(jobs) + 1)
    accuracy = {title: [[found[title, k, s] for s in SEEDS] for k in SHOTS] for title in DEMO_METHODS}
    generalisation = {title: [found[title, None, s] for s in SEEDS] for title, _, _ in _pairs()}
    return Demo(data, SHOTS, accuracy, generalisation, run, _examples(run, table))


Job = tuple[str, int | None, int]
"""Method by its title, K or None for base to novel, seed."""


def _cells() -> list[Job]:
    """The jobs of the few-shot table."""
    return [(title, k, seed) for title in DEMO_METHODS for k in SHOTS for seed in SEEDS]


def _pairs() -> list[Job]:
    """Those of base to novel; not of descriptions, since novel classes are known by their names alone."""
    return [(title, None, seed) for title in DEMO_METHODS if title != DESCRIPTIONS for seed in SEEDS]


def _longest_first(job: Job) -> tuple[bool, int, str, int]:
    """A sort key: long fits begin before short ones, so that no process waits long for the last."""
    title, shots, seed = job
    return title != VMFCOOP, -(shots or max(SHOTS)), title, seed


@contextmanager
def _workers(data: str) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each, as this one is meanwhile; an error or Ctrl-C drops the jobs that wait."""
    threads = torch.get_num_threads()
    processes = min(MAX_PROCESSES, os.cpu_count() or 1)
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _start, (data,))
    torch.set_num_threads(1)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)


@contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C: it is this one's to say so, once."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Bench:
    """The backbone, the images and the descriptions, once a process."""

    def __init__(self, data: str, progress: ProgressReport = no_progress) -> None:
        keep_freed_memory()
        request = FitRequest(data, backbone="phantom")
        bank = request.bank()
        assert bank is not None
        self.table, self.bank = request.dataset(), bank
        self.encoder = CachedEncoder(load_backbone("phantom", "cpu"), progress=progress)

    def warm(self) -> Dataset:
        """Compute once what every process would else compute for itself; return the table of images."""
        for k, seed in itertools.product(SHOTS, SEEDS):
            draw_support(self.encoder, self.table, self.bank, k, seed)
        self.encoder.encode_image_files(self.table.subset("test").paths)
        self.encoder.encode_vocabulary()
        return self.table

    def job(self, title: str, shots: int | None, seed: int) -> float | BaseToNovel:
        """Test accuracy of one fit, or its base-to-novel accuracies."""
        name, settings = DEMO_METHODS[title]
        method = make_method(name, {"seed": seed, **settings})
        if shots is None:
            result = base_to_novel(self.encoder, self.table, self.bank, method, [seed], max(SHOTS))[0]
            return BaseToNovel(result["base"]["accuracy"], result["novel"]["accuracy"])
        result = few_shot(self.encoder, self.table, self.bank, method, shots, [seed])[0]
        return float(result["test"]["accuracy"])


_bench: _Bench


def _start(data: str) -> None:
    """Make a process ready: one thread, since these matrices are small and there are more processes."""
    global _bench
    torch.set_num_threads(1)
    _bench = _Bench(data)


def _work(job: Job) -> float | BaseToNovel:
    return _bench.job(*job)


def _examples(run: Run, table: Dataset, count: int = 3) -> list[dict[str, Any]]:
    """Test images of different classes, drawn by a fixed seed, with the run's predictions."""
    order = np.random.default_rng(0).permutation(table.indices("test"))
    rows = {int(table.labels[row]): int(row) for row in order}
    chosen = list(rows.values())[:count]
    predictions = predict_images(run.folder, [table.paths[row] for row in chosen], device="cpu")
    truths = [table.class_names[table.labels[row]] for row in chosen]
    return [{**row, "truth": truth} for row, truth in zip(predictions.rows(), truths, strict=True)]
