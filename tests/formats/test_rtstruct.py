"""Contours go out and come back as the same pixels; real ones lie on the images they were drawn on."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom import read_dicom
from clearmargin.formats.rtstruct import read_rtstruct, write_rtstruct


@pytest.fixture
def image(any_grid, write_series, tmp_path):
    write_series(tmp_path / "series", any_grid)
    return read_dicom(tmp_path / "series")


def test_round_trip_in_every_orientation(image, predict, tmp_path, dciodvfy):
    prediction = predict(image)
    holed = np.zeros(image.grid.shape, bool)
    holed[2:4, 3:10, 3:10] = True
    holed[2:4, 5:8, 5:8] = False
    holed[2, 6, 6] = True  # an island in the hole
    masks = (*prediction.instances.masks, *InstanceSet.from_dense(image.grid, [holed]).masks)
    instances = InstanceSet(grid=image.grid, masks=masks, labels=np.ones(5), scores=np.ones(5))
    prediction = replace(prediction, instances=instances)
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)
    assert dciodvfy(tmp_path / "rt.dcm") == []
    back = read_rtstruct(tmp_path / "rt.dcm", grid=image.grid)
    assert back.names == ("tumour 1", "tumour 2", "tumour 3", "tumour 4", "tumour 5")
    for ours, theirs in zip(instances.masks, back.instances.masks, strict=True):
        assert_array_equal(ours.dense(), theirs.dense())


def test_contours_run_within_half_a_pixel_of_the_edge_pixels(image, predict, tmp_path):
    prediction = predict(image)
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)
    ds = pydicom.dcmread(tmp_path / "rt.dcm")
    positions = {
        h.SOPInstanceUID: h for h in (pydicom.dcmread(f, stop_before_pixels=True) for f in image.source.files)
    }
    for region, mask in zip(ds.ROIContourSequence, prediction.instances.masks, strict=True):
        inside = image.grid.to_world(np.argwhere(mask.dense()))
        for contour in region.ContourSequence:
            points = np.array(contour.ContourData, float).reshape(-1, 3)
            distance = np.linalg.norm(points[:, None] - inside[None], axis=-1).min(axis=1)
            assert distance.max() <= 0.5 * max(image.grid.spacing[1:]) + 1e-4
            source = positions[contour.ContourImageSequence[0].ReferencedSOPInstanceUID]
            right, down = (
                np.array(source.ImageOrientationPatient[:3]),
                np.array(source.ImageOrientationPatient[3:]),
            )
            off = (points - np.array(source.ImagePositionPatient, float)) @ np.cross(right, down)
            assert np.abs(off).max() < 0.01


def test_the_same_contours_are_the_same_file(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    first = write_rtstruct(tmp_path / "a.dcm", predict(image), image)
    assert first == write_rtstruct(tmp_path / "b.dcm", predict(image), image)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_refusals(axial, write_series, predict, tmp_path):
    (file, *_) = write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_rtstruct(tmp_path / "rt.dcm", predict(image), image)
    affine = axial.affine.copy()
    affine[2, 3] += 1.0
    with pytest.raises(GeometryError, match="none of the slices"):
        read_rtstruct(tmp_path / "rt.dcm", grid=Grid(shape=axial.shape, affine=affine, unit="mm"))
    with pytest.raises(InputError, match="is not an RT structure set"):
        read_rtstruct(file, grid=axial)
    flat = Image(pixels=np.zeros((1, 15, 13)), grid=Grid.from_spacing((15, 13)))
    with pytest.raises(InputError, match="no volume in millimetres"):
        write_rtstruct(tmp_path / "rt.dcm", predict(flat), flat)


def test_real_structure_sets(data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "rt_utils" / "mock_data"
    image = read_dicom([folder / "ct_1.dcm", folder / "ct_2.dcm"])
    found = read_rtstruct(folder / "rt.dcm", grid=image.grid)
    assert len(found.names) == len(found.instances)
    # These were drawn on another series: their contours lie elsewhere, whatever their references say.
    for name in ("invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"):
        with pytest.raises(GeometryError, match="none of the slices|another frame of reference"):
            read_rtstruct(folder / name, grid=image.grid)
