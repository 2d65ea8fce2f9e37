"""Through MONAI's LoadImage the array, its order and its RAS affine are ours; a refusal stays one."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid
from clearmargin.errors import GeometryError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.raster import write_raster
from clearmargin.formats.video import write_video
from clearmargin.formats.volume import write_volume
from clearmargin.transforms.readers import DicomReader, FrameReader, VolumeReader, ras_affine


@pytest.fixture(scope="module")
def load():
    """MONAI's loader with one of our readers; its own optional readers announce what they lack."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from monai.transforms import LoadImage

    def loaded(reader, path, **options):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="NvImgCodecPydicomReader")
            loader = LoadImage(reader=reader, image_only=True, **options)
        return loader(path)

    return loaded


def test_a_volume_with_its_ras_affine(load, tmp_path):
    affine = np.array([[0.1, 0.2, 0.7, -30], [0, 0.8, 0, 15], [2.5, 0, -0.1, 4], [0, 0, 0, 1]])
    grid = Grid(shape=(4, 5, 6), affine=affine, unit="mm")
    values = np.arange(120, dtype=np.float32).reshape(grid.shape)
    write_volume(tmp_path / "a.nii.gz", values, grid)
    tensor = load(VolumeReader(), tmp_path / "a.nii.gz")
    assert_array_equal(tensor.numpy(), values)
    x, y, z = grid.to_world((3, 2, 1))
    assert_allclose(tensor.affine.numpy() @ (3, 2, 1, 1), (-x, -y, z, 1), atol=1e-4)
    assert_allclose(tensor.affine.numpy(), ras_affine(grid), atol=1e-5)
    assert load(VolumeReader(), tmp_path / "a.nii.gz", ensure_channel_first=True).shape == (1, 4, 5, 6)


def test_a_picture_and_a_frame_of_a_clip(load, tmp_path):
    colour = np.zeros((3, 16, 32), np.uint8)
    colour[0, :, :16] = 200
    write_raster(tmp_path / "a.png", colour)
    tensor = load(FrameReader(), tmp_path / "a.png", ensure_channel_first=True)
    assert_array_equal(tensor.numpy(), colour)
    write_video(tmp_path / "a.mp4", [np.full((3, 16, 32), 20 * k, np.uint8) for k in range(10)], 25)
    frame = load(FrameReader(), f"{tmp_path / 'a.mp4'}#6", ensure_channel_first=True)
    assert frame.shape == (3, 16, 32) and abs(float(frame.mean()) - 120) < 3
    reader = FrameReader()
    assert reader.verify_suffix("a.PNG") and reader.verify_suffix("b.mp4#12")
    assert not reader.verify_suffix("b.mp4") and not reader.verify_suffix(["a.png", "a.nrrd"])


def test_a_real_series(load, data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    tensor = load(DicomReader(), folder)
    image = read_dicom(folder)
    assert_array_equal(tensor.numpy(), image.pixels[0])
    assert_allclose(tensor.affine.numpy(), ras_affine(image.grid))
    assert tensor.meta["case"] == image.source.case and tensor.meta["unit"] == "mm"


def test_a_refusal_is_not_answered_by_another_reader(load, data_root):
    """MONAI falls back in silence when ``read`` fails, and its own readers get a tilted gantry wrong."""
    folder = data_root / "dicom_ct_gantry_tilt"
    with pytest.raises(GeometryError, match="gantry tilt"):
        load(DicomReader(), folder)
    assert load(DicomReader(allow_tilt=True), folder).shape[0] == 10


def test_suffixes(tmp_path):
    assert VolumeReader().verify_suffix("scan.nii.gz") and not VolumeReader().verify_suffix("scan.png")
    assert DicomReader().verify_suffix(str(tmp_path))
    bare = tmp_path / "IM0001"
    bare.write_bytes(bytes(128) + b"DICM")
    assert DicomReader().verify_suffix(Path(bare))
