"""Packing and unpacking, for machines without a network."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vmfcoop.cli.common import Json, err, escape, out, progress_shown

if TYPE_CHECKING:
    from vmfcoop.bundle import Packed, Unpacked
    from vmfcoop.bundle.manifest import BundleManifest


def pack(
    what: Annotated[
        Path, typer.Argument(help="A run directory, or the YAML file of a recipe.", show_default=False)
    ],
    to: Annotated[
        Path,
        typer.Option("--to", help="BUNDLE.tar, or a folder if the name has no .tar.", show_default=False),
    ],
    data: Annotated[
        bool, typer.Option("--data", help="Also pack the images that its tables list: patients' images.")
    ] = False,
    backbone: Annotated[
        str | None, typer.Option("--backbone", help="Where the backbone lies now; default as recorded.")
    ] = None,
    replace: Annotated[bool, typer.Option("--replace", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Put a run or a recipe with its backbone, tokenizer and descriptions into one file, to be carried over.

    Example: [bold]vmfcoop pack runs/lesions --to lesions.tar[/]
    """
    from vmfcoop.bundle import pack as pack_bundle

    with progress_shown() as progress:
        packed = pack_bundle(what, to, data=data, backbone=backbone, replace=replace, progress=progress)
    for remark in packed.remarks:
        err.print(f"[yellow]Note:[/] {escape(remark)}", soft_wrap=True, highlight=False)
    if as_json:
        out.print_json(data=_as_json(packed.manifest) | _packed_facts(packed))
        return
    for line in _packed_lines(packed):
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def unpack(
    bundle: Annotated[Path, typer.Argument(help="What pack wrote.", show_default=False)],
    to: Annotated[
        Path | None, typer.Option("--to", help="Folder for the run or the recipe; default ./BUNDLE.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace what another bundle put there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Verify a bundle and install what is in it: all of it, or nothing. No network is asked.

    Example: [bold]vmfcoop unpack lesions.tar[/]
    """
    from vmfcoop.bundle import unpack as unpack_bundle

    with progress_shown() as progress:
        unpacked = unpack_bundle(bundle, to, replace=replace, progress=progress)
    if as_json:
        out.print_json(data=_as_json(unpacked.manifest) | _unpacked_facts(unpacked))
        return
    for line in _unpacked_lines(unpacked):
        out.print(line, soft_wrap=True, highlight=False, markup=False)


def _as_json(manifest: BundleManifest) -> dict[str, Any]:
    return {**manifest.model_dump(mode="json", exclude={"files"}), "files": len(manifest.files)}


def _packed_facts(packed: Packed) -> dict[str, Any]:
    facts = {"bundle": str(packed.path), "sha256": packed.sha256, "bytes": packed.manifest.bytes}
    return facts | {"remarks": list(packed.remarks)}


def _packed_lines(packed: Packed) -> list[str]:
    """What is in the bundle; which patients' data, above all."""
    from vmfcoop.data.downloads import megabytes

    manifest = packed.manifest
    size = f"{len(manifest.files)} files, {megabytes(manifest.bytes)}"
    lines = [f"Packed the {manifest.kind} {manifest.title} into {packed.path}: {size}."]
    for backbone in manifest.backbones:
        lines.append(f"  Backbone: {backbone.name} (fingerprint {backbone.fingerprint})")
        licence = f"{backbone.licence}. {backbone.limits}" if backbone.licence else "see its publisher."
        lines.append(f"    Licence, before you pass it on: {licence}")
    lines += [f"  Backbone: {name} comes with vmfcoop and is not packed" for name in manifest.embedded]
    lines += [f"  Descriptions: {path}" for path in manifest.descriptions]
    for part in manifest.data:
        counts = ", ".join(f"{count} {split}" for split, count in part.images.items())
        lines.append(f"  Images of {part.name}: {sum(part.images.values())} ({counts})")
    if not manifest.data:
        lines.append("  Images: none")
    if manifest.kind == "run":
        lines.append(
            "  The run's files (run.json, predictions.csv) name the images it was fitted and tested on."
        )
    if packed.sha256:
        lines.append(f"SHA-256: {packed.sha256}")
    return [*lines, f"Next, on the other machine: vmfcoop unpack {packed.path.name}"]


def _unpacked_facts(unpacked: Unpacked) -> dict[str, Any]:
    return {
        "folder": str(unpacked.folder),
        unpacked.manifest.kind: str(unpacked.target),
        "backbone_folders": {name: str(folder) for name, folder in unpacked.backbones.items()},
        "was_here": unpacked.was_here,
        "next": _next_commands(unpacked),
    }


def _unpacked_lines(unpacked: Unpacked) -> list[str]:
    from vmfcoop.__about__ import __version__

    manifest = unpacked.manifest
    state = "was here already" if unpacked.was_here else "is here now"
    lines = [f"All {len(manifest.files)} files are as they were packed; the {manifest.kind} {state}."]
    lines.append(f"  {manifest.kind.capitalize()}: {unpacked.target}")
    lines += [f"  Backbone {name}: {folder}" for name, folder in unpacked.backbones.items()]
    lines += [f"  Data {part.name}: {unpacked.folder / part.path}" for part in manifest.data]
    if manifest.vmfcoop != __version__:
        lines.append(f"  It was packed by vmfcoop {manifest.vmfcoop}; this is {__version__}.")
    return [*lines, "Next:", *(f"  {command}" for command in _next_commands(unpacked))]


def _next_commands(unpacked: Unpacked) -> list[str]:
    manifest, target = unpacked.manifest, shlex.quote(str(unpacked.target))
    if manifest.kind == "recipe":
        return [f"vmfcoop benchmark {target} --out {shlex.quote(f'runs/{unpacked.target.stem}')}"]
    commands = [f"vmfcoop predict {target} IMAGES --out predictions.csv"]
    if manifest.data:
        commands.append(f"vmfcoop evaluate {target}")
    name = next(iter([*unpacked.backbones, *manifest.embedded]))
    given = [str(unpacked.folder / path) for path in manifest.descriptions]
    more = f" --descriptions {shlex.quote(given[0])}" if given else ""
    return [*commands, f"vmfcoop fit DATA --backbone {name}{more}"]
