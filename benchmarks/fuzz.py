"""Hostile files by the hundred thousand: ``make fuzz``, or one case again: ``--only NUMBER``.

Each case is a function of the run and its number. It is read in a process of its own kind, which may die without
ending the others; what failed is kept with its number and the reason. Ctrl-C ends it with the counts so far.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import hostile

BATCH = 500
HANG_SECONDS = 120.0  # of the wall clock, after which a process is ended from outside its Python code


@dataclass
class Worker:
    """A process with the cases ``first`` to ``last`` before it, and where it leaves its words."""

    process: subprocess.Popen[str]
    folder: Path
    last: int

    def current(self) -> int:
        return int((self.folder / "current").read_text() or 0)


@dataclass
class Totals:
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    failed: list[int] = field(default_factory=list)


def read_cases(options: argparse.Namespace, folder: Path) -> int:
    """Read the cases of one batch in this process; return how many failed."""
    root = os.environ.get("CLEARMARGIN_DATA")
    seeds = hostile.make_seeds(folder / "seeds", Path(root) if root else None)
    answers: Counter[str] = Counter()
    failed = 0
    first, last = options.cases_of
    for number in range(first, last):
        (folder / "current").write_text(str(number))
        seed, path = hostile.write_case(seeds, number, options.run, folder)
        faulthandler.dump_traceback_later(HANG_SECONDS, exit=True)
        try:
            answers += hostile.answers(seed, path)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is what is sought
            failed += 1
            reason = f"{seed.name}, case {number} of run {options.run}\n"
            keep(options, number, path, reason + "".join(traceback.format_exception(error)))
        faulthandler.cancel_dump_traceback_later()
    (folder / "current").write_text(str(last))
    (folder / "answers").write_text(" ".join(f"{k}={n}" for k, n in answers.items()))
    return failed


def keep(options: argparse.Namespace, number: int, path: Path, reason: str) -> None:
    """Keep the file of a failed case, and beside it why."""
    options.keep.mkdir(parents=True, exist_ok=True)
    kept = options.keep / f"run{options.run}-{number}{''.join(path.suffixes)}"
    shutil.copy(path, kept)
    kept.with_name(f"{kept.name}.txt").write_text(reason)


def start(options: argparse.Namespace, first: int, last: int, folder: Path) -> Worker:
    folder.mkdir(parents=True)
    (folder / "current").write_text(str(first))
    command = [sys.executable, __file__, "--cases-of", str(first), str(last), "--in-folder", str(folder)]
    command += ["--run", str(options.run), "--keep", str(options.keep)]
    with (folder / "said").open("w") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, text=True)
    return Worker(process=process, folder=folder, last=last)


def finish(options: argparse.Namespace, worker: Worker, totals: Totals) -> int | None:
    """Count a process that has ended; return the case to go on from where it died before its last one."""
    if worker.process.returncode == 0:
        counted = (worker.folder / "answers").read_text().split()
        totals.answers += Counter({k: int(n) for k, n in (pair.split("=") for pair in counted)})
        return None
    number = worker.current()
    said = (worker.folder / "said").read_text()[-4000:]
    for path in worker.folder.glob("case.*"):
        keep(options, number, path, f"the process ended with {worker.process.returncode}\n{said}")
    return number + 1


def fuzz(options: argparse.Namespace, folder: Path) -> Totals:
    """Read all cases, ``options.processes`` batches at a time."""
    totals = Totals()
    todo = [(k, min(k + BATCH, options.cases)) for k in range(0, options.cases, BATCH)][::-1]
    running: list[tuple[Worker, int]] = []
    started, shown = 0, time.monotonic()
    began = shown
    try:
        while todo or running:
            while todo and len(running) < options.processes:
                first, last = todo.pop()
                running.append((start(options, first, last, folder / str(started)), first))
                started += 1
            time.sleep(0.2)
            for worker, first in [pair for pair in running if pair[0].process.poll() is not None]:
                running.remove((worker, first))
                again = finish(options, worker, totals)
                totals.cases += (worker.last if again is None else again) - first
                if again is not None and again < worker.last:
                    todo.append((again, worker.last))
                shutil.rmtree(worker.folder)
            totals.failed = failures(options)
            if time.monotonic() - shown > 10:
                shown = time.monotonic()
                rate = totals.cases / (shown - began)
                print(
                    f"{totals.cases} of {options.cases} cases, {rate:.0f} a second, {totals.failed}",
                    flush=True,
                )
    finally:
        for worker, _ in running:
            worker.process.terminate()
            worker.process.wait()
    return totals


def failures(options: argparse.Namespace) -> list[int]:
    kept = options.keep.glob(f"run{options.run}-*.txt") if options.keep.is_dir() else ()
    return sorted({int(file.name.split("-")[1].split(".")[0]) for file in kept})


def main() -> int:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--run", type=int, default=int(time.time()), help="a run's number makes its cases")
    parser.add_argument("--keep", type=Path, default=Path("fuzz"), help="where files that failed are kept")
    parser.add_argument("--only", type=int, help="read this case alone, and show what it does")
    parser.add_argument("--cases-of", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--in-folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        if options.in_folder or options.only is not None:
            os.environ["CLEARMARGIN_HOME"] = name
            if options.only is not None:
                options.cases_of = (options.only, options.only + 1)
                if read_cases(options, Path(name)):
                    print("".join(file.read_text() for file in options.keep.glob(f"*-{options.only}.*.txt")))
                    return 1
                return 0
            read_cases(options, options.in_folder)
            return 0
        print(f"run {options.run}: {options.cases} cases in {options.processes} process(es)", flush=True)
        began = time.monotonic()
        try:
            totals = fuzz(options, Path(name))
        except KeyboardInterrupt:
            print(f"interrupted; failed: {failures(options)}")
            return 130
    said = ", ".join(f"{n} {k}" for k, n in sorted(totals.answers.items()))
    print(f"{totals.cases} cases of run {options.run} in {time.monotonic() - began:.0f} s: {said}")
    print(f"failed: {totals.failed or 'none'}" + (f", kept in {options.keep}" if totals.failed else ""))
    return 1 if totals.failed else 0


if __name__ == "__main__":
    sys.exit(main())
