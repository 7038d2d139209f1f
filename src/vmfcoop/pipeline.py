"""Fit on a dataset and write the run; open a run again. Thin over the estimator."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmfcoop.backbones import load_backbone
from vmfcoop.backbones.installed import recorded_spec
from vmfcoop.backbones.registry import resolve_device, resolve_precision
from vmfcoop.classifier import FewShotClassifier
from vmfcoop.data import Dataset, load_dataset, sample_support
from vmfcoop.data.few_shot import FewShotIndices
from vmfcoop.data.phantoms import PHANTOMS, materialise
from vmfcoop.data.references import with_window
from vmfcoop.descriptions import DescriptionBank, bank_for
from vmfcoop.errors import UserError
from vmfcoop.evaluation import classification_metrics, draw_support
from vmfcoop.features import CachedEncoder
from vmfcoop.memory import keep_freed_memory
from vmfcoop.methods import METHODS, Fitted, make_method
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import Run, predictions_table, read_run, refuse_existing, write_run
from vmfcoop.trust.calibration import tempered
from vmfcoop.trust.judging import (
    Labelled,
    fit_trust,
)
from vmfcoop.trust.ood import fit_text_fields
from vmfcoop.trust.record import Trust, trust_bytes
from vmfcoop.trust.used_files import file_digests


@dataclass(frozen=True)
class FitRequest:
    """Everything that determines a fit; all of it is recorded in ``run.json``.

    Attributes:
        data: data spec (folder, split file or CSV).
        backbone: backbone spec.
        method: method name.
        settings: the method's settings.
        shots: K, support images a class.
        seed: of the support set and of training.
        val_shots: validation images a class; default ``min(K, 4)``.
        calibration_images: at most so many further images of the val split are kept, as the classifier sees
            them, for prediction sets and out-of-distribution scores; 0 for none. Their labels come on top of
            the few shots; the classifier does not depend on them.
        descriptions: JSON or TXT file of class descriptions, or a key that the package has some for; without,
            the package's own of the data's key, else templates.
        class_names: display names by folder name.
        views: cached views of a support image.
        test_fraction, val_fraction, split_seed: of the split, where the data brings none.
        groups: CSV of groups that a split keeps together.
        window: of DICOM and NIfTI images, ``center,width`` or a CT window's name; prediction takes it too.
        device: where the towers run.
        precision: of the towers: ``fp32``, ``bf16``, ``fp16`` or ``auto``; prediction takes it too.
        cache_precision: of the features kept on disk: ``fp32`` or ``fp16``.
    """

    data: str
    backbone: str = "biomedclip"
    method: str = "vmfcoop"
    settings: Mapping[str, Any] = field(default_factory=dict)
    shots: int = 16
    seed: int = 1
    val_shots: int | None = None
    calibration_images: int = 256
    descriptions: Path | None = None
    class_names: Mapping[str, str] = field(default_factory=dict)
    views: int = 8
    test_fraction: float = 0.3
    val_fraction: float = 0.2
    split_seed: int = 0
    groups: Path | None = None
    window: str | None = None
    device: str = "auto"
    precision: str = "fp32"
    cache_precision: str = "fp32"

    def dataset(self) -> Dataset:
        """The table of images with its splits."""
        return load_dataset(
            self.data,
            test_fraction=self.test_fraction,
            val_fraction=self.val_fraction,
            seed=self.split_seed,
            groups=self.groups,
            class_names=self.class_names or None,
            window=self.window,
        )

    def bank(self, class_names: Sequence[str]) -> DescriptionBank:
        """The descriptions that were asked for, else the package's own of the data, else templates."""
        return bank_for(self.data, class_names, self.descriptions)


class Stopwatch:
    """Wall time by phase, in seconds."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside under a name."""
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)


def run_fit(
    request: FitRequest,
    out: Path,
    overwrite: bool = False,
    command: list[str] | None = None,
    progress: ProgressReport = no_progress,
) -> Run:
    """Fit on a support set, evaluate on the test split, write the run directory.

    All that can be checked without the backbone is checked before it is loaded.

    Raises:
        UserError: bad input, or ``out`` exists; nothing is written then.
    """
    refuse_existing(out, overwrite)
    resolve_precision(request.precision, resolve_device(request.device))
    method = make_method(request.method, {"seed": request.seed, **request.settings})
    watch = Stopwatch()
    with watch.phase("read data"):
        draw_phantoms(request.data, progress)
        table = request.dataset()
        chosen = sample_support(table, request.shots, request.seed, request.val_shots)
        rows = calibration_rows(table, chosen, request.calibration_images, request.seed)
        bank = request.bank(table.class_names)
    with watch.phase("load backbone"):
        encoder = _load_encoder(
            request.backbone, request.device, request.precision, request.cache_precision, progress
        )
    with watch.phase("image features"):
        files = [table.paths[i] for i in chosen.train]
        encoder.encode_image_files(files, request.views)
        test = table.indices("test")
        features = encoder.encode_image_files([table.paths[i] for i in test])[:, 0]
        calibration = labelled(encoder, table, rows, table.labels[rows])
    classifier = FewShotClassifier(
        encoder,
        request.method,
        settings={"seed": request.seed, **request.settings},
        descriptions=bank,
        class_names=table.class_names,
        views=request.views,
        progress=progress,
    )
    with watch.phase("fit"):
        validation = [table.paths[i] for i in chosen.val]
        classifier.fit(files, table.labels[chosen.train], validation, table.labels[chosen.val])
    with watch.phase("evaluate"):
        probabilities = class_probabilities(classifier.fitted_, features)
        metrics = classification_metrics(probabilities, table.labels[test], table.class_names)
    with watch.phase("calibrate"):
        trust = _fit_trust(request, classifier, table, calibration, file_digests([*files, *validation]))
    rate = encoder.images_per_second
    metrics = {
        **metrics,
        "split": "test",
        "seconds": watch.seconds,
        "images_per_second": None if rate is None else round(rate, 1),
    }
    record = {
        "command": command or [],
        "method": {"name": request.method, "config": method.config.model_dump()},
        "backbone": {
            "spec": encoder.name,
            "fingerprint": encoder.fingerprint,
            "device": str(encoder.device),
            "precision": encoder.precision,
            "cache_precision": encoder.cache_precision,
        },
        "data": _describe_data(request, table),
        "support": _describe_support(request, table, chosen),
        "calibration": _describe_calibration(request, table, rows, trust),
        "descriptions": {
            "source": bank.source,
            "fingerprint": bank.fingerprint,
            "per_class": [len(texts) for texts in bank.for_classes(table.class_names)],
        },
        "threads": torch.get_num_threads(),
    }
    names = [table.file(i) for i in test]
    predictions = predictions_table(names, probabilities, table.class_names, table.labels[test])
    write_run(out, record, classifier.fitted_, metrics, predictions, overwrite, trust_bytes(trust))
    return read_run(out)


def calibration_rows(table: Dataset, chosen: FewShotIndices, most: int, seed: int) -> NDArray[np.int64]:
    """Images for calibration: of the val split, not the validation shots, drawn without regard to class.

    The draw is uniform, so that classes are about as frequent as in the val split; the validation shots that
    are missing from it are as many of each class, which makes rare classes a little rarer. Images of one
    group (a patient) may come together and are then not independent of each other.

    Args:
        table: images with splits.
        chosen: the support set and validation shots.
        most: draw so many, or take all if there are fewer.
        seed: of the draw, which has a random stream of its own.

    Returns:
        Row numbers, ascending.

    Raises:
        UserError: a negative number is asked for.
    """
    if most < 0:
        raise UserError(f"There cannot be {most} calibration images; choose 0 or more.")
    free = np.setdiff1d(table.indices("val"), chosen.val)
    if len(free) > most:
        free = np.sort(np.random.default_rng((seed, 2)).choice(free, most, replace=False))
    return free.astype(np.int64)


def _fit_trust(
    request: FitRequest,
    classifier: FewShotClassifier,
    table: Dataset,
    calibration: Labelled,
    fit_files: torch.Tensor,
) -> Trust:
    """What the run keeps for judging predictions, by the calibration images."""
    encoder, bank = classifier.encoder_, classifier.descriptions_
    sample = (request.shots, request.seed, request.views, request.val_shots)
    support = draw_support(encoder, table, bank, *sample)
    texts = None
    if METHODS[request.method].reads_descriptions:
        texts = fit_text_fields([encoder.encode_texts(list(group)) for group in support.descriptions])
    return fit_trust(classifier.fitted_, support, texts, calibration, fit_files)


def labelled(
    encoder: CachedEncoder, table: Dataset, rows: NDArray[np.int64], labels: NDArray[np.int64]
) -> Labelled:
    """Some rows of a table, by their plain features, with their labels among the run's classes."""
    files = [table.paths[i] for i in rows]
    return Labelled(encoder.encode_image_files(files)[:, 0], torch.from_numpy(labels), file_digests(files))


def class_probabilities(fitted: Fitted, features: torch.Tensor) -> NDArray[np.float64]:
    """Unit image features ``(n, d)`` -> softmax of the logits in float64, ``(n, C)``."""
    return tempered(fitted.logits(features), 1.0)


@dataclass(frozen=True)
class OpenRun:
    """A run directory with its classifier, ready to classify.

    Attributes:
        run: what was read.
        encoder: the run's backbone, behind the feature cache.
        fitted: the classifier.
    """

    run: Run
    encoder: CachedEncoder
    fitted: Fitted

    def shown(self, images: Sequence[Path]) -> list[Path]:
        """References to images in the window that the run was fitted with (DICOM and NIfTI)."""
        window = self.run.record["data"].get("window")
        return [with_window(image, window) for image in images] if window else list(images)


def open_run(
    run: Run,
    backbone: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: ProgressReport = no_progress,
) -> OpenRun:
    """Load the backbone of a run and restore its classifier.

    Args:
        run: a run directory that was read.
        backbone: where the run's backbone lies now; default as recorded.
        device: where the towers run.
        precision: of the towers; default the run's own.
        progress: told of loading and encoding.

    Raises:
        UserError: the adapter is damaged, the backbone is gone, or it is another.
    """
    recorded = run.record["backbone"]
    # Runs from before precision could be chosen do not name one.
    wanted = precision or recorded.get("precision", "fp32")
    stored = recorded.get("cache_precision", "fp32")
    spec = backbone or recorded_spec(recorded["spec"], recorded["fingerprint"])
    encoder = _load_encoder(spec, device, wanted, stored, progress)
    return OpenRun(run, encoder, run.restore(encoder))


def _load_encoder(
    spec: str, device: str, precision: str, cache_precision: str, progress: ProgressReport
) -> CachedEncoder:
    keep_freed_memory()
    progress("load backbone", 0, 1)
    loaded = load_backbone(spec, device, precision)
    encoder = CachedEncoder(loaded, progress=progress, cache_precision=cache_precision)
    progress("load backbone", 1, 1)
    return encoder


def draw_phantoms(spec: str, progress: ProgressReport) -> None:
    """Draw a phantom dataset before it is loaded, so that its drawing is seen to go on."""
    if spec in PHANTOMS and not Path(spec).exists():
        materialise(spec, progress=progress)


def same_data(one: str, other: str) -> bool:
    """Whether two specs name one place."""
    return one == other or (
        Path(one).exists() and Path(other).exists() and Path(one).resolve() == Path(other).resolve()
    )


def recorded_dataset(run: Run, data: str | None = None) -> Dataset:
    """The table of images that a run was fitted on, or other data with the same classes.

    Raises:
        UserError: other classes, the data are gone, or the recorded data changed.
    """
    recorded = run.record["data"]
    groups = Path(recorded["groups"]) if recorded["groups"] and data is None else None
    table = load_dataset(
        data or recorded["spec"],
        test_fraction=recorded["test_fraction"],
        val_fraction=recorded["val_fraction"],
        seed=recorded["split_seed"],
        groups=groups,
        class_names=recorded["renamed_classes"] or None,
        window=recorded.get("window"),
    )
    if table.class_names != run.class_names:
        raise UserError(
            f"'{data or recorded['spec']}' has the classes {', '.join(table.class_names)}, but the run was "
            f"fitted on {', '.join(run.class_names)}; evaluate on the same classes."
        )
    if data is None and table.fingerprint != recorded["fingerprint"]:
        raise UserError(
            f"The data in '{recorded['spec']}' changed since the run was fitted, so its split is another; "
            "name the data to evaluate on anyway."
        )
    return table


def _describe_data(request: FitRequest, table: Dataset) -> dict[str, Any]:
    return {
        "spec": str(Path(request.data).expanduser().resolve())
        if Path(request.data).exists()
        else request.data,
        "name": table.name,
        "fingerprint": table.fingerprint,
        "class_names": list(table.class_names),
        "renamed_classes": dict(request.class_names),
        "images": table.counts(),
        "grouped": table.groups is not None,
        "groups": str(request.groups.resolve()) if request.groups else None,
        "window": request.window,
        "test_fraction": request.test_fraction,
        "val_fraction": request.val_fraction,
        "split_seed": request.split_seed,
    }


def _describe_support(request: FitRequest, table: Dataset, chosen: FewShotIndices) -> dict[str, Any]:
    return {
        "shots": request.shots,
        "seed": request.seed,
        "val_shots": request.val_shots,
        "views": request.views,
        "train": [table.file(i) for i in chosen.train],
        "val": [table.file(i) for i in chosen.val],
    }


def _describe_calibration(
    request: FitRequest, table: Dataset, rows: NDArray[np.int64], trust: Trust
) -> dict[str, Any]:
    counts = np.bincount(table.labels[rows], minlength=len(table.class_names))
    return {
        "asked": request.calibration_images,
        "images": [table.file(i) for i in rows],
        "per_class": {name: int(n) for name, n in zip(table.class_names, counts, strict=True)},
        "grouped": table.groups is not None,
        "temperature": trust.temperature,
    }
