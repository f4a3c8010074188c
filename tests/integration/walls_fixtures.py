"""The database of `walls_data`, and sessions that may read it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import psycopg
import pytest
from walls_data import OWN, READERS, fill

if TYPE_CHECKING:
    from collections.abc import Iterator

    from schema_servers import Database


@pytest.fixture(scope="module")
def walled(schema_server_module: Database) -> Database:
    """The filled database, one for the module: nothing in these tests may change it."""
    fill(schema_server_module)
    return schema_server_module


@pytest.fixture(scope="module", params=READERS)
def reader(request: pytest.FixtureRequest, walled: Database) -> str:
    """The DSN of a login that is a member of one of the reading roles."""
    return walled.create_member(request.param)


@pytest.fixture
def session(reader: str) -> Iterator[psycopg.Connection[tuple[object, ...]]]:
    """A session of that login that has named the own tenant."""
    with psycopg.connect(reader, autocommit=True) as connection:
        connection.execute("SELECT set_config('app.tenant_id', %s, false)", (OWN,))
        yield connection
