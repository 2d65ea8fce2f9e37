"""Parameters without paths, the store's address, records."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest

from clearmargin.errors import InputError
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
