"""Folders of published backbones, from the model hub or its local cache: the files that loading needs."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from vmfcoop.backbones.base import Family
from vmfcoop.errors import UserError

SHARD_INDEX = "model.safetensors.index.json"


def family_of(folder: Path, families: Sequence[Family]) -> Family:
    """The family whose format a folder has.

    Raises:
        UserError: the folder is not there, or is of none.
    """
    if not folder.is_dir():
        raise UserError(f"The backbone folder '{folder}' does not exist.")
    for family in families:
        if family.recognises(folder):
            return family
    known = "; ".join(family.title for family in families)
    raise UserError(f"The folder '{folder}' is no backbone of a known format; it would hold one of: {known}.")


def hub_folder(
    repository: str,
    name: str,
    families: Sequence[Family],
    revision: str | None = None,
    to: Path | None = None,
) -> tuple[Path, Family]:
    """Fetch a hub repository, or take it from the hub's cache.

    Args:
        repository: ``owner/name`` on the hub.
        name: how the user calls the backbone, for the sentence.
        families: that it may be of.
        revision: commit, tag or branch; default the main branch.
        to: folder to put the files into; default the hub's cache.

    Returns:
        The folder, and the family whose format it has.

    Raises:
        UserError: neither the hub nor its cache can give it, its terms were not accepted, or it is of none of
            the families.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, OfflineModeIsEnabled

    small = sorted({pattern for family in families for pattern in family.small_files})
    try:
        found = snapshot_download(repository, revision=revision, allow_patterns=small, local_dir=to)
        folder = Path(found)
        family = family_of(folder, families)
        _fetch_weights(repository, folder, family, revision, to)
    except GatedRepoError as error:
        raise UserError(
            f"'{repository}' is given only to those who accepted its terms: do so at "
            f"https://huggingface.co/{repository}, then set HF_TOKEN (or run 'hf auth login') and repeat."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"The backbone '{name}' ({repository}) is not in the local hub cache and the hub gave no copy; "
            f"run 'vmfcoop backbones fetch {name} --to FOLDER' on a connected machine, copy the folder here "
            "and use 'dir:FOLDER'."
        ) from error
    return folder, family


def _fetch_weights(
    repository: str, folder: Path, family: Family, revision: str | None, to: Path | None
) -> None:
    """The preferred weight file that the repository has, or all shards of one."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    shards = _shards(folder)
    if any((folder / name).is_file() for name in family.weight_files):
        return
    # The files of the cache lie under the commit's own name: the weights are to be of the same commit.
    commit = revision if to is not None else folder.name
    if shards:
        for shard in shards:
            hf_hub_download(repository, shard, revision=commit, local_dir=to)
        return
    absent: EntryNotFoundError | None = None
    for name in family.weight_files:
        try:
            hf_hub_download(repository, name, revision=commit, local_dir=to)
            return
        except EntryNotFoundError as error:
            absent = error
    if absent is not None:
        raise absent


def _shards(folder: Path) -> list[str]:
    index = folder / SHARD_INDEX
    if not index.is_file():
        return []
    return sorted(set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values()))
