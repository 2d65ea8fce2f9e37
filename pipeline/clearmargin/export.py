"""Export a model to a runtime: written only where it finds what torch finds, on real images."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from clearmargin.capsules import log_capsule, log_model_card, model_name
from clearmargin.core import Image, InstanceSet
from clearmargin.datasets.card import Split
from clearmargin.datasets.cases import open_dataset
from clearmargin.errors import ConfigError, ParityError, nearest
from clearmargin.files import file_digest, write_text
from clearmargin.models import load_segmenter
from clearmargin.models.folder import RuntimeCard, save_runtime
from clearmargin.models.parity import Parity, compare, compare_maps, worst
from clearmargin.models.runtimes import RUNTIMES, runtime
from clearmargin.models.segmenter import Look, NetworkSegmenter, View
from clearmargin.networks.foreground import knows_foreground
from clearmargin.networks.parts import find_parts
from clearmargin.report.progress import progress
from clearmargin.tracking.run import TrackedRun
from clearmargin.transforms.turning import turned_case

__all__ = ["BUNDLE", "Export", "export"]

BUNDLE = "bundle"
"""The format that is not a runtime's: a whole MONAI bundle."""

Pair = tuple[Image, InstanceSet]

# A converter may take the sizes of one call for constants: another size shows it.
_VIEWS = (View(), View(zoom=0.75))


@dataclass(frozen=True, kw_only=True)
class Export:
    """An export that was written.

    Attributes:
        folder: Holds a file for each part, and ``runtime.yaml`` with the parity.
        parity: The largest differences to torch.
        cases: On how many images.
        seconds: A case, start to end, with torch and with the runtime: medians.
        run_id: In the tracking store; empty if it was not tracked.
    """

    folder: Path
    parity: Parity
    cases: int
    seconds: tuple[float, float]
    run_id: str = ""


def export(
    model: Path, card: Path, *, format: str, split: Split = "validation", cases: int = 8, track: bool = True
) -> Export:
    """Write a model's parts for a runtime into the model's folder, if they pass the parity gate.

    Args:
        model: A model folder.
        card: Card of the images that the gate compares on.
        format: ``onnx`` or ``openvino``; or ``bundle``, a MONAI bundle.
        split: Split of the card.
        cases: At most so many of them, evenly spread.
        track: Whether to log a run.

    Raises:
        ParityError: The runtime finds something else than torch; nothing is written, an earlier export stays.
        ConfigError: The format's package is not installed, the card has other classes, or nothing was found in
            the images that could be compared.
    """
    if format not in (BUNDLE, *RUNTIMES):
        raise ConfigError(f"no format '{format}': {nearest(format, (BUNDLE, *RUNTIMES))}")
    if format != BUNDLE:
        runtime(format)  # refused before the work
    segmenter = load_segmenter(model, device="cpu")
    if format == BUNDLE:
        segmenter.refuse("a bundle gives masks", "export it to onnx or openvino, or use it with torch")
    dataset = open_dataset(card)
    dataset.card.check_model(segmenter.label_map, model="the model", task="compare")
    in_split = dataset.split(split)
    compared = in_split[:: -(-len(in_split) // cases)]
    pairs = [dataset.read(case) for case in compared]
    run = TrackedRun(name=f"export-{model_name(segmenter.provenance)}-{format}", enabled=track)
    params = {"format": format, "card": dataset.card.name, "split": split, "cases": len(pairs)}
    run.on_start(
        params=params | {"weights_sha256": segmenter.provenance.weights_sha256}, tags={"verb": "export"}
    )
    with run:
        run.log_model_used(segmenter.provenance.weights_sha256, f"export-{{}}-{format}")
        parity, seconds = _write(model, segmenter, pairs, format, split)
        run.log_data(dataset.card.name, dataset.digest(), context=split)
        run.log_metrics(
            {f"export/{name}": float(value) for name, value in asdict(parity).items()}
            | {"export/seconds": seconds[1], "export/seconds_with_torch": seconds[0]},
            step=0,
        )
        run.log_artifact(model / format / "parity.json", "export")
        log_capsule(
            run, verb="export", settings=params, dataset=dataset, cases=compared, models={"": model},
            data={
                file.relative_to(model).as_posix(): file_digest(file)
                for file in sorted((model / format).rglob("*")) if file.is_file()
            },
        )  # fmt: skip
        log_model_card(run, model, {}, dataset)
    return Export(folder=model / format, parity=parity, cases=len(pairs), seconds=seconds, run_id=run.run_id)


def _write(
    model: Path, segmenter: NetworkSegmenter, pairs: Sequence[Pair], format: str, split: str
) -> tuple[Parity, tuple[float, float]]:
    """Write an export into the model's folder if it passes the gate; return how it compares, and the times."""
    draft = model / f".{format}"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir()
    try:
        if format == BUNDLE:
            parity, seconds = _bundled(model, pairs, draft)
        else:
            _write_parts(segmenter, pairs, draft, format)
            exported = load_segmenter(model, device="cpu", runtime=format, runtime_folder=draft)
            parity, seconds = _compare(segmenter, exported, pairs)
        if not (parity.instances or parity.points):
            raise ConfigError(
                f"nothing was found in {len(pairs)} images of split '{split}': the gate has nothing to compare"
            )
        if parity.problems:
            raise ParityError(
                f"{format} finds other instances than torch: {'; '.join(parity.problems)}; nothing was written"
            )
        stated = {"cases": len(pairs), "seconds": seconds, **asdict(parity)}
        write_text(draft / "parity.json", json.dumps(stated, indent=1) + "\n")
        shutil.rmtree(model / format, ignore_errors=True)
        draft.replace(model / format)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return parity, seconds


def _bundled(model: Path, pairs: Sequence[Pair], draft: Path) -> tuple[Parity, tuple[float, float]]:
    """Write a bundle, and hold what it finds, from a loaded tensor on, against what ``predict`` finds."""
    from clearmargin.predicting.bundle_files import write_bundle
    from clearmargin.predicting.bundle_gate import compare_bundle

    write_bundle(model, draft)
    return compare_bundle(model, draft, [image for image, _ in pairs])


def _write_parts(segmenter: NetworkSegmenter, pairs: Sequence[Pair], folder: Path, format: str) -> None:
    network = segmenter.network

    def look() -> None:
        for image, reference in pairs:
            for _ in _looks(segmenter, image, reference, maps=knows_foreground(segmenter.network)):
                pass

    parts = find_parts(network, network.parts, look)
    target = runtime(format)
    with progress(f"export {format}", len(parts)) as bar:
        for part in parts:
            target.write(part, folder / f"{part.name}{target.suffix}")
            bar.advance()
    save_runtime(
        folder,
        RuntimeCard(
            runtime=format,
            weights_sha256=segmenter.provenance.weights_sha256,
            torch=torch.__version__,
            parts={part.name: part.outputs for part in parts},
        ),
    )


def _compare(
    segmenter: NetworkSegmenter, exported: NetworkSegmenter, pairs: Sequence[Pair]
) -> tuple[Parity, tuple[float, float]]:
    maps = segmenter.finds_masks and knows_foreground(segmenter.network)
    parities: list[Parity] = []
    seconds: list[tuple[float, float]] = []
    with progress("compare", len(pairs)) as bar:
        for image, reference in pairs:
            looks = (_looks(one, image, reference, maps=maps) for one in (segmenter, exported))
            for (one, truth), (two, _) in zip(*looks, strict=True):
                parities.append(
                    compare(
                        one, two, truth, floor=segmenter.thresholds.lowest, cut=segmenter.network.cuts_maps
                    )
                )
                if maps:
                    parities.append(compare_maps(one, two))
            seconds.append((_time(segmenter, image), _time(exported, image)))
            bar.advance()
    middle = len(seconds) // 2
    return worst(parities), (sorted(s[0] for s in seconds)[middle], sorted(s[1] for s in seconds)[middle])


def _looks(
    segmenter: NetworkSegmenter, image: Image, reference: InstanceSet, *, maps: bool = False
) -> Iterator[tuple[Look, InstanceSet]]:
    """Yield what is found in each plane at each size, or in a volume seen whole, with what is truly there."""
    image, reference = turned_case(segmenter.image.axes, image, reference)
    ready = segmenter.prepared(image)
    for view in _VIEWS:
        for z, look in enumerate(segmenter.looks(ready, view, maps=maps)):
            yield look, reference if look.grid.ndim == image.grid.ndim else reference.plane(z)[0]


def _time(segmenter: NetworkSegmenter, image: Image) -> float:
    start = time.perf_counter()
    segmenter(image)
    return time.perf_counter() - start
