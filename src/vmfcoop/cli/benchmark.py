"""Benchmarks, and the reports of runs and of benchmarks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import (
    SOME_FAILED,
    Device,
    Json,
    OtherBackbone,
    StoredPrecision,
    err,
    escape,
    out,
    progress_shown,
)
from vmfcoop.errors import UserError


class Engine(StrEnum):
    """What runs the jobs of a benchmark."""

    local = "local"
    ray = "ray"


def benchmark(
    recipe: Annotated[Path, typer.Argument(help="YAML: datasets, backbones, methods, shots, seeds, ...")],
    folder: Annotated[
        Path | None, typer.Option("--out", help="Benchmark folder, new or begun; default runs/NAME.")
    ] = None,
    engine: Annotated[Engine, typer.Option(help="Processes here, or Ray tasks (extra: ray).")] = Engine.local,
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; without, Ray is started here.")
    ] = None,
    jobs: Annotated[
        int | None, typer.Option(help="Processes; default as cores and memory allow.", min=1)
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or mps; default the recipe's.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="Of the towers: fp32, bf16, fp16 or auto; default the recipe's.")
    ] = None,
    cache_precision: Annotated[
        StoredPrecision | None, typer.Option(help="Of cached features; default the recipe's.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the grid and its cost; run nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run every method, dataset, K and seed of a recipe under one protocol; go on where a run stopped.

    Exit code 1 says that some jobs failed; the others are kept.

    Example: [bold]vmfcoop benchmark recipes/phantom.yaml --out runs/phantom[/]
    """
    from vmfcoop.benchmark.engine import run_benchmark
    from vmfcoop.benchmark.plan import describe, plan
    from vmfcoop.benchmark.recipe import load_recipe
    from vmfcoop.reporting.terminal import plan_table

    the_recipe = load_recipe(
        recipe, device=device, precision=precision, cache_precision=cache_precision and cache_precision.value
    )
    place = folder or Path("runs") / the_recipe.name
    if dry_run:
        with progress_shown() as progress:
            overview = describe(plan(the_recipe, progress=progress), place, jobs)
        if as_json:
            print(json.dumps(overview))
        else:
            out.print(plan_table(overview))
        return
    with progress_shown() as progress:
        outcome = run_benchmark(
            the_recipe, place, engine.value, jobs=jobs, ray_address=ray_address, progress=progress
        )
    for note in outcome.notes:
        err.print(f"Note: {escape(note)}", soft_wrap=True, highlight=False)
    for failure in outcome.failed:
        err.print(f"[bold red]Failed:[/] {escape(failure.job)}: {escape(failure.message)}", soft_wrap=True)
    summary = {"done": outcome.done, "reused": outcome.reused, "failed": len(outcome.failed)}
    if as_json:
        print(json.dumps({"benchmark": str(place), **summary, "seconds": round(outcome.seconds, 1)}))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in summary.items())
        out.print(f"Jobs: {counts}; {outcome.seconds:.0f} s.", highlight=False)
        out.print(f"Next: vmfcoop report {place}", highlight=False, soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(SOME_FAILED)


def report(
    folder: Annotated[Path, typer.Argument(help="A folder that fit or benchmark wrote.", show_default=False)],
    to: Annotated[
        Path | None,
        typer.Option("--out", help="Of a run: the page, default RUN/report.html. Of a benchmark: a folder."),
    ] = None,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    maps: Annotated[
        str | None,
        typer.Option(
            "--map", help="How a run's mistakes are explained; none: not.", show_default="occlusion"
        ),
    ] = None,
    mistakes: Annotated[
        int | None,
        typer.Option(help="How many of a run's mistakes are shown.", min=0, show_default="8"),
    ] = None,
    reference: Annotated[
        str | None,
        typer.Option(
            help="Title of the method that a benchmark's others are tested against.", show_default="vMFCoOp"
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Write what there is to read about a run, one HTML page, or about a benchmark, a page and its tables.

    A run's page needs no network and can be sent on: metrics with intervals, confusion, calibration,
    training, the sphere of images and texts, mistakes with maps, the support set, limits. It has pictures of
    the data.

    Example: [bold]vmfcoop report runs/lesions[/]
    """
    from vmfcoop.benchmark.results import RECIPE
    from vmfcoop.run import RECORD

    if (folder / RECORD).is_file():
        _only_for("a benchmark", {"--reference": reference})
        _report_run(folder, to, backbone, device, maps, mistakes, as_json)
    elif (folder / RECIPE).is_file():
        _only_for("a run", {"--backbone": backbone, "--map": maps, "--mistakes": mistakes})
        _report_benchmark(folder, to, reference or "vMFCoOp", as_json)
    else:
        raise UserError(
            f"'{folder}' is no run directory (it has no {RECORD}) and no benchmark folder (it has no "
            f"{RECIPE}); give a folder that 'fit' or 'benchmark' wrote."
        )


def _only_for(kind: str, options: Mapping[str, object]) -> None:
    given = [name for name, value in options.items() if value is not None]
    if given:
        raise UserError(f"{given[0]} is for the report of {kind} only; leave it out.")


def _report_run(
    folder: Path,
    page: Path | None,
    backbone: str | None,
    device: str,
    maps: str | None,
    mistakes: int | None,
    as_json: bool,
) -> None:
    from vmfcoop.explain.maps import DEFAULT_METHOD
    from vmfcoop.reporting.run_report import MISTAKES, write_run_report

    with progress_shown() as progress:
        written = write_run_report(
            folder,
            page,
            backbone,
            device,
            map_method=None if maps == "none" else maps or DEFAULT_METHOD,
            shown_mistakes=MISTAKES if mistakes is None else mistakes,
            progress=progress,
        )
    if as_json:
        print(json.dumps({"run": str(folder), "report": str(written.path), "missing": list(written.missing)}))
        return
    out.print(f"Wrote {written.path}", highlight=False, soft_wrap=True)
    for reason in written.missing:
        err.print(f"Missing: {escape(reason)}", highlight=False, soft_wrap=True)


def _report_benchmark(bench: Path, folder: Path | None, reference: str, as_json: bool) -> None:
    from vmfcoop.benchmark.results import read_bench
    from vmfcoop.reporting.html import write_report

    found = read_bench(bench)
    failures = [f"{failure.job}: {failure.message}" for failure in found.failures]
    place = folder or bench / "report"
    files = write_report(found.cells, found.settings(), place, found.missing_sentences(), failures, reference)
    if as_json:
        print(json.dumps({kind: str(path) for kind, path in files.items()}))
        return
    for path in files.values():
        out.print(f"Wrote {path}", highlight=False, soft_wrap=True)
    if found.missing:
        out.print(f"{len(found.missing)} cells have no result yet; the report names them.")
