"""Whether what was said with a probability comes true that often.

Probabilities are counted in `CELLS` cells of equal width and never kept, so that the pixels of any number of
volumes take the same small memory. Whatever falls in one cell stays together in every number here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from clearmargin.core import Grid
from clearmargin.metrics.boundary import check_band

__all__ = [
    "CELLS",
    "Brier",
    "Reliability",
    "boundary_band",
]

CELLS = 6000
"""Divided by the usual numbers of bins: 10, 12, 15, 20, 25, 30."""

_CHUNK = 1 << 20  # events worked on at once: a volume is never copied whole

Cells = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Brier:
    """The Brier score and what it is made of: ``score = reliability - resolution + uncertainty + within``.

    Attributes:
        score: Mean squared difference of probability and outcome.
        reliability: Mean squared difference of each bin's mean probability and frequency; 0 is best.
        resolution: How far the bins' frequencies are from the overall one; more is better.
        uncertainty: Variance of the outcome: a property of the data.
        within: What is lost where a bin holds different probabilities; small.
    """

    score: float
    reliability: float
    resolution: float
    uncertainty: float
    within: float


@dataclass(kw_only=True)
class Reliability:
    """Counts of probabilities and outcomes, cell by cell.

    Attributes:
        count: ``(CELLS,)`` float64, number of events.
        said: Sum of their probabilities.
        right: Number of those that came true.
        squares: Sum over all events of (probability - outcome)^2.

    With no event every error is 0 and ``total`` says so.
    """

    count: Cells
    said: Cells
    right: Cells
    squares: float = 0.0

    @staticmethod
    def zeros() -> Reliability:
        """Return the counts of no event."""
        return Reliability(count=np.zeros(CELLS), said=np.zeros(CELLS), right=np.zeros(CELLS))

    @staticmethod
    def of(probabilities: ArrayLike, outcomes: ArrayLike) -> Reliability:
        """Return the counts of one array."""
        total = Reliability.zeros()
        total.add(probabilities, outcomes)
        return total

    @staticmethod
    def together(parts: Iterable[Reliability]) -> Reliability:
        """Return the counts of all parts, such as those of several cases; of no event for none."""
        whole = Reliability.zeros()
        for part in parts:
            whole.count += part.count
            whole.said += part.said
            whole.right += part.right
            whole.squares += part.squares
        return whole

    def add(
        self, probabilities: ArrayLike, outcomes: ArrayLike, where: NDArray[np.bool_] | None = None
    ) -> None:
        """Count events.

        Args:
            probabilities: In [0, 1], any shape: that a pixel is foreground, or that an instance is right.
            outcomes: bool, the same shape: whether it is.
            where: bool, the same shape: what to count, such as a `boundary_band`; None for all.

        Raises:
            ValueError: Shapes differ, or a probability is outside [0, 1].
        """
        p, came_true = np.asarray(probabilities), np.asarray(outcomes).astype(bool)
        if p.shape != came_true.shape or (where is not None and where.shape != p.shape):
            raise ValueError(f"probabilities of shape {p.shape} and outcomes of shape {came_true.shape}")
        if not p.size:
            return
        if not (p.min() >= 0 and p.max() <= 1):  # refuses NaN as well
            raise ValueError("a probability lies in [0, 1]")
        flat, outcome, mask = p.ravel(), came_true.ravel(), None if where is None else where.ravel()
        for start in range(0, flat.size, _CHUNK):
            part = slice(start, start + _CHUNK)
            if mask is None:
                self._count(flat[part], outcome[part])
            else:
                self._count(flat[part][mask[part]], outcome[part][mask[part]])

    def _count(self, probabilities: NDArray[np.floating], came_true: NDArray[np.bool_]) -> None:
        p = probabilities.astype(np.float64)
        cell = self.cell(p)
        self.count += np.bincount(cell, minlength=CELLS)
        self.said += np.bincount(cell, p, CELLS)
        self.right += np.bincount(cell[came_true], minlength=CELLS)
        self.squares += float(((p - came_true) ** 2).sum())

    @staticmethod
    def cell(probabilities: Cells) -> NDArray[np.int64]:
        """Return each probability's cell: right-closed, as sklearn's calibration_curve; 0 is in the first."""
        return np.maximum(np.ceil(probabilities * CELLS - 1e-9).astype(np.int64) - 1, 0)

    @property
    def total(self) -> int:
        """Number of events."""
        return int(self.count.sum())

    def curve(self, bins: int = 15) -> tuple[Cells, Cells, Cells]:
        """Return mean confidence, share that came true and number of events of ``bins`` bins of equal width.

        An empty bin has its middle as confidence and NaN as share: a gap in the diagram (`report.figures`).

        Raises:
            ValueError: ``bins`` does not divide `CELLS`.
        """
        count, said, right = self._merged(np.arange(0, CELLS, self._width(bins)))
        some = count > 0
        middles = (np.arange(bins) + 0.5) / bins
        return (
            np.where(some, said / np.maximum(count, 1), middles),
            np.where(some, right / np.maximum(count, 1), np.nan),
            count,
        )

    def ece(self, bins: int = 15) -> float:
        """Return the expected calibration error: the mean gap of confidence and frequency, bins of equal width.

        Source: Naeini et al., AAAI 2015; Guo et al., ICML 2017.
        """
        return _mean_gap(*self._merged(np.arange(0, CELLS, self._width(bins))))

    def mce(self, bins: int = 15) -> float:
        """Return the maximum calibration error: the largest gap of any bin that holds an event.

        Source: Naeini et al., AAAI 2015.
        """
        count, said, right = self._merged(np.arange(0, CELLS, self._width(bins)))
        some = count > 0
        return float((np.abs(said - right)[some] / count[some]).max(initial=0.0))

    def ace(self, bins: int = 15) -> float:
        """Return the adaptive calibration error: as `ece`, with bins that hold equally many events.

        A cell goes to the bin in which its middle event lies, and is not divided.

        Source: Nixon et al., CVPR workshops 2019; bins weighted by what they hold, as cells cannot be cut.
        """
        if bins < 1:
            raise ValueError(f"at least one bin is needed, not {bins}")
        if not self.total:
            return 0.0
        filled = np.flatnonzero(self.count)
        middle = np.cumsum(self.count[filled]) - self.count[filled] / 2
        group = np.minimum((middle / self.total * bins).astype(np.int64), bins - 1)
        starts = np.flatnonzero(np.diff(group, prepend=-1))
        return _mean_gap(*(np.add.reduceat(v[filled], starts) for v in (self.count, self.said, self.right)))

    def brier(self, bins: int = 15) -> Brier:
        """Return the Brier score and its decomposition over ``bins`` bins of equal width.

        Source: Brier, Monthly Weather Review 1950; Murphy, Journal of Applied Meteorology 1973.
        """
        if not self.total:
            return Brier(score=0.0, reliability=0.0, resolution=0.0, uncertainty=0.0, within=0.0)
        count, said, right = self._merged(np.arange(0, CELLS, self._width(bins)))
        count, said, right = count[count > 0], said[count > 0], right[count > 0]
        n, overall = count.sum(), right.sum() / count.sum()
        score = self.squares / n
        reliability = float((count * ((said - right) / count) ** 2).sum() / n)
        resolution = float((count * (right / count - overall) ** 2).sum() / n)
        uncertainty = float(overall * (1 - overall))
        return Brier(
            score=float(score),
            reliability=reliability,
            resolution=resolution,
            uncertainty=uncertainty,
            within=float(score) - (reliability - resolution + uncertainty),
        )

    def cells(self) -> tuple[Cells, Cells, Cells]:
        """Return mean probability, share that came true and number of events of each cell that holds one."""
        some = self.count > 0
        count = self.count[some]
        return self.said[some] / count, self.right[some] / count, count

    def _merged(self, starts: NDArray[np.int64]) -> tuple[Cells, Cells, Cells]:
        count, said, right = (np.add.reduceat(v, starts) for v in (self.count, self.said, self.right))
        return count, said, right

    @staticmethod
    def _width(bins: int) -> int:
        if bins < 1 or CELLS % bins:
            raise ValueError(f"{bins} bins do not divide {CELLS} cells: take 10, 12, 15, 20, 25 or 30")
        return CELLS // bins


def _mean_gap(count: Cells, said: Cells, right: Cells) -> float:
    total = count.sum()
    return float(np.abs(said - right).sum() / total) if total else 0.0


def boundary_band(foreground: NDArray[np.bool_], spacing: Sequence[float], band: float) -> NDArray[np.bool_]:
    """Return the elements within ``band`` of the edge of the reference's foreground, on both sides of it.

    Their centre lies within ``band`` of the centre of an element on the other side, as in `trimap_iou`; the
    image's own edge is none. No foreground or nothing else: no element. `Reliability.add` with it as ``where``
    gives the boundary-band ECE.

    Args:
        foreground: ``(Z, Y, X)`` or ``(Y, X)``.
        spacing: Length of a step along each axis.
        band: In the same unit, at least the smallest spacing.

    Raises:
        ValueError: The band is below the smallest spacing.
    """
    from clearmargin.metrics.bands import round_band

    steps = tuple(float(s) for s in spacing)
    check_band(Grid.from_spacing(foreground.shape, steps), band)
    inside = round_band(foreground, steps, band, edge=False)
    outside = round_band(~foreground, steps, band, edge=False)
    return np.asarray(inside | outside)
