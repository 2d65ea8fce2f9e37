"""Milliseconds an image takes with each model: ``python benchmarks/latency.py --card CARD --split test MODEL...``.

One thread's CPU time, from pixels in memory to instances; models interleaved, so that all meet what the machine does.
`clearmargin select` times reading and writing too, on a validation split; this is for cards that have none.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import torch

from clearmargin.datasets.cases import open_dataset
from clearmargin.models import load_segmenter


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", type=Path, nargs="+", help="model folders")
    parser.add_argument("--card", type=Path, required=True)
    parser.add_argument("--split", default="test")
    parser.add_argument("--images", type=int, default=20)
    chosen = parser.parse_args()
    torch.set_num_threads(1)
    segmenters = [load_segmenter(model, device="cpu") for model in chosen.models]
    dataset = open_dataset(chosen.card)
    spans: list[list[float]] = [[] for _ in segmenters]
    for number, case in enumerate(dataset.split(chosen.split)[: chosen.images]):
        image = dataset.read(case)[0]
        for segmenter, seen in zip(segmenters, spans, strict=True):
            if not number:
                segmenter(image)  # warms up
            start = time.process_time()
            segmenter(image)
            seen.append(1000 * (time.process_time() - start))
    for model, seen in zip(chosen.models, spans, strict=True):
        late = sorted(seen)[int(0.95 * (len(seen) - 1))]
        name = f"{model.parent.name}/{model.name}"
        print(
            f"{name:<28} {len(seen)} images: p50 {statistics.median(seen):.0f} ms, p95 {late:.0f} ms",
            flush=True,
        )


if __name__ == "__main__":
    main()
