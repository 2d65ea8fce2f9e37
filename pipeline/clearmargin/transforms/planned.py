"""What `plan` varies by modality, with the reason for each: names and arguments alone, no MONAI."""

from __future__ import annotations

from typing import Any, NamedTuple

__all__ = ["Planned", "planned_transforms"]


class Planned(NamedTuple):
    """Transforms for a modality.

    Attributes:
        transforms: As of ``augment.transforms``.
        reason: In a sentence, what each stands for.
    """

    transforms: tuple[dict[str, dict[str, Any]], ...]
    reason: str


_SOFTER = {
    "RandGaussianSmoothd": {"prob": 0.2, "sigma_x": [0.5, 1.0], "sigma_y": [0.5, 1.0], "sigma_z": [0.5, 1.0]}
}
_COARSER = {"RandSimulateLowResolutiond": {"prob": 0.2, "zoom_range": [0.5, 1.0]}}
_SHADED = {"RandBiasFieldd": {"prob": 0.3, "coeff_range": [0.0, 0.1]}}
_RINGING = {"RandGibbsNoised": {"prob": 0.15, "alpha": [0.0, 0.5]}}
_TONED = {"RandHistogramShiftd": {"prob": 0.3, "num_control_points": [5, 10]}}

_BY_MODALITY: dict[str, Planned] = {
    "MR": Planned(
        (_SHADED, _RINGING, _COARSER, _SOFTER),
        "coils shade MR, edges ring where k-space is cut off, protocols differ in resolution and filters",
    ),
    "CT": Planned(
        (_COARSER, _SOFTER), "scanners differ in resolution, and reconstruction kernels in sharpness"
    ),
    "PT": Planned((_COARSER, _SOFTER), "scanners differ in resolution, and reconstructions in smoothing"),
    "US": Planned(
        (_SHADED, _COARSER, _SOFTER),
        "gain differs with depth and side, probes in resolution, and focus with depth",
    ),
    "SM": Planned((_TONED, _SOFTER), "stain and exposure differ, and focus"),
    "GM": Planned((_TONED, _SOFTER), "exposure differs, and focus"),
    "ES": Planned((_TONED, _SOFTER), "light and exposure differ, and focus and motion blur"),
    "XC": Planned((_TONED, _SOFTER), "light and exposure differ, and focus"),
    "DX": Planned((_TONED, _SOFTER), "detectors' tone curves differ, and their sharpness"),
}
_ALIKE = {"CR": "DX", "RG": "DX", "RF": "DX", "MG": "DX", "IVUS": "US", "NM": "PT"}


def planned_transforms(modality: str) -> Planned:
    """Return the transforms for a DICOM modality; none, and why, for one that says nothing of how images differ."""
    known = _BY_MODALITY.get(_ALIKE.get(modality, modality))
    if known is not None:
        return known
    return Planned((), f"modality '{modality}' does not say how images differ: name what does")
