"""The engine: jobs run in processes or on Ray, what they find is kept in a folder."""

from __future__ import annotations

import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.benchmark.materials import Materials
from vmfcoop.benchmark.plan import STACK, Estimate, Plan, Task, plan, tasks_of
from vmfcoop.benchmark.processes import Died, ProcessPool, default_processes, one_thread
from vmfcoop.benchmark.recipe import Recipe
from vmfcoop.benchmark.results import BenchFolder, Failure, Job
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation.protocols import Result
from vmfcoop.progress import ProgressReport, no_progress

POLL = 1.0
"""Seconds before jobs that another run is at are asked for again."""


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
        self._materials = Materials(recipe, workers=0)  # features were computed before the jobs began
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
        notes: of the plan.
    """

    done: int
    reused: int
    failed: tuple[Failure, ...]
    seconds: float
    notes: tuple[str, ...] = ()


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
        workers = jobs or default_processes(recipe.device)
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
    seconds = time.perf_counter() - start
    return Outcome(ledger.done, ledger.reused, tuple(ledger.failed), seconds, the_plan.notes)


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


_worker: Worker  # one a process


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
