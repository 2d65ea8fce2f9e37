"""Work that needs no network: it writes what an item says, and fails or ends its process when told to."""

import hashlib
import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearmargin.errors import ConfigError, InputError, UnavailableError
from clearmargin.jobs.items import Outcome


@dataclass(frozen=True)
class Written:
    """Writes ``OUT/CASE/result.txt`` with the item's text in capitals; ``log`` gets a line for each try."""

    out: Path
    log: Path
    pause_s: float = 0.0
    unable: bool = False

    def prepare(self, index: int) -> None:
        if self.unable:
            raise ConfigError("the model does not load: Anna")

    def read(self, item: Any) -> str:
        with self.log.open("a") as stream:
            stream.write(f"{item.case_id} {item.tries} {os.getpid()}\n")
        do = item.source.get("do", "")
        if do == "refuse":
            raise InputError("two slices are missing")
        if do == "bug":
            raise TypeError("Anna Canary")
        if do == "away" and item.tries < item.source["until"]:
            raise UnavailableError("the archive does not answer")
        if do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        return str(item.source["text"])

    def compute(self, item: Any, loaded: str) -> str:
        time.sleep(self.pause_s)
        return loaded.upper()

    def write(self, item: Any, computed: str) -> Outcome:
        folder = self.out / item.case_id
        draft = self.out / f".{item.case_id}.part"
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        (draft / "result.txt").write_text(computed[: len(computed) // 2])
        time.sleep(self.pause_s / 4)  # a moment in which half of it is there
        (draft / "result.txt").write_text(computed)
        shutil.rmtree(folder, ignore_errors=True)
        draft.replace(folder)
        digest = hashlib.sha256(computed.encode()).hexdigest()
        return Outcome(state="done", folder=item.case_id, files={"result.txt": digest}, instances=1)

    def away(self) -> str:
        return ""

    def settle(self, item: Any, current: str) -> None:
        pass
