"""YOLACT, held against its paper and against masks worked by hand."""

import copy
import math

import layers
import numpy as np
import pytest
import torch
from small import SMALL, no_targets

from clearmargin.models.placing import place
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets
from clearmargin.networks.yolact import Protonet, _coverage, _masks, _window

PAPER = {
    "network": "yolact",
    "backbone": "resnet50",
    "fpn_channels": 256,
    "head_channels": 256,
    "prototypes": 32,
    "prototype_channels": 256,
    "prototype_layers": 3,
    "anchor_sizes": [24, 48, 96, 192, 384],
}


def small(**options):
    torch.manual_seed(0)
    return build_network(network_config(SMALL["yolact"].model | options), classes=1, pretrained=False)


@pytest.fixture(scope="module")
def papers():
    return build_network(network_config(PAPER), classes=80, pretrained=False)


def test_the_papers_layers_have_the_papers_weights(papers):
    width, each, classes, prototypes = 256, 3, 80, 32
    extra = 2 * layers.conv(width, width)  # P6 and P7
    protonet = 4 * layers.conv(width, width) + layers.conv(width, prototypes, 1)
    branches = (each * (classes + 1), each * 4, each * prototypes)
    head = layers.conv(width, width) + sum(layers.conv(width, outputs) for outputs in branches)
    semantic = layers.conv(width, classes, 1)
    maps = (
        layers.conv(prototypes, 32, 1) + 3 * layers.conv(width, 32, 1) + layers.conv(32, 32)
    )  # not the paper's
    maps += layers.conv(3, 16) + layers.conv(16, 16) + layers.conv(48, 32) + layers.conv(32, classes, 1)
    maps += 2 * (16 + 16 + 32 + 32)  # scale and shift of its normalised layers
    wanted = layers.backbone() + layers.pyramid((512, 1024, 2048)) + extra + protonet + head + semantic + maps
    assert sum(p.numel() for p in papers.parameters()) == wanted


def test_the_defaults_are_the_light_variant(papers):
    light = build_network(network_config({"network": "yolact"}), classes=80, pretrained=False)
    counts = [
        sum(p.numel() for name, p in network.named_parameters() if not name.startswith("foreground."))
        for network in (light, papers)
    ]
    assert counts[0] < counts[1] / 8


def test_each_level_has_its_stride_and_each_of_its_pixels_three_anchors(papers):
    shapes = copy.deepcopy(papers).to("meta")  # the paper's width is a matter of a GPU; shapes are free
    features = shapes._features(torch.rand(1, 3, 256, 384, device="meta"))
    logits, deltas, coefficients = shapes.head(features)
    prototypes = shapes.protonet(features[0])
    grids = [(32, 48), (16, 24), (8, 12), (4, 6), (2, 3)]
    assert [tuple(f.shape) for f in features] == [(1, 256, *grid) for grid in grids]
    count = 3 * sum(rows * columns for rows, columns in grids)
    assert logits.shape == (1, count, 81)
    assert deltas.shape == (1, count, 4)
    assert coefficients.shape == (1, count, 32)
    assert prototypes.shape == (1, 32, 64, 96)
    assert shapes._anchors(features).shape == (count, 4)


def test_coefficients_may_subtract_and_prototypes_are_never_negative():
    network = small()
    with torch.no_grad():
        features = network._features(torch.rand(1, 3, 64, 96))
        _, _, coefficients = network.head([level * 100 for level in features])
        prototypes = network.protonet(features[0])
    assert -1 <= coefficients.min() < 0 < coefficients.max() <= 1
    assert prototypes.min() >= 0 and prototypes.max() > 0


def test_anchors_lie_on_the_centres_of_the_pixels_they_belong_to(papers):
    features = [torch.zeros(1, 256, 256 // s, 384 // s) for s in (8, 16, 32, 64, 128)]
    anchors = papers._anchors(features)
    middles = (anchors[:, :2] + anchors[:, 2:]) / 2
    assert middles[:3].tolist() == [[4, 4]] * 3
    assert middles[3:6].tolist() == [[12, 4]] * 3  # x runs first
    assert middles[-3:].tolist() == [[2.5 * 128, 1.5 * 128]] * 3
    extents = anchors[:, 2:] - anchors[:, :2]
    assert (extents[:3].prod(dim=1).sqrt() - 24).abs().max() < 1  # torchvision rounds to whole pixels
    assert (extents[-3:].prod(dim=1).sqrt() - 384).abs().max() < 1
    assert (extents[:3, 1] / extents[:3, 0]).tolist() == pytest.approx([0.5, 1, 2], rel=0.1)


def test_outputs_belong_to_their_anchors():
    """The one pixel that the head answers for is found at that pixel's own anchors."""
    network = small()
    with torch.no_grad():
        for branch in (network.head.shared, network.head.boxes):
            branch.weight.zero_()
            branch.bias.zero_()
        network.head.shared.weight[:, 0, 1, 1] = 1
        network.head.boxes.weight[:, 0, 1, 1] = torch.arange(12.0)
        features = [torch.zeros(1, 32, 128 // s, 192 // s) for s in (8, 16, 32, 64)]
        features.append(torch.zeros(1, 32, 1, 2))
        features[1][0, 0, 3, 5] = 1
        _, deltas, _ = network.head(features)
    (places,) = torch.where(deltas[0].abs().sum(dim=1) > 0)
    assert deltas[0, places].tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    anchors = network._anchors(features)[places]
    assert ((anchors[:, :2] + anchors[:, 2:]) / 2).tolist() == [[5.5 * 16, 3.5 * 16]] * 3


def test_background_is_learnt_from_the_hardest_three_to_one():
    """One anchor with an object, five without, one between: the object's and the three worst count."""
    network = small(least_negatives=1)
    target = Targets.from_masks(torch.ones(1, 8, 8, dtype=torch.uint8), torch.tensor([1]))
    logits = torch.zeros(1, 7, 2)
    logits[0, :, 1] = torch.tensor([2.0, 1.0, -3.0, 4.0, 0.5, -1.0, 9.0])
    matched = torch.tensor([[0, -1, -1, -1, -1, -1, -2]])
    costs = [math.log1p(math.exp(-2)), *(math.log1p(math.exp(v)) for v in (4.0, 1.0, 0.5))]
    assert network._class_loss(logits, matched, [target]).item() == pytest.approx(sum(costs), rel=1e-5)


def test_a_picture_without_objects_lowers_the_scores():
    network = small()
    images = torch.rand(2, 3, 64, 64)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
    before = None
    for _ in range(4):
        losses = network.losses(images, [no_targets_of(64)] * 2)
        assert losses["boxes"] == losses["masks"] == 0 and losses["classes"] > 0
        before = losses["classes"].item() if before is None else before
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    assert losses["classes"].item() < 0.9 * before


def no_targets_of(size):
    found = no_targets()
    return Targets(boxes=found.boxes, labels=found.labels, masks=found.masks[:, :size, :size])


def test_prototypes_add_up_to_a_mask_worked_by_hand():
    """Left and right half as prototypes, weights 1 and -0.5, seen through a box of 8 x 6 prototype pixels."""
    prototypes = torch.zeros(2, 8, 12)
    prototypes[0, :, :6] = 2
    prototypes[1, :, 6:] = 4
    box = torch.tensor([[13.0, 0.0, 36.5, 24.0]])  # 3.25 to 9.125, 0 to 6 at a quarter
    masks, regions = _masks(prototypes, torch.tensor([[1.0, -0.5]]), box)
    assert regions.tolist() == [[12, 0, 40, 24]]
    sigmoid_of_two = 1 / (1 + math.exp(-2))
    wanted = [[sigmoid_of_two] * 3 + [1 - sigmoid_of_two] * 4] * 6
    np.testing.assert_allclose(masks[0].numpy(), wanted, rtol=1e-5)


def test_the_mask_loss_is_the_mean_inside_the_box():
    """Logits of 0 cost ln 2 a pixel inside, whatever is outside."""
    network = small()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 16:32, 24:40] = 1
    target = Targets.from_masks(masks, torch.tensor([1]))
    prototypes = torch.full((1, 8, 16, 16), 100.0)
    prototypes[:, :, 3:9, 5:11] = (
        0  # the box at a quarter is 4:8, 6:10, and one pixel around it is taught too
    )
    coefficients = torch.ones(1, 5, 8)
    matched = torch.tensor([[-1, 0, -2, 0, -1]])
    found = network._mask_loss(prototypes, coefficients, matched, [target])
    assert found.item() == pytest.approx(math.log(2), rel=1e-5)
    # and where they are right, with a margin, nothing
    prototypes[:, :, 3:9, 5:11] = -100.0
    prototypes[:, :, 4:8, 6:10] = 100.0
    assert network._mask_loss(prototypes, coefficients, matched, [target]).item() == pytest.approx(
        0, abs=1e-6
    )


def test_targets_say_how_much_of_a_pixel_is_covered():
    masks = torch.zeros(1, 32, 32, dtype=torch.uint8)
    masks[0, 6:12, 8:13] = 1
    target = Targets.from_masks(masks, torch.tensor([1]))
    rows, columns = _window(target.boxes[0], torch.Size((8, 8)), margin=0)
    assert (rows, columns) == (slice(1, 3), slice(2, 4))
    assert _coverage(masks, rows, columns)[0].tolist() == [[0.5, 0.125], [1, 0.25]]


@pytest.mark.parametrize("box", [[-9.0, -9, -5, -5], [70.0, 70, 80, 80], [3.0, 3, 3, 3], [0.0, 0, 64, 64]])
def test_every_box_has_a_window_inside_the_image(box):
    for slices in _window(torch.tensor(box), torch.Size((16, 16)), margin=0):
        assert 0 <= slices.start < slices.stop <= 16


def test_prototypes_are_not_shifted():
    """One bright pixel at stride 8 becomes a mask whose centre is that pixel's, to a thousandth."""
    protonet = Protonet(4, 4, 2, outputs=1)
    with torch.no_grad():
        for layer in (*protonet.before, protonet.after):
            torch.nn.init.dirac_(layer.weight)
            layer.bias.zero_()
        protonet.prototypes.weight.fill_(0.25)
        protonet.prototypes.bias.zero_()
        finest = torch.zeros(1, 4, 12, 16)
        finest[:, :, 5, 7] = 1
        mask = protonet(finest)[0, 0]
    crop, (y, x) = place(mask, torch.tensor([0.0, 0, 128, 96]), np.eye(3), (96, 128))
    ys, xs = np.mgrid[: crop.shape[0], : crop.shape[1]]
    centre = [(crop * (g + o + 0.5)).sum() / crop.sum() for g, o in ((ys, y), (xs, x))]
    assert centre == pytest.approx([5.5 * 8, 7.5 * 8], abs=1e-3)


def test_images_that_no_map_spans_are_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        small().detect(torch.zeros(1, 3, 100, 64))
