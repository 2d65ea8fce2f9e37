"""The report of an evaluation: one page with its numbers, figures and worst cases, for a screen and for paper."""

from __future__ import annotations

import base64
import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clearmargin.errors import InputError
from clearmargin.files import parse_json
from clearmargin.report.evaluated import FIGURES
from clearmargin.report.web import table, text, web_page

__all__ = ["report_page"]

_NUMBERS = ("ap50", "ap", "pq", "semantic_dice", "miss_rate")
_COLUMNS = (
    "stratum",
    "metric",
    "unit",
    "mean",
    "low",
    "high",
    "sd",
    "median",
    "groups",
    "objects",
    "tp",
    "fn",
    "fp",
)


def report_page(
    folder: Path,
    *,
    title: str,
    sections: Sequence[tuple[str, str]] = (),
    figures: Mapping[str, Path] | None = None,
) -> str:
    """Return the page.

    Args:
        folder: Of an evaluation (`clearmargin.evaluate.write_tables`), with whatever it holds of figures and gallery.
        title: Of the page.
        sections: Further ones, as title and HTML: learning curves, calibration, the model card.
        figures: Further figures, PNG files by title.
    """
    try:
        facts = dict(parse_json((folder / "numbers.json").read_text(encoding="utf-8")))
        _ = facts["numbers"], facts["counts"]
    except (OSError, ValueError, TypeError, KeyError):
        raise InputError(f"'numbers.json' in '{folder.name}' is missing or damaged: evaluate again") from None
    parts = [_what(facts), "<h2>Numbers</h2>", table([_headline(facts)]), table([facts["counts"]])]
    summary = _rows(folder / "summary.csv")
    overall = [row for row in summary if row["stratum"] == "all"]
    parts += [
        "<h2>Per instance, with false negatives and false positives</h2>",
        table([{k: row[k] for k in _COLUMNS if k in row} for row in overall]),
    ]
    parts += [f"<h2>{text(name)}</h2>{html}" for name, html in sections]
    drawn = {name: folder / "figures" / f"{stem}.png" for stem, name in FIGURES.items()} | dict(figures or {})
    there = {name: path for name, path in drawn.items() if path.is_file()}
    if there:
        cards = [f'<figure class="card">{_png(path, name)}</figure>' for name, path in there.items()]
        parts.append(f'<h2>Figures</h2><div class="cards">{"".join(cards)}</div>')
    strata = [row for row in summary if row["stratum"] != "all"]
    if strata:
        metric = next(
            (row["metric"] for row in strata if str(row["metric"]).startswith("nsd_")), strata[0]["metric"]
        )
        shown = [{k: row[k] for k in _COLUMNS if k in row} for row in strata if row["metric"] == metric]
        parts += [f"<h2>By stratum, {text(metric)}</h2>", table(shown)]
    parts += _worst(folder)
    if facts.get("failed"):
        parts += [
            "<h2>Cases that failed</h2>",
            table([{"case": c, "why": w} for c, w in facts["failed"].items()]),
        ]
    return web_page(title, parts)


def _what(facts: Mapping[str, Any]) -> str:
    data, cost = facts.get("data", {}), facts.get("cost", {})
    said = [f"card {data['card']}, split {data['split']}, data {data['digest'][:12]}"] if data else []
    said += [f"{value:.3g} {name}" for name, value in cost.items()]
    said.append("research software, not for diagnosis or treatment")
    return f'<p class="faint">{text("; ".join(said))}</p>'


def _headline(facts: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(facts["numbers"][name]) for name in _NUMBERS if name in facts["numbers"]}


def _worst(folder: Path) -> list[str]:
    """Return the five worst of each list of the gallery, with links to their viewers beside the page."""
    path = folder / "gallery.csv"
    if not path.is_file():
        return []
    rows = [row for row in _rows(path) if int(row["rank"]) <= 5]
    lines = []
    for row in rows:
        case = (
            f'<a href="{text(row["viewer"])}">{text(row["case"])}</a>' if row["viewer"] else text(row["case"])
        )
        lines.append(
            f"<tr><td>{text(row['list'])}</td><td>{row['rank']}</td><td>{case}</td><td>{text(row['value'])}</td></tr>"
        )
    head = "<tr><th>list</th><th>rank</th><th>case</th><th>value</th></tr>"
    return [
        "<h2>Worst cases</h2>",
        '<p class="screen"><a href="gallery.html">The gallery shows them, twenty of each list.</a></p>',
        f'<div class="wide"><table><thead>{head}</thead><tbody>{"".join(lines)}</tbody></table></div>',
    ]


def _rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a CSV, what looks like a number as one."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as lines:
        return [{name: _value(cell) for name, cell in row.items()} for row in csv.DictReader(lines)]


def _value(cell: str) -> Any:
    try:
        number = float(cell)
    except ValueError:
        return cell or None
    return int(number) if number.is_integer() and "." not in cell and "e" not in cell.lower() else number


def _png(path: Path, title: str) -> str:
    return f'<img alt="{text(title)}" src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}">'
