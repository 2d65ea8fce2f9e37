"""AP and boundary AP beside COCO's tools, for `bench_metrics.py`."""

from __future__ import annotations

from collections.abc import Callable

from metrics_shapes import discs
from side_by_side import interleaved, report


def boundary_ap(rounds: int) -> None:
    import copy

    import cv2
    import faster_coco_eval
    import numpy as np
    from pycocotools import mask as coco
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from clearmargin.metrics import boundary_average_precision

    pairs = coco_pairs()
    truth, found = coco_json(pairs)

    class BoundaryEval(COCOeval):
        """The published method: decode, erode the padded mask by 3 x 3 squares, encode; the smaller of both IoUs."""

        def edges(self, entries):
            for entry in entries:
                mask = coco.decode(entry["segmentation"])
                width = max(1, round(0.02 * np.hypot(*mask.shape)))
                padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
                inner = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
                entry["edge"] = coco.encode(np.asfortranarray(mask - inner))

        def _prepare(self):
            super()._prepare()
            for group in (self._gts, self._dts):
                for entries in group.values():
                    self.edges(entries)

        def computeIoU(self, image, category):  # noqa: N802
            whole = super().computeIoU(image, category)
            truth, found = self._gts[image, category], self._dts[image, category]
            if not len(truth) or not len(found):
                return whole
            order = np.argsort([-d["score"] for d in found], kind="mergesort")
            edge = coco.iou([found[i]["edge"] for i in order], [g["edge"] for g in truth], [0] * len(truth))
            return np.minimum(whole, edge)

    def load(kind):
        data = kind()
        data.dataset = copy.deepcopy(truth)
        data.createIndex()
        return data, data.loadRes(copy.deepcopy(found))

    def published():
        evaluation = BoundaryEval(*load(COCO), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    def faster():
        evaluation = faster_coco_eval.COCOeval_faster(*load(faster_coco_eval.COCO), "boundary")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    values = [boundary_average_precision(pairs).ap, quiet(published)(), quiet(faster)()]
    times = interleaved(
        max(1, rounds // 2),
        clearmargin=lambda: boundary_average_precision(pairs),
        published_method=quiet(published),
        faster_coco_eval=quiet(faster),
    )
    report(
        "Boundary AP: 500 images x 10, band 2 % of the diagonal",
        times,
        {"published_method": 10, "faster_coco_eval": 1},
    )
    print("\nvalues: " + ", ".join(f"{v:.12f}" for v in values))


def coco_ap(rounds: int) -> None:
    import copy

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    from clearmargin.metrics import mask_average_precision

    pairs = coco_pairs()
    truth, found = coco_json(pairs)

    def pycocotools():
        data = COCO()
        data.dataset = copy.deepcopy(truth)
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(copy.deepcopy(found)), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        return evaluation.stats[0]

    values = [mask_average_precision(pairs).ap, quiet(pycocotools)()]
    times = interleaved(
        max(1, rounds // 2), clearmargin=lambda: mask_average_precision(pairs), pycocotools=quiet(pycocotools)
    )
    report("Mask AP: 500 images x 10, from crops (ours) and from run lengths", times, {})
    print("\nvalues: " + ", ".join(f"{v:.12f}" for v in values))


def coco_pairs():
    """Return 500 images of 480 x 640 with 10 objects of 3 classes as pairs of instance sets."""
    import numpy as np

    from clearmargin.core import Grid, InstanceSet

    grid = Grid.from_spacing((480, 640))
    rng = np.random.default_rng(3)
    pairs = []
    for seed in range(500):
        masks = list(discs(10, (480, 640), seed, 8, 60))
        labels = rng.integers(1, 4, 10)
        scores = np.round(rng.random(10), 3)
        pairs.append((
            InstanceSet.from_dense(grid, [p for p, _ in masks], labels, scores),
            InstanceSet.from_dense(grid, [r for _, r in masks], labels),
        ))  # fmt: skip
    return pairs


def coco_json(pairs):
    """Return the pairs as a COCO data set and results, with compressed run lengths, as the other tools read them."""
    import numpy as np
    from pycocotools import mask as coco

    truth, found = [], []
    for image, pair in enumerate(pairs, start=1):
        for instances, entries in zip(pair, (found, truth), strict=True):
            for mask, label, score in zip(instances.masks, instances.labels, instances.scores, strict=True):
                runs = coco.encode(np.asfortranarray(mask.dense(), np.uint8))
                entry = {"id": len(entries) + 1, "image_id": image, "category_id": int(label), "iscrowd": 0,
                         "segmentation": {"size": runs["size"], "counts": runs["counts"].decode()},
                         "area": float(mask.area), "bbox": [float(v) for v in coco.toBbox(runs)]}  # fmt: skip
                if entries is found:
                    entry["score"] = float(score)
                entries.append(entry)
    base = {
        "info": {},
        "images": [{"id": k + 1, "height": 480, "width": 640} for k in range(len(pairs))],
        "categories": [{"id": k, "name": str(k)} for k in (1, 2, 3)],
    }
    return base | {"annotations": truth}, found


def quiet(function: Callable[[], float]) -> Callable[[], float]:
    """Return ``function`` with its prints thrown away."""
    import contextlib
    import io

    def run() -> float:
        with contextlib.redirect_stdout(io.StringIO()):
            return function()

    return run
