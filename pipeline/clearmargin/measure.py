"""Measure predictions of any tool against references: two folders of label files, or two COCO files; no model."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from clearmargin.core import InstanceSet
from clearmargin.datasets.pairs import Pair, read_pairs, resample
from clearmargin.errors import InputError
from clearmargin.formats.label_files import Objects
from clearmargin.metrics import (
    AveragePrecision,
    Matches,
    PanopticQuality,
    Protocol,
    evaluate_instances,
    mask_average_precision,
    panoptic_quality,
)
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.matching import mask_iou
from clearmargin.metrics.strata import instance_strata
from clearmargin.metrics.tables import (
    CaseRow,
    SummaryRow,
    flat_numbers,
    rows_csv,
    summarise,
    summary_csv,
    summary_json,
    summary_markdown,
)
from clearmargin.report.progress import progress

__all__ = ["DEFAULT_METRICS", "Measured", "measure", "render", "write_tables"]

DEFAULT_METRICS = ("dice", "iou", "hd95", "assd", "surface_bias", "volume_error")


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was measured.

    Attributes:
        rows: One for each object, found or missed.
        summary: Means over patients with their intervals, all together and by stratum.
        panoptic: Panoptic quality over all images.
        precision: COCO mask AP where predictions carry scores; None where all scores are equal.
        unit: Of the lengths: ``mm`` or ``px``.
        cases: Number of pairs of files (images, for COCO).
        without_reference: Predictions that have no reference beside them and were left out.
    """

    rows: tuple[CaseRow, ...]
    summary: tuple[SummaryRow, ...]
    panoptic: PanopticQuality
    precision: AveragePrecision | None
    unit: str
    cases: int
    without_reference: int


def measure(
    predicted: Path,
    reference: Path,
    *,
    objects: Objects = "classes",
    tolerances: Sequence[float] = (1.0, 2.0, 3.0),
    bands: Sequence[float] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    surface: Literal["surface", "subvoxel"] = "surface",
    iou_threshold: float = 0.5,
    distance_cap: float | None = None,
    resample_predictions: bool = False,
    missing_as_empty: bool = False,
    cases: Path | None = None,
    by: Sequence[str] = (),
    seed: int = 0,
    out: Path | None = None,
    track: bool = False,
) -> Measured:
    """Compare two folders of NIfTI, NRRD, MetaImage, PNG, TIFF or DICOM SEG, or two files of any of them or COCO.

    Files of two folders belong together by name, whatever their suffix. A COCO file has its images paired by
    ``file_name`` and its categories by name.

    Args:
        predicted: Folder or file.
        reference: Folder or file.
        objects: What one object is in label files; SEG and COCO name their objects themselves.
        tolerances: Of NSD, in mm (px where files carry no spacing).
        bands: Of boundary IoU, in the same unit.
        metrics: Names in ``clearmargin.metrics.METRICS``.
        surface: The surface model.
        iou_threshold: From which two objects of a class are the same one; classes as a whole always are.
        distance_cap: What each distance of a miss counts; None for the diagonal of the case's grid.
        resample_predictions: Put predictions on the reference's grid (nearest neighbour) where grids differ.
        missing_as_empty: Count a reference without a prediction file as one with nothing found.
        cases: CSV with the columns ``case`` (file name without suffix), ``patient`` and any others to split
            by; None takes each case for a patient of its own.
        by: Columns to split the summary by: ``class``, ``size``, ``crowding``, ``occlusion``
            (`clearmargin.metrics.strata`) or a column of ``cases``.
        seed: Of the bootstrap.
        out: Folder for ``summary.csv``, ``summary.json``, ``summary.md`` and ``objects.csv``; None writes
            nothing.
        track: Log numbers and tables as a run of the tracking store.

    Raises:
        InputError: Nothing to compare, files without a partner, files that cannot be read.
        GeometryError: Two grids differ and ``resample_predictions`` is off.
        ConfigError: An unknown metric.
    """
    protocol = Protocol(
        metrics=tuple(metrics),
        tolerances=tuple(tolerances),
        bands=tuple(bands),
        distance_cap=distance_cap,
        surface=surface,
    )
    pairs, extra = read_pairs(
        Path(predicted), Path(reference), objects=objects, missing_as_empty=missing_as_empty
    )
    if resample_predictions:
        pairs = [replace(p, predicted=resample(p.predicted, p.reference.grid)) for p in pairs]
    notes = _notes(cases, pairs)
    rows = _measured_rows(pairs, protocol, objects, iou_threshold, notes, by)
    sets = [(p.predicted, p.reference) for p in pairs]
    scored = any(np.unique(p.predicted.scores).size > 1 for p in pairs)
    found = Measured(
        rows=tuple(rows),
        summary=tuple(summarise(rows, rng=np.random.default_rng(seed), by=by)),
        panoptic=panoptic_quality(sets),
        precision=mask_average_precision(sets) if scored else None,
        unit=pairs[0].reference.grid.unit,
        cases=len(pairs),
        without_reference=extra,
    )
    if out is not None:
        write_tables(found, Path(out))
    if track:
        _log(found)
    return found


def render(found: Measured) -> str:
    """Return what a console shows: counts, then the summary as a Markdown table."""
    counts = found.summary[0].counts
    lines = [
        f"{found.cases} cases, {len(found.rows)} objects: {counts['tp']} matched, {counts['fn']} missed, "
        f"{counts['fp']} spurious; {counts['tn']} cases rightly empty; lengths in {found.unit}",
        f"panoptic quality {found.panoptic.pq:.4f}",
    ]
    if found.precision is not None:
        lines.append(f"mask AP {found.precision.ap:.4f}, AP50 {found.precision.ap50:.4f}")
    if found.without_reference:
        lines.append(f"{found.without_reference} predictions without a reference were left out")
    return "\n".join(lines) + "\n\n" + summary_markdown(found.summary)


def _log(found: Measured) -> None:
    from clearmargin.tracking.run import TrackedRun

    run = TrackedRun(name="measure")
    run.on_start(params={"cases": found.cases, "unit": found.unit}, tags={"verb": "measure"})
    with run:
        run.log_metrics(flat_numbers(found.summary) | {"panoptic/pq": found.panoptic.pq}, step=0)
        with TemporaryDirectory() as folder:
            write_tables(found, Path(folder))
            run.log_artifact(Path(folder), "measurement")


def write_tables(found: Measured, folder: Path) -> None:
    """Write ``summary.csv``, ``summary.json``, ``summary.md`` and ``objects.csv`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "summary.csv").write_text(summary_csv(found.summary), encoding="utf-8")
    (folder / "summary.json").write_text(summary_json(found.summary), encoding="utf-8")
    (folder / "summary.md").write_text(render(found), encoding="utf-8")
    (folder / "objects.csv").write_text(rows_csv(found.rows), encoding="utf-8")


def _notes(table: Path | None, pairs: Sequence[Pair]) -> dict[str, dict[str, str]]:
    """Return patient and further columns of each case, by the case's file name without suffix."""
    if table is None:
        return {}
    with Path(table).open(newline="", encoding="utf-8") as lines:
        rows = list(csv.DictReader(lines))
    if not rows or not {"case", "patient"} <= set(rows[0]):
        raise InputError(f"'{Path(table).name}' needs the columns 'case' and 'patient' and at least one row")
    notes = {row["case"]: {k: v for k, v in row.items() if k != "case"} for row in rows}
    unlisted = [p.case for p in pairs if p.name not in notes]
    if unlisted:
        raise InputError(
            f"'{Path(table).name}' does not list {len(unlisted)} cases, such as {unlisted[0]}: add them"
        )
    return notes


def _measured_rows(
    pairs: Sequence[Pair],
    protocol: Protocol,
    objects: Objects,
    iou_threshold: float,
    notes: Mapping[str, Mapping[str, str]],
    by: Sequence[str],
) -> list[CaseRow]:
    found: list[list[InstanceRow]] = []
    with progress("measure", len(pairs)) as bar:
        for pair in pairs:
            by_class = (
                objects == "classes"
                and not pair.classes
                and _one_each(pair.predicted)
                and _one_each(pair.reference)
            )
            found.append(
                evaluate_instances(
                    pair.predicted,
                    pair.reference,
                    protocol=protocol,
                    iou_threshold=iou_threshold,
                    matches=_match_classes(pair.predicted, pair.reference) if by_class else None,
                )
            )
            bar.advance()
    strata = iter(
        instance_strata(
            [(p.reference, rows) for p, rows in zip(pairs, found, strict=True)], wanted=("size", *by)
        )
    )
    out = []
    for pair, rows in zip(pairs, found, strict=True):
        note = notes.get(pair.name, {})
        others = {k: v for k, v in note.items() if k != "patient"}
        for row in rows:
            name = pair.classes.get(row.label, str(row.label)) if row.label else "none"
            out.append(
                CaseRow(
                    patient=note.get("patient", pair.case),
                    case=pair.case,
                    status=row.status,
                    unit=row.unit,
                    ndim=pair.reference.grid.ndim,
                    values=row.values,
                    strata={"class": name, **next(strata), **others},
                )
            )
    return out


def _one_each(instances: InstanceSet) -> bool:
    return len(np.unique(instances.labels)) == len(instances)


def _match_classes(predicted: InstanceSet, reference: InstanceSet) -> Matches | None:
    """Pair the regions of each class, however little they overlap."""
    if predicted.grid.shape != reference.grid.shape:
        return None  # evaluate_instances refuses them and names both grids
    common, ours, theirs = np.intersect1d(predicted.labels, reference.labels, return_indices=True)
    pairs = np.stack([ours, theirs], axis=1).astype(np.int64).reshape(len(common), 2)
    return Matches(
        pairs=pairs,
        ious=np.array([mask_iou(predicted.masks[i], reference.masks[j]) for i, j in pairs], np.float64),
        spurious=np.setdiff1d(np.arange(len(predicted)), ours),
        missed=np.setdiff1d(np.arange(len(reference)), theirs),
        ignored=np.zeros(0, np.int64),
    )
