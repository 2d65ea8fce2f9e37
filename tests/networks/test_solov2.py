"""SOLOv2, held against its paper and against cells and masks worked by hand."""

import copy
import math

import layers
import numpy as np
import pytest
import torch
from small import SMALL

from clearmargin.errors import ConfigError
from clearmargin.models.placing import place
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets
from clearmargin.networks.solov2 import MaskBranch, apply_kernels, assign_cells, peaks, with_coordinates

PAPER = {
    "network": "solov2",
    "backbone": "resnet50",
    "fpn_channels": 256,
    "grid_extent": None,
    "scale_ranges": [[1, 96], [48, 192], [96, 384], [192, 768], [384, 2048]],
    "head_channels": 512,
    "head_layers": 4,
    "branch_channels": 128,
    "mask_channels": 256,
    "candidates": 500,
}
ALL = ((0.0, 1e5),)


def small(**options):
    torch.manual_seed(0)
    return build_network(network_config(SMALL["solov2"].model | options), classes=2, pretrained=False)


def boxes(*corners, size=64):
    """Return targets of solid boxes, given as x1, y1, x2, y2, labelled 1, 2, 1, ..."""
    masks = torch.zeros(len(corners), size, size, dtype=torch.uint8)
    for mask, (x1, y1, x2, y2) in zip(masks, corners, strict=True):
        mask[y1:y2, x1:x2] = 1
    return Targets.from_masks(masks, torch.arange(len(corners)) % 2 + 1)


@pytest.fixture(scope="module")
def papers():
    return build_network(network_config(PAPER), classes=80, pretrained=False)


def test_the_papers_layers_have_the_papers_weights(papers):
    width, head, branch, mask = 256, 512, 128, 256
    classes = layers.normed(width, head) + 3 * layers.normed(head, head) + layers.conv(head, 80)
    kernels = layers.normed(width + 2, head) + 3 * layers.normed(head, head) + layers.conv(head, mask)
    from_p2, from_p3 = layers.normed(width, branch), layers.normed(width, branch)
    from_p4 = layers.normed(width, branch) + layers.normed(branch, branch)
    from_p5 = layers.normed(width + 2, branch) + 2 * layers.normed(branch, branch)
    masks = from_p2 + from_p3 + from_p4 + from_p5 + layers.normed(branch, mask, 1)
    wanted = layers.backbone() + layers.pyramid((256, 512, 1024, 2048)) + classes + kernels + masks
    assert sum(p.numel() for p in papers.parameters()) == wanted


def test_the_defaults_are_the_light_variant(papers):
    light = build_network(network_config({"network": "solov2"}), classes=80, pretrained=False)
    counts = [sum(p.numel() for p in network.parameters()) for network in (light, papers)]
    assert counts[0] < counts[1] / 8


def test_the_papers_grids_have_3872_cells_on_any_image(papers):
    assert papers.grids((128, 192)) == [(40, 40), (36, 36), (24, 24), (16, 16), (12, 12)]
    shapes = copy.deepcopy(papers).to("meta")  # the paper's width is a matter of a GPU; shapes are free
    features = shapes._features(torch.rand(1, 3, 128, 192, device="meta"))
    logits, kernels = shapes._cells(features, (128, 192))
    masks = shapes.mask_branch(features[:4])
    assert [tuple(f.shape) for f in features] == [
        (1, 256, 128 // stride, 192 // stride) for stride in (4, 8, 16, 32, 64)
    ]
    assert [tuple(level.shape) for level in logits] == [(1, 80, n, n) for n in (40, 36, 24, 16, 12)]
    assert kernels.shape == (1, 3872, 256)
    assert masks.shape == (1, 256, 32, 48)


def test_cells_keep_their_size_on_a_larger_image():
    network = small()
    assert network.grids((256, 256)) == [(40, 40), (36, 36), (24, 24), (16, 16), (12, 12)]
    assert network.grids((512, 384)) == [(80, 60), (72, 54), (48, 36), (32, 24), (24, 18)]
    assert network.grids((32, 32))[-1] == (2, 2)


def test_coordinates_run_from_edge_to_edge_at_the_pixels_centres():
    found = with_coordinates(torch.zeros(2, 3, 2, 4))
    assert found.shape == (2, 5, 2, 4)
    for image in found:
        assert image[3].tolist() == [[-0.75, -0.25, 0.25, 0.75]] * 2
        assert image[4].tolist() == [[-0.5] * 4, [0.5] * 4]


def test_only_kernels_and_the_coarsest_map_are_given_coordinates():
    network = small()
    width = network.config.fpn_channels
    assert network.head.kernel_tower[0][0].in_channels == width + 2
    assert network.head.class_tower[0][0].in_channels == width
    first = [level[0] if i == 0 else level[0][0] for i, level in enumerate(network.mask_branch.levels)]
    assert [layer.in_channels for layer in first] == [width, width, width, width + 2]


def test_an_object_owns_the_cells_around_its_centre():
    """64 pixels, 8 cells of 8: a box of 40 x 20 around (31, 42) has a centre region of 8 x 4 around it."""
    target = boxes((11, 32, 51, 52))
    owner = assign_cells(target, (64, 64), [(8, 8)], ALL, 0.2).view(8, 8)
    # x 27 to 35 lies in cells 3 and 4, y 40 to 44 in cell 5
    assert torch.argwhere(owner == 0).tolist() == [[5, 3], [5, 4]]
    # a region that ends on a cell's border does not reach into the next one: y 40 to 48 is cell 5 alone
    owner = assign_cells(boxes((28, 40, 36, 48)), (64, 64), [(8, 8)], ALL, 1.0).view(8, 8)
    assert torch.argwhere(owner == 0).tolist() == [[5, 3], [5, 4]]


def test_the_centre_is_that_of_mass_and_not_of_the_box():
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 0:64, 0:8] = 1
    masks[0, 56:64, 0:64] = 1  # an L: its box is the image, its mass lies to the left and below
    mass_x = (8 * 56 * 4 + 64 * 8 * 32) / (8 * 56 + 64 * 8)
    target = Targets.from_masks(masks, torch.tensor([1]))
    owner = assign_cells(target, (64, 64), [(64, 64)], ALL, 1e-3).view(64, 64)
    assert torch.argwhere(owner == 0).tolist() == [[math.floor(64 - mass_x), math.floor(mass_x)]]


def test_an_object_belongs_to_the_levels_whose_range_holds_its_scale():
    """Boxes of 16 x 16 and 32 x 32: scales 16 and 32."""
    target = boxes((0, 0, 16, 16), (24, 24, 56, 56))
    grids = [(8, 8), (4, 4), (2, 2)]
    ranges = ((0.0, 16.0), (16.0, 31.0), (20.0, 99.0))
    levels = assign_cells(target, (64, 64), grids, ranges, 0.2).split([64, 16, 4])
    assert [sorted(set(level.tolist())) for level in levels] == [[-1, 0], [-1, 0], [-1, 1]]


def test_of_two_objects_in_one_cell_the_smaller_is_learnt():
    """The known limit: what is nested with one centre is one object to a cell."""
    target = boxes((8, 8, 56, 56), (24, 24, 40, 40))
    owner = assign_cells(target, (64, 64), [(5, 5)], ALL, 0.2).view(5, 5)
    assert owner[2, 2] == 1
    assert set(owner.flatten().tolist()) == {-1, 1}
    # a finer grid has cells for both
    assert set(assign_cells(target, (64, 64), [(16, 16)], ALL, 0.2).tolist()) == {-1, 0, 1}


@pytest.mark.parametrize("corners", [(0, 0, 1, 1), (63, 63, 64, 64), (0, 0, 64, 64)])
def test_every_object_has_a_cell_at_the_images_edge_too(corners):
    owner = assign_cells(boxes(corners), (64, 64), [(12, 12)], ALL, 0.2)
    assert (owner == 0).any()


def test_an_image_of_nothing_has_no_cells_and_teaches_the_background():
    network = small()
    nothing = boxes()
    assert set(assign_cells(nothing, (64, 64), [(8, 8)], ALL, 0.2).tolist()) == {-1}
    torch.nn.init.zeros_(network.head.classes.bias)  # as if it saw objects everywhere
    images = torch.rand(2, 3, 64, 64)
    optimiser = torch.optim.SGD(network.parameters(), lr=1e-4)
    seen = []
    for _ in range(3):
        losses = network.losses(images, [nothing, nothing])
        assert losses["masks"] == 0
        seen.append(losses["classes"].item())
        optimiser.zero_grad()
        sum(losses.values()).backward()
        optimiser.step()
    assert 0 < seen[-1] < 0.9 * seen[0]


def test_class_loss_is_focal_and_shared_among_the_cells_with_an_object():
    network = small()
    target = boxes((0, 0, 8, 8), (16, 16, 24, 24))
    owners = torch.tensor([[-1, 0, 1, -1]])
    logits = torch.zeros(1, 4, 2)  # all at one half: 0.25 of ln 2, times alpha
    positive, negative = 0.25 * 0.25 * math.log(2), 0.75 * 0.25 * math.log(2)
    wanted = (2 * positive + 6 * negative) / 2
    assert network._class_loss(logits, owners, [target]).item() == pytest.approx(wanted, rel=1e-5)


def test_of_neighbours_only_the_strongest_is_a_peak():
    scores = torch.tensor([[[[0.1, 0.5, 0.4], [0.2, 0.3, 0.9], [0.7, 0.1, 0.2]]]])
    assert peaks(scores, 1).equal(scores)
    found = peaks(scores, 2)[0, 0]  # each against its left, its upper, and its upper left neighbour
    assert torch.nonzero(found).tolist() == [[0, 0], [0, 1], [1, 0], [1, 2], [2, 0]]
    found = peaks(scores, 3)[0, 0]
    assert torch.nonzero(found).tolist() == [[1, 2], [2, 0]]


def test_kernels_give_a_mask_worked_by_hand():
    features = torch.tensor([[[1.0, 2], [3, 4]], [[0, 1], [0, 1]]])
    logits = apply_kernels(torch.tensor([[1.0, -2], [0, 3]]), features)
    assert logits.tolist() == [[[1, 0], [3, 2]], [[0, 3], [0, 3]]]


def test_a_detection_worked_by_hand():
    """Two cells see one mask, a third another; scores are weighed by maskness, and the repeat decays."""
    network = small(detections=10)
    maps = torch.zeros(2, 8, 8)
    maps[0], maps[1] = -4.0, -4.0
    maps[0, 2:5, 1:4] = 2.0
    maps[1, 6:8, 5:8] = 6.0
    kernels = torch.tensor([[1.0, 0], [1, 0], [0, 1], [0, 0]])
    scores = torch.tensor([[0.9, 0], [0.8, 0], [0, 0.7], [0.04, 0]])
    found = network._detect(scores, kernels, maps)
    surest, sure = 1 / (1 + math.exp(-6)), 1 / (1 + math.exp(-2))
    assert found.scores.tolist() == pytest.approx(
        [0.9 * sure, 0.7 * surest, 0.8 * sure * math.exp(-2)], rel=1e-5
    )
    assert found.labels.tolist() == [1, 2, 1]
    first, second = [4, 8, 16, 20], [20, 24, 32, 32]
    assert found.boxes.tolist() == [first, second, first]
    assert found.regions[0].tolist() == [0, 4, 20, 24]  # a margin of one
    assert found.masks[0][1:4, 1:4].flatten().tolist() == pytest.approx([sure] * 9)
    assert found.masks[0][0].tolist() == pytest.approx([1 / (1 + math.exp(4))] * 5)


def test_masks_are_not_shifted():
    """One bright pixel of each map becomes a mask whose centre is that pixel's, to a thousandth."""
    branch = MaskBranch(16, 16, outputs=16)
    with torch.no_grad():
        for part in branch.modules():
            if isinstance(part, torch.nn.Conv2d):
                torch.nn.init.dirac_(part.weight)
    for level, stride in enumerate((4, 8, 16, 32)):
        features = [torch.zeros(1, 16, 384 // s, 512 // s) for s in (4, 8, 16, 32)]
        rows, columns = features[level].shape[2:]
        y, x = rows // 2, columns // 2 - 1
        features[level][:, :, y, x] = 1
        mask = branch(features)[0, 0].detach()
        mask = (mask - 0.1 * mask.max()).clamp(min=0)  # coordinates reach no channel that is looked at
        crop, origin = place(mask, torch.tensor([0.0, 0, 512, 384]), np.eye(3), (384, 512))
        grid = np.mgrid[: crop.shape[0], : crop.shape[1]] + np.array(origin)[:, None, None] + 0.5
        centre = (grid * crop).sum(axis=(1, 2)) / crop.sum()
        assert centre == pytest.approx([(y + 0.5) * stride, (x + 0.5) * stride], abs=1e-3)


def test_images_and_options_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="multiples of 32"):
        small().detect(torch.zeros(1, 3, 100, 64))
    with pytest.raises(ConfigError, match="scale_ranges"):
        network_config({"network": "solov2", "scale_ranges": [[1, 96]]})
