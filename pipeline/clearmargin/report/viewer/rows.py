"""The viewer's list of instances: a row for each prediction, and for each reference that was missed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal

from clearmargin.core import InstanceSet
from clearmargin.core.grid import Unit
from clearmargin.metrics.instances import InstanceRow
from clearmargin.metrics.measurement import metric_of, metric_title

__all__ = ["ListRow", "list_rows"]

Kind = Literal["tp", "fp", "fn", "predicted"]

_WORDS: dict[str, str] = {
    "tp": "true positive",
    "fp": "false positive",
    "fn": "false negative",
    "predicted": "predicted",
}


@dataclass(frozen=True, kw_only=True)
class ListRow:
    """One row.

    Attributes:
        kind: Whether it is right; ``predicted`` without a reference to tell by.
        predicted: Position of its prediction; None of a false negative.
        reference: Position of its reference; None without one.
        cells: What the list shows, by column; the same columns in every row.
        facts: What is shown once the row is chosen.
    """

    kind: Kind
    predicted: int | None
    reference: int | None
    cells: Mapping[str, str]
    facts: Mapping[str, str]


def list_rows(
    predicted: InstanceSet,
    names: Mapping[int, str],
    *,
    measured: Sequence[InstanceRow] = (),
    reasons: Sequence[Sequence[str]] = (),
) -> list[ListRow]:
    """Return the rows: as measured against a reference, worst first; or without one, in the prediction's order.

    Args:
        predicted: With its uncertainty columns, such as margins.
        names: Of the classes by label.
        measured: Of `clearmargin.metrics.evaluate_instances`; empty without a reference.
        reasons: For each prediction, why a person should look; empty where nobody said.
    """
    kinds: list[tuple[Kind, int | None, int | None, InstanceRow | None]]
    if measured:
        order = {"fn": 0, "fp": 1, "tp": 2, "tn": 3}
        worst = sorted((r for r in measured if r.status != "tn"), key=lambda r: (order[r.status], r.iou))
        kinds = [(r.status, r.predicted, r.reference, r) for r in worst if r.status != "tn"]
    else:
        kinds = [("predicted", i, None, None) for i in range(len(predicted))]
    surface = next((name for row in measured for name in row.values if name.startswith("nsd")), None)
    rows = []
    for kind, i, j, row in kinds:
        label = int(predicted.labels[i]) if i is not None else row.label if row is not None else 0
        cells = {"": _WORDS[kind], "class": names.get(label, str(label))}
        cells["score"] = "" if i is None else f"{predicted.scores[i]:.2f}"
        if row is not None:
            unit = row.unit
            cells |= {"NSD": f"{row.values[surface]:.2f}"} if surface else {}
            if "hd95" in row.values:
                cells[f"HD95 ({unit})"] = f"{row.values['hd95']:.3g}" if kind == "tp" else "-"
        columns = {} if i is None else {n: float(column[i]) for n, column in predicted.uncertainty.items()}
        margins = [n for n in predicted.uncertainty if n.startswith("margin_outer")]
        for name in margins:
            cells[f"margin ({name.rsplit('_', 1)[-1]})"] = f"{columns[name]:.3g}" if i is not None else "-"
        if reasons or "refer" in predicted.uncertainty:
            cells["refer"] = "yes" if columns.get("refer") else ""
        facts = {"what": _WORDS[kind], "class": names.get(label, str(label)), "label": str(label)}
        if row is not None:
            facts |= {"IoU": f"{row.iou:.3f}"} | {
                metric_title(n, _unit(n, row.unit)): f"{v:.4g}" for n, v in row.values.items()
            }
        facts |= {n.replace("_", " "): f"{v:.4g}" for n, v in columns.items() if n != "refer" and isfinite(v)}
        if i is not None and reasons and reasons[i]:
            facts["refer because"] = "; ".join(reasons[i])
        rows.append(ListRow(kind=kind, predicted=i, reference=j, cells=cells, facts=facts))
    return rows


def _unit(metric: str, unit: Unit) -> str:
    known = metric_of(metric)
    return unit if known is not None and known.unit == "grid" else ""
