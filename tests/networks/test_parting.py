"""Semantic networks that learn cores: two images and two volumes by heart, and what a segmenter makes of them."""

import shutil

import numpy as np
import pytest
import torch
from toy import write_toy_volumes

from clearmargin.calibrate import calibrate
from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap
from clearmargin.errors import ConfigError
from clearmargin.export import export
from clearmargin.formats.volume import write_volume
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.parity import compare
from clearmargin.models.segmenter import View
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets, VolumeTargets
from clearmargin.sampling.samples import open_segmenter
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap((LabelClass(id=1, name="disc", type=CODE, category=CODE),))
KINDS = ("border", "distance")
SPACING = (2.0, 1.0, 1.0)


def touching(shape, spacing, spheres):
    """Return a picture or volume of bright balls that touch, ``(1, *shape)``, and a mask for each."""
    where = np.stack([(i + 0.5) * s for i, s in zip(np.indices(shape), spacing, strict=True)], -1)
    beyond = np.stack([np.linalg.norm(where - c, axis=-1) - r for c, r in spheres])
    masks = [(beyond[k] < 0) & (beyond.argmin(0) == k) for k in range(len(spheres))]
    noise = np.random.default_rng(0).normal(0, 0.05, shape)
    pixels = (0.2 + 0.6 * np.logical_or.reduce(masks) + noise)[None].clip(0, 1).astype(np.float32)
    return pixels, np.stack(masks).astype(np.uint8)


PLANES = [
    touching((64, 64), (1.0, 1.0), [((20, 20), 11), ((20, 41), 10), ((44, 30), 9)]),
    touching((64, 64), (1.0, 1.0), [((40, 22), 12), ((30, 42), 9)]),
]
VOLUMES = [
    touching((16, 32, 48), SPACING, [((16, 16, 14), 9), ((16, 16, 31), 8.5)]),
    touching((16, 32, 48), SPACING, [((16, 12, 22), 9), ((16, 25, 32), 8)]),
]


def learnt(model, cases, targets, *, steps, spacing):
    torch.manual_seed(0)
    config = network_config(model)
    network = build_network(config, classes=1, channels=1, pretrained=False)
    encode = config.encode(1)
    labels = [np.ones(len(masks), np.int64) for _, masks in cases]
    every = [
        targets(torch.from_numpy(m), torch.from_numpy(own), torch.from_numpy(encode(m, own, spacing)))
        for (_, m), own in zip(cases, labels, strict=True)
    ]
    images = torch.from_numpy(np.stack([pixels for pixels, _ in cases]))
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    for step in range(steps):
        losses = network.losses(images, every)
        optimiser.zero_grad()
        sum(losses.values()).backward()
        for group in optimiser.param_groups:
            group["lr"] = 5e-3 * min(1, (step + 1) / 5, (steps - step) / 20)
        optimiser.step()
    assert set(losses) == {"cross_entropy", "dice", "core_cross_entropy", "core_dice"}
    return network


def ious_of(instances, masks):
    return [
        max(((m.dense() & truth).sum() / (m.dense() | truth).sum() for m in instances.masks), default=0)
        for truth in masks > 0
    ]


def folder_of(path, network, model, brightest=1):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(model).model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=brightest), channels=1),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
        trained_on=("somebody",),
        trained_content=("0" * 64,),
    )
    save_model(path, card, network.state_dict())
    return path


@pytest.mark.parametrize("kind", KINDS)
def test_two_pictures_of_discs_that_touch_are_learnt_by_heart(kind, tmp_path):
    model = {"network": "semantic_cc", "filters": 8, "levels": 3, "targets": kind}
    network = learnt(
        model, PLANES, lambda m, n, c: Targets.from_masks(m, n, cores=c), steps=70, spacing=(1.0, 1.0)
    )
    segmenter = load_segmenter(folder_of(tmp_path / "m", network, model), device="cpu")
    for pixels, masks in PLANES:
        found = segmenter(Image(pixels=pixels, grid=Grid.from_spacing((64, 64), (1.0, 1.0)))).instances
        assert len(found) == len(masks) and min(ious_of(found, masks)) > 0.8
    with torch.inference_mode():
        (look,) = network.detect(torch.from_numpy(pixels[None]), maps=True)
    assert look.foreground.shape == (1, 64, 64)  # of the class, not of its cores


@pytest.fixture(scope="module", params=KINDS)
def parting(request, tmp_path_factory):
    """A network of volumes that has learned two pairs of balls that touch, and its folder."""
    model = {"network": "semantic_cc_3d", "filters": 8, "levels": 3, "patch": [16, 32, 48]}
    model |= {"strides": [[1, 2, 2], [2, 2, 2]], "targets": request.param}
    network = learnt(
        model,
        VOLUMES,
        lambda m, n, c: VolumeTargets(masks=m, labels=n, cores=c),
        steps=60,
        spacing=SPACING,
    )
    return folder_of(tmp_path_factory.mktemp("m") / "model", network, model, brightest=100)


def volume(number):
    pixels, masks = VOLUMES[number]
    return Image(pixels=100 * pixels, grid=Grid.from_spacing(masks.shape[1:], SPACING)), masks


def test_two_volumes_of_balls_that_touch_are_learnt_by_heart(parting):
    segmenter = load_segmenter(parting, device="cpu")
    for number in (0, 1):
        image, masks = volume(number)
        found = segmenter(image).instances
        assert len(found) == 2 and min(ious_of(found, masks)) > 0.8
        assert not (found.masks[0].dense() & found.masks[1].dense()).any()


def test_mirrored_views_of_a_volume_agree_on_what_is_parted(parting):
    image, masks = volume(0)
    found = open_segmenter(parting, "tta")(image)
    assert len(found.instances) == 2 and min(ious_of(found.instances, masks)) > 0.75
    assert found.maps["foreground"].shape == masks.shape[1:]


def test_a_runtime_parts_what_torch_parts(parting, monkeypatch):
    """The cores are further channels of the one part that runtimes compute, so that the gate compares instances."""
    segmenter = load_segmenter(parting, device="cpu")
    image, _ = volume(1)
    ready = segmenter.prepared(image)
    usual = next(iter(segmenter.looks(ready, View())))
    unet = segmenter.network.unet
    exact = unet.forward
    monkeypatch.setattr(unet, "forward", lambda window: exact(window) + 1e-6)
    other = next(iter(segmenter.looks(ready, View())))
    empty = segmenter(image).instances.select(np.zeros(2, bool))
    parity = compare(usual, other, empty, floor=0.0)
    assert parity.instances == 2 and parity.problems == ()
    monkeypatch.setattr(
        unet, "forward", lambda window: torch.cat([exact(window)[:, :1], exact(window)[:, 1:] + 9], 1)
    )
    joined = next(iter(segmenter.looks(ready, View())))
    assert compare(usual, joined, empty, floor=0.0).problems  # a runtime whose cores are wrong does not pass


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """Volumes like those that were learnt, 4 to train and 14 to calibrate on, and their card."""
    boxes = [(4, 4, 4, 4, 4, 4), (8, 8, 8, 4, 4, 4)]
    path = write_toy_volumes(tmp_path_factory.mktemp("data"), SPACING, (16, 32, 48), boxes, cases=18)
    for k in range(18):
        image, masks = volume(k % 2)
        noisy = image.pixels[0] + np.random.default_rng(k).normal(0, 6, masks.shape[1:])
        write_volume(path.parent / f"t{k}.nii.gz", np.rint(noisy).astype(np.int16), image.grid)
        labels = (masks[0] + 2 * masks[1]).astype(np.int16)
        write_volume(path.parent / f"t{k}_labels.nii.gz", labels, image.grid)
    index = path.parent / "index.csv"
    rows = [row.split(",")[0] for row in index.read_text().splitlines()]
    splits = ["split"] + ["train"] * 4 + ["calibration"] * 14
    index.write_text("".join(f"{row},{split}\n" for row, split in zip(rows, splits, strict=True)))
    return path


@pytest.mark.parametrize("parting", ["border"], indirect=True)
def test_an_export_passes_its_gate_and_parts_the_same(parting, card, tmp_path):
    model = shutil.copytree(parting, tmp_path / "model")
    done = export(model, card, format="openvino", split="train", cases=1)
    assert done.parity.instances >= 2 and done.parity.problems == ()
    image, masks = volume(0)
    found = load_segmenter(model, runtime="openvino")(image).instances
    assert len(found) == 2 and min(ious_of(found, masks)) > 0.8


@pytest.mark.parametrize("parting", ["border"], indirect=True)
def test_objects_that_were_parted_get_margins_in_millimetres(parting, card, tmp_path):
    model = shutil.copytree(parting, tmp_path / "model")
    done = calibrate(model, card, alphas=(0.2,), track=False)
    assert done.calibration.length_unit == "mm"
    image, masks = volume(1)
    found = done.calibration.apply(load_segmenter(model)(image)).instances
    columns = found.uncertainty
    assert len(found) == 2
    assert (columns["outer_volume_mm3"] > columns["inner_volume_mm3"]).all()
    truth = sorted(2 * masks.reshape(2, -1).sum(axis=1))  # a voxel has 2 cubic mm
    assert (np.sort(columns["outer_volume_mm3"]) >= truth).all()


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="targets"):
        network_config({"network": "semantic_cc", "targets": "centre"})
    with pytest.raises(ConfigError, match="strides are 2 rows"):
        network_config(
            {"network": "semantic_cc_3d", "levels": 3, "patch": [8, 16, 16], "strides": [[1, 2, 2]]}
        )
    with pytest.raises(ConfigError, match="segresnet halves every axis"):
        network_config(
            {
                "network": "semantic_cc_3d",
                "architecture": "segresnet",
                "levels": 3,
                "patch": [8, 16, 16],
                "strides": [[1, 2, 2], [2, 2, 2]],
            }
        )
    network = build_network(
        network_config({"network": "semantic_cc", "levels": 3, "filters": 8, "targets": "border"}),
        classes=1,
        channels=1,
        pretrained=False,
    )
    masks = torch.ones(1, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="needs the cores"):
        network.losses(
            torch.rand(1, 1, 16, 16), [Targets.from_masks(masks, torch.ones(1, dtype=torch.int64))]
        )
