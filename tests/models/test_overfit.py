"""Every network, at the size it is used at, learns two real images by heart."""

from pathlib import Path

import pytest
import torch
from small import SMALL

from clearmargin.core import Provenance
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import Windows, collate
from clearmargin.errors import InputError
from clearmargin.metrics import mask_average_precision
from clearmargin.models import build_network, network_config
from clearmargin.models.segmenter import NetworkSegmenter, PredictionSettings
from clearmargin.transforms.view import AugmentSettings, ImageSettings

CARD = Path(__file__).parents[2] / "data_cards" / "endovis2015_rigid.yaml"
FRAMES = ("OP1_img_02", "OP1_img_07")  # five instruments of 8,600 to 17,800 pixels
# 640 x 480 pixels seen at a fifth: the whole frame fills the window, which so holds the same at each step
IMAGE = ImageSettings(scale=0.2, crop=(96, 128))
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


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SMALL))
def test_two_real_images_are_learnt_by_heart(name, data_root):
    try:
        dataset = open_dataset(CARD)
    except InputError as error:
        pytest.skip(f"the data of {CARD.name} are not here: {error}")
    cases = [case for case in dataset.cases if case.row["id"] in FRAMES]
    windows = Windows(dataset, cases, IMAGE, PLAIN, seed=0, cache_bytes=2**26)
    images, targets = collate([windows[0], windows[1]])
    torch.manual_seed(0)
    network = build_network(network_config({"network": name}), classes=1, pretrained=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3)
    for step in range(STEPS):
        torch.manual_seed(step)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * min(1, (step + 1) / 20, (STEPS - step) / 50)
        loss = sum(network.losses(images, targets).values())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
    segmenter = NetworkSegmenter(
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
