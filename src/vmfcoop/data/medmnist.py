"""MedMNIST's npz files as PNG files in class folders with a split file, which ``load_dataset`` reads.

The arrays are read row by row: at 224 pixels the largest would take 13 GB of memory as a whole.
"""

from __future__ import annotations

import json
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from vmfcoop.data.archives import DamagedArchiveError
from vmfcoop.data.downloads import require_space
from vmfcoop.data.splits import SPLITS
from vmfcoop.errors import UserError
from vmfcoop.files import write_atomically
from vmfcoop.progress import ProgressReport, no_progress

NO_FINDING = "no finding"
"""First class of a multi-label set that is read as one label an image."""


class Written(NamedTuple):
    """What was written: path of the split file in the folder, and images left out of each split."""

    split_file: str
    left_out: dict[str, int]


class _Array(NamedTuple):
    """Header of an npy file in the npz."""

    shape: tuple[int, ...]
    dtype: np.dtype[np.generic]


def write_images(
    npz: Path,
    folder: Path,
    key: str,
    class_names: tuple[str, ...],
    size: int,
    progress: ProgressReport = no_progress,
) -> Written:
    """Write the images of a MedMNIST npz as ``images/<class>/<split>_<index>.png`` and a split file.

    The index is that of the image in its array. Labels are ``(n, 1)``, the number of the class; or ``(n, L)``
    of zeros and ones where ``class_names`` has L findings after "no finding": images with one finding or none
    are kept, the others counted and left out.

    Raises:
        DamagedArchiveError: the file is no npz or is cut off.
        UserError: arrays are missing or not those of MedMNIST (shape, bytes, labels), or space is short.
    """
    entries: dict[str, list[tuple[str, int, str]]] = {}
    left_out: dict[str, int] = {}
    try:
        with zipfile.ZipFile(npz) as content:
            labels = {split: _read_labels(npz.name, content, split, class_names) for split in SPLITS}
            require_space(folder, npz.stat().st_size, f"write the images of {npz.name}")
            for split in SPLITS:
                rows = _write_split(
                    npz.name, content, folder, split, labels[split], class_names, size, progress
                )
                entries[split] = rows
                left_out[split] = len(labels[split]) - len(rows)
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DamagedArchiveError(f"{npz.name} is damaged or no npz file ({error}).") from error
    split_file = f"split_{key}.json"
    write_atomically(folder / split_file, json.dumps(entries) + "\n")
    return Written(split_file, left_out)


def class_folder(name: str) -> str:
    """Folder of a class: its name with everything but letters, digits and ``-`` as underscores."""
    return re.sub(r"[^a-z0-9-]+", "_", name.lower()).strip("_")


def _read_labels(
    name: str, content: zipfile.ZipFile, split: str, class_names: tuple[str, ...]
) -> NDArray[np.int64]:
    """Number of the class of each image ``(n,)``; -1 for several findings."""
    with _member(name, content, f"{split}_labels") as file:
        header = _header(name, f"{split}_labels", file)
        if len(header.shape) != 2 or header.dtype.kind not in "iu":
            raise _unexpected(name, f"{split}_labels", header)
        length = math.prod(header.shape) * header.dtype.itemsize
        raw = file.read(length)
    if len(raw) < length:
        raise EOFError(f"{split}_labels is cut off")
    values = np.frombuffer(raw, header.dtype).reshape(header.shape).astype(np.int64)
    if class_names[0] == NO_FINDING and header.shape[1] == len(class_names) - 1:
        labels = np.where(values.any(axis=1), values.argmax(axis=1) + 1, 0)
        labels[values.sum(axis=1) > 1] = -1
        in_range = bool(np.isin(values, (0, 1)).all())
    elif header.shape[1] == 1:
        labels = values[:, 0]
        in_range = bool(((labels >= 0) & (labels < len(class_names))).all())
    else:
        raise _unexpected(name, f"{split}_labels", header)
    if not in_range:
        raise UserError(f"{name} has labels in {split} beyond its {len(class_names)} classes.")
    return labels


def _write_split(
    name: str,
    content: zipfile.ZipFile,
    folder: Path,
    split: str,
    labels: NDArray[np.int64],
    class_names: tuple[str, ...],
    size: int,
    progress: ProgressReport,
) -> list[tuple[str, int, str]]:
    rows = []
    for class_name in class_names:
        (folder / "images" / class_folder(class_name)).mkdir(parents=True, exist_ok=True)
    for index, image in enumerate(_images(name, content, split, len(labels), size)):
        label = int(labels[index])
        if label >= 0:
            file = f"{class_folder(class_names[label])}/{split}_{index:06d}.png"
            Image.fromarray(image).save(folder / "images" / file, compress_level=1)
            rows.append((file, label, class_names[label]))
        progress(f"Writing the {split} images", index + 1, len(labels))
    return rows


def _images(
    name: str, content: zipfile.ZipFile, split: str, n: int, size: int
) -> Iterator[NDArray[np.uint8]]:
    """Images one at a time, ``(size, size)`` or ``(size, size, 3)``."""
    array = f"{split}_images"
    with _member(name, content, array) as file:
        header = _header(name, array, file)
        if header.shape not in ((n, size, size), (n, size, size, 3)) or header.dtype != np.uint8:
            raise _unexpected(name, array, header)
        length = math.prod(header.shape[1:])
        for _ in range(n):
            raw = file.read(length)
            if len(raw) < length:
                raise EOFError(f"{array} is cut off")
            yield np.frombuffer(raw, np.uint8).reshape(header.shape[1:])


def _member(name: str, content: zipfile.ZipFile, array: str) -> IO[bytes]:
    try:
        info = content.getinfo(f"{array}.npy")
    except KeyError as error:
        raise UserError(f"{name} is no MedMNIST file: it has no {array}.") from error
    if info.flag_bits & 0x1:
        raise UserError(f"{name} is no MedMNIST file: {array} is encrypted.")
    return content.open(info)


def _header(name: str, array: str, file: IO[bytes]) -> _Array:
    """Shape and type of an npy file; arrays of Python objects and column order are refused."""
    try:
        version = np.lib.format.read_magic(file)
        readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
        shape, fortran_order, dtype = readers[version](file)
    # numpy reads the header as Python source.
    except (ValueError, KeyError, SyntaxError, tokenize.TokenError) as error:
        raise UserError(f"{name} is no MedMNIST file: {array} is no array of numbers.") from error
    if dtype.hasobject or fortran_order:
        raise UserError(f"{name} is no MedMNIST file: {array} is no plain array of numbers.")
    return _Array(shape, dtype)


def _unexpected(name: str, array: str, header: _Array) -> UserError:
    shape = "x".join(map(str, header.shape))
    return UserError(f"{name} is not the MedMNIST file expected: {array} is {shape} of {header.dtype}.")
