"""Processes of one thread each that work side by side, and how many of them a machine has room for."""

from __future__ import annotations

import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Generic, TypeVar

import torch

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.machine import available_memory, cores

WORKING_MEMORY = 512 * 2**20
"""Bytes a process is given for training on top of what loading and encoding took."""


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


def default_processes(device: str) -> int:
    """As many as there are cores, and memory for processes as large as this one has been."""
    if resolve_device(device).type != "cpu":
        return 1
    free, each = available_memory(), _peak_memory()
    fitting = free // (each + WORKING_MEMORY) if free and each else cores()
    return max(1, min(cores(), fitting))


def _peak_memory() -> int | None:
    """Bytes that this process has held at most: it has loaded and used the backbones by now."""
    if sys.platform == "win32":
        return None
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
