"""The report of a run: its evaluation's page, with the training's curves, the calibration and the model card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from clearmargin.capsules import summary_rows
from clearmargin.config import read_yaml
from clearmargin.errors import InputError
from clearmargin.files import made_folder, write_text
from clearmargin.report.figures import training_curves
from clearmargin.report.model_card import model_card_html, model_card_markdown
from clearmargin.report.run_page import report_page
from clearmargin.report.web import figure_image
from clearmargin.runs import Run, load

__all__ = ["report"]

_CURVES = ("train/loss", "validation/ap50", "validation/pq", "validation/semantic_dice", "learning_rate")
_CALIBRATION = ("coverage", "reliability", "risk")


_GALLERY = ("gallery.html", "viewers")
_BESIDE = (*_GALLERY, "model_card.md")


def report(run: str, out: Path) -> Path:
    """Write the report of an evaluation, or of a training's newest one; return the page.

    The model card is written beside it as ``model_card.md``; the gallery and the viewers of the run's cases are copied
    there, if the run has them.

    Args:
        run: Its id or name.
        out: The page, ``.html``.

    Raises:
        InputError: No such run, or it has no evaluation; or another report lies in the folder.
    """
    beside = [name for name in _BESIDE if (out.parent / name).exists()]
    if beside and not out.exists():
        raise InputError(
            f"'{out.parent}' holds the {', '.join(beside)} of another report, which would be replaced: name a folder "
            f"of its own, such as --out {out.stem}/{out.name}"
        )
    named = load(run)
    evaluation = named if named.verb == "evaluate" else next(iter(named.children("evaluate")), None)
    if evaluation is None:
        raise InputError(
            f"run '{named.name}' is not an evaluation and has none: `clearmargin evaluate` makes one"
        )
    training = load(evaluation.tags["training"]) if evaluation.tags.get("training") else None
    calibration = next(iter(training.children("calibrate")), None) if training is not None else None
    made_folder(out.parent)
    sections = []
    if training is not None:
        curves = {name: _points(training, name) for name in _CURVES if name in training.numbers}
        if curves:
            sections.append(("Learning curves", figure_image(training_curves(curves), "learning curves")))
    known = _known(evaluation, training, calibration)
    sections.append(("Model card", model_card_html(known)))
    write_text(out.with_name("model_card.md"), model_card_markdown(known))
    figures = _calibration_figures(calibration) if calibration is not None else {}
    write_text(out, report_page(evaluation.folder, title=evaluation.name, sections=sections, figures=figures))
    shutil.rmtree(out.parent / "viewers", ignore_errors=True)  # of an earlier report under this name
    for name in _GALLERY:
        source = evaluation.folder / name
        if source.is_dir():
            shutil.copytree(source, out.parent / name, dirs_exist_ok=True)
        elif source.is_file():
            shutil.copy(source, out.parent / name)
    return out


def _points(run: Run, metric: str) -> list[tuple[float, float]]:
    return [(float(step), float(value)) for step, value in run.history(metric).itertuples(index=False)]


def _calibration_figures(run: Run) -> dict[str, Path]:
    """Return the figures that a calibration logged, by title: margins against coverage, reliability, risk."""
    try:
        folder = run.file("figures")
    except InputError:
        return {}
    return {
        f"Calibration: {path.stem.replace('_', ' ')}": path
        for path in sorted(folder.glob("*.png"))
        if path.stem.startswith(_CALIBRATION)
    }


def _known(evaluation: Run, training: Run | None, calibration: Run | None) -> dict[str, Any]:
    facts = evaluation.facts()
    known: dict[str, Any] = {
        "data": facts.get("data", {}), "counts": facts.get("counts", {}), "numbers": facts.get("numbers", {}),
        "software": evaluation.tags.get("software", ""), "weights_sha256": evaluation.params.get("weights_sha256", ""),
        "calibrated": evaluation.calibrated(),
        "summary": summary_rows(evaluation.folder), "training": training is not None,
    }  # fmt: skip
    for key, file in (("card", "card.yaml"), ("model", "model.yaml")):
        for run in (evaluation, training):
            if run is not None and key not in known:
                try:
                    known[key] = read_yaml(run.file(file))
                except InputError:
                    continue
    return known
