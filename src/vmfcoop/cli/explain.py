"""The group ``explain``: maps of images, and checks of the maps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from vmfcoop.cli.common import (
    Device,
    Json,
    OtherBackbone,
    RunFolder,
    RunPrecision,
    err,
    escape,
    out,
    progress_shown,
)
from vmfcoop.cli.explain_check import check

if TYPE_CHECKING:
    from rich.table import Table

    from vmfcoop.explain.images import Explained


DEFAULT = "images"


class ExplainGroup(TyperGroup):
    """A group whose command ``images`` is meant where none is named."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """``RUN IMAGES...``, options and ``--help`` are the default command's."""
        named = bool(args) and args[0] in self.commands
        return super().parse_args(ctx, args if named else [DEFAULT, *args])


class ImagesCommand(TyperCommand):
    """The default command, whose usage is that of the group."""

    def get_usage(self, ctx: Any) -> str:
        """The command without its name, and the other commands of the group."""
        group = ctx.parent.command_path
        others = (name for name in ctx.parent.command.commands if name != DEFAULT)
        lines = (f"       {group} {name} [OPTIONS] RUN" for name in others)
        return "\n".join((super().get_usage(ctx).replace(f"{group} {DEFAULT}", group, 1), *lines))


group = typer.Typer(cls=ExplainGroup, help="Show what in images speaks for a class, and check such maps.")


@group.command(DEFAULT, cls=ImagesCommand, no_args_is_help=True)
def images(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Image files or folders.", show_default=False)],
    map: Annotated[
        str | None,
        typer.Option(
            "--map",
            help="occlusion, rise, gscorecam (the paper's), gradcam, legrad, chefer or rollout; default "
            "occlusion, which fares best in the checks.",
        ),
    ] = None,
    wanted: Annotated[
        str | None, typer.Option("--class", help="The class to explain; default each image's predicted one.")
    ] = None,
    contrast: Annotated[
        str, typer.Option(help="What it is told from: rest (all other classes), another class, or none.")
    ] = "rest",
    to: Annotated[
        Path | None, typer.Option("--out", help="Folder to write; default explained/ and the run's name.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace a folder that explain wrote.")] = False,
    dicom: Annotated[
        bool,
        typer.Option(
            "--dicom",
            help="Also write each overlay as a DICOM Secondary Capture. No attribute of the source goes in, "
            "and files are numbered instead of named. Names burned into the pixels stay: look.",
        ),
    ] = False,
    keep_identifiers: Annotated[
        bool,
        typer.Option(
            "--keep-identifiers",
            help="With --dicom: copy patient and study from DICOM sources, so that a PACS files the overlay "
            "with them.",
        ),
    ] = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Show what in images speaks for a class: overlays, raw maps and a page of all of them.

    Example: [bold]vmfcoop explain runs/lesions new/ --class melanoma --contrast "benign nevus"[/]

    Kinds of map that say nothing exist: [bold]vmfcoop explain check RUN[/] tests which say anything on a run.
    """
    from vmfcoop.explain import DEFAULT_METHOD
    from vmfcoop.explain.images import explain_images
    from vmfcoop.explain.outputs import PAGE

    folder = to or Path("explained") / run.resolve().name
    with progress_shown() as progress:
        done = explain_images(
            run,
            inputs,
            folder,
            method=map or DEFAULT_METHOD,
            wanted=wanted,
            contrast=contrast,
            overwrite=overwrite,
            dicom=dicom,
            keep_identifiers=keep_identifiers,
            backbone=backbone,
            device=device,
            precision=precision,
            progress=progress,
        )
    if as_json:
        facts = {"run": str(run), "out": str(folder), "map": done.method, "checks": done.standing.state}
        print(json.dumps({**facts, "images": done.rows()}))
    else:
        out.print(_table(done, numbered=dicom and not keep_identifiers))
        out.print(f"Page: {folder / PAGE}", highlight=False, soft_wrap=True)
    if done.standing.state != "passed":
        err.print(done.standing.words, highlight=False, soft_wrap=True, markup=False)
    if dicom:
        err.print(
            "Text that was burned into the pixels of a source is still in its overlay: look before you pass "
            "one on.",
            highlight=False,
            soft_wrap=True,
        )


group.command("check")(check)


def _table(done: Explained, numbered: bool) -> Table:
    """What was explained of each image, and the name of its files where that is not the image's own."""
    from rich.table import Table

    from vmfcoop.explain.render import percent

    table = Table()
    for column in ("image", "predicted", "probability", "what the map speaks for", *["files"] * numbered):
        table.add_column(column, overflow="fold")
    for image in done.images:
        probability = percent(image.probabilities[image.predicted])
        cells = (str(image.source), image.predicted, probability, image.target, image.name)
        table.add_row(*map(escape, cells if numbered else cells[:-1]))
    return table
