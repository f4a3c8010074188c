"""Databases for the tests of the schema: every supported PostgreSQL here, and TimescaleDB where one is given.

| environment variable | effect |
|---|---|
| `TRAKSENSE_TEST_TIMESCALE_DSN` | superuser's DSN of a server with TimescaleDB; databases are made in it |
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

import psycopg
import pytest
from psycopg import sql
from schema_servers import TIMESCALEDB, Database, Server, give_to_plain_owner, with_parts

from traksense.tools.stack import embedded_bindir, major_of, postgres_version, system_bindirs

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from traksense.tools.stack import PostgresProcess

TIMESCALE_DSN = "TRAKSENSE_TEST_TIMESCALE_DSN"


def _bindirs() -> dict[str, Path]:
    found: dict[str, Path] = {}
    named = os.environ.get("TRAKSENSE_TEST_POSTGRES_BINDIR")
    for bindir in (embedded_bindir(), *system_bindirs()) if named is None else ():
        if bindir is not None and major_of(postgres_version(bindir)) >= 15:
            found.setdefault(f"pg{major_of(postgres_version(bindir))}", bindir)
    return found


_BINDIRS = _bindirs()


@pytest.fixture(scope="session", params=[*_BINDIRS, TIMESCALEDB])
def schema_server(request: pytest.FixtureRequest, postgres_servers: Callable[[Path], PostgresProcess]) -> Server:
    """Each server in turn."""
    if request.param != TIMESCALEDB:
        bindir = _BINDIRS[request.param]
        return Server(postgres_servers(bindir).dsn, request.param, bindir)
    dsn = os.environ.get(TIMESCALE_DSN)
    if not dsn:
        pytest.skip(f"no TimescaleDB: {TIMESCALE_DSN} is not set")
    return Server(dsn, TIMESCALEDB, None)


@pytest.fixture
def bare(schema_server: Server) -> Iterator[Database]:
    """A fresh database without a schema; its superuser migrates."""
    yield from _database(schema_server)


@pytest.fixture
def other_bare(schema_server: Server) -> Iterator[Database]:
    """Another one, to compare with."""
    yield from _database(schema_server)


@pytest.fixture(scope="module")
def schema_server_module(schema_server: Server) -> Iterator[Database]:
    """A migrated database for all tests of a module, which leave it as they find it."""
    for database in _database(schema_server):
        database.migrate()
        yield database


@pytest.fixture(scope="session")
def template(schema_server: Server) -> Iterator[str | None]:
    """The name of a migrated database to copy, which is quicker than to migrate each; on TimescaleDB none, since its
    background workers do not leave one alone.
    """
    for database in _database(schema_server):
        if schema_server.timescaledb:
            yield None
        else:
            database.migrate()
            yield database.value("SELECT current_database()")


@pytest.fixture
def migrated(schema_server: Server, template: str | None) -> Iterator[Database]:
    """A fresh, migrated database that a superuser owns."""
    yield from _database(schema_server, template, migrated=True)


@pytest.fixture(params=["superuser", "plain"])
def owned(request: pytest.FixtureRequest, schema_server: Server, template: str | None) -> Iterator[Database]:
    """A fresh, migrated database, once owned by a superuser and once by a role without attributes."""
    if request.param == "superuser":
        yield from _database(schema_server, template, migrated=True)
        return
    for database in _database(schema_server):
        owned = give_to_plain_owner(database)
        owned.migrate()
        yield owned


def _database(server: Server, template: str | None = None, *, migrated: bool = False) -> Iterator[Database]:
    name = f"schema_{secrets.token_hex(6)}"
    dsn = with_parts(server.dsn, database=name)
    database = Database(dsn, dsn, server)
    with psycopg.connect(server.dsn, autocommit=True) as admin:
        create = sql.SQL("CREATE DATABASE {} TEMPLATE {}")
        admin.execute(create.format(sql.Identifier(name), sql.Identifier(template or "template0")))
        try:
            if server.timescaledb:
                database.run("CREATE EXTENSION IF NOT EXISTS timescaledb")
            if migrated and template is None:
                database.migrate()
            yield database
        finally:
            admin.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))
            for role in reversed(database.roles):
                admin.execute(sql.SQL("DROP ROLE {}").format(sql.Identifier(role)))
