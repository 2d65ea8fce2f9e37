"""Label-map and fractional SEG come back as they went out, in every orientation."""

from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import InstanceSet
from clearmargin.errors import InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.seg import read_seg_content
from clearmargin.formats.dicom.seg_kinds import write_fractional_seg, write_label_map_seg


@pytest.fixture
def image(any_grid, write_series, tmp_path):
    write_series(tmp_path / "series", any_grid)
    return read_dicom(tmp_path / "series")


def test_a_label_map_comes_back(image, predict, tmp_path):
    prediction = predict(image)
    apart = prediction.instances.select([1, 2, 3])
    prediction = replace(prediction, instances=apart)
    written = write_label_map_seg(tmp_path / "seg.dcm", prediction, image)
    assert written.segments == 3
    content = read_seg_content(tmp_path / "seg.dcm", grid=image.grid)
    for ours, theirs in zip(apart.masks, content.instances.masks, strict=True):
        assert_array_equal(ours.dense(), theirs.dense())
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    index = volume.map_reference_to_indices(
        image.grid.to_world(np.argwhere(apart.masks[2].dense())), round_output=True
    )
    assert (volume.array[tuple(index.T)] == 3).all()


def test_overlap_is_refused_by_a_label_map(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    with pytest.raises(InputError, match="instances overlap"):
        write_label_map_seg(tmp_path / "seg.dcm", predict(image), image)
    nothing = replace(predict(image), instances=InstanceSet.empty(axial), maps={})
    assert write_label_map_seg(tmp_path / "seg.dcm", nothing, image).path is None


def test_probabilities_come_back(image, predict, tmp_path, dciodvfy):
    prediction = predict(image)
    written = write_fractional_seg(tmp_path / "seg.dcm", prediction, "entropy", 2, image)
    assert written.segments == 1 and dciodvfy(tmp_path / "seg.dcm") == []
    content = read_seg_content(tmp_path / "seg.dcm", grid=image.grid)
    assert_allclose(content.fractions[0], prediction.maps["entropy"], atol=0.5 / 255 + 1e-6)
    assert content.label_map.names == ("liver",)
    wild = replace(prediction, maps={"entropy": prediction.maps["entropy"] * 2})
    with pytest.raises(InputError, match="outside 0 to 1"):
        write_fractional_seg(tmp_path / "seg.dcm", wild, "entropy", 2, image)
