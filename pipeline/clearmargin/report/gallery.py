"""Where a model fails: the worst cases of an evaluation, each with pictures, numbers and its viewer."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Image, InstanceSet, Prediction
from clearmargin.files import csv_rows, write_text
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.landmark_rows import PointRow
from clearmargin.metrics.measurement import metric_title
from clearmargin.metrics.tables import CaseRow
from clearmargin.report.annotated import annotated_overlay
from clearmargin.report.overlay import heat_overlay, shown_slice
from clearmargin.report.viewer.case import case_view
from clearmargin.report.viewer.layers import ALONE, edge_errors
from clearmargin.report.viewer.page import viewer_page
from clearmargin.report.web import counted, link, picture_image, text, web_page

__all__ = [
    "CaseMarks",
    "Listed",
    "ReviewedCase",
    "case_marks",
    "doubt_of",
    "point_marks",
    "worst_cases",
    "write_gallery",
]

_MOST_BYTES = 200_000_000
"""Of all viewers of one evaluation."""

_ERROR = "radial error"


@dataclass(frozen=True, kw_only=True)
class CaseMarks:
    """What a case is ranked by.

    Attributes:
        case: Case id.
        score: Mean over its objects, false negatives and false positives at their written values; of landmarks the mean
            error of those that were detected.
        metric: What ``score`` is: surface Dice, Dice if there is none, or the radial error with its unit.
        false_negatives: Missed references.
        false_positives: Predictions that match no reference.
        uncertainty: 0 for certain, up to 1 (`doubt_of`).
    """

    case: str
    score: float
    metric: str
    false_negatives: int
    false_positives: int
    uncertainty: float

    @property
    def cost(self) -> float:
        """The score, or the error, as what is worse the higher it is."""
        return self.score if self.metric.startswith(_ERROR) else -self.score


@dataclass(frozen=True, kw_only=True, eq=False)
class ReviewedCase:
    """A case as it is drawn; ``measured`` are the rows of its prediction against the reference."""

    image: Image
    reference: InstanceSet
    prediction: Prediction
    measured: Sequence[InstanceRow]


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A case in one list of the gallery.

    Attributes:
        ranked_by: What the list is by.
        value: Its number in that list, in words.
        case: Case id.
        viewer: The viewer's path below the gallery's folder; empty where there is none.
    """

    ranked_by: str
    value: str
    case: str
    viewer: str


def case_marks(rows: Sequence[CaseRow], doubts: Mapping[str, float]) -> list[CaseMarks]:
    """Return what each case is ranked by, in the order of their ids.

    Args:
        rows: Of all cases.
        doubts: The uncertainty of each case.
    """
    by_case: dict[str, list[CaseRow]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    marks = []
    for case, of in sorted(by_case.items()):
        metric = next((name for name in of[0].values if name.startswith("nsd_")), "dice")
        marks.append(
            CaseMarks(
                case=case,
                score=float(np.mean([row.values[metric] for row in of])),
                metric=metric,
                false_negatives=sum(row.status == "fn" for row in of),
                false_positives=sum(row.status == "fp" for row in of),
                uncertainty=doubts.get(case, 0.0),
            )
        )
    return marks


def point_marks(rows: Sequence[PointRow], doubts: Mapping[str, float]) -> list[CaseMarks]:
    """Return what each case of landmarks is ranked by, in the order of their ids; arguments as of `case_marks`.

    A case without a detected landmark has the largest error of all.
    """
    by_case: dict[str, list[PointRow]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    errors = {case: [r.error for r in of if r.error is not None] for case, of in by_case.items()}
    most = max((error for of in errors.values() for error in of), default=0.0)
    return [
        CaseMarks(
            case=case,
            score=float(np.mean(errors[case])) if errors[case] else most,
            metric=f"{_ERROR} ({of[0].unit})",
            false_negatives=sum(row.status == "fn" for row in of),
            false_positives=sum(row.status == "fp" for row in of),
            uncertainty=doubts.get(case, 0.0),
        )
        for case, of in sorted(by_case.items())
    ]


def doubt_of(prediction: Prediction) -> float:
    """Return how doubtful a prediction is: 1 less the mean pairwise Dice of its samples, or else its mean score.

    Of landmarks alone it is 1 less their mean score. A prediction without either is as doubtful as can be: it says
    nothing.
    """
    instances = prediction.instances
    if not len(instances):
        points = instances.landmarks
        return (
            1 - float(points.scores[points.visible > 0].mean())
            if points is not None and points.count
            else 1.0
        )
    column = instances.uncertainty.get("pairwise_dice")
    return float(1 - np.mean(instances.scores if column is None else column))


def worst_cases(marks: Sequence[CaseMarks], most: int) -> dict[str, list[tuple[CaseMarks, str]]]:
    """Return the worst cases of each list with their number in words; a list of counts leaves out cases of 0."""
    title = metric_title(marks[0].metric) if marks else ""

    def ranked(
        cost: Callable[[CaseMarks], float], words: Callable[[CaseMarks], str]
    ) -> list[tuple[CaseMarks, str]]:
        worst = sorted(marks, key=lambda m: (-cost(m), m.case))[:most]
        return [(m, words(m)) for m in worst]

    return {
        f"{'largest' if title.startswith(_ERROR) else 'lowest'} {title}": ranked(
            lambda m: m.cost, lambda m: f"{m.score:.3f}"
        ),
        "most false negatives": [
            pair for pair in ranked(lambda m: m.false_negatives, lambda m: counted(m.false_negatives, "false negative"))
            if pair[0].false_negatives
        ],
        "most false positives": [
            pair for pair in ranked(lambda m: m.false_positives, lambda m: counted(m.false_positives, "false positive"))
            if pair[0].false_positives
        ],
        "most uncertain": ranked(lambda m: m.uncertainty, lambda m: f"{m.uncertainty:.3f}"),
    }  # fmt: skip


def write_gallery(
    folder: Path,
    marks: Sequence[CaseMarks],
    read: Callable[[str], ReviewedCase] | None,
    *,
    title: str,
    most: int = 20,
    most_bytes: int = _MOST_BYTES,
) -> list[Listed]:
    """Write ``gallery.html``, ``gallery.csv`` and a viewer for each listed case into ``viewers/``; return the lists.

    Args:
        folder: Made if it does not exist.
        marks: Of every case.
        read: Returns a case to be drawn; None where the data card allows no pictures: then there are numbers alone.
        title: Of the page.
        most: Cases in each list.
        most_bytes: Of all viewers together: what does not fit has pictures and no viewer, and the page says so.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lists = worst_cases(marks, most)
    order = list(
        dict.fromkeys(m.case for rank in range(most) for of in lists.values() for m, _ in of[rank : rank + 1])
    )
    pictures: dict[str, str] = {}
    viewers: dict[str, str] = {}
    spent = 0
    for case in order:
        if read is None:
            break
        reviewed = read(case)
        drawn, errors = _pictures(reviewed)
        pictures[case] = picture_image(drawn, f"prediction and reference, {case}", side=480)
        if errors is not None:
            pictures[case] += picture_image(
                errors, f"boundary error, {case}; false positives and false negatives magenta", side=480
            )
        if spent >= most_bytes:
            continue
        view = case_view(
            reviewed.prediction, reviewed.image, reference=reviewed.reference, measured=reviewed.measured
        )
        page = viewer_page(view)
        if spent + len(page) <= most_bytes:
            spent += len(page)
            viewers[case] = f"viewers/{case}.html"
            write_text(folder / viewers[case], page)
    listed = [
        Listed(ranked_by=name, value=words, case=m.case, viewer=viewers.get(m.case, ""))
        for name, of in lists.items()
        for m, words in of
    ]
    out = io.StringIO()
    csv_rows(out, [["list", "rank", "case", "value", "viewer"]])
    for name, of in lists.items():
        csv_rows(
            out,
            [[name, k, m.case, words, viewers.get(m.case, "")] for k, (m, words) in enumerate(of, start=1)],
        )
    write_text(folder / "gallery.csv", out.getvalue())
    write_text(folder / "gallery.html", _page(lists, pictures, viewers, title, allowed=read is not None))
    return listed


def _page(
    lists: Mapping[str, Sequence[tuple[CaseMarks, str]]],
    pictures: Mapping[str, str],
    viewers: Mapping[str, str],
    title: str,
    *,
    allowed: bool,
) -> str:
    parts = []
    if not allowed:
        parts.append(
            "<p>The data card does not allow pictures in reports (show_in_tracking): numbers alone.</p>"
        )
    lacking = [case for case in pictures if case not in viewers]
    if lacking:
        parts.append(f"<p>{len(lacking)} cases have no viewer: all viewers together would be too large.</p>")
    for name, of in lists.items():
        parts.append(f"<h2>{text(name[:1].upper() + name[1:])}</h2>")
        if not of:
            parts.append('<p class="faint">none</p>')
            continue
        cards = []
        for k, (m, words) in enumerate(of, start=1):
            numbers = (
                f"{metric_title(m.metric)} {m.score:.3f}, {counted(m.false_negatives, 'false negative')}, "
                f"{counted(m.false_positives, 'false positive')}, uncertainty {m.uncertainty:.2f}"
            )
            opened = link(viewers[m.case], "open the viewer") if m.case in viewers else ""
            cards.append(
                f'<div class="card"><div class="pair">{pictures.get(m.case, "")}</div>'
                f"<p><b>{k}. {text(words)}</b> {text(m.case)} {opened}</p>"
                f'<p class="faint">{text(numbers)}</p></div>'
            )
        parts.append(f'<div class="cards">{"".join(cards)}</div>')
    return web_page(title, parts)


def _pictures(case: ReviewedCase) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None]:
    """Return prediction over reference and the boundary error, of a volume in the slice that shows most."""
    instances = case.prediction.instances
    z = None
    if case.image.grid.ndim == 3:
        z = shown_slice(case.reference, instances)
        z = case.image.grid.shape[0] // 2 if z is None else z
    drawn = annotated_overlay(
        case.image, instances, z, label_map=case.prediction.label_map, reference=case.reference
    )
    pairs = [
        (row.predicted, row.reference)
        for row in case.measured
        if row.status == "tp" and row.predicted is not None and row.reference is not None
    ]
    errors = edge_errors(instances, case.reference, pairs)
    if errors is None:
        return drawn, None
    measured = errors[np.isfinite(errors) & (errors >= 0)]
    top = max(float(np.percentile(measured, 95)) if measured.size else 0.0, min(case.image.grid.spacing))
    heat = heat_overlay(
        case.image,
        np.where(errors < 0, np.nan, errors),
        z,
        limit=top,
        name="boundary error, 95 % of the edge",
        unit=case.image.grid.unit,
        opaque=True,
        beyond=ALONE,
    )
    return drawn, heat
