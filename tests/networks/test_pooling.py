"""Both ways of reading regions give the same numbers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.networks.pooling import RegionPool, TabledMaps

STRIDES = (4, 8, 16, 32)


def pools():
    aligned, looked_up = RegionPool(STRIDES), RegionPool(STRIDES)
    looked_up.reader = TabledMaps
    return aligned, looked_up


def random_maps(seed, images):
    """Return maps of pictures of 96 x 128, and what draws more."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn((images, 6, 128 // s, 96 // s), generator=generator) for s in STRIDES], generator


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 3), size=st.sampled_from([1, 7, 14]))
def test_a_lookup_gives_what_torchvisions_operator_gives(seed, images, size):
    """Boxes of all levels, thin ones, ones of no extent, and ones far beyond the image."""
    maps, generator = random_maps(seed, images)
    boxes = []
    for _ in range(images):
        low = torch.rand((9, 2), generator=generator) * 160 - 40
        extent = 600 * torch.rand((9, 2), generator=generator) ** 4
        boxes.append(torch.cat([low, low + extent], 1))
    boxes[0][0] = torch.tensor([10.0, 20.0, 10.0, 20.0])
    aligned, looked_up = (pool(maps)(boxes, size) for pool in pools())
    assert aligned.shape == (9 * images, 6, size, size)
    torch.testing.assert_close(looked_up, aligned, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("images", [1, 2])
def test_maps_channels_last_are_read_where_they_lie(images):
    maps, generator = random_maps(0, images)
    last = [m.to(memory_format=torch.channels_last) for m in maps]
    boxes = [100 * torch.rand((4, 4), generator=generator).sort(1).values for _ in range(images)]
    read = TabledMaps(last, STRIDES)
    regions = RegionPool(STRIDES)
    regions.reader = lambda *_: read
    usual, before = (regions(last)(boxes, 7) for _ in range(2))
    torch.testing.assert_close(usual, pools()[0](maps)(boxes, 7), atol=2e-4, rtol=1e-4)
    for m in last:
        m.zero_()  # no copy was made
    assert before.abs().max() > 0 and regions(last)(boxes, 7).abs().max() == 0


def test_a_ramp_is_read_at_the_bins_centres():
    x = torch.arange(32.0).expand(1, 1, 32, 32)
    maps = [x, *(torch.zeros(1, 1, 128 // s, 128 // s) for s in STRIDES[1:])]
    for pool in pools():
        (found,) = pool(maps)([torch.tensor([[16.0, 32.0, 44.0, 60.0]])], 7)
        # bins of one feature pixel from 4 on: the first's centre is that of pixel 4
        torch.testing.assert_close(found[0], torch.arange(4.0, 11.0).expand(7, 7))


def test_no_region_is_no_row():
    maps = [torch.zeros(2, 3, 64 // s, 64 // s) for s in STRIDES]
    for pool in pools():
        assert pool(maps)([torch.zeros(0, 4), torch.zeros(0, 4)], 7).shape == (0, 3, 7, 7)


def test_a_box_that_is_no_number_gives_no_number():
    maps = [torch.ones(1, 3, 64 // s, 64 // s) for s in STRIDES]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [8.0, 8.0, float("nan"), 40.0]])
    _, looked_up = pools()
    found = looked_up(maps)([boxes], 7)
    torch.testing.assert_close(found[0], torch.ones(3, 7, 7))
    assert found[1].isnan().all()


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), images=st.integers(1, 3), count=st.sampled_from([1, 16, 37]))
def test_points_are_what_torchs_operator_gives(seed, images, count):
    """Also in boxes that reach beyond the image, and with none in one of its images."""
    maps, generator = random_maps(seed, images)
    boxes = []
    for k in range(images):
        low = torch.rand((3 * (k != 1), 2), generator=generator) * 160 - 40
        boxes.append(torch.cat([low, low + 90 * torch.rand(low.shape, generator=generator)], 1))
    points = torch.rand((sum(len(b) for b in boxes), count, 2), generator=generator)
    aligned, looked_up = (pool(maps).at(boxes, points) for pool in pools())
    assert aligned.shape == (len(points), count, 6)
    torch.testing.assert_close(looked_up, aligned, atol=2e-4, rtol=1e-4)


def test_a_point_that_is_no_number_has_no_number():
    maps = [torch.ones(1, 3, 64 // s, 64 // s) for s in STRIDES]
    boxes = torch.tensor([[8.0, 8.0, 40.0, 40.0], [8.0, 8.0, float("nan"), 40.0]])
    _, looked_up = pools()
    found = looked_up(maps).at([boxes], torch.full((2, 1, 2), 0.5))
    torch.testing.assert_close(found[0], torch.ones(1, 3))
    assert found[1].isnan().all()


def test_gradients_reach_the_level_of_a_region():
    maps = [torch.rand(1, 2, 64 // s, 64 // s, requires_grad=True) for s in STRIDES]
    RegionPool(STRIDES)(maps)([torch.tensor([[8.0, 8.0, 40.0, 40.0]])], 7).sum().backward()
    assert maps[0].grad.sum() == pytest.approx(49 * 2, rel=1e-4)
    assert all(m.grad is None for m in maps[1:])
