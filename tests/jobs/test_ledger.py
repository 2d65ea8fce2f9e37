"""The ledger: each item once, whoever asks; on SQLite and on Postgres."""

import errno
import hashlib
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from postgres import empty

from clearmargin.errors import ConfigError
from clearmargin.jobs.items import NewItem, Outcome
from clearmargin.jobs.ledger import Ledger
from clearmargin.owners import owner_here, owner_is_alive

DONE = Outcome(state="done", folder="x/y", files={"seg.dcm": "ab"}, instances=3, seconds=1.5)


def item(number, case=None, recipe="r"):
    key = hashlib.sha256(f"{number} {recipe}".encode()).hexdigest()
    return NewItem(
        key=key, recipe=recipe, case_id=case or f"case-{number}", source={"path": f"/Anna/{number}"}
    )


@pytest.fixture(params=["sqlite", "postgres"])
def place(request, tmp_path):
    if request.param == "sqlite":
        return str(tmp_path / "ledger.sqlite")
    url = request.getfixturevalue("postgres")
    empty(url)
    return url


@pytest.fixture
def ledger(place):
    book = Ledger(place)
    yield book
    book.close()


def test_an_item_is_added_claimed_and_done_once(ledger):
    assert ledger.add([item(1), item(2), item(1)]) == (2, 0)
    assert ledger.add([item(1)]) == (0, 1)
    first = ledger.claim("me", recipe="r", lease_s=60)
    second = ledger.claim("you", recipe="r", lease_s=60)
    assert {first.case_id, second.case_id} == {"case-1", "case-2"} and first.tries == 1
    assert ledger.claim("me", recipe="r", lease_s=60) is None
    assert ledger.finish(first, DONE) == "x/y"
    assert ledger.finish(first, DONE) is None  # no longer leased: nothing is recorded twice
    counts = ledger.counts()
    assert (counts["done"], counts["leased"], counts["pending"]) == (1, 1, 0)
    (done,) = ledger.items("done")
    assert (
        done.files == {"seg.dcm": "ab"}
        and done.current
        and done.source == {"path": f"/Anna/{done.case_id[5:]}"}
    )
    assert ledger.totals("r") == {"instances": 3, "warned": 0, "seconds": 1.5}


def test_another_recipe_is_other_work(ledger):
    ledger.add([item(1), item(1, recipe="s")])
    assert ledger.claim("me", recipe="s", lease_s=60).recipe == "s"
    assert ledger.claim("me", recipe="s", lease_s=60) is None
    assert ledger.counts("r")["pending"] == 1 and ledger.counts("s")["leased"] == 1
    assert sum(ledger.counts().values()) == 2


def test_a_lost_lease_is_taken_back_and_the_late_owner_changes_nothing(ledger):
    ledger.add([item(1)])
    late = ledger.claim("other:1:1", recipe="r", lease_s=-1)
    assert ledger.lost(most_tries=3) == 1
    again = ledger.claim("me", recipe="r", lease_s=60)
    assert again.id == late.id and again.tries == 2
    assert ledger.finish(late, DONE) is None
    assert ledger.counts()["leased"] == 1
    assert ledger.finish(again, DONE) == "x/y"


def test_an_item_that_ends_its_process_each_time_fails_in_the_end(ledger):
    ledger.add([item(1), item(2)])
    for _ in range(3):
        assert ledger.claim("other:1:1", recipe="r", lease_s=-1).case_id == "case-1"
        ledger.lost(most_tries=3)
    (failed,) = ledger.items("failed")
    assert failed.case_id == "case-1" and failed.kind == "ProcessEnded" and "3 times" in failed.reason
    assert ledger.counts()["pending"] == 1
    assert ledger.failures() == {"ProcessEnded": 1}
    assert ledger.retry() == 1 and ledger.counts()["pending"] == 2


def test_a_renewed_lease_is_kept_and_a_released_one_costs_no_try(ledger):
    ledger.add([item(1)])
    ledger.claim("me", recipe="r", lease_s=-1)
    ledger.renew("me", lease_s=60)
    assert ledger.lost(most_tries=3) == 0
    assert ledger.release("me") == 1
    assert ledger.claim("me", recipe="r", lease_s=60).tries == 1


def test_what_may_pass_is_tried_later(ledger):
    ledger.add([item(1)])
    one = ledger.claim("me", recipe="r", lease_s=60)
    ledger.finish(one, Outcome(state="failed", kind="UnavailableError", reason="away", again_in_s=1000))
    assert ledger.counts()["pending"] == 1 and ledger.claim("me", recipe="r", lease_s=60) is None
    import time

    later = ledger.claim("me", recipe="r", lease_s=60, now=time.time() + 1001)
    assert later.tries == 2


def test_a_grown_series_names_its_predecessor_and_one_result_is_current(ledger):
    ledger.add([item("old", case="case-1")])
    old = ledger.claim("me", recipe="r", lease_s=60)
    ledger.finish(old, replace(DONE, folder="case-1/old"))
    ledger.add([item("new", case="case-1")])
    new = ledger.claim("me", recipe="r", lease_s=60)
    assert new.predecessor == old.id
    assert [i.folder for i in ledger.items(current=True)] == ["case-1/old"]  # until the new one is there
    assert ledger.finish(new, replace(DONE, folder="case-1/new")) == "case-1/new"
    assert [i.folder for i in ledger.items(current=True)] == ["case-1/new"]
    assert ledger.withdraw([new.id]) == 1 and not list(ledger.items(current=True))
    assert ledger.counts()["withdrawn"] == 1


def test_an_older_item_that_ends_late_does_not_become_current(ledger):
    ledger.add([item("a", case="case-1")])
    old = ledger.claim("me", recipe="r", lease_s=60)
    ledger.add([item("b", case="case-1")])
    new = ledger.claim("me", recipe="r", lease_s=60)
    assert ledger.finish(new, replace(DONE, folder="new")) == "new"
    assert ledger.finish(old, replace(DONE, folder="old")) == "new"
    assert [i.folder for i in ledger.items(current=True)] == ["new"]


def test_many_claim_at_once_and_nobody_gets_the_same(place, ledger):
    ledger.add(item(k) for k in range(60))
    taken, errors = [], []

    def take():
        try:
            book = Ledger(place)
            while (one := book.claim(f"t{threading.get_ident()}", recipe="r", lease_s=60)) is not None:
                taken.append(one.id)
                book.finish(one, DONE)
            book.close()
        except Exception as error:  # noqa: BLE001 - told below
            errors.append(error)

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=120)
    assert not errors and sorted(taken) == sorted(set(taken)) and len(taken) == 60
    assert ledger.counts()["done"] == 60


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.sampled_from(["add", "claim", "done", "again", "lose", "release", "retry", "withdraw"]),
        max_size=30,
    )
)
def test_the_counters_are_what_a_scan_counts(tmp_path, steps):
    folder = tmp_path / os.urandom(6).hex()
    ledger = Ledger(folder / "l.sqlite")
    held, number = [], 0
    for step in steps:
        if step == "add":
            ledger.add([item(number, case=f"case-{number % 3}")])
            number += 1
        elif step == "claim":
            held += [one for one in [ledger.claim("me", recipe="r", lease_s=60)] if one]
        elif step in ("done", "again") and held:
            outcome = DONE if step == "done" else Outcome(state="failed", again_in_s=0)
            ledger.finish(held.pop(), outcome)
        elif step == "lose":
            ledger.renew("me", lease_s=-1)
            ledger.lost(most_tries=2)
        elif step == "release":
            ledger.release("me")
        elif step == "retry":
            ledger.retry(states=("failed", "withdrawn"))
        elif step == "withdraw":
            ledger.withdraw([i.id for i in ledger.items("done")][:1])
        counts = ledger.counts()
        scanned = dict.fromkeys(counts, 0)
        current = {}
        for one in ledger.items():
            scanned[one.state] += 1
            current[one.case_id] = current.get(one.case_id, 0) + one.current
        assert counts == scanned and max(current.values(), default=0) <= 1
    ledger.close()


def test_the_ledger_is_private_and_says_what_it_is_not(tmp_path):
    path = tmp_path / "deep" / "ledger.sqlite"
    first = Ledger(path)
    first.add([item(1)])
    assert path.stat().st_mode & 0o077 == 0
    (tmp_path / "no.sqlite").write_text("not a database, but long enough to be looked at")
    with pytest.raises(ConfigError, match="not a ledger"):
        Ledger(tmp_path / "no.sqlite")
    with pytest.raises(ConfigError, match=r"expected a file or postgresql"):
        Ledger("mysql://someone:secret@host/db")
    with pytest.raises(ConfigError) as caught:
        Ledger("postgresql://someone:secret@127.0.0.1:9/db")
    assert "secret" not in str(caught.value) and "ledger" in str(caught.value)
    later = Ledger(path)
    later.remember("schema", 99)
    with pytest.raises(ConfigError, match="version 99"):
        Ledger(path)
    assert "Anna" not in repr(next(later.items()))


def test_an_owner_is_known_to_live_or_not():
    here = owner_here()
    assert owner_is_alive(here) is True and owner_is_alive(f"{here}:17") is True
    host, pid, started = here.split(":")
    assert (
        owner_is_alive(f"{host}:{pid}:{int(started) + 1}") is False
    )  # the number was given to another process
    assert owner_is_alive(f"elsewhere:{pid}:{started}") is None
    child = os.fork()
    if child == 0:
        os._exit(0)
    name = f"{host}:{child}:{started}"
    assert owner_is_alive(name) is False
    os.waitpid(child, 0)
    assert owner_is_alive(name) is False


def test_what_was_sent_is_known_again(ledger):
    ledger.add([item(1)])
    one = ledger.claim("me", recipe="r", lease_s=60)
    ledger.finish(one, replace(DONE, sent=(("1.2.3", "ab", "pacs"),)))
    assert (
        ledger.sent(one) == [(one.id, "1.2.3", "pacs")]
        and ledger.is_own("1.2.3")
        and not ledger.is_own("1.2.4")
    )


def test_places_are_kept(ledger):
    assert ledger.known_place("/a") is None
    ledger.note_place("/a", "x", [{"case": "c"}])
    ledger.note_place("/a", "y", [])
    assert ledger.known_place("/a") == ("y", [])


FULL = """
import resource, sys
from clearmargin.jobs.items import NewItem
from clearmargin.jobs.ledger import Ledger
ledger = Ledger(sys.argv[1]) if sys.argv[3] == "grows" else None
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    ledger = ledger or Ledger(sys.argv[1])
    ledger.add([NewItem(key=str(k), recipe="r", case_id=f"case-{k}", source={"x": "y" * 500}) for k in range(900)])
except OSError as error:
    raise SystemExit(f"errno {error.errno}")
"""


@pytest.mark.parametrize(
    ("limit", "which", "left"), [("8192", "made", []), ("200000", "grows", ["l.sqlite"])]
)
def test_a_full_disk_is_said_by_its_number_and_leaves_no_half_made_ledger(limit, which, left, tmp_path):
    """A limit on a file's size stands for the disk: SQLite says "disk I/O error", or that the database is full."""
    done = subprocess.run(
        [sys.executable, "-c", FULL, tmp_path / "l.sqlite", limit, which],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline")},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert done.stderr.strip() == f"errno {errno.EFBIG}"
    assert [p.name for p in tmp_path.iterdir() if not p.name.endswith(("-wal", "-shm"))] == left
    for name in left:
        Ledger(tmp_path / name).close()
