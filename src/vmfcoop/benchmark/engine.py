"""The engine: a recipe becomes jobs, jobs run in processes or on Ray, what they find is kept in a folder."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
import uuid
import warnings
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

import torch

from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.registry import resolve_device
from vmfcoop.benchmark.recipe import ABLATED_METHOD, ABLATION, MethodEntry, Recipe
from vmfcoop.benchmark.results import (
    BenchFolder,
    BudgetName,
    Failure,
    Job,
    PlannedCell,
    ProtocolName,
    Section,
    Source,
)
from vmfcoop.data import Dataset, base_novel_classes, restrict_classes, sample_support
from vmfcoop.descriptions import DescriptionBank
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation.protocols import Result, base_to_novel, cross_dataset, few_shot, on_budget
from vmfcoop.features import DECODERS, CachedEncoder, content_hash
from vmfcoop.memory import keep_freed_memory
from vmfcoop.methods import METHODS, make_method
from vmfcoop.methods.prompt import PromptConfig
from vmfcoop.pipeline import draw_phantoms
from vmfcoop.progress import ProgressReport, no_progress

MIN_CLASSES_BASE_TO_NOVEL = 4
"""With fewer there is one novel class at most, and nothing to tell it from."""

STACK = 4
"""Seeds that train side by side in one task, at most."""

POLL = 1.0
"""Seconds before jobs that another run is at are asked for again."""


@dataclass(frozen=True)
class LoadedData:
    """A dataset of the recipe, loaded.

    Attributes:
        name: of its entry.
        table: images with splits.
        bank: descriptions of its classes.
    """

    name: str
    table: Dataset
    bank: DescriptionBank

    @cached_property
    def source(self) -> Source:
        """What a job's hash takes of it; every image is read once for that."""
        with ThreadPoolExecutor(DECODERS) as pool:
            contents = pool.map(content_hash, self.table.paths)
            digest = sha256("\n".join([self.table.fingerprint, *contents]).encode())
        return Source(self.name, digest.hexdigest(), self.bank.fingerprint)

    def training_side(self, protocol: ProtocolName) -> Dataset:
        """The table that a protocol fits on: the base classes in base-to-novel, else all."""
        return self._base_classes if protocol == "base-to-novel" else self.table

    @cached_property
    def _base_classes(self) -> Dataset:
        return restrict_classes(self.table, base_novel_classes(len(self.table.class_names))[0])


class Materials:
    """Datasets, descriptions and one backbone at a time, loaded once a process.

    Args:
        recipe: names them.
        progress: told of drawing and encoding.
    """

    def __init__(self, recipe: Recipe, progress: ProgressReport = no_progress) -> None:
        self.recipe = recipe
        self.progress = progress
        self._data: dict[str, LoadedData] = {}
        self._encoder: tuple[str, CachedEncoder] | None = None

    def encoder(self, spec: str) -> CachedEncoder:
        """The backbone of a spec; the one before makes room for it."""
        if self._encoder is None or self._encoder[0] != spec:
            keep_freed_memory()
            self._encoder = None
            loaded = load_backbone(spec, self.recipe.device)
            self._encoder = spec, CachedEncoder(loaded, progress=self.progress)
        return self._encoder[1]

    def forget_encoder(self) -> None:
        """Give the backbone's memory back."""
        self._encoder = None

    def data(self, name: str) -> LoadedData:
        """The dataset of a name."""
        if name not in self._data:
            entry = self.recipe.entry(name)
            draw_phantoms(entry.spec, self.progress)
            table = entry.dataset()
            self._data[name] = LoadedData(name, table, entry.bank(table.class_names))
        return self._data[name]

    def read_data(self) -> None:
        """Load every dataset and read every image once, for the fingerprints."""
        entries = self.recipe.data
        for done, entry in enumerate(entries):
            self.progress("read data", done, len(entries))
            _ = self.data(entry.name).source
        self.progress("read data", len(entries), len(entries))

    def results(self, jobs: Sequence[Job]) -> list[Result]:
        """Fit and test jobs that differ in their seeds alone.

        Raises:
            UserError: as the protocols.
        """
        first, seeds = jobs[0], [job.seed for job in jobs]
        encoder, data = self.encoder(first.backbone), self.data(first.data.name)
        method = make_method(first.method, first.config)
        of_data = (encoder, data.table, data.bank)
        if first.protocol == "few-shot":
            return few_shot(*of_data, method, first.shots, seeds, first.views)
        if first.protocol == "base-to-novel":
            return base_to_novel(*of_data, method, seeds, first.shots, first.views)
        assert first.target is not None
        other = self.data(first.target.name)
        return cross_dataset(*of_data, other.table, other.bank, method, first.shots, seeds, first.views)

    def warm(self, jobs: Sequence[Job]) -> None:
        """Compute once, for the feature cache, what every process would else compute for itself."""
        for spec in dict.fromkeys(job.backbone for job in jobs):
            own = [job for job in jobs if job.backbone == spec]
            names = dict.fromkeys(s.name for job in own for s in (job.data, job.target) if s)
            methods = {(job.method, repr(job.config)): job for job in own}
            # What is at fault here is at fault in the jobs too, which say so; the others still run.
            for name in names:
                with suppress(UserError):
                    self._warm_data(spec, name, own)
            for job in methods.values():
                with suppress(UserError):
                    make_method(job.method, job.config).warm(self.encoder(spec))

    def _warm_data(self, spec: str, name: str, jobs: Sequence[Job]) -> None:
        data, encoder = self.data(name), self.encoder(spec)
        support, plain = set[Path](), {data.table.paths[row] for row in data.table.indices("test")}
        own = {
            (job.protocol == "base-to-novel", job.shots, job.seed): job
            for job in jobs
            if job.data.name == name
        }
        for job in own.values():
            table = data.training_side(job.protocol)
            chosen = sample_support(table, job.shots, job.seed)
            support |= {table.paths[row] for row in chosen.train}
            plain |= {table.paths[row] for row in chosen.val}
        if own:
            encoder.encode_image_files(sorted(support), self.recipe.views)
        encoder.encode_image_files(sorted(plain))
        texts = data.bank.for_classes(data.table.class_names)
        encoder.encode_texts(list(dict.fromkeys(text for group in texts for text in group)))


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to.

    Attributes:
        recipe: the recipe.
        cells: every cell of its tables.
        jobs: every different job by its hash; several cells may share one.
        notes: what was left out, and why.
        text_seconds: by backbone, seconds that its text tower takes for one short text, measured.
    """

    recipe: Recipe
    cells: tuple[PlannedCell, ...]
    jobs: dict[str, Job]
    notes: tuple[str, ...]
    text_seconds: dict[str, float]


@dataclass(frozen=True)
class _Sweep:
    """A part of the recipe's grid: rows under one protocol."""

    section: Section
    protocol: ProtocolName
    shots: Sequence[int]
    rows: Sequence[MethodEntry]


@dataclass(frozen=True)
class _Point:
    """A point of the recipe's grid."""

    sweep: _Sweep
    budget: BudgetName
    backbone: str
    data: str
    target: str | None
    row: MethodEntry
    shots: int
    seed: int

    def job(self, materials: Materials) -> Job:
        """The fit and its tests."""
        data, recipe, protocol = materials.data(self.data), materials.recipe, self.sweep.protocol
        classes = len(data.training_side(protocol).class_names)
        equal = recipe.equal.model_dump()
        method = on_budget(self.row.name, self.row.settings, self.budget, self.shots * classes, **equal)
        return Job(
            protocol=protocol,
            method=self.row.name,
            config=method.config.model_dump(mode="json", exclude={"seed"}),
            shots=self.shots,
            seed=self.seed,
            views=recipe.views,
            backbone=self.backbone,
            fingerprint=materials.encoder(self.backbone).fingerprint,
            data=data.source,
            target=materials.data(self.target).source if self.target else None,
            classes=classes,
        )

    def cell(self, job: Job) -> PlannedCell:
        """Its cell, which a job fills."""
        return PlannedCell(
            section=self.sweep.section,
            protocol=self.sweep.protocol,
            budget=self.budget,
            backbone=self.backbone,
            data=self.data,
            target=self.target,
            method=self.row.title,
            shots=self.shots,
            seed=self.seed,
            job=job.key,
        )


def plan(recipe: Recipe, materials: Materials | None = None, progress: ProgressReport = no_progress) -> Plan:
    """Expand a recipe into cells and jobs; loads its datasets and backbones, for their fingerprints.

    Base-to-novel leaves datasets of fewer than four classes out, and every protocol leaves out numbers of
    shots that a class has too few training images for; notes say which.

    Args:
        recipe: the recipe.
        materials: where what is loaded is kept.
        progress: told of drawing and reading, unless materials are given.

    Raises:
        UserError: a backbone or dataset cannot be loaded, or no job is left.
    """
    materials = materials or Materials(recipe, progress)
    materials.read_data()
    cells: list[PlannedCell] = []
    jobs: dict[str, Job] = {}
    notes: dict[str, None] = {}
    text_seconds: dict[str, float] = {}
    for backbone in recipe.backbones:
        text_seconds[backbone] = _seconds_of_a_text(materials.encoder(backbone))
        for point in _points(materials, backbone, notes):
            job = point.job(materials)
            jobs.setdefault(job.key, job)
            cells.append(point.cell(job))
    if not jobs:
        raise UserError(f"The recipe '{recipe.name}' comes to no job: {' '.join(notes)}")
    return Plan(recipe, tuple(cells), jobs, tuple(notes), text_seconds)


def _points(materials: Materials, backbone: str, notes: dict[str, None]) -> Iterator[_Point]:
    """A backbone's share of the grid; notes are taken of what is left out."""
    recipe = materials.recipe
    for sweep, budget in product(_sweeps(recipe), recipe.budgets):
        for name, target in _pairs(recipe, sweep.protocol):
            possible = _possible_shots(materials.data(name), sweep, notes)
            for row, shots, seed in product(sweep.rows, possible, recipe.seeds):
                yield _Point(sweep, budget, backbone, name, target, row, shots, seed)


def _sweeps(recipe: Recipe) -> list[_Sweep]:
    ablated = [MethodEntry(name=ABLATED_METHOD, title=t, settings=s) for t, s in ABLATION.items()]
    pair_shots = [recipe.base_to_novel_shots]
    known = {
        "few-shot": [_Sweep("main", "few-shot", recipe.shots, recipe.methods)],
        "base-to-novel": [_Sweep("main", "base-to-novel", pair_shots, recipe.methods)],
        "cross-dataset": [_Sweep("main", "cross-dataset", recipe.shots, recipe.methods)],
        "ablation": [
            _Sweep("ablation", "few-shot", recipe.ablation_shots, ablated),
            _Sweep("ablation", "base-to-novel", pair_shots, ablated),
        ],
    }
    return [sweep for protocol in recipe.protocols for sweep in known[protocol]]


def _pairs(recipe: Recipe, protocol: ProtocolName) -> list[tuple[str, str | None]]:
    """Names of the datasets to fit on, and to test on where that is another."""
    if protocol == "cross-dataset":
        return [(pair.train, pair.test) for pair in recipe.cross_dataset]
    return [(entry.name, None) for entry in recipe.data]


def _possible_shots(data: LoadedData, sweep: _Sweep, notes: dict[str, None]) -> list[int]:
    """The numbers of shots that a dataset has images for; of the others a note is taken."""
    count = len(data.table.class_names)
    if sweep.protocol == "base-to-novel" and count < MIN_CLASSES_BASE_TO_NOVEL:
        notes[f"{data.name}: no base-to-novel, since {count} classes leave fewer than two novel ones."] = None
        return []
    table, possible = data.training_side(sweep.protocol), []
    for shots in sweep.shots:
        try:
            sample_support(table, shots)
            possible.append(shots)
        except UserError as error:
            notes[f"{data.name}: {error}"] = None
    return possible


def _seconds_of_a_text(encoder: CachedEncoder, texts: int = 8) -> float:
    """Seconds of one short text in a batch through the text tower, on one thread."""
    tokens = encoder.tokenize(["a photo of a finding."] * texts)
    with one_thread():
        encoder.encode_tokens(tokens)
        start = time.perf_counter()
        encoder.encode_tokens(tokens)
        return (time.perf_counter() - start) / texts


class Estimate:
    """Seconds that jobs take: guessed from steps and the text tower's speed, corrected by those measured.

    Args:
        text_seconds: as :class:`Plan` has them.
    """

    test_seconds = 0.2
    step_seconds = 0.001
    passes = 3.0
    """Forward and backward pass, in forward passes."""

    def __init__(self, text_seconds: Mapping[str, float]) -> None:
        self._text_seconds = text_seconds
        self._measured: defaultdict[tuple[str, str] | None, float] = defaultdict(float)
        self._guessed: defaultdict[tuple[str, str] | None, float] = defaultdict(float)

    @property
    def rough(self) -> bool:
        """Whether nothing was measured yet."""
        return not self._measured

    def learn(self, job: Job, result: Result) -> None:
        """Take a finished job's seconds into account."""
        seconds = sum(result["seconds"].values())
        for group in ((job.backbone, job.method), None):
            self._measured[group] += seconds
            self._guessed[group] += self._guess(job)

    def seconds(self, job: Job) -> float:
        """Of one job on one core."""
        group = (job.backbone, job.method)
        known = group if group in self._measured else None
        ratio = self._measured[known] / self._guessed[known] if known in self._measured else 1.0
        return ratio * self._guess(job)

    def _guess(self, job: Job) -> float:
        a_step = self.step_seconds
        if issubclass(METHODS[job.method].Config, PromptConfig):
            a_step += self.passes * job.classes * self._text_seconds[job.backbone]
        return self.test_seconds + job.steps * a_step


def describe(the_plan: Plan, out: Path | str | None = None, processes: int | None = None) -> dict[str, Any]:
    """What a plan asks for, as plain JSON types.

    Args:
        the_plan: the plan.
        out: benchmark folder that may hold some of the results.
        processes: at work side by side; default the cores.

    Returns:
        The grid (``backbones``, ``data``, ``methods``, ``shots``, ``seeds``, ``protocols``, ``budgets``),
        ``cells``, ``jobs``, ``done`` (jobs that are there), ``steps`` (of all), ``steps_left``,
        ``processes``, ``seconds_left`` (without image encoding), ``rough`` (no job measured yet), ``notes``.
    """
    recipe, folder = the_plan.recipe, BenchFolder(Path(out)) if out else None
    there = {key: folder.result(key) if folder else None for key in the_plan.jobs}
    estimate = Estimate(the_plan.text_seconds)
    for key, result in there.items():
        if result is not None:
            estimate.learn(the_plan.jobs[key], result)
    left = [job for key, job in the_plan.jobs.items() if there[key] is None]
    processes = processes or cores()
    return {
        "name": recipe.name,
        "backbones": recipe.backbones,
        "data": [entry.name for entry in recipe.data],
        "methods": [entry.title for entry in recipe.methods],
        "shots": recipe.shots,
        "seeds": recipe.seeds,
        "protocols": recipe.protocols,
        "budgets": recipe.budgets,
        "cells": len(the_plan.cells),
        "jobs": len(the_plan.jobs),
        "done": len(the_plan.jobs) - len(left),
        "steps": sum(job.steps for job in the_plan.jobs.values()),
        "steps_left": sum(job.steps for job in left),
        "processes": processes,
        "seconds_left": round(sum(map(estimate.seconds, left)) / processes, 1),
        "rough": estimate.rough,
        "notes": list(the_plan.notes),
    }


@dataclass(frozen=True)
class Task:
    """Jobs that differ in their seeds alone and train side by side."""

    jobs: tuple[Job, ...]


def tasks_of(jobs: Iterable[Job], estimate: Estimate, stack: int = STACK) -> list[Task]:
    """Jobs in tasks of up to ``stack`` seeds; backbone by backbone, longest first."""
    alike: dict[str, list[Job]] = {}
    for job in jobs:
        alike.setdefault(replace(job, seed=0).key, []).append(job)
    tasks = [
        Task(tuple(group[start : start + stack]))
        for group in alike.values()
        for start in range(0, len(group), stack)
    ]
    return sorted(tasks, key=lambda t: (t.jobs[0].backbone, -sum(map(estimate.seconds, t.jobs))))


@dataclass(frozen=True)
class Report:
    """What became of a job in a task: ``busy`` where another run is at it."""

    job: Job
    status: Literal["done", "reused", "busy", "failed"]
    result: Result | None = None
    message: str = ""


class Worker:
    """A process's part: it claims jobs, computes them and writes what they found.

    Args:
        recipe: names datasets and backbones.
        out: benchmark folder.
        run: of which it is a part.
    """

    def __init__(self, recipe: Recipe, out: Path, run: str) -> None:
        self._materials = Materials(recipe)
        self._folder = BenchFolder(out)
        self._run = run

    def perform(self, task: Task) -> list[Report]:
        """Compute what nobody else has computed or is at; an error becomes a message."""
        absent = [job for job in task.jobs if self._folder.result(job.key) is None]
        with self._folder.claimed([job.key for job in absent], self._run) as mine:
            # Another run may have finished a job between the first look and the claim.
            found = {job.key: self._folder.result(job.key) for job in task.jobs}
            todo = [job for job in absent if job.key in mine and found[job.key] is None]
            others = [job for job in task.jobs if job not in todo]
            there = [Report(job, "reused" if found[job.key] else "busy", found[job.key]) for job in others]
            return there + (self._compute(todo) if todo else [])

    def _compute(self, jobs: Sequence[Job]) -> list[Report]:
        try:
            results = self._materials.results(jobs)
            for job, result in zip(jobs, results, strict=True):
                self._folder.write_result(job, result)
        except UserError as error:
            return [Report(job, "failed", message=str(error)) for job in jobs]
        except Exception as error:
            return [Report(job, "failed", message=f"{type(error).__name__}: {error}") for job in jobs]
        return [Report(job, "done", result) for job, result in zip(jobs, results, strict=True)]


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Attributes:
        done: jobs that it computed.
        reused: jobs that were there, or that another run computed meanwhile.
        failed: what went wrong in the others.
        seconds: wall time.
    """

    done: int
    reused: int
    failed: tuple[Failure, ...]
    seconds: float


Execute = Callable[[Sequence[Task]], Iterator[tuple[Task, "list[Report] | Died"]]]
"""Runs tasks; each comes with its reports, or with how its process died."""


def run_benchmark(
    recipe: Recipe,
    out: Path | str,
    engine: Literal["local", "ray"] = "local",
    jobs: int | None = None,
    ray_address: str | None = None,
    stack: int = STACK,
    progress: ProgressReport = no_progress,
) -> Outcome:
    """Run what a benchmark folder lacks of a recipe, and keep it there.

    Jobs that fail are recorded and do not stop the others; the next run tries them again. With ``local``,
    jobs run in processes of their own: a script that calls this does so below ``if __name__ == "__main__"``
    (``jobs=1`` computes in this process). Ctrl-C ends every process; finished jobs stay.

    Args:
        recipe: what to fit and test.
        out: benchmark folder, new or begun.
        engine: ``local`` or ``ray``.
        jobs: processes; default as many as there are cores and memory for, one on a GPU.
        ray_address: of a Ray cluster; without, Ray is started here.
        stack: seeds that train side by side, at most; the results are the same.
        progress: told of drawing, encoding and jobs, and of the seconds gone and expected.

    Raises:
        UserError: the folder holds something else, a dataset or backbone cannot be loaded, Ray is missing.
    """
    start = time.perf_counter()
    if engine not in ("local", "ray"):
        raise unknown_name("engine", engine, ("local", "ray"))
    folder = BenchFolder(Path(out).resolve())
    folder.refuse_foreign()
    materials = Materials(recipe, progress)
    the_plan = plan(recipe, materials)
    folder.begin(recipe, the_plan.cells)
    ledger = _Ledger(the_plan, folder, progress)
    materials.warm(ledger.missing)
    materials.forget_encoder()
    pending = tasks_of(ledger.missing, ledger.estimate, stack)
    if pending:
        run = uuid.uuid4().hex
        workers = jobs or _default_processes(recipe.device)
        processes = min(workers, len(pending))
        ledger.begin(processes)
        try:
            with _engine(engine, (recipe, folder.path, run), jobs, processes, ray_address) as execute:
                while pending:
                    busy = [job for task, found in execute(pending) for job in ledger.enter(task, found)]
                    pending = tasks_of(busy, ledger.estimate, stack)
                    time.sleep(POLL if pending else 0)
        finally:
            folder.drop_claims(run)
    return Outcome(ledger.done, ledger.reused, tuple(ledger.failed), time.perf_counter() - start)


def _engine(
    engine: str,
    worker: tuple[Recipe, Path, str],
    jobs: int | None,
    processes: int,
    ray_address: str | None,
) -> AbstractContextManager[Execute]:
    if engine == "ray":
        from vmfcoop.benchmark.ray_engine import ray_engine

        return ray_engine(worker, processes, ray_address)
    if jobs == 1 or (jobs is None and resolve_device(worker[0].device).type != "cpu"):
        return _this_process(worker)
    return _local_processes(worker, processes)


class _Ledger:
    """What is done, what failed, what it took: told of every task that comes back."""

    def __init__(self, the_plan: Plan, folder: BenchFolder, progress: ProgressReport) -> None:
        self.estimate = Estimate(the_plan.text_seconds)
        self.done = self.reused = 0
        self.failed: list[Failure] = []
        self._folder, self._progress = folder, progress
        self._processes, self._start = 1, time.perf_counter()
        self._left = dict(the_plan.jobs)
        for key, job in the_plan.jobs.items():
            result = folder.result(key)
            if result is not None:
                self._settle(job, result)
                self.reused += 1

    def begin(self, processes: int) -> None:
        """So many processes begin now."""
        self._processes, self._start = processes, time.perf_counter()
        self._tell()

    @property
    def missing(self) -> list[Job]:
        """Jobs without a result or a failure."""
        return list(self._left.values())

    def enter(self, task: Task, found: list[Report] | Died) -> list[Job]:
        """Note what became of a task; returns the jobs that another run is at."""
        if isinstance(found, Died):
            # It may have written some of its jobs before.
            found = [self._report_of_dead(job, found) for job in task.jobs]
        for report in found:
            if report.result is not None:
                self.done += report.status == "done"
                self.reused += report.status == "reused"
                if self._folder.result(report.job.key) is None:  # a worker whose folder is another machine's
                    self._folder.write_result(report.job, report.result)
                self._settle(report.job, report.result)
            elif report.status == "failed":
                self.failed.append(self._folder.write_failure(report.job, report.message))
                del self._left[report.job.key]
        self._tell()
        return [report.job for report in found if report.status == "busy"]

    def _report_of_dead(self, job: Job, death: Died) -> Report:
        result = self._folder.result(job.key)
        return Report(job, "done" if result else "failed", result, message=death.message)

    def _settle(self, job: Job, result: Result) -> None:
        self.estimate.learn(job, result)
        del self._left[job.key]

    def _tell(self) -> None:
        finished = self.done + self.reused + len(self.failed)
        self._progress("fit and test", finished, finished + len(self._left))
        gone = time.perf_counter() - self._start
        ahead = sum(map(self.estimate.seconds, self._left.values())) / self._processes
        self._progress("seconds, of an estimated total", round(gone), round(gone + ahead))


@dataclass(frozen=True)
class Died:
    """The process at a task ended before its answer."""

    message: str


TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class _Child:
    process: BaseProcess
    pipe: Connection


class ProcessPool(Generic[TaskT, ResultT]):
    """Processes of one thread each that answer tasks, and that may die without harm to the others.

    Unlike the standard library's executor it knows whose task a process died at, and on an error or Ctrl-C
    it ends its processes at once, whatever they are at. Use it in a ``with`` block.

    Args:
        processes: how many.
        work: task -> result; a function of a module, like ``start``.
        start: called once in every process.
        arguments: for ``start``.
    """

    def __init__(
        self,
        processes: int,
        work: Callable[[TaskT], ResultT],
        start: Callable[..., None],
        arguments: tuple[Any, ...] = (),
    ) -> None:
        self.processes = processes
        self._serve = (work, start, arguments)
        self._idle: list[_Child] = []
        self._busy: dict[Connection, tuple[_Child, TaskT]] = {}

    def __enter__(self) -> ProcessPool[TaskT, ResultT]:
        return self

    def __exit__(self, *error: object) -> None:
        for child in self._idle:
            child.pipe.close()
        for child, _ in self._busy.values():
            child.process.terminate()
        for child in [*self._idle, *(child for child, _ in self._busy.values())]:
            child.process.join()

    def results(self, tasks: Iterable[TaskT]) -> Iterator[tuple[TaskT, ResultT | Died]]:
        """Every task with its result, or with how its process died, as they come; the first begin first."""
        waiting = deque(tasks)
        while waiting or self._busy:
            while waiting and len(self._busy) < self.processes:
                self._hand_out(waiting.popleft())
            for pipe in wait(list(self._busy)):
                assert isinstance(pipe, Connection)
                child, task = self._busy[pipe]
                try:
                    answer: ResultT | Died = pipe.recv()
                    self._idle.append(child)
                except (EOFError, OSError):
                    child.process.join()
                    answer = Died(_cause_of_death(child.process.exitcode))
                del self._busy[pipe]
                yield task, answer

    def _hand_out(self, task: TaskT) -> None:
        child = self._idle.pop() if self._idle else self._new_child()
        self._busy[child.pipe] = child, task
        with suppress(OSError):  # it died while idle: its pipe tells so next
            child.pipe.send(task)

    def _new_child(self) -> _Child:
        context = get_context("spawn")
        here, there = context.Pipe()
        process = context.Process(target=_serve, args=(there, *self._serve), daemon=True)
        with deaf_to_interrupts():
            process.start()
        there.close()
        return _Child(process, here)


def _serve(
    pipe: Connection, work: Callable[[Any], Any], start: Callable[..., None], arguments: tuple[Any, ...]
) -> None:
    """A process of the pool: answer tasks until the other end of the pipe is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    start(*arguments)
    with suppress(EOFError, BrokenPipeError):
        while True:
            pipe.send(work(pipe.recv()))


def _cause_of_death(exitcode: int | None) -> str:
    if exitcode is not None and exitcode < 0:
        name = signal.Signals(-exitcode).name
        hint = "; the system may have run out of memory, so try fewer --jobs" if name == "SIGKILL" else ""
        return f"The process was killed ({name}){hint}."
    return f"The process ended with exit code {exitcode}."


@contextmanager
def deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started inside never hear Ctrl-C: it is this one's to say so, once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as it is in every process of the pool."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_worker: Worker


def start_worker(recipe: Recipe, out: Path, run: str) -> None:
    """Make this process a worker; warnings about the data were given before."""
    global _worker
    warnings.simplefilter("ignore", UserWarning)
    _worker = Worker(recipe, out, run)


def work(task: Task) -> list[Report]:
    """Perform a task in a process that :func:`start_worker` made ready."""
    return _worker.perform(task)


@contextmanager
def _local_processes(worker: tuple[Recipe, Path, str], processes: int) -> Iterator[Execute]:
    with ProcessPool(processes, work, start_worker, worker) as pool:

        def execute(tasks: Sequence[Task]) -> Iterator[tuple[Task, list[Report] | Died]]:
            again = []
            for task, found in pool.results(tasks):
                if isinstance(found, Died):
                    again.append(task)
                else:
                    yield task, found
            yield from pool.results(again)

        yield execute


@contextmanager
def _this_process(worker: tuple[Recipe, Path, str]) -> Iterator[Execute]:
    own = Worker(*worker)
    with one_thread():
        yield lambda tasks: ((task, own.perform(task)) for task in tasks)


def cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _default_processes(device: str) -> int:
    """As many as there are cores, and memory for processes as large as this one has been."""
    if resolve_device(device).type != "cpu":
        return 1
    free, each = available_memory(), _peak_memory()
    fitting = free // (each + WORKING_MEMORY) if free and each else cores()
    return max(1, min(cores(), fitting))


WORKING_MEMORY = 512 * 2**20
"""Bytes a process is given for training on top of what loading and encoding took."""


def available_memory() -> int | None:
    """Bytes that can be had without swapping, within the limits of the container; None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):
        return None
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no limit ("max"), or another kind of groups
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    return free


def _peak_memory() -> int | None:
    """Bytes that this process has held at most: it has loaded and used the backbones by now."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
