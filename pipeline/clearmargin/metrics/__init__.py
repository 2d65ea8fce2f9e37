"""Every number about a segmentation: definitions in docs/metrics.md, one file for each family here.

``METRICS`` is the table of what is measured of one object by default; `measure_pair` measures two arrays,
`evaluate_instances` two sets of instances.
"""

from clearmargin.metrics.boundary_detection import boundary_average_precision
from clearmargin.metrics.detection import AveragePrecision, box_average_precision, mask_average_precision
from clearmargin.metrics.instances import InstanceRow, evaluate_instances
from clearmargin.metrics.matching import Matches, iou_matrix, match_instances, match_optimally
from clearmargin.metrics.measurement import (
    METRICS,
    Measurement,
    Metric,
    Protocol,
    measure_mask_pair,
    measure_pair,
)
from clearmargin.metrics.pair import MaskPair, Status
from clearmargin.metrics.panoptic import PanopticQuality, panoptic_quality, semantic_dice

__all__ = [
    "METRICS",
    "AveragePrecision",
    "InstanceRow",
    "MaskPair",
    "Matches",
    "Measurement",
    "Metric",
    "PanopticQuality",
    "Protocol",
    "Status",
    "boundary_average_precision",
    "box_average_precision",
    "evaluate_instances",
    "iou_matrix",
    "mask_average_precision",
    "match_instances",
    "match_optimally",
    "measure_mask_pair",
    "measure_pair",
    "panoptic_quality",
    "semantic_dice",
]
