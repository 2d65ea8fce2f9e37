"""Identifiers planted in every text attribute and every file name come out of no verb, in no log, table or store."""

import shutil

import pydicom
import pytest
import yaml
from command import command
from pydicom.datadict import dictionary_VM, dictionary_VR, tag_for_keyword

from clearmargin.datasets.phantom import make_phantom
from clearmargin.datasets.phantom_study import write_phantom_study
from clearmargin.deidentification.profile import basic_profile

MARK = "CNRY"
BIRTH_DATE = "19330303"
TEXTS = ("AE", "LO", "LT", "PN", "SH", "ST", "UC", "UT")


def plant(path, target):
    """Write a copy of a DICOM file with canaries in every text attribute of the confidentiality profile."""
    dataset = pydicom.dcmread(path)
    for tag, (_, _, keyword) in basic_profile().items():
        if not tag_for_keyword(keyword) or tag >> 16 <= 2 or dictionary_VR(tag) not in TEXTS:
            continue
        several = "n" in dictionary_VM(tag) and dictionary_VR(tag) not in ("ST", "LT", "UT")
        dataset.add_new(tag, dictionary_VR(tag), [MARK, MARK] if several else MARK)
    dataset.PatientName, dataset.PatientID, dataset.PatientBirthDate = (
        f"{MARK}^ANNA",
        f"{MARK}4711",
        BIRTH_DATE,
    )
    dataset.add_new(0x00090010, "LO", f"{MARK}private")
    dataset.save_as(target)
    return {str(dataset.SOPInstanceUID), str(dataset.SeriesInstanceUID), str(dataset.StudyInstanceUID)}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A phantom study of three patients whose files, folders, index and headers name them; returns its UIDs too."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("CLEARMARGIN_HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()
    uids, rows = set(), ["id,split"]
    for number, split in enumerate(("train", "validation", "test"), start=1):
        phantom = make_phantom(number, shape=(6, 64, 64), spacing=(12.0, 4.5, 4.5))
        write_phantom_study(tmp_path / "plain", phantom, number)
        folder = tmp_path / "data" / f"{MARK}-{number}"
        (folder / "ct").mkdir(parents=True)
        plain = tmp_path / "plain" / f"phantom-{number:03d}"
        for k, file in enumerate(sorted((plain / "ct").iterdir())):
            uids |= plant(file, folder / "ct" / f"{MARK}_{k}.dcm")
        uids |= plant(plain / "truth.dcm", folder / "truth.dcm")
        rows.append(f"{MARK}-{number},{split}")
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
            "unit": "{id}",
        },
        "encoding": {"kind": "dicom_seg"}, "spacing": {"source": "file"}, "unit": "patient",
        "splits": {"column": "split", "values": {s: s for s in ("train", "validation", "test")}},
        "show_in_tracking": True,
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
            ("predict", "in", "out", "--model", "runs/canaries/model", "--uncertainty", "tta"),
        ):
            code, text = command("-v", *arguments)
            assert code == 0, text
            if arguments[0] == "inspect":  # shows descriptions to who asks, and nothing else of the kind
                shown = [line for line in text.splitlines() if MARK in line]
                assert shown and all(line.startswith("  description: ") for line in shown)
                text = "\n".join(line for line in text.splitlines() if line not in shown)
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
        code, text = command(
            "-v", "evaluate", "runs/canaries/model", "--card", "data/card.yaml", "--split", "validation"
        )
        assert code == 4, text
        said.append(text)
    inputs = (folder / "data", folder / "home", folder / "in", folder / "predicted", folder / "reference")
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
