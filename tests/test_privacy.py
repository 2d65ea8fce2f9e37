import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from clearmargin import privacy
from clearmargin.errors import ConfigError
from clearmargin.privacy import case_id, record_cases, recorded_cases


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


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_a_half_written_line_stops_nobody_and_loses_nothing_else(fresh, tmp_path, caplog):
    """A process was killed while it appended."""
    record_cases({"case-a": tmp_path / "a", "case-b": tmp_path / "b"})
    crosswalk = fresh / "crosswalk.jsonl"
    crosswalk.write_bytes(crosswalk.read_bytes() + b'{"case": "case-c", "pa')
    record_cases({"case-d": tmp_path / "d"})
    with caplog.at_level("WARNING"):
        assert set(recorded_cases()) == {"case-a", "case-b", "case-d"}
    assert "1 damaged line(s)" in caplog.text
    record_cases({"case-c": tmp_path / "c"})
    assert recorded_cases()["case-c"] == str(tmp_path / "c")


@pytest.mark.parametrize("line", ["[" * 100_000, "null", '["case"]', '{"case": 1}', "\xff", '{"case": NaN}'])
def test_a_line_that_is_something_else_stops_nobody(fresh, tmp_path, caplog, line):
    record_cases({"case-a": tmp_path / "a"})
    with (fresh / "crosswalk.jsonl").open("a", encoding="latin-1") as stream:
        stream.write(line + "\n")
    record_cases({"case-b": tmp_path / "b"})
    with caplog.at_level("WARNING"):
        assert set(recorded_cases()) == {"case-a", "case-b"}


def test_a_crosswalk_is_read_once_and_then_only_what_is_new(fresh, tmp_path, monkeypatch):
    record_cases({f"case-{k}": tmp_path / str(k) for k in range(100)})
    read = []
    loads = json.loads
    monkeypatch.setattr("clearmargin.privacy.parse_json", lambda line: read.append(line) or loads(line))
    for k in range(50):
        record_cases({f"case-{k}": tmp_path / str(k)})
    record_cases({"case-new": tmp_path / "new"})
    recorded_cases()
    assert len(read) <= 101


def test_lines_of_other_processes_are_seen(fresh, tmp_path):
    record_cases({"case-a": tmp_path / "a"})
    code = "from clearmargin.privacy import record_case; from pathlib import Path; record_case('case-z', Path('/z'))"
    pipeline = str(Path(__file__).parents[1] / "pipeline")
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": pipeline})
    assert recorded_cases()["case-z"] == "/z"


@pytest.mark.parametrize(
    ("content", "mode", "said"), [(b"", 0o600, "has 0 bytes"), (b"x" * 32, 0o644, "others may read")]
)
def test_a_key_that_protects_nobody_is_refused(fresh, content, mode, said):
    fresh.mkdir(mode=0o700)
    (fresh / "key").write_bytes(content)
    (fresh / "key").chmod(mode)
    with pytest.raises(ConfigError, match=said):
        case_id("x")
