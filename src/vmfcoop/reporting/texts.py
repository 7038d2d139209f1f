"""Tables as Markdown and LaTeX, cells as CSV."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from vmfcoop.benchmark.results import Cell
from vmfcoop.benchmark.tables import Mark, Table


def markdown(table: Table) -> str:
    """A pipe table with its title and notes; best in bold, second underlined."""
    wrap: dict[Mark | None, str] = {"best": "**{}**", "second": "<u>{}</u>", None: "{}"}
    head = " | ".join(map(_markdown_text, (table.heading, *(column.title for column in table.columns))))
    lines = [f"### {_markdown_text(table.title)}", "", f"| {head} |"]
    lines.append("|---|" + "---:|" * len(table.columns))
    for label, texts in _printed(table, wrap, _markdown_text):
        lines.append(f"| {' | '.join((label, *texts))} |")
    lines += ["", *(f"- {_markdown_text(note)}" for note in table.notes)]
    return "\n".join(lines) + "\n"


def latex(table: Table) -> str:
    """A booktabs table with its title as caption; best in bold, second underlined, notes below."""
    wrap: dict[Mark | None, str] = {"best": r"\textbf{{{}}}", "second": r"\underline{{{}}}", None: "{}"}
    head = " & ".join(map(_latex_text, (table.heading, *(column.title for column in table.columns))))
    body: list[str] = []
    for i, (label, texts) in enumerate(_printed(table, wrap, _latex_text)):
        if i and table.rows[i].kind != table.rows[i - 1].kind:
            body.append(r"\midrule")
        body.append(f"{' & '.join((label, *texts))} \\\\")
    notes = " ".join(map(_latex_text, table.notes))
    slug = re.sub(r"[^a-z0-9]+", "-", f"{table.topic} {table.title}".lower()).strip("-")
    return "\n".join(
        [
            r"\begin{table}[t]",
            r"\centering\small",
            rf"\caption{{{_latex_text(table.title)}}}",
            rf"\label{{tab:{slug}}}",
            rf"\begin{{tabular}}{{l{'r' * len(table.columns)}}}",
            r"\toprule",
            f"{head} \\\\",
            r"\midrule",
            *body,
            r"\bottomrule",
            r"\end{tabular}",
            rf"\par\smallskip\footnotesize {notes}",
            r"\end{table}",
            "",
        ]
    )


def _printed(
    table: Table, wrap: Mapping[Mark | None, str], escape: Callable[[str], str]
) -> Iterable[tuple[str, list[str]]]:
    marks = table.marks()
    for i, row in enumerate(table.rows):
        texts = [wrap[marks.get((i, j))].format(escape(table.text(i, j))) for j in range(len(table.columns))]
        yield escape(row.label), texts


def _markdown_text(text: str) -> str:
    return re.sub(r"([\\|*_<>`\[\]])", r"\\\1", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "<": r"$<$",
    ">": r"$>$",
    **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}


def _latex_text(text: str) -> str:
    return "".join(_LATEX.get(sign, sign) for sign in text)


CELL_FIELDS = ("section", "protocol", "budget", "backbone", "data", "target", "method", "shots", "seed")
SCALARS = (
    "n",
    "accuracy",
    "balanced_accuracy",
    "macro_f1",
    "macro_auroc",
    "ece",
    "brier",
    "chance",
    "majority",
)
PARTS = ("test", "base", "novel", "source", "target")


def cells_csv(cells: Sequence[Cell]) -> str:
    """Long form: a line for every cell and part that was tested, with all scalar metrics as shares.

    ``part`` is ``test``, ``base``, ``novel``, ``source`` or ``target``. What is None is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*CELL_FIELDS, "part", *SCALARS, "steps", "fit_seconds", "test_seconds"])
    for cell in cells:
        about = [getattr(cell, field) for field in CELL_FIELDS]
        result, seconds = cell.result, cell.result["seconds"]
        for part in PARTS:
            if result.get(part) is not None:
                metrics = [result[part][key] for key in SCALARS]
                writer.writerow([*about, part, *metrics, result["steps"], seconds["fit"], seconds["test"]])
    return file.getvalue()
