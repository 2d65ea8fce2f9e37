"""Runs of the tracking store, read back: numbers, tables as pandas data frames, and files."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.errors import InputError, nearest
from clearmargin.files import parse_json
from clearmargin.metrics.tables import CaseRow, read_rows_csv
from clearmargin.privacy import home
from clearmargin.tracking.capsule import CAPSULE, read_capsule
from clearmargin.tracking.store import find_run, open_client

if TYPE_CHECKING:
    import pandas
    from mlflow import MlflowClient

__all__ = ["TABLE", "Run", "configuration_of", "load", "names_of", "rows_of_tables"]

TABLE = "instances.csv"
"""Of `measure` and of `evaluate`: a row for each instance."""

_FOLDERS = ("evaluation", "measurement")


@dataclass(frozen=True, kw_only=True, eq=False)
class Run:
    """A run, read back.

    Attributes:
        run_id: In the tracking store.
        name: As the list shows it.
        verb: Such as ``evaluate``.
        status: ``FINISHED``, ``FAILED``, ``KILLED`` or ``RUNNING``.
        params: The resolved configuration, flat.
        tags: As they are in the store.
        numbers: The last value of every metric.
        location: Where the store keeps its files.
        client: Of the store.
    """

    run_id: str
    name: str
    verb: str
    status: str
    params: Mapping[str, str]
    tags: Mapping[str, str]
    numbers: Mapping[str, float]
    location: str = field(repr=False)
    client: MlflowClient = field(repr=False)

    @cached_property
    def folder(self) -> Path:
        """The folder of its tables; of a training, that of its newest evaluation.

        Raises:
            InputError: It has none.
        """
        for name in _FOLDERS:
            if any(item.path == name for item in self.client.list_artifacts(self.run_id)):
                return self.file(name)
        for other in self.children("evaluate"):
            return other.folder
        raise InputError(
            f"run '{self.name}' ({self.verb or 'of no verb of ours'}) has no tables: name an evaluation, or evaluate "
            "its model"
        )

    @cached_property
    def rows(self) -> tuple[CaseRow, ...]:
        """A row for each measured object."""
        return tuple(rows_of_tables(self.folder))

    @cached_property
    def instances(self) -> pandas.DataFrame:
        """A row for each measured object, as a data frame: what it is, its strata, and every metric."""
        return self.table(TABLE)

    @cached_property
    def summary(self) -> pandas.DataFrame:
        """Mean, interval, SD and median of each metric, all together and by stratum."""
        return self.table("summary.csv")

    def table(self, name: str) -> pandas.DataFrame:
        """Return a table of the run's folder as a data frame.

        Raises:
            InputError: There is none of that name.
        """
        import pandas

        path = self.folder / name
        if not path.is_file() or path.suffix != ".csv":
            there = [file.name for file in sorted(self.folder.glob("*.csv"))]
            raise InputError(f"run '{self.name}' has no table '{name}': {nearest(name, there)}")
        return pandas.read_csv(path)

    def history(self, metric: str) -> pandas.DataFrame:
        """Return the values of a metric: columns ``step`` and ``value``, in step order.

        Raises:
            InputError: The run has no such metric.
        """
        import pandas

        if metric not in self.numbers:
            raise InputError(
                f"run '{self.name}' has no metric '{metric}': {nearest(metric, list(self.numbers))}"
            )
        points = sorted((m.step, m.value) for m in self.client.get_metric_history(self.run_id, metric))
        return pandas.DataFrame(points, columns=["step", "value"])

    def file(self, path: str) -> Path:
        """Return a file or folder of the run's artifacts; of a server's a copy in ``CLEARMARGIN_HOME``.

        Raises:
            InputError: There is none.
        """
        from mlflow.exceptions import MlflowException

        here = Path(self.location.removeprefix("file://")) / path
        if here.exists():
            return here
        fetched = home() / "fetched" / self.run_id
        fetched.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            return Path(self.client.download_artifacts(self.run_id, path, str(fetched)))
        except (MlflowException, OSError):
            raise InputError(f"run '{self.name}' has no file '{path}'") from None

    def facts(self) -> dict[str, Any]:
        """Return ``numbers.json`` of its tables: numbers, counts, data and cost; empty if there is none."""
        path = self.folder / "numbers.json"
        try:
            facts: dict[str, Any] = parse_json(path.read_text(encoding="utf-8")) if path.is_file() else {}
        except ValueError:
            raise InputError(f"'numbers.json' of run '{self.name}' is damaged: evaluate again") from None
        return facts

    def capsule(self) -> dict[str, Any]:
        """Return ``capsule.json``: what it takes to repeat the run; empty if it holds none."""
        try:
            return read_capsule(self.file(CAPSULE), self.name)
        except InputError:
            return {}

    def calibrated(self) -> bool:
        """Return whether the model of an evaluation was calibrated: its capsule knows, or this store does."""
        training = self.tags.get("training")
        known = bool(self.capsule().get("calibration"))
        return known or (bool(training) and bool(load(str(training)).children("calibrate")))

    def children(self, verb: str) -> list[Run]:
        """Return the runs of a verb (``evaluate``, ``calibrate``) that used this training's model, newest first."""
        experiments = [e.experiment_id for e in self.client.search_experiments()]
        runs = self.client.search_runs(
            experiments,
            f"tags.training = '{self.run_id}' and tags.verb = '{verb}'",
            order_by=["attributes.start_time DESC"],
        )
        return [_run(self.client, one) for one in runs]

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><td>{html.escape(name)}</td><td>{value:.4g}</td></tr>"
            for name, value in sorted(self.numbers.items())
        )
        head = f"<p>{html.escape(self.name)}: {html.escape(self.verb)}, {self.status}, run {self.run_id}</p>"
        return f"{head}<table><tr><th>metric</th><th>value</th></tr>{rows}</table>"

    def __repr__(self) -> str:
        return f"Run({self.name}, {self.verb}, {self.status}, {len(self.numbers)} numbers)"


def load(run: str, *, uri: str | None = None) -> Run:
    """Return a run by its id, ``runs:/ID`` or its name.

    Args:
        run: As `clearmargin review` shows it.
        uri: The store; by default `clearmargin.tracking.store.tracking_uri`.

    Raises:
        InputError: There is no such run, or several of that name.

    >>> import clearmargin.runs
    >>> clearmargin.runs.load("evaluate-nuclei-test").instances.groupby("class").dice.mean()  # doctest: +SKIP
    """
    client = open_client(uri)
    known = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", run)
    if known:
        one = find_run(client, known[1])
        if one is None:
            raise InputError(f"no run '{run}' in the tracking store: `clearmargin review` lists them")
        return _run(client, one)
    experiments = [e.experiment_id for e in client.search_experiments()]
    quoted = run.replace("'", "")
    runs = client.search_runs(experiments, f"attributes.run_name = '{quoted}'") if experiments else []
    if len(runs) > 1:
        ids = ", ".join(str(one.info.run_id) for one in runs[:5])
        raise InputError(f"{len(runs)} runs are named '{run}': name one by its id ({ids})")
    if not runs:
        names = {str(one.info.run_name) for one in client.search_runs(experiments, max_results=200)}
        hint = nearest(run, names) if names else "the store has no run yet"
        raise InputError(f"no file, folder or run '{run}': {hint}")
    return _run(client, runs[0])


def rows_of_tables(path: Path) -> list[CaseRow]:
    """Return the rows of a folder of tables, or of one table.

    Raises:
        InputError: No such table, or not one of ours.
    """
    if path.is_dir():
        if not (path / TABLE).is_file():
            raise InputError(
                f"no {TABLE} in '{path.name}': give a folder that `measure --out` or `evaluate --out` wrote"
            )
        path = path / TABLE
    if not path.is_file():
        raise InputError(f"no file or folder '{path.name}'")
    try:
        return read_rows_csv(path.read_text(encoding="utf-8"))
    except (ValueError, KeyError) as error:
        raise InputError(f"'{path.name}' is not a table of objects ({error})") from None


def configuration_of(run: Run) -> str:
    """Return what a run was configured with but its seed, fold and name: equal for the seeds of one configuration."""
    origin = run
    if run.tags.get("training"):
        origin = load(run.tags["training"])
    own = {k: v for k, v in run.params.items() if not k.endswith("sha256")} if origin is not run else {}
    kept = {
        k: v
        for k, v in origin.params.items()
        if k.split(".")[0] not in ("seed", "name", "fold", "score_threshold")
    }
    own.pop("score_threshold", None)
    return json.dumps([kept, own], sort_keys=True)


def _run(client: MlflowClient, run: Any) -> Run:
    return Run(
        run_id=str(run.info.run_id),
        name=str(run.info.run_name),
        verb=str(run.data.tags.get("verb", "")),
        status=str(run.info.status),
        params=dict(run.data.params),
        tags=dict(run.data.tags),
        numbers=dict(run.data.metrics),
        location=str(run.info.artifact_uri),
        client=client,
    )


def names_of(runs: Sequence[Run]) -> list[str]:
    """Return a name for each run; runs of one configuration share theirs, as seeds and folds do."""
    keys = [configuration_of(run) for run in runs]
    first: dict[str, str] = {}
    for key, run in zip(keys, runs, strict=True):
        first.setdefault(key, run.name)
    taken: dict[str, int] = {}
    unique = {}
    for key, name in first.items():
        taken[name] = taken.get(name, 0) + 1
        unique[key] = name if taken[name] == 1 else f"{name} ({taken[name]})"
    return [unique[key] for key in keys]
