"""What the commands share: consoles, exit codes, options, progress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markup import escape as escape

from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.progress import ProgressReport

SOME_FAILED, USER_ERROR = 1, 2
out = Console()
err = Console(stderr=True)


class StoredPrecision(StrEnum):
    """Of the numbers that cached features are kept in."""

    fp32 = "fp32"
    fp16 = "fp16"


Backbone = Annotated[
    str,
    typer.Option(
        help="A key of `vmfcoop backbones list` (biomedclip, pubmedclip, phantom, ...), hf:REPOSITORY, "
        "open_clip:MODEL/PRETRAINED or dir:FOLDER."
    ),
]
OtherBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Where the run's backbone lies now; default as recorded.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Precision = Annotated[
    str,
    typer.Option(
        help="Of the towers: fp32, as in published results; bf16, faster where the device is built for "
        "it and of slightly other numbers; fp16, for GPUs (slow on a CPU); auto."
    ),
]
RunPrecision = Annotated[
    str | None,
    typer.Option("--precision", help="Of the towers: fp32, bf16, fp16 or auto; default the run's own."),
]
CachePrecision = Annotated[
    StoredPrecision, typer.Option(help="Of cached features; fp16 takes half the disk.")
]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
RunFolder = Annotated[Path, typer.Argument(help="A run directory that fit wrote.", show_default=False)]

ClassName = Annotated[
    list[str] | None,
    typer.Option("--class-name", help="Name of a class folder or label, folder=name; repeatable."),
]
Groups = Annotated[
    Path | None,
    typer.Option(
        help="CSV (class,file,group or path,group) of images to keep in one split; groups.csv is found."
    ),
]
TestFraction = Annotated[float, typer.Option(help="Share of test images, without given splits.")]
ValFraction = Annotated[float, typer.Option(help="Share of validation images, likewise.")]
SplitSeed = Annotated[int, typer.Option(help="Seed of the split.", min=0)]


@contextmanager
def progress_shown() -> Iterator[ProgressReport]:
    """Bars on stderr while something takes long."""
    from vmfcoop.progress import progress_bars

    with progress_bars(err) as report:
        yield report


def pairs(items: list[str] | None, option: str) -> dict[str, str]:
    """``key=value`` arguments as a mapping.

    Raises:
        UserError: one has another form.
    """
    found = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"{option} takes key=value, not '{item}'.")
        found[key] = value
    return found
