"""A real Orthanc on this machine for the length of a test, and the few requests that tests make of it."""

from __future__ import annotations

import contextlib
import email
import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

INSTALL = "apt-get install orthanc orthanc-dicomweb"
_PLUGINS = (
    Path("/usr/share/orthanc/plugins"),
    Path("/usr/lib/orthanc"),
    Path("/usr/local/share/orthanc/plugins"),
)
# A proxy of the environment must not see what is meant for this machine.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def find_orthanc() -> tuple[Path, Path] | None:
    """The server and its DICOMweb plug-in; None where either is missing."""
    server = shutil.which("Orthanc") or shutil.which("Orthanc", path="/usr/sbin:/usr/local/sbin")
    plugins = [file for folder in _PLUGINS for file in sorted(folder.glob("libOrthancDicomWeb.so*"))]
    return (Path(server), plugins[0]) if server and plugins else None


class Orthanc:
    """A running server by its address."""

    def __init__(self, address: str, dicom_port: int = 0) -> None:
        self.address = address
        self.dicom_port = dicom_port

    def get(self, path: str, accept: str = "*/*") -> bytes:
        return self._ask(urllib.request.Request(self.address + path, headers={"Accept": accept}))

    def get_json(self, path: str) -> Any:
        return json.loads(self.get(path, "application/json"))

    def post(self, file: Path) -> dict[str, Any]:
        """Store one file by REST; the answer says ``Success`` or ``AlreadyStored``."""
        request = urllib.request.Request(
            f"{self.address}/instances", file.read_bytes(), {"Content-Type": "application/dicom"}
        )
        answer: dict[str, Any] = json.loads(self._ask(request))
        return answer

    def stow(self, files: Sequence[Path]) -> dict[str, Any]:
        """Store files by STOW-RS (PS3.18, 10.5)."""
        boundary = b"clear-margin-part"
        parts = [
            b"--%b\r\nContent-Type: application/dicom\r\n\r\n%b\r\n" % (boundary, f.read_bytes())
            for f in files
        ]
        kind = f'multipart/related; type="application/dicom"; boundary={boundary.decode()}'
        request = urllib.request.Request(
            f"{self.address}/dicom-web/studies",
            b"".join(parts) + b"--%b--\r\n" % boundary,
            {"Content-Type": kind, "Accept": "application/dicom+json"},
        )
        answer: dict[str, Any] = json.loads(self._ask(request))
        return answer

    def wado(self, study: str) -> list[bytes]:
        """Fetch a study's objects by WADO-RS as they are stored (PS3.18, 10.4)."""
        request = urllib.request.Request(
            f"{self.address}/dicom-web/studies/{study}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
        )
        with _direct.open(request, timeout=300) as answer:
            head = f"Content-Type: {answer.headers['Content-Type']}\r\n\r\n".encode()
            message = email.message_from_bytes(head + answer.read())
        return [bytes(part.get_payload(decode=True)) for part in message.get_payload()]

    def files(self) -> dict[str, bytes]:
        """Every stored object as the server keeps it, by SOP instance UID."""
        tags = {i: self.get_json(f"/instances/{i}/simplified-tags") for i in self.get_json("/instances")}
        return {said["SOPInstanceUID"]: self.get(f"/instances/{i}/file") for i, said in tags.items()}

    def count(self) -> dict[str, int]:
        said = self.get_json("/statistics")
        return {level: said[f"Count{level}"] for level in ("Patients", "Studies", "Series", "Instances")}

    def empty(self) -> None:
        for patient in self.get_json("/patients"):
            self._ask(urllib.request.Request(f"{self.address}/patients/{patient}", method="DELETE"))

    def _ask(self, request: urllib.request.Request) -> bytes:
        with _direct.open(request, timeout=300) as answer:
            content: bytes = answer.read()
        return content


@contextlib.contextmanager
def running_orthanc(
    folder: Path, server: Path, plugin: Path, titles: Sequence[str] = (), *, port: int = 104, **allowed: bool
) -> Iterator[Orthanc]:
    """Start a server that keeps its files in ``folder``, and end it whatever happens.

    With AE titles it speaks DIMSE, too, as ORTHANC, to these alone, which it expects at ``port``; ``AllowGet=False``
    and the like are said of them.
    """
    for _ in range(3):  # another process may take the port between our look and the server's
        web = free_port()
        dicom = free_port() if titles else 0
        peers = {t: {"AET": t, "Host": "127.0.0.1", "Port": port, **allowed} for t in titles}
        process = _start(folder, server, plugin, web, dicom, peers)
        try:
            if _answers(process, f"http://127.0.0.1:{web}"):
                yield Orthanc(f"http://127.0.0.1:{web}", dicom)
                return
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    raise RuntimeError(f"Orthanc did not start: {(folder / 'log').read_text()[-1000:]}")


def _start(
    folder: Path,
    server: Path,
    plugin: Path,
    port: int,
    dicom: int,
    peers: Mapping[str, Any],
) -> subprocess.Popen[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    configuration = {
        "Name": "Clear Margin's test",
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        # It listens on every interface whatever HttpBindAddresses says: this refuses all but this machine.
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": False,
        "DicomServerEnabled": bool(dicom),
        "DicomPort": dicom or 4242,
        "DicomAet": "ORTHANC",
        "DicomCheckCalledAet": True,
        "DicomCheckModalityHost": True,
        "DicomModalities": peers,
        "DicomAlwaysAllowEcho": False,
        "DicomAlwaysAllowStore": False,
        "OverwriteInstances": False,
        "StableAge": 1,
        "Plugins": [str(plugin)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "config.json").write_text(json.dumps(configuration))
    with (folder / "log").open("wb") as log:
        return subprocess.Popen([server, folder / "config.json"], stdout=log, stderr=log, cwd=folder)


def _answers(process: subprocess.Popen[bytes], address: str) -> bool:
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            Orthanc(address).get("/dicom-web/studies")
            return True
        time.sleep(0.05)
    return False


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
