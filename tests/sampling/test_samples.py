"""Samples of a prediction: views that are undone exactly, members that disagree, and what cannot be sampled."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from bright import LABELS, bright_segmenter

from clearmargin.core import Grid, Image, LabelClass, LabelMap
from clearmargin.errors import ConfigError, InputError
from clearmargin.models.files import snapshots
from clearmargin.models.folder import ModelCard, label_map_entries, save_model, save_snapshot
from clearmargin.models.segmenter import PlaneSegmenter, View
from clearmargin.networks import build_network, network_config
from clearmargin.sampling.samples import (
    Member,
    SampledSegmenter,
    augmented,
    open_segmenter,
    seen_by,
    tta_views,
)
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

_CODE = LABELS.classes[0].type
TWO = LabelMap((*LABELS.classes, LabelClass(id=2, name="other", type=_CODE, category=_CODE)))


@pytest.mark.parametrize("shape", [(100, 120), (3, 100, 120)])
def test_views_come_back_to_the_same_place(shape):
    pixels = np.zeros((1, *shape), np.float32)
    pixels[..., 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing(shape, (1.0,) * len(shape)))
    found = augmented(bright_segmenter())(image)
    inside = np.zeros(shape, bool)
    inside[..., 22:58, 72:108] = True
    outside = np.ones(shape, bool)
    outside[..., 18:62, 68:112] = False
    # the score of what was found, and nothing of the views' own blur
    np.testing.assert_allclose(found.maps["foreground"][inside], 0.875, atol=1e-3)
    assert found.maps["foreground"][outside].max() < 0.01
    certain = -(0.875 * np.log2(0.875) + 0.125 * np.log2(0.125))
    np.testing.assert_allclose(found.maps["entropy"][inside], certain, atol=5e-3)
    assert found.maps["entropy"][outside].max() < 0.1
    np.testing.assert_array_equal(found.instances.masks[0].dense(), pixels[0] > 0)
    assert found.instances.uncertainty["mean_entropy"].shape == (1,)


def test_mirrored_views_alone_agree_to_the_pixel():
    pixels = np.zeros((1, 100, 120), np.float32)
    pixels[0, 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing((100, 120)))
    found = augmented(bright_segmenter(), tta_views(AugmentSettings(scale=1)))(image)
    np.testing.assert_allclose(found.maps["foreground"] >= 0.5, pixels[0] > 0)
    np.testing.assert_allclose(found.maps["foreground"][30:50, 80:100], 0.875, atol=1e-5)


def test_views_keep_to_what_training_varied():
    still = tta_views(AugmentSettings(flip_x=False, flip_y=False, scale=1.0))
    assert [(v.flip, v.zoom) for v in still] == [((False, False), 1.0)]
    upright = tta_views(AugmentSettings(flip_y=False, scale=1.1))
    assert {v.flip for v in upright} == {(False, False), (False, True)}
    assert max(v.zoom for v in upright) == pytest.approx(1.1) and min(
        v.zoom for v in upright
    ) == pytest.approx(1 / 1.1)
    assert len(tta_views(AugmentSettings(scale=2.0))) == 8 and upright[0].zoom == 1.0


def test_what_views_see_alike_has_no_spread():
    pixels = np.zeros((1, 100, 120), np.float32)
    pixels[0, 20:60, 70:110] = 1
    image = Image(pixels=pixels, grid=Grid.from_spacing((100, 120), (0.5, 0.5)))
    found = augmented(bright_segmenter(), tta_views(AugmentSettings(scale=1)))(image)
    columns = {name: float(values[0]) for name, values in found.instances.uncertainty.items()}
    assert columns["pairwise_dice"] == columns["found_by"] == columns["predicted_nsd"] == 1
    assert columns["edge_sd_mm"] == 0 and columns["least_area_mm2"] == columns["most_area_mm2"] == 400
    assert found.instances.scores[0] == pytest.approx(0.875)
    np.testing.assert_allclose(found.maps["variance"], 0, atol=1e-9)
    (edge,) = found.edges
    assert len(edge.points) == 4 * 40 - 4 and (edge.sigma == 0).all()


def moved(by):
    """A network that sees what is bright ``by`` columns to the right of where it is."""
    plain = bright_segmenter()

    class Moved(type(plain.network)):
        def detect(self, images, *, maps=False):
            return super().detect(torch.roll(images, by, dims=3), maps=maps)

    return replace(plain, network=Moved())


def blind():
    """A network that finds nothing."""
    return replace(bright_segmenter(), image=ImageSettings(intensity=Window(low=0, high=100)))


def of(*segmenters):
    members = tuple(Member(segmenter=segmenter) for segmenter in segmenters)
    return SampledSegmenter(members=members, mode="ensemble", choice=segmenters[0].choice)


def square(shape=(100, 120)):
    pixels = np.zeros((1, *shape), np.float32)
    pixels[..., 20:60, 50:90] = 1
    return Image(
        pixels=pixels, grid=Grid.from_spacing(shape, (1.0, 0.5) if len(shape) == 2 else (2.0, 1.0, 0.5))
    )


@pytest.mark.parametrize("shape", [(100, 120), (3, 100, 120)])
def test_members_that_disagree_on_the_place_are_doubtful_at_two_edges(shape):
    image = square(shape)
    found = of(moved(-4), moved(0), moved(4))(image)
    (mask,) = found.instances.masks
    np.testing.assert_array_equal(mask.dense(), image.pixels[0] > 0)  # the middle one has the majority
    points, sigma = found.edges[0].points, found.edges[0].sigma
    y, x = points[:, -2], points[:, -1]
    right = (x == 89) & (abs(y - 40) < 10)
    above = (y == 20) & (abs(x - 70) < 10)
    if len(shape) == 3:  # of the middle slice: no network looks beyond the volume
        right, above = right & (points[:, 0] == 1), above & (points[:, 0] == 1)
    np.testing.assert_allclose(sigma[right], 2.0)  # 4 columns of 0.5 mm each way
    np.testing.assert_allclose(sigma[above], 0.0)
    assert found.maps["mutual_information"][..., 40, 88].max() > 0.3
    assert found.maps["mutual_information"][..., 40, 70].max() < 1e-6


def test_an_object_that_some_members_miss_keeps_its_lower_probability():
    found = of(moved(0), moved(0), blind())(square())
    assert found.instances.scores[0] == pytest.approx(2 * 0.875 / 3)
    assert found.instances.uncertainty["found_by"][0] == pytest.approx(2 / 3)
    few = of(moved(0), blind(), blind())
    assert len(few(square()).instances) == 0  # 0.29 is under the threshold
    assert few.with_threshold(0.0)(square()).instances.scores[0] == pytest.approx(0.875 / 3)
    nothing = of(blind(), blind())(square())
    assert len(nothing.instances) == 0 and nothing.edges == () and nothing.maps["entropy"].max() == 0


def test_one_member_says_what_it_would_have_said_alone():
    found, alone = of(moved(0))(square()), moved(0)(square())
    np.testing.assert_array_equal(found.instances.masks[0].dense(), alone.instances.masks[0].dense())
    assert found.instances.scores[0] == alone.instances.scores[0]
    assert found.instances.uncertainty["pairwise_dice"][0] == 1 and found.maps["variance"].max() == 0


def test_members_that_take_an_image_alike_share_its_preparation(monkeypatch):
    prepared = []
    plain = PlaneSegmenter.prepared
    monkeypatch.setattr(
        PlaneSegmenter, "prepared", lambda self, image: prepared.append(1) or plain(self, image)
    )
    augmented(bright_segmenter())(square())
    assert len(prepared) == 1
    of(moved(0), moved(4), blind())(square())
    assert len(prepared) == 3


def test_members_have_one_label_map():
    other = replace(bright_segmenter(), label_map=TWO)
    with pytest.raises(ConfigError, match="one label map"):
        of(bright_segmenter(), other)


def test_the_mode_and_the_members_are_part_of_what_made_it():
    one, two = of(moved(0)).provenance, augmented(moved(0)).provenance
    assert one.config_sha256 != two.config_sha256
    assert of(moved(0), moved(0)).provenance.weights_sha256 != one.weights_sha256


SEMANTIC = {"network": "semantic_cc", "filters": 8, "levels": 3}


def model_folder(folder, model, seeds=(0,), **card):
    """Write a model folder with random weights, and as many snapshots as there are seeds."""
    for number, seed in enumerate(seeds, 1):
        torch.manual_seed(seed)
        config = network_config(model)
        network = build_network(config, classes=1, channels=3, pretrained=False)
        for parameter in network.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        described = ModelCard(
            software="clearmargin test",
            model=config.model_dump(mode="json"),
            image=ImageSettings(intensity=Window(low=0, high=1)),
            augment=AugmentSettings(),
            classes=label_map_entries(LABELS),
            show_in_tracking=False,
            **card,
        )
        save_model(folder, described, network.state_dict())
        save_snapshot(folder, number, network.state_dict(), keep=9)
    return folder


def test_checkpoints_of_one_training_are_an_ensemble(tmp_path):
    model = model_folder(tmp_path / "m", SEMANTIC, seeds=(1, 2, 3))
    found = open_segmenter(model, "checkpoints")
    assert len({m.segmenter.provenance.weights_sha256 for m in found.members}) == 3
    prediction = found.with_threshold(0)(square())
    assert prediction.maps["variance"].max() > 0
    with pytest.raises(ConfigError, match=r"final weights alone"):
        open_segmenter(model, "checkpoints", runtime="onnx")
    alone = model_folder(tmp_path / "alone", SEMANTIC)
    with pytest.raises(ConfigError, match=r"keeps the weights of 1 epoch\(s\).*training.snapshots"):
        open_segmenter(alone, "checkpoints")


def test_an_ensemble_is_a_list_of_model_folders(tmp_path):
    for seed in (1, 2):
        model_folder(tmp_path / f"seed-{seed}" / "model", SEMANTIC, (seed,), trained_on=(f"u{seed}", "u3"))
    (tmp_path / "ensemble.yaml").write_text("members: [seed-1/model, seed-2/model]\n")
    found = open_segmenter(tmp_path, "ensemble")
    assert len(found.members) == 2 and found.mode == "ensemble"
    seen = seen_by(tmp_path)
    assert seen.groups == {"u1", "u2", "u3"} and not seen.contents  # one member does not record them
    with pytest.raises(ConfigError, match="asks all of its members"):
        open_segmenter(tmp_path, "none")
    with pytest.raises(ConfigError, match="is not an ensemble"):
        open_segmenter(tmp_path / "seed-1" / "model", "ensemble")
    (tmp_path / "ensemble.yaml").write_text("members: 3\n")
    with pytest.raises(InputError, match="lists no members"):
        open_segmenter(tmp_path, "ensemble")


def test_a_model_that_does_not_say_what_it_was_trained_on_is_refused(tmp_path):
    with pytest.raises(InputError, match="does not say which groups"):
        seen_by(model_folder(tmp_path / "m", SEMANTIC))


def test_dropout_samples_where_there_is_dropout_and_is_refused_elsewhere(tmp_path):
    with pytest.raises(ConfigError, match=r"trained without dropout.*checkpoints or tta"):
        open_segmenter(model_folder(tmp_path / "plain", SEMANTIC), "dropout")
    model = model_folder(tmp_path / "dropped", SEMANTIC | {"dropout": 0.3})
    found = open_segmenter(model, "dropout").with_threshold(0)
    first, second = found(square()), found(square())
    assert first.maps["mutual_information"].max() > 0
    np.testing.assert_array_equal(first.maps["variance"], second.maps["variance"])  # the same draws
    # without sampling the network has no dropout, whatever its mode
    plain = open_segmenter(model, "none").with_threshold(0)
    before = plain(square()).instances.scores
    plain.network.train()
    np.testing.assert_array_equal(plain(square()).instances.scores, before)


@pytest.mark.parametrize(("keep", "least"), [(1, 0.0), (3, 0.5), (5, 0.7), (8, 0.75)])
def test_snapshots_are_spread_over_the_last_half(tmp_path, keep, least):
    """Whenever training ends, they reach back over most of its last half, and not just over the last epochs."""
    weights = {"w": torch.zeros(1)}
    for epoch in range(1, 61):
        save_snapshot(tmp_path, epoch, weights, keep=keep)
        at = [int(path.stem[6:]) for path in snapshots(tmp_path)]
        assert len(at) == min(epoch, keep) and at[-1] == epoch
        if epoch >= 4 * keep:
            assert least * epoch / 2 <= epoch - at[0] <= 0.6 * epoch
            if keep > 3:
                inner = np.diff(at[:-1])  # the newest may lie close behind
                assert inner.max() <= 2.5 * inner.min()


def test_a_network_of_volumes_is_sampled_whole(tmp_path):
    model = {"network": "semantic_cc_3d", "filters": 8, "levels": 3, "patch": [8, 16, 16], "smallest": 1}
    folder = model_folder(tmp_path / "m", model, seeds=(1, 2))
    image = square((6, 100, 120))
    found = open_segmenter(folder, "checkpoints").with_threshold(0)(image)
    members = [open_segmenter(folder, "checkpoints").members[k].segmenter.with_threshold(0) for k in (0, 1)]
    looks = [next(iter(m.looks(m.prepared(image), View()))) for m in members]
    looks = [np.stack([plane[0] for plane in look.foreground()]) for look in looks]
    np.testing.assert_allclose(found.maps["foreground"], (looks[0] + looks[1]) / 2, atol=1e-5)
    np.testing.assert_allclose(found.maps["variance"], np.var(looks, axis=0), rtol=2e-3, atol=1e-6)
    # a mirrored view comes back to where it was: on a mirrored image it is the mirrored prediction
    (segmenter, ready) = members[0], members[0].prepared(image)
    turned = replace(image, pixels=image.pixels[..., ::-1].copy())
    here = np.stack(
        list(next(iter(segmenter.looks(ready, View(flip=(False, True)), maps=True))).foreground())
    )
    there = np.stack(list(next(iter(segmenter.looks(segmenter.prepared(turned), View()))).foreground()))
    np.testing.assert_allclose(here, there[..., ::-1], atol=1e-4)
