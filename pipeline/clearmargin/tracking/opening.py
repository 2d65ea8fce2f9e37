"""How a run begins: made or taken up again, after the runs whose processes died have been closed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING

from clearmargin.errors import InputError
from clearmargin.tracking.liveness import RunLock, last_words
from clearmargin.tracking.store import experiment_id
from clearmargin.tracking.surroundings import git_tags, software

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["close_dead_runs", "create_run", "lock_run", "reopen_run"]

_log = logging.getLogger(__name__)


def create_run(client: MlflowClient, experiment: str, name: str, tags: Mapping[str, str]) -> str:
    """Return the id of a new run called ``name``; the experiment is made where it does not exist.

    The client is used and not MLflow's fluent interface: that adds the user's name and the script's path.
    """
    key = experiment_id(client, experiment)
    close_dead_runs(client, key)
    all_tags = {"software": software(), **git_tags(), **tags}
    return str(client.create_run(key, run_name=name, tags=all_tags).info.run_id)


def reopen_run(client: MlflowClient, run_id: str) -> bool:
    """Set a run RUNNING again; return False where the store has no such run.

    Raises:
        MlflowException: If the store fails.
    """
    from mlflow.exceptions import MlflowException

    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return False
        raise
    return True


def lock_run(run_id: str) -> RunLock | None:
    """Return this process's lock on a run; None where the file system has no locks.

    Raises:
        InputError: If another living process of this user is writing to the run.
    """
    try:
        return RunLock(run_id)
    except BlockingIOError:
        raise InputError(
            f"run '{run_id}' is being written by another process: wait for it, or stop it first"
        ) from None
    except OSError:
        return None


def close_dead_runs(client: MlflowClient, experiment_key: str) -> None:
    """Close the RUNNING runs of an experiment whose processes are known to be gone."""
    for run in client.search_runs([experiment_key], "attributes.status = 'RUNNING'", max_results=200):
        run_id = str(run.info.run_id)
        status = last_words(run_id)
        if status is not None:
            _log.info("run '%s' had no process any more: closed as %s", run_id, status)
            client.set_tag(run_id, "ended", "closed by a later run: its own process could not")
            client.set_terminated(run_id, status)
