"""The group ``data``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import out
from vmfcoop.errors import UserError

group = typer.Typer(help="Find, fetch, import, check and draw datasets.", no_args_is_help=True)

SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@group.command("contact-sheet")
def contact_sheet(
    key: Annotated[str, typer.Argument(help="A phantom dataset, phantom-...", show_default=False)],
    to: Annotated[
        Path | None, typer.Option("--out", help="PNG, JPEG or WebP to write; default KEY.png.")
    ] = None,
    columns: Annotated[int, typer.Option(help="Images a class.", min=1)] = 8,
    outlines: Annotated[bool, typer.Option(help="Draw the outlines of the findings.")] = True,
) -> None:
    """Draw a labelled grid of a phantom dataset with the outlines of its findings.

    Example: [bold]vmfcoop data contact-sheet phantom-brain-mri --out sheet.png[/]
    """
    import io

    from vmfcoop.data.phantoms import contact_sheet as draw
    from vmfcoop.files import write_atomically

    place = to or Path(f"{key}.png")
    if place.suffix.lower() not in SHEET_FORMATS:
        raise UserError(f"A contact sheet is written as {', '.join(SHEET_FORMATS)}, not as '{place.name}'.")
    content = io.BytesIO()
    draw(key, columns, outlines).save(content, SHEET_FORMATS[place.suffix.lower()], quality=85)
    write_atomically(place, content.getvalue())
    out.print(f"Wrote {place}", highlight=False)
