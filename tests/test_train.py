"""Training: what it leaves behind, how it stops, and that a resumed run is the run that never stopped."""

import contextlib
import itertools
import logging
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest
import torch
import yaml
from children import LIMIT_S, child, wait_until
from safetensors.torch import load_file
from toy import write_toy_experiment, write_toy_set, write_toy_volumes

from clearmargin.core import InstanceSet, LabelMap, Prediction, Provenance, Thresholds
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, InputError, TrainingError
from clearmargin.formats.raster import write_raster
from clearmargin.metrics.thresholds import choose_thresholds
from clearmargin.models import load_segmenter
from clearmargin.privacy import recorded_cases
from clearmargin.train import _rate, train
from clearmargin.training.batches import load_batches
from clearmargin.training.checkpoint import TrainingState
from clearmargin.training.experiment import Experiment, TrainingSettings
from clearmargin.training.processes import ProcessGroup
from clearmargin.training.step import TrainingStep
from clearmargin.training.validation import validate


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to train in, with a tracking store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def client(place):
    return mlflow.MlflowClient(tracking_uri=f"sqlite:///{place / 'mlflow' / 'mlflow.db'}")


def weights(result):
    return load_file(result.model / "weights.safetensors")


def test_a_run_leaves_a_model_and_a_full_record(place):
    card = write_toy_set(place / "data")
    result = train(
        write_toy_experiment(place, card, early_stopping={"metric": "semantic_dice", "patience": 5})
    )
    assert {p.name for p in result.folder.iterdir()} >= {"config.yaml", "checkpoint.pt", "model", "run.yaml"}
    assert load_segmenter(result.model).label_map.names == ("disc",)
    resolved = yaml.safe_load((result.folder / "config.yaml").read_text())
    assert resolved["model"]["box_nms"] == 0.5  # defaults are written out
    run = client(place).get_run(result.run_id)
    assert run.info.status == "FINISHED"
    assert run.data.params["training.batch_size"] == "2"
    assert run.data.params["card"] == "toy"
    assert len(client(place).get_metric_history(result.run_id, "train/loss")) == 2
    assert {"validation/ap50", "validation/semantic_dice", "learning_rate"} <= run.data.metrics.keys()
    files = {f.path for f in client(place).list_artifacts(result.run_id)}
    assert {"config.yaml", "card.yaml", "checkpoint", "environment.txt", "images"} <= files
    assert str(place) not in str(run.data.to_dictionary())
    assert run.info.user_id == "unknown"


def test_the_logged_model_loads_as_pyfunc(place):
    card = write_toy_set(place / "data")
    result = train(write_toy_experiment(place, card))
    mlflow.set_tracking_uri(f"sqlite:///{place / 'mlflow' / 'mlflow.db'}")
    from clearmargin.tracking.resolve import model_folder

    segmenter = load_segmenter(model_folder(result.run_id))
    assert segmenter.provenance == load_segmenter(result.model).provenance


def test_a_resumed_run_gives_the_weights_of_one_that_never_stopped(place, monkeypatch):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=4)
    elastic = "Rand2DElasticd: {spacing: [16, 16], magnitude_range: [0, 2], prob: 0.5}"
    varied = f"augment.transforms=[{elastic}, RandBiasFieldd]"
    whole = train(config, overrides=[varied], runs=place / "whole")
    # The same schedule, ended after two epochs by an error in the third.
    calls = []

    def stop(*_):
        calls.append(1)
        if len(calls) > 6:
            raise KeyboardInterrupt

    original = TrainingState.move_average
    with monkeypatch.context() as patched:
        patched.setattr(TrainingState, "move_average", lambda *a: (stop(), original(*a)))
        with pytest.raises(KeyboardInterrupt):
            train(config, overrides=[varied], runs=place / "parts")
    saved = torch.load(place / "parts" / "toy" / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 2
    resumed = train(resume=place / "parts" / "toy")
    assert resumed.epochs == 4
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=0, atol=0)
    run = client(place).get_run(resumed.run_id)
    assert run.info.status == "FINISHED"
    steps = sorted({m.step for m in client(place).get_metric_history(resumed.run_id, "train/loss")})
    assert steps == [1, 2, 3, 4]


def test_workers_do_not_change_the_weights(place):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=1)
    drawn = [
        "augment.copy_paste=0.5",
        "augment.repeat_threshold=1",
        "augment.aim=class",
        "augment.transforms=[RandZoomd: {min_zoom: 0.7, prob: 0.9}]",
    ]
    alone = train(config, runs=place / "a", overrides=drawn)
    helped = train(config, runs=place / "b", overrides=[*drawn, "training.workers=1", "training.cache_mb=0"])
    for name, value in weights(alone).items():
        torch.testing.assert_close(weights(helped)[name], value, rtol=0, atol=0)


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(place, caplog):
    caplog.set_level(logging.INFO)
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=3)
    from clearmargin.networks.mask_rcnn import MaskRCNN

    original, calls = MaskRCNN.losses, []

    def poisoned(self, images, targets):
        calls.append(1)
        losses = original(self, images, targets)
        return losses | {"boxes": losses["boxes"] * float("nan")} if len(calls) == 5 else losses

    MaskRCNN.losses = poisoned
    try:
        with pytest.raises(TrainingError, match=r"nan in step 5 .*checkpoint of epoch 1 is kept"):
            train(config)
    finally:
        MaskRCNN.losses = original
    saved = torch.load(place / "runs" / "toy" / "checkpoint.pt", weights_only=True)
    assert saved["epoch"] == 1
    assert all(torch.isfinite(v).all() for v in saved["network"].values())
    run_id = yaml.safe_load((place / "runs" / "toy" / "run.yaml").read_text())["run_id"]
    assert client(place).get_run(run_id).info.status == "FAILED"
    assert "`clearmargin train --resume runs/toy` goes on behind it" in caplog.text
    assert train(resume="runs/toy").epochs == 3  # as it was said


def test_a_full_disk_is_said_and_the_last_checkpoint_stays_whole(place, monkeypatch):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=3)
    original, calls = torch.save, []

    def full(state, path):
        calls.append(1)
        if len(calls) == 2:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        original(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(TrainingError, match="disk is full"):
        train(config)
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert torch.load(place / "runs" / "toy" / "checkpoint.pt", weights_only=True)["epoch"] == 1


def test_an_empty_split_is_refused_before_anything_starts(place):
    card = write_toy_set(place / "data", empty_train=True)
    with pytest.raises(ConfigError, match="no case in split 'train'"):
        train(write_toy_experiment(place, card))


def test_early_stopping_needs_a_validation_split_and_a_known_metric(place):
    card = write_toy_set(place / "data")
    text = card.read_text().replace("validation: validation", "validation: test")
    card.write_text(text)
    with pytest.raises(ConfigError, match="no case in split 'validation'"):
        train(write_toy_experiment(place, card, early_stopping={"metric": "ap"}))
    with pytest.raises(ConfigError, match="no metric 'ap51'"):
        train(write_toy_experiment(place, card, early_stopping={"metric": "ap51"}))
    # without early stopping nothing is decided by it, so none is needed
    assert train(write_toy_experiment(place, card, epochs=1)).epochs == 1


def test_resuming_what_is_no_run_lists_the_runs(place):
    with pytest.raises(InputError, match="no run 'toi' under"):
        train(resume="toi")
    with pytest.raises(ConfigError, match="not both"):
        train(place / "x.yaml", resume="toy")


def test_the_rate_warms_up_falls_and_ends_with_the_time():
    settings = TrainingSettings(warmup_steps=10)
    rates = [_rate(s, 100, settings, 0.0) for s in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[10] == pytest.approx(1.0)
    assert all(a > b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] < 0.02
    assert _rate(20, 1000, settings, 1.0) == pytest.approx(0.01)
    assert _rate(20, 1000, settings, 0.5) == pytest.approx(0.505)


@pytest.mark.parametrize("every", [1, 100])
def test_a_budget_of_minutes_holds_the_last_validation(place, monkeypatch, caplog, every):
    """By a clock of its own: a step takes a second, a validation of the one case ten, and there is a minute."""
    now = [0.0]

    def takes(seconds, function):
        def called(*arguments, **options):
            now[0] += seconds
            return function(*arguments, **options)

        return called

    caplog.set_level(logging.INFO)
    monkeypatch.setattr("clearmargin.training.budget.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("clearmargin.train.validate", takes(10.0, validate))
    monkeypatch.setattr(TrainingStep, "__call__", takes(1.0, TrainingStep.__call__))
    config = write_toy_experiment(
        place, write_toy_set(place / "data"), epochs=100, steps_per_epoch=12, batch_size=1, validate_every=every,
        max_minutes=1.0, snapshots=0,
    )  # fmt: skip
    result = train(config, track=False)
    # At every epoch: 12 + 10, 12 + 10, 6 + 10. Seldom: a trial of two after 26 steps, and 4 steps behind it.
    assert now[0] == 60.0
    assert result.epochs == 3 and "out of time" in caplog.text and "training took" not in caplog.text
    assert caplog.messages[0] == "reading the data: 5 cases to train on; the first epoch begins behind it"


@contextlib.contextmanager
def run_in_background(place, config):
    code = (
        "from pathlib import Path; import sys; from clearmargin.train import train; train(Path(sys.argv[1]))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, config]
    with (place / "errors.txt").open("wb") as errors, child(command, cwd=place, stderr=errors) as process:
        yield process


@pytest.mark.parametrize(
    "sign", [signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow), signal.SIGKILL]
)
def test_a_stopped_process_loses_at_most_one_epoch(place, sign):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=200)
    checkpoint = place / "runs" / "toy" / "checkpoint.pt"
    with run_in_background(place, config) as process:
        wait_until(checkpoint.exists, process)
        process.send_signal(sign)
        process.wait(timeout=LIMIT_S)
    saved = torch.load(checkpoint, weights_only=True)
    assert saved["epoch"] >= 1
    assert all(np.isfinite(v.numpy()).all() for v in saved["network"].values())
    result = train(resume="toy", overrides=[f"training.epochs={saved['epoch'] + 1}"])
    assert result.epochs == saved["epoch"] + 1
    statuses = {r.info.status for r in client(place).search_runs(["1"])}
    assert statuses == {"FINISHED"}


def test_two_processes_train_one_model(place):
    """By torchrun and gloo: one run and one folder, and every weight the same in both processes."""
    config = write_toy_experiment(place, write_toy_set(place / "data"), batch_size=1, max_minutes=5)
    (place / "runs" / "toy").mkdir(parents=True)  # the name is taken: both must agree on the next
    code = (
        "import hashlib, os, sys; from pathlib import Path; from clearmargin import train as verb\n"
        "from clearmargin.training import checkpoint\n"
        "move = checkpoint.TrainingState.move_average\n"
        "def keep(state, *rest):\n"
        "    move(state, *rest)\n"
        "    digest = hashlib.sha256(b''.join(v.numpy().tobytes() for v in state.network.state_dict().values()))\n"
        "    with open(f'weights-{os.environ[\"RANK\"]}.txt', 'a') as out: out.write(digest.hexdigest() + '\\n')\n"
        "checkpoint.TrainingState.move_average = keep\n"
        "print(verb.train(Path(sys.argv[1])).folder)\n"
    )
    (place / "two.py").write_text(code)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launcher, str(place / "two.py"), str(config)],
        cwd=place, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["runs/toy-2", "runs/toy-2"]
    steps = [(place / f"weights-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert steps[0] == steps[1]
    assert len(set(steps[0])) == 6
    assert len(client(place).search_runs(["1"])) == 1
    assert torch.load(place / "runs" / "toy-2" / "checkpoint.pt", weights_only=True)["epoch"] == 2


def test_a_profiled_run_says_where_its_time_goes(place):
    config = write_toy_experiment(place, write_toy_set(place / "data"), epochs=1, steps_per_epoch=9)
    result = train(config, profile=True)
    table = (result.folder / "profile" / "operators.txt").read_text()
    assert "aten::convolution" in table or "aten::mkldnn_convolution" in table
    assert (result.folder / "profile" / "trace.json").stat().st_size > 1000
    metrics = client(place).get_run(result.run_id).data.metrics
    shares = {name: metrics[f"time/{name}"] for name in ("data", "transfer", "forward", "backward", "update")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["forward"] + shares["backward"] > 0.3


def test_accumulated_steps_see_the_windows_of_one_large_batch(place):
    card = write_toy_set(place / "data")
    seen = []
    for size, passes in ((4, 1), (2, 2), (1, 4)):
        raw = yaml.safe_load(write_toy_experiment(place, card).read_text())
        raw["training"] |= {"batch_size": size, "accumulate": passes, "workers": 0}
        experiment = Experiment.model_validate(raw)
        dataset = open_dataset(card)
        batches = list(load_batches(experiment, dataset, dataset.split("train"), 1, 3, ProcessGroup()))
        assert len(batches) == 2 * passes
        seen.append(torch.cat([images for images, _ in batches]))
    assert len(seen[0]) == 8
    for other in seen[1:]:
        torch.testing.assert_close(other, seen[0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_case_that_cannot_be_read_is_named_in_one_line_wherever_it_is_read(place, workers):
    card = write_toy_set(place / "data")
    dataset = open_dataset(card)
    cases = dataset.split("train")
    for case in cases:
        case.image.write_bytes(case.image.read_bytes()[:200])
    raw = yaml.safe_load(write_toy_experiment(place, card).read_text())
    raw["training"] |= {"workers": workers}
    batches = load_batches(Experiment.model_validate(raw), dataset, cases, 0, 3, ProcessGroup())
    with pytest.raises(
        InputError, match=r"^case-[0-9a-f]{12}: its image is not readable as a picture"
    ) as said:
        next(batches)
    assert "\n" not in str(said.value) and not any(c.image.name in str(said.value) for c in cases)


def test_a_validation_case_that_cannot_be_read_ends_the_run_before_its_first_step(place):
    card = write_toy_set(place / "data")
    case = open_dataset(card).split("validation")[0]
    case.reference.write_bytes(b"no picture")
    with pytest.raises(InputError, match=f"^{case.case}: its reference is not readable"):
        train(write_toy_experiment(place, card))
    assert recorded_cases()[case.case] == str(case.reference.resolve())
    assert not (place / "mlflow").exists() and not any((place / "runs").iterdir())


def test_a_damaged_checkpoint_is_said(place):
    result = train(write_toy_experiment(place, write_toy_set(place / "data"), epochs=1))
    (result.folder / "checkpoint.pt").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(InputError, match="damaged"):
        train(resume=result.folder)


class Silent:
    """A segmenter that detects nothing, on a data set in which most images are empty, too."""

    thresholds = Thresholds(0.5)
    finds_masks, finds_landmarks = True, False

    def with_threshold(self, _threshold):
        return self

    def __call__(self, image):
        return Prediction(
            instances=InstanceSet.empty(image.grid),
            label_map=LabelMap(()),
            provenance=Provenance(model="none", weights_sha256="", config_sha256="", software=""),
        )


def test_a_model_that_detects_nothing_earns_nothing(place):
    """Seven of eight images hold nothing: leaving them out is the only way in which silence gains nothing."""
    card = write_toy_set(place / "data")
    for k in range(7):
        write_raster(place / "data" / f"t{k}_labels.png", np.zeros((96, 128), np.uint16))
    dataset = open_dataset(card)
    for measure in ("pq", None):
        validation = validate(Silent(), dataset, dataset.cases, measure=measure)
        assert validation.thresholds == {}
        assert validation.metrics == {"ap": 0, "ap50": 0, "pq": 0, "semantic_dice": 0, "detections": 0}


@pytest.mark.parametrize(("moved", "expected"), [(0, 1.0), (20, 0.0)])
def test_volumes_are_validated_whole(place, moved, expected):
    """An object in 10 of 36 slices: a miss is 0, though 26 slices are right, and a hit is 1 with no slice counted."""
    dataset = open_dataset(write_toy_volumes(place / "data"))

    class Drawn(Silent):
        def __call__(self, image):
            mask = np.zeros(image.grid.shape, bool)
            mask[10:20, 10 + moved : 22 + moved, 8:20] = True
            drawn = InstanceSet.from_dense(image.grid, [mask], labels=[1])
            return replace(super().__call__(image), instances=drawn)

    metrics = validate(Drawn(), dataset, dataset.cases, measure=None).metrics
    assert metrics["ap"] == metrics["pq"] == metrics["semantic_dice"] == expected


def test_a_validation_that_detects_nothing_is_warned_of(place, caplog):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=1, steps_per_epoch=1)
    with caplog.at_level("WARNING"):
        train(config, overrides=["prediction.score_threshold=1.0"])
    assert "detects nothing on the 1 validation cases at its score threshold of 1" in caplog.text


@pytest.mark.parametrize("configured", [None, 0.35])
def test_the_score_threshold_is_chosen_on_the_validation_split_unless_it_is_configured(
    place, caplog, monkeypatch, configured
):
    """The segmenter finds discs by their brightness, and noise with a score of 0.6: the best threshold lies above."""
    from scipy import ndimage

    card = write_toy_set(place / "data")
    few = partial(choose_thresholds, least=1)  # the toy set has one disc to choose on
    monkeypatch.setattr("clearmargin.training.validation.choose_thresholds", few)
    seen = []

    def bright(self, image):
        numbered, count = ndimage.label(image.pixels[0] > 120)
        masks = [numbered == k + 1 for k in range(count)]
        scores = [0.9 if m.sum() > 100 else 0.6 for m in masks]
        seen.append(self.thresholds)
        speck = np.zeros(image.grid.shape, bool)
        speck[:3, :3] = True
        instances = InstanceSet.from_dense(image.grid, [*masks, speck], scores=[*scores, 0.6])
        return SimpleNamespace(instances=instances)

    monkeypatch.setattr("clearmargin.models.segmenter.NetworkSegmenter.__call__", bright)
    write = write_toy_experiment(place, card, epochs=1, steps_per_epoch=1)
    overrides = [] if configured is None else [f"prediction.score_threshold={configured}"]
    with caplog.at_level("INFO"):
        result = train(write, overrides=overrides)
    stored = yaml.safe_load((result.model / "model.yaml").read_text())["prediction"]
    groups = set(yaml.safe_load((result.model / "model.yaml").read_text())["trained_on"])
    (held,) = {case.group for case in open_dataset(card).split("validation")}
    assert seen[0].every == 0  # every score is looked at
    if configured is None:
        assert stored["score_threshold"] == {"disc": 0.75}
        assert "score thresholds, best for pq on 1 validation cases: disc 0.75" in caplog.text
        assert load_segmenter(result.model).thresholds.of(1) == 0.75
        assert held in groups  # it was chosen on: it calibrates nothing
        assert client(place).get_run(result.run_id).data.metrics["validation/score_threshold/disc"] == 0.75
        assert result.best["score_threshold/disc"] == 0.75
    else:
        assert stored["score_threshold"] == 0.35 and held not in groups
        assert "score thresholds, as configured: disc 0.35" in caplog.text


def test_maps_are_scaled_on_the_validation_cases_if_the_model_was_chosen_on_them(place, monkeypatch):
    calls = []

    def scaled(folder, dataset, cases):
        calls.append((folder.name, [case.split for case in cases]))
        return {"disc": 0.5}

    monkeypatch.setattr("clearmargin.train.scale_maps", scaled)
    config = write_toy_experiment(place, write_toy_set(place / "data"), epochs=1, steps_per_epoch=2)
    result = train(config)
    assert calls == [("model", ["validation"])]
    assert client(place).get_run(result.run_id).data.metrics["map_temperature/disc"] == 0.5
    train(config, overrides=["prediction.score_threshold=0.5", "training.early_stopping=null"])
    assert len(calls) == 1  # the cases are still unseen, and may calibrate


@pytest.mark.parametrize("setting", ["prediction.score_threshold={disk: 0.5}", "prediction.nested=[disk]"])
def test_a_class_that_the_card_lacks_is_said_before_the_first_step(place, setting):
    config = write_toy_experiment(place, write_toy_set(place / "data"))
    with pytest.raises(ConfigError, match="no class 'disk': did you mean 'disc'"):
        train(config, overrides=[setting])
    assert not (place / "runs" / "toy").exists()


def test_least_width_and_nesting_are_taken_from_the_training_data(place):
    card = write_toy_set(place / "data")
    config = write_toy_experiment(place, card, epochs=1, steps_per_epoch=1)
    percentiles = "image.intensity={kind: percentiles, low: 0, high: 100}"
    model = yaml.safe_load((train(config, overrides=[percentiles]).model / "model.yaml").read_text())
    dataset = open_dataset(card)
    pictures = [dataset.read(case)[0].pixels for case in dataset.split("train")]
    widths = [np.ptp(p.astype(float)) for p in pictures]
    assert model["image"]["intensity"]["least_width"] == pytest.approx(np.quantile(widths, 0.05))
    assert model["prediction"]["nested"] == []


def test_validation_cases_without_an_instance_choose_no_model(place):
    card = write_toy_set(place / "data")
    number = next(int(c.row["id"][1:]) for c in open_dataset(card).cases if c.split == "validation")
    write_raster(place / "data" / f"t{number}_labels.png", np.zeros((96, 128), np.uint16))
    config = write_toy_experiment(place, card, early_stopping={"metric": "ap", "patience": 5})
    with pytest.raises(ConfigError, match="none of the 1 validation cases holds an instance"):
        train(config)
