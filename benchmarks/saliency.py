"""Which saliency maps say anything, and whose prompts give the better ones: the tables of docs/saliency.md.

Every classifier of a dataset is asked about the same images, so that differences between classifiers are
paired; the tower sees each altered image once for all of them. A finished dataset is kept under --keep and
not measured again.

    python -m benchmarks.saliency --images 12 --keep runs/saliency > tables.md
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vmfcoop.explain.checks import BASELINES, MapChecks, SaliencyChecks, check_maps, summed_up
from vmfcoop.explain.estimates import Estimate, estimate
from vmfcoop.explain.maps import MAP_METHODS, methods_for
from vmfcoop.explain.remembering import RememberingEncoder
from vmfcoop.explain.sample import draw_sample
from vmfcoop.explain.verdict import judge
from vmfcoop.files import write_atomically
from vmfcoop.pipeline import FitRequest, open_run, recorded_dataset, run_fit
from vmfcoop.reporting.checks import CURVES, DEPENDENCE, PLACES, markdown_table
from vmfcoop.run import Run

DATA = ("phantom-brain-mri", "phantom-breast-ultrasound", "phantom-dermatoscopy", "phantom-chest-xray")
CLASSIFIERS = ("zero-shot", "coop", "biomedcoop", "vmfcoop")
SETTINGS = (*((classifier, "rest") for classifier in CLASSIFIERS), ("vmfcoop", "none"))
"""What is compared: classifiers, and what a class is told from."""
OURS = "vmfcoop, rest"
EVERY = (*DEPENDENCE, *CURVES, *PLACES)
COMPARED = {"energy", "pointing", "deletion_gain", "insertion_gain", "rank_gibberish", "rank_wrong_class"}
SHOWN = {
    *COMPARED,
    "rank_weights_100",
    "energy_gain",
    "iou",
    "iou_set_best",
    "iou_best",
    "dice",
    "dice_set_best",
}

Measured = dict[str, Any]
"""Of a dataset: ``groups`` and, by "classifier, contrast", the numbers of every image by map and by name."""


def main() -> None:
    """Measure what is not there yet and print the tables as Markdown."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", nargs="+", default=list(DATA))
    parser.add_argument("--backbone", default="phantom")
    parser.add_argument("--images", type=int, default=12, help="of each dataset")
    parser.add_argument("--maps", nargs="+", help="default: all that the tower offers")
    parser.add_argument("--classifiers", nargs="+", default=list(CLASSIFIERS))
    parser.add_argument("--keep", type=Path, required=True, help="folder of what was measured")
    chosen = parser.parse_args()
    settings = [setting for setting in SETTINGS if setting[0] in chosen.classifiers]
    measured = []
    for data in chosen.data:
        file = chosen.keep / f"{Path(data).name}-{chosen.images}.json"
        if not file.is_file():
            start = time.perf_counter()
            found = measure(data, chosen.backbone, chosen.images, chosen.maps, settings)
            write_atomically(file, json.dumps(found))
            print(f"{data}: {time.perf_counter() - start:.0f} s", file=sys.stderr)
        measured.append(json.loads(file.read_text()))
    print(tables([Path(data).name for data in chosen.data], measured))


def measure(
    data: str, backbone: str, images: int, maps: Sequence[str] | None, settings: Sequence[tuple[str, str]]
) -> Measured:
    """Fit the classifiers at 16 shots and check their maps on the same images."""
    with tempfile.TemporaryDirectory() as folder:
        runs = {name: fit(data, backbone, name, Path(folder) / name) for name in dict(settings)}
        first = next(iter(runs.values()))
        encoder = open_run(first).encoder
        table = recorded_dataset(first)
        sample = draw_sample(encoder, table, images)
        remembering = RememberingEncoder(encoder)
        fitted = {name: run.restore(encoder) for name, run in runs.items()}
    found: Measured = {"groups": sample.groups.tolist() if sample.groups is not None else list(sample.files)}
    for name, contrast in settings:
        print(f"{data}: {name}, {contrast}", file=sys.stderr)
        offered = maps or methods_for(encoder)
        checks = check_maps(remembering, fitted[name], sample, offered, contrast, progress=shown)
        every = {**checks.methods, **checks.baselines}
        found[f"{name}, {contrast}"] = {
            row: {key: values.tolist() for key, values in each.values.items()} for row, each in every.items()
        }
    return found


def shown(task: str, done: int, total: int) -> None:
    """Progress on one line of stderr."""
    print(f"\r{task}: {done} of {total} ", end="\n" if done == total else "", file=sys.stderr)


def fit(data: str, backbone: str, method: str, folder: Path) -> Run:
    """A run of one method at 16 shots, seed 1."""
    return run_fit(FitRequest(data, backbone, method), folder)


def tables(names: Sequence[str], measured: Sequence[Measured]) -> str:
    """Verdicts by dataset, all numbers over all images, and the classifiers side by side, as Markdown."""
    settings = [key for key in measured[0] if key != "groups"]
    parts = [f"### Verdicts by dataset ({OURS})", verdicts(names, measured, OURS)] if OURS in settings else []
    parts += ["### Verdicts over all datasets", all_verdicts(measured, settings)]
    for setting in settings:
        checks = pooled(measured, setting)
        measured_here = {key for row in checks.methods.values() for key in row.numbers}
        columns = [column for column in EVERY if column.key in SHOWN & measured_here]
        parts += [f"### {setting}: all {len(checks.files)} images", markdown_table(columns, checks)]
    others = [setting for setting in settings if setting != OURS]
    if OURS in settings and others:
        for column in EVERY:
            if column.key in COMPARED and column.key in columns_of(measured[0]):
                parts += [
                    f"### {OURS} minus others: {column.heading}",
                    differences(measured, others, column.key),
                ]
    return "\n\n".join(parts)


def groups_of(measured: Sequence[Measured]) -> NDArray[np.str_]:
    """The group of every image of several datasets; patients of different datasets are different ones."""
    return np.array([f"{i} {group}" for i, each in enumerate(measured) for group in each["groups"]])


def pooled(measured: Sequence[Measured], setting: str) -> SaliencyChecks:
    """The images of several datasets as one set."""
    groups = groups_of(measured)
    rows: dict[str, MapChecks] = {}
    for row in measured[0][setting]:
        title = MAP_METHODS[row].title if row in MAP_METHODS else BASELINES[row]
        rows[row] = summed_up(title, values_of(measured, setting, row), {}, groups)
    methods = {
        name: replace(rows[name], verdict=judge(rows[name].numbers)) for name in rows if name in MAP_METHODS
    }
    baselines = {name: checks for name, checks in rows.items() if name in BASELINES}
    files = tuple(groups.tolist())
    return SaliencyChecks(methods, baselines, files, "uniform" in baselines, {"contrast": setting})


def values_of(measured: Sequence[Measured], setting: str, row: str) -> dict[str, NDArray[np.float64]]:
    """The numbers of every image of all datasets, by name."""
    tables = [each[setting][row] for each in measured]
    return {key: np.concatenate([np.array(table[key], np.float64) for table in tables]) for key in tables[0]}


def verdicts(names: Sequence[str], measured: Sequence[Measured], setting: str) -> str:
    """A row a map, a column a dataset: passed, or the criteria that were failed."""
    columns = [pooled([each], setting) for each in measured]
    lines = [f"| map | {' | '.join(names)} | all |", f"|---|{'---|' * (len(names) + 1)}"]
    for method in columns[0].methods:
        cells = [verdict(checks.methods[method]) for checks in (*columns, pooled(measured, setting))]
        lines.append(f"| {MAP_METHODS[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def all_verdicts(measured: Sequence[Measured], settings: Sequence[str]) -> str:
    """A row a map, a column a classifier and contrast."""
    columns = [pooled(measured, setting) for setting in settings]
    lines = [f"| map | {' | '.join(settings)} |", f"|---|{'---|' * len(settings)}"]
    for method in columns[0].methods:
        cells = [verdict(checks.methods[method]) for checks in columns]
        lines.append(f"| {MAP_METHODS[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def verdict(checks: MapChecks) -> str:
    """``passes``, or what was failed."""
    assert checks.verdict is not None
    return ", ".join(criterion.name for criterion in checks.verdict.failed) or "**passes**"


def columns_of(measured: Measured) -> set[str]:
    """Numbers that a dataset has of maps."""
    return {key for row in measured[OURS].values() for key in row}


def differences(measured: Sequence[Measured], others: Sequence[str], key: str) -> str:
    """One number of vMFCoOp's maps minus that of others, image by image."""
    groups = groups_of(measured)
    lines = [f"| map | {' | '.join(others)} |", f"|---|{'---:|' * len(others)}"]
    for method in (row for row in measured[0][OURS] if row in MAP_METHODS):
        own = values_of(measured, OURS, method)[key]
        cells = [
            interval(estimate(own - values_of(measured, other, method)[key], groups)) for other in others
        ]
        lines.append(f"| {MAP_METHODS[method].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def interval(number: Estimate) -> str:
    """Mean and interval, bold where it is clear of zero and not zero in print."""
    if number.mean is None or number.low is None or number.high is None:
        return "-"
    text = f"{number.mean:+.2f} [{number.low:+.2f}, {number.high:+.2f}]"
    return f"**{text}**" if (number.low > 0 or number.high < 0) and abs(number.mean) >= 0.005 else text


if __name__ == "__main__":
    main()
