"""An uncertainty map goes out and comes back at the same places, with the same 32-bit values."""

from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.parametric_map import read_parametric_map, write_parametric_map


@pytest.fixture
def image(any_grid, write_series, tmp_path):
    write_series(tmp_path / "series", any_grid)
    return read_dicom(tmp_path / "series")


def test_round_trip_in_every_orientation(image, predict, tmp_path, dciodvfy):
    prediction = predict(image)
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    assert dciodvfy(tmp_path / "map.dcm") == []
    values, grid = read_parametric_map(tmp_path / "map.dcm", grid=image.grid)
    assert grid.same_as(image.grid)
    assert_array_equal(values, prediction.maps["entropy"])


def test_highdicom_reads_the_same_values_at_the_same_places(image, predict, tmp_path):
    prediction = predict(image)
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    volume = highdicom.imread(tmp_path / "map.dcm").get_volume(apply_real_world_transform=True)
    index = np.argwhere(np.ones(image.grid.shape))
    found = volume.map_reference_to_indices(image.grid.to_world(index), round_output=True)
    assert_allclose(volume.array[tuple(found.T)], prediction.maps["entropy"].ravel(), atol=1e-7)


def test_the_same_map_is_the_same_file(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    first = write_parametric_map(tmp_path / "a.dcm", prediction, "entropy", image)
    assert first == write_parametric_map(tmp_path / "b.dcm", prediction, "entropy", image)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    other = replace(prediction, maps={"entropy": prediction.maps["entropy"] * 0.5})
    assert first != write_parametric_map(tmp_path / "c.dcm", other, "entropy", image)
    ds = pydicom.dcmread(tmp_path / "a.dcm")
    assert "Research use only" in ds.ContentDescription
    assert (
        ds.PerFrameFunctionalGroupsSequence[2]
        .DerivationImageSequence[0]
        .SourceImageSequence[0]
        .ReferencedSOPInstanceUID
        == "1.2.826.3.3"
    )


@pytest.mark.parametrize("largest", [0.0, 0.003, 0.25, 1.0, 40.0])
def test_a_flat_map_and_one_of_small_values_are_shown_from_black_to_white(
    axial, write_series, predict, tmp_path, dciodvfy, largest
):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    values = np.linspace(0, largest, np.prod(axial.shape), dtype=np.float32).reshape(axial.shape)
    prediction = replace(predict(image), maps={"entropy": values})
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    assert dciodvfy(tmp_path / "map.dcm") == []
    assert_array_equal(read_parametric_map(tmp_path / "map.dcm")[0], values)
    shown = highdicom.imread(tmp_path / "map.dcm").get_frames(
        apply_real_world_transform=False, apply_voi_transform=True
    )
    assert shown.min() == (0.5 if largest == 0 else 0)
    assert shown.max() == pytest.approx(1 if largest else 0.5)


def test_refusals(axial, write_series, predict, tmp_path):
    files = write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    with pytest.raises(InputError, match="no map 'entropie': did you mean 'entropy'"):
        write_parametric_map(tmp_path / "map.dcm", prediction, "entropie", image)
    broken = replace(prediction, maps={"entropy": np.full(axial.shape, np.nan, np.float32)})
    with pytest.raises(InputError, match="not finite"):
        write_parametric_map(tmp_path / "map.dcm", broken, "entropy", image)
    with pytest.raises(InputError, match="is not a Parametric Map"):
        read_parametric_map(files[0])
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    with pytest.raises(GeometryError, match="not on"):
        read_parametric_map(tmp_path / "map.dcm", grid=Grid.from_spacing(axial.shape, (2.5, 0.8, 0.8)))
    short = (tmp_path / "map.dcm").read_bytes()
    (tmp_path / "short.dcm").write_bytes(short[:-400])
    with pytest.raises(InputError):
        read_parametric_map(tmp_path / "short.dcm")


@pytest.mark.parametrize("keyword", ["Rows", "Columns"])
def test_a_map_without_extent_is_refused(keyword, axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_parametric_map(tmp_path / "map.dcm", predict(image), "entropy", image)
    dataset = pydicom.dcmread(tmp_path / "map.dcm")
    for item in (*dataset.SharedFunctionalGroupsSequence, *dataset.PerFrameFunctionalGroupsSequence):
        for group in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence"):
            if group in item:
                del item[group]
    setattr(dataset, keyword, 0)
    dataset.save_as(tmp_path / "map.dcm")
    with pytest.raises(InputError, match="it is damaged"):
        read_parametric_map(tmp_path / "map.dcm")
