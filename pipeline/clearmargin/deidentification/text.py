"""Text seen in the pixels, by the optional detector RapidOCR (``pip install 'clearmargin[text]'``)."""

from __future__ import annotations

import importlib.util
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.dicom.boundary import read_header
from clearmargin.formats.dicom.pixels import decode_frames, pixel_layout

__all__ = ["check_detector", "why_text_is_seen"]

_LEAST_SCORE = 0.5
_LEAST_LETTERS = 2  # single marks of anatomy are read as letters now and then
_FRAMES = 3


def check_detector() -> None:
    """Make sure that there is a detector.

    Raises:
        ConfigError: It is not installed.
    """
    if importlib.util.find_spec("rapidocr_onnxruntime") is None:
        raise ConfigError("--look-for-text needs a text detector: pip install 'clearmargin[text]'")


def why_text_is_seen(path: Path) -> str | None:
    """Return why a file's first, middle or last frame seems to show text; None if none is seen.

    Frames that cannot be decoded cannot be judged: that is a reason, too.
    """
    try:
        dataset = read_header(path, pixels=True)
        frames = pixel_layout(dataset).frames
        picks = sorted({0, frames // 2, frames - 1})[:_FRAMES]
        for frame in decode_frames(dataset, picks):
            if _shows_text(_as_grey_levels(frame)):
                return "text is seen in the pixels"
    except InputError:
        return "the pixels cannot be decoded, so no text could be looked for"
    return None


def _as_grey_levels(frame: NDArray[Any]) -> NDArray[np.uint8]:
    """Return a frame as ``(Y, X, 3)``, its whole range of values in 0 to 255."""
    values = frame.astype(np.float32)
    low, high = float(values.min()), float(values.max())
    grey = ((values - low) * (255 / max(high - low, 1e-9))).astype(np.uint8)
    return grey if grey.ndim == 3 else np.repeat(grey[..., None], 3, axis=2)


def _shows_text(picture: NDArray[np.uint8]) -> bool:
    lines, _ = _detector()(picture, use_det=True, use_cls=False, use_rec=True)
    return any(
        float(score) >= _LEAST_SCORE and len(text.strip()) >= _LEAST_LETTERS for _, text, score in lines or []
    )


@cache
def _detector() -> Any:
    from rapidocr_onnxruntime import RapidOCR

    return RapidOCR(intra_op_num_threads=1)
