"""Uncertainty maps from samples of a foreground probability, streamed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

__all__ = ["MAPS", "Moments", "entropy", "foreground", "mutual_information", "predictive_entropy", "variance"]

Map = NDArray[np.float32]


@dataclass(kw_only=True)
class Moments:
    """What the maps need of all samples; memory does not grow with their number.

    Attributes:
        count: Number of samples.
        total: Sum of the samples' probabilities, of the image's shape, at least two axes.
        squares: Sum of their squares.
        entropies: Sum of their entropies, in bits.
    """

    count: int
    total: NDArray[np.floating]
    squares: NDArray[np.floating]
    entropies: NDArray[np.floating]

    @staticmethod
    def zeros(shape: tuple[int, ...], dtype: DTypeLike = np.float64) -> Moments:
        """Return the moments of no sample."""
        return Moments(
            count=0,
            total=np.zeros(shape, dtype),
            squares=np.zeros(shape, dtype),
            entropies=np.zeros(shape, dtype),
        )

    def add(self, probability: NDArray[np.floating]) -> None:
        """Count one more sample: probabilities in [0, 1], of the image's shape."""
        self.count += 1
        for line in np.ndindex(self.total.shape[:-2]):
            p = probability[line]
            some = p > 0  # most of an image is background, and 0 adds nothing
            values = p[some].astype(np.float64)
            self.total[line][some] += values
            self.squares[line][some] += values**2
            self.entropies[line][some] += entropy(values)


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
    return (moments.total / _counted(moments)).astype(np.float32)


def predictive_entropy(moments: Moments) -> Map:
    """Return the entropy of the mean probability in bits, [0, 1]: all uncertainty together.

    Source: Kendall and Gal, "What uncertainties do we need in Bayesian deep learning?", NeurIPS 2017.
    """
    return entropy(moments.total / _counted(moments)).astype(np.float32)


def mutual_information(moments: Moments) -> Map:
    """Return predictive entropy less the samples' mean entropy in bits, [0, 1]: where the samples disagree.

    0 for a single sample. Source: Houlsby et al., arXiv:1112.5745.
    """
    count = _counted(moments)
    bits = entropy(moments.total / count) - moments.entropies / count
    return np.maximum(bits, 0.0).astype(np.float32)


def variance(moments: Moments) -> Map:
    """Return the samples' variance, [0, 0.25]; 0 for a single sample."""
    count = _counted(moments)
    return np.maximum(moments.squares / count - (moments.total / count) ** 2, 0.0).astype(np.float32)


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
