"""What all tests share: the real data, where they are, and a private home that is not the user's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets; tests that need it are skipped where it is absent."""
    default = Path(__file__).parents[2] / "shared" / "data"
    root = Path(os.environ.get("CLEARMARGIN_DATA", default))
    if not root.is_dir():
        pytest.skip("no real data here: set CLEARMARGIN_DATA to the folder that holds them")
    return root


@pytest.fixture(autouse=True, scope="session")
def _private_home(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Keep case ids and the crosswalk of tests out of the user's home."""
    os.environ["CLEARMARGIN_HOME"] = str(tmp_path_factory.mktemp("home"))
