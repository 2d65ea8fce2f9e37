"""A model card, made of what a run knows; what the run cannot know is listed as open."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from clearmargin.report.web import table, text

__all__ = ["claim_items", "model_card_html", "model_card_markdown"]

AUTHOR = "author must answer"


def claim_items(known: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Return the items of CLAIM 2024, in our words, as section, item and answer.

    Args:
        known: ``card`` (the data card's fields), ``model`` (of model.yaml), ``data`` (card, split, digest), ``counts``,
            ``numbers``, ``software``, ``calibrated``, ``summary`` (rows of ``summary.csv``): whatever is there. An item
            whose facts are missing is open.

    Source: Tejani et al., Radiology: Artificial Intelligence 2024.
    """
    card, model = known.get("card", {}), known.get("model", {})
    data, counts, numbers = known.get("data", {}), known.get("counts", {}), known.get("numbers", {})
    network = str(model.get("model", {}).get("network", ""))
    headline = [name for name in ("ap50", "pq", "semantic_dice", "miss_rate") if name in numbers]
    shown = ", ".join(f"{name} {numbers[name]:.3f}" for name in headline)
    items = {
        "title and abstract": {
            "identification as a study of AI": f"instance segmentation by {network}" if network else "",
            "structured summary": "",
        },
        "introduction": {"background and clinical role": "", "aims and hypotheses": ""},
        "study design": {"prospective or retrospective": "", "goal of the study": ""},
        "data": {
            "sources": str(card.get("origin", "")),
            "inclusion and exclusion": "",
            "preprocessing": _settings(model.get("image", {})),
            "selection of subsets": f"split {data['split']} of card {data['card']}" if data else "",
            "de-identification": "the card names cases by plain ids; author must answer"
            if card.get("names") == "plain"
            else "case ids are keyed hashes; names, dates and paths are not logged (docs/privacy.md)",
            "missing data": f"{counts['failed']} cases failed and are in no number" if "failed" in counts else "",
            "image acquisition": f"modality {card['modality']}" if card.get("modality") else "",
        },
        "reference standard": {
            "definition": "", "rationale": "", "source of annotations": str(card.get("citation", "")),
            "annotation of the test set": "", "variability between readers": "",
        },
        "partitions": {
            "how data were assigned": "as the data card's splits say" if card else "",
            "level of separation": f"by {card['group']}" if card.get("group") else "",
            "sample size and how it was chosen": "",
        },
        "model": {
            "description": _settings(model.get("model", {})),
            "software": str(known.get("software", "")),
            "initialisation": "as model.weights of config.yaml says" if model.get("model") else "",
        },
        "training": {
            "details": "config.yaml of the training's run" if known.get("training") else "",
            "selection of the final model": "",
            "ensembles": "",
        },
        "evaluation": {
            "metrics": "docs/metrics.md defines each number",
            "statistics": "means over independent groups with 95 % intervals; false negatives and positives counted",
            "robustness": "by stratum" if counts else "",
            "explainability": "",
            "internal data": f"card {data['card']}, {counts.get('cases', 0)} cases" if data else "",
            "external data": "",
            "trial registration": "",
        },
        "results": {
            "flow of cases": ", ".join(f"{counts[n]} {n}" for n in ("cases", "references") if n in counts),
            "demographic and clinical characteristics": "",
            "performance": shown,
            "precision of estimates": "intervals stand in the tables" if counts else "",
            "failure analysis": "the gallery of worst cases" if counts else "",
        },
        "discussion": {"limitations": "; ".join(map(str, card.get("faults", ()))), "implications for practice": ""},
        "other": {
            "protocol": "", "funding": "",
            "availability of software, model and data": f"data: {card['licence']}" if card.get("licence") else "",
        },
    }  # fmt: skip
    return [(section, item, answer or AUTHOR) for section, of in items.items() for item, answer in of.items()]


def model_card_markdown(known: Mapping[str, Any]) -> str:
    """Return the card as Markdown."""
    facts = _facts(known)
    lines = ["# Model card", "", *(f"- **{name}**: {value}" for name, value in facts), ""]
    rows: Sequence[Mapping[str, str]] = known.get("summary", ())
    if rows:
        lines += ["## Metrics by stratum", ""]
        lines += [
            "Means over independent groups with 95 % intervals; false negatives and positives count.",
            "",
        ]
        lines += ["| stratum | metric | mean | interval | groups |", "|---|---|---|---|---|"]
        lines += [_metric_row(row) for row in rows]
        lines.append("")
    lines += ["## CLAIM 2024", ""]
    lines += ["| section | item | answer |", "|---|---|---|"]
    lines += [f"| {section} | {item} | {answer} |" for section, item, answer in claim_items(known)]
    return "\n".join(lines) + "\n"


def model_card_html(known: Mapping[str, Any]) -> str:
    """Return the card as a part of a page."""
    rows = [{"": name, "what the run says": value} for name, value in _facts(known)]
    claims = [{"section": s, "CLAIM 2024, in our words": i, "answer": a} for s, i, a in claim_items(known)]
    return table(rows) + f"<h3>{text('Checklist')}</h3>" + table(claims)


def _facts(known: Mapping[str, Any]) -> Sequence[tuple[str, str]]:
    card, model = known.get("card", {}), known.get("model", {})
    classes = ", ".join(str(c.get("name")) for c in model.get("classes", ()))
    return [
        (
            "intended use",
            "research: segmenting images like those of its data card; not for diagnosis or treatment",
        ),
        ("network", str(model.get("model", {}).get("network", "unknown"))),
        ("classes", classes or "unknown"),
        ("trained on", str(model.get("trained_card") or "unknown")),
        ("licence of the data", str(card.get("licence") or "unknown")),
        ("licence of the weights", "that of the data and of the initial weights; author must answer"),
        ("weights", str(known.get("weights_sha256", "unknown"))),
        ("calibrated", "yes" if known.get("calibrated") else "no"),
        ("known faults of the data", "; ".join(map(str, card.get("faults", ()))) or AUTHOR),
        ("software", str(known.get("software", "unknown"))),
    ]


def _metric_row(row: Mapping[str, str]) -> str:
    ends = f"{float(row['low']):.3f} to {float(row['high']):.3f}" if row["low"] and row["high"] else "-"
    return f"| {row['stratum']} | {row['metric']} | {float(row['mean']):.3f} | {ends} | {row['groups']} |"


def _settings(of: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in of.items() if not isinstance(value, dict | list))[
        :400
    ]
