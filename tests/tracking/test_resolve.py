"""How a model is named, and what is said when nothing goes by that name."""

from __future__ import annotations

from pathlib import Path

import pytest

from clearmargin.errors import InputError
from clearmargin.tracking.flavour import register
from clearmargin.tracking.resolve import model_folder
from clearmargin.tracking.run import TrackedRun


def test_a_local_folder_is_itself_and_a_trainings_folder_has_it_inside(folder_of_model: Path) -> None:
    assert model_folder(folder_of_model) == folder_of_model
    assert model_folder(str(folder_of_model.parent)) == folder_of_model


def test_every_name_of_one_model_gives_one_folder(store: str, folder_of_model: Path) -> None:
    with TrackedRun(name="m", uri=store) as run:
        logged = run.log_model(folder_of_model)
    register(run.run_id, "liver", "champion", uri=store)
    names = (run.run_id, f"runs:/{run.run_id}", f"runs:/{run.run_id}/model", str(logged))
    names += ("models:/liver@champion", "models:/liver/1")
    found = {model_folder(name, uri=store) for name in names}
    assert len(found) == 1
    assert sorted(f.name for f in found.pop().iterdir()) == ["model.yaml", "weights.safetensors"]


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("nothing", "name a folder with model.yaml, a run id, or models:/NAME@ALIAS"),
        ("0" * 32, "`clearmargin review` lists them"),
        ("models:/livre@champion", r"did you mean 'liver'\?"),
        ("models:/liver@challenger", "has versions 1 and aliases champion"),
        ("models:/liver/2", "has no version '2'"),
        ("models:/liver", "write models:/liver@champion or models:/liver/1"),
        ("models:/m-" + "0" * 32, "no model 'm-0"),
    ],
)
def test_what_is_missing_is_named_with_the_way_out(
    store: str, folder_of_model: Path, reference: str, message: str
) -> None:
    with TrackedRun(name="m", uri=store) as run:
        run.log_model(folder_of_model)
    register(run.run_id, "liver", "champion", uri=store)
    with pytest.raises(InputError, match=message):
        model_folder(reference, uri=store)


def test_an_empty_registry_says_so(store: str) -> None:
    with pytest.raises(InputError, match="none is registered yet"):
        model_folder("models:/x/1", uri=store)


def test_a_folder_without_a_model_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"neither model\.yaml nor model/model\.yaml"):
        model_folder(tmp_path)
