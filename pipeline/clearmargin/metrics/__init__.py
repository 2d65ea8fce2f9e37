"""Every number about a segmentation: definitions in docs/metrics.md, one file for each family here.

``METRICS`` is the table of what is measured of one instance, ``SET_METRICS`` of a set of cases; `measure_pair` measures
two arrays, `evaluate_instances` two sets of instances.
"""

from clearmargin.metrics.boundary_detection import boundary_average_precision
from clearmargin.metrics.calibration import Reliability, boundary_band
from clearmargin.metrics.conventions import CONVENTIONS
from clearmargin.metrics.counting import count_error, split_and_merge, surroundings
from clearmargin.metrics.detection import AveragePrecision, box_average_precision, mask_average_precision
from clearmargin.metrics.detection_calibration import detection_calibration_error
from clearmargin.metrics.failure import Referral, aurc, ause, e_aurc, error_auroc, refer, risk_coverage
from clearmargin.metrics.froc import Froc, froc
from clearmargin.metrics.instances import InstanceRow, evaluate_instances
from clearmargin.metrics.landmarks import LandmarkErrors, landmark_errors
from clearmargin.metrics.matching import Matches, iou_matrix, match_instances, match_optimally
from clearmargin.metrics.measurement import (
    METRICS,
    SET_METRICS,
    Measurement,
    MeasurementProtocol,
    Metric,
    measure_mask_pair,
    measure_pair,
    metric_of,
    metric_title,
)
from clearmargin.metrics.pair import MaskPair, Status
from clearmargin.metrics.panoptic import PanopticQuality, panoptic_quality, semantic_dice
from clearmargin.metrics.tissue import enclosed_tissue

__all__ = [
    "CONVENTIONS",
    "METRICS",
    "SET_METRICS",
    "AveragePrecision",
    "Froc",
    "InstanceRow",
    "LandmarkErrors",
    "MaskPair",
    "Matches",
    "Measurement",
    "MeasurementProtocol",
    "Metric",
    "PanopticQuality",
    "Referral",
    "Reliability",
    "Status",
    "aurc",
    "ause",
    "boundary_average_precision",
    "boundary_band",
    "box_average_precision",
    "count_error",
    "detection_calibration_error",
    "e_aurc",
    "enclosed_tissue",
    "error_auroc",
    "evaluate_instances",
    "froc",
    "iou_matrix",
    "landmark_errors",
    "mask_average_precision",
    "match_instances",
    "match_optimally",
    "measure_mask_pair",
    "measure_pair",
    "metric_of",
    "metric_title",
    "panoptic_quality",
    "refer",
    "risk_coverage",
    "semantic_dice",
    "split_and_merge",
    "surroundings",
]
