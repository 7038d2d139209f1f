"""The command line: each command a thin call into the API."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vmfcoop.__about__ import __version__
from vmfcoop.cli import backbones, benchmark, bundles, data, descriptions, explain, runs
from vmfcoop.cli.common import USER_ERROR, err, escape
from vmfcoop.errors import UserError


class FriendlyGroup(TyperGroup):
    """Turns what a user can mend into one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            err.print(f"[bold red]Error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        except KeyboardInterrupt:
            err.print(
                "Interrupted: nothing half-done was written; features computed so far are kept, "
                "repeat the command to go on.",
                soft_wrap=True,
            )
        raise typer.Exit(USER_ERROR)


app = typer.Typer(
    cls=FriendlyGroup,
    help="Adapt a biomedical CLIP to a handful of labelled images.",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (
    runs.demo,
    runs.fit,
    runs.evaluate,
    runs.predict,
    benchmark.benchmark,
    benchmark.report,
    bundles.pack,
    bundles.unpack,
):
    app.command()(command)
for name, commands in (
    ("explain", explain.group),
    ("data", data.group),
    ("descriptions", descriptions.group),
    ("backbones", backbones.group),
):
    app.add_typer(commands, name=name)


def main() -> None:
    """Entry point of the ``vmfcoop`` command."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    warnings.showwarning = _show_warning  # type: ignore[assignment]


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    """One line for our own warnings; other libraries' chatter is not the user's concern."""
    if category is UserWarning and "vmfcoop" in Path(filename).parts:
        err.print(f"[yellow]Warning:[/] {escape(str(message))}", soft_wrap=True, highlight=False)
