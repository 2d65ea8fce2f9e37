"""From a spool to the store, each entry once: after a failure the store is left alone for a while, and nothing is lost.

MLflow takes most entries twice without harm. A run and a model it would make twice: these carry their spool's name as
a tag, and are looked for by it if an earlier attempt got no answer.
"""

from __future__ import annotations

import logging
import re
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clearmargin.errors import ClearMarginError
from clearmargin.tracking.parameters import safe_key
from clearmargin.tracking.spool import Spool, Waiting, spools, without_login
from clearmargin.tracking.store import (
    SPOOL_TAG,
    artifact_folder,
    experiment_id,
    find_run,
    open_client,
    tracking_uri,
)
from clearmargin.tracking.trainings import training_of

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

__all__ = ["Sender", "Sent", "send_waiting"]

_log = logging.getLogger(__name__)
_METRICS_A_BATCH = 1000  # the REST interface's limit
_PARAMS_A_BATCH = 100
_PROBE_S = 5.0
_LONGEST_PAUSE_S = 600.0
_KINDS = {
    "begin": "run", "params": "parameters", "tag": "tags", "data": "data digests", "describe": "descriptions",
    "model_used": "links", "model": "models", "file": "files", "end": "end status",
}  # fmt: skip
_REFUSALS = ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST")  # which no other attempt would change


class Sender:
    """Sends spools to one store; warns at the first failure.

    After a failure nothing is tried for a while, which doubles each time: a server that hangs must not slow the work.

    Attributes:
        model: ``models:/ID`` of the model that was sent last; None before one was.
    """

    def __init__(self, store: str, pause_s: float = 30.0) -> None:
        self.model: str | None = None
        self._store = store
        self._pause_s = pause_s
        self._again_s = 0.0
        self._warned = False
        self._client: MlflowClient | None = None

    def deliver(self, spool: Spool, *, urgent: bool = False) -> bool:
        """Send what the store does not have, in order; return whether it now has all.

        Args:
            spool: Whose lock this process holds.
            urgent: Try even during the pause.
        """
        if spool.position == len(spool.entries):
            return True
        if not urgent and time.monotonic() < self._again_s:
            return False
        from sqlalchemy.exc import SQLAlchemyError

        entry: Mapping[str, Any] = {"do": "begin"}
        try:
            if not _answers(self._store):
                raise ConnectionError
            from mlflow.exceptions import MlflowException
        except OSError as error:
            self._failed(entry, error)
            return False
        while spool.position < len(spool.entries):
            entry = spool.entries[spool.position]
            try:
                if self._client is None:
                    self._client = open_client(self._store)
                spool.sent(_send(self._client, self, spool, entry))
            except (MlflowException, SQLAlchemyError, OSError, ClearMarginError) as error:
                lasting = getattr(error, "error_code", "") in _REFUSALS or isinstance(
                    error, FileNotFoundError
                )
                if lasting and entry["do"] != "begin":
                    self._warn(entry, error)
                    spool.refuse(_kind(entry), len(entry.get("values", "1")))
                    continue
                self._failed(entry, error)
                return False
        return True

    def _failed(self, entry: Mapping[str, Any], error: Exception) -> None:
        self._warn(entry, error)
        self._again_s = time.monotonic() + self._pause_s
        self._pause_s = min(2 * self._pause_s, _LONGEST_PAUSE_S)

    def _warn(self, entry: Mapping[str, Any], error: Exception) -> None:
        """Say it once, without a foreign error's text: it can hold paths, hosts and credentials."""
        if not self._warned:
            self._warned = True
            why = str(error) if isinstance(error, ClearMarginError) else type(error).__name__
            if re.search(r"error code 40[13]\b", str(error)):
                why = "it refused the login: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            _log.warning(
                "the tracking store failed (%s, at %s): the work goes on, and what it logs is kept to be sent later",
                why,
                _kind(entry),
            )


@dataclass(frozen=True, kw_only=True)
class Sent:
    """What was sent of what waited.

    Attributes:
        runs: Names of runs that the store now has whole.
        waiting: Those that wait on: their store did not answer.
    """

    runs: tuple[str, ...]
    waiting: tuple[Waiting, ...]


def send_waiting(store: str | None = None) -> Sent:
    """Send the spools that no living process holds; close the runs whose process was killed as FAILED.

    Args:
        store: Only what is for this store; None sends to every store that something waits for.
    """
    known = [one for one in spools() if store is None or one.store == without_login(store)]
    senders: dict[str, Sender] = {}
    away: set[str] = set()
    runs, waiting = [], []
    for one in known:
        try:
            spool = Spool(one.folder, new=False)
        except OSError:  # it is being written, or was sent meanwhile
            continue
        try:
            if not spool.ended:
                _log.info("run '%s' had no process any more: closed as FAILED", one.name)
                spool.add("tag", key="ended", value="closed by a later run: its own process could not")
                spool.add("end", status="FAILED", at=int(time.time() * 1000))
            sender = senders.setdefault(one.store, Sender(_address(one.store)))
            if _is_gone(spool):
                waiting.append(one)
            elif one.store in away or not sender.deliver(spool, urgent=True):
                away.add(one.store)
                waiting.append(one)
            else:
                runs.append(one.name)
        finally:
            spool.close()
    return Sent(runs=tuple(runs), waiting=tuple(waiting))


def _address(store: str) -> str:
    """Return a store's address with the login that the environment has for it."""
    return tracking_uri() if without_login(tracking_uri()) == store else store


def _is_gone(spool: Spool) -> bool:
    """Return whether an SQLite store was removed, or its working folder: to make it anew would hide that.

    The store of a run that was the first in its folder was not there yet: sending makes it.
    """
    folder = artifact_folder(spool.store)
    if folder is None or folder.parent.is_dir():
        return False
    return not (spool.entries[0].get("first") and folder.parent.parent.is_dir())


def _answers(store: str) -> bool:
    """Return False for a server that refuses, hangs or fails: a cheap question before MLflow's patient ones."""
    if not store.startswith(("http://", "https://")):
        return True
    try:
        with urllib.request.urlopen(f"{without_login(store).rstrip('/')}/health", timeout=_PROBE_S):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return error.code < 500  # a proxy may not pass this address on
    except urllib.error.URLError as error:
        return not isinstance(error.reason, ConnectionError | TimeoutError | socket.gaierror)
    except OSError:  # it hangs, or hung up
        return False


def _kind(entry: Mapping[str, Any]) -> str:
    return str(entry.get("kind", _KINDS.get(entry["do"], entry["do"])))


def _send(client: MlflowClient, sender: Sender, spool: Spool, entry: Mapping[str, Any]) -> int:
    """Send the entry at the spool's position, and metrics behind metrics; return how many were sent."""
    do, run_id = entry["do"], spool.run_id
    if do == "begin":
        _begin(client, spool, entry)
    elif do == "metrics":
        return _send_metrics(client, spool)
    elif do == "params":
        _send_params(client, run_id, entry["values"])
    elif do == "tag":
        client.set_tag(run_id, entry["key"], entry["value"])
    elif do == "file":
        path = str(spool.folder / entry["path"])
        if Path(path).is_dir():
            client.log_artifacts(run_id, path, entry["to"])
        else:
            client.log_artifact(run_id, path, entry["to"])
    elif do == "data":
        _send_data(client, run_id, entry)
    elif do == "describe":
        experiment = client.get_run(run_id).info.experiment_id
        page = f"#/experiments/{experiment}/runs/{run_id}/artifacts"
        client.set_tag(run_id, "mlflow.note.content", entry["text"].replace("{page}", page))
    elif do == "model_used":
        _link_training(client, run_id, entry)
    elif do == "model":
        sender.model = _send_model(client, spool, entry)
    elif do == "end":
        client.set_terminated(run_id, entry["status"], end_time=entry["at"])
    return 1


def _begin(client: MlflowClient, spool: Spool, entry: Mapping[str, Any]) -> None:
    """Make the run, or take up the one that goes on.

    The client is used and not MLflow's fluent interface: that adds the user's name and the script's path.
    """
    from mlflow.entities import RunTag

    tags = entry["tags"]
    run: Run | None = None
    if entry["resumes"]:
        run = find_run(client, entry["resumes"])
        if run is None:
            _log.warning("run '%s' is not in this tracking store: a new one is made", entry["resumes"])
    elif spool.tried:
        run = find_run(client, spool.token)
    if run is not None:
        client.update_run(run.info.run_id, status="RUNNING")
        client.log_batch(run.info.run_id, tags=[RunTag(k, v) for k, v in tags.items()])
        if "ended" in run.data.tags:
            client.delete_tag(run.info.run_id, "ended")
        spool.run_id = str(run.info.run_id)
        return
    if entry["parent"]:
        parent = find_run(client, entry["parent"])
        tags = tags | ({} if parent is None else {"mlflow.parentRunId": parent.info.run_id})
    key = experiment_id(client, entry["experiment"])
    spool.trying()
    made = client.create_run(
        key, run_name=entry["name"], start_time=entry["at"], tags=tags | {SPOOL_TAG: spool.token}
    )
    spool.run_id = str(made.info.run_id)


def _send_metrics(client: MlflowClient, spool: Spool) -> int:
    """Send as many entries with metrics as fit into one batch; return their number."""
    from mlflow.entities import Metric

    batch: list[Metric] = []
    entries = 0
    for entry in spool.entries[spool.position :]:
        if entry["do"] != "metrics" or (batch and len(batch) + len(entry["values"]) > _METRICS_A_BATCH):
            break
        batch += [Metric(k, v, entry["at"], entry["step"]) for k, v in entry["values"].items()]
        entries += 1
    for k in range(0, len(batch), _METRICS_A_BATCH):
        client.log_batch(spool.run_id, metrics=batch[k : k + _METRICS_A_BATCH])
    return entries


def _send_params(client: MlflowClient, run_id: str, values: Mapping[str, str]) -> None:
    """Send parameters, which MLflow writes once: what differs in a resumed run becomes a tag, ``resumed.NAME``."""
    from mlflow.entities import Param, RunTag

    known = client.get_run(run_id).data.params
    new = [Param(k, v) for k, v in values.items() if k not in known]
    changed = [RunTag(f"resumed.{k}"[:250], v) for k, v in values.items() if known.get(k, v) != v]
    for k in range(0, len(new), _PARAMS_A_BATCH):
        client.log_batch(run_id, params=new[k : k + _PARAMS_A_BATCH])
    for k in range(0, len(changed), _PARAMS_A_BATCH):
        client.log_batch(run_id, tags=changed[k : k + _PARAMS_A_BATCH])


def _send_data(client: MlflowClient, run_id: str, entry: Mapping[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    data = Dataset(name=entry["name"], digest=entry["digest"][:36], source_type="data card", source="{}")
    client.log_inputs(
        run_id, datasets=[DatasetInput(data, [InputTag("mlflow.data.context", entry["context"])])]
    )
    client.set_tag(run_id, safe_key(f"data.{entry['name']}.digest"), entry["digest"])


def _link_training(client: MlflowClient, run_id: str, entry: Mapping[str, Any]) -> None:
    from mlflow.entities import LoggedModelInput

    training = training_of(client, entry["weights"])
    if training is None:
        return
    client.set_tag(run_id, "mlflow.parentRunId", training.run_id)
    client.set_tag(run_id, "training", training.run_id)
    client.update_run(run_id, name=entry["name"].replace("{}", training.name))
    inputs = client.get_run(run_id).inputs.model_inputs
    if training.model_id and training.model_id not in [one.model_id for one in inputs]:
        client.log_inputs(run_id, models=[LoggedModelInput(training.model_id)])


def _send_model(client: MlflowClient, spool: Spool, entry: Mapping[str, Any]) -> str:
    from clearmargin.tracking.flavour import log_model

    again = spool.tried
    spool.trying()
    mark = f"{spool.token}-{spool.position}"
    return log_model(client, spool.run_id, spool.folder / entry["path"], mark=mark, again=again)
