"""Measure predictions of any tool against references: two folders of label files, or two COCO files; no model.

Pairs are listed first and then read, measured and let go one at a time, by as many processes as are asked for. What a
pair leaves are rows and counts.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from clearmargin.datasets.case_table import CaseTable, read_case_table
from clearmargin.datasets.pairs import Entry, Listing, list_pairs, read_pair
from clearmargin.errors import ClearMarginError, ConfigError, InputError
from clearmargin.files import made_folder
from clearmargin.formats.label_files import Objects
from clearmargin.metrics import MeasurementProtocol
from clearmargin.metrics.case_result import CaseResult, Choices, measure_case
from clearmargin.metrics.measurement import DEFAULT_METRICS, DEFAULT_TOLERANCES, SurfaceModel
from clearmargin.metrics.results import Results, collect
from clearmargin.metrics.tables import summary_markdown
from clearmargin.report.progress import progress
from clearmargin.report.results import PARTIAL, set_lines, write_partial, write_results

__all__ = ["Measured", "cores", "measure", "preview", "render", "write_tables"]

_WORTH_A_WORKER = 8  # cases; starting a process takes seconds

Names = Literal["keyed", "plain"]


@dataclass(frozen=True, kw_only=True)
class Measured(Results):
    """What was measured.

    Attributes:
        without_reference: Predictions that have no reference beside them and were left out.
        plain: Names by case id, for tables of a user's own (`write_tables`).
    """

    without_reference: int = 0
    plain: Mapping[str, str] = field(repr=False, default_factory=dict)


def measure(
    predicted: Path,
    reference: Path,
    *,
    objects: Objects | None = None,
    tolerances: Sequence[float] = DEFAULT_TOLERANCES,
    bands: Sequence[float] = (),
    metrics: Sequence[str] = DEFAULT_METRICS,
    surface: SurfaceModel = "surface",
    iou_threshold: float = 0.5,
    distance_cap: float | None = None,
    resample_predictions: bool = False,
    missing_as_empty: bool = False,
    predicted_pattern: str | None = None,
    reference_pattern: str | None = None,
    labels: Path | None = None,
    cases: Path | None = None,
    by: Sequence[str] = (),
    seed: int = 0,
    out: Path | None = None,
    names: Names = "keyed",
    figures: bool = False,
    workers: int = 1,
    track: bool = False,
) -> Measured:
    """Compare two folders of NIfTI, NRRD, MetaImage, PNG, TIFF or DICOM SEG, or two files of any of them or COCO.

    Files of two folders belong together by case (`clearmargin.datasets.pairs.list_pairs`). A case that cannot be
    measured is in ``failed``, and the others are done.

    Args:
        predicted: Folder or file; a list of COCO results, too.
        reference: Folder or file.
        objects: What one object is in label files; SEG, COCO and named files say it themselves. None reads values as
            classes, and refuses files in which they are hardly that.
        tolerances: Of NSD, in mm (px where files carry no spacing).
        bands: Of boundary IoU, in the same unit.
        metrics: Names in ``clearmargin.metrics.measurement.OF_ONE_SIZE``.
        surface: The surface model.
        iou_threshold: From which two objects of a class are the same one; classes as a whole always are.
        distance_cap: What each distance of a miss counts; None for the diagonal of the case's grid.
        resample_predictions: Put predictions on the reference's grid (nearest neighbour), continued to hold them, where
            the grids do not share their elements.
        missing_as_empty: Count a reference without a prediction file as one with nothing found.
        predicted_pattern: Where predictions lie, such as ``{case}_seg.nii.gz`` (`clearmargin.datasets.naming`).
        reference_pattern: Where references lie.
        labels: An nnU-Net ``dataset.json``; None takes the one in or above either folder.
        cases: CSV (``,`` or ``;``) with the columns ``case`` (its name), ``group`` (or ``patient``) and any others to
            split by; None takes each case for a group of its own.
        by: Columns to split the summary by: ``class``, ``size``, ``crowding``, ``occlusion``
            (`clearmargin.metrics.strata`) or a column of ``cases``. Other columns are not read into any table.
        seed: Random seed for the bootstrap.
        out: Folder for the tables (`write_tables`); None writes nothing.
        names: How tables in ``out`` name cases and groups: by keyed ids, or ``plain``, as files and ``cases`` do.
        figures: Write figures into ``out`` as well.
        workers: Processes.
        track: Log numbers and tables as a run of the tracking store, always by keyed ids.

    Raises:
        InputError: Nothing to compare, references without a prediction, or no case that could be measured.
        GeometryError: The only case lies on two grids that do not share their elements.
        ConfigError: An option that cannot be, or label files of which ``objects`` must be said.
    """
    protocol = MeasurementProtocol(
        metrics=tuple(metrics),
        tolerances=tuple(tolerances),
        bands=tuple(bands),
        distance_cap=distance_cap,
        surface=surface,
    )
    if not 0 < iou_threshold <= 1:
        raise ConfigError(f"iou_threshold: expected a value above 0 and at most 1, got {iou_threshold:g}")
    if workers < 1:
        raise ConfigError(f"workers: expected at least 1, got {workers}")
    if figures and out is None:
        raise ConfigError("figures are written beside tables: give a folder for them with --out")
    listing = list_pairs(
        Path(predicted), Path(reference), missing_as_empty=missing_as_empty, predicted_pattern=predicted_pattern,
        reference_pattern=reference_pattern, labels=labels,
    )  # fmt: skip
    if out is not None:
        made_folder(Path(out))  # refused before the work, if it cannot be
    if objects == "instances":  # each value is an object, whatever its name
        listing = replace(listing, names_from="")
    table = read_case_table(None if cases is None else Path(cases), listing, by)
    task = _Task(
        listing=replace(listing, entries=()),
        choices=Choices(protocol=protocol, iou_threshold=iou_threshold, strata=tuple(by)),
        objects=objects,
        resample=resample_predictions,
        table=table,
    )
    outcomes: list[_Outcome] = []
    try:
        for outcome in _outcomes(task, listing.entries, workers):
            outcomes.append(outcome)  # what was measured stays if the next one is interrupted
    except (KeyboardInterrupt, SystemExit):
        if out is not None and any(one.result is not None for one in outcomes):
            partial = _put_together(outcomes, listing, task, by, seed)
            write_partial(
                Path(out), lambda folder, mark: write_tables(partial, folder, names=names, partial=mark),
                partial.counts["cases"], len(listing.entries),
            )  # fmt: skip
        raise
    done = _put_together(outcomes, listing, task, by, seed)
    if out is not None:
        write_tables(done, Path(out), names=names)
        shutil.rmtree(Path(out) / PARTIAL, ignore_errors=True)  # an earlier run's, which was interrupted
        if figures:
            from clearmargin.report.measured import write_figures

            write_figures(
                done.rows, listing, Path(out) / "figures", surface=surface, objects=objects,
                resample_predictions=resample_predictions,
            )  # fmt: skip
    if track:
        _log(done)
    return done


def preview(
    predicted: Path,
    reference: Path,
    *,
    missing_as_empty: bool = False,
    predicted_pattern: str | None = None,
    reference_pattern: str | None = None,
) -> str:
    """Return which files would be paired, a line for each case, with the files' own names.

    Raises:
        InputError: As `measure`.
        ConfigError: As `measure`.
    """
    listing = list_pairs(
        Path(predicted), Path(reference), missing_as_empty=missing_as_empty, predicted_pattern=predicted_pattern,
        reference_pattern=reference_pattern,
    )  # fmt: skip
    lines = [f"{len(listing.entries)} pairs: case, prediction, reference"]
    for entry in listing.entries:
        sides = []
        for side, root in ((entry.predicted, Path(predicted)), (entry.reference, Path(reference))):
            if side is None:
                sides.append("(none)")
            elif side.coco is not None:
                sides.append(f"{side.coco.name}[{side.number}]")
            else:
                base = root if root.is_dir() else root.parent
                files = [file.path.relative_to(base).as_posix() for file in side.files]
                more = f" and {len(files) - 1} more" if len(files) > 1 else ""
                sides.append(files[0] + more)
        lines.append(f"  {entry.name}: {sides[0]}  |  {sides[1]}")
    if listing.names_from:
        lines.append(f"names of the values: {listing.names_from}")
    if listing.without_reference:
        lines.append(f"{listing.without_reference} predictions without a reference would be left out")
    return "\n".join(lines)


def cores() -> int:
    """Return the number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def render(measurement: Measured) -> str:
    """Return what a console shows: counts and numbers, then the summary as a Markdown table."""
    lines = set_lines(measurement)
    if measurement.without_reference:
        lines.append(f"{measurement.without_reference} predictions without a reference were left out")
    if measurement.failed:
        lines.append(f"{len(measurement.failed)} cases were refused and are in no number")
    return "\n".join(lines) + "\n\n" + summary_markdown(measurement.summary)


def write_tables(measurement: Measured, folder: Path, *, names: Names = "keyed", partial: str = "") -> None:
    """Write the tables of `write_results`.

    With ``names`` ``plain``, ``instances.csv`` and ``failures.csv`` name cases and groups as the user's files do;
    ``partial`` says that they are not of all cases.
    """
    write_results(
        measurement,
        folder,
        facts={"partial": partial} if partial else None,
        plain=measurement.plain if names == "plain" else None,
    )


def _log(measurement: Measured) -> None:
    from clearmargin.tracking.run import TrackedRun

    run = TrackedRun(name="measure")
    params = {"cases": measurement.counts["cases"], "unit": measurement.unit, "surface": measurement.surface}
    run.on_start(params=params, tags={"verb": "measure"})
    with run:
        run.log_metrics(measurement.flat(), step=0)
        with TemporaryDirectory() as folder:
            write_tables(measurement, Path(folder))
            run.log_artifact(Path(folder), "measurement")


@dataclass(frozen=True, kw_only=True)
class _Task:
    """What is done with every pair; it goes to other processes."""

    listing: Listing
    choices: Choices
    objects: Objects | None
    resample: bool
    table: CaseTable


@dataclass(frozen=True, kw_only=True, eq=False)
class _Outcome:
    """What a pair leaves.

    Attributes:
        error: Why it was refused; nothing else is then filled.
        result: What was measured.
        classes: Names of the classes in their files' order.
        boxes_only: Whether the prediction is of boxes without masks.
        moved: How far resampling may have moved its edges.
    """

    entry: Entry
    error: ClearMarginError | None = None
    result: CaseResult | None = None
    classes: tuple[str, ...] = ()
    boxes_only: bool = False
    moved: float = 0.0


class _UnclearObjectsError(ConfigError):
    """What one object is must be said: no case goes on without it."""


def _outcomes(task: _Task, entries: Sequence[Entry], workers: int) -> Iterator[_Outcome]:
    """Yield what each pair leaves, in order, holding few at a time."""
    workers = min(workers, 1 + len(entries) // _WORTH_A_WORKER)
    with progress("measure", len(entries)) as bar:
        if workers == 1:
            for entry in entries:
                yield _measure_pair(task, entry)
                bar.advance()
            return
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn"), initializer=_alone) as pool:
            try:
                for outcome in _in_order(pool, task, entries, 4 * workers):
                    yield outcome
                    bar.advance()
            except BrokenProcessPool:
                raise InputError(
                    f"the system ended one of {workers} workers, perhaps for lack of memory: give fewer --workers"
                ) from None
            finally:
                pool.shutdown(cancel_futures=True)


def _in_order(
    pool: ProcessPoolExecutor, task: _Task, entries: Sequence[Entry], most: int
) -> Iterator[_Outcome]:
    waiting: dict[int, Future[_Outcome]] = {}
    given = 0
    for k in range(len(entries)):
        while given < len(entries) and len(waiting) < most:
            waiting[given] = pool.submit(_measure_pair, task, entries[given])
            given += 1
        while not waiting[k].done():
            wait(waiting.values(), return_when=FIRST_COMPLETED)
        yield waiting.pop(k).result()


def _alone() -> None:
    """Keep a worker to one thread: the others are other workers'."""
    from clearmargin.metrics import nearest

    os.environ["OMP_NUM_THREADS"] = "1"
    nearest.use_threads(1)


def _measure_pair(task: _Task, entry: Entry) -> _Outcome:
    """Read and measure one pair; what is refused is its outcome.

    Raises:
        _UnclearObjectsError: What one object is in its files is not plain.
    """
    try:
        pair = read_pair(entry, task.listing, objects=task.objects, resample_predictions=task.resample)
        if pair.asks:
            raise _UnclearObjectsError(
                f"{'' if task.listing.typed else entry.case + ': '}{pair.asks}: say what one object is, "
                "--objects instances "
                "(each value), components (each connected part) or classes (each value, the same in all files)"
            )
        return _Outcome(
            entry=entry,
            result=measure_case(
                pair.predicted, pair.reference, case=entry.case,
                group=task.table.groups.get(entry.case, entry.case), classes=pair.classes, choices=task.choices,
                columns=task.table.columns.get(entry.case), ids=(pair.predicted_ids, pair.reference_ids), own=pair.own,
                scored=pair.scored, whole=pair.whole,
            ),
            classes=tuple(name for _, name in sorted(pair.classes.items())),
            boxes_only=pair.boxes_only,
            moved=pair.moved,
        )  # fmt: skip
    except _UnclearObjectsError:
        raise
    except MemoryError:
        return _Outcome(entry=entry, error=InputError(f"{entry.case}: it does not fit into memory"))
    except ClearMarginError as error:
        return _Outcome(entry=entry, error=error)


def _put_together(
    outcomes: Sequence[_Outcome], listing: Listing, task: _Task, by: Sequence[str], seed: int
) -> Measured:
    outcomes = _of_one_kind(outcomes)
    results = [outcome.result for outcome in outcomes if outcome.result is not None]
    if not results:
        _refuse_all(outcomes)
    notes = []
    if listing.names_from:
        notes.append(f"classes as the {listing.names_from} names them: {', '.join(listing.classes)}")
    if any(outcome.boxes_only for outcome in outcomes):
        notes.append(
            "some predictions are boxes without masks: their masks are the whole boxes; look at box AP"
        )
    if any(row.values.get("iou", 1.0) == 0 for r in results for row in r.instances if row.status == "tp"):
        notes.append(
            "whole classes are paired however little they overlap, so that a pair without overlap is a true positive: "
            "look at its Dice"
        )
    moved = [outcome.moved for outcome in outcomes if outcome.moved]
    if moved:
        notes.append(
            f"{len(moved)} prediction(s) were put on their reference's grid by nearest neighbour, which moves edges by "
            f"up to {max(moved):.3g} {results[0].unit}: distances and tolerances below that say little"
        )
    present = {name for result in results for name in result.classes.values()}
    classes = dict.fromkeys(name for outcome in outcomes for name in outcome.classes if name in present)
    together = collect(
        results,
        choices=task.choices,
        classes=tuple(classes),
        by=by,
        seed=seed,
        failed={o.entry.case: _why(o) for o in outcomes if o.error is not None},
        notes=notes,
    )
    return Measured(
        **vars(together),
        without_reference=listing.without_reference,
        plain={entry.case: entry.name for entry in listing.entries} | dict(task.table.plain),
    )


def _of_one_kind(outcomes: Sequence[_Outcome]) -> list[_Outcome]:
    """Return the outcomes, those refused that cannot share a table with most others."""
    kinds = [(o.result.unit, o.result.ndim) for o in outcomes if o.result is not None]
    if len(set(kinds)) < 2:
        return list(outcomes)
    unit, ndim = max(set(kinds), key=kinds.count)
    what = f"{'volumes' if ndim == 3 else 'images'} in {unit}"
    return [
        outcome
        if outcome.result is None or (outcome.result.unit, outcome.result.ndim) == (unit, ndim)
        else _Outcome(
            entry=outcome.entry,
            error=InputError(
                f"{outcome.entry.case}: most cases are {what}, and this one is not: measure it apart"
            ),
        )
        for outcome in outcomes
    ]


def _why(outcome: _Outcome) -> str:
    """Return why a case was refused, without its id."""
    return str(outcome.error).removeprefix(f"{outcome.entry.case}: ")


def _refuse_all(outcomes: Sequence[_Outcome]) -> None:
    """Raise the first case's error, with the number of all."""
    first = outcomes[0].error
    if first is None:
        raise ValueError("a case was measured")
    if len(outcomes) == 1:
        raise first
    raise type(first)(f"none of {len(outcomes)} cases could be measured; the first: {first}")
