"""A benchmark's report: one HTML page that needs no network, and its tables as Markdown, LaTeX and CSV."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from vmfcoop.reporting.page import duration, flat_settings, page_template
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
