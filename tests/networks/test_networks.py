"""What every network promises, whatever its kind."""

import numpy as np
import pytest
import torch
from small import SMALL, no_targets, scene

from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Provenance
from clearmargin.errors import ConfigError, InputError
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.placing import place_view
from clearmargin.models.segmenter import PlaneSegmenter, View
from clearmargin.networks import NETWORKS, build_network, config_class, network_config
from clearmargin.sampling.maps import entropy
from clearmargin.sampling.samples import open_segmenter
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, VolumeView, Window

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CODE),))
EVERY = pytest.mark.parametrize("name", list(SMALL))


def build(name, *, classes=1, channels=3):
    torch.manual_seed(0)
    config = network_config(SMALL[name].model)
    return build_network(config, classes=classes, channels=channels, pretrained=True)


@pytest.fixture(scope="module")
def learned():
    """Each network after it has seen one picture until it knows it, and its losses on the way."""
    done = {}

    def learn(name):
        if name not in done:
            network, (image, targets) = build(name), scene()
            optimiser = torch.optim.AdamW(network.parameters(), lr=SMALL[name].learning_rate)
            totals = []
            for step in range(SMALL[name].steps):
                torch.manual_seed(step)
                loss = sum(network.losses(image[None], [targets]).values())
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                totals.append(loss.item())
            done[name] = network, totals
        return done[name]

    return learn


def test_every_network_is_tested_here():
    """Networks of volumes have tests of their own (``test_semantic_cc_3d.py``)."""
    assert set(SMALL) == {name for name in NETWORKS if not issubclass(config_class(name), VolumeView)}


@EVERY
def test_the_loss_falls_on_one_phantom(name, learned):
    """Wide on purpose: a few steps end at 0.004 to 0.10 of the first loss, by vector unit and number of threads."""
    _, losses = learned(name)
    assert min(losses[-5:]) < 0.3 * losses[0]


@EVERY
def test_what_was_learned_is_detected(name, learned, tmp_path):
    """Through a model folder and back. Where a mask lies is tested with known outputs, network by network."""
    card = ModelCard(
        software="clearmargin test",
        model=network_config(SMALL[name].model).model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=1), crop=(128, 128)),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
    )
    save_model(tmp_path / "model", card, learned(name)[0].state_dict())
    segmenter = load_segmenter(tmp_path / "model", device="cpu")
    image, targets = scene()
    detections = segmenter.with_threshold(0.1)(
        Image(pixels=image.numpy(), grid=Grid.from_spacing((128, 128), (0.5, 0.5)))
    ).instances
    assert len(detections) >= 2
    for truth in targets.masks.numpy().astype(bool):
        assert max((m.dense() & truth).sum() / (m.dense() | truth).sum() for m in detections.masks) > 0.5


@EVERY
def test_detections_are_ranked_and_whole(name, learned):
    network, _ = learned(name)
    with torch.inference_mode():
        (found,) = network.detect(scene()[0][None])
    n = len(found.scores)
    assert n >= 2
    assert found.boxes.shape == found.regions.shape == (n, 4)
    assert len(found.masks) == len(found.labels) == n
    assert (
        found.scores[:-1] >= found.scores[1:]
    ).all() and 0 <= found.scores.min() <= found.scores.max() <= 1
    assert set(found.labels.tolist()) == {1}
    for mask in found.masks:
        assert mask.dtype == torch.float32 and mask.ndim == 2 and 0 <= mask.min() <= mask.max() <= 1


@EVERY
def test_what_a_call_returns_does_not_depend_on_the_mode(name, learned):
    network, _ = learned(name)
    image, targets = scene()
    seen = []
    for training in (True, False):
        network.train(training)
        torch.manual_seed(0)
        losses = network.losses(image[None], [targets])
        with torch.inference_mode():
            (found,) = network.detect(image[None])
        seen.append((losses, found))
    (first, found), (second, again) = seen
    assert first.keys() == second.keys()
    for part in first:
        torch.testing.assert_close(first[part], second[part])
    torch.testing.assert_close(found.scores, again.scores)


@EVERY
def test_pictures_without_instances_teach_the_background(name):
    network = build(name)
    image, targets = scene()
    pair = image[None].repeat(2, 1, 1, 1)
    for wanted in ([no_targets(), no_targets()], [no_targets(), targets]):
        losses = network.losses(pair, wanted)
        assert all(value.ndim == 0 and torch.isfinite(value) for value in losses.values())
        sum(losses.values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in network.parameters())


@EVERY
def test_a_picture_without_anything_gives_detections_of_equal_columns(name):
    """Nothing learned, nothing there: whatever is returned has columns of equal length."""
    with torch.inference_mode():
        found = build(name).detect(torch.zeros(2, 3, 64, 96))
    assert len(found) == 2
    for one in found:
        assert len(one.masks) == len(one.boxes) == len(one.labels) == len(one.scores) == len(one.regions)


@EVERY
def test_other_channels_and_several_classes(name):
    network = build(name, classes=3, channels=5)
    _, targets = scene()
    losses = network.losses(torch.rand(1, 5, 128, 128), [targets])
    assert all(torch.isfinite(value) for value in losses.values())


@EVERY
def test_a_network_of_no_class_is_refused(name):
    with pytest.raises(ConfigError, match="at least one class"):
        build(name, classes=0)


@EVERY
def test_unknown_options_are_named(name):
    with pytest.raises(ConfigError, match="score_treshold: unknown"):
        network_config(SMALL[name].model | {"score_treshold": 0.3})


@EVERY
def test_weights_of_another_number_of_classes_are_refused(name, learned, tmp_path):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(SMALL[name].model).model_dump(mode="json"),
        image=ImageSettings(),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
    )
    save_model(tmp_path / "model", card, build(name, classes=4).state_dict())
    with pytest.raises(InputError, match="do not fit its configuration"):
        load_segmenter(tmp_path / "model")


def test_weights_that_are_not_finite_are_refused(tmp_path):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(SMALL["semantic_cc"].model).model_dump(mode="json"),
        image=ImageSettings(),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
    )
    state = build("semantic_cc").state_dict()
    name = next(k for k, v in state.items() if v.is_floating_point() and v.numel() > 3)
    state[name].view(-1)[:2] = float("nan")
    save_model(tmp_path / "model", card, state)
    with pytest.raises(InputError, match="2 of the weights in 'model' are not finite"):
        load_segmenter(tmp_path / "model")


@EVERY
def test_the_parts_that_a_runtime_can_compute_are_there(name):
    network = build(name)
    for part in network.parts:
        assert any(True for _ in network.get_submodule(part).parameters())


@pytest.mark.parametrize("name", ["mask_rcnn", "yolact", "solov2"])
def test_separable_convolutions_of_a_pyramid_learn(name):
    network = build_network(
        network_config(SMALL[name].model | {"separable": True}), classes=1, channels=3, pretrained=True
    )
    width = network.config.fpn_channels
    depthwise = [p for p in network.pyramid.fpn.parameters() if p.shape == (width, 1, 3, 3)]
    assert len(depthwise) == len(network.pyramid.fpn.layer_blocks)
    image, targets = scene()
    sum(network.losses(image[None], [targets]).values()).backward()
    # a map that no object lies on may learn nothing
    assert sum(bool(p.grad.abs().sum() > 0) for p in depthwise) >= 2


def halved(boxes):
    """Boxes ``(..., 4)`` that end in the middle of what they held."""
    middle = (boxes[..., 0] + boxes[..., 2]) / 2
    return torch.stack([boxes[..., 0], boxes[..., 1], middle, boxes[..., 3]], dim=-1)


@pytest.mark.parametrize("name", ["mask_rcnn", "yolact"])
def test_maps_go_on_where_a_box_ends(name, learned, monkeypatch):
    """Boxes end within objects: their masks stop there, and the maps have no step above their own noise."""
    network, _ = learned(name)
    coder, decode = (
        (network.roi_heads.box_coder, "decode") if name == "mask_rcnn" else (network.coder, "decode_single")
    )
    plain = getattr(coder, decode)
    monkeypatch.setattr(coder, decode, lambda codes, places: halved(plain(codes, places)))
    image, _ = scene()
    segmenter = PlaneSegmenter(
        network=network,
        image=ImageSettings(intensity=Window(low=0, high=1)),
        label_map=LABELS,
        provenance=Provenance(model=name, weights_sha256="0" * 64, config_sha256="1" * 64, software="test"),
        device=torch.device("cpu"),
    )
    picture = Image(pixels=image.numpy(), grid=Grid.from_spacing((128, 128), (0.5, 0.5)))
    (look,) = segmenter.looks(segmenter.prepared(picture), View(), maps=True)
    ((foreground,),) = look.foreground()
    masks = np.zeros((128, 128), np.float32)
    for index in np.flatnonzero(look.scores > 0.3):
        crop, (y, x) = look.placed(index)
        part = masks[y : y + crop.shape[0], x : x + crop.shape[1]]
        np.maximum(part, crop, out=part)
    uncertainty = entropy(foreground.astype(np.float64))
    interiors = [np.s_[28:52, 38:72], np.s_[78:102, 68:102]]  # 8 pixels from an edge, and more
    cuts = look.found.regions[look.found.scores > 0.3][:, 2].round().long().tolist()
    for interior, edges in zip(interiors, ((30, 80), (60, 110)), strict=True):
        first, last = interior[1].start, interior[1].stop
        within = sorted({cut for cut in cuts if first + 4 < cut < last - 4})
        assert within, f"no box of {cuts} ends within {edges}"
        steps = {
            key: _steps(values[interior])
            for key, values in (("p", foreground), ("h", uncertainty), ("m", masks))
        }
        at_cut = np.zeros(last - first - 3, bool)
        at_cut[[cut - 2 - first for cut in within]] = True
        assert steps["m"][:, at_cut].mean(axis=0).max() > 0.3  # the masks do end there
        for key in ("p", "h"):
            assert steps[key][:, at_cut].mean() <= np.percentile(steps[key][:, ~at_cut], 95) + 1e-3
        assert foreground[interior].min() > 0.5


def _steps(values):
    """How much values change over three columns: from one before a border to one behind its fading."""
    return np.abs(values[:, 3:] - values[:, :-3])


@EVERY
def test_maps_are_made_if_they_are_asked_for_and_change_nothing_else(name, learned):
    network, _ = learned(name)
    with torch.inference_mode():
        (plain,), (mapped,) = (network.detect(scene()[0][None], maps=maps) for maps in (False, True))
    assert plain.foreground is None and mapped.foreground.shape[0] == 1
    assert 0 <= mapped.foreground.min() <= mapped.foreground.max() <= 1
    torch.testing.assert_close(plain.scores, mapped.scores, atol=0, rtol=0)
    for one, other in zip(plain.masks, mapped.masks, strict=True):
        torch.testing.assert_close(one, other, atol=0, rtol=0)
    truth = scene()[1].masks.amax(0).numpy().astype(bool)
    (values,) = place_view(mapped.foreground, (128, 128), np.eye(3), (128, 128))
    assert ((values >= 0.5) & truth).sum() > 0.7 * ((values >= 0.5) | truth).sum()


@pytest.mark.parametrize("name", ["mask_rcnn", "yolact"])
def test_what_maps_learn_changes_nothing_that_instances_learn(name):
    network = build(name)
    image, targets = scene()
    network.losses(image[None], [targets])["foreground"].backward()
    learning = {
        key.split(".")[0] for key, p in network.named_parameters() if p.grad is not None and p.grad.any()
    }
    assert learning == {"foreground"}


def test_a_model_from_before_its_maps_knew_no_boxes_finds_instances_and_refuses_maps(tmp_path):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(SMALL["yolact"].model).model_dump(mode="json"),
        image=ImageSettings(),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
    )
    state = {key: v for key, v in build("yolact").state_dict().items() if not key.startswith("foreground.")}
    save_model(tmp_path / "model", card, state)
    picture = Image(pixels=np.zeros((3, 64, 64), np.float32), grid=Grid.from_spacing((64, 64)))
    open_segmenter(tmp_path / "model", "none", device="cpu")(picture)
    with pytest.raises(ConfigError, match="train it again, or predict with --uncertainty none"):
        open_segmenter(tmp_path / "model", "tta", device="cpu")


@EVERY
def test_a_network_stays_in_evaluation_mode_whatever_it_is_told(name):
    """A step of training, or a trainer's ``train()``, leaves no mode behind that the next detection depends on."""
    network, (image, targets) = build(name), scene()
    with torch.no_grad():
        before = network.detect(image[None])[0]
    network.train()
    network.losses(image[None], [targets])
    assert not any(module.training for module in network.modules())
    with torch.no_grad():
        after = network.detect(image[None])[0]
    assert torch.equal(before.scores, after.scores) and torch.equal(before.boxes, after.boxes)
