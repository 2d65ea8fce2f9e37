"""Whatever the spacing, each written object says it: read by pydicom, highdicom, dcmqi and Matplotlib, not by us."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from matplotlib.path import Path as Outline
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid, InstanceSet
from clearmargin.core.colours import class_colour, instance_colours
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.parametric_map import read_parametric_map, write_parametric_map
from clearmargin.formats.dicom.rtstruct import write_rtstruct
from clearmargin.formats.dicom.seg import read_dicom_seg, write_dicom_seg
from clearmargin.formats.dicom.seg_kinds import write_fractional_seg, write_label_map_seg
from clearmargin.formats.dicom.structured_report import write_structured_report

# (slice distance, rows, columns) in mm: the values of a library's stand-ins, equal axes, both ends of the scale.
SPACINGS = [
    (5, 1, 1),
    (2, 1, 1),
    (1, 1, 1),
    (2, 1, 1.00005),
    (3, 0.99995, 1),
    (0.5, 0.5, 0.5),
    (0.05, 0.05, 0.05),
    (0.004, 0.002, 0.003),
    (10, 10, 10),
    (1, 0.3, 0.3),
    (6.5, 0.45, 1.3),
    (1, 2.5, 0.7),
]
AXES = {
    "axial": np.eye(3),
    "almost axial": np.linalg.qr(np.eye(3) + 5e-5 * np.arange(9).reshape(3, 3))[0],
    "oblique": np.linalg.qr(np.array([[0.9, 0.3, 0.1], [-0.2, 0.8, 0.4], [0.1, -0.5, 0.8]]))[0],
}


@pytest.fixture(
    params=[(s, a) for s in SPACINGS for a in AXES if a == "axial" or s in ((5, 1, 1), (6.5, 0.45, 1.3))],
    ids=lambda p: f"{'x'.join(map(str, p[0]))} {p[1]}",
)
def grid(request) -> Grid:
    spacing, axes = request.param
    turn = AXES[axes] * np.sign(np.diag(AXES[axes]))  # columns are x, y, z
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1], affine[:3, 2] = (turn[:, 2 - k] * spacing[k] for k in range(3))
    affine[:3, 3] = (-31.4, 15.9, -265.3)
    return Grid(shape=(9, 12, 14), affine=affine, unit="mm")


@pytest.fixture
def written(grid, write_series, label_map, provenance, predict, tmp_path):
    """Every kind of object of one prediction, with slices in between that hold nothing."""
    write_series(tmp_path / "series", grid)
    image = read_dicom(tmp_path / "series")
    assert image.grid.same_as(grid)
    masks = np.zeros((2, *grid.shape), bool)
    masks[0, 1, 3:7, 2:9] = masks[0, 5, 4:6, 3:5] = True
    masks[1, 7, 1:3, 10:13] = True
    instances = InstanceSet.from_dense(image.grid, list(masks), labels=[2, 1])
    values = np.random.default_rng(0).random(grid.shape).astype(np.float32)
    prediction = replace(predict(image), instances=instances, maps={"foreground": values})
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    write_label_map_seg(tmp_path / "labels.dcm", prediction, image)
    write_fractional_seg(tmp_path / "fraction.dcm", prediction, "foreground", 1, image)
    write_parametric_map(tmp_path / "map.dcm", prediction, "foreground", image)
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)
    write_structured_report(tmp_path / "sr.dcm", prediction, image, tmp_path / "seg.dcm")
    return tmp_path, masks, values


def _points(grid: Grid, mask: np.ndarray) -> np.ndarray:
    points = grid.to_world(np.argwhere(mask))
    return points[np.lexsort(points.round(5).T)]


def _close(points: np.ndarray, expected: np.ndarray, grid: Grid) -> None:
    order = np.lexsort(np.asarray(points).round(5).T)
    assert_allclose(np.asarray(points)[order], expected, atol=min(0.01, 0.05 * min(grid.spacing)))


def test_the_headers_say_the_grid(written, grid):
    for name in ("seg", "labels", "fraction", "map"):
        shared = pydicom.dcmread(written[0] / f"{name}.dcm").SharedFunctionalGroupsSequence[0]
        measures = shared.PixelMeasuresSequence[0]
        assert_allclose([float(v) for v in measures.PixelSpacing], grid.spacing[1:], rtol=1e-7)
        assert_allclose(float(measures.SpacingBetweenSlices), grid.spacing[0], rtol=1e-7)
        assert_allclose(float(measures.SliceThickness), grid.spacing[0], rtol=1e-7)
        cosines = [float(v) for v in shared.PlaneOrientationSequence[0].ImageOrientationPatient]
        expected = [*(grid.affine[:3, 2] / grid.spacing[2]), *(grid.affine[:3, 1] / grid.spacing[1])]
        assert_allclose(cosines, expected, atol=1e-8)


def test_highdicom_finds_the_masks_in_place(written, grid):
    for name in ("seg", "labels"):
        folder, masks, _ = written
        seg = highdicom.seg.segread(folder / f"{name}.dcm")
        for k, mask in enumerate(masks):
            volume = seg.get_volume(segment_numbers=[k + 1], combine_segments=True)
            assert_allclose(volume.spacing, grid.spacing, rtol=1e-5)
            _close(
                volume.map_indices_to_reference(np.argwhere(volume.array == k + 1)), _points(grid, mask), grid
            )


def test_highdicom_finds_the_values_in_place(written, grid):
    for name in ("fraction", "map"):
        folder, _, values = written
        if name == "map":
            volume = highdicom.imread(folder / "map.dcm").get_volume(apply_real_world_transform=True)
            array = volume.array
        else:
            volume = highdicom.seg.segread(folder / "fraction.dcm").get_volume(segment_numbers=[1])
            array = volume.array[..., 0]
        index = np.argwhere(np.ones(grid.shape))
        found = volume.map_reference_to_indices(grid.to_world(index), round_output=True)
        assert_allclose(array[tuple(found.T)], values.ravel(), atol=0.002 if name == "fraction" else 1e-7)


def test_dcmqi_finds_the_masks_in_place(written, grid, dcmqi_read):
    folder, masks, _ = written
    for mask, file in zip(masks, dcmqi_read(folder / "seg.dcm", folder / "dcmqi"), strict=True):
        image = SimpleITK.ReadImage(str(file))
        index = np.argwhere(SimpleITK.GetArrayFromImage(image))
        points = [image.TransformIndexToPhysicalPoint([int(v) for v in i[::-1]]) for i in index]
        _close(points, _points(grid, mask), grid)


def test_dcmqi_reads_the_colours(written, dcmqi_read):
    """The colour of a segment is that of the instance everywhere else."""
    folder, _, _ = written
    dcmqi_read(folder / "seg.dcm", folder / "dcmqi")
    described = json.loads((folder / "dcmqi" / "meta.json").read_text())["segmentAttributes"]
    colours = [s["recommendedDisplayRGBValue"] for group in described for s in group]
    assert_allclose(colours, instance_colours(np.array([2, 1])), atol=3)


def test_contours_enclose_the_masks(written, grid):
    folder, masks, _ = written
    dataset = pydicom.dcmread(folder / "rt.dcm")
    plane = np.argwhere(np.ones(grid.shape[1:]))
    for region, mask, colour in zip(
        dataset.ROIContourSequence, masks, instance_colours(np.array([2, 1])), strict=True
    ):
        assert list(region.ROIDisplayColor) == colour.tolist()
        filled = np.zeros(grid.shape, bool)
        for item in region.ContourSequence:
            points = np.array([float(v) for v in item.ContourData]).reshape(-1, 3)
            index = np.linalg.solve(grid.affine[:3, :3], (points - grid.affine[:3, 3]).T).T
            z = round(index[:, 0].mean())
            assert np.abs(index[:, 0] - z).max() < 0.01
            filled[z] |= Outline(index[:, 1:]).contains_points(plane).reshape(grid.shape[1:])
        assert_array_equal(filled, mask)


def test_highdicom_and_dcmqi_read_the_volumes(written, grid, tmp_path):
    folder, masks, _ = written
    expected = [mask.sum() * np.prod(grid.spacing) for mask in masks]
    groups = highdicom.sr.srread(folder / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    volumes = [{m.name.meaning: m.value for m in g.get_measurements()}["Volume"] for g in groups]
    assert_allclose(volumes, expected, rtol=1e-5)
    out = tmp_path / "sr.json"
    command = ["tid1500reader", "--inputDICOM", str(folder / "sr.dcm"), "--outputMetadata", str(out)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("tid1500reader is not installed: pip install dcmqi")
    items = [g["measurementItems"] for g in json.loads(out.read_text())["Measurements"]]
    theirs = [float(i["value"]) for g in items for i in g if i["quantity"]["CodeMeaning"] == "Volume"]
    assert_allclose(theirs, expected, rtol=1e-5)


def test_we_read_back_what_we_wrote(written, grid):
    folder, masks, values = written
    for name in ("seg", "labels"):
        found = read_dicom_seg(folder / f"{name}.dcm")
        for mask, back in zip(masks, found.masks, strict=True):
            _close(found.grid.to_world(np.argwhere(back.dense())), _points(grid, mask), grid)
    back, place = read_parametric_map(folder / "map.dcm")
    assert place.same_as(grid)
    assert_allclose(back, values, atol=1e-7)


def test_what_viewers_need_is_there(written):
    for name in ("seg", "labels", "fraction", "map"):
        dataset = pydicom.dcmread(written[0] / f"{name}.dcm")
        assert "ContentCreatorName" in dataset  # type 2
        if name == "map":
            continue
        described = [s for s in dataset.SegmentSequence if s.SegmentNumber]
        labels = [2, 1] if name != "fraction" else [1]
        for item, colour in zip(described, [class_colour(k) for k in labels], strict=True):
            lab = highdicom.color.CIELabColor.from_dicom_value(list(item.RecommendedDisplayCIELabValue))
            assert_allclose(lab.to_rgb(clip=True), colour, atol=3)
