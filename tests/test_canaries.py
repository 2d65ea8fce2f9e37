"""Identifiers planted in every text attribute and every file name come out of no verb, in no log, table or store."""

import re
import shutil
from pathlib import Path

import pydicom
import pytest
import yaml
from command import command
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.deidentification.basic_profile import basic_profile
from clearmargin.deidentification.key import write_new_key

MARK = "CNRY"
PLANTED = set()
BIRTH_DATE = "19330303"
TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")


def plant(path, target):
    """Write a copy of a DICOM file with a canary of its own in every text attribute of the confidentiality profile."""
    dataset = pydicom.dcmread(path)
    nested = pydicom.Dataset()
    for number, (tag, (_, _, keyword)) in enumerate(basic_profile().items()):
        if not tag_for_keyword(keyword) or tag >> 16 <= 2 or dictionary_VR(tag) not in TEXTS:
            continue
        several = "n" in dictionary_VM(tag) and dictionary_VR(tag) not in ("ST", "LT", "UT")
        mark = f"{MARK}{number:04d}"
        PLANTED.add(mark)
        dataset.add_new(tag, dictionary_VR(tag), [mark, mark] if several else mark)
        if tag >> 16 != 0x0010:
            nested.add_new(tag, dictionary_VR(tag), f"{MARK}nested{number:04d}"[:16])
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = (
        f"{MARK}^ANNA",
        f"{MARK}4711",
        BIRTH_DATE,
    )
    dataset.RequestAttributesSequence = [nested]
    dataset.add_new(0x00090010, "LO", f"{MARK}private")
    dataset.add_new(0x00091001, "UN", f"{MARK}private".encode() + b" ")
    dataset.save_as(target)
    with target.open("ab") as stream:  # what follows the pixels
        stream.write(bytes.fromhex("fcff fcff") + b"OB\0\0" + len(MARK).to_bytes(4, "little") + MARK.encode())
    return {str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.StudyInstanceUID)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A phantom study of three patients whose files, folders, index and headers name them; returns its UIDs too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    uids, rows = set(), ["id,split,name,patient"]
    for number, split in enumerate(("train", "validation", "test"), start=1):
        phantom = make_phantom(number, shape=(6, 64, 64), spacing=(12.0, 4.5, 4.5))
        write_phantom_study(tmp_path / "plain", phantom, number)
        folder = tmp_path / "data" / f"{MARK}-{number}"
        (folder / "ct").mkdir(parents=True)
        plain = tmp_path / "plain" / f"phantom-{number:03d}"
        for k, file in enumerate(sorted((plain / "ct").iterdir())):
            uids |= plant(file, folder / "ct" / f"{MARK}_{k}.dcm")
        uids |= plant(plain / "truth.dcm", folder / "truth.dcm")
        rows.append(f"{MARK}-{number},{split},{MARK}^COLUMN{number},{MARK}PID{number}")
    shutil.rmtree(tmp_path / "plain")
    (tmp_path / "data" / "index.csv").write_text("\n".join(rows))
    return tmp_path, uids


def write_configuration(folder):
    card = {
        "schema": 1, "name": "canaries", "version": "1", "title": "Canaries", "origin": "computed",
        "licence": "none", "citation": "none", "modality": "CT",
        "classes": [
            {
                "id": k, "name": name, "kind": "thing",
                "type": {"value": value, "meaning": name},
                "category": {"value": "123037004", "meaning": "Anatomical Structure"},
            }
            for k, (name, value) in enumerate(
                [("organ", "10200004"), ("tumour", "108369006"), ("vessel", "59820001")], start=1
            )
        ],
        "root": ".",
        "cases": {
            "index": "index.csv", "id": "{id}", "image": "{id}/ct", "reference": "{id}/truth.dcm",
            "group": "{id}",
        },
        "encoding": {"kind": "dicom_seg"}, "spacing": {"source": "file"}, "group": "patient",
        "splits": {"column": "split", "values": {s: s for s in ("train", "validation", "test")}},
        "faults": [f"{MARK}-2 is mirrored"], "show_in_tracking": True,
    }  # fmt: skip
    (folder / "data" / "card.yaml").write_text(yaml.safe_dump(card))
    experiment = {
        "name": "canaries", "card": "data/card.yaml",
        "model": {
            "network": "mask_rcnn", "fpn_channels": 32, "box_features": 64, "mask_channels": 32,
            "rpn_proposals": 20, "box_samples": 16, "score_threshold": 0.0, "detections": 5,
        },
        "image": {"intensity": {"kind": "window", "low": -150, "high": 250}, "crop": [64, 64]},
        "training": {
            "epochs": 1, "steps_per_epoch": 2, "batch_size": 1, "warmup_steps": 1, "workers": 0, "threads": 1,
        },
        "prediction": {"score_threshold": 0.0},
    }  # fmt: skip
    (folder / "config.yaml").write_text(yaml.safe_dump(experiment))


def _without_faults(text):
    return "\n".join(line for line in text.splitlines() if "is mirrored" not in line)


def _documented():
    """The attributes that docs/privacy.md says our DICOM output copies."""
    page = (Path(__file__).parents[1] / "docs" / "privacy.md").read_text()
    table = page.split("## What DICOM output copies")[1].split("\n## ")[0]
    return {
        name for line in table.splitlines() for name in re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \|", line)
    }


def _check_what_is_copied(folder, uids):
    """Hold every DICOM file of a prediction against the page: nothing else of the source is in it."""
    documented = {name for names in _documented() for name in names.split(", ")}
    copied = set()
    for file in (folder / "out").rglob("*.dcm"):
        for element in pydicom.dcmread(file).iterall():
            values = (
                element.value
                if isinstance(element.value, list | pydicom.multival.MultiValue)
                else [element.value]
            )
            for value in map(str, values):
                if MARK in value or value == BIRTH_DATE or value in uids:
                    copied.add(element.keyword)
    assert copied <= documented, copied - documented
    assert {"PatientName", "PatientID", "PatientBirthDate", "StudyInstanceUID", "AccessionNumber"} <= copied


def test_no_verb_gives_a_patient_away(place, monkeypatch, caplog):
    folder, uids = place
    monkeypatch.chdir(folder)
    write_configuration(folder)
    (folder / "in").symlink_to(
        folder / "data" / f"{MARK}-3" / "ct"
    )  # the path that the user types names nobody
    (folder / "predicted").mkdir()
    (folder / "reference").mkdir()
    said = []
    with caplog.at_level("DEBUG"):
        for arguments in (
            ("inspect", "in"),
            ("data", "show", "data/card.yaml", "--out", "sheet.png"),
            ("train", "config.yaml"),
            ("evaluate", "runs/canaries/model", "--card", "data/card.yaml", "--out", "tables"),
            (
                "predict",
                "in",
                "out",
                "--model",
                "runs/canaries/model",
                "--uncertainty",
                "tta",
                "--write",
                "default,viewer",
            ),
            ("report", "canaries", "--out", "page/report.html"),
            ("replay", "evaluate-canaries-canaries-test", "--card", "data/card.yaml"),
            (
                "compare",
                "tables",
                "canaries",
                "--name",
                "a",
                "--name",
                "b",
                "--out",
                "compared",
                "--card",
                "data/card.yaml",
            ),
        ):
            code, text = command("-v", *arguments)
            assert code == 0, text
            if arguments[0] == "inspect":  # shows descriptions to who asks, and nothing else of the kind
                shown = [line for line in text.splitlines() if MARK in line]
                assert shown and all(line.startswith("  description: ") for line in shown)
                text = "\n".join(line for line in text.splitlines() if line not in shown)
            if arguments[0] == "data":  # shows the card to who asks
                text = _without_faults(text)
            said.append(text)
        (seg,) = (folder / "out").rglob("seg.dcm")
        shutil.copy(seg, folder / "predicted" / f"{MARK}-3.dcm")
        shutil.copy(folder / "data" / f"{MARK}-3" / "truth.dcm", folder / "reference" / f"{MARK}-3.dcm")
        code, text = command("-v", "measure", "predicted", "reference", "--out", "measured", "--track")
        assert code == 0, text
        said.append(text)
        # errors, too: a slice goes missing, and a file is cut off
        files = sorted((folder / "data" / f"{MARK}-2" / "ct").iterdir())
        files[2].unlink()
        files[1].write_bytes(files[1].read_bytes()[:900])
        model, card = "runs/canaries/model", "data/card.yaml"
        (folder / "mixed").mkdir()
        for k in range(2):
            shutil.copy(
                folder / "data" / f"{MARK}-3" / "ct" / f"{MARK}_{k}.dcm", folder / "mixed" / f"{MARK}{k}.dcm"
            )
        (folder / "pictures").mkdir()
        for name, content in ((f"{MARK}a.png", b"no picture"), (f"{MARK}b.nii", b"no volume")):
            (folder / "pictures" / name).write_bytes(content)
        (folder / "broken.yaml").write_text(
            (folder / "config.yaml").read_text().replace("data/card.yaml", f"{MARK}/no.yaml")
        )
        write_new_key(folder / "study.key")
        for wanted, *arguments in (
            (4, "evaluate", model, "--card", card, "--split", "validation"),
            (None, "train", "--resume", "runs/canaries"),
            (None, "plan", card, "--out", "planned.yaml"),
            (None, "calibrate", model, "--card", card, "--split", "train"),
            (None, "export", model, "--format", "onnx", "--card", card, "--split", "validation"),
            (None, "crossvalidate", "config.yaml", "--folds", "7"),
            (None, "select", model, "--card", card),
            (None, "predict", "pictures", "out2", "--model", model),
            (None, "predict", "mixed", "out3", "--model", model, "--allow-gaps"),
            (None, "measure", "predicted", "pictures", "--out", "measured2"),
            (None, "data", "new", "pictures", "--out", "drafted.yaml"),
            (None, "data", "show", "data/card.yaml", "--out", "sheet2.png"),
            (None, "inspect", "pictures"),
            (3, "deidentify", "data", "clean", "--key", "study.key"),
        ):
            code, text = command("-v", *arguments)
            assert code != 1 and wanted in (None, code), (arguments, code, text[-3000:])
            if arguments[0] != "inspect":
                said.append(_without_faults(text) if arguments[:2] == ["data", "show"] else text)
    for file in (folder / "clean").rglob("*.dcm"):  # de-identified: not a canary in a byte of it
        assert MARK.encode() not in file.read_bytes() and BIRTH_DATE.encode() not in file.read_bytes()
    assert len(PLANTED) > 150
    _check_what_is_copied(folder, uids)
    inputs = tuple(
        folder / name
        for name in (
            "data",
            "home",
            "in",
            "predicted",
            "reference",
            "mixed",
            "pictures",
            "broken.yaml",
            "drafted.csv",
        )
    )
    written = [
        p for p in folder.rglob("*")
        if p.is_file() and p.suffix != ".dcm" and not any(p.is_relative_to(i) for i in inputs)
    ]  # fmt: skip
    names = [
        str(p.relative_to(folder)) for p in folder.rglob("*") if not any(p.is_relative_to(i) for i in inputs)
    ]
    assert any(p.name == "mlflow.db" for p in written) and len(written) > 20
    everything = [caplog.text.encode(), *(s.encode() for s in said), *(n.encode() for n in names)]
    everything += [p.read_bytes() for p in written]
    for secret in (MARK, BIRTH_DATE, str(folder / "data"), *uids):
        assert [e[:200] for e in everything if secret.encode() in e] == []
    assert MARK in (folder / "home" / "crosswalk.jsonl").read_text()
    assert MARK in str(pydicom.dcmread(seg).PatientName)
