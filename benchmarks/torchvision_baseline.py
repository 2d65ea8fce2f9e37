"""The line to beat: torchvision's own Mask R-CNN at its best, with our backbone, windows and minutes.

    python benchmarks/torchvision_baseline.py configs/nuclei_mask_rcnn.yaml --minutes 20 --weights plain.pt

The network is ``torchvision.models.detection.MaskRCNN`` over EfficientNet-lite0 and an FPN, with heads of the sizes
that ``configs/`` uses. It is given all that is not the network: our windows, augmentation, schedule and averaged
weights. Its box NMS and its score thresholds are those with the best panoptic quality on the validation split. Minutes
are CPU time of one thread. It is evaluated by the same code as ours.
"""

import argparse
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import MaskRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from clearmargin.core import Image, InstanceSet, LabelMap, Mask, Prediction, Provenance, Thresholds
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import Windows
from clearmargin.evaluate import evaluate_cases, render, write_tables
from clearmargin.metrics.thresholds import choose_thresholds, match_scores, pool, score_curve
from clearmargin.networks.backbones import build_backbone
from clearmargin.training.experiment import read_experiment
from clearmargin.transforms.settings import ImageSettings
from clearmargin.transforms.view import prepare, to_channels

BOX_NMS = (0.3, 0.4, 0.5)


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


def build(classes, anchor_sizes, anchor_ratios, detections):
    return MaskRCNN(
        Backbone(96),
        num_classes=None,
        _skip_resize=True,
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
        pixels = to_channels(prepare(image, self.settings), self.settings.channels)
        pixels = torch.from_numpy(np.ascontiguousarray(pixels))
        extents = [round(n * self.settings.scale) for n in image.grid.shape]
        transform = self.model.transform
        transform._skip_resize, transform.min_size, transform.max_size = False, (min(extents),), max(extents)
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


def train(model, experiment, dataset, arguments):
    """Train for some CPU minutes; return the averaged weights."""
    windows = Windows(
        dataset,
        dataset.split("train"),
        experiment.image,
        experiment.augment,
        seed=experiment.seed,
        cache_bytes=2**31,
    )
    settings = experiment.training
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    average = {name: value.detach().clone() for name, value in model.state_dict().items()}
    model.train()
    step, done, started = 0, 0.0, time.process_time()
    while done < 1:
        pairs = [windows[settings.batch_size * step + k] for k in range(settings.batch_size)]
        targets = [{"boxes": t.boxes, "labels": t.labels, "masks": t.masks} for _, t in pairs]
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / settings.warmup_steps)
            group["lr"] = settings.learning_rate * warm * (0.01 + 0.495 * (1 + np.cos(np.pi * done)))
        loss = sum(model([pixels for pixels, _ in pairs], targets).values())
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip_norm)
        optimiser.step()
        step += 1
        share = min(settings.ema, (1 + step) / (10 + step))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                average[name].lerp_(value, 1 - share)
            else:
                average[name].copy_(value)
        done = (time.process_time() - started) / 60 / arguments.minutes
        if step % 50 == 0:
            print(f"step {step}, {done:.0%} of the time, loss {float(loss):.3f}", flush=True)
    print(f"{step} steps in {(time.process_time() - started) / 60:.1f} minutes of CPU time", flush=True)
    return average


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path, help="ours: its card, anchors, windows and schedule")
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument(
        "--weights", type=Path, required=True, help="written after training, read if it exists"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = read_experiment(arguments.config, ())
    dataset = open_dataset(Path(experiment.card))
    torch.manual_seed(experiment.seed)
    model = build(
        len(dataset.card.classes),
        experiment.model["anchor_sizes"],
        experiment.model["anchor_ratios"],
        experiment.model["detections"],
    )
    if not arguments.weights.exists():
        torch.save(train(model, experiment, dataset, arguments), arguments.weights)
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    model.eval()
    plain = Plain(model, experiment.image, dataset.card.label_map)
    best, thresholds = -1.0, None
    for overlap in BOX_NMS:
        model.roi_heads.nms_thresh = overlap
        matches = []
        for case in dataset.split("validation"):
            image, reference = dataset.read(case)
            matches.append(match_scores(plain(image).instances, reference))
        chosen = choose_thresholds(matches, "pq")
        curve = score_curve(pool([m for image in matches for m in image.values()]))
        print(f"box NMS {overlap}: PQ {curve.pq.max():.4f} at score thresholds {chosen}", flush=True)
        if curve.pq.max() > best:
            best, thresholds, nms = curve.pq.max(), Thresholds(0.5, chosen), overlap
    model.roi_heads.nms_thresh = nms
    result = evaluate_cases(plain, dataset, dataset.split("test"), thresholds=thresholds)
    write_tables(result, arguments.weights.with_suffix(".tables"))
    print(render(result))


if __name__ == "__main__":
    main()
