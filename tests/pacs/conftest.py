"""One Orthanc per file of tests, and a small series to send."""

import numpy as np
import pytest
from pacs import INSTALL, find_orthanc, running_orthanc

from clearmargin.core import Grid, Image, Source
from clearmargin.datasets.phantom_study import write_ct_series


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    with running_orthanc(
        tmp_path_factory.mktemp("orthanc"), *found, titles=["CLEARMARGIN", "OURS"]
    ) as running:
        yield running


@pytest.fixture
def stable(tmp_path_factory):
    """A server of its own whose series are stable after a second, with nothing in it."""
    found = find_orthanc()
    if found is None:
        pytest.skip(f"no Orthanc with its DICOMweb plug-in here: {INSTALL}")
    with running_orthanc(tmp_path_factory.mktemp("stable"), *found) as running:
        yield running


@pytest.fixture
def orthanc(server):
    """The server, with nothing in it."""
    server.empty()
    return server


@pytest.fixture
def files(tmp_path):
    """Two slices."""
    image = Image(
        pixels=np.zeros((1, 2, 16, 16), np.int16),
        grid=Grid.from_spacing((2, 16, 16), (5.0, 1.0, 1.0)),
        source=Source(modality="CT"),
    )
    write_ct_series(tmp_path / "ct", image, 1, 1)
    return sorted((tmp_path / "ct").iterdir())
