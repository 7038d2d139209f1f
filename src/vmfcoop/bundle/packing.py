"""Packing a run or a recipe with all that it needs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import yaml

from vmfcoop.__about__ import __version__
from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.catalogue import catalogue
from vmfcoop.backbones.installed import (
    clean_folder,
    folder_name,
    new_place,
    one_at_a_time,
    recorded_spec,
    tag_of,
)
from vmfcoop.benchmark.recipe import DataEntry, load_recipe
from vmfcoop.bundle.archive import Content, records_of, write_bundle
from vmfcoop.bundle.backbones import collect_backbone
from vmfcoop.bundle.datasets import Load, collect_data
from vmfcoop.bundle.manifest import MANIFEST, RUN, BundleManifest, PackedBackbone, PackedData
from vmfcoop.data import KNOWN_DATASETS, Dataset, load_dataset
from vmfcoop.data.folder import visible_files
from vmfcoop.data.phantoms import PHANTOMS
from vmfcoop.descriptions import TEMPLATE_SOURCE, DescriptionBank, load_descriptions, packaged_descriptions
from vmfcoop.descriptions.bank import packaged_keys
from vmfcoop.errors import UserError
from vmfcoop.files import home
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import RECORD, REPORT, Run, read_run


@dataclass(frozen=True)
class Packed:
    """A bundle that was written.

    Attributes:
        path: the tar or the folder.
        sha256: of the tar.
        manifest: what is in it.
        remarks: sentences on what a user must know.
    """

    path: Path
    sha256: str | None
    manifest: BundleManifest
    remarks: tuple[str, ...]


@dataclass
class _Parts:
    """What goes into a bundle."""

    kind: Literal["run", "recipe"]
    name: str
    title: str
    scratch: Path
    progress: ProgressReport
    contents: dict[str, Content] = field(default_factory=dict)
    embedded: list[str] = field(default_factory=list)
    backbones: list[PackedBackbone] = field(default_factory=list)
    data: list[PackedData] = field(default_factory=list)
    descriptions: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def add_backbone(self, spec: str, fingerprint: str | None = None) -> str:
        """Add a backbone; return the spec that loads it where the bundle is unpacked."""
        entry = catalogue().get(spec)
        if entry is not None and entry.embedded:
            if fingerprint not in (None, load_backbone(spec, "cpu").fingerprint):
                raise UserError(
                    f"The run was fitted on the '{spec}' of another version of vmfcoop; fit again."
                )
            self.embedded.append(spec)
            return spec
        place = self.scratch / f"backbone-{len(self.backbones)}"
        place.mkdir()
        found = collect_backbone(spec, place, fingerprint, self.progress)
        same_name = [part for part in self.backbones if part.name == found.part.name]
        if any(part.fingerprint != found.part.fingerprint for part in same_name):
            raise UserError(f"'{spec}' and '{same_name[0].spec}' would have one folder; rename one of them.")
        if not same_name:
            self.backbones.append(found.part)
            self.contents |= found.contents
        return spec if folder_name(spec) == found.part.name else found.part.name

    def add_data(self, name: str, spec: str, groups: Path | None, load: Load) -> tuple[PackedData, Dataset]:
        """Add the images of a dataset."""
        place = self.scratch / f"data-{len(self.data)}"
        place.mkdir()
        taken = {part.name for part in self.data}
        free = next(n for n in _numbered(folder_name(name)) if n not in taken)
        found = collect_data(free, spec, groups, load, place)
        self.data.append(found.part)
        self.contents |= found.contents
        self.remarks += found.remarks
        return found.part, found.table

    def add_descriptions(self, name: str, bank: DescriptionBank) -> str:
        """Add descriptions as JSON; return their path in the bundle."""
        content = {"source": Path(bank.source).name, **bank.meta, "descriptions": bank.descriptions}
        path = f"descriptions/{next(n for n in _numbered(folder_name(name)) if self._is_free(n))}.json"
        self.contents[path] = (json.dumps(content, indent=1, ensure_ascii=False) + "\n").encode()
        self.descriptions.append(path)
        return path

    def _is_free(self, name: str) -> bool:
        return f"descriptions/{name}.json" not in self.contents


def pack(
    what: Path,
    to: Path,
    *,
    data: bool = False,
    backbone: str | None = None,
    replace: bool = False,
    progress: ProgressReport = no_progress,
) -> Packed:
    """Put a run or a recipe with all that it needs into one file.

    In the bundle are the run directory or the recipe, the backbone's folder with its tokenizer, the
    descriptions that were used, and, if asked for, the images. The same content gives the same bytes.

    Args:
        what: a run directory, or the YAML file of a recipe.
        to: ``*.tar``, or a folder.
        data: whether to pack the images that the run's or the recipe's tables list.
        backbone: where the backbone lies now; default as recorded.
        replace: take the place of a bundle that is there.
        progress: told of bytes.

    Raises:
        UserError: there is nothing to pack, a part is missing or changed since the fit, something else is
            where the bundle would go, or the disk is full.
    """
    what, to = what.expanduser(), _full_target(to)
    _check_target(what, to, replace)
    # Disks to carry, FAT ones above all, often have no links, so those are made in the home.
    with (
        one_at_a_time(to, progress),
        clean_folder(home() / "pack" / tag_of(to)) as scratch,
        clean_folder(to.with_name(f".{to.name}.pack")) as stage,
    ):
        if (what / RECORD).is_file():
            parts = _pack_run(what, data, backbone, scratch, progress)
        elif what.is_file():
            parts = _pack_recipe(what, data, backbone, scratch, progress)
        else:
            raise UserError(
                f"'{what}' is neither a run directory (it has no {RECORD}) nor a recipe; give one."
            )
        manifest = BundleManifest(
            kind=parts.kind,
            name=parts.name,
            title=parts.title,
            vmfcoop=__version__,
            embedded=tuple(parts.embedded),
            backbones=tuple(parts.backbones),
            data=tuple(parts.data),
            descriptions=tuple(parts.descriptions),
            files=records_of(parts.contents, progress),
        )
        digest = write_bundle(to, manifest, parts.contents, stage, progress)
    return Packed(to, digest, manifest, tuple(parts.remarks))


def _full_target(to: Path) -> Path:
    to = to.expanduser()
    return to.parent.resolve() / to.name if to.suffix == ".tar" else new_place(to)


def _check_target(what: Path, to: Path, replace: bool) -> None:
    if (what / RECORD).is_file() and to.is_relative_to(what.resolve()):
        raise UserError(f"'{to}' lies in the run that is to be packed; choose another --to.")
    if to.suffix.lower() in (".gz", ".tgz", ".xz", ".bz2", ".zst", ".zip", ".7z"):
        raise UserError(f"'{to}' would be compressed, and weights do not compress; name a .tar or a folder.")
    if to.exists() and not replace:
        raise UserError(f"'{to}' is there already; choose another --to, or --replace it.")
    is_bundle = to.suffix == ".tar" if to.is_file() else (to / MANIFEST).is_file()
    if to.exists() and not is_bundle and (to.is_file() or any(to.iterdir())):
        raise UserError(f"'{to}' is no bundle and is not replaced; choose another --to.")


def _numbered(name: str) -> Iterator[str]:
    yield name
    number = 2
    while True:
        yield f"{name}-{number}"
        number += 1


def _pack_run(
    folder: Path, data: bool, backbone: str | None, scratch: Path, progress: ProgressReport
) -> _Parts:
    run = read_run(folder)
    parts = _Parts("run", RUN, folder.resolve().name, scratch, progress)
    for path in sorted(visible_files(folder)):
        if path.is_symlink():
            parts.remarks.append(f"'{path}' is a link and was left out.")
        elif path == folder / REPORT and not data:
            parts.remarks.append(
                f"{REPORT} shows images of the data and was left out; --data takes it along."
            )
        else:
            parts.contents[f"{RUN}/{path.relative_to(folder).as_posix()}"] = path
    recorded = run.record["backbone"]
    spec = backbone or recorded_spec(recorded["spec"], recorded["fingerprint"])
    parts.add_backbone(spec, recorded["fingerprint"])
    _add_run_descriptions(parts, run)
    if data:
        _add_run_data(parts, run)
    return parts


def _add_run_descriptions(parts: _Parts, run: Run) -> None:
    """The descriptions that the run was fitted with, if they are still where they were."""
    source, fingerprint = run.record["descriptions"]["source"], run.record["descriptions"]["fingerprint"]
    if source == TEMPLATE_SOURCE:
        return
    bank = _find_descriptions(source)
    if bank is not None and bank.fingerprint == fingerprint:
        parts.add_descriptions("descriptions", bank)
    else:
        parts.remarks.append(
            f"The descriptions of the run ({source}) are not there any more or were changed, and are not in "
            "the bundle; prediction does not need them."
        )


def _find_descriptions(source: str) -> DescriptionBank | None:
    """The package's descriptions of that source, or those of that file; None if there are none now."""
    for key in packaged_keys():
        bank = packaged_descriptions(key)
        if bank is not None and bank.source == source:
            return bank
    with suppress(UserError):
        return load_descriptions(source)
    return None


def _add_run_data(parts: _Parts, run: Run) -> None:
    recorded = run.record["data"]
    spec = recorded["spec"]
    if _is_drawn(spec):
        parts.remarks.append(f"The images of '{spec}' are drawn by the package and are not in the bundle.")
        return
    load = partial(
        _load_recorded,
        {
            "test_fraction": recorded["test_fraction"],
            "val_fraction": recorded["val_fraction"],
            "seed": recorded["split_seed"],
            "class_names": recorded["renamed_classes"] or None,
            "window": recorded.get("window"),
        },
    )
    groups = Path(recorded["groups"]) if recorded["groups"] else None
    _, table = parts.add_data(recorded["name"], spec, groups, load)
    if table.fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"The data in '{spec}' changed since the run was fitted, so its split is another; pack without "
            "--data."
        )


def _load_recorded(settings: dict[str, Any], spec: str, groups: Path | None) -> Dataset:
    return load_dataset(spec, groups=groups, **settings)


def _pack_recipe(
    path: Path, data: bool, backbone: str | None, scratch: Path, progress: ProgressReport
) -> _Parts:
    recipe = load_recipe(path)
    content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    name = f"{folder_name(path.stem)}.yaml"
    parts = _Parts("recipe", name, path.name, scratch, progress)
    specs = recipe.backbones
    if backbone is not None:
        if len(specs) > 1:
            raise UserError(f"'{path}' names {len(specs)} backbones; --backbone stands for a single one.")
        specs = [backbone]
    content["backbones"] = [parts.add_backbone(spec) for spec in specs]
    given = [{"spec": item} if isinstance(item, str) else item for item in content["data"]]
    content["data"] = [
        {**raw, "name": entry.name, **_add_entry(parts, entry, raw["spec"], data)}
        for raw, entry in zip(given, recipe.data, strict=True)
    ]
    header = "# Packed by vmfcoop; paths count from the folder of this file.\n"
    text = header + yaml.safe_dump(content, sort_keys=False, allow_unicode=True, width=110)
    parts.contents[name] = text.encode()
    return parts


def _add_entry(parts: _Parts, entry: DataEntry, spec: str, data: bool) -> dict[str, str]:
    """Add what a data entry needs; return the keys of the entry that change.

    Args:
        parts: of the bundle.
        entry: of the recipe, its paths full ones.
        spec: data spec as the recipe's file has it.
        data: whether to add the images.
    """
    changed: dict[str, str] = {}
    if entry.descriptions is not None:
        changed["descriptions"] = parts.add_descriptions(entry.name, load_descriptions(entry.descriptions))
    drawn = _is_drawn(entry.spec)
    if not data or drawn:
        if entry.groups is not None:
            changed["groups"] = f"groups/{folder_name(entry.name)}.csv"
            parts.contents[changed["groups"]] = entry.groups
        where = f"must be at '{spec}' as seen from the recipe"
        if spec in KNOWN_DATASETS:
            where = "are drawn by the package" if drawn else "must be fetched or imported there"
        parts.remarks.append(f"The images of '{entry.name}' are not in the bundle: they {where}.")
        return changed

    def load(spec: str, groups: Path | None) -> Dataset:
        return entry.model_copy(update={"spec": spec, "groups": groups}).dataset()

    part, table = parts.add_data(entry.name, entry.spec, entry.groups, load)
    changed["spec"] = part.path
    if part.groups is not None:
        changed["groups"] = part.groups
    own = entry.bank(table.class_names)
    if entry.descriptions is None and own.source != TEMPLATE_SOURCE:
        # The package has them for the key alone, whose place a path now takes.
        changed["descriptions"] = parts.add_descriptions(entry.name, own)
    return changed


def _is_drawn(spec: str) -> bool:
    return spec in PHANTOMS and not Path(spec).exists()
