"""The main jobs: demo, fit, evaluate, predict."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from vmfcoop.cli.common import (
    Backbone,
    CachePrecision,
    ClassName,
    Device,
    Groups,
    Json,
    OtherBackbone,
    Precision,
    RunFolder,
    RunPrecision,
    SplitSeed,
    StoredPrecision,
    TestFraction,
    ValFraction,
    err,
    out,
    pairs,
    progress_shown,
)


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    json = "json"


def demo(
    data: Annotated[str, typer.Option(help="The phantom dataset.")] = "phantom-histology",
    run: Annotated[
        Path | None, typer.Option("--out", help="Run directory; default runs/demo-DATA, replaced if there.")
    ] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run directory if it is there.")] = False,
    device: Device = "cpu",
    as_json: Json = False,
) -> None:
    """The main job in a minute: methods at 1, 4 and 16 shots on drawn images with the embedded CLIP.

    Example: [bold]vmfcoop demo --data phantom-chest-xray[/]
    """
    from vmfcoop.demo import run_demo
    from vmfcoop.reporting.terminal import demo_report

    with progress_shown() as progress:
        folder = run or Path("runs") / f"demo-{data}"
        result = run_demo(data, folder, overwrite or not run, progress, device)
    if as_json:
        print(json.dumps(result.as_json()))
    else:
        out.print(demo_report(result, pictures=out.color_system is not None))


def fit(
    data: Annotated[
        str,
        typer.Argument(
            help="A folder of class folders, one with split_*.json, a CSV path,label[,group][,split], or "
            "a key of `vmfcoop data list`.",
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
        typer.Option(
            help="JSON or TXT of class descriptions, or a key as btmri for the package's; without, the "
            "package's of DATA's key, or filled templates."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="A setting of the method, key=value; repeatable.")
    ] = None,
    class_name: ClassName = None,
    run: Annotated[Path | None, typer.Option("--out", help="Run directory; default below runs/.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the run directory if it is there.")] = False,
    views: Annotated[
        int, typer.Option(help="Cached views of a support image; 1: no augmentation.", min=1)
    ] = 8,
    val_shots: Annotated[
        int | None, typer.Option(help="Validation images a class; default min(K, 4).")
    ] = None,
    test_fraction: TestFraction = 0.3,
    val_fraction: ValFraction = 0.2,
    split_seed: SplitSeed = 0,
    groups: Groups = None,
    window: Annotated[
        str | None,
        typer.Option(help="Of DICOM and NIfTI images: center,width or lung, bone, soft-tissue, brain."),
    ] = None,
    device: Device = "auto",
    precision: Precision = "fp32",
    cache_precision: CachePrecision = StoredPrecision.fp32,
    as_json: Json = False,
) -> None:
    """Learn a classifier from K images a class and measure it on the test split.

    Example: [bold]vmfcoop fit lesions/ --shots 16 --descriptions lesions.json --out runs/lesions[/]
    """
    from vmfcoop.descriptions.bank import TEMPLATE_SOURCE, TEMPLATES
    from vmfcoop.methods import METHODS
    from vmfcoop.pipeline import FitRequest, run_fit
    from vmfcoop.reporting.terminal import metrics_table

    request = FitRequest(
        data=data,
        backbone=backbone,
        method=method,
        settings=pairs(settings, "--set"),
        shots=shots,
        seed=seed,
        val_shots=val_shots,
        descriptions=descriptions,
        class_names=pairs(class_name, "--class-name"),
        views=views,
        test_fraction=test_fraction,
        val_fraction=val_fraction,
        split_seed=split_seed,
        groups=groups,
        window=window,
        device=device,
        precision=precision,
        cache_precision=cache_precision.value,
    )
    folder = run or Path("runs") / f"{Path(data).resolve().stem}-{method}-{shots}shot-seed{seed}"
    with progress_shown() as progress:
        done = run_fit(request, folder, overwrite, ["vmfcoop", *sys.argv[1:]], progress)
    source = done.record["descriptions"]["source"]
    if source == TEMPLATE_SOURCE and METHODS[method].reads_descriptions:
        err.print(
            f"No descriptions: {METHODS[method].title} had {len(TEMPLATES)} templates filled with the class "
            "names in their place. --descriptions FILE.json or FILE.txt takes yours, and "
            "`vmfcoop descriptions generate` has a language model write some.",
            soft_wrap=True,
            highlight=False,
        )
    if as_json:
        print(json.dumps({"run": str(folder), "descriptions": source, **done.metrics}))
        return
    out.print(metrics_table(f"{method}, {shots} shots a class, seed {seed}: test split", done.metrics))
    seconds = ", ".join(f"{phase} {value:.1f} s" for phase, value in done.metrics["seconds"].items())
    rate = done.metrics["images_per_second"]
    encoded = f"\nImages: {rate:.1f} a second, each view counted" if rate else ""
    out.print(f"Run directory: {folder}\nTime: {seconds}{encoded}", highlight=False, soft_wrap=True)


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(help="Other data with the same classes; default the run's own.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Measure a run on a split of its own data or of other data.

    Example: [bold]vmfcoop evaluate runs/lesions other-clinic/ --json[/]
    """
    from vmfcoop.pipeline import evaluate_run
    from vmfcoop.reporting.terminal import metrics_table

    with progress_shown() as progress:
        metrics = evaluate_run(run, data, split, backbone, device, precision, progress)
    if as_json:
        print(json.dumps(metrics))
    else:
        out.print(metrics_table(f"{run}: {split} split of {metrics['data']}", metrics))


def predict(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Image files or folders.", show_default=False)],
    format: Annotated[Format, typer.Option(help="How to write the predictions.")] = Format.table,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write to a file (CSV, or JSON by its name).")
    ] = None,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Classify images: the most probable class and the probability of every class.

    Example: [bold]vmfcoop predict runs/lesions new/ --out predictions.csv[/]
    """
    from vmfcoop.files import write_atomically
    from vmfcoop.pipeline import predict_images
    from vmfcoop.reporting.terminal import predictions_table

    with progress_shown() as progress:
        predictions = predict_images(run, inputs, backbone, device, precision, progress)
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
