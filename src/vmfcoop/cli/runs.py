"""The main jobs: demo, fit, evaluate, predict."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
from vmfcoop.errors import UserError

if TYPE_CHECKING:
    from vmfcoop.trust.judging import TrustRequest


class Format(StrEnum):
    """How predictions are written."""

    table = "table"
    csv = "csv"
    json = "json"


Conformal = Annotated[
    float | None,
    typer.Option(
        metavar="ALPHA",
        help="Give the set of classes that holds the true one in at least 1 - ALPHA of images, as 0.1. It "
        "does so if new images are like the run's calibration images: not of another scanner, and not "
        "several of one patient.",
    ),
]
ConformalMethod = Annotated[
    str | None, typer.Option(help="Of the sets: lac (smallest), aps or raps.", show_default="lac")
]
ClassConditional = Annotated[
    bool,
    typer.Option(
        "--class-conditional",
        help="Hold 1 - ALPHA within every class: also where class frequencies differ, with larger sets.",
    ),
]
Calibration = Annotated[
    str | None,
    typer.Option(
        help="Labelled images of the same classes, unseen by the fit, in place of those that the run keeps."
    ),
]
Calibrated = Annotated[
    bool, typer.Option("--calibrated", help="Temperature-scaled probabilities, by the validation shots.")
]


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
    calibration_images: Annotated[
        int,
        typer.Option(
            help="At most so many further val images are kept for predict --conformal and --ood; their "
            "labels come on top of the few shots. 0: none.",
            min=0,
        ),
    ] = 256,
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
        calibration_images=calibration_images,
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
    out.print(
        f"Run directory: {folder}\n{_calibration_line(done.record['calibration'])}\nTime: {seconds}{encoded}",
        highlight=False,
        soft_wrap=True,
    )


def _calibration_line(kept: Mapping[str, Any]) -> str:
    """What a fit used of labels beyond its shots."""
    images, temperature = len(kept["images"]), kept["temperature"]
    return f"Calibration: {images} further labelled images of the val split, temperature {temperature:.2f}"


def evaluate(
    run: RunFolder,
    data: Annotated[
        str | None,
        typer.Argument(help="Other data with the same classes; default the run's own.", show_default=False),
    ] = None,
    split: Annotated[str, typer.Option(help="train, val or test.")] = "test",
    conformal: Conformal = None,
    conformal_method: ConformalMethod = None,
    class_conditional: ClassConditional = False,
    calibration: Calibration = None,
    calibrated: Calibrated = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Measure a run on a split of its own data or of other data.

    Example: [bold]vmfcoop evaluate runs/lesions other-clinic/ --json[/]
    Example: [bold]vmfcoop evaluate runs/lesions --conformal 0.1 --calibrated[/]
    """
    from vmfcoop.predicting import evaluate_run
    from vmfcoop.reporting.terminal import calibration_table, coverage_table, metrics_table

    wanted = _trust_request(conformal, conformal_method, class_conditional, calibration, None, calibrated)
    with progress_shown() as progress:
        metrics = evaluate_run(run, data, split, backbone, device, precision, progress, wanted)
    if as_json:
        print(json.dumps(metrics))
        return
    out.print(metrics_table(f"{run}: {split} split of {metrics['data']}", metrics))
    if "calibration" in metrics:
        out.print(calibration_table(metrics["calibration"]))
    if "conformal" in metrics:
        out.print(coverage_table(metrics["conformal"]))


def _trust_request(
    alpha: float | None,
    method: str | None,
    class_conditional: bool,
    calibration: str | None,
    ood: str | None,
    calibrated: bool,
) -> TrustRequest:
    """What the options ask for.

    Raises:
        UserError: an option of prediction sets without their error rate, or a value out of range.
    """
    from vmfcoop.trust.conformal import DEFAULT_CONFORMAL_METHOD, SetRequest
    from vmfcoop.trust.judging import TrustRequest

    if alpha is None and (method is not None or class_conditional):
        given = "--conformal-method" if method is not None else "--class-conditional"
        raise UserError(f"{given} is about prediction sets; ask for them with --conformal 0.1.")
    method = DEFAULT_CONFORMAL_METHOD if method is None else method
    sets = None if alpha is None else SetRequest(alpha, method, class_conditional)
    return TrustRequest(sets, ood, calibrated, calibration)


def predict(
    run: RunFolder,
    inputs: Annotated[list[Path], typer.Argument(help="Image files or folders.", show_default=False)],
    format: Annotated[Format, typer.Option(help="How to write the predictions.")] = Format.table,
    to: Annotated[
        Path | None, typer.Option("--out", help="Write to a file (CSV, or JSON by its name).")
    ] = None,
    conformal: Conformal = None,
    conformal_method: ConformalMethod = None,
    class_conditional: ClassConditional = False,
    ood: Annotated[
        bool,
        typer.Option(
            "--ood", help="Score how far outside an image is, with the p-value and a flag where p <= 0.05."
        ),
    ] = False,
    ood_score: Annotated[
        str | None,
        typer.Option(
            help="image-fields, text-fields, posterior, softmax or energy.", show_default="image-fields"
        ),
    ] = None,
    calibration: Calibration = None,
    calibrated: Calibrated = False,
    backbone: OtherBackbone = None,
    device: Device = "auto",
    precision: RunPrecision = None,
    as_json: Json = False,
) -> None:
    """Classify images: the most probable class and the probability of every class.

    Example: [bold]vmfcoop predict runs/lesions new/ --out predictions.csv[/]
    Example: [bold]vmfcoop predict runs/lesions new/ --conformal 0.1 --ood --calibrated[/]
    """
    from vmfcoop.files import write_atomically
    from vmfcoop.predicting import predict_images
    from vmfcoop.reporting.terminal import predictions_table
    from vmfcoop.trust.ood import DEFAULT_OOD_SCORE

    score = DEFAULT_OOD_SCORE if ood and ood_score is None else ood_score
    wanted = _trust_request(conformal, conformal_method, class_conditional, calibration, score, calibrated)
    with progress_shown() as progress:
        predictions = predict_images(run, inputs, backbone, device, precision, progress, wanted)
    origin = {"trust": predictions.origin} if predictions.origin else {}
    as_object = json.dumps({"run": str(run), **origin, "predictions": predictions.rows()})
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
