"""What was done, as tables without identity: by attribute, by file, and in sum."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import Any

from clearmargin import __version__
from clearmargin.deidentification.basic_profile import basic_profile
from clearmargin.deidentification.dataset import METHOD_CODES, Tally
from clearmargin.deidentification.file import Outcome, Rules
from clearmargin.files import csv_rows, draft_of, whole, write_text

__all__ = ["Report"]


class Report:
    """Collects outcomes; ``files.csv`` grows as they come, the sums are written when it is closed."""

    def __init__(self, folder: Path, rules: Rules) -> None:
        self._folder, self._rules = folder, rules
        self.statuses: Counter[str] = Counter()
        self.reasons: Counter[tuple[str, str]] = Counter()
        self._tally: Tally = Counter()
        self._draft = draft_of(folder / "files.csv")
        self._stream = self._draft.open("w", newline="")
        csv_rows(self._stream, [["case", "status", "reason", "file"]], lineterminator="\r\n")

    def add(self, case: str, outcome: Outcome) -> None:
        """Count one file; ``case`` is its case id."""
        self.statuses[outcome.status] += 1
        if outcome.reason:
            self.reasons[outcome.status, outcome.reason] += 1
        if outcome.status == "written":
            self._tally.update(outcome.tally)
        place = outcome.place if outcome.status in ("written", "duplicate") else ""
        csv_rows(self._stream, [[case, outcome.status, outcome.reason, place]], lineterminator="\r\n")

    def __enter__(self) -> Report:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stream.close()
            self._draft.replace(self._folder / "files.csv")
            self._write_attributes()
            self._write_summary(complete=kind is None)
        finally:
            self._draft.unlink(missing_ok=True)

    def _write_attributes(self) -> None:
        rows: list[list[Any]] = [["tag", "keyword", "profile", "done", "elements"]]
        for (tag, done), count in sorted(self._tally.items()):
            listed = basic_profile().get(tag, ("", "", ""))
            rows.append([f"{tag:08X}", listed[2] or _keyword(tag), listed[0], done, count])
        with whole(self._folder / "attributes.csv") as draft, draft.open("w", newline="") as stream:
            csv_rows(stream, rows, lineterminator="\r\n")

    def _write_summary(self, *, complete: bool) -> None:
        summary: dict[str, Any] = {
            "software": f"clearmargin {__version__}",
            "complete": complete,
            "profile": "PS3.15 2026c, Basic Application Level Confidentiality Profile",
            "options": {
                code: METHOD_CODES[code] + (" (files with a content tree)" if code == "113104" else "")
                for code in ("113107", "113104")
            },
            "pixels": {
                "changed": False,
                "looked_at_by_a_person": self._rules.pixels_reviewed,
                "searched_for_text": self._rules.look_for_text,
            },
            "files": dict(sorted(self.statuses.items())),
            "reasons": [
                {"status": status, "reason": reason, "files": count}
                for (status, reason), count in sorted(self.reasons.items())
            ],
        }
        write_text(self._folder / "report.json", json.dumps(summary, indent=2) + "\n")


def _keyword(tag: int) -> str:
    from pydicom.datadict import keyword_for_tag

    # A private creator's or an unknown element's number says enough, and names nobody.
    return keyword_for_tag(tag) if not (tag >> 16) % 2 else "private"
