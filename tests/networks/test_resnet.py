"""The larger network is built and runs, with normalisation that learns."""

import torch

from clearmargin.networks import build_network, network_config


def test_resnet50_runs_and_its_norms_learn():
    config = network_config(
        {"network": "mask_rcnn", "backbone": "resnet50", "freeze_norm": False, "rpn_proposals": 20}
    )
    network = build_network(config, classes=2, pretrained=True)
    with torch.no_grad():
        (found,) = network.detect(torch.rand(1, 3, 64, 64))
    assert all(m.shape[0] in (28, 56, 112) for m in found.masks)
    assert any(p.requires_grad for n, p in network.named_parameters() if "bn1" in n)
