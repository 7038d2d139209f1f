"""A recipe becomes cells of tables and jobs that fill them, with an estimate of their time."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.benchmark.materials import LoadedData, Materials
from vmfcoop.benchmark.processes import one_thread
from vmfcoop.benchmark.recipe import ABLATED_METHOD, ABLATION, MethodEntry, Recipe
from vmfcoop.benchmark.results import BenchFolder, BudgetName, Job, PlannedCell, ProtocolName, Section
from vmfcoop.data import sample_support
from vmfcoop.descriptions import TEMPLATE_SOURCE
from vmfcoop.errors import UserError
from vmfcoop.evaluation.protocols import MIN_CLASSES, Result, on_budget
from vmfcoop.features import CachedEncoder
from vmfcoop.machine import cores
from vmfcoop.methods import METHODS
from vmfcoop.methods.prompt import PromptConfig
from vmfcoop.progress import ProgressReport, no_progress

STACK = 4
"""Seeds that train side by side in one task, at most."""


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to.

    Attributes:
        recipe: the recipe.
        cells: every cell of its tables.
        jobs: every different job by its hash; several cells may share one.
        notes: what was left out, and why; datasets without descriptions.
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
        encoder = materials.encoder(self.backbone)
        return Job(
            protocol=protocol,
            method=self.row.name,
            config=method.config.model_dump(mode="json", exclude={"seed"}),
            shots=self.shots,
            seed=self.seed,
            views=recipe.views,
            backbone=self.backbone,
            fingerprint=encoder.fingerprint,
            data=data.source,
            target=materials.data(self.target).source if self.target else None,
            split=recipe.split,
            precision=encoder.precision,
            cache_precision=encoder.cache_precision,
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
        UserError: a backbone or dataset cannot be loaded, there is no such device, or no job is left.
    """
    resolve_device(recipe.device)
    materials = materials or Materials(recipe, progress)
    materials.read_data()
    cells: list[PlannedCell] = []
    jobs: dict[str, Job] = {}
    notes = dict.fromkeys(_undescribed(materials))
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


def _undescribed(materials: Materials) -> Iterator[str]:
    """Notes on datasets whose class names stand in for descriptions that a method of the recipe reads."""
    recipe = materials.recipe
    ablated = "ablation" in recipe.protocols
    if ablated or any(METHODS[row.name].reads_descriptions for row in recipe.methods):
        for entry in recipe.data:
            if materials.data(entry.name).bank.source == TEMPLATE_SOURCE:
                yield f"{entry.name}: no descriptions; methods that read them have templates with the names."


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
    if sweep.protocol == "base-to-novel" and count < MIN_CLASSES:
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
