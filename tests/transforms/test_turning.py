"""Volumes in another order of axes: the same voxels at the same places, as nibabel and SimpleITK have them."""

import itertools

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.core import Crowd, Grid, Image, InstanceSet, Landmarks, Mask, PointType
from clearmargin.formats.volume import read_volume, write_volume
from clearmargin.transforms.settings import ImageSettings
from clearmargin.transforms.turning import axis_codes, common_codes, turn_to, turned_case

SHAPE = (4, 5, 6)
AXIAL = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
EVERY = [
    "".join(codes)
    for order in itertools.permutations(("RL", "AP", "IS"))
    for codes in itertools.product(*order)
]


def rotated(degrees):
    """The axial grid, turned about two axes of the world and moved."""
    a, b = np.radians(degrees)
    about_z = np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])
    about_x = np.array([[1, 0, 0], [0, np.cos(b), -np.sin(b)], [0, np.sin(b), np.cos(b)]])
    affine = AXIAL.affine.copy()
    affine[:3, :3] = about_z @ about_x @ affine[:3, :3]
    affine[:3, 3] = (-30.0, 12.5, 400.0)
    return Grid(shape=SHAPE, affine=affine, unit="mm")


@given(st.sampled_from(EVERY), st.tuples(st.floats(-40, 40), st.floats(-40, 40)), st.integers(0, 2**31))
@settings(max_examples=60, deadline=None)
def test_every_voxel_stays_at_its_place_and_comes_back(codes, degrees, seed):
    grid = rotated(degrees)
    own = axis_codes(grid)
    turn = turn_to(codes, grid)
    if codes == own:
        assert turn is None
        return
    values = np.random.default_rng(seed).integers(0, 1000, (2, *SHAPE))
    turned = turn.image(Image(pixels=values, grid=grid))
    assert axis_codes(turned.grid) == codes
    for index in itertools.product(*map(range, turned.grid.shape)):
        stored = np.rint(grid.to_index(turned.grid.to_world(index))).astype(int)
        assert np.allclose(grid.to_world(stored), turned.grid.to_world(index), atol=1e-9)
        assert (turned.pixels[(slice(None), *index)] == values[(slice(None), *stored)]).all()
    assert (turn.back.array(turned.pixels) == values).all()
    assert turn.back.grid is grid


@pytest.mark.parametrize("codes", EVERY)
def test_nibabel_gives_the_same_order(codes, tmp_path):
    """Its own reorientation of the file, read back, is what the turn makes of the file."""
    grid = rotated((10, -20))
    values = np.random.default_rng(0).integers(0, 1000, SHAPE).astype(np.int16)
    write_volume(tmp_path / "stored.nii.gz", values, grid)
    stored = nibabel.load(tmp_path / "stored.nii.gz")
    # nibabel's axes are ours from behind, and its letters name the same ends of the patient
    asked = nibabel.orientations.axcodes2ornt(tuple(codes[::-1]))
    now = nibabel.orientations.io_orientation(stored.affine)
    other = stored.as_reoriented(nibabel.orientations.ornt_transform(now, asked))
    nibabel.save(other, tmp_path / "other.nii.gz")
    expected = read_volume(tmp_path / "other.nii.gz")
    assert axis_codes(expected.grid) == codes
    image = read_volume(tmp_path / "stored.nii.gz")
    turn = turn_to(codes, image.grid)
    turned = image if turn is None else turn.image(image)
    assert (turned.pixels == expected.pixels).all()
    assert turned.grid.same_as(expected.grid, tolerance=1e-4)


def test_masks_crowds_ignored_regions_and_landmarks_turn_with_it():
    rng = np.random.default_rng(1)
    dense = rng.random((3, *SHAPE)) < 0.1
    left, right = PointType(name="left", mirror="right"), PointType(name="right", mirror="left")
    points = rng.uniform(0, 3, (2, 2, 3))
    spread = np.broadcast_to(np.diag([1.0, 4.0, 9.0]), (2, 2, 3, 3))
    marks = Landmarks.of((left, right), points, np.full((2, 2), 2), covariance=spread)
    instances = InstanceSet(
        grid=AXIAL,
        masks=(Mask.from_dense(dense[0]), Mask.from_dense(np.zeros(SHAPE, bool))),
        labels=[1, 2],
        scores=[0.5, 0.25],
        uncertainty={"mean_entropy": [0.1, 0.2]},
        ignore=Mask.from_dense(dense[1]),
        crowds=(Crowd(mask=Mask.from_dense(dense[2]), label=2),),
        landmarks=marks,
    )
    turn = turn_to("RSP", AXIAL)  # a mirror image of the stored axes
    assert np.linalg.det(turn.matrix) < 0
    there = turn.instances(instances)
    every = [*there.masks, there.ignore, there.crowds[0].mask]
    for mask, before in zip(every, [dense[0], np.zeros(SHAPE, bool), dense[1], dense[2]], strict=True):
        assert (mask.dense() == turn.array(before)).all()
    assert there.landmarks.types == (left, right)  # the patient is not mirrored
    for k in range(2):
        assert np.allclose(there.grid.to_world(there.landmarks.points[:, k]), AXIAL.to_world(points[:, k]))
    for now, before in zip(there.landmarks.covariance[0], marks.covariance[0], strict=True):
        assert np.allclose(there.grid.semi_axes(now), AXIAL.semi_axes(before))
    back = turn.back.instances(there)
    assert back.grid is AXIAL
    for one, other in zip(back.masks, instances.masks, strict=True):
        assert (one.dense() == other.dense()).all()
    assert np.allclose(back.landmarks.points, points)
    assert back.uncertainty["mean_entropy"].tolist() == instances.uncertainty["mean_entropy"].tolist()


def test_pictures_and_pixels_have_no_axes_in_the_patient():
    picture, unknown = Grid.from_spacing((4, 5), (1, 1)), Grid.from_spacing(SHAPE)
    assert axis_codes(picture) is None and axis_codes(unknown) is None
    image, instances = Image(pixels=np.zeros((1, *SHAPE)), grid=unknown), InstanceSet.empty(unknown)
    assert turned_case("RSA", image, instances) == (image, instances)
    assert common_codes([picture, unknown]) is None
    turned = turn_to("LIP", AXIAL).grid
    assert common_codes([unknown, turned, AXIAL, AXIAL]) == "SPL" and common_codes([turned, AXIAL]) == "LIP"


@pytest.mark.parametrize("axes", ["SP", "SPP", "SPLR", "spl", "XYZ", "SIL"])
def test_axes_are_one_of_each_pair(axes):
    with pytest.raises(ValueError, match="expected three letters"):
        ImageSettings(axes=axes)
