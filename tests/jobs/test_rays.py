"""Actors of a Ray cluster of two nodes, one of which is killed in the middle: every item once."""

import hashlib
import os
import shutil
import sys
import threading
import time

import pytest
from command import command
from postgres import empty
from toy import train_toy
from worked import Written

from clearmargin.errors import ConfigError
from clearmargin.jobs.items import NewItem
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.rays import run_on_ray
from clearmargin.jobs.worker import Limits

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # Ray's own pipes and sockets
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
ITEMS = 24
LIMITS = Limits(recipe="r", lease_s=20, backoff_s=0.1)


@pytest.fixture
def cluster(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # actors import what the test does
    pytest.importorskip("ray", reason="pip install 'clearmargin[ray]'")
    from ray.cluster_utils import Cluster

    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield made
    made.shutdown()


def items():
    return [
        NewItem(
            key=hashlib.sha256(str(k).encode()).hexdigest(),
            recipe="r",
            case_id=f"case-{k}",
            source={"text": f"text {k}"},
        )
        for k in range(ITEMS)
    ]


def run(place, work, cluster, **options):
    events = []
    how = {"address": cluster.address, "actors": 2, "threads": 1, "gpu": False, "limits": LIMITS} | options
    ended = run_on_ray(place, work, tell=events.append, **how)
    return ended, events


def test_a_node_that_is_killed_loses_no_item(cluster, postgres, tmp_path):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    empty(postgres)
    ledger = Ledger(postgres)
    ledger.add(items())
    work = Written(out=tmp_path / "out", log=tmp_path / "log", pause_s=0.3)

    def kill():
        end = time.monotonic() + 120
        while time.monotonic() < end:
            began = work.log.read_text().splitlines() if work.log.exists() else []
            if len({line.split()[2] for line in began}) == 2 and len(began) >= 6:
                cluster.remove_node(node, allow_graceful=False)
                return
            time.sleep(0.1)

    killer = threading.Thread(target=kill)
    killer.start()
    ended, events = run(postgres, work, cluster)
    killer.join(130)
    assert not killer.is_alive()
    counts = ledger.counts()
    ledger.close()
    assert ended.why == "" and counts["done"] == ITEMS and counts["leased"] == counts["failed"] == 0
    for k in range(ITEMS):
        assert (tmp_path / "out" / f"case-{k}" / "result.txt").read_text() == f"TEXT {k}"
    assert not list((tmp_path / "out").glob(".*"))
    tries = work.log.read_text().splitlines()
    assert len({line.split()[2] for line in tries}) >= 2 and ITEMS < len(tries) <= ITEMS + 6
    assert {e.case_id for e in events} <= {f"case-{k}" for k in range(ITEMS)}


def test_a_model_that_does_not_load_ends_it_with_the_reason(cluster, tmp_path):
    place = str(tmp_path / "ledger.sqlite")
    ledger = Ledger(place)
    ledger.add(items()[:2])
    with pytest.raises(ConfigError, match="the model does not load"):
        run(place, Written(out=tmp_path / "out", log=tmp_path / "log", unable=True), cluster, actors=1)
    assert ledger.counts()["pending"] == 2
    ledger.close()


def test_an_address_where_nobody_is(tmp_path):
    pytest.importorskip("ray", reason="pip install 'clearmargin[ray]'")
    with pytest.raises(ConfigError, match="no Ray cluster at 'nonsense'"):
        run("x", None, type("None", (), {"address": "nonsense"}))


def test_a_batch_by_ray_gives_what_processes_give(tmp_path, monkeypatch):
    """With a small trained model, as the command runs it, on a cluster of this machine alone."""
    pytest.importorskip("ray", reason="pip install 'clearmargin[ray]'")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    (tmp_path / "toy").mkdir()
    folder, _, model = train_toy(tmp_path / "toy")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for k in range(3):
        shutil.copy(folder / "data" / f"t{k}.png", pictures)
    results = []
    for name, how in (("ray", ["--ray", "local"]), ("pool", [])):
        out = tmp_path / name
        arguments = [
            "batch",
            pictures,
            "--model",
            model,
            "--out",
            out,
            "--processes",
            "1",
            "--free",
            "0",
            "--no-track",
        ]
        code, said = command(*arguments, "--score-threshold", "0", *how)
        assert code == 0 and "3 done" in said, said
        files = [p for p in out.glob("case-*/*/**/*") if p.is_file() and "current" not in p.parts]
        results.append({str(p.relative_to(out)): p.read_bytes() for p in files})
    assert results[0] == results[1] and len(results[0]) > 9
