"""Workers as actors of a Ray cluster: the same work and the same ledger; a node that is lost loses no item."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from clearmargin.errors import ClearMarginError, ConfigError
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.pool import Ended, interrupts_noted
from clearmargin.jobs.worker import Event, Limits, Work, work_off

__all__ = ["run_on_ray"]

log = logging.getLogger(__name__)

_MOST_UNBORN = 3
_THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class _Worker:
    """What an actor is: it holds the model, and does items until none is left or it is told to stop."""

    def __init__(self, index: int, place: str, work: Work, limits: Limits) -> None:
        self._index, self._place, self._work, self._limits = index, place, work, limits
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._events: list[Event] = []

    def run(self) -> tuple[str, str]:
        """Return why it could not begin, and why it had to stop; "" and "" if there was nothing left to do."""
        try:
            self._work.prepare(self._index)
            ledger = Ledger(self._place)
        except ClearMarginError as error:
            return str(error), ""
        why = work_off(
            ledger, self._work, limits=self._limits, tell=self._tell, stopped=self._stopping.is_set
        )
        ledger.close()
        return "", why

    def _tell(self, event: Event) -> None:
        with self._lock:
            self._events.append(event)

    def events(self) -> list[Event]:
        """Return what happened since it was asked last."""
        with self._lock:
            events, self._events = self._events, []
        return events

    def stop(self) -> None:
        """End after the items at hand."""
        self._stopping.set()


def run_on_ray(
    place: str,
    work: Work,
    *,
    address: str,
    actors: int | None,
    threads: int,
    gpu: bool,
    limits: Limits,
    tell: Callable[[Event], object],
    tick: Callable[[], object] = lambda: None,
) -> Ended:
    """Work off a ledger with actors of a Ray cluster, and return once nothing is left to do.

    Args:
        place: The ledger's URL; a file if the cluster is this machine alone.
        work: What is done with an item.
        address: The cluster: ``auto``, ``HOST:PORT``, or ``local`` for one of this machine that ends with the call.
        actors: How many; each loads the model once. None for one per GPU, or as many as have cores.
        threads: CPU cores of each, and threads of its libraries.
        gpu: Whether each has a GPU of its own.
        limits: See `Limits`.
        tell: Called with each event, in this process.
        tick: Called about twice a second.

    Raises:
        ConfigError: There is no such cluster, or it has several machines and the ledger is a file, or the model cannot
            be loaded.
    """
    ray = _ray()
    interrupts: list[int] = []
    restarted, why = 0, ""
    with _connected(ray, address), interrupts_noted(interrupts):
        _check_place(ray, place)
        room = _room_for(ray, threads, gpu=gpu)
        count = room if actors is None else actors
        kind = ray.remote(_Worker).options(
            num_cpus=threads,
            num_gpus=int(gpu),
            max_concurrency=3,  # it answers while it works
            runtime_env={"env_vars": _environment(threads)},
        )

        def start(index: int) -> tuple[Any, Any]:
            actor = kind.remote(index, place, work, limits)
            return actor, actor.run.remote()

        running = {index: start(index) for index in range(count)}
        answered: set[Any] = set()
        unborn = 0
        while running:
            ended, _ = ray.wait([run for _, run in running.values()], num_returns=len(running), timeout=0.5)
            for index, (actor, run) in list(running.items()):
                if _drain(ray, actor, tell):
                    answered.add(actor)
                if interrupts or why:
                    actor.stop.remote()
                if len(interrupts) > 1:
                    ray.kill(actor)
                if run not in ended:
                    continue
                del running[index]
                try:
                    cannot, stop = ray.get(run)
                    ray.kill(actor)  # its cores are wanted
                except ray.exceptions.RayTaskError as error:
                    raise error.cause from None  # a bug of ours, where it happened
                except ray.exceptions.RayError:
                    if interrupts or why:
                        continue
                    unborn = 0 if actor in answered else unborn + 1
                    if unborn > _MOST_UNBORN:
                        raise ConfigError(
                            "actors do not start: this version of clearmargin has to be installed on each node"
                        ) from None
                    _take_back(place, limits)
                    restarted += 1
                    log.warning("an actor was lost, perhaps with its node: started anew where there is room")
                    running[index] = start(index)
                    continue
                if cannot:
                    raise ConfigError(cannot)
                why = why or stop
            tick()
    _take_back(place, limits)
    return Ended(interrupted=bool(interrupts), why=why, restarted=restarted)


def _environment(threads: int) -> dict[str, str]:
    """Return what an actor finds in its environment beside its node's own; no credentials, as Ray shows it."""
    modules = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return modules | dict.fromkeys(_THREADS, str(threads))


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it would report to its makers
    try:
        import ray
    except ImportError:
        raise ConfigError("--ray needs Ray: pip install 'clearmargin[ray]'") from None
    return ray


@contextmanager
def _connected(ray: Any, address: str) -> Iterator[None]:
    """Be connected to a cluster as long as the block runs."""
    try:
        ray.init(
            address=address,
            include_dashboard=False if address == "local" else None,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"no Ray cluster at '{address}' ({type(error).__name__}): expected auto, HOST:PORT or local"
        ) from None
    try:
        yield
    finally:
        ray.shutdown()


def _check_place(ray: Any, place: str) -> None:
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if "://" not in place and len(hosts) > 1:
        raise ConfigError(
            f"the cluster has {len(hosts)} machines, and a ledger in a file is for one: name a Postgres database with "
            "--ledger"
        )


def _room_for(ray: Any, threads: int, *, gpu: bool) -> int:
    """Return how many actors there is room for.

    Raises:
        ConfigError: For none: Ray would wait for ever.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    number = sum(
        int(min(n.get("CPU", 0) // threads, n.get("GPU", 0) if gpu else n.get("CPU", 0))) for n in nodes
    )
    if not number:
        raise ConfigError(
            f"no node of the cluster has {threads} CPU cores{' and a GPU' if gpu else ''}, which one worker takes"
        )
    return number


def _drain(ray: Any, actor: Any, tell: Callable[[Event], object]) -> bool:
    """Pass on what an actor told; return whether it answers: it may be starting, or lost, and the ledger knows."""
    with contextlib.suppress(ray.exceptions.RayError):
        for event in ray.get(actor.events.remote(), timeout=2):
            tell(event)
        return True
    return False


def _take_back(place: str, limits: Limits) -> None:
    ledger = Ledger(place)
    ledger.lost(most_tries=limits.most_tries)
    ledger.close()
    time.sleep(0.1)
