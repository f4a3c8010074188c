"""What commands say of a database that they cannot use: the same line in each of them, and never a traceback."""

from __future__ import annotations

import http.server
import os
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
import trio

from tests.command_line import Outcome, run_command
from tests.patience import HANG_SECONDS
from traksense.config import DatabaseUrl, Secret, load
from traksense.errors import StoreUnavailableError
from traksense.ingest.health import Health
from traksense.store import connecting, connection
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.connection import open_connection
from traksense.store.fault_words import NO_TLS, NOT_POSTGRESQL
from traksense.store.postgres import open_store
from traksense.store.sql_files import LATEST
from traksense.tools.stack import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.tools.stack import BrokerProcess

COMMANDS = (
    ("maintain",),
    ("lifecycle", "plan"),
    ("lifecycle", "apply"),
    ("lifecycle", "status"),
    ("dlq", "list"),
    ("dlq", "purge", "--all", "--yes"),
    ("shards", "retire", "anybody"),
)


async def said(dsn: str) -> dict[tuple[str, ...], Outcome]:
    """What each command says."""
    outcomes: dict[tuple[str, ...], Outcome] = {}
    with trio.fail_after(HANG_SECONDS):
        for command in COMMANDS:
            outcomes[command] = await run_command({"DATABASE_URL": dsn}, *command)
    return outcomes


@pytest.mark.parametrize("older", [True, False])
async def test_commands_say_that_the_schema_is_missing_or_old(database: str, empty_database: str, older: bool) -> None:
    """As the service says it; `uninstall` takes an old one away, and finds none where there is none."""
    dsn, version = (database, LATEST - 1) if older else (empty_database, 0)
    if older:
        with psycopg.connect(dsn) as session:
            session.execute("DELETE FROM traksense.schema_version WHERE version = %s", (LATEST,))
    line = f"the database schema is at version {version}, this release needs {LATEST}: run `traksense migrate`"

    for command, outcome in (await said(dsn)).items():
        assert (1, "", f"traksense: {DatabaseUrl(Secret(dsn))}: {line}\n") == (
            outcome.status,
            outcome.text,
            outcome.stderr,
        ), command
    nobody = {"MQTT_URL": f"mqtt://127.0.0.1:{free_port()}", "METRICS_PORT": str(free_port())}
    validated = await run_command({"DATABASE_URL": dsn} | nobody, "validate")
    assert (1, 1) == (validated.status, " ".join(validated.text.split()).count(line))
    assert "next step: if this is the database that the service writes to, run `traksense migrate`" in validated.text
    removed = await run_command({"DATABASE_URL": dsn}, "uninstall", "--yes")
    assert (0, "") == (removed.status, removed.stderr)


async def test_commands_say_nothing_of_a_newer_schema_and_the_service_logs_it(
    database: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Their work is as good as the service's, which goes on."""
    with psycopg.connect(database) as session:
        session.execute(
            "INSERT INTO traksense.schema_version (version, name) VALUES (%s, 'of_the_future')", (LATEST + 1,)
        )
    for command in (("maintain",), ("lifecycle", "plan"), ("dlq", "list", "--json")):
        outcome = await run_command({"DATABASE_URL": database}, *command)
        assert (0, "") == (outcome.status, outcome.stderr), command
    with trio.fail_after(HANG_SECONDS):
        async with (
            open_asyncio_loop(),
            open_store(
                load({"DATABASE_URL": database, "DB_ALLOW_UNSAFE": "true"}), Health(["database"], ["maintenance"])
            ) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.run)
            await store.probe()
            nursery.cancel_scope.cancel()
    assert ["schema_newer"] == [r.getMessage() for r in caplog.records if r.name == "traksense.store.pool"]


@pytest.mark.parametrize("table", ["schema_version", "measure", "ingest_session", "dirty"])
async def test_commands_find_what_was_dropped_by_hand(database: str, table: str) -> None:
    """They name the database, and a remedy that is not the command itself; all of it can still be taken away."""
    with psycopg.connect(database) as session:
        session.execute(f"DROP TABLE traksense.{table} CASCADE")
    # All of them need the version, and send us to migrate.
    outcomes = await said(database) if table == "schema_version" else {}
    maintained = await run_command({"DATABASE_URL": database}, "maintain")
    migrating = outcomes["migrate",] = await run_command({"DATABASE_URL": database}, "migrate")

    for command, outcome in outcomes.items():
        assert (1, "", 1) == (outcome.status, outcome.text, outcome.stderr.count("\n")), command
        assert outcome.stderr.startswith(f"traksense: {DatabaseUrl(Secret(database))}: "), command
    assert "undo that, or restore a backup: " in migrating.stderr
    assert "traksense migrate" not in migrating.stderr
    if table == "dirty":
        assert f"\nfailed: aggregate: {DatabaseUrl(Secret(database))}: the schema is not as " in maintained.text
    removed = await run_command({"DATABASE_URL": database}, "uninstall", "--yes")
    assert (0, "") == (removed.status, removed.stderr)


async def test_commands_say_that_a_role_may_not_connect(database: str) -> None:
    """It is no privilege that migrating would give."""
    role, name = f"outside_{os.getpid()}", urlsplit(database).path[1:]
    dsn = urlunsplit((parts := urlsplit(database))._replace(netloc=f"{role}:p@{parts.netloc.rpartition('@')[2]}"))
    with psycopg.connect(database, autocommit=True) as session:
        session.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'p'")
        session.execute(f'REVOKE CONNECT ON DATABASE "{name}" FROM PUBLIC')
        try:
            outcomes = await said(dsn)
            for command in ("migrate", "uninstall"):
                outcomes[command,] = await run_command({"DATABASE_URL": dsn}, command)
        finally:
            session.execute(f'GRANT CONNECT ON DATABASE "{name}" TO PUBLIC')
            session.execute(f"DROP ROLE {role}")

    lines = {outcome.stderr for outcome in outcomes.values()}
    assert {(1, "")} == {(outcome.status, outcome.text) for outcome in outcomes.values()}
    assert 1 == len(lines), lines
    assert lines.pop().startswith(
        f"traksense: {DatabaseUrl(Secret(dsn))}: this role may not use the database: GRANT CONNECT ON DATABASE "
    )


@contextmanager
def listening(kind: str) -> Iterator[int]:
    """Something that is no PostgreSQL; its port."""
    if kind == "http":
        with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield server.server_port
            server.shutdown()
            thread.join()
    else:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            yield int(silent.getsockname()[1])


async def refused(dsn: str) -> str:
    """What connecting ends with."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(StoreUnavailableError) as caught:
        async with open_connection(DatabaseUrl(Secret(dsn)), application="test"):
            pass
    return str(caught.value)


@pytest.mark.parametrize("mode", ["disable", "prefer", "require"])
@pytest.mark.parametrize("kind", ["http", "mosquitto", "silent"])
async def test_what_is_no_postgresql_is_called_so(
    broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch, kind: str, mode: str
) -> None:
    """Whatever it answers, and whether TLS is asked for or not."""
    monkeypatch.setattr(connection, "CONNECT_SECONDS", 0.5)
    monkeypatch.setattr(connecting, "ANSWER_SECONDS", 0.5)
    with listening(kind) as opened:
        port = broker.port if kind == "mosquitto" else opened
        where = f"postgresql://u:***@127.0.0.1:{port}/x"
        line = await refused(f"postgresql://u:p@127.0.0.1:{port}/x?sslmode={mode}")

    assert f"{where}: {NOT_POSTGRESQL}" == line


async def test_postgresql_without_tls_is_called_so(database: str) -> None:
    """The driver has the same word for it as for a server that speaks something else."""
    assert f"{DatabaseUrl(Secret(database))}: {NO_TLS}" == await refused(f"{database}?sslmode=require")


async def test_the_service_calls_it_so_too(broker: BrokerProcess) -> None:
    """In its health; it waits, as for any server that is away."""
    dsn = f"postgresql://u:p@127.0.0.1:{broker.port}/x"
    health = Health(["database"], ["maintenance"])
    with trio.fail_after(HANG_SECONDS):
        async with (
            open_asyncio_loop(),
            open_store(load({"DATABASE_URL": dsn}), health) as store,
            trio.open_nursery() as nursery,
        ):
            nursery.start_soon(store.run)
            while NOT_POSTGRESQL != health.report()["database"]["reason"]:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
