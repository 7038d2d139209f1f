"""What a benchmark found: one cell a (method, dataset, shots, seed), and the folder that keeps it.

A benchmark folder holds ``recipe.json``, ``cells.json`` (every cell and the hash of the job that fills it),
``jobs/<hash>.json`` (one finished fit with its tests), ``failures/<hash>.json`` (what went wrong) and, while
jobs run, ``claims/<hash>`` (who runs which). Files are written whole or not at all, so a run that was killed
goes on where it stopped, and machines that share the folder share the work.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from vmfcoop.benchmark.recipe import Recipe
from vmfcoop.errors import UserError
from vmfcoop.evaluation.protocols import training_steps
from vmfcoop.files import full_disk_is_said, write_atomically
from vmfcoop.methods import make_method
from vmfcoop.run import describe_software

ProtocolName = Literal["few-shot", "base-to-novel", "cross-dataset"]
BudgetName = Literal["paper", "equal"]
Section = Literal["main", "ablation"]

FORMAT = 1
"""Part of every job's hash: raise it when a change of code changes results."""

RECIPE, CELLS, JOBS, FAILURES, CLAIMS = "recipe.json", "cells.json", "jobs", "failures", "claims"
HEARTBEAT, CLAIM_LIFE, UNSIGNED_LIFE = 30.0, 900.0, 5.0
"""Seconds between the signs of life of a claim; seconds without one after which it may be taken over; the
same for a claim that names no owner, since its process was killed between making and signing it."""


@dataclass(frozen=True)
class Cell:
    """One fit and its tests.

    Attributes:
        section: ``main``, or ``ablation`` for the rows of vMFCoOp's ablation.
        protocol: how it was tested.
        budget: whose number of steps.
        backbone: backbone spec.
        data: name of the dataset it was fitted on.
        target: name of the other dataset, in cross-dataset.
        method: title of the row.
        shots: K.
        seed: of support set and training.
        result: as :mod:`vmfcoop.evaluation.protocols` gives it: metrics under ``test`` (few-shot), ``base``
            and ``novel`` (base-to-novel; ``novel`` is None where the method cannot take new classes) or
            ``source`` and ``target`` (cross-dataset), ``seconds`` (``fit``, ``test``) and ``steps``.
    """

    section: Section
    protocol: ProtocolName
    budget: BudgetName
    backbone: str
    data: str
    target: str | None
    method: str
    shots: int
    seed: int
    result: dict[str, Any]


@dataclass(frozen=True)
class PlannedCell:
    """A cell before its job has run: the fields of :class:`Cell` with the job's hash in place of a result."""

    section: Section
    protocol: ProtocolName
    budget: BudgetName
    backbone: str
    data: str
    target: str | None
    method: str
    shots: int
    seed: int
    job: str

    def filled(self, result: dict[str, Any]) -> Cell:
        """The cell with what its job found."""
        return Cell(**{key: value for key, value in asdict(self).items() if key != "job"}, result=result)


@dataclass(frozen=True)
class Source:
    """A dataset as a job sees it.

    Attributes:
        name: of the recipe's entry.
        fingerprint: of classes, splits and the content of every image.
        descriptions: fingerprint of the descriptions.
    """

    name: str
    fingerprint: str
    descriptions: str


@dataclass(frozen=True)
class Job:
    """One fit and its tests, and everything that its numbers depend on.

    Attributes:
        protocol: how it is tested.
        method: by name.
        config: every setting of the method but the seed, defaults filled in.
        shots: K.
        seed: of support set and training.
        views: V cached views of a support image.
        backbone: spec.
        fingerprint: of the backbone.
        data: what it is fitted on.
        target: the other dataset, in cross-dataset.
        split: whose images it is tested on.
        precision: of the towers.
        cache_precision: of the features that it works on.
        classes: number of classes it is fitted on.
    """

    protocol: ProtocolName
    method: str
    config: Mapping[str, Any]
    shots: int
    seed: int
    views: int
    backbone: str
    fingerprint: str
    data: Source
    target: Source | None = None
    split: str = "test"
    precision: str = "fp32"
    cache_precision: str = "fp32"
    classes: int = field(default=0, compare=False)

    @cached_property
    def key(self) -> str:
        """SHA-256 over what the numbers depend on: names of rows and datasets and places do not count."""
        sources = [[s.fingerprint, s.descriptions] for s in (self.data, self.target) if s]
        content = {
            "format": FORMAT,
            "protocol": self.protocol,
            "method": self.method,
            "config": dict(self.config),
            "shots": self.shots,
            "seed": self.seed,
            "views": self.views,
            "backbone": self.fingerprint,
            "data": sources,
            **({"split": self.split} if self.split != "test" else {}),
            **({"precision": self.precision} if self.precision != "fp32" else {}),
            **({"cache_precision": self.cache_precision} if self.cache_precision != "fp32" else {}),
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    @cached_property
    def steps(self) -> int:
        """Optimisation steps of the fit."""
        config = make_method(self.method, self.config).config
        return training_steps(config, self.shots * self.classes)

    @property
    def label(self) -> str:
        """For messages: the method, the dataset, K and the seed."""
        onto = f" to {self.target.name}" if self.target else ""
        return (
            f"{self.method}, {self.protocol} on {self.data.name}{onto}, "
            f"{self.shots} shots, seed {self.seed}, {self.backbone}"
        )


@dataclass(frozen=True)
class Failure:
    """A job that found no result.

    Attributes:
        key: the job's hash.
        job: the job in words.
        message: what went wrong.
    """

    key: str
    job: str
    message: str


@dataclass(frozen=True)
class Bench:
    """A benchmark folder that was read.

    Attributes:
        recipe: what was asked for.
        cells: those with a result, in the recipe's order.
        missing: those without one yet.
        failures: what went wrong in jobs that are still missing.
        configs: every setting of each row, by budget and title.
    """

    recipe: Recipe
    cells: tuple[Cell, ...]
    missing: tuple[PlannedCell, ...]
    failures: tuple[Failure, ...]
    configs: dict[str, dict[str, Any]]

    def settings(self) -> dict[str, Any]:
        """The recipe and what each row's settings came to, as plain JSON types, for a report."""
        return {**self.recipe.model_dump(mode="json"), "resolved": self.configs}

    def missing_sentences(self) -> list[str]:
        """What has no result yet: a sentence a row and protocol."""
        groups: dict[tuple[str, ...], int] = {}
        for cell in self.missing:
            group = (cell.method, cell.protocol, cell.budget, cell.section, cell.backbone)
            groups[group] = groups.get(group, 0) + 1
        return [
            f"{method}, {protocol} ({section} part), budget {budget}, {backbone}: {count} fits."
            for (method, protocol, budget, section, backbone), count in groups.items()
        ]


def read_bench(folder: Path | str) -> Bench:
    """Read a benchmark folder, finished or not.

    Raises:
        UserError: it is none, or its recipe or list of cells is damaged.
    """
    place = BenchFolder(Path(folder))
    if not (place.path / RECIPE).is_file():
        raise UserError(
            f"'{folder}' is no benchmark folder (it has no {RECIPE}); give one that 'benchmark' wrote."
        )
    try:
        recipe = Recipe.model_validate_json((place.path / RECIPE).read_text(encoding="utf-8"))
        content = json.loads((place.path / CELLS).read_text(encoding="utf-8"))
        planned = [PlannedCell(**row) for row in content["cells"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"The benchmark folder '{folder}' is damaged; run its recipe again.") from error
    results = {key: place.result(key) for key in dict.fromkeys(cell.job for cell in planned)}
    configs: dict[str, dict[str, Any]] = {}
    for cell in planned:
        by_title = configs.setdefault(cell.budget, {})
        if results[cell.job] is not None and cell.method not in by_title:
            by_title[cell.method] = place.config(cell.job)
    failures = [place.failure(key) for key, result in results.items() if result is None]
    cells = [cell.filled(found) for cell in planned if (found := results[cell.job]) is not None]
    return Bench(
        recipe,
        tuple(cells),
        tuple(cell for cell in planned if results[cell.job] is None),
        tuple(failure for failure in failures if failure),
        configs,
    )


class BenchFolder:
    """A benchmark's files; any number of processes and machines may use one folder at once.

    Args:
        path: the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def begin(self, recipe: Recipe, cells: Sequence[PlannedCell]) -> None:
        """Write what the benchmark is.

        Raises:
            UserError: the folder holds something else, the disk is full or the folder not writable.
        """
        self.refuse_foreign()
        write_atomically(self.path / RECIPE, recipe.model_dump_json(indent=2) + "\n")
        rows = {"format": FORMAT, "cells": [asdict(cell) for cell in cells]}
        write_atomically(self.path / CELLS, json.dumps(rows, ensure_ascii=False))

    def refuse_foreign(self) -> None:
        """Stop before any work is done in a folder that is not a benchmark's.

        Raises:
            UserError: the path is a file, or a folder with other things in it.
        """
        if self.path.is_dir() and ((self.path / RECIPE).is_file() or not any(self.path.iterdir())):
            return
        if self.path.exists():
            raise UserError(f"'{self.path}' is there and is no benchmark folder; choose another --out.")

    def result(self, key: str) -> dict[str, Any] | None:
        """What a job found; None if it has not run or its file is damaged."""
        content = _read_json(self.path / JOBS / f"{key}.json")
        if content.get("format") != FORMAT or not isinstance(content.get("result"), dict):
            return None
        result: dict[str, Any] = content["result"]
        return result

    def config(self, key: str) -> dict[str, Any]:
        """The settings of a job's method; empty if it has not run."""
        config: dict[str, Any] = _read_json(self.path / JOBS / f"{key}.json").get("job", {}).get("config", {})
        return config

    def failure(self, key: str) -> Failure | None:
        """What went wrong in a job."""
        content = _read_json(self.path / FAILURES / f"{key}.json")
        return (
            Failure(key, content["job"], content["message"]) if {"job", "message"} <= set(content) else None
        )

    def write_result(self, job: Job, result: Mapping[str, Any]) -> None:
        """Keep what a job found; a failure of an earlier attempt is forgotten."""
        content = {"format": FORMAT, "job": asdict(job), "result": result, "software": _software()}
        write_atomically(self.path / JOBS / f"{job.key}.json", _pretty(content))
        (self.path / FAILURES / f"{job.key}.json").unlink(missing_ok=True)

    def write_failure(self, job: Job, message: str) -> Failure:
        """Keep what went wrong in a job."""
        failure = Failure(job.key, job.label, message)
        write_atomically(self.path / FAILURES / f"{job.key}.json", _pretty(asdict(failure)))
        return failure

    @contextmanager
    def claimed(self, keys: Sequence[str], run: str) -> Iterator[list[str]]:
        """The jobs that the caller alone may compute inside: those that nobody else is at.

        Args:
            keys: hashes of jobs.
            run: of which the caller is a part; a run hands each of its jobs to one process at a time, so
                a claim of its own is one of a process that died.
        """
        mine = [key for key in keys if self._claim(key, run)]
        over = threading.Event()
        heart = threading.Thread(target=self._keep_alive, args=(mine, over), daemon=True)
        heart.start()
        try:
            yield mine
        finally:
            over.set()
            heart.join()
            for key in mine:
                (self.path / CLAIMS / key).unlink(missing_ok=True)

    def drop_claims(self, run: str) -> None:
        """Remove what the processes of a run that is over left behind."""
        for path in (self.path / CLAIMS).glob("*"):
            if _read_json(path).get("run") == run:
                path.unlink(missing_ok=True)

    def _claim(self, key: str, run: str) -> bool:
        path = self.path / CLAIMS / key
        with full_disk_is_said(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            if _may_be_taken_over(path, run):
                path.unlink(missing_ok=True)
            try:
                with path.open("x", encoding="utf-8") as file:
                    json.dump({"host": socket.gethostname(), "pid": os.getpid(), "run": run}, file)
            except FileExistsError:
                return False
        return True

    def _keep_alive(self, keys: Sequence[str], over: threading.Event) -> None:
        while not over.wait(HEARTBEAT):
            for key in keys:
                with suppress(OSError):
                    os.utime(self.path / CLAIMS / key)


def _may_be_taken_over(path: Path, run: str) -> bool:
    try:
        age = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    owner = _read_json(path)
    gone = owner.get("host") == socket.gethostname() and not _is_alive(int(owner["pid"]))
    return age > (CLAIM_LIFE if owner else UNSIGNED_LIFE) or owner.get("run") == run or gone


def _is_alive(pid: int) -> bool:
    if platform.system() == "Windows":  # there, signal 0 would end the process
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@lru_cache
def _software() -> dict[str, str]:
    return describe_software()


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; empty if the file is not there, damaged or being written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _pretty(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"
