"""Every network, at the size it is used at, learns two real images by heart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small import SMALL

from clearmargin.core import Grid, Image, Mask, Provenance
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import Windows, collate
from clearmargin.errors import InputError
from clearmargin.metrics import mask_average_precision
from clearmargin.models.segmenter import PlaneSegmenter
from clearmargin.models.settings import PredictionSettings
from clearmargin.models.volume_segmenter import VolumeSegmenter
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import VolumeTargets
from clearmargin.transforms.settings import AugmentSettings, ImageSettings
from clearmargin.transforms.view import prepare

CARD = Path(__file__).parents[2] / "data_cards" / "endovis2015_rigid.yaml"
FRAMES = ("OP1_img_02", "OP1_img_07")  # five instruments of 8,600 to 17,800 pixels
# 640 x 480 pixels are seen as 192 x 144: the whole frame lies in the window
IMAGE = ImageSettings(scale=0.3, crop=(160, 192))
PLAIN = AugmentSettings(
    flip_x=False,
    flip_y=False,
    rotate90=False,
    rotate_degrees=0,
    scale=1,
    brightness=0,
    contrast=0,
    gamma=0,
    noise=0,
)
STEPS = 150
VOLUMES = Path(__file__).parents[2] / "data_cards" / "mr_tumour_volumes.yaml"
HEADS = ("brain1", "brain2")  # three tumours of 453 to 3,524 voxels of 0.78 x 0.78 x 6.5 mm
PART = (slice(4, 20), slice(64, 192), slice(116, 244))  # holds all three


def learnt(model, images, targets, *, steps, rate=1e-3):
    """Return a network of the default size after so many steps on one batch."""
    torch.manual_seed(0)
    network = build_network(network_config(model), classes=1, channels=images.shape[1], pretrained=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    for step in range(steps):
        torch.manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 20, (steps - step) / 50)
        loss = sum(network.losses(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    return network


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_two_real_images_are_learnt_by_heart(name, data_root):
    try:
        dataset = open_dataset(CARD)
    except InputError as error:
        pytest.skip(f"the data of {CARD.name} are not here: {error}")
    cases = [case for case in dataset.cases if case.row["id"] in FRAMES]
    windows = Windows(dataset, cases, IMAGE, PLAIN, seed=0, cache_bytes=2**26)
    network = learnt({"network": name}, *collate([windows[0], windows[1]]), steps=STEPS)
    segmenter = PlaneSegmenter(
        network=network,
        image=IMAGE,
        label_map=dataset.card.label_map,
        provenance=Provenance(model=name, weights_sha256="", config_sha256="", software="test"),
        device=torch.device("cpu"),
        choice=PredictionSettings(score_threshold=0.0),
    )
    pairs = []
    for case in cases:
        image, reference = dataset.read(case)
        pairs.append((segmenter(image).instances, reference))
    found = mask_average_precision(pairs)
    assert found.references == 5
    assert found.ap50 >= 0.9


@pytest.mark.slow
def test_two_real_volumes_are_learnt_by_heart(data_root):
    try:
        dataset = open_dataset(VOLUMES)
    except InputError as error:
        pytest.skip(f"the data of {VOLUMES.name} are not here: {error}")
    settings = ImageSettings(channels=1, neighbours=0)
    pairs = []
    for case in dataset.cases:
        if case.row["id"] in HEADS:
            image, reference = dataset.read(case)
            pixels = image.pixels[:, *PART]
            grid = Grid.from_spacing(pixels.shape[1:], image.grid.spacing)
            masks = tuple(Mask.from_dense(mask.dense()[PART]) for mask in reference.masks)
            pairs.append(
                (
                    Image(pixels=pixels, grid=grid),
                    replace(reference, grid=grid, masks=masks),
                )
            )
    targets = [
        VolumeTargets(
            labels=torch.from_numpy(truth.labels.copy()),
            masks=torch.from_numpy(np.stack([m.dense() for m in truth.masks]).astype(np.uint8)),
        )
        for _, truth in pairs
    ]
    images = torch.from_numpy(np.stack([prepare(image, settings) for image, _ in pairs]))
    patch = images.shape[2:]
    network = learnt({"network": "semantic_cc_3d", "patch": patch}, images, targets, steps=80, rate=3e-3)
    segmenter = VolumeSegmenter(
        network=network,
        image=settings,
        label_map=dataset.card.label_map,
        provenance=Provenance(model="semantic_cc_3d", weights_sha256="", config_sha256="", software="test"),
        device=torch.device("cpu"),
        choice=PredictionSettings(score_threshold=0.0),
    )
    found = mask_average_precision([(segmenter(image).instances, truth) for image, truth in pairs])
    assert found.references == 3
    assert found.ap50 >= 0.9
