"""What an evaluation counts over a split."""

from types import SimpleNamespace

import numpy as np
import pytest
from bright import LABELS

from clearmargin.core import Grid, InstanceSet, Thresholds
from clearmargin.evaluate import evaluate_cases

GRID = Grid.from_spacing((6, 24, 40), (2, 1, 1))


def rods(*spans, scores=None):
    """Rods through the slices ``z1..z2`` and the columns ``x1..x2``."""
    masks = []
    for z1, z2, x1, x2 in spans:
        dense = np.zeros(GRID.shape, bool)
        dense[z1:z2, 8:16, x1:x2] = True
        masks.append(dense)
    return InstanceSet.from_dense(GRID, masks, scores=scores)


@pytest.mark.parametrize(
    ("predicted", "splits", "merges"),
    [
        (rods((0, 6, 4, 12), (0, 6, 24, 32)), 0, 0),
        (rods((0, 3, 4, 12), (3, 6, 4, 12), (0, 6, 24, 32)), 1, 0),  # a link between two slices is missing
        (rods((0, 2, 4, 12), (2, 4, 4, 12), (4, 6, 4, 12), (0, 6, 24, 32)), 2, 0),
        (rods((0, 6, 4, 32)), 0, 1),
        (rods((0, 3, 4, 12), (3, 6, 4, 12), scores=[0.9, 0.1]), 0, 0),  # below the threshold
    ],
)
def test_splits_and_merges_of_volumes_are_counted(predicted, splits, merges):
    reference = rods((0, 6, 4, 12), (0, 6, 24, 32))
    image = SimpleNamespace(grid=GRID)
    card = SimpleNamespace(classes=LABELS.classes, label_map=LABELS)
    dataset = SimpleNamespace(card=card, read=lambda _: (image, reference))
    cases = [SimpleNamespace(case=f"case-{k}", unit=f"unit-{k}", strata={}) for k in range(2)]
    found = evaluate_cases(
        lambda _: SimpleNamespace(instances=predicted), dataset, cases, thresholds=Thresholds(0.5)
    )
    assert (found.counts["splits"], found.counts["merges"]) == (2 * splits, 2 * merges)
