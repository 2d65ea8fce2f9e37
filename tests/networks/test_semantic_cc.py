"""Components of probability maps, and the network that they come from."""

import logging

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.networks.nets import DynUNet
from small import SMALL

from clearmargin.models.placing import place, threshold
from clearmargin.networks import build_network, network_config
from clearmargin.networks.components import connected_components

GRID = (48, 64)


def disc(centre, radius, *, shape=GRID):
    """Return a soft disc; pixel k covers [k, k + 1), so its centre lies at k + 0.5."""
    y, x = np.mgrid[: shape[0], : shape[1]] + 0.5
    distance = np.hypot(y - centre[0], x - centre[1])
    return (1 / (1 + np.exp(2 * (distance - radius)))).astype(np.float32)


class Fixed(torch.nn.Module):
    """A network that has found what it was made with, ``(K, H, W)`` probabilities."""

    def __init__(self, *maps):
        super().__init__()
        self.logits = torch.from_numpy(np.stack(maps)).clamp(1e-6, 1 - 1e-6).logit()

    def forward(self, images):
        return self.logits.expand(len(images), -1, -1, -1)


def found_in(*maps, **options):
    config = network_config({"network": "semantic_cc", "filters": 8, "levels": 3} | options)
    network = build_network(config, classes=len(maps), pretrained=False)
    network.unet = Fixed(*maps)
    (found,) = network.detect(torch.zeros(1, 3, *maps[0].shape))
    return found


def on_source(found, i, *, finer=1):
    """Return instance ``i`` thresholded on a source grid of ``finer`` pixels per network pixel."""
    shape = (GRID[0] * finer, GRID[1] * finer)
    matrix = np.diag([finer, finer, 1.0])
    matrix[:2, 2] = finer / 2 - 0.5  # edges on edges
    crop, origin = place(found.masks[i], found.regions[i], matrix, shape)
    return threshold(crop, origin, shape).dense()


def test_discs_apart_are_two_instances_and_discs_that_touch_are_one():
    """What touches cannot be told apart by components: the baseline's known fault (docs/models.md)."""
    apart = np.maximum(disc((20, 15), 8), disc((20, 45), 8))
    touching = np.maximum(disc((20, 20), 8), disc((20, 35), 8))
    assert len(found_in(apart).scores) == 2
    found = found_in(touching)
    assert len(found.scores) == 1
    torch.testing.assert_close(found.boxes, torch.tensor([[12.0, 12.0, 43.0, 28.0]]))


def test_pixels_that_meet_at_a_corner_alone_are_apart():
    corner = np.zeros(GRID, np.float32)
    corner[10:14, 10:14] = corner[14:18, 14:18] = 0.9
    assert len(found_in(corner).scores) == 2


def test_a_nested_class_stays_whole_in_its_organ():
    found = found_in(disc((24, 30), 20), disc((24, 30), 5))
    assert sorted(found.labels.tolist()) == [1, 2]
    organ, tumour = (on_source(found, found.labels.tolist().index(label)) for label in (1, 2))
    assert organ[24, 30] and tumour[24, 30]
    assert (organ & tumour).sum() == tumour.sum() > 60


def test_specks_are_dropped_and_counted(caplog):
    specks = disc((24, 30), 10)
    specks[2, 2] = specks[2, 40:43] = 0.9
    with caplog.at_level(logging.DEBUG, logger="clearmargin.networks.semantic_cc"):
        assert len(found_in(specks, smallest=4).scores) == 1
    assert "2 component(s) of fewer than 4 pixels dropped" in caplog.text
    assert len(found_in(specks, smallest=3).scores) == 2
    assert len(found_in(specks, smallest=1).scores) == 3
    assert connected_components(specks, 4)[1] == 2
    assert connected_components(np.zeros(GRID, np.float32), 1) == ([], 0)


def test_the_score_is_the_mean_probability_inside_and_the_best_come_first():
    maps = np.zeros(GRID, np.float32)
    maps[5:15, 5:15] = 0.6
    maps[5:15, 30:40] = 0.8
    maps[5:10, 30:40] = 1.0
    found = found_in(maps)
    torch.testing.assert_close(found.scores, torch.tensor([0.9, 0.6]), atol=1e-5, rtol=0)
    assert found.boxes.tolist() == [[30, 5, 40, 15], [5, 5, 15, 15]]
    assert found.beyond == 0
    one = found_in(maps, detections=1)
    assert len(one.scores) == 1 and one.beyond == 1


@pytest.mark.parametrize("centre", [(20.0, 30.0), (20.25, 30.75), (23.5, 31.5)])
def test_masks_are_not_shifted_or_grown(centre):
    """On a source four times as fine a disc has its centre and its area, to a small part of a network pixel."""
    found = found_in(disc(centre, 9))
    mask = on_source(found, 0, finer=4)
    middle = (np.argwhere(mask) + 0.5).mean(0) / 4
    assert np.abs(middle - centre).max() < 0.02
    assert mask.sum() / 16 == pytest.approx(np.pi * 81, rel=0.02)


def cells_of_one_component(parts, where):
    """Return which points, in indices, lie between samples of at most one component."""
    low = np.clip(np.floor(where).astype(int), 0, np.array(parts.shape) - 1)
    high = np.clip(low + 1, 0, np.array(parts.shape) - 1)
    corners = np.stack([parts[a[:, 0], b[:, 1]] for a in (low, high) for b in (low, high)])
    positive = np.where(corners > 0, corners, corners.max(0))
    return (positive == corners.max(0)).all(0)


@settings(deadline=None, max_examples=60)
@given(
    probabilities=arrays(np.float32, (9, 11), elements=st.floats(0, 1, width=16)),
    scale=st.sampled_from([0.4, 1.0, 1.7, 3.0]),
)
def test_cutting_components_out_does_not_move_their_edges(probabilities, scale):
    """Wherever a point lies, some component holds it if the whole map does."""
    from scipy import ndimage

    shape = (round(9 * scale), round(11 * scale))
    matrix = np.diag([scale, scale, 1.0])
    matrix[:2, 2] = scale / 2 - 0.5

    def placed(mask, region):
        crop, (y, x) = place(torch.from_numpy(mask), torch.tensor(region), matrix, shape)
        full = np.zeros(shape, np.float32)
        full[y : y + crop.shape[0], x : x + crop.shape[1]] = crop
        return full

    whole = placed(probabilities, [0, 0, 11, 9])
    union = np.zeros(shape, np.float32)
    for part in connected_components(probabilities, 1)[0]:
        (y, x), (h, w) = part.origin, part.probabilities.shape
        union = np.maximum(union, placed(part.probabilities, [x, y, x + w, y + h]))
    sure = np.abs(whole - 0.5) > 1e-5
    assert not ((union >= 0.5) & (whole < 0.5) & sure).any()
    where = (np.argwhere(np.ones(shape)) - matrix[:2, 2]) / scale
    plain = cells_of_one_component(ndimage.label(probabilities >= 0.5)[0], where).reshape(shape)
    assert ((union >= 0.5) == (whole >= 0.5))[plain & sure].all()


def test_components_of_volumes():
    volume = np.zeros((6, 10, 10), np.float32)
    volume[1:3, 2:5, 2:5], volume[3:5, 5:8, 5:8] = 0.7, 0.9  # they meet at one corner
    (best, other), specks = connected_components(volume, 1)
    assert (best.low, best.high, specks) == ((3, 5, 5), (5, 8, 8), 0)
    assert best.score == pytest.approx(0.9) and other.score == pytest.approx(0.7)
    assert best.probabilities.shape == (6, 10, 10) and best.probabilities[2, 4, 4] == 0


def test_dynunet_gives_what_monai_gives():
    """Each weight has one name, and the forward pass is MONAI's."""
    torch.manual_seed(0)
    config = network_config({"network": "semantic_cc", "filters": 8, "levels": 4})
    network = build_network(config, classes=2, pretrained=False)
    monais = DynUNet(
        spatial_dims=2,
        in_channels=3,
        out_channels=2,
        kernel_size=[3] * 4,
        strides=[1, 2, 2, 2],
        upsample_kernel_size=[2] * 3,
        filters=[8, 16, 32, 64],
        norm_name=("GROUP", {"num_groups": 8}),
    )
    own = network.unet.state_dict()
    assert not any("skip_layers" in key for key in own)
    assert not monais.load_state_dict(own, strict=False).unexpected_keys
    image = torch.rand(2, 3, 32, 64)
    torch.testing.assert_close(network.unet(image), monais(image))


@pytest.mark.parametrize("levels", [3, 6])
@pytest.mark.parametrize("architecture", ["dynunet", "segresnet"])
def test_every_depth_takes_the_smallest_view(architecture, levels):
    config = network_config(SMALL["semantic_cc"].model | {"architecture": architecture, "levels": levels})
    network = build_network(config, classes=2, channels=1, pretrained=True)
    assert network.unet(torch.rand(1, 1, 32, 64)).shape == (1, 2, 32, 64)
