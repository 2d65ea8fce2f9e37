"""Time the metrics against other tools in one run, and print the ratios: `make bench-metrics`.

The tools are installed into `.venv-bench`, beside the packages of the environment this is started from. Times
are medians of interleaved rounds, so that a busy machine slows all sides alike; every first call is left out,
and the first call of ours is reported apart.
"""

from __future__ import annotations

import argparse
import logging
import os
import statistics
import subprocess
import sys
import sysconfig
import time
import venv
import warnings
from pathlib import Path

from metrics_detection import boundary_ap, coco_ap
from metrics_shapes import blobs, discs
from side_by_side import interleaved, report

ROOT = Path(__file__).parents[1]
BENCH = ROOT / ".venv-bench"
# Without their own dependencies: NumPy, SciPy, torch and MONAI come from the environment this is started
# from.
PEERS = (
    "surface-distance==0.1",
    "medpy==0.5.2",
    "faster-coco-eval==1.8.0",
    "pycocotools==2.0.11",
    "opencv-python-headless>=4.10",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure", action="store_true", help="measure now, with the packages of this interpreter"
    )
    parser.add_argument(
        "--memory", action="store_true", help="print the peak memory of the 512 x 512 x 600 case"
    )
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args()
    if chosen.memory:
        print(f"{peak_memory():.2f}")
    elif chosen.measure:
        warnings.simplefilter("ignore")
        measure_all(chosen.rounds)
    else:
        python = prepare()
        subprocess.run([python, __file__, "--measure", "--rounds", str(chosen.rounds)], check=True)


def prepare() -> str:
    """Make `.venv-bench` with the peers, seeing this environment's packages; return its Python."""
    python = BENCH / "bin" / "python"
    stamp = BENCH / "peers.txt"
    if not stamp.exists() or stamp.read_text() != "\n".join(PEERS):
        venv.create(BENCH, with_pip=True, clear=True)
        paths = [sysconfig.get_paths()["purelib"], str(ROOT / "pipeline")]
        inside = next(BENCH.glob("lib/python*/site-packages"))
        (inside / "base.pth").write_text("\n".join(paths) + "\n")
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", *PEERS], check=True)
        stamp.write_text("\n".join(PEERS))
    return str(python)


def measure_all(rounds: int) -> None:
    logging.disable(logging.WARNING)
    print(f"{os.cpu_count()} cores, Python {sys.version.split()[0]}, medians of {rounds} interleaved rounds")
    first_call()
    volumes(rounds)
    apart(rounds)
    subvoxel(rounds)
    images(rounds)
    tiny(rounds)
    boundary_ap(rounds)
    coco_ap(rounds)
    bootstrap(rounds)
    growth()
    memory = subprocess.run(
        [sys.executable, __file__, "--memory"], check=True, capture_output=True, text=True
    ).stdout.strip()
    print(
        f"\n### Memory\n\n512 x 512 x 600, 60 instances, all metrics: peak {memory} GB (asked for: under 1.5)"
    )


def first_call() -> None:
    code = (
        "import time; a = time.perf_counter(); import clearmargin.metrics as m; b = time.perf_counter();"
        "import numpy as n; x = n.ones((9, 9, 9), bool); m.measure_pair(x, x, spacing=(1, 1, 1));"
        "c = time.perf_counter(); print(f'{b - a:.2f} {c - b:.2f}')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout.split()
    print(
        f"\nimport of clearmargin.metrics {found[0]} s; first measurement, with the cache on disk, {found[1]} s"
    )


def volumes(rounds: int) -> None:
    import numpy as np
    import surface_distance as tool
    import torch
    from monai.metrics import (
        compute_average_surface_distance,
        compute_hausdorff_distance,
        compute_surface_dice,
    )

    from clearmargin.metrics import measure_pair

    spacing = (2.5, 0.8, 0.8)
    predicted, reference = blobs((128, 256, 256), 0, (8, 24, 24))
    a, b = (torch.as_tensor(m[None, None].astype(np.float32)) for m in (predicted, reference))

    def ours():
        return measure_pair(
            predicted, reference, spacing=spacing, metrics=("hd95", "assd"), tolerances=(2.0,)
        )

    def deepmind():
        found = tool.compute_surface_distances(reference, predicted, spacing)
        return (
            tool.compute_surface_dice_at_tolerance(found, 2.0),
            tool.compute_robust_hausdorff(found, 95),
            tool.compute_average_surface_distance(found),
        )

    def monai():
        step = {"include_background": True, "spacing": list(spacing)}
        return (
            compute_surface_dice(a, b, [2.0], **step),
            compute_hausdorff_distance(a, b, percentile=95, **step),
            compute_average_surface_distance(a, b, symmetric=True, **step),
        )

    found, golden = ours(), deepmind()
    difference = max(abs(found["nsd_2mm"] - golden[0]), abs(found["hd95"] - golden[1]))
    times = interleaved(rounds, clearmargin=ours, surface_distance=deepmind, monai=monai)
    report(
        "Volume: 256 x 256 x 128 blobs at 0.8 x 0.8 x 2.5 mm, NSD + HD95 + ASSD", times,
        {"surface_distance": 5, "monai": 10},
    )  # fmt: skip
    print(f"\nlargest difference from surface-distance (NSD, HD95): {difference:.1e}")


def apart(rounds: int) -> None:
    """Two balls, one in the other, and blobs elsewhere: how bad predictions look."""
    import surface_distance as tool

    from clearmargin.metrics import measure_pair

    for name, (predicted, reference, spacing) in _bad_predictions().items():

        def ours(pair=(predicted, reference), spacing=spacing):
            return measure_pair(*pair, spacing=spacing, metrics=("hd95", "assd"), tolerances=(2.0,))

        def deepmind(pair=(predicted, reference), spacing=spacing):
            found = tool.compute_surface_distances(pair[1], pair[0], spacing)
            return (
                tool.compute_surface_dice_at_tolerance(found, 2.0),
                tool.compute_robust_hausdorff(found, 95),
                tool.compute_average_surface_distance(found),
            )

        times = interleaved(rounds, clearmargin=ours, surface_distance=deepmind)
        report(f"Bad predictions: {name}", times, {"surface_distance": 5})


def subvoxel(rounds: int) -> None:
    """What the interpolated surface costs beside the default one."""
    from clearmargin.metrics import measure_pair

    spacing = (2.5, 0.8, 0.8)
    pairs = {
        "blobs that nearly agree": (*blobs((128, 256, 256), 0, (8, 24, 24)), spacing),
        **_bad_predictions(),
    }
    print("\n### The subvoxel surface beside the default one\n\n| masks | default, s | subvoxel, s | ratio |")
    print("|---|---:|---:|---:|")
    for name, (predicted, reference, steps) in pairs.items():

        def run(model, pair=(predicted, reference), steps=steps):
            return measure_pair(
                *pair, spacing=steps, metrics=("hd95", "assd"), tolerances=(2.0,), surface_model=model
            )

        times = interleaved(rounds, surface=lambda: run("surface"), subvoxel=lambda: run("subvoxel"))
        print(f"| {name} | {times['surface']:.4f} | {times['subvoxel']:.4f} | "
              f"{times['subvoxel'] / times['surface']:.1f} |")  # fmt: skip


def _bad_predictions():
    """Return (predicted, reference, spacing) by name: masks up to 45 mm apart, nested, and elsewhere altogether."""
    import numpy as np

    shape, spacing = (128, 256, 256), (2.5, 0.8, 0.8)

    def ball(centre, radius):
        axes = np.meshgrid(
            *[np.arange(n) * s for n, s in zip(shape, spacing, strict=True)], indexing="ij", sparse=True
        )
        return sum((a - c) ** 2 for a, c in zip(axes, centre, strict=True)) <= radius**2

    return {
        **{
            f"balls of 20 mm, {gap} mm apart": (
                ball((160, 60, 40), 20),
                ball((160, 60, 80 + gap), 20),
                spacing,
            )
            for gap in (2, 15, 45)
        },
        "a ball of 20 mm in one of 65": (ball((160, 100, 100), 20), ball((160, 100, 100), 65), spacing),
        "other blobs": (blobs(shape, 1, (4, 12, 12))[0], blobs(shape, 2, (4, 12, 12))[0], spacing),
    }


def images(rounds: int) -> None:
    import surface_distance as tool

    from clearmargin.core import Grid, Mask
    from clearmargin.metrics import MaskPair, MeasurementProtocol, measure_mask_pair

    grid = Grid.from_spacing((1024, 1024), (0.3, 0.3))
    dense = list(discs(30, (1024, 1024), 1, 25, 70))
    crops = [(Mask.from_dense(p), Mask.from_dense(r)) for p, r in dense]
    plain = MeasurementProtocol(
        metrics=("hausdorff", "hd95", "assd", "masd", "surface_bias"), tolerances=(0.6, 1.5)
    )
    banded = MeasurementProtocol(metrics=plain.metrics, tolerances=plain.tolerances, bands=(2.0,))

    def ours(protocol):
        return [measure_mask_pair(MaskPair.from_masks(p, r, grid), protocol) for p, r in crops]

    def from_dense():
        return [measure_mask_pair(MaskPair.from_arrays(p, r, (0.3, 0.3)), banded) for p, r in dense]

    def deepmind():
        out = []
        for predicted, reference in dense:
            found = tool.compute_surface_distances(reference, predicted, (0.3, 0.3))
            out.append((
                tool.compute_robust_hausdorff(found, 100), tool.compute_robust_hausdorff(found, 95),
                tool.compute_average_surface_distance(found),
                tool.compute_surface_dice_at_tolerance(found, 0.6), tool.compute_surface_dice_at_tolerance(found, 1.5),
            ))  # fmt: skip
        return out

    times = interleaved(
        rounds,
        clearmargin=lambda: ours(banded),
        clearmargin_without_boundary_IoU=lambda: ours(plain),
        clearmargin_from_dense_arrays=from_dense,
        surface_distance=deepmind,
    )
    report(
        "Image: 30 instances in 1024 x 1024, all distances and boundary IoU (2 mm)",
        times,
        {"surface_distance": 2.5},
    )


def tiny(rounds: int) -> None:
    """One small disc in one picture: what the call itself costs."""
    import numpy as np
    import surface_distance as tool

    from clearmargin.core import Grid, Mask
    from clearmargin.metrics import MaskPair, MeasurementProtocol, measure_mask_pair, measure_pair

    print(
        "\n### One small disc, one pixel off\n\n| picture | radius | from arrays, ms | from crops, ms | ratio | ratio |"
    )
    print("|---:|---:|---:|---:|---:|---:|")
    protocol = MeasurementProtocol(metrics=("hd95", "assd"), tolerances=(1.0,))
    for side, radius in ((16, 2), (16, 4), (32, 5), (64, 8), (64, 20), (128, 30), (256, 60), (512, 10)):
        y, x = np.mgrid[:side, :side] - side // 2
        predicted, reference = (y**2 + (x - k) ** 2 <= radius**2 for k in (0, 1))
        crops = Mask.from_dense(predicted), Mask.from_dense(reference)
        grid = Grid.from_spacing((side, side), (0.5, 0.5))

        def arrays(pair=(predicted, reference)):
            for _ in range(50):
                measure_pair(*pair, spacing=(0.5, 0.5), metrics=("hd95", "assd"), tolerances=(1.0,))

        def from_crops(pair=crops, grid=grid):
            for _ in range(50):
                measure_mask_pair(MaskPair.from_masks(*pair, grid), protocol)

        def deepmind(pair=(predicted, reference)):
            for _ in range(50):
                found = tool.compute_surface_distances(pair[1], pair[0], (0.5, 0.5))
                tool.compute_surface_dice_at_tolerance(found, 1.0)
                tool.compute_robust_hausdorff(found, 95)
                tool.compute_average_surface_distance(found)

        times = interleaved(rounds, arrays=arrays, crops=from_crops, peer=deepmind)
        ours, cut, peer = (times[name] * 20 for name in ("arrays", "crops", "peer"))  # ms of one
        print(f"| {side} | {radius} | {ours:.3f} | {cut:.3f} | {peer / ours:.1f} | {peer / cut:.1f} |")


def bootstrap(rounds: int) -> None:
    import numpy as np

    from clearmargin.metrics.intervals import bootstrap_means

    values = {str(k): np.random.default_rng(k).random(1000) for k in range(10)}
    patients = [str(i) for i in range(1000)]
    times = interleaved(
        rounds,
        clearmargin=lambda: bootstrap_means(values, patients, rng=np.random.default_rng(0), resamples=10_000),
    )
    print(f"\n### Bootstrap\n\n1,000 cases x 10 metrics x 10,000 resamples (BCa): {times['clearmargin']:.2f} s "
          "(asked for: under 2)")  # fmt: skip


def growth() -> None:
    """Show that time grows with the surface, and not with the image around it."""
    import numpy as np

    from clearmargin.core import Grid, Mask
    from clearmargin.metrics import MaskPair, MeasurementProtocol, measure_mask_pair

    protocol = MeasurementProtocol(metrics=("hd95", "assd"), tolerances=(2.0,))
    axes = np.meshgrid(*[np.arange(160)] * 3, indexing="ij", sparse=True)
    print("\n### Growth\n\n| radius | surface elements | image | milliseconds | microseconds an element |")
    print("|---:|---:|---|---:|---:|")
    for radius, image in ((16, 160), (16, 320), (16, 640), (32, 640), (64, 640)):
        masks = [
            Mask.from_crop(sum((a - 80 - shift) ** 2 for a in axes) <= radius**2, (0, 0, 0), (image,) * 3)
            for shift in (0, 1)
        ]
        grid = Grid.from_spacing((image,) * 3, (1, 1, 1))
        measure_mask_pair(MaskPair.from_masks(masks[0], masks[1], grid), protocol)
        times = []
        for _ in range(7):
            start = time.perf_counter()
            pair = MaskPair.from_masks(masks[0], masks[1], grid)
            measure_mask_pair(pair, protocol)
            times.append(time.perf_counter() - start)
        spent = statistics.median(times)
        elements = sum(len(side.distances) for side in pair.surfaces)
        print(f"| {radius} | {elements} | {image}^3 | {1e3 * spent:.1f} | {1e6 * spent / elements:.2f} |")


def peak_memory() -> float:
    """Return the peak resident memory in GB of measuring 60 instances on 512 x 512 x 600 by all metrics."""
    import numpy as np

    from clearmargin.core import Grid, InstanceSet, Mask
    from clearmargin.metrics import MeasurementProtocol, evaluate_instances

    rng = np.random.default_rng(0)
    shape = (600, 512, 512)
    sides: list[list[Mask]] = [[], []]
    for k in range(60):
        radius = 110 if k == 0 else int(rng.integers(8, 40))
        centre = rng.integers(radius + 2, np.array(shape) - radius - 2)
        axis = np.arange(-radius, radius + 1)
        crop = axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2 <= radius**2
        for side, shift in zip(sides, (0, 1), strict=True):
            side.append(Mask.from_crop(crop, tuple(int(c) - radius + shift for c in centre), shape))
    grid = Grid.from_spacing(shape, (1.0, 0.8, 0.8))
    labels, scores = np.ones(60, np.int64), np.linspace(0.5, 1, 60).astype(np.float32)
    sets = [InstanceSet(grid=grid, masks=tuple(side), labels=labels, scores=scores) for side in sides]
    rows = evaluate_instances(sets[0], sets[1], protocol=MeasurementProtocol(bands=(2.0,)))
    if sum(row.status == "tp" for row in rows) != 60:
        raise RuntimeError("the memory case did not match its instances")
    # not getrusage: its peak is inherited from the process that started this one
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 2**20


if __name__ == "__main__":
    main()
