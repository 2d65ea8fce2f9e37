"""Maps as sure as they are right: the temperature that is fitted, what it changes, and when it is left alone."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import ndimage
from scipy.special import expit, logit
from sklearn.linear_model import LogisticRegression
from small import SMALL

from clearmargin.core import Code, Grid, Image, InstanceSet, LabelClass, LabelMap, Mask
from clearmargin.metrics.calibration import Reliability
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.segmenter import View
from clearmargin.networks import build_network, network_config
from clearmargin.networks.foreground import divide_map_logits, foreground_loss
from clearmargin.networks.network import Targets
from clearmargin.sampling.samples import augmented
from clearmargin.training.map_scaling import ClassCounts, mean_probabilities, scale_maps
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

SIZE = 64
CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap(
    tuple(LabelClass(id=k, name=name, type=CODE, category=CODE) for k, name in ((1, "disc"), (2, "none")))
)
SPACE = {
    "network": "mask_rcnn_3d", "patch": (16, 32, 32), "levels": 3, "filters": 8, "width": 16,
    "anchors": [[6, 6, 6], [11, 11, 11]], "mask_size": 6, "mask_channels": 16, "box_features": 64,
    "proposals": 32, "box_samples": 32,
}  # fmt: skip


def picture(seed):
    """A disc in noise whose true radius differs from the one that is seen by up to 2 pixels."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:SIZE, :SIZE]
    apart = np.hypot(y - rng.uniform(26, 38), x - rng.uniform(26, 38))
    pixels = 0.3 + 0.4 * (apart < 16) + rng.normal(0, 0.02, (SIZE, SIZE))
    return pixels.clip(0, 1).astype(np.float32), apart < 16 + rng.uniform(-2, 2)


def read(seed):
    pixels, truth = picture(seed)
    grid = Grid.from_spacing((SIZE, SIZE), (0.5, 0.5))
    masks = (Mask.from_dense(truth),)
    return Image(pixels=np.repeat(pixels[None], 3, 0), grid=grid), InstanceSet(
        grid=grid, masks=masks, labels=np.array([1]), scores=np.ones(1, np.float32)
    )


DATASET, CASES = SimpleNamespace(read=read), tuple(range(100, 106))


@pytest.fixture(scope="module")
def network():
    """A Mask R-CNN that has learnt its maps alone, and is made to say them less surely than it knows."""
    torch.manual_seed(0)
    network = build_network(network_config(SMALL["mask_rcnn"].model), classes=2, channels=3, pretrained=True)
    optimiser = torch.optim.AdamW(network.foreground.parameters(), lr=1e-2)
    for step in range(120):
        pixels, truth = picture(step % 8)
        images = torch.from_numpy(pixels).expand(1, 3, -1, -1)
        targets = Targets(
            boxes=torch.zeros(1, 4), labels=torch.tensor([1]), masks=torch.from_numpy(truth[None]).byte()
        )
        with torch.no_grad():
            maps = network._levels(network._features(images))
        optimiser.zero_grad()
        foreground_loss(network.foreground, images, maps, [targets]).backward()
        optimiser.step()
    divide_map_logits(network, [4.0, 4.0])
    return network


def write(folder, network, **card):
    save_model(
        folder,
        ModelCard(
            software="clearmargin test",
            model=network_config(SMALL["mask_rcnn"].model).model_dump(mode="json"),
            image=ImageSettings(intensity=Window(low=0, high=1)),
            augment=AugmentSettings(flip_y=False, flip_x=False, rotate90=False, scale=1.0),
            classes=label_map_entries(LABELS),
            show_in_tracking=True,
            **card,
        ),
        network.state_dict(),
    )
    return folder


def logits_of(folder, case):
    """The disc's logits of a picture, as a model folder gives them."""
    segmenter = load_segmenter(folder, device="cpu")
    (look,) = segmenter.looks(segmenter.prepared(read(case)[0]), View(), maps=True)
    ((plane,),) = ([p[0] for p in look.foreground()],)
    return logit(plane.astype(np.float64))


def near_edges(folder):
    """Logits and truth of the pixels within two pixels of the true edge, counted apart from our own code."""
    said, true = [], []
    for case in CASES:
        truth = read(case)[1].masks[0].dense()
        apart = np.where(truth, ndimage.distance_transform_edt(truth), ndimage.distance_transform_edt(~truth))
        said.append(logits_of(folder, case)[apart <= 2])
        true.append(truth[apart <= 2])
    return np.concatenate(said), np.concatenate(true)


def test_the_temperature_is_the_one_that_scikit_learn_fits(network, tmp_path):
    folder = write(tmp_path / "model", network)
    said, true = near_edges(folder)
    theirs = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(said[:, None], true).coef_[0, 0]
    temperatures = scale_maps(folder, DATASET, CASES)
    assert set(temperatures) == {"disc"}  # nothing of the other class is there to fit on
    assert temperatures["disc"] == pytest.approx(1 / theirs, rel=0.01)
    after, _ = near_edges(folder)
    np.testing.assert_allclose(after, said / temperatures["disc"], rtol=1e-3, atol=1e-3)
    assert np.mean(np.logaddexp(0, after) - true * after) < np.mean(np.logaddexp(0, said) - true * said)


def test_a_known_error_is_undone(network, tmp_path):
    """Logits half as large as another model's get a temperature half as large, and give one map."""
    plain = write(tmp_path / "plain", network)
    vague = write(tmp_path / "vague", network)
    changed = load_segmenter(vague, device="cpu").network
    divide_map_logits(changed, [2.0, 2.0])
    write(vague, changed)
    fitted = [scale_maps(folder, DATASET, CASES)["disc"] for folder in (plain, vague)]
    assert fitted[1] == pytest.approx(fitted[0] / 2, rel=0.02)
    one, other = (expit(logits_of(folder, CASES[0])) for folder in (plain, vague))
    np.testing.assert_allclose(one, other, atol=0.005)


def test_a_model_is_scaled_once_and_its_card_says_by_what(network, tmp_path):
    folder = write(tmp_path / "model", network)
    before = load_file(folder / "weights.safetensors")
    first = scale_maps(folder, DATASET, CASES)
    once = load_file(folder / "weights.safetensors")
    assert {k for k in once if not torch.equal(once[k], before[k])} == {
        "foreground.decide.weight",
        "foreground.decide.bias",
    }
    assert scale_maps(folder, DATASET, CASES) == first
    assert all(torch.equal(v, once[k]) for k, v in load_file(folder / "weights.safetensors").items())
    assert f"map_temperatures:\n  disc: {first['disc']}" in (folder / "model.yaml").read_text()


def test_a_model_folder_from_before_loads_and_has_its_maps_as_they_were(network, tmp_path):
    folder = write(tmp_path / "model", network)
    expected = logits_of(folder, CASES[0])
    text = (folder / "model.yaml").read_text()
    assert "map_temperatures: {}\n" in text
    (folder / "model.yaml").write_text(text.replace("map_temperatures: {}\n", ""))
    np.testing.assert_array_equal(logits_of(folder, CASES[0]), expected)


@pytest.mark.parametrize("name", ["mask_rcnn", "yolact", "mask_rcnn_3d"])
def test_a_temperature_changes_the_maps_and_no_instance(name):
    torch.manual_seed(0)
    model, shape = (SPACE, (1, 16, 32, 32)) if name == "mask_rcnn_3d" else (SMALL[name].model, (3, 64, 64))
    network = build_network(network_config(model), classes=2, channels=shape[0], pretrained=False)
    images = torch.rand(1, *shape)
    with torch.inference_mode():
        (before,) = network.detect(images, maps=True)
    divide_map_logits(network, [2.0, 0.5])
    with torch.inference_mode():
        (after,) = network.detect(images, maps=True)
    expected = torch.logit(before.foreground) / torch.tensor([2.0, 0.5]).reshape(
        -1, *(1,) * (before.foreground.ndim - 1)
    )
    torch.testing.assert_close(torch.logit(after.foreground), expected, rtol=1e-3, atol=1e-4)
    for column in ("boxes", "labels", "scores"):
        assert torch.equal(getattr(before, column), getattr(after, column))
    assert all(torch.equal(one, other) for one, other in zip(before.masks, after.masks, strict=True))


def test_a_network_whose_instances_come_from_its_maps_is_left_alone(tmp_path):
    network = build_network(
        network_config(SMALL["semantic_cc"].model), classes=2, channels=3, pretrained=False
    )
    folder = write(tmp_path / "model", network)
    card = (folder / "model.yaml").read_text()
    (folder / "model.yaml").write_text(
        card.replace(
            card[card.index("model:") : card.index("image:")],
            "model: {network: semantic_cc, filters: 8, levels: 4}\n",
        )
    )
    weights = (folder / "weights.safetensors").read_bytes()
    assert scale_maps(folder, DATASET, CASES) == {}
    assert (folder / "weights.safetensors").read_bytes() == weights


def counts(*events):
    """Reliability of rows of probability, share that came true, and number."""
    whole = Reliability.zeros()
    for p, share, n in events:
        whole.add(np.full(n, p), np.arange(n) < round(share * n))
    return whole


def test_the_temperature_of_two_probabilities_in_closed_form():
    """Of what is said with expit(+-2), expit(+-1) comes true: T is 2."""
    band = counts((expit(2.0), expit(1.0), 50_000), (expit(-2.0), expit(-1.0), 50_000))
    assert ClassCounts(every=band, band=band).temperature() == pytest.approx(2, rel=1e-3)


def test_what_is_best_near_the_edge_is_left_out_where_the_whole_image_is_worse_for_it():
    """Said is 0.05 everywhere: half of it is true near the edge, and nothing else."""
    band = counts((0.05, 0.4, 10_000))
    every = counts((0.05, 0.4, 10_000), (0.05, 0.0, 190_000))
    assert ClassCounts(every=band, band=band).temperature() > 5
    assert ClassCounts(every=every, band=band).temperature() == 1


def test_a_temperature_goes_as_far_as_the_whole_image_allows():
    """Near the edge T is 4; elsewhere it is 1. It ends where all together are as likely as with 1."""
    near = [(expit(2.0), expit(0.5), 50_000), (expit(-2.0), expit(-0.5), 50_000)]
    far = (expit(-6.0), expit(-6.0), 400_000)
    band, every = counts(*near), counts(*near, far)
    assert ClassCounts(every=band, band=band).temperature() == pytest.approx(4, rel=1e-3)
    ended = ClassCounts(every=every, band=band).temperature()

    def nll(t):
        return -sum(
            n * (s * np.log(expit(logit(p) / t)) + (1 - s) * np.log(expit(-logit(p) / t)))
            for p, s, n in (*near, far)
        )

    assert 1.5 < ended < 4
    assert nll(ended) == pytest.approx(nll(1.0), rel=1e-3)


def test_few_pixels_and_one_outcome_fit_nothing():
    few = counts((expit(2.0), expit(1.0), 400), (expit(-2.0), expit(-1.0), 400))
    never = counts((0.3, 0.0, 5000))
    assert ClassCounts(every=few, band=few).temperature() == 1
    assert ClassCounts(every=never, band=never).temperature() == 1


def test_the_mean_is_over_the_views(network, tmp_path):
    """A view and its mirror image, each by itself and both together."""
    segmenter = load_segmenter(write(tmp_path / "model", network), device="cpu")
    image = read(0)[0]
    views = View(), View(flip=(False, True))
    alone = [next(mean_probabilities(augmented(segmenter, (view,)), image)) for view in views]
    (together,) = mean_probabilities(augmented(segmenter, views), image)
    np.testing.assert_allclose(together, (alone[0] + alone[1]) / 2, atol=1e-6)
    assert np.abs(alone[0] - alone[1]).max() > 0.001
