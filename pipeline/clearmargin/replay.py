"""Repeat an evaluation from its run, and say whether the same comes out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clearmargin.core import Prediction, Thresholds
from clearmargin.datasets.cases import Case, Dataset, open_dataset
from clearmargin.errors import ConfigError, InputError
from clearmargin.evaluate import evaluate_cases
from clearmargin.metrics import MeasurementProtocol
from clearmargin.runs import Run, load
from clearmargin.sampling.samples import open_segmenter
from clearmargin.tracking.capsule import CAPSULE, model_digests, prediction_digest, read_capsule
from clearmargin.tracking.resolve import model_folder
from clearmargin.tracking.surroundings import hardware, packages

__all__ = ["TOLERANCE", "Replayed", "render", "replay"]

TOLERANCE = 0.005
"""How far each headline number may lie from the run's where packages or processors differ."""

_ROUNDING = 1e-9  # of a headline number: a mean of the same values
_COMPUTING = (
    "clearmargin", "torch", "torchvision", "numpy", "scipy", "monai", "timm", "onnxruntime", "openvino", "scikit-image",
    "simpleitk", "pydicom", "highdicom", "nibabel", "pillow", "tifffile", "av", "python-gdcm", "pylibjpeg-openjpeg",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """A run, repeated.

    Attributes:
        run_id: Of the run.
        changed: What is not as it was: files by case id, files of the model, packages, hardware; a sentence each.
        same_machine: Whether packages and hardware are as they were, so that results are compared bit for bit.
        cases: Number of cases.
        equal: Those whose prediction is the same, bit for bit.
        numbers: For each headline number, the run's and the new one.
        differences: Why the run is not repeated; empty if it is.
    """

    run_id: str
    changed: tuple[str, ...]
    same_machine: bool
    cases: int
    equal: int
    numbers: Mapping[str, tuple[float, float]]
    differences: tuple[str, ...]


def replay(run: str, card: Path, *, model: Path | str | None = None) -> Replayed:
    """Repeat the evaluation of a run and compare it with what the run holds.

    Args:
        run: Its id or name.
        card: The data card: a run does not say where data lie.
        model: The model; None takes the one that the run's training logged.

    Raises:
        InputError: No such run, or one that holds no capsule of an evaluation. ConfigError: No model is known, or the
            card lacks the run's cases.
    """
    known = load(run)
    capsule = read_capsule(known.file(CAPSULE), known.name)
    if capsule["verb"] != "evaluate":
        raise InputError(
            f"run '{known.name}' is of the verb {capsule['verb']}: evaluations are replayed; name one of its model"
        )
    folder = model_folder(model or known.tags.get("training") or _no_model(known))
    dataset = open_dataset(card)
    cases = _cases(dataset, capsule, known)
    changed = _changed_files(capsule, dataset, cases) + _changed_model(capsule["model"], folder)
    around = _changed_around(capsule)
    settings = capsule["settings"]
    thresholds = Thresholds(
        settings["thresholds"]["every"],
        {int(label): value for label, value in settings["thresholds"]["by_label"].items()},
        settings["thresholds"].get("points"),
    )
    segmenter = open_segmenter(folder, settings["uncertainty"])
    digests: dict[str, str] = {}

    def keep(case: Case, prediction: Prediction, measured: object) -> None:
        digests[case.case] = prediction_digest(prediction)

    protocol = MeasurementProtocol(**settings["protocol"])
    evaluation = evaluate_cases(
        segmenter.with_threshold(0.0), dataset, cases, thresholds=thresholds, protocol=protocol, keep=keep
    )
    before = {k: float(known.numbers[k]) for k in evaluation.headline() if k in known.numbers}
    numbers = {name: (value, evaluation.headline()[name]) for name, value in before.items()}
    equal = sum(digests.get(case) == digest for case, digest in capsule["predictions"].items())
    differences = list(changed)
    if not around and equal < len(capsule["predictions"]):
        other = [case for case, digest in capsule["predictions"].items() if digests.get(case) != digest]
        differences.append(
            f"{len(other)} of {len(capsule['predictions'])} predictions differ on the same packages and processor: "
            f"{', '.join(other[:5])}{', ...' if len(other) > 5 else ''}"
        )
    differences += [
        f"{name} was {old:.4f} and is {new:.4f}"
        for name, (old, new) in numbers.items()
        if abs(old - new) > (TOLERANCE if around else _ROUNDING)
    ]
    return Replayed(
        run_id=known.run_id, changed=(*changed, *around), same_machine=not around, cases=len(cases), equal=equal,
        numbers=numbers, differences=tuple(differences),
    )  # fmt: skip


def render(done: Replayed) -> str:
    """Return what a console shows."""
    how = "bit for bit" if done.same_machine else f"within {TOLERANCE:g} of each headline number"
    lines = [f"run {done.run_id}: {done.cases} cases predicted anew, {done.equal} the same bit for bit"]
    lines += [f"  changed: {change}" for change in done.changed]
    lines += [f"  {name}: {old:.4f}, now {new:.4f}" for name, (old, new) in done.numbers.items()]
    if done.differences:
        return "\n".join([*lines, f"it differs (compared {how}):", *(f"  {why}" for why in done.differences)])
    return "\n".join([*lines, f"it is repeated, {how}"])


def _no_model(run: Run) -> str:
    raise ConfigError(
        f"the tracking store does not know the training of run '{run.name}': name its model folder with --model"
    )


def _cases(dataset: Dataset, capsule: Mapping[str, Any], run: Run) -> list[Case]:
    there = {case.case for case in dataset.cases}
    missing = [case for case in capsule["cases"] if case not in there]
    if missing:
        raise ConfigError(
            f"card '{dataset.card.name}' lacks {len(missing)} of the {len(capsule['cases'])} cases of run '{run.name}' "
            f"({', '.join(missing[:3])}): case ids come from files' places and the user's key; expected card "
            f"'{capsule['card']['name']}', version {capsule['card']['version']}, with its files where they were "
            "(`clearmargin cases --moved` tells of moved ones)"
        )
    return [case for case in dataset.cases if case.case in capsule["cases"]]


def _changed_files(capsule: Mapping[str, Any], dataset: Dataset, cases: list[Case]) -> list[str]:
    now = dataset.file_digests(cases)
    return [
        f"the {side} of {case} is another file"
        for case, of in capsule["cases"].items()
        for side in ("image", "reference")
        if now[case][side] != of[side]
    ]


def _changed_model(before: Mapping[str, str], folder: Path) -> list[str]:
    now = model_digests(folder)
    return [
        f"{name} of the model {'is another file' if name in now else 'is missing'}"
        for name, digest in before.items()
        if now.get(name) != digest
    ]


def _changed_around(capsule: Mapping[str, Any]) -> list[str]:
    now = packages()
    changed = [
        f"{name} was {capsule['packages'].get(name, 'not there')} and is {now.get(name, 'not there')}"
        for name in _COMPUTING
        if capsule["packages"].get(name) != now.get(name)
    ]
    here = hardware()
    return changed + [
        f"{name} was {value} and is {here.get(name)}"
        for name, value in capsule["hardware"].items()
        if here.get(name) != value
    ]
