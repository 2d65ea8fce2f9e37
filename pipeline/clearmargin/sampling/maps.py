"""Uncertainty maps from samples of a foreground probability, streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

__all__ = ["MAPS", "Moments", "entropy", "foreground", "mutual_information", "predictive_entropy", "variance"]

Map = NDArray[np.float32]


@dataclass(kw_only=True)
class Moments:
    """What the maps need of all samples; memory does not grow with their number.

    Kept are the mean and two sums that only grow, so that few bits are enough for them (Welford, Technometrics 4(3),
    1962): a difference of large sums would need all of its own.

    Attributes:
        count: Number of samples.
        mean: Mean of the samples' probabilities, of the image's shape.
        deviations: Sum of their squared deviations from it.
        disagreement: ``count`` times the entropy of the mean, less the sum of the samples' entropies, in bits.
    """

    count: int
    mean: NDArray[np.floating]
    deviations: NDArray[np.floating]
    disagreement: NDArray[np.floating]

    @staticmethod
    def zeros(shape: tuple[int, ...], *, compact: bool = False) -> Moments:
        """Return the moments of no sample.

        Args:
            shape: Shape of the image.
            compact: For a whole volume: a mean of 32 bits and sums of 16, true to 1 part in 2,000 per sample.
        """
        mean, sums = (np.float32, np.float16) if compact else (np.float64, np.float64)
        return Moments(
            count=0,
            mean=np.zeros(shape, mean),
            deviations=np.zeros(shape, sums),
            disagreement=np.zeros(shape, sums),
        )

    def add(self, probability: NDArray[np.floating]) -> None:
        """Count one more sample: probabilities in [0, 1], of the image's shape."""
        self.count += 1
        some = (probability > 0) | (self.mean > 0)  # most of an image is background, where nothing changes
        new, old = probability[some].astype(np.float64), self.mean[some].astype(np.float64)
        mean = old + (new - old) / self.count
        self.mean[some] = mean
        self.deviations[some] += (new - old) * (new - mean)
        more = self.count * entropy(mean) - (self.count - 1) * entropy(old) - entropy(new)
        self.disagreement[some] += np.maximum(more, 0.0)


def entropy(probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the entropy of a yes-or-no event in bits: 0 where it is certain, 1 for a coin toss."""
    p = np.clip(probability, 0.0, 1.0)
    q = 1.0 - p
    # p log p is 0 at p = 0
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = -np.where(p > 0, p * np.log2(p), 0.0) - np.where(q > 0, q * np.log2(q), 0.0)
    return bits + 0.0  # no negative zero


def foreground(moments: Moments) -> Map:
    """Return the mean foreground probability. Probabilities are averaged, not logits."""
    _counted(moments)
    return moments.mean.astype(np.float32)


def predictive_entropy(moments: Moments) -> Map:
    """Return the entropy of the mean probability in bits, [0, 1]: all uncertainty together.

    Source: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning?", NeurIPS 2017.
    """
    _counted(moments)
    return entropy(moments.mean.astype(np.float64)).astype(np.float32)


def mutual_information(moments: Moments) -> Map:
    """Return predictive entropy less the samples' mean entropy in bits, [0, 1]: where the samples disagree.

    0 for a single sample. Source: Houlsby et al., arXiv:1112.5745.
    """
    return (moments.disagreement.astype(np.float64) / _counted(moments)).astype(np.float32)


def variance(moments: Moments) -> Map:
    """Return the samples' variance, [0, 0.25]; 0 for a single sample."""
    return (moments.deviations.astype(np.float64) / _counted(moments)).astype(np.float32)


MAPS: dict[str, Callable[[Moments], Map]] = {
    "foreground": foreground,
    "entropy": predictive_entropy,
    "mutual_information": mutual_information,
    "variance": variance,
}


def _counted(moments: Moments) -> int:
    if not moments.count:
        raise ValueError("no sample was added: a map needs at least one")
    return moments.count
