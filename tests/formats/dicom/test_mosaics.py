"""Siemens mosaics are unfolded as nibabel does, or refused by that name."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal

from clearmargin.core import Grid
from clearmargin.errors import InputError
from clearmargin.formats import read_image, read_images
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.seg import write_dicom_seg


def _mosaics() -> list[Path]:
    return sorted((Path(nibabel.__file__).parent / "nicom" / "tests" / "data").glob("siemens_dwi_*.dcm.gz"))


@pytest.mark.parametrize("packed", _mosaics(), ids=lambda p: p.name)
def test_a_real_mosaic_is_unfolded_as_nibabel_does(packed, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # nibabel calls its own readers experimental
        from nibabel.nicom.dicomwrappers import wrapper_from_data

    file = tmp_path / "mosaic.dcm"
    file.write_bytes(gzip.decompress(packed.read_bytes()))
    image = read_image(file)
    oracle = wrapper_from_data(pydicom.dcmread(file))
    columns, rows, slices = oracle.image_shape
    assert image.grid.shape == (slices, rows, columns) == (48, 128, 128)
    rng = np.random.default_rng(0)
    index = np.concatenate(
        [rng.integers(0, oracle.image_shape, (200, 3)), [(0, 0, 0), (127, 127, 47), (0, 127, 0)]]
    )
    world = index @ oracle.affine[:3, :3].T + oracle.affine[:3, 3]
    found = image.grid.to_index(world)
    assert (np.abs(found - np.round(found)) * image.grid.spacing).max() < 0.01
    assert_array_equal(
        image.pixels[0][tuple(np.round(found).astype(int).T)], oracle.get_data()[tuple(index.T)]
    )


def test_several_mosaics_are_several_volumes(predict, tmp_path):
    if not _mosaics():
        pytest.skip("nibabel came without its test data")
    for k in range(2):
        ds = pydicom.dcmread(io.BytesIO(gzip.decompress(_mosaics()[0].read_bytes())))
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.826.9.{k}"
        ds.InstanceNumber = ds.AcquisitionNumber = k + 1
        ds.PixelData = np.full((ds.Rows, ds.Columns), 10 + k, "<u2").tobytes()
        ds.save_as(tmp_path / f"{k}.dcm")
    images = list(read_images(tmp_path))
    assert [(i.grid.shape, int(i.pixels.min()), int(i.pixels.max())) for i in images] == [
        ((48, 128, 128), 10, 10),
        ((48, 128, 128), 11, 11),
    ]
    write_dicom_seg(tmp_path / "seg.dcm", predict(images[1]), images[1])
    for item in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.ReferencedSOPInstanceUID == "1.2.826.9.1" and "ReferencedFrameNumber" not in source


@pytest.mark.parametrize("how", ["type only", "count only", "both"])
def test_a_mosaic_that_lost_its_private_elements_is_refused(how, axial, write_series, tmp_path):
    """Read as one slice it would be a metre wide; nothing that is said may lead there."""

    def mosaic(ds, _):
        ds.Modality = "MR"
        if how != "count only":
            ds.ImageType = ["ORIGINAL", "PRIMARY", "M", "ND", "MOSAIC"]
        if how != "type only":
            ds.private_block(0x0019, "SIEMENS MR HEADER", create=True).add_new(0x0A, "US", 36)

    for n, folder in ((1, "one"), (4, "four")):
        flat = Grid(shape=(n, 48, 48), affine=axial.affine, unit="mm")

        def same(ds, z):
            mosaic(ds, z)
            ds.ImagePositionPatient = [0, 0, 0]

        write_series(tmp_path / folder, flat, change=same)
        with pytest.raises(InputError, match="mosaic") as caught:
            read_dicom(tmp_path / folder)
        assert "give the files of one" not in str(caught.value) and "read_images" not in str(caught.value)
        with pytest.raises(InputError, match="mosaic"):
            list(read_images(tmp_path / folder))
