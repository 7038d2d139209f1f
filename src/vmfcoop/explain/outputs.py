"""Where explanations go: a name for each image that no other has, and a folder that appears whole."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vmfcoop.data.image_io import IMAGE_SUFFIXES
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.pipeline import find_images

SUMMARY = "explained.json"
"""What every folder of explanations holds, and by which it is known."""
_NAME_BYTES = 120


def named_images(inputs: Sequence[Path], neutral: bool = False) -> list[tuple[Path, str]]:
    """The images of files and folders, each with a name for its outputs that no other has.

    Names keep the folders below the one that was given: ``new/a/1.png`` of ``new`` is ``a/1``. What is no
    letter, digit, dot, underscore or hyphen becomes a hyphen, so ``cine.dcm#frame=3`` is ``cine-frame-3``; a
    name that is taken gets a number. Neutral names are ``image-0001``, ``image-0002``, ...

    Raises:
        UserError: an input does not exist, or a folder holds no image.
    """
    named: list[tuple[Path, str]] = []
    taken: set[str] = set()
    for item in inputs:
        for path in find_images([item]):
            parts = path.relative_to(item).parts[:-1] if item.is_dir() else ()
            plain = "/".join(map(_plain, (*parts, _stem(path))))
            name = f"image-{len(named) + 1:04d}" if neutral else _free(plain, taken)
            taken.add(name.casefold())
            named.append((path, name))
    return named


def _stem(path: Path) -> str:
    """A file's name without the ending of its format, with what is chosen inside it."""
    reference = parse_reference(path)
    name = reference.file.name
    endings = [suffix for suffix in IMAGE_SUFFIXES if name.lower().endswith(suffix)]
    stem = name[: len(name) - max(map(len, endings), default=0)]
    return f"{stem}-{reference.selection}" if reference.selection else stem


def _plain(text: str) -> str:
    short = text.encode(errors="replace")[:_NAME_BYTES].decode(errors="ignore")
    return re.sub(r"[^\w.-]+", "-", short).strip("-.") or "image"


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free.casefold() in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def refuse_in_use(folder: Path, overwrite: bool) -> None:
    """Stop before any work is done where explanations would have no place.

    Raises:
        UserError: the folder holds something and may not, or must not, be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file; choose another --out.")
    if not (folder / SUMMARY).is_file():
        raise UserError(f"'{folder}' holds other things and is not overwritten; choose another --out.")
    if not overwrite:
        raise UserError(f"'{folder}' is there already; choose another --out, or --overwrite it.")


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes a folder's place when nothing went wrong, and is removed otherwise.

    Raises:
        UserError: the disk is full or the place not writable; what was there stays as it was.
    """
    with full_disk_is_said(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            scratch.chmod(0o755)
            yield scratch
            retired = None
            if folder.exists():
                retired = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}.old."))
                folder.replace(retired / folder.name)
            scratch.replace(folder)
            if retired:
                shutil.rmtree(retired)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
