"""Phantoms with exact landmarks and simulated predictions of them, to calibrate regions on."""

from types import SimpleNamespace

import numpy as np

from clearmargin.calibrate import calibrate_cases, judge_cases
from clearmargin.core import (
    Grid,
    Image,
    InstanceSet,
    LabelMap,
    Landmarks,
    PointType,
    Prediction,
    Provenance,
    Source,
    Thresholds,
)
from clearmargin.core.landmarks import HIDDEN, SEEN
from clearmargin.margins.fitting import Asked
from clearmargin.margins.margins import CalibrationData

TYPES = (PointType(name="apex"), PointType(name="entry"))
LABELS = LabelMap((), TYPES)
MADE_BY = Provenance(model="drawn", weights_sha256="a" * 64, config_sha256="b" * 64, software="tests")
ASKED = Asked()
DATA = CalibrationData(group="patient", date="2026-01-31", digest="ab" * 32)
FLAT = Grid.from_spacing((60, 80), (0.5, 0.8))
DEEP = Grid.from_spacing((20, 30, 40), (3.0, 0.7, 0.9))


class PointSet:
    """Groups of one or two images each; what is predicted is off by a known law.

    Errors are normal, in the grid's unit and turned at random: their standard deviation varies by point and by
    patient, and is ``hidden`` times as large for a hidden point. The stated covariance is a quarter of the true one:
    too sure, as heat maps are. A tenth of the points is missed, and a twentieth of the images has a false positive.
    """

    def __init__(self, groups, grid=FLAT, *, hidden=2.5, says_hidden=True, seed=0):
        rng = np.random.default_rng(seed)
        self.card = SimpleNamespace(name="drawn", group="patient", classes=(), label_map=LABELS)
        self.cases, self._held = [], {}
        for number in range(groups):
            hard = rng.uniform(0.7, 1.4)
            for again in range(rng.integers(1, 3)):
                name = f"case-{number:03d}-{again}"
                self.cases.append(SimpleNamespace(case=name, group=f"patient-{number:03d}", strata={}))
                self._held[name] = _drawn(rng, grid, name, hard, hidden, says_hidden)

    def of(self, groups):
        """Cases of the groups with these numbers."""
        names = {f"patient-{number:03d}" for number in groups}
        return [case for case in self.cases if case.group in names]

    def read(self, case):
        image, reference, _ = self._held[case.case]
        return image, reference

    def __call__(self, image):
        return self._held[image.source.case][2]


def _drawn(rng, grid, name, hard, hidden, says_hidden):
    shape, step = np.array(grid.shape), np.array(grid.spacing)
    at = rng.uniform(0.3, 0.7, (1, 2, grid.ndim)) * shape
    visible = rng.choice([HIDDEN, SEEN], (1, 2), p=[0.25, 0.75])
    sd = hard * np.exp(rng.uniform(np.log(0.4), np.log(1.6), (1, 2, grid.ndim)))
    sd *= np.where(visible == HIDDEN, hidden, 1.0)[..., None]
    turns = np.linalg.qr(rng.normal(size=(1, 2, grid.ndim, grid.ndim)))[0]
    error = np.einsum("nkij,nkj->nki", turns, rng.normal(size=sd.shape) * sd)
    inside = np.einsum("nkij,nkj,nklj->nkil", turns, sd**2, turns) / 4
    covariance = inside / step[:, None] / step[None, :]
    said = np.where(rng.random((1, 2)) < 0.1, 0, visible if says_hidden else SEEN)
    ours = Landmarks.of(
        TYPES, at + error / step, said, scores=rng.uniform(0.5, 1, (1, 2)), covariance=covariance
    )
    if rng.random() < 0.05:
        ours = Landmarks.of(
            TYPES,
            np.concatenate([ours.points, 0.9 * shape + np.zeros((1, 2, grid.ndim))]),
            np.concatenate([ours.visible, [[SEEN, 0]]]),
            scores=np.concatenate([ours.scores, [[0.6, 0]]]),
            covariance=np.concatenate([ours.covariance, covariance]),
        )
    image = Image(pixels=rng.normal(100, 10, (1, *grid.shape)), grid=grid, source=Source(case=name))
    empty = InstanceSet.empty(grid)
    return image, _with(empty, Landmarks.of(TYPES, at, visible)), _prediction(_with(empty, ours))


def _with(instances, landmarks):
    from dataclasses import replace

    return replace(instances, landmarks=landmarks)


def _prediction(instances):
    return Prediction(instances=instances, label_map=LABELS, provenance=MADE_BY)


def calibrated(drawn, cases, asked=ASKED, **options):
    """Return calibration and margin cases; the fit share is 0.3."""
    wanted = {
        "mode": "none",
        "weights_sha256": MADE_BY.weights_sha256,
        "own_thresholds": Thresholds(0.5),
    } | options
    return calibrate_cases(drawn, drawn, cases, asked, DATA, **wanted)


def judged(drawn, cases, calibration, margin_cases, asked=ASKED):
    return judge_cases(drawn, drawn, cases, calibration, margin_cases, asked, resamples=50)


def shares(judgement):
    """Share of the judged points that the applied regions hold: of all, of those seen, of those hidden."""
    strata = {s.name: s for s in judgement.points[0].strata}
    return [
        strata[name].covered / strata[name].points
        for name in ("all", "visibility = seen", "visibility = hidden")
    ]
