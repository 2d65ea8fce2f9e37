"""Batches from an archive and into it: every series once, through faults, kills, growth, another run and retry."""

import os
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from command import command
from faulty import faulty

from clearmargin.batch import batch
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.worker import Limits
from clearmargin.pacs.archive import ArchivedSeries, digest_of_uids
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.fetched import Fetched, sweep_fetched
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger

SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
SERIES = 3


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def write(folder, number):
    values = np.full((1, *SHAPE), -50, np.int16)
    values[0, 1:4, 12:30, 8 + number : 28 + number] = 390
    write_ct_series(folder, Image(pixels=values, grid=GRID, source=Source(modality="CT")), number, 1)
    return sorted(folder.iterdir())


@pytest.fixture
def tree(tmp_path):
    for number in range(1, SERIES + 1):
        write(tmp_path / "studies" / str(number), number)
    return tmp_path / "studies"


@pytest.fixture
def orthanc(server, tree):
    """A server that holds the tree's series."""
    server.empty()
    server.stow(sorted(tree.glob("*/*")))
    return server


@pytest.fixture
def proxy(orthanc):
    with faulty(orthanc.address) as running:
        yield running


def place(server, **limits):
    return DicomWeb(url=f"{server.address}/dicom-web", **({"timeout_s": 5.0, "failures": 100} | limits))


def run(sources, out, **options):
    how = {"processes": 0, "track": False, "least_free_gib": 0} | options
    return batch(sources, out, Predictor(model=Path("any")), **how)


def listed(server, **wanted):
    """What a QIDO query lists: modality and the number of series per study."""
    rows = server.get_json("/dicom-web/series?limit=1000")
    studies = {}
    for row in rows:
        modality = row["00080060"]["Value"][0]
        studies.setdefault(row["0020000D"]["Value"][0], []).append(modality)
    return studies


def check_once(server, out, done=SERIES):
    """Exactly one SEG and one SR, of one object each, for every series that the ledger calls done."""
    ledger = Ledger(default_ledger(out))
    assert ledger.counts()["done"] == done
    assert len(ledger.sent()) == len({uid for _, uid, _ in ledger.sent()}) >= 2 * done
    sent = {uid for _, uid, _ in ledger.sent()}
    kept = {
        row["00080018"]["Value"][0]
        for row in server.get_json("/dicom-web/instances?limit=1000&includefield=00080060")
        if row["00080060"]["Value"][0] != "CT"
    }
    assert kept == sent
    ledger.close()
    for modalities in listed(server).values():
        assert sorted(modalities) == ["CT", "SEG", "SR"]
    assert len(listed(server)) == done


def segs(out):
    return {p.parent.parent.name: p.read_bytes() for p in out.glob("case-*/current/seg.dcm")}


def nothing_left():
    return not list(Path(tempfile.gettempdir()).glob("clearmargin-*"))


def test_series_of_an_archive_give_what_the_same_files_give(orthanc, tree, tmp_path):
    url = f"{orthanc.address}/dicom-web"
    report = run([url], tmp_path / "out")
    assert report.counts["done"] == SERIES and report.new == SERIES
    run([tree], tmp_path / "folder")
    assert segs(tmp_path / "out") == segs(tmp_path / "folder") and len(segs(tmp_path / "out")) == SERIES
    assert nothing_left()
    assert (run([url], tmp_path / "out").new, run([url], tmp_path / "out").known) == (0, SERIES)


def test_the_crosswalk_says_where_a_case_lies(orthanc, tmp_path):
    run([f"{orthanc.address}/dicom-web"], tmp_path / "out")
    ledger = Ledger(default_ledger(tmp_path / "out"))
    case = next(iter(ledger.items())).case_id
    ledger.close()
    assert f"{orthanc.address}/dicom-web/studies/" in command("cases", case)[1]


def test_a_series_that_grows_in_the_archive(server, tree, tmp_path):
    server.empty()
    files = sorted((tree / "1").iterdir())
    server.stow(files[:-1])
    url = f"{server.address}/dicom-web"
    run([url], tmp_path / "out")
    server.stow(files[-1:])
    report = run([url], tmp_path / "out")
    assert report.new == 1 and report.counts["done"] == 2
    ledger = Ledger(default_ledger(tmp_path / "out"))
    (current,) = ledger.items(current=True)
    assert current.predecessor is not None
    ledger.close()


def test_what_batches_wrote_is_no_input(orthanc, tmp_path):
    url = f"{orthanc.address}/dicom-web"
    run([url], tmp_path / "out", destinations=[place(orthanc)], write=["seg", "sr", "rtstruct"])
    report = run([url], tmp_path / "out", write=["seg", "sr", "rtstruct"])
    assert report.new == 0 and report.left_out.no_picture == 3 * SERIES
    assert run([url], tmp_path / "another").new == SERIES


def test_selected_by_what_the_archive_lists_and_by_what_it_does_not(orthanc, tree, tmp_path):
    url, rules = f"{orthanc.address}/dicom-web", tmp_path / "rules.yaml"
    for text, taken in (
        ("take: [{Modality: CT, SeriesDescription: {matches: Phantom}}]", SERIES),
        ("take: [{SliceThickness: {at_most: 5}, slices: {at_least: 5}}]", SERIES),
        ("take: [{SliceThickness: {at_most: 4}}]", 0),
        ("skip: [{files: {at_least: 5}}]", 0),
        ("take: [{ConvolutionKernel: SYNTHETIC, ImageType: {matches: AXIAL}}]", SERIES),
    ):
        rules.write_text(text)
        report = run([url], tmp_path / "out", select=rules, dry_run=True)
        assert report.left_out.not_selected == SERIES - taken, text
    rules.write_text("take: [{kind: volume}]")
    with pytest.raises(ConfigError, match="'kind'"):
        run([url], tmp_path / "out", select=rules)


def test_every_page_is_read(orthanc, proxy, tmp_path):
    archive = place(proxy)
    everything = {s.uid for s in archive.list_series()}
    assert len(everything) == SERIES
    assert [s.uid for s in archive.list_series(page=1)] == [s.uid for s in archive.list_series(page=2)]
    series = next(iter(archive.list_series()))
    assert len(archive.list_instances(series, page=2)) == SHAPE[0]
    content = orthanc.get("/dicom-web/series?limit=2")
    proxy.alter = lambda path, body: content  # the same page for ever
    assert len({s.uid for s in archive.list_series(page=2)}) == 2


def fetch(archive, folder, missing=0):
    series = next(iter(archive.list_series()))
    uids = archive.list_instances(series)
    folder.mkdir(exist_ok=True)
    return archive.fetch_series(
        series.study,
        series.uid,
        folder,
        count=len(uids) - missing,
        digest=digest_of_uids(uids[missing:]),
    )


@pytest.mark.parametrize("what", ["hang", "drop", "lose", "cut", 500, 503, 429], ids=str)
def test_fetching_passes_over_faults_and_is_whole_or_not_at_all(proxy, tmp_path, what):
    proxy.fault = failing(1, what)
    files = fetch(place(proxy, timeout_s=1.0), tmp_path / "fetched")
    assert len(files) == SHAPE[0] == len(list((tmp_path / "fetched").iterdir()))
    proxy.fault = failing(100, what)
    with pytest.raises(UnavailableError):
        fetch(place(proxy, timeout_s=0.3, tries=2), tmp_path / "fetched")


def failing(number, what):
    """Lets so many fetches of a series fail."""
    left = [number]

    def fault(method, path):
        if path.split("?")[0].count("/") == 5 and left[0]:
            left[0] -= 1
            return what
        return ""

    return fault


def test_an_answer_with_fewer_objects_is_not_the_series(proxy, tmp_path):
    def halved(path, body):
        if path.count("/") != 5:
            return body
        end = body.rindex(b"\r\n--", 0, -10)
        start = body.rindex(b"\r\n--", 0, end)
        return body[:start] + body[end:]

    proxy.alter = halved
    with pytest.raises(UnavailableError, match=f"{SHAPE[0] - 1} of {SHAPE[0]} objects"):
        fetch(place(proxy, tries=2), tmp_path / "fetched")


def test_other_objects_than_were_listed_are_refused(orthanc, tmp_path):
    with pytest.raises(InputError, match="grown"):
        fetch(place(orthanc), tmp_path / "fetched", missing=1)


def test_a_series_larger_than_the_limit_is_refused(orthanc, tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.00001")
    with pytest.raises(InputError, match="CLEARMARGIN_MAX_GIB"):
        fetch(place(orthanc), tmp_path / "fetched")


@pytest.mark.parametrize("uid", ["../../../etc", "1.2/3", "", "1" * 65, "1..2", "1.2?x"])
def test_what_is_no_uid_is_asked_for_nowhere(proxy, uid):
    answer = f'[{{"0020000D":{{"vr":"UI","Value":["1.2"]}},"0020000E":{{"vr":"UI","Value":["{uid}"]}}}}]'
    proxy.alter = lambda path, body: answer.encode()
    with pytest.raises(InputError, match="is none") as told:
        list(place(proxy).list_series())
    assert not uid or uid not in str(told.value)


def test_an_address_that_is_no_archive(proxy):
    proxy.alter = lambda path, body: b"<html>welcome</html>"
    with pytest.raises(UnavailableError, match="address"):
        list(place(proxy, tries=1).list_series())


def test_fetched_files_are_private_and_go_with_their_holder():
    held = Fetched()
    assert held.path.stat().st_mode & 0o777 == 0o700
    assert sweep_fetched() == 0 and held.path.is_dir()  # we live
    path = held.path
    del held
    assert not path.exists()
    code = "import os, signal; from clearmargin.pacs.fetched import Fetched; f = Fetched(); print(f.path, flush=True); "
    killed = subprocess.run(
        [sys.executable, "-c", code + "os.kill(os.getpid(), signal.SIGKILL)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert Path(killed.stdout.strip()).is_dir()
    assert sweep_fetched() == 1 and nothing_left()


def test_a_series_that_cannot_be_used_leaves_no_file(server, tree, tmp_path):
    server.empty()
    files = sorted((tree / "1").iterdir())
    server.stow(files[:2] + files[3:])
    report = run([f"{server.address}/dicom-web"], tmp_path / "out")
    assert report.failures == {"GeometryError": 1} and nothing_left()


def test_results_are_in_the_archive_once(orthanc, tmp_path):
    out, url = tmp_path / "out", f"{orthanc.address}/dicom-web"
    report = run([url], out, destinations=[place(orthanc)])
    assert report.counts["done"] == SERIES
    check_once(orthanc, out)
    run([url], out, destinations=[place(orthanc)])
    check_once(orthanc, out)


@pytest.mark.parametrize("what", ["hang", "drop", "lose", "cut", "twice", 500], ids=str)
def test_results_are_in_the_archive_once_through_faults(orthanc, proxy, tree, tmp_path, what):
    asked = [0]

    def fault(method, path):
        asked[0] += 1
        return what if asked[0] % 3 == 1 else ""

    proxy.fault = fault
    run([tree], tmp_path / "out", destinations=[place(proxy, timeout_s=1.0, tries=5)])
    check_once(orthanc, tmp_path / "out")


def test_an_archive_that_refuses_is_a_reason_and_retry_sends(orthanc, proxy, tree, tmp_path):
    out = tmp_path / "out"
    proxy.fault = lambda method, path: 413 if method == "POST" else ""
    report = run([tree], out, destinations=[place(proxy)])
    assert report.counts["refused"] == SERIES and report.failures == {"InputError": SERIES}
    ledger = Ledger(default_ledger(out))
    assert ledger.sent() == [] and all("413" in i.reason for i in ledger.items("refused"))
    ledger.close()
    proxy.fault = lambda method, path: ""
    assert command("batch", "retry", out, "--refused")[0] == 0
    run([tree], out, destinations=[place(proxy)])
    check_once(orthanc, out)


def test_an_item_is_not_done_before_the_archive_shows_it(orthanc, proxy, tree, tmp_path, monkeypatch):
    monkeypatch.setattr("clearmargin.predicting.prepared.Limits", partial(Limits, backoff_s=0.01))
    proxy.fault = lambda method, path: 404 if method == "GET" else ""  # it takes all, and shows none
    report = run([tree], tmp_path / "out", destinations=[place(proxy, tries=1)])
    assert report.counts["done"] == 0 and report.failures == {"UnavailableError": SERIES}


def test_what_was_done_before_a_destination_was_named_is_sent(orthanc, proxy, tree, tmp_path):
    out = tmp_path / "out"
    run([tree], out)
    proxy.fault = lambda method, path: 500
    report = run([tree], out, destinations=[place(proxy, tries=1)])
    assert len(report.unsent) == SERIES and all("500" in why for why in report.unsent.values())
    proxy.fault = lambda method, path: ""
    report = run([tree], out, destinations=[place(proxy)])
    assert report.unsent == {} and report.new == 0
    check_once(orthanc, out)


def test_two_destinations(orthanc, proxy, tree, tmp_path):
    run([tree], tmp_path / "out", destinations=[place(proxy), place(orthanc)])
    ledger = Ledger(default_ledger(tmp_path / "out"))
    sent = ledger.sent()
    ledger.close()
    assert len(sent) == 2 * len({uid for _, uid, _ in sent}) and len({to for *_, to in sent}) == 2


SCRIPT = """
import sys
from pathlib import Path
from bright import bright_segmenter
import clearmargin.sampling.samples as sampling
sampling.load_segmenter = lambda *_, **__: bright_segmenter(0, 400)
from clearmargin.batch import batch
from clearmargin.pacs.archive import ArchivedSeries, digest_of_uids
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.predicting.predictor import Predictor
source, out, url = sys.argv[1:]
batch([source], Path(out), Predictor(model=Path("any")), processes=0, track=False, least_free_gib=0,
      destinations=[DicomWeb(url=url, timeout_s=30)])
"""


@pytest.mark.slow
def test_results_are_in_the_archive_once_after_kills_at_any_request(orthanc, proxy, tmp_path):
    """``kill -9`` while an object is stored, after it was stored, while it is read back, and after."""
    out, url = tmp_path / "out", f"{proxy.address}/dicom-web"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])}
    # Before and after the archive has taken it: a second object, a first one, and a read back.
    for method, nth, stored in (("POST", 2, False), ("POST", 1, True), ("GET", 1, True)):
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT, f"{orthanc.address}/dicom-web", str(out), url], env=environment
        )
        proxy.lost = process.kill
        asked = []

        def fault(by, path, *, process=process, method=method, nth=nth, stored=stored, asked=asked):
            asked += [by] if by == method else []
            if by != method or len(asked) != nth:
                return ""
            if not stored:
                process.kill()
            return "lose" if stored else "drop"

        proxy.fault = fault
        assert process.wait(timeout=300) == -signal.SIGKILL
    proxy.fault = lambda method, path: ""
    run([f"{orthanc.address}/dicom-web"], out, destinations=[place(proxy)])
    check_once(orthanc, out)
    assert nothing_left()


def test_the_command_sends_and_refuses_what_is_no_archive(orthanc, tree, tmp_path):
    code, said = command(
        "batch", tree, "--model", tmp_path, "--out", tmp_path / "o", "--to", "http://127.0.0.1:9/x"
    )
    assert code == 4 and "cannot be reached" in said
    code, said = command("batch", tree, "--model", tmp_path, "--out", tmp_path / "o", "--to", "nonsense")
    assert code == 2 and "https://" in said
    code, said = command("batch", "ftp://somewhere", "--model", tmp_path, "--out", tmp_path / "o")
    assert code == 2 and "https://" in said


def test_a_series_whose_uid_says_nothing_is_shown_by_no_repr():
    series = ArchivedSeries(study="1.2.3", uid="1.2.4", attributes={"PatientName": "Anna"})
    assert "1.2" not in repr(series) and "Anna" not in repr(series)


@pytest.mark.parametrize("split", ["volumes", "pictures"])
def test_a_series_of_several_volumes_or_pictures_is_refused(server, tree, tmp_path, split):
    server.empty()
    for number, file in enumerate(sorted((tree / "1").iterdir())):
        dataset = pydicom.dcmread(file)
        if split == "volumes":
            dataset.AcquisitionNumber = 1
            dataset.save_as(file)
            dataset.AcquisitionNumber = 2
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = (
                dataset.SOPInstanceUID + ".2"
            )
            dataset.save_as(file.with_name(f"second-{file.name}"))
        else:
            for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID"):
                del dataset[keyword]
            dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
            dataset.Modality, dataset.InstanceNumber = "CR", number + 1
            dataset.save_as(file)
    server.stow(sorted((tree / "1").iterdir()))
    report = run([f"{server.address}/dicom-web"], tmp_path / "out")
    assert report.counts["refused"] == 1 and nothing_left()


@pytest.mark.parametrize("at", ["source", "destination"])
def test_it_pauses_while_an_archive_is_away_and_no_item_fails_for_it(
    orthanc, proxy, tmp_path, monkeypatch, at
):
    monkeypatch.setattr("clearmargin.jobs.worker._LOOK_AGAIN_S", 0.1)
    monkeypatch.setattr(
        "clearmargin.predicting.prepared.Limits", partial(Limits, backoff_s=0.01, most_tries=2)
    )
    quick = {"tries": 1, "failures": 2, "rest_s": 0.2, "timeout_s": 1.0}
    away, reasons, begun = [False], [], [0]

    def fault(method, path):
        fetches_or_stores = method == "POST" if at == "destination" else path.split("?")[0].count("/") == 5
        begun[0] += fetches_or_stores
        away[0] = away[0] or (begun[0] == 2 and not reasons)
        return "drop" if away[0] else ""

    def told(event):
        if event.reason.startswith("paused"):
            reasons.append(event.reason)
            away[0] = len(reasons) < 5
        elif event.reason.startswith("what was away"):
            reasons.append(event.reason)

    proxy.fault = fault
    monkeypatch.setattr(
        "clearmargin.batch.archive_at", lambda url, _: place(proxy if at == "source" else orthanc, **quick)
    )
    destination = place(proxy if at == "destination" else orthanc, **quick)
    report = run(
        [f"{orthanc.address}/dicom-web"], tmp_path / "out", destinations=[destination], on_event=told
    )
    assert report.counts["done"] == SERIES and report.failures == {}
    assert len(reasons) >= 6 and "paused" in reasons[0] and proxy.address in reasons[0]
    assert "back" in reasons[-1]
    ledger = Ledger(default_ledger(tmp_path / "out"))
    assert {item.tries for item in ledger.items()} == {1}
    ledger.close()
    check_once(orthanc, tmp_path / "out")
