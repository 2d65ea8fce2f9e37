"""The demonstration: a mean HD95 that improves when tumours are missed, and one that worsens."""

import numpy as np
import pytest
import torch
from monai.metrics import HausdorffDistanceMetric

from clearmargin.core import Grid, InstanceSet
from clearmargin.metrics import MeasurementProtocol, evaluate_instances

from .shapes import ball

SPACING = (1.0, 1.0)
SHAPE = (64, 64)


def cases():
    """Return ten references and predictions; the k-th prediction is drawn k tenths of a millimetre too far."""
    centres = [(20 + 2 * k, 40 - 2 * k) for k in range(10)]
    reference = [ball(SHAPE, c, 8, SPACING) for c in centres]
    predicted = [ball(SHAPE, (c[0] + k / 2, c[1]), 8, SPACING) for k, c in enumerate(centres)]
    return predicted, reference


def monai_mean(predicted, reference):
    metric = HausdorffDistanceMetric(include_background=True, percentile=95, reduction="mean")
    metric(*(torch.as_tensor(np.array(side)[:, None].astype(np.float32)) for side in (predicted, reference)))
    return metric.aggregate().item()


def our_mean(predicted, reference):
    grid = Grid.from_spacing(SHAPE, SPACING)
    protocol = MeasurementProtocol(metrics=("hd95",), tolerances=(2.0,))
    rows = [
        row
        for p, r in zip(predicted, reference, strict=True)
        for row in evaluate_instances(
            InstanceSet.from_dense(grid, [p] if p.any() else []), InstanceSet.from_dense(grid, [r]),
            protocol=protocol, iou_threshold=0.1,
        )
    ]  # fmt: skip
    missed = sum(row.status == "fn" for row in rows)
    return (
        np.mean([row.values["hd95"] for row in rows]),
        np.mean([row.values["nsd_2mm"] for row in rows]),
        missed,
    )


@pytest.mark.filterwarnings("ignore")
def test_missing_the_worst_tumours_improves_monais_mean_and_worsens_ours():
    predicted, reference = cases()
    fewer = [p if k < 6 else np.zeros(SHAPE, bool) for k, p in enumerate(predicted)]
    assert monai_mean(fewer, reference) < 0.7 * monai_mean(predicted, reference)
    (hd95, nsd, missed), (hd95_fewer, nsd_fewer, missed_fewer) = (
        our_mean(predicted, reference),
        our_mean(fewer, reference),
    )
    assert (missed, missed_fewer) == (0, 4)
    assert hd95_fewer > 5 * hd95
    assert nsd_fewer < nsd
