"""Unpacking a bundle: everything is verified before anything is installed, and then all of it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from vmfcoop.backbones.installed import MANIFEST as BACKBONE_MANIFEST
from vmfcoop.backbones.installed import (
    FileRecord,
    backbones_folder,
    clean_folder,
    new_place,
    one_at_a_time,
    put_in_place,
    read_manifest,
    verify_folder,
)
from vmfcoop.bundle.archive import extract, open_bundle
from vmfcoop.bundle.manifest import MANIFEST, RUN, BundleManifest
from vmfcoop.data.downloads import checksum, require_space
from vmfcoop.errors import UserError
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import RECORD, read_run


@dataclass(frozen=True)
class Unpacked:
    """What was installed.

    Attributes:
        folder: with the run or the recipe, and the data.
        backbones: folders of the backbones by the spec that loads them here.
        manifest: of the bundle.
        was_here: whether the same was here already.
    """

    folder: Path
    backbones: dict[str, Path]
    manifest: BundleManifest
    was_here: bool

    @property
    def target(self) -> Path:
        """The run directory, or the recipe."""
        return self.folder / self.manifest.name


def unpack(
    bundle: Path, to: Path | None = None, *, replace: bool = False, progress: ProgressReport = no_progress
) -> Unpacked:
    """Verify a bundle and install what is in it, or nothing.

    Backbones go below ``VMFCOOP_HOME/backbones``, where runs find them by their fingerprint and recipes by
    their name; all else goes into a folder. The record of a run whose data are in the bundle is made to name
    their new place.

    Args:
        bundle: a tar or a folder that ``pack`` wrote.
        to: folder; default one named after the bundle, in the current folder.
        replace: take the place of what another bundle put there.
        progress: told of bytes.

    Raises:
        UserError: the bundle is damaged, hostile or of a newer format; other content is where it would go; or
            the disk is full. Nothing is installed then.
    """
    bundle = bundle.expanduser().absolute()
    folder = _folder_for(bundle, to)
    homes = backbones_folder()
    with (
        open_bundle(bundle) as reader,
        one_at_a_time(folder, progress),
        one_at_a_time(homes, progress),
        clean_folder(folder.with_name(f".{folder.name}.unpack")) as outer,
        clean_folder(homes / ".unpack") as backbones,
    ):
        stage = outer / "content"
        stage.mkdir()
        places = _places(reader.manifest, stage, backbones)
        for outermost, disk in ((stage, folder.parent), (backbones, homes)):
            own = [name for name, place in places.items() if place.is_relative_to(outermost)]
            needed = sum(reader.manifest.files[name].bytes for name in own)
            require_space(disk, needed, f"unpack {bundle.name}")
        extract(reader, places, progress)
        (stage / MANIFEST).write_text(reader.manifest.as_text(), encoding="utf-8")
        _settle_record(stage, folder, reader.manifest)
        new = _new_backbones(reader.manifest, backbones, homes, replace, progress)
        is_new = _is_new(stage, folder, replace)
        for staged in new:
            put_in_place(staged, homes / staged.name)
        if is_new:
            put_in_place(stage, folder)
        installed = {part.name: homes / part.name for part in reader.manifest.backbones}
        return Unpacked(folder, installed, reader.manifest, not (new or is_new))


def _folder_for(bundle: Path, to: Path | None) -> Path:
    name = bundle.name if bundle.is_dir() else bundle.stem
    folder = new_place(Path(name) if to is None else to)
    if folder == bundle.resolve():
        raise UserError(f"'{bundle}' is the bundle itself; name another folder with --to.")
    return folder


def _places(manifest: BundleManifest, stage: Path, backbones: Path) -> dict[str, Path]:
    """Where each file goes.

    Raises:
        UserError: a part that the manifest names is missing, or one that it does not name is there.
    """
    places, known = {}, {part.name for part in manifest.backbones}
    for name in manifest.files:
        first, *rest = PurePosixPath(name).parts
        if first != "backbones":
            places[name] = stage / name
        elif len(rest) == 2 and rest[0] in known:
            places[name] = backbones / rest[0] / rest[1]
        else:
            raise UserError(
                f"The bundle has {name!r}, of no backbone that its manifest names; pack it again."
            )
    for name in known:
        if f"backbones/{name}/{BACKBONE_MANIFEST}" not in places:
            raise UserError(f"The bundle lacks the backbone '{name}' that it names; pack it again.")
    wanted = f"{manifest.name}/{RECORD}" if manifest.kind == "run" else manifest.name
    if wanted not in places:
        raise UserError(f"The bundle lacks the {manifest.kind} that it names; pack it again.")
    return places


def _settle_record(stage: Path, folder: Path, manifest: BundleManifest) -> None:
    """Make the record of a run name the place of its data on this machine."""
    if manifest.kind != "run" or not manifest.data:
        return
    path, part = stage / RUN / RECORD, manifest.data[0]
    record = read_run(stage / RUN).record
    data = record["data"]
    data["packed_from"] = {key: data.get(key) for key in ("spec", "groups", "fingerprint")}
    data["spec"] = str(folder / part.path)
    data["groups"] = None if part.groups is None else str(folder / part.groups)
    data["fingerprint"] = part.fingerprint
    path.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _new_backbones(
    manifest: BundleManifest, staged: Path, homes: Path, replace: bool, progress: ProgressReport
) -> list[Path]:
    """The staged backbones that are not here yet.

    Raises:
        UserError: the place of one is taken by another, which is not to be replaced.
    """
    new = []
    for part in manifest.backbones:
        found, place = read_manifest(staged / part.name), homes / part.name
        begin = f"backbones/{part.name}/"
        records = {
            name.removeprefix(begin): r for name, r in manifest.files.items() if name.startswith(begin)
        }
        records.pop(BACKBONE_MANIFEST)
        if (found.fingerprint, found.files) != (part.fingerprint, records):
            raise UserError(f"The bundle contradicts itself on the backbone '{part.name}'; pack it again.")
        if place.exists() and _is_verified(place, found.files, progress):
            continue
        if place.exists() and not replace:
            raise UserError(
                f"'{place}' holds another backbone of that name, or was changed; add --replace to put the "
                "bundle's there."
            )
        new.append(staged / part.name)
    return new


def _is_verified(place: Path, files: dict[str, FileRecord], progress: ProgressReport) -> bool:
    """Whether a backbone that is here has these files, unchanged."""
    try:
        return verify_folder(place, progress).files == files
    except UserError:
        return False


def _is_new(stage: Path, folder: Path, replace: bool) -> bool:
    """Whether the content is to be put in the folder; False where it is there already.

    Raises:
        UserError: the folder holds something else that is not to be replaced.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return True
    if _holds_all(folder, stage):
        return False
    if not (folder / MANIFEST).is_file():
        raise UserError(f"'{folder}' is there already and holds other files; name another folder with --to.")
    if not replace:
        raise UserError(
            f"'{folder}' holds another bundle's content, or was changed; add --replace, or name another "
            "folder with --to."
        )
    return True


def _holds_all(folder: Path, stage: Path) -> bool:
    for path in sorted(stage.rglob("*")):
        there = folder / path.relative_to(stage)
        if path.is_file() and not (
            there.is_file()
            and there.stat().st_size == path.stat().st_size
            and checksum(there) == checksum(path)
        ):
            return False
    return True
