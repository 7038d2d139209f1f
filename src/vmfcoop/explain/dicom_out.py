"""Overlays as DICOM Secondary Captures, without the source's identifiers or, where asked, with them.

PS3.3 A.8.1 (Secondary Capture Image IOD); modules C.7.1.1 Patient, C.7.2.1 General Study, C.7.3.1 General
Series, C.8.6.1 SC Equipment, C.7.6.1 General Image, C.7.6.3 Image Pixel, C.12.1 SOP Common.
"""

from __future__ import annotations

import io
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from PIL import Image

from vmfcoop.__about__ import __version__
from vmfcoop.data.dicom_file import damaged, pydicom_silenced
from vmfcoop.data.references import file_kind, parse_reference

if TYPE_CHECKING:
    from pydicom import Dataset

PATIENT_ATTRIBUTES = (
    "PatientName",
    "PatientID",
    "IssuerOfPatientID",
    "PatientBirthDate",
    "PatientSex",
    "PatientSpeciesDescription",
    "PatientSpeciesCodeSequence",
    "PatientBreedDescription",
    "PatientBreedCodeSequence",
    "BreedRegistrationSequence",
    "ResponsiblePerson",
    "ResponsiblePersonRole",
    "ResponsibleOrganization",
    "PatientIdentityRemoved",
    "DeidentificationMethod",
    "DeidentificationMethodCodeSequence",
)
STUDY_ATTRIBUTES = (
    "StudyInstanceUID",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "IssuerOfAccessionNumberSequence",
    "ReferringPhysicianName",
    "StudyID",
    "StudyDescription",
    "PatientAge",
    "PatientSize",
    "PatientWeight",
    "PatientSexNeutered",
)
"""What is copied with identifiers; each attribute of the modules that a file must have is in these two."""

_EMPTY_IF_UNKNOWN = (
    "PatientName",
    "PatientID",
    "PatientBirthDate",
    "PatientSex",
    "StudyDate",
    "StudyTime",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyID",
)
_LOSSY = ("LossyImageCompression", "LossyImageCompressionRatio", "LossyImageCompressionMethod")
_REFERENCE = ("SOPClassUID", "SOPInstanceUID", "NumberOfFrames")
SERIES_DESCRIPTION = "Saliency overlay, research use only"


class _Series(NamedTuple):
    study_uid: str
    uid: str
    number: int


class SecondaryCaptures:
    """Makes the captures of one command: those of one study make one new series of it.

    Without identifiers every capture is a study of its own, so that none says which images belong together.

    Args:
        keep_identifiers: copy patient and study from sources that are DICOM, and refer to the source image.
    """

    def __init__(self, keep_identifiers: bool = False) -> None:
        self._keep = keep_identifiers
        self._series: dict[str, tuple[str, int]] = {}

    def file(self, picture: Image.Image, source: Path, derivation: str, comment: str) -> bytes:
        """One overlay as the bytes of a DICOM file (Explicit VR Little Endian, RGB, 8 bits).

        Text is burned into overlays, and what a source has burned into its pixels is still there: Burned In
        Annotation is YES, and nothing says that the patient's identity was removed.

        Args:
            picture: the overlay.
            source: the image, perhaps with a selection; any format.
            derivation: how the picture was made; becomes Derivation Description, cut to its 1024 characters.
            comment: becomes Image Comments.

        Raises:
            UserError: a DICOM source is damaged.
        """
        from pydicom.uid import SecondaryCaptureImageStorage, generate_uid

        header = _read_header(source)
        dataset = _blank()
        if self._keep and header is not None:
            _copy(header, dataset, PATIENT_ATTRIBUTES + STUDY_ATTRIBUTES)
            _refer(dataset, header, source)
        if header is not None:
            _copy(header, dataset, _LOSSY)
        series = self._next(dataset)
        now = datetime.now()
        described: dict[str, Any] = {
            "SpecificCharacterSet": "ISO_IR 192",
            "SOPClassUID": SecondaryCaptureImageStorage,
            "SOPInstanceUID": generate_uid(),
            "InstanceCreationDate": now.strftime("%Y%m%d"),
            "InstanceCreationTime": now.strftime("%H%M%S"),
            "StudyInstanceUID": series.study_uid,
            "SeriesInstanceUID": series.uid,
            "SeriesNumber": None,
            "SeriesDescription": SERIES_DESCRIPTION,
            "Modality": "OT",
            "ConversionType": "WSD",
            "SecondaryCaptureDeviceManufacturer": "vmfcoop",
            "SecondaryCaptureDeviceManufacturerModelName": "vmfcoop explain",
            "SecondaryCaptureDeviceSoftwareVersions": __version__,
            "ImageType": ["DERIVED", "SECONDARY"],
            "InstanceNumber": series.number,
            "PatientOrientation": None,
            "ContentDate": now.strftime("%Y%m%d"),
            "ContentTime": now.strftime("%H%M%S"),
            "DerivationDescription": derivation[:1024],
            "ImageComments": comment[:10240],
            "BurnedInAnnotation": "YES",
        }
        for keyword, value in described.items():
            setattr(dataset, keyword, value)
        _set_pixels(dataset, picture)
        return _encoded(dataset)

    def _next(self, dataset: Dataset) -> _Series:
        from pydicom.uid import UID, generate_uid

        study = UID(str(dataset.get("StudyInstanceUID") or ""))
        if not study.is_valid:
            return _Series(generate_uid(), generate_uid(), 1)
        uid, made = self._series.get(study, (generate_uid(), 0))
        self._series[study] = (uid, made + 1)
        return _Series(study, uid, made + 1)


def _read_header(source: Path) -> Dataset | None:
    """The attributes that may be copied, of a DICOM source; None for any other."""
    file = parse_reference(source).file
    if file_kind(file) != "dicom":
        return None
    from pydicom import dcmread

    wanted = [*PATIENT_ATTRIBUTES, *STUDY_ATTRIBUTES, *_LOSSY, *_REFERENCE]
    with pydicom_silenced():
        try:
            header = dcmread(file, stop_before_pixels=True, force=True, specific_tags=wanted)
            header.decode()
        # pydicom's errors quote values: without their text, and not as the cause.
        except Exception:
            raise damaged(file) from None
    return header


def _blank() -> Dataset:
    from pydicom import Dataset

    dataset = Dataset()
    for keyword in _EMPTY_IF_UNKNOWN:
        setattr(dataset, keyword, None)
    return dataset


def _copy(header: Dataset, dataset: Dataset, keywords: tuple[str, ...]) -> None:
    for keyword in keywords:
        if keyword in header:
            element = header[keyword]
            if element.VR == "SQ":
                for item in element.value:
                    item.remove_private_tags()
            dataset.add(element)


def _refer(dataset: Dataset, header: Dataset, source: Path) -> None:
    """Source Image Sequence, where the source says which image it is."""
    from pydicom import Dataset
    from pydicom.sr.codedict import codes

    if not (header.get("SOPClassUID") and header.get("SOPInstanceUID")):
        return
    item, purpose = Dataset(), Dataset()
    item.ReferencedSOPClassUID = header.SOPClassUID
    item.ReferencedSOPInstanceUID = header.SOPInstanceUID
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1:
        item.ReferencedFrameNumber = parse_reference(source).index("frame", frames, frames // 2) + 1
    code = codes.DCM.SourceImageForImageProcessingOperation
    purpose.CodeValue, purpose.CodingSchemeDesignator, purpose.CodeMeaning = code.value, "DCM", code.meaning
    item.PurposeOfReferenceCodeSequence = [purpose]
    dataset.SourceImageSequence = [item]


def _set_pixels(dataset: Dataset, picture: Image.Image) -> None:
    dataset.SamplesPerPixel = 3
    dataset.PhotometricInterpretation = "RGB"
    dataset.PlanarConfiguration = 0
    dataset.Rows, dataset.Columns = picture.height, picture.width
    dataset.BitsAllocated = dataset.BitsStored = 8
    dataset.HighBit, dataset.PixelRepresentation = 7, 0
    pixels = picture.convert("RGB").tobytes()
    dataset.PixelData = pixels + b"\0" * (len(pixels) % 2)
    dataset["PixelData"].VR = "OB"


def _encoded(dataset: Dataset) -> bytes:
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import ExplicitVRLittleEndian

    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    stream = io.BytesIO()
    with pydicom_silenced():
        dataset.save_as(stream, enforce_file_format=True)
    return stream.getvalue()
