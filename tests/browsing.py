"""Chromium, as a reader's browser: what it complains of, and what it asks the network for, is kept."""

import contextlib
import io
import os
import shutil
import time
from dataclasses import dataclass, field

import numpy as np
import PIL.Image
import pytest

SOFTWARE = [
    "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader", "--no-sandbox",
    "--disable-component-update", "--disable-background-networking",
]  # fmt: skip


@dataclass
class Watched:
    """A page, its complaints, and the addresses it asked for beside its own."""

    page: object
    complaints: list = field(default_factory=list)
    requests: list = field(default_factory=list)

    def open(self, address):
        self.page.goto(address)
        return self

    def ready(self, timeout_s=60.0):
        """Wait until the viewer has drawn."""
        end = time.monotonic() + timeout_s
        said = {}
        while time.monotonic() < end and not {"readyMs", "failed"} & set(said):
            self.page.wait_for_timeout(100)
            said = self.page.evaluate("() => ({...document.documentElement.dataset})")
        assert "readyMs" in said and "failed" not in said, (said, self.complaints)
        return self

    def drawn(self):
        """Return what the canvas shows as RGB, (height, width, 3)."""
        self.page.wait_for_timeout(300)
        shot = self.page.locator("#canvas").screenshot()
        return np.asarray(PIL.Image.open(io.BytesIO(shot)).convert("RGB"))


def chromium():
    """Return the browser's program, or skip the test with a reason."""
    pytest.importorskip("playwright.sync_api", reason="playwright drives the browser")
    program = (
        os.environ.get("CLEARMARGIN_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    )
    if program is None:
        pytest.skip("no Chromium here: install Debian's package chromium, or set CLEARMARGIN_CHROMIUM")
    return program


@contextlib.contextmanager
def browsing(*, own=(), size=(900, 600), dark=False):
    """Yield a watched page; addresses that begin with one of ``own`` are not counted as requests to the network."""
    program = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=SOFTWARE)
        context = browser.new_context(
            viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light"
        )
        watched = Watched(context.new_page())
        watched.page.on(
            "console", lambda said: watched.complaints.append(said.text) if said.type == "error" else None
        )
        watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
        watched.page.on(
            "request",
            lambda asked: (
                None
                if asked.url.startswith(("file:", "data:", "blob:", *own))
                else watched.requests.append(asked.url)
            ),
        )
        try:
            yield watched
        finally:
            browser.close()
