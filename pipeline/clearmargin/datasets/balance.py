"""Which case comes when: rare classes more often, and still each position from the seed alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence, Set
from itertools import chain

import numpy as np
from numpy.typing import NDArray

__all__ = ["Walks", "repeat_factors"]


def repeat_factors(classes: Sequence[Set[int]], threshold: float) -> NDArray[np.float64]:
    """Return how often each of N cases is seen in a walk through all of them, ``(N,)``, at least 1.

    ``max(1, sqrt(threshold / f))`` for the rarest of the case's classes, where f is the share of cases that hold the
    class; 1 for a case without an instance.

    Source: Gupta et al., "LVIS", CVPR 2019, after Mahajan et al., ECCV 2018.
    """
    counts = Counter(chain.from_iterable(classes))
    rarest = [min((counts[c] for c in held), default=len(classes)) for held in classes]
    return np.maximum(1.0, np.sqrt(threshold * len(classes) / np.array(rarest, np.float64)))


class Walks:
    """An endless row of cases: all of them in a random order, then all again in another.

    A case with a factor of 2.3 comes twice in each walk and a third time in three walks of ten. Which case stands
    at a position is a function of (seed, position), whatever was asked before.
    """

    def __init__(self, factors: NDArray[np.float64], *, seed: int) -> None:
        self.factors, self.seed = factors, seed
        self._starts = [0]
        self._last: tuple[int, NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def case_at(self, position: int) -> int:
        """Return the index of the case at ``position``, from 0 on."""
        while self._starts[-1] <= position:
            self._starts.append(self._starts[-1] + int(self._times(len(self._starts) - 1).sum()))
        walk = int(np.searchsorted(self._starts, position, side="right")) - 1
        if self._last[0] != walk:
            cases = np.repeat(np.arange(len(self.factors)), self._times(walk))
            order = np.random.default_rng((self.seed, 2**32 + walk)).permutation(len(cases))
            self._last = (walk, cases[order])
        return int(self._last[1][position - self._starts[walk]])

    def _times(self, walk: int) -> NDArray[np.int64]:
        """Return how often each case comes in a walk: its factor, rounded up as often as its fraction says."""
        whole = np.floor(self.factors)
        chance = np.random.default_rng((self.seed, 2**33 + walk)).random(len(whole))
        return (whole + (chance < self.factors - whole)).astype(np.int64)
