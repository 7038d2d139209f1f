"""The model hub and its local cache: which files of a published backbone are needed, and where they are."""

from __future__ import annotations

import errno
import json
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from vmfcoop.backbones.base import Family
from vmfcoop.backbones.files import first_line
from vmfcoop.data.downloads import Remote
from vmfcoop.errors import UserError
from vmfcoop.files import disk_full

HUB = "https://huggingface.co"
INDEX = ".index.json"
"""Ends the name of the file that lists the parts of weights in several files."""

LICENCES = ("LICENSE*", "LICENCE*", "NOTICE*")


class HubUnreachableError(UserError):
    """There is no way to the hub, and what was asked for is not in its cache."""


@dataclass(frozen=True)
class HubRepository:
    """A model repository of the hub at one commit.

    Attributes:
        name: ``owner/name``.
        commit: 40 hexadecimal digits.
        files: paths of all its files.
        licence: as its card names it, or empty.
    """

    name: str
    commit: str
    files: tuple[str, ...]
    licence: str = ""


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


def matching(names: Iterable[str], patterns: Iterable[str]) -> list[str]:
    """Names of a folder's own files that match one of the patterns, sorted.

    Example:
        >>> matching(["vocab.txt", "onnx/config.json", "config.json"], ["*.json", "*.txt"])
        ['config.json', 'vocab.txt']
    """
    patterns = list(patterns)
    return sorted(n for n in names if "/" not in n and any(fnmatch(n, pattern) for pattern in patterns))


def small_files(names: Iterable[str], families: Sequence[Family]) -> list[str]:
    """Names of configurations, tokenizers and licences among those of a folder, weights left out."""
    weights = {name for family in families for name in family.weight_files}
    found = matching(names, [*LICENCES, *_patterns(families)])
    return [name for name in found if name not in weights and not name.endswith(INDEX)]


def weight_files(names: Collection[str], family: Family) -> list[str]:
    """Names of the preferred weights among those of a folder: one file, or all parts and their index.

    Example:
        >>> from vmfcoop.backbones.open_clip import FAMILY
        >>> weight_files(["open_clip_pytorch_model.bin", "open_clip_model.safetensors"], FAMILY)
        ['open_clip_model.safetensors']
    """
    for wanted in family.weight_files:
        if wanted in names and not wanted.endswith(INDEX):
            return [wanted]
        index = wanted.removesuffix(INDEX) + INDEX
        if index in names:
            stem, _, suffix = wanted.removesuffix(INDEX).rpartition(".")
            return [index, *sorted(name for name in names if fnmatch(name, f"{stem}-*-of-*.{suffix}"))]
    return []


def hub_folder(
    repository: str, name: str, families: Sequence[Family], revision: str | None = None
) -> tuple[Path, Family]:
    """A hub repository in the hub's local cache; the hub is asked only for what is not there.

    Args:
        repository: ``owner/name`` on the hub.
        name: how the user calls the backbone, for the sentence.
        families: that it may be of.
        revision: commit, tag or branch; default the main branch, as it was when it was cached.

    Returns:
        The folder, and the family whose format it has.

    Raises:
        UserError: neither the cache nor the hub can give it, its terms were not accepted, or it is of none of
            the families.
    """
    from huggingface_hub import snapshot_download

    cached = cached_folder(repository, families, revision)
    if cached is not None:
        return cached
    small = _patterns(families)
    with hub_errors_said(repository, name):
        folder = Path(snapshot_download(repository, revision=revision, allow_patterns=small))
        family = family_of(folder, families)
        # The cache's folder has the commit's name: weights and configurations are to be of one commit.
        wanted = require_weights(look_up(repository, name, folder.name), family)
        snapshot_download(repository, revision=folder.name, allow_patterns=[*small, *wanted])
    return folder, family


def cached_folder(
    repository: str, families: Sequence[Family], revision: str | None = None
) -> tuple[Path, Family] | None:
    """The folder of a repository in the hub's cache and its family, if all that loading needs is there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        found = snapshot_download(
            repository, revision=revision, allow_patterns=_patterns(families), local_files_only=True
        )
        family = family_of(Path(found), families)
    except (OSError, UserError, HFValidationError):
        return None
    names = [path.name for path in Path(found).iterdir() if path.is_file()]
    weights = weight_files(names, family)
    return (Path(found), family) if weights and _is_whole(Path(found), weights) else None


def _patterns(families: Sequence[Family]) -> list[str]:
    return sorted({pattern for family in families for pattern in family.small_files})


def _is_whole(folder: Path, weights: Sequence[str]) -> bool:
    """Whether all parts are there that an index names."""
    if not weights[0].endswith(INDEX):
        return True
    index = json.loads((folder / weights[0]).read_text(encoding="utf-8"))
    return set(index.get("weight_map", {}).values()) <= set(weights)


def look_up(repository: str, name: str, revision: str | None = None) -> HubRepository:
    """Ask the hub for the commit and the files of a model repository.

    Args:
        repository: ``owner/name``.
        name: how the user calls the backbone, for the sentence.
        revision: commit, tag or branch; default the main branch.

    Raises:
        HubUnreachableError: no connection, or HF_HUB_OFFLINE is set.
        UserError: there is no such repository or revision, or it may not be seen.
    """
    from huggingface_hub import HfApi

    with hub_errors_said(repository, name):
        info = HfApi().model_info(repository, revision=revision)
        card = info.card_data
        licence = str(card.get("license_name") or card.get("license") or "") if card else ""
        return HubRepository(
            repository, str(info.sha), tuple(file.rfilename for file in info.siblings or []), licence
        )


def require_weights(repository: HubRepository, family: Family) -> list[str]:
    """The weights among a repository's files.

    Raises:
        UserError: it has none that the family reads.
    """
    found = weight_files(repository.files, family)
    if not found:
        wanted = " or ".join(family.weight_files)
        raise UserError(f"The repository '{repository.name}' has no weights that can be read: no {wanted}.")
    return found


def remote_file(url: str, file: str) -> Remote:
    """Where the hub keeps a file now, its size, and its SHA-256 where the hub states one.

    Args:
        url: address of the file on the hub.
        file: its name, for messages.
    """
    import huggingface_hub as hub

    found = hub.get_hf_file_metadata(url, token=hub.get_token())
    sha256 = found.etag if found.etag and len(found.etag) == 64 else None
    same_server = found.location.split("/")[2:3] == url.split("/")[2:3]
    token = hub.get_token() if same_server else None
    return Remote(file, found.location, found.size, sha256, None, token, found.commit_hash)


@contextmanager
def hub_errors_said(repository: str, name: str) -> Iterator[None]:
    """Turn what the hub and its client raise into a sentence with the mend.

    Args:
        repository: that is asked for.
        name: how the user calls the backbone.

    Raises:
        HubUnreachableError: there is no connection.
        UserError: anything else that the user can mend.
    """
    from huggingface_hub import errors

    try:
        yield
    except UserError:
        raise
    except errors.GatedRepoError as error:
        raise UserError(
            f"'{repository}' is given only to those who accepted its terms: do so at {HUB}/{repository}, "
            "then set HF_TOKEN (or run 'hf auth login') and repeat."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise UserError(f"'{repository}' has no such revision; name a commit, a tag or a branch.") from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise UserError(
            f"There is no model repository '{repository}' on the hub that you may see; check the name, or "
            "set HF_TOKEN if it is a private one."
        ) from error
    except Exception as error:
        raise _mendable(error, repository, name) from error


def _mendable(error: Exception, repository: str, name: str) -> Exception:
    """The sentence for a full disk or a hub out of reach; other errors stay."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return disk_full(Path(error.filename or "of the hub's cache"))
    # The HTTP client differs between versions of huggingface_hub: requests, httpx or a fork of it.
    client = type(error).__module__.partition(".")[0].startswith(("httpx", "httpcore", "requests"))
    if not client and not isinstance(error, OSError):
        return error
    return HubUnreachableError(
        f"The backbone '{name}' ({repository}) is not in the local hub cache and the hub gave no copy "
        f"({first_line(error)}); run 'vmfcoop backbones fetch {name} --to FOLDER' on a connected machine, "
        "copy the folder here and use 'dir:FOLDER'."
    )
