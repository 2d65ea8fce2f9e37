"""The quality of landmarks, by hand: places and detections in one number."""

import pytest

from clearmargin.metrics.landmark_rows import PointRow, landmark_quality


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
