"""Frames of a SEG belong where they say: in the patient, to a frame of a clip, to a slide's matrix; or are refused."""

from __future__ import annotations

from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from clearmargin.core import Grid, InstanceSet
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats import is_video, open_video
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.parametric_map import read_parametric_map, write_parametric_map
from clearmargin.formats.dicom.rtstruct import read_rtstruct, write_rtstruct
from clearmargin.formats.dicom.seg import (
    read_clip_seg,
    read_dicom_seg,
    read_seg_content,
    write_clip_seg,
    write_dicom_seg,
)
from clearmargin.formats.dicom.seg_kinds import write_fractional_seg, write_label_map_seg


@pytest.fixture
def cine(axial, write_series, tmp_path):
    """A multi-frame secondary capture: five frames of a picture without a place."""

    def film(ds, _):
        for name in (
            "ImagePositionPatient",
            "ImageOrientationPatient",
            "PixelSpacing",
            "FrameOfReferenceUID",
        ):
            delattr(ds, name)
        ds.SOPClassUID = ds.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7.3"
        ds.Modality, ds.NumberOfFrames, ds.FrameTime, ds.RescaleIntercept = "ES", 5, "40", "0"
        ds.PixelData = np.arange(5 * 15 * 13, dtype="<i2").tobytes()

    lone = Grid(shape=(1, 15, 13), affine=axial.affine, unit="mm")
    (file,) = write_series(tmp_path / "cine", lone, change=film)
    assert is_video(file)
    return file


def _predictions(predict, clip):
    """Objects in frames 1 and 3: one at the left, then one at the right and one at the bottom."""
    image = clip.frame(0)
    masks = np.zeros((3, 15, 13), bool)
    masks[0, 4:8, 1:4] = masks[1, 4:8, 9:12] = masks[2, 12:14, 2:9] = True
    whole = predict(image)

    def of(picks):
        instances = InstanceSet.from_dense(
            image.grid, [masks[i] for i in picks], labels=[1 + i % 2 for i in picks]
        )
        return replace(whole, instances=instances, maps={})

    return image, {1: of([0]), 2: of([]), 3: of([1, 2])}, masks


def test_masks_of_a_clip_come_back_frame_by_frame(cine, predict, tmp_path, dciodvfy):
    image, predictions, masks = _predictions(predict, open_video(cine))
    written = write_clip_seg(tmp_path / "seg.dcm", predictions, image)
    assert (written.segments, written.frames) == (3, 3)
    assert dciodvfy(tmp_path / "seg.dcm") == []
    # the oracle is pydicom: which frame of which object each mask is of
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    sources = [
        item.DerivationImageSequence[0].SourceImageSequence[0]
        for item in dataset.PerFrameFunctionalGroupsSequence
    ]
    assert [int(s.ReferencedFrameNumber) for s in sources] == [2, 4, 4]
    assert {s.ReferencedSOPInstanceUID for s in sources} == {pydicom.dcmread(cine).SOPInstanceUID}
    assert {s.ReferencedSOPClassUID for s in sources} == {"1.2.840.10008.5.1.4.1.1.7.3"}
    assert_array_equal(dataset.pixel_array.astype(bool), masks)
    assert len({s.TrackingUID for s in dataset.SegmentSequence}) == 3
    back = read_clip_seg(tmp_path / "seg.dcm")
    assert sorted(back) == [1, 3] and [len(back[k].instances) for k in (1, 3)] == [1, 2]
    assert_array_equal(back[1].instances.masks[0].dense(), masks[0])
    assert_array_equal(back[3].instances.masks[1].dense(), masks[2])
    with pytest.raises(GeometryError, match=r"masks of 2 frames of a clip.*read_clip_seg"):
        read_dicom_seg(tmp_path / "seg.dcm")


def test_the_masks_of_a_clip_are_a_function_of_the_prediction(cine, predict, tmp_path):
    image, predictions, _ = _predictions(predict, open_video(cine))
    first = write_clip_seg(tmp_path / "a.dcm", predictions, image)
    assert first == replace(write_clip_seg(tmp_path / "b.dcm", predictions, image), path=first.path)
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    later = write_clip_seg(tmp_path / "c.dcm", {k + 1: p for k, p in predictions.items()}, image)
    assert later.sop_instance_uid != first.sop_instance_uid
    assert write_clip_seg(tmp_path / "d.dcm", {2: predictions[2]}, image).path is None
    assert not (tmp_path / "d.dcm").exists()


def _strip(path, target, *, sources=True):
    """Write a copy of a SEG whose frames lost their places, and perhaps their sources."""
    dataset = pydicom.dcmread(path)
    shared = dataset.SharedFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        delattr(shared, name)
    for item in dataset.PerFrameFunctionalGroupsSequence:
        del item.PlanePositionSequence
        if not sources:
            del item.DerivationImageSequence
    dataset.save_as(target)


@pytest.mark.parametrize("sources", [True, False])
def test_slices_that_lost_their_places_are_not_put_on_each_other(
    sources, axial, write_series, predict, tmp_path
):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    _strip(tmp_path / "seg.dcm", tmp_path / "lost.dcm", sources=sources)
    for read in (read_dicom_seg, read_clip_seg):
        with pytest.raises(
            GeometryError, match=r"clip|neither where|does not say which frame|several objects"
        ):
            read(tmp_path / "lost.dcm")


def test_a_frame_of_an_unknown_segment_is_named(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    del dataset.SegmentSequence[2]
    dataset.save_as(tmp_path / "less.dcm")
    with pytest.raises(InputError, match="pixels of segment 3, which it does not describe"):
        read_dicom_seg(tmp_path / "less.dcm")
    apart = replace(prediction, instances=prediction.instances.select([1, 2]))
    write_label_map_seg(tmp_path / "labels.dcm", apart, image)
    dataset = pydicom.dcmread(tmp_path / "labels.dcm")
    dataset.SegmentSequence = [s for s in dataset.SegmentSequence if s.SegmentNumber != 2]
    dataset.save_as(tmp_path / "less.dcm")
    with pytest.raises(InputError, match="pixels of segment 2, which it does not describe"):
        read_dicom_seg(tmp_path / "less.dcm")


@pytest.mark.parametrize(
    ("thickness", "stated"), [(1.0, None), (5.0, None), (0.3, None), (5.0, 2.5), (2.0, 1.25)]
)
def test_positions_say_how_far_slices_lie_apart(thickness, stated, axial, write_series, predict, tmp_path):
    """Slices of 1 mm every 2.5 mm, of 5 mm that overlap: a thickness is no distance."""
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    masks = np.zeros((1, *axial.shape), bool)
    masks[0, 1:5, 3:6, 3:6] = True
    prediction = replace(predict(image), instances=InstanceSet.from_dense(image.grid, list(masks)))
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    measures.SliceThickness = thickness
    del measures.SpacingBetweenSlices
    if stated is not None:
        measures.SpacingBetweenSlices = stated
    dataset.save_as(tmp_path / "other.dcm")
    back = read_dicom_seg(tmp_path / "other.dcm")
    assert back.grid.spacing[0] == pytest.approx(1.25 if stated == 1.25 else 2.5)
    volume = highdicom.seg.segread(tmp_path / "other.dcm").get_volume(combine_segments=True)
    assert back.masks[0].area == int((volume.array > 0).sum())
    world = back.grid.to_world(np.argwhere(back.masks[0].dense()))
    theirs = volume.map_indices_to_reference(np.argwhere(volume.array))
    assert_allclose(world[np.lexsort(world.round(3).T)], theirs[np.lexsort(theirs.round(3).T)], atol=1e-4)


def test_one_plane_of_unknown_thickness_is_a_picture_in_its_place(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    masks = np.zeros((1, *axial.shape), bool)
    masks[0, 3, 3:6, 3:6] = True
    prediction = replace(predict(image), instances=InstanceSet.from_dense(image.grid, list(masks)))
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    assert read_dicom_seg(tmp_path / "seg.dcm").grid.spacing[0] == pytest.approx(2.5)
    dataset = pydicom.dcmread(tmp_path / "seg.dcm")
    measures = dataset.SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0]
    del measures.SpacingBetweenSlices, measures.SliceThickness
    dataset.save_as(tmp_path / "thin.dcm")
    back = read_dicom_seg(tmp_path / "thin.dcm")
    assert back.grid.same_as(image.grid.plane(3)) and back.masks[0].area == 9


WRITTEN = {
    "binary": write_dicom_seg,
    "label map": write_label_map_seg,
    "fractional": lambda path, prediction, image: write_fractional_seg(path, prediction, "entropy", 1, image),
    "map": lambda path, prediction, image: write_parametric_map(path, prediction, "entropy", image),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_what_is_of_a_lone_slice_of_unknown_thickness_lies_in_its_plane(
    kind, any_grid, write_series, predict, tmp_path, dciodvfy
):
    """Read by pydicom: the source's own position, orientation and spacing, and no thickness."""
    lone = Grid(shape=(1, 15, 13), affine=any_grid.affine, unit="mm")
    (source,) = write_series(tmp_path / "series", lone, change=lambda ds, _: delattr(ds, "SliceThickness"))
    image = read_dicom(tmp_path / "series")
    assert image.grid.ndim == 2
    path, prediction = tmp_path / "out.dcm", predict(image)
    prediction = replace(prediction, instances=prediction.instances.select([0, 2]))  # which do not overlap
    WRITTEN[kind](path, prediction, image)
    written, stated = pydicom.dcmread(path), pydicom.dcmread(source)
    shared = written.SharedFunctionalGroupsSequence[0]
    measures = shared.PixelMeasuresSequence[0]
    assert "SliceThickness" not in measures and "SpacingBetweenSlices" not in measures
    assert_allclose(measures.PixelSpacing, stated.PixelSpacing, atol=1e-6)
    orientation = shared.PlaneOrientationSequence[0].ImageOrientationPatient
    assert_allclose(orientation, stated.ImageOrientationPatient, atol=1e-6)
    for frame in written.PerFrameFunctionalGroupsSequence:
        position = frame.PlanePositionSequence[0].ImagePositionPatient
        assert_allclose(position, stated.ImagePositionPatient, atol=1e-6)
        (derivation,) = frame.DerivationImageSequence
        reference = derivation.SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == stated.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"
    assert written.FrameOfReferenceUID == stated.FrameOfReferenceUID
    # a thickness is wanted there; one that is not known is not invented
    assert [error for error in dciodvfy(path) if "SliceThickness" not in error] == []
    assert "PatientOrientation" not in written
    if kind == "binary":
        back = read_dicom_seg(path)
        assert back.grid.same_as(image.grid)
        for mask, own in zip(back.masks, prediction.instances.masks, strict=True):
            assert_array_equal(mask.dense(), own.dense())


def test_another_frame_of_reference_is_refused(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)

    def move(ds, _):
        ds.FrameOfReferenceUID = "1.2.826.99"

    write_series(tmp_path / "other", axial, uid="1.2.826.4", change=move)
    other = read_dicom(tmp_path / "other").grid
    assert not other.same_as(image.grid)
    for read, name in ((read_dicom_seg, "seg"), (read_parametric_map, "map"), (read_rtstruct, "rt")):
        read(tmp_path / f"{name}.dcm", grid=image.grid)
        read(tmp_path / f"{name}.dcm", grid=replace(image.grid, frame_of_reference=""))  # as of a NIfTI file
        with pytest.raises(GeometryError, match="another frame of reference") as caught:
            read(tmp_path / f"{name}.dcm", grid=other)
        assert "1.2.826" not in str(caught.value)


def test_masks_of_slices_are_not_put_on_a_picture(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    with pytest.raises(GeometryError, match="place of the grid"):
        read_dicom_seg(tmp_path / "seg.dcm", grid=Grid.from_spacing((15, 13)))
    with pytest.raises(GeometryError, match="outside it"):
        read_dicom_seg(tmp_path / "seg.dcm", grid=image.grid.plane(2))


@pytest.mark.parametrize(
    "name", ["sm_control", "sm_dots", "sm_dots_tiled_full", "sm_numbers", "sm_control_labelmap"]
)
def test_a_slide_has_one_matrix(name, data_root):
    """Tiles lie side by side, not on each other: highdicom puts them into the total pixel matrix."""
    path = data_root / "dicom_awkward" / "highdicom" / f"seg_image_{name}.dcm"
    content = read_seg_content(path)
    oracle = highdicom.seg.segread(path).get_total_pixel_matrix(combine_segments=False)
    dataset = pydicom.dcmread(path)
    assert content.instances.grid.shape == (dataset.TotalPixelMatrixRows, dataset.TotalPixelMatrixColumns)
    assert len(content.segments) == oracle.shape[-1]
    for k, mask in enumerate(content.instances.masks):
        assert_array_equal(mask.dense(), oracle[..., k] > 0)
    with pytest.raises(GeometryError):
        read_dicom_seg(path, grid=Grid.from_spacing((dataset.Rows, dataset.Columns)))


@pytest.mark.parametrize("name", ["sm_dots", "sm_dots_tiled_full"])
def test_a_slide_without_extent_is_refused(name, data_root, tmp_path):
    dataset = pydicom.dcmread(data_root / "dicom_awkward" / "highdicom" / f"seg_image_{name}.dcm")
    dataset.TotalPixelMatrixRows = 0
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(InputError, match="total pixel matrix"):
        read_seg_content(tmp_path / "seg.dcm")


def test_a_slide_that_claims_more_than_its_tiles_is_refused_at_once(data_root, tmp_path):
    """A list of the tiles that four thousand million rows need would fill the memory."""
    dataset = pydicom.dcmread(data_root / "dicom_awkward" / "highdicom" / "seg_image_sm_dots_tiled_full.dcm")
    dataset.TotalPixelMatrixRows = dataset.TotalPixelMatrixColumns = 2**32 - 1
    dataset.save_as(tmp_path / "seg.dcm")
    with pytest.raises(GeometryError, match="not whole sets"):
        read_seg_content(tmp_path / "seg.dcm")


def test_a_hand_made_clip_seg(tmp_path):
    """Another tool's: two frames of one segment, of frames 1 and 3 of a cine."""
    dataset = Dataset()
    dataset.file_meta = pydicom.dataset.FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.66.4"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality, dataset.SegmentationType = "SEG", "BINARY"
    dataset.Rows = dataset.Columns = 16
    dataset.NumberOfFrames, dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 2, 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 1
    dataset.HighBit = dataset.PixelRepresentation = 0
    masks = np.zeros((2, 16, 16), np.uint8)
    masks[0, 4:8, 1:4] = masks[1, 4:8, 12:15] = 1
    dataset.PixelData = np.packbits(masks.ravel(), bitorder="little").tobytes()
    dataset["PixelData"].VR = "OB"
    segment = Dataset()
    segment.SegmentNumber, segment.SegmentLabel = 1, "tool"
    dataset.SegmentSequence, frames = [segment], []
    for number in (1, 3):
        item, identification, source, derivation = Dataset(), Dataset(), Dataset(), Dataset()
        identification.ReferencedSegmentNumber = 1
        item.SegmentIdentificationSequence = [identification]
        source.ReferencedSOPInstanceUID, source.ReferencedFrameNumber = "1.2.3", number
        derivation.SourceImageSequence = [source]
        item.DerivationImageSequence = [derivation]
        frames.append(item)
    dataset.PerFrameFunctionalGroupsSequence = frames
    dataset.save_as(tmp_path / "seg.dcm", enforce_file_format=True)
    with pytest.raises(GeometryError, match="2 frames of a clip"):
        read_seg_content(tmp_path / "seg.dcm")
    back = read_clip_seg(tmp_path / "seg.dcm")
    assert {k: v.instances.masks[0].area for k, v in back.items()} == {0: 12, 2: 12}
    assert_array_equal(back[2].instances.masks[0].dense(), masks[1])


@pytest.mark.parametrize(
    "keyword",
    [
        "PerFrameFunctionalGroupsSequence",
        "SharedFunctionalGroupsSequence",
        "SegmentSequence",
        "StructureSetROISequence",
        "ROIContourSequence",
    ],
)
def test_a_sequence_that_is_none_is_named(keyword, axial, write_series, predict, tmp_path):
    """As a flipped bit of its value representation makes it: the element holds two numbers."""
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    write_rtstruct(tmp_path / "rt.dcm", prediction, image)
    write_parametric_map(tmp_path / "map.dcm", prediction, "entropy", image)
    readers = {"seg.dcm": read_dicom_seg, "rt.dcm": read_rtstruct, "map.dcm": read_parametric_map}
    tried = 0
    for name, read in readers.items():
        dataset = pydicom.dcmread(tmp_path / name)
        if keyword not in dataset:
            continue
        tag = dataset[keyword].tag
        del dataset[keyword]
        dataset.add(DataElement(tag, "DS", ["1", "2"]))
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.save_as(tmp_path / "bad.dcm", implicit_vr=False, little_endian=True)
        with pytest.raises(InputError, match=f"{keyword} is not a sequence"):
            read(tmp_path / "bad.dcm", grid=image.grid)
        tried += 1
    assert tried
