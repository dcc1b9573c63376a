from collections.abc import Iterator
from pathlib import Path

import pytest

from ...support.databases import Database, Server, database_on, server


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[Server]:
    with server() as found:
        yield found


@pytest.fixture
def postgresql(postgresql_server: Server) -> Iterator[Database]:
    with database_on(postgresql_server) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'votes' / 'votes.sqlite'}"
    database: Database = request.getfixturevalue("postgresql")
    return database.url
