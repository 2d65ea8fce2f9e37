"""What a monitor asks a service: ``/healthz``, and its figures as Prometheus text; on this machine alone."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from clearmargin.errors import ConfigError

__all__ = ["Health", "prometheus_text", "serving"]


@dataclass(frozen=True, kw_only=True)
class Health:
    """How a service is.

    Attributes:
        troubles: Why it is not well, a sentence each; none if it is.
        figures: Values by name, and for some by a label and its value: ``("items", "state", "done")``.
    """

    troubles: tuple[str, ...]
    figures: Mapping[str | tuple[str, str, str], float] = field(default_factory=dict)


def prometheus_text(figures: Mapping[str | tuple[str, str, str], float]) -> str:
    r"""Return figures in Prometheus' text format.

    >>> prometheus_text({"queue_depth": 3, ("items", "state", "done"): 2.5})
    'clearmargin_queue_depth 3\nclearmargin_items{state="done"} 2.5\n'
    """
    lines = []
    for key, value in figures.items():
        name, label = (key, "") if isinstance(key, str) else (key[0], f'{{{key[1]}="{key[2]}"}}')
        lines.append(f"clearmargin_{name}{label} {value:.15g}\n")
    return "".join(lines)


@contextmanager
def serving(port: int, health: Callable[[], Health]) -> Iterator[int]:
    """Answer ``/healthz`` (200, or 503 with the troubles) and ``/metrics`` on the loopback interface; yield the port.

    Raises:
        ConfigError: The port is taken.
    """

    class Handler(BaseHTTPRequestHandler):
        timeout = 10

        def do_GET(self) -> None:
            now = health()
            if self.path == "/healthz":
                content = {"status": "ok" if not now.troubles else "not well", "why": now.troubles}
                self._say(503 if now.troubles else 200, "application/json", json.dumps(content))
            elif self.path == "/metrics":
                self._say(200, "text/plain; version=0.0.4", prometheus_text(now.figures))
            else:
                self._say(404, "text/plain", "there are /healthz and /metrics\n")

        def _say(self, status: int, kind: str, text: str) -> None:
            content = text.encode()
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            pass  # a client that went away

    try:
        server = Server(("127.0.0.1", port), Handler)
    except OSError:
        raise ConfigError(
            f"port {port} for /healthz is taken or may not be used: name another with --health"
        ) from None
    thread = threading.Thread(target=server.serve_forever, args=(0.2,), daemon=True)
    thread.start()
    try:
        yield int(server.server_address[1])
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
