"""Batches that are killed: workers, coordinators, and processes between any two steps; what is left must be as if not.

Sixty inputs: small CT series of drawn shapes, some of them broken, beside pictures and a zip. One undisturbed run gives
the expected bytes. Then, round after round into one output folder per round, a batch is started and killed at random
until it says that nothing is left. After each round: no item lost, none twice, one current result per case, no
half-written file, and every result byte for byte that of the undisturbed run. With ``--orthanc`` results are sent to a
server of its own, and a QIDO query lists exactly one SEG and one SR for each series that the ledger calls done.

    python benchmarks/soak.py --rounds 50 [--model runs/x/model]
    PYTHONPATH=tests python benchmarks/soak.py --rounds 5 --orthanc [--model runs/x/model]
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from clearmargin.batch import batch
from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.formats.raster import write_raster
from clearmargin.jobs.ledger import Ledger
from clearmargin.pacs.dicomweb import DicomWeb
from clearmargin.predicting import items as items_module
from clearmargin.predicting.items import PredictItem
from clearmargin.predicting.predictor import Predictor
from clearmargin.predicting.prepared import default_ledger
from clearmargin.predicting.results import verify

SHAPE = (4, 64, 64)


@dataclass(frozen=True, kw_only=True)
class Faulty(PredictItem):
    """A batch's work that ends its process now and then, between any two steps."""

    chance: float = 0.02

    def _fault(self) -> None:
        if random.random() < self.chance:
            os.kill(os.getpid(), signal.SIGKILL)

    def read(self, item: Any) -> Any:
        self._fault()
        loaded = super().read(item)
        self._fault()
        return loaded

    def compute(self, item: Any, loaded: Any) -> Any:
        computed = super().compute(item, loaded)
        self._fault()
        return computed

    def write(self, item: Any, computed: Any) -> Any:
        original = items_module._sync

        def sync(folder: Path) -> None:
            self._fault()  # renamed, and not yet on the disk
            original(folder)
            self._fault()  # on the disk, and not yet in the ledger

        items_module._sync = sync
        try:
            return super().write(item, computed)
        finally:
            items_module._sync = original

    def _note(self, event: str, item: Any, **fields: Any) -> None:
        self._fault()  # confirmed by the archive, and not yet in the ledger
        super()._note(event, item, **fields)

    def settle(self, item: Any, current: str) -> None:
        self._fault()  # in the ledger, and the link not yet set
        super().settle(item, current)


def make_inputs(root: Path, number: int) -> None:
    """Write the inputs: CT series with a bright box, every ninth with a missing slice, every tenth in a zip."""
    rng = np.random.default_rng(0)
    grid = Grid.from_spacing(SHAPE, (5.0, 0.8, 0.7))
    for k in range(number):
        pixels = rng.normal(40, 10, (1, *SHAPE)).astype(np.int16)
        y, x = rng.integers(8, 30, 2)
        pixels[0, 1:3, y : y + 20, x : x + 24] = 300
        folder = root / f"study-{k:03d}"
        write_ct_series(folder, Image(pixels=pixels, grid=grid, source=Source(modality="CT")), k + 1, 1)
        files = sorted(folder.iterdir())
        if k % 9 == 4:
            files[1].unlink()
        elif k % 10 == 7:
            with zipfile.ZipFile(root / f"study-{k:03d}.zip", "w") as archive:
                for file in files:
                    archive.write(file, file.name)
            shutil.rmtree(folder)
        elif k % 13 == 5:
            files[2].write_bytes(files[2].read_bytes()[:300])
    write_raster(root / "dark.png", np.full((64, 64), 10, np.uint8))


def results(out: Path) -> dict[str, bytes]:
    """Return every file of every result, by its place below the output folder."""
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in sorted(out.glob("case-*/*/**/*"))
        if path.is_file() and "current" not in path.parts
    }


def check(out: Path, expected: dict[str, bytes], items: int) -> None:
    """Exit with a message if anything is lost, twice, half written or different."""
    ledger = Ledger(default_ledger(out))
    counts = ledger.counts()
    problems = []
    if sum(counts.values()) != items or counts["pending"] or counts["leased"] or counts["failed"]:
        problems.append(f"counts {counts}, expected {items} items, done or refused")
    current = [item.case_id for item in ledger.items(current=True)]
    if len(current) != len(set(current)) or len(current) != counts["done"]:
        problems.append("a case has no current result, or two")
    problems += [f"{folder}: {what}" for folder, what in verify(ledger, out).items()]
    for item in ledger.items(current=True):
        link = out / item.case_id / "current"
        if str(link.readlink()) != item.folder.rpartition("/")[2]:
            problems.append(f"{item.case_id}: the link names other results than the ledger")
    ledger.close()
    hidden = list(out.rglob(".*"))
    if hidden:
        problems.append(f"left behind: {hidden[:3]}")
    found = results(out)
    if found != expected:
        differing = [n for n in found.keys() | expected.keys() if found.get(n) != expected.get(n)]
        problems.append(f"{len(differing)} files differ, such as {sorted(differing)[:3]}")
    if problems:
        sys.exit("\n".join(problems))


def check_archive(out: Path, address: str) -> int:
    """Exit with a message unless the archive holds one SEG and one SR for each done series; return for how many."""
    ledger = Ledger(default_ledger(out))
    done = [item for item in ledger.items("done") if item.source["kind"] == "dicom"]
    expected = {uid for item in done for _, uid, _ in ledger.sent(item)}
    ledger.close()
    with urllib.request.urlopen(f"{address}/dicom-web/series?limit=100000") as answer:
        listed = json.load(answer)
    kinds = Counter((row["0020000D"]["Value"][0], row["00080060"]["Value"][0]) for row in listed)
    with urllib.request.urlopen(f"{address}/dicom-web/instances?limit=100000") as answer:
        objects = [row["00080018"]["Value"][0] for row in json.load(answer)]
    with_both = [item for item in done if {"seg.dcm", "report.dcm"} <= item.files.keys()]
    if set(kinds.values()) - {1} or sorted(objects) != sorted(expected):
        sys.exit(
            f"the archive holds {len(objects)} objects, expected {len(expected)}; {kinds.most_common(3)}"
        )
    studies = {study for study, _ in kinds}
    if len(studies) != len(with_both) or any(kinds[s, k] != 1 for s in studies for k in ("SEG", "SR")):
        sys.exit(
            f"{len(with_both)} series have a SEG and an SR, and the archive lists {len(studies)} studies"
        )
    return len(with_both)


def once(
    root: Path, out: Path, model: Path, *, faulty: bool, processes: int, archive: str | None = None
) -> None:
    """Run one batch in this process; with faults where processes are workers."""
    if faulty:
        import clearmargin.predicting.prepared as module

        module.PredictItem = Faulty  # type: ignore[misc]
    batch(
        [root],
        out,
        Predictor(model=model, force=True, score_threshold=0.0),
        processes=processes,
        track=False,
        least_free_gib=0,
        write=["tables", "prediction", "seg", "sr"],
        destinations=[] if archive is None else [DicomWeb(url=f"{archive}/dicom-web")],
    )


def main() -> None:
    """Run the rounds and say what was seen."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--items", type=int, default=60)
    parser.add_argument("--model", type=Path, default=Path("demo/runs/demo/model"))
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Folder to work in; it stays.")
    parser.add_argument("--orthanc", action="store_true", help="Send results to an Orthanc of its own.")
    parser.add_argument("--archive", help=argparse.SUPPRESS)
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.once:
        once(*args.once, args.model, faulty=True, processes=args.processes, archive=args.archive)
        return
    if not args.orthanc:
        rounds(args, None)
        return
    from pacs import find_orthanc, running_orthanc

    programs = find_orthanc()
    if programs is None:
        sys.exit("no Orthanc with its DICOMweb plug-in here")
    with tempfile.TemporaryDirectory() as folder, running_orthanc(Path(folder), *programs) as server:
        rounds(args, server)


def rounds(args: argparse.Namespace, server: Any) -> None:
    """Run all rounds, with a server as destination or None."""
    archive = None if server is None else server.address
    rng = random.Random(args.seed)
    folder = args.keep or Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["CLEARMARGIN_HOME"] = str(folder / "home")
    root = folder / "in"
    make_inputs(root, args.items)
    start = time.monotonic()
    once(root, folder / "undisturbed", args.model, faulty=False, processes=args.processes)
    expected = results(folder / "undisturbed")
    ledger = Ledger(default_ledger(folder / "undisturbed"))
    number, counts = sum(ledger.counts().values()), ledger.counts()
    ledger.close()
    print(f"undisturbed: {counts}, {len(expected)} files, {time.monotonic() - start:.0f} s", flush=True)
    check(folder / "undisturbed", expected, number)
    killed = 0
    for k in range(args.rounds):
        out = folder / f"round-{k}"
        runs = 0
        if server is not None:
            server.empty()
        while True:
            runs += 1
            command = [sys.executable, __file__, "--once", root, out, "--model", args.model]
            command += ["--processes", str(args.processes)] + (["--archive", archive] if archive else [])
            process = subprocess.Popen(command, start_new_session=True)
            try:
                code = process.wait(timeout=rng.uniform(5, 40) if runs < 6 else 600)
            except subprocess.TimeoutExpired:
                if rng.random() < 0.5:
                    process.kill()  # the coordinator alone: its workers notice
                else:
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                killed += 1
                continue
            if code == 0:
                break
            sys.exit(f"round {k}: the batch ended with code {code}")
        ledger = Ledger(default_ledger(out))
        ledger.retry()  # what was begun four times and killed each time by the faults of this script
        retried = ledger.counts()["pending"]
        ledger.close()
        if retried:
            once(root, out, args.model, faulty=False, processes=1, archive=archive)
        time.sleep(1)
        check(out, expected, number)
        proved = "" if archive is None else f"; one SEG and one SR of {check_archive(out, archive)} series"
        shutil.rmtree(out)
        print(f"round {k + 1}: as undisturbed after {runs} starts{proved}", flush=True)
    print(f"{args.rounds} rounds, {killed} coordinators killed: nothing lost, nothing twice, the same bytes")
    if not args.keep:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
