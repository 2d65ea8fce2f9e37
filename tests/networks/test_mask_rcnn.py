import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small import SMALL, scene
from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap
from clearmargin.errors import ConfigError, InputError
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.networks import build_network, network_config
from clearmargin.networks.backbones import build_backbone
from clearmargin.networks.mask_rcnn import followed, masks_within
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Window

CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap((LabelClass(id=1, name="tumour", type=CODE, category=CODE),))
MODEL = SMALL["mask_rcnn"].model


def small_network(seed=0, **options):
    torch.manual_seed(seed)
    return build_network(network_config(MODEL | options), classes=1, pretrained=True)


@pytest.fixture(scope="module")
def overfitted():
    """A small network after 60 steps on one picture of two boxes."""
    torch.manual_seed(0)
    network = small_network()
    image, targets = scene()
    optimiser = torch.optim.AdamW(network.parameters(), lr=2e-3)
    losses = []
    for step in range(60):
        torch.manual_seed(step)
        loss = sum(network.losses(image[None], [targets]).values())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    return network, losses


def test_loss_falls_and_the_masks_are_found(overfitted):
    network, losses = overfitted
    assert min(losses[-5:]) < 0.4 * losses[0]
    image, targets = scene()
    with torch.no_grad():
        (found,) = network.detect(image[None])
    assert len(found.labels) >= 2
    for box in targets.boxes:
        assert max(_box_iou(box, other) for other in found.boxes) > 0.5


def _box_iou(a, b):
    low, high = torch.maximum(a[:2], b[:2]), torch.minimum(a[2:], b[2:])
    common = float((high - low).clamp(0).prod())
    return common / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - common)


def known_outputs(network, boxes):
    """Make the network propose ``boxes`` for any image, call each certain, and fill it with its mask."""

    class Known(torch.nn.Module):
        def __init__(self, answer):
            super().__init__()
            self.answer = answer

        def forward(self, *inputs):
            return self.answer(*inputs)

    def classes(pooled):
        logits = torch.tensor([[-10.0, 10.0]]).repeat(len(pooled), 1)
        return logits, torch.zeros(len(pooled), 8)

    network._propose = lambda images, features, targets: ([boxes] * len(images), {})
    network.box_branch = Known(classes)
    network.mask_branch = Known(lambda pooled: torch.full((len(pooled), 2, 28, 28), 10.0))
    if network.point_head is not None:
        network.point_head = Known(
            lambda fine, coarse: torch.full((*coarse.shape[:2], 2), 10.0).to(coarse.dtype)
        )
    return network


@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_a_box_that_is_known_is_filled_on_the_images_own_grid(scale, model_folder):
    """Boxes on pixels' edges: each mask holds its pixels and no other, at the image's scale and at half of it."""
    from dataclasses import replace

    boxes = torch.tensor([[30.0, 20, 80, 60], [60, 70, 110, 110]])
    segmenter = load_segmenter(model_folder, device="cpu")
    known_outputs(segmenter.network, boxes * scale)
    segmenter = replace(segmenter, image=segmenter.image.model_copy(update={"scale": scale}))
    grid = Grid.from_spacing((128, 128), (0.5, 0.5))
    instances = segmenter(Image(pixels=np.zeros((3, 128, 128), np.float32), grid=grid)).instances
    assert len(instances) == 2
    seen = {mask.box for mask in instances.masks if mask.area == 2000}
    assert seen == {((20, 30), (60, 80)), ((70, 60), (110, 110))}


@pytest.mark.parametrize(("side", "samples"), [(20, 28), (45, 56), (90, 112)])
def test_a_mask_is_doubled_until_a_sample_is_no_larger_than_a_pixel(side, samples):
    network = known_outputs(small_network(), torch.tensor([[10.0, 10, 10 + side, 10 + side]]))
    with torch.no_grad():
        (detections,) = network.detect(torch.zeros(1, 3, 128, 128))
    assert [tuple(m.shape) for m in detections.masks] == [(samples, samples)]


def test_detection_with_learning_norms_does_not_depend_on_the_mode_or_the_batch():
    network = small_network(freeze_norm=False)
    image, _ = scene()
    with torch.no_grad():
        alone = network.train().detect(image[None])[0]
        beside = network.eval().detect(torch.stack([image, torch.rand(3, 128, 128)]))[0]
    torch.testing.assert_close(alone.boxes, beside.boxes, atol=1e-3, rtol=1e-4)


def test_mask_targets_are_not_shifted():
    """The target of a mask that fills its box is the same from all sides, which a half-pixel shift would not give."""
    _, targets = scene()
    wanted = masks_within(targets.masks[:, None].float(), targets.boxes)
    torch.testing.assert_close(wanted, wanted.flip(1, 2))
    torch.testing.assert_close(wanted[:, 2:-2, 2:-2], torch.ones(2, 24, 24))


def test_soft_suppression_keeps_what_hard_suppression_drops(overfitted):
    """Neighbouring proposals of one object stay, with lower scores, and the best of each object keeps its own."""
    network, _ = overfitted
    image, _ = scene()
    soft = build_network(network_config(MODEL | {"soft_nms": 4.0}), classes=1, pretrained=False)
    soft.load_state_dict(network.state_dict())
    with torch.inference_mode():
        (hard,), (more,) = network.detect(image[None]), soft.detect(image[None])
    assert len(more.scores) > len(hard.scores)
    torch.testing.assert_close(more.scores[:1], hard.scores[:1])
    assert (more.scores[:-1] >= more.scores[1:]).all() and more.scores.min() >= 0.05


def test_wrong_class_counts_and_backbones_are_refused():
    with pytest.raises(ConfigError, match="at least one class"):
        build_network(network_config(MODEL), classes=0, pretrained=False)
    with pytest.raises(ConfigError, match="no backbone 'resnet5'"):
        build_backbone("resnet5", weights=None, pretrained=False, freeze_norm=True)
    with pytest.raises(ConfigError, match="num_proposals: unknown"):
        network_config(MODEL | {"num_proposals": 3})


@pytest.mark.parametrize("name", ["efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"])
def test_packaged_weights_are_in_place(name):
    """The packaged weights, run as the originals are, put a strong response on real features, not on noise."""
    model = build_backbone(name, weights=None, pretrained=True, freeze_norm=True)
    fresh = build_backbone(name, weights=None, pretrained=False, freeze_norm=True)
    torch.manual_seed(0)
    image = torch.rand(1, 3, 64, 64) * 2 - 1
    assert [f.shape[-1] for f in model(image)] == [16, 8, 4, 2]
    changed = [k for k, v in model.state_dict().items() if not torch.equal(v, fresh.state_dict()[k])]
    assert len(changed) == len(model.state_dict())


@pytest.mark.parametrize("size", [(64, 96), (32, 160)])
def test_padding_is_constant_in_a_graph_and_timms_for_every_size_that_is_shown(monkeypatch, size):
    torch.manual_seed(0)
    model = build_backbone("efficientnet_lite0", weights=None, pretrained=True, freeze_norm=True).eval()
    image = torch.rand(1, 3, *size)
    with torch.no_grad():
        own = model(image)
        monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)
        written = model(image)
    for a, b in zip(own, written, strict=True):
        torch.testing.assert_close(a, b)


def test_more_and_fewer_channels_start_from_the_same_features():
    """Equal channels give what three of them gave, however many there are."""
    torch.manual_seed(0)
    grey = torch.rand(1, 1, 64, 64) * 2 - 1
    wanted = build_backbone("efficientnet_lite0", weights=None, pretrained=True, freeze_norm=True)(
        grey.repeat(1, 3, 1, 1)
    )
    for channels in (1, 2, 6):
        model = build_backbone(
            "efficientnet_lite0", weights=None, pretrained=True, freeze_norm=True, channels=channels
        )
        found = model(grey.repeat(1, channels, 1, 1))
        torch.testing.assert_close(found[0], wanted[0], atol=1e-3, rtol=1e-3)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(3)}, path)
    with pytest.raises(InputError, match="another architecture"):
        build_backbone("efficientnet_lite0", weights=str(path), pretrained=True, freeze_norm=True)
    with pytest.raises(InputError, match=r"no weights file 'none.pth'"):
        build_backbone(
            "efficientnet_lite0", weights=str(tmp_path / "none.pth"), pretrained=True, freeze_norm=True
        )


@pytest.fixture
def model_folder(tmp_path, overfitted):
    card = ModelCard(
        software="clearmargin test",
        model=network_config(MODEL).model_dump(mode="json"),
        image=ImageSettings(intensity=Window(low=0, high=1), crop=(128, 128)),
        augment=AugmentSettings(),
        classes=label_map_entries(LABELS),
        show_in_tracking=True,
    )
    save_model(tmp_path / "model", card, overfitted[0].state_dict())
    return tmp_path / "model"


def test_a_saved_model_predicts_the_same(model_folder, overfitted):
    # what 60 steps lead to differs between processors; scores near 0.5 were seen on both sides of it
    segmenter = load_segmenter(model_folder, device="cpu").with_threshold(0.2)
    wide = [p for p in segmenter.network.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert wide
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in wide)
    image, targets = scene()
    prediction = segmenter(Image(pixels=image.numpy(), grid=Grid.from_spacing((128, 128), (0.5, 0.5))))
    with torch.no_grad():
        (found,) = overfitted[0].detect(image[None])
    assert len(prediction.instances) >= 2
    np.testing.assert_allclose(
        prediction.instances.scores[:2], np.sort(found.scores.numpy())[::-1][:2], atol=1e-5
    )
    assert prediction.label_map == LABELS
    for mask in prediction.instances.masks[:2]:
        dense = mask.dense()
        best = max((dense & t).sum() / (dense | t).sum() for t in targets.masks.bool().numpy())
        assert best > 0.5
    assert load_segmenter(model_folder, device="cpu").provenance == segmenter.provenance


def test_a_folder_that_is_no_model_is_refused(tmp_path, model_folder):
    with pytest.raises(InputError, match="is not a model folder"):
        load_segmenter(tmp_path / "nothing")
    text = (model_folder / "model.yaml").read_text()
    (model_folder / "model.yaml").write_text(text.replace("fpn_channels: 32", "fpn_channels: 48"))
    with pytest.raises(InputError, match="do not fit its configuration"):
        load_segmenter(model_folder)


def test_masks_are_decided_as_torchvisions_predictor_decides_them():
    torch.manual_seed(0)
    ours = small_network().mask_branch[-1]
    with torch.no_grad():
        for weights in ours.parameters():
            weights.normal_()
    channels = ours.conv5_mask.in_channels
    plain = MaskRCNNPredictor(channels, ours.conv5_mask.out_channels, ours.mask_fcn_logits.out_channels)
    plain.load_state_dict(ours.state_dict())
    pooled = torch.randn(3, channels, 5, 7)
    assert ours(pooled).shape == (3, ours.mask_fcn_logits.out_channels, 10, 14)
    torch.testing.assert_close(ours(pooled), plain(pooled), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "proposals"),
    [
        ({"detections": 1}, 100),
        ({"detections": 20}, 300),
        ({"detections": 400}, 500),
        ({"detections": 20, "rpn_proposals": 1000}, 1000),
    ],
)
def test_proposals_follow_from_detections_where_none_are_said(options, proposals):
    config = network_config({"network": "mask_rcnn", **options})
    rpn = build_network(config, classes=1, pretrained=False).rpn
    rpn.eval()
    assert rpn.pre_nms_top_n() == rpn.post_nms_top_n() == proposals
    rpn.train()
    assert rpn.pre_nms_top_n() == rpn.post_nms_top_n() == 2 * proposals


def test_separable_convolutions_are_few_weights():
    """Each 3 x 3 of the pyramid and of two heads: 9 C C weights become 9 C + C C, and C biases."""
    dense, separate = (small_network(separable=chosen) for chosen in (False, True))
    width = dense.config.fpn_channels
    of_masks = dense.config.mask_channels
    maps = len(dense.pyramid.fpn.layer_blocks)
    saved = sum(p.numel() for p in dense.parameters()) - sum(p.numel() for p in separate.parameters())
    of_maps = (maps + 1) * (8 * width**2 - 9 * width) - maps * width  # the dense ones had no biases
    heads = [(width, of_masks)] + [(of_masks, of_masks)] * (dense.config.mask_layers - 1)
    assert saved == of_maps + sum(8 * wide * out - 9 * wide for wide, out in heads)
    images = torch.rand(1, 3, 64, 96)
    shapes = [[tuple(m.shape) for m in net.pyramid(images)] for net in (dense, separate)]
    assert shapes[0] == shapes[1]


def test_a_region_is_widened_to_the_sides_that_its_mask_reaches():
    """By a quarter of 40 x 20: 10 columns, 5 rows; half of that if the mask's edge is no surer than one half."""
    region = torch.tensor([[20.0, 10, 60, 30]])
    inside = torch.zeros(1, 8, 8)
    inside[:, 1:-1, 1:-1] = 1
    torch.testing.assert_close(followed(region, inside, (60, 100)), region)
    for place, side in (((2, 0), 0), ((0, 5), 1), ((2, -1), 2), ((-1, 5), 3)):
        for value, share in ((0.9, 1.0), (0.5, 0.5), (0.39, 0.0)):
            mask = inside.clone()
            mask[0][place] = value
            wanted = region.clone()
            wanted[0, side] += (-10.0, -5.0, 10.0, 5.0)[side] * share
            torch.testing.assert_close(followed(region, mask, (60, 100)), wanted)
    everywhere = torch.ones(1, 8, 8)
    torch.testing.assert_close(followed(region, everywhere, (32, 66)), torch.tensor([[10.0, 5, 66, 32]]))
    assert followed(region[:0], everywhere[:0], (60, 100)).shape == (0, 4)


@given(st.floats(0, 1), st.floats(-1e-3, 1e-3))
def test_a_region_follows_a_mask_without_a_jump(value, change):
    """What differs by rounding, as torch and a runtime do, stays as near: at most 5/4 of the extent for each unit."""
    region = torch.tensor([[20.0, 10, 60, 30]])
    one, two = (torch.full((1, 4, 4), v) for v in (value, min(max(value + change, 0), 1)))
    moved = (followed(region, one, (200, 200)) - followed(region, two, (200, 200))).abs().max()
    assert moved <= 1.25 * 40 * abs(change) + 1e-4


def bar_network(bar, box, **options):
    """Make the network propose one box and draw, of a bar, what lies in the region that it is asked for."""
    network = small_network(point_steps=0, **options)
    known_outputs(network, torch.tensor([box]))
    x1, y1, x2, y2 = bar

    def coarse(_regions, boxes):
        masks = []
        for left, top, right, bottom in torch.cat(boxes).tolist():
            x = left + (torch.arange(28) + 0.5) / 28 * (right - left)
            y = top + (torch.arange(28) + 0.5) / 28 * (bottom - top)
            inside = ((y > y1) & (y < y2))[:, None] & ((x > x1) & (x < x2))
            masks.append(torch.where(inside, 10.0, -10.0).repeat(2, 1, 1))
        return torch.stack(masks) if masks else torch.zeros(0, 2, 28, 28)

    network._coarse = coarse
    return network


def test_a_box_that_ends_short_does_not_cut_a_long_object_off():
    """A bar from column 10 to 118 in a box that ends at column 70: its mask ends where the bar does."""
    bar, box = (10, 50, 118, 62), [8.0, 46, 70, 66]
    with torch.no_grad():
        (cut,) = bar_network(bar, box).detect(torch.zeros(1, 3, 128, 128))
        (whole,) = bar_network(bar, box, mask_looks=3).detect(torch.zeros(1, 3, 128, 128))
    assert cut.regions[0].tolist() == box and cut.boxes[0].tolist() == box
    left, top, right, bottom = whole.regions[0].tolist()
    assert right > 118 and left < 10 and top < 50 and bottom > 62
    assert (left, top, bottom) == (box[0], box[1], box[3])  # the bar reaches one side alone
    column = np.flatnonzero(whole.masks[0].numpy().max(axis=0) >= 0.5)
    end = left + (column[-1] + 1) / 28 * (right - left)
    assert abs(end - 118) <= (right - left) / 28
    assert whole.boxes[0].tolist() == box  # the region is the mask's alone
