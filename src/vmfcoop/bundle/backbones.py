"""The files of a backbone for a bundle, wherever they lie now: those that loading needs, and no others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmfcoop.backbones.fetching import fetch_backbone, published_terms
from vmfcoop.backbones.hub import cached_folder, family_of, small_files, weight_files
from vmfcoop.backbones.installed import (
    MANIFEST,
    folder_name,
    installed_folder,
    manifest_of,
    read_manifest,
    verify_folder,
    visible_names,
)
from vmfcoop.backbones.registry import families
from vmfcoop.backbones.sources import find_source
from vmfcoop.bundle.archive import Content
from vmfcoop.bundle.manifest import PackedBackbone
from vmfcoop.errors import UserError
from vmfcoop.progress import ProgressReport, no_progress


@dataclass(frozen=True)
class CollectedBackbone:
    """A backbone to pack.

    Attributes:
        part: its entry in the manifest.
        contents: its files by path in the bundle.
    """

    part: PackedBackbone
    contents: dict[str, Content]


def collect_backbone(
    spec: str, scratch: Path, fingerprint: str | None = None, progress: ProgressReport = no_progress
) -> CollectedBackbone:
    """Find the files of a backbone, and load them from a folder of nothing else.

    What was fetched, or is in the hub's cache, is taken from there; what is not here is fetched.

    Args:
        spec: backbone spec.
        scratch: an empty folder on a file system with symbolic links; it holds what was fetched.
        fingerprint: that the encoder must have.
        progress: told of bytes.

    Raises:
        UserError: the backbone is not to be had, damaged, or has another fingerprint.
    """
    folder = _find(spec, scratch, progress)
    fetched = (folder / MANIFEST).is_file()
    names = list(verify_folder(folder, progress).files) if fetched else _needed(folder)
    linked = scratch / "linked"
    linked.mkdir()
    for name in names:
        (linked / name).symlink_to((folder / name).resolve())
    family = family_of(linked, families())
    encoder = family.load(linked, spec)
    if fingerprint is not None and encoder.fingerprint != fingerprint:
        raise UserError(
            f"The run was fitted on a backbone with the fingerprint {fingerprint}, but '{spec}' has "
            f"{encoder.fingerprint}; name the right one with --backbone."
        )
    if fetched:
        manifest = read_manifest(folder)
        name = folder_name(manifest.spec)
    else:
        is_folder = spec.startswith("dir:")
        name = f"{folder_name(folder.name)}-{encoder.fingerprint[:8]}" if is_folder else folder_name(spec)
        made_from, terms = name if is_folder else spec, published_terms(spec)
        manifest = manifest_of(linked, made_from, family.name, encoder, progress, **terms)
    contents: dict[str, Content] = {f"backbones/{name}/{file}": folder / file for file in names}
    contents[f"backbones/{name}/{MANIFEST}"] = manifest.as_text().encode()
    part = PackedBackbone(
        spec=spec,
        name=name,
        fingerprint=encoder.fingerprint,
        licence=manifest.licence,
        limits=manifest.limits,
    )
    return CollectedBackbone(part, contents)


def _find(spec: str, scratch: Path, progress: ProgressReport) -> Path:
    kind, _, rest = spec.partition(":")
    if kind == "dir" and rest:
        folder = Path(rest).expanduser().resolve()
        if not folder.is_dir():
            raise UserError(
                f"The backbone folder '{folder}' does not exist; name it with --backbone dir:FOLDER."
            )
        return folder
    installed = installed_folder(spec)
    if installed is not None:
        return installed
    source = find_source(spec)
    if source.repository and not (source.entry and (source.entry.checkpoint or source.entry.tokenizer)):
        cached = cached_folder(source.repository, source.families)
        if cached is not None:
            return cached[0]
    return fetch_backbone(spec, scratch / "fetched", progress=progress)


def _needed(folder: Path) -> list[str]:
    names, family = visible_names(folder), family_of(folder, families())
    weights = weight_files(names, family)
    if not weights:
        raise UserError(
            f"The backbone folder '{folder}' has no weights; put {' or '.join(family.weight_files)} there."
        )
    return [*small_files(names, [family]), *weights]
