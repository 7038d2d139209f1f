"""What a fit keeps so that predictions can be judged later without its data: ``trust.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vmfcoop.errors import UserError
from vmfcoop.run import RECORD, TRUST, Run
from vmfcoop.trust.used_files import DIGEST_BYTES


@dataclass(frozen=True, eq=False)
class ClassFields:
    """One von Mises-Fisher law a class, on the sphere of image features.

    Attributes:
        mean_directions: unit rows, shape ``(C, d)``, float32.
        concentrations: kappa of each class, shape ``(C,)``, float64.
    """

    mean_directions: Tensor
    concentrations: Tensor


def _no_files() -> Tensor:
    return torch.empty(0, DIGEST_BYTES, dtype=torch.uint8)


@dataclass(frozen=True, eq=False)
class Trust:
    """Labelled images that the classifier was not fitted to, as it sees them, and what was fitted to them.

    Attributes:
        validation_logits: of the validation shots, by which some methods choose settings, ``(m, C)``,
            float32; m may be 0.
        validation_labels: shape ``(m,)``, int64.
        calibration_logits: of the calibration images, which nothing was chosen by, ``(n, C)``, float32; n
            may be 0.
        calibration_labels: shape ``(n,)``, int64.
        temperature: T of the calibrated probabilities ``softmax(logits / T)``; 1 without validation shots.
        image_fields: laws fitted to the support set's image features.
        text_fields: laws fitted to the descriptions; None where the method reads none, or a class has fewer
            than two.
        calibration_scores: out-of-distribution scores of the calibration images by the score's name,
            each ``(n,)``, float64; higher is further outside.
        fit_files: digests of the support images and validation shots (:func:`file_digests`), ``(s, 16)``,
            by which such an image is known wherever it lies; empty where they are not known.
        calibration_files: digests of the calibration images, ``(n, 16)`` or empty, likewise.
    """

    validation_logits: Tensor
    validation_labels: Tensor
    calibration_logits: Tensor
    calibration_labels: Tensor
    temperature: float
    image_fields: ClassFields
    text_fields: ClassFields | None = None
    calibration_scores: Mapping[str, Tensor] = field(default_factory=dict)
    fit_files: Tensor = field(default_factory=_no_files)
    calibration_files: Tensor = field(default_factory=_no_files)


def trust_bytes(trust: Trust) -> bytes:
    """The record as the content of a safetensors file."""
    tensors = {
        "validation_logits": trust.validation_logits,
        "validation_labels": trust.validation_labels,
        "calibration_logits": trust.calibration_logits,
        "calibration_labels": trust.calibration_labels,
        "temperature": torch.tensor(trust.temperature, dtype=torch.float64),
        **_field_tensors("image_fields", trust.image_fields),
        **(_field_tensors("text_fields", trust.text_fields) if trust.text_fields else {}),
        **{f"score/{name}": scores for name, scores in trust.calibration_scores.items()},
        "fit_files": trust.fit_files,
        "calibration_files": trust.calibration_files,
    }
    content: bytes = save({key: value.contiguous() for key, value in tensors.items()})
    return content


def read_trust(run: Run) -> Trust | None:
    """The record of a run, or None where an older version fitted it and kept none.

    Raises:
        UserError: the file is damaged, or is of another run.
    """
    path = run.folder / TRUST
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        trust = _from_tensors(tensors)
        _check(trust, len(run.class_names))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise UserError(f"'{path}' is damaged; fit again.") from error
    if not _is_of(trust, run.record.get("calibration", {})):
        raise UserError(f"'{path}' is of another run than the {RECORD} beside it; fit again.")
    return trust


def _is_of(trust: Trust, recorded: Mapping[str, Any]) -> bool:
    """Whether a record has the temperature of its ``run.json``, and as many calibration images a class."""
    counts = torch.bincount(trust.calibration_labels, minlength=trust.calibration_logits.shape[1]).tolist()
    temperature, per_class = recorded.get("temperature"), recorded.get("per_class")
    return temperature == trust.temperature and list((per_class or {}).values()) == counts


def _field_tensors(name: str, fields: ClassFields) -> dict[str, Tensor]:
    return {
        f"{name}/mean_directions": fields.mean_directions,
        f"{name}/concentrations": fields.concentrations,
    }


def _from_tensors(tensors: Mapping[str, Tensor]) -> Trust:
    def fields(name: str) -> ClassFields:
        return ClassFields(tensors[f"{name}/mean_directions"], tensors[f"{name}/concentrations"])

    return Trust(
        tensors["validation_logits"],
        tensors["validation_labels"],
        tensors["calibration_logits"],
        tensors["calibration_labels"],
        float(tensors["temperature"]),
        fields("image_fields"),
        fields("text_fields") if "text_fields/mean_directions" in tensors else None,
        {key.removeprefix("score/"): value for key, value in tensors.items() if key.startswith("score/")},
        tensors.get("fit_files", _no_files()),
        tensors.get("calibration_files", _no_files()),
    )


def _check(trust: Trust, classes: int) -> None:
    """Raise ValueError where a tensor is not what it must be, or is not of so many classes."""
    _check_images("validation", trust.validation_logits, trust.validation_labels, classes)
    _check_images("calibration", trust.calibration_logits, trust.calibration_labels, classes)
    number = len(trust.calibration_labels)
    for name, scores in trust.calibration_scores.items():
        _check_numbers(name, scores, (number,))
    if not 0 < trust.temperature < math.inf:
        raise ValueError(f"temperature {trust.temperature}")
    dim = trust.image_fields.mean_directions.shape[-1]
    for fields in filter(None, (trust.image_fields, trust.text_fields)):
        _check_numbers("mean_directions", fields.mean_directions, (classes, dim))
        _check_numbers("concentrations", fields.concentrations, (classes,))
        if bool((fields.concentrations < 0).any()):
            raise ValueError("a concentration below 0")
    for files, allowed in ((trust.fit_files, None), (trust.calibration_files, (0, number))):
        rows = len(files) if allowed is None or len(files) in allowed else number
        if files.dtype != torch.uint8 or files.shape != (rows, DIGEST_BYTES):
            raise ValueError(f"digests {files.dtype} {tuple(files.shape)}")


def _check_images(name: str, logits: Tensor, labels: Tensor, classes: int) -> None:
    if labels.dtype != torch.int64 or labels.dim() != 1:
        raise ValueError(f"{name} labels {labels.dtype} {tuple(labels.shape)}")
    if not bool(((labels >= 0) & (labels < classes)).all()):
        raise ValueError(f"{name} labels beyond {classes} classes")
    _check_numbers(f"{name} logits", logits, (len(labels), classes))


def _check_numbers(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    known = tensor.dtype in (torch.float32, torch.float64)
    if not known or tensor.shape != shape or not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} {tensor.dtype} {tuple(tensor.shape)}, or a number that is not finite")
