"""Takes away what the migrations made: in pieces, since years of partitions are more than one transaction can lock."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.errors import StoreMisconfiguredError, StoreUnavailableError
from traksense.store.migrate import (
    BETWEEN_TRIES_SECONDS,
    IN_THE_WAY,
    TABLE_LOCK_SECONDS,
    TABLE_TRIES,
    is_in_the_way,
)
from traksense.store.not_ours import PUBLIC_TABLES, PUBLIC_VIEWS, not_ours
from traksense.store.sessions import IN_USE_SECONDS, STOP_IT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PIECE: Final = 50
"""Tables that one transaction drops. PostgreSQL has 64 locks for each connection by default, and a table with its
indexes takes a few."""

_SEEN: Final = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'traksense') AS schema,
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE nspname = 'traksense' AND relname = 'ingest_session') AS sessions,
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE nspname = 'traksense' AND relname = ANY ($1::text[])) AS ours,
    (SELECT pg_get_userbyid(nspowner) FROM pg_namespace
        WHERE nspname = 'traksense' AND NOT pg_has_role(nspowner, 'USAGE')) AS owner,
    (SELECT format('%I', nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
        WHERE extname = 'timescaledb') AS timescaledb
"""

_TABLES: Final = ("ingest_session", "dictionary_epoch", "tenant_retention")
"""Names that hardly anybody else gives. Each schema of ours has one of them, unless somebody has dropped them all."""

_LEFT: Final = """
SELECT format('%I.%I', nspname, relname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE nspname = 'public' AND relkind = 'r' AND (relname, 3) IN (
    SELECT 'cmd_ack', count(*) FROM pg_attribute WHERE attrelid = c.oid AND attname IN ('cmd_id', 'ok', 'ts_exec')
    UNION ALL SELECT 'device_event', count(*) FROM pg_attribute
        WHERE attrelid = c.oid AND attname IN ('site_id', 'event_id', 'event_type')
    UNION ALL SELECT 'ingest_errors', count(*) FROM pg_attribute
        WHERE attrelid = c.oid AND attname IN ('replayed_at', 'digest', 'repeats')
) ORDER BY 1
"""
"""By some of their columns: a table that only has such a name is somebody else's."""

_RENAMED: Final = """
SELECT format('%I', nspname) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE relkind = 'r' AND relname IN ('ingest_session', 'operator_marker', 'schema_version')
GROUP BY nspname HAVING count(*) = 3 ORDER BY 1
"""

_ALIVE: Final = """
SELECT client_id, extract(epoch FROM now() - last_alive_at)::float8 FROM traksense.ingest_session session
WHERE last_alive_at > now() - make_interval(secs => $1)
    AND coalesce((to_jsonb(session) ->> 'left_at')::timestamptz < last_alive_at, true)
"""
# As text, since an older schema, which can be taken away too, has no such column.

_PARTITIONS: Final = """
SELECT c.oid::regclass::text FROM pg_class c
WHERE c.relispartition AND c.relkind = 'r' AND c.relnamespace = 'traksense'::regnamespace LIMIT $1
"""

_CHUNKS: Final = """
SELECT format('%I.%I', ch.chunk_schema, ch.chunk_name) FROM timescaledb_information.chunks ch
WHERE (ch.hypertable_schema, ch.hypertable_name) IN (
    SELECT hypertable_schema, hypertable_name FROM timescaledb_information.hypertables
        WHERE hypertable_schema = 'traksense'
    UNION ALL
    SELECT materialization_hypertable_schema, materialization_hypertable_name
        FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'traksense'
)
LIMIT $1
"""

_IN_USE: Final = """
SELECT c.oid::regclass::text, l.pid, a.application_name, a.usename
FROM pg_locks l JOIN pg_class c ON c.oid = l.relation JOIN pg_namespace n ON n.oid = c.relnamespace
    LEFT JOIN pg_stat_activity a ON a.pid = l.pid
WHERE l.granted AND l.locktype = 'relation' AND l.pid IS DISTINCT FROM pg_backend_pid()
    AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND c.relkind IN ('r', 'p', 'v')
    AND (nspname ~ '^(traksense$|_timescaledb_internal$)' OR nspname = 'public' AND relname = ANY ($1::text[]))
ORDER BY a.xact_start, l.pid, nspname <> 'public', nspname <> 'traksense', relname LIMIT 1
"""
"""The oldest transaction that has to end before all can go, by the name that its user knows: `public` comes first."""

_JOBS: Final = "SELECT {}.delete_job(job_id) FROM timescaledb_information.jobs WHERE proc_schema = 'traksense'"


@attrs.frozen
class Installed:
    """What there is.

    Attributes:
        present: Whether there is anything.
        timescaledb: The schema that has TimescaleDB's functions, or None without it.
        alive: The services that use it, by client id, with the seconds since they last said so.
    """

    present: bool
    timescaledb: str | None
    alive: Sequence[tuple[str, float]] = ()


async def look(connection: Any) -> Installed:
    """What there is to take away. asyncio-flavored.

    Raises:
        StoreMisconfiguredError: This role may not take it away, or it is somebody else's.
    """
    seen = await connection.fetchrow(_SEEN, _TABLES)
    if not seen["schema"]:
        for (schema,) in await connection.fetch(_RENAMED):
            raise StoreMisconfiguredError(
                f"nothing is deleted: the schema traksense is gone, but {schema} has its tables: if it is that one, "
                f"ALTER SCHEMA {schema} RENAME TO traksense, and repeat this"
            )
        if tables := ", ".join(table for (table,) in await connection.fetch(_LEFT)):
            raise StoreMisconfiguredError(
                "nothing is deleted: the schema traksense is gone, but tables like those beside it are there: "
                f"if they are traksense's, DROP TABLE {tables}"
            )
        return Installed(present=False, timescaledb=seen["timescaledb"])
    if seen["owner"]:
        raise StoreMisconfiguredError(
            f"this role does not own the schema traksense: DATABASE_URL must be that of {seen['owner']}, or a "
            "superuser's"
        )
    if not seen["ours"]:
        raise StoreMisconfiguredError(
            "nothing is deleted: the schema traksense has none of traksense's tables, and may be somebody else's: if "
            "it is not, DROP SCHEMA traksense CASCADE, and repeat this"
        )
    # What somebody has dropped by hand must not keep the rest.
    alive = [tuple(row) for row in await connection.fetch(_ALIVE, IN_USE_SECONDS)] if seen["sessions"] else []
    return Installed(present=True, timescaledb=seen["timescaledb"], alive=alive)


async def uninstall(
    connection: Any, at: Callable[[str], None] = lambda _text: None, waits: Callable[[str], None] = lambda _text: None
) -> str:
    """Drop all of it, the data included; says what of it was dropped in pieces, such as `12 chunks`, or nothing.
    Interrupted, it can be repeated. asyncio-flavored.

    Args:
        connection: The owner's, or a superuser's.
        at: Told in words how far it has got, from the first change on.
        waits: Told in words for whom it waits.

    Raises:
        StoreMisconfiguredError: A service uses it, or what others made would go with it. Nothing is dropped.
        StoreUnavailableError: Others use a table for too long.
    """
    found = await look(connection)
    for client_id, seconds in found.alive:
        raise StoreMisconfiguredError(f"a service was using it, {client_id}, {max(seconds, 0):.0f} s ago: {STOP_IT}")
    if not found.present:
        return ""
    # What is dropped in pieces is gone when something at the end holds on to the rest; and CASCADE asks nobody.
    if others := await not_ours(connection, timescaledb=found.timescaledb is not None):
        raise StoreMisconfiguredError(
            f"nothing is deleted, since what is not traksense's would go as well: {', '.join(others)}: drop, move or "
            "change that first"
        )
    if found.timescaledb and await _when_free(connection, waits, _JOBS.format(found.timescaledb)) != "SELECT 0":
        at("deleted TimescaleDB's jobs")
    dropped = 0
    parts, name = (_CHUNKS, "chunks") if found.timescaledb else (_PARTITIONS, "partitions")
    total = await connection.fetchval(f"SELECT count(*) FROM ({parts}) AS p", None)  # noqa: S608  (constants)
    while tables := await connection.fetch(parts, PIECE):
        await _when_free(connection, waits, f"DROP TABLE {', '.join(table for (table,) in tables)}")
        dropped += len(tables)
        at(f"dropped {dropped:,} of {total:,} {name}")
    public = ", ".join(f"public.{table}" for table in PUBLIC_TABLES)
    await _when_free(connection, waits, f"DROP SCHEMA traksense CASCADE; DROP TABLE IF EXISTS {public}")
    return f"{dropped:,} {name}" if dropped else ""


async def _when_free(connection: Any, waits: Callable[[str], None], statements: str) -> str:
    """Execute them in one transaction; anew, if they need a table that is in use, as `migrate` does. Jobs of
    TimescaleDB, and readers, take several tables in an order of their own: a deadlock is no different. Returns the
    status of the last one.
    """
    told = None
    for attempt in range(1, TABLE_TRIES + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{int(TABLE_LOCK_SECONDS * 1000)}'")
                status: str = await connection.execute(statements)
        except IN_THE_WAY as error:
            if not is_in_the_way(error):
                raise
            user = await _user(connection)
            if attempt == TABLE_TRIES:
                raise StoreUnavailableError(f"{user}: end that, and repeat this", error.sqlstate) from error
            if user != told:
                waits(f"{user}: trying again")
            told = user
            await asyncio.sleep(BETWEEN_TRIES_SECONDS)
        else:
            return status
    raise AssertionError("unreachable")


async def _user(connection: Any) -> str:
    """Who is in the way, in words."""
    found = await connection.fetchrow(_IN_USE, [*PUBLIC_TABLES, *PUBLIC_VIEWS])
    if found is None:
        return "another transaction uses a table of traksense"
    table, pid, application, user = found
    session = f"session {pid}, {application or 'unnamed'}, user {user}" if pid else "one of pg_prepared_xacts"
    return f"another transaction uses {table} ({session})"
