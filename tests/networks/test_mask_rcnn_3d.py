"""Mask R-CNN in space: objects that touch and nest are told apart, in a window and over the seams of many."""

import numpy as np
import pytest
import torch
import yaml
from scipy import ndimage

from clearmargin.calibrate import calibrate
from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Mask, Provenance
from clearmargin.errors import ConfigError, InputError
from clearmargin.export import export
from clearmargin.formats.volume import write_volume
from clearmargin.metrics.matching import iou_matrix
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model, save_snapshot
from clearmargin.models.segmenter import View
from clearmargin.models.volume_segmenter import WindowSegmenter
from clearmargin.networks import build_network, network_config
from clearmargin.networks.boxes_3d import box_iou, boxes_of, decode, encode, pool_regions, suppress
from clearmargin.networks.network import Detections, VolumeTargets, WindowNetwork
from clearmargin.sampling.samples import augmented, open_segmenter, tta_views
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, VolumeView, Window

PATCH = (16, 32, 32)
SPACING = (2.0, 1.0, 1.0)
CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap(
    (
        LabelClass(id=1, name="lesion", type=CODE, category=CODE),
        LabelClass(id=2, name="core", type=CODE, category=CODE),
    )
)
MODEL = {
    "network": "mask_rcnn_3d",
    "patch": PATCH,
    "levels": 3,
    "filters": 8,
    "width": 16,
    "anchors": [[6, 6, 6], [11, 11, 11]],
    "mask_size": 6,
    "mask_channels": 16,
    "box_features": 64,
    "proposals": 32,
    "box_samples": 32,
}


def build(**options):
    torch.manual_seed(0)
    return build_network(network_config(MODEL | options), classes=2, channels=1, pretrained=False)


def ball(shape, centre, radius):
    return sum((i - c) ** 2 for i, c in zip(np.indices(shape), centre, strict=True)) < radius**2


def phantom(seed, shape=PATCH, at=(0, 0, 0)):
    """Two lesions that touch, a core within the first, and a lesion apart: pixels ``(1, Z, Y, X)``, labels, masks."""
    generator = np.random.default_rng(seed)
    first_at = np.array([8, 11, 9]) + generator.integers(-1, 2, 3) + at
    first = ball(shape, first_at, 6)
    second = ball(shape, first_at + np.array([0, 3, 11]), 5.5) & ~first
    core = ball(shape, first_at + np.array([0, -1, -2]), 3)
    apart = ball(shape, np.array([9, 26, 10]) + generator.integers(-1, 2, 3) + at, 4)
    pixels = 0.15 + 0.5 * (first | second | apart) - 0.25 * core + generator.normal(0, 0.03, shape)
    masks = np.stack([first, second, core, apart])
    return pixels[None].clip(0, 1).astype(np.float32), np.array([1, 1, 2, 1]), masks


@pytest.fixture(scope="module")
def learned():
    """A small network that has two phantoms by heart."""
    network = build()
    scenes = [phantom(seed) for seed in (0, 1)]
    images = torch.from_numpy(np.stack([pixels for pixels, _, _ in scenes]))
    targets = [
        VolumeTargets(labels=torch.from_numpy(labels), masks=torch.from_numpy(masks.astype(np.uint8)))
        for _, labels, masks in scenes
    ]
    steps, rate = 110, 5e-3
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(steps):
        torch.manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / 30)
        loss = sum(network.losses(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    return network


@pytest.fixture
def folder(tmp_path, learned):
    card = ModelCard(
        software="clearmargin test",
        model=learned.config.model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=1), channels=1),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        prediction={"nested": ["core"]},
        show_in_tracking=True,
        trained_on=("somebody",),
        trained_content=("0" * 64,),
    )
    save_model(tmp_path / "model", card, learned.state_dict())
    return tmp_path / "model"


def matched(found, labels, masks):
    """Return the IoU of each true object with what was found of its label; nothing else may have been found."""
    ious = iou_matrix(found.masks, [Mask.from_dense(m) for m in masks], found.labels[:, None] == labels)
    assert len(found) == len(labels), found.scores
    return ious.max(axis=0)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_touches_and_what_nests_is_told_apart(learned, folder, seed):
    pixels, labels, masks = phantom(seed)
    segmenter = load_segmenter(folder, device="cpu")
    assert isinstance(segmenter, WindowSegmenter)
    found = segmenter(Image(pixels=pixels, grid=Grid.from_spacing(PATCH, SPACING))).instances
    ious = matched(found, labels, masks)
    assert ious.min() > 0.5 and ious.mean() > 0.75


class Perfect(WindowNetwork):
    """Sees each connected part of each grey level: odd levels are lesions, even ones cores."""

    parts = ()
    overlap = 0.5

    def __init__(self, patch):
        super().__init__()
        self.view = VolumeView(patch=patch)

    def losses(self, images, targets):
        raise NotImplementedError

    def detect(self, images, *, maps=False):
        levels = (images[0, 0] * 10).round().int().numpy()
        found = []
        for level in np.unique(levels[levels > 0]):
            numbered, _ = ndimage.label(levels == level)
            for k, box in enumerate(ndimage.find_objects(numbered), 1):
                found.append((2 - int(level) % 2, box, numbered[box] == k))
        boxes = [[*(b.start for b in box[::-1]), *(b.stop for b in box[::-1])] for _, box, _ in found]
        boxes = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 6)
        there = torch.from_numpy(np.stack([levels % 2 == 1, (levels > 0) & (levels % 2 == 0)])).float()
        return [
            Detections(
                boxes=boxes,
                labels=torch.tensor([label for label, _, _ in found], dtype=torch.int64),
                scores=torch.full((len(found),), 0.9),
                masks=tuple(torch.from_numpy(mask).float() for _, _, mask in found),
                regions=boxes,
                foreground=there if maps else None,
            )
        ]


def touching():
    """A rod through all windows, a box that touches it, one beside that of its grey level's own, and a far one."""
    levels = np.zeros((20, 50, 46), np.int64)
    levels[4:9, 3:47, 5:12] = 1
    levels[4:16, 20:40, 12:30] = 3
    levels[9:18, 8:18, 6:11] = 2
    levels[2:5, 30:49, 35:44] = 5
    masks = [levels == k for k in (1, 3, 2, 5)]
    image = Image(pixels=(levels / 10)[None].astype(np.float32), grid=Grid.from_spacing(levels.shape))
    return image, np.array([1, 1, 2, 1]), masks


def perfect(patch):
    return WindowSegmenter(
        network=Perfect(patch),
        image=ImageSettings(intensity=Window(low=0, high=1), channels=1),
        label_map=LABELS,
        provenance=Provenance(
            model="perfect", weights_sha256="0" * 64, config_sha256="0" * 64, software="test"
        ),
        device=torch.device("cpu"),
    )


@pytest.mark.parametrize("patch", [(8, 16, 16), (10, 24, 46), (32, 64, 64)])
def test_objects_over_the_seams_of_windows_are_whole_once(patch):
    image, labels, masks = touching()
    segmenter = perfect(patch)
    (look,) = segmenter.looks(segmenter.prepared(image), View(), maps=True)
    np.testing.assert_allclose(matched(look.instances(segmenter.suppression), labels, masks), 1)
    maps = np.stack(list(look.foreground()), axis=1)
    truth = np.stack([masks[0] | masks[1] | masks[3], masks[2]])
    np.testing.assert_allclose(maps, truth, atol=1e-5)


def test_mirrored_views_of_windows_agree():
    image, labels, masks = touching()
    segmenter = perfect((8, 16, 16))
    found = augmented(segmenter, tta_views(segmenter.augment))(image).instances
    assert matched(found, labels, masks).min() > 0.98  # an edge between two voxels may fall to either


def test_a_checkpoint_ensemble_of_one_network_is_that_network(folder, learned):
    for epoch in (1, 2):
        save_snapshot(folder, epoch, learned.state_dict(), keep=2)
    pixels, labels, masks = phantom(0)
    image = Image(pixels=pixels, grid=Grid.from_spacing(PATCH))
    found = open_segmenter(folder, "checkpoints", device="cpu")(image).instances
    assert matched(found, labels, masks).mean() > 0.7


def test_what_it_cannot_do_is_said(folder):
    with pytest.raises(InputError, match="takes volumes"):
        load_segmenter(folder, device="cpu")(
            Image(pixels=np.zeros((1, 32, 32), np.float32), grid=Grid.from_spacing((32, 32)))
        )
    for options, reason in (
        ({"patch": [16, 30, 32]}, "multiples of 4"),
        ({"strides": [[1, 2, 2]]}, "2 rows"),
        ({"anchors": [[0, 4, 4]]}, "above 0"),
        ({"mask_loss": {"edge": 2}}, "networks of planes"),
    ):
        with pytest.raises(ConfigError, match=reason):
            network_config(MODEL | options)


def test_windows_without_an_object_teach_the_background():
    network = build()
    empty = VolumeTargets(
        labels=torch.zeros(0, dtype=torch.int64), masks=torch.zeros((0, *PATCH), dtype=torch.uint8)
    )
    losses = network.losses(torch.rand((2, 1, *PATCH)), [empty, empty])
    assert losses["masks"] == losses["boxes"] == losses["proposals"] == 0
    sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())
    pixels, labels, masks = phantom(0)
    full = VolumeTargets(labels=torch.from_numpy(labels), masks=torch.from_numpy(masks.astype(np.uint8)))
    both = network.losses(torch.from_numpy(np.stack([pixels, pixels])), [empty, full])
    assert both["masks"] > 0


def test_anisotropic_levels_keep_thin_axes():
    network = build(strides=[[1, 2, 2], [2, 2, 2]], patch=[6, 32, 32], anchors=[[2, 6, 6], [6, 16, 16]])
    maps = network.maps(torch.rand(1, 1, 6, 32, 32))
    assert [tuple(m.shape[2:]) for m in maps] == [(6, 32, 32), (6, 16, 16), (3, 8, 8)]
    assert network.anchored == {1: [(2.0, 6.0, 6.0)], 2: [(6.0, 16.0, 16.0)]}


def test_boxes_in_space():
    boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [2, 0, 0, 6, 4, 4], [10, 10, 10, 12, 14, 11]])
    ious = box_iou(boxes, boxes)
    assert (
        ious[0, 1] == pytest.approx(32 / 96) and ious[0, 2] == 0 and torch.equal(ious.diag(), torch.ones(3))
    )
    torch.testing.assert_close(decode(encode(boxes, boxes[[1, 0, 0]]), boxes[[1, 0, 0]]), boxes)
    kept = suppress(boxes, torch.tensor([0.3, 0.9, 0.5]), iou=0.3, most=5)
    assert kept.tolist() == [1, 2]
    masks = torch.zeros((2, 5, 6, 7), dtype=torch.uint8)
    masks[0, 1:3, 2:6, 4:5] = 1
    assert boxes_of(masks).tolist() == [[4, 2, 1, 5, 6, 3], [0, 0, 0, 0, 0, 0]]


def test_a_ramp_is_read_where_a_box_lies():
    """Each axis in turn: the centres of a box's bins, in the window's voxels, at another resolution of the map."""
    extent = (8, 16, 24)
    for axis in range(3):
        ramp = (torch.arange(extent[axis] // 2) * 2 + 0.5).float()  # of a map of half the resolution
        shape = [1, 1, 1]
        shape[axis] = -1
        maps = ramp.view(1, 1, *shape).expand(1, 1, *(n // 2 for n in extent))
        box = torch.tensor([[4.0, 3.0, 2.0, 20.0, 13.0, 6.0]])
        read = pool_regions(maps, [box], (4, 5, 8), extent)[0, 0]
        low, high, bins = ((2, 6, 4), (3, 13, 5), (4, 20, 8))[axis]
        wanted = low + (torch.arange(bins) + 0.5) / bins * (high - low) - 0.5
        others = tuple(k for k in range(3) if k != axis)
        torch.testing.assert_close(read.mean(others), wanted, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def card(tmp_path_factory):
    """Phantoms with more noise, one to compare exports on and 14 to calibrate on: a mask file for each object."""
    folder = tmp_path_factory.mktemp("data")
    rows = ["id,split,masks,labels"]
    for k in range(15):
        pixels, labels, masks = phantom(k % 2)
        grid = Grid.from_spacing(PATCH, SPACING)
        noisy = 100 * pixels[0] + np.random.default_rng(k).normal(0, 3, PATCH)
        write_volume(folder / f"t{k}.nii.gz", np.rint(noisy).astype(np.int16), grid)
        names = [f"t{k}_{n}.nii.gz" for n in range(len(masks))]
        for name, mask in zip(names, masks, strict=True):
            write_volume(folder / name, mask.astype(np.uint8), grid)
        classes = ";".join("lesion" if label == 1 else "core" for label in labels)
        rows.append(f"t{k},{'calibration' if k else 'train'},{';'.join(names)},{classes}")
    (folder / "index.csv").write_text("\n".join(rows) + "\n")
    code = {"value": CODE.value, "meaning": CODE.meaning}
    said = {
        "schema": 1, "name": "touching", "version": "1", "title": "Lesions that touch, a core within one",
        "origin": "made by the tests", "licence": "CC0-1.0", "citation": "none", "modality": "CT", "root": ".",
        "classes": [
            {"id": c.id, "name": c.name, "type": code, "category": code} for c in LABELS.classes
        ],
        "cases": {"index": "index.csv", "id": "{id}", "image": "{id}.nii.gz", "reference": "{masks}", "group": "{id}"},
        "encoding": {"kind": "mask_files", "label": "{labels}"}, "spacing": {"source": "file"}, "group": "patient",
        "splits": {"column": "split", "values": {"train": "train", "calibration": "calibration"}},
        "show_in_tracking": True,
    }  # fmt: skip
    (folder / "card.yaml").write_text(yaml.safe_dump(said))
    return folder / "card.yaml"


@pytest.fixture
def in_units(folder):
    """The model folder for volumes of whole numbers, as files hold them."""
    card = yaml.safe_load((folder / "model.yaml").read_text())
    card["image"]["intensity"]["high"] = 100
    (folder / "model.yaml").write_text(yaml.safe_dump(card))
    return folder


def test_objects_that_touch_and_nest_get_margins_in_millimetres(in_units, card):
    done = calibrate(in_units, card, alphas=(0.2,), track=False)
    assert done.calibration.length_unit == "mm"
    pixels, labels, masks = phantom(1)
    image = Image(pixels=100 * pixels, grid=Grid.from_spacing(PATCH, SPACING))
    found = done.calibration.apply(load_segmenter(in_units, device="cpu")(image)).instances
    ious = iou_matrix(found.masks, [Mask.from_dense(m) for m in masks], found.labels[:, None] == labels)
    outer, inner = (
        found.uncertainty[f"{side}_volume_mm3"][ious.argmax(axis=0)] for side in ("outer", "inner")
    )
    volumes = 2 * masks.reshape(4, -1).sum(axis=1)  # a voxel has 2 cubic mm
    assert np.isfinite(outer).all() and (outer > inner).all()
    assert (inner <= volumes).all() and (volumes <= outer).all()


def test_an_export_passes_its_gate(in_units, card):
    done = export(in_units, card, format="openvino", split="train", cases=1)
    assert done.parity.instances >= 4 and done.parity.problems == ()
    pixels, labels, masks = phantom(0)
    image = Image(pixels=100 * pixels, grid=Grid.from_spacing(PATCH, SPACING))
    found = load_segmenter(in_units, runtime="openvino")(image).instances
    assert matched(found, labels, masks).mean() > 0.7


@pytest.mark.parametrize("name", ["onnx"])
def test_an_export_finds_the_same_objects(name, folder, tmp_path):
    from clearmargin.core import InstanceSet
    from clearmargin.export import _compare, _write_parts

    shape = (16, 40, 40)
    pixels, labels, masks = phantom(0, shape)
    image = Image(pixels=pixels, grid=Grid.from_spacing(shape))
    truth = InstanceSet(
        grid=image.grid,
        masks=tuple(Mask.from_dense(m) for m in masks),
        labels=labels,
        scores=np.ones(4, np.float32),
    )
    usual = load_segmenter(folder, device="cpu")
    out = tmp_path / name
    out.mkdir()
    _write_parts(usual, [(image, truth)], out, name)
    exported = load_segmenter(folder, device="cpu", runtime=name, runtime_folder=out)
    parity, _ = _compare(usual, exported, [(image, truth)])
    assert parity.instances >= 4 and parity.problems == ()
