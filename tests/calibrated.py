"""A data set of displaced phantoms whose predictions are known: a segmenter, and cases to calibrate on."""

from types import SimpleNamespace

import numpy as np
from displaced import Setting, displaced_groups
from scipy import ndimage

from clearmargin.calibrate import calibrate_cases, judge_cases
from clearmargin.core import (
    Code,
    EdgeSpread,
    Image,
    LabelClass,
    LabelMap,
    Prediction,
    Provenance,
    Source,
    Thresholds,
)
from clearmargin.margins.fitting import Asked
from clearmargin.margins.margins import CalibrationData

_CODE = Code(value="108369006", scheme="SCT", meaning="Tumor")
LABELS = LabelMap(
    tuple(LabelClass(id=k, name=name, type=_CODE, category=_CODE) for k, name in ((1, "small"), (2, "large")))
)
MADE_BY = Provenance(model="drawn", weights_sha256="a" * 64, config_sha256="b" * 64, software="tests")
DATA = CalibrationData(group="patient", date="2026-01-31", digest="ab" * 32)
COARSE = Setting(shape=(56, 56), spacing=(0.4, 0.3))
ASKED = Asked(alphas=(0.2, 0.1), risk_limit=1.0)


class DrawnSet:
    """Cases, their images and references, and what a segmenter says of each."""

    def __init__(self, groups, *, edges=True, maps=True, seed=0):
        self.card = SimpleNamespace(name="drawn", group="patient", classes=LABELS.classes, label_map=LABELS)
        self.cases = []
        self._held = {}
        rng = np.random.default_rng(seed)
        for k, group in enumerate(groups):
            name = f"case-{k:03d}"
            stain = {"stain": "blue" if k % 2 else "red"}
            self.cases.append(SimpleNamespace(case=name, group=group.name, strata=stain))
            pixels = rng.normal(100, 10, (1, *group.predicted.grid.shape))
            image = Image(pixels=pixels, grid=group.predicted.grid, source=Source(case=name))
            self._held[name] = (image, group.reference, _predicted(group, rng, edges, maps))

    def read(self, case):
        image, reference, _ = self._held[case.case]
        return image, reference

    def __call__(self, image):
        return self._held[image.source.case][2]

    def change(self, change):
        """Let the segmenter say something else of each image."""
        self._held = {name: (i, r, change(p)) for name, (i, r, p) in self._held.items()}
        return self


def _predicted(group, rng, edges, maps):
    instances = group.predicted
    n = len(instances)
    foreground = np.zeros(instances.grid.shape, np.float32)
    for mask in instances.masks:
        held = mask.dense()
        foreground[ndimage.binary_dilation(held) & ~held] = 0.2
        foreground[held] = 0.999  # too sure: the edges are off
    scores = rng.uniform(0.55, 0.95, n).astype(np.float32)
    columns = {
        "pairwise_dice": rng.uniform(0.5, 1, n),
        "found_by": np.ones(n),
        "predicted_nsd": rng.uniform(0.7, 1, n),
        "mean_entropy": np.full(n, 0.1),
    }
    from dataclasses import replace

    return Prediction(
        instances=replace(instances, scores=scores, uncertainty=columns),
        label_map=LABELS,
        provenance=MADE_BY,
        maps={"foreground": foreground, "entropy": np.zeros_like(foreground)} if maps else {},
        edges=tuple(EdgeSpread(points=s.points, sigma=s.sigma) for s in group.scales) if edges else (),
    )


def drawn_set(n, setting=COARSE, seed=5, **options):
    return DrawnSet(displaced_groups(n, setting, seed), **options)


def calibrated(drawn, cases=None, asked=ASKED, **options):
    """Return calibration and margin cases; the fit share is 0.3."""
    wanted = {
        "mode": "checkpoints",
        "weights_sha256": MADE_BY.weights_sha256,
        "own_thresholds": Thresholds(0.5),
    } | options
    return calibrate_cases(drawn, drawn, drawn.cases if cases is None else cases, asked, DATA, **wanted)


def judged(drawn, cases, calibration, margin_cases, asked=ASKED):
    return judge_cases(drawn, drawn, cases, calibration, margin_cases, asked, resamples=50)
