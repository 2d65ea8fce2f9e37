"""The verb `compare`, and the page that leads from nnU-Net's output to the table of a paper."""

import csv
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from command import command
from madeup import careless, make_predictions, steady
from scipy.stats import ttest_1samp

from clearmargin.compare import compare, render
from clearmargin.errors import ConfigError, InputError
from clearmargin.measure import measure
from clearmargin.metrics.tables import CaseRow, rows_csv
from clearmargin.runs import rows_of_tables

PAGE = Path(__file__).parents[1] / "docs" / "paper.md"


def row(patient, k, dice, status="tp", surface="surface", size=10.0):
    about = {
        "reference_id": str(k) if status != "fp" else None,
        "reference_volume_mm3": size,
        "surface": surface,
    }
    return CaseRow(
        group=patient, case=f"case-{patient}", status=status, unit="mm", ndim=3, values={"dice": dice},
        strata={"class": "a", "size": "small"}, about=about,
    )  # fmt: skip


def tables(folder, rows):
    folder.mkdir()
    (folder / "instances.csv").write_text(rows_csv(rows))
    return folder


def by_metric(done):
    return {found.metric: found for found in done.sets.metrics}


def test_false_positives_of_one_tool_do_not_break_the_pairs(tmp_path):
    rng = np.random.default_rng(0)
    patients = [f"p{k:02}" for k in range(30)]
    base = [row(p, k, 0.8 + 0.01 * rng.standard_normal()) for p in patients for k in (1, 2)]
    better = [row(r.group, r.about["reference_id"], r.values["dice"] + 0.05) for r in base]
    better = [row(p, 9, 0.0, "fp") for p in patients[:20]] + better[::-1]
    done = compare([tables(tmp_path / "a", base), tables(tmp_path / "b", better)])
    found = by_metric(done)
    assert (done.sets.objects, done.sets.cases) == (60, 30)
    assert (found["dice"].verdict, found["false_positives"].verdict) == ("better", "worse")
    assert found["detected"].verdict == "not distinguishable"
    assert found["dice"].comparison.difference.estimate == pytest.approx(0.05)
    assert found["false_positives"].value == pytest.approx(20 / 30)
    assert "| b | dice |" in render(done)
    swapped = by_metric(compare([tmp_path / "b", tmp_path / "a"]))
    assert (swapped["dice"].verdict, swapped["false_positives"].verdict) == ("worse", "better")


def test_p_values_are_students_over_patients_and_holm_is_over_all_tools(tmp_path):
    rng = np.random.default_rng(1)
    patients = [f"p{k:02}" for k in range(12)]
    noise = {name: rng.normal(0, 0.05, (12, 2)) for name in "abc"}
    for name in "abc":
        rows = [row(p, k, 0.7 + noise[name][i, k]) for i, p in enumerate(patients) for k in (0, 1)]
        tables(tmp_path / name, rows)
    done = compare([tmp_path / name for name in "abc"], out=tmp_path / "out")
    gaps = (noise["b"] - noise["a"]).mean(axis=1)
    found = next(f for f in done.sets.metrics if (f.name, f.metric) == ("b", "dice"))
    assert found.comparison.p_value == pytest.approx(ttest_1samp(gaps, 0).pvalue)
    assert len(done.sets.metrics) == 6
    assert found.comparison.p_adjusted >= found.comparison.p_value
    lines = list(csv.DictReader((tmp_path / "out" / "comparison.csv").read_text().splitlines()))
    assert {line["verdict"] for line in lines} == {"not distinguishable"}


def test_what_cannot_be_compared_is_refused(tmp_path):
    good = tables(tmp_path / "a", [row("p", 1, 0.5), row("q", 1, 0.5)])
    for name, rows, why in (
        ("b", [row("r", 1, 0.5)], "none is in both"),
        ("c", [row("p", 1, 0.5, size=12.0), row("q", 1, 0.5)], "measured against different references"),
        ("d", [row("p", 1, 0.5, surface="subvoxel")], "different surface models"),
        ("e", [row("p", 1, 0.5), row("p", 1, 0.6)], "two rows for one reference"),
    ):
        with pytest.raises(InputError, match=why):
            compare([good, tables(tmp_path / name, rows)])
    with pytest.raises(ConfigError, match="one alone"):
        compare([good])
    with pytest.raises(InputError, match=r"no instances\.csv"):
        compare([good, tmp_path])
    with pytest.raises(ConfigError, match="a name of its own"):
        compare([good, good])
    (tmp_path / "instances.csv").write_text("a,b\n1,2\n")
    assert command("compare", good, tmp_path)[0] == 4
    partly = tables(tmp_path / "f", [row("p", 1, 0.5)])
    assert compare([good, partly]).sets.left_out == {"a": (1, ("case-q",)), "f": (0, ())}


def test_tables_are_read_back_as_they_were_written(tmp_path):
    rows = [row("p", 1, 0.25), row("p", 2, 0.0, "fn"), row("q", 3, 0.0, "fp")]
    again = rows_of_tables(tables(tmp_path / "a", rows))
    assert [(r.group, r.status, r.values, r.about, r.strata) for r in again] == [
        (r.group, r.status, r.values, r.about, r.strata) for r in rows
    ]


def test_the_page_for_papers_runs_as_it_stands(tmp_path, data_root, monkeypatch):
    """nnU-Net's folders from real references and two made-up tools; every command of the page, in its order."""
    source = data_root / "hippocampus_mr"
    with (source / "index.csv").open() as lines:
        cases = [line["id"] for line in csv.DictReader(lines) if line["split"] == "test"][:12]
    reference = tmp_path / "Dataset004_Hippocampus" / "labelsTs"
    reference.mkdir(parents=True)
    for case in cases:
        (reference / f"{case}.nii.gz").symlink_to(source / "labels" / f"{case}.nii.gz")
    names = {"labels": {"background": 0, "anterior": 1, "posterior": 2}, "file_ending": ".nii.gz"}
    (reference.parent / "dataset.json").write_text(json.dumps(names))
    make_predictions(reference, tmp_path / "nnunet_output", cases, steady, 1)
    make_predictions(reference, tmp_path / "other_tool", cases, careless, 2)
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    calls = [
        line
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.startswith("clearmargin")
    ]
    assert len(calls) >= 4
    for line in calls:
        code, said = command(*shlex.split(line)[1:])
        assert code == 0, said
    promised = set(re.findall(r"`(tables\S*/[\w.*/-]+|comparison/[\w.]+)`", PAGE.read_text()))
    assert promised
    for name in promised:
        assert list(tmp_path.glob(name)), name
    lines = list(csv.DictReader((tmp_path / "tables_nnunet" / "paper.csv").read_text().splitlines()))
    assert [line["class"] for line in lines if line["metric"] == "dice"] == [
        "anterior",
        "posterior",
        "foreground mean",
    ]
    found = measure(tmp_path / "nnunet_output", reference)
    expected = np.mean([r.values["dice"] for r in found.rows if r.strata["class"] == "anterior"])
    assert float(lines[0]["mean"]) == pytest.approx(expected)
    verdicts = list(csv.DictReader((tmp_path / "comparison" / "comparison.csv").read_text().splitlines()))
    assert {line["metric"]: line["verdict"] for line in verdicts}["dice"] == "worse"
    assert all(
        (tmp_path / "tables_nnunet" / "figures" / f"{n}.png").stat().st_size > 5000
        for n in ("pairs", "volumes")
    )
    assert r"\toprule" in (tmp_path / "tables_nnunet" / "paper.tex").read_text()
