"""Two made-up tools: what they would have drawn for reference label volumes, in the folders that nnU-Net writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from scipy import ndimage

from clearmargin.formats.volume import read_label_volume, write_volume


def steady(labels, rng):
    """A tool whose edges wobble by about a voxel."""
    noise = ndimage.gaussian_filter(rng.standard_normal(labels.shape), 2)
    distance = np.stack([ndimage.distance_transform_edt(labels == k) - ndimage.distance_transform_edt(labels != k)
                         for k in (1, 2)])  # fmt: skip
    distance = distance + 0.8 * noise / noise.std()
    return np.where(distance.max(axis=0) > 0, distance.argmax(axis=0) + 1, 0).astype(np.uint8)


def careless(labels, rng):
    """A tool that draws too small, loses a class now and then, and finds what is not there."""
    out = np.zeros(labels.shape, np.uint8)
    for k in (1, 2):
        if rng.random() < 0.95:
            out[ndimage.binary_erosion(labels == k)] = k
    if rng.random() < 0.3:
        out[:3, :3, :3] = 1
    return out


def make_predictions(source: Path, folder: Path, cases: list[str], tool, seed: int) -> Path:
    """Write predictions and the ``dataset.json`` that nnU-Net puts beside them; return their folder."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    for case in cases:
        labels, grid = read_label_volume(source / f"{case}.nii.gz")
        write_volume(folder / f"{case}.nii.gz", tool(labels, rng), grid)
    names = {"background": 0, "anterior": 1, "posterior": 2}
    (folder / "dataset.json").write_text(json.dumps({"labels": names, "file_ending": ".nii.gz"}))
    return folder
