"""Damaged and hostile bytes are answered by a typed error, quickly, and without filling memory."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import hostile
import numpy as np
import pytest

from clearmargin.errors import ClearMarginError, InputError
from clearmargin.formats import open_video, read_image
from clearmargin.formats.volume import read_volume

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> list[hostile.Seed]:
    root = os.environ.get("CLEARMARGIN_DATA")
    return hostile.make_seeds(tmp_path_factory.mktemp("seeds"), Path(root) if root else None)


def test_whole_files_are_read(seeds, tmp_path):
    """Else the damage would be done to something that no reader looks into."""
    for seed in seeds:
        path = tmp_path / f"case{seed.suffix}"
        path.write_bytes(seed.content)
        assert hostile.answers(seed, path)["read"] > 0, seed.name


def test_two_thousand_mutated_files(seeds, tmp_path):
    counted: Counter[str] = Counter()
    for number in range(2000):
        seed, path = hostile.write_case(seeds, number, 0, tmp_path)
        try:
            counted += hostile.answers(seed, path)
        except Exception as error:
            again = f"PYTHONPATH=tests python benchmarks/fuzz.py --run 0 --only {number}"
            raise AssertionError(f"{seed.name}, case {number}: {type(error).__name__}; {again}") from error
    # Much of the damage is deep enough to get past the front door, and much is noticed.
    assert min(counted["read"], counted["refused"]) > 2000


def test_the_fuzzer_finds_what_there_is_to_find(seeds, tmp_path, monkeypatch):
    def slip(path: Path) -> None:
        raise KeyError(path.name)

    def dawdle(path: Path) -> None:
        start = time.process_time()
        while time.process_time() - start < 0.05:
            pass

    def gossip(path: Path) -> None:
        raise InputError(f"'{path}' of Phantom^Number1 is damaged")

    monkeypatch.setattr(hostile, "MAX_SECONDS", 0.02)
    for reader, answer in ((slip, KeyError), (dawdle, AssertionError), (gossip, AssertionError)):
        monkeypatch.setattr(hostile, "readers", lambda _, reader=reader: [reader])
        with pytest.raises(answer):
            hostile.answers(*hostile.write_case(seeds, 1, 0, tmp_path))
    first = hostile.write_case(seeds, 7, 3, tmp_path)[1].read_bytes()
    assert hostile.write_case(seeds, 7, 3, tmp_path)[1].read_bytes() == first


def test_make_fuzz_says_what_it_did(tmp_path):
    command = [sys.executable, "benchmarks/fuzz.py", "--cases", "30", "--processes", "1", "--run", "5"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(["tests", "pipeline"])}
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")],
        cwd=ROOT, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "30 cases of run 5" in done.stdout and "failed: none" in done.stdout


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.nii", "a.nrrd", "a.mha", "a.mp4", "a.jpg"])
def test_noise_under_any_suffix(name, tmp_path):
    rng = np.random.default_rng(0)
    for size in (0, 1, 100, 5000):
        (tmp_path / name).write_bytes(rng.bytes(size))
        with pytest.raises(ClearMarginError):
            (open_video if name.endswith("mp4") else read_image)(tmp_path / name)


def test_compressed_values_that_itk_would_never_end_on(seeds, tmp_path):
    """Its reader goes round for ever on some streams that are not whole."""
    (seed,) = [s for s in seeds if s.name == "volume.mha"]
    at = seed.content.index(b"LOCAL\n") + 6
    path = tmp_path / "a.mha"
    path.write_bytes(seed.content)
    assert read_volume(path).pixels.shape == (1, 4, 10, 12)
    for damaged in (
        seed.content[:at] + b"x 0 0 0" + seed.content[at:],
        seed.content[:-40],
        seed.content[:at],
    ):
        path.write_bytes(damaged)
        with pytest.raises(InputError, match="not whole"):
            read_volume(path)


def test_few_bytes_that_claim_much(tmp_path):
    header = b"NRRD0004\ntype: short\ndimension: 3\nsizes: 800 800 800\nencoding: raw\nendian: little\n\n"
    (tmp_path / "a.nrrd").write_bytes(header + bytes(400))
    with pytest.raises(InputError, match="too short to hold"):
        read_volume(tmp_path / "a.nrrd")
