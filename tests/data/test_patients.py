"""Images that belong together by what their files say, and that no identifier gets out."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from tests.data.test_dicom import write
from vmfcoop.data import load_dataset
from vmfcoop.data.patients import own_groups
from vmfcoop.errors import UserError

PIXELS = np.arange(16, dtype=np.uint16).reshape(4, 4)


def scans(root: Path, **attributes: list[str]) -> list[Path]:
    """DICOM files whose n-th has the n-th of each attribute's values; an empty one is left out."""
    root.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(attributes.values())))
    return [
        write(
            root / f"{n}.dcm", PIXELS, **{key: values[n] for key, values in attributes.items() if values[n]}
        )
        for n in range(count)
    ]


def numbers(groups: np.ndarray | None) -> list[int]:
    assert groups is not None
    return [int(group.rpartition(" ")[2]) for group in groups]


def test_images_of_one_patient(tmp_path: Path) -> None:
    files = scans(tmp_path, PatientID=["A", "B", "A", "C"], StudyInstanceUID=["1.1", "1.2", "1.3", "1.4"])
    assert numbers(own_groups(files)) == [0, 1, 0, 2]


def test_one_number_given_by_two_hospitals_is_two_patients(tmp_path: Path) -> None:
    files = scans(tmp_path, PatientID=["7", "7", "7"], IssuerOfPatientID=["north", "south", "north"])
    assert numbers(own_groups(files)) == [0, 1, 0]


@pytest.mark.parametrize("identity", ["ANONYMOUS", ""])
def test_studies_where_all_patients_are_anonymised_alike(tmp_path: Path, identity: str) -> None:
    files = scans(tmp_path, PatientID=[identity] * 4, StudyInstanceUID=["1.1", "1.2", "1.2", "1.3"])
    assert numbers(own_groups(files)) == [0, 1, 1, 2]


def test_nothing_to_tell_apart_or_to_join(tmp_path: Path) -> None:
    assert own_groups(scans(tmp_path / "same", PatientID=["A"] * 3, StudyInstanceUID=["1.1"] * 3)) is None
    assert own_groups(scans(tmp_path / "different", PatientID=["A", "B", "C"])) is None
    assert own_groups([Path("a.png"), Path("b.png")]) is None


def test_slices_of_a_volume_and_other_files(tmp_path: Path) -> None:
    images = [Path("v.nii.gz#slice=1"), Path("v.nii.gz#slice=2"), Path("w.nii.gz"), Path("x.png")]
    assert numbers(own_groups(images)) == [0, 0, 1, 2]


def test_a_damaged_header_stands_alone(tmp_path: Path) -> None:
    files = scans(tmp_path, PatientID=["A", "A", "B", "A"])
    files[3].write_bytes(files[3].read_bytes()[:140])
    assert numbers(own_groups(files)) == [0, 0, 1, 2]


def test_a_folder_of_dicom_is_split_by_patient_and_names_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    patients = [f"SECRET{n // 3}" for n in range(30)]
    scans(tmp_path / "set" / "tumor", PatientID=patients)
    scans(tmp_path / "set" / "normal", PatientID=[f"{patient}N" for patient in patients])
    data = load_dataset(tmp_path / "set")
    assert data.groups is not None and len(set(data.groups)) == 20
    assert data.leaking_groups() == ()
    kept = json.dumps([data.groups.tolist(), data.split.tolist(), repr(data)])
    assert "SECRET" not in kept + "".join(capfd.readouterr())


def test_too_few_patients_are_said(tmp_path: Path) -> None:
    scans(tmp_path / "set" / "tumor", PatientID=["A", "A", "B", "B"])
    scans(tmp_path / "set" / "normal", PatientID=["C", "D", "E", "F"])
    with pytest.raises(
        UserError, match=r"Class 'tumor' has 2 groups, too few .* patient.* stays in one split"
    ):
        load_dataset(tmp_path / "set")


def test_an_image_without_a_patient_id_goes_with_the_patient_of_its_study(tmp_path: Path) -> None:
    files = scans(
        tmp_path, PatientID=["A", "", "B", "", ""], StudyInstanceUID=["1.1", "1.1", "1.2", "1.3", "1.3"]
    )
    assert numbers(own_groups(files)) == [0, 0, 1, 2, 2]


def test_a_missing_issuer_makes_no_second_patient(tmp_path: Path) -> None:
    files = scans(tmp_path, PatientID=["7", "7", "8"], IssuerOfPatientID=["north", "", ""])
    assert numbers(own_groups(files)) == [0, 0, 1]


def test_images_that_cannot_be_split_by_patient_are_warned_of(tmp_path: Path) -> None:
    one_study = scans(tmp_path / "study", PatientID=["A"] * 3, StudyInstanceUID=["1.1"] * 3)
    with pytest.warns(UserWarning, match="All images are of one patient, study or file"):
        own_groups(one_study)
    with pytest.warns(UserWarning, match="All images are of one patient, study or file"):
        own_groups([Path("v.nii.gz#slice=1"), Path("v.nii.gz#slice=2")])
    with pytest.warns(UserWarning, match="DICOM headers tell no patients apart"):
        own_groups(scans(tmp_path / "anonymised", PatientID=["ANONYMOUS"] * 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        own_groups([Path("a.png"), Path("b.png")])
        own_groups(scans(tmp_path / "several", PatientID=["A", "B", "C"]))
