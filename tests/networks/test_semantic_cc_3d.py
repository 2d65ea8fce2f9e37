"""Networks that see volumes: training windows, sliding windows, and the way back to the volume's grid."""

import itertools
import time

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import collate
from clearmargin.datasets.volume_windows import VolumeWindows
from clearmargin.errors import ConfigError, InputError
from clearmargin.export import export
from clearmargin.formats.volume import write_volume
from clearmargin.models import load_segmenter
from clearmargin.models.clock import Clock
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.placing import place_slice, place_volume
from clearmargin.models.runtimes import RUNTIMES
from clearmargin.models.segmenter import View
from clearmargin.models.volume_segmenter import VolumeSegmenter
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import VolumeTargets
from clearmargin.train import train
from clearmargin.transforms.samples import make_sample, read_instances
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window
from clearmargin.transforms.spatial import resample, volume_augmentation, volume_view
from clearmargin.transforms.tensors import to_tensor
from clearmargin.transforms.view import prepare

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CODE),))
MODEL = {"network": "semantic_cc_3d", "filters": 8, "levels": 3, "patch": [8, 16, 16]}


def build(*, classes=1, channels=1, **options):
    torch.manual_seed(0)
    return build_network(network_config(MODEL | options), classes=classes, channels=channels, pretrained=True)


def balls(shape=(12, 24, 28), spacing=(2.0, 2.0, 2.0)):
    """Return a volume of two bright balls, ``(1, Z, Y, X)``, and their masks; radii and centres in mm."""
    grid = Grid.from_spacing(shape, spacing)
    z, y, x = ((i + 0.5) * s for i, s in zip(np.indices(shape), spacing, strict=True))
    masks = [
        (z - c[0]) ** 2 + (y - c[1]) ** 2 + (x - c[2]) ** 2 < r**2
        for c, r in (((9, 15, 16), 7), ((14, 33, 38), 9))
    ]
    noise = np.random.default_rng(0).normal(0, 0.05, shape)
    pixels = (0.2 + 0.6 * np.logical_or(*masks) + noise)[None].clip(0, 1).astype(np.float32)
    return Image(pixels=pixels, grid=grid), masks


@pytest.fixture(scope="module")
def learned():
    """A small network after it has learned the eight corners of one volume, and its losses."""
    image, masks = balls()
    network = build()
    optimiser = torch.optim.AdamW(network.parameters(), lr=5e-3)
    volume, wanted = torch.from_numpy(image.pixels), torch.from_numpy(np.stack(masks).astype(np.uint8))
    corners = list(itertools.product((0, 4), (0, 8), (0, 12)))
    totals = []
    for z, y, x in corners * 7:
        window = (slice(None), slice(z, z + 8), slice(y, y + 16), slice(x, x + 16))
        targets = VolumeTargets(labels=torch.ones(2, dtype=torch.int64), masks=wanted[window])
        loss = sum(network.losses(volume[window][None], [targets]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        totals.append(loss.item())
    return network, totals


def save(folder, network, labels, *, brightest):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(MODEL | {"spacing_mm": [2.0, 2.0, 2.0]}).model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=brightest), channels=1),
        augment=AugmentSettings(),
        classes=label_map_entries(labels),
        show_in_tracking=True,
    )
    save_model(folder, card, network.state_dict())
    return folder


@pytest.fixture
def folder(tmp_path, learned):
    return save(tmp_path / "model", learned[0], LABELS, brightest=1)


def test_the_loss_falls_and_balls_are_found_where_they_are(learned, folder):
    assert np.mean(learned[1][-8:]) < 0.4 * learned[1][0]
    image, masks = balls()
    segmenter = load_segmenter(folder, device="cpu")
    assert isinstance(segmenter, VolumeSegmenter)
    found = segmenter(image).instances
    assert len(found) == 2 and found.grid.same_as(image.grid)
    for truth in masks:
        ious = [(m.dense() & truth).sum() / (m.dense() | truth).sum() for m in found.masks]
        assert max(ious) > 0.6  # where a mask lies to a part of a voxel is tested with known outputs below


def test_the_stages_of_a_volume_are_timed(folder):
    """``select`` adds them up: a stage that is not counted would make the model look quick."""
    clock = Clock()
    segmenter = load_segmenter(folder, device="cpu").timed(clock)
    start = time.perf_counter()
    segmenter(balls()[0])
    assert set(clock.seconds) == {"transform", "network", "masks"}
    assert 0.5 * (time.perf_counter() - start) < sum(clock.seconds.values())


def test_a_block_within_another_is_counted_once():
    clock = Clock()
    with clock("outer"):
        time.sleep(0.02)
        with clock("inner"), clock("innermost"):
            time.sleep(0.05)
        with clock("inner"):
            time.sleep(0.01)
    with clock("outer"):
        pass
    assert clock.seconds["innermost"] >= 0.05
    assert clock.seconds["inner"] >= 0.01 and clock.seconds["outer"] >= 0.02
    start = time.perf_counter()
    with clock("whole"), clock("part"):
        time.sleep(0.02)
    assert clock.seconds["whole"] + clock.seconds["part"] <= time.perf_counter() - start
    assert clock.seconds["whole"] < clock.seconds["part"]


def test_thick_slices_are_seen_at_the_networks_spacing(folder):
    """The same balls in slices of 2 mm with pixels of 0.8 mm: found at the same place, in millimetres."""
    image, masks = balls(shape=(12, 60, 70), spacing=(2.0, 0.8, 0.8))
    found = load_segmenter(folder, device="cpu")(image).instances
    assert len(found) == 2
    for truth in masks:
        where = image.grid.to_world(np.argwhere(truth).mean(0))
        centres = [image.grid.to_world(np.argwhere(m.dense()).mean(0)) for m in found.masks]
        assert min(np.linalg.norm(c - where) for c in centres) < 1.0  # half a voxel of the network's grid


def test_what_it_cannot_do_is_said(folder):
    segmenter = load_segmenter(folder, device="cpu")
    image, _ = balls()
    with pytest.raises(InputError, match="takes volumes"):
        segmenter(Image(pixels=image.pixels[:, 0], grid=image.grid.plane(0)))
    with pytest.raises(InputError, match="spacing in mm"):
        segmenter(Image(pixels=image.pixels, grid=Grid.from_spacing(image.grid.shape)))
    with pytest.raises(ConfigError, match="at least one class"):
        build(classes=0)
    with pytest.raises(ConfigError, match="multiples of 4, 4, 4"):
        network_config(MODEL | {"patch": [16, 30, 32]})
    with pytest.raises(ConfigError, match="networks of planes"):
        network_config(MODEL | {"mask_loss": {"edge": 2}})
    with pytest.raises(ConfigError, match="score_treshold: unknown"):
        network_config(MODEL | {"score_treshold": 2})


def test_nothing_there_teaches_the_background_and_the_mode_changes_nothing():
    network = build(classes=2)
    volume = torch.rand(2, 1, 8, 16, 16)
    empty = VolumeTargets(
        labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros(0, 8, 16, 16, dtype=torch.uint8)
    )
    losses = network.train().losses(volume, [empty, empty])
    assert losses["dice"] == 0 and losses["cross_entropy"] > 0
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in network.parameters())
    again = network.eval().losses(volume, [empty, empty])
    torch.testing.assert_close(losses, again)


def test_windows_that_cover_a_volume_give_what_one_window_gives():
    """A network of one voxel's reach: how the volume is cut up cannot matter."""
    network = build(patch=[8, 16, 16])
    network.unet = torch.nn.Conv3d(1, 1, 1)
    volume = torch.rand(1, 13, 40, 21)
    with torch.no_grad():
        found = torch.from_numpy(network.probabilities(lambda a, b: volume[:, a:b], 13))
        torch.testing.assert_close(found, network.unet(volume[None])[0].sigmoid(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (2.0, 0.8, 0.8), (0.5, 1.5, 1.25)])
def test_there_and_back_keeps_a_soft_ball_in_its_place(scales):
    shape = (20, 30, 40)
    matrix, size = volume_view(shape, scales)
    z, y, x = (matrix[i, i] * k + matrix[i, 3] for i, k in enumerate(np.indices(size)))
    distance = np.sqrt((z - 9.25) ** 2 + (y - 14.5) ** 2 + (x - 20.75) ** 2)
    soft = (1 / (1 + np.exp(distance - 6))).astype(np.float32)
    crop, origin = place_volume(soft[1:, 2:, 3:], (1, 2, 3), matrix, shape)
    mask = np.zeros(shape, bool)
    mask[tuple(slice(o, o + n) for o, n in zip(origin, crop.shape, strict=True))] = crop >= 0.5
    assert np.abs(np.argwhere(mask).mean(0) - (9.25, 14.5, 20.75)).max() < 0.2
    assert mask.sum() == pytest.approx(4 / 3 * np.pi * 216, rel=0.06)


def test_placing_agrees_with_scipy():
    """Inside the crop trilinear interpolation is scipy's of order 1."""
    generator = np.random.default_rng(2)
    samples = generator.random((5, 6, 7)).astype(np.float32)
    matrix, _ = volume_view((11, 9, 8), (0.7, 1.3, 1.0))
    crop, origin = place_volume(samples, (2, 3, 0), matrix, (11, 9, 8))
    where = np.stack(
        np.meshgrid(*[np.arange(o, o + n) for o, n in zip(origin, crop.shape, strict=True)], indexing="ij")
    )
    network = [(where[i] - matrix[i, 3]) / matrix[i, i] - first for i, first in enumerate((2, 3, 0))]
    wanted = ndimage.map_coordinates(
        np.pad(samples, 1).astype(np.float64), np.array(network) + 1, order=1, mode="constant"
    )
    np.testing.assert_allclose(crop, wanted, atol=1e-6)
    assert place_volume(samples, (40, 0, 0), matrix, (11, 9, 8))[0].size == 0


@pytest.mark.parametrize("flip", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("scales", [(1.0, 1.0, 1.0), (0.6, 1.25, 0.8), (2.5, 0.5, 1.0)])
def test_a_slice_alone_is_that_of_the_whole_volume(scales, flip):
    shape = (11, 9, 8)
    matrix, size = volume_view(shape, scales, flip=flip)
    samples = np.random.default_rng(3).random(size).astype(np.float32)
    whole = np.zeros(shape, np.float32)
    crop, origin = place_volume(samples, (0, 0, 0), matrix, shape)
    whole[tuple(slice(o, o + n) for o, n in zip(origin, crop.shape, strict=True))] = crop
    for z in range(shape[0]):
        np.testing.assert_allclose(place_slice(samples, z, matrix, shape), whole[z], atol=1e-6)
    assert not place_slice(samples, 40, matrix, shape).any()


@pytest.mark.parametrize("flip", [(False, False), (False, True), (True, True)])
@pytest.mark.parametrize("spacing", [(2.0, 2.0, 2.0), (0.8, 2.5, 1.6), (5.0, 1.0, 3.4)])
def test_slices_are_shown_as_the_whole_volume_would_be(folder, monkeypatch, spacing, flip):
    """The network is asked for its windows' slices alone; MONAI's resampling of everything at once is the oracle."""
    segmenter = load_segmenter(folder, device="cpu")
    image, _ = balls(shape=(23, 20, 24), spacing=spacing)
    seen = {}

    def whole(slab, depth):
        seen["rows"] = torch.cat([slab(k, min(k + 5, depth)) for k in range(0, depth, 5)], dim=1)
        return np.zeros((1, *seen["rows"].shape[1:]), np.float32)

    monkeypatch.setattr(segmenter.network, "probabilities", whole)
    ready = segmenter.prepared(image)
    next(iter(segmenter.looks(ready, View(flip=flip))))
    scales = segmenter.network.config.scales_for(image.grid)
    matrix, size = volume_view(image.grid.shape, scales, flip=flip)
    pixels = prepare(image, segmenter.image.model_copy(update={"neighbours": 0}))
    wanted = resample({"image": to_tensor(pixels, image.grid)}, matrix, size, keys=("image",))["image"]
    torch.testing.assert_close(seen["rows"], wanted.as_tensor(), atol=1e-4, rtol=0)
    if scales == (1.0, 1.0, 1.0):
        mirrored = tuple(2 + axis for axis in (0, 1) if flip[axis])
        np.testing.assert_allclose(seen["rows"].numpy(), np.flip(pixels, mirrored), atol=1e-4)


def test_a_turned_window_carries_image_and_masks_alike():
    image, masks = balls(shape=(24, 48, 56), spacing=(2.0, 1.0, 0.5))
    instances = InstanceSet.from_dense(image.grid, masks, labels=[1, 1])
    matrix = volume_augmentation(
        centre=(5.0, 15.0, 32.0), size=(12, 40, 40), scales=(1.0, 1.0, 0.5), degrees=90.0, flip=(True, False)
    )
    moved = resample(make_sample(image, instances), matrix, (12, 40, 40))
    found = read_instances(moved, image.grid)
    inside = np.logical_or(*[m.dense() for m in found.masks])
    values = moved["image"].as_tensor().numpy()[0]
    assert values[ndimage.binary_erosion(inside)].min() > 0.5
    outside = ~ndimage.binary_dilation(inside, iterations=2)
    assert values[outside].max() < 0.45


@pytest.fixture
def experiment(tmp_path, monkeypatch):
    """Write volumes of two balls, a card and a training configuration; return the latter's path."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    image, masks = balls(shape=(12, 40, 48), spacing=(2.0, 1.2, 1.2))
    splits = ["train", "train", "validation", "test"]
    (tmp_path / "index.csv").write_text(
        "id,split\n" + "".join(f"v{k},{split}\n" for k, split in enumerate(splits))
    )
    for k in range(len(splits)):
        write_volume(tmp_path / f"v{k}.nii.gz", (image.pixels[0] * 100).astype(np.int16), image.grid)
        labels = np.logical_or(*masks).astype(np.int16)
        write_volume(tmp_path / f"v{k}_labels.nii.gz", labels, image.grid)
    card = {
        "schema": 1,
        "name": "balls",
        "version": "1",
        "title": "Two balls",
        "origin": "made by the tests",
        "licence": "CC0-1.0",
        "citation": "none",
        "modality": "CT",
        "classes": [
            {
                "id": 1,
                "name": "ball",
                "type": {"value": "108369006", "meaning": "Tumor"},
                "category": {"value": "49755003", "meaning": "Morphologically Altered Structure"},
            }
        ],
        "root": ".",
        "cases": {
            "index": "index.csv",
            "id": "{id}",
            "image": "{id}.nii.gz",
            "reference": "{id}_labels.nii.gz",
            "group": "{id}",
        },
        "encoding": {"kind": "label_volume", "values": {1: "ball"}, "split_components": True},
        "spacing": {"source": "file"},
        "group": "patient",
        "splits": {"column": "split", "values": {s: s for s in ("train", "validation", "test")}},
        "show_in_tracking": True,
    }
    (tmp_path / "card.yaml").write_text(yaml.safe_dump(card))
    config = {
        "name": "balls",
        "card": "card.yaml",
        "model": MODEL | {"spacing_mm": [2.0, 2.0, 2.0]},
        "image": {"intensity": {"kind": "window", "low": 0, "high": 100}, "channels": 1},
        "training": {
            "epochs": 1,
            "steps_per_epoch": 100,
            "learning_rate": 0.005,
            "warmup_steps": 5,
            "ema": 0.5,
            "workers": 0,
            "threads": 1,
        },
    }
    (tmp_path / "balls.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "balls.yaml"


def test_windows_of_a_volume_follow_from_seed_and_position(experiment):
    dataset = open_dataset(experiment.parent / "card.yaml")
    view = network_config(yaml.safe_load(experiment.read_text())["model"])
    windows = [
        VolumeWindows(
            dataset,
            dataset.split("train"),
            ImageSettings(intensity=Window(low=0, high=100), channels=1),
            AugmentSettings(noise=0),
            view=view,
            seed=3,
            cache_bytes=cache,
        )
        for cache in (0, 2**24)
    ]
    seen = 0
    for position in range(6):
        (pixels, targets), (again, others) = (w[position] for w in windows)
        assert torch.equal(pixels, again) and torch.equal(targets.masks, others.masks)
        assert pixels.shape == (1, 8, 16, 16) and targets.masks.shape[1:] == (8, 16, 16)
        for mask in targets.masks.bool():
            seen += 1
            assert pixels[0][mask].mean() > pixels[0][~targets.masks.bool().any(0)].mean() + 0.2
    assert seen >= 4
    batch, wanted = collate([windows[1][k] for k in range(2)])
    assert build().losses(batch, wanted)["cross_entropy"] > 0


@pytest.mark.parametrize("name", list(RUNTIMES))
def test_an_export_finds_the_same_balls(name, experiment, learned):
    card = experiment.parent / "card.yaml"
    model = save(experiment.parent / "model", learned[0], open_dataset(card).card.label_map, brightest=100)
    done = export(model, card, format=name, split="train", cases=1)
    assert done.parity.instances == 4 and done.parity.problems == ()  # two balls, at two sizes
    image = open_dataset(card).read(open_dataset(card).split("test")[0])[0]
    usual, exported = load_segmenter(model)(image), load_segmenter(model, runtime=name)(image)
    for a, b in zip(usual.instances.masks, exported.instances.masks, strict=True):
        assert (a.dense() ^ b.dense()).sum() <= max(1, 0.005 * a.area)


@pytest.mark.slow
def test_a_training_of_volumes_from_configuration_to_prediction(experiment):
    result = train(experiment)
    assert result.best["semantic_dice"] > 0.7
    image, _ = balls(shape=(12, 40, 48), spacing=(2.0, 1.2, 1.2))
    found = load_segmenter(result.model)(
        Image(pixels=image.pixels * 100, grid=image.grid, source=image.source)
    )
    assert len(found.instances) == 2
    again = train(resume="balls", overrides=["training.epochs=2"])
    assert again.epochs == 2
