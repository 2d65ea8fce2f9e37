"""Two processes that write one result at once: each has its own draft, and what stays is whole."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from children import LIMIT_S, child, read_line

from clearmargin.formats.raster import write_raster
from clearmargin.outputs.folder import check_case

TESTS = Path(__file__).parents[1]
ENVIRONMENT = {**os.environ, "PYTHONPATH": f"{TESTS.parent / 'pipeline'}{os.pathsep}{TESTS}"}
WAITING = """
import signal, sys
signal.alarm(300)  # nobody may answer
from pathlib import Path
from clearmargin.files import one_run, whole
who = sys.argv[1]
with one_run(Path("case")) as folder, whole(Path("table.csv")) as file:
    (folder / "a").write_text(who)
    file.write_text(who)
    print("in", flush=True)
    sys.stdin.readline()
    (folder / "b").write_text(who)
print("out", flush=True)
"""
PREDICTING = """
import sys
from pathlib import Path
import clearmargin.sampling.samples as samples
from bright import bright_segmenter
samples.load_segmenter = lambda *_, **__: bright_segmenter(0, 400)
from clearmargin.predict import predict
for _ in range(3):
    done = predict(Path("in"), Path("out"), model=Path("any"), track=False)
    assert not done.failed and len(done.done) == 4, done.failed
"""


def waiting(who, folder):
    command = [sys.executable, "-W", "ignore", "-c", WAITING, who]
    return child(command, cwd=folder, env=ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def go_on(process):
    process.stdin.write("\n")
    process.stdin.flush()
    assert read_line(process.stdout) == "out\n"


def there(folder):
    return {str(p.relative_to(folder)): p.read_text() for p in folder.rglob("*") if p.is_file()}


def test_the_last_to_end_stays_whole(tmp_path):
    with waiting("first", tmp_path) as first, waiting("second", tmp_path) as second:
        assert read_line(first.stdout) == read_line(second.stdout) == "in\n"
        for who, process in (("first", first), ("second", second)):
            go_on(process)
            kept = {name: text for name, text in there(tmp_path).items() if ".part." not in name}
            assert kept == dict.fromkeys(("case/a", "case/b", "table.csv"), who)
    assert len(there(tmp_path)) == 3, "no draft is left"


def test_a_killed_process_loses_its_drafts_to_the_next_and_a_living_one_keeps_its(tmp_path):
    with waiting("living", tmp_path) as living:
        assert read_line(living.stdout) == "in\n"
        with waiting("killed", tmp_path) as killed:
            assert read_line(killed.stdout) == "in\n"
            killed.send_signal(signal.SIGKILL)
            killed.wait(LIMIT_S)
        assert sorted(there(tmp_path).values()) == ["killed", "killed", "living", "living"]
        with waiting("next", tmp_path) as following:
            assert read_line(following.stdout) == "in\n"
            assert sorted(there(tmp_path).values()) == ["living", "living", "next", "next"]
            go_on(following)
        go_on(living)
    assert there(tmp_path) == dict.fromkeys(("case/a", "case/b", "table.csv"), "living")


@pytest.mark.slow
def test_two_predictions_into_one_folder_lose_nothing(tmp_path):
    (tmp_path / "in").mkdir()
    for k in range(4):
        write_raster(tmp_path / "in" / f"{k}.png", np.full((64, 64), 40 * k, np.uint8))
    command = [sys.executable, "-W", "ignore", "-c", PREDICTING]
    environments = [ENVIRONMENT | {"CLEARMARGIN_HOME": str(tmp_path / "home")}] * 2
    started = [
        subprocess.Popen(command, cwd=tmp_path, env=one, stderr=subprocess.PIPE) for one in environments
    ]
    errors = [process.communicate(timeout=LIMIT_S)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], errors
    cases = list((tmp_path / "out").iterdir())
    assert len(cases) == 4 and not any(case.name.startswith(".") for case in cases)
    for case in cases:
        check_case(case)
        for name, entry in json.loads((case / "manifest.json").read_text())["files"].items():
            assert hashlib.sha256((case / name).read_bytes()).hexdigest() == entry["sha256"]
