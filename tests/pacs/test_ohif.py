"""What OHIF shows of a batch's results in an archive: the ledger's instances, and their axes as measurements."""

import csv
import time

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from viewer import find_chromium, find_ohif, page_of, serving_ohif

from clearmargin.batch import batch
from clearmargin.core import Code, Grid, Image, Landmarks, PointType, Provenance, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.landmark_report import write_landmark_report
from clearmargin.jobs.ledger import Ledger
from clearmargin.outputs.landmarks import landmark_rows
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger

SHAPE = (6, 96, 96)
SHOW = """([modality, words]) => {
  const shown = services.displaySetService.getActiveDisplaySets().find(
    d => d.Modality === modality && (d.SeriesDescription ?? '').includes(words));
  const viewport = services.viewportGridService.getActiveViewportId();
  services.viewportGridService.setDisplaySetsForViewports(
    services.hangingProtocolService.getViewportsRequireUpdate(viewport, shown.displaySetInstanceUID));
}"""
SEGMENTS = """() => {
  const held = cornerstoneTools.segmentation.state.getSegmentations()[0];
  if (!held) return null;
  const sizes = {};
  for (const id of held.representationData.Labelmap.imageIds) {
    const slice = cornerstone.cache.getImage(id);
    if (!slice) return null;
    for (const value of slice.voxelManager.getScalarData()) if (value) sizes[value] = (sizes[value] ?? 0) + 1;
  }
  const named = Object.values(services.segmentationService.getSegmentations()[0].segments).filter(Boolean);
  return named.map(s => [s.segmentIndex, s.label, sizes[s.segmentIndex] ?? 0]);
}"""
JUMP = """k => {
  const one = services.measurementService.getMeasurements()[k];
  services.measurementService.jumpToMeasurement(services.viewportGridService.getActiveViewportId(), one.uid);
}"""
SHOWN = """k => {
  const one = services.measurementService.getMeasurements()[k];
  return {tool: one.toolName, points: one.points, said: one.displayText.primary, finding: one.finding.CodeMeaning};
}"""


@pytest.fixture(scope="module")
def ohif(tmp_path_factory):
    pytest.importorskip("playwright", reason="pip install playwright")
    if find_chromium() is None:
        pytest.skip("no Chromium: apt-get install chromium")
    files = find_ohif(tmp_path_factory.mktemp("ohif"))
    if files is None:
        pytest.skip("no OHIF: npm pack @ohif/app@3.13.2, and CLEARMARGIN_OHIF=ohif-app-3.13.2.tgz")
    return files


def until(look, seconds=120):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        value = look()
        if value:
            return value
        time.sleep(0.5)
    raise AssertionError("OHIF did not show it in time")


def write_series(folder):
    """Two boxes and an ellipse, on pixels that are not square."""
    values = np.full((1, *SHAPE), -50, np.int16)
    y, x = np.mgrid[: SHAPE[1], : SHAPE[2]]
    values[0, 1:4][:, ((y - 30) / 14) ** 2 + ((x - 30) / 9) ** 2 < 1] = 390
    values[0, 2:5, 60:80, 50:85] = 390
    values[0, 3, 10:20, 70:74] = 390
    grid = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
    write_ct_series(folder, Image(pixels=values, grid=grid, source=Source(modality="CT")), 1, 1)
    return sorted(folder.iterdir())


def test_it_draws_the_instances_of_the_ledger_and_measures_their_axes(ohif, orthanc, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    files = write_series(tmp_path / "ct")
    orthanc.stow(files)
    out = tmp_path / "out"
    batch(
        [tmp_path / "ct"],
        out,
        Predictor(model=tmp_path),
        destinations=[DicomWeb(url=f"{orthanc.address}/dicom-web")],
        write=["default", "axes"],
        processes=0,
        track=False,
        least_free_gib=0,
    )
    ledger = Ledger(default_ledger(out))
    (item,) = ledger.items("done")
    ledger.close()
    rows = list(csv.DictReader((out / item.folder / "instances.csv").read_text().splitlines()))
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    with (
        serving_ohif(ohif, orthanc.address) as address,
        page_of(find_chromium(), f"{address}/viewer?StudyInstanceUIDs={study}") as page,
    ):
        ready = "() => window.services?.displaySetService?.getActiveDisplaySets()?.length === 4"
        page.wait_for_function(ready, timeout=120_000)
        until(lambda: page.evaluate("() => services.viewportGridService.getActiveViewportId()"))
        time.sleep(5)  # until the pictures are there
        page.evaluate(SHOW, ["SEG", "instances"])
        drawn = until(lambda: page.evaluate(SEGMENTS))
        assert drawn == [[k + 1, f"tumour {k + 1}", int(row["volume_voxels"])] for k, row in enumerate(rows)]
        page.evaluate(SHOW, ["SR", "axes"])
        count = "() => services.measurementService.getMeasurements().length"
        assert until(lambda: page.evaluate(count)) == len(rows) > 1
        for k, row in enumerate(rows):
            page.evaluate(JUMP, k)
            shown = until(lambda k=k: (one := page.evaluate(SHOWN, k))["said"] and one)
            long, short = (float(row[f"{name}_axis_mm"]) for name in ("long", "short"))
            assert (shown["tool"], shown["finding"]) == ("Bidirectional", "Tumor")
            assert shown["said"] == [f"L: {long:.1f} mm", f"W: {short:.1f} mm"]
            ends = np.array(shown["points"])
            np.testing.assert_allclose(np.linalg.norm(ends[0] - ends[1]), long, atol=1e-3)
            inside = [0.7 * (int(row["x_first"]) - 0.5), 0.7 * (int(row["x_last"]) + 0.5)]
            assert inside[0] - 1e-3 <= ends[:2, 0].min() and ends[:2, 0].max() <= inside[1] + 1e-3
        time.sleep(2)
        page.screenshot(path=tmp_path / "ohif.png")
    assert (tmp_path / "ohif.png").stat().st_size > 20_000


def test_it_shows_landmarks_as_probes_at_their_places(ohif, orthanc, tmp_path):
    """Both points of a report, in mm of the patient, with what they are; regions are not drawn by OHIF 3.13."""
    files = write_series(tmp_path / "ct")
    image = read_dicom(tmp_path / "ct")
    types = tuple(
        PointType(name=name, code=Code(value=value, scheme="SCT", meaning=meaning))
        for name, value, meaning in (
            ("apex", "13418002", "Apex of lung"),
            ("entry", "80891009", "Heart structure"),
        )
    )
    at = np.array([[[3, 30.0, 40.0], [2, 60.0, 70.0]]])
    spread = np.broadcast_to(np.diag([0.3, 4.0, 9.0]), (1, 2, 3, 3))
    one = Landmarks(
        types=types, points=at, visible=[[2, 1]], scores=[[0.9, 0.8]], areas=[np.nan],
        covariance=spread, regions=6 * spread,
    )  # fmt: skip
    made_by = Provenance(model="heatmap", weights_sha256="a" * 64, config_sha256="b" * 64, software="tests")
    path = write_landmark_report(tmp_path / "sr.dcm", one, landmark_rows(one, image.grid), made_by, image)
    orthanc.stow([*files, path])
    study = pydicom.dcmread(files[0]).StudyInstanceUID
    with (
        serving_ohif(ohif, orthanc.address) as address,
        page_of(find_chromium(), f"{address}/viewer?StudyInstanceUIDs={study}") as page,
    ):
        ready = "() => window.services?.displaySetService?.getActiveDisplaySets()?.length === 2"
        page.wait_for_function(ready, timeout=120_000)
        until(lambda: page.evaluate("() => services.viewportGridService.getActiveViewportId()"))
        time.sleep(5)  # until the pictures are there
        page.evaluate(SHOW, ["SR", "landmarks"])
        count = "() => services.measurementService.getMeasurements().length"
        assert until(lambda: page.evaluate(count)) == 2
        seen = "m => [m.toolName, m.points[0], m.finding.CodeMeaning]"
        shown = page.evaluate(f"() => services.measurementService.getMeasurements().map({seen})")
    assert [(tool, finding) for tool, _, finding in shown] == [
        ("Probe", "Apex of lung"), ("Probe", "Heart structure")
    ]  # fmt: skip
    np.testing.assert_allclose([place for _, place, _ in shown], image.grid.to_world(at[0]), atol=1e-3)
