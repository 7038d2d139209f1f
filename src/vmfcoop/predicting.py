"""Using a run: measure it on a split of its own or other data, classify images with it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vmfcoop.data import Dataset, is_image_path, load_dataset, sample_support
from vmfcoop.data.dataset import find_listing
from vmfcoop.data.folder import visible_files
from vmfcoop.data.references import parse_reference
from vmfcoop.errors import UserError
from vmfcoop.evaluation import classification_metrics
from vmfcoop.pipeline import (
    OpenRun,
    calibration_rows,
    class_probabilities,
    draw_phantoms,
    labelled,
    open_run,
    recorded_dataset,
    same_data,
)
from vmfcoop.progress import ProgressReport, no_progress
from vmfcoop.run import TRUST, Run, predictions_table, read_run
from vmfcoop.trust.calibration import calibration_scores
from vmfcoop.trust.conformal import coverage
from vmfcoop.trust.judging import (
    Judge,
    Judgement,
    TrustRequest,
    make_judge,
    recalibrated,
    required_trust,
)
from vmfcoop.trust.ood import Outside
from vmfcoop.trust.record import Trust
from vmfcoop.trust.used_files import file_digests, found_in


def evaluate_run(
    folder: Path,
    data: str | None = None,
    split: str = "test",
    backbone: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: ProgressReport = no_progress,
    trust: TrustRequest | None = None,
) -> dict[str, Any]:
    """Metrics of a run on a split of its own data or of other data with the same classes.

    The towers compute in the run's own precision unless another is named.

    Args:
        folder: run directory.
        data: other data; default the run's own.
        split: of the data.
        backbone, device, precision: as :func:`open_run` has them.
        progress: told of loading and encoding.
        trust: ``calibrated`` takes the metrics of temperature-scaled probabilities and adds ``calibration``
            (ECE, NLL and Brier score before and after), ``sets`` adds ``conformal``: coverage with its
            interval, mean size of the sets, the same of every class, and ``usual``: where the coverage of
            exchangeable images lies in 95 % of cases (None for class-conditional sets).

    Raises:
        UserError: another backbone, other classes, or the recorded data changed; what ``trust`` asks for is
            not there, or would be measured on images that it was fitted to.
    """
    run = read_run(folder)
    own = run.record["data"]["spec"]
    if data and same_data(data, own):
        data = None  # Its own data have a split, and groups, of their own.
    trust = trust if trust and trust.anything else None
    if trust:
        _refuse_seen_images(trust, data or own, split, own)
    kept = required_trust(run, trust) if trust else None
    draw_phantoms(data or own, progress)
    table = recorded_dataset(run, data)
    rows = table.indices(split)
    opened = open_run(run, backbone, device, precision, progress)
    files = [table.paths[i] for i in rows]
    features = opened.encoder.encode_image_files(files)[:, 0]
    described = {"run": str(folder), "data": data or own, "split": split}
    if trust is None or kept is None:
        probabilities = class_probabilities(opened.fitted, features)
        return described | classification_metrics(probabilities, table.labels[rows], table.class_names)
    judge = _make_judge(opened, kept, trust, progress)
    _refuse_or_warn_of_used_images(judge.trust, files)
    judged = judge(features)
    metrics = classification_metrics(judged.probabilities, table.labels[rows], table.class_names)
    return described | metrics | _measured(judge, judged, table.labels[rows], table.class_names)


def _refuse_seen_images(trust: TrustRequest, data: str, split: str, own: str) -> None:
    """Stop where it would be measured how well images were fitted by which settings were chosen."""
    if data == own and split in ("train", "val"):
        raise UserError(
            f"The {split} split of the run's own data holds images of the fit or of its calibration; measure "
            "calibration and prediction sets on --split test, or on other data."
        )
    if trust.calibration is not None and data != own and same_data(trust.calibration, data):
        raise UserError(
            f"'{data}' cannot both calibrate and be measured on; give --calibration other labelled images."
        )


def _refuse_or_warn_of_used_images(kept: Trust, files: Sequence[Path]) -> None:
    """Say where images to be measured on are the very ones of the fit or of the calibration."""
    used = int(found_in(file_digests(files), kept.fit_files, kept.calibration_files).sum())
    said = f"{used} of the {len(files)} images were already used to fit or to calibrate"
    if used == len(files):
        raise UserError(f"{said}; measure on new images, or give --calibration others.")
    if used:
        warnings.warn(
            f"{said}; what is measured on them says nothing of new images.", UserWarning, stacklevel=3
        )


def _measured(
    judge: Judge,
    judged: Judgement,
    labels: NDArray[np.int64],
    class_names: Sequence[str],
) -> dict[str, Any]:
    """Calibration before and after, and coverage, as far as they were asked for."""
    facts = judge.describe()
    found: dict[str, Any] = {}
    if judge.request.calibrated:
        found["calibration"] = {
            "temperature": facts["temperature"],
            "before": calibration_scores(judged.plain, labels),
            "after": calibration_scores(judged.probabilities, labels),
        }
    if judge.sets is not None and judged.sets is not None:
        usual = judge.sets.usual_coverage(len(labels))
        origin = {"calibration": facts["calibration"], "usual": usual and list(usual)}
        found["conformal"] = facts["conformal"] | origin | coverage(judged.sets, labels, class_names)
    return found


@dataclass(frozen=True)
class Predictions:
    """Class probabilities of images, and what else was asked of them.

    Attributes:
        images: n paths as given or found.
        class_names: C names.
        probabilities: shape ``(n, C)``; temperature-scaled if that was asked for.
        sets: which classes are in each image's prediction set, shape ``(n, C)``, if asked for.
        outside: out-of-distribution scores, p-values and flags, if asked for.
        origin: how sets and scores come about, ready for JSON; empty if neither was asked for.
    """

    images: tuple[str, ...]
    class_names: tuple[str, ...]
    probabilities: NDArray[np.float64]
    sets: NDArray[np.bool_] | None = None
    outside: Outside | None = None
    origin: Mapping[str, Any] = field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One mapping an image, ready for JSON."""
        more = self._columns()
        return [
            {
                "image": image,
                "predicted": self.class_names[int(shares.argmax())],
                "probabilities": {
                    n: round(float(p), 6) for n, p in zip(self.class_names, shares, strict=True)
                },
                **{name: values[row] for name, values in more.items()},
            }
            for row, (image, shares) in enumerate(zip(self.images, self.probabilities, strict=True))
        ]

    def csv(self) -> str:
        r"""The same as CSV text; a flag is 1 or 0.

        A set's classes are divided by `` | ``; within a name, ``|`` is written ``\|`` and ``\`` as ``\\``.
        """
        text = {name: [_csv_cell(value) for value in values] for name, values in self._columns().items()}
        return predictions_table(self.images, self.probabilities, self.class_names, more=text)

    def _columns(self) -> dict[str, list[Any]]:
        """What was asked for beside the probabilities: one value an image by the column's name."""
        columns: dict[str, list[Any]] = {}
        if self.sets is not None:
            names = np.array(self.class_names, dtype=object)
            columns["set"] = [names[inside].tolist() for inside in self.sets]
        if self.outside is not None:
            columns["ood_score"] = [round(score, 6) for score in self.outside.scores.tolist()]
            columns["ood_p"] = [round(p, 6) for p in self.outside.p_values.tolist()]
            columns["ood_flag"] = self.outside.flags.tolist()
        return columns


def _csv_cell(value: Any) -> str:
    if isinstance(value, list):
        return " | ".join(name.replace("\\", r"\\").replace("|", r"\|") for name in value)
    return str(int(value)) if isinstance(value, bool) else f"{value:.6f}"


def predict_images(
    folder: Path,
    inputs: list[Path],
    backbone: str | None = None,
    device: str = "auto",
    precision: str | None = None,
    progress: ProgressReport = no_progress,
    trust: TrustRequest | None = None,
) -> Predictions:
    """Classify image files, and all images below folders, with a run.

    DICOM and NIfTI images are shown in the window that the run was fitted with; the towers compute in the
    run's own precision unless another is named.

    Args:
        folder: run directory.
        inputs: image files and folders.
        backbone, device, precision: as :func:`open_run` has them.
        progress: told of loading and encoding.
        trust: prediction sets, out-of-distribution scores and calibrated probabilities, if wanted.

    Raises:
        UserError: no image is found, one cannot be read, or the backbone is another; the run does not keep
            what ``trust`` asks for.
    """
    run = read_run(folder)
    trust = trust if trust and trust.anything else None
    kept = required_trust(run, trust) if trust else None
    images = find_images(inputs)
    opened = open_run(run, backbone, device, precision, progress)
    judge = _make_judge(opened, kept, trust, progress) if trust and kept else None
    features = opened.encoder.encode_image_files(opened.shown(images))[:, 0]
    names = tuple(map(str, images))
    if judge is None:
        return Predictions(names, run.class_names, class_probabilities(opened.fitted, features))
    said = judge(features)
    return Predictions(names, run.class_names, said.probabilities, said.sets, said.outside, judge.describe())


def _make_judge(opened: OpenRun, kept: Trust, request: TrustRequest, progress: ProgressReport) -> Judge:
    """A judge by the run's own calibration images, or by those that the request names."""
    if kept.image_fields.mean_directions.shape[1] != opened.encoder.dim:
        raise UserError(f"'{opened.run.folder / TRUST}' is damaged; fit again.")
    if request.calibration is not None and request.needs_images:
        named = _named_calibration(opened.run, request.calibration, kept.fit_files, progress)
        kept = recalibrated(kept, opened.fitted, labelled(opened.encoder, *named))
    return make_judge(opened.fitted, kept, request, opened.run.class_names)


def _named_calibration(
    run: Run, spec: str, fit_files: torch.Tensor, progress: ProgressReport
) -> tuple[Dataset, NDArray[np.int64], NDArray[np.int64]]:
    """All images of other data that the fit did not use; of the run's own, val without validation shots.

    Returns:
        The table, rows of it, and labels of these rows among the run's classes.
    """
    draw_phantoms(spec, progress)
    if same_data(spec, run.record["data"]["spec"]):
        table, sample = recorded_dataset(run), run.record["support"]
        chosen = sample_support(table, sample["shots"], sample["seed"], sample["val_shots"])
        rows = calibration_rows(table, chosen, len(table), sample["seed"])
        labels, mend = table.labels, "fit again with a larger --val-fraction"
    else:
        table, labels = _labelled_alike(run, spec)
        used = found_in(file_digests(table.paths), fit_files)
        if used.any():
            warnings.warn(
                f"{used.sum()} of the {len(table)} images of '{spec}' were used in the fit and are left out "
                "of the calibration.",
                UserWarning,
                stacklevel=4,
            )
        rows, mend = np.flatnonzero(~used).astype(np.int64), "use images that the fit did not"
    if len(rows) == 0:
        raise UserError(
            f"'{spec}' has no images for calibration beyond those that the fit used; {mend}, or name other "
            "labelled images of these classes with --calibration."
        )
    return table, rows, labels[rows]


def _labelled_alike(run: Run, spec: str) -> tuple[Dataset, NDArray[np.int64]]:
    """Other data, of which some classes may be absent and the order another, with the run's labels.

    Raises:
        UserError: the data have a class that the run does not have.
    """
    recorded, (_, listing) = run.record["data"], find_listing(spec)
    renamed = {key: name for key, name in recorded["renamed_classes"].items() if key in listing.class_keys}
    table = load_dataset(
        spec, test_fraction=0, val_fraction=0, class_names=renamed or None, window=recorded.get("window")
    )
    strange = [name for name in table.class_names if name not in run.class_names]
    if strange:
        raise UserError(
            f"'{spec}' has the classes {', '.join(strange)}, but the run was fitted on "
            f"{', '.join(run.class_names)}; calibrate with images of these."
        )
    places = np.array([run.class_names.index(name) for name in table.class_names], np.int64)
    return table, places[table.labels]


def find_images(inputs: list[Path]) -> list[Path]:
    """Files as they are, folders as all images below them, sorted; hidden files are left out.

    Raises:
        UserError: an input does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for item in inputs:
        if not parse_reference(item).file.exists():
            raise UserError(f"'{item}' does not exist; give image files or folders.")
        inside = sorted(filter(is_image_path, visible_files(item))) if item.is_dir() else [item]
        if not inside:
            raise UserError(f"The folder '{item}' holds no image.")
        found.extend(inside)
    return found
