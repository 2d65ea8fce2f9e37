"""A zip and a DICOMDIR are read as the folder is; neither leads out of itself."""

from __future__ import annotations

import warnings
import zipfile

import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.fileset import FileSet

from clearmargin.errors import InputError
from clearmargin.formats import read_image
from clearmargin.formats.dicom.images import index_dicom, read_dicom
from clearmargin.formats.dicom.seg import write_dicom_seg


def test_a_zip_is_read_as_its_folder(axial, write_series, predict, tmp_path):
    files = write_series(tmp_path / "series", axial)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in files:
            archive.write(file, f"CANARY/{file.name}")
        archive.writestr("notes.txt", "not DICOM")
    image = read_image(tmp_path / "a.zip")
    assert_array_equal(image.pixels, read_dicom(tmp_path / "series").pixels)
    assert not any("CANARY" in str(f) for f in image.source.files)
    assert write_dicom_seg(tmp_path / "seg.dcm", predict(image), image).segments == 4


def test_zips_that_are_refused(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="is not readable as a zip"):
        index_dicom(tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "b.zip", "w") as archive:
        archive.writestr("../../evil.dcm", bytes(128) + b"DICM")
    with pytest.raises(InputError, match="no readable DICOM"):
        index_dicom(tmp_path / "b.zip")
    assert not list(tmp_path.parent.glob("**/evil.dcm"))


def _media(files, folder):
    media = FileSet()
    for file in files:
        media.add(file)
    media.write(folder)
    media._stage["t"].cleanup()  # pydicom leaves it to the garbage collector, which warns


def test_a_dicomdir_lists_what_is_read(axial, write_series, tmp_path):
    files = write_series(tmp_path / "series", axial)
    _media(files, tmp_path / "media")
    image = read_image(tmp_path / "media" / "DICOMDIR")
    assert image.grid.same_as(axial)
    assert_array_equal(image.pixels, read_dicom(files).pixels)
    assert read_image(tmp_path / "media").grid.same_as(axial)


def test_a_dicomdir_does_not_lead_out_of_its_folder(axial, write_series, tmp_path):
    files = write_series(tmp_path / "series", axial)
    _media(files[:1], tmp_path / "media")
    ds = pydicom.dcmread(tmp_path / "media" / "DICOMDIR")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # such a name is no valid one
        for record in ds.DirectoryRecordSequence:
            if "ReferencedFileID" in record:
                record.ReferencedFileID = ["..", "series", files[0].name]
        ds.save_as(tmp_path / "media" / "DICOMDIR")
    with pytest.raises(InputError, match="outside its own folder"):
        index_dicom(tmp_path / "media" / "DICOMDIR")
