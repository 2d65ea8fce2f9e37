"""Phantoms as files: a CT study with its truth as DICOM, and a clip as a video."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.core import Image, Prediction, Provenance, Source
from clearmargin.datasets.phantom import PHANTOM_LABELS, Phantom
from clearmargin.privacy import case_id

__all__ = ["StudyFiles", "write_ct_series", "write_phantom_study"]

_CT_IMAGE = "1.2.840.10008.5.1.4.1.1.2"
_EXPLICIT_LITTLE_ENDIAN = "1.2.840.10008.1.2.1"


@dataclass(frozen=True, kw_only=True)
class StudyFiles:
    """Where a phantom study lies.

    Attributes:
        ct: Folder that holds the CT series, one file per slice, and nothing else.
        truth: The DICOM SEG with one binary segment per instance.
    """

    ct: Path
    truth: Path


def write_phantom_study(folder: Path, phantom: Phantom, number: int) -> StudyFiles:
    """Write ``phantom`` as study ``number`` below ``folder``: a CT series and its truth.

    The patient is invented (``Phantom^Number1``), and every UID follows from the seed and the number, so a
    second writing is the same study. The series is CT Image Storage; slices are numbered from foot to head.

    Returns:
        The paths written: ``phantom-NNN/ct/NNNN.dcm`` and ``phantom-NNN/truth.dcm``.

    Raises:
        ValueError: If the phantom has no instance, of which a SEG has at least one.
    """
    from clearmargin.formats.dicom.seg import write_dicom_seg

    if not len(phantom.reference):
        raise ValueError("a phantom study has a truth: this phantom shows no instance")
    study = Path(folder) / f"phantom-{number:03d}"
    files = write_ct_series(study / "ct", phantom.image, phantom.seed, number)
    source = Source(case=case_id("phantom", str(phantom.seed)), kind="dicom", modality="CT", files=files)
    image = Image(pixels=phantom.image.pixels, grid=phantom.image.grid, source=source)
    software = Provenance(
        model="phantom", weights_sha256="", config_sha256="", software="clearmargin phantom"
    )
    truth = Prediction(instances=phantom.reference, label_map=PHANTOM_LABELS, provenance=software)
    write_dicom_seg(study / "truth.dcm", truth, image)
    return StudyFiles(ct=study / "ct", truth=study / "truth.dcm")


def write_ct_series(folder: Path, image: Image, seed: int, number: int) -> tuple[Path, ...]:
    """Write one CT file per slice; return the files in slice order.

    Raises:
        ValueError: If the image is not one channel of Hounsfield units in -1024..3071 on a volume in mm.
    """
    pixels = image.pixels
    if pixels.shape[0] != 1 or image.grid.ndim != 3 or image.grid.unit != "mm":
        raise ValueError(f"a CT series is one channel on a volume in mm, not {image}")
    stored = np.asarray(pixels[0], np.int32) + 1024
    if stored.min() < 0 or stored.max() > 4095:
        raise ValueError("a CT of 12 bits holds -1024..3071 HU")
    folder.mkdir(parents=True, exist_ok=True)
    shared = _shared_header(image, seed, number)
    files = []
    for z in range(stored.shape[0]):
        path = folder / f"{z + 1:04d}.dcm"
        dataset = _slice(shared, image, stored[z].astype("<u2"), z, (seed, number))
        dataset.save_as(path, enforce_file_format=True)
        files.append(path)
    return tuple(files)


def _shared_header(image: Image, seed: int, number: int) -> Any:
    """Return the attributes that every slice of the study has in common."""
    from pydicom.dataset import Dataset

    first, last = image.grid.spacing[0], image.grid.spacing[1:]
    header = Dataset()
    header.PatientName, header.PatientID = f"Phantom^Number{number}", f"PHANTOM-{number:04d}"
    header.PatientBirthDate, header.PatientSex = "", "O"
    header.PatientIdentityRemoved, header.DeidentificationMethod = "YES", "Synthetic: no patient was scanned"
    header.StudyInstanceUID, header.SeriesInstanceUID = (
        _uid("study", seed, number),
        _uid("series", seed, number),
    )
    header.FrameOfReferenceUID, header.PositionReferenceIndicator = _uid("frame", seed, number), ""
    header.StudyID, header.AccessionNumber, header.ReferringPhysicianName = f"{number}", "", ""
    header.StudyDate = header.SeriesDate = header.ContentDate = header.AcquisitionDate = "20000101"
    header.StudyTime = header.SeriesTime = header.ContentTime = header.AcquisitionTime = "120000"
    header.StudyDescription, header.SeriesDescription = "Synthetic abdomen", "Phantom, portal venous"
    header.Modality, header.SeriesNumber, header.AcquisitionNumber = "CT", 1, 1
    header.BodyPartExamined, header.PatientPosition = "ABDOMEN", "HFS"
    header.Manufacturer, header.ManufacturerModelName = "Clear Margin", "Phantom"
    header.DeviceSerialNumber, header.SoftwareVersions = "0", "phantom"
    header.ImageType = ["DERIVED", "PRIMARY", "AXIAL"]
    header.DerivationDescription = "Computed from a random seed"
    header.KVP, header.ConvolutionKernel = "120", "SYNTHETIC"
    header.SliceThickness, header.PixelSpacing = f"{first:g}", [f"{s:g}" for s in last]
    header.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    header.SamplesPerPixel, header.PhotometricInterpretation = 1, "MONOCHROME2"
    header.Rows, header.Columns = image.grid.shape[1:]
    header.BitsAllocated, header.BitsStored, header.HighBit, header.PixelRepresentation = 16, 12, 11, 0
    header.RescaleIntercept, header.RescaleSlope, header.RescaleType = "-1024", "1", "HU"
    header.WindowCenter, header.WindowWidth = "40", "400"
    return header


def _slice(shared: Any, image: Image, stored: Any, z: int, key: tuple[int, int]) -> Any:
    """Return slice ``z`` as a dataset that is ready to be saved."""
    from pydicom.dataset import Dataset, FileMetaDataset
    from pydicom.uid import UID

    dataset = Dataset()
    dataset.update(shared)
    position = image.grid.to_world((z, 0, 0))
    dataset.SOPClassUID, dataset.SOPInstanceUID = _CT_IMAGE, _uid("slice", *key, z)
    dataset.InstanceNumber = z + 1
    dataset.ImagePositionPatient = [f"{v:.6g}" for v in position]
    dataset.SliceLocation = f"{position[2]:.6g}"
    dataset.add_new("PixelData", "OW", stored.tobytes())
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.MediaStorageSOPClassUID = UID(_CT_IMAGE)
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.file_meta.TransferSyntaxUID = UID(_EXPLICIT_LITTLE_ENDIAN)
    return dataset


def _uid(kind: str, *numbers: int) -> str:
    from clearmargin.formats.dicom.output import derived_uid

    return derived_uid("clearmargin phantom", kind, *map(str, numbers))
