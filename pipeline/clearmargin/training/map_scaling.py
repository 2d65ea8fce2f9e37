"""How sure the maps of a trained network are, against what is true: one temperature for each class, in its weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearmargin.config import load_settings
from clearmargin.core import Image, InstanceSet, Mask
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.margins.scaling import Temperature, fit_temperature
from clearmargin.metrics.calibration import Reliability, boundary_band
from clearmargin.models.files import CONFIG_FILE
from clearmargin.models.folder import ModelCard, load_segmenter, save_model
from clearmargin.networks.foreground import divide_map_logits
from clearmargin.sampling.samples import SampledSegmenter, augmented

__all__ = ["ClassCounts", "scale_maps"]

log = logging.getLogger(__name__)

_CASES = (
    8  # that are looked at, spread evenly: a temperature is one number, and each case has thousands of pixels
)
_LEAST = 1000  # pixels near edges


def scale_maps(folder: Path, dataset: Dataset, cases: Sequence[Case]) -> dict[str, float]:
    """Divide the logits of a model's maps by the temperatures that fit ``cases``, once; return them by class.

    The mean over the views of test-time augmentation is looked at: maps are means, which are less sure than their
    parts. The weights in the folder are changed, in the layer that maps alone are made with, and its card says so.

    Args:
        folder: A model folder.
        dataset: Where the cases are read from.
        cases: That the model was validated on.

    Returns:
        Of classes whose temperature is not 1; none for a network whose maps and instances come from one layer, or
        without cases.
    """
    card = load_settings(folder / CONFIG_FILE, ModelCard)
    segmenter = load_segmenter(folder)
    if segmenter.network.map_layer is None or not cases:
        return {}
    if card.map_temperatures:
        return card.map_temperatures
    names = {c.id: c.name for c in segmenter.label_map.classes}
    counts = [ClassCounts() for _ in names]
    sampled = augmented(segmenter)
    for case in cases[:: math.ceil(len(cases) / _CASES)]:
        image, reference = dataset.read(case)
        tallies = [_Tally.of(counts[k], reference, k + 1) for k in range(len(counts))]
        for z, plane in enumerate(mean_probabilities(sampled, image)):
            for tally, probabilities in zip(tallies, plane, strict=True):
                tally.add(z, probabilities)
    temperatures = [own.temperature() for own in counts]
    by_name = {names[k + 1]: t for k, t in enumerate(temperatures) if t != 1}
    if by_name:
        divide_map_logits(segmenter.network, temperatures)
        changed = card.model_copy(update={"map_temperatures": by_name})
        save_model(folder, changed, segmenter.network.state_dict())
    return by_name


def mean_probabilities(sampled: SampledSegmenter, image: Image) -> Iterator[NDArray[np.float32]]:
    """Yield the members' mean probability of each class in each plane, ``(K, Y, X)``, in slice order."""
    walks = [
        member.segmenter.looks(member.segmenter.prepared(image), member.view, maps=True)
        for member in sampled.members
    ]
    depth, z = image.grid.shape[0] if image.grid.ndim == 3 else 1, 0
    while z < depth:
        sums: list[NDArray[np.float32]] = []  # of one plane, or of all, as far as a look reaches
        for walk in walks:
            for k, plane in enumerate(next(walk).foreground()):
                if k == len(sums):
                    sums.append(plane)
                else:
                    sums[k] += plane
        z += len(sums)
        while sums:
            yield np.divide(sums.pop(0), len(walks), dtype=np.float32)


@dataclass(kw_only=True)
class ClassCounts:
    """Probabilities of one class against what is true.

    Attributes:
        every: Counts of all pixels outside the ignored region.
        band: Of those within two of the largest steps of the grid of the class's edge.
    """

    every: Reliability = field(default_factory=Reliability.zeros)
    band: Reliability = field(default_factory=Reliability.zeros)

    def temperature(self) -> float:
        """Return the temperature that fits best near the edge, as far as the whole image is no less likely with it.

        Near the edge of a network that knows nothing, one half is the best guess, and everywhere else it is a bad one.
        1 where there is too little to fit on.
        """
        if self.band.total < _LEAST:
            return 1.0
        fitted = fit_temperature(*self.band.cells())
        if not isinstance(fitted, Temperature) or fitted.at_limit:
            return 1.0
        most, before = 1 / fitted.temperature - 1, _surprise(self.every, 1.0)

        def allowed(share: float) -> bool:
            return _surprise(self.every, 1 + share * most) <= before

        # The likelihood is concave in 1 / T: what is allowed goes from 1 to one end.
        low, high = (1.0, 1.0) if allowed(1.0) else (0.0, 1.0)
        for _ in range(30 if low < high else 0):
            middle = (low + high) / 2
            low, high = (middle, high) if allowed(middle) else (low, middle)
        return 1 / (1 + low * most)


def _surprise(counts: Reliability, factor: float) -> float:
    """Return the negative log-likelihood of what was counted, summed, with logits times a factor."""
    from scipy.special import log_expit, logit

    said, right, count = counts.cells()
    doubtful = (said > 0) & (said < 1)
    x, y, n = factor * logit(said[doubtful]), right[doubtful], count[doubtful]
    return float(-(n * (y * log_expit(x) + (1 - y) * log_expit(-x))).sum())


@dataclass(frozen=True, kw_only=True)
class _Tally:
    """What one case adds to a class's counts, plane by plane; of the band the places alone are held.

    Attributes:
        counts: That are added to.
        truth: What of the class is there, and ``ignored`` what is not known.
        band: Flat indices of the pixels near the edge, rising.
    """

    counts: ClassCounts
    truth: Mask
    ignored: Mask | None
    band: NDArray[np.int64]

    @staticmethod
    def of(counts: ClassCounts, reference: InstanceSet, label: int) -> _Tally:
        grid = reference.grid
        masks = [m for m, own in zip(reference.masks, reference.labels, strict=True) if own == label]
        truth = Mask.union(masks, grid.shape)
        near = boundary_band(truth.dense(), grid.spacing, 2 * max(grid.spacing))
        return _Tally(
            counts=counts, truth=truth, ignored=reference.unmeasured(label), band=np.flatnonzero(near)
        )

    def add(self, z: int, probabilities: NDArray[np.float32]) -> None:
        """Count plane ``z``, ``(Y, X)``."""
        shape = (probabilities.shape[0], probabilities.shape[1])
        truth, ignored = (_plane(mask, z, shape) for mask in (self.truth, self.ignored))
        self.counts.every.add(probabilities, truth, where=~ignored)
        first, last = np.searchsorted(self.band, (z * truth.size, (z + 1) * truth.size))
        here = self.band[first:last] - z * truth.size
        asked = ~ignored.ravel()[here]
        self.counts.band.add(probabilities.ravel()[here], truth.ravel()[here], where=asked)


def _plane(mask: Mask | None, z: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Return a mask's slice ``z``, or all of a picture's."""
    if mask is None:
        return np.zeros(shape, bool)
    return (mask.plane(z) if len(mask.shape) == 3 else mask).dense()
