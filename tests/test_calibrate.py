"""The verb: on phantoms whose predictions are known, and on a model that was trained a little."""

import csv
import shutil
from dataclasses import replace

import numpy as np
import pytest
import yaml
from calibrated import ASKED, MADE_BY, calibrated, drawn_set, judged
from command import command
from displaced import SPACE
from toy import write_toy_experiment, write_toy_set

from clearmargin.calibrate import calibrate
from clearmargin.core import InstanceSet
from clearmargin.errors import InputError
from clearmargin.margins.calibration import load_calibration
from clearmargin.margins.observations import observe
from clearmargin.metrics.intervals import Interval
from clearmargin.models.files import CONFIG_FILE, ENSEMBLE_FILE
from clearmargin.report.calibration import figures_of, report_text, write_calibration
from clearmargin.train import train


@pytest.fixture(scope="module")
def found():
    drawn = drawn_set(80)
    calibration, margin_cases = calibrated(drawn, drawn.cases[:44])
    return drawn, calibration, judged(drawn, drawn.cases[44:], calibration, margin_cases)


def test_margins_cover_the_judged_groups_as_they_promise(found):
    _, calibration, judgement = found
    assert judgement.groups == 36 and len(judgement.coverage) == len(calibration.margins)
    for row in judgement.coverage:
        mean, low, high = row.splits
        # 100 splits of 67 groups: at least what is promised, and at most 2 / 32 and ties more
        assert 1 - row.margin.alpha - 0.03 < mean < 1 - row.margin.alpha + 0.1 and low < mean < high
        assert row.covered.low <= row.covered.estimate <= row.covered.high
        assert row.covered.high > 1 - row.margin.alpha - 0.02
        assert row.objects_covered <= row.objects and sum(t.objects for t in row.by_size) == row.objects
        assert sum(third.covered for third in row.by_size) == row.objects_covered
    assert 0 <= judgement.empty < 0.5
    assert judgement.sizes["inner"] < 1 < judgement.sizes["outer"]
    assert {alarm.stratum for alarm in judgement.alarms} == {"all", "stain red", "stain blue"}


def test_scaling_makes_pixels_say_what_comes_true(found):
    _, _, judgement = found
    change = {(row.what, row.number): row for row in judgement.scaled}
    pixels = change["pixels near the edge", "ECE"]
    assert pixels.after.estimate < pixels.before.estimate and pixels.change.high < 0
    assert ("scores, kept instances", "D-ECE") in change
    for row in judgement.scaled:
        assert row.change.estimate == pytest.approx(row.after.estimate - row.before.estimate)


def test_a_known_signal_finds_what_goes_wrong():
    """Where pairwise Dice says how far each edge is off, it orders instances as the risk does."""
    drawn = drawn_set(60)
    calibration, margin_cases = calibrated(drawn, drawn.cases[:40])
    distance = {}
    for case in drawn.cases:
        image, reference = drawn.read(case)
        for one in observe(case.group, image, drawn(image), reference).instances:
            distance[one.size, one.score] = one.hd95

    def knowing(prediction):
        instances = prediction.instances
        cell = instances.grid.voxel_size
        known = [
            1 - distance.get((m.area * cell, float(s)), 0.0) / 10
            for m, s in zip(instances.masks, instances.scores, strict=True)
        ]
        columns = dict(instances.uncertainty) | {"pairwise_dice": np.array(known)}
        return replace(prediction, instances=replace(instances, uncertainty=columns))

    judgement = judged(drawn.change(knowing), drawn.cases[40:], calibration, margin_cases)
    rows = {(r.over, r.uncertainty): r for r in judgement.failures if r.risk == "HD95"}
    best, blind = rows["matched instances", "1 - pairwise Dice"], rows["matched instances", "1 - score"]
    assert best.auroc == 1 and best.e_aurc == pytest.approx(0, abs=1e-6) and best.ause < 0.01
    assert blind.e_aurc > 10 * abs(best.e_aurc) and 0.2 < blind.auroc < 0.8
    assert "of the matched instances" in str(best.referral)


def test_a_shift_between_strata_is_reported(found):
    _, _, judgement = found
    pairs = {(row.calibrated_on, row.judged_on) for row in judgement.shifts}
    assert pairs == {(a, b) for a in ("", "blue", "red") for b in ("blue", "red")}
    assert all(row.column == "stain" and row.groups and row.refused <= row.cases for row in judgement.shifts)
    assert {row.name for row in judgement.shifts} == {"outer, by object", "inner, by object"}


def test_tables_figures_and_report(found, tmp_path):
    _, calibration, judgement = found
    figures = figures_of(judgement)
    assert {
        "coverage_over_splits",
        "reliability_pixels_near_the_edge",
        "risk_coverage_cases_one_minus_dice",
    } <= set(figures)
    write_calibration(tmp_path, calibration, judgement, figures)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"report.md", "margins.csv", "calibration.csv", "failure.csv", "shift.csv"} <= names
    rows = list(csv.DictReader((tmp_path / "margins.csv").read_text().splitlines()))
    assert len([r for r in rows if r["factor"]]) == len(calibration.margins)
    text = report_text(calibration, judgement)
    for margin in calibration.applied():  # each sentence once, before anything else
        assert text.count(str(margin)[1:]) == 1 and text.index(str(margin)[1:]) < text.index(
            "## Every promise"
        )
    assert text.index("On 36 other patients (outer)") < text.index("## Every promise")
    assert text.count("All of it holds for data like the calibration data") == 1
    assert all(f"| by {m.guarantee}" in text for m in calibration.margins)
    assert "group-" not in text and "case-" not in text  # no group and no case is named


def test_what_samples_say_of_an_edge_is_held_against_what_was_measured():
    """Where the edge's standard deviation is a tenth of HD95, both rise together; predicted NSD is drawn at random."""
    drawn = drawn_set(60)
    distance = {}
    for case in drawn.cases:
        image, reference = drawn.read(case)
        for one in observe(case.group, image, drawn(image), reference).instances:
            distance[one.size, one.score] = one.hd95

    def knowing(prediction):
        instances = prediction.instances
        cell = instances.grid.voxel_size
        known = [
            distance.get((m.area * cell, float(s)), 0.0) / 10
            for m, s in zip(instances.masks, instances.scores, strict=True)
        ]
        columns = dict(instances.uncertainty) | {"edge_sd_mm": np.array(known)}
        return replace(prediction, instances=replace(instances, uncertainty=columns))

    calibration, margin_cases = calibrated(drawn.change(knowing), drawn.cases[:40])
    rows = judged(drawn, drawn.cases[40:], calibration, margin_cases).expected
    edges = [row for row in rows if row.column == "edge_sd_mm"]
    assert [row.part for row in edges] == [1, 2, 3, 4, 5] and edges[0].spearman == pytest.approx(1, abs=0.01)
    assert all(row.found == pytest.approx(10 * row.said) for row in edges)
    blind = [row for row in rows if row.column == "predicted_nsd"]
    assert blind[0].spearman is None or abs(blind[0].spearman) < 0.5  # None: scaled to one value
    assert sum(row.n for row in blind) == sum(row.n for row in edges)


def test_a_judged_split_in_which_nothing_is_found(tmp_path):
    drawn = drawn_set(24)
    calibration, margin_cases = calibrated(drawn, drawn.cases[:20])

    def nothing(prediction):
        return replace(prediction, instances=InstanceSet.empty(prediction.instances.grid), edges=())

    judgement = judged(drawn.change(nothing), drawn.cases[20:], calibration, margin_cases)
    assert all((row.groups, row.covered, row.objects) == (0, None, 0) for row in judgement.coverage)
    assert judgement.missed.estimate == 1 and {r.over for r in judgement.failures} == {"cases"}
    write_calibration(tmp_path, calibration, judgement, figures_of(judgement))
    assert "0 of 0" in (tmp_path / "report.md").read_text() and not judgement.sizes


def test_volumes_are_calibrated_in_millimetres():
    drawn = drawn_set(14, SPACE)
    calibration, margin_cases = calibrated(drawn, drawn.cases[:11], replace(ASKED, alphas=(0.2,)))
    assert calibration.length_unit == "mm" and calibration.margin("outer") is not None
    judgement = judged(drawn, drawn.cases[11:], calibration, margin_cases)
    assert all(row.groups <= 3 for row in judgement.coverage)
    image, _ = drawn.read(drawn.cases[0])
    after = calibration.apply(drawn(image)).instances
    assert (after.uncertainty["outer_volume_mm3"] > after.uncertainty["inner_volume_mm3"]).all()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of toy discs, a set with twelve calibration images, and a tracking store."""
    place = tmp_path_factory.mktemp("calibrate")
    card = write_toy_set(place / "data", cases=24)
    index = place / "data" / "index.csv"
    rows = index.read_text().splitlines()
    splits = ["train"] * 6 + ["validation"] + ["calibration"] * 13 + ["test"] * 4
    index.write_text(
        "\n".join([rows[0], *(f"{r.split(',')[0]},{s}" for r, s in zip(rows[1:], splits, strict=True))])
        + "\n"
    )
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{place / 'mlflow.db'}")
        config = write_toy_experiment(place, card, epochs=2, steps_per_epoch=30, learning_rate=0.003)
        result = train(config, overrides=["prediction.score_threshold=0.1"], runs=place / "runs")
        yield result.model, card, place


def test_a_trained_model_from_the_command_line(trained, tmp_path):
    from mlflow import MlflowClient

    model, card, place = trained
    code, said = command(
        "calibrate", model, "--card", card, "--alpha", "0.2,0.1", "--uncertainty", "checkpoints", "--judge", "test",
        "--promise", "group", "--sides", "both", "--match-iou", 0.5, "--out", tmp_path / "out",
    )  # fmt: skip
    assert code == 0, said
    assert (
        "chance of at least 80 % every matched object of a new image" in said
        and "images have no spacing" in said
    )
    assert "Leakage: no group was trained on, by name and by the content of its images." in said
    stored = yaml.safe_load((model / "calibration" / "checkpoints.yaml").read_text())
    kept = load_calibration(model, "checkpoints", stored["weights_sha256"])
    assert load_calibration(model, "checkpoints", kept.weights_sha256) == kept
    assert kept.length_unit == "px" and kept.groups == {"fit": 4, "margin": 9}
    assert kept.pixels is not None and kept.promise == "group" and kept.sides == "both"
    assert (tmp_path / "out" / "report.md").is_file() and list((tmp_path / "out").glob("*.png"))
    # the run is tracked, and names no case
    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    run = next(r for r in runs if r.data.tags.get("verb") == "calibrate")
    assert run.info.run_id in said and run.info.status == "FINISHED" and run.data.params["judge"] == "test"
    assert all(name.startswith("headline/") for name in run.data.metrics)
    assert {"headline/threshold", "headline/margin_outer", "headline/coverage_both"} <= set(run.data.metrics)
    assert not any("case-" in str(v) for v in (run.data.params, run.data.metrics, run.data.tags, said))
    assert {a.path for a in client.list_artifacts(run.info.run_id)} >= {"calibration", "figures"}


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--split", "train", "--alpha", "0.4"], 4, "trained or chosen on"),
        (["--judge", "calibration"], 2, "cannot both calibrate and judge"),
        (["--alpha", "ten"], 2, "--alpha takes numbers"),
        (["--alpha", "10"], 2, "alpha: expected the share"),
        (["--miss-alpha", "10"], 2, "alpha: expected the share"),
        (["--confidence", "90"], 2, "such as 0.9"),
        (["--match-iou", "0.3"], 2, "from 0.5 to 1"),
        (["--promise", "image"], 2, "'object', 'group', 'risk'"),
        (["--confidence", "0.9", "--alpha", "0.1"], 4, "alpha 0.1 needs 22 images"),
        (["--fit-share", "1"], 2, "between 0 and 1"),
        (["--uncertainty", "ensemble"], 2, "ensemble"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_reason(trained, options, code, message):
    model, card, _ = trained
    ended, said = command("calibrate", model, "--card", card, *options)
    assert (ended, message in said) == (code, True), said


def test_an_empty_split_and_a_model_that_does_not_say_what_it_saw(trained, tmp_path):
    model, card, _ = trained
    empty = yaml.safe_load(card.read_text())
    empty["splits"]["values"].pop("calibration")
    empty["splits"]["values"]["test"] = ["calibration", "test"]
    (card.parent / "empty.yaml").write_text(yaml.safe_dump(empty))
    code, said = command("calibrate", model, "--card", card.parent / "empty.yaml")
    assert code == 2 and "calibration" in said
    shutil.copytree(model, tmp_path / "model")
    settings = yaml.safe_load((model / CONFIG_FILE).read_text()) | {"trained_on": []}
    (tmp_path / "model" / CONFIG_FILE).write_text(yaml.safe_dump(settings))
    code, said = command("calibrate", tmp_path / "model", "--card", card)
    assert code == 4 and "does not say which groups it was trained on" in said


def renamed(card, name):
    """The card under another name, with its training images as the calibration split."""
    content = yaml.safe_load(card.read_text()) | {"name": name}
    columns = {"train": "calibration", "calibration": "calibration", "validation": "test", "test": "test"}
    content["splits"]["values"] = columns
    path = card.parent / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_training_images_are_known_again_with_the_card_renamed_and_in_another_home(
    trained, tmp_path, monkeypatch
):
    model, card, _ = trained
    other = renamed(card, "other")
    code, said = command("calibrate", model, "--card", other, "--alpha", 0.2)
    assert code == 4 and "trained or chosen on 6 of 19 calibration groups" in said, said
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    code, said = command("calibrate", model, "--card", other, "--alpha", 0.2)
    assert code == 4 and "trained or chosen on 6 of 19 calibration groups" in said, said
    # what can be checked by content alone is said to be no more than that
    code, said = command("calibrate", model, "--card", card, "--alpha", 0.2)
    assert code == 0 and "groups could not be compared by name" in said and "another user's key" in said, said
    shutil.copytree(model, tmp_path / "model")
    settings = yaml.safe_load((model / CONFIG_FILE).read_text()) | {"trained_content": []}
    (tmp_path / "model" / CONFIG_FILE).write_text(yaml.safe_dump(settings))
    code, said = command("calibrate", tmp_path / "model", "--card", card, "--alpha", 0.2)
    assert code == 4 and "cannot be checked" in said and "train it again" in said


def test_the_network_alone_has_neither_edges_nor_a_map(trained):
    model, card, _ = trained
    code, said = command("calibrate", model, "--card", card, "--alpha", 0.2)
    assert code == 0 and "pixels: none" in said and "samples' edges" not in said, said
    with pytest.raises(InputError, match="of other weights"):
        load_calibration(model, "none", MADE_BY.weights_sha256)


def test_an_ensemble_has_a_calibration_of_its_own_and_twins_are_certain(trained, tmp_path):
    model, card, _ = trained
    for name in ("first", "second"):
        shutil.copytree(model, tmp_path / name, ignore=shutil.ignore_patterns("snapshots", "calibration"))
    (tmp_path / ENSEMBLE_FILE).write_text(yaml.safe_dump({"members": ["first", "second"]}))
    done = calibrate(tmp_path, card, alphas=[0.2], match_iou=0.5, uncertainty="ensemble")
    assert done.file == tmp_path / "calibration" / "ensemble.yaml" and done.judged is None
    # so short a training may match too few objects for a margin, and then says so
    assert done.calibration.margins or all("calibration groups" in r.why for r in done.calibration.refused)


def test_a_judged_split_that_contradicts_a_promise_is_called_out(found):
    """The interval of what came true lies below the range that is stated for one calibration."""
    _, calibration, judgement = found
    assert judgement.doubts(calibration) == ()
    (first, *_) = calibration.applied()
    least = first.covered[1]
    bad = Interval(estimate=least - 0.2, low=least - 0.3, high=least - 0.05, level=0.95, groups=36, cases=36)
    rows = tuple(replace(r, covered=bad) if r.margin == first else r for r in judgement.coverage)
    (doubt,) = replace(judgement, coverage=rows).doubts(calibration)
    assert (
        f"the {first.sides} margin covers {100 * (least - 0.2):.0f} %" in doubt
        and "do not bear this out" in doubt
    )
    told = replace(calibration, doubts=(doubt,))
    assert doubt[1:] in report_text(told, judgement)
