"""The checks of saliency maps, for the terminal and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vmfcoop.explain.checks import MapChecks, SaliencyChecks
from vmfcoop.explain.estimates import Estimate


class Column(NamedTuple):
    """A number of the tables: its key, and its heading with the direction that is better."""

    key: str
    heading: str


DEPENDENCE = (
    Column("rank_gibberish", "ρ gibberish ↓"),
    Column("rank_wrong_class", "ρ wrong class ↓"),
    Column("rank_weights_25", "ρ weights 1/4"),
    Column("rank_weights_50", "ρ weights 1/2"),
    Column("rank_weights_75", "ρ weights 3/4"),
    Column("rank_weights_100", "ρ all weights → 0"),
)
CURVES = (
    Column("deletion", "deletion ↓"),
    Column("deletion_gain", "deletion minus random ↓"),
    Column("insertion", "insertion ↑"),
    Column("insertion_gain", "insertion minus random ↑"),
)
PLACES = (
    Column("energy", "energy inside ↑"),
    Column("energy_gain", "energy minus area ↑"),
    Column("pointing", "pointing ↑"),
    Column("iou", "IoU at 0.5 ↑"),
    Column("iou_set_best", "IoU, best of set*"),
    Column("iou_best", "IoU, best of image*"),
    Column("dice", "Dice at 0.5 ↑"),
    Column("dice_set_best", "Dice, best of set*"),
    Column("dice_best", "Dice, best of image*"),
)
OPTIMISTIC = "* Optimistic: the threshold was chosen with the masks in view, one for the set or one an image."
NO_MASKS = (
    "No masks are known of these images, so localisation is left out; --masks FOLDER takes some, under the "
    "images' relative paths and with the ending .png."
)


NAME_WIDTH, NUMBER_WIDTH = 25, 17
"""Characters of a column of names and of numbers with their interval, frame included."""


def checks_report(found: SaliencyChecks, width: int = 80) -> RenderableType:
    """Tables, verdicts and what they rest on, for a terminal of so many characters.

    Tables of more columns than fit are continued below, for a number that is cut is none.
    """
    parts = [
        ("Depends on prompt and weights (rank correlation with the map)", DEPENDENCE),
        ("Names the pixels that matter (areas under curves)", CURVES),
    ]
    if found.has_masks:
        parts.append(("Lies on the finding", PLACES))
    fitting = max(1, (width - NAME_WIDTH) // NUMBER_WIDTH)
    tables = [
        _terminal_table(title if start == 0 else "(continued)", columns[start : start + fitting], found)
        for title, columns in parts
        for start in range(0, len(columns), fitting)
    ]
    return Group(*tables, Text("\n".join(_notes(found))), Text("\n" + "\n".join(verdict_lines(found))))


def checks_markdown(found: SaliencyChecks, heading: str) -> str:
    """The same as Markdown."""
    parts = [
        f"# {heading}",
        *_notes(found),
        "## Verdict",
        "\n".join(f"- {line}" for line in verdict_lines(found)),
    ]
    for title, columns in (
        ("Prompt and weights", DEPENDENCE),
        ("Deletion and insertion", CURVES),
        ("Masks", PLACES),
    ):
        if columns is not PLACES or found.has_masks:
            parts += [f"## {title}", markdown_table(columns, found)]
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[Column], found: SaliencyChecks) -> str:
    """A pipe table: a row a kind of map, the mean and its interval in each cell."""
    rows = [("map", *(column.heading for column in columns))]
    rows += [
        (row.title, *(_cell(row.numbers.get(column.key), " ") for column in columns))
        for row in _rows(columns, found)
    ]
    lines = [f"| {' | '.join(cells)} |" for cells in rows]
    return "\n".join([lines[0], "|---|" + "---:|" * len(columns), *lines[1:]])


def verdict_lines(found: SaliencyChecks) -> list[str]:
    """A sentence a kind of map: that it passes, or what it fails, by criterion and number."""
    return [f"{name}: {_verdict(checks)}" for name, checks in found.methods.items()]


def _verdict(checks: MapChecks) -> str:
    if checks.verdict is None or checks.verdict.passes:
        return "PASSES"
    faults = [
        f"{criterion.name} (it {criterion.failure}: {_cell(checks.numbers[criterion.number], ' ')})"
        for criterion in checks.verdict.failed
    ]
    return f"FAILS {', '.join(faults)}"


def _notes(found: SaliencyChecks) -> list[str]:
    """What the numbers rest on."""
    settings = found.settings
    against = {"rest": "each class against the rest", "none": "the logit of each class alone"}
    contrast = against.get(settings["contrast"], f"each class against {settings['contrast']}")
    notes = [
        f"{len(found.files)} test images, the true class explained ({contrast}); in brackets the 95 % "
        "interval of the mean over images. A criterion is met where the whole interval is on its right side.",
    ]
    if settings["stand_ins"]["kind"] == "directions":
        notes.append("The classifier takes no new names: random directions stand in for gibberish.")
    return [*notes, OPTIMISTIC if found.has_masks else NO_MASKS]


def _terminal_table(title: str, columns: Sequence[Column], found: SaliencyChecks) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("map")
    for column in columns:
        table.add_column(column.heading, justify="right", min_width=NUMBER_WIDTH - 3)
    for row in _rows(columns, found):
        table.add_row(_marked(row), *(_cell(row.numbers.get(column.key), "\n") for column in columns))
    return table


def _rows(columns: Sequence[Column], found: SaliencyChecks) -> list[MapChecks]:
    every = (*found.methods.values(), *found.baselines.values())
    return [row for row in every if any(column.key in row.numbers for column in columns)]


def _marked(row: MapChecks) -> Text:
    if row.verdict is None:
        return Text(row.title, "dim")
    return Text(f"{'✓' if row.verdict.passes else '✗'} {row.title}", "green" if row.verdict.passes else "red")


def _cell(number: Estimate | None, gap: str) -> str:
    """``0.42 [0.35, 0.48]``; a dash where nothing was measured."""
    if number is None or number.mean is None:
        return "-"
    ends = "" if number.low is None or number.high is None else f"{gap}[{number.low:.2f}, {number.high:.2f}]"
    return f"{number.mean:.2f}{ends}".replace("-0.00", "0.00")
