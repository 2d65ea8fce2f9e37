"""Several workers as processes of one machine: started anew if one ends, stopped after the item at hand by Ctrl-C."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from clearmargin.errors import ClearMarginError, ConfigError
from clearmargin.jobs.ledger import Ledger
from clearmargin.jobs.worker import Event, Limits, Work, work_off

__all__ = ["Ended", "interrupts_noted", "run_pool"]

log = logging.getLogger(__name__)

_CANNOT = 17  # a worker's exit code: it said why


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a pool ended.

    Attributes:
        interrupted: By Ctrl-C or SIGTERM.
        why: What it had to stop for, such as a full disk; "" if it ran out of work.
        restarted: How many workers ended by themselves and were started anew.
    """

    interrupted: bool
    why: str
    restarted: int


def run_pool(
    place: str,
    work: Work,
    *,
    processes: int,
    threads: int,
    limits: Limits,
    tell: Callable[[Event], object],
    tick: Callable[[], object] = lambda: None,
    until_empty: bool = True,
    stopped: Callable[[], bool] = lambda: False,
) -> Ended:
    """Work off a ledger with worker processes, and return once nothing is left to do.

    Args:
        place: The ledger's file or URL; each process opens it for itself.
        work: What is done with an item.
        processes: How many workers; each loads the model once.
        threads: Threads of each worker's libraries (OMP), so that workers do not take the cores from each other.
        limits: See `Limits`.
        tell: Called with each event, in this process.
        tick: Called twice a second.
        until_empty: End once nothing is left to do; else wait for more.
        stopped: Asked now and then: end after the items at hand, as on Ctrl-C.

    Raises:
        ConfigError: A worker cannot do any work, such as for a model that cannot be loaded.
    """
    context = multiprocessing.get_context("spawn")
    interrupts: list[int] = []
    restarted, why = 0, ""
    running: dict[int, _Running] = {}

    def start(index: int) -> _Running:
        # A pipe for each, and no lock that two share: one that is killed with a lock in its hand would stop all.
        ours, theirs = context.Pipe()
        arguments = (index, place, work, limits, theirs, until_empty)
        process = context.Process(target=_worker, args=arguments, name=f"worker-{index}", daemon=True)
        with _threads_of(threads):
            process.start()
        theirs.close()
        return _Running(process=process, pipe=ours)

    with interrupts_noted(interrupts):
        running |= {index: start(index) for index in range(processes)}
        try:
            while running:
                for worker in running.values():
                    why = worker.drain(tell) or why
                tick()
                ending = bool(interrupts or why or stopped())
                if ending:
                    for worker in running.values():
                        worker.stop()
                if len(interrupts) > 1:
                    for worker in running.values():
                        worker.process.terminate()
                for index, worker in list(running.items()):
                    if worker.process.is_alive():
                        continue
                    why = worker.drain(tell) or why
                    del running[index]
                    code = worker.close()
                    if code in (0, _CANNOT) or ending or why:
                        continue
                    _take_back(place, limits)
                    restarted += 1
                    log.warning("a worker ended with code %s: started anew", code)
                    time.sleep(min(5.0, 0.1 * 2 ** min(restarted, 6)))
                    running[index] = start(index)
                time.sleep(0.05)
        finally:
            for worker in running.values():
                worker.process.terminate()
                worker.process.join()
                worker.close()
            _take_back(place, limits)
    if why.startswith(_CONFIG):
        raise ConfigError(why.removeprefix(_CONFIG))
    return Ended(interrupted=bool(interrupts), why=why, restarted=restarted)


_CONFIG = "config: "


@dataclass
class _Running:
    """A worker's process, and the pipe to it."""

    process: Any
    pipe: Any
    stopping: bool = False

    def drain(self, tell: Callable[[Event], object]) -> str:
        """Pass on what it told; return why it has to stop, if it said so."""
        why = ""
        with contextlib.suppress(EOFError, OSError):  # half a message of a process that was killed
            while self.pipe.poll():
                content = self.pipe.recv()
                if isinstance(content, Event):
                    tell(content)
                else:
                    why = why or content
        return why

    def stop(self) -> None:
        """Ask it to stop after the item at hand."""
        if not self.stopping:
            self.stopping = True
            with contextlib.suppress(OSError):
                self.pipe.send("stop")

    def close(self) -> int:
        """Return the exit code of a process that has ended, and close what belongs to it."""
        code = int(self.process.exitcode)
        self.process.close()
        self.pipe.close()
        return code


def _worker(index: int, place: str, work: Work, limits: Limits, pipe: Any, until_empty: bool) -> None:
    """Run in the worker's process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to all; the parent decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    lock, stops = threading.Lock(), threading.Event()

    def send(content: Any) -> None:
        with lock, contextlib.suppress(OSError):  # nobody listens any more
            pipe.send(content)

    def listen() -> None:
        with contextlib.suppress(EOFError, OSError):  # the parent was killed: finish what is at hand
            pipe.recv()
        stops.set()

    threading.Thread(target=listen, daemon=True).start()
    try:
        work.prepare(index)
        ledger = Ledger(place)
    except ClearMarginError as error:
        send(f"{_CONFIG}{error}")
        os._exit(_CANNOT)
    why = work_off(ledger, work, limits=limits, tell=send, stopped=stops.is_set, until_empty=until_empty)
    ledger.close()
    if why:
        send(why)
    os._exit(_CANNOT if why else 0)  # threads of libraries may hang at exit; all that counts is written


def _take_back(place: str, limits: Limits) -> None:
    ledger = Ledger(place)
    ledger.lost(most_tries=limits.most_tries)
    ledger.close()


@contextmanager
def _threads_of(threads: int) -> Any:
    """Let a process that is started within have so many threads in its numeric libraries."""
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update({name: str(threads) for name in names})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def interrupts_noted(interrupts: list[int]) -> Any:
    """Let Ctrl-C and SIGTERM stop after the items at hand; a second one ends the workers at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def note(number: int, _: Any) -> None:
        interrupts.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
