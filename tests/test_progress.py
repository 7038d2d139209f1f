"""The bars: images are counted by the second, other tasks are not."""

import io

from rich.console import Console
from rich.progress import Progress

from vmfcoop.progress import ImagesPerSecond, progress_bars


def test_images_are_counted_by_the_second():
    now = [0.0]
    column = ImagesPerSecond()
    bars = Progress(column, get_time=lambda: now[0])
    tasks = [bars.add_task(name, total=10) for name in ("encode images", "train")]
    assert [column.render(task).plain for task in bars.tasks] == ["", ""]
    for done in (2, 6, 10):
        now[0] += 2
        for task in tasks:
            bars.update(task, completed=done)
    assert [column.render(task).plain for task in bars.tasks] == ["2.0 images/s", ""]


def test_bars_show_every_task():
    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with progress_bars(console) as report:
        report("load backbone", 0, 1)
        report("encode images", 0, 8)
        report("encode images", 8, 8)
    shown = console.file.getvalue()
    assert "load backbone" in shown and "8/8" in shown
