"""What a loaded model does under load: ``make bench-load``.

Memory over 300 predictions of mixed sizes, two threads that share a segmenter, processes that are forked and spawned
with one, predictions from a running event loop, and exports beside torch at odd sizes. The network is a small Mask
R-CNN as it starts, which detects much and at random: what is compared is whether the same image gives the same.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from small import SMALL

from clearmargin.core import Code, Grid, Image, LabelClass, LabelMap, Prediction
from clearmargin.errors import ClearMarginError
from clearmargin.export import _write_parts
from clearmargin.models import load_segmenter
from clearmargin.models.folder import ModelCard, label_map_entries, save_model
from clearmargin.models.runtimes import RUNTIMES
from clearmargin.models.segmenter import NetworkSegmenter
from clearmargin.models.settings import PredictionSettings
from clearmargin.networks import build_network, network_config
from clearmargin.transforms.settings import AugmentSettings, ImageSettings, Percentiles

ODD_SIZES = [(1, 1), (1, 2), (2, 1), (1, 300), (3, 5), (17, 31), (33, 65), (100, 257), (40, 9000), (9000, 40)]
WAIT_S = 120.0


def make_model(folder: Path, network: str) -> Path:
    """Save a network as it starts; the same numbers each time."""
    torch.manual_seed(0)
    config = network_config(SMALL[network].model)
    built: Any = build_network(config, classes=1, channels=3, pretrained=False)
    code = Code(value="108369006", scheme="SCT", meaning="Tumor")
    classes = LabelMap((LabelClass(id=1, name="object", type=code, category=code),))
    card = ModelCard(
        software="clearmargin benchmark",
        model=config.model_dump(mode="json"),
        image=ImageSettings(intensity=Percentiles(low=1, high=99)),
        augment=AugmentSettings(),
        classes=label_map_entries(classes),
        prediction=PredictionSettings(score_threshold=0.05),
        show_in_tracking=False,
    )
    save_model(folder, card, built.state_dict())
    return folder


def picture(size: tuple[int, int], seed: int) -> Image:
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 60, (1, *size)).astype(np.uint8)
    pixels[:, size[0] // 4 : -(-3 * size[0] // 4), size[1] // 4 : -(-3 * size[1] // 4)] += 150
    return Image(pixels=pixels, grid=Grid.from_spacing(size))


def same(one: Prediction, other: Prediction) -> bool:
    """Whether two predictions are equal to the last bit."""
    pairs = list(zip(one.instances.masks, other.instances.masks, strict=False))
    return (
        len(one.instances) == len(other.instances)
        and bool(np.array_equal(one.instances.scores, other.instances.scores))
        and all(a.origin == b.origin and np.array_equal(a.crop, b.crop) for a, b in pairs)
    )


def resident_mib() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20


def memory(model: Path, network: str, count: int) -> None:
    """Print how the memory of this process grows; it is to be a fresh one, since memory is rarely given back."""
    torch.set_num_threads(2)
    segmenter = load_segmenter(model, device="cpu")
    rng = np.random.default_rng(0)
    shown: list[float] = []
    tenth = max(1, count // 10)
    print(f"{network}: median RSS in MiB of each tenth of {count} predictions, 16 to 320 pixels a side:")
    for k in range(count):
        segmenter(picture(tuple(int(v) for v in rng.integers(16, 320, 2)), k))
        gc.collect()
        shown.append(resident_mib())
        if len(shown) == tenth:
            print(f"  {k + 1}: {statistics.median(shown):.0f}", flush=True)
            shown.clear()


def threads(segmenter: NetworkSegmenter) -> None:
    images = [picture((64 + 32 * k, 96), k) for k in range(8)]
    alone = [segmenter(image) for image in images]
    wrong: list[int] = []

    def work() -> None:
        wrong.extend(k for k, image in enumerate(images) if not same(segmenter(image), alone[k]))

    both = [threading.Thread(target=work) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    print(f"two threads with one segmenter: {2 * len(images) - len(wrong)} of {2 * len(images)} as alone")


def _child(segmenter: NetworkSegmenter | Path, image: Image, results: Any) -> None:
    try:
        loaded = load_segmenter(segmenter, device="cpu") if isinstance(segmenter, Path) else segmenter
        results.put(loaded(image))
    except ClearMarginError as error:
        results.put(f"refused: {error}")


def processes(model: Path, segmenter: NetworkSegmenter) -> None:
    image = picture((128, 160), 5)
    alone = segmenter(image)
    for method, what in (("fork", segmenter), ("spawn", segmenter), ("spawn", model)):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=_child, args=(what, image, results), daemon=True)
        try:
            process.start()
            answer = results.get(timeout=WAIT_S)
            said = answer if isinstance(answer, str) else ("the same" if same(answer, alone) else "ANOTHER")
        except Exception as error:  # noqa: BLE001 - whatever comes is the finding
            said = f"{type(error).__name__}: {str(error)[:100]}"
        process.kill()
        given = "its folder" if isinstance(what, Path) else "the loaded segmenter"
        print(f"{method} with {given}: {said}")


async def _in_loop(segmenter: NetworkSegmenter) -> tuple[bool, bool]:
    image = picture((128, 160), 5)
    direct = segmenter(image)
    aside = await asyncio.gather(*(asyncio.to_thread(segmenter, image) for _ in range(3)))
    return True, all(same(direct, one) for one in aside)


def exports(model: Path, network: str, segmenter: NetworkSegmenter) -> None:
    small = picture((128, 160), 5)
    for name in RUNTIMES:
        try:
            folder = model / name
            folder.mkdir(exist_ok=True)
            _write_parts(segmenter, [(small, segmenter(small).instances)], folder, name)
            exported = load_segmenter(model, device="cpu", runtime=name)
        except ClearMarginError as error:
            print(f"{network}, {name}: not exported: {error}")
            continue
        for size in ODD_SIZES:
            image = picture(size, 1)
            print(
                f"{network}, {name}, {size[0]} x {size[1]}: {_beside(segmenter, exported, image)}", flush=True
            )


def _beside(segmenter: NetworkSegmenter, exported: NetworkSegmenter, image: Image) -> str:
    answers = []
    for one in (segmenter, exported):
        try:
            answers.append(one(image))
        except ClearMarginError as error:
            answers.append(f"refused: {error}")
        except Exception as error:  # noqa: BLE001 - whatever comes is the finding
            answers.append(f"BROKEN: {type(error).__name__}: {str(error)[:120]}")
    one, other = answers
    if isinstance(one, str) or isinstance(other, str):
        said = [answer if isinstance(answer, str) else "answers" for answer in answers]
        return f"torch {said[0]}; export {said[1]}"
    gap = abs(len(one.instances) - len(other.instances))
    scores = min(len(one.instances), len(other.instances))
    worst = float(np.abs(one.instances.scores[:scores] - other.instances.scores[:scores]).max(initial=0))
    return f"{len(one.instances)} instances, {gap} more or fewer, scores apart by at most {worst:.1e}"


def main() -> None:
    """Run all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=300)
    parser.add_argument("--networks", nargs="*", default=["mask_rcnn", "semantic_cc"])
    options = parser.parse_args()
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("CLEARMARGIN_HOME", f"{place}/home")
        model = make_model(Path(place) / "model", options.networks[0])
        segmenter = load_segmenter(model, device="cpu")
        started = time.monotonic()
        threads(segmenter)
        direct, aside = asyncio.run(_in_loop(segmenter))
        said = "the same" if aside else "ANOTHER"
        print(f"from a running event loop: direct {'answers' if direct else 'fails'}, three aside {said}")
        processes(model, segmenter)
        for network in options.networks:
            folder = make_model(Path(place) / network, network)
            alone = multiprocessing.get_context("spawn").Process(
                target=memory, args=(folder, network, options.predictions)
            )
            alone.start()
            alone.join()
            exports(folder, network, load_segmenter(folder, device="cpu"))
        print(f"{time.monotonic() - started:.0f} s with {torch.get_num_threads()} threads")


if __name__ == "__main__":
    main()
