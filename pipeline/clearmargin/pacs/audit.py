"""The audit log: what was received, fetched and sent, from and to whom; private, as it holds UIDs."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

__all__ = ["Audit"]


@dataclass(frozen=True)
class Audit:
    """A file of JSON lines that any number of processes append to; it is made with mode 0600.

    Attributes:
        path: The file.
    """

    path: Path

    def note(self, event: str, **fields: str | int) -> None:
        """Append what happened, with the time (UTC), in one step."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
        finally:
            os.close(descriptor)
