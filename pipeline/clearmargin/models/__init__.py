"""A trained model: its folder, what looks at images with it, tiles, the way back to the source's grid, runtimes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clearmargin.models.segmenter import NetworkSegmenter

__all__ = ["load_segmenter"]


def load_segmenter(
    folder: str | Path,
    *,
    device: str | None = None,
    runtime: str = "torch",
    runtime_folder: Path | None = None,
) -> NetworkSegmenter:
    """Return the segmenter saved in a model folder.

    Args:
        folder: A model folder.
        device: ``cpu`` or ``cuda``; None takes CUDA if there is one.
        runtime: ``torch``, or one that the model was exported to (on the CPU).
        runtime_folder: Where that export lies; None for the folder of its name in the model folder.
    """
    from clearmargin.models.folder import load_segmenter as load

    return load(Path(folder), device=device, runtime=runtime, runtime_folder=runtime_folder)
