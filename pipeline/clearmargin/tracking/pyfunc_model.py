"""The model as MLflow serves it: code that is logged beside the weights, so nothing is pickled.

MLflow copies this file into the logged model and runs it when the model is loaded; it imports the installed
``clearmargin``. See ``clearmargin.tracking.flavour`` for what goes in and what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from clearmargin.core import Grid, Image, Segmenter
from clearmargin.tracking.records import records


class SegmenterModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """A model folder as a pyfunc."""

    def load_context(self, context: Any) -> None:
        """Load the model folder that was logged; MLflow looks at the argument's name."""
        from clearmargin.models import load_segmenter

        folder = next(Path(context.artifacts["model_folder"]).rglob("model.yaml")).parent
        self.segmenter: Segmenter = load_segmenter(folder)

    def predict(
        self,
        context: Any,
        model_input: np.ndarray,  # MLflow reads the hint, and no other is quiet
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Return one record per image, or one record for the volume (docs/tracking.md, "Serving")."""
        options = params or {}
        pixels = np.moveaxis(np.asarray(model_input), -1, 1)  # N, C, Y, X
        spacing = [float(v) for v in np.ravel(options.get("spacing_mm", ()))] or None
        if options.get("volume", False):
            volume = np.ascontiguousarray(np.moveaxis(pixels, 1, 0))
            grid = Grid.from_spacing(volume.shape[1:], spacing)
            return [records(self.segmenter(Image(pixels=volume, grid=grid)))]
        grid = Grid.from_spacing(pixels.shape[2:], spacing)
        return [records(self.segmenter(Image(pixels=picture, grid=grid))) for picture in pixels]


mlflow.models.set_model(SegmenterModel())
