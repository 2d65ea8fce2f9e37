"""Numbers of DICOM that are not numbers: the series says what is malformed, and nothing ends as a bug."""

from pathlib import Path

import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from clearmargin.errors import InputError
from clearmargin.formats.dicom.images import index_dicom, read_dicom

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"


def indexed(folder, dataset, before, after):
    """Index one object, a few of whose bytes were changed after writing."""
    whole = folder / "whole.dcm"
    dataset.save_as(whole)
    content = whole.read_bytes()
    assert content.count(before) == 1
    (folder / "damaged").mkdir()
    (folder / "damaged" / "one.dcm").write_bytes(content.replace(before, after))
    (entry,) = index_dicom(folder / "damaged")
    return entry


@pytest.mark.parametrize("after", [b"0\\10x5\\20", b"0\\1e999\\2", b"0\\nan\\20 "])
def test_offsets_of_frames_that_are_not_numbers(tmp_path, after):
    dataset = pydicom.dcmread(SHIPPED / "rtdose.dcm")
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = pydicom.uid.NuclearMedicineImageStorage
    dataset.Modality, dataset.ImageType = "NM", ["ORIGINAL", "PRIMARY", "RECON TOMO"]
    dataset.NumberOfFrames = 3
    dataset.GridFrameOffsetVector = [0, 10.5, 20]
    dataset.PixelData = dataset.PixelData[: 3 * dataset.Rows * dataset.Columns * dataset.BitsAllocated // 8]
    entry = indexed(tmp_path, dataset, b"0\\10.5\\20", after.ljust(9))
    assert not entry.readable
    assert "GridFrameOffsetVector" in entry.reason or "not finite" in entry.reason


def test_a_calibration_that_is_not_a_number(tmp_path):
    dataset = pydicom.dcmread(SHIPPED / "SC_rgb_small_odd.dcm")
    region = pydicom.Dataset()
    region.RegionSpatialFormat = 1
    region.PhysicalUnitsXDirection = region.PhysicalUnitsYDirection = 3
    region.PhysicalDeltaX, region.PhysicalDeltaY = 0.125, 0.125
    dataset.SequenceOfUltrasoundRegions = [region]
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(tmp_path / "whole.dcm")
    content = (tmp_path / "whole.dcm").read_bytes()
    delta = bytes.fromhex("1800 2c60") + b"FD" + (8).to_bytes(2, "little")  # PhysicalDeltaX, with three bytes
    assert content.count(delta) == 1
    at = content.index(delta)
    text = bytes.fromhex("1800 2c60") + b"LO" + (8).to_bytes(2, "little") + b"A LENGTH"
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "one.dcm").write_bytes(content[:at] + text + content[at + len(text) :])
    with pytest.raises(InputError, match="calibration of an ultrasound region is malformed"):
        read_dicom(tmp_path / "damaged")
