"""Coarser levels that learn too: MONAI's network gives the same maps, and the loss is that of a closed form."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.nets import DynUNet

from clearmargin.errors import ConfigError
from clearmargin.networks import build_network, network_config
from clearmargin.networks.network import Targets
from clearmargin.networks.semantic_cc import level_logits, unet_losses

PLANE = {"network": "semantic_cc", "filters": 8, "levels": 5}


def built(classes=2, **options):
    torch.manual_seed(0)
    config = network_config(PLANE | options)
    return build_network(config, classes=classes, pretrained=False), config


def test_levels_are_those_of_monai():
    """In training MONAI brings every level to the finest one's size (``interpolate``, nearest) and stacks them."""
    network, _ = built(deep_supervision=2)
    theirs = DynUNet(
        spatial_dims=2, in_channels=3, out_channels=2, kernel_size=[3] * 5, strides=[1, 2, 2, 2, 2],
        upsample_kernel_size=[2] * 4, filters=[8, 16, 32, 64, 128], norm_name=("GROUP", {"num_groups": 8}),
        deep_supervision=True, deep_supr_num=2,
    )  # fmt: skip
    state = network.unet.state_dict()
    missing, unknown = theirs.load_state_dict(state, strict=False)
    assert not unknown
    assert all(key.startswith("skip_layers.") for key in missing)  # the same weights a second time
    images = torch.rand(2, 3, 64, 48)
    theirs.train()
    with torch.no_grad():
        stacked = theirs(images).unbind(1)
        ours = level_logits(network.unet, images)
    assert [tuple(one.shape[2:]) for one in ours] == [(64, 48), (32, 24), (16, 12)]
    for own, their in zip(ours, stacked, strict=True):
        torch.testing.assert_close(F.interpolate(own, (64, 48)), their)


def test_inference_does_not_change():
    plain, _ = built()
    deep, _ = built(deep_supervision=3)
    deep.unet.load_state_dict(plain.unet.state_dict(), strict=False)
    images = torch.rand(1, 3, 32, 32)
    with torch.inference_mode():
        assert torch.equal(plain.unet(images), deep.unet(images))


def test_each_level_counts_half_of_the_one_above():
    """A quadrant is the object: half of the coarse grid's 2 x 2 elements would be wrong without averaging."""
    config = network_config(PLANE | {"deep_supervision": 1, "mask_loss": {"dice": 0.0}})
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    mask[0, 0, :3] = 1  # three of four in the first row: coarse shares 0.5, 0.25, 0, 0
    target = Targets(boxes=torch.tensor([[0.0, 0, 3, 1]]), labels=torch.tensor([1]), masks=mask)
    fine, coarse = torch.full((1, 1, 4, 4), 0.3), torch.full((1, 1, 2, 2), -1.2)
    loss = unet_losses([fine, coarse], [target], 1, config)

    def cost(logit, share):
        p = 1 / (1 + np.exp(-logit))
        return -(share * np.log(p) + (1 - share) * np.log(1 - p))

    own = cost(0.3, 3 / 16)
    below = np.mean([cost(-1.2, share) for share in (0.5, 0.25, 0, 0)])
    assert float(loss["cross_entropy"]) == pytest.approx((own + 0.5 * below) / 1.5, rel=1e-5)
    assert float(loss["dice"]) == 0


@pytest.mark.parametrize("targets", ["classes", "border"])
def test_every_level_learns(targets):
    network, config = built(deep_supervision=2, targets=targets)
    mask = torch.zeros(1, 32, 32, dtype=torch.uint8)
    mask[0, 8:20, 8:20] = 1
    cores = torch.zeros(2, 32, 32) if targets == "border" else torch.zeros(0, 32, 32)
    target = Targets(
        boxes=torch.tensor([[8.0, 8, 20, 20]]), labels=torch.tensor([1]), masks=mask, cores=cores
    )
    losses = network.losses(torch.rand(1, 3, 32, 32), [target])
    assert set(losses) == {
        f"{p}{n}" for p in ("", "core_")[: len(losses) // 2] for n in ("cross_entropy", "dice")
    }
    sum(losses.values()).backward()
    for head in network.unet.deep_supervision_heads:
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())
    assert len(network.unet.deep_supervision_heads) == config.deep_supervision


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"architecture": "segresnet"}, "deep_supervision is for dynunet, not segresnet"),
        ({"levels": 4, "deep_supervision": 3}, "at most levels - 2, here 2, not 3"),
    ],
)
def test_levels_that_are_not_there_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        network_config(PLANE | {"deep_supervision": 1} | options)
