"""Proposals: torchvision's network is the oracle, in both its modes."""

from __future__ import annotations

import pytest
import torch
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead

from clearmargin.networks.proposals import ProposalNetwork

SIZES = ((16,), (32,), (64,))
RATIOS = ((0.5, 1.0, 2.0),) * 3


def built(kind, keep=40):
    torch.manual_seed(0)
    head = RPNHead(24, 3).double()  # wide and in 64 bits: no two logits are equal
    with torch.no_grad():
        for weights in head.parameters():
            weights.normal_(std=0.1)  # boxes that move, probabilities that differ
    return kind(
        AnchorGenerator(SIZES, RATIOS),
        head,
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=64,
        positive_fraction=0.5,
        pre_nms_top_n={"training": 2 * keep, "testing": keep},
        post_nms_top_n={"training": 2 * keep, "testing": keep},
        nms_thresh=0.7,
    )


def seen(memory_format, images=2, size=(128, 192)):
    torch.manual_seed(1)
    maps = {
        str(k): torch.randn(images, 24, size[0] // s, size[1] // s, dtype=torch.float64).to(
            memory_format=memory_format
        )
        for k, s in enumerate((4, 8, 16))
    }
    return ImageList(torch.zeros(images, 3, *size), [size] * images), maps


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("keep", [1, 40, 10**6])
def test_proposals_are_torchvisions(memory_format, keep):
    images, maps = seen(memory_format)
    theirs, ours = (built(kind, keep).eval() for kind in (RegionProposalNetwork, ProposalNetwork))
    with torch.no_grad():
        expected, _ = theirs(images, maps)
        found, losses = ours(images, maps)
    assert losses == {}
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other) > 0
        torch.testing.assert_close(other, one)


def test_losses_and_gradients_are_torchvisions():
    images, maps = seen(torch.contiguous_format)
    targets = [
        {"boxes": torch.tensor([[10.0, 10.0, 40.0, 44.0]], dtype=torch.float64)},
        {"boxes": torch.zeros((0, 4), dtype=torch.float64)},
    ]
    results = []
    for kind in (RegionProposalNetwork, ProposalNetwork):
        network = built(kind).train()
        torch.manual_seed(2)  # which anchors are sampled
        proposals, losses = network(images, maps, targets)
        sum(losses.values()).backward()
        results.append((proposals, losses, [p.grad for p in network.parameters()]))
    (expected, wanted, slopes), (found, losses, own) = results
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(losses, wanted)
    torch.testing.assert_close(own, slopes)
    assert not any(boxes.requires_grad for boxes in found)
    assert losses["loss_objectness"] > 0 and losses["loss_rpn_box_reg"] > 0


def test_boxes_are_in_32_bits_where_the_head_is_in_16():
    """Anchors of 16 pixels near pixel 500 that do not move: in bfloat16 their edges would be even numbers."""
    network = built(ProposalNetwork).float().eval()
    with torch.no_grad():
        for weights in network.head.parameters():
            weights.zero_()
    maps = {str(k): torch.zeros(1, 24, 512 // s, 512 // s) for k, s in enumerate((4, 8, 16))}
    images = ImageList(torch.zeros(1, 3, 512, 512), [(512, 512)])
    network.anchor_generator.cell_anchors = [
        torch.tensor([[-7.5, -7.5, 7.5, 7.5]]).repeat(3, 1) for _ in range(3)
    ]
    network.filter_proposals = lambda boxes, *_: (list(boxes), None)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        (found,), _ = network(images, maps)
    assert found.dtype == torch.float32
    assert set((found % 1).unique().tolist()) == {0.5}
