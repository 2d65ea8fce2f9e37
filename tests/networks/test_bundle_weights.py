"""Weights out of MONAI bundles: the same answers as MONAI's network with them, or a refusal that says why."""

from __future__ import annotations

import json

import pytest
import torch
from monai.networks.nets import DynUNet, SegResNet
from safetensors.torch import save_file

from clearmargin.errors import InputError
from clearmargin.networks import build_network, network_config
from clearmargin.networks.backbones import build_backbone

SEGRESNET = {"spatial_dims": 3, "init_filters": 8, "in_channels": 4, "out_channels": 3, "dropout_prob": 0.2}
DEPTH = {"blocks_down": [1, 2, 2, 4], "blocks_up": [1, 1, 1]}
DYNUNET = {
    "spatial_dims": 2,
    "in_channels": 3,
    "out_channels": 2,
    "kernel_size": [3] * 4,
    "strides": [1, 2, 2, 2],
    "upsample_kernel_size": [2] * 3,
    "filters": [8, 16, 32, 64],
    "norm_name": ["GROUP", {"num_groups": 8}],
}


def write_bundle(folder, network, definition, *, nested=False, name="inference.json"):
    """A bundle as the Model Zoo has them: a configuration that names the network, and its weights."""
    (folder / "configs").mkdir(parents=True)
    (folder / "models").mkdir()
    (folder / "configs" / name).write_text(json.dumps({"network_def": definition}))
    state = network.state_dict()
    torch.save({"model": state} if nested else state, folder / "models" / "model.pt")
    return folder


def section(**options):
    return network_config(
        {"network": "semantic_cc_3d", "patch": [16, 16, 16], "filters": 8, "levels": 4, **options}
    )


@pytest.mark.parametrize("nested", [False, True])
def test_a_segresnet_of_the_zoo_gives_the_same_logits(tmp_path, nested):
    torch.manual_seed(1)
    theirs = SegResNet(**SEGRESNET, **DEPTH).eval()
    bundle = write_bundle(
        tmp_path / "brats", theirs, {"_target_": "SegResNet", **SEGRESNET, **DEPTH}, nested=nested
    )
    config = section(architecture="segresnet", weights=str(bundle), dropout=0.2)
    ours = build_network(config, classes=3, channels=4, pretrained=True)
    volume = torch.rand(1, 4, 16, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(ours.unet(volume), theirs(volume))
    unlike = build_network(config, classes=3, channels=4, pretrained=False)
    assert not torch.equal(
        unlike.unet.state_dict()["convInit.conv.weight"], theirs.state_dict()["convInit.conv.weight"]
    )


def test_other_classes_get_a_last_layer_of_their_own(tmp_path, caplog):
    theirs = SegResNet(**SEGRESNET, **DEPTH)
    bundle = write_bundle(tmp_path / "brats", theirs, {"_target_": "monai.networks.nets.SegResNet"})
    config = section(architecture="segresnet", weights=str(bundle))
    with caplog.at_level("INFO"):
        ours = build_network(config, classes=5, channels=4, pretrained=True).unet.state_dict()
    assert "the last layer is of other classes" in caplog.text
    for key, value in theirs.state_dict().items():
        if not key.startswith("conv_final.2."):
            assert torch.equal(ours[key], value)


def test_a_dynunet_with_our_norm_and_a_file_of_safetensors(tmp_path):
    torch.manual_seed(2)
    theirs = DynUNet(**DYNUNET).eval()
    bundle = write_bundle(tmp_path / "plane", theirs, {"_target_": "DynUNet", **DYNUNET}, name="train.json")
    state = {k: v.clone() for k, v in theirs.state_dict().items() if not k.startswith("skip_layers")}
    save_file({f"network.{k}": v for k, v in state.items()}, tmp_path / "plane.safetensors")
    picture = torch.rand(1, 3, 32, 32)
    for weights in (bundle, tmp_path / "plane.safetensors"):
        given = {"network": "semantic_cc", "filters": 8, "levels": 4, "weights": str(weights)}
        ours = build_network(network_config(given), classes=2, pretrained=True)
        with torch.inference_mode():
            torch.testing.assert_close(ours.unet(picture), theirs(picture))


@pytest.mark.parametrize(
    ("definition", "architecture", "message"),
    [
        ({"_target_": "UNet"}, "segresnet", "is a UNet: model.weights takes SegResNet or DynUNet"),
        ({"_target_": "SegResNet"}, "dynunet", "set model.architecture to segresnet"),
        ({"_target_": "SegResNet", "norm": "BATCH"}, "segresnet", "has the norm BATCH"),
        ({"_target_": "DynUNet"}, "dynunet", "has the norm INSTANCE"),
        ({"_target_": "SegResNet", "init_filters": 16}, "segresnet", "have another shape"),
    ],
)
def test_another_architecture_is_refused(tmp_path, definition, architecture, message):
    theirs = SegResNet(**SEGRESNET | {"init_filters": 16}, **DEPTH)
    bundle = write_bundle(tmp_path / "other", theirs, definition)
    with pytest.raises(InputError, match=message):
        build_network(
            section(architecture=architecture, weights=str(bundle)), classes=3, channels=4, pretrained=True
        )


def test_a_folder_without_weights_is_told_what_is_looked_for(tmp_path):
    with pytest.raises(InputError, match=r"models/model\.pt"):
        build_network(
            section(architecture="segresnet", weights=str(tmp_path)), classes=3, channels=4, pretrained=True
        )


def test_a_backbone_is_taken_out_of_a_bundle_that_has_it(tmp_path):
    """As our own bundles hold it: below the name of the network that it is a part of."""
    given = {"network": "mask_rcnn", "fpn_channels": 32, "box_features": 64, "mask_channels": 32}
    whole = build_network(network_config(given), classes=1, pretrained=True)
    (tmp_path / "b/models").mkdir(parents=True)
    torch.save({f"network.{k}": v for k, v in whole.state_dict().items()}, tmp_path / "b/models/model.pt")
    backbone = build_backbone(
        "efficientnet_lite0", weights=str(tmp_path / "b"), pretrained=True, freeze_norm=False
    )
    mine = backbone.state_dict()
    (prefix,) = {
        k.removesuffix("conv_stem.weight") for k in whole.state_dict() if k.endswith("conv_stem.weight")
    }
    assert torch.equal(mine["conv_stem.weight"], whole.state_dict()[f"{prefix}conv_stem.weight"])
    # another state than the wheel's own, so that it was this one that was read
    changed = {k: v + 1 for k, v in torch.load(tmp_path / "b/models/model.pt", weights_only=True).items()}
    torch.save(changed, tmp_path / "b/models/model.pt")
    other = build_backbone(
        "efficientnet_lite0", weights=str(tmp_path / "b"), pretrained=True, freeze_norm=False
    )
    torch.testing.assert_close(other.state_dict()["conv_stem.weight"], mine["conv_stem.weight"] + 1)
