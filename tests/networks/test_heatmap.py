"""Landmarks as heat maps: exact decoding, and learning by heart."""

import numpy as np
import pytest
import torch
from landmarks import TYPES, draw_centres, picture

from clearmargin.core import Grid, Image, LabelClass, LabelMap, Provenance
from clearmargin.errors import ConfigError, InputError
from clearmargin.models.segmenter import PlaneSegmenter, View
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets
from clearmargin.networks.peaks import decode_peaks, gaussian_maps
from clearmargin.transforms.settings import ImageSettings, Window

MODEL = {"network": "heatmap", "fpn_channels": 16, "separable": True, "sigma": 3.0}
SHAPE = (64, 96)
LABELS = LabelMap((LabelClass(id=1, name="disc"),), TYPES)


@pytest.mark.parametrize("sigma", [1.5, 2.0, 4.0])
def test_gaussians_are_decoded_where_they_are(sigma):
    rng = np.random.default_rng(0)
    truth = rng.uniform(24, 100, (40, 2))
    errors = []
    for y, x in truth:
        heat = gaussian_maps(torch.tensor([[0, y, x]]), 1, (64, 64), sigma=sigma, stride=2).numpy()
        found = decode_peaks(heat, sigma=sigma, most=1, stride=2)
        assert found.scores[0] == pytest.approx(1, abs=0.02)
        np.testing.assert_allclose(found.covariance[0], np.eye(2) * (2 * sigma) ** 2, rtol=0.1, atol=0.2)
        errors.append(found.points[0] - (y, x))
    assert np.abs(errors).max() < 0.01


def test_several_points_of_a_type_are_several_peaks_best_first():
    points = torch.tensor([[0, 20.0, 20], [0, 20, 80], [1, 60, 60]])
    heat = gaussian_maps(points, 3, (64, 64), sigma=2, stride=2).numpy()
    heat[0] *= np.where(np.arange(64) < 25, 0.6, 1.0)[None]
    found = decode_peaks(heat, sigma=2, most=2, stride=2)
    assert found.types.tolist() in ([0, 1, 0], [1, 0, 0])
    assert found.points[found.types == 0].round(3).tolist() == [[20, 80], [20, 20]]
    assert len(decode_peaks(heat, sigma=2, most=1, stride=2).types) == 2
    assert len(decode_peaks(np.zeros((3, 64, 64), np.float32), sigma=2, most=2, stride=2).types) == 0


def test_doubt_between_two_places_is_seen_in_score_and_covariance():
    one = gaussian_maps(torch.tensor([[0, 60.0, 57]]), 1, (64, 64), sigma=2, stride=2).numpy()
    two = gaussian_maps(torch.tensor([[0, 60.0, 63]]), 1, (64, 64), sigma=2, stride=2).numpy()
    found = decode_peaks((one + two) / 2, sigma=2, most=1, stride=2)
    assert found.points[0] == pytest.approx([60, 60], abs=0.6)
    spread = found.covariance[0]
    assert spread[1, 1] > spread[0, 0] + 5 and found.scores[0] > 0.9


def test_a_point_at_the_edge_stays_in_the_image():
    heat = gaussian_maps(torch.tensor([[0, 0.0, 127]]), 1, (64, 64), sigma=2, stride=2).numpy()
    found = decode_peaks(heat, sigma=2, most=1, stride=2)
    assert found.points[0] == pytest.approx([0, 127], abs=0.1)


def scenes(rng, count):
    """Pictures and their points as targets."""
    out = []
    for _ in range(count):
        centres = draw_centres(rng, SHAPE, margin=12, apart=20)
        out.append((picture(centres, SHAPE, rng=rng), centres))
    return out


def targets_of(centres, shape=SHAPE):
    points = torch.tensor([[k, y, x, 2] for k, (y, x) in centres], dtype=torch.float32)
    nothing = torch.zeros((0, *shape), dtype=torch.uint8)
    return Targets.from_masks(nothing, torch.zeros(0, dtype=torch.int64), points)


def learnt(data, *, steps, batch, rate=3e-3):
    torch.manual_seed(0)
    network = build_network(network_config(MODEL), classes=3, channels=3, pretrained=True)
    optimiser = torch.optim.AdamW(network.parameters(), lr=rate)
    rng = np.random.default_rng(1)
    losses = []
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = rate * min(1, (step + 1) / 10, (steps - step) / (steps / 2))
        picks = rng.permutation(len(data))[:batch]
        images = torch.stack([torch.from_numpy(data[i][0]).float() / 255 for i in picks])
        loss = sum(network.losses(images, [targets_of(data[i][1]) for i in picks]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return network, losses


def segmenter_of(network, **choice):
    return PlaneSegmenter(
        network=network,
        image=ImageSettings(scale=1.0, crop=SHAPE, intensity=Window(kind="window", low=0, high=255)),
        label_map=LABELS,
        provenance=Provenance(model="heatmap", weights_sha256="", config_sha256="", software="test"),
        device=torch.device("cpu"),
        choice=PredictionSettings(**choice),
    )


@pytest.fixture(scope="module")
def two():
    data = scenes(np.random.default_rng(5), 2)
    network, losses = learnt(data, steps=50, batch=2, rate=5e-3)
    return data, network, losses


@pytest.mark.slow
def test_two_pictures_are_learnt_by_heart(two):
    data, network, losses = two
    assert losses[-1] < 0.2 * losses[0]
    segmenter = segmenter_of(network)
    for pixels, centres in data:
        found = segmenter(Image(pixels=pixels, grid=Grid.from_spacing(SHAPE))).instances.landmarks
        assert found.count == len(centres)
        for kind, at in centres:
            (row,) = np.flatnonzero(found.visible[:, kind])
            assert np.linalg.norm(found.points[row, kind] - at) < 2


@pytest.mark.slow
def test_a_mirrored_view_swaps_left_and_right_back(two):
    data, network, _ = two
    segmenter = segmenter_of(network)
    image = Image(pixels=np.ascontiguousarray(data[0][0][:, :, ::-1]), grid=Grid.from_spacing(SHAPE))
    (look,) = segmenter.looks(segmenter.prepared(image), View(flip=(False, True)))
    found = look.instances(segmenter.suppression).landmarks.at_least(0.5)
    # the network sees the picture as it learnt it; in the mirrored image its left one is a right one
    centres = dict(data[0][1])
    (row,) = np.flatnonzero(found.visible[:, 1])
    assert found.points[row, 1] == pytest.approx([centres[0][0], SHAPE[1] - 1 - centres[0][1]], abs=2)


def test_what_landmarks_cannot_go_through_is_refused():
    network = build_network(network_config(MODEL), classes=3, channels=3, pretrained=False)
    volume = Image(pixels=np.zeros((1, 4, *SHAPE), np.uint8), grid=Grid.from_spacing((4, *SHAPE)))
    with pytest.raises(InputError, match="the input is a volume"):
        segmenter_of(network)(volume)
    with pytest.raises(ConfigError, match="at least one type"):
        build_network(network_config(MODEL), classes=0, channels=3, pretrained=False)
