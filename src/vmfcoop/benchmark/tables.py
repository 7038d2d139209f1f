"""A benchmark's cells as tables.

A mean is taken over every dataset and seed that was run, or not at all: a method that lacks one of them gets
a dash and a note, so no average rests on fewer cells than its neighbours'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, Literal, TypeVar

import numpy as np

from vmfcoop.benchmark import published
from vmfcoop.benchmark.results import BudgetName, Cell, ProtocolName, Section
from vmfcoop.evaluation.protocols import harmonic_mean
from vmfcoop.evaluation.statistics import PairedTest, Ranking, holm, paired_test, rank_methods, summarise

REFERENCE = "vMFCoOp"
DASH = "-"
LISTED = 6
"""Missing cells that a note names before it counts the rest."""

SPREAD_NOTE = "Mean ± standard deviation (n - 1) over seeds of the mean over datasets."
RANK_NOTE = (
    "Ranks over (dataset, K, seed) cells: 1 is the best, ties share their mean rank. Cells of one dataset "
    "are not independent; Friedman's p-value and the critical difference take them for independent and so "
    "promise too much. Read them with the test over dataset means."
)
TEST_NOTE = (
    "Wilcoxon signed-rank, two-sided, zero differences split between both sides. 'p (cells)' pairs every "
    "(dataset, K, seed) cell. Cells of one dataset are not independent, so it is too small; 'p (datasets)' "
    "pairs each dataset's mean and is the cautious one (with fewer than six datasets it cannot reach 0.05). "
    "Both are adjusted by Holm over the rows. The interval is Student's t over dataset means."
)
HM_NOTE = (
    "HM of averages: harmonic mean of the averages of base and novel. Average of HMs: harmonic mean of each "
    "dataset and seed, then averaged. The two differ. Methods that cannot take new classes have a dash."
)
PUBLISHED_NOTE = (
    "From the vMFCoOp paper (arXiv 2511.09540), as printed there; its budget is its own. Not measured here, "
    "not comparable with the tables above, not ranked."
)
UNCLEAR_NOTE = "The paper does not say which kind of harmonic mean (HM) its ablation has."

Reader = Callable[[Mapping[str, Any]], float | None]
RowKind = Literal["method", "level", "published"]
Mark = Literal["best", "second"]
Item = TypeVar("Item")


@dataclass(frozen=True)
class Entry:
    """One place of a table, in the unit that is printed.

    Attributes:
        mean: what is printed and sorted by; None prints as a dash.
        std: printed after it, if not None.
        text: printed in place of both.
        interval: of the mean over seeds, 95 %.
    """

    mean: float | None = None
    std: float | None = None
    text: str | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Column:
    """A heading, the decimals below it, which end is better (None: neither) and, where it is one K, that."""

    title: str
    digits: int = 2
    better: Literal["high", "low"] | None = "high"
    shots: int | None = None


@dataclass(frozen=True)
class Row:
    """A label and its entries; only rows of kind ``method`` compete."""

    label: str
    entries: tuple[Entry, ...]
    kind: RowKind = "method"


@dataclass(frozen=True)
class Table:
    """A table ready to print.

    Attributes:
        topic: what it belongs to: a key of :data:`TOPICS`.
        title: above it.
        columns, rows: without the column of row labels.
        notes: below it; the first says what the budget means.
        heading: of the column of row labels.
        data: the only dataset that it is about, if it is about one.
        ranking: of the methods, with a table of ranks.
    """

    topic: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...]
    heading: str = "method"
    data: str | None = None
    ranking: Ranking | None = None

    def text(self, row: int, column: int) -> str:
        """An entry as it is printed, without emphasis."""
        entry, digits = self.rows[row].entries[column], self.columns[column].digits
        if entry.text is not None:
            return entry.text
        if entry.mean is None:
            return DASH
        spread = "" if entry.std is None else f" ± {entry.std:.{digits}f}"
        return f"{entry.mean:.{digits}f}{spread}"

    def marks(self) -> dict[tuple[int, int], Mark]:
        """Best and second best of every column, by (row, column).

        Means that print alike tie: all of them are best, or second. A column needs two competitors.
        """
        found: dict[tuple[int, int], Mark] = {}
        for j, column in enumerate(self.columns):
            if column.better is None:
                continue
            means = {
                i: round(mean, column.digits)
                for i, row in enumerate(self.rows)
                if row.kind == "method" and (mean := row.entries[j].mean) is not None
            }
            places = sorted(set(means.values()), reverse=column.better == "high")[:2]
            if len(means) > 1:
                found |= {
                    (i, j): ("best", "second")[places.index(m)] for i, m in means.items() if m in places
                }
        return found


TOPICS: dict[str, str] = {
    "average": "Accuracy averaged over datasets",
    "ranks": "Ranks and tests",
    "datasets": "Every dataset",
    "base-to-novel": "Base-to-novel generalisation",
    "ablation": "Ablation",
    "cross-dataset": "Cross-dataset generalisation",
    "metrics": "Other metrics",
    "timing": "Time and steps",
    "published": "Published figures, for reference",
}
"""Headings of the report's parts, in order, by topic."""


@dataclass(frozen=True)
class Group:
    """The cells of one budget and backbone: what may be compared.

    Attributes:
        budget, backbone: of all its cells.
        meaning: the budget in a sentence.
        cells: in the order they were given, which is the order of rows.
    """

    budget: BudgetName
    backbone: str
    meaning: str
    cells: tuple[Cell, ...]

    @property
    def name(self) -> str:
        return f"{self.backbone}, {self.budget} budget"

    def pick(self, protocol: ProtocolName, section: Section = "main") -> list[Cell]:
        return [cell for cell in self.cells if cell.protocol == protocol and cell.section == section]


def group_cells(cells: Sequence[Cell], settings: Mapping[str, Any]) -> list[Group]:
    """Cells by budget and backbone, in order of appearance."""
    keys = unique((cell.budget, cell.backbone) for cell in cells)
    return [
        Group(
            budget,
            backbone,
            _meaning(budget, settings),
            tuple(cell for cell in cells if (cell.budget, cell.backbone) == (budget, backbone)),
        )
        for budget, backbone in keys
    ]


def benchmark_tables(
    cells: Sequence[Cell], settings: Mapping[str, Any], reference: str = REFERENCE
) -> list[Table]:
    """Every table that the cells allow, by topic and, within it, by group.

    Args:
        cells: what the benchmark found.
        settings: the recipe; ``equal`` (``epochs``, ``batch_size``) is printed with that budget.
        reference: title of the method that the others are tested against.
    """
    tables = [table for group in group_cells(cells, settings) for table in _group_tables(group, reference)]
    tables += published_tables()
    order = list(TOPICS)
    return sorted(tables, key=lambda table: (order.index(table.topic), table.data is not None))


def _group_tables(group: Group, reference: str) -> list[Table]:
    few_shot, novel = group.pick("few-shot"), group.pick("base-to-novel")
    tables: list[Table | None] = []
    if few_shot:
        tables += [average_table(group), rank_table(group), pairwise_table(group, reference)]
        tables += [dataset_table(group, data) for data in datasets_of(few_shot)]
        tables.append(interval_table(group))
        tables += [metrics_table(group, shots) for shots in shots_of(few_shot)]
        tables.append(timing_table(group))
    for shots in shots_of(novel):
        tables.append(base_to_novel_table(group, shots))
        names = datasets_of([cell for cell in novel if cell.shots == shots])
        if len(names) > 1:
            tables += [base_to_novel_table(group, shots, data) for data in names]
    if any(cell.section == "ablation" for cell in group.cells):
        tables.append(ablation_table(group))
    cross = group.pick("cross-dataset")
    for data, shots in unique((cell.data, cell.shots) for cell in cross):
        tables.append(cross_dataset_table(group, data, shots))
    return [table for table in tables if table is not None]


# Averages -----------------------------------------------------------------------------------------------


def share(part: str, metric: str = "accuracy") -> Reader:
    """Reads a metric of a part of a result, in percent; None where the part or the metric is."""

    def read(result: Mapping[str, Any]) -> float | None:
        metrics = result[part]
        return None if metrics is None or metrics[metric] is None else 100 * float(metrics[metric])

    return read


def over_datasets(
    cells: Sequence[Cell], methods: Sequence[str], read: Reader, place: str
) -> tuple[dict[str, Entry], list[str]]:
    """The mean over datasets, then its mean and standard deviation over seeds, for every method.

    A method needs every dataset that any method has, at every seed that is complete: one at which each
    dataset was run by some method. Else it has a dash.

    Args:
        cells: of one column: one protocol and K.
        methods: rows.
        read: the number of a result.
        place: the column's name in notes.

    Returns:
        Entries by method, and notes on cells that are missing.
    """
    values = {(cell.method, cell.data, cell.seed): read(cell.result) for cell in cells}
    names, seeds, notes = _grid(cells, place)
    entries: dict[str, Entry] = {}
    for method in methods:
        absent = [(n, s) for n in names for s in seeds if (method, n, s) not in values]
        if absent and len(absent) == len(names) * len(seeds):
            notes.append(f"{place}: {method} was not run.")
        elif absent:
            notes.append(f"{place}: {method} lacks {_listed(absent)}, so it has no average here.")
        found = [[values.get((method, name, seed)) for name in names] for seed in seeds]
        entries[method] = _mean_over_seeds(found)
    return entries, notes


def _mean_over_seeds(found: Sequence[Sequence[float | None]]) -> Entry:
    """Of values by seed and dataset; a dash if any is missing."""
    whole = [[value for value in row if value is not None] for row in found]
    if not whole or any(len(a) < len(b) for a, b in zip(whole, found, strict=True)):
        return Entry()
    summary = summarise([fmean(row) for row in whole])
    return Entry(summary.mean, summary.std, interval=summary.interval)


def _grid(cells: Sequence[Cell], place: str) -> tuple[list[str], list[int], list[str]]:
    """Datasets, complete seeds, and a note on seeds that are not."""
    names, seeds = datasets_of(cells), sorted({cell.seed for cell in cells})
    run = {(cell.data, cell.seed) for cell in cells}
    complete = [seed for seed in seeds if all((name, seed) in run for name in names)]
    lost = [(name, seed) for seed in seeds for name in names if (name, seed) not in run]
    notes = [f"{place}: no method has {_listed(lost)}; these seeds are left out."] if lost else []
    return names, complete, notes


def datasets_of(cells: Iterable[Cell]) -> list[str]:
    """Names of the datasets, in order of appearance."""
    return unique(cell.data for cell in cells)


def methods_of(cells: Iterable[Cell]) -> list[str]:
    """Titles of the methods, in order of appearance."""
    return unique(cell.method for cell in cells)


def shots_of(cells: Iterable[Cell]) -> list[int]:
    """The numbers of shots, ascending."""
    return sorted({cell.shots for cell in cells})


def unique(items: Iterable[Item]) -> list[Item]:
    """Without repeats, in order of appearance."""
    return list(dict.fromkeys(items))


def _listed(absent: Sequence[tuple[str, int]]) -> str:
    named = ", ".join(f"{name} seed {seed}" for name, seed in absent[:LISTED])
    rest = len(absent) - LISTED
    return f"{named} and {rest} more" if rest > 0 else named


def _meaning(budget: str, settings: Mapping[str, Any]) -> str:
    if budget == "paper":
        return "Budget 'paper': every method keeps the epochs, batch size and views of its own paper."
    equal = settings.get("equal") or {}
    steps = f" ({equal['epochs']} epochs of batches of {equal['batch_size']})" if equal else ""
    return (
        "Budget 'equal': every method that is trained in steps takes the same number of them"
        f"{steps} on the same cached views."
    )


# Tables of accuracy -------------------------------------------------------------------------------------


def average_table(group: Group) -> Table:
    """Accuracy averaged over datasets, a column a K, with the published averages below."""
    cells = group.pick("few-shot")
    shots = shots_of(cells)
    rows, notes = _accuracy_rows(cells, shots)
    extra = [
        _published_row(method, published.FEW_SHOT_DATASETS, [Entry(*values.get(k, ())) for k in shots])
        for method, values in published.FEW_SHOT.items()
        if set(values) & set(shots)
    ]
    title = f"Accuracy (%) averaged over {_counted(datasets_of(cells))}: {group.name}"
    notes = [group.meaning, SPREAD_NOTE, *_uneven(cells), *notes]
    return Table("average", title, _shot_columns(shots), (*rows, *extra), tuple(notes))


def dataset_table(group: Group, data: str) -> Table:
    """Accuracy on one dataset, a column a K."""
    cells = group.pick("few-shot")
    here = [cell for cell in cells if cell.data == data]
    shots = shots_of(here)
    rows, notes = _accuracy_rows(here, shots, methods_of(cells))
    spread = "Mean ± standard deviation (n - 1) over seeds."
    title = f"{data}, accuracy (%): {group.name}"
    lines = (group.meaning, spread, *notes)
    return Table("datasets", title, _shot_columns(shots), tuple(rows), lines, data=data)


def _accuracy_rows(
    cells: Sequence[Cell], shots: Sequence[int], methods: Sequence[str] = ()
) -> tuple[list[Row], list[str]]:
    methods = methods or methods_of(cells)
    by_shots = [[cell for cell in cells if cell.shots == k] for k in shots]
    found = [
        over_datasets(column, methods, share("test"), f"K = {k}")
        for k, column in zip(shots, by_shots, strict=True)
    ]
    rows = _rows(methods, [entries for entries, _ in found])
    notes = [note for _, lines in found for note in lines]
    return rows + _levels([(column, "test") for column in by_shots]), notes


def _rows(methods: Sequence[str], columns: Sequence[Mapping[str, Entry]]) -> list[Row]:
    return [Row(method, tuple(column[method] for column in columns)) for method in methods]


def _levels(columns: Sequence[tuple[Sequence[Cell], str]], more: int = 0) -> list[Row]:
    """What needs no classifier, below the methods: chance and the largest class, averaged over datasets."""
    levels = {"chance (1 / C)": "chance", "largest class of the test split": "majority"}
    return [
        Row(name, (*(_level(cells, part, metric) for cells, part in columns), *[Entry()] * more), "level")
        for name, metric in levels.items()
    ]


def _level(cells: Sequence[Cell], part: str, metric: str) -> Entry:
    read = share(part, metric)
    values = {cell.data: value for cell in cells if (value := read(cell.result)) is not None}
    return Entry(fmean(values.values())) if values else Entry()


def _shot_columns(shots: Sequence[int]) -> tuple[Column, ...]:
    return tuple(Column(f"K = {k}", shots=k) for k in shots)


def _published_row(method: str, datasets: int, entries: Sequence[Entry]) -> Row:
    return Row(published.label(method, datasets), tuple(entries), "published")


def _counted(names: Sequence[str]) -> str:
    return "1 dataset" if len(names) == 1 else f"{len(names)} datasets"


def _uneven(cells: Sequence[Cell]) -> list[str]:
    """Notes on columns that average other datasets than their neighbours do."""
    by_shots = {k: datasets_of([cell for cell in cells if cell.shots == k]) for k in shots_of(cells)}
    every = datasets_of(cells)
    return [
        f"K = {k} averages {_counted(names)} only ({', '.join(names)}); do not compare it with other columns."
        for k, names in by_shots.items()
        if set(names) != set(every)
    ]


# Ranks and tests ----------------------------------------------------------------------------------------


def rank_cells(cells: Sequence[Cell]) -> tuple[Ranking | None, list[str]]:
    """The ranking of methods over (dataset, K, seed) cells of few-shot.

    A method that lacks a cell which another has is left out, with a note.

    Returns:
        None if fewer than two methods are left.
    """
    methods, blocks, scores = _scores(cells)
    left_out = [method for method in methods_of(cells) if method not in methods]
    notes = [f"{method} lacks cells that others have and is not ranked." for method in left_out]
    return (rank_methods(methods, scores) if len(methods) > 1 and blocks else None), notes


def _scores(cells: Sequence[Cell]) -> tuple[list[str], list[tuple[str, int, int]], Any]:
    """Methods that have every block, the blocks (dataset, K, seed), and accuracies (blocks, methods)."""
    values = {
        (cell.method, cell.data, cell.shots, cell.seed): cell.result["test"]["accuracy"] for cell in cells
    }
    blocks = unique((cell.data, cell.shots, cell.seed) for cell in cells)
    methods = [m for m in methods_of(cells) if all((m, *block) in values for block in blocks)]
    return methods, blocks, np.array([[values[(m, *block)] for m in methods] for block in blocks])


def rank_table(group: Group) -> Table | None:
    """Average ranks, a column a K and one over all; None for fewer than two methods."""
    cells = group.pick("few-shot")
    methods, shots = methods_of(cells), shots_of(cells)
    overall, notes = rank_cells(cells)
    if len(methods) < 2:
        return None
    by_shots = [rank_cells([cell for cell in cells if cell.shots == k])[0] for k in shots]
    columns = [_rank_entries(ranking, methods) for ranking in (*by_shots, overall)]
    if overall is not None:
        notes = [*notes, _ranking_note(overall)]
    headings = (*(f"K = {k}" for k in shots), "all cells")
    return Table(
        "ranks",
        f"Average rank: {group.name}",
        tuple(Column(heading, better="low") for heading in headings),
        tuple(_rows(methods, columns)),
        (group.meaning, RANK_NOTE, *notes),
        ranking=overall,
    )


def _rank_entries(ranking: Ranking | None, methods: Sequence[str]) -> dict[str, Entry]:
    ranks = dict(zip(ranking.methods, ranking.ranks, strict=True)) if ranking else {}
    return {method: Entry(ranks.get(method)) for method in methods}


def _ranking_note(ranking: Ranking) -> str:
    told = f"{ranking.blocks} cells; Nemenyi's critical difference at 5 % is {ranking.difference:.2f} ranks"
    if ranking.friedman is None:
        return f"{told}."
    chi_square, p_value = ranking.friedman
    return f"{told}; Friedman's chi-square {chi_square:.1f} has p {_p_text(p_value, '= ')}."


def pairwise_table(group: Group, reference: str = REFERENCE) -> Table | None:
    """The reference against every other method that has the same cells; None where there is no pair."""
    methods, blocks, scores = _scores(group.pick("few-shot"))
    others = [method for method in methods if method != reference]
    if reference not in methods or not others:
        return None
    names = np.array([data for data, _, _ in blocks])
    means = np.array([scores[names == name].mean(axis=0) for name in unique(names.tolist())])
    over_cells, over_data = (
        [
            paired_test(100 * table[:, methods.index(reference)], 100 * table[:, methods.index(m)])
            for m in others
        ]
        for table in (scores, means)
    )
    titles = ["difference", "95 % interval", "wins / ties / losses"]
    titles += ["p (cells)", "p (cells), Holm", "p (datasets)", "p (datasets), Holm"]
    rows = _pairwise_rows(others, over_cells, over_data)
    return Table(
        "ranks",
        f"{reference} against the others, points of accuracy: {group.name}",
        tuple(Column(title, better=None) for title in titles),
        tuple(rows),
        (group.meaning, TEST_NOTE, f"{len(blocks)} cells of {_counted(unique(names.tolist()))}."),
        heading=f"{reference} against",
    )


def _pairwise_rows(others: Sequence[str], cells: list[PairedTest], data: list[PairedTest]) -> list[Row]:
    columns = [[test.p_value for test in tests] for tests in (cells, data)]
    p_values = [values for raw in columns for values in (raw, holm(raw))]
    return [
        Row(
            other,
            (
                Entry(cells[i].difference.mean, text=f"{cells[i].difference.mean:+.2f}"),
                _interval_entry(data[i].difference.interval),
                Entry(cells[i].wins, text=f"{cells[i].wins} / {cells[i].ties} / {cells[i].losses}"),
                *(Entry(values[i], text=_p_text(values[i])) for values in p_values),
            ),
        )
        for i, other in enumerate(others)
    ]


def _interval_entry(interval: tuple[float, float] | None) -> Entry:
    return Entry(interval[0], text=f"{interval[0]:+.2f} to {interval[1]:+.2f}") if interval else Entry()


def _p_text(p_value: float, equals: str = "") -> str:
    return "< 0.001" if p_value < 0.001 else f"{equals}{p_value:.3f}"


# Other protocols ----------------------------------------------------------------------------------------

HM_COLUMNS = (Column("base"), Column("novel"), Column("HM of averages"), Column("average of HMs"))


def base_to_novel_table(group: Group, shots: int, data: str | None = None) -> Table:
    """Base, novel and both harmonic means, with chance and the largest class; averaged or of one dataset."""
    every = [cell for cell in group.pick("base-to-novel") if cell.shots == shots]
    cells = [cell for cell in every if data in (None, cell.data)]
    methods = methods_of(every)
    columns, notes = base_to_novel_columns(cells, methods)
    rows = _rows(methods, columns) + _levels([(cells, "base"), (cells, "novel")], more=2)
    if data is None:
        rows += [
            _published_row(method, published.BASE_TO_NOVEL_DATASETS, [*map(Entry, values), Entry()])
            for method, values in published.BASE_TO_NOVEL.items()
        ]
    place = data or f"averaged over {_counted(datasets_of(cells))}"
    title = f"Base-to-novel accuracy (%), K = {shots}, {place}: {group.name}"
    lines = (group.meaning, SPREAD_NOTE, HM_NOTE, *notes)
    return Table("base-to-novel", title, HM_COLUMNS, tuple(rows), lines, data=data)


def base_to_novel_columns(
    cells: Sequence[Cell], methods: Sequence[str]
) -> tuple[list[dict[str, Entry]], list[str]]:
    """Entries of :data:`HM_COLUMNS` by method, and notes on missing cells."""
    base, notes = over_datasets(cells, methods, share("base"), "base-to-novel")
    novel, _ = over_datasets(cells, methods, share("novel"), "base-to-novel")
    each, _ = over_datasets(cells, methods, _harmonic, "base-to-novel")
    of_averages = {method: _harmonic_entry(base[method].mean, novel[method].mean) for method in methods}
    return [base, novel, of_averages, each], notes


def _harmonic(result: Mapping[str, Any]) -> float | None:
    return _harmonic_entry(share("base")(result), share("novel")(result)).mean


def _harmonic_entry(base: float | None, novel: float | None) -> Entry:
    return Entry() if base is None or novel is None else Entry(harmonic_mean(base, novel))


def ablation_table(group: Group) -> Table:
    """Rows of vMFCoOp's ablation: accuracy a K, base, novel and both harmonic means; published rows below."""
    few_shot, novel = (group.pick(name, "ablation") for name in ("few-shot", "base-to-novel"))
    methods, shots = methods_of([*few_shot, *novel]), shots_of(few_shot)
    rows, notes = _accuracy_rows(few_shot, shots, methods)
    entries = {row.label: row.entries for row in rows if row.kind == "method"}
    columns = _shot_columns(shots)
    if novel:
        extra, more = base_to_novel_columns(novel, methods)
        entries = {m: (*entries[m], *(column[m] for column in extra)) for m in methods}
        columns, notes = (*columns, *HM_COLUMNS), [*notes, *more, HM_NOTE]
    competing = [Row(method, entries[method]) for method in methods]
    reference = _published_ablation(shots, len(columns) - len(shots))
    place = f"averaged over {_counted(datasets_of([*few_shot, *novel]))}"
    title = f"Ablation of vMFCoOp, accuracy (%) {place}: {group.name}"
    told = [f"{UNCLEAR_NOTE} It stands in the part of published figures."] if reference and novel else []
    lines = (group.meaning, SPREAD_NOTE, *_uneven(few_shot), *notes, *told)
    return Table("ablation", title, columns, (*competing, *reference), lines, "constraints")


def _published_ablation(shots: Sequence[int], more: int) -> list[Row]:
    rows = []
    for name, values in published.ABLATION.items():
        known = dict(zip(published.ABLATION_SHOTS, values, strict=False))
        entries = [*(Entry(known.get(k)) for k in shots), *[Entry()] * more]
        rows.append(_published_row(name, published.FEW_SHOT_DATASETS, entries))
    return rows if set(shots) & set(published.ABLATION_SHOTS) else []


def cross_dataset_table(group: Group, data: str, shots: int) -> Table:
    """Accuracy on the dataset of the fit and on others, one a column, with the mean over the others."""
    every = [c for c in group.pick("cross-dataset") if (c.data, c.shots) == (data, shots)]
    methods = methods_of(every)
    targets = unique(cell.target or "" for cell in every)
    found = [over_datasets(every, methods, share("source"), data)]
    for name in targets:
        here = [cell for cell in every if cell.target == name]
        found.append(over_datasets(here, methods, share("target"), name))
    columns = [Column(f"{data} (source)"), *(Column(name) for name in targets)]
    if len(targets) > 1:
        as_data = [replace(cell, data=cell.target or "") for cell in every]
        found.append((over_datasets(as_data, methods, share("target"), "mean of targets")[0], []))
        columns.append(Column("mean of targets"))
    rows = _rows(methods, [entries for entries, _ in found])
    notes = unique(note for _, lines in found for note in lines)
    dashes = "Methods that cannot take new classes have a dash unless both datasets share their classes."
    title = f"Fitted on {data} at K = {shots}, tested on others, accuracy (%): {group.name}"
    lines = (group.meaning, "Mean ± standard deviation (n - 1) over seeds.", dashes, *notes)
    return Table("cross-dataset", title, tuple(columns), tuple(rows), lines)


METRICS: dict[str, tuple[str, Literal["high", "low"]]] = {
    "balanced_accuracy": ("balanced accuracy", "high"),
    "macro_f1": ("macro F1", "high"),
    "macro_auroc": ("macro AUROC", "high"),
    "ece": ("ECE", "low"),
    "brier": ("Brier × 100", "low"),
}
"""Metrics beside accuracy: heading and which end is better."""


def interval_table(group: Group) -> Table | None:
    """The 95 % interval over seeds of the averaged accuracy, a column a K; None for a single seed."""
    cells = group.pick("few-shot")
    shots = shots_of(cells)
    methods = methods_of(cells)
    found = [
        over_datasets([cell for cell in cells if cell.shots == k], methods, share("test"), f"K = {k}")[0]
        for k in shots
    ]
    if not any(entry.interval for column in found for entry in column.values()):
        return None
    columns = [{m: _range_entry(e) for m, e in column.items()} for column in found]
    title = (
        f"Accuracy (%), 95 % interval over seeds, averaged over {_counted(datasets_of(cells))}: {group.name}"
    )
    note = (
        "Student's t over the seeds' means over datasets: how far other support sets may lie, not other data."
    )
    unmarked = tuple(replace(column, better=None) for column in _shot_columns(shots))
    return Table("metrics", title, unmarked, tuple(_rows(methods, columns)), (group.meaning, note))


def _range_entry(entry: Entry) -> Entry:
    if entry.interval is None:
        return Entry()
    return Entry(entry.mean, text=f"{entry.interval[0]:.2f} to {entry.interval[1]:.2f}")


def metrics_table(group: Group, shots: int) -> Table:
    """Every other metric at one K, averaged over datasets."""
    cells = [cell for cell in group.pick("few-shot") if cell.shots == shots]
    methods = methods_of(cells)
    found = [over_datasets(cells, methods, share("test", metric), f"K = {shots}") for metric in METRICS]
    undefined = unique(c.data for c in cells if c.result["test"]["macro_auroc"] is None)
    notes = [f"AUROC is not defined on {', '.join(undefined)}, so not averaged."] if undefined else []
    title = f"Other metrics (%), K = {shots}, averaged over {_counted(datasets_of(cells))}: {group.name}"
    columns = tuple(Column(heading, better=better) for heading, better in METRICS.values())
    lines = (group.meaning, SPREAD_NOTE, "ECE and Brier: lower is better.", *notes, *found[0][1])
    return Table("metrics", title, columns, tuple(_rows(methods, [e for e, _ in found])), lines)


def timing_table(group: Group) -> Table:
    """Mean seconds of a fit and its optimisation steps, two columns a K."""
    cells = group.pick("few-shot")
    methods = methods_of(cells)
    columns: list[Column] = []
    found: list[dict[str, Entry]] = []
    for shots in shots_of(cells):
        here = [cell for cell in cells if cell.shots == shots]
        columns += [Column(f"K = {shots}, s", better=None), Column(f"K = {shots}, steps", 0, better=None)]
        for read in (_fit_seconds, _steps):
            averages, _ = over_datasets(here, methods, read, "")
            found.append({method: Entry(entry.mean) for method, entry in averages.items()})
    title = f"Seconds and steps of a fit, mean over datasets and seeds: {group.name}"
    note = "Seconds of the fit on cached features; seeds that train side by side share them evenly."
    return Table("timing", title, tuple(columns), tuple(_rows(methods, found)), (group.meaning, note))


def _fit_seconds(result: Mapping[str, Any]) -> float:
    return float(result["seconds"]["fit"])


def _steps(result: Mapping[str, Any]) -> float:
    return float(result["steps"])


def published_tables() -> list[Table]:
    """The paper's figures on their own: few-shot, base-to-novel and ablation."""
    shots = sorted({k for values in published.FEW_SHOT.values() for k in values})
    few_shot = [
        _published_row(method, published.FEW_SHOT_DATASETS, [Entry(*values[k]) for k in shots])
        for method, values in published.FEW_SHOT.items()
    ]
    novel = [
        _published_row(method, published.BASE_TO_NOVEL_DATASETS, [Entry(value) for value in values])
        for method, values in published.BASE_TO_NOVEL.items()
    ]
    ablation = [
        _published_row(name, published.FEW_SHOT_DATASETS, [Entry(value) for value in values])
        for name, values in published.ABLATION.items()
    ]
    ablated = (*_shot_columns(published.ABLATION_SHOTS), Column("HM"))
    return [
        Table(
            "published", "Published accuracy (%)", _shot_columns(shots), tuple(few_shot), (PUBLISHED_NOTE,)
        ),
        Table("published", "Published base-to-novel (%)", HM_COLUMNS[:3], tuple(novel), (PUBLISHED_NOTE,)),
        Table(
            "published",
            "Published ablation (%)",
            ablated,
            tuple(ablation),
            (PUBLISHED_NOTE, UNCLEAR_NOTE),
            "constraints",
        ),
    ]
