"""An HTTP proxy before a real archive, which hangs, drops, refuses, repeats and alters as a test tells it to."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Faulty:
    """A proxy on this machine; ``fault`` decides what becomes of each request.

    ``fault(method, path)`` returns "" (pass on), "hang" (say nothing), "drop" (close before passing on), "lose" (pass
    on, then close without an answer), "cut" (half an answer), "drip" (the answer byte by byte), "twice" (pass it on
    twice), "404 after" (pass on, and say 404), or a status.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = urlsplit(upstream)
        self.fault: Callable[[str, str], str | int] = lambda method, path: ""
        self.alter: Callable[[str, bytes], bytes] = lambda path, body: body
        self.lost: Callable[[], object] = lambda: None  # called before the answer is lost
        self.seen: list[tuple[str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.over = threading.Event()
        self.address = ""

    def first(self, number: int, what: str | int, method: str = "") -> None:
        """Let the first so many requests (of a method) go wrong."""
        left = [number]

        def fault(asked: str, path: str) -> str | int:
            if method in ("", asked) and left[0] > 0:
                left[0] -= 1
                return what
            return ""

        self.fault = fault

    def count(self, method: str) -> int:
        return sum(m == method for m, _ in self.seen)

    def pass_on(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection(self.upstream.hostname, self.upstream.port, timeout=60)
        try:
            connection.request(method, path, body or None, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers.get("Content-Type", ""), self.alter(path, answer.read())
        finally:
            connection.close()


def make_certificate(folder: Path) -> tuple[Path, Path]:
    """Return a certificate for localhost that nobody vouches for, and its key."""
    certificate, key = folder / "certificate.pem", folder / "key.pem"
    made = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    made += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run(made, check=True, capture_output=True)
    return certificate, key


@contextlib.contextmanager
def faulty(upstream: str) -> Iterator[Faulty]:
    proxy = Faulty(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 60  # of each read of a client that says no more

        def _body(self) -> bytes:
            if self.headers.get("Transfer-Encoding", "") == "chunked":
                parts = []
                while size := int(self.rfile.readline(), 16):
                    parts.append(self.rfile.read(size))
                    self.rfile.readline()
                self.rfile.readline()
                return b"".join(parts)
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))

        def _drop(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def _answer(self) -> None:
            proxy.seen.append((self.command, self.path))
            proxy.headers.append(dict(self.headers))
            what = proxy.fault(self.command, self.path)
            body = self._body()
            if what == "hang":
                proxy.over.wait(60)
            if what in ("hang", "drop"):
                self._drop()
                return
            if isinstance(what, int):
                self._say(what, "text/plain", b"Anna Canary was here", what)
                return
            kept = ("Accept", "Content-Type")
            headers = {k: v for k, v in self.headers.items() if k in kept}
            status, kind, content = proxy.pass_on(self.command, self.path, body, headers)
            if what == "twice":
                status, kind, content = proxy.pass_on(self.command, self.path, body, headers)
            if what == "404 after":
                status, content = 404, b""
            if what == "lose":
                proxy.lost()
                self._drop()
                return
            self._say(status, kind, content, what)

        def _say(self, status: int, kind: str, content: bytes, what: str | int) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            if status in (301, 302, 307, 308):
                self.send_header("Location", "http://127.0.0.1:9/elsewhere")
            self.end_headers()
            if what == "cut":
                self.wfile.write(content[: len(content) // 2])
                self.wfile.flush()
                self._drop()
            elif what == "drip":
                for byte in content:
                    if proxy.over.wait(0.05):
                        return
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
            else:
                self.wfile.write(content)

        do_GET = do_POST = _answer  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError, ValueError):  # the client has gone
                super().handle()

        def finish(self) -> None:
            with contextlib.suppress(OSError, ValueError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def shutdown_request(self, request: socket.socket) -> None:  # type: ignore[override]
            with contextlib.suppress(OSError):
                super().shutdown_request(request)

    server = Server(("127.0.0.1", 0), Handler)
    proxy.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        proxy.over.set()
        server.shutdown()
        server.server_close()
        thread.join(10)
