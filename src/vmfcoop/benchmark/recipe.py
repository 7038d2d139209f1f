"""A benchmark's recipe: backbones, datasets, methods, shots, seeds, protocols; read from YAML and checked."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from vmfcoop.data import KNOWN_DATASETS, Dataset, load_dataset
from vmfcoop.descriptions import DescriptionBank, bank_for
from vmfcoop.errors import UserError, unknown_name
from vmfcoop.evaluation.protocols import BASE_TO_NOVEL_SHOTS, EQUAL_BATCH_SIZE, EQUAL_EPOCHS, Budget
from vmfcoop.methods import METHODS, make_method

ABLATION: dict[str, dict[str, Any]] = {
    "none": {"anchor": False, "contrastive": False, "symmetric": False},
    "anc": {"contrastive": False, "symmetric": False},
    "anc + sc": {"symmetric": False},
    "SCE": {"anchor": False, "contrastive": False},
    "all": {},
}
"""Rows of the ablation (the paper's Table 3): settings of vMFCoOp by title."""

ABLATED_METHOD = "vmfcoop"
AskedProtocol = Literal["few-shot", "base-to-novel", "cross-dataset", "ablation"]
Shots = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataEntry(_Part):
    """A dataset of a recipe.

    Attributes:
        spec: a dataset key, or the path of a folder, a split JSON or a CSV.
        name: in tables; default the key, or the folder's or file's name.
        descriptions: JSON or TXT of class descriptions, or a key that the package has some for; without, the
            package's own of the spec's key, else filled templates.
        groups: CSV of groups that a split keeps together.
        class_names: names for prompts by folder name or label.
        test_fraction, val_fraction, split_seed: of the split, where the data bring none.
        window: of DICOM and NIfTI images, ``center,width`` or a CT window's name.
    """

    spec: str
    name: str = ""
    descriptions: Path | None = None
    groups: Path | None = None
    class_names: dict[str, str] = Field(default_factory=dict)
    test_fraction: float = Field(default=0.3, gt=0, lt=1)
    val_fraction: float = Field(default=0.2, ge=0, lt=1)
    split_seed: Seed = 0
    window: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _named(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and not content.get("name") and "spec" in content:
            spec = str(content["spec"])
            path = Path(spec)
            own = path.stem if path.suffix.lower() in (".csv", ".json") else path.name
            return {**content, "name": spec if spec in KNOWN_DATASETS else own}
        return content

    def dataset(self) -> Dataset:
        """The table of images with its splits.

        Raises:
            UserError: as :func:`load_dataset`.
        """
        return load_dataset(
            self.spec,
            test_fraction=self.test_fraction,
            val_fraction=self.val_fraction,
            seed=self.split_seed,
            groups=self.groups,
            class_names=self.class_names or None,
            window=self.window,
        )

    def bank(self, class_names: Sequence[str]) -> DescriptionBank:
        """Descriptions of every class.

        Raises:
            UserError: the file is at fault, or lacks a class.
        """
        return bank_for(self.spec, class_names, self.descriptions)


class MethodEntry(_Part):
    """A row of the tables.

    Attributes:
        name: of the method.
        title: of the row; default the method's own.
        settings: of the method; they win over a budget's.
        sweep: values to try of further settings, every combination a row of its own.
    """

    name: str
    title: str = ""
    settings: dict[str, Any] = Field(default_factory=dict)
    sweep: dict[str, list[Any]] = Field(default_factory=dict)

    def rows(self) -> list[MethodEntry]:
        """A row for every combination of the sweep, which its title names; the entry itself without one."""
        if not self.sweep:
            return [self]
        combinations = [
            dict(zip(self.sweep, values, strict=True)) for values in product(*self.sweep.values())
        ]
        return [
            MethodEntry(
                name=self.name,
                title=f"{self.title}, {', '.join(f'{key} = {value}' for key, value in found.items())}",
                settings={**self.settings, **found},
            )
            for found in combinations
        ]

    @model_validator(mode="before")
    @classmethod
    def _titled(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and not content.get("title") and content.get("name") in METHODS:
            return {**content, "title": METHODS[content["name"]].title}
        return content

    @model_validator(mode="after")
    def _exists(self) -> Self:
        make_method(self.name, self.settings)
        if "seed" in self.settings:
            raise UserError(
                f"The method '{self.name}' sets a seed; seeds come from the recipe's key 'seeds'."
            )
        return self


class EqualBudget(_Part):
    """The ``equal`` budget: ``epochs * ceil(images / batch_size)`` steps for every trained method."""

    epochs: int = Field(default=EQUAL_EPOCHS, ge=1)
    batch_size: int = Field(default=EQUAL_BATCH_SIZE, ge=1)


class DatasetPair(_Part):
    """Names of the data entries to fit on and to test on."""

    train: str
    test: str


class Recipe(_Part):
    """What a benchmark fits and tests; every key of a recipe file is a field.

    Attributes:
        name: of the benchmark; default the file's.
        backbones: backbone specs.
        data: datasets; a text stands for its ``spec``.
        methods: rows; a text stands for a method's name, ``all`` for every method.
        shots: numbers of support images a class (K), of few-shot and cross-dataset.
        seeds: of support sets and training.
        protocols: ``ablation`` is few-shot at ``ablation_shots`` and base-to-novel for the rows of
            :data:`ABLATION`.
        budgets: ``paper`` (each method's own steps) or ``equal`` (the same for all).
        equal: the equal budget.
        views: V cached views of a support image.
        split: whose images methods are tested on: ``test``, or ``val`` to choose settings.
        base_to_novel_shots: K of base-to-novel.
        ablation_shots: numbers of shots of the ablation.
        cross_dataset: pairs of datasets.
        device: where the towers run.
        precision: of the towers; ``auto`` is bf16 where the device is built for it.
        cache_precision: of the features kept on disk.
    """

    name: str = "benchmark"
    backbones: list[str] = Field(min_length=1)
    data: list[DataEntry] = Field(min_length=1)
    methods: list[MethodEntry] = Field(default="all", min_length=1, validate_default=True)
    shots: list[Shots] = Field(default=[1, 2, 4, 8, 16], min_length=1)
    seeds: list[Seed] = Field(default=[1, 2, 3], min_length=1)
    protocols: list[AskedProtocol] = Field(default=["few-shot", "base-to-novel"], min_length=1)
    budgets: list[Budget] = Field(default=["equal"], min_length=1)
    equal: EqualBudget = Field(default_factory=EqualBudget)
    views: int = Field(default=8, ge=1)
    split: Literal["test", "val"] = "test"
    base_to_novel_shots: Shots = BASE_TO_NOVEL_SHOTS
    ablation_shots: list[Shots] = Field(default=[1, 4, 16], min_length=1)
    cross_dataset: list[DatasetPair] = Field(default_factory=list)
    device: str = "cpu"
    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    cache_precision: Literal["fp32", "fp16"] = "fp32"

    @field_validator("data", mode="before")
    @classmethod
    def _data_entries(cls, content: Any) -> Any:
        return _spelled_out(content, "spec")

    @field_validator("methods", mode="before")
    @classmethod
    def _method_entries(cls, content: Any) -> Any:
        return _spelled_out(list(METHODS) if content == "all" else content, "name")

    @field_validator("methods")
    @classmethod
    def _swept(cls, entries: list[MethodEntry]) -> list[MethodEntry]:
        return [row for entry in entries for row in entry.rows()]

    @field_validator("backbones", "shots", "seeds", "protocols", "budgets", "ablation_shots")
    @classmethod
    def _without_repeats(cls, values: list[Any]) -> list[Any]:
        return _unique(values, "It lists {} twice; once is enough.")

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        _unique(
            [entry.title for entry in self.methods], "Two methods have the title {}; give each a 'title'."
        )
        names = _unique(
            [entry.name for entry in self.data], "Two datasets have the name {}; give each a 'name'."
        )
        for pair in self.cross_dataset:
            for name in (pair.train, pair.test):
                if name not in names:
                    raise unknown_name("dataset in cross_dataset", name, names)
        if ("cross-dataset" in self.protocols) != bool(self.cross_dataset):
            raise UserError(
                "The protocol cross-dataset and the pairs of the key 'cross_dataset' go together; give both."
            )
        return self

    def entry(self, name: str) -> DataEntry:
        """The data entry of a name."""
        return next(entry for entry in self.data if entry.name == name)


def load_recipe(path: Path | str, **changes: Any) -> Recipe:
    """Read a recipe from YAML. Relative paths in it count from its folder.

    Args:
        path: the YAML file.
        changes: keys that replace the recipe's own, unless None.

    Raises:
        UserError: the file is missing or no YAML mapping, a key is unknown (with the nearest names), or a
            value does not fit.
    """
    path = Path(path).expanduser()
    content = _read_mapping(path)
    try:
        placed = _with_full_paths(content, path.resolve().parent)
        given = {key: value for key, value in changes.items() if value is not None}
        return Recipe.model_validate({"name": path.stem, **placed, **given})
    except ValidationError as error:
        raise UserError(f"{path}: {_sentence(error)}") from error
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _spelled_out(content: Any, key: str) -> Any:
    if not isinstance(content, list):
        return content
    return [{key: item} if isinstance(item, str) else item for item in content]


def _unique(values: list[Any], complaint: str) -> list[Any]:
    seen: set[Hashable] = set()
    for value in values:
        if value in seen:
            raise UserError(complaint.format(f"'{value}'"))
        seen.add(value)
    return values


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise UserError(f"The recipe '{path}' does not exist; check its path.") from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The recipe '{path}' cannot be read; name a YAML file.") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f" in line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or "it cannot be parsed"
        raise UserError(f"The recipe '{path}' is no valid YAML{place}: {problem}.") from error
    if not isinstance(content, dict):
        raise UserError(f"The recipe '{path}' is no mapping; write lines such as 'shots: [1, 4, 16]'.")
    return {str(key): value for key, value in content.items()}


def _with_full_paths(content: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths that count from the recipe's folder, as full paths; what is no path stays as it is."""
    placed = dict(content)
    if isinstance(content.get("backbones"), list):
        placed["backbones"] = [_placed_backbone(item, folder) for item in content["backbones"]]
    if isinstance(content.get("data"), list):
        entries = _spelled_out(content["data"], "spec")
        placed["data"] = [_placed_entry(item, folder) if isinstance(item, dict) else item for item in entries]
    return placed


def _placed_backbone(spec: Any, folder: Path) -> Any:
    if isinstance(spec, str) and spec.startswith("dir:"):
        return f"dir:{_placed(spec.removeprefix('dir:'), folder)}"
    return spec


def _placed_entry(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    placed = dict(entry)
    for key in ("descriptions", "groups"):
        if isinstance(entry.get(key), str):
            placed[key] = str(_placed(entry[key], folder))
    spec = entry.get("spec")
    if isinstance(spec, str) and spec not in KNOWN_DATASETS:
        if not _placed(spec, folder).exists():
            error = unknown_name("dataset", spec, KNOWN_DATASETS)
            raise UserError(f"{error} There is no such path either, from the recipe's folder.")
        placed["spec"] = str(_placed(spec, folder))
    return placed


def _placed(path: str, folder: Path) -> Path:
    return folder / Path(path).expanduser()


def _sentence(error: ValidationError) -> str:
    """The first thing wrong, with its key; a misspelt key goes before the one that it leaves out."""
    errors = error.errors()
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    *parents, key = first["loc"] or ("",)
    place = _shown(first["loc"])
    if first["type"] == "extra_forbidden":
        kind = f"key of {_shown(parents)}" if parents else "recipe key"
        return str(unknown_name(kind, str(key), _known_keys(parents)))
    if first["type"] == "missing":
        return f"The key '{place}' is missing; add it."
    if first["type"] == "value_error":
        cause = str(first["ctx"]["error"])
        return f"{place}: {cause}" if place else cause
    return f"The key '{place}' cannot be {first['input']!r}: {first['msg']}."


def _shown(location: Sequence[int | str]) -> str:
    """``("data", 0, "spec")`` -> ``data[0].spec``."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".")


def _known_keys(parents: Sequence[int | str]) -> list[str]:
    parts: dict[int | str, type[BaseModel]] = {
        "data": DataEntry,
        "methods": MethodEntry,
        "equal": EqualBudget,
        "cross_dataset": DatasetPair,
    }
    return list((parts[parents[0]] if parents else Recipe).model_fields)
