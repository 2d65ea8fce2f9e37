"""Phases, echoes and stacks in one series or object are told apart, and never stacked on each other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
from corners import worst_corner
from numpy.testing import assert_array_equal
from pydicom.dataset import Dataset

from clearmargin.errors import GeometryError, InputError
from clearmargin.formats import read_images
from clearmargin.formats.dicom.images import index_dicom, read_dicom, read_dicom_volumes
from clearmargin.formats.dicom.seg import write_dicom_seg


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
            assert worst_corner(image) < 1e-6
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
        assert (
            image.grid.same_as(axial)
            and worst_corner(image) < 1e-4
            and image.pixels.min() == image.pixels.max()
        )


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


KINDS = {
    "phase": [{"FrameContentSequence": {"TemporalPositionIndex": k + 1}} for k in range(2)],
    "echo time": [{"MREchoSequence": {"EffectiveEchoTime": 10.0 + 20 * k}} for k in range(2)],
    "stack": [{"FrameContentSequence": {"StackID": str(k + 1)}} for k in range(2)],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shift", [1.5, 0.7])
def test_two_sets_half_a_slice_apart_are_two_volumes(tmp_path, kind, shift):
    """All slices fit one even grid (1.5 mm), or none (0.7 mm): either way they are not one volume."""
    frames = [
        {"value": 100 * k + z, "at": (0, 0, 3.0 * z + shift * k), "groups": groups}
        for z in range(4)
        for k, groups in enumerate(KINDS[kind])
    ]
    path = _enhanced(tmp_path / "two.dcm", frames)
    (entry,) = index_dicom(path)
    assert [v.shape for v in entry.volumes] == [(4, 8, 9)] * 2 and all(kind in v.label for v in entry.volumes)
    with pytest.raises((InputError, GeometryError), match=r"^series 1 \(MR\) .*2 volumes"):
        read_dicom(path)
    for number, image in enumerate(read_dicom_volumes(path)):
        assert_array_equal(image.pixels[0, :, 0, 0], 100 * number + np.arange(4))
        assert image.grid.spacing == pytest.approx((3, 0.9, 1.1))
        assert image.grid.affine[2, 3] == pytest.approx(shift * number)


def test_sets_behind_each_other_and_numbers_that_alternate_are_one_volume(tmp_path):
    """Slabs of one examination, and a scanner's two passes through the odd and the even slices."""
    passes = [{"FrameContentSequence": {"FrameAcquisitionNumber": 1 + z % 2}} for z in range(8)]
    slabs = [{"FrameContentSequence": {"StackID": str(1 + z // 4)}} for z in range(8)]
    for name, groups in (("passes", passes), ("slabs", slabs)):
        frames = [{"value": z, "at": (0, 0, 3.0 * z), "groups": g} for z, g in enumerate(groups)]
        image = read_dicom(_enhanced(tmp_path / f"{name}.dcm", frames))
        assert_array_equal(image.pixels[0, :, 0, 0], np.arange(8))


def test_one_frame_of_reference_is_that_of_the_slices_that_state_it(axial, write_series, tmp_path):
    write_series(tmp_path / "s", axial)
    files = sorted((tmp_path / "s").rglob("*.dcm"))
    stated = pydicom.dcmread(files[-1]).FrameOfReferenceUID
    for file in files[:-1]:
        dataset = pydicom.dcmread(file)
        del dataset.FrameOfReferenceUID
        dataset.save_as(file)
    assert read_dicom(tmp_path / "s").grid.frame_of_reference == stated


def test_slices_in_two_units_are_refused(axial, write_series, tmp_path):
    write_series(tmp_path / "s", axial)
    for number, file in enumerate(sorted((tmp_path / "s").rglob("*.dcm"))):
        dataset = pydicom.dcmread(file)
        dataset.RescaleSlope, dataset.RescaleIntercept = 1, 0
        dataset.RescaleType = "US" if number == 1 else "HU"
        dataset.save_as(file)
    with pytest.raises(InputError, match="in 2 units"):
        read_dicom(tmp_path / "s")
