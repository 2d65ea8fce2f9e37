"""The notebook of the docs, from a DICOM folder through MONAI's transforms to a prediction, is run as it stands."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml

from clearmargin.datasets.phantom import PHANTOM_LABELS, make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.train import train

NOTEBOOK = Path(__file__).parents[1] / "docs" / "monai.ipynb"


@pytest.fixture(scope="module")
def organ_model(tmp_path_factory):
    """A model that marks the organ of a phantom, and the series of one more phantom."""
    place = tmp_path_factory.mktemp("notebook")
    organ = PHANTOM_LABELS.by_name("organ")
    for number in range(1, 4):
        phantom = make_phantom(seed=number)
        mine = phantom.reference.select(np.flatnonzero(phantom.reference.labels == organ.id))
        write_phantom_study(place / "data", replace(phantom, reference=mine), number)
    names = [f"phantom-{k:03d}" for k in (1, 2)]
    card = {
        "schema": 1,
        "name": "phantom_ct",
        "version": "1",
        "title": "Phantoms",
        "origin": "made by the tests",
        "licence": "CC0-1.0",
        "citation": "none",
        "modality": "CT",
        "classes": [
            {
                "id": organ.id,
                "name": "organ",
                "type": vars(organ.codes[1]),
                "category": vars(organ.codes[0]),
            }
        ],
        "root": ".",
        "cases": {
            "rows": [{"id": name, "split": "train"} for name in names],
            "id": "{id}",
            "image": "{id}/ct",
            "reference": "{id}/truth.dcm",
            "group": "{id}",
        },
        "encoding": {"kind": "dicom_seg"},
        "spacing": {"source": "file"},
        "group": "patient",
        "splits": {"column": "split", "values": {"train": "train"}},
        "show_in_tracking": True,
    }
    (place / "data" / "card.yaml").write_text(yaml.safe_dump(card))
    experiment = {
        "name": "organ",
        "card": str(place / "data" / "card.yaml"),
        "model": {"network": "semantic_cc", "filters": 8, "levels": 4, "smallest": 40},
        "image": {"intensity": {"kind": "window", "low": -160, "high": 240}, "crop": [128, 128]},
        "augment": {"flip_y": False, "flip_x": False, "rotate90": False},
        "training": {
            "epochs": 1,
            "steps_per_epoch": 30,
            "batch_size": 2,
            "learning_rate": 0.004,
            "ema": 0.8,
            "warmup_steps": 3,
            "workers": 0,
            "threads": 1,
        },
    }
    (place / "organ.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        model = train(place / "organ.yaml", runs=place / "runs").model
    return model, place / "data" / "phantom-003" / "ct"


@pytest.mark.filterwarnings("ignore")  # of the kernel's own machinery, which is not what is tested
def test_the_notebook_of_the_docs_shows_a_prediction(organ_model):
    nbformat = pytest.importorskip("nbformat", reason="the notebook needs nbformat")
    nbclient = pytest.importorskip("nbclient", reason="the notebook needs nbclient")
    pytest.importorskip("ipykernel", reason="the notebook needs a kernel")
    model, series = organ_model
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert all(
        not cell.get("outputs") for cell in notebook.cells
    )  # the page holds no picture of anyone's data
    paths = [str(Path(__file__).parents[1] / "pipeline"), os.environ.get("PYTHONPATH", "")]
    told = {
        **os.environ,
        "CLEARMARGIN_STUDY": str(series),
        "CLEARMARGIN_MODEL": str(model),
        "PYTHONPATH": os.pathsep.join(paths),
    }
    client = nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3")
    client.execute(env=told)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    said = [
        "".join(out.get("text", "") for out in cell.outputs if out.output_type == "stream") for cell in code
    ]
    assert "CT mm" in said[1] and "organ" in said[2]
    (shown,) = (out for out in code[2].outputs if out.output_type == "execute_result")
    assert "data:image/png;base64," in shown.data["text/html"] and "<tr>" in shown.data["text/html"]
    assert int(said[3].split()[-2]) >= 1  # instances
