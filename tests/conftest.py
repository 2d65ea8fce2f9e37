"""Fixtures that every test can use."""

import os
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def private_home(tmp_path_factory):
    """Keep keys and crosswalks of the tests away from the user's own."""
    home = tmp_path_factory.mktemp("home")
    before = os.environ.get("CLEARMARGIN_HOME")
    os.environ["CLEARMARGIN_HOME"] = str(home)
    yield home
    if before is None:
        del os.environ["CLEARMARGIN_HOME"]
    else:
        os.environ["CLEARMARGIN_HOME"] = before


@pytest.fixture
def data_root(monkeypatch):
    """The folder of real data sets; a test that needs it is skipped where it is not there."""
    folder = Path(os.environ.get("CLEARMARGIN_DATA", REPOSITORY.parent / "shared" / "data")).resolve()
    if not folder.is_dir():
        pytest.skip("no real data: set CLEARMARGIN_DATA to the folder of data sets (docs/data-cards.md)")
    monkeypatch.setenv("CLEARMARGIN_DATA", str(folder))
    return folder
