"""One MLflow run, by its id: what a training or an evaluation logs goes through here.

Nothing touches MLflow's global active run or its global tracking URI. A run has no user name, host name or path.
"""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.tracking.delivery import Delivery
from clearmargin.tracking.liveness import EndStatus, RunLock, last_words
from clearmargin.tracking.parameters import flatten, safe_key, without_path
from clearmargin.tracking.store import EXPERIMENT, experiment_id, open_client
from clearmargin.tracking.surroundings import environment_text, git_tags, software

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["Terminated", "TrackedRun"]

_log = logging.getLogger(__name__)
_METRICS_A_BATCH = 1000  # the REST interface's limit
_PARAMS_A_BATCH = 100


class Terminated(SystemExit):
    """SIGTERM, as an exception, so that a run is closed on the way out; the exit code is 143."""

    def __init__(self) -> None:
        super().__init__(143)


class TrackedRun:
    """A run in the tracking store, as a context manager.

    It ends FINISHED; FAILED when an exception leaves the block; KILLED on Ctrl-C and SIGTERM. The run of a process
    that could not say so (``kill -9``) is closed as FAILED when the next run of this user starts in the same
    experiment, or when it is resumed. A store that fails costs what it did not take, never the work: the first
    failure is a warning, metrics are sent again later, and the end says what was lost.

    >>> with TrackedRun.start("ct-phantom") as run:  # doctest: +SKIP
    ...     run.log_params({"model": {"name": "mask_rcnn"}})
    ...     run.log_metrics({"train/loss": 0.7}, step=1)

    Attributes:
        name: As the UI shows it.
        run_id: Empty where the store did not answer at the start; the work then goes on without one.
    """

    def __init__(self, client: MlflowClient | None, run_id: str, name: str, delivery: Delivery) -> None:
        """Made by :meth:`start` and :meth:`resume`."""
        self.name = name
        self.run_id = run_id
        self._client = client
        self._delivery = delivery
        self._pending: deque[Metric] = deque(maxlen=100_000)
        self._lock: RunLock | None = None
        self._old_handler: Any = None
        if run_id:
            # A home on a file system without locks is no reason not to train.
            with contextlib.suppress(OSError):
                self._lock = RunLock(run_id)

    @classmethod
    def start(
        cls,
        name: str,
        *,
        experiment: str = EXPERIMENT,
        uri: str | None = None,
        parent: TrackedRun | None = None,
        tags: Mapping[str, str] | None = None,
        pause_s: float = 30.0,
    ) -> TrackedRun:
        """Return a new run called ``name``, RUNNING from here on; runs that died before it are closed.

        Args:
            name: As the UI shows it.
            experiment: The experiment's name; made where it does not exist.
            uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.
            parent: The run this one is shown under, as a fold under its cross-validation.
            tags: Further tags.
            pause_s: How long a store that failed is left alone.

        Raises:
            InputError: If the experiment was deleted.
        """
        delivery = Delivery(pause_s)
        client = delivery.attempt("run", lambda: open_client(uri))
        if client is None:
            return cls(None, "", name, delivery)
        all_tags = {"software": software(), **git_tags()}
        all_tags.update({safe_key(k): str(without_path(v)) for k, v in (tags or {}).items()})
        if parent is not None and parent.run_id:
            all_tags["mlflow.parentRunId"] = parent.run_id
        opened = client

        def create() -> str:
            experiment_key = experiment_id(opened, experiment)
            _close_dead_runs(opened, experiment_key)
            return str(opened.create_run(experiment_key, run_name=name, tags=all_tags).info.run_id)

        run = cls(client, delivery.attempt("run", create) or "", name, delivery)
        run.log_text(environment_text(), "environment.txt")
        return run

    @classmethod
    def resume(cls, run_id: str, *, uri: str | None = None, pause_s: float = 30.0) -> TrackedRun:
        """Return the run ``run_id``, RUNNING again.

        Raises:
            InputError: If there is no such run, or a living process of this user is writing to it.
        """
        from mlflow.exceptions import MlflowException

        delivery = Delivery(pause_s)
        client = delivery.attempt("run", lambda: open_client(uri))
        if client is None:
            return cls(None, "", run_id, delivery)
        try:
            found = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise InputError(
                    f"no run '{run_id}' in the tracking store: `clearmargin review` lists the runs; "
                    "MLFLOW_TRACKING_URI names another store"
                ) from None
            delivery.attempt("run", lambda: client.get_run(run_id))
            return cls(None, "", run_id, delivery)
        try:
            RunLock(run_id).release()
        except BlockingIOError:
            raise InputError(
                f"run '{run_id}' is being written by another process: wait for it or stop it first"
            ) from None
        except OSError:
            pass
        run = cls(client, run_id, str(found.info.run_name), delivery)
        run._send("run", lambda c: c.update_run(run_id, status="RUNNING"))
        return run

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log nested settings as flat parameters; paths become ``<path>``.

        MLflow's parameters are written once: what a resumed run has already keeps its first value, and a value that
        differs now becomes the tag ``resumed.<name>``.
        """
        from mlflow.entities import Param, RunTag

        flat = flatten(config)

        def send(client: MlflowClient) -> None:
            known = client.get_run(self.run_id).data.params
            new = [Param(k, v) for k, v in flat.items() if k not in known]
            changed = [RunTag(f"resumed.{k}"[:250], v) for k, v in flat.items() if known.get(k, v) != v]
            for k in range(0, len(new), _PARAMS_A_BATCH):
                client.log_batch(self.run_id, params=new[k : k + _PARAMS_A_BATCH])
            for k in range(0, len(changed), _PARAMS_A_BATCH):
                client.log_batch(self.run_id, tags=changed[k : k + _PARAMS_A_BATCH])

        self._send("parameters", send, count=len(flat))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at ``step`` in one batch. What a store that is down did not take goes with a later batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending.extend(Metric(safe_key(k), float(v), now, step) for k, v in metrics.items())
        self._flush()

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Log an RGB (``(Y, X, 3)``) or grey (``(Y, X)``) uint8 picture; the UI shows a slider over ``step``."""
        self._send("images", lambda c: c.log_image(self.run_id, image, key=safe_key(key), step=step))

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a matplotlib figure as the artifact ``file``, such as ``figures/pr.png``."""
        self._send("figures", lambda c: c.log_figure(self.run_id, figure, file))

    def log_text(self, text: str, file: str) -> None:
        """Log ``text`` as the artifact ``file``; the caller sees to it that it names nobody."""
        self._send("files", lambda c: c.log_text(self.run_id, text, file))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all below it, as artifacts below ``folder``."""
        source = Path(path)

        def send(client: MlflowClient) -> None:
            if source.is_dir():
                client.log_artifacts(self.run_id, str(source), folder)
            else:
                client.log_artifact(self.run_id, str(source), folder)

        self._send("files", send)

    def log_data(self, name: str, digest: str, context: str = "training") -> None:
        """Log which data was used: the card's name and a digest of the files, never where they lie."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:36], source_type="data card", source="{}")
        entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
        self._send("data digests", lambda c: c.log_inputs(self.run_id, datasets=[entry]))
        self.set_tag(f"data.{name}.digest", digest)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; a path becomes ``<path>``."""
        self._send("tags", lambda c: c.set_tag(self.run_id, safe_key(key), str(without_path(value))))

    @property
    def client(self) -> MlflowClient | None:
        """The store's client, for what this class has no word for; None where the store did not answer."""
        return self._client

    def __enter__(self) -> TrackedRun:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
        ):
            self._old_handler = signal.signal(signal.SIGTERM, _on_sigterm)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._old_handler is not None:
            signal.signal(signal.SIGTERM, self._old_handler)
            self._old_handler = None
        self.end(_end_status(error))

    def end(self, status: EndStatus = "FINISHED") -> None:
        """Close the run: send what is pending, set how it ended, and say what was not logged."""
        if not self._client or not self.run_id:
            _log.warning("run '%s' was not tracked: the tracking store did not answer", self.name)
            return
        self._flush(urgent=True)
        self._delivery.lost["metrics"] += len(self._pending)
        self._pending.clear()
        closed = self._send(
            "end status", lambda c: c.set_terminated(self.run_id, status) or True, urgent=True
        )
        if self._lock is not None:
            self._lock.release(unsaid=None if closed else status)
            self._lock = None
        if self._delivery.summary():
            _log.warning("run '%s': not logged: %s", self.name, self._delivery.summary())

    def _flush(self, *, urgent: bool = False) -> None:
        """Send pending metrics, oldest first; those not taken stay pending."""

        def send(client: MlflowClient) -> None:
            while self._pending:
                batch = [self._pending[k] for k in range(min(_METRICS_A_BATCH, len(self._pending)))]
                client.log_batch(self.run_id, metrics=batch)
                for _ in batch:
                    self._pending.popleft()

        self._send("metrics", send, count=0, urgent=urgent)

    def _send(self, kind: str, action: Any, *, count: int = 1, urgent: bool = False) -> Any:
        client = self._client
        if client is None or not self.run_id:
            return None
        return self._delivery.attempt(kind, lambda: action(client), count=count, urgent=urgent)


def _end_status(error: BaseException | None) -> EndStatus:
    if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
        return "FINISHED"
    if isinstance(error, KeyboardInterrupt | Terminated):
        return "KILLED"
    if isinstance(error, SystemExit) and error.code in (130, 143):
        return "KILLED"
    return "FAILED"


def _on_sigterm(signum: int, frame: FrameType | None) -> None:
    raise Terminated


def _close_dead_runs(client: MlflowClient, experiment_key: str) -> None:
    """Close the runs of the experiment whose processes are gone."""
    for run in client.search_runs([experiment_key], "attributes.status = 'RUNNING'", max_results=200):
        status = last_words(run.info.run_id)
        if status is not None:
            client.set_tag(run.info.run_id, "ended", "its process ended without closing it")
            client.set_terminated(run.info.run_id, status)
