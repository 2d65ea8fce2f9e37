"""Every corner of every slice lies on the grid, or the series is refused; several volumes are told apart."""

from __future__ import annotations

import gzip
import io
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataset import Dataset

from clearmargin.core import Grid
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats import is_video, read_image, read_images
from clearmargin.formats.dicom.images import index_dicom, read_dicom, read_dicom_volumes
from clearmargin.formats.dicom.seg import write_dicom_seg
from clearmargin.inspection import inspect_path


def _corners(position, orientation, spacing, rows, columns) -> np.ndarray:
    """The corner pixels by the equation of PS3.3, C.7.6.2.1.1, as the headers state them."""
    p, o, s = (np.array([float(v) for v in values]) for values in (position, orientation, spacing))
    return np.array(
        [p + o[:3] * s[1] * x + o[3:] * s[0] * y for y in (0, rows - 1) for x in (0, columns - 1)]
    )


def _header_corners(dataset: Dataset) -> list[np.ndarray]:
    """The corners of every frame, by pydicom alone."""
    size = dataset.Rows, dataset.Columns
    if "PerFrameFunctionalGroupsSequence" not in dataset:
        return [
            _corners(
                dataset.ImagePositionPatient, dataset.ImageOrientationPatient, dataset.PixelSpacing, *size
            )
        ]
    shared = dataset.SharedFunctionalGroupsSequence[0]
    found = []
    for item in dataset.PerFrameFunctionalGroupsSequence:
        groups = [
            (item if name in item else shared)[name][0]
            for name in ("PlanePositionSequence", "PlaneOrientationSequence", "PixelMeasuresSequence")
        ]
        position, orientation = groups[0].ImagePositionPatient, groups[1].ImageOrientationPatient
        found.append(_corners(position, orientation, groups[2].PixelSpacing, *size))
    return found


def _worst(image) -> float:
    """Largest distance of a header's corner from the grid; slices matched by the file or frame that they are of."""
    planes = []
    for file in image.source.files:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dataset = pydicom.dcmread(file, stop_before_pixels=True, force=True)
            planes.append(_header_corners(dataset))
    if image.source.frames:
        corners = [planes[file][frame] for file, frame in image.source.frames]
    else:
        corners = [frame for frames in planes for frame in frames]
    if image.grid.ndim == 2:
        index = [(y, x) for y in (0, image.grid.shape[0] - 1) for x in (0, image.grid.shape[1] - 1)]
        return float(np.linalg.norm(image.grid.to_world(index) - corners[0], axis=1).max())
    assert len(corners) == image.grid.shape[0]
    worst = 0.0
    for z, expected in enumerate(corners):
        index = [(z, y, x) for y in (0, image.grid.shape[1] - 1) for x in (0, image.grid.shape[2] - 1)]
        worst = max(worst, float(np.linalg.norm(image.grid.to_world(index) - expected, axis=1).max()))
    return worst


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
                assert _worst(image) <= 0.01, path.name
                assert image.source.deviation_mm == pytest.approx(_worst(image), abs=1e-6)
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
    assert image.source.deviation_mm == pytest.approx(_worst(image), abs=1e-6)
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
        assert image.grid.shape == (15, 13) and image.grid.unit == "mm" and _worst(image) < 1e-6
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


# --- several volumes in one series or object


def _enhanced(
    path: Path, frames: list[dict], shape=(8, 9), *, modality="MR", sop="1.2.840.10008.5.1.4.1.1.4.1"
) -> Path:
    """Write an enhanced multi-frame object; frames are pixel value, position, and functional groups."""
    ds = Dataset()
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = sop
    ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = "1.2.826.8.1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "1.2.826.1", "1.2.826.8", "1.2.826.2"
    ds.Modality, ds.ImageType, ds.SeriesNumber = modality, ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"], 4
    ds.Rows, ds.Columns = shape
    ds.NumberOfFrames, ds.SamplesPerPixel, ds.PhotometricInterpretation = len(frames), 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit, ds.PixelRepresentation = 16, 16, 15, 0
    measures, shared = Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [0.9, 1.1], 3, 3
    shared.PixelMeasuresSequence = [measures]
    ds.SharedFunctionalGroupsSequence, ds.PerFrameFunctionalGroupsSequence = [shared], []
    for frame in frames:
        item, position, orientation = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = list(frame["at"])
        orientation.ImageOrientationPatient = list(frame.get("along", (1, 0, 0, 0, 1, 0)))
        item.PlanePositionSequence, item.PlaneOrientationSequence = [position], [orientation]
        for group, values in frame.get("groups", {}).items():
            inner = Dataset()
            for name, value in values.items():
                setattr(inner, name, value)
            setattr(item, group, [inner])
        ds.PerFrameFunctionalGroupsSequence.append(item)
    ds.PixelData = np.stack([np.full(shape, f["value"], "<u2") for f in frames]).tobytes()
    ds["PixelData"].VR = "OW"
    ds.save_as(path, enforce_file_format=True)
    return path


def _direction(k):
    item = Dataset()
    item.DiffusionGradientOrientation = [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]][k]
    return [item]


DIMENSIONS = {
    "phase": [{"FrameContentSequence": {"TemporalPositionIndex": k + 1}} for k in range(3)],
    "echo time": [{"MREchoSequence": {"EffectiveEchoTime": 4.6 * (k + 1)}} for k in range(2)],
    "b-value": [{"MRDiffusionSequence": {"DiffusionBValue": b}} for b in (0.0, 500.0, 1000.0)],
    "direction": [
        {
            "MRDiffusionSequence": {
                "DiffusionBValue": 800.0,
                "DiffusionGradientDirectionSequence": _direction(k),
            }
        }
        for k in range(2)
    ],
    "component": [{"MRImageFrameTypeSequence": {"ComplexImageComponent": c}} for c in ("MAGNITUDE", "PHASE")],
    "trigger delay": [
        {"CardiacSynchronizationSequence": {"NominalCardiacTriggerDelayTime": 50.0 * k}} for k in range(4)
    ],
}


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize("dimension", DIMENSIONS)
def test_what_repeats_at_every_place_parts_an_object(dimension, interleaved, tmp_path):
    groups = DIMENSIONS[dimension]
    frames = [
        {"value": 100 * k + z, "at": (0, 0, 3.0 * z), "groups": groups[k]}
        for k in range(len(groups))
        for z in range(5)
    ]
    if interleaved:
        frames.sort(key=lambda f: (-f["at"][2], f["value"]))
    file = _enhanced(tmp_path / "e.dcm", frames)
    (entry,) = index_dicom(file)
    assert [v.shape for v in entry.volumes] == [(5, 8, 9)] * len(groups) and not entry.readable
    assert all(dimension in v.label for v in entry.volumes)
    with pytest.raises(
        GeometryError, match=f"it holds {len(groups)} volumes, choose one with --volume.* 1: {dimension}"
    ):
        read_dicom(file)
    images = list(read_images(file))
    assert len({i.source.case for i in images}) == len(groups)
    for k, volume in enumerate(entry.volumes):
        for rule in (str(volume.number), volume.label, volume.label.upper()):
            image = read_dicom(file, volume=rule)
            assert_array_equal(image.pixels[0, :, 0, 0], 100 * k + np.arange(5))
            assert _worst(image) < 1e-6
            assert_array_equal(image.pixels, images[k].pixels)
    # the second volume knows which frames it is of
    image = read_dicom(file, volume="2")
    stored = pydicom.dcmread(file).pixel_array[:, 0, 0]
    assert [int(stored[f]) for _, f in image.source.frames] == [100 + z for z in range(5)]


def test_a_seg_of_one_phase_refers_to_its_frames(predict, tmp_path):
    frames = [
        {"value": 100 * k + z, "at": (0, 0, 3.0 * z), "groups": DIMENSIONS["phase"][k]}
        for z in range(5)
        for k in range(3)
    ]
    file = _enhanced(tmp_path / "e.dcm", frames, shape=(15, 13))
    image = read_dicom(file, volume="phase 2")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    stored = pydicom.dcmread(file).pixel_array[:, 0, 0]
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    for item in dataset.PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        z = round(float(item.PlanePositionSequence[0].ImagePositionPatient[2]) / 3)
        assert stored[source.ReferencedFrameNumber - 1] == 100 + z


def test_stacks_are_told_apart(tmp_path):
    """Side by side, in another direction, and one behind the other at another distance."""
    content = [{"FrameContentSequence": {"StackID": str(k + 1)}} for k in range(3)]
    first = [{"value": z, "at": (0, 0, 3.0 * z), "groups": content[0]} for z in range(4)]
    beside = [{"value": 10 + z, "at": (0, 100, 3.0 * z), "groups": content[1]} for z in range(4)]
    sagittal = [
        {"value": 20 + z, "at": (3.0 * z, 0, 0), "along": (0, 1, 0, 0, 0, -1), "groups": content[2]}
        for z in range(4)
    ]
    behind = [{"value": 10 + z, "at": (0, 0, 40 + 3.0 * z), "groups": content[1]} for z in range(4)]
    for name, frames in {"b": [*first, *beside], "d": [*first, *sagittal], "h": [*first, *behind]}.items():
        file = _enhanced(tmp_path / f"{name}.dcm", frames)
        with pytest.raises(
            GeometryError, match=r"2 volumes, choose one with --volume.* 1: stack 1, 4 x 8 x 9"
        ):
            read_dicom(file)
        values = [image.pixels[0, :, 0, 0].tolist() for image in read_dicom_volumes(file)]
        assert values[0] == [0, 1, 2, 3] and sorted(values[1]) == [f["value"] for f in frames[4:]]
    # one stack in two parts that follow each other is one volume
    joined = [{**f, "at": (0, 0, 12 + 3.0 * z), "value": 4 + z} for z, f in enumerate(beside)]
    assert read_dicom(_enhanced(tmp_path / "j.dcm", [*first, *joined])).grid.shape == (8, 8, 9)


def test_two_dimensions_at_once(tmp_path):
    frames = [
        {
            "value": 100 * p + 10 * e + z,
            "at": (0, 0, 3.0 * z),
            "groups": {
                "FrameContentSequence": {"TemporalPositionIndex": p + 1},
                "MREchoSequence": {"EffectiveEchoTime": 5.0 * (e + 1)},
            },
        }
        for z in range(3)
        for e in range(2)
        for p in range(2)
    ]
    file = _enhanced(tmp_path / "e.dcm", frames)
    (entry,) = index_dicom(file)
    assert [v.label for v in entry.volumes] == [f"phase {p}, echo time {e}" for p in (1, 2) for e in (5, 10)]
    assert_array_equal(read_dicom(file, volume="echo time 10, phase 2").pixels[0, :, 0, 0], [110, 111, 112])
    with pytest.raises(InputError, match=r"2 of the volumes of series 1 .MR. fit"):
        read_dicom(file, volume="phase 2")
    with pytest.raises(InputError, match="none of the volumes"):
        read_dicom(file, volume="phase 7")


def test_dimensions_that_only_an_index_names(tmp_path):
    """An object may order its frames by any element; its dimension indices say so."""
    frames = [
        {
            "value": 10 * k + z,
            "at": (0, 0, 3.0 * z),
            "groups": {"FrameContentSequence": {"DimensionIndexValues": [k + 1, z + 1]}},
        }
        for k in range(2)
        for z in range(3)
    ]
    file = _enhanced(tmp_path / "e.dcm", frames)
    ds = pydicom.dcmread(file)
    ds.DimensionIndexSequence = [Dataset(), Dataset()]
    ds.DimensionIndexSequence[0].DimensionIndexPointer = 0x00181310
    ds.DimensionIndexSequence[1].DimensionIndexPointer = 0x00200032
    ds.save_as(file)
    values = [image.pixels[0, :, 0, 0].tolist() for image in read_dicom_volumes(file)]
    assert values == [[0, 1, 2], [10, 11, 12]]


@pytest.mark.parametrize(
    ("keyword", "values"),
    [
        ("EchoNumbers", ["1", "2"]),
        ("TemporalPositionIdentifier", ["1", "2", "3"]),
        ("DiffusionBValue", [0.0, 1000.0]),
        ("TriggerTime", ["0", "40", "80"]),
        ("AcquisitionNumber", ["1", "2"]),
        ("ImageType", [["ORIGINAL", "PRIMARY", "M"], ["ORIGINAL", "PRIMARY", "P"]]),
        ("ConvolutionKernel", ["B30f", "B70f"]),
    ],
)
def test_single_frame_series_are_parted_alike(keyword, values, axial, write_series, tmp_path):
    for k, value in enumerate(values):

        def mark(ds, z, k=k, value=value):
            ds.SOPInstanceUID = f"1.2.826.6.{k}.{z + 1}"
            setattr(ds, keyword, value)
            ds.InstanceNumber = 2 * z + k
            ds.ContentTime = f"1010{2 * z + k:02d}"

        write_series(tmp_path / str(k), axial, np.full(axial.shape, 100 * k), change=mark)
    images = list(read_images(tmp_path))
    assert [int(i.pixels[0, 0, 0, 0]) + 1024 for i in images] == [100 * k for k in range(len(values))]
    for image in images:
        assert image.grid.same_as(axial) and _worst(image) < 1e-4 and image.pixels.min() == image.pixels.max()


@pytest.mark.parametrize("keyword", ["TriggerTime", "FrameReferenceTime"])
def test_times_that_differ_from_slice_to_slice_are_taken_in_turn(keyword, axial, write_series, tmp_path):
    """A heart does not beat alike for every slice: phase 2 is the second time at every place."""
    for k in range(3):

        def mark(ds, z, k=k):
            ds.SOPInstanceUID = f"1.2.826.6.{k}.{z + 1}"
            setattr(ds, keyword, f"{40.0 * k + 0.7 * z:.1f}")

        write_series(tmp_path / str(k), axial, np.full(axial.shape, 100 * k), change=mark)
    (entry,) = index_dicom(tmp_path)
    name = {"TriggerTime": "trigger time", "FrameReferenceTime": "frame time"}[keyword]
    assert [v.label for v in entry.volumes] == [f"{name} no. {k}" for k in (1, 2, 3)]
    for k, image in enumerate(read_images(tmp_path)):
        assert image.grid.same_as(axial) and (image.pixels == 100 * k - 1024).all()


def test_phases_that_nothing_tells_apart_are_refused(axial, write_series, tmp_path):
    write_series(tmp_path / "a", axial)
    write_series(tmp_path / "b", axial, change=lambda ds, z: setattr(ds, "SOPInstanceUID", f"1.2.826.6.{z}"))
    with pytest.raises(GeometryError, match="duplicate positions: 6 of 12 slices"):
        read_dicom(tmp_path)


# --- volumes without functional groups


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


# --- mosaics


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


# --- choosing a series


@pytest.fixture
def study(axial, write_series, tmp_path):
    """Three series whose numbers are not those of the listing: the listing's 1 is SeriesNumber 3, its 2 is 7."""
    for uid, number, slices in (("1.2.826.11", 3, 6), ("1.2.826.12", 7, 4), ("1.2.826.13", 2, 3)):

        def label(ds, _, number=number):
            ds.SeriesNumber, ds.SeriesDescription = number, f"CANARY part {number}"

        grid = Grid(shape=(slices, 15, 13), affine=axial.affine, unit="mm")
        write_series(tmp_path / uid, grid, uid=uid, change=label)
    return tmp_path


def test_a_number_means_one_series_or_is_refused(study):
    slices = {
        "list:1": 6, "list:2": 4, "list:3": 3, "number:3": 6, "number:7": 4, "number:2": 3, "1": 6, "7": 4,
        "1.2.826.12": 4, "largest": 6, "part 2": 3,
    }  # fmt: skip
    for rule, n in slices.items():
        assert read_dicom(study, series=rule).grid.shape[0] == n, rule
    for rule, others in {"2": "3", "3": "1"}.items():
        with pytest.raises(InputError, match=f"list:{rule} or number:{rule}") as caught:
            read_dicom(study, series=rule)
        assert f"the SeriesNumber of number {others}" in str(caught.value) and "CANARY" not in str(
            caught.value
        )
    for rule in ("list:9", "number:9", "9", "list:x", "part"):
        with pytest.raises(InputError, match=r"no series fits|3 series fit"):
            read_dicom(study, series=rule)


def test_the_listing_names_number_and_description_on_request_only(study, caplog):
    findings = inspect_path(study)
    assert [(f.number, f.description) for f in findings] == [
        (3, "CANARY part 3"),
        (7, "CANARY part 7"),
        (2, "CANARY part 2"),
    ]
    assert "CANARY" not in repr(findings) + caplog.text
    assert findings[0].geometry.startswith("6 x 15 x 13 at 2.5 x 0.8 x 0.8 mm, axial, slices within ")
    for finding in findings:
        series = finding.selector.split()[1]
        assert f"{read_dicom(study, series=series).grid.shape[0]} x 15 x 13" in finding.size


def test_inspection_says_the_largest_deviation(axial, write_series, tmp_path):
    write_series(tmp_path, axial, change=_aside(0.008, 3))
    (finding,) = inspect_path(tmp_path)
    assert "slices within 0.0080 mm of it" in finding.geometry
    write_series(tmp_path, axial, change=_aside(0.08, 3))
    (finding,) = inspect_path(tmp_path)
    assert not finding.readable and "0.080 mm beside its place" in finding.problem
    (finding,) = inspect_path(tmp_path, tolerance_mm=0.1)
    assert finding.readable and "slices within 0.0800 mm of it" in finding.geometry
