"""The group ``backbones``."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from rich.table import Table

from vmfcoop.cli.common import Device, Json, out, progress_shown

group = typer.Typer(help="Look at CLIP models.", no_args_is_help=True)


@group.command("show")
def show_backbone(
    backbone: Annotated[str, typer.Argument(help="Backbone spec.", show_default=False)],
    field: Annotated[bool, typer.Option(help="Also fit the vMF field of its vocabulary.")] = False,
    sample: Annotated[
        int | None, typer.Option(help="Also fit that field to a sample of so many entries.", min=2)
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Print what a backbone is: widths, sizes, fingerprint, and the field of its vocabulary.

    Example: [bold]vmfcoop backbones show dir:/models/biomedclip --field[/]
    """
    from vmfcoop.backbones import load_backbone
    from vmfcoop.features import CachedEncoder
    from vmfcoop.sphere import fit_vmf

    with progress_shown() as progress:
        encoder = CachedEncoder(load_backbone(backbone, device), progress=progress)
        facts: dict[str, Any] = {
            "backbone": encoder.name,
            "fingerprint": encoder.fingerprint,
            "dim": encoder.dim,
            "token_width": encoder.token_width,
            "context_length": encoder.context_length,
            "image_size": list(encoder.image_size),
            "logit_scale": round(encoder.logit_scale, 4),
            "vocabulary": len(encoder.vocabulary()),
            "device": str(encoder.device),
        }
        if field or sample:
            full = fit_vmf(encoder.encode_vocabulary())
            facts["field_concentration"] = round(float(full.concentration), 3)
            facts["field_resultant_length"] = round(float(full.resultant_length), 6)
        if sample:
            part = fit_vmf(encoder.encode_vocabulary(sample))
            facts["sample_concentration"] = round(float(part.concentration), 3)
            facts["sample_cosine_to_field"] = round(float(part.mean_direction @ full.mean_direction), 6)
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), str(value))
    out.print(table)
