"""Write coco_ap.json: what pycocotools and the published boundary method say of the raw annotations of `raw_coco`.

Crowds, polygons and sizes go to pycocotools as a COCO file holds them; nothing of Clear Margin has touched them. Run
from the repository's root, with numpy, pycocotools and opencv-python-headless:

    python tests/golden/coco_ap.py
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import json
import sys
import types
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SIZE = (60, 64)


def raw():
    """Return what `tests/metrics/cases.py` makes; the types of Clear Margin that it imports are not needed for it."""
    core = types.ModuleType("clearmargin.core")
    core.Grid = core.InstanceSet = core.Mask = object
    sys.modules |= {"clearmargin": types.ModuleType("clearmargin"), "clearmargin.core": core}
    spec = importlib.util.spec_from_file_location("cases", Path(__file__).parents[1] / "metrics" / "cases.py")
    cases = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cases)
    return cases.raw_coco()


def runs_of(segmentation, height, width):
    """Return compressed run lengths, as pycocotools' annToRLE makes them."""
    if isinstance(segmentation, list):
        return coco.merge(coco.frPyObjects(segmentation, height, width))
    return coco.frPyObjects(segmentation, height, width)


def edge_of(runs):
    """Return the run lengths of a mask's published boundary: what erosions of the padded mask remove."""
    mask = coco.decode(runs)
    width = max(1, round(0.02 * np.hypot(*mask.shape)))
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    return coco.encode(np.asfortranarray(mask - inner))


class BoundaryEval(COCOeval):
    def computeIoU(self, image, category):  # noqa: N802
        whole = super().computeIoU(image, category)
        truth, found = self._gts[image, category], self._dts[image, category]
        if not truth or not found:
            return whole
        order = np.argsort([-d["score"] for d in found], kind="mergesort")[: self.params.maxDets[-1]]
        crowd = np.array([g["iscrowd"] for g in truth], bool)
        edges = [
            [edge_of(e["segmentation"]) for e in entries] for entries in ([found[i] for i in order], truth)
        ]
        narrow = coco.iou(*edges, [0] * len(truth))
        return np.where(crowd, whole, np.minimum(whole, narrow))


def stats(evaluator, kind, truth, found):
    with contextlib.redirect_stdout(io.StringIO()):
        data = COCO()
        data.dataset = copy.deepcopy(truth)
        data.createIndex()
        results = copy.deepcopy(found)
        for entry in results if kind == "segm" else ():
            del entry["bbox"]  # where results have boxes, loadRes takes their area for the mask's
        evaluation = evaluator(data, data.loadRes(results), kind)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "", "", "ar")
    return {n: None if v < 0 else float(v) for n, v in zip(names, evaluation.stats, strict=False) if n}


def polygons():
    """Return random polygons, some with corners on whole and half pixels, and their run lengths."""
    rng = np.random.default_rng(0)
    flats, counts = [], []
    for k in range(120):
        points = rng.uniform(-5, 70, 2) + rng.normal(0, 12, (int(rng.integers(3, 12)), 2))
        flat = [
            float(v) for v in (points, np.round(points), np.round(2 * points) / 2)[k % 3].round(3).ravel()
        ]
        flats.append(flat)
        counts.append(coco.frPyObjects([flat], *SIZE)[0]["counts"].decode())
    return {"size": SIZE, "polygons": flats, "counts": counts}


def main() -> None:
    truth, found = raw()
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    for entry in (*truth["annotations"], *found):
        runs = runs_of(entry["segmentation"], *sizes[entry["image_id"]])
        entry |= {"segmentation": runs, "area": float(coco.area(runs))}
        entry["bbox"] = [float(v) for v in coco.toBbox(runs)]
    values = {
        "mask": stats(COCOeval, "segm", truth, found),
        "box": stats(COCOeval, "bbox", truth, found),
        "boundary": stats(BoundaryEval, "segm", truth, found),
    }
    record = {
        "tool": "pycocotools",
        "version": version("pycocotools"),
        "boundary": "3 x 3 erosions of the padded mask, the smaller of mask and boundary IoU (Cheng et al., 2021)",
        "command": "python tests/golden/coco_ap.py",
        "values": values,
        "polygons": polygons(),
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
