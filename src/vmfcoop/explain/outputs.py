"""Where explanations go: a name for each image that no other has, and a folder that appears whole."""

from __future__ import annotations

import errno
import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from vmfcoop.data.folder import visible_files
from vmfcoop.data.image_io import IMAGE_SUFFIXES
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.predicting import find_images

PAGE = "index.html"
SUMMARY = "explained.json"
"""What every folder of explanations holds, and by which it is known."""
_NAME_BYTES = 120


def named_images(inputs: Sequence[Path], neutral: bool = False) -> list[tuple[Path, str]]:
    """The images of files and folders, each with a name for its outputs that no other has.

    Names keep the folders below the one that was given: ``new/a/1.png`` of ``new`` is ``a/1``. What is no
    letter, digit, dot, underscore or hyphen becomes a hyphen, so ``cine.dcm#frame=3`` is ``cine-frame-3``; a
    name that is taken gets a number. Neutral names are ``image-0001``, ``image-0002``, ...

    Pictures of earlier explanations, in folders below one that was given, are left out.

    Raises:
        UserError: an input does not exist, or a folder holds no image.
    """
    named: list[tuple[Path, str]] = []
    taken = {Path(SUMMARY).stem}
    for item in inputs:
        for path in _found(item):
            parts = path.relative_to(item).parts[:-1] if item.is_dir() else ()
            # Without dots no folder has the name of another image's file.
            folders = (_plain(part).replace(".", "-") for part in parts)
            plain = "/".join((*folders, _plain(_stem(path))))
            name = f"image-{len(named) + 1:04d}" if neutral else _free(plain, taken)
            taken.add(name.casefold())
            named.append((path, name))
    return named


def _found(item: Path) -> list[Path]:
    """The images of an input without those in folders of explanations."""
    found = find_images([item])
    between = {path.parent for path in found} - {item}
    between |= {above for path in between for above in path.parents if item in above.parents}
    made = {folder for folder in between if (folder / SUMMARY).is_file()}
    inputs = [path for path in found if made.isdisjoint(path.parents)] if item.is_dir() else found
    if not inputs:
        raise UserError(f"The folder '{item}' holds no image but those of earlier explanations.")
    return inputs


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
    try:
        if not folder.exists() or (folder.is_dir() and not _entries(folder)):
            return
    except OSError as error:
        raise UserError(f"'{folder}' cannot be used ({error.strerror}); choose another --out.") from error
    if not folder.is_dir():
        raise UserError(f"'{folder}' is a file; choose another --out.")
    if not (folder / SUMMARY).is_file():
        raise UserError(f"'{folder}' holds other things and is not overwritten; choose another --out.")
    if not overwrite:
        raise UserError(f"'{folder}' is there already; choose another --out, or --overwrite it.")
    others = sorted(set(visible_files(folder)) - _written(folder))
    if others:
        raise UserError(
            f"'{others[0]}' was not written by explain and would be lost; move it, or choose another --out."
        )


def _entries(folder: Path) -> list[Path]:
    """What a folder holds, without hidden files, such as those of file managers."""
    return [path for path in folder.iterdir() if not path.name.startswith(".")]


def _written(folder: Path) -> set[Path]:
    """The files of a folder of explanations, as its summary has them."""
    try:
        images = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))["images"]
        files = [file for image in images for file in image["files"].values()]
        return {folder / file for file in (PAGE, SUMMARY, *files)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return set()


@contextmanager
def written_whole(folder: Path) -> Iterator[Path]:
    """A scratch folder that takes a folder's place when nothing went wrong, and is removed otherwise.

    A folder that is there already stays, it may be a mount or a link: what it holds is exchanged.

    Raises:
        UserError: the disk is full or the place not writable; what was there stays as it was.
    """
    there = folder.exists()
    place = folder if there else folder.parent
    with full_disk_is_said(place):
        made = [part for part in (place, *place.parents) if not part.exists()]
        place.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(dir=place, prefix=".explaining."))
        try:
            yield scratch
            if there:
                _exchange(folder, scratch)
            else:
                scratch.chmod(0o755)
                _rename(scratch, folder)
        except BaseException:
            shutil.rmtree(scratch, ignore_errors=True)
            for part in made:
                with suppress(OSError):
                    part.rmdir()
            raise
        if there:
            shutil.rmtree(scratch, ignore_errors=True)


def _rename(scratch: Path, folder: Path) -> None:
    try:
        scratch.replace(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise UserError(f"'{folder}' was made by another process meanwhile; choose another --out.") from error


def _exchange(folder: Path, scratch: Path) -> None:
    """Move what a folder holds into the scratch folder inside it, and the other way round; or nothing."""
    new = sorted(scratch.iterdir(), key=lambda path: path.name == SUMMARY)
    retired = Path(tempfile.mkdtemp(dir=scratch))
    moves = [(path, retired / path.name) for path in _entries(folder)]
    moves += [(path, folder / path.name) for path in new]
    done: list[tuple[Path, Path]] = []
    try:
        for source, target in moves:
            done.append((source, target))
            source.replace(target)
    except BaseException:
        for source, target in reversed(done):
            if target.exists():
                target.replace(source)
        raise
