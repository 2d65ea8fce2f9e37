"""Margins are as often right as they promise, on units with edges out of place."""

import numpy as np
import pytest
from displaced import PLANE, SPACE, STRATA, Setting, displaced_units, over_splits, pool, scores_of

from clearmargin.metrics.matching import match_instances
from clearmargin.uncertainty.conformal import (
    expected_coverage,
)
from clearmargin.uncertainty.margins import (
    CalibrationData,
    fit_margin,
)
from clearmargin.uncertainty.needed import Promise, needed_margins
from clearmargin.uncertainty.reach import face_areas

DATA = CalibrationData(exchangeable="patient", date="2026-01-31", digest="ab" * 32)


def check_coverage(needs, n, splits):
    for alpha in (0.1, 0.05):
        found = over_splits(scores_of(needs), n, alpha, splits)[0]
        assert abs(found - expected_coverage(n, alpha)) < 0.02


def test_margins_cover_displaced_edges_and_the_scaled_one_is_narrower():
    found = pool(70, PLANE, 11)
    plain, scaled = found.needs(Promise()), found.needs(Promise(floor=PLANE.floor))
    check_coverage(plain, 40, 500)
    check_coverage(scaled, 40, 500)
    width = over_splits(scores_of(scaled), 40, 0.1, 100)[2] * found.mean_scale()
    assert width < 0.8 * over_splits(scores_of(plain), 40, 0.1, 100)[2]


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "n"), [(PLANE, 100), (SPACE, 60)])
def test_all_margins_cover_as_promised(setting, n):
    found = pool(300 if setting is PLANE else 160, setting, 12)
    floor = setting.floor
    for promise in (
        Promise(), Promise(side="inner"), Promise(share=0.99), Promise(share=0.95), Promise(side="inner", share=0.95),
        Promise(floor=floor), Promise(side="inner", floor=floor),
    ):  # fmt: skip
        check_coverage(found.needs(promise), n, 500)
    # needed margins of no or one element tie, and ties cover more
    by_area = scores_of(found.needs(Promise(share=0.9, of="area")))
    for alpha in (0.1, 0.05):
        assert over_splits(by_area, n, alpha, 500)[0] > expected_coverage(n, alpha) - 0.01
    for promise in (Promise(), Promise(floor=floor)):
        stratified = found.needs(promise, STRATA)
        for stratum in {need.stratum for need in stratified}:
            check_coverage([need for need in stratified if need.stratum == stratum], n // 2, 500)
    for alpha in (0.1, 0.05):
        plain, scaled = (
            over_splits(scores_of(found.needs(p)), n, alpha, 200) for p in (Promise(), Promise(floor=floor))
        )
        assert scaled[2] * found.mean_scale() < 0.8 * plain[2] and scaled[0] >= plain[0] - 0.02


@pytest.mark.parametrize("promise", [Promise(), Promise(side="inner", share=0.95), Promise(floor=0.05)])
def test_margins_cover_new_units_of_the_same_kind_by_the_region_itself(promise):
    """Calibrated on 60 units; whether a new one is covered is looked up in the grown or shrunk masks."""
    calibration, fresh = displaced_units(60, Setting(), 1), displaced_units(60, Setting(), 2)

    def needed(unit):
        matches = match_instances(unit.predicted, unit.reference)
        scales = unit.scales if promise.floor else None
        return needed_margins(unit.name, unit.predicted, unit.reference, matches, promise, scales=scales)

    found = [n for unit in calibration for n in needed(unit)]
    margin = fit_margin(found, [u.name for u in calibration], promise, 0.1, DATA)
    covered = []
    for unit in fresh:
        whole = True
        for i, j in match_instances(unit.predicted, unit.reference).pairs:
            scale = unit.scales[i] if promise.floor else None
            region = margin.region(unit.predicted.masks[i], unit.predicted.grid, scale).dense()
            truth = unit.reference.masks[j].dense()
            if promise.side == "outer":
                whole &= not (truth & ~region).any()
            else:
                areas = face_areas(np.pad(truth, 1), unit.predicted.grid.spacing, inside=False)
                whole &= areas[~np.pad(region, 1)].sum() >= 0.95 * areas.sum() * (1 - 1e-9)
        covered.append(whole)
        assert whole == (max((n.value for n in needed(unit)), default=0) <= margin.value * (1 + 1e-9))
    # one calibration of 60 and one test of 60: the standard deviation of the share is 0.055
    assert 0.9 - 3 * 0.055 < np.mean(covered) <= 1
