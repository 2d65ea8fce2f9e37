"""Which class is taken for which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from clearmargin.core import InstanceSet
from clearmargin.metrics.matching import match_instances

__all__ = ["NOTHING", "Confusion", "confusion"]

NOTHING = "nothing"
"""Stands for a reference that nothing was found of, and for a prediction where nothing is."""

Confusion = Mapping[tuple[str, str], int]
"""How many, by reference class and predicted class."""


def confusion(
    predicted: InstanceSet, reference: InstanceSet, names: Mapping[int, str]
) -> Counter[tuple[str, str]]:
    """Return how many predictions of each class match a reference of each, whatever their classes are.

    Args:
        predicted: Above its score threshold; may be empty.
        reference: On the same grid. Predictions in its ignored region do not count.
        names: Class names by label, of both.

    Source: by definition; matching as `match_instances` at an IoU of 0.5 or more, with all labels alike.
    """
    one = [replace(s, labels=np.ones(len(s), np.int64), crowds=()) for s in (predicted, reference)]
    pairs = match_instances(one[0], one[1], iou_threshold=0.5)
    counts = Counter(
        (names[int(reference.labels[j])], names[int(predicted.labels[i])]) for i, j in pairs.pairs
    )
    counts.update((names[int(reference.labels[j])], NOTHING) for j in pairs.false_negatives)
    counts.update((NOTHING, names[int(predicted.labels[i])]) for i in pairs.false_positives)
    return counts
