"""The base installation: what works without the extras, and what the others say."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image as Picture
from pydicom.data import get_testdata_file
from toy import write_toy_set

from clearmargin.failures import EXTRAS

ROOT = Path(__file__).parents[1]

# Packages of the extras are refused as if they were not there, from the first import on.
LIGHT = """
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {packages!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Absent())
from clearmargin.cli import main
sys.argv = ["clearmargin", *{arguments!r}]
main()
"""
EVERY = sorted({package for packages in EXTRAS.values() for package in packages})


def light(*arguments, without=EVERY, cwd):
    code = LIGHT.format(packages=list(without), arguments=[str(a) for a in arguments])
    home = {"PYTHONPATH": str(ROOT / "pipeline"), "CLEARMARGIN_HOME": str(cwd / "home"), "PATH": ""}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env=home,
        timeout=120,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def volumes(tmp_path):
    """A reference and a prediction of one voxel further, as NIfTI."""
    block = np.zeros((12, 12, 12), np.uint8)
    block[3:8, 3:8, 3:8] = 1
    for folder, labels in (("reference", block), ("predicted", np.roll(block, 1, 0))):
        (tmp_path / folder).mkdir()
        nibabel.save(nibabel.Nifti1Image(labels, np.eye(4)), tmp_path / folder / "a.nii.gz")
    return tmp_path


def test_measuring_and_looking_need_no_extra(volumes):
    code, said = light("measure", "predicted", "reference", "--objects", "classes", "--out", "m", cwd=volumes)
    assert code == 0 and "nsd_1mm" in said, said
    code, said = light("compare", "m", "m", "--name", "one", "--name", "two", cwd=volumes)
    assert code == 0 and "not distinguishable" in said, said
    code, said = light("inspect", "reference/a.nii.gz", cwd=volumes)
    assert code == 0 and "12 x 12 x 12" in said, said
    Picture.fromarray(np.full((32, 40, 3), 90, np.uint8)).save(volumes / "a.png")
    code, said = light("inspect", "a.png", "--out", "look.png", cwd=volumes)
    assert code == 0 and (volumes / "look.png").is_file(), said


def test_deidentifying_needs_no_extra(tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / "in")
    code, said = light("deidentify", "in", "out", "--key", "key", "--new-key", cwd=tmp_path)
    assert code == 0 and json.loads((tmp_path / "out" / "report.json").read_text()), said


@pytest.mark.parametrize(
    ("arguments", "without", "way"),
    [
        (("plan", "card.yaml"), ["torch"], "clearmargin[train]"),
        (("predict", "a.png", "out", "--model", "model"), ["torch"], "clearmargin[train]"),
        (("review",), ["mlflow"], "clearmargin[tracking]"),
        (("inspect", "clip.mp4"), ["av"], "clearmargin[video]"),
    ],
)
def test_a_missing_extra_is_named_with_its_pip_line(arguments, without, way, tmp_path):
    card = write_toy_set(tmp_path)
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text("software: none\n")
    Picture.fromarray(np.full((32, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    (tmp_path / "clip.mp4").write_bytes(bytes(200))
    assert card.name == "card.yaml"
    code, said = light(*arguments, without=without, cwd=tmp_path)
    assert (code, f"pip install '{way}'" in said) == (2, True), said


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--write", "tables,segg", "--write segg: did you mean 'seg'?"),
        (
            "--runtime",
            "onnx",
            "the model was not exported to 'onnx': `clearmargin export MODEL --format onnx",
        ),
        ("--uncertainty", "checkpoints", "keeps the weights of 0 epoch(s)"),
    ],
)
@pytest.mark.parametrize("verb", ["predict", "batch"])
def test_a_choice_that_cannot_be_is_refused_before_anything_is_loaded(verb, option, value, words, tmp_path):
    """All packages of the extras, torch among them, are refused here."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.yaml").write_text("software: none\n")
    Picture.fromarray(np.full((32, 40, 3), 90, np.uint8)).save(tmp_path / "a.png")
    places = {"predict": ["a.png", "out"], "batch": ["a.png", "--out", "out"]}[verb]
    code, said = light(verb, *places, "--model", "model", option, value, cwd=tmp_path)
    assert code == 2 and words in said, said
    assert not (tmp_path / "out").exists()
