"""The logged model: loads, predicts as its signature says, names nobody, holds no pickle."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
from children import child, wait_until
from numpy.typing import NDArray

from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap, Prediction, Provenance
from clearmargin.errors import InputError
from clearmargin.formats.raster import write_raster
from clearmargin.tracking.flavour import register
from clearmargin.tracking.resolve import model_folder
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.served import instances_table
from clearmargin.tracking.store import open_client

TUMOUR = Code(value="108369006", scheme="SCT", meaning="Neoplasm")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=TUMOUR, category=TUMOUR),))
MADE_BY = Provenance(model="bright", weights_sha256="", config_sha256="", software="test")


class Bright:
    """Segments what is brighter than its threshold, as one instance; nothing where nothing is."""

    def __init__(self, folder: Path) -> None:
        self.threshold = float((folder / "model.yaml").read_text().split()[1])

    def __call__(self, image: Image) -> Prediction:
        mask = image.pixels[0] > self.threshold
        found = InstanceSet.from_dense(image.grid, [mask] if mask.any() else [])
        return Prediction(instances=found, label_map=LABELS, provenance=MADE_BY)


@pytest.fixture
def logged(store: str, folder_of_model: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str, Path]:
    """The store, the run's id and the logged pyfunc's folder."""
    monkeypatch.setattr("clearmargin.models.load_segmenter", Bright)
    with TrackedRun(name="m", uri=store) as run:
        uri = run.log_model(folder_of_model)
    return store, run.run_id, model_folder(str(uri), uri=store).parents[1]


def _load(folder: Path) -> Any:
    import mlflow.pyfunc

    return mlflow.pyfunc.load_model(str(folder))


def _pictures() -> NDArray[np.float32]:
    """Two pictures of 4 x 5: one with two bright pixels in a row, one dark."""
    pictures = np.zeros((2, 4, 5, 1), np.uint8)
    pictures[0, 1, 2:4] = 200
    return pictures.astype("float32")


def test_each_instance_gives_a_row(logged: tuple[str, str, Path]) -> None:
    (row,) = _load(logged[2]).predict(_pictures()).to_dict("records")
    # column-major: columns 0 and 1 and the top of column 2 are 9 zeros, then one pixel, 3 zeros, one pixel
    assert row == {
        "image": 0, "case": "case-array", "label": 1, "name": "tumour", "score": 1.0, "box": [1, 2, 2, 4],
        "mask": [{"z": 0, "size": [4, 5], "counts": [9, 1, 3, 1, 6]}], "unit": "px",
    }  # fmt: skip


def test_a_volume_gives_rows_in_millimetres(logged: tuple[str, str, Path]) -> None:
    model = _load(logged[2])
    table = model.predict(_pictures(), params={"volume": True, "spacing_mm": [5.0, 0.8, 0.8]})
    assert list(table["box"]) == [[0, 1, 2, 1, 2, 4]] and list(table["unit"]) == ["mm"]
    assert [plane["z"] for plane in table["mask"][0]] == [0]


def test_paths_are_read_as_predict_reads_them(logged: tuple[str, str, Path], tmp_path: Path) -> None:
    for k, picture in enumerate(_pictures()[..., 0].astype(np.uint8)):
        write_raster(tmp_path / "pictures" / f"{k}.png", picture)
    model = _load(logged[2])
    one = model.predict(str(tmp_path / "pictures" / "0.png"))
    folder = model.predict(str(tmp_path / "pictures"))
    asked = pandas.DataFrame({"path": [str(tmp_path / "pictures" / f"{k}.png") for k in (1, 0)]})
    both = model.predict(asked)
    assert list(one["box"]) == list(folder["box"]) == list(both["box"]) == [[1, 2, 2, 4]]
    assert list(one["image"]) == list(folder["image"]) == [0] and list(both["image"]) == [1]
    assert one["case"][0].startswith("case-") and one["case"][0] == both["case"][0]


def test_other_shapes_are_refused(logged: tuple[str, str, Path]) -> None:
    with pytest.raises(InputError, match="shape"):
        _load(logged[2]).predict(np.zeros((4, 5), np.float32))


def test_the_logged_model_names_no_path_and_holds_no_pickle(
    logged: tuple[str, str, Path], folder_of_model: Path
) -> None:
    for file in logged[2].rglob("*"):
        assert file.suffix not in (".pkl", ".pickle", ".pt", ".pth")
        if file.is_file():
            content = file.read_bytes()
            for word in (b"Doe", str(Path.home()).encode(), str(Path(__file__).parents[2]).encode()):
                assert word not in content, file.name


def test_the_model_is_among_the_runs_outputs(logged: tuple[str, str, Path]) -> None:
    store, run_id, _ = logged
    (output,) = open_client(store).get_run(run_id).outputs.model_outputs
    model = open_client(store).get_logged_model(output.model_id)
    assert str(model.status) == "READY" and model.source_run_id == run_id


def test_an_alias_moves_to_the_newer_version(logged: tuple[str, str, Path], folder_of_model: Path) -> None:
    store, first, _ = logged
    (folder_of_model / "model.yaml").write_text("threshold: 150\n")
    with TrackedRun(name="better", uri=store) as run:
        run.log_model(folder_of_model)
    assert register(first, "bright", "champion", uri=store) == "models:/bright/1"
    before = (model_folder("models:/bright@champion", uri=store) / "model.yaml").read_text()
    assert register(run.run_id, "bright", "champion", uri=store) == "models:/bright/2"
    after = (model_folder("models:/bright@champion", uri=store) / "model.yaml").read_text()
    assert (before, after) == ("threshold: 0.5\n", "threshold: 150\n")
    assert (model_folder("models:/bright/1", uri=store) / "model.yaml").read_text() == before


def test_a_folder_that_is_no_model_is_refused(store: str, tmp_path: Path) -> None:
    run = TrackedRun(name="none", uri=store)
    with pytest.raises(InputError, match="is not a model folder"), run:
        run.log_model(tmp_path)
    with pytest.raises(InputError, match="logged no model"):
        register(run.run_id, "none", uri=store)


def test_logging_a_model_is_quiet(store: str, folder_of_model: Path) -> None:
    with warnings.catch_warnings(record=True) as caught, TrackedRun(name="quiet", uri=store) as run:
        warnings.simplefilter("always")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        run.log_model(folder_of_model)
    assert [str(w.message) for w in caught if w.category is UserWarning] == []


def _save_network(folder: Path) -> None:
    """Save a small network that was not trained, and that detects all the same."""
    from clearmargin.models.folder import ModelCard, label_map_entries, save_model
    from clearmargin.models.settings import PredictionSettings
    from clearmargin.networks import build_network, network_config
    from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

    small = {"network": "mask_rcnn", "fpn_channels": 32, "box_features": 64, "mask_channels": 32}
    config = network_config(small)
    network: Any = build_network(config, classes=1, pretrained=False)
    card = ModelCard(
        software="clearmargin test",
        model=config.model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=255), crop=(64, 64)),
        classes=label_map_entries(LABELS),
        augment=AugmentSettings(),
        show_in_tracking=True,
        prediction=PredictionSettings(score_threshold=0.0),
    )
    save_model(folder, card, network.state_dict())


def test_a_real_network_is_logged_loaded_and_run(store: str, tmp_path: Path) -> None:
    from clearmargin.models import load_segmenter

    _save_network(tmp_path / "model")
    with TrackedRun(name="real", uri=store) as run:
        uri = run.log_model(tmp_path / "model")
    pictures = np.random.default_rng(0).integers(0, 255, (1, 64, 64, 1)).astype("float32")
    served = _load(model_folder(str(uri), uri=store).parents[1]).predict(pictures)
    image = Image(pixels=pictures[..., 0], grid=Grid.from_spacing((64, 64)))
    direct = load_segmenter(tmp_path / "model")(image)
    assert len(served) == len(direct.instances)
    assert served.to_dict("records") == instances_table([(image, direct)]).to_dict("records")


@pytest.mark.slow
def test_mlflow_models_serve_answers_requests(store: str, tmp_path: Path) -> None:
    _save_network(tmp_path / "model")
    with TrackedRun(name="served", uri=store) as run:
        uri = run.log_model(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pictures = np.random.default_rng(0).integers(0, 255, (2, 64, 64, 1)).astype(np.uint8)
    write_raster(tmp_path / "0.png", pictures[:1, ..., 0])
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        uri,
        "--port",
        port,
        "--env-manager",
        "local",
    ]
    environment = {
        **os.environ, "MLFLOW_TRACKING_URI": store, "PYTHONPATH": str(Path(__file__).parents[2] / "pipeline"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # it starts uvicorn
    }  # fmt: skip

    def ask(body: dict[str, Any]) -> list[dict[str, Any]]:
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            predictions: list[dict[str, Any]] = json.load(answer)["predictions"]
        return predictions

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/ping", timeout=5):
            return True
        return False

    with child(command, env=environment, stdout=subprocess.DEVNULL, start_new_session=True) as server:
        try:
            wait_until(answers, server)
            rows = ask({"inputs": pictures.tolist()})
            assert {row["image"] for row in rows} <= {0, 1} and {row["name"] for row in rows} == {"tumour"}
            assert {"label", "score", "box", "mask", "unit"} <= set(rows[0])
            of_path = ask({"dataframe_records": [{"path": str(tmp_path / "0.png")}]})
            assert [r["box"] for r in of_path] == [r["box"] for r in rows if r["image"] == 0]
            volume = ask(
                {"inputs": pictures.tolist(), "params": {"volume": True, "spacing_mm": [5.0, 0.8, 0.8]}}
            )
            assert {row["unit"] for row in volume} == {"mm"} and {len(row["box"]) for row in volume} == {6}
            with pytest.raises(urllib.error.HTTPError) as refused:
                ask({"inputs": [[1, 2], [3, 4]]})
            assert refused.value.code in (400, 500)
            refused.value.close()
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(server.pid, signal.SIGKILL)
