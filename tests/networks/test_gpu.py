"""What a GPU changes: 16 bits in training, where tensors lie, memory. Without one, what a CPU can show of it."""

import numpy as np
import pytest
import torch
from small import SMALL, scene

from clearmargin.core import Grid, Image
from clearmargin.datasets.samples import collate
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets, VolumeTargets
from clearmargin.networks.point_rend import uncertain_points
from clearmargin.networks.pooling import RegionPool
from clearmargin.networks.rows import by_rows, round_number
from clearmargin.training.checkpoint import TrainingState
from clearmargin.training.processes import ProcessGroup, loss_module
from clearmargin.training.step import TrainingStep

gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def small(name, device="cpu"):
    torch.manual_seed(0)
    network = build_network(network_config(SMALL[name].model), classes=1, pretrained=True)
    return network.to(device)


def test_regions_are_read_at_their_own_place_in_16_bits():
    """A ramp says where it was read: 16 bits have only each fourth number between 512 and 1024."""
    ramp = (torch.arange(256.0) - 153).expand(1, 1, 256, 256)
    boxes = torch.tensor([[601.0, 10.0, 629.0, 38.0], [602.0, 10.0, 630.0, 38.0]])
    read = []
    for maps in (ramp, ramp.bfloat16()):
        levels = [maps, *(maps[..., ::k, ::k] for k in (2, 4, 8))]
        with torch.autocast("cpu", torch.bfloat16):
            read.append(RegionPool((4, 8, 16, 32))(levels)([boxes], 7).float().mean((1, 2, 3)))
    torch.testing.assert_close(read[1], read[0], atol=0.02, rtol=0)
    assert read[0][1] - read[0][0] == pytest.approx(0.25)  # a pixel of the image, in the map's


def test_points_are_drawn_finer_than_16_bits():
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        points = uncertain_points(torch.zeros((2, 28, 28), dtype=torch.bfloat16), 64)
    assert points.dtype == torch.float32
    assert (points != points.bfloat16()).float().mean() > 0.9


def test_rows_that_are_filled_up_change_nothing():
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3, padding=1), torch.nn.GroupNorm(2, 8))
    rows = torch.randn(5, 3, 7, 7)
    torch.testing.assert_close(by_rows(module, rows, rows=round_number(5)), module(rows))
    assert by_rows(module, rows[:0]).shape == (0, 8, 7, 7)
    assert [round_number(n) for n in (0, 1, 16, 17, 100)] == [0, 16, 16, 32, 128]


@pytest.mark.parametrize("kind", [Targets, VolumeTargets])
def test_targets_move_whole(kind):
    masks = torch.ones((2, 3, 4, 5), dtype=torch.uint8)
    labels = torch.tensor([1, 2])
    made = (
        Targets.from_masks(masks[:, 0], labels, torch.ones(1, 3))
        if kind is Targets
        else VolumeTargets(labels=labels, masks=masks)
    )
    moved = made.to(torch.device("cpu"))
    assert type(moved) is kind
    for name, value in vars(moved).items():
        torch.testing.assert_close(value, getattr(made, name), rtol=0, atol=0, equal_nan=True)


def test_the_average_moves_each_weight_as_one_by_one():
    network = small("semantic_cc")
    average = {
        k: torch.randn_like(v) if v.is_floating_point() else v.clone()
        for k, v in network.state_dict().items()
    }
    before = {k: v.clone() for k, v in average.items()}
    TrainingState(network=network, average=average, optimiser=None).move_average(0.9, 5)
    for name, value in network.state_dict().items():
        weight = 1 - 6 / 15
        torch.testing.assert_close(average[name], before[name] + weight * (value - before[name]))


@gpu
@pytest.mark.parametrize("name", list(SMALL))
def test_a_step_in_16_bits_on_a_gpu(name):
    device = torch.device("cuda", 0)
    network = small(name, device)
    state = TrainingState(
        network=network,
        average={k: v.detach().clone() for k, v in network.state_dict().items()},
        optimiser=torch.optim.AdamW(
            [p for p in network.parameters() if p.requires_grad], lr=1e-3, fused=True
        ),
    )
    module = loss_module(network, device, ProcessGroup())
    image, targets = scene()
    images, both = collate([(image, targets), (image, targets)])
    exact = None
    for amp in (False, True):
        take = TrainingStep(
            state=state, compute_losses=module, device=device, clip_norm=5.0, ema=0.99, amp=amp
        )
        torch.manual_seed(3)
        losses = take([(images.pin_memory(), [t.pin_memory() for t in both])], number=0, rate=0.0)
        assert all(value.device.type == "cuda" and torch.isfinite(value) for value in losses.values())
        exact = losses["loss"] if exact is None else exact
    assert losses["loss"].item() == pytest.approx(exact.item(), rel=0.1)


@gpu
@pytest.mark.parametrize("name", list(SMALL))
def test_a_gpu_detects_what_the_cpu_detects(name, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = small(name)
    image, targets = scene()
    optimiser = torch.optim.AdamW(network.parameters(), lr=SMALL[name].learning_rate)
    for step in range(SMALL[name].steps):
        torch.manual_seed(step)
        loss = sum(network.losses(image[None], [targets]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    with torch.inference_mode():
        (ours,) = network.detect(image[None], maps=True)
        (theirs,) = network.to("cuda").detect(image[None].cuda(), maps=True)
    sure = ours.scores > 0.5
    assert int(sure.sum()) == int((theirs.scores > 0.5).sum()) > 0
    torch.testing.assert_close(theirs.boxes.cpu()[sure], ours.boxes[sure], atol=0.05, rtol=1e-3)
    torch.testing.assert_close(theirs.scores.cpu()[sure], ours.scores[sure], atol=1e-3, rtol=0)
    torch.testing.assert_close(theirs.foreground.cpu(), ours.foreground, atol=2e-3, rtol=0)


@gpu
def test_results_of_a_large_volume_stay_off_the_card():
    from clearmargin.core import Code, LabelClass, LabelMap, Provenance
    from clearmargin.models.volume_segmenter import VolumeSegmenter
    from clearmargin.transforms.settings import ImageSettings, Window

    config = network_config({"network": "semantic_cc_3d", "filters": 8, "levels": 3, "patch": [16, 64, 64]})
    code = Code(value="108369006", scheme="SCT", meaning="Tumor")
    segmenter = VolumeSegmenter(
        network=build_network(config, classes=4, channels=1, pretrained=False).cuda(),
        image=ImageSettings(intensity=Window(low=0, high=1), channels=1),
        label_map=LabelMap(
            tuple(LabelClass(id=k + 1, name=f"c{k}", type=code, category=code) for k in range(4))
        ),
        provenance=Provenance(model="semantic_cc_3d", weights_sha256="", config_sha256="", software="test"),
        device=torch.device("cuda", 0),
    )
    peaks = []
    for depth in (32, 256):
        torch.cuda.reset_peak_memory_stats()
        segmenter(
            Image(
                pixels=np.zeros((1, depth, 256, 256), np.float32), grid=Grid.from_spacing((depth, 256, 256))
            )
        )
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.05 * peaks[0]  # four classes of 256 slices would take 268 MB more
