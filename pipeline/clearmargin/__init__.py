"""Clear Margin: instance segmentation of medical and surgical images, and how far the true edge may lie.

Research software; not a medical device. Names are imported when they are first used, so that
``import clearmargin`` and ``clearmargin --help`` stay light. A verb is a function of the module of its name:
``from clearmargin.predict import predict``. What a script strings together itself is here.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_PUBLIC = {
    "Grid": "core",
    "Image": "core",
    "InstanceSet": "core",
    "LabelMap": "core",
    "Mask": "core",
    "Prediction": "core",
    "Segmenter": "core",
    "annotated_overlay": "report.annotated",
    "as_frame": "report.frames",
    "contact_sheet": "report.contact",
    "draft_card": "datasets.drafting.draft",
    "evaluate_instances": "metrics",
    "heat_overlay": "report.overlay",
    "load_segmenter": "models",
    "match_instances": "metrics",
    "measure_pair": "metrics",
    "open_dataset": "datasets.cases",
    "open_video": "formats",
    "overlay": "report.overlay",
    "read_coco": "formats.coco",
    "read_coco_images": "formats.coco",
    "read_dicom_seg": "formats.dicom.seg",
    "read_image": "formats",
    "read_images": "formats",
    "read_label_volume": "formats.volume",
    "read_rtstruct": "formats.dicom.rtstruct",
    "write_coco": "formats.coco",
    "write_dicom_seg": "formats.dicom.seg",
    "write_rtstruct": "formats.dicom.rtstruct",
    "write_volume": "formats.volume",
}

__all__ = [  # noqa: PLE0604 - the names of the table above
    "__version__",
    *_PUBLIC,
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clearmargin' has no attribute '{name}'")
    try:
        return getattr(import_module(f"clearmargin.{_PUBLIC[name]}"), name)
    except ImportError as error:
        from clearmargin.errors import ConfigError
        from clearmargin.failures import missing_extra

        missing = missing_extra(error)
        if missing is None:
            raise
        raise ConfigError(f"clearmargin.{name}: {missing}") from None


def __dir__() -> list[str]:
    return sorted(__all__)
