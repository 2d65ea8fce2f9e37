"""Batches: every study once or listed with the reason; again, changed, grown, split and selected."""

import csv
import json
import re
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter

from clearmargin.batch import batch
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError
from clearmargin.files import draft_of
from clearmargin.formats import read_image
from clearmargin.formats.dicom.seg import read_dicom_seg
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.jobs.ledger import Ledger
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger
from clearmargin.predicting.results import verify, withdraw

SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))


@pytest.fixture(autouse=True)
def bright(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))


def pixels(first=10):
    values = np.full((1, *SHAPE), -50, np.int16)
    values[0, 1:4, 12:30, first : first + 20] = 390
    return values


def series(folder, number, first=10):
    write_ct_series(folder, Image(pixels=pixels(first), grid=GRID, source=Source(modality="CT")), number, 1)
    return folder


@pytest.fixture
def tree(tmp_path):
    """Two series in folders of their own, two in one, one in a zip, a volume, a picture; and what is none of these."""
    root = tmp_path / "studies"
    series(root / "a" / "ct", 1)
    series(root / "b" / "ct", 2, 12)
    series(root / "mixed", 3, 14)
    for k, file in enumerate(sorted(series(tmp_path / "other", 4, 16).iterdir())):
        shutil.copy(file, root / "mixed" / f"other-{k}.dcm")
    (root / "packed").mkdir()
    with zipfile.ZipFile(root / "packed" / "study.zip", "w") as archive:
        for file in sorted(series(tmp_path / "zipped", 5, 18).iterdir()):
            archive.write(file, file.name)
    write_volume(root / "volume.nii.gz", pixels()[0], GRID)
    write_raster(root / "picture.png", np.full((32, 32), 20, np.uint8))
    (root / "notes.txt").write_text("Anna Canary")
    (root / "broken.dcm").write_bytes(b"\0" * 128 + b"DICM" + b"junk" * 50)
    series(root / "gap", 6)
    sorted((root / "gap").iterdir())[2].unlink()
    return root


def run(tree, out, *, score_threshold=None, **options):
    predictor = Predictor(model=Path("any"), score_threshold=score_threshold)
    return batch([tree], out, predictor, processes=0, track=False, least_free_gib=0, **options)


def results(out):
    return {p.parent.name: p for p in out.glob("case-*/current")}


def state_of(out):
    files = [p for p in out.glob("case-*/*/*") if p.is_file() and not p.parent.is_symlink()]
    return {str(p.relative_to(out)): (p.stat().st_mtime_ns, p.read_bytes()) for p in files}


def test_every_input_is_done_or_listed(tree, tmp_path):
    report = run(tree, tmp_path / "out")
    assert (report.counts["done"], report.counts["refused"], report.counts["failed"]) == (7, 1, 0)
    assert report.left_out.other_files == 1 and len(report.left_out.unreadable) == 1
    ledger = Ledger(default_ledger(tmp_path / "out"))
    (refused,) = ledger.items("refused")
    assert refused.kind == "GeometryError" and "missing" in refused.reason
    text = json.dumps([i.reason for i in ledger.items()] + list(report.left_out.unreadable.values()))
    assert "Anna" not in text and str(tmp_path) not in text
    assert len(results(tmp_path / "out")) == 7
    assert verify(ledger, tmp_path / "out") == {}
    # what is in the folders is what predict finds: the bright box, in place
    for name in ("a/ct", "b/ct"):
        image = read_image(tree / name)
        seg = read_dicom_seg(tmp_path / "out" / image.source.case / "current" / "seg.dcm", grid=image.grid)
        np.testing.assert_array_equal(seg.masks[0].dense(), image.pixels[0] > 200)
    ledger.close()


def test_again_nothing_is_touched_and_changed_options_make_new_items(tree, tmp_path):
    out = tmp_path / "out"
    run(tree, out)
    before = state_of(out)
    report = run(tree, out)
    assert (report.new, report.known) == (0, 8) and state_of(out) == before
    links = {case: p.readlink() for case, p in results(out).items()}
    report = run(tree, out, score_threshold=0.1)
    assert report.new == 8 and report.counts["done"] == 7
    after = state_of(out)
    assert {name: after[name] for name in before} == before  # nothing is overwritten
    assert all(p.readlink() != links[case] for case, p in results(out).items())
    ledger = Ledger(default_ledger(out))
    assert len(list(ledger.items(current=True))) == 7
    summary = out / next(iter(links)) / "current" / "summary.json"
    named = json.loads(summary.read_text())["predecessor"]
    assert (
        named.startswith(summary.parent.parent.name + "/")
        and (summary.parents[2] / named / "summary.json").is_file()
    )
    assert not (summary.parents[2] / named).samefile(summary.parent)
    ledger.close()


def test_the_same_bytes_as_another_run(tree, tmp_path):
    run(tree, tmp_path / "a")
    run(tree, tmp_path / "b")
    one, two = ({n: c for n, (_, c) in state_of(tmp_path / k).items()} for k in "ab")
    assert one == two and any(n.endswith("seg.dcm") for n in one)


def test_a_series_that_grows_gets_a_second_result_and_one_is_current(tree, tmp_path):
    out, folder = tmp_path / "out", tree / "a" / "ct"
    last = sorted(folder.iterdir())[-1]
    shutil.move(last, tmp_path / last.name)
    run(tree, out)
    case = read_image(folder).source.case
    first = (out / case / "current").readlink()
    shutil.move(tmp_path / last.name, last)
    report = run(tree, out)
    assert report.new == 1
    assert (out / case / "current").readlink() != first and (out / case / first).is_dir()
    assert json.loads((out / case / "current" / "summary.json").read_text())["shape"][0] == SHAPE[0]
    ledger = Ledger(default_ledger(out))
    (current,) = [i for i in ledger.items(current=True) if i.case_id == case]
    assert current.predecessor is not None
    ledger.close()


def test_a_series_in_two_folders_is_one_item(tree, tmp_path):
    run(tree, tmp_path / "whole")
    case = read_image(tree / "a" / "ct").source.case
    (tree / "z").mkdir()
    for file in sorted((tree / "a" / "ct").iterdir())[3:]:
        shutil.move(file, tree / "z" / file.name)
    report = run(tree, tmp_path / "split")
    assert report.counts["done"] == 7
    one, two = (tmp_path / k / case / "current" / "seg.dcm" for k in ("whole", "split"))
    assert one.read_bytes() == two.read_bytes()


def test_a_file_that_changes_after_it_was_listed_is_not_taken_for_it(tree, tmp_path, monkeypatch):
    from clearmargin.predicting import items

    original, changed = items.open_input, []

    def late(source):
        file = Path(source["root"]) / source["names"][0]
        if not changed and file.suffix == ".png":
            changed.append(file)
            write_raster(file, np.full((32, 40), 20, np.uint8))
        return original(source)

    monkeypatch.setattr(items, "open_input", late)
    report = run(tree, tmp_path / "out")
    ledger = Ledger(default_ledger(tmp_path / "out"))
    assert report.counts["refused"] == 2
    assert any("has changed since it was listed" in i.reason for i in ledger.items("refused"))
    assert run(tree, tmp_path / "out").counts["done"] == 7
    ledger.close()


def test_selected_series_alone(tree, tmp_path):
    rules = tmp_path / "rules.yaml"
    rules.write_text(
        "take:\n  - Modality: CT\n    slices: {at_least: 5}\nskip:\n  - SeriesDescription: {matches: '(?i)nothing'}\n"
    )
    report = run(tree, tmp_path / "out", select=rules)
    assert report.left_out.not_selected == 1 and report.counts["refused"] == 0  # the one with a gap has four
    for text, message in (
        ("take: [{Modalty: CT}]", r"no attribute 'Modalty': did you mean 'Modality'"),
        ("take: [{SeriesDescription: {matches: '('}}]", "not a regular expression"),
        ("take: [{slices: {atleast: 3}}]", "atleast"),
        ("wanted: []", "wanted"),
    ):
        rules.write_text(text)
        with pytest.raises(ConfigError, match=message):
            run(tree, tmp_path / "out", select=rules)


def test_a_dry_run_does_nothing_and_says_how_long_it_would_take(tree, tmp_path):
    report = run(tree, tmp_path / "out", dry_run=True)
    assert report.counts["pending"] == report.new == 8 and report.expected_s is None
    assert not (tmp_path / "out").exists()
    run(tree, tmp_path / "out")
    series(tree / "more", 7)
    report = run(tree, tmp_path / "out", dry_run=True)
    assert (report.new, report.known) == (1, 8) and report.expected_s > 0
    ledger = Ledger(default_ledger(tmp_path / "out"))
    assert ledger.counts()["pending"] == 0  # nothing was added
    ledger.close()


def test_two_patients_of_one_plain_name_are_not_one_case(tmp_path, monkeypatch):
    """Two folders called ct: with plain names one is done, and the other is said; with keyed ones both are done."""
    root = tmp_path / "studies"
    series(root / "a" / "ct", 1)
    series(root / "b" / "ct", 2, 14)
    monkeypatch.setenv("CLEARMARGIN_NAMES", "plain")
    for _ in range(2):
        report = run(root, tmp_path / "out")
        assert report.counts["done"] == 1
        assert report.left_out.unreadable == {
            "ct": "another input is called so, too: leave out --names plain"
        }
    monkeypatch.delenv("CLEARMARGIN_NAMES")
    report = run(root, tmp_path / "out")
    assert report.counts["done"] == 3 and len(results(tmp_path / "out")) == 2


def test_wrong_and_withdrawn_results_have_a_way_back(tree, tmp_path):
    out = tmp_path / "out"
    run(tree, out)
    before = {name: content for name, (_, content) in state_of(out).items()}
    _, link = next(iter(results(out).items()))
    (link / "seg.dcm").unlink(missing_ok=True)
    (link / "instances.csv").write_text("changed")
    ledger = Ledger(default_ledger(out))
    assert len(verify(ledger, out, redo=True)) == 1 and ledger.counts()["pending"] == 1
    run(tree, out)
    assert verify(ledger, out) == {}
    assert {name: content for name, (_, content) in state_of(out).items()} == before
    withdraw(ledger, out)
    assert ledger.retry(states=("failed", "withdrawn")) == 7
    run(tree, out)
    assert len(results(out)) == 7
    ledger.close()


def test_shards_are_all_of_it_and_nothing_twice(tree, tmp_path):
    for k in (1, 2, 3):
        run(tree, tmp_path / "out", shard=(k, 3))
    folders = [p for p in (tmp_path / "out").glob("case-*/*") if not p.is_symlink()]
    assert len(folders) == 7 and len({p.parent.name for p in folders}) == 7
    with pytest.raises(ConfigError, match="1 <= i <= n"):
        run(tree, tmp_path / "out", shard=(4, 3))


def test_phases_are_items_of_their_own(tmp_path):
    root = series(tmp_path / "studies" / "ct", 1)
    for file in sorted(root.iterdir()):
        dataset = pydicom.dcmread(file)
        dataset.AcquisitionNumber = 1
        dataset.save_as(file)
        dataset.AcquisitionNumber = 2
        dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID + ".2"
        dataset.save_as(file.with_name(f"second-{file.name}"))
    report = run(tmp_path / "studies", tmp_path / "out")
    assert report.counts["done"] == 2 and len(results(tmp_path / "out")) == 2


def test_results_are_withdrawn(tree, tmp_path):
    out = tmp_path / "out"
    run(tree, out)
    ledger = Ledger(default_ledger(out))
    assert withdraw(ledger, out, weights_sha256="ffffff") == []
    assert len(withdraw(ledger, out, weights_sha256="000000")) == 7
    assert not results(out) and ledger.counts()["withdrawn"] == 7
    assert list(out.glob("case-*/*/seg.dcm"))  # files stay
    ledger.close()
    assert run(tree, out).counts["withdrawn"] == 7  # and are not made again by themselves


def test_a_changed_result_is_seen(tree, tmp_path):
    out = tmp_path / "out"
    run(tree, out)
    case, link = next(iter(results(out).items()))
    (link / "instances.csv").write_text("changed")
    ledger = Ledger(default_ledger(out))
    assert verify(ledger, out) == {f"{case}/{link.readlink()}": "instances.csv was changed"}
    ledger.close()


def test_drafts_and_links_of_killed_processes_are_mended(tree, tmp_path):
    out = tmp_path / "out"
    run(tree, out)
    case, link = next(iter(results(out).items()))
    target = link.readlink()
    dead = subprocess.Popen(["true"])
    dead.wait(timeout=60)
    killed = re.sub(r"-\d+-", f"-{dead.pid}-", draft_of(out / case / "abc").name)
    (out / case / killed).mkdir()
    (out / case / ".current.123").symlink_to("nowhere")
    link.unlink()
    link.symlink_to("elsewhere")
    run(tree, out)
    assert link.readlink() == target and {p.name for p in (out / case).iterdir()} == {str(target), "current"}


def test_an_output_that_an_input_cannot_have_is_refused(tree, tmp_path):
    report = run(tree / "a", tmp_path / "out", write=["coco"])
    assert report.counts["refused"] == 1 and report.failures == {"InputError": 1}


def test_an_output_that_this_prediction_does_not_allow_is_said_and_the_rest_is_done(
    tree, tmp_path, monkeypatch
):
    from clearmargin.errors import InputError
    from clearmargin.outputs.writers import WRITERS

    def refuse(*_):
        raise InputError("instances overlap")

    monkeypatch.setitem(WRITERS, "label_map_seg", replace(WRITERS["label_map_seg"], write=refuse))
    report = run(tree / "a", tmp_path / "out", write=["default", "label_map_seg"])
    assert report.counts["done"] == report.incomplete == 1
    (link,) = results(tmp_path / "out").values()
    assert (link / "seg.dcm").is_file() and not (link / "label_map_seg.dcm").exists()
    ledger = Ledger(default_ledger(tmp_path / "out"))
    (item,) = ledger.items("done")
    assert item.reason == "label_map_seg was not written: instances overlap"
    ledger.close()


def test_workers_keep_the_threads_of_the_first_batch(tree, tmp_path):
    """Sums depend on them in rounding, and UIDs on the sums."""
    from clearmargin.predicting.prepared import threads_of

    ledger = Ledger(tmp_path / "l.sqlite")
    first = threads_of(ledger, "r", 1)
    assert threads_of(ledger, "r", 100) == first and threads_of(ledger, "s", 10**6) == 1
    ledger.close()


def test_a_case_table_is_where_it_was_said(tree, tmp_path):
    run(tree, tmp_path / "out", write=["tables"])
    tables = list((tmp_path / "out").glob("case-*/current/instances.csv"))
    rows = [row for t in tables for row in csv.DictReader(t.read_text().splitlines())]
    assert len(tables) == 7 and len(rows) == 6  # nothing in the dark picture
    assert {row["case"] for row in rows} <= {t.parent.parent.name for t in tables}
