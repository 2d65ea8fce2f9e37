"""A series is chosen by number, UID, modality or words, without ambiguity."""

from __future__ import annotations

import pytest

from clearmargin.core import Grid
from clearmargin.errors import InputError
from clearmargin.formats.dicom.images import read_dicom
from clearmargin.inspection import inspect_path


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
