"""Progress that anything long reports to, and the rich bars that the command line shows."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text


class ProgressReport(Protocol):
    """Called with what is being done, how much of it is done, and how much there is."""

    def __call__(self, task: str, done: int, total: int) -> None: ...


def no_progress(task: str, done: int, total: int) -> None:
    """The report that shows nothing."""


class ImagesPerSecond(ProgressColumn):
    """How fast images go by, for tasks whose description says that they are counted."""

    def render(self, task: Task) -> Text:
        """The rate of the last half minute, once it is known."""
        counted = task.speed and task.description.endswith("images")
        return Text(f"{task.speed:.1f} images/s" if counted else "")


@contextmanager
def progress_bars(console: Console) -> Iterator[ProgressReport]:
    """Rich bars on a console (stderr, so that stdout stays free for results), one a task."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        ImagesPerSecond(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def report(task: str, done: int, total: int) -> None:
            if task not in tasks:
                tasks[task] = bars.add_task(task, total=total)
            bars.update(tasks[task], completed=done, total=total)

        yield report
