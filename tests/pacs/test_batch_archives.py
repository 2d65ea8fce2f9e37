"""``clearmargin batch`` with worker processes, from an archive into one by DICOMweb and by DIMSE; no secret is kept."""

import numpy as np
import pytest
from command import command
from pacs import INSTALL, find_orthanc, running_orthanc
from toy import train_toy

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series
from clearmargin.jobs.ledger import Ledger
from clearmargin.predicting.prepared import default_ledger

SECRET = "s3cret-canary"


def test_from_an_archive_into_one_by_two_ways(tmp_path, monkeypatch):
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    (tmp_path / "toy").mkdir()
    _, _, model = train_toy(tmp_path / "toy")
    monkeypatch.setenv("CLEARMARGIN_PACS_TOKEN", SECRET)
    grid = Grid.from_spacing((3, 48, 48), (5.0, 0.8, 0.7))
    for number in (1, 2):
        pixels = np.full((1, 3, 48, 48), 100, np.int16)
        pixels[0, :, 10:30, 10:30] = 300
        image = Image(pixels=pixels, grid=grid, source=Source(modality="CT"))
        write_ct_series(tmp_path / "studies" / str(number), image, number, 1)
    out = tmp_path / "out"
    with running_orthanc(tmp_path / "orthanc", *found, titles=["OURS"]) as orthanc:
        orthanc.stow(sorted((tmp_path / "studies").glob("*/*")))
        url, dimse = (
            f"{orthanc.address}/dicom-web",
            f"dimse://ORTHANC@127.0.0.1:{orthanc.dicom_port}?calling=OURS",
        )
        arguments = [
            "--verbose",
            "batch",
            url,
            "--model",
            model,
            "--out",
            out,
            "--processes",
            "2",
            "--free",
            "0",
        ]
        arguments += ["--force", "--score-threshold", "0", "--to", url, "--to", dimse]
        code, said = command(*arguments)
        assert code == 0, said
        code, again = command(*arguments)
        assert code == 0 and "0 new, 2 known" in again
        ledger = Ledger(default_ledger(out))
        sent, counts = ledger.sent(), ledger.counts()
        kept = {uid for uid in orthanc.files() if uid in {s[1] for s in sent}}
        ledger.close()
        assert counts["done"] == 2 and {to for *_, to in sent} == {url, dimse.partition("?")[0]}
        assert len(sent) == 2 * len(kept) > 0
        kinds = [row["00080060"]["Value"][0] for row in orthanc.get_json("/dicom-web/series?limit=99")]
        assert sorted(kinds) == ["CT", "CT", "SEG", "SEG", "SR", "SR"]
    assert SECRET not in said + again
    assert not any(uid in said + again for _, uid, _ in sent)
    written = [p for p in tmp_path.rglob("*") if p.is_file() and "orthanc" not in p.parts]
    assert not [p for p in written if SECRET.encode() in p.read_bytes()]
