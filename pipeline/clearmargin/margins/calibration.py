"""A calibration: what was fitted for one model and one way of sampling it, and how a prediction is changed by it.

It lies with the model, ``MODEL/calibration/<mode>.yaml``, as plain data that names the weights it is of.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray

from clearmargin.config import read_yaml
from clearmargin.core import EdgeSpread, Image, Mask, Prediction, Thresholds, at_least, chosen_instances
from clearmargin.core.grid import Unit
from clearmargin.errors import ConfigError, InputError
from clearmargin.files import write_text
from clearmargin.margins.drift import Drift, Features, KnownCases, case_features, check_drift
from clearmargin.margins.guarantees import Guarantee
from clearmargin.margins.margins import CalibrationData, Margin, Sides
from clearmargin.margins.misses import MissThreshold
from clearmargin.margins.observations import object_features
from clearmargin.margins.referral import ReferralRules
from clearmargin.margins.regions import PointRegion
from clearmargin.margins.requirement import SIDES, Side
from clearmargin.margins.scaling import Scaling, scaling_from_data, scaling_to_data
from clearmargin.margins.scaling_choice import ChosenScaling
from clearmargin.margins.towards import Clearance
from clearmargin.sampling.maps import entropy
from clearmargin.sampling.samples import Mode

__all__ = [
    "Applied",
    "Calibration",
    "Refusal",
    "calibration_files",
    "load_calibration",
    "save_calibration",
]

Applied = Literal["each", "both"]

_DIGEST = "sha256"  # of all else in the file
_FOLDER = "calibration"


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """Something that was asked for and could not be had.

    Attributes:
        what: Such as ``margin 'outer' by object, alpha 0.05``.
        why: With the level that is reached, where groups are too few.
    """

    what: str
    why: str


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """What was fitted, on whom.

    Attributes:
        mode: How the model was sampled; another way gives other scores and edges.
        weights_sha256: Of the model, all members together.
        card: Name of the data card.
        checked: How it was checked that the model was not trained on the cases.
        data: Group, date, and digest of the calibration split.
        groups: Number of groups that scalings and limits were fitted on (``fit``), and margins (``margin``).
        length_unit: ``mm`` or ``px``, of everything that is a length.
        thresholds: Least scores, as predicted and not scaled, of the instances that are returned; margins hold for the
            matched ones among them. Scaling keeps their order, so that `shown` thresholds keep the same instances.
        match_iou: IoU with the true object from which an instance is matched well enough for a margin.
        scores: Scaling of instance scores.
        pixels: Scaling of the foreground map; None if there is no map.
        nsd: Scaling of predicted NSD to NSD at ``tolerance``; None if it is not predicted.
        tolerance: In ``length_unit``.
        misses: The promise about misses that ``thresholds`` keep; None if none was asked for, or it could not be had.
        promise: Promise of the margins that are applied.
        sides: ``each``: an outer and an inner margin, each with its own promise; ``both``: one pair.
        margins: All that could be had; those of the first alpha are applied.
        points: Regions of landmarks, all that could be had; the first of the applied promise is applied.
        clearances: What is taken off distances to a named target; the first of each target and the applied promise is
            applied.
        refused: What could not.
        referral: When a person should look.
        known_cases: What calibration cases look like.
        doubts: How a judged split contradicts a promise that is applied, a sentence each.
    """

    mode: Mode
    weights_sha256: str
    card: str
    checked: str
    data: CalibrationData
    groups: Mapping[str, int]
    length_unit: Unit
    thresholds: Thresholds
    match_iou: float
    scores: ChosenScaling
    pixels: ChosenScaling | None
    nsd: Scaling | None
    tolerance: float
    misses: MissThreshold | None
    promise: Guarantee
    sides: Applied
    margins: tuple[Margin, ...]
    refused: tuple[Refusal, ...]
    referral: ReferralRules
    known_cases: KnownCases = field(repr=False)
    doubts: tuple[str, ...] = ()
    points: tuple[PointRegion, ...] = ()
    clearances: tuple[Clearance, ...] = ()

    def apply(self, prediction: Prediction, *, margins: bool = True) -> Prediction:
        """Return a prediction whose probabilities are scaled and whose instances have margins and sizes.

        Scores and the map ``foreground`` are scaled, ``entropy`` and ``mean_entropy`` follow the scaled map, and
        ``predicted_nsd`` is scaled. Where margins were calibrated, ``outer`` and ``inner`` hold each instance's
        `region`, landmarks have ``regions``, and there are columns, with the grid's unit in their names:
        ``margin_outer_mm`` and ``margin_inner_mm``, the margins of these regions (of one that follows the edge its mean
        along it), and
        ``inner_volume_mm3`` and ``outer_volume_mm3``, the regions' sizes. Masks stay as they are.

        Args:
            prediction: As predicted, of the instances that are returned.
            margins: Whether it has any: none are promised of a case unlike the calibration cases.

        Raises:
            InputError: The grid is in mm and the calibration in px, or the other way round.
        """
        self._check_unit(prediction)
        scores = np.clip(self.scores.apply(prediction.instances.scores), 0, 1)
        prediction = replace(prediction, instances=replace(prediction.instances, scores=scores))
        instances = prediction.instances
        columns = dict(instances.uncertainty)
        if self.nsd is not None and "predicted_nsd" in columns:
            columns["predicted_nsd"] = _float32(self.nsd.apply(columns["predicted_nsd"]))
        maps = dict(prediction.maps)
        if self.pixels is not None and "foreground" in maps:
            maps["foreground"] = _float32(self.pixels.apply(maps["foreground"]))
            if "entropy" in maps:
                maps["entropy"] = _float32(entropy(maps["foreground"].astype(np.float64)))
            if "mean_entropy" in columns and "entropy" in maps:
                means = [maps["entropy"][m.slices][m.crop].mean() if m.area else 0.0 for m in instances.masks]
                columns["mean_entropy"] = np.array(means, np.float32)
        grid, every = instances.grid, range(len(instances))
        regions: dict[Side, tuple[Mask, ...]] = {}
        for side in SIDES:
            margin = self.margin(side) if margins else None
            if margin is not None:
                lengths = [margin.length(side, *self._known(prediction, i, margin)) for i in every]
                columns[f"margin_{side}_{grid.unit}"] = _float32(lengths)
                regions[side] = tuple(self.region(prediction, i, side) for i in every)
                sizes = [region.area * grid.voxel_size for region in regions[side]]
                columns[f"{side}_{grid.size_name}"] = _float32(sizes)
        scaled = replace(instances, uncertainty=columns)
        around = self.applied_points() if margins else None
        if around is not None and instances.landmarks is not None:
            scaled = replace(scaled, landmarks=around.around(instances.landmarks, grid))
        return replace(
            prediction,
            instances=scaled,
            maps=maps,
            outer=regions.get("outer", ()),
            inner=regions.get("inner", ()),
        )

    def margin(self, side: Side) -> Margin | None:
        """Return the margin that is applied to a side; None if it could not be had."""
        sides: Sides = "both" if self.sides == "both" else side
        own = [m for m in self.margins if m.guarantee == self.promise and m.sides == sides]
        return own[0] if own else None

    def applied(self) -> tuple[Margin, ...]:
        """Return the margins that are applied, outer before inner; one if its promise is about both sides."""
        sides: tuple[Sides, ...] = ("both",) if self.sides == "both" else SIDES
        margins = [self.margin("outer" if one == "both" else one) for one in sides]
        return tuple(margin for margin in margins if margin is not None)

    def applied_points(self) -> PointRegion | None:
        """Return the regions that landmarks get; None if they could not be had, or there are no landmarks.

        A promise by risk is about edges, which points have not: theirs is then by object.
        """
        promise = "group" if self.promise == "group" else "object"
        own = [p for p in self.points if p.guarantee == promise]
        return own[0] if own else None

    def applied_clearances(self) -> tuple[Clearance, ...]:
        """Return what is taken off the distances to each target; a promise by risk is then one by object."""
        promise = "group" if self.promise == "group" else "object"
        firsts: dict[str, Clearance] = {}
        for one in self.clearances:
            if one.guarantee == promise:
                firsts.setdefault(one.target, one)
        return tuple(firsts.values())

    def region(self, prediction: Prediction, i: int, side: Side) -> Mask:
        """Return instance ``i`` grown (outer) or shrunk (inner) by its margin.

        Args:
            prediction: As predicted, and not scaled.
            i: Position of the instance.
            side: Which of the two.

        Raises:
            InputError: There is no such margin, or the grid is in another unit of length.
        """
        self._check_unit(prediction)
        margin = self.margin(side)
        if margin is None:
            whys = [r.why for r in self.refused if r.what.startswith("margin")]
            raise InputError(f"the calibration has no {side} margin" + (f": {whys[0]}" if whys else ""))
        grid = prediction.instances.grid
        return margin.region(prediction.instances.masks[i], grid, side, *self._known(prediction, i, margin))

    def _known(
        self, prediction: Prediction, i: int, margin: Margin
    ) -> tuple[Mapping[str, float], EdgeSpread | None]:
        """Return what the width of an instance's margin follows."""
        edge = prediction.edges[i] if prediction.edges and margin.width.floor is not None else None
        return object_features(prediction, i), edge

    def features(self, image: Image, prediction: Prediction) -> dict[str, float]:
        """Return what `drift` compares of an incoming case.

        Args:
            image: The segmented image.
            prediction: As predicted and not yet scaled, with all instances that ``thresholds`` keep.
        """
        return case_features(image.pixels, at_least(prediction, self.thresholds).instances.scores)

    def at_least(self, prediction: Prediction, shown: Thresholds) -> Prediction:
        """Return a prediction, as predicted, without the instances whose scores as shown are below ``shown``."""
        scores = np.clip(self.scores.apply(prediction.instances.scores), 0, 1)
        kept = shown.reached(replace(prediction.instances, scores=scores))
        return chosen_instances(prediction, kept)

    def shown(self, thresholds: Thresholds) -> Thresholds:
        """Return thresholds on scores as predicted as thresholds on scores as shown."""

        def scaled(score: float) -> float:
            return float(np.clip(self.scores.apply(np.array([score])), 0, 1)[0])

        by_label = {label: scaled(v) for label, v in thresholds.by_label.items()}
        return Thresholds(scaled(thresholds.every), by_label, points=thresholds.landmarks)

    def drift(self, features: Iterable[Features]) -> Drift:
        """Return what differs between incoming cases (their `features`) and the calibration cases."""
        return check_drift(self.known_cases, list(features))

    def to_data(self) -> dict[str, Any]:
        """Return the record as plain data, for YAML and JSON."""
        return {
            "mode": self.mode,
            "weights_sha256": self.weights_sha256,
            "card": self.card,
            "checked": self.checked,
            "data": asdict(self.data),
            "groups": dict(self.groups),
            "length_unit": self.length_unit,
            "match_iou": self.match_iou,
            "scores": self.scores.to_data(),
            "thresholds": asdict(self.thresholds) | {"by_label": dict(self.thresholds.by_label)},
            "pixels": None if self.pixels is None else self.pixels.to_data(),
            "nsd": None if self.nsd is None else scaling_to_data(self.nsd),
            "tolerance": self.tolerance,
            "misses": None if self.misses is None else asdict(self.misses),
            "promise": self.promise,
            "sides": self.sides,
            "margins": [m.to_data() for m in self.margins],
            "points": [p.to_data() for p in self.points],
            "clearances": [c.to_data() for c in self.clearances],
            "refused": [asdict(r) for r in self.refused],
            "referral": self.referral.to_data(),
            "known_cases": self.known_cases.to_data(),
            "doubts": list(self.doubts),
        }

    @staticmethod
    def from_data(content: Mapping[str, Any]) -> Calibration:
        """Return the record that `to_data` gave.

        Raises:
            ConfigError: A field is missing or unknown.
        """
        try:
            read: dict[str, Any] = {
                "data": CalibrationData(**content["data"]),
                "scores": ChosenScaling.from_data(content["scores"]),
                "thresholds": Thresholds(**content["thresholds"]),
                "pixels": None if content["pixels"] is None else ChosenScaling.from_data(content["pixels"]),
                "nsd": None if content["nsd"] is None else scaling_from_data(content["nsd"]),
                "misses": None if content["misses"] is None else MissThreshold(**content["misses"]),
                "margins": tuple(Margin.from_data(m) for m in content["margins"]),
                "points": tuple(PointRegion.from_data(p) for p in content.get("points", ())),
                "clearances": tuple(Clearance.from_data(c) for c in content.get("clearances", ())),
                "refused": tuple(Refusal(**r) for r in content["refused"]),
                "referral": ReferralRules.from_data(content["referral"]),
                "known_cases": KnownCases.from_data(content["known_cases"]),
                "doubts": tuple(content["doubts"]),
            }
            return Calibration(**(dict(content) | read))
        except (KeyError, TypeError, AttributeError, IndexError) as error:
            raise ConfigError(
                f"not a calibration, or one of an earlier version ({error}): run `clearmargin calibrate` again"
            ) from None

    def _check_unit(self, prediction: Prediction) -> None:
        unit = prediction.instances.grid.unit
        if unit != self.length_unit:
            raise InputError(
                f"the model was calibrated on images in {self.length_unit} and this one is in {unit}: a calibration "
                "holds for images like those it was made on; calibrate on images with the same unit"
            )


def _digest(content: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record, whichever way YAML wrote its numbers and lists."""
    plain = yaml.safe_load(yaml.safe_dump(dict(content)))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def save_calibration(model: Path, calibration: Calibration) -> Path:
    """Write a calibration into the model's folder, in place of an earlier one of the mode; return the file."""
    path = _path(model, calibration.mode)
    content = calibration.to_data()
    text = yaml.safe_dump(
        content | {_DIGEST: _digest(content)}, sort_keys=False, allow_unicode=True, width=120
    )
    write_text(path, text)
    return path


def load_calibration(model: Path, mode: Mode, weights_sha256: str) -> Calibration | None:
    """Return a model's calibration for a way of sampling it; None if it was not calibrated for it.

    Args:
        model: A model folder.
        mode: ``none``, ``checkpoints``, ...
        weights_sha256: Of the segmenter that it will be applied to.

    Raises:
        InputError: The file is of other weights.
        ConfigError: It is not a calibration, or not as `save_calibration` wrote it.
    """
    path = _path(model, mode)
    if not path.is_file():
        return None
    content = dict(read_yaml(path))
    digest = content.pop(_DIGEST, None)
    calibration = Calibration.from_data(content)
    if digest != _digest(content):
        raise ConfigError(
            f"{_FOLDER}/{path.name} of '{model.name}' has changed since `clearmargin calibrate` wrote it: its promises "
            "hold for what was written; run `clearmargin calibrate` again"
        )
    if calibration.weights_sha256 != weights_sha256:
        raise InputError(
            f"the calibration of '{model.name}' for uncertainty '{mode}' is of other weights "
            f"({calibration.weights_sha256[:12]}) than the model's ({weights_sha256[:12]}): run "
            f"`clearmargin calibrate` again, or remove {_FOLDER}/{path.name}"
        )
    return calibration


def calibration_files(model: Path) -> list[Path]:
    """Return the files of a model's calibrations, one for each way of sampling it; none if it was not calibrated."""
    return sorted((model / _FOLDER).glob("*.yaml"))


def _path(model: Path, mode: Mode) -> Path:
    return model / _FOLDER / f"{mode}.yaml"


def _float32(values: NDArray[np.floating] | Sequence[float]) -> NDArray[np.float32]:
    return np.asarray(values, np.float32)
