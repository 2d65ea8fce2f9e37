"""The line to beat: torchvision's own Mask R-CNN in a plain loop, same backbone, same data, same minutes.

    python benchmarks/torchvision_baseline.py data_cards/dsb2018_nuclei.yaml \\
        --config configs/nuclei_mask_rcnn.yaml --minutes 25

The network is ``torchvision.models.detection.MaskRCNN`` over EfficientNet-lite0 and an FPN, with heads of the
sizes that ``configs/`` uses, whole images and random mirroring: what one writes in an afternoon. It is
evaluated by the same code as ours.
"""

import argparse
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from clearmargin.core import Image, InstanceSet, LabelMap, Mask, Prediction, Provenance
from clearmargin.datasets.cases import open_dataset
from clearmargin.evaluate import evaluate_cases, render
from clearmargin.models.backbones import build_backbone
from clearmargin.models.network import Targets
from clearmargin.transforms.settings import ImageSettings
from clearmargin.transforms.view import prepare, to_channels


class Backbone(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.body = build_backbone("efficientnet_lite0", weights=None, pretrained=True, freeze_norm=True)
        self.fpn = FeaturePyramidNetwork(
            self.body.feature_info.channels(),
            channels,
            extra_blocks=LastLevelMaxPool(),
            norm_layer=lambda c: nn.GroupNorm(16, c),
        )
        self.out_channels = channels

    def forward(self, images):
        return self.fpn(OrderedDict((str(i), m) for i, m in enumerate(self.body(images))))


def build(classes, anchor_sizes, anchor_ratios, side, detections):
    resize = {"_skip_resize": True} if side is None else {"min_size": side[0], "max_size": side[1]}
    return MaskRCNN(
        Backbone(96),
        num_classes=None,
        **resize,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        rpn_anchor_generator=AnchorGenerator(
            tuple((s,) for s in anchor_sizes), (tuple(anchor_ratios),) * len(anchor_sizes)
        ),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(96 * 49, 256),
        box_predictor=FastRCNNPredictor(256, classes + 1),
        mask_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        mask_head=MaskRCNNHeads(96, (96, 96), 1),
        mask_predictor=MaskRCNNPredictor(96, 96, classes + 1),
        box_batch_size_per_image=128,
        box_detections_per_img=detections,
    )


@dataclass
class Plain:
    """The trained model behind Clear Margin's Segmenter protocol."""

    model: nn.Module
    settings: ImageSettings
    label_map: LabelMap

    def __call__(self, image: Image) -> Prediction:
        pixels = torch.from_numpy(np.ascontiguousarray(to_channels(prepare(image, self.settings))))
        with torch.inference_mode():
            (found,) = self.model([pixels])
        masks = tuple(Mask.from_dense(m[0].numpy() >= 0.5) for m in found["masks"])
        instances = InstanceSet(
            grid=image.grid, masks=masks, labels=found["labels"].numpy(), scores=found["scores"].numpy()
        )
        instances = instances.select(np.array([m.area > 0 for m in masks], bool))
        provenance = Provenance(
            model="torchvision", weights_sha256="", config_sha256="", software="torchvision"
        )
        return Prediction(instances=instances, label_map=self.label_map, provenance=provenance)


def share(started, step, arguments):
    """How much of the time, or of the steps, is spent."""
    return max((time.monotonic() - started) / 60 / arguments.minutes, step / arguments.steps)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("card", type=Path)
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--steps", type=float, default=float("inf"), help="or as many steps as ours took")
    parser.add_argument("--config", type=Path, required=True, help="ours, for anchors, intensity and scale")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)

    config = yaml.safe_load(arguments.config.read_text())
    settings = ImageSettings(**config["image"])
    dataset = open_dataset(arguments.card)
    cases = dataset.split("train")
    torch.manual_seed(0)
    side = tuple(sorted(settings.crop)) if settings.scale != 1 else None  # None: images as they are
    model = build(
        len(dataset.card.classes),
        config["model"]["anchor_sizes"],
        config["model"].get("anchor_ratios", (0.5, 1.0, 2.0)),
        side,
        config["model"]["detections"],
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=arguments.learning_rate, weight_decay=0.05)
    cache = {}

    def load(i):
        if i not in cache:
            image, instances = dataset.read(cases[i])
            pixels = torch.from_numpy(np.ascontiguousarray(to_channels(prepare(image, settings))))
            cache[i] = (pixels, instances)
        pixels, instances = cache[i]
        masks = torch.from_numpy(np.stack([m.dense() for m in instances.masks]).astype(np.uint8))
        targets = Targets.from_masks(masks, torch.from_numpy(instances.labels.copy()))
        if torch.rand(()) < 0.5:
            width = pixels.shape[-1]
            boxes = targets.boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor(
                [width, 0, width, 0]
            )
            return pixels.flip(-1), {"boxes": boxes, "labels": targets.labels, "masks": masks.flip(-1)}
        return pixels, {"boxes": targets.boxes, "labels": targets.labels, "masks": masks}

    usable = [i for i in range(len(cases)) if len(dataset.read(cases[i])[1])]
    started, step = time.monotonic(), 0
    model.train()
    while (done := share(started, step, arguments)) < 1:
        for i in torch.randperm(len(usable)).split(2):
            if len(i) < 2:
                continue
            done = share(started, step, arguments)
            if done >= 1:
                break
            images, targets = zip(*(load(usable[int(k)]) for k in i), strict=True)
            for group in optimiser.param_groups:
                warm = min(1.0, (step + 1) / 50)
                group["lr"] = arguments.learning_rate * warm * (0.01 + 0.495 * (1 + np.cos(np.pi * done)))
            loss = sum(model(list(images), list(targets)).values())
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            optimiser.step()
            step += 1
            if step % 50 == 0:
                print(f"step {step}, {done:.0%} of the time, loss {float(loss):.3f}", flush=True)
    minutes = (time.monotonic() - started) / 60
    print(f"{step} steps in {minutes:.1f} minutes, {time.process_time() / 60:.1f} of CPU time", flush=True)
    model.eval()
    found = evaluate_cases(
        Plain(model, settings, dataset.card.label_map), dataset, dataset.split("test"), score_threshold=0.5
    )
    print(render(found))


if __name__ == "__main__":
    main()
