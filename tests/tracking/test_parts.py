"""Parameters without paths, delivery to a store that fails, the store's address, locks."""

from __future__ import annotations

import logging
import os
from pathlib import Path, PurePosixPath

import pytest

from clearmargin.errors import InputError
from clearmargin.tracking.delivery import Delivery
from clearmargin.tracking.liveness import RunLock, last_words
from clearmargin.tracking.parameters import flatten, safe_key, without_path
from clearmargin.tracking.records import records
from clearmargin.tracking.store import artifact_folder, experiment_id, open_client, set_quiet, tracking_uri


@pytest.mark.parametrize(
    "value",
    [
        "/data/Doe^John/ct",
        "~/scans",
        "./scans/ct.dcm",
        "../ct",
        "file:///x",
        r"C:\scans\4711",
        r"\\server\share",
        "patients/4711/ct.dcm",
        Path("relative"),
        PurePosixPath("a/b"),
    ],
)
def test_a_path_is_taken_out(value: object) -> None:
    assert without_path(value) == "<path>"


@pytest.mark.parametrize(
    "value",
    [
        "mm/px",
        "mask_rcnn",
        "models:/liver@champion",
        "and/or",
        3,
        0.5,
        None,
        True,
        "v1.2",
        "efficientnet/lite0",
        "",
    ],
)
def test_what_is_no_path_stays(value: object) -> None:
    assert without_path(value) == value


def test_settings_are_flat_text() -> None:
    nested = {"a": {"b": {"c": 1}, "d": [1, {"e": Path("/x")}]}, "f": None, "g@h": True, "long": "x" * 7000}
    flat = flatten(nested)
    assert flat["a.b.c"] == "1" and flat["a.d"] == '[1, {"e": "<path>"}]'
    assert flat["f"] == "None" and flat["g_h"] == "True"
    assert len(flat["long"]) == 6000 and flat["long"].endswith("...")
    assert flatten({}) == {}


def test_a_name_is_one_that_mlflow_takes() -> None:
    assert safe_key("validation/AP50 - é") == "validation/AP50 - _"
    assert safe_key("") == "_"


def test_delivery_leaves_a_store_that_failed_alone_and_counts(caplog: pytest.LogCaptureFixture) -> None:
    delivery = Delivery(pause_s=1000.0)
    calls: list[int] = []

    def fail() -> int:
        calls.append(1)
        raise OSError("secret-host:/home/someone")

    with caplog.at_level(logging.WARNING):
        assert delivery.attempt("metrics", fail, count=3) is None
        assert delivery.attempt("images", fail) is None
        assert delivery.attempt("images", lambda: 5) is None, "it is being left alone"
        assert delivery.attempt("end status", lambda: 5, urgent=True) == 5
    assert len(calls) == 2, "the first that waits goes before what is urgent"
    assert delivery.summary() == "", "they wait"
    delivery.close()
    assert delivery.summary() == "3 metrics, 1 images", "what the store took at the end is not lost"
    assert len(caplog.records) == 1 and "secret" not in caplog.text and "OSError" in caplog.text


def test_a_value_that_the_store_refuses_does_not_pause_it() -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

    delivery = Delivery(pause_s=1000.0)

    def refuse() -> None:
        raise MlflowException("no", error_code=INVALID_PARAMETER_VALUE)

    delivery.attempt("tags", refuse)
    assert delivery.attempt("metrics", lambda: 1) == 1
    assert delivery.lost == {"tags": 1}


def test_our_own_bugs_are_not_swallowed() -> None:
    def bug() -> None:
        raise TypeError

    with pytest.raises(TypeError):
        Delivery().attempt("metrics", bug)


def test_the_store_is_the_one_named_or_sqlite_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert tracking_uri() == f"sqlite:///{tmp_path}/mlflow/mlflow.db"
    assert artifact_folder(tracking_uri()) == tmp_path / "mlflow" / "artifacts"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", " http://127.0.0.1:5000 ")
    assert tracking_uri() == "http://127.0.0.1:5000"
    assert artifact_folder(tracking_uri()) is None


def test_nothing_leaves_the_machine_unless_the_user_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    monkeypatch.setenv("DO_NOT_TRACK", "false")
    set_quiet()
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert os.environ["DO_NOT_TRACK"] == "false"


def test_an_experiment_is_made_once_and_a_deleted_one_is_named(store: str) -> None:
    client = open_client(store)
    key = experiment_id(client, "livers")
    assert experiment_id(client, "livers") == key
    client.delete_experiment(key)
    with pytest.raises(InputError, match="'livers' was deleted: restore it"):
        experiment_id(client, "livers")


def test_a_lock_that_is_held_has_no_last_words() -> None:
    lock = RunLock("a" * 32)
    assert last_words("a" * 32) is None
    with pytest.raises(BlockingIOError):
        RunLock("a" * 32)
    lock.release()
    assert last_words("a" * 32) is None, "it ended as it should"


def test_an_end_that_could_not_be_told_is_kept() -> None:
    RunLock("b" * 32).release(unsaid="KILLED")
    assert last_words("b" * 32) == "KILLED"
    assert last_words("b" * 32) is None, "once"


def test_records_of_nothing_are_empty() -> None:
    from clearmargin.core import Grid, InstanceSet, LabelMap, Prediction, Provenance

    made_by = Provenance(model="", weights_sha256="", config_sha256="", software="")
    nothing = InstanceSet.empty(Grid.from_spacing((3, 4)))
    found = records(Prediction(instances=nothing, label_map=LabelMap(()), provenance=made_by))
    assert found == {
        "labels": [],
        "names": [],
        "scores": [],
        "boxes": [],
        "masks": [],
        "unit": "px",
        "uncertainty": {},
    }


def test_the_folder_beside_the_store_holds_no_python_and_a_compose_file_that_parses() -> None:
    import yaml

    home_of_store = Path(__file__).parents[2] / "mlflow"
    assert not list(home_of_store.glob("*.py")), "it would shadow the installed mlflow"
    services = yaml.safe_load((home_of_store / "compose.yaml").read_text())["services"]
    assert services["mlflow"]["ports"] == ["127.0.0.1:5000:5000"], "on this host only"
    assert "ports" not in services["database"]
