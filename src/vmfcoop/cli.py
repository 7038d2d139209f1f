"""The command line: each command a thin call into the API."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from typer.core import TyperGroup

from vmfcoop.__about__ import __version__
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.progress import ProgressReport

SOME_FAILED, USER_ERROR = 1, 2
SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
out = Console()
err = Console(stderr=True)


class FriendlyGroup(TyperGroup):
    """Turns what a user can mend into one sentence and exit code 2."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            err.print(f"[bold red]Error:[/] {_escape(str(error))}", soft_wrap=True, highlight=False)
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
backbones_app = typer.Typer(help="Look at CLIP models.", no_args_is_help=True)
app.add_typer(backbones_app, name="backbones")
data_app = typer.Typer(help="Look at datasets.", no_args_is_help=True)
app.add_typer(data_app, name="data")


class Engine(StrEnum):
    """What runs the jobs of a benchmark."""

    local = "local"
    ray = "ray"


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    json = "json"


Backbone = Annotated[
    str,
    typer.Option(
        help="biomedclip, phantom (embedded), open_clip:MODEL/PRETRAINED, or dir:FOLDER in open_clip's "
        "hub format."
    ),
]
OtherBackbone = Annotated[
    str | None, typer.Option("--backbone", help="Where the run's backbone lies now; default as recorded.")
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")]
Json = Annotated[bool, typer.Option("--json", help="One JSON object on stdout, everything else on stderr.")]
RunFolder = Annotated[Path, typer.Argument(help="A run directory that fit wrote.", show_default=False)]


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


@app.command()
def demo(
    data: Annotated[str, typer.Option(help="The phantom dataset.")] = "phantom-histology",
    run: Annotated[
        Path | None, typer.Option("--out", help="Run directory; default runs/demo-DATA, replaced if there.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run directory if it is there.")] = False,
    as_json: Json = False,
) -> None:
    """The main job in a minute: methods at 1, 4 and 16 shots on drawn images with the embedded CLIP.

    Example: [bold]vmfcoop demo --data phantom-chest-xray[/]
    """
    from vmfcoop.demo import run_demo
    from vmfcoop.reporting.terminal import demo_report

    with _progress() as progress:
        result = run_demo(data, run or Path("runs") / f"demo-{data}", overwrite or not run, progress)
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        out.print(demo_report(result, pictures=out.color_system is not None))


@app.command()
def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders, one with split_*.json, a CSV path,label[,group][,split], or "
            "a phantom key.",
            show_default=False,
        ),
    ],
    backbone: Backbone = "biomedclip",
    method: Annotated[
        str,
        typer.Option(help="vmfcoop, biomedcoop, coop, tip-adapter, ...; a wrong name lists the near ones."),
    ] = "vmfcoop",
    shots: Annotated[int, typer.Option(help="Support images a class (K).", min=1)] = 16,
    seed: Annotated[int, typer.Option(help="Of the support set and of training.", min=0)] = 1,
    descriptions: Annotated[
        Path | None,
        typer.Option(help="JSON of class descriptions; without, the package's own or filled templates."),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, key=value; repeatable.")
    ] = None,
    class_name: Annotated[
        list[str] | None, typer.Option(help="Name of a class folder in prompts, folder=name; repeatable.")
    ] = None,
    run: Annotated[Path | None, typer.Option("--out", help="Run directory; default below runs/.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run directory if it is there.")] = False,
    views: Annotated[
        int, typer.Option(help="Cached views of a support image; 1: no augmentation.", min=1)
    ] = 8,
    val_shots: Annotated[
        int | None, typer.Option(help="Validation images a class; default min(K, 4).")
    ] = None,
    test_fraction: Annotated[float, typer.Option(help="Share of test images, without given splits.")] = 0.3,
    val_fraction: Annotated[float, typer.Option(help="Share of validation images, likewise.")] = 0.2,
    split_seed: Annotated[int, typer.Option(help="Seed of the split.", min=0)] = 0,
    groups: Annotated[
        Path | None,
        typer.Option(help="CSV (class,file,group) of images to keep in one split; groups.csv is found."),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Learn a classifier from K images a class and measure it on the test split.

    Example: [bold]vmfcoop fit lesions/ --shots 16 --descriptions lesions.json --out runs/lesions[/]
    """
    from vmfcoop.pipeline import FitRequest, run_fit
    from vmfcoop.reporting.terminal import metrics_table

    request = FitRequest(
        data=data,
        backbone=backbone,
        method=method,
        settings=_pairs(settings, "--set"),
        shots=shots,
        seed=seed,
        val_shots=val_shots,
        descriptions=descriptions,
        class_names=_pairs(class_name, "--class-name"),
        views=views,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        split_seed=split_seed,
        groups=groups,
        device=device,
    )
    folder = run or Path("runs") / f"{Path(data).resolve().stem}-{method}-{shots}shot-seed{seed}"
    with _progress() as progress:
        done = run_fit(request, folder, overwrite, ["vmfcoop", *sys.argv[1:]], progress)
    if done.record["descriptions"]["source"] == "templates" and method == "vmfcoop":
        err.print(
            "No descriptions were given: the class fields were fitted to templates filled with the names."
        )
    if as_json:
        print(json.dumps({"run": str(folder), **done.metrics}))
        return
    out.print(metrics_table(f"{method}, {shots} shots a class, seed {seed}: test split", done.metrics))
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in done.metrics["seconds"].items())
    out.print(f"Run directory: {folder}\nTime: {seconds}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(help="Other data with the same classes; default the run's own.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    backbone: OtherBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a run on a split of its own data or of other data.

    Example: [bold]vmfcoop evaluate runs/lesions other-clinic/ --json[/]
    """
    from vmfcoop.pipeline import evaluate_run
    from vmfcoop.reporting.terminal import metrics_table

    with _progress() as progress:
        metrics = evaluate_run(run, data, split, backbone, device, progress)
    if as_json:
        print(json.dumps(metrics))
    else:
        out.print(metrics_table(f"{run}: {split} split of {metrics['data']}", metrics))


@app.command()
def predict(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Image files or folders.", show_default=False)],
    format: Annotated[Format, typer.Option(help="How to write the predictions.")] = Format.table,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write to a file (CSV, or JSON by its name).")
    ] = None,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Classify images: the most probable class and the probability of every class.

    Example: [bold]vmfcoop predict runs/lesions new/ --out predictions.csv[/]
    """
    from vmfcoop.files import write_atomically
    from vmfcoop.pipeline import predict_images
    from vmfcoop.reporting.terminal import predictions_table

    with _progress() as progress:
        predictions = predict_images(run, inputs, backbone, device, progress)
    as_object = json.dumps({"run": str(run), "predictions": predictions.rows()})
    if to:
        json_wanted = as_json or format is Format.json or to.suffix == ".json"
        write_atomically(to, as_object + "\n" if json_wanted else predictions.csv())
        err.print(f"Wrote {len(predictions.images)} predictions to {to}", highlight=False)
    if as_json or (format is Format.json and not to):
        print(as_object)
    elif format is Format.csv and not to:
        print(predictions.csv(), end="")
    elif not to:
        out.print(predictions_table(predictions.rows(), predictions.class_names))


@app.command()
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

    the_recipe = load_recipe(recipe)
    place = folder or Path("runs") / the_recipe.name
    if dry_run:
        with _progress() as progress:
            overview = describe(plan(the_recipe, progress=progress), place, jobs)
        if as_json:
            print(json.dumps(overview))
        else:
            out.print(plan_table(overview))
        return
    with _progress() as progress:
        outcome = run_benchmark(
            the_recipe, place, engine.value, jobs=jobs, ray_address=ray_address, progress=progress
        )
    for failure in outcome.failed:
        err.print(f"[bold red]Failed:[/] {_escape(failure.job)}: {_escape(failure.message)}", soft_wrap=True)
    summary = {"done": outcome.done, "reused": outcome.reused, "failed": len(outcome.failed)}
    if as_json:
        print(json.dumps({"benchmark": str(place), **summary, "seconds": round(outcome.seconds, 1)}))
    else:
        counts = ", ".join(f"{count} {name}" for name, count in summary.items())
        out.print(f"Jobs: {counts}; {outcome.seconds:.0f} s.", highlight=False)
        out.print(f"Next: vmfcoop report {place}", highlight=False, soft_wrap=True)
    if outcome.failed:
        raise typer.Exit(SOME_FAILED)


@app.command()
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


@backbones_app.command("show")
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

    with _progress() as progress:
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


@data_app.command("contact-sheet")
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


@contextmanager
def _progress() -> Iterator[ProgressReport]:
    from vmfcoop.progress import progress_bars

    with progress_bars(err) as report:
        yield report


def _pairs(items: list[str] | None, option: str) -> dict[str, str]:
    pairs = {}
    for item in items or []:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise UserError(f"{option} takes key=value, not '{item}'.")
        pairs[key] = value
    return pairs


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any) -> None:
    """One line for our own warnings; other libraries' chatter is not the user's concern."""
    if category is UserWarning and "vmfcoop" in Path(filename).parts:
        err.print(f"[yellow]Warning:[/] {_escape(str(message))}", soft_wrap=True, highlight=False)


def _escape(text: str) -> str:
    from rich.markup import escape

    return escape(text)
