"""What a fit keeps of labelled images, and what predictions say by it."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from vmfcoop.errors import UserError, unknown_name
from vmfcoop.methods import Fitted, Support
from vmfcoop.run import TRUST, Run
from vmfcoop.trust.calibration import fit_temperature, tempered
from vmfcoop.trust.conformal import SetPredictor, SetRequest, fit_sets
from vmfcoop.trust.ood import (
    FALSE_ALARMS,
    OOD_SCORES,
    Outside,
    Seen,
    all_scores,
    fit_image_fields,
    outside,
)
from vmfcoop.trust.record import ClassFields, Trust, read_trust


@dataclass(frozen=True)
class TrustRequest:
    """What predictions are to say beside the class.

    Attributes:
        sets: prediction sets, if wanted.
        ood: name of the out-of-distribution score (a key of ``OOD_SCORES``), if wanted.
        calibrated: whether the probabilities are to be temperature-scaled.
        calibration: data spec of labelled images that take the place of those the run keeps.

    Raises:
        UserError: there is no such score, or calibration images are named and nothing needs them.
    """

    sets: SetRequest | None = None
    ood: str | None = None
    calibrated: bool = False
    calibration: str | None = None

    def __post_init__(self) -> None:
        if self.ood is not None and self.ood not in OOD_SCORES:
            raise unknown_name("out-of-distribution score", self.ood, OOD_SCORES)
        if self.calibration is not None and not self.needs_images:
            raise UserError(
                f"The calibration images '{self.calibration}' are for prediction sets and "
                "out-of-distribution scores; ask for either with --conformal or --ood."
            )

    @property
    def needs_images(self) -> bool:
        """Whether calibration images are asked for."""
        return self.sets is not None or self.ood is not None

    @property
    def anything(self) -> bool:
        """Whether anything is wanted beside the plain predictions."""
        return self.needs_images or self.calibrated


@dataclass(frozen=True, eq=False)
class Labelled:
    """Labelled images as the backbone sees them.

    Attributes:
        features: unit rows, shape ``(n, d)``.
        labels: shape ``(n,)``, int64.
        files: digests of the image files, shape ``(n, 16)`` (:func:`vmfcoop.trust.used_files.file_digests`).
    """

    features: Tensor
    labels: Tensor
    files: Tensor


def fit_trust(
    fitted: Fitted,
    support: Support,
    text_fields: ClassFields | None,
    calibration: Labelled,
    fit_files: Tensor,
) -> Trust:
    """What a run keeps so that its predictions can be judged without its data; the classifier is only asked.

    Args:
        fitted: the classifier.
        support: what it was fitted to, the validation shots among it.
        text_fields: fields of the descriptions, where the method reads them.
        calibration: images that nothing was chosen by; there may be none.
        fit_files: digests of the support images and validation shots, shape ``(s, 16)``.
    """
    plain = support.image_features[:, 0]
    validation = _logits(fitted, support.validation_features)
    trust = Trust(
        validation_logits=validation,
        validation_labels=support.validation_labels,
        calibration_logits=validation[:0],
        calibration_labels=support.validation_labels[:0],
        temperature=fit_temperature(validation, support.validation_labels),
        image_fields=fit_image_fields(plain, support.labels, len(support.class_names)),
        text_fields=text_fields,
        fit_files=fit_files,
    )
    return recalibrated(trust, fitted, calibration)


def recalibrated(trust: Trust, fitted: Fitted, images: Labelled) -> Trust:
    """The record with other calibration images."""
    seen = _seen(trust, fitted, images.features)
    return replace(
        trust,
        calibration_logits=seen.logits,
        calibration_labels=images.labels,
        calibration_scores=all_scores(seen),
        calibration_files=images.files,
    )


def required_trust(run: Run, request: TrustRequest) -> Trust:
    """The record of a run, if it holds what is asked for.

    Raises:
        UserError: the run keeps no record, or no calibration images and no others are named; the file is
            damaged.
    """
    trust = read_trust(run)
    if trust is None:
        raise UserError(
            f"'{run.folder}' has no {TRUST}, which runs of earlier versions lack; fit again for calibrated "
            "probabilities, prediction sets and out-of-distribution scores."
        )
    if request.needs_images and request.calibration is None and len(trust.calibration_labels) == 0:
        raise UserError(
            f"The run '{run.folder}' keeps no calibration images, since its val split had none beyond the "
            "validation shots or none were asked for; fit again with a larger --val-fraction, or name other "
            "labelled images of these classes with --calibration DATA."
        )
    return trust


@dataclass(frozen=True, eq=False)
class Judgement:
    """What is said of images.

    Attributes:
        plain: probabilities as the classifier gives them, shape ``(n, C)``.
        probabilities: temperature-scaled if that was asked for, shape ``(n, C)``.
        sets: which classes are in the prediction set, ``(n, C)``, or None.
        outside: how far outside they are, or None.
    """

    plain: NDArray[np.float64]
    probabilities: NDArray[np.float64]
    sets: NDArray[np.bool_] | None
    outside: Outside | None


@dataclass(frozen=True, eq=False)
class Judge:
    """A classifier with what its run keeps, ready to judge images.

    Attributes:
        fitted: the classifier.
        trust: the record.
        request: what is to be said.
        sets: the thresholds of prediction sets, or None.
    """

    fitted: Fitted
    trust: Trust
    request: TrustRequest
    sets: SetPredictor | None

    def __call__(self, features: Tensor) -> Judgement:
        """Judge images by their unit features, shape ``(n, d)``."""
        seen = _seen(self.trust, self.fitted, features)
        plain = tempered(seen.logits, 1.0)
        found = None
        if self.request.ood is not None:
            kept = self.trust.calibration_scores[self.request.ood]
            found = outside(all_scores(seen)[self.request.ood].numpy(), kept.numpy())
        return Judgement(
            plain,
            tempered(seen.logits, self.trust.temperature) if self.request.calibrated else plain,
            # Of the plain probabilities: the guarantee needs no calibrated ones.
            None if self.sets is None else self.sets.sets(plain),
            found,
        )

    def describe(self) -> dict[str, Any]:
        """How the judgements come about, ready for JSON."""
        facts: dict[str, Any] = {"temperature": self.trust.temperature}
        if self.request.needs_images:
            source = "kept by the run" if self.request.calibration is None else self.request.calibration
            images = len(self.trust.calibration_labels)
            facts["calibration"] = {"images": images, "source": source}
        if self.request.sets:
            asked = self.request.sets
            facts["conformal"] = {
                "alpha": asked.alpha,
                "method": asked.method,
                "class_conditional": asked.class_conditional,
            }
        if self.request.ood is not None:
            facts["ood"] = {"score": self.request.ood, "flagged_up_to_p": FALSE_ALARMS}
        return facts


def make_judge(fitted: Fitted, trust: Trust, request: TrustRequest, class_names: Sequence[str]) -> Judge:
    """Fit the thresholds that a request needs to the calibration images of a record.

    Raises:
        UserError: the run has no such out-of-distribution score.

    Warns:
        UserWarning: too few calibration images for the error rate, or for any flag; a class has none; there
            were no validation shots for the temperature.
    """
    labels = trust.calibration_labels.numpy()
    if request.calibrated and len(trust.validation_labels) == 0:
        _warn("The run has no validation shots, so its temperature is 1: probabilities stay as they are.")
    sets = None
    if request.sets:
        _warn_of_absent_classes(request.sets, labels, class_names)
        sets = fit_sets(request.sets, tempered(trust.calibration_logits, 1.0), labels, class_names)
    if request.ood is not None:
        _refuse_absent_score(fitted, trust, request.ood)
        _warn_of_no_flags(len(labels))
    return Judge(fitted, trust, request, sets)


def _refuse_absent_score(fitted: Fitted, trust: Trust, name: str) -> None:
    """Stop where the method, or the record, has no such score."""
    known = all_scores(_seen(trust, fitted, trust.image_fields.mean_directions[:0]))
    available = [score for score in known if score in trust.calibration_scores]
    if name not in available:
        raise UserError(
            f"The run has no score '{name}', which its method or descriptions do not give; "
            f"choose one of {', '.join(available)}."
        )


def _seen(trust: Trust, fitted: Fitted, features: Tensor) -> Seen:
    return Seen(features, _logits(fitted, features), fitted, trust.image_fields, trust.text_fields)


def _logits(fitted: Fitted, features: Tensor) -> Tensor:
    return fitted.logits(features).detach()


def _warn_of_absent_classes(
    request: SetRequest, labels: NDArray[np.int64], class_names: Sequence[str]
) -> None:
    absent = [name for label, name in enumerate(class_names) if not (labels == label).any()]
    if absent and not request.class_conditional:
        _warn(
            f"No calibration image is of {', '.join(absent)}: the coverage of prediction sets says nothing "
            "of these classes."
        )


def _warn_of_no_flags(images: int) -> None:
    needed = round(1 / FALSE_ALARMS) - 1
    if images < needed:
        _warn(
            f"There are {images} calibration images; with fewer than {needed} no image can be flagged as "
            "outside."
        )


def _warn(message: str) -> None:
    warnings.warn(message, UserWarning, stacklevel=3)
