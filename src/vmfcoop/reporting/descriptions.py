"""Description banks in the terminal: what they say, what is wrong with them, how they lie on a sphere."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vmfcoop.descriptions.quality import FAULTS, NOTES, Finding

if TYPE_CHECKING:
    from torch import Tensor

    from vmfcoop.descriptions.compare import BankComparison, ClassDifference
    from vmfcoop.descriptions.geometry import BankGeometry, ClassGeometry

SHOWN_PER_KIND = 5
"""Sentences listed of one kind; the rest is counted."""

LONGEST_SHOWN = 400
"""Characters shown of a sentence."""

LARGEST_MATRIX = 10
"""Most classes whose cosines are shown as a matrix; of more, the nearest class of each is."""


def shown(text: str) -> str:
    """A sentence or a name as a terminal can take it: without signs that it obeys, and not endless."""
    printable = "".join(" " if unicodedata.category(sign) in ("Cc", "Cf", "Cs") else sign for sign in text)
    return printable if len(printable) <= LONGEST_SHOWN else printable[: LONGEST_SHOWN - 3] + "..."


def _class_table(title: str, *headings: str) -> Table:
    """A table with a row a class, its name never cut, and columns of numbers."""
    # Ten columns fit 80 signs only without the spaces beside the lines.
    padding = (0, 1 if len(headings) < 6 else 0)
    table = Table(title=escape(title), title_justify="left", caption_justify="left", padding=padding)
    table.add_column("class", overflow="fold", min_width=10)
    for column in headings:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _cell(text: str) -> str:
    return escape(shown(text))


def texts_table(title: str, descriptions: Mapping[str, Sequence[str]]) -> Table:
    """Numbers of sentences and words, with the first sentence of each class."""
    table = _class_table(title, "sentences", "words")
    table.add_column("the first")
    for name, texts in descriptions.items():
        lengths = [len(text.split()) for text in texts] or [0]
        spread = f"{min(lengths)} / {mean(lengths):.1f} / {max(lengths)}"
        table.add_row(_cell(name), str(len(texts)), spread, _cell(texts[0] if texts else "-"))
    table.caption = "words: fewest / mean / most of a sentence"
    return table


def geometry_report(geometry: BankGeometry, descriptions: Mapping[str, Sequence[str]]) -> Group:
    """The laws of the classes, cosines between them, the sentences that stand out, and what it means."""
    parts: list[RenderableType] = [_laws_table(geometry)]
    if len(geometry.classes) > 1:
        table = _cosine_table if len(geometry.classes) <= LARGEST_MATRIX else _nearest_table
        parts += [
            table("Cosines between mean directions", geometry, geometry.mean_cosines),
            table("Cosines between unified anchors", geometry, geometry.anchor_cosines),
        ]
    for entry in geometry.classes:
        parts.append(_sentences(entry, descriptions[entry.name], geometry.context_length))
    parts.append(Text(geometry.advice()))
    return Group(*(item for part in parts for item in (part, "")))


def _laws_table(geometry: BankGeometry) -> Table:
    title = f"Von Mises-Fisher laws on {geometry.backbone}, d = {geometry.dim}"
    headings = ("n", "R", "κ", "κ debiased", "anchor moved", "own nearest", "outliers", "strays", "cut")
    table = _class_table(title, *headings)
    for entry in geometry.classes:
        table.add_row(
            _cell(entry.name),
            str(entry.count),
            f"{entry.resultant_length:.3f}",
            f"{entry.concentration:.1f}",
            f"{entry.concentration_debiased:.1f}",
            f"{entry.anchor_shift:.1f}°",
            f"{entry.own_accuracy:.0%}",
            str(len(entry.outliers)),
            str(len(entry.strays)),
            str(len(entry.truncated)),
        )
    table.caption = (
        f"vocabulary: R = {geometry.vocabulary_resultant_length:.3f}, "
        f"κ = {geometry.vocabulary_concentration:.1f}. own nearest: share of sentences nearest to the mean "
        "direction of their class, which is computed without them; strays: the others. outliers: log-density "
        "under the others of the class more than 3.5 robust deviations below the median."
    )
    return table


def _cosine_table(title: str, geometry: BankGeometry, cosines: Tensor) -> Table:
    table = _class_table(title, *(str(i + 1) for i in range(len(cosines))))
    for i, entry in enumerate(geometry.classes):
        row = [f"{float(value):.3f}" if i != j else "" for j, value in enumerate(cosines[i])]
        table.add_row(f"{i + 1} {_cell(entry.name)}", *row)
    return table


def _nearest_table(title: str, geometry: BankGeometry, cosines: Tensor) -> Table:
    table = _class_table(f"{title}: the largest of each class", "cosine", "to")
    for i, entry in enumerate(geometry.classes):
        others = cosines[i].clone()
        others[i] = -2.0
        nearest = int(others.argmax())
        table.add_row(
            _cell(entry.name), f"{float(others[nearest]):.3f}", _cell(geometry.classes[nearest].name)
        )
    return table


def _sentences(entry: ClassGeometry, texts: Sequence[str], context_length: int) -> Group:
    lines = [Text(shown(entry.name), "bold")]
    kinds: list[tuple[str, list[str]]] = [
        ("most typical", [texts[entry.most_typical]]),
        ("least typical", [texts[entry.least_typical]]),
        ("outlier", [texts[i] for i in entry.outliers]),
        ("stray", [f"{texts[i]} (nearer to {other})" for i, other in entry.strays.items()]),
        (f"cut after {context_length} tokens", [texts[i] for i in entry.truncated]),
    ]
    for kind, found in kinds:
        lines += [Text(f"  {kind}: {shown(text)}") for text in found[:SHOWN_PER_KIND]]
        if len(found) > SHOWN_PER_KIND:
            lines.append(Text(f"  {kind}: {len(found) - SHOWN_PER_KIND} more (--json lists them)", "dim"))
    return Group(*lines)


def findings_report(findings: Sequence[Finding]) -> Group:
    """What a check found: faults one by one, notes by class and kind."""
    faults = [finding for finding in findings if finding.is_fault]
    parts: list[RenderableType] = []
    if faults:
        table = Table("fault", "class", "no.", "what", "sentence", title_justify="left")
        for finding in faults:
            number = "" if finding.position is None else str(finding.position)
            cells = (finding.kind, finding.class_name, number, finding.detail, finding.text)
            table.add_row(*map(_cell, cells))
        parts.append(table)
        for kind, count in Counter(finding.kind for finding in faults).items():
            parts.append(Text(f"{count} x {kind}: {FAULTS[kind]}"))
    notes = Counter((finding.kind, finding.class_name) for finding in findings if not finding.is_fault)
    for (kind, name), count in notes.items():
        parts.append(Text(f"Note: {shown(name)}: {count} x {kind}: {NOTES[kind]}", "dim"))
    if not faults:
        parts.append(Text("No faults."))
    return Group(*parts)


def difference_report(differences: Sequence[ClassDifference], comparison: BankComparison | None) -> Group:
    """Two banks beside each other: sentences, and the geometry where a backbone was given."""
    table = _class_table("From A to B", "n in A", "n in B", "kept", "added", "removed")
    for entry in differences:
        numbers = (*entry.counts, len(entry.kept), len(entry.added), len(entry.removed))
        table.add_row(_cell(entry.name), *map(str, numbers))
    parts: list[RenderableType] = [table]
    for entry in differences:
        parts += _changes(entry)
    if comparison is not None:
        parts += ["", _comparison_table(comparison), "", Text(comparison.verdict())]
    return Group(*parts)


def _changes(entry: ClassDifference) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for sign, style, texts in (("-", "red", entry.removed), ("+", "green", entry.added)):
        lines += [Text(shown(f"{sign} {entry.name}: {text}"), style) for text in texts[:SHOWN_PER_KIND]]
        if len(texts) > SHOWN_PER_KIND:
            more = len(texts) - SHOWN_PER_KIND
            lines.append(Text(f"{sign} {shown(entry.name)}: {more} more (--json lists them)", "dim"))
    return lines


def _comparison_table(comparison: BankComparison) -> Table:
    headings = ("cosine A, B", "κ in A", "κ in B", "anchor moved", "own nearest in A", "own nearest in B")
    table = _class_table(f"On {comparison.a.backbone}", *headings)
    for entry, a, b in zip(comparison.classes, comparison.a.classes, comparison.b.classes, strict=True):
        table.add_row(
            _cell(entry.name),
            f"{entry.cosine:.3f}",
            *(f"{kappa:.1f}" for kappa in entry.concentrations),
            f"{entry.anchor_shift:.1f}°",
            f"{a.own_accuracy:.0%}",
            f"{b.own_accuracy:.0%}",
        )
    table.caption = "cosine A, B: between the class's mean directions"
    return table
