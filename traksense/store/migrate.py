"""Brings the database schema up to date: numbered SQL files, each in a transaction, one session at a time.

The files are plain SQL that psql can run too. Each ends by recording its own version; we add its checksum, so
that a file that was edited after it was applied is noticed. asyncio-flavored throughout.
"""

from __future__ import annotations

import asyncio
import re
import time
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, TypeVar

import asyncpg
import attrs

from traksense.errors import SchemaNewerError, StoreError, StoreMisconfiguredError, StoreUnavailableError
from traksense.store import roles as role_file
from traksense.store import session_settings
from traksense.store.connecting import connect, named
from traksense.store.fault_words import WHILE_MIGRATING
from traksense.store.migration_lock import schema_exists, take_turn
from traksense.store.schema_version import newer
from traksense.store.sql_files import LATEST, migrations, roles_sql
from traksense.store.sqlstate import FOREIGN, translate
from traksense.urls import DatabaseUrl, Secret

if TYPE_CHECKING:
    import logging
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from datetime import timedelta

    from asyncpg.pool import PoolConnectionProxy

    from traksense.store.sql_files import Migration

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]
    Log: TypeAlias = logging.Logger | logging.LoggerAdapter[logging.Logger]

T = TypeVar("T")

Engine: TypeAlias = Literal["postgresql", "timescaledb"]

SERVER_MINIMUM: Final = 15
"""PostgreSQL's major version. Source: UNIQUE NULLS NOT DISTINCT is new in 15."""

TIMESCALEDB_MINIMUM: Final = (2, 19, 1)
"""Before, ON CONFLICT DO NOTHING into a compressed chunk could lose rows. Source: timescaledb issue 7672."""

CONNECT_SECONDS: Final = 15.0
STATEMENT_SECONDS: Final = 900.0
TABLE_LOCK_SECONDS: Final = 3.0
"""How long a statement waits for a table that is in use. Everybody else queues behind it, also those who only insert:
it gives up, lets them go on, and the migration begins anew."""

TABLE_TRIES: Final = 20
"""How often; then a transaction that is left open is somebody's to end."""

BETWEEN_TRIES_SECONDS: Final = 3.0


IN_THE_WAY: Final = (asyncpg.LockNotAvailableError, asyncpg.DeadlockDetectedError, asyncpg.InternalServerError)
"""If `is_in_the_way`, another transaction uses what a statement needs."""


def is_in_the_way(error: asyncpg.PostgresError) -> bool:
    """Whether a statement may succeed once others are done. GRANT and DROP take no lock on the rows of the catalog that
    they change: who comes second fails. Source: PostgreSQL, src/backend/access/heap/heapam.c, simple_heap_update,
    whose texts are never translated.
    """
    return not isinstance(error, asyncpg.InternalServerError) or "tuple concurrently" in str(error)


@attrs.frozen
class MigrationReport:
    """What `migrate` found and did.

    Attributes:
        from_version: The schema version before, or None if there was no schema.
        to_version: The schema version now.
        applied: The migrations applied by this call, in order, like `0001_first_schema`.
        engine: What stores the measurements.
        server_version: PostgreSQL's version, like `15.18`.
        roles_missing: The roles that should exist and do not, because this role may not create them.
    """

    from_version: int | None
    to_version: int
    applied: tuple[str, ...]
    engine: Engine
    server_version: str
    roles_missing: tuple[str, ...] = ()


@attrs.frozen
class _Applied:
    name: str
    checksum: str | None


async def migrate(
    dsn: str, *, log: Log, roles: bool = True, at: Callable[[str], None] = lambda _text: None
) -> MigrationReport:
    """Bring the schema to `LATEST`; safe to run twice and from several replicas at once.

    Args:
        dsn: The connection string of a role that may create schemas and tables, and shall own them.
        log: Where each applied migration, and a wait for another replica, is told.
        roles: Whether to create the roles and give them their rights afterwards, as `sql/roles.sql` says.
        at: Told in words what is being done, before it is done.

    Raises:
        ConfigError: Credentials, database name, or a connection string that cannot be used.
        SchemaNewerError: The database was migrated by a newer release.
        StoreMisconfiguredError: Rights, server version, or an applied file that has changed.
        StoreUnavailableError: No answer, no free connection, or a lock that was not given in time.

    Cancellation: the migration that is running is rolled back; those before it stay.
    """
    wanted = migrations()
    url = DatabaseUrl(Secret(dsn))
    connection = await connect(
        url,
        application="traksense migrate",
        settings=session_settings.wanted(STATEMENT_SECONDS, lock_timeout=TABLE_LOCK_SECONDS)
        | {"default_transaction_read_only": "off"},
        connect_seconds=CONNECT_SECONDS,
        # Behind the server's own limit, for a server that went silent.
        statement_seconds=STATEMENT_SECONDS + TABLE_LOCK_SECONDS,
        schema=False,
        statement_cache_size=0,  # DDL would make the cached plans stale
    )
    try:
        await _check_server(connection)
        report = await _apply(connection, wanted, log, at)
        if roles:
            at("the roles and their rights")
            missing = await _in_turn(
                connection, log, role_file.FILE, lambda: role_file.apply_roles(connection, roles_sql(), log=log)
            )
            report = attrs.evolve(report, roles_missing=missing)
    except (StoreError, *FOREIGN) as error:
        raise named(url, _failed(error)) from error
    finally:
        await session_settings.close(connection)
    return report


async def _read_applied(connection: Connection) -> dict[int, _Applied]:
    if not await schema_exists(connection):
        return {}
    rows = await connection.fetch("SELECT version, name, checksum FROM traksense.schema_version")
    return {row["version"]: _Applied(row["name"], row["checksum"]) for row in rows}


async def _check_server(connection: Connection) -> None:
    version = connection.get_server_version()
    if version.major < SERVER_MINIMUM:
        raise StoreMisconfiguredError(
            f"this server is PostgreSQL {_server_version(connection)}, traksense needs {SERVER_MINIMUM} or newer: "
            "upgrade it, or name another one in DATABASE_URL"
        )
    encoding = await connection.fetchval("SHOW server_encoding")
    if encoding != "UTF8":
        raise StoreMisconfiguredError(
            f"this database has the encoding {encoding}, traksense needs UTF8: create another with CREATE DATABASE … "
            "ENCODING 'UTF8' TEMPLATE template0, and name it in DATABASE_URL"
        )
    timescaledb = await connection.fetchval(
        "SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'timescaledb'"
    )
    if timescaledb is not None and tuple(map(int, re.findall(r"\d+", timescaledb)[:3])) < TIMESCALEDB_MINIMUM:
        minimum = ".".join(map(str, TIMESCALEDB_MINIMUM))
        raise StoreMisconfiguredError(
            f"this database has TimescaleDB {timescaledb}, traksense needs {minimum} or newer: install that on the "
            "server, then run ALTER EXTENSION timescaledb UPDATE in the database"
        )


async def _apply(
    connection: Connection,
    wanted: Sequence[Migration],
    log: Log,
    at: Callable[[str], None],
) -> MigrationReport:
    applied = await _read_applied(connection)
    _check_history(applied, wanted)
    from_version = max(applied, default=None)
    names = []
    for migration in wanted:
        known = applied.get(migration.version)
        if known is not None and known.checksum is not None:
            continue
        at(f"migration {migration.version} of {wanted[-1].version}: {migration.name}; it may take long")
        try:
            started = time.monotonic()
            known = await _apply_in_turn(connection, migration, log)
        except (asyncpg.DuplicateSchemaError, asyncpg.UniqueViolationError):
            # The name of the schema was given to another session in the meantime; is it ours that it made?
            if applied or migration.version not in await _read_applied(connection):
                raise
            continue
        if known is None:
            names.append(str(migration))
            log.info(
                "migration_applied",
                extra={
                    "traksense_migration": str(migration),
                    "traksense_seconds": round(time.monotonic() - started, 3),
                },
            )
        elif known.checksum is None:
            log.info("migration_by_psql_adopted", extra={"traksense_migration": str(migration)})
    return MigrationReport(
        from_version=from_version,
        to_version=wanted[-1].version,
        applied=tuple(names),
        engine=await read_engine(connection),
        server_version=_server_version(connection),
    )


async def _apply_in_turn(connection: Connection, migration: Migration, log: Log) -> _Applied | None:
    """Apply it, unless whoever had the turn before has done so: then what that was."""

    async def apply() -> _Applied | None:
        known = (await _read_applied(connection)).get(migration.version)
        if known is None:
            await connection.execute(migration.sql)
        if known is None or known.checksum is None:
            await _record_checksum(connection, migration)
        return known

    return await _in_turn(connection, log, str(migration), apply)


async def _in_turn(connection: Connection, log: Log, name: str, function: Callable[[], Awaitable[T]]) -> T:
    """Do it while no other session migrates; anew, if it needs a table that is in use."""
    for attempt in range(1, TABLE_TRIES + 1):
        try:
            async with take_turn(connection, log):
                return await function()
        except IN_THE_WAY as error:
            if attempt == TABLE_TRIES or not is_in_the_way(error):
                raise
            log.info("migration_table_waited_for", extra={"traksense_migration": name})
            await asyncio.sleep(BETWEEN_TRIES_SECONDS)
    raise AssertionError("unreachable")


def _check_history(applied: Mapping[int, _Applied], wanted: Sequence[Migration]) -> None:
    newest = max(applied, default=0)
    if newest > LATEST:
        raise SchemaNewerError(newer(newest))
    for migration in wanted:
        known = applied.get(migration.version)
        if known is None:
            if migration.version < newest:
                raise StoreMisconfiguredError(
                    f"migration {migration} was skipped: the database is at version {newest} without it"
                )
        elif known.checksum is not None and known.checksum != migration.checksum:
            raise StoreMisconfiguredError(
                f"migration {migration} is not the one that this database was given: its checksum differs"
            )


async def _record_checksum(connection: Connection, migration: Migration) -> None:
    status = await connection.execute(
        "UPDATE traksense.schema_version SET checksum = $2 WHERE version = $1",
        migration.version,
        migration.checksum,
    )
    assert status == "UPDATE 1", f"{migration} does not record its version"


async def read_engine(connection: Connection) -> Engine:
    """The relation decides, not the extension: it may have been installed after the first migration."""
    partitioned = await connection.fetchval(
        "SELECT relkind = 'p' FROM pg_catalog.pg_class WHERE oid = 'traksense.measure'::regclass"
    )
    return "postgresql" if partitioned else "timescaledb"


async def read_chunk_interval(connection: Connection) -> timedelta:
    """How much time a new chunk of the measurements holds, on TimescaleDB."""
    interval: timedelta = await connection.fetchval(
        "SELECT time_interval FROM timescaledb_information.dimensions "
        "WHERE hypertable_schema = 'traksense' AND hypertable_name = 'measure' AND time_interval IS NOT NULL"
    )
    return interval


def _server_version(connection: Connection) -> str:
    return str(connection.get_settings().server_version).split()[0]


def _failed(error: Exception) -> StoreError:
    """What would be a message's fault while ingesting is ours or the operator's here."""
    if isinstance(error, StoreError):
        return error
    found = translate(error, WHILE_MIGRATING)
    kind = StoreUnavailableError if isinstance(found, StoreUnavailableError) else StoreMisconfiguredError
    return kind(str(found), found.sqlstate)
