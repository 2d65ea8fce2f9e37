"""One MLflow run: what a verb logs goes through here, into a spool and from there to the store.

Nothing touches MLflow's global active run or tracking URI. A run has no user name, host name or path.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import InputError
from clearmargin.files import whole, write_text
from clearmargin.tracking.ending import end_status, restore_sigterm, turn_sigterm_into_exception
from clearmargin.tracking.flavour import check_model_folder
from clearmargin.tracking.parameters import flatten, safe_key, without_path
from clearmargin.tracking.sending import Sender, send_waiting
from clearmargin.tracking.spool import Spool, spools, without_login
from clearmargin.tracking.store import EXPERIMENT, artifact_folder, tracking_uri
from clearmargin.tracking.surroundings import changed_code, environment_text, git_tags, hardware, software
from clearmargin.tracking.trainings import WEIGHTS_TAG, weights_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TrackedRun"]

_log = logging.getLogger(__name__)
_QUICK_S = 30.0
_LONGEST_WAIT_S = 3600.0
_PREVIEW = 256  # MLflow's own


class TrackedRun:
    """A run in the tracking store, as a context manager: it runs inside the ``with`` block.

    It ends FINISHED; FAILED when an exception leaves the block; KILLED on Ctrl-C and SIGTERM. The run of a
    process that could not say so (``kill -9``) is closed as FAILED when this user's next run in the same
    store starts. All that is logged is written to a spool first, so a store that fails costs a warning and nothing
    else: the next run sends what waits, or `send_waiting`.

    >>> with TrackedRun(name="ct-phantom") as run:  # doctest: +SKIP
    ...     run.log_metrics({"train/loss": 0.7}, step=1)

    Attributes:
        name: As the UI shows it.
        run_id: Its id; while the store does not have it, the name of its spool, by which it is known later, too.
            Empty before the block and if ``enabled`` is false.
    """

    def __init__(
        self,
        *,
        name: str,
        experiment: str = EXPERIMENT,
        run_id: str | None = None,
        enabled: bool = True,
        lazily: bool = False,
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
            lazily: Send nothing before the end, and nothing at all if the block took less than 30 s, unless something
                has waited for an hour: the start of MLflow takes longer than a quick prediction.
            parent: The run this one is shown under, as a fold under its cross-validation.
            uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.
            pause_s: How long a store that failed is left alone at first.
        """
        self.name = name
        self._resumes = run_id
        self._experiment, self._enabled, self._parent, self._lazily = experiment, enabled, parent, lazily
        self._store = uri or tracking_uri()
        self._sender = Sender(self._store, pause_s)
        self._spool: Spool | None = None
        self._tags: dict[str, str] = {}
        self._params: dict[str, Any] = {}
        self._texts: dict[str, str] = {}
        self._lost = 0
        self._token = ""
        self._started = time.monotonic()
        self._old_handler: Any = None

    @property
    def run_id(self) -> str:
        """The run's id, or the name of its spool."""
        if self._spool is not None and self._spool.run_id:
            self._token = self._spool.run_id
        return self._token

    def on_start(
        self,
        *,
        params: Mapping[str, Any] | None = None,
        texts: Mapping[str, str] | None = None,
        tags: Mapping[str, str] | None = None,
    ) -> None:
        """Have parameters, text artifacts (file name to text) and tags logged once the run begins."""
        self._params |= params or {}
        self._texts |= texts or {}
        self._tags |= {safe_key(k): str(without_path(v)) for k, v in (tags or {}).items()}

    def __enter__(self) -> TrackedRun:
        if not self._enabled:
            return self
        if find_spec("mlflow") is None:
            if self._lazily:
                _log.info("not tracked: clearmargin[tracking] is not installed")
                return self
            raise ModuleNotFoundError("No module named 'mlflow'", name="mlflow")
        self._refuse_a_living_run()
        if not self._lazily:
            send_waiting(self._store)
        self._started = time.monotonic()
        parent = self._parent.run_id if self._parent is not None else ""
        try:
            self._spool = Spool.begin(
                self._store,
                name=self.name,
                experiment=self._experiment,
                resumes=self._resumes,
                parent=parent,
                first=_is_first(self._store),
                tags={"software": software(), **git_tags(), **self._tags},
            )
        except OSError as error:
            _log.warning(
                "run '%s' is not tracked: its spool cannot be written (%s)", self.name, error.strerror
            )
            return self
        self._token = self._spool.token
        if self._params:
            self.log_params(self._params)
        self.log_text(environment_text(), "environment.txt")
        self.log_text(json.dumps(hardware(), indent=1) + "\n", "hardware.json")
        diff = changed_code()
        if diff:
            self.log_text(diff, "code.diff")
        for file, text in self._texts.items():
            self.log_text(text, file)
        self._old_handler = turn_sigterm_into_exception()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._spool is None:
            return
        restore_sigterm(self._old_handler)
        try:
            self._add("end", status=end_status(error), at=int(time.time() * 1000), urgent=True)
            self._tell(self._spool)
        finally:
            _ = self.run_id
            self._spool.close()
            self._spool = None

    def log_params(self, config: Mapping[str, Any]) -> None:
        """Log nested settings as flat parameters; paths become ``<path>``.

        MLflow's parameters are written once: what a resumed run has keeps its first value, and a value that
        differs now becomes the tag ``resumed.<name>``.
        """
        self._add("params", values=flatten(config))

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Log numbers at ``step``; what a store that is down does not take goes with a later batch."""
        values = {safe_key(k): float(v) for k, v in metrics.items()}
        self._add("metrics", values=values, step=step, at=int(time.time() * 1000))

    def log_image(self, key: str, image: NDArray[np.uint8], step: int) -> None:
        """Log a uint8 picture, ``(Y, X, 3)`` RGB or ``(Y, X)``; the UI shows a slider over ``step``."""

        def write(spool: Spool) -> str:
            from PIL import Image

            # The names that MLflow's log_image gives, made once: sent twice, it is still one picture.
            name = f"{safe_key(key).replace('/', '~')}+step+{step}+timestamp+{time.time_ns() // 10**6}+{uuid.uuid4()}"
            folder = spool.place("images")
            folder.mkdir()
            picture = Image.fromarray(image)
            picture.save(folder / f"{name}.png")
            scale = _PREVIEW / max(picture.size)
            small = picture.resize((max(1, int(picture.width * scale)), max(1, int(picture.height * scale))))
            small.save(folder / f"{name}+compressed.webp")
            return folder.relative_to(spool.folder).as_posix()

        self._add_file(write, "images", kind="images")
        self.set_tag("mlflow.loggedImages", "True")

    def log_figure(self, figure: Figure, file: str) -> None:
        """Log a matplotlib figure as the artifact ``file``, such as ``figures/pr.png``."""

        def write(spool: Spool) -> str:
            path = spool.place(Path(file).name)
            with whole(path) as draft:
                figure.savefig(draft)
            return path.relative_to(spool.folder).as_posix()

        self._add_file(write, _folder_of(file), kind="figures")

    def log_text(self, text: str, file: str) -> None:
        """Log ``text`` as the artifact ``file``; the caller sees to it that it names nobody."""

        def write(spool: Spool) -> str:
            path = spool.place(Path(file).name)
            write_text(path, text)
            return path.relative_to(spool.folder).as_posix()

        self._add_file(write, _folder_of(file))

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Log a file, or a folder with all below it, as artifacts below ``folder``."""
        self._add_file(lambda spool: spool.keep(Path(path)), folder)

    def log_data(self, name: str, digest: str, context: str = "training") -> None:
        """Log which data was used: the card's name and a digest of the files, never where they lie."""
        self._add("data", name=name, digest=digest, context=context)

    def set_tag(self, key: str, value: str) -> None:
        """Set a tag; a path becomes ``<path>``."""
        self._add("tag", key=safe_key(key), value=str(without_path(value)))

    def describe(self, text: Callable[[str], str]) -> None:
        """Set the run's description, Markdown that its page shows.

        Args:
            text: Returns it, given the address of the run's files in the tracking pages.
        """
        self._add("describe", text=text("{page}"))

    def log_model_used(self, weights_sha256: str, name: str) -> None:
        """Join this run to the training that made a model: as its child, with the logged model as its input.

        The training is found by the hash of its weights, so that a copied model folder is joined, too. Nothing is
        done if this store knows no such training.

        Args:
            weights_sha256: Of the model.
            name: This run's new name, with ``{}`` in the place of the training's.
        """
        self._add("model_used", weights=weights_sha256, name=name)

    def log_model(self, folder: Path) -> str | None:
        """Log a model folder as a loadable pyfunc; return ``models:/ID``, or None while it waits to be sent.

        Raises:
            InputError: If ``folder`` is not a model folder.
        """
        check_model_folder(folder)
        self._sender.model = None
        self._add_file(lambda spool: spool.keep(folder), None, do="model", kind="models")
        self.set_tag(WEIGHTS_TAG, weights_of(folder))
        return self._sender.model

    def _add(self, do: str, *, urgent: bool = False, **values: Any) -> None:
        """Write an entry into the spool, and send what waits there unless it is not time."""
        if self._spool is None:
            return
        try:
            self._spool.add(do, **values)
        except OSError:  # the disk is full: the work has a message of its own for that
            self._lost += 1
            return
        if not self._lazily or (urgent and self._is_due()):
            self._sender.deliver(self._spool, urgent=urgent)

    def _add_file(
        self, write: Callable[[Spool], str], folder: str | None, *, do: str = "file", kind: str = "files"
    ) -> None:
        if self._spool is None:
            return
        try:
            path = write(self._spool)
        except OSError:
            self._lost += 1
            return
        self._add(do, path=path, to=folder, kind=kind)

    def _is_due(self) -> bool:
        """Return whether a lazy run is sent now, with all that waits for the same store."""
        oldest = min(
            (one.start_s for one in spools() if one.store == without_login(self._store)), default=0.0
        )
        due = time.monotonic() - self._started > _QUICK_S or time.time() - oldest > _LONGEST_WAIT_S
        if due:
            send_waiting(self._store)
        return due

    def _tell(self, spool: Spool) -> None:
        """Say what the store does not have at the end."""
        waits = len(spool.entries) - spool.position
        if waits and not self._lazily:
            _log.warning(
                "run '%s': %d entries wait for the tracking store: `clearmargin runs send` sends them, and so does the "
                "next run",
                self.name,
                waits,
            )
        refused = [f"{n} {kind}" for kind, n in spool.refused.items()]
        refused += [f"{self._lost} for which the disk had no room"] if self._lost else []
        if refused:
            _log.warning("run '%s': not logged: %s", self.name, ", ".join(refused))

    def _refuse_a_living_run(self) -> None:
        """Refuse to go on with a run that another process writes to.

        Raises:
            InputError: One does.
        """
        for one in spools():
            if self._resumes and self._resumes in (one.run_id, one.folder.name):
                try:
                    Spool(one.folder, new=False).close()
                except BlockingIOError:
                    raise InputError(
                        f"run '{self._resumes}' is being written by another process: wait for it, or stop it first"
                    ) from None
                except OSError:
                    continue


def _is_first(store: str) -> bool:
    """Return whether the store is an SQLite file in a folder that is not there yet."""
    folder = artifact_folder(store)
    return folder is not None and not folder.parent.exists()


def _folder_of(file: str) -> str | None:
    parent = Path(file).parent.as_posix()
    return None if parent == "." else parent
