"""Parameters without paths, the store's address, records."""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath

import numpy as np
import pytest

from clearmargin.errors import InputError
from clearmargin.tracking.parameters import flatten, safe_key, without_path
from clearmargin.tracking.served import COLUMNS, images_of, instances_table
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


def test_a_table_of_nothing_has_its_columns() -> None:
    from clearmargin.core import Grid, Image, InstanceSet, LabelMap, Prediction, Provenance

    made_by = Provenance(model="", weights_sha256="", config_sha256="", software="")
    grid = Grid.from_spacing((3, 4))
    nothing = Prediction(instances=InstanceSet.empty(grid), label_map=LabelMap(()), provenance=made_by)
    found = instances_table([(Image(pixels=np.zeros((1, 3, 4)), grid=grid), nothing)])
    assert list(found.columns) == list(COLUMNS) and not len(found)


@pytest.mark.parametrize("given", [np.zeros((4, 5)), {"pixels": 1}, "no/such/file.png", [[1, 2], [3]]])
def test_a_request_that_is_neither_array_nor_path_is_refused(given: object) -> None:
    with pytest.raises(InputError, match=r"expected an array|no file or folder"):
        list(images_of(given, volume=False, spacing=()))


def test_the_folder_beside_the_store_holds_no_python_and_a_compose_file_that_parses() -> None:
    import yaml

    home_of_store = Path(__file__).parents[2] / "mlflow"
    assert not list(home_of_store.glob("*.py")), "it would shadow the installed mlflow"
    composed = yaml.safe_load((home_of_store / "compose.yaml").read_text())
    services, text = composed["services"], (home_of_store / "compose.yaml").read_text()
    assert [name for name, one in services.items() if "ports" in one] == ["proxy"], "TLS or nothing"
    assert all(one["networks"] == ["inside"] for name, one in services.items() if name != "proxy")
    assert composed["networks"]["inside"] == {"internal": True}
    asked = set(re.findall(r"(?<!\$)\$\{(\w+)", text + (home_of_store / "Caddyfile").read_text()))
    known = set(re.findall(r"(?m)^(\w+)=", (home_of_store / "env.example").read_text()))
    assert asked == known
    used = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", ())}
    assert {name for name in used if name.isalpha()} == set(composed["volumes"])
    for service in services.values():
        assert set(service.get("depends_on", ())) <= set(services)
        assert {c["source"] for c in service.get("configs", ())} <= set(composed["configs"])
