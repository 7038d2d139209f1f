"""What a report of a run rests on: its own files and, where they are still there, its data and backbone."""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from vmfcoop.backbones.registry import resolve_device
from vmfcoop.data import Dataset
from vmfcoop.descriptions import (
    TEMPLATE_SOURCE,
    DescriptionBank,
    load_descriptions,
    packaged_descriptions,
    template_bank,
)
from vmfcoop.descriptions.bank import packaged_keys
from vmfcoop.errors import UserError
from vmfcoop.methods import METHODS
from vmfcoop.methods.prompt import PromptMethod
from vmfcoop.methods.zero_shot import name_embeddings
from vmfcoop.pipeline import OpenRun, draw_phantoms, open_run, recorded_dataset
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import ADAPTER, HISTORY, METRICS, PREDICTIONS, RECORD, Run, read_run
from vmfcoop.sphere import VonMisesFisherFit, fit_vmf
from vmfcoop.trust.calibration import tempered
from vmfcoop.trust.record import Trust, read_trust

SMALLEST = 5e-7
"""What a probability is taken for that ``predictions.csv`` rounds to 0."""

TIE = 1e-9
"""What the recorded class is given where rounded numbers tie; far below what rounding takes away."""

OTHER, OTHER_REDUCED = 0.05, 0.25
"""Difference of probabilities from those recorded that no other device or library explains: with towers in
fp32, and in reduced precision."""

_PROMPT = "prompt."
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class RecordedPredictions:
    """The test images of a run as ``predictions.csv`` has them.

    Attributes:
        files: n names, as the data name them.
        labels: shape ``(n,)``.
        probabilities: shape ``(n, C)``, rounded to six digits; the recorded class is the highest.
    """

    files: tuple[str, ...]
    labels: NDArray[np.int64]
    probabilities: NDArray[np.float64]

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The most probable class, shape ``(n,)``."""
        best: NDArray[np.int64] = self.probabilities.argmax(axis=1).astype(np.int64)
        return best


@dataclass(frozen=True, eq=False)
class Evidence:
    """Everything that the parts of a report are made of; None where it is not there.

    Attributes:
        run: the run directory.
        predictions: of the test images.
        history: one row an epoch; empty where nothing was trained.
        trust: the calibration record.
        table: the data.
        opened: backbone and classifier.
        bank: the descriptions.
        state: ``adapter.safetensors``; empty where it is missing.
        missing: why something is None, a sentence each, by its name.
    """

    run: Run
    predictions: RecordedPredictions | None
    history: list[dict[str, float]]
    trust: Trust | None
    table: Dataset | None
    opened: OpenRun | None
    bank: DescriptionBank | None
    state: dict[str, Tensor]
    missing: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The C class names."""
        return self.run.class_names

    @cached_property
    def groups(self) -> NDArray[np.str_] | None:
        """Group of each test image; None where there are none, or the data are gone."""
        if self.table is None or self.table.groups is None or self.predictions is None:
            return None
        rows = self.table.indices("test")
        by_file = {self.table.file(int(row)): str(self.table.groups[row]) for row in rows}
        if not set(self.predictions.files) <= by_file.keys():
            return None
        return np.array([by_file[file] for file in self.predictions.files], np.str_)

    @cached_property
    def images(self) -> dict[str, Path]:
        """Where the images lie, by the name that the run has for them."""
        if self.table is None:
            return {}
        return {self.table.file(row): path for row, path in enumerate(self.table.paths)}

    @cached_property
    def support_labels(self) -> NDArray[np.int64] | None:
        """Class of each image of the support set, in the order of the record; None without the data."""
        if self.table is None:
            return None
        by_file = {self.table.file(row): int(label) for row, label in enumerate(self.table.labels)}
        files = self.run.record["support"]["train"]
        return np.array([by_file[file] for file in files]) if set(files) <= by_file.keys() else None

    @cached_property
    def support_features(self) -> Tensor | None:
        """Of the plain view of the support images, ``(n, d)``."""
        return None if self.support_labels is None else self._encoded(self.run.record["support"]["train"])

    @cached_property
    def test_features(self) -> Tensor | None:
        """Of the test images, ``(n, d)``."""
        return None if self.predictions is None else self._encoded(self.predictions.files)

    def _encoded(self, files: Sequence[str]) -> Tensor | None:
        if self.opened is None or not set(files) <= self.images.keys():
            return None
        try:
            return self.opened.encoder.encode_image_files([self.images[file] for file in files])[:, 0]
        except UserError as error:
            self.missing["images"] = f"An image cannot be read: {error}"
            return None

    @cached_property
    def exact_logits(self) -> Tensor | None:
        """Logits of the test images, ``(n, C)``; None without data or backbone.

        None too where the images now give other probabilities than those recorded.
        """
        features, found = self.test_features, self.predictions
        if self.opened is None or features is None or found is None:
            return None
        with torch.no_grad():
            logits = self.opened.fitted.logits(features)
        change = float(np.abs(tempered(logits, 1.0) - found.probabilities).max())
        full = self.run.record["backbone"].get("precision", "fp32") == "fp32"
        if change <= (OTHER if full else OTHER_REDUCED):
            return logits
        self.missing["changed"] = (
            f"The test images now give other probabilities than those recorded, by up to {change:.2f}: they, "
            "how they are read, or the adapter changed since the run was fitted."
        )
        return None

    @cached_property
    def test_logits(self) -> Tensor | None:
        """The exact ones, else logs of the recorded probabilities."""
        if self.exact_logits is not None:
            return self.exact_logits
        if self.predictions is None:
            return None
        return torch.from_numpy(np.log(self.predictions.probabilities.clip(min=SMALLEST)))

    @cached_property
    def prompts_before(self) -> Tensor | None:
        """Unit embeddings of "a photo of a CLASS.", ``(C, d)``."""
        return None if self.opened is None else name_embeddings(self.opened.encoder, self.names)

    @cached_property
    def prompts_after(self) -> Tensor | None:
        """Unit embeddings of the prompts that a method learned, ``(C, d)``; None where it learned none."""
        method = METHODS.get(self.run.record["method"]["name"])
        if method is not None and issubclass(method, PromptMethod):
            return self.state.get("class_embeddings")
        return self.state.get(_PROMPT + "class_embeddings")

    @cached_property
    def anchors(self) -> Tensor | None:
        """Unified semantic anchors, unit rows, ``(C, d)``, of the methods that have them."""
        return self._kept("anchors")

    @cached_property
    def recorded_lengths(self) -> list[float] | None:
        """Resultant length of the vocabulary's field and of each class's, as kept, 1 + C of them."""
        lengths = self._kept("field_resultant_lengths")
        return None if lengths is None else [float(length) for length in lengths]

    def _kept(self, key: str) -> Tensor | None:
        """A tensor of the adapter, also where it is that of the prompts inside another classifier."""
        return self.state.get(key, self.state.get(_PROMPT + key))

    @cached_property
    def class_fields(self) -> tuple[VonMisesFisherFit, ...] | None:
        """The laws of the classes' descriptions, by maximum likelihood."""
        if self.opened is None or self.bank is None:
            return None
        texts = self.bank.for_classes(self.names)
        try:
            return tuple(fit_vmf(self.opened.encoder.encode_texts(list(rows))) for rows in texts)
        except UserError as error:
            self.missing["fields"] = f"The descriptions of a class have no field: {error}"
            return None

    def why(self, *names: str) -> str:
        """Sentences that say why things are not there."""
        return " ".join(dict.fromkeys(self.missing[name] for name in names if name in self.missing))


def gather(
    folder: Path,
    backbone: str | None = None,
    device: str = "auto",
    progress: ProgressReport = no_progress,
) -> Evidence:
    """Read a run directory, and open its data and backbone where they are still there.

    Raises:
        UserError: the folder is no run directory, its record or metrics are damaged, the device is absent, or
            ``backbone`` is named and is not that of the run.
    """
    run = _whole(read_run(folder))
    resolve_device(device)
    missing: dict[str, str] = {}

    def attempt(name: str, what: str, get: Callable[[], _T]) -> _T | None:
        try:
            return get()
        except UserError as error:
            missing[name] = f"{what}: {error}"
            return None

    state = attempt("adapter", "What was learned cannot be read", lambda: _state(run))
    opened = None
    if state is None:
        missing["backbone"] = missing["adapter"]
    elif backbone is not None:
        opened = _open(run, backbone, device, progress)
    else:
        found = "The backbone is not at hand"
        opened = attempt("backbone", found, lambda: _open(run, None, device, progress))
    return Evidence(
        run=run,
        predictions=attempt("predictions", "The predictions cannot be read", lambda: read_predictions(run)),
        history=attempt("history", "The history cannot be read", lambda: read_history(run)) or [],
        trust=attempt("trust", "The calibration record cannot be read", lambda: read_trust(run)),
        table=attempt("data", "The data are not at hand", lambda: _dataset(run, progress)),
        opened=opened,
        bank=attempt("descriptions", "The descriptions are not at hand", lambda: recorded_bank(run)),
        state=state or {},
        missing=missing,
    )


_RECORDED = {
    "method": ("name", "config"),
    "backbone": ("spec", "fingerprint", "device"),
    "data": (
        *("spec", "name", "fingerprint", "class_names", "renamed_classes", "images", "grouped", "groups"),
        *("test_fraction", "val_fraction", "split_seed"),
    ),
    "support": ("shots", "seed", "views", "train", "val"),
    "descriptions": ("source", "fingerprint", "per_class"),
    "command": (),
}
_NUMBERS = ("n", "accuracy", "balanced_accuracy", "macro_f1", "ece")
_OF_A_CLASS = ("precision", "recall", "f1", "support")


def _whole(run: Run) -> Run:
    """A run whose record and metrics have what every version wrote, completed by what early ones did not.

    Raises:
        UserError: something is missing, or is no number.
    """
    for part, keys in _RECORDED.items():
        found = run.record.get(part)
        if found is None or not all(key in found for key in keys):
            raise UserError(f"'{run.folder / RECORD}' is damaged: its part '{part}' is not whole; fit again.")
    try:
        metrics, names = run.metrics, run.class_names
        rows = [metrics["per_class"][name] for name in names]
        numbers = [metrics[key] for key in _NUMBERS] + [row[key] for row in rows for key in _OF_A_CLASS]
        matrix = np.array(metrics["confusion_matrix"])
        if not np.isfinite(numbers).all() or matrix.shape != (len(rows), len(rows)) or not names:
            raise ValueError("no numbers")
        majority = max(row["support"] for row in rows) / metrics["n"]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"'{run.folder / METRICS}' is damaged or of other classes than the run; fit again."
        ) from error
    return replace(run, metrics={"chance": 1 / len(rows), "majority": majority, **metrics})


def _open(run: Run, backbone: str | None, device: str, progress: ProgressReport) -> OpenRun:
    try:
        return open_run(run, backbone, device, progress=progress)
    except KeyError as error:
        raise UserError(
            f"'{run.folder / ADAPTER}' lacks {error}, which the method needs; fit again."
        ) from error


def _dataset(run: Run, progress: ProgressReport) -> Dataset:
    draw_phantoms(run.record["data"]["spec"], progress)
    return recorded_dataset(run)


def _state(run: Run) -> dict[str, Tensor]:
    path = run.folder / ADAPTER
    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"'{path}' is missing or damaged.") from error
    if not all(bool(tensor.isfinite().all()) for tensor in state.values()):
        raise UserError(
            f"'{path}' holds numbers that are not finite, as a training that diverged leaves them."
        )
    for key, tensor in state.items():
        more = _MORE_THAN_CLASSES.get(key.removeprefix(_PROMPT))
        if more is not None and len(tensor) != len(run.class_names) + more:
            raise UserError(f"'{path}' is of other classes than the run.")
    return state


_MORE_THAN_CLASSES = {
    "anchors": 0,
    "class_embeddings": 0,
    "field_concentrations": 1,  # the vocabulary's
    "field_resultant_lengths": 1,
}
"""Rows of what an adapter keeps of the classes, beyond one each."""


def read_predictions(run: Run) -> RecordedPredictions:
    """``predictions.csv`` of a run.

    Raises:
        UserError: it is missing, is not of the run's classes, or does not give the counts of
            ``metrics.json``.
    """
    path = run.folder / PREDICTIONS
    names = run.class_names
    try:
        rows = _csv_rows(path)
        labels = np.array([names.index(row["label"]) for row in rows], np.int64)
        predicted = np.array([names.index(row["predicted"]) for row in rows], np.int64)
        shares = np.array([[float(row[f"p({name})"]) for name in names] for row in rows])
        files = tuple(row["image"] for row in rows)
    except (OSError, KeyError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"'{path}' is missing or damaged.") from error
    if not rows:
        raise UserError(f"'{path}' has no rows.")
    _check_probabilities(path, shares, predicted)
    shares[np.arange(len(rows)), predicted] += TIE
    counts = np.zeros((len(names), len(names)), int)
    np.add.at(counts, (labels, predicted), 1)
    if not np.array_equal(counts, run.metrics["confusion_matrix"]):
        raise UserError(f"'{path}' is not whole or was changed: '{METRICS}' has other counts.")
    return RecordedPredictions(files, labels, shares)


def _check_probabilities(path: Path, shares: NDArray[np.float64], predicted: NDArray[np.int64]) -> None:
    rounding = 1e-6 * (shares.shape[1] + 1)
    highest = shares[np.arange(len(shares)), predicted] >= shares.max(axis=1)
    if not (highest.all() and (shares >= 0).all() and (abs(shares.sum(axis=1) - 1) <= rounding).all()):
        raise UserError(f"'{path}' has rows that are no probabilities of the classes.")


def read_history(run: Run) -> list[dict[str, float]]:
    """``history.csv`` of a run: one row an epoch, empty where nothing was trained.

    Raises:
        UserError: it is missing or damaged.
    """
    path = run.folder / HISTORY
    try:
        rows = [{key: float(value) for key, value in row.items()} for row in _csv_rows(path)]
        if not rows and path.stat().st_size > 0:
            raise ValueError("a heading without rows")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"'{path}' is missing or damaged.") from error
    return rows


def _csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def recorded_bank(run: Run) -> DescriptionBank:
    """The descriptions that a run was fitted with, if they are still where they were.

    Raises:
        UserError: they are gone or were changed.
    """
    recorded: dict[str, Any] = run.record["descriptions"]
    for bank in _candidates(recorded["source"], run.class_names):
        if bank.fingerprint == recorded["fingerprint"]:
            return bank
    raise UserError(f"the descriptions ({recorded['source']}) are gone or were changed since.")


def _candidates(source: str, names: Sequence[str]) -> list[DescriptionBank]:
    if source == TEMPLATE_SOURCE:
        return [template_bank(names)]
    packaged = [bank for key in packaged_keys() if (bank := packaged_descriptions(key)) is not None]
    own = [bank for bank in packaged if bank.source == source]
    return own or [load_descriptions(source)]
