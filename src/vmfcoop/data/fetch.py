"""Fetching a public dataset: download, check, unpack, compare with the registry, move into place."""

from __future__ import annotations

import json
import warnings
from collections import Counter
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from vmfcoop.data.archives import DamagedArchiveError, unpack
from vmfcoop.data.downloads import Remote, checksum, download, refused, verify
from vmfcoop.data.folder import list_split_file
from vmfcoop.data.installed import dataset_home, datasets_folder, install, is_here, one_at_a_time, staging
from vmfcoop.data.listing import Listing
from vmfcoop.data.medmnist import write_images
from vmfcoop.data.registry import REGISTRY_VERSION, Archive, DatasetInfo, SplitSizes, find, not_here
from vmfcoop.data.splits import SPLITS
from vmfcoop.errors import UserError
from vmfcoop.files import home, write_atomically
from vmfcoop.progress import ProgressReport, no_progress


def downloads_folder() -> Path:
    """Folder of archives while they are fetched, and of those that are kept."""
    return home() / "downloads"


def checksums_file() -> Path:
    """File with the checksums of every archive that was fetched, by its address."""
    return datasets_folder() / "checksums.json"


@dataclass(frozen=True)
class _Obtained:
    """An archive on this disk.

    Attributes:
        path: Where it is.
        address: What it is known by in the record of checksums.
        sha256: Its checksum.
        revision: Commit of the repository, where known.
        ours: Whether it lies in the downloads folder, to be removed after use.
        given: Whether the user named it, so that it could be another dataset's.
    """

    path: Path
    address: str
    sha256: str
    revision: str | None
    ours: bool
    given: bool = False


def fetch(
    key: str,
    *,
    replace: bool = False,
    keep_archive: bool = False,
    archive: Path | None = None,
    endpoint: str | None = None,
    progress: ProgressReport = no_progress,
) -> Path:
    """Put a public dataset in place and return its folder; one that is there already is left alone.

    The archive is downloaded to ``<home>/downloads`` (an interrupted download goes on from where it stopped),
    its checksum compared with the publisher's and with that of an earlier fetch, unpacked beside its place,
    and moved there whole. Where the split file differs from the registry in names or counts, a remark is
    kept in ``source.json`` and a warning given. Of two processes that fetch one key, the second waits.

    Args:
        key: Of the registry.
        replace: Fetch again and take the place of what is there.
        keep_archive: Leave the downloaded archive in ``<home>/downloads``.
        archive: The archive, where it was downloaded by other means; nothing is asked of the network then.
        endpoint: Address of the hub; default HF_ENDPOINT or huggingface.co.
        progress: Told of bytes and files.

    Raises:
        UserError: the key is unknown or access has to be applied for; no network; the server refuses; a
            checksum differs; the archive is damaged, unsafe or laid out otherwise; or the disk is full.

    Warns:
        UserWarning: the split file differs from the registry.
    """
    info = find(key)
    if info.archive is None:
        raise not_here(info)
    with one_at_a_time(info.key, progress):
        if is_here(info.key) and not replace:
            return dataset_home(info.key)
        if archive is None:
            got = _obtain(info.archive, endpoint, progress)
        else:
            got = _given(info.archive, archive, progress)
        _compare_with_earlier(got)
        place = _put_in_place(info, got, replace, progress)
        _remember(got)
        if got.ours and not keep_archive:
            got.path.unlink(missing_ok=True)
    return place


def _obtain(archive: Archive, endpoint: str | None, progress: ProgressReport) -> _Obtained:
    remote, cached = _on_hub(archive, endpoint) if archive.kind == "hub" else (_at_url(archive), None)
    path = cached or download(remote, downloads_folder() / archive.file, progress)
    # Downloads are checked already; a file of the hub's own cache is checked here.
    if cached:
        verify(cached, remote.name, sha256=remote.sha256, progress=progress)
    sha256 = remote.sha256 or checksum(path, progress=progress)
    return _Obtained(path, _address(archive), sha256, remote.revision, ours=cached is None)


def _given(archive: Archive, path: Path, progress: ProgressReport) -> _Obtained:
    if not path.is_file():
        raise UserError(f"There is no archive '{path}'; give the {archive.file} that you downloaded.")
    if archive.md5 and checksum(path, "md5", progress) != archive.md5:
        raise UserError(
            f"'{path}' is not the {archive.file} of {archive.url} (md5 differs); download it again."
        )
    return _Obtained(path, _address(archive), checksum(path, progress=progress), None, ours=False, given=True)


def _address(archive: Archive) -> str:
    return archive.url or f"hf://datasets/{archive.repo}/{archive.file}"


def _at_url(archive: Archive) -> Remote:
    return Remote(archive.file, str(archive.url), md5=archive.md5)


def _on_hub(archive: Archive, endpoint: str | None) -> tuple[Remote, Path | None]:
    """Where the hub has the file now, and the copy in the hub's own cache if there is one."""
    import huggingface_hub as hub
    from huggingface_hub.utils import EntryNotFoundError, HfHubHTTPError, OfflineModeIsEnabled

    repo, file = str(archive.repo), archive.file
    url = hub.hf_hub_url(repo, file, repo_type="dataset", revision=archive.revision, endpoint=endpoint)
    try:
        found = hub.get_hf_file_metadata(url, token=hub.get_token())
    except OfflineModeIsEnabled as error:
        cached = _in_hub_cache(archive, archive.revision)
        if cached is None:
            raise UserError(
                f"{file} is not here and HF_HUB_OFFLINE forbids to download it; unset it, or give a copy of "
                f"{url} with --archive."
            ) from error
        return Remote(file, url), cached
    except HfHubHTTPError as error:
        raise refused(file, url, error.response.status_code) from error
    except EntryNotFoundError as error:
        raise refused(file, url, 404) from error
    except Exception as error:
        raise _no_network(file, url, error) from error
    if not found.etag:
        raise UserError(f"{url} is no file of a hub; check the address that HF_ENDPOINT names.")
    sha256 = found.etag if len(found.etag) == 64 else None
    same_server = found.location.split("/")[2:3] == url.split("/")[2:3]
    token = hub.get_token() if same_server else None
    remote = Remote(file, found.location, found.size, sha256, None, token, found.commit_hash)
    return remote, _in_hub_cache(archive, found.commit_hash)


def _in_hub_cache(archive: Archive, revision: str | None) -> Path | None:
    import huggingface_hub as hub

    found = hub.try_to_load_from_cache(
        str(archive.repo), archive.file, repo_type="dataset", revision=revision
    )
    return Path(found) if isinstance(found, str) else None


def _no_network(file: str, url: str, error: Exception) -> Exception:
    """A sentence for what the hub's HTTP client raises without a connection; other errors stay."""
    # The client's library differs between versions of huggingface_hub: requests, httpx or a fork of it.
    client = type(error).__module__.partition(".")[0]
    if isinstance(error, OSError) or client.startswith(("httpx", "httpcore", "requests")):
        return UserError(
            f"{file} could not be downloaded: no connection to {url} ({error}); check the network, or give a "
            "copy that you downloaded elsewhere with --archive."
        )
    return error


def _compare_with_earlier(got: _Obtained) -> None:
    earlier = _checksums().get(got.address, {}).get("sha256")
    if earlier and earlier != got.sha256:
        raise UserError(
            f"{got.path.name} has changed since it was fetched before (sha256 {got.sha256[:12]}…, then "
            f"{earlier[:12]}…), so figures may not compare; if that is meant, remove its entry from "
            f"'{checksums_file()}' and repeat the command."
        )


def _remember(got: _Obtained) -> None:
    from filelock import FileLock

    with FileLock(datasets_folder() / ".checksums.lock"):
        entry = {"sha256": got.sha256, "bytes": got.path.stat().st_size, "revision": got.revision}
        known = _checksums() | {got.address: entry}
        write_atomically(checksums_file(), json.dumps(known, indent=1) + "\n")


def _checksums() -> dict[str, dict[str, Any]]:
    try:
        known = json.loads(checksums_file().read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"'{checksums_file()}' cannot be read; restore or remove it.") from error
    if not isinstance(known, dict) or not all(isinstance(entry, dict) for entry in known.values()):
        raise UserError(f"'{checksums_file()}' is no record of checksums; restore or remove it.")
    return known


def _put_in_place(info: DatasetInfo, got: _Obtained, replace: bool, progress: ProgressReport) -> Path:
    with staging(info.key) as folder:
        try:
            data, left_out = _fill(info, got, folder, progress)
        except DamagedArchiveError as error:
            if not got.ours:
                raise UserError(f"{error} Give another copy.") from error
            got.path.unlink(missing_ok=True)
            raise UserError(f"{error} It was removed; repeat the command to download it again.") from error
        listing = _read_split_file(got.path.name, folder, data)
        if got.given:
            _refuse_other_dataset(info, got.path.name, listing)
        remarks = _differences(info, listing)
        place = install(info.key, folder, _record(info, got, data, listing, left_out, remarks), replace)
    for remark in remarks:
        warnings.warn(remark, UserWarning, stacklevel=3)
    return place


def _fill(
    info: DatasetInfo, got: _Obtained, folder: Path, progress: ProgressReport
) -> tuple[str, dict[str, int]]:
    """Put the images into the folder; return the path of the split file and the images left out."""
    if info.collection == "medmnist":
        size = int(info.size or 0)
        return write_images(got.path, folder, info.key, info.class_names, size, progress)
    images = folder / "images"
    images.mkdir()
    unpack(got.path, images, progress=progress)
    return _split_file(got.path.name, folder), {}


def _split_file(name: str, folder: Path) -> str:
    found = sorted(folder.rglob("split_*.json"), key=lambda path: (len(path.parts), path))
    named = [path for path in found if path.name == f"split_{Path(name).stem}.json"]
    if not found:
        raise UserError(f"{name} holds no split_*.json, so it is not laid out as the registry says.")
    if not named and len(found) > 1:
        files = ", ".join(path.name for path in found)
        raise UserError(f"{name} holds several split files ({files}), none of them named after it.")
    return (named or found)[0].relative_to(folder).as_posix()


def _read_split_file(name: str, folder: Path, data: str) -> Listing:
    """The images that the split file lists, each of them there and inside the folder."""
    try:
        listing = list_split_file(folder / data)
    except UserError as error:
        # The folder is gone by the time the sentence is read.
        sentence = str(error).replace(f"{folder}/", "")
        raise UserError(f"{name} is not laid out as the registry says: {sentence}") from error
    for row in listing.rows:
        path = PurePosixPath(row.file)
        if path.is_absolute() or ".." in path.parts:
            raise UserError(f"The split file of {name} lists {row.file!r}, which leads out of its folder.")
    return listing


def _refuse_other_dataset(info: DatasetInfo, name: str, listing: Listing) -> None:
    """A changed name is a remark, but an archive without one known class is not the dataset."""
    names = _plain_names(listing)
    if {name.casefold() for name in names}.isdisjoint(name.casefold() for name in info.class_names):
        raise UserError(
            f"{name} is another dataset's archive: it has the classes {', '.join(names)}, and {info.key} has "
            f"{', '.join(info.class_names)}; give that of {info.key}."
        )


def _plain_names(listing: Listing) -> list[str]:
    return [key.replace("_", " ") for key in listing.class_keys]


def _differences(info: DatasetInfo, listing: Listing) -> list[str]:
    """Sentences on where the fetched data differ from the registry."""
    remarks = []
    names = _plain_names(listing)
    if [name.casefold() for name in names] != [name.casefold() for name in info.class_names]:
        remarks.append(
            f"{info.key} has the classes {', '.join(names)}; the registry has {', '.join(info.class_names)}. "
            "Those of the data count."
        )
    sizes = _sizes(listing)
    if info.splits is not None and sizes != info.splits:
        remarks.append(
            f"{info.key} has {sizes.train}/{sizes.val}/{sizes.test} images in train/val/test; the registry "
            f"has {info.splits.train}/{info.splits.val}/{info.splits.test}."
        )
    return remarks


def _sizes(listing: Listing) -> SplitSizes:
    counts = Counter(row.split for row in listing.rows)
    return SplitSizes(**{split: counts[split] for split in SPLITS})


def _record(
    info: DatasetInfo,
    got: _Obtained,
    data: str,
    listing: Listing,
    left_out: dict[str, int],
    remarks: list[str],
) -> dict[str, Any]:
    """Content of ``source.json``."""
    source = {**asdict(got), "path": got.path.name}
    del source["ours"], source["given"]
    return {
        "key": info.key,
        "title": info.title,
        "data": data,
        "source": {**source, "bytes": got.path.stat().st_size},
        "fetched": datetime.now(UTC).isoformat(timespec="seconds"),
        "registry_version": REGISTRY_VERSION,
        "licence": info.licence,
        "class_names": list(listing.class_keys),
        "files": len(listing.rows),
        "splits": _sizes(listing).model_dump(),
        "left_out": left_out,
        "remarks": remarks,
    }
