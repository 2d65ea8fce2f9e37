"""The quality of landmarks, by hand: places and detections in one number."""

import numpy as np
import pytest

from clearmargin.core import Grid, Landmarks, PointType
from clearmargin.metrics.landmark_rows import PointRow, best_point_threshold, landmark_quality


def row(status, error=None, unit="px"):
    return PointRow(
        group="g",
        case="c",
        point="tip",
        visibility="absent" if status == "fp" else "seen",
        status=status,
        error=error,
        score=None if status == "fn" else 0.9,
        predicted_seen=status != "fn",
        unit=unit,
    )


def test_quality_is_worked_by_hand():
    assert landmark_quality([]) == 0 and landmark_quality([row("fn")]) == 0
    assert landmark_quality([row("tp", 0.0), row("tp", 0.0)]) == 1
    assert landmark_quality([row("tp", 5.0)]) == pytest.approx(0.75)  # 1 - 5 / 20
    assert landmark_quality([row("tp", 1.0, "mm")]) == pytest.approx(0.75)  # 1 - 1 / 4
    rows = [row("tp", 0.0), row("tp", 10.0), row("fn"), row("fp")]
    assert landmark_quality(rows) == pytest.approx(1.5 / 3)  # 2 tp, half of 1 fp and 1 fn
    far = [row("tp", 0.0), row("tp", 25.0)]  # too far off: false positive and false negative
    assert landmark_quality(far) == pytest.approx(1 / 2)


GRID = Grid.from_spacing((100, 100))


def points(*placed):
    """Landmarks of one type, an object each: ``(y, x, score)``."""
    at = np.array(placed, np.float64).reshape(-1, 1, 3)
    return Landmarks(
        types=(PointType(name="tip"),),
        points=at[..., :2],
        visible=np.full(at.shape[:2], 2, np.uint8),
        scores=at[..., 2].astype(np.float32),
        areas=np.full(len(at), np.nan),
    )


TRUTH = points((20, 20, 1), (60, 60, 1))


@pytest.mark.parametrize(
    ("predicted", "threshold"),
    [
        # Both kept: (1 + 0.9) / 2 = 0.95; with the false positive 1.9 / 2.5 = 0.76; the first alone 1 / 1.5 = 0.67.
        (points((20, 20, 0.3), (60, 62, 0.2), (90, 10, 0.1)), 0.15),
        # The first alone 1 / 1.5; with the false positive 1 / 2; with all 1.9 / 2.5 = 0.76: nothing is left out.
        (points((20, 20, 0.3), (90, 10, 0.2), (60, 62, 0.125)), 0.125),
        # A far one takes nothing: 1 / 1.5 for the first alone, halfway to the next.
        (points((20, 20, 0.8), (90, 10, 0.4)), 0.6),
        (points((90, 10, 0.8)), None),  # nothing is near
        (points(), None),
    ],
)
def test_the_best_threshold_is_worked_by_hand(predicted, threshold):
    assert best_point_threshold([(predicted, TRUTH, GRID)], least=2) == pytest.approx(threshold)
    assert best_point_threshold([(predicted, TRUTH, GRID)], least=3) is None


def test_a_point_that_is_left_out_leaves_its_partner_to_another():
    """At the lowest threshold the nearest pair is the poor score's; above it the better score has the partner."""
    truth = points((20, 20, 1))
    predicted = points((20, 24, 0.9), (20, 20, 0.1))
    # The better score alone: 0.8 / 1; both: 1 / 1.5.
    assert best_point_threshold([(predicted, truth, GRID)], least=1) == pytest.approx(0.5)
