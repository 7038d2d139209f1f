"""Which images belong together by themselves: DICOM images of one patient, slices of one volume.

A header's identifiers are compared in memory and forgotten: groups are numbered, and nothing that is kept,
printed or written can be traced to a patient.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from vmfcoop.data.dicom_file import pydicom_silenced
from vmfcoop.data.image_io import PICTURE_SUFFIXES
from vmfcoop.data.references import file_kind, parse_reference

IDENTIFIERS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
_READERS = 8


class _Identity(NamedTuple):
    """Digests of what a DICOM header says, empty where it does not; other files have none."""

    is_dicom: bool = False
    patient: str = ""
    issuer: str = ""
    study: str = ""


def own_groups(images: Sequence[Path]) -> NDArray[np.str_] | None:
    """Group of each image by what the files say themselves, ``(n,)``, or None where no two belong together.

    DICOM images are grouped by Patient ID with its issuer, or, where all have the same one (as after
    anonymisation) or none, by study. An image without a Patient ID belongs to the patient of its study, an ID
    without an issuer to the patient with that ID. Slices and frames of one file are grouped by the file. One
    group of all images could not be split, so there the answer is None too.

    Args:
        images: n images, perhaps with selections.

    Warns:
        UserWarning: All images are of one patient, study or file, or no DICOM header tells patients apart.
    """
    files = [parse_reference(image).file for image in images]
    with ThreadPoolExecutor(_READERS) as pool:
        identities = dict(zip(dict.fromkeys(files), pool.map(_identity, dict.fromkeys(files)), strict=True))
    owners = _owners(list(identities.values()))
    keys = [owners[identities[file]] or str(file) for file in files]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(numbers) in (1, len(keys)):
        _warn_of_unknown_patients(len(numbers), len(keys), list(identities.values()))
        return None
    return np.array([f"patient or volume {numbers[key]}" for key in keys], np.str_)


def _warn_of_unknown_patients(groups: int, images: int, identities: Sequence[_Identity]) -> None:
    if groups == 1 < images:
        known = "All images are of one patient, study or file"
    elif sum(who.is_dicom for who in identities) > 1 and not any(_owners(identities).values()):
        known = "The DICOM headers tell no patients apart"
    else:
        return
    warnings.warn(
        f"{known}, so test images may show what train shows; name patients by groups, if there are several.",
        UserWarning,
        stacklevel=3,
    )


def _owners(identities: Sequence[_Identity]) -> dict[_Identity, str]:
    """Whom the images with an identity belong to: a patient or a study, '' where neither is known."""
    issuers = {who.patient: who.issuer for who in identities if who.issuer}
    patients = {
        who: f"{who.patient} {who.issuer or issuers.get(who.patient, '')}"
        for who in identities
        if who.patient
    }
    if len(set(patients.values())) < 2:
        return {who: who.study for who in identities}
    of_study = {who.study: patient for who, patient in patients.items() if who.study}
    return {who: patients.get(who) or of_study.get(who.study, who.study) for who in identities}


def _identity(file: Path) -> _Identity:
    # Not every picture of a large folder, perhaps on a slow disk, need be opened for this.
    if file.suffix.lower() in PICTURE_SUFFIXES or file_kind(file) != "dicom":
        return _Identity()
    from pydicom import dcmread

    try:
        with pydicom_silenced():
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(IDENTIFIERS))
            return _Identity(True, *(_digest(str(header.get(name) or "").strip()) for name in IDENTIFIERS))
    # A damaged header is told when the image is read, by name; here its file stands alone.
    except Exception:
        return _Identity(is_dicom=True)


def _digest(value: str) -> str:
    return hashlib.sha256(value.encode()).hexdigest() if value else ""
