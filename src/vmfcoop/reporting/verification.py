"""What was found in a dataset, and what was imported, for the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vmfcoop.data.importing import Imported
from vmfcoop.data.splits import SPLITS
from vmfcoop.data.verify import Leak, Remark, Verification

SHOWN = 10
"""Odd images, files and pairs shown."""

UNREADABLE_SHOWN = 100
"""Unreadable images shown: each has to be mended, but a folder that was moved must not fill the screen."""

_ORIGINS = {
    "given": "the split comes with the data",
    "made": "the split was made at import",
    "drawn": "the split is drawn by fractions and seed",
}


def verification_report(found: Verification) -> RenderableType:
    """Counts and leaks by class, findings, images and pairs to look at, known faults, what to do."""
    parts: list[RenderableType] = [_class_table(found), _sentences(found)]
    if found.unreadable:
        parts.append(_remarks("Cannot be read", found.unreadable, UNREADABLE_SHOWN))
    if found.overlaps:
        parts.append(_overlaps(found))
    if found.odd:
        parts.append(_remarks("Unlike the rest", found.odd, SHOWN))
    if found.info and found.info.faults:
        parts.append(_bullets("Known faults of the published dataset", found.info.faults))
    parts.append(Text.assemble(("What to do: ", "bold"), found.advice))
    return Group(*(part for each in parts for part in (each, "")))


def _class_table(found: Verification) -> Table:
    table = Table(
        "class",
        *(f"\n{split}" for split in SPLITS),
        "test with twin\nin train",
        "in train\nor val",
        "twin's label\nis right",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title=f"{escape(found.dataset.name)}: {len(found.dataset):,} images; {_ORIGINS[found.splits]}",
        title_justify="left",
        title_style="bold",
    )
    for column in table.columns[1:]:
        column.justify = "right"
    counts = found.dataset.counts()
    for name, leak in found.leak_by_class.items():
        table.add_row(escape(name), *(f"{counts[split][name]:,}" for split in SPLITS), *_leak_cells(leak))
    table.add_section()
    totals = (f"{sum(counts[split].values()):,}" for split in SPLITS)
    table.add_row("all", *totals, *_leak_cells(found.leak), style="bold")
    return table


def _leak_cells(leak: Leak) -> tuple[str, str, str]:
    return (
        _with_share(leak.twin_in_train, leak.images),
        _with_share(leak.twin_in_train_or_val, leak.images),
        _with_share(leak.copied_right, leak.twin_in_train),
    )


def _with_share(part: int, whole: int) -> str:
    return f"{part:,} ({part / whole:.1%})" if whole else "-"


def _sentences(found: Verification) -> Text:
    text = Text()
    for finding in found.findings:
        text.append("! " if finding.doubtful else "- ", "bold red" if finding.doubtful else "")
        text.append(f"{finding.text}\n")
    turned = (
        "flipped and turned copies included" if found.flips else "--flips finds flipped and turned copies"
    )
    text.append(f"Near twins: similarity of at least {found.threshold:g}; {turned}.", "dim")
    return text


def _remarks(title: str, remarks: Sequence[Remark], shown: int) -> Text:
    lines = [f"{remark.image} ({remark.split}): {remark.reason}" for remark in remarks[:shown]]
    if len(remarks) > shown:
        lines.append(f"... and {len(remarks) - shown:,} more; --json lists them all")
    return _bullets(title, lines)


def _bullets(title: str, lines: Sequence[str]) -> Text:
    return Text.assemble((title, "bold"), *(f"\n- {line}" for line in lines))


def _overlaps(found: Verification) -> Text:
    lines = [
        f"{pair.image_a} ({pair.class_a}, {pair.split_a}), {pair.image_b} ({pair.class_b}, {pair.split_b}): "
        + (f"similarity {pair.similarity:.3f}" if pair.kind == "near" else pair.kind)
        for pair in found.overlaps[:SHOWN]
    ]
    if found.n_overlaps > SHOWN:
        lines.append(f"... and {found.n_overlaps - SHOWN:,} more; --out FILE writes all pairs")
    return _bullets("Twins under two classes", lines)


def import_report(imported: Imported) -> RenderableType:
    """Where an imported dataset lies, its sizes, what was left out, what to know."""
    sizes = ", ".join(f"{split} {count:,}" for split, count in imported.splits.items())
    groups = "" if imported.groups is None else f", in {imported.groups:,} groups"
    lines = [
        f"{imported.key} is here now, in {imported.folder}",
        f"Images: {imported.images:,} ({sizes}){groups}.",
        f"Classes: {', '.join(imported.class_names)}.",
        *imported.remarks,
    ]
    parts = [Text("\n".join(lines))]
    if imported.skipped:
        skipped = [f"{image}: {reason}" for image, reason in imported.skipped.items()]
        parts.append(_bullets(f"Left out, as they cannot be read: {len(skipped):,}", skipped))
    return Group(*parts)
