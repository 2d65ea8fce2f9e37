"""An exported model finds what the model finds, or it is not written."""

import copy
import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from bright import bright_segmenter
from command import command
from small import SMALL, scene
from toy import write_toy_experiment, write_toy_set

from clearmargin.core import Grid, Image, InstanceSet
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError, ParityError
from clearmargin.export import export
from clearmargin.models import load_segmenter
from clearmargin.models import segmenter as segmenter_module
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.parity import Parity, compare, worst
from clearmargin.models.runtimes import RUNTIMES
from clearmargin.models.segmenter import View
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks import build_network, network_config
from clearmargin.networks.parts import RuntimePart, find_parts
from clearmargin.train import train
from clearmargin.transforms.settings import AugmentSettings, ImageSettings

SIGNAL_AFTER_PARTS = """
import os, signal, sys, tempfile
from pathlib import Path
import torch
from torch import nn
from clearmargin.networks.parts import Part
from clearmargin.models.runtimes import RUNTIMES
heard = []
signal.signal(signal.SIGUSR1, lambda *_: heard.append(1))
runtime = RUNTIMES[sys.argv[1]]
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / ("part" + runtime.suffix)
    given = (torch.zeros(1, 1, 8, 8),)
    runtime.write(Part(name="part", module=nn.Conv2d(1, 1, 3), inputs=given, outputs=[0]), path)
    parts = [runtime.load(path, 1) for _ in range(3)]
    while parts:
        parts.pop(0)(given)
os.kill(os.getpid(), signal.SIGUSR1)
sys.stdout.write(f"heard {len(heard)}")
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model that finds discs, and the card of its data."""
    place = tmp_path_factory.mktemp("export")
    card = write_toy_set(place / "data", cases=10)
    config = write_toy_experiment(
        place, card, epochs=1, steps_per_epoch=60, learning_rate=0.003, ema=0.9, warmup_steps=5
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        overrides = ["prediction.score_threshold=0.2", "model.mask_looks=2"]
        result = train(config, overrides=overrides, runs=place / "runs")
    return result.model, card


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_signals_are_heard_after_a_runtimes_parts_are_gone(name, tmp_path):
    """OpenVINO's cores, gone in the order in which they came, left a freed signal stack: Ctrl-C was a segfault."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SIGNAL_AFTER_PARTS, name],
        capture_output=True, text=True, cwd=tmp_path, check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1] / "pipeline")},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "heard 1"), done.stderr


def picture():
    """Return a picture of a disc, of another size than any of the set."""
    pixels = np.full((1, 160, 96), 60, np.uint8)
    y, x = np.mgrid[:160, :96]
    pixels[0][(y - 90) ** 2 + (x - 40) ** 2 < 14**2] = 180
    return Image(pixels=pixels, grid=Grid.from_spacing((160, 96)))


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_an_export_finds_the_same_instances(trained, name):
    model, card = trained
    done = export(model, card, format=name, split="train", cases=4)
    assert done.parity.instances >= 4 and done.parity.problems == ()
    assert done.folder == model / name and not (model / f".{name}").exists()
    card_written = yaml.safe_load((model / name / "runtime.yaml").read_text())
    assert set(card_written["parts"]) >= {"pyramid", "rpn.head", "box_branch", "mask_branch", "foreground"}
    assert 0 < done.parity.foreground <= 1e-3
    assert json.loads((model / name / "parity.json").read_text())["score"] <= 1e-3
    image = picture()
    usual, exported = load_segmenter(model), load_segmenter(model, runtime=name)
    assert usual.provenance == replace(exported.provenance, runtime="torch")
    first, second = usual(image).instances, exported(image).instances
    assert len(first) == len(second) >= 1
    np.testing.assert_allclose(first.scores, second.scores, atol=1e-3)
    for a, b in zip(first.masks, second.masks, strict=True):
        assert (a.dense() ^ b.dense()).sum() <= max(1, 0.005 * a.area)


class Halves(torch.nn.Module):
    """Maps of halved size, and a row of each image."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(8, 5, 3, stride=2, padding=1)

    def forward(self, maps):
        halved = self.conv(maps)
        return halved, halved.mean((2, 3))


@pytest.mark.parametrize("name", list(RUNTIMES))
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_part_takes_and_gives_tensors_in_the_layout_of_torch(name, layout, tmp_path):
    """So that no map is put in another order between parts; of other sizes, and given in another layout, too."""
    module = Halves().to(memory_format=layout).eval()
    with torch.inference_mode():
        given = torch.rand(1, 8, 16, 24).to(memory_format=layout)
        (part,) = find_parts(torch.nn.ModuleDict({"a": module}), ["a"], lambda: module(given))
        path = tmp_path / f"a{RUNTIMES[name].suffix}"
        RUNTIMES[name].write(part, path)
        compute = RUNTIMES[name].load(path, 1)
        for size in ((1, 8, 16, 24), (2, 8, 30, 18)):
            image = torch.rand(size)
            expected = module(image.to(memory_format=layout))
            for asked in (torch.channels_last, torch.contiguous_format):
                maps, row = compute([image.to(memory_format=asked)])
                torch.testing.assert_close(maps, expected[0], atol=1e-5, rtol=1e-5)
                torch.testing.assert_close(row, expected[1], atol=1e-5, rtol=1e-5)
                assert maps.is_contiguous(memory_format=layout)
                compute([torch.zeros(size)])
                torch.testing.assert_close(row, expected[1], atol=1e-5, rtol=1e-5)  # not written over


def test_around_a_runtime_torch_keeps_to_one_thread(trained, monkeypatch):
    """Its threads wait by spinning when they are done, and would hold the cores of the runtime's."""
    model, card = trained
    export(model, card, format="onnx", split="train", cases=2)
    image, seen = picture(), []
    for name in ("resample", "threshold"):  # before the network, and behind it
        usual = getattr(segmenter_module, name)

        def noting(*args, usual=usual, name=name, **kwargs):
            seen.append((name, torch.get_num_threads()))
            return usual(*args, **kwargs)

        monkeypatch.setattr(segmenter_module, name, noting)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for runtime, threads in (("torch", 3), ("onnx", 1)):
            seen.clear()
            load_segmenter(model, runtime=runtime, device="cpu")(image)
            assert set(seen) == {("resample", threads), ("threshold", threads)}
            assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("fails", [False, True])
def test_torchs_threads_leave_the_cores_to_a_runtime_and_come_back(fails):
    """Of Mask R-CNN; also where it ends in an error."""
    network = build_network(network_config(SMALL["mask_rcnn"].model), classes=1, channels=3, pretrained=False)
    seen = []

    def look(*_):
        seen.append(torch.get_num_threads())
        if fails:
            raise RuntimeError("stopped")

    network.pyramid.register_forward_hook(look)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for beside in (False, True):
            if beside:
                network.beside_runtime()
            with torch.inference_mode(), pytest.raises(RuntimeError) if fails else nullcontext():
                network.detect(torch.rand(1, 3, 64, 64))
            assert torch.get_num_threads() == 3
        assert seen == [3, 1]
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("network", ["yolact", "solov2", "semantic_cc", "mask2former", "eomt"])
def test_the_other_networks_parts_find_the_same_instances(network, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    card = write_toy_set(tmp_path / "data", cases=10)
    config = write_toy_experiment(
        tmp_path, card, epochs=1, steps_per_epoch=60, learning_rate=0.002, ema=0.9, warmup_steps=5
    )
    raw = yaml.safe_load(config.read_text()) | {"model": SMALL[network].model}
    config.write_text(yaml.safe_dump(raw))
    model = train(config, overrides=["prediction.score_threshold=0.1"], runs=tmp_path / "runs").model
    for name in RUNTIMES:
        done = export(model, card, format=name, split="train", cases=4)
        assert done.parity.instances >= 4 and done.parity.problems == ()


@pytest.mark.parametrize("network", ["mask2former", "eomt"])
def test_queries_built_without_weights_learn_a_little_and_go_through_an_export(network, tmp_path):
    card = write_toy_set(tmp_path / "data")
    config = network_config(SMALL[network].model)
    torch.manual_seed(0)
    learner = build_network(config, classes=1, pretrained=False)
    optimiser = torch.optim.AdamW(learner.parameters(), lr=SMALL[network].learning_rate)
    image, targets = scene()
    for _ in range(8):
        optimiser.zero_grad()
        sum(learner.losses(image[None], [targets]).values()).backward()
        optimiser.step()
    described = ModelCard(
        software="clearmargin test",
        model=config.model_dump(mode="json"),
        image=ImageSettings(),
        augment=AugmentSettings(),
        classes=label_map_entries(open_dataset(card).card.label_map),
        prediction=PredictionSettings(score_threshold=0.1),
        show_in_tracking=True,
    )
    save_model(tmp_path / "model", described, learner.state_dict())
    done = export(tmp_path / "model", card, format="onnx", split="train", cases=2)
    assert done.parity.instances >= 2 and done.parity.problems == ()


def test_a_runtime_that_finds_something_else_writes_nothing(trained, monkeypatch):
    model, card = trained
    export(model, card, format="onnx", split="train", cases=2)
    before = {p.name: p.read_bytes() for p in (model / "onnx").iterdir()}

    def spoil(part, path):
        module = copy.deepcopy(part.module)
        for parameter in module.parameters():
            parameter.data *= 1.02
        RUNTIMES_ONNX.write(replace(part, module=module), path)

    RUNTIMES_ONNX = RUNTIMES["onnx"]
    monkeypatch.setitem(RUNTIMES, "onnx", replace(RUNTIMES_ONNX, write=spoil))
    with pytest.raises(ParityError, match=r"onnx finds other instances than torch: .*\(at most"):
        export(model, card, format="onnx", split="train", cases=2)
    assert {p.name: p.read_bytes() for p in (model / "onnx").iterdir()} == before
    assert not (model / ".onnx").exists()


def test_what_cannot_be_exported_or_loaded_is_said(trained, tmp_path):
    model, card = trained
    with pytest.raises(ConfigError, match="no format 'tensorrt'"):
        export(model, card, format="tensorrt")
    copied = tmp_path / "model"
    other = card.with_name("other.yaml")
    other.write_text(card.read_text().replace("disc", "ring"))
    with pytest.raises(ConfigError, match="knows the classes disc, card 'toy' has ring: compare on"):
        export(model, other, format="onnx")
    copied.mkdir()
    for name in ("model.yaml", "weights.safetensors"):
        (copied / name).write_bytes((model / name).read_bytes())
    with pytest.raises(ConfigError, match="was not exported to 'onnx'"):
        load_segmenter(copied, runtime="onnx")
    with pytest.raises(ConfigError, match="runs on the CPU"):
        load_segmenter(copied, runtime="onnx", device="cuda")
    (copied / "onnx").mkdir()
    entries = {"runtime": "onnx", "weights_sha256": "0" * 64, "torch": "2", "parts": {}}
    (copied / "onnx" / "runtime.yaml").write_text(yaml.safe_dump(entries))
    with pytest.raises(InputError, match="of other weights"):
        load_segmenter(copied, runtime="onnx")


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_a_damaged_part_of_an_export_is_named(trained, tmp_path, name):
    model, _ = trained
    for file in ("model.yaml", "weights.safetensors"):
        (tmp_path / file).write_bytes((model / file).read_bytes())
    weights = hashlib.sha256((model / "weights.safetensors").read_bytes()).hexdigest()
    entries = {"runtime": name, "weights_sha256": weights, "torch": "2", "parts": {"pyramid": [0]}}
    (tmp_path / name).mkdir()
    (tmp_path / name / "runtime.yaml").write_text(yaml.safe_dump(entries))
    part = f"pyramid{RUNTIMES[name].suffix}"
    for damage in (lambda: None, lambda: (tmp_path / name / part).write_bytes(b"cut off")):
        damage()
        with pytest.raises(InputError, match=f"'{part}' of the export to '{name}' is missing or damaged"):
            load_segmenter(tmp_path, runtime=name)


def test_the_command_exports_and_predicts(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, card = trained
    code, said = command(
        "export", model, "--format", "onnx", "--card", card, "--split", "train", "--cases", 2
    )
    assert code == 0 and "instances compared" in said
    picture = next(card.parent.glob("t0.png"))
    code, said = command("predict", picture, tmp_path / "out", "--model", model, "--runtime", "onnx")
    assert code == 0, said
    (summary,) = (tmp_path / "out").glob("*/summary.json")
    assert json.loads(summary.read_text())["runtime"] == "onnx"


def plane_of(pixels):
    image = Image(pixels=pixels[None].astype(np.float32), grid=Grid.from_spacing(pixels.shape))
    segmenter = bright_segmenter()
    (plane,) = segmenter.looks(segmenter.prepared(image), View())
    return plane


def test_differences_are_counted_by_hand():
    pixels = np.zeros((64, 64))
    pixels[10:30, 20:50] = 1
    plane = plane_of(pixels)
    truth = InstanceSet.from_dense(plane.plane.grid, [pixels > 0.5])
    assert compare(plane, plane, truth, floor=0.5) == Parity(instances=1)
    found = plane.found
    scored = replace(plane, found=replace(found, scores=found.scores - 0.01))
    assert compare(plane, scored, truth, floor=0.5).score == pytest.approx(0.01)
    # one column less: 20 of 600 pixels, 3 are allowed
    masks = found.masks.clone()
    masks[:, :, :4] = 0
    narrower = replace(plane, found=replace(found, masks=masks))
    parity = compare(plane, narrower, truth, floor=0.5)
    assert parity.flipped == pytest.approx(40 / 3)
    assert parity.probability == 1.0
    assert len(parity.problems) == 2  # within two pixels the edge is still the true one
    assert compare(plane, narrower, truth, floor=0.5, cut=True) == replace(parity, probability=0.0)
    elsewhere = replace(plane, found=replace(found, boxes=found.boxes + 40, regions=found.regions + 40))
    assert compare(plane, elsewhere, truth, floor=0.5).lost == 2
    assert compare(plane, elsewhere, truth, floor=0.9) == Parity()
    assert worst([]) == Parity()


def test_an_instance_of_one_pixel_may_come_and_go():
    pixels = np.zeros((64, 64))
    pixels[10, 20] = 1
    plane, nothing = plane_of(pixels), plane_of(np.zeros((64, 64)))
    empty = InstanceSet.from_dense(plane.plane.grid, [])
    assert compare(plane, nothing, empty, floor=0.5).lost == 0
    pixels[10, 21] = 1
    assert compare(nothing, plane_of(pixels), empty, floor=0.5).lost == 1
    doubtful = compare(nothing, plane_of(pixels), empty, floor=0.875)  # as much as its score
    assert doubtful.lost == 0 and json.dumps(asdict(doubtful))


def test_not_a_number_is_a_problem():
    assert Parity(score=float("nan")).problems


class Nested(torch.nn.Module):
    def forward(self, maps, factor):
        return [m * factor for m in maps], (maps[0] + 1, None)


def test_parts_of_lists_keep_their_structure():
    network = torch.nn.ModuleDict({"a": Nested(), "b": torch.nn.Identity()})
    maps = [torch.ones(1, 2), torch.ones(1, 3)]
    (part,) = find_parts(network, ["a", "b"], lambda: network["a"](maps, torch.tensor(3.0)))
    assert part.name == "a" and len(part.inputs) == 3
    flat = part.module(*part.inputs)
    assert [t.shape for t in flat] == [(1, 2), (1, 3), (1, 2)]
    stand_in = RuntimePart(lambda tensors: list(part.module(*tensors)), part.outputs)
    (first, second), (third, left_out) = stand_in(maps, torch.tensor(2.0))
    assert first.tolist() == [[2, 2]] and second.tolist() == [[2, 2, 2]] and third.tolist() == [[2, 2]]
    assert left_out is None
    with pytest.raises(TypeError, match="not str"):
        find_parts(network, ["b"], lambda: network["b"]("text"))
