"""What an evaluation leaves to be looked at: figures, the gallery of its worst cases, their viewers, the report."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from clearmargin.core import Prediction
from clearmargin.datasets.cases import Case, Dataset
from clearmargin.metrics.instances import InstanceRow
from clearmargin.outputs.packed import read_packed, write_packed
from clearmargin.report.gallery import Listed, ReviewedCase, doubt_of
from clearmargin.tracking.capsule import prediction_digest

__all__ = ["KeptCases", "described"]


class KeptCases:
    """The predictions of an evaluation, on disk, so that no case is segmented twice.

    Attributes:
        doubts: The uncertainty of each case (`doubt_of`).
        digests: The digest of each case's prediction (`prediction_digest`).
    """

    def __init__(self, folder: Path, dataset: Dataset) -> None:
        self.doubts: dict[str, float] = {}
        self.digests: dict[str, str] = {}
        self._folder, self._dataset = folder / "predictions", dataset
        self._maps = folder / "maps"
        self._measured: dict[str, Sequence[InstanceRow]] = {}
        self._cases: dict[str, Case] = {}
        for made in (self._folder, self._maps):
            made.mkdir(parents=True)

    def keep(self, case: Case, prediction: Prediction, measured: Sequence[InstanceRow]) -> None:
        """Keep one case: the prediction above its thresholds, and its rows against the reference."""
        self.doubts[case.case] = doubt_of(prediction)
        self.digests[case.case] = prediction_digest(prediction)
        self._measured[case.case], self._cases[case.case] = measured, case
        write_packed(self._folder / f"{case.case}.npz", {0: replace(prediction, image=None)})
        for name, values in prediction.maps.items():
            np.save(self._maps / f"{case.case}.{name}.npy", values.astype(np.float16))

    def copy_predictions(self, folder: Path) -> None:
        """Copy the predictions into ``predictions/`` of a folder, a file per case, as `read_packed` reads them."""
        shutil.copytree(self._folder, folder / "predictions", dirs_exist_ok=True)

    def read(self, case: str) -> ReviewedCase:
        """Return a case to be drawn."""
        image, reference = self._dataset.read(self._cases[case])
        prediction = read_packed(self._folder / f"{case}.npz")[0]
        maps = {
            path.name.removeprefix(f"{case}.").removesuffix(".npy"): np.load(path).astype(np.float32)
            for path in sorted(self._maps.glob(f"{case}.*.npy"))
        }
        prediction = replace(prediction, maps=maps)
        return ReviewedCase(
            image=image, reference=reference, prediction=prediction, measured=self._measured[case]
        )


def described(headline: dict[str, float], listed: Sequence[Listed], page: str) -> str:
    """Return a run's description: its headline numbers, and a link to each of the worst cases' viewers.

    Args:
        headline: Numbers by name.
        listed: The gallery's lists.
        page: The address of the run's artifacts in the tracking pages, up to the evaluation's folder.
    """
    worst = next((one for one in listed if one.viewer), None)
    links = (
        [f"worst case: [{worst.case}]({page}/{worst.viewer}) ({worst.ranked_by}, {worst.value})"]
        if worst
        else []
    )
    links += [f"[report]({page}/report.html)"] + ([f"[gallery]({page}/gallery.html)"] if listed else [])
    lines = [" · ".join(links), ""]
    names = [name.removeprefix("headline/") for name in headline]
    numbers = " | ".join(f"{value:.4f}" for value in headline.values())
    lines += [f"| {' | '.join(names)} |", f"|{'---|' * len(names)}", f"| {numbers} |", ""]
    for name in dict.fromkeys(one.ranked_by for one in listed):
        of = [one for one in listed if one.ranked_by == name][:5]
        shown = ", ".join(
            f"[{one.case}]({page}/{one.viewer}) ({one.value})" if one.viewer else f"{one.case} ({one.value})"
            for one in of
        )
        lines.append(f"- **{name}**: {shown}")
    return "\n".join(lines) + "\n"
