"""The group ``backbones``."""

from __future__ import annotations

import json
import shlex
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from vmfcoop.cli.common import Device, Json, Precision, err, escape, out, progress_shown

if TYPE_CHECKING:
    from vmfcoop.backbones import DualEncoder
    from vmfcoop.backbones.installed import BackboneManifest

group = typer.Typer(help="Find, fetch, check and look at CLIP models.", no_args_is_help=True)


@group.command("list")
def list_backbones(as_json: Json = False) -> None:
    """List every backbone that has a key, with sizes, licence and limits, and which are here.

    Example: [bold]vmfcoop backbones list[/]
    """
    from vmfcoop.backbones.catalogue import catalogue, listing
    from vmfcoop.backbones.fetching import is_here
    from vmfcoop.backbones.installed import installed_backbones
    from vmfcoop.reporting.backbones import backbones_table

    rows = listing(is_here)
    others = {
        folder.name: manifest for folder, manifest in installed_backbones() if folder.name not in catalogue()
    }
    if as_json:
        more = [{"backbone": name, **_known(manifest)} for name, manifest in others.items()]
        out.print_json(data={"backbones": rows, "others": more})
        return
    out.print(backbones_table(rows))
    for name, manifest in others.items():
        facts = f"{manifest.spec}, d = {manifest.dim}. {manifest.licence or 'licence: see its publisher'}"
        out.print(f"Also here: [bold]{escape(name)}[/] ({escape(facts)})", highlight=False, soft_wrap=True)


@group.command("fetch")
def fetch_backbone(
    backbone: Annotated[
        str,
        typer.Argument(
            help="A key of `vmfcoop backbones list`, hf:REPOSITORY or open_clip:MODEL/PRETRAINED.",
            show_default=False,
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", help="Folder to carry to another machine; default where the key finds it."),
    ] = None,
    revision: Annotated[
        str | None, typer.Option(help="Commit, tag or branch of the repository; default main.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Fetch again what is here already.")] = False,
    as_json: Json = False,
) -> None:
    """Download a backbone, check it, load it once and put it in place; an interrupted download goes on.

    Example: [bold]vmfcoop backbones fetch biomedclip --to /media/usb/biomedclip[/]
    """
    from vmfcoop.backbones.fetching import fetch_backbone as fetch
    from vmfcoop.backbones.installed import read_manifest

    _say_terms(backbone)
    with progress_shown() as progress:
        place = fetch(backbone, to, revision=revision, replace=replace, progress=progress)
    manifest = read_manifest(place)
    spec = backbone if to is None else f"dir:{place}"
    if as_json:
        facts = {"backbone": spec, "folder": str(place), **_known(manifest)}
        out.print_json(data=facts | {"files": {name: r.bytes for name, r in manifest.files.items()}})
        return
    out.print(f"[bold]{escape(backbone)}[/] is in {escape(str(place))}", soft_wrap=True, highlight=False)
    if manifest.commit:
        out.print(f"  {manifest.repository} at commit {manifest.commit}", soft_wrap=True, highlight=False)
    for name in manifest.files:
        if name.upper().startswith(("LICEN", "NOTICE")):
            out.print(f"  Text of the licence: {place / name}", soft_wrap=True, highlight=False, markup=False)
    command = f"vmfcoop fit DATA --backbone {shlex.quote(spec)}"
    out.print(f"Next: {command}", soft_wrap=True, highlight=False, markup=False)


def _say_terms(backbone: str) -> None:
    """Licence and limits of a published backbone, before anything of it is downloaded."""
    from vmfcoop.backbones.catalogue import catalogue

    entry = catalogue().get(backbone)
    if entry is None:
        return
    lines = [f"Licence of {entry.key}: {entry.licence}. {entry.limits}"]
    lines += [f"Its text: {entry.terms}"] if entry.terms else []
    lines += [entry.note] if entry.note else []
    for line in lines:
        err.print(line, soft_wrap=True, highlight=False, markup=False)


@group.command("verify")
def verify_backbone(
    backbone: Annotated[
        str,
        typer.Argument(help="A folder, or the key or spec of a backbone that is here.", show_default=False),
    ],
    as_json: Json = False,
) -> None:
    """Compare a fetched or unpacked backbone with its manifest, file by file.

    Example: [bold]vmfcoop backbones verify biomedclip[/]
    """
    from vmfcoop.backbones.installed import installed_folder, verify_folder
    from vmfcoop.errors import UserError

    given = Path(backbone.removeprefix("dir:")).expanduser()
    folder = given if given.is_dir() else installed_folder(backbone)
    if folder is None:
        raise UserError(
            f"'{backbone}' is neither a folder nor a backbone that was fetched or unpacked; fetch it with "
            f"'vmfcoop backbones fetch {backbone}'."
        )
    with progress_shown() as progress:
        manifest = verify_folder(folder, progress)
    if as_json:
        out.print_json(data={"folder": str(folder), "verified": len(manifest.files), **_known(manifest)})
        return
    out.print(
        f"All {len(manifest.files)} files of {manifest.spec} in {folder} are as they were fetched.",
        soft_wrap=True,
        highlight=False,
        markup=False,
    )


def _known(manifest: BackboneManifest) -> dict[str, Any]:
    return manifest.model_dump(mode="json", exclude={"files", "format"})


@group.command("show")
def show_backbone(
    backbone: Annotated[str, typer.Argument(help="Backbone spec.", show_default=False)],
    field: Annotated[bool, typer.Option(help="Also fit the vMF field of its vocabulary.")] = False,
    sample: Annotated[
        int | None, typer.Option(help="Also fit that field to a sample of so many entries.", min=2)
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    as_json: Json = False,
) -> None:
    """Print what a backbone is: sizes, licence, where it lies, fingerprint, the field of its vocabulary.

    Of a published one that is not here, what is known of it and how to get it.

    Example: [bold]vmfcoop backbones show dir:/models/biomedclip --field[/]
    """
    from vmfcoop.backbones import load_backbone
    from vmfcoop.backbones.catalogue import catalogue
    from vmfcoop.backbones.fetching import is_here
    from vmfcoop.features import CachedEncoder
    from vmfcoop.reporting.backbones import backbone_card

    entry = catalogue().get(backbone)
    if entry is not None and not is_here(backbone):
        if as_json:
            out.print_json(data={**entry.model_dump(mode="json"), "here": False})
        else:
            out.print(backbone_card(entry))
        return
    with progress_shown() as progress:
        encoder = load_backbone(backbone, device, precision)
        cached = CachedEncoder(encoder, progress=progress)
        facts = _facts(encoder) | _origin(backbone) | _field_facts(cached, field, sample)
    if as_json:
        print(json.dumps(facts))
        return
    table = Table(show_header=False, box=None)
    for key, value in facts.items():
        table.add_row(key.replace("_", " "), escape(str(value)))
    out.print(table)


def _facts(encoder: DualEncoder) -> dict[str, Any]:
    """What the loaded encoder says of itself."""
    return {
        "backbone": encoder.name,
        "fingerprint": encoder.fingerprint,
        "parameters": encoder.parameters,
        "dim": encoder.dim,
        "token_width": encoder.token_width,
        "context_length": encoder.context_length,
        "image_size": list(encoder.image_size),
        "logit_scale": round(encoder.logit_scale, 4),
        "vocabulary": len(encoder.vocabulary()),
        "device": str(encoder.device),
        "precision": encoder.precision,
    }


def _origin(backbone: str) -> dict[str, str]:
    """Folder and licence, where they are known."""
    from vmfcoop.backbones.catalogue import catalogue
    from vmfcoop.backbones.installed import MANIFEST, read_manifest
    from vmfcoop.backbones.registry import locate
    from vmfcoop.errors import UserError

    known: dict[str, str] = {}
    # A model of open_clip's own list has no folder of its own.
    with suppress(UserError):
        folder = locate(backbone)[0]
        known["folder"] = str(folder)
        if (folder / MANIFEST).is_file():
            manifest = read_manifest(folder)
            known |= {"published_as": manifest.spec, "licence": manifest.licence, "limits": manifest.limits}
    entry = catalogue().get(backbone)
    if entry is not None:
        known |= {"licence": entry.licence, "limits": entry.limits}
    return {key: value for key, value in known.items() if value}


def _field_facts(encoder: DualEncoder, field: bool, sample: int | None) -> dict[str, float]:
    """The vMF field of the vocabulary, and how near that of a sample comes to it."""
    from vmfcoop.sphere import fit_vmf

    if not field and not sample:
        return {}
    full = fit_vmf(encoder.encode_vocabulary())
    facts = {
        "field_concentration": round(float(full.concentration), 3),
        "field_resultant_length": round(float(full.resultant_length), 6),
    }
    if sample:
        part = fit_vmf(encoder.encode_vocabulary(sample))
        facts["sample_concentration"] = round(float(part.concentration), 3)
        facts["sample_cosine_to_field"] = round(float(part.mean_direction @ full.mean_direction), 6)
    return facts
