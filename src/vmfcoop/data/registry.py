"""Datasets known by a key: the public ones of ``datasets.toml`` and the drawn phantoms."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from vmfcoop.data.installed import data_path, is_here
from vmfcoop.data.phantoms.library import PHANTOMS, materialise
from vmfcoop.errors import UserError, unknown_name

DatasetLocator = Callable[[], Path]
"""Puts the dataset in place if need be and returns its folder or file, in a layout ``load_dataset`` reads."""

MEDMNIST_SIZE = 224
"""Pixels of a MedMNIST key without ``@size``."""


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SplitSizes(_Frozen):
    """Images of each official part."""

    train: int
    val: int
    test: int


class Archive(_Frozen):
    """Where the published file is.

    Attributes:
        kind: ``hub`` for a file of a dataset repository on the Hugging Face hub, ``url`` for a plain address.
        file: Name of the file.
        repo: Repository, of the hub.
        revision: Branch, tag or commit, of the hub.
        url: Address, of a plain one.
        md5: Checksum that the publisher states, where it does.
    """

    kind: Literal["hub", "url"]
    file: str
    repo: str | None = None
    revision: str | None = None
    url: str | None = None
    md5: str | None = None


class DatasetInfo(_Frozen):
    """What is known of a public dataset without having it.

    Attributes:
        key: Name in data specs; MedMNIST below 224 pixels ends in ``@size``.
        collection: Of which it is part.
        title: For people.
        modality: Kind of imaging.
        organ: What is imaged.
        class_names: In the order of the labels.
        splits: Sizes of the official parts, or None where they are not published.
        file_splits: Sizes of the parts in the published file, where images are left out from it.
        source: Page of the publisher.
        licence: Its name, or where to read it.
        restrictions: What it demands or forbids, a sentence.
        citation: What to cite, with DOI or address.
        archive: The published file, or None where there is none to fetch.
        layout: What the file holds, a sentence.
        caveat: The gravest known fault in a few words, or empty.
        faults: What is known to be wrong, a sentence each.
        access: ``free``, or ``apply`` where the publisher grants access to approved projects.
        access_text: How to apply.
        classes_proposed: Whether the class names are our proposal rather than the publisher's.
        size: Width of the images in pixels where the key fixes it.
        variant_of: Key of the same dataset at its usual size.
    """

    key: str
    collection: Literal["paper", "medmnist"]
    title: str
    modality: str
    organ: str
    class_names: tuple[str, ...]
    splits: SplitSizes | None = None
    file_splits: SplitSizes | None = None
    source: str
    licence: str
    restrictions: str
    citation: str
    archive: Archive | None = None
    layout: str
    caveat: str = ""
    faults: tuple[str, ...] = ()
    access: Literal["free", "apply"] = "free"
    access_text: str = ""
    classes_proposed: bool = False
    size: int | None = None
    variant_of: str | None = None


def _read_registry() -> tuple[int, dict[str, DatasetInfo]]:
    text = resources.files("vmfcoop.data").joinpath("datasets.toml").read_text(encoding="utf-8")
    content = tomllib.loads(text)
    infos = [
        info for key, entry in content["datasets"].items() for info in _infos_of(key, dict(entry), content)
    ]
    return content["version"], {info.key: info for info in infos}


def _infos_of(key: str, entry: dict[str, Any], content: dict[str, Any]) -> list[DatasetInfo]:
    """One dataset, or one for each size of a MedMNIST set."""
    for name in ("splits", "file_splits"):
        if name in entry:
            entry[name] = dict(zip(("train", "val", "test"), entry[name], strict=True))
    if entry.pop("ukbiobank", False):
        shared = content["ukbiobank"] | {"collection": "paper", "access": "apply", "classes_proposed": True}
        return [DatasetInfo.model_validate({"key": key, **shared, **entry})]
    if "flag" in entry:
        return _medmnist_infos(key, entry, content["medmnist"])
    return [_hub_info(key, entry, content["hub"])]


def _hub_info(key: str, entry: dict[str, Any], hub: dict[str, str]) -> DatasetInfo:
    file = entry.pop("hub_file")
    archive = Archive(kind="hub", file=file, repo=hub["repo"], revision=hub["revision"])
    entry["layout"] = hub["layout"].replace("{file}", f"split_{Path(file).stem}.json")
    entry["citation"] = f"{entry['citation']} {hub['citation']}"
    return DatasetInfo(key=key, collection="paper", archive=archive, **entry)


def _medmnist_infos(key: str, entry: dict[str, Any], shared: dict[str, str]) -> list[DatasetInfo]:
    flag, md5 = entry.pop("flag"), entry.pop("md5")
    entry["citation"] = f"{shared['citation']} {entry['citation']}"
    infos = []
    for size in sorted(map(int, md5), reverse=True):
        file = f"{flag}.npz" if size == 28 else f"{flag}_{size}.npz"
        url = shared["url"].replace("{file}", file)
        infos.append(
            DatasetInfo(
                key=key if size == MEDMNIST_SIZE else f"{key}@{size}",
                collection="medmnist",
                source=shared["source"],
                layout=shared["layout"],
                archive=Archive(kind="url", file=file, url=url, md5=md5[str(size)]),
                size=size,
                variant_of=None if size == MEDMNIST_SIZE else key,
                **entry,
            )
        )
    return infos


REGISTRY_VERSION, REGISTRY = _read_registry()
"""Version of ``datasets.toml``, and every public dataset by its key."""


def find(key: str) -> DatasetInfo:
    """What is known of a dataset; ``medmnist-path@224`` is ``medmnist-path``.

    Raises:
        UserError: there is no such key, or it is that of a drawn dataset.
    """
    if key in PHANTOMS:
        raise UserError(f"{key} is drawn when first used; there is nothing to fetch or import.")
    plain = key.removesuffix(f"@{MEDMNIST_SIZE}")
    info = REGISTRY.get(plain)
    if info is None or (plain != key and info.size != MEDMNIST_SIZE):
        raise unknown_name("dataset", key, REGISTRY)
    return info


def locate(key: str) -> Path:
    """Folder or split file of a public dataset that is here, for ``load_dataset``.

    Raises:
        UserError: there is no such key, or the dataset is not here; the sentence says how to get it.
    """
    info = find(key)
    if not is_here(info.key):
        raise not_here(info)
    return data_path(info.key)


def not_here(info: DatasetInfo) -> UserError:
    """The error for a dataset that is not here, with the way to get it."""
    if info.access == "apply":
        return UserError(
            f"{info.key} is not here; with images of your own run `vmfcoop data import {info.key} --from "
            f"FOLDER`. {info.access_text}"
        )
    return UserError(
        f"{info.key} is not here; run `vmfcoop data fetch {info.key}` (licence: {info.licence}. "
        f"{info.restrictions})"
    )


KNOWN_DATASETS: dict[str, DatasetLocator] = {
    **{key: partial(materialise, key) for key in PHANTOMS},
    **{key: partial(locate, key) for key in REGISTRY},
    **{
        f"{key}@{MEDMNIST_SIZE}": partial(locate, key)
        for key, info in REGISTRY.items()
        if info.size == MEDMNIST_SIZE
    },
}
"""Locator by key. ``load_dataset`` looks here for a spec that is not an existing path."""
