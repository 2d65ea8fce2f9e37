"""The model as MLflow serves it: code that is logged beside the weights, so nothing is pickled.

MLflow copies this file into the logged model and runs it when the model is loaded; it imports the installed
``clearmargin``. See ``clearmargin.tracking.served`` for what goes in and what comes out.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import numpy as np
from mlflow.pyfunc import PythonModel

from clearmargin.core import Segmenter
from clearmargin.tracking.served import images_of, instances_table


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
        model_input: np.ndarray,  # MLflow reads the hint, and no other is quiet; paths come, too
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Return a table with a row per instance (docs/tracking.md, "Serving")."""
        options = params or {}
        spacing = [float(v) for v in np.ravel(options.get("spacing_mm", ()))]
        images = images_of(model_input, volume=bool(options.get("volume", False)), spacing=spacing)
        return instances_table((image, self.segmenter(image)) for image in images)


mlflow.models.set_model(SegmenterModel())
