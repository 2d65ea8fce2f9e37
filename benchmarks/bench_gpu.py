"""Trainings, predictions and exports on one NVIDIA GPU, as a table: ``make bench-gpu``.

It takes under ten minutes. Networks are planned for the device, trained as ``train`` does it, and measured on the test
split; the same model then predicts on the CPU and on the GPU. On a machine without a GPU it runs on the CPU: with few
steps of small networks on small cases (``--cards``) that is a test of itself, ``tests/test_bench_gpu.py``.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from clearmargin.config import apply_overrides, validate
from clearmargin.core import Grid, Image
from clearmargin.datasets.cases import open_dataset
from clearmargin.evaluate import evaluate_cases
from clearmargin.metrics.tables import SummaryRow
from clearmargin.models import load_segmenter
from clearmargin.models.parity import Parity, compare, worst
from clearmargin.models.segmenter import NetworkSegmenter, View
from clearmargin.networks import build_network, learnt_names, network_config
from clearmargin.networks.network import Network
from clearmargin.plan import plan
from clearmargin.train import train
from clearmargin.training.batches import load_batches
from clearmargin.training.checkpoint import TrainingState
from clearmargin.training.experiment import Experiment
from clearmargin.training.processes import ProcessGroup, distributed_module, loss_module
from clearmargin.training.step import TrainingStep

CARDS = Path(__file__).parents[1] / "data_cards"
SUBJECTS: dict[str, tuple[str, str, float]] = {
    "hippocampus, semantic_cc_3d": ("hippocampus_mr", "semantic_cc_3d", 2.0),
    "hippocampus, mask_rcnn_3d": ("hippocampus_mr", "mask_rcnn_3d", 2.0),
    "nuclei, mask_rcnn": ("dsb2018_nuclei", "mask_rcnn", 0.5),
    "nuclei, mask2former": ("dsb2018_nuclei", "mask2former", 0.5),
}
"""Card, network, and minutes of training."""
WARM_UP = 8


@dataclass
class Report:
    """What was measured, as Markdown tables; a part that failed is a line of its own."""

    lines: list[str] = field(default_factory=list)
    failures: int = 0

    def say(self, line: str) -> None:
        self.lines.append(line)
        print(line, flush=True)

    def part(self, name: str, do: Callable[..., Any], *given: Any) -> Any:
        """Do a part; one that fails costs its own figures alone."""
        start = time.perf_counter()
        try:
            return do(*given)
        except Exception as error:  # noqa: BLE001 - a table with a hole is worth more than none
            self.failures += 1
            traceback.print_exc()
            self.say(f"{name} failed: {type(error).__name__}: {str(error)[:300]}")
            return None
        finally:
            print(f"({name}: {time.perf_counter() - start:.1f} s)", flush=True)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--only", nargs="*", default=list(SUBJECTS), choices=list(SUBJECTS), metavar="SUBJECT"
    )
    parser.add_argument(
        "--cards", type=Path, default=CARDS, help="folder of hippocampus_mr.yaml and dsb2018_nuclei.yaml"
    )
    parser.add_argument("--steps", type=int, default=60, help="timed steps of each kind")
    parser.add_argument("--minutes", type=float, default=1.0, help="factor on the minutes of each training")
    parser.add_argument("--cases", type=int, default=8, help="test cases that CPU and GPU are compared on")
    parser.add_argument(
        "--large", type=int, nargs=3, default=[600, 512, 512], help="voxels of the large volume"
    )
    parser.add_argument("--measured", type=int, default=40, help="test cases that a training is measured on")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile and AOTInductor out")
    parser.add_argument("--workers", type=int, default=max(1, len(os.sched_getaffinity(0)) - 2))
    parser.add_argument("--set", nargs="*", default=[], metavar="A.B=VALUE", help="settings over the plans")
    parser.add_argument("--runs", type=Path, help="keeps the runs; default: a folder that is removed")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    report = Report()
    report.say(f"{_card_name(device)}, torch {torch.__version__}, {options.workers} loader processes\n")
    with tempfile.TemporaryDirectory() as scratch:
        runs = options.runs or Path(scratch)
        measured, networks = {}, {}
        for name in options.only:
            experiment = report.part(f"{name}, plan", planned, name, options)
            if experiment is None:
                continue
            measured[name] = report.part(f"{name}, speed", Speed.measure, experiment, device, options)
            networks[name] = report.part(
                f"{name}, training", learnt, experiment, runs, device, options.measured
            )
        speed_table(report, {k: v for k, v in measured.items() if v})
        training_table(report, {k: v for k, v in networks.items() if v})
        report.say(
            "\n| CPU and GPU, one model | looks | instances | lost | score | probability | flipped | s a case, CPU | "
            "GPU |"
        )
        report.say("|---|---:|---:|---:|---:|---:|---:|---:|---:|")
        for name, result in networks.items():
            if result:
                for tf32 in (True, False):
                    report.part(f"{name}, parity", parity, report, name, result, device, options.cases, tf32)
        report.say("")
        for name, result in networks.items():
            if result and SUBJECTS[name][0] == "hippocampus_mr":
                report.part(f"{name}, large", large, report, name, result, device, tuple(options.large))
                report.part(f"{name}, export", exported, report, name, result, device, not options.no_compile)
    report.say(f"\nONNX Runtime: {_onnx_providers()}")
    sys.exit(1 if report.failures else 0)


def planned(name: str, options: argparse.Namespace) -> Experiment:
    """Return what ``plan`` chooses for the device, for the subject's minutes."""
    card, network, minutes = SUBJECTS[name]
    kind = torch.device(options.device).type
    minutes *= options.minutes
    chosen = plan(
        options.cards / f"{card}.yaml", network=network, device=kind, minutes=minutes, cases=40
    ).experiment
    raw = chosen.model_dump(mode="json") | {"name": name.replace(", ", "_")}
    every = [
        f"training.workers={options.workers}",
        f"training.validate_every={max(1, int(8 * minutes))}",
        *options.set,
    ]
    return validate(apply_overrides(raw, every), Experiment, name=name)


@dataclass(kw_only=True)
class Speed:
    """Steps of one network.

    Attributes:
        batch: Windows, and voxels or pixels of each.
        loaded: Seconds a step, batches from the loader.
        waited: Share of it in which the loop waited for the next batch.
        kept: Seconds a step on batches that lie on the device; ``exact`` in float32, ``compiled`` by torch.compile,
            ``distributed`` as one process of DistributedDataParallel; None where that failed.
        compiling: Seconds until the first compiled steps were done.
        peak: GiB on the device.
        weights: Number of them.
    """

    batch: str
    loaded: float
    waited: float
    kept: float
    exact: float | None = None
    compiled: float | None = None
    compiling: float | None = None
    distributed: float | None = None
    peak: float = 0.0
    weights: int = 0
    notes: list[str] = field(default_factory=list)

    @staticmethod
    def measure(experiment: Experiment, device: torch.device, options: argparse.Namespace) -> Speed:
        """Train for some steps in each way."""
        steps = options.steps
        warm = min(WARM_UP, steps)
        dataset = open_dataset(Path(experiment.card))
        config = network_config(experiment.model)
        names = learnt_names(config, dataset.card.label_map)
        batches = load_batches(experiment, dataset, dataset.split("train"), 0, warm + steps, ProcessGroup())

        def fresh() -> Network:
            torch.manual_seed(0)
            channels = experiment.image.channels
            network = build_network(config, classes=len(names), channels=channels, pretrained=True)
            return network.to(device).to(memory_format=network.layout)

        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        network = fresh()
        amp = device.type == "cuda"
        take = _stepper(network, experiment, loss_module(network, device, ProcessGroup()), amp=amp)
        for number in range(warm):
            take(next(batches), number)
        _wait(device)
        start, waited, held = time.perf_counter(), 0.0, []
        for number in range(steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            take(batch, number)
            if len(held) < 4:
                held.append((batch[0].to(device), [t.to(device) for t in batch[1]]))
        _wait(device)
        loaded = (time.perf_counter() - start) / steps
        found = Speed(
            batch=" x ".join(map(str, (len(held[0][0]), *held[0][0].shape[2:]))),
            loaded=loaded,
            waited=waited / steps / loaded,
            kept=_timed(take, held, steps, device),
            weights=sum(p.numel() for p in network.parameters()),
        )
        print(f"{experiment.name}: {_ms(loaded)} with the loader, {_ms(found.kept)} without", flush=True)
        found.peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0

        if amp:
            exact = _stepper(network, experiment, loss_module(network, device, ProcessGroup()), amp=False)
            found.exact = _timed(exact, held, max(1, steps // 2), device)

        def compiled() -> None:
            for path in network.parts:
                network.get_submodule(path).compile()
            began = time.perf_counter()
            _timed(take, held, 2, device)
            found.compiling = time.perf_counter() - began
            found.compiled = _timed(take, held, steps, device)

        def distributed() -> None:
            with tempfile.TemporaryDirectory() as folder:
                torch.distributed.init_process_group(
                    "nccl" if device.type == "cuda" else "gloo",
                    init_method=f"file://{folder}/store",
                    rank=0,
                    world_size=1,
                )
                try:
                    other = fresh()
                    module = distributed_module(other, _indexed(device))
                    found.distributed = _timed(
                        _stepper(other, experiment, module, amp=amp), held, steps, device
                    )
                finally:
                    torch.distributed.destroy_process_group()

        for do in (distributed, *(() if options.no_compile else (compiled,))):
            try:
                do()
            except Exception as error:  # noqa: BLE001 - what it says is the result
                traceback.print_exc()
                found.notes.append(
                    f"{do.__name__}: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
                )
        return found


def _stepper(
    network: Network, experiment: Experiment, module: nn.Module, *, amp: bool
) -> Callable[[Any, int], None]:
    device = next(network.parameters()).device
    learned = [p for p in network.parameters() if p.requires_grad]
    take = TrainingStep(
        state=TrainingState(
            network=network,
            average={k: v.detach().clone() for k, v in network.state_dict().items()},
            optimiser=torch.optim.AdamW(learned, lr=1e-4, fused=device.type == "cuda"),
        ),
        compute_losses=module,
        device=device,
        clip_norm=experiment.training.clip_norm,
        ema=experiment.training.ema,
        amp=amp,
    )

    def step(batch: Any, number: int) -> None:
        torch.manual_seed(number)
        for value in take([batch], number=number, rate=1e-4).values():
            float(value)

    return step


def _timed(take: Callable[[Any, int], None], held: list[Any], steps: int, device: torch.device) -> float:
    """Return the median of the seconds a step takes."""
    seconds = []
    for number in range(min(WARM_UP, steps) + steps):
        _wait(device)
        start = time.perf_counter()
        take(held[number % len(held)], number)
        _wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[-steps:])


@dataclass(frozen=True, kw_only=True)
class Learnt:
    """A training, and its model on the test split."""

    model: Path
    card: Path
    minutes: float
    epochs: int
    steps: int
    numbers: dict[str, float]
    counts: dict[str, int]
    rows: tuple[SummaryRow, ...]


def learnt(experiment: Experiment, runs: Path, device: torch.device, most: int) -> Learnt:
    """Train as the verb does, and measure at most so many test cases."""
    start = time.perf_counter()
    result = train(experiment, runs=runs, track=False)
    minutes = (time.perf_counter() - start) / 60
    card = Path(experiment.card)
    dataset = open_dataset(card)
    cases = dataset.split("test")
    segmenter = load_segmenter(result.model, device=str(device))
    found = evaluate_cases(
        segmenter.with_threshold(0.0),
        dataset,
        cases[:: -(-len(cases) // most)],
        thresholds=segmenter.thresholds,
    )
    done = Learnt(
        model=result.model,
        card=card,
        minutes=minutes,
        epochs=result.epochs,
        steps=result.epochs * experiment.training.steps_per_epoch,
        numbers=dict(found.numbers),
        counts=dict(found.counts),
        rows=found.summary,
    )
    print(
        experiment.name,
        f"{minutes:.2f} minutes",
        json.dumps(done.numbers),
        json.dumps(done.counts),
        flush=True,
    )
    return done


def speed_table(report: Report, measured: dict[str, Speed]) -> None:
    report.say(
        "\n| a step | batch | weights | with the loader | waits | without it | float32 | compiled (after) | "
        "DDP, one process | peak |"
    )
    report.say("|---|---|---:|---:|---:|---:|---:|---:|---:|---:|")
    for name, one in measured.items():
        compiled = "-" if one.compiled is None else f"{_ms(one.compiled)} ({one.compiling:.0f} s)"
        report.say(
            f"| {name} | {one.batch} | {one.weights / 1e6:.1f} M | {_ms(one.loaded)} | {100 * one.waited:.0f} % | "
            f"{_ms(one.kept)} | {_ms(one.exact)} | {compiled} | {_ms(one.distributed)} | {one.peak:.2f} GiB |"
        )
    for name, one in measured.items():
        for note in one.notes:
            report.say(f"\n{name}: {note}")


def training_table(report: Report, trained: dict[str, Learnt]) -> None:
    report.say(
        "\n| a training | minutes | steps | test cases | AP50 | PQ | Dice | by class | splits | merges |"
    )
    report.say("|---|---:|---:|---:|---:|---:|---:|---|---:|---:|")
    for name, one in trained.items():
        shown = "; ".join(
            f"{row.stratum.removeprefix('class = ')} {row.metric} {row.interval.estimate:.3f}"
            for row in one.rows
            if row.metric in ("dice", "nsd_1mm") and row.stratum.startswith("class = ")
        )
        number = one.numbers
        report.say(
            f"| {name} | {one.minutes:.1f} | {one.steps} | {one.counts['cases']} | "
            f"{number.get('ap50', float('nan')):.3f} | "
            f"{number.get('pq', float('nan')):.3f} | {number.get('semantic_dice', float('nan')):.3f} | {shown} | "
            f"{one.counts.get('splits', 0)} | {one.counts.get('merges', 0)} |"
        )


def parity(report: Report, name: str, result: Learnt, device: torch.device, cases: int, tf32: bool) -> None:
    """Compare what one model finds on the CPU and on the device; in the device's float32, and in its tf32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = tf32
    try:
        segmenters = [load_segmenter(result.model, device=one) for one in ("cpu", str(device))]
        dataset = open_dataset(result.card)
        chosen = dataset.split("test")
        found: list[Parity] = []
        seconds: tuple[list[float], list[float]] = ([], [])
        for case in chosen[:: -(-len(chosen) // cases)]:
            image, reference = dataset.read(case)
            for segmenter, spent in zip(segmenters, seconds, strict=True):
                _wait(device)
                start = time.perf_counter()
                segmenter(image)
                spent.append(time.perf_counter() - start)
            for one, two in zip(*(_looks(s, image) for s in segmenters), strict=True):
                found.append(compare(one, two, reference, floor=segmenters[0].thresholds.lowest))
    finally:
        torch.backends.cudnn.allow_tf32 = before
    all_of = worst(found)
    report.say(
        f"| {name}{'' if tf32 else ', no tf32'} | {len(found)} | {all_of.instances} | {all_of.lost} | "
        f"{all_of.score:.1e} | "
        f"{all_of.probability:.1e} | {all_of.flipped:.2f} | {statistics.median(seconds[0]):.3f} | "
        f"{statistics.median(seconds[1]):.3f} |"
    )


def _looks(segmenter: NetworkSegmenter, image: Image) -> Iterator[Any]:
    return segmenter.looks(segmenter.prepared(image), View())


def large(
    report: Report, name: str, result: Learnt, device: torch.device, shape: tuple[int, int, int]
) -> None:
    """Say what a large volume takes: seconds, memory of the card and of the host."""
    segmenter = load_segmenter(result.model, device=str(device))
    spacing = segmenter.network.view.spacing_mm or (1.0, 1.0, 1.0)
    pixels = np.random.default_rng(0).integers(0, 60, (1, *shape), dtype=np.int16)
    z, y, x = (n // 2 for n in shape)
    pixels[:, z // 2 : z, y // 2 : y, x // 2 : x] += 200
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.empty_cache()
    before = _resident()
    start = time.perf_counter()
    found = segmenter(Image(pixels=pixels, grid=Grid.from_spacing(shape, spacing)))
    seconds = time.perf_counter() - start
    held = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else 0.0
    report.say(
        f"{name}: {' x '.join(map(str, shape))} voxels in {seconds:.1f} s, {len(found.instances)} instances, "
        f"{held:.2f} GiB of the card, host's peak {_resident() / 2**30:.2f} GiB ({before / 2**30:.2f} before)"
    )


def exported(report: Report, name: str, result: Learnt, device: torch.device, ahead_of_time: bool) -> None:
    """Export a volume network's part with ``torch.export`` on the device, compile it ahead of time, and compare."""
    network = load_segmenter(result.model, device=str(device)).network
    view: Any = network.view
    part = network.get_submodule(network.parts[0])
    window = torch.rand((1, _channels(part), *view.patch), device=device)
    program = torch.export.export(part, (window,))
    with torch.inference_mode():
        usual, other = _first(part(window)), _first(program.module()(window))
    difference = float((usual - other).abs().max())
    said = (
        f"{name}: torch.export of `{network.parts[0]}` on {device.type}: largest difference {difference:.1e}"
    )
    if not ahead_of_time:
        report.say(said)
        return
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        try:
            package = torch._inductor.aoti_compile_and_package(program, package_path=f"{folder}/part.pt2")
            ahead = torch._inductor.aoti_load_package(package)
            with torch.inference_mode():
                third = _first(ahead(window))
                usual_s, ahead_s = (_seconds(lambda run=run: run(window), device) for run in (part, ahead))
            said += (
                f"; ahead of time (AOTInductor, {time.perf_counter() - start:.0f} s, "
                f"{Path(package).stat().st_size / 1e6:.0f} MB) "
                f"{float((usual - third).abs().max()):.1e}, {_ms(ahead_s)} a window beside {_ms(usual_s)}"
            )
        except Exception as error:  # noqa: BLE001 - it needs a compiler, which few machines have
            said += f"; ahead of time: {type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    report.say(said)


def _first(outputs: Any) -> Tensor:
    while not isinstance(outputs, Tensor):
        outputs = outputs[0]
    return outputs


def _channels(part: nn.Module) -> int:
    return int(next(p for p in part.parameters() if p.ndim == 5).shape[1])


def _seconds(do: Callable[[], Any], device: torch.device) -> float:
    spent = []
    for _ in range(12):
        _wait(device)
        start = time.perf_counter()
        do()
        _wait(device)
        spent.append(time.perf_counter() - start)
    return statistics.median(spent[2:])


def _resident() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _indexed(device: torch.device) -> torch.device:
    return torch.device("cuda", device.index or 0) if device.type == "cuda" else device


def _card_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"no GPU: {torch.get_num_threads()} CPU threads"


def _onnx_providers() -> str:
    try:
        import onnxruntime
    except ImportError:
        return "not installed"
    providers = onnxruntime.get_available_providers()
    there = "CUDAExecutionProvider" in providers
    return f"{onnxruntime.__version__}, {'with' if there else 'without'} its CUDA provider ({', '.join(providers)})"


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1000 * seconds:.1f} ms"


if __name__ == "__main__":
    main()
