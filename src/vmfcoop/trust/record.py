"""What a fit keeps so that predictions can be judged later without its data: ``trust.safetensors``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from vmfcoop.errors import UserError
from vmfcoop.files import write_atomically
from vmfcoop.run import TRUST, Run


@dataclass(frozen=True, eq=False)
class ClassFields:
    """One von Mises-Fisher law a class, on the sphere of image features.

    Attributes:
        mean_directions: unit rows, shape ``(C, d)``, float32.
        concentrations: kappa of each class, shape ``(C,)``, float64.
    """

    mean_directions: Tensor
    concentrations: Tensor


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
    """

    validation_logits: Tensor
    validation_labels: Tensor
    calibration_logits: Tensor
    calibration_labels: Tensor
    temperature: float
    image_fields: ClassFields
    text_fields: ClassFields | None = None
    calibration_scores: Mapping[str, Tensor] = field(default_factory=dict)


def write_trust(run: Run, trust: Trust) -> Path:
    """Write the record into a run directory, in place of one that is there.

    Raises:
        UserError: the disk is full or the folder not writable; what was there stays as it was.
    """
    path = run.folder / TRUST
    write_atomically(path, trust_bytes(trust))
    return path


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
    }
    content: bytes = save({key: value.contiguous() for key, value in tensors.items()})
    return content


def read_trust(run: Run) -> Trust | None:
    """The record of a run, or None where an older version fitted it and kept none.

    Raises:
        UserError: the file is damaged, or is of other classes.
    """
    path = run.folder / TRUST
    if not path.exists():
        return None
    try:
        tensors = load_file(path)
        trust = _from_tensors(tensors)
        _check(trust, len(run.class_names))
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise UserError(f"'{path}' is damaged; fit again.") from error
    return trust


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
    )


def _check(trust: Trust, classes: int) -> None:
    """Raise ValueError where the shapes do not belong together or to so many classes."""
    for logits, labels in (
        (trust.validation_logits, trust.validation_labels),
        (trust.calibration_logits, trust.calibration_labels),
    ):
        if logits.shape != (len(labels), classes) or not bool(((labels >= 0) & (labels < classes)).all()):
            raise ValueError(f"logits {tuple(logits.shape)}, labels {tuple(labels.shape)}")
    number = len(trust.calibration_labels)
    if any(scores.shape != (number,) for scores in trust.calibration_scores.values()):
        raise ValueError(f"other than {number} scores")
    if not 0 < trust.temperature < math.inf:
        raise ValueError(f"temperature {trust.temperature}")
    for fields in filter(None, (trust.image_fields, trust.text_fields)):
        if fields.mean_directions.shape[:1] != (classes,) or fields.concentrations.shape != (classes,):
            raise ValueError(f"other than {classes} class fields")
