"""Published backbones that have a key, as data: where they are, how large, and what they may be used for."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from functools import cache
from importlib import resources
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, StringConstraints, model_validator

Repository = Annotated[str, StringConstraints(pattern=r"^[\w.-]+/[\w.-]+$")]
Address = Annotated[str, StringConstraints(pattern=r"^https://\S+$")]


class PublishedBackbone(BaseModel):
    """What is known of a published CLIP without having it.

    Its weights are in exactly one place: in the package (``embedded``), under a name of open_clip's own list
    (``model``), in a model repository of the Hugging Face hub (``repository``), or at plain addresses
    (``urls``). None stands for what no source of ours says.

    Attributes:
        key: spec string that loads it.
        family: name of the :class:`~vmfcoop.backbones.base.Family` that loads its files.
        domain: what it was trained on.
        title: for people, with the towers.
        embedded: whether it comes with the package.
        model: ``MODEL/PRETRAINED`` of open_clip's list.
        repository: ``owner/name`` on the hub.
        urls: addresses of the published files; a zip holds them.
        files: names of the weight files that the family reads, where ``urls`` gives them.
        checkpoint: name of the weight file, where it is a bare checkpoint without a configuration.
        architecture: open_clip's name of the towers that a bare checkpoint holds.
        text_cfg: open_clip's ``text_cfg`` of the text tower, where it is not the architecture's own.
        tokenizer: hub repository with the tokenizer (and the text tower's ``config.json``), where the
            published files have none.
        parameters: of both towers, in millions.
        resolution: height and width of an input image in pixels.
        context_length: most tokens of a text, marks included.
        dim: width d of the shared embedding space.
        licence: its name, or ``see source page`` where ours did not state it.
        terms: address of the licence's text, where it is not a common one.
        limits: what it may be used for, a sentence.
        gated: whether the hub asks for the terms to be accepted first.
        source: page of the publisher.
        citation: what to cite, with DOI or arXiv number.
        note: what else a user must know.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    family: Literal["open_clip", "transformers", "pmc-clip", "medclip"]
    domain: Literal[
        "drawings of this package",
        "several modalities",
        "radiology",
        "pathology",
        "dermatology",
        "ultrasound",
        "photographs",
    ]
    title: str
    embedded: bool = False
    model: Repository | None = None
    repository: Repository | None = None
    urls: tuple[Address, ...] = ()
    files: tuple[str, ...] = ()
    checkpoint: str | None = None
    architecture: str | None = None
    text_cfg: dict[str, str | int] | None = None
    tokenizer: Repository | None = None
    parameters: float | None = None
    resolution: int | None = None
    context_length: int | None = None
    dim: int | None = None
    licence: str
    terms: Address | None = None
    limits: str
    gated: bool = False
    source: str
    citation: str = ""
    note: str = ""

    @model_validator(mode="after")
    def _is_consistent(self) -> Self:
        places = [self.embedded, self.model is not None, self.repository is not None, bool(self.urls)]
        if sum(places) != 1:
            raise ValueError(f"{self.key}: one of embedded, model, repository and urls says where it is")
        if bool(self.urls) != bool(self.files):
            raise ValueError(f"{self.key}: urls and files go together")
        if (self.checkpoint is None) != (self.architecture is None):
            raise ValueError(f"{self.key}: a bare checkpoint needs an architecture, nothing else has one")
        if self.text_cfg is not None and self.architecture is None:
            raise ValueError(f"{self.key}: text_cfg replaces a part of an architecture")
        return self


@cache
def catalogue() -> dict[str, PublishedBackbone]:
    """Every published backbone by its key, in the order of ``catalogue.toml``; read once.

    Example:
        >>> catalogue()["biomedclip"].dim
        512
    """
    text = resources.files("vmfcoop.backbones").joinpath("catalogue.toml").read_text(encoding="utf-8")
    return {key: PublishedBackbone(key=key, **entry) for key, entry in tomllib.loads(text).items()}


def listing(here: Callable[[str], bool]) -> list[dict[str, Any]]:
    """Every published backbone as a row for JSON and for tables.

    Args:
        here: whether the backbone of a key can be loaded without a network.

    Returns:
        All fields of :class:`PublishedBackbone` by name, and ``here``.
    """
    return [{**entry.model_dump(mode="json"), "here": here(key)} for key, entry in catalogue().items()]
