"""Series from an archive by DIMSE: C-FIND, then C-GET or C-MOVE to a port of ours; and what goes wrong."""

import contextlib
import pickle
import socket
import ssl
import tempfile
from pathlib import Path

import numpy as np
import pydicom
import pytest
from bright import bright_segmenter
from command import command
from faulty import make_certificate
from pacs import INSTALL, find_orthanc, free_port, running_orthanc
from pynetdicom import AE, AllStoragePresentationContexts, evt

from clearmargin.batch import batch
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.pacs.archive import digest_of_uids
from clearmargin.pacs.dimse import Dimse
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger

# pynetdicom leaves the socket of a refused connection to the garbage collector.
pytestmark = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <socket.socket:pytest.PytestUnraisableExceptionWarning"
)
SHAPE = (5, 48, 48)
GRID = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
SERIES = 2


@pytest.fixture(autouse=True)
def own_places(monkeypatch, tmp_path):
    monkeypatch.setattr(
        "clearmargin.sampling.samples.load_segmenter", lambda *_, **__: bright_segmenter(0, 400)
    )
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


@pytest.fixture
def tree(tmp_path):
    for number in range(1, SERIES + 1):
        values = np.full((1, *SHAPE), -50, np.int16)
        values[0, 1:4, 12:30, 8 + number : 28 + number] = 390
        image = Image(pixels=values, grid=GRID, source=Source(modality="CT"))
        write_ct_series(tmp_path / "studies" / str(number), image, number, 1)
    return tmp_path / "studies"


@pytest.fixture(scope="module")
def moving(tmp_path_factory):
    """An Orthanc that knows us at a port, and offers C-MOVE alone."""
    programs = find_orthanc()
    if programs is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    port = free_port()
    folder = tmp_path_factory.mktemp("moving")
    with running_orthanc(folder, *programs, titles=["CLEARMARGIN"], port=port, AllowGet=False) as running:
        running.ours = port
        yield running


def by_get(server, query="", **limits):
    return Dimse(
        url=f"dimse://ORTHANC@127.0.0.1:{server.dicom_port}{query}", timeout_s=5.0, tries=2, **limits
    )


def by_move(server, query="", **limits):
    return by_get(server, f"?move={server.ours}{query}", **limits)


@pytest.fixture(params=["get", "move"])
def source(request, tree):
    """An archive that holds the tree's series, and its server."""
    server = request.getfixturevalue("server" if request.param == "get" else "moving")
    server.empty()
    server.stow(sorted(tree.glob("*/*")))
    return (by_get if request.param == "get" else by_move)(server), server


def run(sources, out, **options):
    how = {"processes": 0, "track": False, "least_free_gib": 0} | options
    return batch(sources, out, Predictor(model=Path("any")), **how)


def segs(out):
    return {p.parent.parent.name: p.read_bytes() for p in out.glob("case-*/current/seg.dcm")}


def fetch(archive, folder, missing=0, count=None):
    series = next(iter(archive.list_series()))
    uids = archive.list_instances(series)
    folder.mkdir(exist_ok=True)
    return archive.fetch_series(
        series.study,
        series.uid,
        folder,
        count=len(uids) - missing if count is None else count,
        digest=digest_of_uids(uids[missing:]),
    )


def test_series_by_dimse_give_what_the_same_files_give(source, tree, tmp_path):
    archive, _ = source
    out = tmp_path / "out"
    report = run([archive.url], out)
    assert report.counts["done"] == SERIES == report.new
    run([tree], tmp_path / "folder")
    assert segs(out) == segs(tmp_path / "folder") and len(segs(out)) == SERIES
    again = run([archive.url], out)
    assert (again.new, again.known) == (0, SERIES)
    assert not list((tmp_path / "tmp").glob("clearmargin-*"))


def test_what_it_lists_and_reads(source, tree):
    archive, _ = source
    assert pickle.loads(pickle.dumps(archive)) == archive
    headers = [pydicom.dcmread(f) for f in sorted(tree.glob("*/*"))]
    series = list(archive.list_series(["Modality", "SeriesDescription"]))
    assert {(s.study, s.uid) for s in series} == {(h.StudyInstanceUID, h.SeriesInstanceUID) for h in headers}
    for one in series:
        uids = [str(h.SOPInstanceUID) for h in headers if h.SeriesInstanceUID == one.uid]
        assert archive.list_instances(one) == tuple(sorted(uids))
        assert one.attributes["Modality"] == "CT"
        said = archive.read_attributes(one, uids[0])
        assert (said["SliceThickness"], said["Rows"]) == (5, SHAPE[1])


def test_studies_are_chosen_in_the_address(server, tree):
    for file in tree.glob("1/*"):
        dataset = pydicom.dcmread(file)
        dataset.PatientID = "P-ONE"
        dataset.save_as(file)
    server.empty()
    server.stow(sorted(tree.glob("*/*")))
    archive = by_get(server, "?PatientID=P-ONE&calling=OURS")
    assert [s.study for s in archive.list_series()] == [dataset.StudyInstanceUID]
    assert list(by_get(server, "?StudyDate=19000101").list_series()) == []
    assert "P-ONE" not in archive.name + repr(archive.address)


def test_series_are_selected_by_attributes_that_no_query_returns(server, tree, tmp_path):
    server.empty()
    server.stow(sorted(tree.glob("*/*")))
    rules = tmp_path / "rules.yaml"
    for text, taken in (
        ("take: [{SliceThickness: {at_most: 5}, slices: {at_least: 5}}]", SERIES),
        ("take: [{ConvolutionKernel: NONE}]", 0),
    ):
        rules.write_text(text)
        report = run([by_get(server).url], tmp_path / "out", select=rules, dry_run=True)
        assert report.left_out.not_selected == SERIES - taken, text


def test_a_series_is_whole_or_not_at_all(source, tmp_path, monkeypatch):
    archive, _ = source
    assert len(fetch(archive, tmp_path / "f")) == SHAPE[0] == len(list((tmp_path / "f").iterdir()))
    with pytest.raises(InputError, match="grown"):
        fetch(archive, tmp_path / "f", missing=1)
    with pytest.raises(UnavailableError, match=f"{SHAPE[0]} of {SHAPE[0] + 1}"):
        fetch(archive, tmp_path / "f", count=SHAPE[0] + 1)
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.00001")
    with pytest.raises(InputError, match="CLEARMARGIN_MAX_GIB"):
        fetch(archive, tmp_path / "f")


def test_what_is_not_allowed_is_said_with_the_way_out(moving, server, tree, tmp_path):
    for one in (moving, server):
        one.empty()
        one.stow(sorted(tree.glob("*/*")))
    with pytest.raises((ConfigError, UnavailableError), match="C-GET"):
        fetch(by_get(moving), tmp_path / "f")
    # The server knows us, but at a port where nobody is.
    with pytest.raises((UnavailableError, InputError, ConfigError), match="C-MOVE"):
        fetch(by_get(server, f"?move={free_port()}"), tmp_path / "f")
    with pytest.raises(ConfigError, match="AE title"):
        list(by_get(server, "?calling=STRANGER").list_series())


def test_a_port_that_is_taken_is_said_before_any_work(moving, tmp_path):
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind(("127.0.0.1", moving.ours))
        other.listen()
        with pytest.raises(ConfigError, match=f"port {moving.ours} .* is taken"):
            by_move(moving).check()
    code, said = command(
        "batch", "dimse://A@127.0.0.1:9?move=no", "--model", tmp_path, "--out", tmp_path / "o"
    )
    assert code == 2 and "?move=11113" in said


def test_two_workers_that_move_take_turns(moving, tree, tmp_path):
    from concurrent.futures import ThreadPoolExecutor

    moving.empty()
    moving.stow(sorted(tree.glob("*/*")))
    with ThreadPoolExecutor(4) as pool:
        fetched = list(pool.map(lambda k: fetch(by_move(moving), tmp_path / str(k)), range(4)))
    assert [len(f) for f in fetched] == [SHAPE[0]] * 4


class Peer:
    """An archive of pynetdicom's that lists and sends what a test tells it to."""

    def __init__(self, files):
        self.datasets = [pydicom.dcmread(f) for f in files]
        self.listed = lambda dataset: dataset
        self.sent = self.datasets
        self.endless = False

    def find(self, event):
        wanted = event.identifier
        unique = {"STUDY": "StudyInstanceUID", "SERIES": "SeriesInstanceUID", "IMAGE": "SOPInstanceUID"}
        seen = set()
        for dataset in self.datasets:
            said = pydicom.Dataset()
            for element in wanted:
                if element.keyword in dataset:
                    said[element.tag] = dataset[element.tag]
            name = dataset[unique[wanted.QueryRetrieveLevel]].value
            if name not in seen:
                seen.add(name)
                yield 0xFF00, self.listed(said)

    def get(self, event):
        yield len(self.sent)
        for dataset in self.sent:
            yield 0xFF00, dataset


@contextlib.contextmanager
def running_peer(files, certificate=None):
    peer, entity = Peer(files), AE(ae_title="PEER")
    for context in AllStoragePresentationContexts[:100]:
        entity.add_supported_context(context.abstract_syntax, scp_role=True, scu_role=True)
    for number in (1, 3):
        entity.add_supported_context(f"1.2.840.10008.5.1.4.1.2.2.{number}")
    tls = None
    if certificate is not None:
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls.load_cert_chain(*certificate)
    handlers = [(evt.EVT_C_FIND, peer.find), (evt.EVT_C_GET, peer.get)]
    running = entity.start_server(("127.0.0.1", 0), block=False, evt_handlers=handlers, ssl_context=tls)
    peer.port = running.socket.getsockname()[1]
    yield peer
    running.shutdown()


@pytest.fixture
def peer(tree):
    with running_peer(sorted((tree / "1").iterdir())) as running:
        yield running


def at(peer, **limits):
    return Dimse(url=f"dimse://PEER@127.0.0.1:{peer.port}", timeout_s=5.0, tries=1, **limits)


def test_over_tls_with_a_certificate_that_is_verified(tree, tmp_path):
    certificate, key = make_certificate(tmp_path)
    with running_peer(sorted((tree / "1").iterdir()), (certificate, key)) as peer:
        url = f"dimse+tls://PEER@localhost:{peer.port}"
        with pytest.raises(UnavailableError, match="certificate"):
            list(Dimse(url=url, tries=1, timeout_s=5.0).list_series())
        assert len(fetch(Dimse(url=url, timeout_s=5.0, ca_file=certificate), tmp_path / "f")) == SHAPE[0]


@pytest.mark.parametrize("uid", ["../../etc/passwd", "1.2/3", "1.2\\1.3", "1" * 64 + "1"])
def test_what_is_no_uid_becomes_no_query_and_no_path(peer, uid, tmp_path):
    def renamed(said):
        for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
            if keyword in said:
                said[keyword]._value = uid
        return said

    peer.listed = renamed
    with pytest.raises((InputError, UnavailableError)) as told:
        list(at(peer).list_series())
    assert uid not in str(told.value)


def test_objects_whose_uid_is_a_path_are_not_kept(peer, tmp_path):
    hostile = pydicom.dcmread(next(iter((tmp_path / "studies" / "1").iterdir())))
    hostile["SOPInstanceUID"]._value = "../../../evil"
    archive = at(peer)
    (series,) = archive.list_series()
    uids = archive.list_instances(series)
    peer.sent = [hostile, *peer.datasets[1:]]
    (tmp_path / "f").mkdir()
    with pytest.raises((UnavailableError, InputError)):
        archive.fetch_series(
            series.study, series.uid, tmp_path / "f", count=len(uids), digest=digest_of_uids(uids)
        )
    assert not list(tmp_path.rglob("*evil*"))


def test_an_object_larger_than_the_limit_is_cut_off_on_the_way(peer, tmp_path, monkeypatch):
    archive = at(peer)
    (series,) = archive.list_series()
    uids = archive.list_instances(series)
    big = pydicom.dcmread(next(iter((tmp_path / "studies" / "1").iterdir())))
    big.PixelData = bytes(40_000_000)
    peer.sent = [big]
    (tmp_path / "f").mkdir()
    monkeypatch.setenv("CLEARMARGIN_MAX_GIB", "0.001")
    with pytest.raises((UnavailableError, InputError)):
        archive.fetch_series(
            series.study, series.uid, tmp_path / "f", count=len(uids), digest=digest_of_uids(uids)
        )
    assert list((tmp_path / "f").iterdir()) == []


def test_the_command_reads_from_dimse(server, tree, tmp_path):
    server.empty()
    server.stow(sorted(tree.glob("*/*")))
    arguments = ("--model", tmp_path, "--out", tmp_path / "out", "--dry-run")
    code, said = command("batch", "dimse://ORTHANC@127.0.0.1:9", *arguments)
    assert code == 4 and "cannot be reached" in said
    code, said = command("batch", f"dimse://WRONG@127.0.0.1:{server.dicom_port}", *arguments)
    assert code == 2 and "AE title" in said
    assert not default_ledger(tmp_path / "out").exists()
