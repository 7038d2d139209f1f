"""Figures of a run's report as inline SVG: ROC and precision-recall, reliability, training, the sphere."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Polygon
from matplotlib.ticker import MaxNLocator, NullFormatter
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_curve

from vmfcoop.reporting.figures import DASHES, INK, MARKERS, PALETTE, REST, STYLE, WIDTH, inline_svg
from vmfcoop.reporting.sphere_view import SphereView
from vmfcoop.trust.calibration import Reliability

DRAWN_IMAGES = 1500
"""Test images drawn on the sphere at most; every further one would only make the page larger."""

LEGEND_ROW = 0.17
"""Inches of a row of a legend."""

LEGEND_NAME, SHORT_NAME = 60, 24
"""Letters of a class's name in a legend, and up to which two columns fit."""

MOST_NAMES, LONGEST_NAME = 9, 28
"""Classes, and letters of a name, up to which the sphere shows names and not numbers."""

LETTER = 0.085
"""Inches of a letter of a class's name on the sphere."""

_LOG_RATIO = 100.0
"""Largest over smallest loss from which their axis is logarithmic."""


@contextmanager
def _figure(width: float, height: float) -> Iterator[Figure]:
    with style.context(["default", STYLE]):
        yield Figure(figsize=(width, height))


def class_look(index: int) -> tuple[str, Any, str]:
    """Colour, dash and marker of a class: no two of the first 36 share all three.

    Example:
        >>> class_look(0)[0] == class_look(6)[0], class_look(0)[2] == class_look(6)[2]
        (True, False)
    """
    cycle = index // len(PALETTE)
    return PALETTE[index % len(PALETTE)], DASHES[cycle % len(DASHES)], MARKERS[cycle % len(MARKERS)]


def shortened(name: str) -> str:
    """A class's name as a legend has room for it, without its middle where it is long.

    Example:
        >>> len(shortened("an" * 50)), shortened("short")
        (60, 'short')
    """
    line = " ".join(name.split())
    if len(line) <= LEGEND_NAME:
        return line
    end = LEGEND_NAME // 3
    return f"{line[: LEGEND_NAME - end - 3]} … {line[-end:]}"


def _legend(figure: Figure, handles: Sequence[Line2D], labels: Sequence[str], **look: Any) -> None:
    """A legend of all its labels; Matplotlib itself leaves out those that begin with an underscore."""
    legend = figure.legend(handles, ["-"] * len(labels), fontsize=8, loc="lower center", **look)
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_text(label)


def average_precisions(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> list[float | None]:
    """Average precision of every class against the rest; None where the class or the rest does not occur."""
    return [
        float(average_precision_score(labels == i, probabilities[:, i]))
        if 0 < (labels == i).mean() < 1
        else None
        for i in range(probabilities.shape[1])
    ]


def roc_and_precision_recall(
    probabilities: NDArray[np.float64],
    labels: NDArray[np.int64],
    names: Sequence[str],
    areas: Sequence[float | None],
    key: str,
) -> str:
    """ROC curves and precision-recall curves of every class against the rest, side by side.

    Args:
        probabilities: shape ``(n, C)``.
        labels: shape ``(n,)``.
        names: C names.
        areas: under the ROC curves, as the page's tables have them; None where a curve is not defined.
        key: unlike any other figure's on the page.

    Returns:
        An ``<svg>`` element with an ``aria-label``.
    """
    precisions = average_precisions(probabilities, labels)
    known = [i for i, area in enumerate(areas) if area is not None and precisions[i] is not None]
    short = [shortened(name) for name in names]
    columns = 2 if max(map(len, short)) <= SHORT_NAME else 1
    legend = LEGEND_ROW * math.ceil(len(known) / columns) + 0.15
    with _figure(WIDTH, 3.5 + legend) as figure:
        height = 3.5 + legend
        box = (legend + 0.5) / height, 2.75 / height
        roc = figure.add_axes((0.09, box[0], 0.38, box[1]))
        pr = figure.add_axes((0.59, box[0], 0.38, box[1]))
        roc.plot((0, 1), (0, 1), color=INK, linewidth=0.7, linestyle=(0, (1, 3)))
        lines, told = [], []
        for i in known:
            color, dash, _ = class_look(i)
            x, y, _ = roc_curve(labels == i, probabilities[:, i])
            recall_side = precision_recall_curve(labels == i, probabilities[:, i])
            values = f"AUROC {areas[i]:.3f}, AP {precisions[i]:.3f}"
            lines.append(_curve(roc, x, y, color, dash, f"{names[i]}: {values}"))
            told.append(f"{short[i]}: {values}")
            # Precision holds from one threshold to the next; a slanted line between them would flatter it.
            sides = recall_side[1], recall_side[0]
            _curve(pr, *sides, color, dash, f"{names[i]}: {values}", drawstyle="steps-post")
        roc.set(xlabel="false positive rate", ylabel="true positive rate (recall)", title="ROC")
        pr.set(xlabel="recall", ylabel="precision", title="Precision-recall")
        for axes in (roc, pr):
            axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
            axes.title.set_fontsize(9.5)
        _legend(figure, lines, told, ncols=columns)
        return inline_svg(figure, key, _curves_alt(names, areas, precisions, known))


def _curve(
    axes: Axes, x: Any, y: Any, color: str, dash: Any, title: str, drawstyle: Any = "default"
) -> Line2D:
    (line,) = axes.plot(x, y, color=color, linestyle=dash, linewidth=1.4, drawstyle=drawstyle)
    line.set_gid(_curve_id(title))
    return line


def _curve_id(title: str) -> str:
    """What ``inline_svg`` turns into the curve's title; it looks for it between double quotes."""
    return "curve " + title.replace('"', "'")


def _curves_alt(
    names: Sequence[str],
    areas: Sequence[float | None],
    precisions: Sequence[float | None],
    known: Sequence[int],
) -> str:
    told = "; ".join(f"{names[i]} {areas[i]:.3f} and {precisions[i]:.3f}" for i in known)
    return (
        "ROC and precision-recall curves of each class against the rest. Area under the ROC curve and "
        f"average precision: {told}."
    )


def reliability_diagram(diagrams: Mapping[str, Reliability], key: str) -> str:
    """Accuracy over the top probability, in bins, with 95 % intervals; below, how many images each bin has.

    Args:
        diagrams: by name, such as "before temperature scaling"; one or two.
        key: unlike any other figure's on the page.
    """
    with _figure(5.4, 5.2) as figure:
        axes = figure.add_axes((0.12, 0.33, 0.85, 0.56))
        counts = figure.add_axes((0.12, 0.1, 0.85, 0.16), sharex=axes)
        axes.plot((0, 1), (0, 1), color=INK, linewidth=0.7, linestyle=(0, (1, 3)))
        axes.text(0.08, 0.03, "as said", size=8)
        shift = 0.006 if len(diagrams) > 1 else 0.0
        for i, (name, diagram) in enumerate(diagrams.items()):
            full = diagram.counts > 0
            x, y = diagram.confidence[full], diagram.accuracy[full]
            ends = np.stack([y - diagram.lower[full], diagram.upper[full] - y]).clip(min=0)
            axes.errorbar(
                x + (2 * i - 1) * shift, y, yerr=ends, color=PALETTE[i], linestyle=DASHES[i], linewidth=1.0,
                elinewidth=0.8, label=f"{name}: ECE {diagram.ece:.3f}",
            )  # fmt: skip
            sizes = 10 + 90 * diagram.counts[full] / diagram.counts.max()
            axes.scatter(x + (2 * i - 1) * shift, y, sizes, color=PALETTE[i], marker=MARKERS[i], zorder=3)
            counts.stairs(diagram.counts, diagram.edges, color=PALETTE[i], linestyle=DASHES[i], linewidth=1.2)
        axes.set(ylabel="share that is right", xlim=(0, 1.01), ylim=(-0.02, 1.02))
        axes.tick_params(labelbottom=False)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), fontsize=8)
        counts.set(xlabel="probability of the predicted class", ylabel="images")
        return inline_svg(figure, key, _reliability_alt(diagrams))


def _reliability_alt(diagrams: Mapping[str, Reliability]) -> str:
    told = [
        "Reliability diagram: the share of right predictions over the probability of the predicted class."
    ]
    for name, diagram in diagrams.items():
        full = diagram.counts > 0
        pairs = ", ".join(
            f"{said:.2f} right {right:.2f} ({count})"
            for said, right, count in zip(
                diagram.confidence[full], diagram.accuracy[full], diagram.counts[full], strict=True
            )
        )
        told.append(f"{name}, ECE {diagram.ece:.3f}: {pairs}.")
    return " ".join(told)


def training_curves(
    history: Sequence[Mapping[str, float]], temperature: Sequence[float] | None, key: str
) -> str:
    """Every loss term over epochs; the contrastive temperature and the learning rate on axes of their own.

    Args:
        history: one row an epoch, at least one.
        temperature: tau of every epoch, for methods that have one.
        key: unlike any other figure's on the page.
    """
    epochs = [row.get("epoch", float(i)) for i, row in enumerate(history)]
    terms = loss_terms(history)
    schedules: list[tuple[str, Sequence[float]]] = []
    if temperature is not None:
        schedules.append(("contrastive temperature", temperature))
    if "learning_rate" in history[0]:
        schedules.append(("learning rate", [row["learning_rate"] for row in history]))
    with _figure(WIDTH, 5.1 if schedules else 3.4) as figure:
        height = figure.get_figheight()
        axes = figure.add_axes((0.09, 1 - 2.9 / height, 0.72, 2.8 / height))
        for i, (name, values) in enumerate(terms.items()):
            color, _, marker = class_look(i)
            (line,) = axes.plot(
                epochs, values, color=color, linestyle=DASHES[i % len(DASHES)],
                linewidth=2.0 if name == "loss" else 1.3,
                marker=marker if len(epochs) == 1 else None, label="loss (sum)" if name == "loss" else name,
            )  # fmt: skip
            line.set_gid(_curve_id(name))
        every = np.array(list(terms.values()))
        if every.min() > 0 and every.max() > _LOG_RATIO * every.min():
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter(NullFormatter())
        axes.xaxis.set_major_locator(_epoch_ticks())
        axes.set(ylabel="loss, mean over images")
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.02), fontsize=8)
        if not schedules:
            axes.set_xlabel("epoch")
        for i, (name, planned) in enumerate(schedules):
            _draw_schedule(figure, (0.09 + 0.4 * i, 0.09, 0.32, 1.05 / height), epochs, planned, name)
        return inline_svg(figure, key, _training_alt(terms, schedules, len(epochs)))


def _epoch_ticks() -> MaxNLocator:
    return MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10])


def _draw_schedule(
    figure: Figure, box: tuple[float, float, float, float], epochs: Sequence[float], values: Any, name: str
) -> None:
    axes = figure.add_axes(box)
    axes.plot(
        epochs, values, color=INK, linewidth=1.2, marker="o" if len(epochs) == 1 else None, markersize=3
    )
    axes.xaxis.set_major_locator(_epoch_ticks())
    axes.set(xlabel="epoch")
    axes.set_title(name, size=9, loc="left")
    axes.margins(y=0.12)


def loss_terms(history: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The columns of a history that are losses, the total first.

    Example:
        >>> loss_terms([{"epoch": 0.0, "learning_rate": 0.1, "ce": 1.0, "loss": 2.0, "tau": 1.0}])
        {'loss': [2.0], 'ce': [1.0]}
    """
    names = [name for name in history[0] if name not in ("epoch", "learning_rate", "tau")]
    return {name: [row[name] for row in history] for name in sorted(names, key=lambda name: name != "loss")}


def _training_alt(
    terms: Mapping[str, Sequence[float]], schedules: Sequence[tuple[str, Any]], epochs: int
) -> str:
    told = [f"Curves over {epochs} epochs, first and last value:"]
    told += [f"{name} {values[0]:.3g} and {values[-1]:.3g};" for name, values in terms.items()]
    told += [f"{name} {values[0]:.3g} and {values[-1]:.3g};" for name, values in schedules]
    return " ".join(told)[:-1] + "."


def sphere_figure(
    view: SphereView,
    names: Sequence[str],
    support_labels: NDArray[np.int64] | None,
    test_labels: NDArray[np.int64] | None,
    key: str,
) -> str:
    """The sphere about the mean of the class texts; a class has one colour, a kind of point one mark.

    Args:
        view: of C classes.
        names: C names.
        support_labels, test_labels: classes of the view's images.
        key: unlike any other figure's on the page.
    """
    legend = 0.75 + LEGEND_ROW * math.ceil(len(names) / _columns(names))
    with _figure(WIDTH, WIDTH + legend) as figure:
        share = WIDTH / (WIDTH + legend)
        axes = figure.add_axes((0.01, 1 - share, 0.98, share))
        axes.set_axis_off()
        axes.set_aspect("equal")
        edge = 1.02 * view.radius
        axes.set(xlim=(-edge, edge), ylim=(-edge, edge))
        border = Circle((0, 0), view.radius, fill=False, edgecolor=REST, linewidth=1.0)
        axes.add_patch(border)
        _draw_graticule(axes, view.radius, border)
        if view.test is not None and test_labels is not None:
            _draw_test(axes, view.test, test_labels, border)
        if view.support is not None and support_labels is not None:
            for i in range(len(names)):
                color, _, marker = class_look(i)
                mine = view.support[support_labels == i]
                axes.plot(
                    *mine.T, linestyle="none", marker=marker, markersize=5.5, markerfacecolor="none",
                    markeredgecolor=color, markeredgewidth=1.1, clip_path=border, zorder=3,
                )  # fmt: skip
        _draw_texts(axes, view, border)
        _name_classes(axes, view, names)
        _draw_legend(figure, view, names)
        return inline_svg(figure, key, _sphere_alt(view, names, test_labels))


def _draw_graticule(axes: Axes, radius: float, border: Circle) -> None:
    """Circles of equal angle from the pole, labelled, and the pole itself."""
    widest = math.degrees(2 * math.asin(min(1.0, radius / 2)))
    step = next(step for step in (0.5, 1, 2, 5, 10, 15, 30, 45) if widest / step <= 6)
    for degrees in np.arange(step, widest, step):
        r = 2 * math.sin(math.radians(degrees) / 2)
        axes.add_patch(
            Circle((0, 0), r, fill=False, edgecolor=REST, linewidth=0.5, linestyle=(0, (2, 3)), alpha=0.8)
        )
        axes.text(
            r * math.sin(0.3), -r * math.cos(0.3), f"{degrees:g}°", size=7, color=INK, alpha=0.75,
            ha="center", va="center", clip_path=border,
        )  # fmt: skip
    axes.plot(0, 0, "+", color=REST, markersize=7, markeredgewidth=0.8)


def _draw_test(axes: Axes, points: NDArray[np.float64], labels: NDArray[np.int64], border: Circle) -> None:
    chosen = np.arange(len(points))
    if len(points) > DRAWN_IMAGES:
        chosen = np.sort(np.random.default_rng(0).permutation(len(points))[:DRAWN_IMAGES])
    for i in np.unique(labels):
        color, _, marker = class_look(int(i))
        mine = points[chosen][labels[chosen] == i]
        axes.plot(
            *mine.T, linestyle="none", marker=marker, markersize=3.4, color=color, alpha=0.6,
            markeredgewidth=0, clip_path=border, zorder=2,
        )  # fmt: skip


def _draw_texts(axes: Axes, view: SphereView, border: Circle) -> None:
    for i, cap in enumerate(view.caps):
        color = class_look(i)[0]
        outline = Polygon(cap.outline, closed=True, facecolor=color, alpha=0.13, edgecolor="none", zorder=1)
        edge = Polygon(cap.outline, closed=True, fill=False, edgecolor=color, linewidth=0.9, zorder=3)
        for patch in (outline, edge):
            axes.add_patch(patch)
            patch.set_clip_path(border)
    before, after, anchors = (view.texts.get(kind) for kind in ("before", "after", "anchors"))
    for i in range(len(next(iter(view.texts.values())))):
        color = class_look(i)[0]
        rim = {"markeredgecolor": INK, "markeredgewidth": 0.8}
        solid: dict[str, Any] = {"color": color, **rim, "zorder": 6, "clip_path": border}
        if before is not None:
            _draw_start(axes, before[i], None if after is None else after[i], color, border)
        if after is not None:
            axes.plot(*after[i], "D", markersize=7.5, **solid)
        if anchors is not None:
            axes.plot(*anchors[i], "*", markersize=12, **solid)


def _draw_start(axes: Axes, start: Any, end: Any, color: str, border: Circle) -> None:
    """The prompt before training, and the way it went."""
    axes.plot(
        *start, "D", color=color, markerfacecolor="none", markersize=6, markeredgewidth=1.3, clip_path=border,
        zorder=5,
    )  # fmt: skip
    if end is not None:
        look = {"arrowstyle": "-|>", "color": color, "linewidth": 1, "shrinkA": 4, "shrinkB": 6}
        arrow = axes.annotate("", end, start, arrowprops=look, zorder=4, annotation_clip=False)
        assert arrow.arrow_patch is not None
        arrow.arrow_patch.set_clip_path(border)


def _name_classes(axes: Axes, view: SphereView, names: Sequence[str]) -> None:
    """The names, or numbers, beside what stands for the class, away from the pole where there is room."""
    if _crowded(names):
        names = [str(i) for i in range(1, len(names) + 1)]
    points = next(view.texts[kind] for kind in ("after", "anchors", "before") if kind in view.texts)
    inches = WIDTH / (2 * view.radius)
    for i, (name, point) in enumerate(zip(names, points, strict=True)):
        color, length = class_look(i)[0], float(np.linalg.norm(point)) or 1.0
        x, y = point
        shift, up = 13 * point / length
        if length > view.radius:  # a mark at the rim, in its direction
            x, y = 0.985 * view.radius * point / length
            shift, up = -shift, -up
            axes.plot(x, y, "D", color=color, markersize=4, zorder=6)
        elif (view.radius - abs(x)) * inches < 0.3 + LETTER * len(name):
            shift, up = -0.1 * shift, math.copysign(13, up)
        side = "left" if shift > 1 else "right" if shift < -1 else "center"
        axes.annotate(
            name, (x, y), (shift, up), textcoords="offset points", ha=side, va="center", size=9,
            color=color, weight="bold", zorder=7,
        )  # fmt: skip


def _draw_legend(figure: Figure, view: SphereView, names: Sequence[str]) -> None:
    def mark(marker: str, size: float, label: str, **look: Any) -> Line2D:
        return Line2D(
            [], [], linestyle="none", marker=marker, markersize=size, color=INK, label=label, **look
        )

    kinds = []
    if "anchors" in view.texts:
        kinds.append(mark("*", 11, "unified semantic anchor"))
    if "before" in view.texts:
        kinds.append(mark("D", 6, "prompt before training", markerfacecolor="none"))
    if "after" in view.texts:
        kinds.append(mark("D", 7, "prompt after training"))
    if view.caps:
        kinds.append(
            mark("o", 12, "half of the field of its descriptions", markerfacecolor="none", alpha=0.7)
        )
    if view.support is not None:
        kinds.append(mark("o", 5.5, "support image", markerfacecolor="none"))
    if view.test is not None:
        kinds.append(mark("o", 3, "test image (true class)", alpha=0.6))
    columns = _columns(names)
    place = (0.5, 0.02 + LEGEND_ROW * math.ceil(len(names) / columns) / figure.get_figheight())
    figure.legend(handles=kinds, loc="lower center", ncols=3, fontsize=8, bbox_to_anchor=place)
    classes = [
        Line2D([], [], linestyle="none", marker=class_look(i)[2], color=class_look(i)[0])
        for i in range(len(names))
    ]
    _legend(figure, classes, _legend_names(names), ncols=columns, bbox_to_anchor=(0.5, 0.0))


def _columns(names: Sequence[str]) -> int:
    """Columns of the legend of the classes."""
    return max(1, min(3, 80 // max(map(len, _legend_names(names)))))


def _crowded(names: Sequence[str]) -> bool:
    """Whether the classes' names would hide the points that they name."""
    return len(names) > MOST_NAMES or max(map(len, names)) > LONGEST_NAME


def _legend_names(names: Sequence[str]) -> list[str]:
    short = [shortened(name) for name in names]
    return [f"{i}  {name}" for i, name in enumerate(short, 1)] if _crowded(names) else short


def _sphere_alt(view: SphereView, names: Sequence[str], test_labels: NDArray[np.int64] | None) -> str:
    shown = {"before": "prompts before", "after": "prompts after training", "anchors": "anchors"}
    kinds = [shown[kind] for kind in view.texts]
    if view.caps:
        kinds.append("caps of the description fields")
    if view.support is not None:
        kinds.append(f"{len(view.support)} support images")
    if view.test is not None and test_labels is not None:
        kinds.append(f"{len(view.test)} test images")
    points = view.texts.get("after", view.texts.get("anchors", next(iter(view.texts.values()))))
    places = "; ".join(
        f"{name} at {math.degrees(2 * math.asin(min(1.0, float(np.linalg.norm(p)) / 2))):.0f} degrees"
        for name, p in zip(names, points, strict=True)
    )
    return (
        f"The sphere seen from the mean of the class texts, with {', '.join(kinds)}. Distance of the class "
        f"texts from the centre of the view: {places}. The tables below give the angles in all dimensions."
    )
