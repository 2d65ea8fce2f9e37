"""A report names each instance's volume, score and uncertainty, and the segment they are measured on."""

from __future__ import annotations

import highdicom
import numpy as np
import pydicom
import pytest

from clearmargin.core import Code
from clearmargin.errors import InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.formats.dicom.parametric_map import write_parametric_map
from clearmargin.formats.dicom.seg import write_dicom_seg
from clearmargin.formats.dicom.structured_report import Quantity, write_structured_report
from clearmargin.metrics.diameters import slice_axes
from clearmargin.report.quantities import measured_quantities


@pytest.fixture
def written(axial, write_series, predict, tmp_path):
    write_series(tmp_path / "series", axial)
    image = read_dicom(tmp_path / "series")
    prediction = predict(image)
    write_dicom_seg(tmp_path / "seg.dcm", prediction, image)
    return image, prediction


def test_what_is_measured_is_read_back(written, tmp_path, dciodvfy):
    image, prediction = written
    margin = Quantity(
        name=Code(value="margin", scheme="99CLEARMARGIN", meaning="Margin"),
        unit=Code(value="mm", scheme="UCUM", meaning="millimeter"),
        values=np.array([1.5, np.nan, 2.0, 2.5]),
    )
    quantities = [*measured_quantities(prediction), margin]
    write_structured_report(tmp_path / "sr.dcm", prediction, image, tmp_path / "seg.dcm", quantities)
    assert dciodvfy(tmp_path / "sr.dcm") == []
    groups = highdicom.sr.srread(tmp_path / "sr.dcm").content.get_volumetric_roi_measurement_groups()
    seg = pydicom.dcmread(tmp_path / "seg.dcm")
    assert len(groups) == 4
    for k, group in enumerate(groups):
        values = {m.name.meaning: m.value for m in group.get_measurements()}
        assert values["Volume"] == pytest.approx(
            prediction.instances.masks[k].area * 2.5 * 0.8 * 0.8, rel=1e-5
        )
        axes = slice_axes(prediction.instances.masks[k].crop, (2.5, 0.8, 0.8))
        assert (values["Long axis"], values["Short axis"]) == pytest.approx(axes, rel=1e-5)
        assert values["Score"] == pytest.approx(float(prediction.instances.scores[k]), rel=1e-5)
        assert values["Mean entropy"] == pytest.approx(0.1 * (k + 1), rel=1e-5)
        assert ("Margin" in values) == (k != 1)
        assert group.tracking_uid == seg.SegmentSequence[k].TrackingUID
        assert group.referenced_segment.referenced_sop_instance_uid == seg.SOPInstanceUID
        assert group.finding_type.meaning == ("Liver" if k == 0 else "Neoplasm")


def test_the_same_report_is_the_same_file(written, tmp_path):
    image, prediction = written
    for name in ("a.dcm", "b.dcm"):
        write_structured_report(tmp_path / name, prediction, image, tmp_path / "seg.dcm")
    assert (tmp_path / "a.dcm").read_bytes() == (tmp_path / "b.dcm").read_bytes()


def test_other_objects_do_not_depend_on_whether_a_report_was_written(axial, write_series, predict, tmp_path):
    """They share the source's headers; the source is an MR, which highdicom is not shown as one."""
    write_series(tmp_path / "series", axial, change=_as_mr)
    written = []
    for folder, with_report in (("a", False), ("b", True)):
        (tmp_path / folder).mkdir()
        image = read_dicom(tmp_path / "series")
        prediction = predict(image)
        write_dicom_seg(tmp_path / folder / "seg.dcm", prediction, image)
        if with_report:
            write_structured_report(tmp_path / "sr.dcm", prediction, image, tmp_path / folder / "seg.dcm")
        write_parametric_map(tmp_path / folder / "map.dcm", prediction, "entropy", image)
        written.append((tmp_path / folder / "map.dcm").read_bytes())
    assert written[0] == written[1]
    report = pydicom.dcmread(tmp_path / "sr.dcm")
    evidence = {
        str(item.ReferencedSOPClassUID)
        for series in report.CurrentRequestedProcedureEvidenceSequence[0].ReferencedSeriesSequence
        for item in series.ReferencedSOPSequence
    }
    assert _MR in evidence and len(evidence) == 2  # and the SEG's


_MR = "1.2.840.10008.5.1.4.1.1.4"


def _as_mr(dataset, _):
    dataset.Modality, dataset.SOPClassUID = "MR", _MR


def test_a_seg_of_another_prediction_is_refused(written, predict, tmp_path):
    image, prediction = written
    fewer = type(prediction)(
        instances=prediction.instances.select([0, 1]),
        label_map=prediction.label_map,
        provenance=prediction.provenance,
    )
    with pytest.raises(InputError, match="4 segments, the prediction 2 instances"):
        write_structured_report(tmp_path / "sr.dcm", fewer, image, tmp_path / "seg.dcm")
