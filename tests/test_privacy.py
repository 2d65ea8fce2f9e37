import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clearmargin import privacy
from clearmargin.errors import ConfigError


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


def test_paths_of_a_case_are_found_by_its_id_its_frame_and_without_the_word(home, tmp_path):
    clip, old = tmp_path / "clip.avi", tmp_path / "old.avi"
    case = privacy.case_of_file(clip)
    privacy.record_case(case, old)
    privacy.record_case(case, clip)
    for name in (case, f"{case}-f20", case.removeprefix("case-"), f"{case}-2"):
        assert list(privacy.paths_of_case(name)) == [str(clip), str(old)]
    assert privacy.paths_of_case("case-000000000000") == []


def test_plain_names_are_those_of_files_and_are_fit_for_folders(monkeypatch, tmp_path):
    monkeypatch.setenv("CLEARMARGIN_NAMES", "plain")
    for name, plain in (
        ("benign (1).png", "benign_1"),
        ("scan.nii.gz", "scan"),
        ("a.b.png", "a.b"),
        ("noend", "noend"),
        ("..", "case"),
    ):
        assert privacy.case_of_file(tmp_path / name) == plain
    (tmp_path / "series.7").mkdir()
    assert privacy.case_of_file(tmp_path / "series.7", "1.2.3") == "series.7"
    monkeypatch.setenv("CLEARMARGIN_NAMES", "pretty")
    with pytest.raises(ConfigError, match="expected hashed or plain"):
        privacy.case_of_file(tmp_path / "x.png")


def test_moved_data_keep_their_ids(home, tmp_path):
    before = tmp_path / "before"
    (before / "a").mkdir(parents=True)
    case = privacy.case_of_file(before / "a" / "x.png")
    with pytest.raises(ConfigError, match="is still there"):
        privacy.record_moved(before, tmp_path)
    for place in ("now", "later"):
        last = tmp_path / ("before" if place == "now" else "now")
        last.rename(tmp_path / place)
        assert privacy.case_of_file(tmp_path / place / "a" / "x.png") != case
        privacy.record_moved(last, tmp_path / place)
        assert privacy.case_of_file(tmp_path / place / "a" / "x.png") == case
    with pytest.raises(ConfigError, match="there is no folder"):
        privacy.record_moved(before, tmp_path / "nowhere")
