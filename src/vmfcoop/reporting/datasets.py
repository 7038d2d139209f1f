"""Datasets for the terminal: the list of all, and what is known of one."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vmfcoop.data.phantoms.core import PhantomDataset
from vmfcoop.data.registry import MEDMNIST_SIZE, DatasetInfo, SplitSizes


def dataset_list(
    infos: Iterable[DatasetInfo], phantoms: Iterable[PhantomDataset], here: set[str]
) -> RenderableType:
    """Tables of all datasets by collection, for 80 columns.

    Args:
        infos: Of the registry, sizes of one MedMNIST set included.
        phantoms: The drawn ones.
        here: Keys of the datasets that were fetched or imported.
    """
    infos = list(infos)
    paper = [info for info in infos if info.collection == "paper"]
    medmnist = [info for info in infos if info.collection == "medmnist" and info.variant_of is None]
    title = f"MedMNIST at {MEDMNIST_SIZE} pixels; KEY@28, KEY@64 and KEY@128 for smaller"
    return Group(
        _public_table("Datasets of the paper", paper, infos, here),
        _public_table(title, medmnist, infos, here),
        _phantom_table(list(phantoms)),
        Text("Yellow: the gravest known fault; `vmfcoop data show KEY` has all of them.", "dim"),
    )


def _public_table(title: str, shown: list[DatasetInfo], infos: list[DatasetInfo], here: set[str]) -> Table:
    table = _table(title, "modality\norgan", "classes", "train\nval\ntest", "licence", "here")
    for info in shown:
        name = Text.assemble((info.key, "bold"), "\n", info.title)
        if info.caveat:
            name.append(f"\n{info.caveat}", "yellow")
        variants = [i for i in infos if info.key in (i.key, i.variant_of) and i.key in here]
        table.add_row(
            name,
            f"{info.modality}\n{info.organ}",
            str(len(info.class_names)),
            _stacked(info.splits or info.file_splits),
            _two_lines(info.licence if info.access == "free" else "on application"),
            "\n".join(str(i.size) if i.size else "yes" for i in variants) or "-",
        )
    return table


def _phantom_table(phantoms: list[PhantomDataset]) -> Table:
    table = _table("Phantoms, drawn when first used", "classes")
    for phantom in phantoms:
        table.add_row(
            Text.assemble((phantom.key, "bold"), "\n", phantom.title), ", ".join(phantom.class_names)
        )
    return table


def _table(title: str, *columns: str) -> Table:
    """A table whose first column takes what the others leave of the terminal."""
    table = Table(
        title=title,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        pad_edge=False,
        expand=True,
    )
    table.add_column("dataset", ratio=1, min_width=27)
    for column in columns:
        right = column.startswith(("train", "classes")) and len(columns) > 1
        table.add_column(column, justify="right" if right else "left", max_width=40 if not right else None)
    return table


def _two_lines(text: str, width: int = 13) -> str:
    return "\n".join(textwrap.wrap(text, width))


def _stacked(splits: SplitSizes | None) -> str:
    if splits is None:
        return "-"
    return f"{splits.train:,}\n{splits.val:,}\n{splits.test:,}"


def dataset_sheet(info: DatasetInfo, source: Mapping[str, Any] | None, place: str) -> RenderableType:
    """All that is known of one public dataset.

    Args:
        info: Of the registry.
        source: Its ``source.json`` if it is here.
        place: Its folder, or how to get it.
    """
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    classes = "\n".join(f"{label}  {name}" for label, name in enumerate(info.class_names))
    proposed = "\n(a proposal: the publisher names none)" if info.classes_proposed else ""
    rows = {
        "title": info.title,
        "modality": f"{info.modality}, {info.organ}" + (f", {info.size} pixels" if info.size else ""),
        "classes": classes + proposed,
        "images": images_sentence(info, source),
        "source": info.source,
        "archive": _archive(info),
        "layout": info.layout,
        "licence": f"{info.licence}. {info.restrictions}",
        "access": info.access_text or "free",
        "cite": info.citation,
        "known faults": "\n".join(f"- {fault}" for fault in info.faults) or "none known to us",
        "here": place,
    }
    if source and source.get("remarks"):
        rows["remarks"] = "\n".join(f"- {remark}" for remark in source["remarks"])
    for name, value in rows.items():
        table.add_row(name, escape(value))
    return Group(Text(info.key, "bold"), table)


def images_sentence(info: DatasetInfo, source: Mapping[str, Any] | None) -> str:
    """Sizes of the splits: of the data that are here, else of the registry."""
    found = (source or {}).get("splits")
    splits = SplitSizes.model_validate(found) if found else info.splits
    if splits is not None:
        text = f"train {splits.train:,}, val {splits.val:,}, test {splits.test:,}"
        left_out = sum((source or {}).get("left_out", {}).values())
        return text + (f"; {left_out:,} left out" if left_out else "")
    if info.file_splits is not None:
        published = info.file_splits
        return (
            f"of the file's train {published.train:,}, val {published.val:,}, test {published.test:,} those "
            "with no finding or one"
        )
    return "as many as you bring"


def _archive(info: DatasetInfo) -> str:
    if info.archive is None:
        return "none to fetch"
    if info.archive.kind == "hub":
        where = f"{info.archive.repo}/resolve/{info.archive.revision}/{info.archive.file}"
        return f"https://huggingface.co/datasets/{where}"
    return str(info.archive.url)
