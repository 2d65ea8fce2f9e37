"""Mask losses: worked by hand on a few pixels."""

import math

import pytest
import torch

from clearmargin.networks.crops import crop_masks
from clearmargin.networks.losses import MaskLossSettings, dice_loss, edge_weights, mask_loss


def disc(size=9):
    y, x = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    return ((y - 4) ** 2 + (x - 4) ** 2 <= 9).float()[None]


def test_plain_cross_entropy_is_torchs():
    logits, targets = torch.randn(2, 5, 6), torch.randint(0, 2, (2, 5, 6)).float()
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets)
    torch.testing.assert_close(mask_loss(logits, targets, MaskLossSettings()), wanted)


def test_no_mask_costs_nothing_and_has_a_gradient():
    logits = torch.zeros(0, 4, 4, requires_grad=True)
    loss = mask_loss(logits, torch.zeros(0, 4, 4), MaskLossSettings(dice=1, edge=2, logit_margin=5))
    loss.backward()
    assert loss.item() == 0


def test_dice_of_a_perfect_an_empty_and_a_wrong_mask():
    target = disc().repeat(3, 1, 1)
    logits = torch.stack([40 * disc()[0] - 20, torch.full((9, 9), -20.0), 20 - 40 * disc()[0]])
    found = dice_loss(logits, target)
    assert found[0].item() == pytest.approx(0, abs=1e-4)
    assert found[1].item() == pytest.approx(1, abs=1e-3)
    assert found[2].item() == pytest.approx(1, abs=1e-3)


def test_edges_are_the_pixels_on_both_sides_of_a_step():
    target = torch.zeros(1, 5, 8)
    target[..., 4:] = 1
    assert edge_weights(target, 1)[0, 2].tolist() == [0, 0, 0, 1, 1, 0, 0, 0]
    assert edge_weights(target, 2)[0, 2].tolist() == [0, 0, 1, 1, 1, 1, 0, 0]
    assert edge_weights(torch.ones(1, 5, 8), 1).sum() == 0  # the image's rim is no edge


def test_an_error_at_the_edge_costs_more_with_edge_weight():
    target = disc()
    at_edge, inside = (40 * target - 20).clone(), (40 * target - 20).clone()
    at_edge[0, 4, 1] *= -1
    inside[0, 4, 4] *= -1
    weighted = MaskLossSettings(edge=3)
    assert mask_loss(at_edge, target, weighted) > mask_loss(inside, target, weighted)
    torch.testing.assert_close(
        mask_loss(at_edge, target, MaskLossSettings()), mask_loss(inside, target, MaskLossSettings())
    )


def test_only_logits_beyond_the_margin_are_pulled_back():
    settings = MaskLossSettings(cross_entropy=0, logit_margin=10)
    logits = torch.tensor([[[12.0, -14.0, 9.0, 0.0]]])
    assert mask_loss(logits, torch.zeros(1, 1, 4), settings).item() == pytest.approx((2 + 4) / 4)


def test_crops_hold_their_masks_and_say_where_they_lie():
    masks = torch.zeros(3, 10, 12)
    masks[0, 2:5, 3:7] = 0.9
    masks[1, 9, 11] = 0.1
    crops, regions = crop_masks(masks, 4.0)
    assert [tuple(c.shape) for c in crops] == [(5, 6), (2, 2), (1, 1)]
    assert regions.tolist() == [[8, 4, 32, 24], [40, 32, 48, 40], [0, 0, 4, 4]]
    assert crops[0].sum().item() == pytest.approx(12 * 0.9)
    assert math.isclose(float(crops[2]), 0.0)
    assert crop_masks(masks[:0], 4.0)[1].shape == (0, 4)
