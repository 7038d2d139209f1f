"""``explain check``: which kinds of saliency maps say anything on a run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import Device, Json, OtherBackbone, RunFolder, RunPrecision, err, out, progress_shown


def check(
    run: RunFolder,
    images: Annotated[int, typer.Option(help="Test images to look at.", min=1)] = 32,
    maps: Annotated[
        list[str] | None,
        typer.Option("--map", help="A kind of map; repeatable; default all that the image tower offers."),
    ] = None,
    contrast: Annotated[
        str, typer.Option(help="What a class is told from: rest (all others), none, or a class.")
    ] = "rest",
    masks: Annotated[
        Path | None,
        typer.Option(
            help="Folder of masks under the images' relative paths, PNG, not 0 inside the finding; default "
            "masks/ beside a dataset's folder images/."
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Other data with the same classes; default the run's own.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the images, prompts and shuffles drawn.", min=0)] = 0,
    to: Annotated[
        Path | None, typer.Option("--out", help="Also write the report: FILE.md, or FILE.json.")
    ] = None,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Test which kinds of saliency maps say anything on a run: prompts, weights, pixels, masks.

    Example: [bold]vmfcoop explain check runs/lesions --masks lesion-masks/ --out checks.md[/]

    The verdicts go into the run directory (explain_checks.json), where explain finds them.
    """
    from vmfcoop.errors import UserError
    from vmfcoop.explain.checks import check_run
    from vmfcoop.files import write_atomically
    from vmfcoop.pipeline import draw_phantoms, open_run, recorded_dataset
    from vmfcoop.reporting.checks import checks_markdown, checks_report
    from vmfcoop.run import read_run

    if to and to.suffix.lower() not in (".md", ".json"):
        raise UserError(f"'{to}' has no ending of a report; name it FILE.md or FILE.json.")
    fitted_run = read_run(run)
    with progress_shown() as progress:
        draw_phantoms(data or fitted_run.record["data"]["spec"], progress)
        table = recorded_dataset(fitted_run, data)
        opened = open_run(fitted_run, backbone, device, precision, progress)
        found = check_run(opened, table, images, maps, masks, seed, contrast, progress)
    path = found.write(run)
    as_object = json.dumps({"run": str(run), **found.as_json()}, ensure_ascii=False)
    if to:
        markdown = checks_markdown(found, f"Saliency maps of {run.name}")
        write_atomically(to, markdown if to.suffix.lower() == ".md" else as_object + "\n")
    if as_json:
        print(as_object)
    else:
        out.print(checks_report(found, out.width))
    written = f"{path} and {to}" if to else str(path)
    err.print(f"Wrote {written}", highlight=False, soft_wrap=True)
