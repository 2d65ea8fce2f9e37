"""The line to beat for landmarks: torchvision's Keypoint R-CNN with our backbone, windows and minutes.

    python benchmarks/keypoint_baseline.py points.yaml --minutes 5 --weights plain.pt

The network is ``torchvision.models.detection.KeypointRCNN`` over EfficientNet-lite0 and an FPN, with heads of the sizes
that our Mask R-CNN has. It is given all that is not the network: our windows, augmentation, schedule and averaged
weights. An object's box is that around its points in the window, wider by a tenth and by 12 pixels. Minutes are CPU
time of one thread. It is evaluated by the same code as ours.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torchvision.models.detection import KeypointRCNN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.ops import MultiScaleRoIAlign
from torchvision_baseline import Backbone

from clearmargin.core import Image, InstanceSet, LabelMap, Landmarks, Prediction, Provenance, Thresholds
from clearmargin.datasets.cases import open_dataset
from clearmargin.datasets.samples import Windows
from clearmargin.evaluate import evaluate_cases, render, write_tables
from clearmargin.training.experiment import read_experiment
from clearmargin.transforms.settings import ImageSettings
from clearmargin.transforms.view import augment_intensity, prepare, to_channels


def build(points):
    return KeypointRCNN(
        Backbone(96),
        num_classes=None,
        _skip_resize=True,
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 7, 2),
        box_head=TwoMLPHead(96 * 49, 256),
        box_predictor=FastRCNNPredictor(256, 2),
        box_batch_size_per_image=128,
        box_detections_per_img=10,
        keypoint_roi_pool=MultiScaleRoIAlign(["0", "1", "2", "3"], 14, 2),
        keypoint_head=KeypointRCNNHeads(96, (96,) * 4),
        keypoint_predictor=KeypointRCNNPredictor(96, points),
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
        points = found["keypoints"].numpy()[..., 1::-1] - 0.5  # its pixels begin at whole numbers
        n, k = points.shape[:2]
        landmarks = Landmarks.of(
            self.label_map.points,
            points,
            np.full((n, k), 2, np.int8),
            scores=np.repeat(found["scores"].numpy()[:, None], k, axis=1),
        )
        instances = InstanceSet(
            grid=image.grid,
            masks=(),
            labels=np.zeros(0, np.int64),
            scores=np.zeros(0),
            landmarks=landmarks.inside(image.grid.shape),
        )
        provenance = Provenance(
            model="torchvision", weights_sha256="", config_sha256="", software="torchvision"
        )
        return Prediction(instances=instances, label_map=self.label_map, provenance=provenance)


def sample(windows, position):
    """Return a window and its objects as torchvision wants them."""
    generator = np.random.default_rng((windows.seed, position))
    pixels, found = windows._draw(windows.walks.case_at(position), windows.augment, generator)
    pixels = augment_intensity(pixels, windows.augment, generator)
    boxes, points = [], []
    height, width = pixels.shape[-2:]
    for at, visible in zip(found.landmarks.points, found.landmarks.visible, strict=True):
        seen = at[visible > 0] + 0.5
        low, high = seen.min(axis=0), seen.max(axis=0)
        low, high = low - 12 - 0.1 * (high - low), high + 12 + 0.1 * (high - low)
        low, high = np.maximum(low, 0), np.minimum(high, (height, width))
        boxes.append([low[1], low[0], high[1], high[0]])
        places = np.nan_to_num(at[:, ::-1] + 0.5)
        points.append(np.column_stack([places, 1.0 * (visible > 0)]))
    return pixels, {
        "boxes": torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
        "labels": torch.ones(len(boxes), dtype=torch.int64),
        "keypoints": torch.tensor(
            np.array(points).reshape(-1, found.landmarks.visible.shape[1], 3), dtype=torch.float32
        ),
    }


def train(model, experiment, dataset, minutes):
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
        pairs = [sample(windows, settings.batch_size * step + k) for k in range(settings.batch_size)]
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / settings.warmup_steps)
            group["lr"] = settings.learning_rate * warm * (0.01 + 0.495 * (1 + np.cos(np.pi * done)))
        loss = sum(model([pixels for pixels, _ in pairs], [t for _, t in pairs]).values())
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
        done = (time.process_time() - started) / 60 / minutes
        if step % 50 == 0:
            print(f"step {step}, {done:.0%} of the time, loss {loss.item():.3f}", flush=True)
    print(f"{step} steps in {(time.process_time() - started) / 60:.1f} minutes of CPU time", flush=True)
    return average


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("config", type=Path, help="ours: its card, windows and schedule")
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--threshold", type=float, default=0.5, help="least score of an object")
    parser.add_argument("--most", type=int, default=2, help="most objects of an image")
    parser.add_argument(
        "--weights", type=Path, required=True, help="written after training, read if it exists"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    experiment = read_experiment(arguments.config, ())
    dataset = open_dataset(Path(experiment.card))
    torch.manual_seed(experiment.seed)
    model = build(len(dataset.card.points))
    if not arguments.weights.exists():
        torch.save(train(model, experiment, dataset, arguments.minutes), arguments.weights)
    model.load_state_dict(torch.load(arguments.weights, weights_only=True))
    model.eval()
    model.roi_heads.detections_per_img = arguments.most
    plain = Plain(model, experiment.image, dataset.card.label_map)
    thresholds = Thresholds(arguments.threshold)
    result = evaluate_cases(plain, dataset, dataset.split("test"), thresholds=thresholds)
    write_tables(result, arguments.weights.with_suffix(".tables"))
    print(render(result))


if __name__ == "__main__":
    main()
