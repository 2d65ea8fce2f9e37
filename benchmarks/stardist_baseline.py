"""StarDist on the same images in as many CPU minutes as ours: an optional step, in an environment of its own.

StarDist (BSD-3) needs TensorFlow, which has no place beside torch in the project's environment::

    python -m venv stardist && stardist/bin/pip install stardist tensorflow-cpu
    python benchmarks/stardist_baseline.py export data_cards/dsb2018_nuclei.yaml stardist-data
    stardist/bin/python benchmarks/stardist_baseline.py train stardist-data --minutes 20
    python benchmarks/stardist_baseline.py evaluate data_cards/dsb2018_nuclei.yaml stardist-data

``train`` uses StarDist's own defaults (32 rays, grid of 2 x 2, windows of 256 x 256, batches of 4, Adam), the
augmentation of its examples, and its own choice of both thresholds on the validation split. Minutes are CPU time of one
thread; the learning rate falls with them.

Source: Schmidt, Weigert, Broaddus and Myers, "Cell detection with star-convex polygons", MICCAI 2018.
"""

import argparse
import contextlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np

SPLITS = ("train", "validation", "test")
LOWEST = 0.05  # of the probabilities that average precision ranks


def export(arguments):
    """Write the splits' images, ``(Y, X, 3)``, and label images."""
    from clearmargin.datasets.cases import open_dataset
    from clearmargin.transforms.view import to_channels

    dataset = open_dataset(arguments.card)
    for split in SPLITS:
        folder = arguments.folder / split
        folder.mkdir(parents=True, exist_ok=True)
        for number, case in enumerate(dataset.split(split)):
            image, instances = dataset.read(case)
            labels = np.zeros(image.grid.shape, np.int32)
            for k, mask in enumerate(instances.masks, 1):
                labels[mask.slices][mask.crop] = k
            pixels = np.moveaxis(to_channels(image.pixels, 3), 0, -1)
            np.savez_compressed(folder / f"{number:04d}.npz", image=pixels, labels=labels)


def train(arguments):
    """Train, choose the thresholds, and write the test split's label images and probabilities."""
    os.environ |= {"OMP_NUM_THREADS": "1", "TF_NUM_INTRAOP_THREADS": "1", "TF_NUM_INTEROP_THREADS": "1"}
    from csbdeep.utils import normalize
    from stardist.models import Config2D, StarDist2D
    from tensorflow import keras

    def read(split):
        files = [np.load(path) for path in sorted((arguments.folder / split).glob("*.npz"))]
        images = [normalize(f["image"].astype(np.float32), 1, 99.8, axis=(0, 1, 2)) for f in files]
        return images, [f["labels"] for f in files]

    class Clock(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            self.started, self.steps = time.process_time(), 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            done = (time.process_time() - self.started) / 60 / arguments.minutes
            rate = 0.01 + 0.495 * (1 + math.cos(math.pi * min(done, 1)))
            self.model.optimizer.learning_rate.assign(arguments.learning_rate * rate)
            if done >= 1:
                self.model.stop_training = True
                raise StopIteration

    clock, generator = Clock(), np.random.default_rng(0)
    images, labels = read("train")
    held_images, held_labels = read("validation")
    config = Config2D(
        n_rays=32,
        grid=(2, 2),
        n_channel_in=3,
        train_batch_size=4,
        train_patch_size=(256, 256),
        train_epochs=10_000,
        train_steps_per_epoch=50,
        train_learning_rate=arguments.learning_rate,
        train_reduce_lr=None,
        train_tensorboard=False,
        train_checkpoint=None,
        train_checkpoint_epoch=None,
        train_checkpoint_last=None,
    )
    model = StarDist2D(config, name="stardist", basedir=str(arguments.folder / "models"))
    model.prepare_for_training()
    model.callbacks.append(clock)
    # A few windows to look at between epochs: judging all of the split would take the training's time.
    few = [k for k, image in enumerate(held_images) if min(image.shape[:2]) >= 256][:1]
    with contextlib.suppress(StopIteration):
        model.train(
            images,
            labels,
            validation_data=([held_images[k] for k in few], [held_labels[k] for k in few]),
            augmenter=lambda image, mask: augmented(image, mask, generator),
            seed=0,
        )
    spent = (time.process_time() - clock.started) / 60
    print(f"{clock.steps} steps in {spent:.1f} minutes of CPU time", flush=True)
    thresholds = model.optimize_thresholds(held_images, held_labels)
    print(f"thresholds on the validation split: {thresholds}", flush=True)
    out = arguments.folder / "predicted"
    out.mkdir(exist_ok=True)
    test, _ = read("test")
    for number, image in enumerate(test):
        predicted, details = model.predict_instances(image, prob_thresh=LOWEST)
        np.savez_compressed(out / f"{number:04d}.npz", labels=predicted, scores=details["prob"])
    (out / "thresholds.json").write_text(json.dumps(dict(thresholds)))


def augmented(image, labels, generator):
    """Return a window mirrored, turned, changed in intensity and with noise, as in StarDist's examples."""
    turns, flip = generator.integers(4), generator.integers(2)
    image, labels = np.rot90(image, turns), np.rot90(labels, turns)
    if flip:
        image, labels = image[::-1], labels[::-1]
    image = image * generator.uniform(0.6, 2) + generator.uniform(-0.2, 0.2)
    return image + 0.02 * generator.uniform() * generator.normal(size=image.shape), labels


def evaluate(arguments):
    """Print what `clearmargin evaluate` prints, of the masks that ``train`` wrote."""
    from types import SimpleNamespace

    from clearmargin.core import InstanceSet, Mask, Thresholds
    from clearmargin.datasets.cases import open_dataset
    from clearmargin.evaluate import evaluate_cases, render, write_tables

    dataset = open_dataset(arguments.card)
    folder = arguments.folder / "predicted"
    files = iter(sorted(folder.glob("*.npz")))

    def stored(image):
        held = np.load(next(files))
        masks = [Mask.from_dense(held["labels"] == k + 1) for k in range(len(held["scores"]))]
        instances = InstanceSet(
            grid=image.grid,
            masks=tuple(masks),
            labels=np.ones(len(masks), np.int64),
            scores=np.clip(held["scores"], 0, 1).astype(np.float32),
        )
        return SimpleNamespace(instances=instances.select(np.array([m.area > 0 for m in masks], bool)))

    threshold = json.loads((folder / "thresholds.json").read_text())["prob"]
    result = evaluate_cases(stored, dataset, dataset.split("test"), thresholds=Thresholds(threshold))
    write_tables(result, arguments.folder / "tables")
    print(render(result))


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(required=True)
    for step in (export, train, evaluate):
        one = steps.add_parser(step.__name__, help=step.__doc__)
        if step is not train:
            one.add_argument("card", type=Path)
        one.add_argument("folder", type=Path)
        one.set_defaults(step=step)
        if step is train:
            one.add_argument("--minutes", type=float, default=20)
            one.add_argument("--learning-rate", type=float, default=3e-4)
    arguments = parser.parse_args()
    arguments.step(arguments)


if __name__ == "__main__":
    main()
