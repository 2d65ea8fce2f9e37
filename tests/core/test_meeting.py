"""Which boxes meet, against every pair of dense arrays."""

import numpy as np
import pytest

from clearmargin.core import Mask, meeting


def _boxes(rng, count, ndim, widest):
    low = rng.integers(0, 30, (count, ndim))
    return np.stack([low, low + rng.integers(0, widest, (count, ndim))], axis=1)


@pytest.mark.parametrize("seed", range(40))
def test_pairs_are_those_whose_boxes_share_an_element(seed, monkeypatch):
    rng = np.random.default_rng(seed)
    monkeypatch.setattr(meeting, "_FEW", 0)  # the way of many boxes
    monkeypatch.setattr(meeting, "_AT_ONCE", int(rng.integers(1, 200)))
    ndim = int(rng.integers(2, 4))
    ours, theirs = (_boxes(rng, int(rng.integers(1, 40)), ndim, int(rng.integers(2, 20))) for _ in range(2))
    dense = []
    for boxes in (ours, theirs):
        arrays = np.zeros((len(boxes), *(50,) * ndim), bool)
        for array, (low, high) in zip(arrays, boxes, strict=True):
            array[tuple(map(slice, low, high))] = True
        dense.append(arrays.reshape(len(boxes), -1))
    expected = np.argwhere(dense[0].astype(np.float32) @ dense[1].astype(np.float32).T > 0)
    rows, columns = meeting.meeting_boxes(ours, theirs)
    np.testing.assert_array_equal(np.stack([rows, columns], axis=1), expected)


def test_no_masks_and_empty_ones_meet_nothing():
    empty, dot = Mask.from_dense(np.zeros((4, 4))), Mask.from_dense(np.eye(4)[:, :1] @ np.ones((1, 4)))
    for ours, theirs in (([], [dot]), ([dot], []), ([empty], [dot]), ([dot], [empty]), ([empty], [empty])):
        assert [len(p) for p in meeting.meeting(ours, theirs)] == [0, 0]


def test_candidates_go_with_the_boxes_not_with_their_square(monkeypatch):
    looked_at = []
    ravel = np.ravel_multi_index
    monkeypatch.setattr(
        meeting.np, "ravel_multi_index", lambda i, n: looked_at.append(len(i[0])) or ravel(i, n)
    )
    counts = []
    for side in (40, 80):
        low = np.stack(np.meshgrid(*[4 * np.arange(side)] * 2), axis=-1).reshape(-1, 2)
        boxes = np.stack([low, low + 3], axis=1)
        assert len(meeting.meeting_boxes(boxes, boxes)[0]) == side**2
        counts.append(sum(looked_at))
        looked_at.clear()
    assert counts[1] < 5 * counts[0]
