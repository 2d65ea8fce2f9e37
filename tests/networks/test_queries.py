"""Queries as detections, and what networks of queries promise beyond the contract of all networks."""

import sys

import numpy as np
import pytest
import torch
from small import SMALL, no_targets, scene

from clearmargin.errors import ConfigError, InputError
from clearmargin.models.placing import place
from clearmargin.networks import build_network, network_config
from clearmargin.networks.mask2former import Mask2FormerConfig
from clearmargin.networks.queries import QuerySettings, query_detections, query_losses
from clearmargin.networks.vit_weights import rename_vit

BOTH = pytest.mark.parametrize("name", ["mask2former", "eomt"])


def build(name, *, classes=2, pretrained=False, **options):
    torch.manual_seed(0)
    return build_network(network_config(SMALL[name].model | options), classes=classes, pretrained=pretrained)


def layers_of(network, images):
    return network._layers(images)


def test_a_score_is_class_times_mean_mask_where_the_mask_is():
    masks = torch.full((1, 2, 8, 8), 0.1)
    masks[0, 0, 2:4, 4:8] = 0.9
    masks[0, 0, 4:6, 4:8] = 0.7
    classes = torch.tensor([[[0.6, 0.3, 0.1], [0.5, 0.4, 0.1]]])  # the last is "no object"
    logits = (classes.log(), masks.logit())
    (found,) = query_detections(logits, 4, QuerySettings(score_threshold=0.1))
    torch.testing.assert_close(found.scores, torch.tensor([0.6 * 0.8, 0.3 * 0.8]))
    assert found.labels.tolist() == [1, 2]
    assert found.boxes.tolist() == [[16, 8, 32, 24]] * 2
    # the second query's mask is nowhere one half: its score is 0
    (every,) = query_detections(logits, 4, QuerySettings(score_threshold=0.0))
    assert every.scores.tolist()[2:] == [0, 0] and every.boxes[2:].eq(0).all()
    (first,) = query_detections(logits, 4, QuerySettings(detections=1))
    assert len(first.scores) == 1


@pytest.mark.parametrize("stride", [4, 2])
def test_masks_are_not_shifted(stride):
    """One bright pixel of a query's map becomes a mask whose centre is that pixel's, to a thousandth."""
    masks = torch.full((1, 1, 24, 32), 1e-6)
    masks[0, 0, 9, 20] = 0.99
    (detections,) = query_detections(
        (torch.tensor([[[10.0, -10.0]]]), masks.logit()), stride, QuerySettings()
    )
    crop, origin = place(detections.masks[0], detections.regions[0], np.eye(3), (24 * stride, 32 * stride))
    axes = np.mgrid[: crop.shape[0], : crop.shape[1]] + np.array(origin)[:, None, None] + 0.5
    centre = (axes * crop).sum(axis=(1, 2)) / crop.sum()
    assert centre == pytest.approx([9.5 * stride, 20.5 * stride], abs=1e-3)


@BOTH
def test_each_query_has_a_class_or_none_and_a_mask_at_a_quarter(name):
    network = build(name)
    layers = layers_of(network, torch.rand(2, 3, 64, 96))
    assert len(layers) == {"mask2former": 4, "eomt": 3}[name]  # before, and behind each layer
    for classes, masks in layers:
        assert classes.shape == (2, 8, 2 + 1)
        assert masks.shape == (2, 8, 16, 24)


@BOTH
def test_the_losses_are_transformers_own(name):
    """The parts add up to the loss that transformers' whole model gives with the same points."""
    network = build(name, **({"image_size": 128} if name == "eomt" else {})).train()
    image, targets = scene()
    layers = layers_of(network, image[None])
    criterion = {"mask2former": "segmenter", "eomt": "vit"}[name] + ".criterion"
    # transformers draws the points of Mask2Former's last layer first
    ordered = [layers[-1], *layers[:-1]] if name == "mask2former" else layers
    torch.manual_seed(3)
    own = sum(query_losses(ordered, [targets], network.get_submodule(criterion), network.config).values())
    wanted = {"mask_labels": [targets.masks.float()], "class_labels": [targets.labels - 1]}
    torch.manual_seed(3)
    if name == "mask2former":
        theirs = network.segmenter((image[None] - 0.5) / 0.5, **wanted).loss
    else:
        theirs = network.vit((image[None] - 0.45) / 0.225, **wanted).loss
    torch.testing.assert_close(own, theirs, rtol=1e-4, atol=1e-4)


@BOTH
def test_pictures_without_instances_push_all_queries_to_none(name):
    network = build(name)
    losses = network.losses(scene()[0][None], [no_targets()])
    assert losses["masks"] == 0 and losses["dice"] == 0 and losses["classes"] > 0


@BOTH
def test_half_precision_reaches_the_same_losses(name):
    """As on a GPU: the forward pass in bfloat16, the matching and the losses not."""
    network, (image, targets) = build(name), scene()
    seen = []
    for half in (False, True):
        torch.manual_seed(0)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            losses = network.losses(image[None], [targets])
        assert all(value.dtype == torch.float32 for value in losses.values())
        sum(losses.values()).backward()
        seen.append(float(sum(losses.values()).detach()))
    assert seen[1] == pytest.approx(seen[0], rel=0.1)


@BOTH
def test_nothing_is_looked_up_outside(name, monkeypatch):
    def refuse(*_):
        raise AssertionError("a connection was tried")

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for call in ("connect", "connect_ex"):
        monkeypatch.setattr(f"socket.socket.{call}", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    build(name, pretrained=True)


@BOTH
def test_without_transformers_the_way_out_is_named(name, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    monkeypatch.delitem(sys.modules, f"clearmargin.networks.{name}")
    with pytest.raises(ConfigError, match=rf"{name} needs .* pip install 'clearmargin\[transformers\]'"):
        network_config(SMALL[name].model)


@BOTH
def test_widths_that_heads_do_not_divide_are_refused(name):
    with pytest.raises(ConfigError, match="is not a multiple of heads 5"):
        build(name, heads=5)


def test_transformers_start_leaves_the_backbones_weights_alone():
    from clearmargin.networks.backbones import build_backbone

    network = build("mask2former", pretrained=True)
    own = network.segmenter.model.pixel_level_module.encoder.backbone.state_dict()
    packaged = build_backbone("efficientnet_lite0", weights=None, pretrained=True, freeze_norm=True)
    for key, value in packaged.state_dict().items():
        torch.testing.assert_close(own[key], value)
    assert Mask2FormerConfig().decoder_layers == 3


def timm_vit(*, size=32, patch=8, registers=4, class_place=False, scales=1e-5, depth=3):
    import timm

    torch.manual_seed(1)
    vit = timm.models.vision_transformer.VisionTransformer(
        img_size=size,
        patch_size=patch,
        embed_dim=64,
        depth=depth,
        num_heads=4,
        reg_tokens=registers,
        no_embed_class=not class_place,
        init_values=scales,
        num_classes=0,
        global_pool="",
    ).eval()
    with torch.no_grad():
        for p in vit.parameters():
            p.add_(torch.randn_like(p) * 0.1)  # its start is mostly zeros
    return vit


def eomt_of(vit, tmp_path, **options):
    torch.save(vit.state_dict(), tmp_path / "vit.pth")
    options = {"width": 64, "layers": 3, "image_size": 64, "registers": 4} | options
    return build("eomt", pretrained=True, weights=str(tmp_path / "vit.pth"), **options).eval()


@pytest.mark.parametrize(
    "kind", [{}, {"registers": 0}, {"registers": 0, "class_place": True, "scales": None}]
)
def test_a_timm_vit_gives_the_same_tokens_in_eomt(kind, tmp_path):
    """The whole encoder, queries left out, against timm's forward pass."""
    vit = timm_vit(size=64, **kind)
    network = eomt_of(vit, tmp_path, registers=kind.get("registers", 4))
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        wanted = vit.forward_features((images - 0.45) / 0.225)
        tokens = network._embed(images, (8, 8))
        for layer in network.vit.layers:
            tokens = layer(tokens, None)
        found = network.vit.layernorm(tokens)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_a_grey_vit_sees_what_three_equal_channels_showed(tmp_path):
    vit = timm_vit()
    colours = eomt_of(vit, tmp_path)
    torch.manual_seed(0)
    grey = build_network(colours.config, classes=2, channels=1, pretrained=True).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        wanted = colours.vit.embeddings.patch_embeddings(image.expand(-1, 3, -1, -1))
        found = grey.vit.embeddings.patch_embeddings(image)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def test_any_timm_backbone_with_weights_of_ones_own_carries_mask2former(tmp_path):
    from clearmargin.networks.backbones import build_backbone

    torch.manual_seed(1)
    own = build_backbone("resnet18", weights=None, pretrained=False, freeze_norm=True)
    torch.save(own.state_dict(), tmp_path / "own.pth")
    network = build(
        "mask2former", backbone="resnet18", weights=str(tmp_path / "own.pth"), pretrained=True
    ).eval()
    taken = network.segmenter.model.pixel_level_module.encoder.backbone.state_dict()
    for key, value in own.state_dict().items():
        torch.testing.assert_close(taken[key], value)
    image, targets = scene()
    assert all(torch.isfinite(value) for value in network.losses(image[None], [targets]).values())
    with torch.no_grad():
        assert len(network.detect(image[None])) == 1


def test_a_vit_of_another_patch_and_size_is_resampled(tmp_path):
    """Patches of 16 on a picture twice as large see what patches of 8 saw."""
    vit = timm_vit(size=32, patch=8)
    network = eomt_of(vit, tmp_path, patch=16, image_size=64)
    coarse = torch.rand(1, 3, 4, 4)
    small = torch.nn.functional.interpolate(coarse, size=(32, 32))
    large = torch.nn.functional.interpolate(coarse, size=(64, 64))
    with torch.no_grad():
        wanted = vit.patch_embed((small - 0.45) / 0.225)
        found = network.vit.embeddings.patch_embeddings((large - 0.45) / 0.225)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    bigger = eomt_of(vit, tmp_path, patch=8, image_size=64)
    assert bigger.vit.embeddings.position_embeddings.weight.shape == (64, 64)


def test_eomt_weights_come_back_but_for_other_classes(tmp_path):
    first = build("eomt", classes=2)
    torch.save(first.vit.state_dict(), tmp_path / "eomt.pth")
    torch.manual_seed(5)
    again = build_network(
        network_config(SMALL["eomt"].model | {"weights": str(tmp_path / "eomt.pth")}),
        classes=4,
        pretrained=True,
    )
    for key, value in again.vit.state_dict().items():
        same = value.shape == first.vit.state_dict()[key].shape
        assert same != (key.startswith("class_predictor") or key == "criterion.empty_weight")
        if same:
            torch.testing.assert_close(value, first.vit.state_dict()[key])


def test_weights_of_another_architecture_are_refused(tmp_path):
    vit = timm_vit()
    with pytest.raises(InputError, match="have another shape"):
        eomt_of(vit, tmp_path, width=96)
    with pytest.raises(InputError, match="entries are missing"):
        eomt_of(vit, tmp_path, layers=4)
    with pytest.raises(InputError, match=r"layers that it lacks .* model.layers"):
        eomt_of(vit, tmp_path, layers=2)
    with pytest.raises(InputError, match="lack cls_token"):
        rename_vit({"blocks.0.norm1.weight": torch.ones(3)})
    torch.save({"conv.weight": torch.zeros(3)}, tmp_path / "other.pth")
    for name in ("mask2former", "eomt"):
        with pytest.raises(InputError, match="another architecture"):
            build(name, pretrained=True, weights=str(tmp_path / "other.pth"))
        with pytest.raises(InputError, match=r"no weights file 'none.pth'"):
            build(name, pretrained=True, weights=str(tmp_path / "none.pth"))


def test_without_masked_attention_eomt_is_transformers_with_it_faded_out():
    network = build("eomt", image_size=128, masked_attention=False).eval()
    masked = build("eomt", image_size=128).eval()
    image = scene()[0][None]
    with torch.no_grad():
        own = network._layers(image)[-1]
        for one, share in ((network, 0.0), (masked, 1.0)):
            one.vit.attn_mask_probs.fill_(share)
            theirs = one.vit((image - 0.45) / 0.225)
            classes, masks = one._layers(image)[-1]
            torch.testing.assert_close(classes, theirs.class_queries_logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(masks, theirs.masks_queries_logits, rtol=1e-4, atol=1e-4)
        assert not torch.allclose(own[1], masks)  # the same weights, other masks


def test_position_embeddings_of_a_larger_picture_are_the_same_picture_stretched():
    network = build("eomt")
    places = network.vit.embeddings.position_embeddings.weight
    with torch.no_grad():
        side = torch.linspace(-1, 1, 8)
        places.zero_()
        places[:, 0] = side[None].expand(8, 8).flatten()  # the column
        empty = torch.full((1, 3, 64, 128), 0.45)
        patches = network._embed(empty, (8, 16))[0, 5:]
        bias = network.vit.embeddings.patch_embeddings.projection.bias
    columns = (patches - bias)[:, 0].reshape(8, 16)
    torch.testing.assert_close(columns, columns.flip(1).neg(), atol=1e-5, rtol=0)  # about the middle
    assert (columns.diff(dim=1) > 0).all() and columns.std(dim=0).max() < 1e-6
