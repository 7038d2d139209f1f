"""Benchmarks and their reports."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import SOME_FAILED, Json, StoredPrecision, err, escape, out, progress_shown


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
    bench: Annotated[Path, typer.Argument(help="A folder that benchmark wrote.", show_default=False)],
    folder: Annotated[Path | None, typer.Option("--out", help="Where to; default BENCH/report.")] = None,
    reference: Annotated[
        str, typer.Option(help="Title of the method that others are tested against.")
    ] = "vMFCoOp",
    as_json: Json = False,
) -> None:
    """Write a benchmark's tables (Markdown, LaTeX, CSV) and one HTML page with curves, ranks and settings.

    Example: [bold]vmfcoop report runs/phantom[/]
    """
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
