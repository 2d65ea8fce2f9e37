"""Landmarks in an SR: where they lie by DICOM's own equations, read by other tools, and read from other writers."""

import json
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from landmarks import write_points_card
from pydicom.sr.codedict import codes

from clearmargin.core import Code, Grid, LabelMap, Landmarks, PointType
from clearmargin.core.landmarks import HIDDEN, SEEN, VISIBILITIES
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats import open_video
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.landmark_report import points_on, read_landmark_report, write_landmark_report
from clearmargin.outputs.landmarks import landmark_rows
from clearmargin.outputs.writers import WRITERS

ENTRY = Code(value="80891009", scheme="SCT", meaning="Heart structure")
APEX = Code(value="13418002", scheme="SCT", meaning="Apex of lung")
TYPES = (PointType(name="entry", code=ENTRY), PointType(name="apex", code=APEX))


def landmarks(ndim, *, regions=True):
    """Two objects: entry and apex of the first, a hidden apex of the second."""
    at = np.array([[[3.0, 7.25, 4.5], [2.0, 3.0, 5.75]], [[0, 0, 0], [4.25, 10.0, 2.0]]])[..., -ndim:]
    spread = np.diag([0.5, 2.0, 1.0][-ndim:]) + 0.1
    visible = np.array([[SEEN, SEEN], [0, HIDDEN]])
    every = np.broadcast_to(spread, (2, 2, ndim, ndim))
    made = Landmarks.of(TYPES, at, visible, scores=[[0.9, 0.8], [0, 0.625]], covariance=every)
    return replace(made, regions=9 * every) if regions else made


def write(path, image, predict, one, frames=None):
    rows = [
        row
        for number, found in (frames or {None: one}).items()
        for row in landmark_rows(found, image.grid, frame=number, reasons={(0, 0): "too large"})
    ]
    return write_landmark_report(path, frames or one, rows, predict(image).provenance, image)


def by_dicom(header, y, x):
    """PS3.3, C.7.6.2.1.1: the centre of an element in the patient."""
    right, down = (np.array(header.ImageOrientationPatient[k : k + 3], float) for k in (0, 3))
    row_step, column_step = map(float, header.PixelSpacing)
    return np.array(header.ImagePositionPatient, float) + right * column_step * x + down * row_step * y


@pytest.fixture
def volume(any_grid, write_series, tmp_path):
    write_series(tmp_path / "series", any_grid)
    return read_dicom(tmp_path / "series")


def test_points_of_a_volume_lie_in_the_patient(volume, predict, tmp_path, dciodvfy):
    one = landmarks(3)
    path = write(tmp_path / "sr.dcm", volume, predict, one)
    assert dciodvfy(path) == []
    report = highdicom.sr.srread(path).content
    groups = report.get_image_measurement_groups()
    assert {g.tracking_identifier for g in groups} == {"Cornerstone3DTools@^0.1.0:Probe"}
    assert len({g.tracking_uid for g in groups}) == 3
    headers = [pydicom.dcmread(f) for f in volume.source.files]
    for group, (i, k) in zip(groups, [(0, 0), (0, 1), (1, 1)], strict=True):
        z, y, x = one.points[i, k]
        low = int(z)
        upper = min(low + 1, 5)
        expected = by_dicom(headers[low], y, x) * (1 - (z - low)) + by_dicom(headers[upper], y, x) * (z - low)
        measured = {m.name.meaning: m for m in group.get_measurements()}
        (place,) = measured["Score"].referenced_coordinates
        assert place.graphic_type == highdicom.sr.GraphicTypeValues3D.POINT
        np.testing.assert_allclose(place.value.ravel(), expected, atol=1e-3)
        assert place.frame_of_reference_uid == headers[0].FrameOfReferenceUID
        assert group.finding_type.value == TYPES[k].code.value
        assert measured["Score"].value == pytest.approx(float(one.scores[i, k]), abs=1e-4)
        axes = volume.grid.semi_axes(one.regions[i, k])
        assert measured["Region major"].value == pytest.approx(axes[-1], abs=1e-3)
        assert measured["Region major"].unit.value == "mm" and measured["Region volume"].unit.value == "mm3"
        # the drawn ellipsoid: both ends of each axis, the longest first, about the point
        (drawn,) = measured["Region major"].referenced_coordinates
        ends = np.reshape(drawn.GraphicData, (3, 2, 3)).astype(float)
        assert drawn.GraphicType == "ELLIPSOID"
        np.testing.assert_allclose(ends.mean(axis=1), [expected] * 3, atol=1e-2)
        lengths = np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1) / 2
        np.testing.assert_allclose(lengths, axes[::-1], rtol=1e-3)
        seen = {e.name.value: e.value.value for e in group.get_qualitative_evaluations()}
        assert seen["landmark"] == TYPES[k].name
        assert seen["visibility"] == VISIBILITIES[one.visible[i, k]] and ("refer" in seen) == (
            (i, k) == (0, 0)
        )
    assert "CANARY" not in str(report)
    again = write(tmp_path / "again.dcm", volume, predict, one)
    assert again.read_bytes() == path.read_bytes()
    # and we read what we wrote, on the grid
    placed = points_on(read_landmark_report(path), volume)
    np.testing.assert_allclose([at for _, at in placed], one.points[one.visible > 0], atol=2e-3)
    assert [(p.object, p.visible) for p, _ in placed] == [("1", SEEN), ("1", SEEN), ("2", HIDDEN)]


def test_dcmqi_reads_the_measurements(axial, write_series, predict, tmp_path):
    tool = Path(sysconfig.get_path("scripts")) / "tid1500reader"
    if not tool.exists():
        pytest.skip("tid1500reader is not installed: pip install dcmqi")
    write_series(tmp_path / "series", axial)
    path = write(tmp_path / "sr.dcm", read_dicom(tmp_path / "series"), predict, landmarks(3))
    command = [tool, "--inputDICOM", path, "--outputMetadata", tmp_path / "sr.json"]
    subprocess.run(command, check=True, capture_output=True)
    groups = json.loads((tmp_path / "sr.json").read_text())["Measurements"]
    named = [
        [
            e["conceptValue"]["CodeMeaning"]
            for e in g["qualitativeEvaluations"]
            if e["conceptCode"]["CodeValue"] == "landmark"
        ]
        for g in groups
    ]
    assert named == [["entry"], ["apex"], ["apex"]]
    scores = [
        float(m["value"])
        for g in groups
        for m in g["measurementItems"]
        if m["quantity"]["CodeMeaning"] == "Score"
    ]
    assert scores == pytest.approx([0.9, 0.8, 0.625])


@pytest.fixture
def cine(axial, write_series, tmp_path):
    """A multi-frame secondary capture of five frames."""

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
    return file


def test_points_of_a_clip_name_their_frames(cine, predict, tmp_path, dciodvfy):
    clip = open_video(cine)
    one = landmarks(2)
    path = write(tmp_path / "sr.dcm", clip.frame(0), predict, None, {1: one, 3: one.select([1])})
    assert dciodvfy(path) == []
    groups = highdicom.sr.srread(path).content.get_image_measurement_groups()
    items = [g.get_measurements()[0].referenced_coordinates[0] for g in groups]
    assert [int(i.ContentSequence[0].referenced_frame_numbers[0]) for i in items] == [2, 2, 2, 4]
    # SCOORD: column and row from the corner of the first pixel
    np.testing.assert_allclose(items[0].value, [[4.5 + 0.5, 7.25 + 0.5]])
    header = pydicom.dcmread(cine)
    reference = items[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedSOPInstanceUID == header.SOPInstanceUID
    assert reference.ReferencedSOPClassUID == header.SOPClassUID
    points = read_landmark_report(path)
    assert [len(points_on(points, clip.frame(n))) for n in range(5)] == [0, 3, 0, 1, 0]
    ((point, at),) = points_on(points, clip.frame(3))
    assert at == pytest.approx([10.0, 2.0]) and point.visible == HIDDEN


def test_a_card_reads_our_report_of_a_clip(cine, predict, tmp_path):
    one = landmarks(2)
    image = open_video(cine).frame(0)
    path = write(tmp_path / "cine" / "sr.dcm", image, predict, None, {1: one, 3: one.select([1])})
    shutil.move(cine, tmp_path / "cine" / "clip.dcm")
    dataset = card_of(
        tmp_path / "cine",
        {"id": "{id}-{frame}", "image": "clip.dcm", "reference": path.name, "frames": 2, "first_frame": 1},
        spacing="unknown",
    )
    found = [dataset.read(case)[1].landmarks for case in dataset.cases]
    assert len(found) == 2
    np.testing.assert_allclose(found[0].points[one.visible > 0], one.points[one.visible > 0], atol=1e-4)
    assert found[0].visible.tolist() == [[SEEN, SEEN], [0, HIDDEN]] and found[1].visible.tolist() == [
        [0, HIDDEN]
    ]


def card_of(folder, cases, *, spacing="file", **changes):
    """A card whose points are read from a report."""
    points = [
        {"name": t.name, "code": {"value": t.code.value, "scheme": "SCT", "meaning": t.code.meaning}}
        for t in TYPES
    ]
    rows = {"rows": [{"id": "a", "split": "train"}], "id": "{id}", "group": "a"}
    card = write_points_card(
        folder,
        cases=rows | cases,
        points=points,
        landmarks={"kind": "dicom_sr"} | changes,
        spacing={"source": spacing},
        modality="CT",
    )
    return open_dataset(card)


def foreign(path, headers, places, *, finding=None, site=None, tracking="1"):
    """A TID 1500 report as another program writes it, by highdicom: a group per point."""
    sr = highdicom.sr
    groups = [
        sr.PlanarROIMeasurementsAndQualitativeEvaluations(
            tracking_identifier=sr.TrackingIdentifier(uid=highdicom.UID(), identifier=tracking),
            referenced_region=place,
            finding_type=finding or codes.SCT.Lesion,
            finding_sites=None if site is None else [sr.FindingSite(anatomic_location=site)],
        )
        for place in places
    ]
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_person_context=sr.ObserverContext(
                observer_type=codes.DCM.Person,
                observer_identifying_attributes=sr.PersonObserverIdentifyingAttributes(name="A^B"),
            )
        ),
        procedure_reported=codes.LN.CTUnspecifiedBodyRegion,
        imaging_measurements=groups,
    )
    dataset = sr.Comprehensive3DSR(
        evidence=headers, content=report[0], series_instance_uid=highdicom.UID(), series_number=9,
        sop_instance_uid=highdicom.UID(), instance_number=1, manufacturer="Other",
    )  # fmt: skip
    dataset.save_as(path, enforce_file_format=True)
    return path


def on_slice(header, y, x):
    sr = highdicom.sr
    return sr.ImageRegion(
        graphic_type=sr.GraphicTypeValues.POINT,
        graphic_data=np.array([[x + 0.5, y + 0.5]]),
        source_image=sr.SourceImageForRegion(header.SOPClassUID, header.SOPInstanceUID),
    )


def test_a_card_reads_another_writers_points_on_the_slices_of_a_series(oblique, write_series, tmp_path):
    """A point on slice 2 has z = 2, whatever the order of files; its type is known by the site's code."""
    write_series(tmp_path / "series", oblique)
    image = read_dicom(tmp_path / "series")
    headers = [pydicom.dcmread(f) for f in image.source.files]
    foreign(
        tmp_path / "sr.dcm", headers, [on_slice(headers[2], 4.25, 6.0)],
        site=highdicom.sr.CodedConcept(APEX.value, APEX.scheme, APEX.meaning),
    )  # fmt: skip
    dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"})
    found = dataset.read(dataset.cases[0])[1].landmarks
    assert found.visible.tolist() == [[0, SEEN]]
    np.testing.assert_allclose(found.points[0, 1], [2, 4.25, 6.0], atol=1e-3)


def test_a_card_reads_points_in_space_by_their_tracking_identifier(axial, write_series, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    headers = [pydicom.dcmread(f) for f in image.source.files]

    def place(frame):
        return highdicom.sr.ImageRegion3D(
            graphic_type="POINT",
            graphic_data=by_dicom(headers[3], 4.0, 6.5)[None],
            frame_of_reference_uid=frame,
        )

    foreign(tmp_path / "sr.dcm", headers, [place(headers[0].FrameOfReferenceUID)], tracking="my point")
    with pytest.raises(InputError, match="the card has no point 'my point'"):
        dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"})
        dataset.read(dataset.cases[0])
    dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"}, names={"my point": "entry"})
    found = dataset.read(dataset.cases[0])[1].landmarks
    np.testing.assert_allclose(found.points[0, 0], [3, 4.0, 6.5], atol=1e-3)
    dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"}, left_out=["my point"])
    assert dataset.read(dataset.cases[0])[1].landmarks.count == 0
    # in another frame of reference the same numbers are another place
    foreign(tmp_path / "sr.dcm", headers, [place("1.2.826.99")], tracking="entry")
    dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"})
    with pytest.raises(InputError, match="another frame of reference"):
        dataset.read(dataset.cases[0])


def test_a_report_of_another_image_is_refused(axial, write_series, tmp_path):
    write_series(tmp_path / "series", axial)
    write_series(tmp_path / "other", axial, uid="1.2.826.4")
    others = [pydicom.dcmread(f) for f in read_dicom(tmp_path / "other").source.files]
    foreign(tmp_path / "sr.dcm", others, [on_slice(others[0], 4, 4)], tracking="entry")
    dataset = card_of(tmp_path, {"image": "series", "reference": "sr.dcm"})
    with pytest.raises(InputError, match="none of the report's 1 points refers to this image") as refused:
        dataset.read(dataset.cases[0])
    assert "1.2.826" not in str(refused.value)
    image = read_dicom(tmp_path / "series")
    for content, message in (
        (pydicom.dcmread(image.source.files[0]), "is not a DICOM structured report"),
        (pydicom.dcmread(tmp_path / "sr.dcm"), "holds no point"),
    ):
        if "ContentSequence" in content:
            content.ContentSequence = content.ContentSequence[:1]
        content.save_as(tmp_path / "sr.dcm", enforce_file_format=True)
        with pytest.raises(InputError, match=message):
            read_landmark_report(tmp_path / "sr.dcm")


def test_points_without_codes_are_said_to_have_none(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    label_map = LabelMap((), (PointType(name="tip"), TYPES[0]))
    assert WRITERS["landmarks_sr"].missing(image, label_map).startswith("the model's points tip have no code")
    assert not WRITERS["landmarks_sr"].missing(image, LabelMap((), TYPES))
    bare = Landmarks.of((PointType(name="tip"),), [[[1.0, 2.0, 3.0]]], [[SEEN]])
    with pytest.raises(ConfigError, match="point 'tip' has no code"):
        write(tmp_path / "sr.dcm", image, predict, bare)
    empty = Landmarks.empty(TYPES, 3)
    assert write(tmp_path / "none.dcm", image, predict, empty) is None
