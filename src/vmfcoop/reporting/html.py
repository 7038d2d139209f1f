"""A benchmark's report: one HTML page that needs no network, and its tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup

from vmfcoop.__about__ import __version__
from vmfcoop.benchmark.results import Cell
from vmfcoop.benchmark.tables import (
    REFERENCE,
    TOPICS,
    Table,
    benchmark_tables,
    datasets_of,
    group_cells,
    methods_of,
    shots_of,
    unique,
)
from vmfcoop.errors import UserError
from vmfcoop.files import write_atomically
from vmfcoop.reporting.figures import (
    accuracy_curves,
    base_to_novel_bars,
    critical_difference_diagram,
    leading,
)
from vmfcoop.reporting.texts import cells_csv, latex, markdown

LATEX_HEAD = "% Needs \\usepackage{booktabs}.\n\n"


@dataclass(frozen=True)
class _Block:
    """A table with its figure; ``key`` is its id on the page."""

    key: str
    table: Table
    figure: Markup

    @property
    def rows(self) -> dict[str, list[tuple[str, str, list[tuple[str, str, str]]]]]:
        """Rows that compete and those that do not: label, kind; text, sort value and mark of each entry."""
        marks = self.table.marks()
        parts: dict[str, list[tuple[str, str, list[tuple[str, str, str]]]]] = {"method": [], "other": []}
        for i, row in enumerate(self.table.rows):
            entries = [
                (self.table.text(i, j), "" if entry.mean is None else repr(entry.mean), marks.get((i, j), ""))
                for j, entry in enumerate(row.entries)
            ]
            parts["method" if row.kind == "method" else "other"].append((row.label, row.kind, entries))
        return parts


def render_benchmark(
    cells: Sequence[Cell], settings: Mapping[str, Any], notes: Sequence[str] = (), reference: str = REFERENCE
) -> str:
    """The report as one HTML page: tables that sort, figures as inline SVG, all settings; no network needed.

    Args:
        cells: what the benchmark found, in the order that rows shall have.
        settings: the recipe, nested as JSON has it, printed in full; ``name`` is the page's title, ``equal``
            explains that budget, ``wall_seconds`` is the benchmark's wall time.
        notes: sentences on what is missing or failed.
        reference: title of the method to emphasise and to test the others against.

    Returns:
        HTML; the same bytes for the same input.

    Raises:
        UserError: there are no cells.
    """
    if not cells:
        raise UserError("The benchmark has no results yet; run it first.")
    tables = benchmark_tables(cells, settings, reference)
    emphasised = next((leading(t, reference) for t in tables if t.topic == "average"), (reference,))
    blocks = [
        _Block(f"t{i}", table, Markup(_figure(table, f"f{i}", reference, emphasised)))
        for i, table in enumerate(tables, 1)
    ]
    topics = [(topic, title) for topic, title in TOPICS.items() if any(t.topic == topic for t in tables)]
    page = page_template("benchmark.html.j2")
    return page.render(
        name=settings.get("name", "benchmark"),
        summary=_summary(cells, settings),
        budgets=unique(group.meaning for group in group_cells(cells, settings)),
        topics=topics,
        parts=[("summary", "Summary"), *topics, ("notes", "Missing and failed"), ("settings", "Settings")],
        blocks=blocks,
        settings=list(flat_settings(settings)),
        notes=list(notes),
        version=__version__,
    )


def page_template(name: str) -> Template:
    """A page of this package: text is escaped, and a name that is not given is an error."""
    environment = Environment(
        loader=PackageLoader("vmfcoop.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def write_report(
    cells: Sequence[Cell],
    settings: Mapping[str, Any],
    folder: Path,
    missing: Sequence[str] = (),
    failures: Sequence[str] = (),
    reference: str = REFERENCE,
) -> dict[str, Path]:
    """Write ``report.html``, ``tables.md``, ``tables.tex`` and ``cells.csv``, each whole or not at all.

    Args:
        cells, settings, reference: as :func:`render_benchmark`.
        folder: created if need be.
        missing: sentences on cells of the recipe that have no result.
        failures: sentences on fits that ended in an error.

    Returns:
        Paths by ``html``, ``markdown``, ``latex`` and ``csv``.

    Raises:
        UserError: there are no cells, or the folder cannot be written.
    """
    notes = [*(f"Missing: {line}" for line in missing), *(f"Failed: {line}" for line in failures)]
    page = render_benchmark(cells, settings, notes, reference)
    tables = benchmark_tables(cells, settings, reference)
    texts = {
        "html": ("report.html", page),
        "markdown": ("tables.md", _markdown_page(tables, settings, notes)),
        "latex": ("tables.tex", LATEX_HEAD + "\n".join(map(latex, tables))),
        "csv": ("cells.csv", cells_csv(cells)),
    }
    for name, text in texts.values():
        write_atomically(folder / name, text)
    return {kind: folder / name for kind, (name, _) in texts.items()}


def _markdown_page(tables: Sequence[Table], settings: Mapping[str, Any], notes: Sequence[str]) -> str:
    parts = [f"# {settings.get('name', 'benchmark')}\n"]
    for topic, title in TOPICS.items():
        own = [markdown(table) for table in tables if table.topic == topic]
        parts += [f"## {title}\n", *own] if own else []
    if notes:
        parts.append("## Missing and failed\n\n" + "\n".join(f"- {note}" for note in notes) + "\n")
    return "\n".join(parts)


def _figure(table: Table, key: str, reference: str, emphasised: Sequence[str]) -> str:
    if table.topic in ("average", "datasets"):
        return accuracy_curves(table, key, emphasised)
    if table.topic == "base-to-novel":
        return base_to_novel_bars(table, key, reference)
    if table.ranking is not None:
        return critical_difference_diagram(table.ranking, key, reference)
    return ""


def _summary(cells: Sequence[Cell], settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    main = [cell for cell in cells if cell.section == "main"]
    seconds = sum(cell.result["seconds"]["fit"] + cell.result["seconds"]["test"] for cell in cells)
    facts = [
        ("Backbones", ", ".join(unique(cell.backbone for cell in cells))),
        ("Datasets", _named(datasets_of(cells))),
        ("Methods", _named(methods_of(main))),
        ("Shots (K)", ", ".join(map(str, shots_of(cells)))),
        ("Seeds", ", ".join(map(str, sorted({cell.seed for cell in cells})))),
        ("Protocols", ", ".join(unique(cell.protocol for cell in cells))),
        ("Budgets", ", ".join(unique(cell.budget for cell in cells))),
        ("Tested on", f"{settings.get('split', 'test')} images"),
        ("Results", f"{len(cells)} fits"),
        ("Time in fits and tests", duration(seconds)),
    ]
    if "wall_seconds" in settings:
        facts.append(("Wall time", duration(settings["wall_seconds"])))
    return facts


def _named(names: Sequence[str]) -> str:
    return f"{len(names)}: {', '.join(names)}"


def duration(seconds: float) -> str:
    """Seconds in words: ``1 h 2 min``.

    Example:
        >>> duration(3725.0), duration(75.0), duration(1.5)
        ('1 h 2 min', '1 min 15 s', '1.5 s')
    """
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def flat_settings(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Nested settings as lines: ``methods[0].settings.epochs`` and its value.

    Example:
        >>> list(flat_settings({"data": [{"spec": "btmri"}], "seeds": [1, 2]}))
        [('data[0].spec', 'btmri'), ('seeds', '1, 2')]
    """
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flat_settings(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str) and _nested(value):
        for i, inner in enumerate(value):
            yield from flat_settings(inner, f"{path}[{i}]")
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield path, ", ".join(map(str, value))
    else:
        yield path, str(value) if not isinstance(value, Mapping) else "(none)"


def _nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, Mapping | list | tuple) for value in values)
