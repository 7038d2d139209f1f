"""Which images belong together by themselves: DICOM images of one patient, slices of one volume.

A header's identifiers are compared in memory and forgotten: groups are numbered, and nothing that is kept,
printed or written can be traced to a patient.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vmfcoop.data.dicom_file import pydicom_silenced
from vmfcoop.data.references import file_kind, parse_reference

IDENTIFIERS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")
_READERS = 8


def own_groups(images: Sequence[Path]) -> NDArray[np.str_] | None:
    """Group of each image by what the files say themselves, ``(n,)``, or None where no two belong together.

    DICOM images are grouped by Patient ID with its issuer, or, where all have the same one (as after
    anonymisation) or none, by study. Slices and frames of one file are grouped by the file.

    Args:
        images: n images, perhaps with selections.
    """
    files = [parse_reference(image).file for image in images]
    with ThreadPoolExecutor(_READERS) as pool:
        identities = list(pool.map(_identity, dict.fromkeys(files)))
    by_file = dict(zip(dict.fromkeys(files), identities, strict=True))
    patients = {patient for patient, _ in identities if patient}
    level = 0 if len(patients) > 1 else 1
    keys = [by_file[file][level] or str(file) for file in files]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    if len(numbers) in (1, len(keys)):
        return None
    return np.array([f"patient or volume {numbers[key]}" for key in keys], np.str_)


def _identity(file: Path) -> tuple[str, str]:
    """Digests of the patient and of the study of a DICOM file, empty where unknown or for another file."""
    if file_kind(file) != "dicom":
        return "", ""
    from pydicom import dcmread

    try:
        with pydicom_silenced():
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=list(IDENTIFIERS))
            patient, issuer, study = (str(header.get(name) or "").strip() for name in IDENTIFIERS)
    # A damaged header is told when the image is read, by name; here its file stands alone.
    except Exception:
        return "", ""
    return _digest(patient, issuer) if patient else "", _digest(study) if study else ""


def _digest(*values: str) -> str:
    return hashlib.sha256("\0".join(values).encode()).hexdigest()
