"""Files in and out: one file per format, ``read_x`` and ``write_x`` side by side."""

from clearmargin.formats.opening import (
    READERS,
    VIDEO_SUFFIXES,
    Opened,
    case_of,
    is_dicom,
    is_video,
    open_source,
    open_video,
    read_image,
    read_images,
)

__all__ = [
    "READERS",
    "VIDEO_SUFFIXES",
    "Opened",
    "case_of",
    "is_dicom",
    "is_video",
    "open_source",
    "open_video",
    "read_image",
    "read_images",
]
