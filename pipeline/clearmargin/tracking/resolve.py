"""From how a model is named to the folder that holds it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from clearmargin.errors import InputError, nearest
from clearmargin.privacy import home
from clearmargin.tracking.flavour import logged_model_id
from clearmargin.tracking.store import open_client

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["model_folder"]

_MODEL_FILE, _ENSEMBLE_FILE = "model.yaml", "ensemble.yaml"


def model_folder(reference: str | Path, *, uri: str | None = None) -> Path:
    """Return the local folder with ``model.yaml`` (of an ensemble, with ``ensemble.yaml``) that ``reference`` names.

    Args:
        reference: A model folder, a training's folder that has one in ``model/``, an ensemble's, a run id,
            ``runs:/ID``, ``models:/NAME@ALIAS``, ``models:/NAME/VERSION`` or ``models:/MODEL_ID``.
        uri: The store; by default :func:`~clearmargin.tracking.store.tracking_uri`.

    Returns:
        The folder itself if it is on this machine; else a copy, kept in ``CLEARMARGIN_HOME`` by model id.

    Raises:
        InputError: If nothing goes by that name.
    """
    text = str(reference)
    local = Path(reference)
    for folder in (local, local / "model"):
        if (folder / _MODEL_FILE).is_file():
            return folder
    if (local / _ENSEMBLE_FILE).is_file():
        return local
    if local.is_dir():
        raise InputError(
            f"'{text}' is not a model folder: it has neither {_MODEL_FILE} nor model/{_MODEL_FILE}"
        )
    run = re.fullmatch(r"(?:runs:/)?([0-9a-f]{32})(?:/.*)?", text)
    if run:
        client = open_client(uri)
        return _fetch(client, logged_model_id(client, run[1]))
    if text.startswith("models:/"):
        client = open_client(uri)
        return _fetch(client, _registered(client, text.removeprefix("models:/").strip("/")))
    raise InputError(
        f"no model '{text}': name a folder with {_MODEL_FILE}, a run id, or models:/NAME@ALIAS"
        " (`clearmargin review` lists runs and models)"
    )


def _registered(client: MlflowClient, name: str) -> str:
    """Return the model id behind ``NAME@ALIAS``, ``NAME/VERSION`` or a model id itself."""
    from mlflow.exceptions import MlflowException

    if re.fullmatch(r"m-[0-9a-f]{32}", name):
        return name
    base, mark, revision = name.partition("@") if "@" in name else name.partition("/")
    if not mark or not revision:
        raise InputError(
            f"models:/{name} names no version: write models:/{name}@champion or models:/{name}/1"
        )
    try:
        client.get_registered_model(base)
    except MlflowException:
        known = [model.name for model in client.search_registered_models(max_results=100)]
        hint = nearest(base, known) if known else "none is registered yet"
        raise InputError(f"no registered model '{base}': {hint}") from None
    try:
        if mark == "@":
            version = client.get_model_version_by_alias(base, revision)
        else:
            version = client.get_model_version(base, revision)
    except MlflowException:
        versions = client.search_model_versions(f"name = '{base}'")
        aliases = sorted({a for v in versions for a in client.get_model_version(base, v.version).aliases})
        raise InputError(
            f"registered model '{base}' has no {'alias' if mark == '@' else 'version'} '{revision}': it has"
            f" versions {', '.join(sorted((str(v.version) for v in versions), key=int)) or 'none'}"
            f" and aliases {', '.join(aliases) or 'none'}"
        ) from None
    logged = re.search(r"m-[0-9a-f]{32}", str(version.source))  # a database store keeps no other link
    if logged is None:
        raise InputError(f"models:/{name} was not logged by clearmargin: it is not a model folder")
    return logged[0]


def _fetch(client: MlflowClient, model_id: str) -> Path:
    """Return the folder of a logged model: where it lies, or a copy that is whole once it has its name."""
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    try:
        location = str(client.get_logged_model(model_id).artifact_location)
    except MlflowException:
        raise InputError(f"no model '{model_id}' in the tracking store") from None
    here = Path(location.removeprefix("file://"))
    cached = home() / "models" / model_id
    for folder in (here, cached):
        if folder.is_dir():
            return _inside(folder, model_id)
    cached.parent.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cached.parent) as draft:
        try:
            download_artifacts(artifact_uri=location, dst_path=draft, tracking_uri=client.tracking_uri)
        except (MlflowException, OSError) as error:
            raise InputError(
                f"model '{model_id}' could not be fetched from the tracking store ({type(error).__name__})"
            ) from None
        whole = Path(draft) / "whole"
        whole.mkdir()
        for item in Path(draft).iterdir():
            if item != whole:
                item.rename(whole / item.name)
        if not cached.exists():
            whole.replace(cached)
    return _inside(cached, model_id)


def _inside(folder: Path, model_id: str) -> Path:
    files = sorted(folder.rglob(_MODEL_FILE))
    if not files:
        raise InputError(f"model '{model_id}' was not logged by clearmargin: it holds no {_MODEL_FILE}")
    return files[0].parent
