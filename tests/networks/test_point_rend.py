"""Points lie where they should, and decisions at them sharpen a mask; a head that knows the truth stands in."""

import pytest
import torch

from clearmargin.networks.point_rend import (
    PointHead,
    features_at,
    in_image,
    refine,
    sample_at,
    uncertain_points,
)


def ramp(width, height):
    """A map whose value is its own ``x y`` in pixels, ``(1, 2, height, width)``."""
    y, x = torch.meshgrid(torch.arange(height) + 0.5, torch.arange(width) + 0.5, indexing="ij")
    return torch.stack([x, y])[None]


def test_a_linear_map_is_read_exactly_between_its_pixels():
    points = 0.1 + 0.8 * torch.rand(1, 50, 2)
    found = sample_at(ramp(20, 10), points)
    torch.testing.assert_close(found[0].T, points[0] * torch.tensor([20.0, 10.0]))


def test_features_at_points_of_boxes_are_those_of_the_image():
    features = ramp(16, 8).repeat(2, 1, 1, 1) * 4  # stride 4: values are network pixels
    features[1] += 1000
    boxes = [
        torch.tensor([[10.0, 6.0, 50.0, 26.0], [20.0, 4.0, 30.0, 28.0]]),
        torch.tensor([[4.0, 4.0, 60.0, 28.0]]),
    ]
    points = 0.1 + 0.8 * torch.rand(3, 7, 2)
    found = features_at(features, boxes, points, 4.0)
    every = torch.cat(boxes)
    wanted = every[:, None, :2] + points * (every[:, None, 2:] - every[:, None, :2])
    size = torch.tensor([64.0, 32.0])
    torch.testing.assert_close(in_image(points, every, (64.0, 32.0)) * size, wanted)
    wanted[2] += 1000
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=0)


def test_images_without_boxes_have_no_points():
    nothing = torch.zeros(0, 4)
    assert features_at(ramp(8, 8), [nothing], torch.zeros(0, 5, 2), 4.0).shape == (0, 5, 2)
    assert uncertain_points(torch.zeros(0, 28, 28), 16).shape == (0, 16, 2)


def test_points_gather_where_the_mask_is_in_doubt():
    logits = (ramp(28, 28)[0, :1] - 14) * 2  # certain but at x = 0.5
    torch.manual_seed(0)
    away = (uncertain_points(logits, 400)[0, :, 0] - 0.5).abs()
    assert away[:300].max() < 0.2  # 300 nearest of 1200 in [0, 0.5]: within about 0.125
    assert away[300:].max() > 0.4


class Knowing(torch.nn.Module):
    """Decides by the first feature, for every class."""

    def forward(self, features, coarse):
        return features[..., :1].expand_as(coarse) * 10


@pytest.mark.parametrize("steps", [1, 2])
def test_a_coarse_disc_becomes_a_fine_one(steps):
    y, x = torch.meshgrid(torch.arange(128) + 0.5, torch.arange(128) + 0.5, indexing="ij")
    inside = 40 - ((x - 64) ** 2 + (y - 64) ** 2).sqrt()  # signed distance to a circle, in pixels
    boxes = torch.tensor([[16.0, 16.0, 112.0, 112.0]])
    coarse = sample_at(inside[None, None], torch.rand(1, 1, 2)).new_zeros(1, 2, 28, 28) - 3
    coarse[:, :, 4:24, 4:24] = 3  # a square in place of the circle

    def fine(points):
        return features_at(inside[None, None], [boxes], points, 1.0)

    masks = refine(Knowing(), fine, torch.tensor([1]), coarse, steps)
    size = 28 * 2**steps
    assert masks.shape == (1, size, size)
    at = (torch.arange(size) + 0.5) / size * 96 + 16
    truth = ((at[None] - 64) ** 2 + (at[:, None] - 64) ** 2).sqrt() < 40

    def overlap(found):
        return float((found & truth).sum() / (found | truth).sum())

    blob = torch.nn.functional.interpolate(coarse[:, :1], size=size)[0, 0] > 0
    assert overlap(masks[0] > 0) > overlap(blob) + 0.02
    # points are spent on the coarse square's edge: what it had right stays right
    assert ((masks[0] > 0) == truth)[truth & blob].all()


def test_rounding_does_not_show_in_a_mask(monkeypatch):
    """Which points are decided hangs on rounding; without a fade some probabilities would hang on it, too."""
    generator = torch.Generator().manual_seed(0)
    coarse = 2 * torch.randn((200, 1, 28, 28), generator=generator)
    other = coarse + 1e-5 * torch.randn(coarse.shape, generator=generator)

    def fine(points):
        return (40 * points[..., :1]).sin()  # what is decided is far from what was there

    def largest():
        masks = (
            refine(Knowing(), fine, torch.zeros(200, dtype=torch.int64), one, 1) for one in (coarse, other)
        )
        one, two = (m.sigmoid() for m in masks)
        return float((one - two).abs().max())

    assert largest() < 1e-3
    monkeypatch.setattr("clearmargin.networks.point_rend._FADE", 1e-9)
    assert largest() > 0.1


@pytest.mark.parametrize(("side", "steps", "decided"), [(28, 1, [448]), (28, 2, [896, 896]), (4, 1, [64])])
def test_a_mask_gets_as_many_points_as_its_finished_border_needs(side, steps, decided):
    """Twice the pixels along it; all of a small one."""
    coarse, seen = torch.randn(3, 1, side, side), []

    def fine(points):
        seen.append(points.shape)
        return torch.zeros(*points.shape[:2], 1)

    refine(Knowing(), fine, torch.zeros(3, dtype=torch.int64), coarse, steps)
    assert seen == [(3, count, 2) for count in decided]


def test_no_step_is_the_coarse_mask_of_the_own_class():
    coarse = torch.randn(2, 3, 28, 28)
    found = refine(PointHead(4, 8, 3), None, torch.tensor([2, 1]), coarse, 0)
    torch.testing.assert_close(found, torch.stack([coarse[0, 2], coarse[1, 1]]))
