"""Whether maps show boxes, and how true they are: ``python benchmarks/bench_maps.py MODEL CARD``.

At each border of a box of each member's detections, away from the true edges, the map's value two pixels on one side
is compared with that one pixel on the other. The map's own noise is the same difference three pixels before and three
pixels behind: values there are alike, and 1 is a map that knows no boxes. Calibration is that of the foreground map,
of all pixels and of those within two elements of the true edge.
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
from clearmargin.margins.observations import PixelCounts
from clearmargin.models.segmenter import PlaneDetections
from clearmargin.sampling.samples import SampledSegmenter, open_segmenter

_MAPS = ("foreground", "entropy", "mutual_information", "variance")
_EDGE = 5  # pixels from a true edge within which a map may change
_APART = 3  # pixels from one that is compared to the other
_LEAST = 0.05  # of a map's highest value: what is darker is background


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
        at_border, beside, count = np.sum(every, axis=0)
        print(
            f"{name}: {at_border / count:.4f} at {count:.0f} border pixels, {beside / count:.4f} beside them: "
            f"{at_border / beside:.2f}"
        )
    for what, counts in (("all pixels", pixels.every), ("near the edge", pixels.band)):
        print(f"{what}: ECE {counts.ece():.4f}, Brier {counts.brier().score:.4f}, {counts.total} pixels")


def measure(
    segmenter: SampledSegmenter, image: Image, prediction: Prediction, reference: InstanceSet
) -> dict[str, NDArray[np.float64]]:
    """Return of each map the sums of the steps at borders and beside them, and their number, ``(3,)``."""
    sums = {name: np.zeros(3) for name in _MAPS}
    for z, borders in enumerate(box_borders(segmenter, image)):
        truth = reference if image.grid.ndim == 2 else reference.plane(z)[0]
        settled = away_from_edges(truth)
        for name in _MAPS:
            values = prediction.maps[name] if image.grid.ndim == 2 else prediction.maps[name][z]
            least = _LEAST * float(prediction.maps[name].max())
            sums[name] += _steps(values, settled, borders[0], least)
            sums[name] += _steps(values.T, settled.T, borders[1].T, least)
    return sums


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


def _steps(
    values: NDArray[np.float32], settled: NDArray[np.bool_], border: NDArray[np.bool_], least: float
) -> NDArray[np.float64]:
    """Return the sums of steps down the rows at borders and beside them, and the number of places."""
    count = len(values) - 3 * _APART
    if count <= 0:
        return np.zeros(3)
    step = np.abs(values[_APART:] - values[:-_APART]).astype(np.float64)
    before, here, after = (step[k * _APART : k * _APART + count] for k in range(3))
    at_border = border[_APART + 1 : _APART + 1 + count]
    for k in range(3 * _APART + 1):
        at_border = at_border & settled[k : k + count]
    level = np.maximum(values[_APART : _APART + count], values[2 * _APART : 2 * _APART + count])
    at_border = at_border & (level > least)
    return np.array(
        [here[at_border].sum(), ((before + after) / 2)[at_border].sum(), at_border.sum()], np.float64
    )


if __name__ == "__main__":
    main()
