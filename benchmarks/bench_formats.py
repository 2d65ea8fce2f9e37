"""Reading, indexing and SEG writing against peers, on data made here: ``python benchmarks/bench_formats.py``.

Each line: what, our seconds, the peer's seconds, the ratio; the least of several rounds, taken in turn.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import SimpleITK
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

from clearmargin.core import (
    Code,
    Grid,
    Image,
    InstanceSet,
    LabelClass,
    LabelMap,
    Mask,
    Prediction,
    Provenance,
    Source,
)
from clearmargin.formats.dicom.images import index_dicom, read_dicom
from clearmargin.formats.dicom.seg import read_dicom_seg, write_dicom_seg


def write_series(folder: Path, slices: int, size: int) -> list[Path]:
    """A CT series of noise; files do not follow the slices."""
    rng = np.random.default_rng(0)
    files = []
    for z in range(slices):
        ds = Dataset()
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = CTImageStorage
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.3.{z + 1}"
        ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = (
            "1.2.826.1",
            "1.2.826.3",
            "1.2.826.2",
        )
        ds.PatientName, ds.PatientID, ds.PatientBirthDate, ds.PatientSex = "Bench", "B", "", ""
        ds.StudyDate, ds.StudyTime, ds.AccessionNumber, ds.StudyID = "20200101", "101010", "", ""
        ds.Modality, ds.Manufacturer, ds.SeriesNumber, ds.InstanceNumber = "CT", "", 1, z + 1
        ds.ImageOrientationPatient, ds.ImagePositionPatient = [1, 0, 0, 0, 1, 0], [0, 0, 1.5 * z]
        ds.PixelSpacing, ds.SliceThickness = [0.8, 0.8], 1.5
        ds.Rows = ds.Columns = size
        ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
        ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        ds.PixelData = rng.integers(0, 3000, (size, size)).astype("<i2").tobytes()
        ds["PixelData"].VR = "OW"
        files.append(folder / f"{(z * 37) % slices:05d}.dcm")
        ds.save_as(files[-1], enforce_file_format=True)
    return files


def compare(what: str, ours: Callable[[], object], theirs: Callable[[], object], rounds: int = 5) -> None:
    """Time both in turn, so that a busy machine slows both."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for k, call in enumerate((ours, theirs)):
            start = time.perf_counter()
            call()
            best[k] = min(best[k], time.perf_counter() - start)
    print(f"{what:58} {best[0]:8.3f} {best[1]:8.3f} {best[0] / best[1]:6.2f}", flush=True)


def read_by_simpleitk(folder: Path) -> object:
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return SimpleITK.GetArrayFromImage(reader.Execute())


def read_by_monai(folder: Path) -> object:
    from monai.data import PydicomReader

    reader = PydicomReader()
    return reader.get_data(reader.read(str(folder)))


def index_by_pydicom(folder: Path) -> object:
    series: dict[str, int] = {}
    for file in folder.iterdir():
        uid = pydicom.dcmread(file, stop_before_pixels=True).SeriesInstanceUID
        series[uid] = series.get(uid, 0) + 1
    return series


def seg_of_fifty(folder: Path) -> None:
    """50 balls in 300 slices of 512 x 512: write and read, with the peak of memory."""
    files = write_series(folder, 300, 512)
    grid = Grid.from_spacing((300, 512, 512), (1.5, 0.8, 0.8))
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(50):
        r = int(rng.integers(5, 60))
        z, y, x = np.ogrid[-r : r + 1, -r : r + 1, -r : r + 1]
        centre = rng.integers(r, (300 - r, 512 - r, 512 - r))
        masks.append(
            Mask.from_crop(z * z + y * y + x * x <= r * r, tuple(int(c - r) for c in centre), grid.shape)
        )
    code = Code(value="108369006", scheme="SCT", meaning="Neoplasm")
    abnormal = Code(value="49755003", scheme="SCT", meaning="Morphologically Abnormal Structure")
    instances = InstanceSet(grid=grid, masks=tuple(masks), labels=np.ones(50), scores=np.ones(50))
    prediction = Prediction(
        instances=instances,
        label_map=LabelMap((LabelClass(id=1, name="tumour", type=code, category=abnormal),)),
        provenance=Provenance(model="m", weights_sha256="0", config_sha256="0", software="bench"),
    )
    image = Image(
        pixels=np.zeros((1, *grid.shape), np.int8), grid=grid, source=Source(kind="dicom", files=tuple(files))
    )
    start = time.perf_counter()
    written = write_dicom_seg(folder / "seg.dcm", prediction, image)
    middle = time.perf_counter()
    read_dicom_seg(folder / "seg.dcm", grid=grid)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"SEG, 50 instances, {written.frames} frames: written in {middle - start:.1f} s, ", end="")
    print(f"read in {time.perf_counter() - middle:.1f} s, peak of the process {peak:.2f} GiB")


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--files", type=int, default=10_000, help="files to index")
    count = parser.parse_args().files
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as name:
        os.environ["CLEARMARGIN_HOME"] = name + "/home"
        (Path(name) / "home").mkdir()
        print(f"{'':58} {'ours/s':>8} {'peer/s':>8} {'ratio':>6}")
        series = Path(name) / "series"
        series.mkdir()
        write_series(series, 108, 256)
        compare(
            "read 108 slices of 256 x 256; SimpleITK",
            lambda: read_dicom(series),
            lambda: read_by_simpleitk(series),
        )
        compare("the same; MONAI PydicomReader", lambda: read_dicom(series), lambda: read_by_monai(series), 2)
        many = Path(name) / "many"
        many.mkdir()
        write_series(many, count, 16)
        compare(
            f"index {count} files; pydicom loop", lambda: index_dicom(many), lambda: index_by_pydicom(many), 2
        )
        volume = Path(name) / "volume"
        volume.mkdir()
        seg_of_fifty(volume)


if __name__ == "__main__":
    main()
