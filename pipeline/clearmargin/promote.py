"""Give a model an alias in the registry if it passes a gate; the verdict and its reasons stay with the version."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from clearmargin.capsules import summary_rows
from clearmargin.config import Settings, load_settings
from clearmargin.errors import ConfigError, InputError, nearest
from clearmargin.replay import Replayed, replay
from clearmargin.runs import Run, load
from clearmargin.tracking.flavour import aliases_of, check_name, register, tag_version

__all__ = ["Condition", "Gate", "Promoted", "judge", "promote"]


class MetricBound(Settings):
    """A bound on a metric's mean over groups, or on an end of its interval."""

    metric: str
    stratum: str = "all"
    mean: float | None = None
    low: float | None = None
    high: float | None = None


class NumberBound(Settings):
    """A bound on a number of the whole split."""

    number: str
    at_least: float | None = None
    at_most: float | None = None


class Gate(Settings):
    """What a model has to show before it may carry an alias; what is left out is not asked for."""

    name: str
    card: str | None = None
    split: str | None = None
    metrics: list[MetricBound] = Field(default_factory=list)
    numbers: list[NumberBound] = Field(default_factory=list)
    seconds_per_case: float | None = None
    failed_cases: int | None = 0
    calibration: bool = False
    replay: bool = True


@dataclass(frozen=True)
class Condition:
    """One condition of a gate, with what was found."""

    asked: str
    found: str
    passed: bool


@dataclass(frozen=True, kw_only=True)
class Promoted:
    """A verdict.

    Attributes:
        version: ``models:/NAME/VERSION``.
        alias: What was asked for.
        passed: Whether the version now has it by this gate.
        kept: Whether it has it from an earlier verdict, and does not pass now.
        conditions: Of the gate.
    """

    version: str
    alias: str
    passed: bool
    kept: bool
    conditions: tuple[Condition, ...]

    def text(self) -> str:
        """Return what a console shows."""
        word = "is now" if self.passed else "does not pass, and keeps" if self.kept else "is not"
        lines = [f"  {'yes' if c.passed else 'NO '}  {c.asked}: {c.found}" for c in self.conditions]
        return "\n".join([f"{self.version} {word} '{self.alias}'", *lines])


def promote(
    run: str,
    *,
    alias: str,
    gate: Path,
    name: str | None = None,
    card: Path | None = None,
    model: Path | None = None,
) -> Promoted:
    """Judge an evaluation by a gate, register its model, and give it the alias if every condition holds.

    A version that does not pass is registered, too, with the verdict and without the alias. Judged again, a model keeps
    its version, which gets the new verdict; an alias that it has stays with it.

    Args:
        run: An evaluation, by id or name.
        alias: Such as ``champion``; it moves here from the version that had it.
        gate: YAML, as in ``configs/gates/``.
        name: Of the registered model; None for the gate's.
        card: The data card, of a gate that asks for a replay.
        model: The model's folder, if the store does not know the evaluation's training.

    Raises:
        InputError: No such run, it is no evaluation, or its training logged no model.
        ConfigError: The gate does not fit its schema, or asks for a metric, a stratum or a number that the evaluation
            does not have; or the registry takes no such name or alias.
    """
    known = load(run)
    if known.verb != "evaluate":
        raise InputError(f"run '{known.name}' is of the verb {known.verb}: a gate judges an evaluation")
    training = known.tags.get("training")
    if not training:
        raise InputError(
            f"the store does not know the training of run '{known.name}': only a model that it logged can be promoted"
        )
    asked = load_settings(gate, Gate)
    _check_gate(asked, known)
    registered = name or asked.name
    check_name(registered, alias)
    if asked.replay and card is None:
        raise InputError(f"gate '{asked.name}' asks for a replay: give the data card with --card")
    repeated = replay(known.run_id, card, model=model) if asked.replay and card is not None else None
    conditions = judge(asked, known, repeated, calibrated=known.calibrated())
    passed = all(c.passed for c in conditions)
    version = register(training, registered, alias if passed else None)
    tag_version(
        version,
        {
            "gate": asked.name,
            "verdict": "passed" if passed else "not passed",
            "verdict_alias": alias,
            "verdict_time": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "evaluation": known.run_id,
            "reason": "; ".join(f"{'yes' if c.passed else 'NO'}: {c.asked}: {c.found}" for c in conditions)[
                :4900
            ],
        },
    )
    return Promoted(
        version=version,
        alias=alias,
        passed=passed,
        kept=not passed and alias in aliases_of(version),
        conditions=tuple(conditions),
    )


def _check_gate(gate: Gate, run: Run) -> None:
    """Refuse a gate whose conditions no run like this one could meet: most often a name is misspelt.

    Raises:
        ConfigError: With the nearest name.
    """
    rows = summary_rows(run.folder)
    for bound in gate.metrics:
        if bound.metric not in (known := {row["metric"] for row in rows}):
            raise ConfigError(
                f"gate '{gate.name}': no metric '{bound.metric}': {nearest(bound.metric, known)}"
            )
        if bound.stratum not in (known := {row["stratum"] for row in rows}):
            raise ConfigError(
                f"gate '{gate.name}': no stratum '{bound.stratum}': {nearest(bound.stratum, known)}"
            )
    numbers = run.facts().get("numbers", {})
    for one in gate.numbers:
        if one.number not in numbers:
            raise ConfigError(f"gate '{gate.name}': no number '{one.number}': {nearest(one.number, numbers)}")


def judge(gate: Gate, run: Run, repeated: Replayed | None, *, calibrated: bool) -> list[Condition]:
    """Return each condition of a gate with what the run shows; what the run does not know does not pass."""
    facts = run.facts()
    data = facts.get("data", {})
    out = [
        Condition(f"{key} is {expected}", str(data.get(key, "unknown")), data.get(key) == expected)
        for key, expected in (("card", gate.card), ("split", gate.split))
        if expected is not None
    ]
    summary = {(row["stratum"], row["metric"]): row for row in summary_rows(run.folder)}
    for bound in gate.metrics:
        row = summary.get((bound.stratum, bound.metric))
        where = "" if bound.stratum == "all" else f" ({bound.stratum})"
        better = _lower_is_better(bound.metric)
        for part, limit in (("mean", bound.mean), ("low", bound.low), ("high", bound.high)):
            if limit is None:
                continue
            value = _number(row, part)
            sign = "at most" if better else "at least"
            passed = value is not None and (value <= limit if better else value >= limit)
            words = {"mean": "mean", "low": "lower end", "high": "upper end"}[part]
            out.append(Condition(f"{words} of {bound.metric}{where} {sign} {limit:g}", _shown(value), passed))
    for one in gate.numbers:
        number = facts.get("numbers", {}).get(one.number)
        for sign, limit in (("at least", one.at_least), ("at most", one.at_most)):
            if limit is not None:
                passed = number is not None and (number >= limit if sign == "at least" else number <= limit)
                out.append(Condition(f"{one.number} {sign} {limit:g}", _shown(number), passed))
    if gate.seconds_per_case is not None:
        took = facts.get("cost", {}).get("seconds per case")
        out.append(
            Condition(
                f"at most {gate.seconds_per_case:g} s per case",
                _shown(took),
                took is not None and took <= gate.seconds_per_case,
            )
        )
    if gate.failed_cases is not None:
        failed = len(facts.get("failed", {}))
        out.append(
            Condition(f"at most {gate.failed_cases} failed cases", str(failed), failed <= gate.failed_cases)
        )
    if gate.calibration:
        out.append(Condition("the model is calibrated", "yes" if calibrated else "no", calibrated))
    if gate.replay:
        same = repeated is not None and not repeated.differences
        said = "the same" if same else "; ".join(repeated.differences) if repeated else "not repeated"
        out.append(Condition("replay gives the same", said, same))
    return out


def _lower_is_better(metric: str) -> bool:
    from clearmargin.metrics.measurement import metric_of

    known = metric_of(metric)
    return known is not None and known.better != "higher"


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"


def _number(row: Mapping[str, Any] | None, part: str) -> float | None:
    return None if row is None or not row.get(part) else float(row[part])
