"""``make bench-gpu`` on the CPU: all its parts, for a few steps of small networks on small cases."""

import importlib
import re
from pathlib import Path

import pytest
import yaml
from toy import write_toy_set, write_toy_volumes

ROOT = Path(__file__).parents[1]
SMALL = {
    "hippocampus, semantic_cc_3d": ["filters=8", "levels=3"],
    "hippocampus, mask_rcnn_3d": ["filters=8", "levels=3", "width=16", "mask_size=6", "detections=4"],
    "nuclei, mask_rcnn": ["fpn_channels=32", "mask_channels=32", "box_features=64", "detections=5"],
    "nuclei, mask2former": ["queries=8", "encoder_layers=1", "decoder_layers=3", "points=1024"],
}


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    """Toys under the names of the benchmark's data sets."""
    folder = tmp_path_factory.mktemp("cards")
    for name, card in (
        ("hippocampus_mr", write_toy_volumes(folder / "volumes", shape=(16, 24, 24), cases=6)),
        ("dsb2018_nuclei", write_toy_set(folder / "pictures", shape=(64, 64))),
    ):
        said = yaml.safe_load(card.read_text()) | {"root": card.parent.name}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(said))
    return folder


@pytest.mark.parametrize(
    "subject", [pytest.param(s, marks=pytest.mark.slow) if s.startswith("nuclei") else s for s in SMALL]
)
@pytest.mark.filterwarnings("ignore:Grad strides:UserWarning")  # of DistributedDataParallel, about speed
def test_every_part_of_the_gpu_benchmark_runs_on_the_cpu(subject, cards, monkeypatch, capsys):
    monkeypatch.setenv("CLEARMARGIN_DATA", str(cards))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    benchmark = importlib.import_module("bench_gpu")
    few = [f"model.{option}" for option in SMALL[subject]]
    few += ["training.epochs=1", "training.steps_per_epoch=1", "training.batch_size=1"]
    options = ["--cards", str(cards), "--only", subject, "--device", "cpu", "--no-compile", "--workers", "0"]
    options += ["--steps", "1", "--minutes", "0.01", "--cases", "1", "--measured", "1"]
    with pytest.raises(SystemExit) as end:
        benchmark.main([*options, "--large", "16", "32", "40", "--set", *few])
    said, errors = capsys.readouterr()
    assert end.value.code == 0, said + errors
    rows = [line.split("|")[1:-1] for line in said.splitlines() if line.startswith(f"| {subject}")]
    speed, trained, parity, exact = ([cell.strip() for cell in row] for row in rows)
    assert all(re.fullmatch(r"[\d.]+ ms", speed[k]) for k in (3, 5, 8))  # loader, without, distributed
    assert trained[2:4] == ["1", "1"]
    assert parity[2] == exact[2] and parity[4:7] == exact[4:7] == ["0.0e+00", "0.0e+00", "0.00"]
    if subject.startswith("hippocampus"):
        assert "16 x 32 x 40 voxels in" in said
        assert re.search(r"torch.export of `\w+` on cpu: largest difference [\d.]+e", said)
