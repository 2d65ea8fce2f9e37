"""A mask written as DICOM SEG lies where it was: read back by us, by highdicom and by dcmqi."""

from __future__ import annotations

import warnings
from dataclasses import replace

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK
from numpy.testing import assert_allclose, assert_array_equal

from clearmargin.core import Grid, Image, InstanceSet, LabelMap, Mask, Source
from clearmargin.errors import GeometryError, InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.seg import read_dicom_seg, read_seg_content, write_dicom_seg


@pytest.fixture
def image(any_grid, write_series, tmp_path) -> Image:
    write_series(tmp_path / "series", any_grid)
    return read_dicom(tmp_path / "series")


def _world(grid: Grid, mask: Mask) -> np.ndarray:
    """World positions of a mask's elements, in a canonical order."""
    points = grid.to_world(np.argwhere(mask.dense())).round(3)
    return points[np.lexsort(points.T)]


def test_round_trip_in_every_orientation(image, predict, tmp_path, dciodvfy):
    prediction = predict(image)
    written = write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    assert (written.segments, written.skipped) == (4, 0)
    assert dciodvfy(tmp_path / "seg.dcm") == []
    back = read_dicom_seg(tmp_path / "seg.dcm", grid=image.grid, label_map=prediction.label_map)
    assert_array_equal(back.labels, prediction.instances.labels)
    assert_allclose(back.scores, prediction.instances.scores, atol=1e-4)
    for ours, theirs in zip(prediction.instances.masks, back.masks, strict=True):
        assert_array_equal(ours.dense(), theirs.dense())


def test_without_a_grid_the_world_positions_are_the_same(image, predict, tmp_path):
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    back = read_dicom_seg(tmp_path / "seg.dcm")
    for ours, theirs in zip(prediction.instances.masks, back.masks, strict=True):
        assert_allclose(_world(back.grid, theirs), _world(image.grid, ours), atol=0.01)


def test_dcmqi_reads_the_same_world_positions(image, predict, tmp_path, dcmqi_read):
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    volumes = dcmqi_read(tmp_path / "seg.dcm", tmp_path / "dcmqi")
    assert len(volumes) == 4
    for ours, file in zip(prediction.instances.masks, volumes, strict=True):
        theirs = SimpleITK.ReadImage(str(file))
        index = np.argwhere(SimpleITK.GetArrayFromImage(theirs))
        points = np.array([theirs.TransformIndexToPhysicalPoint([int(v) for v in i[::-1]]) for i in index])
        points = points.round(3)
        assert_allclose(points[np.lexsort(points.T)], _world(image.grid, ours), atol=0.01)


def test_highdicom_reads_the_same_world_positions(image, predict, tmp_path):
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    seg = highdicom.seg.segread(tmp_path / "seg.dcm")
    for k, ours in enumerate(prediction.instances.masks):
        volume = seg.get_volume(segment_numbers=[k + 1], combine_segments=True)
        points = volume.map_indices_to_reference(np.argwhere(volume.array)).round(3)
        assert_allclose(points[np.lexsort(points.T)], _world(image.grid, ours), atol=0.01)


def test_a_tilted_stack_keeps_each_frame_at_its_slice(tilted, write_series, predict, tmp_path, dciodvfy):
    files = write_series(tmp_path / "series", tilted)
    # An image on the sheared grid itself, as a reader without the gate would hand it over.
    image = Image(
        pixels=np.zeros((1, *tilted.shape)), grid=tilted, source=Source(kind="dicom", files=tuple(files))
    )
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    assert dciodvfy(tmp_path / "seg.dcm") == []
    positions = {pydicom.dcmread(f).SOPInstanceUID: pydicom.dcmread(f).ImagePositionPatient for f in files}
    for item in pydicom.dcmread(tmp_path / "seg.dcm").PerFrameFunctionalGroupsSequence:
        source = item.DerivationImageSequence[0].SourceImageSequence[0]
        assert source.SpatialLocationsPreserved == "YES"
        found = item.PlanePositionSequence[0].ImagePositionPatient
        assert_allclose(found, positions[source.ReferencedSOPInstanceUID], atol=1e-6)
    back = read_dicom_seg(tmp_path / "seg.dcm", grid=tilted)
    for ours, theirs in zip(prediction.instances.masks, back.masks, strict=True):
        assert_array_equal(ours.dense(), theirs.dense())


def test_what_a_segment_says(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    ds = pydicom.dcmread(tmp_path / "seg.dcm")
    first = ds.SegmentSequence[0]
    assert first.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "mask_rcnn"
    assert "abababab" in first.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    assert first.SegmentDescription == "score 0.95; mean_entropy 0.1000"
    assert "Research use only" in ds.ContentDescription and "research use" in ds.SeriesDescription.lower()
    uids = [item.TrackingUID for item in ds.SegmentSequence]
    assert len(set(uids)) == 4 and all(uid.startswith("2.25.") for uid in uids)
    assert ds.PatientID == "CANARYID" and ds.StudyInstanceUID == "1.2.826.1"
    assert ds.FrameOfReferenceUID == "1.2.826.2" and ds.SegmentsOverlap == "YES"
    content = read_seg_content(tmp_path / "seg.dcm")
    assert [s.label for s in content.segments] == ["liver 1", "tumour 2", "tumour 3", "tumour 4"]
    assert content.label_map.names == ("liver", "neoplasm")
    assert_array_equal(content.instances.labels, [1, 2, 2, 2])


def test_the_same_prediction_is_the_same_file_and_another_is_another_uid(
    axial, write_series, predict, tmp_path
):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    provenance = prediction.provenance
    first = write_dicom_seg(tmp_path / "a.dcm", prediction, image)
    second = write_dicom_seg(tmp_path / "b.dcm", prediction, image)
    assert first.sop_instance_uid == second.sop_instance_uid
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()
    others = [
        replace(prediction, provenance=replace(provenance, weights_sha256="ff" * 32)),
        replace(prediction, provenance=replace(provenance, config_sha256="ff" * 32)),
        replace(prediction, provenance=replace(provenance, software="clearmargin 0.2.0")),
        replace(prediction, instances=prediction.instances.select([0, 1, 3])),
        replace(prediction, instances=replace(prediction.instances, scores=np.full(4, 0.5))),
    ]
    uids = {write_dicom_seg(tmp_path / "c.dcm", other, image).sop_instance_uid for other in others}
    assert len(uids) == len(others) and first.sop_instance_uid not in uids


def test_nothing_found_is_nothing_written(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = replace(predict(image), instances=InstanceSet.empty(image.grid), maps={})
    written = write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    assert written.path is None and written.segments == 0
    assert not (tmp_path / "seg.dcm").exists()


def test_an_empty_mask_is_skipped_and_counted(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    whole = predict(image)
    nothing = InstanceSet.from_dense(axial, [np.zeros(axial.shape, bool)]).masks
    masks = (*whole.instances.masks[:2], *nothing, whole.instances.masks[3])
    prediction = replace(whole, instances=replace(whole.instances, masks=masks))
    written = write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    assert (written.segments, written.skipped) == (3, 1)
    assert len(read_dicom_seg(tmp_path / "seg.dcm")) == 3


@pytest.mark.parametrize(
    "missing",
    [
        ["PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyID", "AccessionNumber"],
        ["StudyDate", "StudyTime", "ReferringPhysicianName", "SeriesNumber", "Manufacturer"],
        ["FrameOfReferenceUID", "SliceThickness", "PositionReferenceIndicator", "Modality"],
    ],
)
def test_missing_source_attributes_never_abort_a_write(
    missing, axial, write_series, predict, tmp_path, dciodvfy
):
    def lose(ds, _):
        for name in missing:
            delattr(ds, name)

    write_series(tmp_path / "series", axial, change=lose)
    image = read_dicom(tmp_path / "series")
    assert write_dicom_seg(tmp_path / "seg.dcm", predict(image), image).segments == 4
    assert dciodvfy(tmp_path / "seg.dcm") == []


def test_odd_source_values_never_abort_a_write(axial, write_series, predict, tmp_path, dciodvfy):
    def spoil(ds, _):
        ds.SpecificCharacterSet = "ISO_IR 100"
        ds.PatientName, ds.PatientSex, ds.StudyDate, ds.StudyTime = "Müller^Jörg", "X", "2020-01", "noon"
        ds.AccessionNumber, ds.LossyImageCompression = "A" * 40, "00"

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's own remarks on what is spoiled here
        write_series(tmp_path / "series", axial, change=spoil)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    assert dciodvfy(tmp_path / "seg.dcm") == []
    assert str(pydicom.dcmread(tmp_path / "seg.dcm").PatientName) == "Müller^Jörg"


def test_a_result_needs_a_dicom_source_on_the_same_grid(axial, write_series, predict, tmp_path):
    picture = Image(pixels=np.zeros((1, 15, 13)), grid=Grid.from_spacing((15, 13)))
    with pytest.raises(InputError, match="does not come from DICOM"):
        write_dicom_seg(tmp_path / "seg.dcm", predict(picture), picture)
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    moved = axial.affine.copy()
    moved[0, 3] += 1
    other = Image(pixels=image.pixels, grid=Grid(shape=axial.shape, affine=moved, unit="mm"))
    with pytest.raises(GeometryError, match="resample"):
        write_dicom_seg(tmp_path / "seg.dcm", predict(other), image)


def test_a_frame_beside_the_grid_is_refused(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    half = axial.affine.copy()
    half[0, 3] += 0.4
    with pytest.raises(GeometryError, match=r"0\.50 of a pixel beside"):
        read_dicom_seg(tmp_path / "seg.dcm", grid=Grid(shape=axial.shape, affine=half, unit="mm"))
    short = Grid(shape=(2, 15, 13), affine=axial.affine, unit="mm")
    with pytest.raises(GeometryError, match="outside"):
        read_dicom_seg(tmp_path / "seg.dcm", grid=short)


def test_masks_return_onto_a_grid_turned_round(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    # The same voxels, stored with x first and z running down.
    affine = axial.affine[:, [2, 1, 0, 3]].copy()
    affine[:3, 3] = axial.to_world((5, 0, 0))
    affine[:3, 2] *= -1
    turned = Grid(shape=(13, 15, 6), affine=affine, unit="mm")
    back = read_dicom_seg(tmp_path / "seg.dcm", grid=turned)
    for ours, theirs in zip(prediction.instances.masks, back.masks, strict=True):
        assert_array_equal(theirs.dense(), ours.dense().transpose(2, 1, 0)[:, :, ::-1])


def test_an_unknown_type_is_named(axial, write_series, predict, tmp_path, label_map):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    write_dicom_seg(tmp_path / "seg.dcm", predict(image), image)
    with pytest.raises(InputError, match="type 10200004 SCT, which is none of: 108369006 SCT"):
        read_dicom_seg(tmp_path / "seg.dcm", label_map=LabelMap(label_map.classes[:1]))


def test_the_real_liver_is_read_in_place(data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    image = read_dicom(folder)
    (liver,) = read_dicom_seg(folder / "seg_liver.dcm", grid=image.grid).masks
    oracle = SimpleITK.ReadImage(str(folder / "liver_seg.nrrd"))
    index = np.argwhere(SimpleITK.GetArrayFromImage(oracle))
    world = np.array([oracle.TransformIndexToPhysicalPoint([int(v) for v in i[::-1]]) for i in index[::97]])
    found = np.round(image.grid.to_index(world)).astype(int)
    assert liver.area == len(index)
    assert liver.dense()[tuple(found.T)].all()
    values = image.pixels[0][liver.dense()]
    assert 20 < np.median(values) < 60  # liver with a little contrast, in Hounsfield units
    assert ((values > -50) & (values < 200)).mean() > 0.9  # the outline takes some fat and lung along


def test_overlapping_segments_stay_apart(data_root):
    folder = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver"
    image = read_dicom(folder)
    content = read_seg_content(folder / "seg_partial_overlaps.dcm", grid=image.grid)
    masks = content.instances.masks
    assert len(masks) == 5
    assert any(a.overlaps(b) for i, a in enumerate(masks) for b in masks[i + 1 :])
    oracle = highdicom.seg.segread(folder / "seg_partial_overlaps.dcm")
    for k, mask in enumerate(masks):
        volume = oracle.get_volume(segment_numbers=[k + 1], combine_segments=True)
        assert mask.area == int((volume.array > 0).sum())


def test_fractional_and_label_map_objects(data_root):
    fractional = data_root / "dicom_awkward" / "highdicom" / "seg_image_ct_true_fractional.dcm"
    content = read_seg_content(fractional)
    ds = pydicom.dcmread(fractional)
    assert_allclose(
        np.sort(content.fractions[0].ravel()), np.sort(ds.pixel_array.ravel()) / ds.MaximumFractionalValue
    )
    assert content.instances.masks[0].area == (content.fractions[0] > 0.5).sum()
    label_map = data_root / "dicom_ct_seg_rtstruct_small" / "dcmqi_liver" / "sparse-labelmap-noppv.dcm"
    (liver,) = read_dicom_seg(label_map).masks
    assert liver.area == (pydicom.dcmread(label_map).pixel_array > 0).sum()


def test_a_volume_of_our_own_is_not_a_seg(axial, write_series, tmp_path):
    (file, *_) = write_series(tmp_path, axial)
    with pytest.raises(InputError, match="is not a DICOM SEG"):
        read_dicom_seg(file)
