"""The group ``data``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmfcoop.cli import data_checks
from vmfcoop.cli.common import Json, err, escape, out, progress_shown
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.data.registry import DatasetInfo

group = typer.Typer(help="Find, fetch, import, check and draw datasets.", no_args_is_help=True)

SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}


@group.command("list")
def list_datasets(as_json: Json = False) -> None:
    """List every dataset that has a key, with modality, classes, sizes and licence, and which are here.

    Example: [bold]vmfcoop data list[/]
    """
    from vmfcoop.data.installed import is_here
    from vmfcoop.data.phantoms.library import PHANTOMS
    from vmfcoop.data.registry import REGISTRY
    from vmfcoop.reporting.datasets import dataset_list

    here = {key for key in REGISTRY if is_here(key)}
    if as_json:
        public = [{**info.model_dump(), "here": info.key in here} for info in REGISTRY.values()]
        drawn = [_phantom_facts(key) for key in PHANTOMS]
        out.print_json(data={"datasets": public, "phantoms": drawn})
    else:
        out.print(dataset_list(REGISTRY.values(), PHANTOMS.values(), here))


@group.command("show")
def show(
    key: Annotated[str, typer.Argument(help="Key of a dataset.", show_default=False)], as_json: Json = False
) -> None:
    """Show all that is known of a dataset: classes, splits, licence, citation, access, known faults.

    Example: [bold]vmfcoop data show lungcolon[/]
    """
    from vmfcoop.data.installed import data_path, is_here, read_source
    from vmfcoop.data.phantoms.library import PHANTOMS
    from vmfcoop.data.registry import find, not_here
    from vmfcoop.reporting.datasets import dataset_sheet

    if key in PHANTOMS:
        facts = _phantom_facts(key)
        if as_json:
            out.print_json(data=facts)
        else:
            out.print(f"[bold]{key}[/]: {facts['title']}, drawn when first used. Its classes:")
            out.print("\n".join(facts["class_names"]), markup=False, highlight=False)
        return
    info = find(key)
    source = read_source(info.key) if is_here(info.key) else None
    if as_json:
        out.print_json(data={**info.model_dump(), "here": source is not None, "source_json": source})
    else:
        place = str(data_path(info.key)) if source else str(not_here(info))
        out.print(dataset_sheet(info, source, place))


@group.command("fetch")
def fetch(
    keys: Annotated[list[str], typer.Argument(help="Keys of datasets.", show_default=False)],
    replace: Annotated[bool, typer.Option("--replace", help="Fetch again what is here already.")] = False,
    keep_archive: Annotated[
        bool, typer.Option("--keep-archive", help="Leave the archive in the downloads folder.")
    ] = False,
    archive: Annotated[
        Path | None, typer.Option(help="The archive of one dataset, downloaded on another machine.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Download public datasets, check them and put them in place; an interrupted download goes on.

    Example: [bold]vmfcoop data fetch btmri busi[/]
    """
    from vmfcoop.data.fetch import fetch as fetch_dataset
    from vmfcoop.data.installed import is_here, read_source
    from vmfcoop.data.registry import find

    if archive is not None and len(keys) > 1:
        raise UserError(f"--archive is the archive of one dataset, not of {len(keys)}; name one key.")
    fetched = []
    for info in [find(key) for key in keys]:
        was_here = is_here(info.key) and not replace
        with progress_shown() as progress:
            place = fetch_dataset(
                info.key, replace=replace, keep_archive=keep_archive, archive=archive, progress=progress
            )
        source = read_source(info.key)
        fetched.append(
            {"key": info.key, "folder": str(place), "was_here": was_here, **_outcome(info, source)}
        )
        _say_fetched(info, source, place, was_here)
    if as_json:
        out.print_json(data={"fetched": fetched})


def _outcome(info: DatasetInfo, source: dict[str, Any]) -> dict[str, Any]:
    kept = ("data", "files", "splits", "left_out", "remarks", "source")
    return {name: source.get(name) for name in kept} | {"licence": info.licence, "faults": info.faults}


def _say_fetched(info: DatasetInfo, source: dict[str, Any], place: Path, was_here: bool) -> None:
    """What a user has to know of a dataset at hand, on stderr so that stdout stays free for results."""
    from vmfcoop.reporting.datasets import images_sentence

    state = "was here already" if was_here else "is here now"
    err.print(f"[bold]{info.key}[/] {state}, in {escape(str(place))}", soft_wrap=True, highlight=False)
    lines = [f"Images: {images_sentence(info, source)}.", f"Licence: {info.licence}. {info.restrictions}"]
    lines += [f"Known fault: {fault}" for fault in info.faults]
    for line in lines:
        err.print(f"  {escape(line)}", soft_wrap=True, highlight=False)


def _phantom_facts(key: str) -> dict[str, Any]:
    from vmfcoop.data.phantoms.library import PHANTOMS

    dataset = PHANTOMS[key]
    return {"key": key, "title": dataset.title, "class_names": list(dataset.class_names), "drawn": True}


group.command("verify")(data_checks.verify)
group.command("import")(data_checks.import_dataset)


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
    if place.is_dir():
        raise UserError(f"'{place}' is a folder; name a file to write.")
    content = io.BytesIO()
    draw(key, columns, outlines).save(content, SHEET_FORMATS[place.suffix.lower()], quality=85)
    write_atomically(place, content.getvalue())
    out.print(f"Wrote {place}", markup=False, highlight=False, soft_wrap=True)
