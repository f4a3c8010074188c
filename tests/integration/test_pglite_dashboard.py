"""The tenant's dashboard on a real TimescaleDB where there is no server with one: see `pglite_fixtures`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pglite_fixtures import pglite_directory, schema_server_module
from test_tenant_dashboard import (
    database,
    test_curve_is_as_fine_as_the_time_shown_asks_for,
    test_panel,
    test_variables,
)

if TYPE_CHECKING:
    from schema_servers import Database

# Not as a plugin: these fixtures have the names of `schema_fixtures`, and a plugin's would serve all modules.
__all__ = [
    "database",
    "pglite_directory",
    "schema_server_module",
    "test_curve_is_as_fine_as_the_time_shown_asks_for",
    "test_panel",
    "test_variables",
]


@pytest.fixture
def tenant(database: Database) -> str:
    """A login with acme's name in its URL: PGlite has no logins that could have it by default."""
    return f"{database.create_member('traksense_readonly')}?options=-c%20app.tenant_id%3Dacme"
