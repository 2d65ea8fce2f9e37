"""What a batch costs beside the network: the ledger at a million rows, and reading, writing and bookkeeping per item.

python benchmarks/bench_batch.py --rows 1000000
python benchmarks/bench_batch.py --rows 0 --model runs/x/model --series 12
python benchmarks/bench_batch.py --rows 0 --model runs/x/model --memory 2000
"""

from __future__ import annotations

import argparse
import hashlib
import os
import resource
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from clearmargin.jobs.items import NewItem, Outcome
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.owners import owner_here


def items(first: int, number: int) -> list[NewItem]:
    """Return items with random keys, as digests are."""
    return [
        NewItem(
            key=hashlib.sha256(str(k).encode()).hexdigest(),
            recipe="r",
            case_id=f"case-{k:012x}",
            source={
                "kind": "dicom",
                "root": f"/data/studies/{k}",
                "names": [f"{n:04d}.dcm" for n in range(100)],
            },
        )
        for k in range(first, first + number)
    ]


def percentiles(seconds: list[float]) -> str:
    """Return p50, p95 and p99 in milliseconds."""
    return " / ".join(f"{1000 * v:.2f}" for v in np.percentile(seconds, (50, 95, 99)))


def timed(call: Callable[[], object], times: int) -> list[float]:
    """Return the seconds that each of so many calls takes."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        seconds.append(time.perf_counter() - start)
    return seconds


def ledger_at(rows: int, place: str) -> None:
    """Fill a ledger and time what a worker does with it, at 100 rows and at growing sizes."""
    ledger, owner, held = Ledger(place), owner_here(), []
    sizes = [n for n in (100, 10_000, 100_000) if n < rows] + [rows]
    there = 0
    print("rows | insert per second | claim p50 / p95 / p99 ms | finish p50 / p95 / p99 ms | counts ms")
    for size in sizes:
        start = time.perf_counter()
        while there < size:
            part = min(20_000, size - there)
            ledger.add(items(there, part))
            there += part
        rate = (size - (sizes[sizes.index(size) - 1] if size != sizes[0] else 0)) / (
            time.perf_counter() - start
        )

        def claim() -> None:
            item = ledger.claim(owner, recipe="r", lease_s=60)
            if item is not None:
                held.append(item)

        def finish() -> None:
            ledger.finish(held.pop(), Outcome(state="done", folder="a/b", files={"seg.dcm": "0" * 64}))

        number = min(500, size // 3)
        claims = timed(claim, number)
        ends = timed(finish, number)
        counting = timed(ledger.counts, 20)
        print(
            f"{size} | {rate:.0f} | {percentiles(claims)} | {percentiles(ends)} | {1000 * np.median(counting):.2f}",
            flush=True,
        )
    ledger.close()


def _note(times: list[float], cpu: list[float], _: object) -> None:
    times.append(time.perf_counter())
    cpu.append(time.process_time())


def overhead(model: Path, number: int, processes: tuple[int, ...]) -> None:
    """Time a batch beside the bare network on the same series."""
    from clearmargin.batch import batch
    from clearmargin.datasets.phantom import make_phantom
    from clearmargin.datasets.phantom_study import write_phantom_study
    from clearmargin.formats import read_image
    from clearmargin.predicting.predictor import Predictor

    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["CLEARMARGIN_HOME"] = str(root / "home")
        for k in range(1, number + 1):
            write_phantom_study(root / "in" / f"study-{k}", make_phantom(seed=k), k)
        folders = sorted((root / "in").glob("study-*/*/ct"))
        predictor = Predictor(model=model)
        images = [read_image(folder) for folder in folders]
        predictor.predict_case(images[0])
        start, cpu = time.perf_counter(), time.process_time()
        for image in images:
            predictor.predict_case(image)
        bare, bare_cpu = time.perf_counter() - start, time.process_time() - cpu
        print(
            f"bare network: {bare / len(images):.2f} s an item, {bare_cpu / len(images):.2f} s of CPU; "
            f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores",
            flush=True,
        )
        for count in processes:
            latencies: list[float] = []
            spent: list[float] = []
            start = time.perf_counter()
            batch(
                folders,
                root / f"out-{count}",
                predictor,
                processes=count,
                track=False,
                least_free_gib=0,
                write=["tables", "prediction", "seg", "sr"],
                on_event=partial(_note, latencies, spent),
            )
            first = latencies[0] if latencies else start
            steady = (latencies[-1] - first) / max(1, len(latencies) - 1)
            print(
                f"{count} process(es): {steady:.2f} s an item once running, {steady / (bare / len(images)):.2f} times "
                f"the bare network; {first - start:.1f} s to the first; load {os.getloadavg()[0]:.1f}",
                flush=True,
            )
            if count == 0:  # in this process: its CPU seconds do not depend on what else the machine does
                used = (spent[-1] - spent[0]) / (len(spent) - 1)  # without what is loaded once
                print(
                    f"  {used:.2f} s of CPU an item, {used / (bare_cpu / len(images)):.3f} times the bare network's"
                )
    print(
        f"largest memory of a process: {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20:.2f} GiB"
    )


def memory(model: Path, number: int) -> None:
    """Run a batch of many small series in this process, and print its memory as it goes."""
    from clearmargin.batch import batch
    from clearmargin.core import Grid, Image, Source
    from clearmargin.datasets.phantom_study import write_ct_series
    from clearmargin.predicting.predictor import Predictor

    shape = (3, 64, 64)
    grid, rng = Grid.from_spacing(shape, (5.0, 0.8, 0.7)), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        os.environ["CLEARMARGIN_HOME"] = str(root / "home")
        for k in range(number):
            pixels = rng.normal(40, 10, (1, *shape)).astype(np.int16)
            y, x = rng.integers(8, 30, 2)
            pixels[0, :, y : y + 20, x : x + 24] = 300
            image = Image(pixels=pixels, grid=grid, source=Source(modality="CT"))
            write_ct_series(root / "in" / f"{k:05d}", image, k + 1, 1)
        seen: list[float] = []
        start = time.perf_counter()

        def note(_: object) -> None:
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            seen.append(pages * resource.getpagesize() / 2**20)
            if len(seen) in (1, 10, 100) or len(seen) % 250 == 0:
                took = (time.perf_counter() - start) / len(seen)
                print(f"{len(seen)} series: {seen[-1]:.0f} MiB, {took:.2f} s an item", flush=True)

        batch(
            [root / "in"],
            root / "out",
            Predictor(model=model, force=True),
            processes=0,
            track=False,
            least_free_gib=0,
            write=["tables", "prediction", "seg", "sr"],
            on_event=note,
        )
    half = len(seen) // 2
    second, last = np.mean(seen[half // 2 : half]), np.mean(seen[-half // 2 :])
    print(f"mean of the second quarter {second:.0f} MiB, of the last {last:.0f}")


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--ledger", help="postgresql://...; default: SQLite in a temporary folder.")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--series", type=int, default=12)
    parser.add_argument("--memory", type=int, default=0, help="So many small series, for the memory alone.")
    parser.add_argument("--processes", type=int, nargs="*", default=[0, 1, 2])
    args = parser.parse_args()
    if args.rows:
        with tempfile.TemporaryDirectory() as folder:
            ledger_at(args.rows, args.ledger or str(Path(folder) / "ledger.sqlite"))
    if args.model and args.memory:
        memory(args.model, args.memory)
    elif args.model:
        overhead(args.model, args.series, tuple(args.processes))


if __name__ == "__main__":
    main()
