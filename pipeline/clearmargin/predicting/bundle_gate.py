"""Whether a bundle, read by MONAI's own parser, finds the instances that the model finds."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from monai.bundle import ConfigParser

from clearmargin.core import Image, InstanceSet
from clearmargin.core.layers import unpack_layers
from clearmargin.models.parity import Parity, worst
from clearmargin.predicting.bundle_files import CONFIG, METADATA
from clearmargin.predicting.predictor import Predictor
from clearmargin.report.progress import progress
from clearmargin.transforms.loading import loaded_tensor

__all__ = ["compare_bundle"]


def compare_bundle(model: Path, bundle: Path, images: Sequence[Image]) -> tuple[Parity, tuple[float, float]]:
    """Return the largest differences between a model's and its bundle's instances, and the seconds an image takes each.

    Raises:
        InputError: The model refuses an image.
    """
    parser = ConfigParser()
    parser.read_config(str(bundle / CONFIG))
    parser.read_meta(str(bundle / METADATA))
    parser["bundle_root"], parser["device"] = str(bundle), "cpu"
    network = parser.get_parsed_content("network_def")
    inferer = parser.get_parsed_content("inferer")
    predictor = Predictor(model=model, device="cpu")
    differences: list[Parity] = []
    seconds: list[tuple[float, float]] = []
    with progress("compare", len(images)) as bar:
        for image in images:
            start = time.perf_counter()
            expected = predictor.predict_case(image).prediction.instances
            between = time.perf_counter()
            layers = inferer(loaded_tensor(image, name=image.source.case)[None], network)[0]
            seconds.append((between - start, time.perf_counter() - between))
            rows = layers.meta["instances"]
            instances = unpack_layers(
                layers.as_tensor().numpy(),
                image.grid,
                np.array([row["label"] for row in rows], np.int64),
                np.array([row["score"] for row in rows], np.float32),
            )
            differences.append(_difference(expected, instances))
            bar.advance()
    middle = len(seconds) // 2
    return worst(differences), (sorted(s[0] for s in seconds)[middle], sorted(s[1] for s in seconds)[middle])


def _difference(expected: InstanceSet, given: InstanceSet) -> Parity:
    """Return how far two rows of instances are apart, one by one: the same network gives the same order."""
    both = list(zip(expected.masks, given.masks, expected.labels, given.labels, strict=False))
    alike = [(a, b) for a, b, one, two in both if one == two]
    return worst(
        [
            Parity(
                instances=len(alike),
                lost=len(expected) + len(given) - 2 * len(alike),
                score=float(
                    np.abs(expected.scores[: len(both)] - given.scores[: len(both)]).max(initial=0.0)
                ),
            ),
            *(
                Parity(flipped=(a.area + b.area - 2 * a.intersection(b)) / max(1.0, 0.005 * a.area))
                for a, b in alike
            ),
        ]
    )
