"""Published backbones for the terminal: the list of all, and what is known of one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from vmfcoop.backbones.catalogue import PublishedBackbone

UNKNOWN = "-"
"""What stands in the list for a number that the catalogue does not have."""

HUB = "https://huggingface.co"

_KEY_WIDTH = 22
_COLUMNS = {"weights": 9, "pixels": 8, "tokens": 8, "d": 6, "here": 6}
"""Headings after the key's, and the width of each."""


def backbones_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """All published backbones by what they were trained on, for 80 columns and more.

    Each has a line of numbers, and below it the title, the licence with its limits, and the page: an address
    of 70 signs has no place in a column.

    Args:
        rows: of :func:`vmfcoop.backbones.catalogue.listing`.
    """
    parts: list[RenderableType] = []
    for domain, group in groupby(rows, key=lambda row: row["domain"]):
        heading = str(domain).capitalize()
        parts += [Text(heading, "bold underline"), _line("backbone", *_COLUMNS, style="dim")]
        for row in group:
            parts += [*_entry(row), Text()]
    legend = (
        f"weights: millions in both towers; tokens: the longest text; d: width of the features; {UNKNOWN}: "
        "see the page.\n`vmfcoop backbones show KEY` says how to get one, with and without internet."
    )
    return Group(*parts, Text(legend, "dim"))


def _entry(row: Mapping[str, Any]) -> Iterator[RenderableType]:
    numbers = [_or_unknown(row[name]) for name in ("resolution", "context_length", "dim")]
    yield _line(
        row["key"], _millions(row["parameters"]), *numbers, "yes" if row["here"] else "no", style="bold"
    )
    gate = (" The terms must be accepted first.", "yellow") if row["gated"] else ""
    licence = Text.assemble("Licence: ", (f"{row['licence']}. ", "cyan"), row["limits"], gate)
    for text in (Text(row["title"]), licence, Text(row["source"].removeprefix("https://"), "dim")):
        yield Padding(text, (0, 0, 0, 2))


def _line(key: str, *cells: str, style: str) -> Table:
    """A line of the list: every one has the same columns."""
    grid = Table.grid()
    grid.add_column(width=_KEY_WIDTH, no_wrap=True)
    for width in _COLUMNS.values():
        grid.add_column(width=width, justify="right", no_wrap=True)
    grid.add_row(Text(key, style), *(Text(cell, style if style == "dim" else "") for cell in cells))
    return grid


def _millions(parameters: float | None) -> str:
    if parameters is None:
        return UNKNOWN
    return f"{parameters:.0f} M" if parameters >= 10 else f"{parameters:.1f} M"


def _or_unknown(value: int | None) -> str:
    return UNKNOWN if value is None else str(value)


def backbone_card(entry: PublishedBackbone) -> RenderableType:
    """All that is known of a backbone that is not here: facts, licence, where it is and how to get it."""
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column()
    facts = {
        "title": entry.title,
        "trained on": entry.domain,
        "weights": _known(entry.parameters, "million in both towers"),
        "image": _known(entry.resolution, "pixels high and wide"),
        "text": _known(entry.context_length, "tokens at most"),
        "features": _known(entry.dim, "numbers"),
        "format": _format(entry),
        "licence": f"{entry.licence}. {entry.limits}",
        "cite": entry.citation or "see source",
        "note": entry.note,
    }
    for name, fact in facts.items():
        if fact:
            table.add_row(name, Text(fact))
    # Addresses stand at the left edge: in a column they would be cut where nobody can copy them.
    places = [
        line for title, where in _places(entry).items() for line in (Text(title, "bold"), *map(Text, where))
    ]
    return Group(Text(entry.key, "bold"), table, *places, Text("To get it", "bold"), Text(how_to_get(entry)))


def _known(value: float | None, unit: str) -> str:
    return "see source" if value is None else f"{value:g} {unit}"


def _format(entry: PublishedBackbone) -> str:
    if entry.checkpoint is None:
        return entry.family
    return f"{entry.family}: {entry.checkpoint}, a bare checkpoint of {entry.architecture}"


def _places(entry: PublishedBackbone) -> dict[str, list[str]]:
    """The addresses of a backbone by what is there."""
    places = {"Page": [entry.source]}
    if entry.terms is not None:
        places["Text of the licence"] = [entry.terms]
    if entry.repository is not None and entry.source != f"{HUB}/{entry.repository}":
        places["Files"] = [f"{HUB}/{entry.repository}"]
    if entry.model is not None:
        places["Files"] = [f"{entry.model} of open_clip's list"]
    if entry.urls:
        folder = entry.urls[0].rpartition("/")[0]
        places[f"Files, below {folder}/"] = [f"  {url.removeprefix(folder + '/')}" for url in entry.urls]
    if entry.tokenizer is not None:
        places["Tokenizer and config.json of the text tower"] = [f"{HUB}/{entry.tokenizer}"]
    return places


def how_to_get(entry: PublishedBackbone) -> str:
    """What to do to have a backbone, with and without internet, a sentence a line."""
    if entry.embedded:
        return f"It comes with the package: --backbone {entry.key}"
    lines = [
        f"With internet: vmfcoop backbones fetch {entry.key}, then --backbone {entry.key}.",
        f"Without: vmfcoop backbones fetch {entry.key} --to FOLDER on a connected machine, copy the folder, "
        "then --backbone dir:FOLDER.",
    ]
    if entry.gated:
        first = "First: log in to the hub, accept the terms on the page, make a token and set HF_TOKEN to it."
        lines.insert(0, first)
    return "\n".join(lines)
