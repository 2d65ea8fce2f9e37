"""The four task forms of one set of instances as files: semantic, instance, panoptic, detection."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Grid, InstanceSet, LabelMap
from clearmargin.files import write_text
from clearmargin.formats.coco import write_coco
from clearmargin.formats.raster import write_raster
from clearmargin.formats.volume import write_volume
from clearmargin.metrics.tasks import as_boxes, as_layers, as_panoptic, as_semantic

__all__ = ["write_task_forms"]


def write_task_forms(folder: Path, name: str, instances: InstanceSet, label_map: LabelMap) -> list[Path]:
    """Write every task form of ``instances`` into ``folder`` and return the files.

    Images become PNG, volumes NIfTI. ``NAME_semantic`` holds class ids; ``NAME_instance_K`` value ``i + 1``
    for instance ``i``, in as many layers K as overlap needs; ``NAME_panoptic`` segment ids, with their
    classes, scores and instances in ``NAME_panoptic.json``; ``NAME_detection.json`` the boxes, first and
    one-past-last index in array order. Images also get ``NAME_coco.json``.

    Args:
        folder: Made where it does not exist.
        name: Name of the case; it stands in the files' names.
        instances: May be none.
        label_map: What the labels mean; it marks things and stuff.

    Raises:
        ConfigError: A label that the label map does not hold.
    """
    folder.mkdir(parents=True, exist_ok=True)
    grid = instances.grid
    panoptic = as_panoptic(instances, label_map)
    written = [_write_labels(folder / f"{name}_semantic", as_semantic(instances), grid)]
    written += [
        _write_labels(folder / f"{name}_instance_{k}", layer, grid)
        for k, layer in enumerate(as_layers(instances))
    ]
    written.append(_write_labels(folder / f"{name}_panoptic", panoptic.segments, grid))
    segments = [
        {
            "id": k + 1,
            "class": label_map.by_id(int(label)).name,
            "kind": label_map.by_id(int(label)).kind,
            "score": float(score),
            "instance": int(instance),
        }
        for k, (label, score, instance) in enumerate(
            zip(panoptic.labels, panoptic.scores, panoptic.instances, strict=True)
        )
    ]
    boxes = [
        {
            "class": label_map.by_id(box.label).name,
            "score": box.score,
            "start": list(box.start),
            "stop": list(box.stop),
        }
        for box in as_boxes(instances)
    ]
    for form, rows in (("panoptic", segments), ("detection", boxes)):
        path = folder / f"{name}_{form}.json"
        write_text(path, json.dumps(rows, indent=1, allow_nan=False) + "\n")
        written.append(path)
    if grid.ndim == 2:
        written.append(folder / f"{name}_coco.json")
        write_coco(written[-1], [(f"{name}.png", instances)], label_map)
    return written


def _write_labels(path: Path, labels: NDArray[np.int32], grid: Grid) -> Path:
    """Write a label array under ``path`` with the suffix that fits the grid."""
    if grid.ndim == 2:
        target = path.with_name(f"{path.name}.png")
        write_raster(target, labels.astype(np.uint16))
    else:
        target = path.with_name(f"{path.name}.nii.gz")
        write_volume(target, labels, grid)
    return target
