"""Servers as operators run them: with a standby, several hosts, defaults of their own, read-only for a while."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest
import trio
from trio_asyncio import aio_as_trio

from tests.command_line import run_command
from tests.contract.test_store import open_postgres_store
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.errors import ConfigError, ServerUnfitError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from traksense.ingest.health import Health
from traksense.model import CommandAck, Delivery, Event, Item, Kind, Message, Point, Reason, Rejection, Route, Telemetry
from traksense.store import pool, postgres, session_settings, upkeep
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.migrate import migrate
from traksense.store.postgres import PostgresStore, open_store
from traksense.store.session_settings import wanted
from traksense.tools.proxy import Proxy
from traksense.tools.stack.pooler import PoolerProcess, find_pgbouncer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

    from tests.conftest import OwnPostgres
    from traksense.tools.stack import PostgresProcess

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def delivery(
    *items: Item, kind: Kind = Kind.TELEM, device: str = "dev1", rejection: Rejection | None = None
) -> Delivery:
    route = Route("acme", "site", device, kind)
    message = Message(f"traksense/{route.path}/{kind}", b"{}", 1, 1, 1, False, NOON, route)
    return Delivery(message, list(items), sum(isinstance(item, Telemetry) for item in items), rejection)


def point(second: int, *, device: str = "dev1") -> Delivery:
    return delivery(Telemetry(NOON + timedelta(seconds=second), [Point("p", float(second))]), device=device)


@asynccontextmanager
async def store_with(health: Health, **environ: str) -> AsyncIterator[PostgresStore]:
    async with open_asyncio_loop(), open_store(load(environ), health) as store, trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        yield store
        nursery.cancel_scope.cancel()


def run(dsn: str, *statements: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        for statement in statements:
            connection.execute(statement.encode())


@pytest.fixture
def own_database(own_postgres: OwnPostgres) -> str:
    """The DSN of a server of this test alone, whose database has the schema."""
    server = own_postgres()
    asyncio.run(migrate(server.dsn, log=logging.getLogger(__name__)))
    return server.dsn


@pytest.fixture
def read_only_postgres(own_postgres: OwnPostgres) -> PostgresProcess:
    return own_postgres(settings={"default_transaction_read_only": "on"})


@pytest.fixture
def unsafe_postgres(own_postgres: OwnPostgres) -> PostgresProcess:
    return own_postgres(settings={"fsync": "off", "full_page_writes": "off"})


BATCHES = {
    "measurements": [point(1)],
    "events": [delivery(Event("door", NOON, "1"), kind=Kind.EVENT)],
    "acks": [delivery(CommandAck("1", True, b"{}", NOON), kind=Kind.ACK)],
    "dead letters": [delivery(rejection=Rejection(Reason.PARSE_ERROR, "bad"))],
}


@pytest.mark.parametrize("what", BATCHES)
@pytest.mark.parametrize("how", ["our time-out", "an operator's cancel"])
async def test_nothing_is_stored_before_the_standby_has_it(own_database: str, what: str, how: str) -> None:
    """The standby is away: a cancelled wait is no success, and neither is a repeat that finds the row committed."""
    dsn, health = own_database, Health(["database"], ["maintenance"])
    timeout = "1" if how == "our time-out" else "60"
    with trio.fail_after(HANG_SECONDS):
        async with store_with(health, DATABASE_URL=dsn, DB_STATEMENT_TIMEOUT=timeout) as store:
            await store.write([point(0)])
            run(dsn, "ALTER SYSTEM SET synchronous_standby_names = '*'", "SELECT pg_reload_conf()")
            # The reload reaches a session when it is idle.
            await _until(dsn, "SELECT current_setting('synchronous_standby_names') = '*'")

            for _ in range(3):
                async with trio.open_nursery() as nursery:
                    if how != "our time-out":
                        nursery.start_soon(_cancel_waiting, dsn)
                    with pytest.raises(StoreUnavailableError):
                        await store.write(BATCHES[what])
                    nursery.cancel_scope.cancel()
            while health.holds("database"):
                await trio.sleep(0.1)
            assert "standby" in str(health.report()["database"]["reason"])

            run(dsn, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
            await store.write(BATCHES[what])
            while not health.holds("database"):
                await trio.sleep(0.1)


async def _until(dsn: str, question: str) -> None:
    with psycopg.connect(dsn, autocommit=True) as connection:
        while not connection.execute(question.encode()).fetchall()[0][0]:
            await trio.sleep(0.02)


async def _cancel_waiting(dsn: str) -> None:
    """As `SELECT pg_cancel_backend(…)` by somebody who wonders what hangs there."""
    while True:
        run(dsn, "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
        await trio.sleep(0.1)


@pytest.mark.parametrize(("name", "value"), sorted(wanted(30.0).items()))
async def test_no_default_of_a_server_weakens_a_session(database: str, name: str, value: str) -> None:
    """Whatever the database was told, what a promise or a plan rests on is as we set it."""
    other = {
        "synchronous_commit": "off",
        "client_min_messages": "error",
        "default_transaction_isolation": "serializable",
        "search_path": "public",
        "TimeZone": "America/Sao_Paulo",
        "plan_cache_mode": "force_generic_plan",
        "max_parallel_workers_per_gather": "8",
        "statement_timeout": "5s",
        "lock_timeout": "1ms",
        "idle_in_transaction_session_timeout": "1h",
    }.get(name, "off" if value == "on" else "on")
    base = urlsplit(database).path.removeprefix("/")
    run(database, f"ALTER DATABASE \"{base}\" SET {name} = '{other}'")
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(database) as store:
            found = await store.call(_show, name)
            await store.write([point(1)])

    with psycopg.connect(database) as connection:
        connection.execute(f"SET {name} = '{value}'".encode())
        assert connection.execute(f"SHOW {name}".encode()).fetchall() == [(found,)]


async def _show(connection: Any, name: str) -> str:
    return str(await connection.fetchval(f"SHOW {name}"))


async def test_of_several_hosts_the_one_that_takes_writes_is_used(
    read_only_postgres: PostgresProcess, database: str
) -> None:
    """Without further words in the URL, whatever their order."""
    other = read_only_postgres
    parts = urlsplit(database)
    login, _, place = parts.netloc.rpartition("@")
    user, _, password = login.partition(":")
    run(
        other.dsn,
        "SET default_transaction_read_only = off",
        f"ALTER ROLE {user} PASSWORD '{password}'",
        f'CREATE DATABASE "{parts.path.removeprefix("/")}"',
    )
    hosts = f"{login}@{other.host}:{other.port},{place}"
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(urlunsplit(parts._replace(netloc=hosts))) as store:
            await store.write([point(1)])
            await store.sessions.connected("client", "broker", NOON)

    with psycopg.connect(database) as connection:
        assert [(1.0,)] == connection.execute("SELECT v_num FROM ts_measure").fetchall()


def let_only_read(database: str) -> None:
    """As an operator does: by the database's settings, which reach new sessions alone."""
    name = urlsplit(database).path.removeprefix("/")
    run(
        database,
        f'ALTER DATABASE "{name}" SET default_transaction_read_only = on',
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()",
    )


def let_write_again(database: str) -> None:
    name = urlsplit(database).path.removeprefix("/")
    run(database, "SET default_transaction_read_only = off", f'ALTER DATABASE "{name}" RESET ALL')


async def test_read_only_for_a_while_ends_by_itself(database: str) -> None:
    """With only a new device's message waiting: each use of a connection can find it, and each can find its end."""
    health = Health(["database"], ["maintenance"])
    with trio.fail_after(HANG_SECONDS):
        async with store_with(health, DATABASE_URL=database) as store:
            await store.write([point(0)])
            let_only_read(database)
            while health.holds("database"):
                with pytest.raises(StoreError):
                    await store.write([point(1, device="new")])
                await trio.sleep(0.05)
            with pytest.raises(StoreError, match="read-only"):
                await store.probe()
            let_write_again(database)
            # Idle: the probe alone finds it.
            while not health.holds("database"):
                await trio.sleep(0.05)
            await store.write([point(1, device="new")])


class OwnPooler(Protocol):
    """Starts a PgBouncer in front of the database of the test."""

    def __call__(self, **settings: str) -> str:
        """The DSN of the database, through the pooler."""


@pytest.fixture
def own_pooler(
    postgres_server: PostgresProcess, database: str, stack_directory: Path, unique: Callable[[str], str]
) -> Iterator[OwnPooler]:
    if find_pgbouncer() is None and os.environ.get("TRAKSENSE_TEST_ALLOW_NO_POOLER") == "1":
        pytest.skip("no PgBouncer here, and TRAKSENSE_TEST_ALLOW_NO_POOLER=1")
    with contextlib.ExitStack() as stack:

        def start(**settings: str) -> str:
            pooler = PoolerProcess(stack_directory / unique("pooler"), postgres_server, settings=settings)
            stack.callback(pooler.kill)
            pooler.start_sync()
            return database.replace(f":{postgres_server.port}/", f":{pooler.port}/")

        yield start


@pytest.fixture
def session_pooler(own_pooler: OwnPooler) -> str:
    return own_pooler()


@pytest.fixture
def careless_pooler(own_pooler: OwnPooler) -> str:
    return own_pooler(ignore_startup_parameters="synchronous_commit,statement_timeout,extra_float_digits")


@pytest.fixture(params=["transaction", "statement"])
def changing_pooler(request: pytest.FixtureRequest, own_pooler: OwnPooler) -> str:
    return own_pooler(pool_mode=request.param)


async def test_pooler_in_session_mode_just_works(session_pooler: str, empty_database: str, database: str) -> None:
    """With its defaults, which refuse most parameters at connecting."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(session_pooler) as store:
            await store.write([point(1)])
            await store.write([point(1), point(2, device="new")])
        async with open_asyncio_loop():
            report = await aio_as_trio(migrate)(session_pooler, log=logging.getLogger(__name__))

    assert () == report.applied
    with psycopg.connect(database) as connection:
        assert [(1.0,), (2.0,)] == connection.execute("SELECT v_num FROM ts_measure ORDER BY 1").fetchall()


POOLED_SESSIONS = 20
"""PgBouncer's default_pool_size."""


async def test_read_only_for_a_while_ends_behind_a_pooler(session_pooler: str, database: str) -> None:
    """The pooler keeps sessions that have been told to read only, for an hour; they are not met again and again."""
    refusals = 0

    async def write_until_stored(store: PostgresStore, second: int) -> None:
        nonlocal refusals
        while True:
            try:
                await store.write([point(second, device=f"new-{second}")])
            except StoreUnavailableError as error:
                refusals += error.sqlstate == "25006"
            else:
                return

    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(session_pooler) as store, trio.open_nursery() as nursery:
            await store.write([point(0)])
            let_only_read(database)
            for second in range(1, 6):
                nursery.start_soon(write_until_stored, store, second)
            while refusals < 50:
                await trio.sleep(0.05)
            let_write_again(database)
            refusals = 0

    # One for each session that the pooler had by then, at most, and for each write that was under way.
    assert refusals <= POOLED_SESSIONS + 5
    with psycopg.connect(database) as connection:
        assert [(n,) for n in range(6)] == connection.execute("SELECT v_num FROM ts_measure ORDER BY 1").fetchall()


async def test_upkeep_goes_on_behind_a_pooler_that_kept_a_session_which_only_reads(
    own_pooler: OwnPooler, database: str
) -> None:
    """As above, for the rounds, of which each has a connection of its own: the pooler has but one session to give."""
    settings = load({"DATABASE_URL": own_pooler(default_pool_size="1")})
    rounds = upkeep.Upkeep(settings, Health([], ["maintenance"]), no_check)
    with trio.fail_after(HANG_SECONDS):
        async with open_asyncio_loop():
            let_only_read(database)
            with pytest.raises(asyncpg.ReadOnlySQLTransactionError):
                await aio_as_trio(rounds.round)()
            let_write_again(database)
            await aio_as_trio(rounds.round)()
    assert not any(rounds.failures.values())


async def no_check(_connection: object) -> None:
    """asyncio-flavored."""


async def test_pooler_that_drops_what_we_ask_for_weakens_nothing(careless_pooler: str, database: str) -> None:
    """`synchronous_commit` is on all the same, whatever the database's default."""
    name = urlsplit(database).path.removeprefix("/")
    run(database, f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(careless_pooler) as store:
            assert await store.call(_show, "synchronous_commit") == "on"


async def test_pooler_that_changes_the_server_process_is_refused(changing_pooler: str) -> None:
    """At the start, with one sentence: no message becomes a dead letter of it, and no other application that uses this
    pooler is given a session with our settings.
    """
    with (
        trio.fail_after(HANG_SECONDS),
        pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="pool_mode to session"), flatten_subgroups=True),
    ):
        async with store_with(Health(["database"], ["maintenance"]), DATABASE_URL=changing_pooler) as store:
            await store.write([point(1)])

    assert {'"$user", public'} == search_paths(changing_pooler)


def test_settings_that_another_server_process_has_not_are_a_poolers_doing(database: str) -> None:
    """Also of one that was never told the marker; and the one that was told is ended."""

    async def prepare_in_two() -> None:
        options: Any = {"connection_class": session_settings.ServiceConnection}
        told, asked = [await asyncpg.connect(database, **options) for _ in range(2)]
        turns = iter((told, asked))
        pooled: Any = SimpleNamespace(
            get_server_pid=lambda: 0, execute=told.execute, fetch=lambda *arguments: next(turns).fetch(*arguments)
        )
        with pytest.raises(ServerUnfitError, match="pool_mode to session"):
            await session_settings.prepare(pooled, wanted(30.0))
        with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError)):
            await told.execute("SELECT 1")
        await asked.close()

    asyncio.run(prepare_in_two())


async def test_server_that_is_refused_behind_a_pooler_keeps_nothing_of_ours(
    own_pooler: OwnPooler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Likewise, where something else is wrong."""

    async def refuse(_connection: object) -> None:
        raise ServerUnfitError("unsafe")

    monkeypatch.setattr(session_settings, "check_durability", refuse)
    changing = own_pooler(pool_mode="transaction")
    with trio.fail_after(HANG_SECONDS), pytest.RaisesGroup(ConfigError, flatten_subgroups=True):
        async with store_with(Health(["database"], ["maintenance"]), DATABASE_URL=changing) as store:
            await store.write([point(1)])

    assert {'"$user", public'} == search_paths(changing)


@pytest.mark.parametrize(
    ("command", "role", "status"),
    [
        (["dlq", "count"], "none", 0),
        (["maintain"], "none", 0),
        (["migrate"], "none", 0),
        # Whom the login becomes by a setting; it may not end sessions of the login.
        (["dlq", "count"], "pg_monitor", 1),
    ],
)
async def test_commands_leave_nothing_of_theirs_in_a_pooler(
    own_pooler: OwnPooler, database: str, command: list[str], role: str, status: int
) -> None:
    """They cannot tell its mode. What they have told a session, its next client would be given with it."""
    run(database, f'ALTER DATABASE "{urlsplit(database).path.removeprefix("/")}" SET role = {role}')
    changing = own_pooler(pool_mode="transaction")
    outcome = await run_command({"DATABASE_URL": changing}, *command)

    assert (status, {'"$user", public'}) == (outcome.status, search_paths(changing)), outcome


def search_paths(pooler: str) -> set[str]:
    """What its clients are given now, more of them at once than it has sessions that wait."""
    with contextlib.ExitStack() as stack:
        others = [stack.enter_context(psycopg.connect(pooler, autocommit=True)) for _ in range(5)]
        with ThreadPoolExecutor(len(others)) as threads:
            sql = "SELECT current_setting('search_path'), pg_sleep(0.2)"
            rows = threads.map(lambda other: other.execute(sql).fetchone(), others)
            return {row[0] for row in rows if row is not None}


@pytest.mark.parametrize(
    "statement",
    [
        # Another server process, with what another client has told it.
        "SELECT set_config('traksense.session', 'of another client', false)",
        # Another one, without what was prepared.
        "DEALLOCATE ALL",
    ],
)
async def test_session_that_is_not_ours_any_more_condemns_no_message(database: str, statement: str) -> None:
    """What a pooler in transaction mode does to a single connection: the batch fails and waits, for a new session."""
    with trio.fail_after(HANG_SECONDS):
        async with open_postgres_store(database, DB_POOL_MIN="1", DB_POOL_MAX="1") as store:
            await store.write([point(1)])
            await store.write([point(1)])
            await store.call(_execute, statement)
            with pytest.raises((StoreUnavailableError, StoreMisconfiguredError)):
                await store.write([point(1), point(2)])
            result = await store.write([point(1), point(2)])

    assert (1, 1, {}) == (result.points_stored, result.points_duplicate, result.rejected)


async def _execute(connection: Any, statement: str) -> None:
    await connection.execute(statement)


async def test_another_server_is_followed_by_all_connections(
    database: str, read_only_postgres: PostgresProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The address leads to another server while the former one lives on: no connection stays there."""
    monkeypatch.setattr(upkeep, "ROUND_EVERY_SECONDS", 0.1)
    health, parts = Health(["database"], ["maintenance"]), urlsplit(database)
    proxy = Proxy(parts.port or 0, upstream_host=str(parts.hostname))
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            await proxy.listen()
            nursery.start_soon(proxy.run)
            login = parts.netloc.rpartition("@")[0]
            dsn = urlunsplit(parts._replace(netloc=f"{login}@127.0.0.1:{proxy.port}"))
            async with store_with(health, DATABASE_URL=dsn) as store:
                await store.write([point(1)])
                other = read_only_postgres
                user, _, password = login.partition(":")
                run(
                    other.dsn,
                    "SET default_transaction_read_only = off",
                    f"ALTER ROLE {user} PASSWORD '{password}'",
                    f'CREATE DATABASE "{parts.path.removeprefix("/")}"',
                )
                proxy.upstream = (other.host, other.port)
                while health.holds("database"):
                    await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def test_connections_that_are_busy_say_nothing_of_the_database(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The probe finds no connection of ours free: that is no news of the database."""
    monkeypatch.setattr(postgres, "PROBE_EVERY_SECONDS", 0.05)
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.1)
    health = Health(["database"], ["maintenance"])
    with trio.fail_after(HANG_SECONDS):
        async with store_with(health, DATABASE_URL=database, DB_POOL_MIN="1", DB_POOL_MAX="1") as store:
            while not health.holds("database"):
                await trio.sleep(0.01)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(store.call, _sleep)
                for _ in range(100):
                    await trio.sleep(0.01)
                    assert health.holds("database")


async def _sleep(connection: Any) -> None:
    await connection.execute("SELECT pg_sleep(1)")


async def test_url_that_the_driver_can_never_use_is_refused() -> None:
    """At the start, with the driver's word for what is wrong, instead of trying for ever."""
    url = "postgresql://u:p@localhost:1/d?sslnegotiation=direct"
    fault = "DATABASE_URL: a parameter of the URL cannot be used: direct TLS requires sslmode"
    with trio.fail_after(30), pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match=fault), flatten_subgroups=True):
        async with store_with(Health(["database"], ["maintenance"]), DATABASE_URL=url) as store:
            await store.write([point(1)])


async def test_server_without_fsync_is_refused(unsafe_postgres: PostgresProcess) -> None:
    """At the start: a wrong configuration, in one line."""
    with (
        trio.fail_after(HANG_SECONDS),
        pytest.RaisesGroup(pytest.RaisesExc(ConfigError, match="fsync"), flatten_subgroups=True),
    ):
        async with store_with(Health(["database"], ["maintenance"]), DATABASE_URL=unsafe_postgres.dsn) as store:
            await store.probe()
