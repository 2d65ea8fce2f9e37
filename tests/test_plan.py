"""A plan says what the data are like, fits its network's options, and refuses what cannot work."""

from dataclasses import replace

import numpy as np
import pytest
import yaml
from command import command
from toy import CLASSES, write_toy_set, write_toy_volumes

from clearmargin.core import Grid, InstanceSet
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.fingerprint import relations, take_fingerprint, thickness_of
from clearmargin.errors import ConfigError
from clearmargin.formats.raster import write_raster
from clearmargin.networks import NETWORKS, config_class, network_config
from clearmargin.networks.window_plan import halvings
from clearmargin.plan import objection, plan, render_plan
from clearmargin.training.experiment import Experiment, read_experiment
from clearmargin.transforms.planned import planned_transforms
from clearmargin.transforms.trial import check_transforms

GRID = Grid.from_spacing((64, 64))


def box(y, x, height, width):
    dense = np.zeros(GRID.shape, bool)
    dense[y : y + height, x : x + width] = True
    return dense


def test_how_objects_lie_to_each_other_by_hand():
    organ, tumour = box(5, 5, 30, 30), box(10, 10, 8, 8)
    beside, apart = box(35, 5, 10, 10), box(50, 50, 5, 5)
    across = box(30, 30, 10, 10)
    found = relations(
        InstanceSet.from_dense(GRID, [organ, tumour, beside, apart, across], labels=[1, 2, 1, 1, 2])
    )
    assert found.nested == 1  # the tumour in the organ
    assert found.overlapping == 3  # organ, tumour, what lies across the organ's corner
    assert found.touching == 2  # the organ and what lies beside it; other labels do not count


def test_the_largest_disc_by_hand():
    def thickness(dense):
        return thickness_of(InstanceSet.from_dense(GRID, [dense]).masks[0])

    assert thickness(box(5, 5, 1, 30)) == 1
    assert thickness(box(5, 5, 3, 30)) == 3
    assert thickness(box(5, 5, 9, 9)) == 9
    y, x = np.mgrid[:64, :64]
    assert thickness((y - 30) ** 2 + (x - 30) ** 2 <= 100) == pytest.approx(20, abs=1)


def write_lines(folder, **shapes):
    """A data set whose objects are what ``draw`` gives, in place of discs."""
    card = write_toy_set(folder)
    for path in sorted(folder.glob("t*_labels.png")):
        labels = np.zeros((96, 128), np.uint16)
        for value, (y, x, height, width) in enumerate(shapes["boxes"], start=1):
            labels[y : y + height, x : x + width] = value
        write_raster(path, labels)
    return card


def test_a_fingerprint_counts_what_is_there(tmp_path):
    card = write_lines(tmp_path, boxes=[(10, 10, 20, 40), (60, 10, 8, 8)])
    found = take_fingerprint(open_dataset(card))
    assert (found.cases, found.of, found.ndim, found.channels, found.bits) == (5, 5, 2, 1, 8)
    assert found.shapes.tolist() == [[96, 128]] * 5
    assert found.counts.tolist() == [2] * 5 and found.classes == {"disc": 10}
    assert sorted(set(map(tuple, found.boxes.tolist()))) == [(8, 8), (20, 40)]
    assert found.unit == "px" and found.touching == 0


def test_a_plan_is_complete_and_says_why(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = write_toy_set(tmp_path / "data")
    done = plan(card, device="cpu")
    text = render_plan(done)
    path = tmp_path / "planned.yaml"
    path.write_text(text)
    assert read_experiment(path, ()) == done.experiment
    assert "# Planned from 5 of 5 training cases" in text
    for name, reason in done.reasons.items():
        assert reason and f"# {reason}" in text, name
    model = done.experiment.model
    assert model["network"] == "mask_rcnn"
    sides = done.fingerprint.sides
    assert model["anchor_sizes"][0] <= np.quantile(sides, 0.05) + 8
    assert sorted(set(model["anchor_sizes"])) == model["anchor_sizes"]
    assert done.experiment.image.scale == 1.0  # discs of 20 to 32 pixels are seen as they are
    assert done.experiment.training.early_stopping.metric == "ap"


@pytest.mark.parametrize("network", ["yolact", "solov2", "mask2former", "semantic_cc", "eomt"])
def test_each_networks_plan_fits_its_options(tmp_path, network):
    apart = write_lines(tmp_path, boxes=[(10, 10, 24, 24), (50, 60, 30, 28)])
    done = plan(apart, network=network, device="cpu", minutes=20)
    assert network_config(done.experiment.model).model_dump()["network"] == network
    assert done.experiment.training.max_minutes == 20


def test_queries_are_enough_for_a_window_and_tiles_for_an_image(tmp_path):
    crowd = [(y, x, 10, 10) for y in range(2, 90, 14) for x in range(2, 120, 14)]  # 63, apart
    done = plan(write_lines(tmp_path / "crowd", boxes=crowd), network="mask2former", device="cpu")
    found, crop = done.experiment, done.experiment.image.crop
    area = np.prod([n * found.image.scale for n in (96, 128)])
    inside = len(crowd) * np.prod(crop) / area
    assert inside < len(crowd) and 1.5 * inside <= found.model["queries"] < len(crowd)
    assert found.prediction.tile == crop and 2 * found.prediction.tile_overlap <= min(crop)
    few = plan(write_lines(tmp_path / "few", boxes=crowd[:4]), network="mask2former", device="cpu").experiment
    assert few.model["queries"] == 20 and few.prediction.tile is None


def test_masks_of_long_objects_that_seldom_touch_are_followed(tmp_path):
    """Bars of 8 x 110 have a box side of 30 and a thickness of 8: 3.7 times as long; beside each other they touch."""
    apart = plan(write_lines(tmp_path / "apart", boxes=[(10, 5, 8, 110), (50, 5, 8, 110)]), device="cpu")
    assert apart.experiment.model["mask_looks"] == 3 and "model.mask_looks" in apart.reasons
    touching = plan(write_lines(tmp_path / "touch", boxes=[(10, 5, 8, 110), (18, 5, 8, 110)]), device="cpu")
    assert touching.experiment.model["mask_looks"] == 0
    square = plan(write_lines(tmp_path / "square", boxes=[(10, 10, 30, 30)]), device="cpu")
    assert square.experiment.model["mask_looks"] == 0


def test_small_objects_are_enlarged_and_large_images_parted(tmp_path):
    small = plan(write_lines(tmp_path / "small", boxes=[(10, 10, 8, 8), (40, 40, 9, 9)]), device="cpu")
    assert small.experiment.image.scale == 2.0
    card = write_toy_set(tmp_path / "large", shape=(2000, 1600))
    large = plan(card, device="cpu")
    assert large.experiment.prediction.tile == (512, 512) or large.experiment.image.scale < 0.5


def test_what_cannot_work_is_refused_with_what_can(tmp_path):
    thin = write_lines(tmp_path / "thin", boxes=[(10, 10, 2, 90), (60, 10, 2, 90)])
    for network in ("yolact", "solov2"):
        with pytest.raises(ConfigError, match=rf"{network} does not fit .*thinner.*mask_rcnn.* can"):
            plan(thin, network=network, device="cpu")
    touching = write_lines(tmp_path / "touching", boxes=[(10, 10, 20, 20), (30, 10, 20, 20)])
    assert plan(touching, device="cpu").experiment.model["network"] == "mask_rcnn"
    parted = plan(touching, network="semantic_cc", device="cpu")
    assert parted.experiment.model["targets"] == "distance"
    assert "classes 50 %, distance 0 %, border 0 %" in parted.reasons["model.targets"]
    within = replace(parted.fingerprint, lost={"planes": {"classes": 0.3, "border": 0.2, "distance": 0.2}})
    assert "20 % of the objects lie over or in another" in objection("semantic_cc", within, 1.0)
    alone = write_lines(tmp_path / "alone", boxes=[(20, 20, 40, 40)])
    assert plan(alone, device="cpu").experiment.model["network"] == "mask_rcnn"
    line = write_lines(tmp_path / "line", boxes=[(40, 10, 1, 100)])
    assert plan(line, device="cpu").experiment.model["network"] == "semantic_cc"
    with pytest.raises(ConfigError, match="no model 'yolcat': did you mean 'yolact'"):
        plan(alone, network="yolcat", device="cpu")


def test_nested_objects_are_not_for_solov2(tmp_path):
    found = take_fingerprint(open_dataset(write_toy_set(tmp_path)))
    nested = replace(found, nested=0.1)
    assert objection("solov2", found, 1.0) is None
    assert "lie in another one" in objection("solov2", nested, 1.0)
    assert objection("mask_rcnn", nested, 1.0) is None


def test_volumes_of_even_voxels_are_seen_in_space_in_windows_of_their_size(tmp_path):
    """36 x 50 x 35 voxels of 1 mm: nnU-Net's own window is 40 x 56 x 40, halved three times."""
    card = write_toy_volumes(tmp_path / "even")
    found = plan(card, device="cpu", minutes=40)
    planned = found.experiment
    assert planned.model["network"] == "semantic_cc_3d" and planned.model["targets"] == "classes"
    assert (planned.model["patch"], planned.model["levels"], planned.model["strides"]) == (
        [40, 56, 40],
        4,
        None,
    )
    assert planned.image.channels == 1 and planned.image.neighbours == 1  # not read: the default
    assert planned.training.early_stopping.metric == "semantic_dice"
    assert (
        planned.training.early_stopping.patience == 1000
        and "the time ends it" in found.reasons["training.early_stopping"]
    )
    assert planned.training.validate_every == 1
    here, there = (plan(card, device=where, minutes=1).experiment for where in ("cpu", "cuda"))
    assert (here.model["filters"], there.model["filters"]) == (16, 32)
    assert (here.training.batch_size, there.training.batch_size) == (2, 11)  # 11 windows are a million voxels
    large = plan(
        write_toy_volumes(tmp_path / "large", shape=(120, 160, 160)), device="cpu", minutes=1
    ).experiment
    assert np.prod(large.model["patch"]) <= 40_000 and large.training.validate_every > 1


def test_thick_slices_go_one_by_one_with_their_neighbours_if_objects_reach_through_them(tmp_path):
    thick = plan(write_toy_volumes(tmp_path / "thick", (5.0, 0.8, 0.8)), device="cpu")
    assert thick.experiment.model["network"] == "mask_rcnn"
    assert "slices lie 6.2 pixels apart, over 3" in thick.reasons["model.network"]
    assert thick.experiment.image.neighbours == 1 and thick.experiment.image.channels == 3
    flat = plan(
        write_toy_volumes(tmp_path / "flat", (5.0, 0.8, 0.8), boxes=((4, 10, 8, 1, 12, 12),)), device="cpu"
    )
    assert flat.experiment.image.neighbours == 0 and "tell nothing" in flat.reasons["image.neighbours"]
    few = plan(
        write_toy_volumes(tmp_path / "few", shape=(5, 64, 64), boxes=((1, 10, 8, 3, 20, 20),)), device="cpu"
    )
    assert few.experiment.model["network"] == "mask_rcnn"
    assert "volumes have 5 slices" in few.reasons["model.network"]


def test_voxels_that_differ_are_brought_to_one_size_and_halved_as_they_are(tmp_path):
    done = plan(
        write_toy_volumes(tmp_path, (2.5, 1.0, 1.0), (24, 64, 64), others=(2.5, 1.2, 1.2)), device="cpu"
    )
    model = done.experiment.model
    assert model["network"] == "semantic_cc_3d" and model["spacing_mm"] == [2.5, 1.0, 1.0]
    assert model["strides"][0] == [1, 2, 2] and model["strides"][1] == [2, 2, 2]
    path = tmp_path / "planned.yaml"
    path.write_text(render_plan(done))
    assert read_experiment(path, ()) == done.experiment


def test_objects_of_a_class_that_touch_in_space_get_targets_that_part_them(tmp_path):
    boxes = [(4, 8, 4, 12, 14, 9), (4, 8, 13, 12, 14, 9), (18, 8, 4, 12, 14, 9)]
    done = plan(write_toy_volumes(tmp_path, boxes=boxes), device="cpu", network="semantic_cc_3d")
    assert done.experiment.model["targets"] == "distance"
    assert done.fingerprint.lost["volumes"] == pytest.approx({"classes": 1 / 3, "border": 0, "distance": 0})
    assert done.experiment.training.early_stopping.metric == "ap"  # three of a class in a volume
    many = [(z, y, x, 2, 3, 3) for z in range(2, 34, 4) for y in range(2, 46, 6) for x in (2, 12, 22)]
    crowd = plan(write_toy_volumes(tmp_path / "crowd", boxes=many), device="cpu", network="semantic_cc_3d")
    assert crowd.experiment.model["detections"] >= len(many) == 192  # a slice has 24


@pytest.mark.parametrize(
    ("extents", "spacing", "strides"),
    [
        ((36, 50, 35), (1, 1, 1), [(2, 2, 2)] * 3),
        ((128, 128, 128), (1, 1, 1), [(2, 2, 2)] * 5),
        ((20, 320, 256), (3.6, 0.62, 0.62), [(1, 2, 2), (1, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)]),
        ((9, 64, 64), (1, 1, 1), [(2, 2, 2), (1, 2, 2), (1, 2, 2), (1, 2, 2)]),
        ((7, 7, 7), (1, 1, 1), []),
    ],
)
def test_axes_are_halved_by_nnunets_rules_by_hand(extents, spacing, strides):
    assert halvings(extents, spacing) == strides


def test_no_instance_to_plan_for(tmp_path):
    with pytest.raises(ConfigError, match="no instance in 5 training cases"):
        plan(write_lines(tmp_path, boxes=[]), device="cpu")


def test_the_command_writes_the_plan_and_keeps_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    card = write_toy_set(tmp_path / "data")
    code, said = command("plan", card, "--out", tmp_path / "toy.yaml", "--network", "yolact")
    assert code == 0 and "toy.yaml" in said
    assert yaml.safe_load((tmp_path / "toy.yaml").read_text())["model"]["network"] == "yolact"
    before = (tmp_path / "toy.yaml").read_bytes()
    code, said = command("plan", card, "--out", tmp_path / "toy.yaml")
    assert code == 2 and "exists" in said
    assert (tmp_path / "toy.yaml").read_bytes() == before
    assert CLASSES[0]["name"] == "disc"


def test_settings_that_a_network_does_not_read_are_refused_by_name(tmp_path):
    """A network of volumes has windows of its own: what is for planes is ignored by nothing, but refused."""
    card = write_toy_set(tmp_path / "data")
    config = tmp_path / "volumes.yaml"
    content = {"name": "v", "card": str(card), "model": {"network": "semantic_cc_3d"}}
    config.write_text(
        yaml.safe_dump(content | {"image": {"crop": [128, 128]}, "augment": {"copy_paste": 0.5}})
    )
    with pytest.raises(ConfigError, match="does not read") as refused:
        read_experiment(config, [])
    assert "image.crop: semantic_cc_3d" in str(refused.value) and "augment.copy_paste" in str(refused.value)
    config.write_text(yaml.safe_dump(content | {"image": {"crop": [256, 256]}}))  # the default says nothing
    assert read_experiment(config, []).image.crop == (256, 256)


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_says_it_does_not_read_exists(name, tmp_path):
    """A path in ``unread`` names a setting; one that was renamed would refuse nothing."""
    experiment = Experiment.model_fields
    for path in config_class(name).unread:
        section, field = path.split(".")
        assert field in experiment[section].annotation.model_fields, path


@pytest.mark.parametrize(
    ("device", "minutes", "planned"),
    [("cpu", None, False), ("cpu", 5.0, False), ("cpu", 90.0, True), ("cuda", 5.0, True)],
)
def test_more_variation_is_for_trainings_that_are_long_enough(tmp_path, device, minutes, planned):
    card = write_toy_set(tmp_path / "data")
    content = yaml.safe_load(card.read_text()) | {"modality": "US"}
    card.write_text(yaml.safe_dump(content))
    done = plan(card, device=device, minutes=minutes)
    names = [name for step in done.experiment.augment.transforms for name in step]
    assert names == (
        ["RandBiasFieldd", "RandSimulateLowResolutiond", "RandGaussianSmoothd"] if planned else []
    )
    assert "gain differs with depth" in done.reasons["augment.transforms"]
    assert ("did not help" in done.reasons["augment.transforms"]) != planned
    (tmp_path / "plan.yaml").write_text(render_plan(done))
    assert (
        read_experiment(tmp_path / "plan.yaml", []).augment == done.experiment.augment
    )  # the trial is passed


def test_what_is_planned_for_each_modality_passes_the_trial():
    modalities = ("MR", "CT", "PT", "NM", "US", "IVUS", "SM", "GM", "ES", "XC", "DX", "CR", "MG", "RF")
    for modality in modalities:
        transforms, reason = planned_transforms(modality)
        assert transforms and reason
        for shape in ((64, 96), (16, 32, 48)):
            check_transforms(transforms, shape)
    assert planned_transforms("OT").transforms == () and "'OT'" in planned_transforms("OT").reason
