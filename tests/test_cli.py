"""The command line as a user meets it: help, exit codes, messages."""

import contextlib
import csv
import errno
import io
import json
import logging
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from children import LIMIT_S, child, wait_until
from toy import write_toy_experiment, write_toy_set

from clearmargin.cli import main
from clearmargin.formats.raster import read_label_raster, write_raster


@dataclass
class Done:
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def clearmargin(*arguments, cwd):
    """Run the command line in this process: a new one would spend seconds on importing torch."""
    out, err, code = io.StringIO(), io.StringIO(), 0
    before = sys.argv
    sys.argv = ["clearmargin", *map(str, arguments)]
    try:
        with contextlib.chdir(cwd), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main()
    except SystemExit as end:
        code = int(end.code or 0)
    finally:
        sys.argv = before
    return Done(code, out.getvalue(), err.getvalue())


HEAVY = {"torch", "monai", "mlflow", "timm", "torchvision", "transformers", "matplotlib"}


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["predict", "nope.png", "out", "--model", "m"], 4, "no file or folder 'nope.png' (looked for at /"),
        (["predict", "toy.yaml", "out", "--model", "m", "--device", "gpu"], 2, "did you mean cuda?"),
        (["predict", "toy.yaml", "toy.yaml", "--model", "m"], 2, "is a file; name another folder"),
        (["predict", "toy.yaml", "out", "--model", "runs/nope"], 4, "no model 'runs/nope'"),
        (["train", "nope.yaml"], 2, "no file 'nope.yaml'"),
        (["train", "toy.yaml", "--set", "training.epoch=3"], 2, "did you mean epochs?"),
        (["train", "toy.yaml", "--set", "model.network=maskrcnn"], 2, "did you mean 'mask_rcnn'?"),
        (["evaluate", "m", "--card", "nope.yaml"], 2, "no file 'nope.yaml'"),
        (["plan", "toy.yaml"], 2, "does not fit Card"),
        (["evaluate", "m", "--card", "data/card.yaml", "--out", "toy.yaml"], 2, "is a file"),
    ],
)
def test_a_typo_is_told_before_anything_heavy_is_imported(trained, arguments, code, said):
    program = (
        "import sys\n"
        "from clearmargin.cli import main\n"
        f"sys.argv = ['clearmargin', *{arguments!r}]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        f"    print(end.code, sorted({HEAVY!r} & sys.modules.keys()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=trained, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == f"{code} []", done.stderr
    assert said in done.stderr and "bug" not in done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "data/card.yaml"],
        ["inspect", "data/t0.png"],
        ["data", "show", "data/card.yaml", "--out", "drawn.png"],
        ["measure", "data/t0_labels.png", "data/t1_labels.png"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_what_needs_no_monai_does_not_import_it(trained, arguments):
    """Done to the end, not only refused: MONAI's import takes seconds."""
    program = (
        "import sys\n"
        "from clearmargin.cli import main\n"
        f"sys.argv = ['clearmargin', *{arguments!r}]\n"
        "code = 0\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    code = end.code\n"
        "print(code or 0, 'monai' in sys.modules)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=trained,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert done.stdout.splitlines()[-1] == "0 False", done.stderr


def test_the_version_is_printed(tmp_path):
    from clearmargin import __version__

    assert clearmargin("--version", cwd=tmp_path).stdout == f"clearmargin {__version__}\n"


def test_json_is_one_object_a_line_and_errors_are_objects_too(trained):
    done = clearmargin("--json", "evaluate", "runs/toy", "--card", "data/card.yaml", cwd=trained)
    (line,) = done.stdout.splitlines()
    result = json.loads(line)
    assert result["counts"]["cases"] == 1 and 0 <= result["numbers"]["ap50"] <= 1
    done = clearmargin("--json", "predict", "data/t0.png", "out-json", "--model", "runs/toy", cwd=trained)
    (line,) = done.stdout.splitlines()
    assert Path(trained, json.loads(line)["folder"], "summary.json").is_file()
    done = clearmargin("--json", "predict", "nope.png", "out", "--model", "runs/toy", cwd=trained)
    assert json.loads(done.stdout)["exit_code"] == done.returncode == 4


def test_a_log_file_holds_the_messages_with_times(trained):
    done = clearmargin(
        "--log-file", "log.txt", "train", "toy.yaml", "--set", "training.epochs=1", cwd=trained
    )
    assert done.returncode == 0
    (line,) = [row for row in (trained / "log.txt").read_text().splitlines() if "epoch 1:" in row]
    assert re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} INFO clearmargin.train epoch 1: ", line)
    for handler in list(logging.getLogger("clearmargin").handlers):
        logging.getLogger("clearmargin").removeHandler(handler)
        handler.close()


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/data/Doe^John.png"), "free space"),
        (PermissionError(errno.EACCES, "Permission denied", "/data/Doe^John.png"), "may write to"),
        (MemoryError(), "not enough memory"),
    ],
)
def test_what_the_machine_refuses_is_not_a_bug_and_names_no_file(trained, monkeypatch, error, said):
    def refuse(*_, **__):
        raise error

    monkeypatch.setattr("clearmargin.evaluate.evaluate", refuse)
    done = clearmargin("evaluate", "runs/toy", "--card", "data/card.yaml", cwd=trained)
    assert done.returncode == 4 and said in done.stderr
    assert "bug" not in done.stderr and "Doe" not in done.stderr


def test_results_appear_as_work_is_done(trained, monkeypatch):
    """At most three pictures are in hand: the lines of those before are out when the next is read."""
    from clearmargin.formats import raster as module

    seen = []
    read = module.read_raster

    def spy(path):
        seen.append((path.name, out.getvalue().count("\n")))
        return read(path)

    monkeypatch.setattr(module, "read_raster", spy)
    out = io.StringIO()
    (trained / "three").mkdir()
    for k in range(9):
        shutil.copy(trained / "data" / f"t{k % 3}.png", trained / "three" / f"{k}.png")
    monkeypatch.setattr(sys, "argv", ["clearmargin", "predict", "three", "out3", "--model", "runs/toy"])
    with contextlib.chdir(trained), contextlib.redirect_stdout(out):
        main()
    assert len(seen) == 9 and all(lines >= k - 4 for k, (_, lines) in enumerate(seen))
    assert out.getvalue().count("\n") == 9


def test_a_card_is_planned_and_trained_by_one_command(trained):
    done = clearmargin(
        "train", "data/card.yaml", "--minutes", 1, "--set", "training.epochs=1", "--set",
        "training.steps_per_epoch=2", "--set", "name=planned", cwd=trained,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "model.network:" in done.stdout and (trained / "runs/planned/model/model.yaml").is_file()
    assert "max_minutes: 1.0" in (trained / "runs/planned/config.yaml").read_text()


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import sys\n"
        "from clearmargin.cli import app\n"
        "from typer.testing import CliRunner\n"
        "result = CliRunner().invoke(app, ['--help'])\n"
        "heavy = {'torch', 'numpy', 'monai', 'mlflow', 'scipy', 'pydicom', 'highdicom', 'matplotlib', 'av',\n"
        "         'transformers', 'timm'}\n"
        "sys.stdout.write(result.output + '|' + ','.join(sorted(heavy & sys.modules.keys())))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True
    )
    text, heavy = done.stdout.rsplit("|", 1)
    assert heavy == ""
    for verb in ("train", "evaluate", "predict", "calibrate", "data", "review", "demo"):
        assert verb in text


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A toy model trained through the command line."""
    place = tmp_path_factory.mktemp("cli")
    card = write_toy_set(place / "data", cases=10)
    config = write_toy_experiment(place, card, epochs=2, steps_per_epoch=30, learning_rate=0.003)
    done = clearmargin("train", config, "--set", "prediction.score_threshold=0.3", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "model: runs/toy/model" in done.stdout
    return place


def test_evaluate_prints_and_writes_the_numbers(trained):
    done = clearmargin(
        "evaluate",
        "runs/toy/model",
        "--card",
        "data/card.yaml",
        "--split",
        "test",
        "--out",
        "tables",
        cwd=trained,
    )
    assert done.returncode == 0, done.stderr
    for name in ("ap50", "pq", "semantic_dice", "miss_rate", "nsd_2px", "hd95 (px)", "assd (px)"):
        assert name in done.stdout
    found = json.loads((trained / "tables" / "numbers.json").read_text())
    assert found["length_unit"] == "px"
    assert found["numbers"]["ap50"] > 0.5  # it has learnt bright discs
    with (trained / "tables" / "instances.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len([r for r in rows if r["status"] in ("tp", "fn")]) == found["counts"]["references"]


def test_predict_writes_tables_pictures_and_maps(trained):
    done = clearmargin(
        "predict", "data/t9.png", "out", "--model", "runs/toy/model", "--uncertainty", "tta", cwd=trained
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (trained / "out").iterdir()
    assert folder.name.startswith("case-") and "t9" not in str(list(folder.rglob("*")))
    # Of detections that overlap there is a folder with a file for each.
    assert {p.name.replace("instances.png", "instances") for p in folder.iterdir()} == {
        "instances.csv",
        "instances.json",
        "manifest.json",
        "prediction.npz",
        "summary.json",
        "overlay.png",
        "instances",
        "classes.png",
        "coco.json",
        "edges.csv",
        "entropy.tif",
        "foreground.tif",
        "mutual_information.tif",
        "variance.tif",
    }
    rows = json.loads((folder / "instances.json").read_text())
    assert rows and all("mean_entropy" in r and "edge_sd_px" in r for r in rows)
    assert not any("mm" in name for row in rows for name in row)
    import tifffile

    entropy = tifffile.imread(folder / "entropy.tif")
    assert (
        entropy.dtype == np.float32
        and entropy.shape == (96, 128)
        and 0 <= entropy.min() <= entropy.max() <= 1
    )


def test_a_folder_goes_on_past_what_it_cannot_read(trained, tmp_path):
    (tmp_path / "pictures").mkdir()
    write_raster(tmp_path / "pictures" / "good.png", np.full((64, 64), 60, np.uint8))
    (tmp_path / "pictures" / "Miller^Anna.png").write_bytes(b"not a picture")
    done = clearmargin(
        "predict", tmp_path / "pictures", tmp_path / "out", "-m", "runs/toy/model", cwd=trained
    )
    assert done.returncode == 3
    assert "1 of 2 inputs failed; the others are done" in done.stderr
    assert "Miller" not in done.stderr + done.stdout
    assert len(list((tmp_path / "out").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["predict", "nothing.png", "out", "-m", "runs/toy/model"], 4, "no file or folder 'nothing.png'"),
        (["predict", "data/t9.png", "out", "-m", "nowhere"], 4, "nowhere"),
        (["predict", "data/card.yaml", "out", "-m", "runs/toy/model"], 4, "card.yaml"),
        (["predict", "data/t9.png", "out", "-m", "runs/toy/model", "--uncertainty", "magic"], 2, "magic"),
        (["train", "toy.yaml", "--set", "training.epoch=3"], 2, "did you mean epochs"),
        (["train"], 2, "give a configuration"),
        (["train", "--resume", "nothing"], 4, "no run 'nothing'"),
        (["evaluate", "runs/toy/model", "--card", "nothing.yaml"], 2, "no file 'nothing.yaml'"),
        (["evaluate", "runs/toy/model", "--card", "data/card.yaml", "--split", "exam"], 2, "exam"),
        (["data", "show", "nothing.yaml"], 2, "no file 'nothing.yaml'"),
        (["fly"], 2, "fly"),
    ],
)
def test_what_cannot_be_done_ends_with_its_code_and_a_reason(trained, arguments, code, message):
    done = clearmargin(*arguments, cwd=trained)
    assert done.returncode == code, done.stderr
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_data_show_counts_and_draws(trained):
    done = clearmargin("data", "show", "data/card.yaml", "--out", "sheet.png", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "train             7" in done.stdout
    from PIL import Image

    with Image.open(trained / "sheet.png") as sheet:
        assert sheet.width > 600 and len(np.unique(np.asarray(sheet.convert("L")))) > 50


def test_data_show_gives_its_numbers_to_programs(trained):
    done = clearmargin("--json", "data", "show", "data/card.yaml", "--out", "sheet.png", cwd=trained)
    assert done.returncode == 0, done.stderr
    numbers = json.loads(done.stdout)
    labels = sorted((trained / "data").glob("*_labels.png"))
    held = [len(np.unique(read_label_raster(file))) - 1 for file in labels]
    assert sum(split["cases"] for split in numbers["splits"]) == len(labels)
    assert sum(split["instances"] for split in numbers["splits"]) == sum(held)
    assert numbers["splits"][0]["instances_per_case"][2] <= max(held)
    (disc,) = numbers["classes"]
    assert disc["instances"] == sum(held) and 0 < disc["sizes"][0] <= disc["sizes"][1] <= disc["sizes"][2]
    assert numbers["size_unit"] == "px^2" and numbers["sheet"] == "sheet.png"


def test_ctrl_c_ends_with_130(trained):
    command = [sys.executable, "-m", "clearmargin.cli", "train", "toy.yaml", "--set", "training.epochs=1000"]
    command += ["--set", "name=stopped", "--set", "training.steps_per_epoch=1"]
    with child(command, cwd=trained, stderr=subprocess.PIPE) as process:
        wait_until((trained / "runs" / "stopped" / "checkpoint.pt").exists, process)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130, errors
    assert "interrupted" in errors and "Traceback" not in errors
