"""Results in an archive: confirmed only if they are there as sent, through hangs, drops, refusals and repeats."""

import json
import logging
import pickle
import ssl
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pydicom
import pytest
from faulty import faulty, make_certificate

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.pacs.credentials import credentials
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.pacs.sameness import differences, digest_of
from clearmargin.pacs.web import open_session


@pytest.fixture
def proxy(orthanc):
    with faulty(orthanc.address) as running:
        yield running


def archive(proxy, **limits):
    quick = {"timeout_s": 1.0, "longest_s": 20.0, "failures": 100} | limits
    return DicomWeb(url=f"{proxy.address}/dicom-web", **quick)


def uids(files):
    return {str(pydicom.dcmread(f).SOPInstanceUID) for f in files}


def test_what_is_confirmed_is_there_as_it_was_sent(orthanc, files):
    place = DicomWeb(url=f"{orthanc.address}/dicom-web/")
    place.check()
    sent = place.send(files)
    assert {uid for uid, _ in sent} == uids(files) == set(orthanc.files())
    for file, (_, digest) in zip(files, sent, strict=True):
        assert digest == digest_of(pydicom.dcmread(file))
    assert place.send(files) == sent  # again: the same, once
    assert orthanc.count()["Instances"] == len(files)
    assert place.name == f"{orthanc.address}/dicom-web"


def test_an_object_larger_than_a_chunk(orthanc, files, tmp_path):
    dataset = pydicom.dcmread(files[0])
    dataset.Rows = dataset.Columns = 1200
    dataset.PixelData = bytes(range(256)) * (1200 * 1200 * 2 // 256)
    dataset.save_as(tmp_path / "large.dcm")
    assert len(DicomWeb(url=f"{orthanc.address}/dicom-web").send([tmp_path / "large.dcm"])) == 1


@pytest.mark.parametrize(
    "what", ["hang", "drop", "lose", "cut", "twice", 500, 502, 503, 429, 408, "404 after"], ids=str
)
@pytest.mark.parametrize("method", ["POST", "GET"])
def test_a_fault_that_passes_is_passed_over(orthanc, proxy, files, what, method):
    if (method, what) == ("POST", "404 after"):
        pytest.skip("a 404 to STOW is a refusal")
    proxy.first(2 if what != "hang" else 1, what, method)
    assert {uid for uid, _ in archive(proxy).send(files)} == uids(files)
    assert orthanc.count()["Instances"] == len(files)  # once each


@pytest.mark.parametrize("what", ["hang", "drop", "lose", "cut", 500, 429], ids=str)
def test_a_fault_that_stays_is_told_as_one_that_may_pass(proxy, files, what):
    proxy.fault = lambda method, path: what if method == "GET" else ""
    with pytest.raises(UnavailableError) as told:
        archive(proxy, timeout_s=0.5, tries=2).send(files[:1])
    assert proxy.count("GET") == 2
    assert not any(uid in str(told.value) for uid in uids(files))


def test_an_answer_that_drips_ends(proxy, files):
    proxy.fault = lambda method, path: "drip" if method == "GET" else ""
    with pytest.raises(UnavailableError, match="took more than"):
        archive(proxy, longest_s=0.3, tries=1, timeout_s=30).send(files[:1])


@pytest.mark.parametrize("status", [400, 404, 405, 413, 415])
def test_a_refusal_is_the_objects_and_is_not_tried_again(proxy, files, status):
    proxy.fault = lambda method, path: status
    with pytest.raises(InputError, match=str(status)) as told:
        archive(proxy).send(files)
    assert len(proxy.seen) == 1
    assert "Anna" not in str(told.value) and not any(uid in str(told.value) for uid in uids(files))


@pytest.mark.parametrize("status", [401, 403])
def test_not_let_in_is_no_fault_of_the_object(proxy, files, status):
    proxy.fault = lambda method, path: status
    with pytest.raises(ConfigError, match="CLEARMARGIN_PACS_TOKEN"):
        archive(proxy).send(files)


def test_redirects_are_not_followed(proxy, files):
    proxy.fault = lambda method, path: 307
    with pytest.raises(InputError, match="another address"):
        archive(proxy).send(files)


def test_a_dead_archive_does_not_cost_each_item_its_tries(proxy, files):
    proxy.fault = lambda method, path: 503
    place = archive(proxy, tries=2, failures=3, rest_s=3600)
    for _ in range(5):
        with pytest.raises(UnavailableError):
            place.send(files[:1])
    assert len(proxy.seen) == 3
    with pytest.raises(UnavailableError, match="not asked"):
        place.send(files[:1])
    assert len(proxy.seen) == 3


def test_after_its_rest_an_archive_is_asked_again(orthanc, proxy, files):
    proxy.first(3, 503)
    place = archive(proxy, tries=1, failures=3, rest_s=0)
    for _ in range(3):
        with pytest.raises(UnavailableError):
            place.send(files[:1])
    place.send(files[:1])
    proxy.first(2, 503)  # it counts anew
    for _ in range(2):
        with pytest.raises(UnavailableError):
            place.send(files[:1])
    place.send(files[:1])


def test_a_refusal_is_an_answer(proxy, files):
    place = archive(proxy, tries=1, failures=2, rest_s=3600)
    for status, error in (
        (503, UnavailableError),
        (413, InputError),
        (503, UnavailableError),
        (413, InputError),
    ):
        proxy.fault = lambda method, path, status=status: status
        with pytest.raises(error):
            place.send(files[:1])
    assert len(proxy.seen) == 4


def test_who_uses_no_archive_pays_for_none():
    code = "import sys, clearmargin.cli, clearmargin.batch, clearmargin.pacs.addresses; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"dicomweb_client", "pynetdicom", "tenacity"} & set(loaded)


def test_an_address_where_nobody_listens(files):
    with pytest.raises(UnavailableError, match="cannot be reached"):
        DicomWeb(url="http://127.0.0.1:9/dicom-web", tries=1).send(files)


def altered(files, **values):
    """Lets a proxy show an object with other values than were stored."""

    def alter(path, body):
        for file in files:
            for keyword, value in values.items():
                before = str(pydicom.dcmread(file).get(keyword)).encode()
                body = body.replace(before, value.ljust(len(before))[: len(before)].encode())
        return body

    return alter


def test_what_was_changed_on_the_way_is_not_confirmed(orthanc, proxy, files):
    proxy.alter = altered(files, ManufacturerModelName="Another")
    with pytest.raises(InputError, match="ManufacturerModelName") as told:
        archive(proxy).send(files[:1])
    assert "Another" not in str(told.value) and "Phantom" not in str(told.value)


def test_what_an_archive_may_rewrite_is_no_difference(proxy, files):
    proxy.alter = altered(files, PatientID="A")
    assert len(archive(proxy).send(files[:1])) == 1


def test_what_counts_as_the_same(files, tmp_path):
    one, other = (pydicom.dcmread(files[0]) for _ in range(2))
    other.PatientName, other.SpecificCharacterSet = "Somebody^Else", "ISO_IR 192"
    other.file_meta.ImplementationVersionName = "ANOTHER"
    assert digest_of(one) == digest_of(other) and differences(one, other) == []
    other.file_meta.TransferSyntaxUID = pydicom.uid.ImplicitVRLittleEndian
    other.save_as(tmp_path / "implicit.dcm")
    assert digest_of(pydicom.dcmread(tmp_path / "implicit.dcm")) == digest_of(one)
    pixels = bytearray(other.PixelData)
    pixels[5] ^= 1
    other.PixelData = bytes(pixels)
    assert differences(one, other) == ["PixelData"] and digest_of(one) != digest_of(other)
    for change in ({"SOPInstanceUID": "1.2.3"}, {"Rows": 17}, {"ImageType": ["A", "B"]}):
        third = pydicom.dcmread(files[0])
        for keyword, value in change.items():
            setattr(third, keyword, value)
        assert differences(one, third) == list(change) and digest_of(one) != digest_of(third)
    third = pydicom.dcmread(files[0])
    third.add_new(0x00091001, "LO", "private")
    assert differences(one, third) == ["private"]


def test_within_sequences_nothing_may_change(files):
    one, other = (pydicom.dcmread(files[0]) for _ in range(2))
    for dataset, name in ((one, "A"), (other, "B")):
        item = pydicom.Dataset()
        item.PatientID = name
        dataset.RequestAttributesSequence = [item]
    assert differences(one, other) == ["RequestAttributesSequence"]


def test_an_answer_that_lists_a_failure(proxy, files):
    def failing(code):
        item = {"00081155": {"vr": "UI", "Value": ["1.2.3"]}, "00081197": {"vr": "US", "Value": [code]}}
        content = json.dumps({"00081198": {"vr": "SQ", "Value": [item]}}).encode()
        return lambda path, body: body if "/series/" in path else content

    for code, error, words in (
        (0xA701, UnavailableError, "busy"),
        (0x0122, InputError, "SOP class not supported"),
        (0xA904, InputError, "does not match"),
        (0xC123, InputError, "0xC123"),
    ):
        proxy.alter = failing(code)
        with pytest.raises(error, match=words):
            archive(proxy, tries=1).send(files[:1])
    proxy.alter = failing(0x0111)  # it has it already, it says; what it shows decides
    assert len(archive(proxy).send(files[:1])) == 1


def test_secrets_are_sent_and_shown_nowhere(orthanc, proxy, files, monkeypatch, caplog):
    secret = "s3cret-t0ken"
    monkeypatch.setenv("CLEARMARGIN_PACS_TOKEN", secret)
    caplog.set_level(logging.DEBUG)
    place = archive(proxy, tries=1)
    place.send(files[:1])
    assert {h["Authorization"] for h in proxy.headers} == {f"Bearer {secret}"}
    proxy.fault = lambda method, path: 401
    with pytest.raises(ConfigError) as told:
        place.send(files[:1])
    shown = repr(place) + str(told.value) + repr(credentials()) + caplog.text
    assert secret not in shown and secret.encode() not in pickle.dumps(place)
    assert not any(uid in caplog.text for uid in uids(files))
    with pytest.raises(TypeError, match="pickled"):
        pickle.dumps(credentials())
    again = pickle.loads(pickle.dumps(place))
    assert again == place
    proxy.fault = lambda method, path: ""
    again.send(files[:1])


def test_a_user_and_a_password(proxy, files, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_PACS_USER", "reader")
    with pytest.raises(ConfigError, match="CLEARMARGIN_PACS_PASSWORD is not set"):
        archive(proxy).send(files[:1])
    monkeypatch.setenv("CLEARMARGIN_PACS_PASSWORD", "pässword")
    archive(proxy).send(files[:1])
    assert all(h["Authorization"].startswith("Basic ") for h in proxy.headers)


def test_a_private_file_of_credentials(monkeypatch, tmp_path):
    file = tmp_path / "pacs.txt"
    monkeypatch.setenv("CLEARMARGIN_PACS_FILE", str(file))
    with pytest.raises(ConfigError, match="cannot be read"):
        credentials()
    file.write_text("# the reading user\nuser = reader\npassword = a = b\n")
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        credentials()
    file.chmod(0o600)
    assert (credentials().user, credentials().password) == ("reader", "a = b")
    file.write_text("secret")
    with pytest.raises(ConfigError, match="line 1") as told:
        credentials()
    assert "secret" not in str(told.value)


@pytest.mark.parametrize(
    "url",
    ["ftp://pacs/dicom-web", "pacs", "https://u:p4ss@pacs/x", "https://pacs/x?key=p4ss", "http://pacs:x/"],
)
def test_addresses_that_are_none(url):
    with pytest.raises(ConfigError) as told:
        DicomWeb(url=url)
    assert "p4ss" not in str(told.value)


def test_credentials_go_over_tls_or_to_this_machine(files, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_PACS_TOKEN", "token")
    with pytest.raises(ConfigError, match="plain HTTP"):
        DicomWeb(url="http://pacs.invalid/dicom-web").send(files)


@pytest.fixture
def tls(tmp_path):
    """A TLS server with a certificate of its own making; it answers every request with an empty list."""
    certificate, key = make_certificate(tmp_path)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "application/dicom+json")
            self.end_headers()
            self.wfile.write(b"[]")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.handle_error = lambda *_: None  # the client hangs up on a certificate that it does not trust
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    yield f"https://localhost:{server.server_address[1]}/dicom-web", certificate
    server.shutdown()
    server.server_close()


def test_certificates_are_verified(tls):
    url, certificate = tls
    with pytest.raises(ConfigError, match="not trusted"):
        DicomWeb(url=url, tries=1).check()
    DicomWeb(url=url, ca_file=certificate, tries=1).check()
    with pytest.raises(ConfigError, match="no file"):
        DicomWeb(url=url, ca_file=Path("/nowhere/ca.pem")).check()


def test_a_proxy_of_the_environment_is_not_for_this_machine(monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.invalid:3128")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    how = {"ca_file": None, "most_bytes": 1, "longest_s": 1.0}
    assert open_session("https://pacs.invalid/x", **how).proxies["https"] == "http://proxy.invalid:3128"
    for host in ("127.0.0.1", "localhost", "[::1]"):
        assert open_session(f"https://{host}:8042/x", **how).proxies == {}
