"""One MLflow run, by its id: what a training or an evaluation logs goes through here.

Nothing touches MLflow's global active run or tracking URI. A run has no user name, host name or path.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from clearmargin.tracking.delivery import Delivery
from clearmargin.tracking.ending import end_status, restore_sigterm, turn_sigterm_into_exception
from clearmargin.tracking.liveness import EndStatus, RunLock
from clearmargin.tracking.opening import create_run, lock_run, reopen_run
from clearmargin.tracking.parameters import flatten, safe_key, without_path
from clearmargin.tracking.store import EXPERIMENT, open_client
from clearmargin.tracking.surroundings import environment_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from mlflow import MlflowClient
    from mlflow.entities import Metric

__all__ = ["TrackedRun"]

_log = logging.getLogger(__name__)
T = TypeVar("T")
_METRICS_A_BATCH = 1000  # the REST interface's limit
_PARAMS_A_BATCH = 100


class TrackedRun:
    """A run in the tracking store, RUNNING from :meth:`start` or :meth:`resume` to its ``with`` block's end.

    It ends FINISHED; FAILED when an exception leaves the block; KILLED on Ctrl-C and SIGTERM. The run of a
    process that could not say so (``kill -9``) is closed as FAILED when this user's next run in the same
    experiment starts. A store that fails costs what it did not take, never the work: the first failure is a
    warning, metrics are sent again later, and the end tells what was lost.

    >>> with TrackedRun.start("ct-phantom") as run:  # doctest: +SKIP
    ...     run.log_metrics({"train/loss": 0.7}, step=1)

    Attributes:
        name: As the UI shows it.
        run_id: Empty where the store did not answer at the start; the work then goes on without a run.
    """

    def __init__(
        self,
        name: str,
        run_id: str,
        *,
        client: MlflowClient | None,
        delivery: Delivery,
        lock: RunLock | None,
    ) -> None:
        """Made by :meth:`start` and :meth:`resume`."""
        self.name = name
        self.run_id = run_id
        self._client = client
        self._delivery = delivery
        self._pending: deque[Metric] = deque(maxlen=100_000)
        self._lock = lock
        self._old_handler: Any = None
        self.log_text(environment_text(), "environment.txt")

    @classmethod
    def start(
        cls,
        name: str,
        *,
        experiment: str = EXPERIMENT,
        tags: Mapping[str, str] | None = None,
        parent: TrackedRun | None = None,
        uri: str | None = None,
        pause_s: float = 30.0,
    ) -> TrackedRun:
        """Return a new run; this user's runs of the experiment that died before are closed.

        Args:
            name: As the UI shows it.
            experiment: The experiment's name; made where it does not exist.
            tags: Further tags; a path becomes ``<path>``.
            parent: The run this one is shown under, as a fold under its cross-validation.
            uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.
            pause_s: How long a store that failed is left alone.

        Raises:
            InputError: If the experiment was deleted.
        """
        delivery = Delivery(pause_s)
        client = delivery.attempt("run", lambda: open_client(uri))
        run_id = ""
        if client is not None:
            opened = client
            all_tags = {safe_key(key): str(without_path(value)) for key, value in (tags or {}).items()}
            if parent is not None and parent.run_id:
                all_tags["mlflow.parentRunId"] = parent.run_id
            made = delivery.attempt("run", lambda: create_run(opened, experiment, name, all_tags))
            run_id = made or ""
        lock = lock_run(run_id) if run_id else None
        return cls(name, run_id, client=client, delivery=delivery, lock=lock)

    @classmethod
    def resume(
        cls, run_id: str, *, name: str = "resumed", uri: str | None = None, pause_s: float = 30.0
    ) -> TrackedRun:
        """Return the run ``run_id``, RUNNING again; a new one called ``name``, with a warning, if it is gone.

        Raises:
            InputError: If a living process of this user is writing to it.
        """
        delivery = Delivery(pause_s)
        client = delivery.attempt("run", lambda: open_client(uri))
        if client is None:
            return cls(name, "", client=None, delivery=delivery, lock=None)
        lock = lock_run(run_id)
        opened = client
        found = delivery.attempt("run", lambda: reopen_run(opened, run_id))
        if found:
            return cls(found, run_id, client=client, delivery=delivery, lock=lock)
        if lock is not None:
            lock.release()
        if found is not None:
            _log.warning("run '%s' is not in this tracking store: a new one is made", run_id)
            return cls.start(name, uri=uri, pause_s=pause_s)
        return cls(name, "", client=client, delivery=delivery, lock=None)

    def __enter__(self) -> TrackedRun:
        self._old_handler = turn_sigterm_into_exception()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        restore_sigterm(self._old_handler)
        self._close(end_status(error))

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log nested settings as flat parameters; paths become ``<path>``.

        MLflow's parameters are written once: what a resumed run has keeps its first value, and a value that
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

        self.deliver("parameters", send, count=len(flat))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at ``step``; what a store that is down does not take goes with a later batch."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending.extend(Metric(safe_key(k), float(v), now, step) for k, v in metrics.items())
        self._flush()

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Log a uint8 picture, ``(Y, X, 3)`` RGB or ``(Y, X)``; the UI shows a slider over ``step``."""
        self.deliver("images", lambda c: c.log_image(self.run_id, image, key=safe_key(key), step=step))

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a matplotlib figure as the artifact ``file``, such as ``figures/pr.png``."""
        self.deliver("figures", lambda c: c.log_figure(self.run_id, figure, file))

    def log_text(self, text: str, file: str) -> None:
        """Log ``text`` as the artifact ``file``; the caller sees to it that it names nobody."""
        self.deliver("files", lambda c: c.log_text(self.run_id, text, file))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all below it, as artifacts below ``folder``."""
        source = Path(path)

        def send(client: MlflowClient) -> None:
            if source.is_dir():
                client.log_artifacts(self.run_id, str(source), folder)
            else:
                client.log_artifact(self.run_id, str(source), folder)

        self.deliver("files", send)

    def log_data(self, name: str, digest: str, context: str = "training") -> None:
        """Log which data was used: the card's name and a digest of the files, never where they lie."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:36], source_type="data card", source="{}")
        entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
        self.deliver("data digests", lambda c: c.log_inputs(self.run_id, datasets=[entry]))
        self.set_tag(f"data.{name}.digest", digest)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; a path becomes ``<path>``."""
        self.deliver("tags", lambda c: c.set_tag(self.run_id, safe_key(key), str(without_path(value))))

    def deliver(
        self, kind: str, action: Callable[[MlflowClient], T], *, count: int = 1, urgent: bool = False
    ) -> T | None:
        """Return what ``action`` makes of the store's client, or None where the store fails.

        For what this class has no word for; see :meth:`clearmargin.tracking.delivery.Delivery.attempt`.
        """
        client = self._client
        if client is None or not self.run_id:
            return None
        return self._delivery.attempt(kind, lambda: action(client), count=count, urgent=urgent)

    def _close(self, status: EndStatus) -> None:
        """Send what is pending, set how the run ended, and tell what was not logged."""
        run_id = self.run_id
        if not run_id:
            _log.warning(
                "run '%s' was not tracked: the tracking store did not answer at its start", self.name
            )
            return
        self._flush(urgent=True)
        self._delivery.lost["metrics"] += len(self._pending)
        self._pending.clear()

        def finish(client: MlflowClient) -> bool:
            client.set_terminated(run_id, status)
            return True

        closed = self.deliver("end status", finish, urgent=True)
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

        self.deliver("metrics", send, count=0, urgent=urgent)
