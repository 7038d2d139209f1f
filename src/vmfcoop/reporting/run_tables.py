"""Tables of a run's report."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmfcoop.evaluation.intervals import Interval, MetricIntervals
from vmfcoop.sphere import VonMisesFisherFit, inverse_bessel_ratio
from vmfcoop.sphere.caps import cap_angle
from vmfcoop.sphere.vmf import debiased_concentration

NONE = "–"
PAPER = 12
"""Columns that fit on paper."""


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: as shown.
        value: to sort by; None for text.
        small: a second line.
        shade: strength of the cell's colour in [0, 1]; None for none.
    """

    text: str
    value: float | None = None
    small: str = ""
    shade: float | None = None

    @property
    def sort_key(self) -> str | None:
        """What the page's script sorts by; None lets it take the text, and an empty one stays last."""
        if self.text == NONE:
            return ""
        return None if self.value is None else repr(self.value)


@dataclass(frozen=True)
class PageTable:
    """A table whose first column names the rows.

    Attributes:
        title: its heading.
        columns: headings.
        rows: as many entries each.
        sorts: whether headings are buttons that sort.
        below: rows that stay below the others, such as one for all of them.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]
    sorts: bool = True
    below: tuple[tuple[Entry, ...], ...] = ()

    @property
    def key(self) -> str:
        """Its id on the page."""
        return "table-" + re.sub(r"[^a-z0-9]+", "-", self.title.lower()).strip("-")

    @property
    def is_wide(self) -> bool:
        """Whether paper cuts it off, which the printed page then says."""
        return len(self.columns) > PAPER


def share(value: float) -> str:
    """A share in percent, the sign tied to the number.

    Example:
        >>> share(0.98765).replace("\\u00a0", " ")
        '98.8 %'
    """
    return f"{100 * value:.1f}\u00a0%"


def shares(interval: Interval) -> str:
    """An interval of a share in percent, likewise.

    Example:
        >>> shares(Interval(0.25, 0.5)).replace("\\u00a0", " ")
        '25.0 to 50.0 %'
    """
    return f"{100 * interval.low:.1f} to {100 * interval.high:.1f}\u00a0%"


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{interval.low:.3f} to {interval.high:.3f}"


def metrics_table(metrics: Mapping[str, Any], intervals: MetricIntervals | None) -> PageTable:
    """Overall metrics with their intervals, and what they are."""
    rows = {}
    for key, (title, meaning) in _MEANINGS.items():
        interval = intervals.overall.get(key) if intervals is not None else None
        shown = Entry(_between(interval) or NONE)
        rows[key] = (Entry(title), _number(metrics.get(key)), shown, Entry(meaning))
    below = (rows.pop("chance"), rows.pop("majority"))
    columns = ("metric", "value", "95 % interval", "what it is")
    return PageTable("Metrics on the test images", columns, tuple(rows.values()), below=below)


_MEANINGS = {
    "accuracy": ("accuracy", "share of images whose most probable class is the true one"),
    "balanced_accuracy": ("balanced accuracy", "mean recall over classes: every class counts alike"),
    "macro_f1": ("macro F1", "mean over classes of the harmonic mean of precision and recall"),
    "macro_auroc": (
        "macro AUROC",
        "how well each class is ranked above the rest, mean over classes; 0.5 is chance",
    ),
    "brier": ("Brier score", "squared error of the probabilities; 0 is perfect, 2 the worst"),
    "ece": ("expected calibration error", "mean gap between probability and share that is right, 15 bins"),
    "chance": ("chance", "accuracy of a random guess"),
    "majority": ("most frequent class", "accuracy of always naming it"),
}


def _number(value: float | None, small: str = "", digits: int = 3) -> Entry:
    return Entry(NONE) if value is None else Entry(f"{value:.{digits}f}", float(value), small)


def per_class_table(
    metrics: Mapping[str, Any], precisions: Sequence[float | None] | None, intervals: MetricIntervals | None
) -> PageTable:
    """Recall, precision, F1, AUROC, average precision and support of every class, where they are defined."""
    keys = {"recall": "recall", "precision": "precision", "f1": "F1", "auroc": "AUROC"}
    named = np.array(metrics["confusion_matrix"]).sum(axis=0)
    rows = []
    for i, (name, row) in enumerate(metrics["per_class"].items()):
        shown = row["support"] > 0
        defined = {"recall": shown, "precision": named[i] > 0, "f1": shown, "auroc": True}
        numbers = [
            _number(row.get(key), _between(intervals.per_class[key][i]) if intervals is not None else "")
            if defined[key]
            else Entry(NONE)
            for key in keys
        ]
        area = [] if precisions is None else [_number(precisions[i])]
        rows.append((Entry(name), _number(row["support"], digits=0), *numbers, *area))
    columns = (
        "class",
        "test images",
        *keys.values(),
        *(() if precisions is None else ("average precision",)),
    )
    return PageTable("Every class against the rest", columns, tuple(rows))


def confusion_table(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> PageTable:
    """Counts, and their shares of the true class."""
    counts = np.array(matrix)
    totals = counts.sum(axis=1)
    rows = []
    for name, row, total in zip(names, counts, totals, strict=True):
        part = row / total if total else np.zeros(len(row))
        entries = [
            Entry(str(int(count)), float(count), f"{100 * p:.0f} %" if total else "", float(p))
            for count, p in zip(row, part, strict=True)
        ]
        rows.append((Entry(name), *entries, Entry(str(int(total)), float(total))))
    columns = ("true class", *(f"taken for {name}" for name in names), "all")
    return PageTable(
        "Confusion matrix: true classes down, predicted ones across",
        columns,
        tuple(rows),
        sorts=False,
    )


def confusion_in_words(matrix: Sequence[Sequence[int]], names: Sequence[str]) -> list[str]:
    """The most frequent mistakes, a sentence each, at most three."""
    counts = np.array(matrix)
    pairs = [(counts[i, j], i, j) for i in range(len(names)) for j in range(len(names)) if i != j]
    pairs = sorted((pair for pair in pairs if pair[0]), key=lambda pair: (-pair[0], pair[1:]))
    return [
        f"{count} of {counts[i].sum()} images of {names[i]} were taken for {names[j]}."
        for count, i, j in pairs[:3]
    ]


def cosine_table(
    title: str, rows: NDArray[np.floating[Any]], columns: NDArray[np.floating[Any]], names: Sequence[str]
) -> PageTable:
    """Cosines between class directions, shaded from the least to the greatest of different classes."""
    cosines = np.clip(rows @ columns.T, -1, 1)
    itself = np.eye(len(names), dtype=bool) & np.allclose(rows, columns)
    others = cosines[~itself] if len(names) > 1 else cosines.ravel()
    low, high = float(others.min()), float(others.max())

    def entry(i: int, j: int) -> Entry:
        cosine = float(cosines[i, j])
        shade = None if itself[i, j] else (cosine - low) / max(high - low, 1e-9)
        return Entry(f"{cosine:.3f}", cosine, f"{math.degrees(math.acos(cosine)):.0f}°", shade)

    order = range(len(names))
    table_rows = tuple((Entry(names[i]), *(entry(i, j) for j in order)) for i in order)
    return PageTable(title, ("class", *names), table_rows)


def fields_table(
    names: Sequence[str],
    fields: Sequence[VonMisesFisherFit] | None,
    vocabulary: float | None,
    recorded: Sequence[float] | None,
    dim: int,
) -> PageTable:
    """The von Mises-Fisher laws of the descriptions, and that of the vocabulary.

    Args:
        names: C class names.
        fields: of the classes; None where the texts or the text tower are gone.
        vocabulary: resultant length of the vocabulary's law, of methods that have one.
        recorded: resultant length of each class as the run kept it, where ``fields`` is None.
        dim: d.
    """
    rows = []
    for i, name in enumerate(names):
        if fields is not None:
            length, count = float(fields[i].resultant_length), fields[i].count
            rows.append(_field_row(name, length, count, dim, *_nearest(i, names, fields)))
        elif recorded is not None:
            rows.append(_field_row(name, recorded[i], None, dim, Entry(NONE), Entry(NONE)))
    below: tuple[tuple[Entry, ...], ...] = ()
    if vocabulary is not None:
        below = (_field_row("vocabulary", vocabulary, None, dim, Entry(NONE), Entry(NONE)),)
    columns = (
        "class",
        "descriptions",
        "resultant length R",
        "κ, maximum likelihood",
        "κ, debiased",
        "half its mass within",
        "angle to the nearest class",
        "nearest class",
    )
    return PageTable("Fields of the descriptions", columns, tuple(rows), below=below)


def _field_row(
    name: str, length: float, count: int | None, dim: int, angle: Entry, nearest: Entry
) -> tuple[Entry, ...]:
    resultant = torch.tensor(length, dtype=torch.float64)
    kappa = float(inverse_bessel_ratio(dim, resultant))
    half = math.degrees(cap_angle(dim, kappa))
    unbiased = Entry(NONE)
    if count is not None:
        unbiased = _number(float(debiased_concentration(resultant, dim, count)), digits=1)
    return (
        Entry(name),
        Entry(NONE) if count is None else _number(count, digits=0),
        _number(length),
        _number(kappa, digits=1),
        unbiased,
        Entry(f"{half:.1f}°", half),
        angle,
        nearest,
    )


def _nearest(i: int, names: Sequence[str], fields: Sequence[VonMisesFisherFit]) -> tuple[Entry, Entry]:
    """Angle to the field whose mean direction is nearest, and its name."""
    if len(names) < 2:
        return Entry(NONE), Entry(NONE)
    cosines = [
        -2.0 if j == i else float(field.mean_direction @ fields[i].mean_direction)
        for j, field in enumerate(fields)
    ]
    best = int(np.argmax(cosines))
    angle = math.degrees(math.acos(min(1.0, cosines[best])))
    return Entry(f"{angle:.1f}°", angle), Entry(names[best])


def settings_table(title: str, lines: Sequence[tuple[str, str]]) -> PageTable:
    """Names and values."""
    return PageTable(title, ("setting", "value"), tuple((Entry(key), Entry(value)) for key, value in lines))


def coverage_table(found: Mapping[str, Any]) -> PageTable:
    """Coverage and size of prediction sets as ``trust.conformal.coverage`` has them."""
    rows = tuple(_coverage_row(name, row) for name, row in found["per_class"].items())
    columns = ("class", "test images", "set holds the true class", "95 % interval", "classes in a set, mean")
    return PageTable(
        "Prediction sets on the test images", columns, rows, below=(_coverage_row("all", found),)
    )


def _coverage_row(name: str, row: Mapping[str, Any]) -> tuple[Entry, ...]:
    if row["coverage"] is None:
        return Entry(name), Entry("0", 0.0), Entry(NONE), Entry(NONE), Entry(NONE)
    return (
        Entry(name),
        _number(row["n"], digits=0),
        Entry(share(row["coverage"]), row["coverage"]),
        Entry(shares(Interval(*row["interval"])), row["interval"][0]),
        _number(row["mean_size"], digits=2),
    )
