"""Gaussians of pictures and volumes are found where they were put, by closed forms."""

import numpy as np
import pytest
import torch

from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.networks.peaks import decode_peaks, gaussian_maps, heat_losses

SIZE = (16, 28, 30)


@pytest.mark.parametrize("sigma", [(2.0, 2.0, 2.0), (0.8, 2.0, 3.0), (0.6, 1.5, 1.5)])
def test_points_of_volumes_are_decoded_where_they_are(sigma):
    rng = np.random.default_rng(0)
    errors, spreads = [], []
    for at in rng.uniform(np.array(SIZE) * 0.35, np.array(SIZE) * 0.65, (25, 3)):
        heat = gaussian_maps(torch.tensor([[0, *at, SEEN]]), 1, SIZE, sigma=sigma).numpy()
        found = decode_peaks(heat, sigma=sigma, most=1)
        assert found.scores[0] == pytest.approx(1, abs=0.01)
        errors.append(found.points[0] - at)
        spreads.append(np.diag(found.covariance[0]))
    assert np.abs(errors).max() < 0.01
    np.testing.assert_allclose(np.mean(spreads, axis=0), np.square(sigma), rtol=0.12)


@pytest.mark.parametrize("corner", [(0, 0, 0), (15, 27, 29), (0.3, 14, 29.2)])
def test_a_point_at_the_edge_of_a_volume_keeps_its_score(corner):
    heat = gaussian_maps(torch.tensor([[0, *corner]]), 1, SIZE, sigma=2.0).numpy()
    found = decode_peaks(heat, sigma=2.0, most=1)
    assert found.points[0] == pytest.approx(corner, abs=0.05) and found.scores[0] > 0.95


def test_a_volume_of_one_slice_has_its_points_in_it():
    heat = gaussian_maps(torch.tensor([[0, 0, 12.3, 9.6]]), 1, (1, 28, 30), sigma=2.0).numpy()
    assert decode_peaks(heat, sigma=2.0, most=1).points[0] == pytest.approx([0, 12.3, 9.6], abs=0.3)


def test_hidden_is_read_where_the_point_is():
    points = torch.tensor([[0, 10.0, 12.0, HIDDEN], [0, 40.0, 50.0, SEEN]])
    heat = gaussian_maps(points, 1, (32, 32), sigma=2.0, stride=2).numpy()
    hidden = np.zeros((1, 32, 32), np.float32)
    hidden[0, :16] = 0.9
    found = decode_peaks(heat, sigma=2.0, most=2, stride=2, hidden=hidden)
    by_row = dict(zip(found.points[:, 0].round().tolist(), found.visible.tolist(), strict=True))
    assert by_row == {10.0: HIDDEN, 40.0: SEEN}
    assert decode_peaks(heat, sigma=2.0, most=2, stride=2).visible.tolist() == [SEEN, SEEN]


def test_losses_are_least_at_the_truth():
    points = [torch.tensor([[0, 5.0, 9.0, 8.0, HIDDEN], [1, 9.0, 20.0, 22.0, SEEN]])]
    truth = gaussian_maps(points[0], 2, SIZE, sigma=2.0).clamp(1e-6, 1 - 1e-6)
    hidden = torch.stack([torch.full(SIZE, 12.0), torch.full(SIZE, -12.0)])
    right = torch.cat([truth.logit(), hidden])[None]
    losses = heat_losses(right, points, [2.0], 2)
    assert losses["heat"] == pytest.approx(0, abs=1e-3) and losses["hidden"] == pytest.approx(0, abs=1e-3)
    wrong = heat_losses(torch.cat([truth.logit(), -hidden])[None], points, [2.0], 2)
    assert wrong["hidden"] == pytest.approx(12, abs=0.01)
    shifted = heat_losses(torch.roll(right, 3, dims=3), points, [2.0], 2)
    assert shifted["heat"] > 0.5
    assert set(heat_losses(right[:, :2], points, [2.0], 2)) == {"heat"}
    assert heat_losses(right, [points[0][:0]], [2.0], 2)["hidden"] == 0
