"""Compare tools or runs by their tables: paired by case and object, Holm's correction, one word per metric."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from clearmargin.core import Prediction
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import parse_json
from clearmargin.metrics.comparison import ComparedSets, compare_rows
from clearmargin.metrics.measurement import metric_of
from clearmargin.metrics.tables import CaseRow
from clearmargin.report.compared import comparison_markdown, write_comparison
from clearmargin.runs import load, names_of, rows_of_tables

__all__ = ["Compared", "compare", "render"]

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A comparison with what each set costs.

    Attributes:
        sets: The comparison.
        costs: ``seconds per case`` and ``megabytes`` of each set, as far as they are known.
        run_id: In the tracking store; empty where it was not tracked.
    """

    sets: ComparedSets
    costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    run_id: str = ""

    def _repr_html_(self) -> str:
        from clearmargin.report.compared import comparison_table

        return comparison_table(self.sets)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Source:
    """The tables of one run or folder: its rows, and what is known of their data and their cost."""

    name: str
    rows: Sequence[CaseRow]
    folder: Path
    facts: Mapping[str, Any]


def compare(
    tables: Sequence[Path | str],
    *,
    names: Sequence[str] = (),
    metrics: Sequence[str] = (),
    by: Sequence[str] = (),
    alpha: float = 0.05,
    seed: int = 0,
    out: Path | None = None,
    card: Path | None = None,
    force: bool = False,
    track: bool = False,
) -> Compared:
    """Compare two or more tools or runs; the first is what the others are compared with.

    Args:
        tables: Folders that `measure --out` or `evaluate --out` wrote, their ``instances.csv``, or
            runs: an id or a name.
        names: A name for each; none for the folders' or the runs' own. Those with one name are seeds or folds of one
            configuration, and are compared as one, as runs of one configuration are without being named.
        metrics: Names; none for all that every table has.
        by: Columns of strata.
        alpha: Level under which an adjusted p-value is a difference.
        seed: Random seed for the trials that tell an interval's coverage.
        out: Folder for the comparison (`write_comparison`); None writes nothing.
        card: A data card whose images the objects that lose most are drawn on, both predictions side by side; it
            needs ``predictions/`` beside both tables, which `evaluate` writes.
        force: Compare evaluations of different data or splits all the same.
        track: Log the comparison as a run.

    Raises:
        InputError: Tables that cannot be read, or cannot be compared (`compare_rows`).
        ConfigError: Names that are not one for each, a level that is none, or a card without a folder to write to.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha: expected a level between 0 and 1, got {alpha:g}")
    if card is not None and out is None:
        raise ConfigError("--card draws pictures: give a folder for them with --out")
    sources = _sources(tables, names)
    groups: dict[str, list[_Source]] = {}
    for source in sources:
        groups.setdefault(source.name, []).append(source)
    _check_alike({name: [row for s in of for row in s.rows] for name, of in groups.items()})
    _check_data(sources, force=force)
    sets = compare_rows(
        {name: [s.rows for s in of] for name, of in groups.items()},
        rng=np.random.default_rng(seed), metrics=metrics, by=by, alpha=alpha,
    )  # fmt: skip
    costs = {name: _cost(of) for name, of in groups.items()}
    if out is not None:
        pictures = {}
        if card is not None:
            pictures = _pictures(sets, {name: of[0].folder for name, of in groups.items()}, card)
        write_comparison(sets, Path(out), costs=costs, pictures=pictures)
    run_id = _log(sets, costs) if track else ""
    return Compared(sets=sets, costs=costs, run_id=run_id)


def render(done: Compared) -> str:
    """Return the comparison as a Markdown table, with what it is of."""
    return comparison_markdown(done.sets, done.costs)


def _sources(tables: Sequence[Path | str], names: Sequence[str]) -> list[_Source]:
    """Return what is compared, with its name."""
    runs = {k: load(str(given)) for k, given in enumerate(tables) if not Path(given).exists()}
    if names:
        if len(names) != len(tables):
            raise ConfigError(f"give each of the {len(tables)} tables a name, not {', '.join(names)}")
        given = list(names)
    else:
        of_runs = dict(zip(runs, names_of(list(runs.values())), strict=True))
        given = [of_runs.get(k, Path(path).resolve().name) for k, path in enumerate(tables)]
        folders = [given[k] for k in range(len(tables)) if k not in runs]
        if len(set(folders)) < len(folders):
            raise ConfigError(
                f"give each of the {len(tables)} tables a name of its own with --name, not {', '.join(given)}; "
                "seeds of one configuration share theirs"
            )
    sources = []
    for k, path in enumerate(tables):
        folder = runs[k].folder if k in runs else Path(path)
        rows = runs[k].rows if k in runs else rows_of_tables(folder)
        folder = folder if folder.is_dir() else folder.parent
        sources.append(_Source(name=given[k], rows=rows, folder=folder, facts=_facts(folder)))
    return sources


def _facts(folder: Path) -> dict[str, Any]:
    path = folder / "numbers.json"
    if not path.is_file():
        return {}
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except ValueError:
        raise InputError(f"'numbers.json' in '{folder.name}' is not JSON: evaluate again") from None
    return content if isinstance(content, dict) else {}


def _cost(sources: Sequence[_Source]) -> dict[str, float]:
    costs = [s.facts["cost"] for s in sources if "cost" in s.facts]
    return {name: float(np.mean([cost[name] for cost in costs])) for name in (costs[0] if costs else ())}


def _check_data(sources: Sequence[_Source], *, force: bool) -> None:
    """Refuse evaluations that were interrupted, or that are known to be of different data."""
    partial = {s.name: s.facts["partial"] for s in sources if "partial" in s.facts}
    if partial and not force:
        name, mark = next(iter(partial.items()))
        raise InputError(
            f"'{name}' is not of all cases ({mark}): run it again, or compare what they share with --force"
        )
    known = [(s.name, s.facts["data"]) for s in sources if "data" in s.facts]
    for name, data in known[1:]:
        first, expected = known[0]
        different = [key for key in ("card", "split", "digest") if data.get(key) != expected.get(key)]
        if different and not force:
            shown = ", ".join(
                f"{key} {str(expected.get(key))[:12]} and {str(data.get(key))[:12]}" for key in different
            )
            raise InputError(
                f"'{first}' and '{name}' were evaluated on different data ({shown}): evaluate both on the same, or "
                "compare what they share with --force"
            )


def _check_alike(sets: Mapping[str, Sequence[CaseRow]]) -> None:
    """Refuse tables whose distances are not the same thing."""
    models = {name: {str(row.about.get("surface")) for row in rows} for name, rows in sets.items()}
    units = {name: {str(row.unit) for row in rows} for name, rows in sets.items()}
    thresholds = {name: {str(row.about.get("iou_threshold")) for row in rows} for name, rows in sets.items()}
    caps = {name: {str(row.about.get("distance_cap")) for row in rows} for name, rows in sets.items()}
    for what, by_name in (
        ("surface models", models),
        ("units", units),
        ("IoU thresholds", thresholds),
        ("distance caps", caps),
    ):
        if len(set().union(*by_name.values())) > 1:
            shown = "; ".join(f"{name}: {', '.join(sorted(values))}" for name, values in by_name.items())
            raise InputError(f"the tables have different {what} ({shown}): measure them alike")


def _pictures(sets: ComparedSets, folders: Mapping[str, Path], card: Path) -> dict[int, str]:
    """Return pictures of the objects that lose most; of several seeds the first one's prediction is drawn."""
    from clearmargin.datasets.cases import open_dataset
    from clearmargin.outputs.packed import read_packed
    from clearmargin.report.regressions import regression_pictures

    dataset = open_dataset(card)
    cases = {case.case: case for case in dataset.cases}

    def kept(folder: Path) -> Callable[[str], Prediction | None]:
        def of_case(case: str) -> Prediction | None:
            path = folder / "predictions" / f"{case}.npz"
            return read_packed(path)[0] if path.is_file() else None

        return of_case

    pictures = regression_pictures(
        sets,
        lambda case: dataset.read(cases[case]) if case in cases else None,
        {name: kept(folder) for name, folder in folders.items()},
    )
    if sets.regressions and not pictures:
        log.warning(
            "no object could be drawn: the card has none of the cases, or a table has no predictions/ beside it "
            "(`evaluate --out` writes them)"
        )
    return pictures


def _log(sets: ComparedSets, costs: Mapping[str, Mapping[str, float]]) -> str:
    from clearmargin.tracking.run import TrackedRun

    run = TrackedRun(name=f"compare-{'-'.join(sets.tables)}"[:200])
    run.on_start(
        params={"against": sets.first, "alpha": sets.alpha, "cases": sets.cases}, tags={"verb": "compare"}
    )
    with run:
        run.log_metrics(
            {
                f"{row.name}/{row.metric}": row.comparison.difference.estimate
                for row in sets.metrics
                if row.stratum == "all" and metric_of(row.metric) is not None
            },
            step=0,
        )
        with TemporaryDirectory() as folder:
            write_comparison(sets, Path(folder), costs=costs)
            run.log_artifact(Path(folder), "comparison")
    return run.run_id
