"""Multi-frame volumes without functional groups: reconstructed SPECT and cone-beam CT."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from pydicom.dataset import Dataset

from clearmargin.core import Grid
from clearmargin.errors import GeometryError
from clearmargin.formats import is_video, read_image
from clearmargin.formats.dicom.images import index_dicom, read_dicom


def _spect(ds, _, *, kind="RECON TOMO", step="-2.5"):
    frames = 6
    detector = Dataset()
    detector.ImagePositionPatient, detector.ImageOrientationPatient = (
        ds.ImagePositionPatient,
        ds.ImageOrientationPatient,
    )
    for name in ("ImagePositionPatient", "ImageOrientationPatient", "SliceThickness"):
        delattr(ds, name)
    ds.DetectorInformationSequence = [detector]
    ds.Modality, ds.ImageType, ds.NumberOfFrames = "NM", ["ORIGINAL", "PRIMARY", kind, "EMISSION"], frames
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.20"
    ds.SpacingBetweenSlices, ds.SliceVector = step, list(range(1, frames + 1))
    ds.FrameIncrementPointer, ds.RescaleIntercept = 0x00540080, "0"
    ds.PixelData = np.repeat(np.arange(frames), 15 * 13).astype("<i2").tobytes()


@pytest.mark.parametrize("step", ["2.5", "-2.5"])
def test_reconstructed_spect_is_a_volume(step, any_grid, write_series, tmp_path):
    """Slices follow each other along the normal, or against it by the sign of their spacing (PS3.3, C.8.4.15)."""
    lone = Grid(shape=(1, 15, 13), affine=any_grid.affine, unit="mm")
    (file,) = write_series(tmp_path, lone, change=lambda ds, z: _spect(ds, z, step=step))
    assert not is_video(file)
    image = read_image(file)
    assert image.grid.shape == (6, 15, 13)
    ds = pydicom.dcmread(file)
    item = ds.DetectorInformationSequence[0]
    turn = np.array(item.ImageOrientationPatient, float)
    normal = np.cross(turn[:3], turn[3:])
    for k in range(6):
        place = np.array(item.ImagePositionPatient, float) + k * float(step) * normal
        z, y, x = np.round(image.grid.to_index(place)).astype(int)
        assert np.linalg.norm(image.grid.to_world((z, y, x)) - place) < 0.01
        assert image.pixels[0, z, y, x] == k


def test_projections_stay_a_clip(axial, write_series, tmp_path):
    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    (file,) = write_series(tmp_path, lone, change=lambda ds, z: _spect(ds, z, kind="TOMO"))
    assert is_video(file)


def test_a_reconstructed_volume_without_a_place_is_not_a_clip(axial, write_series, tmp_path):
    def lost(ds, z):
        _spect(ds, z)
        del ds.DetectorInformationSequence

    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    (file,) = write_series(tmp_path, lone, change=lost)
    assert not is_video(file)
    with pytest.raises(GeometryError, match="reconstructed volume of 6 slices and does not say where"):
        read_dicom(file)


def test_gated_spect_holds_a_volume_a_time_slot(axial, write_series, tmp_path):
    def gated(ds, z):
        _spect(ds, z, kind="RECON GATED TOMO", step="2.5")
        ds.SliceVector, ds.TimeSlotVector = [1, 2, 3] * 2, [1, 1, 1, 2, 2, 2]
        ds.FrameIncrementPointer = [0x00540070, 0x00540080]

    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    (file,) = write_series(tmp_path, lone, change=gated)
    (entry,) = index_dicom(file)
    assert [v.label for v in entry.volumes] == ["time slot 1", "time slot 2"]
    assert_array_equal(read_dicom(file, volume="time slot 2").pixels[0, :, 0, 0], [3, 4, 5])


def _cone_beam(ds, _):
    ds.NumberOfFrames, ds.SpacingBetweenSlices, ds.RescaleIntercept = 6, "0.4", "0"
    ds.PixelData = np.repeat(np.arange(6), 15 * 13).astype("<i2").tobytes()


def test_cone_beam_ct_is_a_volume(any_grid, write_series, tmp_path):
    lone = Grid(shape=(1, 15, 13), affine=any_grid.affine, unit="mm")
    (file,) = write_series(tmp_path / "a", lone, change=_cone_beam)
    image = read_image(file)
    assert image.grid.shape == (6, 15, 13) and image.grid.spacing[0] == pytest.approx(0.4)
    assert_array_equal(image.pixels[0, :, 3, 3], np.arange(6))

    def unknown(ds, z):
        _cone_beam(ds, z)
        del ds.SpacingBetweenSlices

    (file,) = write_series(tmp_path / "b", lone, change=unknown)
    with pytest.raises(GeometryError, match="6 frames have one position and no SpacingBetweenSlices"):
        read_image(file)

    def cine(ds, z):
        _cone_beam(ds, z)
        ds.FrameTime, ds.FrameIncrementPointer = "40", 0x00181063

    (file,) = write_series(tmp_path / "c", lone, change=cine)
    assert is_video(file)
