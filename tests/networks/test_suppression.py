"""Suppression, held against the loop that its paper describes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from clearmargin.networks.suppression import fast_nms, matrix_nms, soft_nms

SEEDS = settings(max_examples=60, deadline=None)


def crowd(seed, most=25):
    """Return boxes that overlap a lot, distinct scores, and labels of up to three classes."""
    generator = np.random.default_rng(seed)
    count = int(generator.integers(0, most))
    corners = generator.uniform(0, 20, (count, 2))
    boxes = np.concatenate([corners, corners + generator.uniform(1, 20, (count, 2))], axis=1)
    labels = generator.integers(1, 4, count)
    return (
        torch.tensor(boxes, dtype=torch.float64),
        torch.tensor(generator.random(count)),
        torch.tensor(labels),
    )


def box_iou(a, b):
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    common = width * height
    return common / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - common)


def better(scores, labels, j):
    """Return what has a higher score than j in its class."""
    return [i for i in range(len(scores)) if scores[i] > scores[j] and labels[i] == labels[j]]


def slow_fast_nms(boxes, scores, labels, threshold):
    kept = [
        j
        for j in range(len(boxes))
        if all(box_iou(boxes[i], boxes[j]) <= threshold for i in better(scores, labels, j))
    ]
    return sorted(kept, key=lambda j: -scores[j])


def slow_matrix_nms(masks, scores, labels, sigma):
    """Equation 4 of the paper, one mask after the other."""

    def iou(i, j):
        union = (masks[i] | masks[j]).sum()
        return (masks[i] & masks[j]).sum() / union if union else 0.0

    decayed = []
    for j in range(len(masks)):
        factor = 1.0
        for i in better(scores, labels, j):
            covered = max((iou(k, i) for k in better(scores, labels, i)), default=0.0)
            factor = min(factor, math.exp(-(iou(i, j) ** 2) / sigma) / math.exp(-(covered**2) / sigma))
        decayed.append(scores[j] * factor)
    return decayed


def slow_soft_nms(boxes, scores, labels, decay, threshold):
    """Figure 2 of the paper."""
    left, kept, final = dict(enumerate(scores)), [], []
    while left:
        best = max(left, key=left.get)
        score = left.pop(best)
        if score < threshold:
            continue
        kept.append(best)
        final.append(score)
        for i in left:
            if labels[i] == labels[best]:
                left[i] *= decay(box_iou(boxes[best], boxes[i]))
    return kept, final


@SEEDS
@given(st.integers(0, 2**32), st.floats(0.05, 0.95))
def test_fast_nms_is_the_papers_loop(seed, threshold):
    boxes, scores, labels = crowd(seed)
    wanted = slow_fast_nms(boxes.tolist(), scores.tolist(), labels.tolist(), threshold)
    assert fast_nms(boxes, scores, labels, threshold=threshold).tolist() == wanted


@SEEDS
@given(st.integers(0, 2**32), st.floats(0.1, 2.0))
def test_matrix_nms_is_the_papers_formula(seed, sigma):
    boxes, scores, labels = crowd(seed)
    y, x = np.mgrid[:40, :40] + 0.5
    masks = np.array(
        [(x > b[0]) & (y > b[1]) & (x < b[2]) & (y < b[3]) for b in boxes.tolist()], bool
    ).reshape(-1, 40, 40)
    wanted = slow_matrix_nms(masks, scores.tolist(), labels.tolist(), sigma)
    found = matrix_nms(torch.from_numpy(masks), scores, labels, sigma=sigma)
    assert found.tolist() == pytest.approx(wanted, rel=1e-4)


@SEEDS
@given(st.integers(0, 2**32), st.floats(0.1, 2.0), st.floats(0.0, 0.5))
def test_gaussian_soft_nms_is_the_papers_loop(seed, sigma, threshold):
    boxes, scores, labels = crowd(seed)
    wanted, final = slow_soft_nms(
        boxes.tolist(), scores.tolist(), labels.tolist(), lambda v: math.exp(-(v**2) / sigma), threshold
    )
    kept, decayed = soft_nms(boxes, scores, labels, sigma=sigma, threshold=threshold)
    assert kept.tolist() == wanted
    assert decayed.tolist() == pytest.approx(final, rel=1e-6)


def test_nothing_is_suppressed_of_nothing():
    boxes, scores, labels = torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64)
    assert fast_nms(boxes, scores, labels, threshold=0.5).tolist() == []
    assert matrix_nms(torch.zeros(0, 4, 4, dtype=torch.bool), scores, labels, sigma=0.5).tolist() == []
    found = soft_nms(boxes, scores, labels, sigma=0.5, threshold=0.1)
    assert [part.tolist() for part in found] == [[], []]


def test_a_repeat_by_hand():
    """The same box twice, and once more in another class."""
    boxes = torch.tensor([[0.0, 0, 10, 10]] * 3)
    scores, labels = torch.tensor([0.8, 0.9, 0.7]), torch.tensor([1, 1, 2])
    assert fast_nms(boxes, scores, labels, threshold=0.5).tolist() == [1, 2]
    masks = torch.ones(3, 4, 4, dtype=torch.bool)
    assert matrix_nms(masks, scores, labels, sigma=0.5).tolist() == pytest.approx(
        [0.8 * math.exp(-2), 0.9, 0.7]
    )
    kept, decayed = soft_nms(boxes, scores, labels, sigma=0.5, threshold=0.05)
    assert kept.tolist() == [1, 2, 0]
    assert decayed.tolist() == pytest.approx([0.9, 0.7, 0.8 * math.exp(-2)])


def test_masks_of_a_large_image_are_compared_whole():
    """Rows 0 to 200 and 100 to 300 of 300: an IoU of a third, however the pixels are parted."""
    masks = torch.zeros(2, 300, 300, dtype=torch.bool)
    masks[0, :200] = masks[1, 100:] = True
    found = matrix_nms(masks, torch.tensor([0.9, 0.8]), torch.ones(2), sigma=0.5)
    assert found.tolist() == pytest.approx([0.9, 0.8 * math.exp(-(1 / 9) / 0.5)])


def test_fast_nms_lets_a_suppressed_box_suppress():
    """Of three in a row the third goes too, by the second: plain suppression would keep it."""
    boxes = torch.tensor([[0.0, 0, 10, 10], [3, 0, 13, 10], [6, 0, 16, 10]])
    scores, labels = torch.tensor([0.9, 0.8, 0.7]), torch.ones(3, dtype=torch.int64)
    assert fast_nms(boxes, scores, labels, threshold=0.5).tolist() == [0]


def test_boxes_without_area_overlap_nothing():
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5]])
    assert len(fast_nms(boxes, torch.tensor([0.9, 0.8]), torch.ones(2), threshold=0.5)) == 2
