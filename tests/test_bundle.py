"""A model leaves as a MONAI bundle, and MONAI's own program finds in a clean process what ``predict`` finds."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from command import command
from monai.bundle import ConfigParser, ConfigWorkflow, run, verify_metadata, verify_net_in_out
from monai.transforms import Orientationd
from PIL import Image as Pillow
from toy import write_toy_experiment, write_toy_set

from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.errors import ConfigError, InputError, ParityError
from clearmargin.export import export
from clearmargin.formats import read_image
from clearmargin.predicting import bundle_gate
from clearmargin.predicting.bundle import BundleNetwork, InstanceInferer, SaveInstancesd, items_in
from clearmargin.predicting.predictor import Predictor
from clearmargin.train import train
from clearmargin.transforms import LoadPathd, tensor_like
from clearmargin.transforms.loading import loaded_tensor

pytestmark = [  # MONAI's own words on configurations that one does not trust, and on a schema without a hash
    pytest.mark.filterwarnings("ignore:parsing config_file:UserWarning"),
    pytest.mark.filterwarnings("ignore:No hash:UserWarning"),
]

# What the published schema of 2024-07-25 asks for, in few words: what must be there, and of which types.
TENSOR = {
    "type": "object",
    "properties": {
        "type": {"type": "string"},
        "format": {"type": "string"},
        "num_channels": {"type": "integer"},
        "spatial_shape": {"type": "array", "items": {"type": ["string", "integer"]}},
        "dtype": {"type": "string"},
        "value_range": {"type": "array", "items": {"type": "number"}},
        "is_patch_data": {"type": "boolean"},
        "channel_def": {"type": "object"},
    },
    "required": ["type", "format", "num_channels", "spatial_shape", "dtype", "value_range"],
}
TENSORS = {"type": "object", "patternProperties": {"^.+$": TENSOR}}
TEXTS = (
    "schema version monai_version pytorch_version numpy_version task description authors copyright data_source "
    "data_type image_classes pred_classes intended_use"
)
SCHEMA = {
    "$schema": "https://json-schema.org/draft/2019-09/schema",
    "type": "object",
    "properties": {
        **{name: {"type": "string"} for name in TEXTS.split()},
        "changelog": {"type": "object"},
        "required_packages_version": {"type": "object"},
        "network_data_format": {
            "type": "object",
            "properties": {"inputs": TENSORS, "outputs": TENSORS, "post_processed_outputs": TENSORS},
            "required": ["inputs", "outputs"],
        },
    },
    "required": [
        *[
            "schema",
            "version",
            "monai_version",
            "pytorch_version",
            "numpy_version",
            "required_packages_version",
        ],
        *["task", "description", "authors", "copyright", "network_data_format"],
    ],
}


@pytest.fixture(scope="module")
def bundled(tmp_path_factory):
    """A model that finds discs, its bundle moved to a place of its own, and the card of its data."""
    place = tmp_path_factory.mktemp("bundle")
    card = write_toy_set(place / "data", cases=10)
    config = write_toy_experiment(
        place, card, epochs=1, steps_per_epoch=60, learning_rate=0.003, ema=0.9, warmup_steps=5
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        model = train(config, overrides=["prediction.score_threshold=0.2"], runs=place / "runs").model
    done = export(model, card, format="bundle", split="train", cases=4)
    assert done.folder == model / "bundle" and done.parity.instances >= 4 and done.cases == 4
    assert (done.parity.lost, done.parity.score, done.parity.flipped) == (0, 0.0, 0.0)
    moved = place / "elsewhere" / "discs"
    moved.parent.mkdir()
    done.folder.rename(moved)
    return model, moved, card


def monai_bundle(*arguments, cwd):
    """MONAI's program, in a process of its own that starts elsewhere."""
    package = Path(__file__).parents[1] / "pipeline"
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "monai.bundle", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(package)},
    )


def test_monai_runs_it_in_a_clean_process_and_finds_the_same_masks(bundled, tmp_path):
    pytest.importorskip("fire", reason="the command line of monai.bundle needs fire")
    model, bundle, card = bundled
    images = tmp_path / "images"
    images.mkdir()
    for case in open_dataset(card).cases[:3]:
        (images / case.image.name).write_bytes(case.image.read_bytes())
    done = monai_bundle(
        "run", "--config_file", bundle / "configs/inference.json", "--meta_file", bundle / "configs/metadata.json",
        "--bundle_root", bundle, "--dataset_dir", images, "--output_dir", tmp_path / "out", cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    total = 0
    for path in sorted(images.iterdir()):
        expected = Predictor(model=model, device="cpu").predict_case(read_image(path)).prediction
        written = sorted((tmp_path / "out").glob(f"{path.stem}_instances*.png"))
        layers = np.stack([np.asarray(Pillow.open(file)) for file in written])
        rows = json.loads((tmp_path / "out" / f"{path.stem}_instances.json").read_text())["instances"]
        assert [row["label"] for row in rows] == expected.instances.labels.tolist()
        np.testing.assert_allclose([row["score"] for row in rows], expected.instances.scores, atol=1e-6)
        for k, mask in enumerate(expected.instances.masks, start=1):
            np.testing.assert_array_equal((layers == k).any(axis=0), mask.dense())
        total += len(rows)
    assert total >= 3
    assert {row["name"] for row in rows} == {"disc"}


def test_monais_own_checks_pass(bundled, tmp_path):
    pytest.importorskip("jsonschema", reason="verify_metadata needs jsonschema")
    _, bundle, _ = bundled
    schema = tmp_path / "schema.json"
    schema.write_text(json.dumps(SCHEMA))
    meta = bundle / "configs/metadata.json"
    verify_metadata(meta_file=str(meta), filepath=schema)
    lacking = {k: v for k, v in json.loads(meta.read_text()).items() if k != "task"}
    (tmp_path / "less.json").write_text(json.dumps(lacking))
    with pytest.raises(ValueError, match="'task' is a required property"):
        verify_metadata(meta_file=str(tmp_path / "less.json"), filepath=schema)
    inference = str(bundle / "configs/inference.json")
    options = {"meta_file": str(meta), "device": "cpu", "bundle_root": str(bundle)}
    verify_net_in_out("network_def", config_file=inference, **options)
    wrong = json.loads(meta.read_text())
    wrong["network_data_format"]["outputs"]["pred"]["num_channels"] = 7
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match=r"channel number `1` doesn't match: `7`"):
        verify_net_in_out(
            "network_def", config_file=inference, **options | {"meta_file": str(tmp_path / "wrong.json")}
        )


def test_it_has_the_properties_that_monai_asks_of_an_inference(bundled):
    _, bundle, card = bundled
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs/inference.json"),
        meta_file=str(bundle / "configs/metadata.json"),
        workflow_type="infer",
        bundle_root=str(bundle),
        dataset_dir=str(card.parent),
    )
    workflow.initialize()
    assert workflow.check_properties() in (None, [])


def test_what_lies_in_it(bundled):
    model, bundle, _ = bundled
    files = {str(path.relative_to(bundle)) for path in bundle.rglob("*") if path.is_file()}
    assert files == {
        "configs/inference.json",
        "configs/labels.json",
        "configs/metadata.json",
        "docs/README.md",
        "models/digests.json",
        "models/model.pt",
        "models/model.yaml",
        "models/weights.safetensors",
        "parity.json",
    }
    (label,) = json.loads((bundle / "configs/labels.json").read_text())
    assert label["type"] == ["108369006", "SCT", "Tumor"]
    page = (bundle / "docs/README.md").read_text()
    assert "Tumor (SCT 108369006)" in page and "Research use only" in page and "data card 'toy'" in page
    assert (bundle / "models/weights.safetensors").read_bytes() == (
        model / "weights.safetensors"
    ).read_bytes()
    state = torch.load(bundle / "models/model.pt", weights_only=True)
    network = BundleNetwork(bundle / "models")
    assert network.load_state_dict(state).missing_keys == []
    for text in (
        page,
        (bundle / "configs/metadata.json").read_text(),
        (bundle / "models/model.yaml").read_text(),
    ):
        assert str(model.parents[1]) not in text and "/tmp" not in text


def test_a_server_asks_it_for_one_image_at_a_time(bundled, tmp_path):
    """The lines of docs/monai.md: what MONAI Label and Deploy do with a bundle."""
    _, bundle, card = bundled
    parser = ConfigParser()
    parser.read_config(str(bundle / "configs/inference.json"))
    parser["bundle_root"] = str(bundle)
    parser["device"] = "cpu"
    load, network = (parser.get_parsed_content(name) for name in ("preprocessing", "network"))
    inferer = parser.get_parsed_content("inferer")
    case = open_dataset(card).cases[0]
    layers = inferer(load({"image": str(case.image)})["image"][None], network)
    assert layers.shape[2:] == read_image(case.image).grid.shape and layers.dtype == torch.int32
    assert len(layers.meta["instances"]) == int(layers.max())
    with pytest.raises(InputError, match="one image at a time, not 2"):
        inferer(torch.zeros(2, 1, 8, 8), network)
    probabilities = network(torch.rand(2, 3, 64, 128))
    assert probabilities.shape == (2, 1, 64, 128) and 0 <= probabilities.min() <= probabilities.max() <= 1


def test_refused_images_are_counted_and_the_others_written(bundled, tmp_path, caplog):
    _, bundle, card = bundled
    images = tmp_path / "images"
    images.mkdir()
    case = open_dataset(card).cases[0]
    (images / "a.png").write_bytes(b"not a picture")
    (images / "b.png").write_bytes(case.image.read_bytes())
    with pytest.raises(SystemExit) as caught:
        run(
            config_file=str(bundle / "configs/inference.json"),
            bundle_root=str(bundle),
            dataset_dir=str(images),
            output_dir=str(tmp_path / "out"),
            device="cpu",
        )
    assert caught.value.code == 3
    assert "1 of 2 images were refused; the others are done" in caplog.text
    assert (tmp_path / "out/b_instances.json").is_file() and not (tmp_path / "out/a_instances.json").exists()


@pytest.mark.parametrize("name", ["weights.safetensors", "model.yaml", "model.pt"])
def test_a_bundle_whose_files_were_edited_is_refused(bundled, tmp_path, name):
    edited = tmp_path / "bundle"
    shutil.copytree(bundled[1], edited)
    content = bytearray((edited / "models" / name).read_bytes())
    content[-3] ^= 1
    (edited / "models" / name).write_bytes(content)
    with pytest.raises(
        InputError, match=f"{re.escape(name)} of the bundle are not the files that were exported"
    ):
        BundleNetwork(edited / "models")
    (edited / "models/digests.json").unlink()
    with pytest.raises(InputError, match=r"'digests\.json' is missing"):
        BundleNetwork(edited / "models")


def test_items_are_pictures_volumes_and_folders_of_dicom(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        items_in(tmp_path / "absent")
    with pytest.raises(InputError, match="no picture, volume or folder"):
        items_in(tmp_path)
    study = write_phantom_study(tmp_path / "study", make_phantom(seed=1), 1)
    assert {Path(item["image"]).name for item in items_in(study.ct.parent)} >= {study.ct.name}
    loaded = LoadPathd("image")({"image": str(study.ct)})["image"]
    assert loaded.shape[1:] == read_image(study.ct).grid.shape


def test_a_volume_is_written_where_it_lies(tmp_path):
    """Turned by MONAI's Orientationd before the inferer, layers come back on the patient, by nibabel."""
    grid = Grid(
        shape=(3, 8, 10),
        affine=np.array([[0, 0, -0.5, 20], [0, 0.7, 0, -9], [2.0, 0, 0, 4], [0, 0, 0, 1]]),
        unit="mm",
    )
    first, second = np.zeros((2, *grid.shape), np.int32)
    first[1, 2:5, 3:7] = 1
    second[1:, 4:6, 5:9] = 2
    image = Image(pixels=np.zeros((1, *grid.shape), np.int16), grid=grid)
    turned = Orientationd("image", axcodes="RAS", labels=None)({"image": loaded_tensor(image, name="/x/ct")})
    layers = tensor_like(np.stack([first, second]), turned["image"])
    layers.meta |= {"instances": [], "warnings": []}
    SaveInstancesd("pred", tmp_path)({"pred": layers})
    for name, layer in (("ct_instances", first), ("ct_instances-2", second)):
        written = nibabel.load(tmp_path / f"{name}.nii.gz")
        values = np.asarray(written.dataobj)
        where = nibabel.affines.apply_affine(written.affine, np.argwhere(values))
        expected = grid.to_world(np.argwhere(layer)) * (-1, -1, 1)
        assert sorted(map(tuple, where.round(3))) == sorted(map(tuple, expected.round(3)))


def test_a_bundle_that_finds_something_else_is_not_written(bundled, monkeypatch):
    model, _, card = bundled

    class Thinner(InstanceInferer):
        def __call__(self, inputs, network, *args, **kwargs):
            layers = super().__call__(inputs, network)
            layers[..., ::2] = 0
            return layers

    class Parser(bundle_gate.ConfigParser):
        def get_parsed_content(self, name, **options):
            return Thinner() if name == "inferer" else super().get_parsed_content(name, **options)

    monkeypatch.setattr(bundle_gate, "ConfigParser", Parser)
    with pytest.raises(ParityError, match="bundle finds other instances than torch: flipped"):
        export(model, card, format="bundle", split="train", cases=2)
    assert not (model / "bundle").exists() and not (model / ".bundle").exists()


def test_the_command_writes_one_and_names_the_formats(bundled):
    model, _, card = bundled
    with pytest.raises(ConfigError, match="did you mean 'bundle'"):
        export(model, card, format="bundel")
    done = command(
        "export", str(model), "--format", "bundle", "--card", card, "--split", "train", "--cases", "2"
    )
    assert done[0] == 0 and "scores within" in done[1], done[1]
    assert (model / "bundle" / "configs" / "inference.json").is_file()
