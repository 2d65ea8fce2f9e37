"""The training that made a model, found in the tracking store by the hash of the model's weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from clearmargin.files import file_digest

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["WEIGHTS_TAG", "Training", "training_of", "weights_of"]

WEIGHTS_TAG = "weights_sha256"


@dataclass(frozen=True, kw_only=True)
class Training:
    """A training's run.

    Attributes:
        run_id: Its id.
        name: Its name.
        model_id: Id of the model that it logged last; empty if it logged none.
    """

    run_id: str
    name: str
    model_id: str


def weights_of(folder: Path) -> str:
    """Return the SHA-256 of a model folder's weights; empty if it has none."""
    path = folder / "weights.safetensors"
    return file_digest(path) if path.is_file() else ""


def training_of(client: MlflowClient, weights_sha256: str) -> Training | None:
    """Return the newest training of this store whose model has such weights; None if there is none."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    runs = client.search_runs(
        experiments,
        f"tags.{WEIGHTS_TAG} = '{weights_sha256}' and tags.verb = 'train'",
        max_results=1,
        order_by=["attributes.start_time DESC"],
    )
    if not runs:
        return None
    outputs = runs[0].outputs.model_outputs if runs[0].outputs is not None else []
    return Training(
        run_id=str(runs[0].info.run_id),
        name=str(runs[0].info.run_name),
        model_id=str(outputs[-1].model_id) if outputs else "",
    )
