"""A Postgres that the tests of this folder share."""

import pytest
from postgres import INSTALL, find_postgres, running_postgres


@pytest.fixture(scope="session")
def postgres():
    programs = find_postgres()
    if programs is None:
        pytest.skip(f"no Postgres: {INSTALL}")
    with running_postgres(programs) as url:
        yield url
