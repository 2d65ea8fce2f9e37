"""One MLflow run, by its id: what a training or an evaluation logs goes through here.

Nothing touches MLflow's global active run or tracking URI. A run has no user name, host name or path.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
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
from clearmargin.tracking.surroundings import changed_code, environment_text, hardware
from clearmargin.tracking.trainings import WEIGHTS_TAG, training_of, weights_of

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
    """A run in the tracking store, as a context manager: it runs inside the ``with`` block.

    It ends FINISHED; FAILED when an exception leaves the block; KILLED on Ctrl-C and SIGTERM. The run of a
    process that could not say so (``kill -9``) is closed as FAILED when this user's next run in the same
    experiment starts. A store that fails never costs the work: the first failure is a warning, what it did not take
    is sent again later, at the end at the latest, and the end tells what was lost.

    >>> with TrackedRun(name="ct-phantom") as run:  # doctest: +SKIP
    ...     run.log_metrics({"train/loss": 0.7}, step=1)

    Attributes:
        name: As the UI shows it.
        run_id: Empty before the block, and where the store does not answer or ``enabled`` is false.
    """

    def __init__(
        self,
        *,
        name: str,
        experiment: str = EXPERIMENT,
        run_id: str | None = None,
        enabled: bool = True,
        parent: TrackedRun | None = None,
        uri: str | None = None,
        pause_s: float = 30.0,
    ) -> None:
        """Describe the run; nothing is sent yet.

        Args:
            name: As the UI shows it; a resumed run keeps its own.
            experiment: The experiment's name; made where it does not exist.
            run_id: A run to go on with. Where the store does not know it, a new one is made, with a warning.
            enabled: False for the further processes of a training on several devices: nothing is logged.
            parent: The run this one is shown under, as a fold under its cross-validation.
            uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.
            pause_s: How long a store that failed is left alone.
        """
        self.name = name
        self.run_id = ""
        self._wanted = run_id
        self._experiment, self._enabled, self._parent, self._uri = experiment, enabled, parent, uri
        self._delivery = Delivery(pause_s)
        self._client: MlflowClient | None = None
        self._pending: deque[Metric] = deque(maxlen=100_000)
        self._first: list[Callable[[], None]] = []
        self._lock: RunLock | None = None
        self._stage: TemporaryDirectory[str] | None = None
        self._old_handler: Any = None

    def on_start(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Have parameters, text artifacts (file name to text) and tags logged once the run begins."""
        if params:
            self._first.append(lambda: self.log_params(params))
        for file, text in (texts or {}).items():
            self._first.append(partial(self.log_text, text, file))
        for key, value in (tags or {}).items():
            self._first.append(partial(self.set_tag, key, value))

    def __enter__(self) -> TrackedRun:
        if not self._enabled:
            return self
        self._client = self._delivery.attempt("run", lambda: open_client(self._uri), count=0)
        if self._client is not None:
            self._open(self._client)
        self._old_handler = turn_sigterm_into_exception()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._enabled:
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

        self._send("parameters", send, count=len(flat))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at ``step``; what a store that is down does not take goes with a later batch."""
        if not self._enabled:
            return
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._pending.extend(Metric(safe_key(k), float(v), now, step) for k, v in metrics.items())
        self._flush()

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Log a uint8 picture, ``(Y, X, 3)`` RGB or ``(Y, X)``; the UI shows a slider over ``step``."""
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

        self._send("files", send, later=lambda: self._staged(source, folder))

    def log_data(self, name: str, digest: str, context: str = "training") -> None:
        """Log which data was used: the card's name and a digest of the files, never where they lie."""
        if not self._enabled:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        data = Dataset(name=name, digest=digest[:36], source_type="data card", source="{}")
        entry = DatasetInput(data, [InputTag("mlflow.data.context", context)])
        self._send("data digests", lambda c: c.log_inputs(self.run_id, datasets=[entry]))
        self.set_tag(f"data.{name}.digest", digest)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; a path becomes ``<path>``."""
        self._send("tags", lambda c: c.set_tag(self.run_id, safe_key(key), str(without_path(value))))

    def describe(self, text: Callable[[str], str]) -> None:
        """Set the run's description, Markdown that its page shows.

        Args:
            text: Returns it, given the address of the run's files in the tracking pages.
        """

        def send(client: MlflowClient) -> None:
            experiment = client.get_run(self.run_id).info.experiment_id
            page = f"#/experiments/{experiment}/runs/{self.run_id}/artifacts"
            client.set_tag(self.run_id, "mlflow.note.content", text(page))

        self._send("descriptions", send)

    def log_model_used(self, weights_sha256: str, name: str) -> None:
        """Join this run to the training that made a model: as its child, with the logged model as its input.

        The training is found by the hash of its weights, so that a copied model folder is joined, too. Nothing is
        done if this store knows no such training.

        Args:
            weights_sha256: Of the model.
            name: This run's new name, with ``{}`` in the place of the training's.
        """

        def send(client: MlflowClient) -> None:
            from mlflow.entities import LoggedModelInput

            training = training_of(client, weights_sha256)
            if training is None:
                return
            client.set_tag(self.run_id, "mlflow.parentRunId", training.run_id)
            client.set_tag(self.run_id, "training", training.run_id)
            client.update_run(self.run_id, name=name.format(training.name))
            if training.model_id:
                client.log_inputs(self.run_id, models=[LoggedModelInput(training.model_id)])

        self._send("links", send)

    def log_model(self, folder: Path) -> str | None:
        """Log a model folder as a loadable pyfunc; return ``models:/ID``, or None where the store fails.

        Raises:
            InputError: If ``folder`` is not a model folder.
        """
        from clearmargin.tracking.flavour import log_model

        uri: str | None = self._send("models", lambda c: log_model(c, self.run_id, folder))
        self.set_tag(WEIGHTS_TAG, weights_of(folder))
        return uri

    def _open(self, client: MlflowClient) -> None:
        """Take up the wanted run or make a new one, lock it, and log what waits for its beginning."""
        if self._wanted is not None:
            wanted = self._wanted
            self._lock = lock_run(wanted)
            known = self._delivery.attempt("run", lambda: reopen_run(client, wanted), count=0)
            if known:
                self.run_id = wanted
            elif self._lock is not None:
                self._lock.release()
            if known is False:
                _log.warning("run '%s' is not in this tracking store: a new one is made", wanted)
            elif known is None:
                return
        if not self.run_id:
            parent = self._parent.run_id if self._parent is not None else ""
            tags = {"mlflow.parentRunId": parent} if parent else {}
            made = self._delivery.attempt(
                "run", lambda: create_run(client, self._experiment, self.name, tags), count=0
            )
            self.run_id = made or ""
            self._lock = lock_run(self.run_id) if self.run_id else None
        self.log_text(environment_text(), "environment.txt")
        self.log_text(json.dumps(hardware(), indent=1) + "\n", "hardware.json")
        diff = changed_code()
        if diff:
            self.log_text(diff, "code.diff")
        for action in self._first:
            action()

    def _close(self, status: EndStatus) -> None:
        """Send what is pending, set how the run ended, and tell what was not logged."""
        client, run_id = self._client, self.run_id
        if client is None or not run_id:
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

        closed = self._send("end status", finish, urgent=True)
        self._delivery.close()
        if self._stage is not None:
            self._stage.cleanup()
            self._stage = None
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

    def _send(
        self,
        kind: str,
        action: Callable[[MlflowClient], T],
        *,
        count: int = 1,
        urgent: bool = False,
        later: Callable[[], Callable[[MlflowClient], object]] | None = None,
    ) -> T | None:
        client = self._client
        if client is None or not self.run_id:
            return None

        def keep() -> Callable[[], object]:
            kept = action if later is None else later()
            return lambda: kept(client)

        return self._delivery.attempt(kind, lambda: action(client), count=count, urgent=urgent, later=keep)

    def _staged(self, source: Path, folder: str | None) -> Callable[[MlflowClient], object]:
        """Return what logs a copy of a file or folder: the caller may remove its own before the store answers."""
        if self._stage is None:
            self._stage = TemporaryDirectory()
        place = Path(self._stage.name) / str(len(list(Path(self._stage.name).iterdir())))
        place.mkdir()
        if source.is_dir():
            shutil.copytree(source, place, dirs_exist_ok=True)
            return lambda client: client.log_artifacts(self.run_id, str(place), folder)
        shutil.copy(source, place / source.name)
        return lambda client: client.log_artifact(self.run_id, str(place / source.name), folder)
