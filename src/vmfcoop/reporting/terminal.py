"""Results in the terminal: rich tables and small pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from rich.color import Color
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.style import Style
from rich.table import Table
from rich.text import Text

from vmfcoop.data.few_shot import base_novel_classes

if TYPE_CHECKING:
    from vmfcoop.demo import Demo

PICTURE_WIDTH = 24
"""Columns of a picture; two pixels share a character, one above the other."""


def mean_and_spread(values: Sequence[float]) -> str:
    """Shares as percent: mean and standard deviation (n - 1), the mean alone for a single value.

    Example:
        >>> mean_and_spread([0.5, 0.6, 0.7]), mean_and_spread([0.25])
        ('60.0 ± 10.0', '25.0')
    """
    centre = f"{100 * mean(values):.1f}"
    return f"{centre} ± {100 * stdev(values):.1f}" if len(values) > 1 else centre


def metrics_table(title: str, metrics: Mapping[str, Any]) -> Table:
    """Recall, precision and F1 of every class, with the summary as caption."""
    table = Table("class", "recall", "precision", "F1", "images", title=escape(title), title_justify="left")
    for name, row in metrics["per_class"].items():
        table.add_row(
            Text(name), *(f"{row[key]:.3f}" for key in ("recall", "precision", "f1")), str(row["support"])
        )
    auroc = metrics["macro_auroc"]
    summary = (
        f"accuracy {metrics['accuracy']:.3f}   balanced {metrics['balanced_accuracy']:.3f}   "
        f"macro F1 {metrics['macro_f1']:.3f}   macro AUROC {'-' if auroc is None else f'{auroc:.3f}'}   "
        f"ECE {metrics['ece']:.3f}   n = {metrics['n']}"
    )
    table.caption, table.caption_justify = summary, "left"
    return table


def calibration_table(calibration: Mapping[str, Any]) -> Table:
    """Calibration of the probabilities before and after temperature scaling."""
    title = f"Temperature {calibration['temperature']:.2f}, by the validation shots"
    table = Table("probabilities", "ECE", "NLL", "Brier", title=title, title_justify="left")
    for name, key in (("as fitted", "before"), ("calibrated", "after")):
        scores = calibration[key]
        table.add_row(name, *(f"{scores[score]:.3f}" for score in ("ece", "nll", "brier")))
    return table


def coverage_table(conformal: Mapping[str, Any]) -> Table:
    """How often prediction sets hold the true class, overall and by class."""
    title = (
        f"Prediction sets ({conformal['method']}) at 1 - alpha = {1 - conformal['alpha']:g}, "
        f"calibrated on {conformal['calibration']['images']} images"
    )
    if conformal["class_conditional"]:
        title += ", class by class"
    table = Table("class", "coverage", "95 % interval", "mean size", "images", title=title)
    table.title_justify = "left"
    # A class may itself be named "all".
    for name, row in (*conformal["per_class"].items(), ("all", conformal)):
        if row["n"] == 0:
            table.add_row(Text(name), "-", "-", "-", "0")
            continue
        low, high = row["interval"]
        table.add_row(
            Text(name),
            f"{row['coverage']:.3f}",
            f"{low:.3f} to {high:.3f}",
            f"{row['mean_size']:.2f}",
            str(row["n"]),
        )
    if conformal["usual"]:
        low, high = conformal["usual"]
        table.caption = f"usual for images like the calibration images: {low:.3f} to {high:.3f}"
        table.caption_justify = "left"
    return table


def predictions_table(rows: Sequence[Mapping[str, Any]], class_names: Sequence[str]) -> Table:
    """The predicted class and every class's probability, a row an image.

    Where a set or a score was asked for too, of the probabilities only that of the predicted class is shown:
    all of them and more do not fit a terminal.
    """
    more = [key for key in rows[0] if key not in ("image", "predicted", "probabilities")]
    if more:
        return _judged_table(rows, more)
    table = Table("image", "predicted")
    for name in class_names:
        table.add_column(Text(name))
    for row in rows:
        cells = [f"{row['probabilities'][name]:.3f}" for name in class_names]
        table.add_row(Text(row["image"]), Text(row["predicted"]), *cells)
    return table


def _judged_table(rows: Sequence[Mapping[str, Any]], more: Sequence[str]) -> Table:
    table = Table()
    table.add_column("image", overflow="fold", min_width=8)
    table.add_column("predicted")
    for heading in ("p", *more):
        table.add_column(heading, no_wrap=heading != "set")
    for row in rows:
        share = row["probabilities"][row["predicted"]]
        cells = (_cell(row[key]) for key in more)
        table.add_row(Text(row["image"]), Text(row["predicted"]), f"{share:.3f}", *cells)
    return table


def _cell(value: Any) -> str | Text:
    if isinstance(value, list):
        return Text(" | ".join(value))
    return ("outside" if value else "") if isinstance(value, bool) else f"{value:.3f}"


def accuracy_table(
    title: str, columns: Sequence[str], rows: Mapping[str, Sequence[Sequence[float]]], caption: str = ""
) -> Table:
    """Accuracies over seeds, a row a method.

    Args:
        title: above the table.
        columns: headings after the method's.
        rows: by method, for each column the accuracy of every seed.
        caption: below the table.
    """
    table = Table(title=title, title_justify="left", caption=caption or None, caption_justify="left")
    table.add_column("method", no_wrap=True)
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for method, cells in rows.items():
        table.add_row(method, *map(mean_and_spread, cells))
    return table


def picture(image: Image.Image, width: int = PICTURE_WIDTH) -> Text:
    """A small picture from half blocks: the upper pixel is the character's colour, the lower its ground."""
    height = 2 * round(width * image.height / image.width / 2)
    pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS))
    text = Text(no_wrap=True)
    for y in range(0, height, 2):
        for x in range(width):
            above, below = (Color.from_rgb(*pixels[row, x]) for row in (y, y + 1))
            text.append("▀", Style(color=above, bgcolor=below))
        text.append("\n")
    return text


def prediction_card(
    truth: str, probabilities: Mapping[str, float], image: Image.Image | None
) -> RenderableType:
    """One prediction: the picture (if the terminal has colours), the truth, a bar for every class."""
    predicted = max(probabilities, key=lambda name: probabilities[name])
    right = predicted == truth
    lines = Text(f"truth: {truth}\n", no_wrap=True)
    for name, share in probabilities.items():
        style = ("bold green" if right else "bold red") if name == predicted else ""
        lines.append(f"{'█' * round(5 * share):<5} {share:4.0%} {name}\n", style)
    return Group(*([picture(image)] if image else []), lines)


def plan_table(overview: Mapping[str, Any]) -> Group:
    """What a benchmark's recipe asks for and what it would cost (see ``benchmark.engine.describe``)."""
    table = Table(show_header=False, box=None, title=f"Benchmark {overview['name']}", title_justify="left")
    for key in ("backbones", "data", "methods", "shots", "seeds", "protocols", "budgets"):
        table.add_row(key, f"{len(overview[key])}", ", ".join(map(str, overview[key])))
    jobs, steps = f"{overview['jobs']:,}", f"{overview['steps']:,}"
    table.add_row("cells", f"{overview['cells']:,}", "of the tables")
    table.add_row("jobs", jobs, f"different fits; {overview['done']:,} are there already")
    table.add_row("steps", steps, f"of optimisation; {overview['steps_left']:,} are left")
    rough = " (rough: nothing was measured yet)" if overview["rough"] else ""
    table.add_row(
        "time left",
        f"{overview['seconds_left'] / 60:.0f} min",
        f"on {overview['processes']} processes, without encoding images{rough}",
    )
    return Group(table, *(f"Note: {note}" for note in overview["notes"]))


NEXT_STEPS = """\
Next, your own images (a folder a class) with BiomedCLIP:

  vmfcoop fit lesions/ --backbone biomedclip --shots 16 \\
      --descriptions lesions.json --out runs/lesions
  vmfcoop predict runs/lesions new-images/ --out predictions.csv

biomedclip comes from the hub at first use (vmfcoop backbones list shows more);
without internet, carry it over with vmfcoop backbones fetch and write
--backbone dir:/models/biomedclip. Descriptions are optional:
{"class name": ["a sentence", ...], ...}.\
"""


SPREAD = "mean ± standard deviation over support sets; chance is"


def _generalisation_table(demo: Demo) -> Table:
    columns = {"base classes": "base", "novel classes": "novel", "harmonic mean": "harmonic_mean"}
    rows = {
        method: [[getattr(seed, part) for seed in seeds] for part in columns.values()]
        for method, seeds in demo.generalisation.items()
    }
    title = f"Base to novel: {max(demo.shots)} images of each base class, none of the novel ones"
    base, novel = (len(classes) for classes in base_novel_classes(len(demo.run.class_names)))
    caption = f"{SPREAD} {100 / base:.1f} and {100 / novel:.1f}"
    return accuracy_table(title, list(columns), rows, caption)


def demo_report(demo: Demo, pictures: bool) -> Group:
    """The demo's tables, its example predictions and what to type next.

    Args:
        demo: what the demo found.
        pictures: whether the terminal shows colours, so that images can be drawn.
    """
    shots = [f"K = {k}" for k in demo.shots]
    title = f"{demo.data}: test accuracy in percent, K images a class"
    chance = f"{SPREAD} {100 / len(demo.run.class_names):.1f}"
    tables = [accuracy_table(title, shots, demo.accuracy, chance)]
    if demo.generalisation:
        tables.append(_generalisation_table(demo))
    cards = Table.grid(padding=(0, 2))
    cards.add_row(
        *(
            prediction_card(
                row["truth"], row["probabilities"], Image.open(row["image"]) if pictures else None
            )
            for row in demo.examples
        )
    )
    run = demo.run.folder
    return Group(
        *(part for table in tables for part in (table, "")),
        f"Three test images, by vMFCoOp at K = {max(demo.shots)} (the run directory {run}):",
        "",
        cards,
        Text(f"The report of that run, for a browser: {demo.report}\n", no_wrap=True, overflow="ignore"),
        Text(NEXT_STEPS, no_wrap=True),
    )
