"""The few types everything speaks; numpy only, no file format, no torch."""

from clearmargin.core.grid import Grid
from clearmargin.core.image import Image, Source
from clearmargin.core.instances import Crowd, InstanceSet
from clearmargin.core.labels import Code, LabelClass, LabelMap, PointType
from clearmargin.core.landmarks import Landmarks
from clearmargin.core.mask import Mask
from clearmargin.core.prediction import (
    EdgeSpread,
    Prediction,
    Provenance,
    Segmenter,
    at_least,
    chosen_instances,
)
from clearmargin.core.thresholds import Thresholds

__all__ = [
    "Code",
    "Crowd",
    "EdgeSpread",
    "Grid",
    "Image",
    "InstanceSet",
    "LabelClass",
    "LabelMap",
    "Landmarks",
    "Mask",
    "PointType",
    "Prediction",
    "Provenance",
    "Segmenter",
    "Source",
    "Thresholds",
    "at_least",
    "chosen_instances",
]
