"""Which MLflow store runs lie in, and a client for it."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clearmargin.errors import InputError
from clearmargin.tracking.embedded import ensure_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = [
    "EXPERIMENT",
    "SPOOL_TAG",
    "VIEW_KEY",
    "artifact_folder",
    "experiment_id",
    "find_run",
    "make_at_need",
    "open_client",
    "set_quiet",
    "tracking_uri",
]

EXPERIMENT = "clearmargin"
"""The experiment that runs lie in unless another is named."""

SPOOL_TAG = "clearmargin.spool"
"""The tag with the name of the spool that a run or a model was sent from."""

_SQLITE = "sqlite:///"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # else the UI opens in its GenAI mode
VIEW_KEY = "clearmargin"
"""The key under which an experiment keeps how its run list opens (``viewStateShareKey`` in the page's address)."""

_VIEW_TAG = f"mlflow.sharedViewState.{VIEW_KEY}"
_COLUMNS = [
    *(f"params.`{name}`" for name in ("model.network", "card", "split")),
    *(f"metrics.`headline/{name}`" for name in ("ap50", "pq", "semantic_dice", "nsd", "miss_rate")),
]
# MLflow shows evaluations folded into their training when the list is sorted by start; by end it shows every run.
_VIEW = json.dumps({"selectedColumns": _COLUMNS, "orderByKey": "attributes.end_time", "orderByAsc": False})
_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # MLflow's own seven retries with back-off hold a training for minutes when the server is down.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "30",
    "GIT_PYTHON_REFRESH": "quiet",
}


def tracking_uri() -> str:
    """Return ``MLFLOW_TRACKING_URI`` where set, else SQLite at ``mlflow/mlflow.db`` in the working folder."""
    named = os.environ.get("MLFLOW_TRACKING_URI", "").strip()
    return named or f"sqlite:///{(Path.cwd() / 'mlflow' / 'mlflow.db').as_posix()}"


def artifact_folder(uri: str) -> Path | None:
    """Return the folder beside an SQLite store that holds its artifacts; None for any other store."""
    if not uri.startswith(_SQLITE) or uri == f"{_SQLITE}:memory:":
        return None
    return Path(uri.removeprefix(_SQLITE)).absolute().parent / "artifacts"


def set_quiet() -> None:
    """Have MLflow send no telemetry, log warnings only and give up early; what the user has set stays.

    Called before the first import of mlflow, which reads some of this only then.
    """
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)


def open_client(uri: str | None = None) -> MlflowClient:
    """Return a client of the store at ``uri``, by default :func:`tracking_uri`; SQLite is made at need.

    Raises:
        InputError: The SQLite file is not a database.
    """
    set_quiet()
    from mlflow import MlflowClient

    set_quiet()  # importing mlflow resets its loggers
    uri = uri or tracking_uri()
    make_at_need(uri)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


def make_at_need(uri: str) -> None:
    """Make the SQLite store at ``uri`` if it is not there; nothing is done for any other store.

    Raises:
        InputError: The SQLite file is not a database.
    """
    folder = artifact_folder(uri)
    if folder is not None:
        ensure_store(Path(uri.removeprefix(_SQLITE)).absolute(), folder)


def experiment_id(client: MlflowClient, name: str = EXPERIMENT) -> str:
    """Return the id of the experiment called ``name``, which is made where it does not exist.

    Raises:
        InputError: If the experiment was deleted: MLflow keeps its name until it is removed for good.
    """
    from mlflow.exceptions import MlflowException

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        folder = artifact_folder(client.tracking_uri)
        location = None if folder is None else str(folder)
        try:
            return str(
                client.create_experiment(name, artifact_location=location, tags=_KIND | {_VIEW_TAG: _VIEW})
            )
        except MlflowException as error:  # another process was first
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise error
    if experiment.lifecycle_stage == "deleted":
        raise InputError(
            f"experiment '{name}' was deleted: restore it in the tracking UI, or name another experiment"
        )
    if experiment.tags.get(_VIEW_TAG) != _VIEW:  # made by an earlier version
        client.set_experiment_tag(experiment.experiment_id, _VIEW_TAG, _VIEW)
    return str(experiment.experiment_id)


def find_run(client: MlflowClient, name: str) -> Run | None:
    """Return a run by its id, or by the name of the spool that it was sent from; None if there is none.

    Raises:
        MlflowException: The store fails.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(name)
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    quoted = name.replace("'", "")
    runs = (
        client.search_runs(experiments, f"tags.`{SPOOL_TAG}` = '{quoted}'", max_results=1)
        if experiments
        else []
    )
    return runs[0] if runs else None
