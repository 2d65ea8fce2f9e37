"""Mask R-CNN in space: objects that touch and nest are told apart, in a window and over the seams of many."""

import numpy as np
import pytest
import torch

from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Mask
from clearmargin.errors import ConfigError, InputError
from clearmargin.metrics.matching import iou_matrix
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model, save_snapshot
from clearmargin.models.segmenter import View
from clearmargin.models.volume_segmenter import WindowSegmenter
from clearmargin.networks import build_network, network_config
from clearmargin.networks.boxes_3d import box_iou, boxes_of, decode, encode, pool_regions, suppress
from clearmargin.networks.network import VolumeTargets
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

PATCH = (16, 32, 32)
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
    second = ball(shape, first_at + [0, 3, 11], 5.5) & ~first
    core = ball(shape, first_at + [0, -1, -2], 3)
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
    found = segmenter(Image(pixels=pixels, grid=Grid.from_spacing(PATCH, (2.0, 1.0, 1.0)))).instances
    ious = matched(found, labels, masks)
    assert ious.min() > 0.5 and ious.mean() > 0.75
