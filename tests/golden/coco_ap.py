"""Write coco_ap.json: what pycocotools and the published boundary method say of the scenes of test_detection.py.

Run from the repository's root, with pycocotools and opencv-python-headless beside clearmargin's dependencies:

    python tests/golden/coco_ap.py
"""

from __future__ import annotations

import contextlib
import copy
import io
import json
import sys
from importlib.metadata import version
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.metrics.cases import scene

SCENES = 24


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
        order = np.argsort([-d["score"] for d in found], kind="mergesort")
        crowd = np.array([g["iscrowd"] for g in truth], bool)
        edges = [
            [edge_of(e["segmentation"]) for e in entries] for entries in ([found[i] for i in order], truth)
        ]
        narrow = coco.iou(*edges, [0] * len(truth))
        return np.where(crowd, whole, np.minimum(whole, narrow))


def entries(instances, image, start, scored):
    for k, (mask, label, score) in enumerate(
        zip(instances.masks, instances.labels, instances.scores, strict=True)
    ):
        runs = coco.encode(np.asfortranarray(mask.dense(), np.uint8))
        entry = {"id": start + k, "image_id": image, "category_id": int(label), "segmentation": runs,
                 "area": float(mask.area), "bbox": [float(v) for v in coco.toBbox(runs)], "iscrowd": 0}  # fmt: skip
        yield entry | ({"score": float(score)} if scored else {})


def main() -> None:
    truth, found, images = [], [], []
    for number in range(SCENES):
        predicted, reference = scene(number)
        height, width = reference.grid.shape
        images.append({"id": number + 1, "height": height, "width": width})
        truth += entries(reference, number + 1, len(truth) + 1, False)
        found += entries(predicted, number + 1, len(found) + 1, True)
        if reference.ignore is not None:
            runs = coco.encode(np.asfortranarray(reference.ignore.dense(), np.uint8))
            for label in (1, 2, 3):
                truth.append({"id": len(truth) + 1, "image_id": number + 1, "category_id": label, "iscrowd": 1,
                              "segmentation": runs, "area": float(reference.ignore.area),
                              "bbox": [float(v) for v in coco.toBbox(runs)]})  # fmt: skip
    base = {"info": {}, "images": images, "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)]}
    values = {}
    for name, kind, evaluator in (
        ("mask", "segm", COCOeval),
        ("box", "bbox", COCOeval),
        ("boundary", "segm", BoundaryEval),
    ):
        with contextlib.redirect_stdout(io.StringIO()):
            data = COCO()
            data.dataset = copy.deepcopy(base | {"annotations": truth})
            data.createIndex()
            results = copy.deepcopy(found)
            for entry in results if kind == "segm" else ():
                del entry["bbox"]  # where results have boxes, loadRes takes their area for the mask's
            evaluation = evaluator(data, data.loadRes(results), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        names = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large", "", "", "ar")
        values[name] = {
            n: None if v < 0 else float(v) for n, v in zip(names, evaluation.stats, strict=False) if n
        }
    record = {
        "tool": "pycocotools",
        "version": version("pycocotools"),
        "boundary": "3 x 3 erosions of the padded mask, the smaller of mask and boundary IoU (Cheng et al., 2021)",
        "command": "python tests/golden/coco_ap.py",
        "scenes": SCENES,
        "values": values,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
