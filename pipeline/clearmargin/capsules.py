"""What the run of each verb holds so that it can be repeated: its capsule, its model card, its table of cases."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from clearmargin.config import load_settings, read_yaml
from clearmargin.core import LabelMap, Provenance
from clearmargin.datasets.card import public
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.files import csv_rows, file_digest
from clearmargin.margins.calibration import calibration_files
from clearmargin.models.files import CONFIG_FILE, WEIGHTS_FILE
from clearmargin.models.folder import ModelCard
from clearmargin.predicting.predictor import Predictor
from clearmargin.privacy import case_id, naming
from clearmargin.report.model_card import model_card_markdown
from clearmargin.tracking.capsule import CAPSULE, capsule, model_digests
from clearmargin.tracking.parameters import plain
from clearmargin.tracking.run import TrackedRun
from clearmargin.tracking.surroundings import software

__all__ = [
    "MODEL_CARD",
    "cases_csv",
    "hidden",
    "log_capsule",
    "log_model_card",
    "log_predictor",
    "summary_rows",
]

MODEL_CARD = "model_card.md"
_MOST_ROWS = 100_000


def log_capsule(
    run: TrackedRun,
    *,
    verb: str,
    settings: Mapping[str, Any],
    dataset: Dataset | None = None,
    cases: Sequence[Case] = (),
    models: Mapping[str, Path] | None = None,
    snapshots: bool = True,
    seeds: Mapping[str, int] | None = None,
    predictions: Mapping[str, str] | None = None,
    data: Mapping[str, str] | None = None,
) -> None:
    """Log ``capsule.json`` of a run: what it takes to repeat it (docs/replay.md). Nothing is done without a run.

    Args:
        run: Inside its block.
        verb: What ran.
        settings: Its options or configuration; paths in it become ``<path>``.
        dataset: What was read of a card.
        cases: Those of its cases that were used; their files are read for their digests.
        models: Folders of the models that were used or made, by name; "" for the only one.
        snapshots: Whether the epochs that training kept belong to the models.
        seeds: By what they were for.
        predictions: The digest of each case's prediction.
        data: What there is to say of data without a card.
    """
    if not run.run_id:
        return
    card = {}
    if dataset is not None:
        card = {"card": dataset.card.name, "version": dataset.card.version, "digest": dataset.digest()}
    models = models or {}
    digests = {
        (f"{name}/{file}" if name else file): digest
        for name, folder in models.items()
        for file, digest in model_digests(folder, snapshots=snapshots).items()
    }
    calibrations = {
        (f"{name}/{file.name}" if name else file.name): file_digest(file)
        for name, folder in models.items()
        for file in calibration_files(folder)
    }
    run.log_text(
        capsule(
            verb=verb,
            settings=plain(settings),
            card={**card, **(data or {})},
            cases={} if dataset is None else dataset.file_digests(cases),
            model=digests,
            seeds=seeds or {},
            predictions=predictions or {},
            calibration=calibrations,
            label_map=_label_map(dataset, models),
        ),
        CAPSULE,
    )


def log_model_card(
    run: TrackedRun, model: Path, known: Mapping[str, Any], dataset: Dataset | None = None
) -> None:
    """Log ``model_card.md`` of a run.

    Args:
        run: Inside its block.
        model: The model folder; nothing is done for an ensemble's, whose members have cards of their own.
        known: What else the run knows (`report.model_card.claim_items`).
        dataset: What was read of a card.
    """
    if not run.run_id or not (model / CONFIG_FILE).is_file():
        return
    facts: dict[str, Any] = {
        "model": read_yaml(model / CONFIG_FILE),
        "weights_sha256": model_digests(model).get(WEIGHTS_FILE, "unknown"),
        "calibrated": bool(calibration_files(model)),
        "software": software(),
    }
    if dataset is not None:
        facts["card"] = public(dataset.card).model_dump(mode="json")
    run.log_text(model_card_markdown(facts | dict(known)), MODEL_CARD)


def log_predictor(
    run: TrackedRun, predictor: Predictor, *, verb: str, data: Mapping[str, str], **settings: Any
) -> None:
    """Log what a verb that needs no data card predicts with: capsule, model card, the model's settings and classes.

    Args:
        run: Inside its block.
        predictor: The model and how it is asked.
        verb: What ran.
        data: Digests of what went in and came out.
        settings: The verb's other options.
    """
    asked = {name: value for name, value in asdict(predictor).items() if name != "model"}
    log_capsule(run, verb=verb, settings=asked | settings, models={"": predictor.model}, data=data)
    log_model_card(run, predictor.model, {})
    if (predictor.model / CONFIG_FILE).is_file():
        run.log_text((predictor.model / CONFIG_FILE).read_text(encoding="utf-8"), CONFIG_FILE)
    made_by = predictor.provenance
    run.log_params({"weights_sha256": made_by.weights_sha256, "config_sha256": made_by.config_sha256})


def cases_csv(rows: Iterable[Mapping[str, Any]]) -> tuple[str, int]:
    """Return a table with a row per case, and how many rows were left out over the first 100,000."""
    out = io.StringIO()
    header: list[str] = []
    written, left = 0, 0
    lines: list[list[Any]] = []
    for row in rows:
        header = header or list(row)
        if written == _MOST_ROWS:
            left += 1
            continue
        lines.append([row.get(name, "") for name in header])
        written += 1
    csv_rows(out, [header, *lines] if header else [["case"]])
    return out.getvalue(), left


def model_name(made_by: Provenance) -> str:
    """Return a name that two models of one network do not share: the network's, and how its weights' hash begins."""
    return f"{made_by.model}-{made_by.weights_sha256[:8]}"


def summary_rows(folder: Path) -> list[dict[str, str]]:
    """Return the rows of a folder's ``summary.csv``; none if it has none."""
    path = folder / "summary.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def hidden(case: str) -> str:
    """Return a case's id; with plain names, which may name a patient, an id in its place."""
    return case_id("plain", case) if naming() == "plain" else case


def _label_map(dataset: Dataset | None, models: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Return id, name and codes of each class, of the data card or else of the first model."""
    known: LabelMap | None = None if dataset is None else dataset.card.label_map
    for folder in models.values():
        if known is None and (folder / CONFIG_FILE).is_file():
            known = load_settings(folder / CONFIG_FILE, ModelCard).label_map
    return [] if known is None else [asdict(one) for one in known.classes]
