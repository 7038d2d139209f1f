"""Secondary Captures read back with pydicom: required attributes, and which identifiers of the source."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import Dataset
from pydicom.data import get_testdata_file
from pydicom.dataset import FileMetaDataset
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    MRImageStorage,
    SecondaryCaptureImageStorage,
    generate_uid,
)

from vmfcoop.data import read_image
from vmfcoop.errors import UserError
from vmfcoop.explain.dicom_out import PATIENT_ATTRIBUTES, STUDY_ATTRIBUTES, SecondaryCaptures

# Types 1 and 2 of the mandatory modules of the Secondary Capture Image IOD (PS3.3 A.8.1.3).
TYPE_1 = [
    "StudyInstanceUID",
    "SeriesInstanceUID",
    "Modality",
    "ConversionType",
    "SOPClassUID",
    "SOPInstanceUID",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "PlanarConfiguration",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelData",
]
TYPE_2 = [
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "ReferringPhysicianName",
    "StudyID",
    "AccessionNumber",
    "SeriesNumber",
    "InstanceNumber",
]

IDENTIFIERS: dict[str, Any] = {
    "PatientName": "Doe-Secret^Jane",
    "PatientID": "SECRET-4711",
    "PatientBirthDate": "19700102",
    "PatientSex": "F",
    "PatientAge": "050Y",
    "OtherPatientIDs": "SECRET-OTHER",
    "PatientAddress": "1 Secret Road",
    "StudyInstanceUID": "1.2.3.4.5.777",
    "SeriesInstanceUID": "1.2.3.4.5.888",
    "SOPInstanceUID": "1.2.3.4.5.999",
    "FrameOfReferenceUID": "1.2.3.4.5.666",
    "StudyDate": "20200304",
    "StudyTime": "101112",
    "SeriesDate": "20200305",
    "AcquisitionDate": "20200306",
    "ContentDate": "20200307",
    "AccessionNumber": "ACC-9981",
    "StudyID": "STUDY-51",
    "StudyDescription": "Head of Jane",
    "InstitutionName": "Secret Hospital",
    "InstitutionAddress": "2 Hidden Street",
    "StationName": "SECRETSTATION",
    "DeviceSerialNumber": "SN-31337",
    "ReferringPhysicianName": "Who^Doctor",
    "OperatorsName": "Smith^Operator",
    "PatientComments": "tall secret",
}


def source(path: Path, frames: int = 0, **changes: Any) -> Path:
    """A grey MR image that is full of identifiers, some in a private block and in nested items."""
    dataset = Dataset()
    shape = (frames, 24, 32) if frames else (24, 32)
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for keyword, value in {
        **IDENTIFIERS,
        "SpecificCharacterSet": "ISO_IR 192",
        "SOPClassUID": MRImageStorage,
        "Modality": "MR",
        "Rows": 24,
        "Columns": 32,
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "BitsAllocated": 8,
        "BitsStored": 8,
        "HighBit": 7,
        "PixelRepresentation": 0,
        **({"NumberOfFrames": frames} if frames else {}),
        **changes,
    }.items():
        setattr(dataset, keyword, value)
    block = dataset.private_block(0x0009, "SECRET MAKER", create=True)
    block.add_new(0x01, "LO", "SECRET-PRIVATE")
    issuer = Dataset()
    issuer.LocalNamespaceEntityID = "NESTED-ISSUER"
    issuer.private_block(0x0009, "SECRET MAKER", create=True).add_new(0x01, "LO", "SECRET-NESTED")
    dataset.IssuerOfAccessionNumberSequence = [issuer]
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OW"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(path, enforce_file_format=True)
    return path


def secrets(content: bytes) -> list[str]:
    """Identifiers of the source that occur in the bytes of a file."""
    values = [str(value) for key, value in IDENTIFIERS.items() if key not in ("PatientSex",)]
    parts = {part for value in values for part in (value, *value.split("^")) if len(part) > 3}
    parts |= {"SECRET-PRIVATE", "SECRET MAKER", "SECRET-NESTED", "NESTED-ISSUER"}
    lowered = content.lower()
    return sorted(part for part in parts if part.lower().encode() in lowered)


def overlay(width: int = 41, height: int = 31) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8))


def capture(path: Path, keep: bool = False, picture: Image.Image | None = None) -> tuple[bytes, Dataset]:
    made = SecondaryCaptures(keep).file(picture or overlay(), path, "Occlusion of 'glioma'", "Not checked.")
    return made, pydicom.dcmread(io.BytesIO(made))


@pytest.mark.parametrize("keep", [False, True], ids=["without", "with"])
@pytest.mark.parametrize("kind", ["dicom", "png"])
def test_required_attributes_are_there_and_valid(tmp_path: Path, kind: str, keep: bool) -> None:
    path = tmp_path / "image"
    if kind == "dicom":
        source(path)
    else:
        overlay().save(path, "PNG")
    made, dataset = capture(path, keep)
    for keyword in TYPE_1:
        assert keyword in dataset and not dataset[keyword].is_empty, keyword
    for keyword in TYPE_2:
        assert keyword in dataset, keyword
    assert dataset.file_meta.TransferSyntaxUID == ExplicitVRLittleEndian
    assert dataset.file_meta.MediaStorageSOPClassUID == dataset.SOPClassUID == SecondaryCaptureImageStorage
    assert dataset.file_meta.MediaStorageSOPInstanceUID == dataset.SOPInstanceUID
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert UID(dataset[keyword].value).is_valid
    assert made[128:132] == b"DICM" and len(dataset.PixelData) % 2 == 0


def test_values_pass_pydicoms_strictest_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = source(tmp_path / "image.dcm")
    monkeypatch.setattr(pydicom.config.settings, "reading_validation_mode", pydicom.config.RAISE)
    for keep in (False, True):
        _, dataset = capture(path, keep)
        for element in dataset.iterall():
            assert element.VR and element.value is not Ellipsis  # Decodes, and validates, every element.


@pytest.mark.parametrize("size", [(41, 31), (40, 30), (1, 1)])
def test_pixels_come_back(tmp_path: Path, size: tuple[int, int]) -> None:
    picture = overlay(*size)
    made, dataset = capture(source(tmp_path / "image.dcm"), picture=picture)
    assert np.array_equal(dataset.pixel_array.reshape(size[1], size[0], 3), np.asarray(picture))
    file = tmp_path / "capture.dcm"
    file.write_bytes(made)
    assert np.array_equal(read_image(file), picture)


def test_it_says_what_it_is(tmp_path: Path) -> None:
    _, dataset = capture(source(tmp_path / "image.dcm"))
    assert dataset.ImageType == ["DERIVED", "SECONDARY"] and dataset.ConversionType == "WSD"
    assert (
        dataset.DerivationDescription == "Occlusion of 'glioma'" and dataset.ImageComments == "Not checked."
    )
    assert dataset.BurnedInAnnotation == "YES"
    # What is burned into the source's pixels nobody looked at.
    assert "PatientIdentityRemoved" not in dataset


def test_without_identifiers_none_is_in_the_bytes(tmp_path: Path) -> None:
    path = source(tmp_path / "image.dcm")
    assert secrets(path.read_bytes())  # The search finds them where they are.
    made, dataset = capture(path)
    assert secrets(made) == []
    for keyword in TYPE_2[:-1]:
        assert dataset[keyword].is_empty
    assert "SourceImageSequence" not in dataset
    assert not [element for element in dataset.iterall() if element.tag.is_private]


def test_without_identifiers_nothing_says_which_images_belong_together(tmp_path: Path) -> None:
    captures = SecondaryCaptures()
    path = source(tmp_path / "image.dcm")
    first, second = (pydicom.dcmread(io.BytesIO(captures.file(overlay(), path, "", ""))) for _ in range(2))
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        assert first[keyword].value != second[keyword].value


def test_with_identifiers_it_is_filed_under_the_same_patient_and_study(tmp_path: Path) -> None:
    path = source(tmp_path / "image.dcm")
    made, dataset = capture(path, keep=True)
    original = pydicom.dcmread(path)
    for keyword in PATIENT_ATTRIBUTES + STUDY_ATTRIBUTES:
        if keyword in original and keyword != "IssuerOfAccessionNumberSequence":
            assert dataset[keyword].value == original[keyword].value, keyword
    assert dataset.SeriesInstanceUID != original.SeriesInstanceUID
    assert dataset.SOPInstanceUID != original.SOPInstanceUID
    (reference,) = dataset.SourceImageSequence
    assert reference.ReferencedSOPInstanceUID == original.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == MRImageStorage and "ReferencedFrameNumber" not in reference
    assert reference.PurposeOfReferenceCodeSequence[0].CodeValue == "121322"
    assert dataset.IssuerOfAccessionNumberSequence[0].LocalNamespaceEntityID == "NESTED-ISSUER"
    # What is of neither module, and what no standard describes, stays behind.
    assert not [element for element in dataset.iterall() if element.tag.is_private]
    left = set(secrets(made)) & {
        "SECRET-PRIVATE", "SECRET-NESTED", "SECRET-OTHER", "1 Secret Road", "Secret Hospital",
        "SECRETSTATION", "SN-31337", "Smith", "tall secret", "1.2.3.4.5.888", "1.2.3.4.5.666",
        "20200305", "20200306",
    }  # fmt: skip
    assert not left


def test_captures_of_a_study_make_one_new_series_in_order(tmp_path: Path) -> None:
    captures = SecondaryCaptures(keep_identifiers=True)
    paths = [
        source(tmp_path / f"{i}.dcm", StudyInstanceUID=study, SOPInstanceUID=generate_uid())
        for i, study in enumerate(["1.2.3.1", "1.2.3.2", "1.2.3.1"])
    ]
    made = [pydicom.dcmread(io.BytesIO(captures.file(overlay(), path, "", ""))) for path in paths]
    assert made[0].SeriesInstanceUID == made[2].SeriesInstanceUID != made[1].SeriesInstanceUID
    assert [int(dataset.InstanceNumber) for dataset in made] == [1, 1, 2]
    assert len({dataset.SOPInstanceUID for dataset in made}) == 3


@pytest.mark.parametrize(("selection", "number"), [("#frame=0", 1), ("#frame=4", 5), ("", 3)])
def test_the_frame_that_was_explained_is_referred_to(tmp_path: Path, selection: str, number: int) -> None:
    path = source(tmp_path / "cine.dcm", frames=5)
    _, dataset = capture(Path(f"{path}{selection}"), keep=True)
    assert int(dataset.SourceImageSequence[0].ReferencedFrameNumber) == number


def test_names_in_other_scripts_survive(tmp_path: Path) -> None:
    name = "Yamada^Tarou=山田^太郎=やまだ^たろう"
    path = source(tmp_path / "image.dcm", SpecificCharacterSet=["", "ISO 2022 IR 87"], PatientName=name)
    _, dataset = capture(path, keep=True)
    assert str(dataset.PatientName) == name and dataset.SpecificCharacterSet == "ISO_IR 192"


def test_a_source_without_a_valid_study_gets_one(tmp_path: Path) -> None:
    path = source(tmp_path / "image.dcm")
    dataset = pydicom.dcmread(path)
    for keyword in ("StudyInstanceUID", "SOPInstanceUID", "PatientName"):
        delattr(dataset, keyword)
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.save_as(path)
    _, made = capture(path, keep=True)
    assert UID(made.StudyInstanceUID).is_valid and "SourceImageSequence" not in made
    assert made["PatientName"].is_empty and made.PatientID == "SECRET-4711"


def test_lossy_compression_of_the_source_is_not_forgotten(tmp_path: Path) -> None:
    path = source(tmp_path / "i.dcm", LossyImageCompression="01", LossyImageCompressionRatio="7.5")
    _, dataset = capture(path)
    assert dataset.LossyImageCompression == "01" and float(dataset.LossyImageCompressionRatio) == 7.5


@pytest.mark.parametrize("name", ["CT_small.dcm", "examples_ybr_color.dcm", "MR_small_bigendian.dcm"])
def test_pydicoms_own_files(name: str) -> None:
    path = get_testdata_file(name, download=False)
    assert path is not None
    original = pydicom.dcmread(path)
    _, dataset = capture(Path(path), keep=True)
    assert dataset.PatientID == original.PatientID and dataset.StudyInstanceUID == original.StudyInstanceUID
    _, dataset = capture(Path(path))
    assert dataset["PatientID"].is_empty and dataset.StudyInstanceUID != original.StudyInstanceUID


def test_a_damaged_source_is_named_and_not_quoted(tmp_path: Path) -> None:
    whole = pydicom.dcmread(source(tmp_path / "whole.dcm"))
    whole.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    path = tmp_path / "image.dcm"
    whole.save_as(path)
    content = bytearray(path.read_bytes())
    content[-400:] = b"Doe-Secret" * 40
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"image\.dcm") as caught:
        SecondaryCaptures(True).file(overlay(), path, "", "")
    assert secrets(str(caught.value).encode()) == []
    assert caught.value.__cause__ is None


def test_long_descriptions_are_cut_to_what_the_standard_allows(tmp_path: Path) -> None:
    path = source(tmp_path / "image.dcm")
    made = SecondaryCaptures().file(overlay(), path, "ä" * 3000, "ü" * 20000)
    dataset = pydicom.dcmread(io.BytesIO(made))
    assert len(dataset.DerivationDescription) == 1024 and len(dataset.ImageComments) == 10240
