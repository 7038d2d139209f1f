"""Where a backbone is published, and how its files get into a folder."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from vmfcoop.backbones.base import Family
from vmfcoop.backbones.catalogue import PublishedBackbone, catalogue
from vmfcoop.backbones.hub import (
    HUB,
    LICENCES,
    HubRepository,
    HubUnreachableError,
    cached_folder,
    family_of,
    hub_errors_said,
    look_up,
    matching,
    remote_file,
    require_weights,
    small_files,
)
from vmfcoop.backbones.registry import families
from vmfcoop.data.archives import DamagedArchiveError, unpack
from vmfcoop.data.downloads import Remote, download, verify
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.progress import ProgressReport, no_progress

_RAW = ".published"
"""Folder in a stage for files that are unpacked or converted, and then go."""

_TOKENIZER = (
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
)


@dataclass(frozen=True)
class Source:
    """Where a backbone is published.

    Attributes:
        spec: as the user wrote it.
        families: that it may be of.
        repository: ``owner/name`` on the hub, where it is there.
        model: ``MODEL/PRETRAINED`` of open_clip's list, where it is there.
        entry: of the catalogue, if it has one; its addresses, where it is at plain ones.
    """

    spec: str
    families: tuple[Family, ...]
    repository: str | None = None
    model: str | None = None
    entry: PublishedBackbone | None = None


@dataclass(frozen=True)
class Gathered:
    """Where the files of a folder came from, for its manifest.

    Attributes:
        tokenizer: ``owner/name@commit`` of the repository that lent the tokenizer.
        licence: as the repository's card names it, or empty.
    """

    repository: str | None = None
    commit: str | None = None
    urls: tuple[str, ...] = ()
    tokenizer: str | None = None
    licence: str = ""


def find_source(spec: str) -> Source:
    """Where the backbone of a spec is published.

    Raises:
        UserError: the spec is unknown, or names nothing to fetch.
    """
    kind, _, rest = spec.partition(":")
    entry = catalogue().get(spec)
    if entry is not None and entry.embedded:
        raise UserError(f"'{spec}' comes with the package; there is nothing to fetch.")
    if entry is not None:
        return Source(spec, named_families(entry.family), entry.repository, entry.model, entry)
    if kind == "hf" and rest:
        return Source(spec, families(), rest)
    if kind == "open_clip" and rest.startswith("hf-hub:"):
        return Source(spec, named_families("open_clip"), rest.removeprefix("hf-hub:"))
    if kind == "open_clip" and rest:
        return Source(spec, named_families("open_clip"), model=rest)
    if kind == "dir":
        raise UserError(f"'{spec}' is a folder here already; there is nothing to fetch.")
    hint = "'vmfcoop backbones list' shows all; others are hf:REPOSITORY and open_clip:MODEL/PRETRAINED."
    raise UserError(f"{unknown_name('backbone', spec, catalogue())} {hint}")


def named_families(name: str) -> tuple[Family, ...]:
    """The family of a name, alone."""
    return tuple(family for family in families() if family.name == name)


def look_up_source(source: Source, revision: str | None = None) -> HubRepository | None:
    """The repository of a source at one commit, from the hub or, without a connection, from its cache.

    Raises:
        UserError: as :func:`~vmfcoop.backbones.hub.look_up`; a revision is asked of what has none.
    """
    if source.repository is None:
        if revision is not None:
            raise UserError(f"'{source.spec}' is in no repository of the hub, so it has no revisions.")
        return None
    try:
        return look_up(source.repository, source.spec, revision)
    except HubUnreachableError:
        cached = cached_folder(source.repository, source.families, revision)
        if cached is None:
            raise
        names = tuple(path.name for path in cached[0].iterdir())
        return HubRepository(source.repository, cached[0].name, names)


def gather(
    source: Source, repository: HubRepository | None, stage: Path, progress: ProgressReport = no_progress
) -> Gathered:
    """Put all files that loading needs into a folder, going on from what an earlier attempt left there.

    Args:
        source: where the backbone is published.
        repository: as :func:`look_up_source` gave it.
        stage: the folder; it exists.
        progress: told of bytes.

    Raises:
        UserError: no network, a refusal of the hub, a checksum that differs, a damaged archive, a full disk.
    """
    entry, tokenizer = source.entry, None
    if source.model is not None:
        from vmfcoop.backbones.conversion import write_named

        write_named(source.model, stage)
        return Gathered()
    if repository is not None and (entry is None or entry.checkpoint is None):
        _take_repository(source, repository, stage, progress)
    elif entry is not None:
        _take_published_files(entry, repository, stage, progress)
    if entry is not None and entry.tokenizer is not None:
        tokenizer = _take_tokenizer(entry, stage, progress)
    if repository is None:
        return Gathered(urls=entry.urls if entry else (), tokenizer=tokenizer)
    return Gathered(repository.name, repository.commit, (), tokenizer, repository.licence)


def _take_repository(
    source: Source, repository: HubRepository, stage: Path, progress: ProgressReport
) -> None:
    """Configurations and tokenizer, by which the family is known, then what else that family reads."""
    taken = small_files(repository.files, source.families)
    for file in taken:
        _take_hub_file(repository, file, stage, source.spec, progress)
    family = family_of(stage, source.families)
    kept = {*small_files(repository.files, [family]), *require_weights(repository, family)}
    for file in sorted(kept - set(taken)):
        _take_hub_file(repository, file, stage, source.spec, progress)
    for path in stage.iterdir():
        if path.is_file() and path.name not in kept:
            path.unlink()


def _take_published_files(
    entry: PublishedBackbone, repository: HubRepository | None, stage: Path, progress: ProgressReport
) -> None:
    """Files at plain addresses, in zip archives there, or a bare checkpoint, which becomes a folder."""
    if entry.checkpoint is None and all((stage / file).is_file() for file in entry.files):
        return
    raw = stage / _RAW
    raw.mkdir(exist_ok=True)
    for url in entry.urls:
        _take_address(url, entry.key, raw, progress)
    if repository is not None:
        for file in [str(entry.checkpoint), *matching(repository.files, LICENCES)]:
            _take_hub_file(repository, file, raw, entry.key, progress)
    found = {path.name: path for path in sorted(raw.rglob("*")) if path.is_file()}
    wanted = [entry.checkpoint] if entry.checkpoint else list(entry.files)
    absent = [file for file in wanted if file not in found]
    if absent:
        raise UserError(f"What is published of '{entry.key}' lacks {absent[0]}; look at {entry.source}.")
    if entry.checkpoint and entry.architecture:
        from vmfcoop.backbones.conversion import write_checkpoint

        write_checkpoint(found[entry.checkpoint], entry.architecture, entry.text_cfg, stage)
        wanted = []
    for file in [*wanted, *matching(found, LICENCES)]:
        found[file].replace(stage / file)
    shutil.rmtree(raw)


def _take_address(url: str, name: str, raw: Path, progress: ProgressReport) -> None:
    """A file at a plain address; a zip archive is unpacked beside itself."""
    path = download(_at_address(url, name), raw / _file_name(url), progress)
    if path.suffix != ".zip":
        return
    unpacked = raw / path.stem
    shutil.rmtree(unpacked, ignore_errors=True)
    unpacked.mkdir()
    try:
        unpack(path, unpacked, progress=progress)
    except DamagedArchiveError as error:
        path.unlink()
        raise UserError(f"{error} It was removed; repeat the command to download it again.") from error


def _take_tokenizer(entry: PublishedBackbone, stage: Path, progress: ProgressReport) -> str:
    repository = look_up(str(entry.tokenizer), entry.key)
    # open_clip builds a text tower by its config.json; the others read its shape off the weights.
    config = ("config.json",) if entry.family == "open_clip" else ()
    for file in matching(repository.files, (*_TOKENIZER, *config)):
        _take_hub_file(repository, file, stage, entry.key, progress)
    return f"{repository.name}@{repository.commit}"


def _take_hub_file(
    repository: HubRepository, file: str, folder: Path, name: str, progress: ProgressReport
) -> None:
    """A file of a repository's commit: a copy out of the hub's cache, or a download."""
    import huggingface_hub as hub

    cached = hub.try_to_load_from_cache(repository.name, file, revision=repository.commit)
    if isinstance(cached, str):
        blob = Path(cached).resolve()
        verify(blob, file, sha256=blob.name if len(blob.name) == 64 else None, progress=progress)
        shutil.copyfile(blob, folder / file)
        return
    with hub_errors_said(repository.name, name):
        remote = remote_file(hub.hf_hub_url(repository.name, file, revision=repository.commit), file)
    download(remote, folder / file, progress)


def _at_address(url: str, name: str) -> Remote:
    """A plain address; of one on the hub, size and checksum are known, and HF_ENDPOINT names a mirror."""
    from huggingface_hub import constants

    if not url.startswith(f"{HUB}/"):
        return Remote(_file_name(url), url)
    with hub_errors_said(urlsplit(url).path.partition("/resolve/")[0].strip("/"), name):
        return remote_file(constants.ENDPOINT + url.removeprefix(HUB), _file_name(url))


def _file_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2])
