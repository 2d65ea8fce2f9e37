"""Whether maps show boxes, and how true they are: ``python benchmarks/bench_maps.py MODEL CARD --other MODEL``.

At each border of a box of each member's detections, away from the true edges, the map's value two pixels on one side
is compared with that one pixel on the other, and with the same difference three pixels before and three pixels
behind. Boxes end where a network takes something for an edge, so that maps change there which know no boxes: those of
another training at the same boxes say how much. Maps drawn from the detections themselves, score times mask, show what
a box does. Calibration is that of the foreground map: of all pixels, of those within two of the grid's largest steps
of the true edge, and of those within a narrow band.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from clearmargin.core import Image, InstanceSet
from clearmargin.datasets.cases import open_dataset
from clearmargin.margins.observations import PixelCounts
from clearmargin.models.segmenter import PlaneDetections
from clearmargin.sampling.maps import MAPS, Moments
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
    parser.add_argument(
        "--other", type=Path, help="a model of another training, which cannot know these boxes"
    )
    parser.add_argument(
        "--band", type=float, default=2.0, help="narrow band at the true edge, in the grid's unit"
    )
    parser.add_argument("--figure", type=Path, help="PNG of the middle slice of the first case")
    chosen = parser.parse_args()
    segmenter = open_segmenter(chosen.model, chosen.uncertainty)
    other = None if chosen.other is None else open_segmenter(chosen.other, chosen.uncertainty)
    dataset = open_dataset(chosen.card)
    steps: dict[str, dict[str, NDArray[np.float64]]] = {}
    pixels: dict[str, tuple[PixelCounts, PixelCounts]] = {}
    cases = dataset.split(chosen.split)[: chosen.cases]
    for case in cases:
        image, reference = dataset.read(case)
        planes = (
            [reference]
            if image.grid.ndim == 2
            else [reference.plane(z)[0] for z in range(image.grid.shape[0])]
        )
        settled = np.array([away_from_edges(plane) for plane in planes])
        held = np.array(
            [np.any([m.dense() for m in p.masks], axis=0) & np.ones(p.grid.shape, bool) for p in planes]
        )
        places = {"": settled, " within objects": settled & held}
        borders, drawn = look_at(segmenter, image)
        kinds = {"the model's maps": segmenter(image).maps, "drawn from its detections": drawn}
        if other is not None:
            kinds["the other model's maps, at these boxes"] = other(image).maps
            kinds["drawn from its detections, at these boxes"] = look_at(other, image)[1]
        if chosen.figure is not None and case is cases[0]:
            draw(chosen.figure, image, {kind: kinds[kind] for kind in list(kinds)[:2]})
        for kind, maps in kinds.items():
            sums = steps.setdefault(
                kind, {f"{name}{where}": np.zeros(3) for name in _MAPS for where in places}
            )
            for name in _MAPS:
                values = maps[name].reshape(settled.shape)
                for where, compared in places.items():
                    sums[f"{name}{where}"] += measure(values, compared, borders)
            wide, narrow = pixels.setdefault(kind, (PixelCounts(), PixelCounts()))
            wide.add(maps["foreground"], reference)
            narrow.add(maps["foreground"], reference, chosen.band)
    print(f"{len(cases)} cases of '{chosen.split}', {chosen.uncertainty}")
    for kind, sums in steps.items():
        print(kind)
        for name, (at_border, beside, count) in sums.items():
            print(
                f"  {name}: {at_border / count:.4f} at {count:.0f} border pixels, {beside / count:.4f} beside them: "
                f"{at_border / beside:.2f}"
            )
        wide, narrow = pixels[kind]
        near = (
            ("all pixels", wide.every),
            ("near the edge", wide.band),
            (f"within {chosen.band:g}", narrow.band),
        )
        for what, counts in near:
            print(
                f"  {what}: ECE {counts.ece():.4f}, Brier {counts.brier().score:.4f}, {counts.total} pixels"
            )


def measure(
    values: NDArray[np.float32], settled: NDArray[np.bool_], borders: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Return the sums of a map's steps at borders and beside them, and their number, ``(3,)``; all ``(Z, Y, X)``."""
    sums, least = np.zeros(3), _LEAST * float(values.max())
    for plane, own, (rows, columns) in zip(values, settled, borders, strict=True):
        sums += _steps(plane, own, rows, least) + _steps(plane.T, own.T, columns.T, least)
    return sums


def look_at(
    segmenter: SampledSegmenter, image: Image
) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.float32]]]:
    """Return where borders of boxes lie, and the maps that would be drawn from detections alone.

    Borders are marked at the last pixel before them, ``(Z, 2, Y, X)``: across y and across x. A drawn map has score
    times mask, of the strongest detection, which falls to 0 where its box ends.
    """
    walks = [
        member.segmenter.looks(member.segmenter.prepared(image), member.view) for member in segmenter.members
    ]
    borders, maps = [], {name: np.zeros(image.grid.shape, np.float32) for name in _MAPS}
    for z, looks in enumerate(zip(*walks, strict=True)):
        shape = looks[0].grid.shape
        marked = [np.zeros(shape, bool) for _ in range(2)]
        moments = Moments.zeros((len(segmenter.label_map), *shape))
        for look in looks:
            if not isinstance(look, PlaneDetections):
                raise SystemExit("networks of volumes have no boxes in a plane")
            strongest = np.zeros(moments.mean.shape)
            for index, (label, score) in enumerate(zip(look.labels, look.scores, strict=True)):
                crop, (y, x) = look.placed(index)
                part = strongest[label - 1, y : y + crop.shape[0], x : x + crop.shape[1]]
                np.maximum(part, score * crop, out=part)
            moments.add(strongest)
            for x1, y1, x2, y2 in look.found.boxes.cpu().numpy():
                # an edge at network position p lies at index p - 0.5
                rows = sorted(look.matrix[0, 0] * (v - 0.5) + look.matrix[0, 2] for v in (y1, y2))
                columns = sorted(look.matrix[1, 1] * (v - 0.5) + look.matrix[1, 2] for v in (x1, x2))
                _mark(marked, rows, columns)
        borders.append(marked)
        for name, values in maps.items():
            (values if values.ndim == 2 else values[z])[...] = MAPS[name](moments).max(axis=0)
    return np.array(borders), maps


def draw(path: Path, image: Image, kinds: Mapping[str, Mapping[str, NDArray[np.float32]]]) -> None:
    """Draw the middle slice of a CT, and of each kind its foreground and its entropy, 0 black and 1 white."""
    import matplotlib.pyplot as plt

    z = image.grid.shape[0] // 2
    panels = [("CT, -160 to 240 HU", np.clip((image.pixels[0, z] + 160) / 400, 0, 1))]
    for name in ("foreground", "entropy"):
        panels += [(f"{name}, {kind}", maps[name][z]) for kind, maps in reversed(kinds.items())]
    figure, axes = plt.subplots(1, len(panels), figsize=(3.2 * len(panels), 3.4), layout="constrained")
    for axis, (title, values) in zip(axes, panels, strict=True):
        axis.imshow(values, cmap="gray", vmin=0, vmax=1)
        axis.set_title(title, fontsize=8)
        axis.axis("off")
    figure.savefig(path, dpi=90)


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
