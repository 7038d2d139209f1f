"""Readers of CSV files: a dataset (``path,label[,group][,split]``) and the groups of a dataset's images."""

from __future__ import annotations

import csv
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from vmfcoop.data.listing import SPLIT_ALIASES, Listing, Row, check_files_exist
from vmfcoop.errors import UserError


class _Record(NamedTuple):
    line: int
    values: dict[str, str]


def list_table(path: Path) -> Listing:
    """List the images of a CSV with the columns path and label, and perhaps group and split.

    Paths count from the CSV's folder. Classes have the order of their sorted labels, numbers by value.

    Raises:
        UserError: Columns or values are missing, a path occurs twice, or images are missing.
    """
    records = _read_csv(path, [("path", "label")])
    keys = _sorted_labels({record.values["label"] for record in records})
    has_splits, has_groups = "split" in records[0].values, "group" in records[0].values
    lines: dict[str, int] = {}
    rows = []
    for line, values in records:
        file = Path(values["path"]).as_posix()
        if lines.setdefault(file, line) != line:
            raise UserError(f"{path} lists {file} on lines {lines[file]} and {line}; keep one of them.")
        split = _split_name(path, line, values["split"]) if has_splits else None
        rows.append(Row(file, keys.index(values["label"]), split, values.get("group")))
    check_files_exist(path, path.parent, [row.file for row in rows])
    return Listing(path, path.parent, keys, tuple(rows), has_splits, has_groups)


def read_groups(path: Path) -> dict[str, str]:
    """Group of each image by its path relative to the dataset's root, accents composed (Unicode NFC).

    The columns are ``class,file,group``, where class is the folder and file the path in it, or
    ``path,group``.

    Raises:
        UserError: The file is missing or no such CSV, or an image has two groups.
    """
    groups: dict[str, str] = {}
    for line, values in _read_csv(path, [("class", "file", "group"), ("path", "group")]):
        file = Path(values["path"]) if "path" in values else Path(values["class"]) / values["file"]
        name = unicodedata.normalize("NFC", file.as_posix())
        if groups.setdefault(name, values["group"]) != values["group"]:
            raise UserError(f"{path} gives {name} a second group on line {line}; keep one of them.")
    return groups


def _read_csv(path: Path, column_choices: Sequence[tuple[str, ...]]) -> list[_Record]:
    """Rows with their line numbers; every value of a needed or optional column is non-empty."""
    header, body = _parse_csv(path)
    if not any(set(columns) <= set(header) for columns in column_choices):
        needed = " or ".join(",".join(columns) for columns in column_choices)
        raise UserError(f"{path} has the columns {','.join(header)}; give it a header with {needed}.")
    if not body:
        raise UserError(f"{path} has a header but no rows; add a row for each image.")
    known = {"path", "label", "group", "split", "class", "file"}
    records = []
    for line, cells in body:
        values = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        empty = [column for column in header if column in known and not values.get(column)]
        if empty:
            raise UserError(f"{path} has no {empty[0]} on line {line}; fill it in or remove the line.")
        records.append(_Record(line, values))
    return records


def _parse_csv(path: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    try:
        # utf-8-sig: Excel puts a byte order mark before the first column's name.
        text = path.read_text(encoding="utf-8-sig")
        # Excel writes semicolons where the comma is the decimal sign.
        delimiter = max(",;\t", key=text.partition("\n")[0].count)
        reader = csv.reader(text.splitlines(), delimiter=delimiter, strict=True)
        lines = [(reader.line_num, cells) for cells in reader if any(cell.strip() for cell in cells)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(
            f"{path} cannot be read as a CSV in UTF-8; check that it exists and is text."
        ) from error
    if not lines:
        raise UserError(f"{path} is empty; give it a header and a row for each image.")
    return [name.strip().lower() for name in lines[0][1]], lines[1:]


def _sorted_labels(labels: set[str]) -> tuple[str, ...]:
    if all(label.isdecimal() for label in labels):
        return tuple(sorted(labels, key=lambda label: (int(label), label)))
    return tuple(sorted(labels))


def _split_name(path: Path, line: int, value: str) -> str:
    split = SPLIT_ALIASES.get(value.lower())
    if split is None:
        raise UserError(f"{path} has the split '{value}' on line {line}; write train, val or test.")
    return split
