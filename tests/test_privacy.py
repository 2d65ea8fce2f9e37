import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clearmargin import privacy


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_ids_are_stable_and_keyed(home, monkeypatch, tmp_path):
    first = privacy.case_id("1.2.840.1")
    assert first == privacy.case_id("1.2.840.1") != privacy.case_id("1.2.840.2")
    assert privacy.case_id("a", "b") != privacy.case_id("ab")
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "other"))
    assert privacy.case_id("1.2.840.1") != first  # another user's key


def test_another_process_gives_the_same_id(home):
    ours = privacy.case_id("x")
    code = "from clearmargin.privacy import case_id; import sys; sys.stdout.write(case_id('x'))"
    theirs = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert theirs == ours


def test_key_and_crosswalk_are_private(home):
    case = privacy.case_id("x")
    privacy.record_case(case, Path("Miller^Anna.dcm"))
    privacy.record_case(case, Path("Miller^Anna.dcm"))
    for name in ("key", "crosswalk.jsonl"):
        assert stat.S_IMODE((home / name).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert privacy.recorded_cases() == {case: str(Path("Miller^Anna.dcm").resolve())}
    assert len((home / "crosswalk.jsonl").read_text().splitlines()) == 1
