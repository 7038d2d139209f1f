"""Fetching a published backbone into a folder of its own, with a manifest, so that it loads offline."""

from __future__ import annotations

import glob
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from vmfcoop.backbones.catalogue import catalogue
from vmfcoop.backbones.hub import cached_folder, family_of
from vmfcoop.backbones.installed import (
    MANIFEST,
    backbone_home,
    installed_folder,
    manifest_of,
    new_place,
    one_at_a_time,
    put_in_place,
    read_manifest,
    verify_folder,
)
from vmfcoop.backbones.sources import Source, find_source, gather, look_up_source, named_families
from vmfcoop.errors import UserError
from vmfcoop.files import full_disk_is_said
from vmfcoop.progress import ProgressReport, no_progress


def fetch_backbone(
    spec: str,
    to: Path | None = None,
    *,
    revision: str | None = None,
    replace: bool = False,
    progress: ProgressReport = no_progress,
) -> Path:
    """Put a published backbone into a folder, so that it loads without a network, and return the folder.

    Files are downloaded to a hidden folder beside the place (an interrupted download goes on from where it
    stopped) and held against the SHA-256 that the hub states; the encoder is loaded; a manifest is written
    with its fingerprint, the commit, the licence and the checksum of every file; and the folder is renamed to
    its place. What the hub's own cache has, or was fetched before, is copied from there. Of two processes
    that fetch one backbone, the second waits.

    Args:
        spec: a key of the catalogue, ``hf:REPOSITORY``, ``open_clip:MODEL/PRETRAINED`` or
            ``open_clip:hf-hub:REPOSITORY``.
        to: folder, for ``dir:FOLDER``; default below ``VMFCOOP_HOME/backbones``, where the spec finds it.
        revision: commit, tag or branch of the repository; default the main branch.
        replace: fetch again and take the place of what is there.
        progress: told of bytes.

    Raises:
        UserError: the spec is unknown or not one to fetch; no network; the hub refuses, or its terms are to
            be accepted first; a checksum differs; the files are of no family; another folder is there, or
            ``to`` is a whole disk or the current folder; or the disk is full.
    """
    source = find_source(spec)
    place = backbone_home(spec).resolve() if to is None else new_place(to)
    with one_at_a_time(place, progress), full_disk_is_said(place.parent):
        if not replace and _is_fetched(place, spec, revision):
            return place
        _refuse_other_files(place, replace)
        place.parent.mkdir(parents=True, exist_ok=True)
        before = installed_folder(spec) if to is not None and not replace else None
        if before is not None and _is_fetched(before, spec, revision):
            stage = _copy(before, place, progress)
        else:
            stage = _fetch_files(source, place, revision, progress)
        put_in_place(stage, place)
    return place


def published_terms(spec: str) -> dict[str, str | None]:
    """Title, licence and limits of a key of the catalogue, for a manifest; nothing of another spec."""
    entry = catalogue().get(spec)
    if entry is None:
        return {}
    return {
        "title": entry.title,
        "licence": entry.licence,
        "limits": entry.limits,
        "terms": entry.terms,
    }


def is_here(spec: str) -> bool:
    """Whether a backbone loads without a network: embedded, fetched, unpacked, or in the hub's cache."""
    entry = catalogue().get(spec)
    if installed_folder(spec) is not None or (entry is not None and entry.embedded):
        return True
    if entry is None or entry.checkpoint or entry.tokenizer:
        return False
    if entry.model:
        return _model_is_cached(entry.model)
    # Families take seconds to import, so that the cache is looked into only where it has the repository.
    here = entry.repository is not None and _has_cache(entry.repository)
    return here and cached_folder(str(entry.repository), named_families(entry.family)) is not None


def _is_fetched(place: Path, spec: str, revision: str | None) -> bool:
    if not (place / MANIFEST).is_file():
        return False
    found = read_manifest(place)
    if found.spec != spec:
        raise UserError(f"'{place}' holds the backbone '{found.spec}'; choose another folder.")
    if revision is not None and revision not in (found.revision, found.commit):
        raise UserError(
            f"'{place}' holds '{spec}' of the commit {found.commit}, not {revision}; add --replace to fetch "
            "that."
        )
    return True


def _refuse_other_files(place: Path, replace: bool) -> None:
    """Stop where files would be replaced that no fetch wrote."""
    ours = replace and (place / MANIFEST).is_file()
    if place.is_file() or (place.is_dir() and any(place.iterdir()) and not ours):
        raise UserError(f"'{place}' is there already and holds other files; choose another folder.")


def _copy(folder: Path, place: Path, progress: ProgressReport) -> Path:
    """A hidden copy beside the place of a backbone that was fetched before."""
    stage = _stage(place, "copy")
    for name in [*verify_folder(folder, progress).files, MANIFEST]:
        shutil.copyfile(folder / name, stage / name)
    return stage


def _fetch_files(source: Source, place: Path, revision: str | None, progress: ProgressReport) -> Path:
    """A hidden folder beside the place with all files of the backbone and its manifest."""
    repository = look_up_source(source, revision)
    stage = _stage(place, repository.commit[:12] if repository else "files")
    found = asdict(gather(source, repository, stage, progress))
    try:
        family = family_of(stage, source.families)
        encoder = family.load(stage, source.spec)
    except UserError as error:
        # What does not load is no use to go on with, and the hidden folder means nothing to a reader.
        shutil.rmtree(stage, ignore_errors=True)
        raise UserError(str(error).replace(str(stage), str(place))) from error
    now = datetime.now(UTC).isoformat(timespec="seconds")
    known = {**found, **published_terms(source.spec), "revision": revision, "fetched": now}
    manifest = manifest_of(stage, source.spec, family.name, encoder, progress, **known)
    (stage / MANIFEST).write_text(manifest.as_text(), encoding="utf-8")
    return stage


def _stage(place: Path, tag: str) -> Path:
    """The hidden folder beside a place that an interrupted fetch of the same content left, or a new one."""
    stage = place.with_name(f".{place.name}.{tag}.part")
    for other in place.parent.glob(f".{glob.escape(place.name)}.*.part"):
        if other != stage:
            shutil.rmtree(other, ignore_errors=True)
    stage.mkdir(exist_ok=True)
    return stage


def _has_cache(repository: str) -> bool:
    """Whether the hub's cache has anything of a repository, or of an owner's."""
    from huggingface_hub import constants

    begin = "models--" + repository.replace("/", "--")
    return any(Path(constants.HF_HUB_CACHE).glob(f"{begin}*"))


def _model_is_cached(model: str) -> bool:
    """Whether the hub's cache has the weights, and the tokenizer, of a name of open_clip's list."""
    if not _has_cache("timm"):
        return False
    import open_clip
    from huggingface_hub import try_to_load_from_cache

    name, _, tag = model.partition("/")
    repository = str(open_clip.get_pretrained_cfg(name, tag).get("hf_hub", "")).strip("/")
    weights = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
    tokenizer = open_clip.get_model_config(name)["text_cfg"].get("hf_tokenizer_name")
    return any(isinstance(try_to_load_from_cache(repository, file), str) for file in weights) and (
        not tokenizer or isinstance(try_to_load_from_cache(tokenizer, "tokenizer.json"), str)
    )
