"""Every corner of every slice lies on the grid, or the series is refused with its deviation."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from corners import worst_corner
from numpy.testing import assert_allclose

from clearmargin.core import Grid
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats import read_images
from clearmargin.formats.dicom.images import index_dicom, read_dicom
from clearmargin.inspection import inspect_path


def test_every_series_of_the_real_data_lies_on_its_grid_or_is_refused(data_root):
    read = refused = 0
    folders = sorted({file.parent for file in data_root.rglob("*.dcm")})
    single = sorted((data_root / "dicom_awkward").rglob("*.dcm"))
    for path in [*folders, *single]:
        try:
            entries = index_dicom(path)
        except InputError:
            refused += 1
            continue
        for entry in entries:
            if entry.kind != "volume":
                continue
            for volume in entry.volumes:
                try:
                    image = read_dicom(path, series=f"list:{entry.number}", volume=str(volume.number))
                except InputError as error:
                    refused += 1
                    assert len(str(error)) > 20
                    continue
                read += 1
                assert worst_corner(image) <= 0.01, path.name
                assert image.source.deviation_mm == pytest.approx(worst_corner(image), abs=1e-6)
    assert read > 40 and refused > 3


def _drift(step):
    steps = np.r_[np.full(20, 1.0095), np.full(19, 0.9905)] * step
    return lambda ds, z: _at(ds, float(np.concatenate(([0], np.cumsum(steps)))[z]))


def _at(ds, height):
    ds.ImagePositionPatient = [*ds.ImagePositionPatient[:2], f"{-265.3 + height:.6f}"]


def _turned(ds, z):
    angle = 9e-4 * (z % 2)
    ds.ImageOrientationPatient = [
        f"{v:.8f}" for v in (np.cos(angle), np.sin(angle), 0, -np.sin(angle), np.cos(angle), 0)
    ]


def _spaced(ds, z):
    ds.PixelSpacing = [0.8 + 0.0008 * (z % 2)] * 2


def _long(ds, _):
    ds.ImageOrientationPatient = [0.991, 0, 0, 0, 0.991, 0]


def _aside(distance, *slices):
    def change(ds, z):
        if z in slices:
            ds.ImagePositionPatient = [
                float(ds.ImagePositionPatient[0]) + distance,
                *ds.ImagePositionPatient[1:],
            ]

    return change


def _late(distance, at):
    return lambda ds, z: _at(ds, 2.5 * z + distance * (z == at))


UNEVEN = {
    "drift of 1 mm slices": (_drift(1), 0.19, "varying slice distance"),
    "drift of 5 mm slices": (_drift(5), 0.95, "varying slice distance"),
    "one slice late": (_late(0.045, 6), 0.045, "varying slice distance"),
    "one slice a little late": (_late(0.012, 6), 0.012, "varying slice distance"),
    "turned": (_turned, 0.157, "ImageOrientationPatient differs"),
    "two pixel spacings": (_spaced, 0.174, "PixelSpacing differs"),
    "long cosines": (_long, 1.569, "not of length 1"),
    "one aside": (_aside(3.0, 5), 3.0, "position lies aside"),
    "the last aside": (_aside(3.0, 39), 3.0, "position lies aside"),
    "some aside": (_aside(0.05, 3, 9, 11), 0.05, "position lies aside"),
}


@pytest.fixture
def long_grid(axial) -> Grid:
    """40 slices of 150 x 160 pixels."""
    return Grid(shape=(40, 150, 160), affine=axial.affine, unit="mm")


@pytest.mark.parametrize("name", UNEVEN)
def test_an_uneven_series_is_refused_with_its_deviation(name, long_grid, write_series, tmp_path):
    change, deviation, reason = UNEVEN[name]
    write_series(tmp_path, long_grid, np.zeros(long_grid.shape), change=change)
    with pytest.raises(GeometryError, match=f"{reason}.*--tolerance-mm") as caught:
        read_dicom(tmp_path)
    offered = str(caught.value).split("--tolerance-mm ")[1].split()[0].rstrip(";,")
    assert float(offered) == pytest.approx(deviation, rel=0.05, abs=0.01)
    # what is offered reads it, and says by how much the headers disagree with the grid
    image = read_dicom(tmp_path, tolerance_mm=float(offered))
    assert image.source.deviation_mm == pytest.approx(worst_corner(image), abs=1e-6)
    assert 0.01 < image.source.deviation_mm <= float(offered)
    assert image.source.tolerance_mm == float(offered)
    with pytest.raises(GeometryError):
        read_dicom(tmp_path, tolerance_mm=image.source.deviation_mm * 0.9)


def test_a_slice_aside_stays_refused_with_gaps_allowed(long_grid, write_series, tmp_path):
    """Resampling along the normal cannot put right what lies beside it."""

    def change(ds, z):
        if z == 7:
            return False
        return _aside(3.0, 5)(ds, z)

    write_series(tmp_path, long_grid, np.zeros(long_grid.shape), change=change)
    with pytest.raises(
        GeometryError, match=r"slice 6 of 39 lies 3\.000 mm beside its place.*position lies aside"
    ):
        read_dicom(tmp_path, allow_gaps=True)
    with pytest.raises(GeometryError, match="1 missing"):
        read_dicom(tmp_path, tolerance_mm=10)  # no tolerance makes up for a slice that is not there


@pytest.mark.parametrize("name", ["drift of 5 mm slices", "one slice late"])
def test_uneven_slices_are_resampled_to_their_own_places(name, axial, write_series, tmp_path):
    """A ramp along z, as each slice's own position has it, is the same ramp on the even grid."""
    change, _, _ = UNEVEN[name]
    grid = Grid(shape=(40, 4, 5), affine=axial.affine, unit="mm")
    heights = []

    def ramp(ds, z):
        change(ds, z)
        heights.append(float(ds.ImagePositionPatient[2]) + 265.3)
        ds.PixelData = np.full((4, 5), round(100 * heights[-1]), "<i2").tobytes()
        ds.RescaleIntercept = "0"

    write_series(tmp_path, grid, change=ramp)
    image = read_dicom(tmp_path, allow_gaps=True)
    world = image.grid.to_world([(z, 0, 0) for z in range(image.grid.shape[0])])[:, 2] + 265.3
    assert_allclose(image.pixels[0, :, 2, 2], 100 * world, atol=2)


def test_tiny_voxels_have_a_tighter_bound(axial, write_series, tmp_path):
    affine = axial.affine.copy()
    affine[:3, :3] *= 0.01 / 0.8  # 0.031 x 0.01 x 0.01 mm: a hundredth of a millimetre is a pixel
    grid = Grid(shape=(6, 15, 13), affine=affine, unit="mm")
    write_series(tmp_path / "even", grid)
    assert read_dicom(tmp_path / "even").grid.same_as(grid, tolerance=1e-5)
    write_series(tmp_path / "odd", grid, change=_aside(0.005, 2))
    with pytest.raises(GeometryError, match="position lies aside"):
        read_dicom(tmp_path / "odd")


def test_two_frames_of_reference_are_no_volume(axial, write_series, tmp_path):
    def change(ds, z):
        ds.FrameOfReferenceUID = f"1.2.826.{2 + z // 3}"

    write_series(tmp_path, axial, change=change)
    with pytest.raises(GeometryError, match="2 frames of reference") as caught:
        read_dicom(tmp_path, tolerance_mm=100, allow_gaps=True)
    assert "1.2.826" not in str(caught.value)


@pytest.mark.parametrize("uids", [1, 3])
def test_slices_that_share_an_instance_uid_are_not_thrown_away(uids, axial, write_series, tmp_path):
    def change(ds, z):
        ds.SOPInstanceUID = f"1.2.826.7.{z % uids}"

    write_series(tmp_path, axial, change=change)
    with pytest.raises(InputError, match="6 files that share a SOPInstanceUID and hold different pictures"):
        read_dicom(tmp_path)
    (entry,) = index_dicom(tmp_path)
    assert not entry.readable and len(entry.files) == 6


def test_a_copy_in_another_encoding_is_a_copy(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial)
    write_series(
        tmp_path / "b",
        axial,
        change=lambda ds, _: ds.compress(pydicom.uid.RLELossless, generate_instance_uid=False),
    )
    assert read_dicom(tmp_path).grid.same_as(axial)


def test_a_lone_slice_of_unknown_thickness_is_a_picture(axial, write_series, tmp_path):
    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    for name, change in {
        "none": lambda ds, _: delattr(ds, "SliceThickness"),
        "zero": lambda ds, _: setattr(ds, "SliceThickness", "0"),
    }.items():
        write_series(tmp_path / name, lone, change=change)
        image = read_dicom(tmp_path / name)
        assert image.grid.shape == (15, 13) and image.grid.unit == "mm" and worst_corner(image) < 1e-6
    write_series(tmp_path / "known", lone)
    assert read_dicom(tmp_path / "known").grid.spacing == pytest.approx((2.5, 0.8, 0.8))


def test_colour_slices_are_pictures(axial, write_series, tmp_path):
    def colour(ds, _):
        ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PlanarConfiguration = 3, "RGB", 0
        ds.BitsAllocated = ds.BitsStored = 8
        ds.HighBit, ds.PixelRepresentation = 7, 0
        ds.PixelData = bytes(15 * 13 * 3 + 1)

    write_series(tmp_path, axial, change=colour)
    with pytest.raises(InputError, match=r"6 separate images in colour.*read_images"):
        read_dicom(tmp_path)
    assert [i.pixels.shape for i in read_images(tmp_path)] == [(3, 15, 13)] * 6


@pytest.mark.parametrize(
    ("keyword", "words"),
    [
        ("PixelSpacing", "without a pixel spacing"),
        ("ImagePositionPatient", "without a position"),
        ("ImageOrientationPatient", "without an orientation"),
    ],
)
def test_a_refusal_names_what_is_missing(keyword, words, axial, write_series, tmp_path):
    write_series(tmp_path / "one", axial, change=lambda ds, z: delattr(ds, keyword) if z == 2 else None)
    with pytest.raises(GeometryError, match=f"1 of 6 images {words} .{keyword}."):
        read_dicom(tmp_path / "one")
    write_series(tmp_path / "all", axial, change=lambda ds, _: delattr(ds, keyword))
    with pytest.raises(InputError, match=f"6 separate images {words} .{keyword}."):
        read_dicom(tmp_path / "all")


def test_inspection_says_the_largest_deviation(axial, write_series, tmp_path):
    write_series(tmp_path, axial, change=_aside(0.008, 3))
    (finding,) = inspect_path(tmp_path)
    assert "slices within 0.0080 mm of it" in finding.geometry
    write_series(tmp_path, axial, change=_aside(0.08, 3))
    (finding,) = inspect_path(tmp_path)
    assert not finding.readable and "0.080 mm beside its place" in finding.problem
    (finding,) = inspect_path(tmp_path, tolerance_mm=0.1)
    assert finding.readable and "slices within 0.0800 mm of it" in finding.geometry
