"""Whether maps show boxes, and how true they are: ``python benchmarks/bench_maps.py MODEL CARD``.

At each border of a box of each member's detections, away from the true edges, the map's value one pixel inside is
compared with that two pixels outside. The map's own noise is the same difference at pixels of similar value that lie
at no border. Calibration is that of the foreground map, all pixels and those within two elements of the true edge.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.datasets.cases import open_dataset
from clearmargin.models.segmenter import PlaneDetections
from clearmargin.uncertainty.observed import PixelCounts
from clearmargin.uncertainty.sampling import SampledSegmenter, open_segmenter

_MAPS = ("foreground", "entropy", "mutual_information", "variance")
_EDGE = 5  # pixels from a true edge within which a map may change
_APART = 3  # pixels between the two that are compared
_BINS = 20  # of a map's values
_LEAST = 0.02  # of a map's highest value: what is darker is background


def main() -> None:
    """Measure a model's maps on a split of a card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("card", type=Path)
    parser.add_argument("--split", default="test")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--uncertainty", default="tta")
    chosen = parser.parse_args()
    segmenter = open_segmenter(chosen.model, chosen.uncertainty)
    dataset = open_dataset(chosen.card)
    steps: dict[str, list[NDArray[np.float64]]] = {name: [] for name in _MAPS}
    pixels = PixelCounts()
    cases = dataset.split(chosen.split)[: chosen.cases]
    for case in cases:
        image, reference = dataset.read(case)
        prediction = segmenter(image)
        pixels.add(prediction.maps["foreground"], reference)
        for name, sums in measure(segmenter, image, prediction, reference).items():
            steps[name].append(sums)
    print(f"{len(cases)} cases of '{chosen.split}', {chosen.uncertainty}")
    for name, every in steps.items():
        at_border, elsewhere, count = compare(np.sum(every, axis=0))
        print(
            f"{name}: {at_border:.4f} at {count} border pixels, {elsewhere:.4f} elsewhere at similar values: "
            f"{at_border / elsewhere:.2f}"
        )
    for what, counts in (("all pixels", pixels.every), ("near the edge", pixels.band)):
        print(f"{what}: ECE {counts.ece():.4f}, Brier {counts.brier().score:.4f}, {counts.total} pixels")


def measure(
    segmenter: SampledSegmenter, image: Image, prediction: Prediction, reference: InstanceSet
) -> dict[str, NDArray[np.float64]]:
    """Return of each map, by bin of its value, the sums and counts at borders and elsewhere, ``(4, bins)``."""
    spans = {name: float(prediction.maps[name].max()) or 1.0 for name in _MAPS}
    sums = {name: np.zeros((4, _BINS)) for name in _MAPS}
    for z, borders in enumerate(box_borders(segmenter, image)):
        truth = reference if image.grid.ndim == 2 else reference.plane(z)[0]
        settled = away_from_edges(truth)
        for axis in (0, 1):
            for name in _MAPS:
                values = prediction.maps[name] if image.grid.ndim == 2 else prediction.maps[name][z]
                sums[name] += _binned(values / spans[name], settled, borders[axis], axis) * np.array(
                    [[spans[name]], [1], [spans[name]], [1]]
                )
    return sums


def compare(sums: NDArray[np.float64]) -> tuple[float, float, int]:
    """Return the mean step at borders, that elsewhere at the same mix of values, and the number of the former."""
    at_border, count, elsewhere, others = sums[:, int(_LEAST * _BINS) + 1 :]
    both = (count > 0) & (others > 0)
    share = count[both] / count[both].sum()
    return (
        float(at_border[both].sum() / count[both].sum()),
        float((share * elsewhere[both] / others[both]).sum()),
        int(count[both].sum()),
    )


def box_borders(segmenter: SampledSegmenter, image: Image) -> Iterator[list[NDArray[np.bool_]]]:
    """Yield of each plane where borders of boxes lie: marked at the last pixel before them, across y and across x."""
    walks = [
        member.segmenter.looks(member.segmenter.prepared(image), member.view) for member in segmenter.members
    ]
    for looks in zip(*walks, strict=True):
        marked = [np.zeros(looks[0].grid.shape, bool) for _ in range(2)]
        for look in looks:
            if not isinstance(look, PlaneDetections):
                raise SystemExit("networks of volumes have no boxes")
            for x1, y1, x2, y2 in look.found.boxes.cpu().numpy():
                # an edge at network position p lies at index p - 0.5
                rows = sorted(look.matrix[0, 0] * (v - 0.5) + look.matrix[0, 2] for v in (y1, y2))
                columns = sorted(look.matrix[1, 1] * (v - 0.5) + look.matrix[1, 2] for v in (x1, x2))
                _mark(marked, rows, columns)
        yield marked


def _mark(marked: list[NDArray[np.bool_]], rows: list[float], columns: list[float]) -> None:
    height, width = marked[0].shape
    y, x = (slice(max(int(np.ceil(a)), 0), int(np.floor(b)) + 1) for a, b in (rows, columns))
    for place in rows:
        if 0 <= np.floor(place) < height - 1:
            marked[0][int(np.floor(place)), x] = True
    for place in columns:
        if 0 <= np.floor(place) < width - 1:
            marked[1][y, int(np.floor(place))] = True


def away_from_edges(truth: InstanceSet) -> NDArray[np.bool_]:
    """Return the pixels that are far from each instance's true edge."""
    settled = np.ones(truth.grid.shape, bool)
    for mask in truth.masks:
        held = mask.dense()
        settled &= ~(
            ndimage.binary_dilation(held, iterations=_EDGE) & ~ndimage.binary_erosion(held, iterations=_EDGE)
        )
    return settled


def _binned(
    values: NDArray[np.float32], settled: NDArray[np.bool_], border: NDArray[np.bool_], axis: int
) -> NDArray[np.float64]:
    """Return sums and counts by bin, at borders, then elsewhere, of differences of pixels ``_APART`` from each other."""
    values, settled, border = (a if axis == 0 else a.T for a in (values, settled, border))
    # the pair (k, k + 3) lies around a border between k + 1 and k + 2: one in, two out, or the other way round
    first, last = values[:-_APART], values[_APART:]
    step = np.abs(last - first)
    level = np.minimum(((first + last) / 2 * _BINS).astype(int), _BINS - 1)
    clear = ndimage.minimum_filter1d(settled, _APART + 1, axis=0, origin=-((_APART + 1) // 2))[:-_APART]
    here = clear & border[1 : 1 + len(first)]
    away = clear & ~ndimage.maximum_filter1d(border, 2 * _APART + 1, axis=0)[1 : 1 + len(first)]
    return np.array(
        [
            np.bincount(level[where], step[where] if summed else None, minlength=_BINS)[:_BINS]
            for where in (here, away)
            for summed in (True, False)
        ],
        np.float64,
    )


if __name__ == "__main__":
    main()
