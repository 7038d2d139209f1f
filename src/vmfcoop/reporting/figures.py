"""Figures of a benchmark as inline SVG: curves over shots, base-to-novel bars, critical-difference diagrams.

Text and axes take the page's text colour and series the page's ``--series-N`` colours, so one figure serves a
light and a dark page; on their own the figures fall back to black and the palette below.
"""

from __future__ import annotations

import html
import io
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.isotonic import isotonic_regression

from vmfcoop.benchmark.tables import REFERENCE, Row, Table
from vmfcoop.evaluation.statistics import Ranking

PALETTE = ("#0072b2", "#d55e00", "#009e73", "#aa4499", "#8a6d00", "#56708a")
"""Okabe and Ito's colours, darkened where they are faint on white; series differ in marker and dash too."""

REST = "#888888"
INK = "#010203"
MARKERS = ("o", "s", "^", "D", "v", "P")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (3, 1, 1, 1)), (0, (1, 1)), (0, (7, 2, 1, 2)), (0, (2, 2)))
STYLE: dict[str, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vmfcoop",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans", "Arial"],
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
}
WIDTH = 7.2
LABEL_GAP = 0.042
"""Least distance of two labels of curves, as a share of the axes' height."""


@dataclass(frozen=True)
class _Look:
    color: str
    marker: str | None
    dash: Any
    width: float


def leading(table: Table, reference: str = REFERENCE) -> tuple[str, ...]:
    """The reference and the best of the others by their mean over columns, as many as there are colours."""
    rows = _drawn(table)
    ranked = sorted(rows, key=lambda row: (row.label != reference, -float(np.nanmean(_means(row)))))
    return tuple(row.label for row in ranked[: len(PALETTE)])


def accuracy_curves(table: Table, key: str, emphasised: Sequence[str]) -> str:
    """Accuracy over shots (log2 axis), a curve a method, with bands of one standard deviation.

    Every curve is labelled at its end.

    Args:
        table: with a column a K, as :func:`vmfcoop.benchmark.tables.average_table`.
        key: unlike any other figure's on the page; it begins the figure's ids.
        emphasised: methods that get a colour, marker, dash and band each, in the palette's order, the first a
            bold curve: the same for all figures of a page. The rest are thin and grey.

    Returns:
        An ``<svg>`` element with an ``aria-label``.
    """
    shots = [column.shots or 0 for column in table.columns]
    rows = _drawn(table)
    looks = _looks(rows, emphasised)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 4.6))
        axes = figure.add_axes((0.08, 0.11, 0.66, 0.86))
        axes.set_xscale("log", base=2)
        axes.set_xticks(shots, [str(k) for k in shots])
        axes.minorticks_off()
        axes.set_xlabel("K, support images a class")
        axes.set_ylabel("accuracy (%)")
        for row in sorted(rows, key=lambda row: looks[row.label].width):
            _draw_curve(axes, row, shots, looks[row.label])
        _draw_chance(axes, table, shots)
        _label_ends(axes, rows, shots, looks)
        return inline_svg(figure, key, _curves_alt(table, rows, shots, emphasised))


def _drawn(table: Table) -> list[Row]:
    return [r for r in table.rows if r.kind == "method" and any(e.mean is not None for e in r.entries)]


def _looks(rows: Sequence[Row], emphasised: Sequence[str]) -> dict[str, _Look]:
    looks = {row.label: _Look(REST, None, "-", 0.7) for row in rows}
    for i, look in enumerate(zip(emphasised, PALETTE, MARKERS, DASHES, strict=False)):
        name, color, marker, dash = look
        looks[name] = _Look(color, marker, dash, 1.4 if i else 2.2)
    return looks


def _means(row: Row) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.array([np.nan if entry.mean is None else entry.mean for entry in row.entries])


def _draw_curve(axes: Axes, row: Row, shots: Sequence[int], look: _Look) -> None:
    means = _means(row)
    (line,) = axes.plot(
        shots,
        means,
        color=look.color,
        marker=look.marker,
        markersize=4,
        linestyle=look.dash,
        linewidth=look.width,
    )
    line.set_gid(f"curve {row.label}")
    spread = np.array([entry.std or 0.0 for entry in row.entries])
    if look.marker and spread.any():
        axes.fill_between(shots, means - spread, means + spread, color=look.color, alpha=0.12, linewidth=0)


def _draw_chance(axes: Axes, table: Table, shots: Sequence[int]) -> None:
    """Chance as a dotted line where the curves come near it, else in words: it would squeeze the curves."""
    low, high = axes.get_ylim()
    for row in [row for row in table.rows if row.label.startswith("chance")]:
        level = float(np.nanmean(_means(row)))
        if level > low - 0.25 * (high - low):
            axes.plot(shots, _means(row), color=INK, linewidth=0.8, linestyle=(0, (1, 3)))
            axes.annotate("chance", (shots[0], _means(row)[0]), (0, 2), textcoords="offset points", size=8)
        else:
            axes.text(0.01, 0.01, f"chance, below: {level:.1f} %", transform=axes.transAxes, size=8)


def _label_ends(axes: Axes, rows: Sequence[Row], shots: Sequence[int], looks: dict[str, _Look]) -> None:
    """Names right of the axes, moved apart, each tied to the end of its curve."""
    if not rows:
        return
    low, high = axes.get_ylim()
    last = [int(np.flatnonzero(np.isfinite(_means(row)))[-1]) for row in rows]
    ends = np.array([_means(row)[i] for row, i in zip(rows, last, strict=True)])
    places = low + (high - low) * spread_apart((ends - low) / (high - low), LABEL_GAP)
    axes.set_ylim(low, high)
    beside = axes.get_yaxis_transform()
    to_axes = axes.transData + axes.transAxes.inverted()
    for row, i, end, place in zip(rows, last, ends, places, strict=True):
        look = looks[row.label]
        start = to_axes.transform((shots[i], end))[0]
        axes.plot(
            (start, 1.03),
            (end, place),
            transform=beside,
            color=look.color,
            linewidth=0.5,
            alpha=0.7,
            clip_on=False,
        )
        axes.text(
            1.04, place, row.label, transform=beside, va="center", size=8,
            color=look.color if look.marker else INK, weight="bold" if look.width > 2 else "normal",
        )  # fmt: skip


def spread_apart(
    places: np.ndarray[Any, np.dtype[np.float64]], gap: float
) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The nearest places in [0, 1], in least squares, that keep their order and are ``gap`` apart.

    With z_i = y_i - i gap, sorted, the condition is that z does not fall: isotonic regression. Where they do
    not fit, the gap is what fits.

    Example:
        >>> spread_apart(np.array([0.5, 0.1, 0.5]), 0.2).round(3).tolist()
        [0.4, 0.1, 0.6]
    """
    gap = min(gap, 1 / len(places))
    order = np.argsort(places, kind="stable")
    steps = gap * np.arange(len(places))
    moved = np.empty(len(places))
    moved[order] = isotonic_regression(places[order] - steps, y_min=0.0, y_max=1 - steps[-1]) + steps
    return moved


def _curves_alt(table: Table, rows: Sequence[Row], shots: Sequence[int], emphasised: Sequence[str]) -> str:
    told = [f"{table.title}. Curves over K = {', '.join(map(str, shots))} of {len(rows)} methods."]
    complete = [row for row in rows if row.entries[-1].mean is not None]
    best = max(complete, key=lambda row: row.entries[-1].mean or 0.0, default=None)
    if best is not None:
        told.append(f"Highest at K = {shots[-1]}: {best.label}, {best.entries[-1].mean:.1f} %.")
    for row in rows:
        if row.label in emphasised[:1]:
            values = ("-" if entry.mean is None else f"{entry.mean:.1f}" for entry in row.entries)
            told.append(f"{row.label}: {', '.join(values)} %.")
    return " ".join(told)


def base_to_novel_bars(table: Table, key: str, reference: str = REFERENCE) -> str:
    """Bars of base and novel accuracy, with their standard deviations, chance and HM of averages.

    Args:
        table: as :func:`vmfcoop.benchmark.tables.base_to_novel_table` gives it.
        key: unlike any other figure's on the page.
        reference: printed in bold.

    Returns:
        An ``<svg>`` element with an ``aria-label``.
    """
    rows = [row for row in table.rows if row.kind == "method"]
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 0.9 + 0.36 * len(rows)))
        below, above = 0.45 / figure.get_figheight(), 0.35 / figure.get_figheight()
        axes = figure.add_axes((0.24, below, 0.73, 1 - below - above))
        _draw_bars(axes, rows, 0, "base", -0.2)
        _draw_bars(axes, rows, 1, "novel", 0.2)
        known = [(row.entries[2].mean, i) for i, row in enumerate(rows) if row.entries[2].mean is not None]
        if known:
            axes.plot(*zip(*known, strict=True), "D", color=INK, markersize=4, label="HM of averages")
        for row in [row for row in table.rows if row.label.startswith("chance")]:
            for entry, color in zip(row.entries[:2], PALETTE, strict=False):
                axes.axvline(entry.mean or 0.0, color=color, linewidth=1, linestyle=(0, (2, 2)), zorder=0)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        for row, label in zip(rows, axes.get_yticklabels(), strict=True):
            label.set_fontweight("bold" if row.label == reference else "normal")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.set_xlabel("accuracy (%); dashed: chance")
        axes.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, borderaxespad=0)
        return inline_svg(figure, key, _bars_alt(table, rows))


def _draw_bars(axes: Axes, rows: Sequence[Row], column: int, name: str, shift: float) -> None:
    """The bars of one column; a word in place of a bar that is missing."""
    entries = [row.entries[column] for row in rows]
    places = np.arange(len(rows)) + shift
    means = [entry.mean or 0.0 for entry in entries]
    axes.barh(places, means, 0.36, label=name, color=PALETTE[column], alpha=0.85)
    for place, entry in zip(places, entries, strict=True):
        if entry.mean is None:
            words = "cannot take new classes, or is incomplete" if column else "is incomplete"
            axes.text(0.6, place, words, va="center", size=7)
        elif entry.std:
            axes.errorbar(entry.mean, place, xerr=entry.std, color=INK, elinewidth=0.8)


def _bars_alt(table: Table, rows: Sequence[Row]) -> str:
    known = [row for row in rows if row.entries[2].mean is not None]
    best = max(known, key=lambda row: row.entries[2].mean or 0.0, default=None)
    told = f"{table.title}. Bars of base and novel accuracy of {len(rows)} methods."
    return told + (
        f" Highest HM of averages: {best.label}, {best.entries[2].mean:.1f} %." if best is not None else ""
    )


def critical_difference_diagram(ranking: Ranking, key: str, reference: str = REFERENCE) -> str:
    """Average ranks on a line, best at the left; bars join methods that are not told apart (Demsar 2006).

    Args:
        ranking: of at least two methods.
        key: unlike any other figure's on the page.
        reference: printed in bold.
    """
    count = len(ranking.methods)
    order = sorted(range(count), key=lambda i: ranking.ranks[i])
    levels = -(-count // 2)
    top = 1.0 + 0.28 * len(ranking.cliques)
    with style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH, 0.55 + 0.22 * (top + levels)))
        axes = figure.add_axes((0, 0, 1, 1))
        axes.set_axis_off()
        left, right = (_room(ranking, side) for side in (order[:levels], order[levels:]))
        inch = (count - 1) / (WIDTH - left - right)
        axes.set_xlim(1 - left * inch, count + right * inch)
        axes.set_ylim(top + levels, -2.4)
        axes.plot((1, count), (0, 0), color=INK, linewidth=1)
        for rank in range(1, count + 1):
            axes.plot((rank, rank), (0, -0.25), color=INK, linewidth=0.8)
            axes.text(rank, -0.4, str(rank), ha="center", va="bottom", size=8)
        axes.plot((1, 1 + ranking.difference), (-1.7, -1.7), color=INK, linewidth=2)
        axes.text(1, -1.85, f"critical difference {ranking.difference:.2f}", va="bottom", size=8)
        for position, i in enumerate(order):
            on_left = position < levels
            depth = top + (position if on_left else count - 1 - position)
            _draw_rank(axes, ranking, i, depth, on_left, ranking.methods[i] == reference)
        for position, clique in enumerate(ranking.cliques):
            ranks = [ranking.ranks[ranking.methods.index(name)] for name in clique]
            depth = 0.45 + 0.28 * position
            ends = (min(ranks) - 0.004 * count, max(ranks) + 0.004 * count)
            axes.plot(ends, (depth, depth), color=PALETTE[0], linewidth=3, solid_capstyle="round")
        return inline_svg(figure, key, _ranks_alt(ranking, order))


def _room(ranking: Ranking, methods: Sequence[int]) -> float:
    """Inches beside the scale for the names of methods, with their ranks, and the ends of their lines."""
    return 0.6 + 0.078 * max(len(ranking.methods[i]) for i in methods)


def _draw_rank(axes: Axes, ranking: Ranking, i: int, depth: float, left: bool, bold: bool) -> None:
    """A method's line from its rank down and out to its name."""
    rank, count = ranking.ranks[i], len(ranking.methods)
    edge = 1 - 0.03 * (count - 1) if left else count + 0.03 * (count - 1)
    axes.plot((rank, rank, edge), (0, depth, depth), color=INK, linewidth=1.6 if bold else 0.7)
    name = f"{ranking.methods[i]}  {rank:.2f}" if left else f"{rank:.2f}  {ranking.methods[i]}"
    gap = -0.008 * count if left else 0.008 * count
    weight = "bold" if bold else "normal"
    axes.text(edge + gap, depth, name, ha="right" if left else "left", va="center", weight=weight, size=9)


def _ranks_alt(ranking: Ranking, order: Sequence[int]) -> str:
    ranks = ", ".join(f"{ranking.methods[i]} {ranking.ranks[i]:.2f}" for i in order)
    groups = "; ".join(", ".join(clique) for clique in ranking.cliques) or "none"
    return (
        f"Critical-difference diagram over {ranking.blocks} cells. Average ranks, best first: {ranks}. "
        f"Critical difference {ranking.difference:.2f}. Groups not told apart: {groups}."
    )


def inline_svg(figure: Figure, key: str, alt: str) -> str:
    """A figure as an ``<svg>`` element whose ids begin with the key and whose colours follow the page."""
    file = io.StringIO()
    silent = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with warnings.catch_warnings():
        # Text stays text: letters that Matplotlib's font lacks are drawn by the reader's browser.
        warnings.filterwarnings("ignore", "Glyph |Matplotlib currently does not support", UserWarning)
        figure.savefig(file, format="svg", transparent=True, metadata=silent)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].strip()
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="curve ([^"]*)">', r"<g><title>\1</title>", svg)
    svg = re.sub(r"<[^>]*>", lambda tag: _of_the_page(tag.group(), key), svg)
    return svg.replace("<svg", f'<svg role="img" aria-label="{html.escape(alt)}"', 1)


def _of_the_page(tag: str, key: str) -> str:
    """A tag with the page's colours and the key before its ids; what stands between tags is left alone."""
    tag = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{key}-", tag)
    for i, color in enumerate(PALETTE, start=1):
        tag = tag.replace(color, f"var(--series-{i}, {color})")
    return tag.replace(INK, "currentColor").replace(REST, f"var(--series-rest, {REST})")
