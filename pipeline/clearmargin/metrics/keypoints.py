"""Object key point similarity (OKS) and its average precision, as COCO defines them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clearmargin.core import Landmarks
from clearmargin.metrics.detection import ClassMatches, ImageMatches

__all__ = ["match_oks", "object_similarity"]

_THRESHOLDS = np.linspace(0.5, 0.95, 10)
_RANGES = 4  # of sizes, of which key points fill the first


def object_similarity(predicted: Landmarks, reference: Landmarks) -> NDArray[np.float64]:
    """Return ``(P, R)`` OKS of P predicted objects with R reference objects, each in [0, 1].

    The mean over the points that a reference has of ``exp(-d^2 / (2 area k^2))``; a point that the prediction lacks
    counts 0.

    Raises:
        ValueError: The types differ, or the area of a reference is not known.

    Source: COCO key point evaluation (cocodataset.org/#keypoints-eval).
    """
    if predicted.types != reference.types:
        raise ValueError("predicted and reference landmarks are of different types")
    if not (np.isfinite(reference.areas).all() and (reference.areas > 0).all()):
        raise ValueError("OKS needs the area of every reference object")
    falloff = np.array([t.falloff for t in reference.types])
    squares = ((predicted.points[:, None] - reference.points[None]) ** 2).sum(axis=3)
    scaled = squares / (2 * (reference.areas[None, :, None] + np.spacing(1)) * falloff**2)
    alike = np.where(np.isfinite(scaled), np.exp(-np.nan_to_num(scaled)), 0.0)
    labelled = (reference.visible > 0)[None]
    similarity: NDArray[np.float64] = (alike * labelled).sum(axis=2) / np.maximum(labelled.sum(axis=2), 1)
    return similarity


def match_oks(predicted: Landmarks, reference: Landmarks, *, by_type: bool = False) -> ImageMatches:
    """Return one image's matches by OKS, for a `PrecisionTally`.

    Args:
        predicted: An object's score is the mean over its points.
        reference: With areas.
        by_type: Whether each point is an object of its own, and each type a class: for a prediction that does not tell
            which points belong together.

    Raises:
        ValueError: As of `object_similarity`.
    """
    from clearmargin.metrics.coco_kernels import coco_matches
    from clearmargin.metrics.matching import Overlaps

    ours, theirs = (s.singles() if by_type else s for s in (predicted, reference))
    theirs = theirs.select((theirs.visible > 0).any(axis=1))
    labels = [_labels(s, by_type) for s in (ours, theirs)]
    counts = np.maximum((ours.visible > 0).sum(axis=1), 1)
    scores = (ours.scores.sum(axis=1) / counts).astype(np.float32)
    similarity = object_similarity(ours, theirs)
    out: dict[int, ClassMatches] = {}
    for label in np.union1d(*labels):
        p, r = np.flatnonzero(labels[0] == label), np.flatnonzero(labels[1] == label)
        p = p[np.argsort(-scores[p], kind="stable")]
        overlaps = Overlaps.from_dense(similarity[p[:, None], r])
        starts, _ = overlaps.of_rows(np.arange(len(p)))
        beyond, outside = np.zeros((_RANGES, len(r)), bool), np.zeros((_RANGES, len(p)), bool)
        matched, ignored = coco_matches(
            starts, overlaps.columns, overlaps.ious, np.zeros((len(p), 0)), beyond, outside, _THRESHOLDS
        )
        out[int(label)] = ClassMatches(
            scores=scores[p],
            matched=matched,
            ignored=ignored,
            references=np.full(_RANGES, len(r), np.int64),
        )
    return out


def _labels(landmarks: Landmarks, by_type: bool) -> NDArray[np.int64]:
    if not by_type:
        return np.ones(len(landmarks), np.int64)
    types: NDArray[np.int64] = (landmarks.visible > 0).argmax(axis=1).astype(np.int64) + 1
    return types
