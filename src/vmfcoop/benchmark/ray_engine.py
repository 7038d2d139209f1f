"""The engine on Ray: the same tasks as remote tasks, on this machine's cores or on a cluster's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.benchmark.engine import Execute, Report, start_worker, work
from vmfcoop.benchmark.plan import Task
from vmfcoop.benchmark.processes import Died
from vmfcoop.benchmark.recipe import Recipe
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from types import ModuleType

RETRIES = 2
"""Times that Ray runs a task again whose process was killed."""

OBJECT_STORE = 100 * 2**20
"""Bytes for objects in transit; tasks and reports are kilobytes."""

_ready_for: tuple[Recipe, Path, str] | None = None


@contextmanager
def ray_engine(worker: tuple[Recipe, Path, str], processes: int, address: str | None) -> Iterator[Execute]:
    """Ray for the time of a run.

    Every machine of a cluster needs vmfcoop, the data under the same paths and, best, the benchmark folder;
    where that is not shared, what workers found is written by this process. Backbones and features are kept
    below this process's ``VMFCOOP_HOME`` if that is set, so set it to a folder that all machines share.

    Args:
        worker: recipe, benchmark folder and run.
        processes: of a Ray that is started here.
        address: of a running cluster; without, Ray is started here.

    Raises:
        UserError: Ray is not installed, or there is no cluster at the address.
    """
    ray = _import_ray()
    own = not ray.is_initialized()
    if own:
        _connect(ray, processes, address)
    gpus = 1 if resolve_device(worker[0].device).type == "cuda" else 0
    remote = ray.remote(num_cpus=1, num_gpus=gpus, max_retries=RETRIES)(_perform)
    shared = ray.put((worker, os.environ.get("VMFCOOP_HOME")))
    try:
        yield lambda tasks: _execute(ray, remote, shared, tasks)
    finally:
        if own:
            ray.shutdown()


def _execute(
    ray: ModuleType, remote: Any, shared: Any, tasks: Sequence[Task]
) -> Iterator[tuple[Task, list[Report] | Died]]:
    running = {remote.remote(shared, task): task for task in tasks}
    try:
        while running:
            ready, _ = ray.wait(list(running))
            for reference in ready:
                task = running.pop(reference)
                try:
                    found: list[Report] | Died = ray.get(reference)
                except ray.exceptions.RayError as error:
                    found = Died(f"Ray lost the task ({type(error).__name__}): {_first_line(error)}")
                yield task, found
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _perform(shared: tuple[tuple[Recipe, Path, str], str | None], task: Task) -> list[Report]:
    """On a worker of Ray; what it loaded stays for the next task."""
    global _ready_for
    worker, home = shared
    if home:
        os.environ["VMFCOOP_HOME"] = home
    if worker != _ready_for:
        torch.set_num_threads(1)
        start_worker(*worker)
        _ready_for = worker
    return work(task)


def _connect(ray: ModuleType, processes: int, address: str | None) -> None:
    _refuse_silent(address)
    here = {"num_cpus": processes, "object_store_memory": OBJECT_STORE, "include_dashboard": False}
    try:
        ray.init(address=address or "local", log_to_driver=False, **({} if address else here))
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise UserError(
            f"There is no Ray at '{address or 'local'}' ({_first_line(error)}); check --ray-address."
        ) from error


def _refuse_silent(address: str | None) -> None:
    """Ask at the address before Ray does, which would try for minutes.

    Raises:
        UserError: nothing answers there.
    """
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
        except OSError as error:
            raise UserError(f"There is no Ray at '{address}' ({error}); check --ray-address.") from error


def _import_ray() -> ModuleType:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray tells of lost workers on stdout, which is for results; what is not mended comes as a failure.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    try:
        import ray
    except ImportError as error:
        raise UserError("The engine ray needs Ray; install it with: pip install 'vmfcoop[ray]'") from error
    module: ModuleType = ray
    return module


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
