"""OHIF, served over an archive by one small server of this machine, and a Chromium that shows it."""

import contextlib
import functools
import http.client
import json
import os
import shutil
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

VERSION = "3.13.2"
_CHROMIUM = ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome")


def find_chromium():
    """The browser; None if there is none."""
    return next((p for p in _CHROMIUM if Path(p).is_file()), shutil.which("chromium"))


def find_ohif(folder):
    """The folder of OHIF's files, unpacked into ``folder`` from npm's package; None if it cannot be had."""
    packed = os.environ.get("CLEARMARGIN_OHIF", "")
    if not packed or not Path(packed).is_file():
        return None
    with tarfile.open(packed) as package:
        package.extractall(folder, filter="data")
    return folder / "package" / "dist"


def configuration():
    """What OHIF is told: one archive, at its own address."""
    root = "/dicom-web"
    source = {
        "namespace": "@ohif/extension-default.dataSourcesModule.dicomweb",
        "sourceName": "archive",
        "configuration": {
            "friendlyName": "Orthanc",
            "name": "Orthanc",
            "wadoUriRoot": root,
            "qidoRoot": root,
            "wadoRoot": root,
            "qidoSupportsIncludeField": False,
            "supportsReject": False,
            "imageRendering": "wadors",
            "thumbnailRendering": "wadors",
            "enableStudyLazyLoad": True,
            "supportsFuzzyMatching": False,
            "supportsWildcard": True,
            "dicomUploadEnabled": False,
            "omitQuotationForMultipartRequest": True,
        },
    }
    told = {
        "routerBasename": None,
        "extensions": [],
        "modes": [],
        "customizationService": {},
        "showStudyList": True,
        "maxNumberOfWebWorkers": 1,
        "showWarningMessageForCrossOrigin": False,
        "showCPUFallbackMessage": False,
        "strictZSpacingForVolumeViewport": True,
        "defaultDataSourceName": "archive",
        "disableConfirmationPrompts": True,
        "dataSources": [source],
    }
    return f"window.config = {json.dumps(told)};\n".encode()


@contextlib.contextmanager
def serving_ohif(files, archive):
    """The address of OHIF over an archive's DICOMweb."""
    upstream = urlsplit(archive)

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            if self.path.startswith("/dicom-web"):
                self._pass_on()
            elif self.path.startswith("/app-config.js"):
                self._say(200, "text/javascript", configuration())
            else:
                if not (files / self.path.split("?")[0].lstrip("/")).is_file():
                    self.path = "/index.html"  # it routes itself
                super().do_GET()

        def _pass_on(self):
            connection = http.client.HTTPConnection(upstream.hostname, upstream.port, timeout=60)
            headers = {k: v for k, v in self.headers.items() if k in ("Accept", "Content-Type")}
            connection.request("GET", self.path, headers=headers)
            answer = connection.getresponse()
            self._say(answer.status, answer.headers.get("Content-Type", ""), answer.read())
            connection.close()

        def _say(self, status, kind, content):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def end_headers(self):
            self.send_header("Cross-Origin-Opener-Policy", "same-origin")
            self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
            super().end_headers()

        def handle(self):
            with contextlib.suppress(OSError):
                super().handle()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(files)))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextlib.contextmanager
def page_of(chromium, address):
    """A page of the browser (Playwright)."""
    from playwright.sync_api import sync_playwright

    flags = ["--no-sandbox", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=chromium, args=[*flags, "--ignore-gpu-blocklist"]
        )
        page = browser.new_page(viewport={"width": 1500, "height": 900})
        page.goto(address)
        yield page
        browser.close()
