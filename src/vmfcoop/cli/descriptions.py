"""The group ``descriptions``."""

from __future__ import annotations

import typer

group = typer.Typer(help="Write, look at and compare descriptions of classes.", no_args_is_help=True)
