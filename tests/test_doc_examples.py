"""Examples of the pages are run: the README's Python, and each command of docs/troubleshooting.md with its message."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from command import command
from toy import train_toy

from clearmargin.core import Grid
from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.formats.volume import write_volume

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()


def examples():
    """Each command of the page: the exit code of its section, its words, and the message that the page shows."""
    for section in re.split(r"^## ", PAGE, flags=re.M)[1:]:
        code = re.match(r"Exit code (\d+)", section)
        for block in re.findall(r"^```\n\$ clearmargin (.*?)\n```", section, re.M | re.S):
            line, _, message = block.partition("\n")
            yield pytest.param(int(code[1]), line, message, id=line[:50])


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with what the page's commands name: a model of three steps, pictures, a card, a series with a gap."""
    folder = tmp_path_factory.mktemp("troubles")
    _, card, model = train_toy(folder)
    shutil.copytree(model.parent, folder / "runs" / "discs")
    shutil.copytree(card.parent, folder / "discs")
    write_phantom_study(folder, make_phantom(seed=1), 1)
    (study,) = folder.glob("phantom-*")
    study.rename(folder / "study")
    shutil.copytree(folder / "study", folder / "readme" / "study")
    shutil.copytree(model.parent, folder / "readme" / "demo" / "runs" / "demo")
    described = folder / "readme" / "demo" / "runs" / "demo" / "model" / "model.yaml"
    settings = yaml.safe_load(described.read_text())
    settings["prediction"]["score_threshold"] = 0.01  # three steps are sure of nothing
    described.write_text(yaml.safe_dump(settings))
    slices = sorted((folder / "study" / "ct").iterdir())
    slices[9].unlink()
    pictures = folder / "pictures"
    pictures.mkdir()
    shutil.copy(folder / "discs" / "t0.png", pictures / "good.png")
    (pictures / "broken.png").write_bytes((pictures / "good.png").read_bytes()[:200])
    (folder / "typo.yaml").write_text(
        "name: x\ncard: discs/card.yaml\nmodel: {network: mask_rcnn, mask_chanels: 64}\n"
    )
    (folder / "empty").mkdir()
    grid = Grid.from_spacing((4, 5, 6), (1, 1, 1))
    for side in ("predicted", "reference"):
        (folder / side).mkdir()
        for case in ("a", "b"):
            if (side, case) != ("predicted", "b"):
                write_volume(folder / side / f"{case}.nii.gz", np.ones((4, 5, 6), np.uint8), grid)
    return folder


def test_the_page_has_examples_of_each_code_that_a_user_can_provoke():
    assert {example.values[0] for example in examples()} >= {2, 3, 4}


@pytest.mark.parametrize(("code", "line", "message"), list(examples()))
def test_a_command_ends_as_the_page_says(place, monkeypatch, code, line, message):
    monkeypatch.chdir(place)
    monkeypatch.setenv(
        "CLEARMARGIN_HOME", str(place / "home of examples")
    )  # whose crosswalk knows these cases alone
    ended, said = command(*shlex.split(line))
    assert ended == code, said
    names = set(re.findall(r"--[a-z][a-z-]+|'[^']+'|`[^`]+`", message))
    missing = {name for name in names if name not in " ".join(said.split())}
    assert not missing, f"the message does not name {missing}:\n{said}"
    words = re.findall(r"[A-Za-z]{2,}", re.sub(r"'[^']+'|case-\w+|/\S+", "", message))
    strange = [word for word in words if word not in said]
    assert len(strange) <= 0.05 * len(words), f"the page says {strange}, the program says:\n{said}"


def test_the_readmes_python_runs(place, monkeypatch, capsys):
    """On a phantom study, with the network of three steps."""
    (block,) = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    monkeypatch.chdir(place / "readme")
    exec(compile(block, "README", "exec"), {})
    rows = capsys.readouterr().out.splitlines()
    assert rows and all(row.split()[0] in ("tp", "fp", "fn") and row.endswith("mm") for row in rows)
