"""Pairs and scenes that golden numbers of other tools were made from; no tool is imported here."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, Mask

Pair = tuple[NDArray[np.bool_], NDArray[np.bool_], tuple[float, ...]]


def _ball(
    shape: tuple[int, ...], centre: tuple[float, ...], radius: float, spacing: tuple[float, ...]
) -> NDArray[np.bool_]:
    axes = np.meshgrid(
        *[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij", sparse=True
    )
    return np.asarray(sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2)


def golden_pairs() -> dict[str, Pair]:
    """Return (predicted, reference, spacing) by name."""
    flat, deep = (64, 80), (24, 40, 40)
    notched = _ball(deep, (30, 16, 16), 14, (2.5, 0.8, 0.8))
    notched[8:12, :18, :18] = False
    speck = _ball(flat, (16, 20), 10, (0.5, 0.5))
    speck[60, 76] = True
    edge = np.zeros(flat, bool)
    edge[:20, :30] = True
    return {
        "discs": (_ball(flat, (16, 21), 9, (0.5, 0.5)), _ball(flat, (15, 20), 10, (0.5, 0.5)), (0.5, 0.5)),
        "far speck": (speck, _ball(flat, (16, 20), 10, (0.5, 0.5)), (0.5, 0.5)),
        "at the image's edge": (edge, np.roll(edge, (3, 5), (0, 1)), (1.0, 2.0)),
        "anisotropic balls": (
            _ball(deep, (30, 16, 15), 12, (2.5, 0.8, 0.8)),
            _ball(deep, (28, 15, 16), 13, (2.5, 0.8, 0.8)),
            (2.5, 0.8, 0.8),
        ),
        "notch": (notched, _ball(deep, (30, 16, 16), 14, (2.5, 0.8, 0.8)), (2.5, 0.8, 0.8)),
    }


def scene(seed: int, n: int = 160, k: int = 8) -> tuple[InstanceSet, InstanceSet]:
    """Return discs, moved and resized discs for them, some missed, some of another class; half with ignored tissue."""
    rng = np.random.default_rng(seed)
    y, x = np.ogrid[:n, :n]

    def disc(cy, cx, a, b):
        return ((y - cy) / a) ** 2 + ((x - cx) / b) ** 2 <= 1

    reference, predicted, labels, found, scores = [], [], [], [], []
    for _ in range(k):
        cy, cx = rng.uniform(20, n - 20, 2)
        a, b = rng.uniform(3, 60 if rng.random() < 0.3 else 25, 2)
        label = int(rng.integers(1, 4))
        reference.append(disc(cy, cx, a, b))
        labels.append(label)
        if rng.random() < 0.85:
            predicted.append(disc(*(np.array([cy, cx]) + rng.normal(0, 2, 2)), a * rng.uniform(0.85, 1.2), b))
            found.append(label if rng.random() < 0.9 else 1)
            scores.append(float(np.round(rng.random(), 2)))
    grid = Grid.from_spacing((n, n))
    truth = InstanceSet.from_dense(grid, reference, labels)
    if rng.random() < 0.5:
        corner = np.zeros((n, n), bool)
        corner[: n // 3, : n // 2] = True
        truth = InstanceSet(
            grid=grid, masks=truth.masks, labels=truth.labels, scores=truth.scores,
            ignore=Mask.from_dense(corner),
        )  # fmt: skip
    return InstanceSet.from_dense(grid, predicted, found, scores), truth


def raw_coco(seed: int = 0, images: int = 30) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return annotations and results as COCO files hold them: polygons, run lengths, crowds of one class each."""
    rng = np.random.default_rng(seed)
    height, width = 160, 200
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []

    def star(centre, radius, phase, corners=9):
        angles = phase + np.linspace(0, 2 * np.pi, corners, endpoint=False)
        far = radius * (1 + 0.2 * np.cos(3 * angles))
        points = np.stack([centre[0] + far * np.cos(angles), centre[1] + far * np.sin(angles)], -1)
        return [[float(v) for v in np.round(points, 2).ravel()]]

    def runs(mask):
        changes = np.flatnonzero(np.diff(np.concatenate(([0], mask.T.ravel().astype(np.int8), [0]))))
        edges = np.concatenate(([0], changes, [mask.size]))
        counts = [int(n) for n in np.diff(edges)]
        return {"size": [height, width], "counts": counts if counts[-1] else counts[:-1]}

    for image in range(1, images + 1):
        crowd_boxes = []
        for _ in range(int(rng.integers(0, 4))):
            y, x = (int(rng.integers(0, n - 50)) for n in (height, width))
            region = np.zeros((height, width), bool)
            region[y : y + int(rng.integers(20, 50)), x : x + int(rng.integers(20, 50))] = True
            region &= rng.random((height // 4, width // 4)).repeat(4, 0).repeat(4, 1) < 0.9
            label = int(rng.integers(1, 4))
            crowd_boxes.append((x, y, label))
            annotations.append(
                {"image_id": image, "category_id": label, "iscrowd": 1, "segmentation": runs(region)}
            )
        for _ in range(int(rng.integers(2, 9))):
            centre = rng.uniform((15, 15), (width - 15, height - 15))
            radius = float(rng.uniform(5, 75 if rng.random() < 0.3 else 22))
            label, phase = int(rng.integers(1, 4)), float(rng.uniform(0, 6))
            annotations.append(
                {"image_id": image, "category_id": label, "iscrowd": 0,
                 "segmentation": star(centre, radius, phase)}
            )  # fmt: skip
            if rng.random() < 0.85:
                moved = centre + rng.normal(0, 1.5, 2)
                results.append(
                    {"image_id": image, "category_id": label if rng.random() < 0.9 else 1,
                     "score": float(np.round(rng.random(), 3)),
                     "segmentation": star(moved, radius * rng.uniform(0.9, 1.15), phase, 11)}
                )  # fmt: skip
        for x, y, label in crowd_boxes:  # within a crowd: of its class, and of another
            for said in (label, label % 3 + 1):
                found = np.zeros((height, width), bool)
                found[y + 2 : y + 16, x + 3 : x + 18] = True
                results.append(
                    {"image_id": image, "category_id": said, "score": float(np.round(rng.random(), 3)),
                     "segmentation": runs(found)}
                )  # fmt: skip
    for k in range(130):  # more than count in an image
        y, x = divmod(k, 18)
        results.append(
            {"image_id": 1, "category_id": 2, "score": float(np.round(rng.random(), 3)),
             "segmentation": star((8 + 10 * x, 8 + 10 * y), 4.5, 0.1)}
        )  # fmt: skip
    for k, entry in enumerate(annotations, start=1):
        entry["id"] = k
    content = {
        "images": [
            {"id": k, "file_name": f"{k}.png", "height": height, "width": width} for k in range(1, images + 1)
        ],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
        "annotations": annotations,
    }
    return content, results
