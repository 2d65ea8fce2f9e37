"""Workers as processes: every item once, through kills, refusals, Ctrl-C and a full disk."""

import hashlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from postgres import empty
from worked import Written

from clearmargin.errors import ConfigError, UnavailableError
from clearmargin.jobs.items import NewItem
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.pool import run_pool
from clearmargin.jobs.worker import IN_MEMORY, Limits, outcome_of, work_off

LIMITS = Limits(recipe="r", lease_s=30, backoff_s=0.1)


def items(number, **source):
    return [
        NewItem(
            key=hashlib.sha256(f"{k} {source}".encode()).hexdigest(),
            recipe="r",
            case_id=f"case-{k}{source.get('do', '')}",
            source={"text": f"text {k}", **source},
        )
        for k in range(number)
    ]


@pytest.fixture
def set_up(tmp_path):
    ledger = Ledger(tmp_path / "ledger.sqlite")
    return ledger, Written(out=tmp_path / "out", log=tmp_path / "log"), tmp_path


def run(ledger, work, processes=2, limits=LIMITS, **options):
    events = []
    ended = run_pool(
        ledger.place, work, processes=processes, threads=1, limits=limits, tell=events.append, **options
    )
    return ended, events


def check(folder, ledger, number):
    assert ledger.counts()["done"] == number
    for k in range(number):
        assert (folder / "out" / f"case-{k}" / "result.txt").read_text() == f"TEXT {k}"
    assert not list((folder / "out").glob(".*"))


def test_everything_is_done_once_and_trouble_stays_with_its_item(set_up):
    ledger, work, folder = set_up
    ledger.add(items(12))
    ledger.add(
        [*items(1, do="refuse"), *items(1, do="bug"), *items(1, do="away", until=3), *items(1, do="kill")]
    )
    ended, events = run(ledger, work)
    assert ended.why == "" and not ended.interrupted and ended.restarted >= 1
    counts = ledger.counts()
    assert (counts["done"], counts["refused"], counts["failed"], counts["pending"]) == (13, 1, 2, 0)
    reasons = {i.case_id: (i.kind, i.reason, i.tries) for i in ledger.items("failed", "refused")}
    assert reasons["case-0refuse"][:2] == ("InputError", "two slices are missing")
    assert reasons["case-0bug"][0] == "TypeError" and "Anna" not in reasons["case-0bug"][1]
    assert reasons["case-0kill"][0] == "ProcessEnded" and reasons["case-0kill"][2] == LIMITS.most_tries
    # What a killed process had done it may not have told: the ledger knows, and nothing else was told.
    told = {e.case_id for e in events if e.state == "done"}
    assert told <= {i.case_id for i in ledger.items("done")} and len(told) >= 6
    tries = (folder / "log").read_text().splitlines()
    assert len([t for t in tries if t.startswith("case-0away ")]) == 3  # twice away, then there
    again, _ = run(ledger, work)
    assert again.why == "" and (folder / "log").read_text().splitlines() == tries  # nothing was begun


def test_a_model_that_does_not_load_ends_the_pool_with_the_reason(set_up):
    ledger, work, _ = set_up
    ledger.add(items(2))
    with pytest.raises(ConfigError, match="the model does not load"):
        run(ledger, Written(out=work.out, log=work.log, unable=True))
    assert ledger.counts()["pending"] == 2


def test_a_full_disk_stops_the_pool_and_keeps_what_is_done(set_up, monkeypatch):
    import errno

    ledger, work, _ = set_up
    ledger.add(items(3))

    class Full(Written):
        def write(self, item, computed):
            if item.case_id == "case-1":
                raise OSError(errno.ENOSPC, "No space left on device")
            return super().write(item, computed)

    why = work_off(
        ledger, Full(out=work.out, log=work.log), limits=LIMITS, tell=lambda _: None, stopped=lambda: False
    )
    assert "No space left" in why
    counts = ledger.counts()
    assert counts["leased"] == 0 and counts["done"] + counts["pending"] == 3 and counts["pending"] >= 1


def test_it_pauses_below_the_floor_and_goes_on(set_up, monkeypatch):
    from collections import namedtuple

    from clearmargin.jobs import worker

    ledger, work, folder = set_up
    work.out.mkdir()
    ledger.add(items(2))
    free = [0]
    usage = namedtuple("usage", "free")
    monkeypatch.setattr(worker, "disk_usage", lambda _: usage(free[0]))
    monkeypatch.setattr(worker._Worker, "_sleep", lambda self, seconds: time.sleep(0.05))
    events = []

    def tell(event):
        events.append(event)
        free[0] = 2**31

    limits = Limits(recipe="r", out=work.out, least_free_bytes=2**30)
    work_off(ledger, work, limits=limits, tell=tell, stopped=lambda: False)
    assert "paused: the output disk has 0 GiB free, less than 1" in events[0].reason
    check(folder, ledger, 2)


def test_no_more_are_decoded_than_is_stated(set_up):
    ledger, work, folder = set_up
    ledger.add(items(12))
    held, most, lock = [0], [0], threading.Lock()

    class Counted(Written):
        def read(self, item):
            with lock:
                held[0] += 1
                most[0] = max(most[0], held[0])
            return super().read(item)

        def write(self, item, computed):
            time.sleep(0.05)
            outcome = super().write(item, computed)
            with lock:
                held[0] -= 1
            return outcome

    work_off(
        ledger, Counted(out=work.out, log=work.log), limits=LIMITS, tell=lambda _: None, stopped=lambda: False
    )
    assert 2 <= most[0] <= IN_MEMORY  # steps overlap, and within the limit
    check(folder, ledger, 12)


def test_what_may_pass_is_tried_with_growing_waits():
    waits = [outcome_of(UnavailableError("away"), tries, LIMITS).again_in_s for tries in (1, 2, 3, 4)]
    assert 0.07 < waits[0] < 0.13 and 0.14 < waits[1] < 0.26 and 0.29 < waits[2] < 0.51 and waits[3] is None


COORDINATOR = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from postgres import empty
from worked import Written
from clearmargin.jobs.pool import run_pool
from clearmargin.jobs.worker import Limits
if __name__ == "__main__":
    folder = Path(sys.argv[2])
    work = Written(out=folder / "out", log=folder / "log", pause_s=float(sys.argv[3]))
    ended = run_pool(sys.argv[4], work, processes=2, threads=1,
                     limits=Limits(recipe="r", lease_s=30, backoff_s=0.1), tell=lambda e: print(e.case_id, flush=True))
    sys.exit(130 if ended.interrupted else 0)
"""


def start(folder, pause_s, place=None):
    (folder / "run.py").write_text(COORDINATOR)
    here = Path(__file__).parent.parent
    return subprocess.Popen(
        [sys.executable, folder / "run.py", here, folder, str(pause_s), place or folder / "ledger.sqlite"],
        stdout=subprocess.PIPE,
        text=True,
    )


def next_line(process):
    """A line that a coordinator prints; it has a minute for it."""
    ready, _, _ = select.select([process.stdout], [], [], 60)
    assert ready, "the coordinator says nothing"
    return process.stdout.readline()


def children_of(pid):
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    names = [int(p) for p in tasks.read_text().split()] if tasks.exists() else []
    return [p for p in names if b"spawn_main" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_ctrl_c_ends_after_the_items_at_hand(set_up):
    ledger, work, folder = set_up
    ledger.add(items(30))
    with start(folder, 0.3) as process:
        next_line(process)
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=60) == 130
    counts = ledger.counts()
    assert counts["leased"] == 0 and 1 <= counts["done"] < 30 and counts["failed"] == 0
    assert all(i.tries == 0 for i in ledger.items("pending"))
    run(ledger, work)
    check(folder, ledger, 30)


def test_killed_workers_and_a_killed_coordinator_lose_nothing(set_up):
    ledger, work, folder = set_up
    ledger.add(items(40))
    with start(folder, 0.1) as process:
        next_line(process)
        for pid in children_of(process.pid)[:1]:
            os.kill(pid, signal.SIGKILL)
        next_line(process)
        next_line(process)
        workers = children_of(process.pid)
        process.kill()
    end = time.monotonic() + 60
    while time.monotonic() < end and any(Path(f"/proc/{pid}/cmdline").exists() for pid in workers):
        time.sleep(0.1)  # they notice that their parent is gone, and end
    assert ledger.counts()["done"] < 40
    ledger.lost(most_tries=LIMITS.most_tries)
    assert ledger.counts()["leased"] == 0
    run(ledger, work)
    check(folder, ledger, 40)


def test_two_coordinators_share_one_ledger_in_postgres(postgres, tmp_path):
    """As two machines do; one is killed with its workers, and the other does the rest."""
    empty(postgres)
    ledger = Ledger(postgres)
    ledger.add(items(30))
    with start(tmp_path, 0.1, postgres) as first, start(tmp_path, 0.1, postgres) as second:
        next_line(first)
        next_line(second)
        for pid in [first.pid, *children_of(first.pid)]:
            os.kill(pid, signal.SIGKILL)
        said, _ = second.communicate(timeout=120)
        assert second.returncode == 0 and "case-" in said
    check(tmp_path, ledger, 30)
    tries = (tmp_path / "log").read_text().splitlines()
    assert len({t.split()[2] for t in tries}) == 4  # both coordinators' workers took part
    ledger.close()


def test_an_item_that_takes_an_archive_down_each_time_fails_in_the_end(set_up, monkeypatch):
    from clearmargin.jobs import worker

    ledger, work, folder = set_up
    ledger.add([*items(2), *items(1, do="away", until=10**6)])
    monkeypatch.setattr(worker, "_LOOK_AGAIN_S", 0.01)
    down = [0]

    class Taken(Written):
        def away(self):
            down[0] += 1
            return "" if down[0] % 2 == 0 else "paused: the archive does not answer"  # and it comes back

    limits = Limits(recipe="r", lease_s=30, backoff_s=0.01, most_tries=2)
    work_off(
        ledger, Taken(out=work.out, log=work.log), limits=limits, tell=lambda _: None, stopped=lambda: False
    )
    counts = ledger.counts()
    assert (counts["done"], counts["failed"]) == (2, 1)
    tries = [t for t in (folder / "log").read_text().splitlines() if t.startswith("case-0away ")]
    assert len(tries) == worker._MOST_SPARED + limits.most_tries
