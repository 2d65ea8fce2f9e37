"""A model folder as a logged MLflow model, and its names in the registry."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from clearmargin.config import read_yaml
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import write_text
from clearmargin.tracking.served import COLUMNS
from clearmargin.tracking.store import SPOOL_TAG, find_run, open_client
from clearmargin.tracking.surroundings import software

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = [
    "ARTIFACT",
    "aliases_of",
    "check_model_folder",
    "check_name",
    "log_model",
    "logged_model_id",
    "model_signature",
    "register",
    "tag_version",
]

ARTIFACT = "model_folder"


def log_model(
    client: MlflowClient,
    run_id: str,
    folder: Path,
    *,
    name: str = "model",
    mark: str = "",
    again: bool = False,
) -> str:
    """Log a model folder as a pyfunc for ``mlflow.pyfunc.load_model``; return ``models:/ID``.

    The code is logged as a file (models from code) and the weights as safetensors: no pickle, and loading
    runs nothing but the installed package.

    Args:
        client: Client of the store that holds the run.
        run_id: The run that made the model.
        folder: With ``model.yaml`` and ``weights.safetensors``.
        name: As the UI shows it among the run's models.
        mark: A tag by which an attempt that got no answer is known.
        again: Look for one with this mark before a model is made.

    Raises:
        InputError: If ``folder`` is not a model folder.
    """
    check_model_folder(folder)
    from mlflow.entities import LoggedModelOutput

    run = client.get_run(run_id)
    experiment = run.info.experiment_id
    known = (
        client.search_logged_models([experiment], filter_string=f"tags.`{SPOOL_TAG}` = '{mark}'")
        if again
        else []
    )
    if known:
        logged = known[0]
    else:
        tags = {SPOOL_TAG: mark} if mark else {}
        logged = client.create_logged_model(
            experiment, name=name, source_run_id=run_id, model_type="segmenter", tags=tags
        )
    with tempfile.TemporaryDirectory() as scratch:
        target = Path(scratch) / "model"
        _save(target, folder, run_id=run_id, model_id=logged.model_id, artifact_path=name)
        _forget_paths(target / "MLmodel")
        client.log_model_artifacts(logged.model_id, str(target))
    client.finalize_logged_model(logged.model_id, "READY")
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if logged.model_id not in [one.model_id for one in outputs]:
        client.log_outputs(run_id, models=[LoggedModelOutput(logged.model_id, step=0)])
    return f"models:/{logged.model_id}"


def check_model_folder(folder: Path) -> None:
    """Refuse a folder without a model.

    Raises:
        InputError: It has none.
    """
    if not (folder / "model.yaml").is_file():
        raise InputError(f"'{folder.name}' is not a model folder: it has no model.yaml")


def register(run_id: str, name: str, alias: str | None = None, *, uri: str | None = None) -> str:
    """Register a run's last model as a version of ``name``; return ``models:/name/VERSION``.

    It is the next version, unless the model has one already, which it keeps.

    Args:
        run_id: The run that logged the model.
        name: In the registry; made where it does not exist.
        alias: Such as ``champion``; it moves here from the version that had it.
        uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.

    Raises:
        InputError: If there is no such run, or it logged no model.
    """
    from mlflow.exceptions import MlflowException

    client = open_client(uri)
    model_id = logged_model_id(client, run_id)
    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    source = client.get_logged_model(model_id).artifact_location
    known = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    version = next((one for one in known if model_id in str(one.source)), None)
    if version is None:
        version = client.create_model_version(name, source=source, run_id=run_id, model_id=model_id)
    if alias is not None:
        client.set_registered_model_alias(name, alias, version.version)
    return f"models:/{name}/{version.version}"


def logged_model_id(client: MlflowClient, run_id: str) -> str:
    """Return the id of the last model that a run logged.

    Raises:
        InputError: If there is no such run, or it logged no model.
    """
    run = find_run(client, run_id)
    if run is None:
        raise InputError(
            f"no run '{run_id}' in the tracking store: `clearmargin review` lists them; MLFLOW_TRACKING_URI names "
            "another store"
        )
    outputs = run.outputs.model_outputs if run.outputs is not None else []
    if not outputs:
        raise InputError(
            f"run '{run_id}' ({run.info.status}) logged no model: only a finished training has one"
        )
    return str(outputs[-1].model_id)


def model_signature() -> Any:
    """Return the columns that come out and the parameters, as MLflow's signature (`clearmargin.tracking.served`).

    It says nothing of what goes in, an array or paths, as MLflow knows no signature for either; the model checks it.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType, DataType

    kinds = {"image": DataType.long, "label": DataType.long, "score": DataType.double}
    kinds |= {"box": AnyType(), "mask": AnyType()}
    return ModelSignature(
        outputs=Schema([ColSpec(kinds.get(name, DataType.string), name) for name in COLUMNS]),
        params=ParamSchema(
            [
                ParamSpec("volume", DataType.boolean, False),
                ParamSpec("spacing_mm", DataType.double, [], shape=(-1,)),
            ]
        ),
    )


def _save(target: Path, folder: Path, **described: str) -> None:
    """Write the pyfunc; ``described`` goes into its description."""
    channels = read_yaml(folder / "model.yaml").get("image", {}).get("channels", 1)
    with warnings.catch_warnings():
        # MLflow's own type hints, on import
        warnings.filterwarnings("ignore", "(?s).*Any type hint is inferred")
        import mlflow.pyfunc
        import numpy as np
        from mlflow.models import Model

        mlflow.pyfunc.save_model(
            path=str(target),
            python_model=str(Path(__file__).with_name("pyfunc_model.py")),
            artifacts={ARTIFACT: str(folder)},
            signature=model_signature(),
            input_example=np.zeros((1, 8, 8, channels), np.float32),
            mlflow_model=Model(**described),
            pip_requirements=[software().replace(" ", "==")],
        )


def _forget_paths(mlmodel: Path) -> None:
    """Take out of the model's description where its parts lay on this machine."""
    described = read_yaml(mlmodel)
    flavour = described["flavors"]["python_function"]
    flavour["model_code_path"] = Path(flavour["model_code_path"]).name
    for artifact in flavour["artifacts"].values():
        artifact["uri"] = artifact["path"]
    write_text(mlmodel, yaml.safe_dump(described, sort_keys=False))


def check_name(name: str, alias: str | None = None) -> None:
    """Refuse a name or an alias that the registry does not take, before anything is registered.

    Raises:
        ConfigError: It does not.
    """
    if not name.strip() or re.search(r"[/:'\"]", name):
        raise ConfigError(f"no name for a registered model: '{name}': leave out / and : and quotes")
    if alias is not None and (
        not re.fullmatch(r"[\w-]{1,255}", alias) or re.fullmatch(r"(?i)v\d+|latest", alias)
    ):
        raise ConfigError(
            f"no alias: '{alias}': expected letters, digits, - and _, as in champion, and neither latest nor v1"
        )


def aliases_of(version: str, *, uri: str | None = None) -> list[str]:
    """Return the aliases of a registered version, ``models:/NAME/VERSION``."""
    name, number = version.removeprefix("models:/").rsplit("/", 1)
    return list(open_client(uri).get_model_version(name, number).aliases)


def tag_version(version: str, tags: Mapping[str, str], *, uri: str | None = None) -> None:
    """Write tags onto a registered version, ``models:/NAME/VERSION``."""
    name, number = version.removeprefix("models:/").rsplit("/", 1)
    client = open_client(uri)
    for key, value in tags.items():
        client.set_model_version_tag(name, number, key, value)
