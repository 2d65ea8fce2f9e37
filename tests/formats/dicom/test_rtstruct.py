"""Contours go out and come back as the same pixels; real ones lie on the images they were drawn on."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from numpy.testing import assert_array_equal
from skimage.draw import polygon2mask
from skimage.measure import find_contours

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.rtstruct import read_rtstruct, write_rtstruct
from clearmargin.formats.outlines import filled, outlines


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
    with pytest.raises(InputError, match="not a volume in millimetres"):
        write_rtstruct(tmp_path / "rt.dcm", predict(flat), flat)


def test_real_structure_sets(data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "rt_utils" / "mock_data"
    image = read_dicom([folder / "ct_1.dcm", folder / "ct_2.dcm"])
    anywhere = replace(image.grid, frame_of_reference="")
    found = read_rtstruct(folder / "rt.dcm", grid=anywhere)
    assert len(found.names) == len(found.instances) == 1
    # its UID says that its coordinates are of another frame than the images'
    with pytest.raises(GeometryError, match="another frame of reference"):
        read_rtstruct(folder / "rt.dcm", grid=image.grid)
    # Drawn on three slices, of which two are here; references to images that do not exist do no harm.
    for name in ("invalid_reference_rt.dcm", "non_existent_reference_rt.dcm"):
        found = read_rtstruct(folder / name, grid=image.grid)
        assert all(mask.area > 3000 for mask in found.instances.masks)
        assert found.left_out == tuple(
            f"region {k}: 1 of 3 contour(s) lie beyond the grid" for k in range(1, 5)
        )


# --- what other tools write


def _square(low, high, z=2):
    """A square of pixels low..high-1 in both directions, half way between pixels, in the axial grid's slice."""
    a, b = low - 0.5, high - 0.5
    return [(z, a, a), (z, a, b), (z, b, b), (z, b, a)]


@pytest.fixture
def structure_set(axial, write_series, predict, tmp_path):
    """A function that writes a set of regions, each a list of (geometric type, index points), and reads it back."""
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_rtstruct(tmp_path / "rt.dcm", predict(image), image)
    template = pydicom.dcmread(tmp_path / "rt.dcm")

    def read(*regions):
        ds = pydicom.dcmread(tmp_path / "rt.dcm")
        ds.StructureSetROISequence, ds.ROIContourSequence = [], []
        for k, contours in enumerate(regions):
            described = copy.deepcopy(template.StructureSetROISequence[0])
            described.ROINumber, described.ROIName = k + 1, f"region {k + 1}"
            region = pydicom.Dataset()
            region.ReferencedROINumber, region.ContourSequence = k + 1, []
            for kind, points in contours:
                item = pydicom.Dataset()
                item.ContourGeometricType, item.NumberOfContourPoints = kind, len(points)
                world = axial.to_world(np.array(points, float).reshape(-1, 3)).ravel()
                item.ContourData = [f"{v:.6f}" for v in world]
                region.ContourSequence.append(item)
            ds.StructureSetROISequence.append(described)
            ds.ROIContourSequence.append(region)
        ds.save_as(tmp_path / "other.dcm")
        return read_rtstruct(tmp_path / "other.dcm", grid=image.grid)

    return read


def _boxes(axial, *boxes, z=2):
    """The union of squares, pixel by pixel."""
    mask = np.zeros(axial.shape, bool)
    for low, high in boxes:
        mask[z, low:high, low:high] = True
    return mask


def test_exclusive_contours_are_read(axial, structure_set):
    """PS3.3, C.8.8.6.3: a pixel is inside if an odd number of the contours hold it."""
    kind = "CLOSEDPLANAR_XOR"
    found = structure_set(
        [(kind, _square(1, 10)), (kind, _square(3, 12))], [(kind, _square(1, 10)), (kind, _square(3, 6))]
    )
    expected = _boxes(axial, (1, 10)) ^ _boxes(axial, (3, 12))
    assert_array_equal(found.instances.masks[0].dense(), expected)
    assert_array_equal(found.instances.masks[1].dense(), _boxes(axial, (1, 10)) ^ _boxes(axial, (3, 6)))
    assert found.left_out == ()


def test_a_hole_in_the_other_kind_of_contour_is_a_hole(axial, structure_set):
    """Both rules, nesting and exclusive or, say so; the standard has no word for the mixture."""
    outer, inner = _square(1, 12), _square(4, 8)
    found = structure_set(
        [("CLOSED_PLANAR", outer), ("CLOSEDPLANAR_XOR", inner)],
        [("CLOSEDPLANAR_XOR", outer), ("CLOSED_PLANAR", inner)],
    )
    for mask in found.instances.masks:
        assert_array_equal(mask.dense(), _boxes(axial, (1, 12)) & ~_boxes(axial, (4, 8)))


def test_closed_contours_are_united_and_nested_ones_are_holes(axial, structure_set):
    kind = "CLOSED_PLANAR"
    found = structure_set(
        [(kind, _square(1, 8)), (kind, _square(5, 12))],  # overlap
        [(kind, _square(1, 5)), (kind, _square(7, 11))],  # apart
        [(kind, _square(1, 12)), (kind, _square(3, 10)), (kind, _square(5, 8))],  # an island in a hole
        [(kind, _square(5, 8)), (kind, _square(1, 12))],  # the hole first
        [(kind, _square(2, 9)), (kind, _square(2, 9))],  # stored twice
        [(kind, _square(2, 9)), (kind, _square(2, 9)[::-1]), (kind, _square(4, 6)), (kind, _square(4, 6))],
    )
    whole, hole = _boxes(axial, (1, 12)), _boxes(axial, (3, 10))
    expected = [
        _boxes(axial, (1, 8), (5, 12)),
        _boxes(axial, (1, 5), (7, 11)),
        whole & ~hole | _boxes(axial, (5, 8)),
        whole & ~_boxes(axial, (5, 8)),
        _boxes(axial, (2, 9)),
        _boxes(axial, (2, 9)) & ~_boxes(axial, (4, 6)),
    ]
    for mask, wanted in zip(found.instances.masks, expected, strict=True):
        assert_array_equal(mask.dense(), wanted)


def test_what_encloses_nothing_is_reported(axial, structure_set, caplog):
    line = [(2, 1, 1), (2, 5, 9)]
    found = structure_set(
        [("CLOSED_PLANAR", _square(2, 9)), ("OPEN_PLANAR", line)],
        [("POINT", line[:1])],
        [("OPEN_NONPLANAR", line), ("OPEN_NONPLANAR", line)],
        [("CLOSED_PLANAR", line)],
    )
    assert found.names == ("region 1",) and len(found.instances) == 1
    assert_array_equal(found.instances.masks[0].dense(), _boxes(axial, (2, 9)))
    assert found.left_out == (
        "region 1: 1 contour(s) enclose no area (OPEN_PLANAR)",
        "region 2: 1 contour(s) enclose no area (POINT)",
        "region 3: 2 contour(s) enclose no area (OPEN_NONPLANAR)",
        "region 4: 1 contour(s) enclose no area (closed with fewer than three points)",
    )
    assert all(note in caplog.text for note in found.left_out)
    with pytest.raises(
        InputError, match="region 1 of the structure set has a contour of no known geometric type"
    ):
        structure_set([("CLOSED_ROUND", _square(2, 9))])


def test_a_region_beyond_the_image_spares_the_others(axial, structure_set):
    kind = "CLOSED_PLANAR"
    far = [(z, y + 100, x) for z, y, x in _square(2, 9)]
    found = structure_set(
        [(kind, _square(2, 9))],
        [(kind, _square(2, 9, z=-3)), (kind, _square(2, 9, z=40))],
        [(kind, far)],
        [(kind, _square(2, 9, z=5)), (kind, _square(2, 9, z=6))],
        [(kind, _square(8, 40))],
    )
    assert [m.area for m in found.instances.masks] == [49, 0, 0, 49, 7 * 5]
    assert found.left_out == (
        "region 2: 2 of 2 contour(s) lie beyond the grid",
        "region 3: 1 of 1 contour(s) lie beyond the grid",
        "region 4: 1 of 2 contour(s) lie beyond the grid",
        "region 5: 1 of 1 contour(s) reach beyond the grid, and are cut off there",
    )
    with pytest.raises(GeometryError, match="none of the slices"):
        structure_set([(kind, far)], [(kind, _square(2, 9, z=40))])


@pytest.mark.parametrize("shift", [0.0, 123.456789, -987.654321])
def test_masks_at_the_images_edge_come_back_without_a_remark(
    any_grid, shift, write_series, predict, tmp_path
):
    """The contour runs along the edge, and its points are rounded to nine digits."""
    affine = any_grid.affine.copy()
    affine[:3, 3] += shift
    grid = replace(any_grid, affine=affine)
    write_series(tmp_path / "series", grid)
    image = read_dicom(tmp_path / "series")
    whole, corner = np.ones(grid.shape, bool), np.zeros(grid.shape, bool)
    corner[:, -2:, -3:] = True
    masks = InstanceSet.from_dense(image.grid, [whole, corner])
    write_rtstruct(tmp_path / "rt.dcm", replace(predict(image), instances=masks), image)
    back = read_rtstruct(tmp_path / "rt.dcm", grid=image.grid)
    assert back.left_out == ()
    for mask, one in zip((whole, corner), back.instances.masks, strict=True):
        assert_array_equal(one.dense(), mask)


@pytest.mark.parametrize(("off", "fits"), [(0.03, True), (0.2, False), (0.5, False)])
def test_contours_lie_in_slices(off, fits, structure_set):
    """A share of 2.5 mm: rounding is put up with, a contour between two slices is not."""
    contours = [("CLOSED_PLANAR", _square(2, 9, z=2 + off))]
    if fits:
        assert structure_set(contours).instances.masks[0].area == 49
    else:
        with pytest.raises(GeometryError, match="region 1 lies in none of the slices"):
            structure_set(contours)
    slanting = [(z + 0.3 * (x > 5), y, x) for z, y, x in _square(2, 9)]
    with pytest.raises(GeometryError, match="region 1 lies in none of the slices"):
        structure_set([("CLOSED_PLANAR", slanting)])


@pytest.mark.parametrize(("old", "new"), [(b"\\", b"x"), (b"\\", b" "), (b".", b"-"), (b".", b"\\")])
def test_a_contour_that_holds_no_numbers_is_refused(old, new, structure_set, tmp_path, axial):
    structure_set([("CLOSED_PLANAR", _square(2, 9))])
    content = (tmp_path / "other.dcm").read_bytes()
    at = content.rindex(b"\x06\x30\x50\x00")
    (tmp_path / "spoiled.dcm").write_bytes(content[:at] + content[at:].replace(old, new, 1))
    with pytest.raises(InputError, match="a contour is malformed"):
        read_rtstruct(tmp_path / "spoiled.dcm", grid=axial)


def test_outlines_of_random_masks_fill_to_the_same_pixels():
    """scikit-image counts the contours and fills the polygons; ours are the same."""
    rng = np.random.default_rng(0)
    for shape in ((3, 7, 9), (1, 1, 1), (5, 20, 30), (2, 1, 5), (0, 4, 4)):
        for _ in range(20):
            crop = rng.random(shape) < rng.random()
            points, counts, places = outlines(crop)
            assert_array_equal(filled(points, counts, places, shape), crop)
            assert len(counts) == sum(
                len(find_contours(np.pad(plane.astype(float), 1), 0.5)) for plane in crop
            )
    for _ in range(100):
        polygon = rng.random((rng.integers(3, 9), 2)) * [20, 30] - 2
        ours = filled(polygon, np.array([len(polygon)]), np.zeros(1, np.int64), (1, 16, 24))[0]
        assert_array_equal(ours, polygon2mask((40, 40), polygon + 5)[5:21, 5:29])


def test_long_contours_stay_decimal_strings(axial, write_series, predict, tmp_path):
    """Over 64 KiB, explicit VR could only hold them as UN, which other readers do not know."""
    grid = Grid(shape=(2, 300, 300), affine=axial.affine, unit="mm")
    write_series(tmp_path / "series", grid, np.zeros(grid.shape))
    image = read_dicom(tmp_path / "series")
    mask = np.zeros(grid.shape, bool)
    mask[0, 2:290, 2:290:2] = True
    mask[0, 289, 2:290] = True  # a comb: one contour with a corner at every tooth
    mask[1, ::16, ::16] = True  # 361 contours in one slice
    prediction = replace(predict(image), instances=InstanceSet.from_dense(image.grid, [mask]), maps={})
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)
    assert_array_equal(read_rtstruct(tmp_path / "rt.dcm", grid=image.grid).instances.masks[0].dense(), mask)
    items = pydicom.dcmread(tmp_path / "rt.dcm").ROIContourSequence[0].ContourSequence
    assert {item["ContourData"].VR for item in items} == {"DS"}
    assert all(len(item.ContourData) == 3 * item.NumberOfContourPoints for item in items)
