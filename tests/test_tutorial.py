"""The tutorial's three commands, as a stranger with a folder of 30 pictures and masks types them."""

import csv
import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from command import command
from PIL import Image as Pillow
from toy import write_toy_set

PAGE = (Path(__file__).parents[1] / "docs" / "tutorial.md").read_text()


def commands():
    """The commands that stand under the three numbered steps."""
    steps = PAGE[PAGE.index("**1.") : PAGE.index("## How good")]
    return re.findall(r"```\nclearmargin (.*)\n```", steps)


def ultrasound(folder, root):
    """Thirty ultrasound pictures with a lesion, and one more."""
    with (root / "busi_subset" / "index.csv").open(newline="") as stream:
        names = [row["id"] for row in csv.DictReader(stream) if row["class"] != "normal"]
    for k, name in enumerate(names[::2][:31]):
        image, mask = root / "busi_subset/images" / f"{name}.png", root / "busi_subset/labels" / f"{name}.png"
        if k == 30:
            shutil.copy(image, folder / "new.png")
            return np.asarray(Pillow.open(mask)) > 0
        shutil.copy(image, folder / "ultrasound/images" / f"case{k:02d}.png")
        shutil.copy(mask, folder / "ultrasound/masks" / f"case{k:02d}.png")
    raise AssertionError("fewer pictures than the tutorial has")


def discs(folder):
    """Thirty pictures of bright discs, and one more: without the real data."""
    write_toy_set(folder / "made", cases=31)
    for k in range(30):
        shutil.copy(folder / "made" / f"t{k}.png", folder / "ultrasound/images" / f"case{k:02d}.png")
        shutil.copy(folder / "made" / f"t{k}_labels.png", folder / "ultrasound/masks" / f"case{k:02d}.png")
    shutil.copy(folder / "made" / "t30.png", folder / "new.png")
    return np.asarray(Pillow.open(folder / "made" / "t30_labels.png")) > 0


def test_there_are_three_commands_and_no_yaml_to_write():
    assert [line.split()[0] for line in commands()] == ["data", "train", "predict"]


def run(folder, **replaced):
    for line in commands():
        for before, after in replaced.items():
            line = line.replace(before, after)  # noqa: PLW2901
        code, said = command(*shlex.split(line))
        assert code == 0, said
    (case,) = (folder / "out").iterdir()
    labels = np.asarray(Pillow.open(case / "classes.png"))  # of one class: there even if lesions overlap
    assert labels.shape == np.asarray(Pillow.open(folder / "new.png")).shape[:2]
    assert (case / "overlay.png").is_file() and (case / "coco.json").is_file()
    return labels > 0


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "ultrasound/images").mkdir(parents=True)
    (tmp_path / "ultrasound/masks").mkdir()
    return tmp_path


def test_the_three_commands_on_made_pictures_in_half_a_minute(place):
    discs(place)
    run(place, **{"--minutes 8": "--minutes 0.3"})


@pytest.mark.slow
def test_the_three_commands_on_ultrasound_as_the_page_has_them(place, data_root):
    truth = ultrasound(place, data_root)
    predicted = run(place)
    dice = 2 * (predicted & truth).sum() / (predicted.sum() + truth.sum())
    assert dice > 0.5  # a lesion that eight minutes of training have not seen
