"""Description banks in the terminal: what they say, what is wrong with them, how they lie on a sphere."""

from __future__ import annotations

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


def texts_table(title: str, descriptions: Mapping[str, Sequence[str]]) -> Table:
    """Numbers of sentences and words, with the first sentence of each class."""
    table = Table("class", title=escape(title), title_justify="left")
    table.add_column("sentences", justify="right")
    table.add_column("words", justify="right", no_wrap=True)
    table.add_column("the first")
    for name, texts in descriptions.items():
        lengths = [len(text.split()) for text in texts] or [0]
        spread = f"{min(lengths)} / {mean(lengths):.1f} / {max(lengths)}"
        table.add_row(escape(name), str(len(texts)), spread, escape(texts[0] if texts else "-"))
    table.caption, table.caption_justify = "words: fewest / mean / most of a sentence", "left"
    return table


def geometry_report(geometry: BankGeometry, descriptions: Mapping[str, Sequence[str]]) -> Group:
    """The laws of the classes, cosines between them, the sentences that stand out, and what it means."""
    parts: list[RenderableType] = [_laws_table(geometry)]
    if len(geometry.classes) > 1:
        parts += [
            _cosine_table("Cosines between mean directions", geometry, geometry.mean_cosines),
            _cosine_table("Cosines between unified anchors", geometry, geometry.anchor_cosines),
        ]
    for entry in geometry.classes:
        parts.append(_sentences(entry, descriptions[entry.name], geometry.context_length))
    parts.append(Text(geometry.advice()))
    return Group(*(item for part in parts for item in (part, "")))


def _laws_table(geometry: BankGeometry) -> Table:
    title = f"Von Mises-Fisher laws on {geometry.backbone}, d = {geometry.dim}"
    table = Table("class", title=escape(title), title_justify="left")
    for heading in ("n", "R", "κ", "κ debiased", "anchor moved", "own nearest", "outliers", "strays", "cut"):
        table.add_column(heading, justify="right")
    for entry in geometry.classes:
        table.add_row(
            escape(entry.name),
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
    table.caption_justify = "left"
    return table


def _cosine_table(title: str, geometry: BankGeometry, cosines: Tensor) -> Table:
    table = Table("class", title=title, title_justify="left")
    for entry in geometry.classes:
        table.add_column(escape(entry.name), justify="right")
    for i, entry in enumerate(geometry.classes):
        row = [f"{float(value):.3f}" if i != j else "" for j, value in enumerate(cosines[i])]
        table.add_row(escape(entry.name), *row)
    return table


def _sentences(entry: ClassGeometry, texts: Sequence[str], context_length: int) -> Group:
    lines = [Text(entry.name, "bold")]
    kinds: list[tuple[str, list[str]]] = [
        ("most typical", [texts[entry.most_typical]]),
        ("least typical", [texts[entry.least_typical]]),
        ("outlier", [texts[i] for i in entry.outliers]),
        ("stray", [f"{texts[i]} (nearer to {other})" for i, other in entry.strays.items()]),
        (f"cut after {context_length} tokens", [texts[i] for i in entry.truncated]),
    ]
    for kind, found in kinds:
        lines += [Text(f"  {kind}: {text}") for text in found[:SHOWN_PER_KIND]]
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
            table.add_row(*map(escape, cells))
        parts.append(table)
        for kind, count in Counter(finding.kind for finding in faults).items():
            parts.append(Text(f"{count} x {kind}: {FAULTS[kind]}"))
    notes = Counter((finding.kind, finding.class_name) for finding in findings if not finding.is_fault)
    for (kind, name), count in notes.items():
        parts.append(Text(f"Note: {name}: {count} x {kind}: {NOTES[kind]}", "dim"))
    if not faults:
        parts.append(Text("No faults."))
    return Group(*parts)


def difference_report(differences: Sequence[ClassDifference], comparison: BankComparison | None) -> Group:
    """Two banks beside each other: sentences, and the geometry where a backbone was given."""
    table = Table("class", title="From A to B", title_justify="left")
    headings = ("n in A", "n in B", "kept", "added", "removed")
    for heading in headings:
        table.add_column(heading, justify="right")
    for entry in differences:
        numbers = (*entry.counts, len(entry.kept), len(entry.added), len(entry.removed))
        table.add_row(escape(entry.name), *map(str, numbers))
    parts: list[RenderableType] = [table]
    for entry in differences:
        parts += _changes(entry)
    if comparison is not None:
        parts += ["", _comparison_table(comparison), "", Text(comparison.verdict())]
    return Group(*parts)


def _changes(entry: ClassDifference) -> list[RenderableType]:
    lines: list[RenderableType] = []
    for sign, style, texts in (("-", "red", entry.removed), ("+", "green", entry.added)):
        lines += [Text(f"{sign} {entry.name}: {text}", style) for text in texts[:SHOWN_PER_KIND]]
        if len(texts) > SHOWN_PER_KIND:
            more = len(texts) - SHOWN_PER_KIND
            lines.append(Text(f"{sign} {entry.name}: {more} more (--json lists them)", "dim"))
    return lines


def _comparison_table(comparison: BankComparison) -> Table:
    table = Table("class", title=escape(f"On {comparison.a.backbone}"), title_justify="left")
    for heading in (
        "cosine A, B",
        "κ in A",
        "κ in B",
        "anchor moved",
        "own nearest in A",
        "own nearest in B",
    ):
        table.add_column(heading, justify="right")
    for entry, a, b in zip(comparison.classes, comparison.a.classes, comparison.b.classes, strict=True):
        table.add_row(
            escape(entry.name),
            f"{entry.cosine:.3f}",
            *(f"{kappa:.1f}" for kappa in entry.concentrations),
            f"{entry.anchor_shift:.1f}°",
            f"{a.own_accuracy:.0%}",
            f"{b.own_accuracy:.0%}",
        )
    table.caption, table.caption_justify = "cosine A, B: between the class's mean directions", "left"
    return table
