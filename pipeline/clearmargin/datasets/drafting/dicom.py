"""DICOM series with segmentations (SEG) or structure sets (RTSTRUCT) that refer to them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from clearmargin.core import Code
from clearmargin.datasets.drafting.layout import DraftOptions, Layout, QuestionError
from clearmargin.errors import ConfigError, InputError
from clearmargin.formats.dicom.boundary import items_of, read_header
from clearmargin.formats.dicom.index import SeriesEntry, scan_dicom
from clearmargin.formats.dicom.seg_content import read_seg_content

__all__ = ["draft_dicom", "holds_annotated_dicom"]


def holds_annotated_dicom(folder: Path) -> bool:
    """Return whether there is DICOM below a folder."""
    from clearmargin.formats import is_dicom

    return is_dicom(folder)


def draft_dicom(folder: Path, options: DraftOptions) -> Layout:
    """Return the layout of DICOM series and what refers to them.

    Raises:
        InputError: Nothing refers to a series that is there. QuestionError: There are both SEG and RTSTRUCT.
    """
    if options.classes or options.objects:
        raise ConfigError(
            "--class and --objects: DICOM SEG and RTSTRUCT name their classes and objects themselves"
        )
    scanned = scan_dicom(folder)
    series = {e.uid: e for e, _ in scanned if e.kind != "object"}
    owners = {
        str(h.elements.get("SOPInstanceUID")): e.uid
        for e, headers in scanned
        if e.kind != "object"
        for h in headers
    }
    files = [(p, e.modality) for e, _ in scanned if e.kind == "object" for p in e.files]
    kinds = Counter(m for _, m in files if m in ("SEG", "RTSTRUCT"))
    if not kinds:
        raise InputError(
            f"'{folder}' holds DICOM, but no SEG and no RTSTRUCT: a card needs a reference for each image"
        )
    asked = options.masks.upper() if options.masks else None
    if len(kinds) > 1 and asked not in kinds:
        raise QuestionError(
            f"there are {kinds['SEG']} SEG and {kinds['RTSTRUCT']} RTSTRUCT: say which counts, --masks SEG or "
            "--masks RTSTRUCT"
        )
    kind = asked or next(iter(kinds))
    layout = Layout(rows=[], encoding={}, classes=[], spacing="file")
    layout.leave_out(
        "DICOM objects that are neither images nor the reference",
        *(p.relative_to(folder).as_posix() for p, m in files if m != kind),
    )
    paths_by_uid: dict[str, list[Path]] = {}
    for path, modality in files:
        if modality != kind:
            continue
        uid = _series_of(read_header(path), series, owners)
        name = path.relative_to(folder).as_posix()
        if uid is None:
            layout.leave_out(f"{kind} files whose images are not there", name)
        else:
            paths_by_uid.setdefault(uid, []).append(path)
    paths_by_uid = {uid: sorted(paths) for uid, paths in paths_by_uid.items()}  # the first by name is taken
    names = _SOURCES[kind](folder, paths_by_uid, layout)
    patients = _pseudonyms(series, paths_by_uid)
    for number, (uid, paths) in enumerate(
        sorted(paths_by_uid.items(), key=lambda pair: str(pair[1][0])), start=1
    ):
        if len(paths) > 1:
            rest = [p.relative_to(folder).as_posix() for p in paths[1:]]
            layout.leave_out(f"further {kind} files of a series that has one already", *rest)
        if not names.get(paths[0]):
            layout.leave_out(
                f"{kind} files that cannot be read or hold nothing", paths[0].relative_to(folder).as_posix()
            )
            continue
        layout.rows.append(_row(folder, series[uid], paths[0], number, patients[uid]))
    unused = [e for uid, e in series.items() if uid not in paths_by_uid]
    layout.leave_out(
        "series without a reference", *(e.files[0].parent.relative_to(folder).as_posix() for e in unused)
    )
    if not layout.rows:
        raise InputError(
            f"none of the {kinds[kind]} {kind} files refers to a series under the folder: give the folder that "
            "holds both"
        )
    layout.modality = Counter(series[uid].modality for uid in paths_by_uid).most_common(1)[0][0] or "OT"
    layout.pattern = f"DICOM series with the {kind} that refers to them"
    layout.guesses["masks"] = f"each {'segment' if kind == 'SEG' else 'region'} is one object"
    return layout


def _row(folder: Path, entry: SeriesEntry, reference: Path, number: int, patient: str) -> dict[str, str]:
    parents = {p.parent for p in entry.files}
    single = len(entry.files) == 1
    place = entry.files[0] if single else _common(parents)
    image = place.relative_to(folder).as_posix()
    return {
        "id": f"case_{number}",
        "image": image,
        "series": "" if single else entry.uid,
        "reference": reference.relative_to(folder).as_posix(),
        "group": patient,
    }


def _common(parents: set[Path]) -> Path:
    first, *others = parents
    while any(first != p and first not in p.parents for p in others):
        first = first.parent
    return first


def _series_of(header: Any, series: dict[str, SeriesEntry], owners: dict[str, str]) -> str | None:
    """Return the series that a SEG or an RTSTRUCT refers to: by series, else by the objects it names."""
    uids = [str(i.get("SeriesInstanceUID")) for i in items_of(header, "ReferencedSeriesSequence")]
    objects: list[str] = []
    for frame in items_of(header, "ReferencedFrameOfReferenceSequence"):
        for study in items_of(frame, "RTReferencedStudySequence"):
            for item in items_of(study, "RTReferencedSeriesSequence"):
                uids.append(str(item.get("SeriesInstanceUID")))
                objects += [
                    str(i.get("ReferencedSOPInstanceUID")) for i in items_of(item, "ContourImageSequence")
                ]
    for item in items_of(header, "ReferencedSeriesSequence"):
        objects += [
            str(i.get("ReferencedSOPInstanceUID")) for i in items_of(item, "ReferencedInstanceSequence")
        ]
    for item in items_of(header, "SourceImageSequence"):
        objects.append(str(item.get("ReferencedSOPInstanceUID")))
    named = [u for u in uids if u in series] or [owners[o] for o in objects if o in owners]
    if named:
        return Counter(named).most_common(1)[0][0]
    # Both lie alone in one folder: there is nothing else that they could belong to.
    return next(iter(series)) if len(series) == 1 and not uids and not objects else None


def _pseudonyms(series: dict[str, SeriesEntry], paths_by_uid: dict[str, list[Path]]) -> dict[str, str]:
    """Return ``p1``, ``p2``, ... for each series by patient: no identity enters the index."""
    patients = {uid: str(read_header(series[uid].files[0]).get("PatientID") or uid) for uid in paths_by_uid}
    order = {patient: f"p{k}" for k, patient in enumerate(sorted(set(patients.values())), start=1)}
    return {uid: order[patient] for uid, patient in patients.items()}


def _segments(folder: Path, paths_by_uid: dict[str, list[Path]], layout: Layout) -> dict[Path, bool]:
    """Note the classes of SEG files: one for each coded type."""
    layout.encoding = {"kind": "dicom_seg"}
    read: dict[Path, bool] = {}
    types: dict[tuple[str, str], str] = {}
    for path in (paths[0] for paths in paths_by_uid.values()):
        try:
            content = read_seg_content(path)
        except InputError:
            read[path] = False
            continue
        read[path] = bool(content.segments)
        for segment in content.segments:
            key = (segment.type.value, segment.type.scheme)
            if key in types:
                continue
            name = segment.type.meaning.lower() or f"class {len(types) + 1}"
            types[key] = name if name not in layout.classes else f"{name} {len(types) + 1}"
            layout.classes.append(types[key])
            layout.codes[types[key]] = (segment.category, segment.type)
    return read


def _regions(folder: Path, paths_by_uid: dict[str, list[Path]], layout: Layout) -> dict[Path, bool]:
    """Note the classes of structure sets: one for each name of a region with closed contours."""
    read: dict[Path, bool] = {}
    names: Counter[str] = Counter()
    others: set[str] = set()
    for path in (paths[0] for paths in paths_by_uid.values()):
        header = read_header(path, pixels=True)
        titles = {
            str(r.get("ROINumber")): str(r.get("ROIName") or "")
            for r in items_of(header, "StructureSetROISequence")
        }
        closed = []
        for region in items_of(header, "ROIContourSequence"):
            title = titles.get(str(region.get("ReferencedROINumber")), "")
            contours = items_of(region, "ContourSequence")
            if any(c.get("ContourGeometricType") == "CLOSED_PLANAR" for c in contours):
                closed.append(title)
            else:
                others.add(title)
        names.update(closed)
        read[path] = bool(closed)
    layout.classes = [" ".join(n.lower().split()) or "region" for n in sorted(names)]
    layout.classes = list(dict.fromkeys(layout.classes))
    layout.encoding = {
        "kind": "rtstruct",
        "regions": {n: " ".join(n.lower().split()) or "region" for n in sorted(names)},
    }
    return read


_SOURCES = {"SEG": _segments, "RTSTRUCT": _regions}


def code_of(code: Code) -> dict[str, str]:
    """Return a code as a card holds it."""
    return {"value": code.value, "meaning": code.meaning} | (
        {} if code.scheme == "SCT" else {"scheme": code.scheme}
    )
