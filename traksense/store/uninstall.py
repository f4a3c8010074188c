"""Takes away what the migrations made: in pieces, since years of partitions are more than one transaction can lock."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.errors import StoreMisconfiguredError
from traksense.store.sessions import IN_USE_SECONDS, STOP_IT

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

PIECE: Final = 50
"""Tables that one transaction drops. PostgreSQL has 64 locks for each connection by default, and a table with its
indexes takes a few."""

PUBLIC_TABLES: Final = ("cmd_ack", "device_event", "ingest_errors")
"""What is not in the schema `traksense`, but for views, which go with what they read."""

_SEEN: Final = """
SELECT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'traksense') AS schema,
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE nspname = 'traksense' AND relname = 'ingest_session') AS sessions,
    EXISTS (SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE nspname = 'traksense' AND relname = ANY ($1::text[])) AS ours,
    (SELECT count(*) FROM pg_tables WHERE schemaname = 'public' AND tablename = ANY ($2::text[])) AS public_tables,
    (SELECT pg_get_userbyid(nspowner) FROM pg_namespace
        WHERE nspname = 'traksense' AND NOT pg_has_role(nspowner, 'USAGE')) AS owner,
    (SELECT format('%I', nspname) FROM pg_extension JOIN pg_namespace n ON n.oid = extnamespace
        WHERE extname = 'timescaledb') AS timescaledb
"""

_TABLES: Final = ("ingest_session", "dictionary_epoch", "tenant_retention")
"""Names that hardly anybody else gives. Each schema of ours has one of them, unless somebody has dropped them all."""

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

PUBLIC_VIEWS: Final = ("ts_measure", "ts_measure_1m", "ts_measure_5m", "ts_measure_1h", "latest", "device_status")

_DEPENDENT: Final = """
WITH RECURSIVE edge AS (
    SELECT coalesce(v.class, d.classid) AS classid, coalesce(v.ev_class, d.objid) AS objid,
        CASE WHEN v.class IS NULL THEN d.objsubid ELSE 0 END AS objsubid, d.refclassid, d.refobjid, d.deptype
    FROM pg_depend d LEFT JOIN (
        SELECT oid, ev_class, 'pg_class'::regclass::oid AS class FROM pg_rewrite WHERE rulename = '_RETURN'
    ) v ON d.classid = 'pg_rewrite'::regclass AND v.oid = d.objid
), ours AS (
    SELECT 'pg_namespace'::regclass::oid AS classid, oid AS objid FROM pg_namespace WHERE nspname = 'traksense'
    UNION
    SELECT 'pg_class'::regclass::oid, c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'public' AND c.relname = ANY ($1::text[])
    UNION
    SELECT e.classid, e.objid FROM ours JOIN edge e ON (e.refclassid, e.refobjid) = (ours.classid, ours.objid)
    WHERE e.deptype <> 'n' OR e.refclassid = 'pg_namespace'::regclass OR e.classid = 'pg_class'::regclass AND EXISTS (
        SELECT FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.oid = e.objid AND n.nspname ~ '^_timescaledb'
    )
)
SELECT DISTINCT o.type || ' ' || o.identity
FROM ours JOIN edge e ON (e.refclassid, e.refobjid) = (ours.classid, ours.objid)
    CROSS JOIN pg_identify_object(e.classid, e.objid, e.objsubid) o
WHERE (e.classid, e.objid) NOT IN (SELECT classid, objid FROM ours) ORDER BY 1 LIMIT 10
"""
"""What CASCADE would take with it. Ours is what is in the schema, and what cannot be without it: what depends on
something in another way than normally (`n`) is a part of that, such as an index or a table's own constraints; so are
TimescaleDB's chunks and inner views. For a view, its relation stands in place of the rule that reads.
Source: PostgreSQL, "pg_depend"."""

_AGGREGATES: Final = """
SELECT format('continuous aggregate %I.%I', view_schema, view_name)
FROM timescaledb_information.continuous_aggregates a
WHERE view_schema <> 'traksense' AND (hypertable_schema = 'traksense' OR EXISTS (
    SELECT FROM timescaledb_information.continuous_aggregates b
    WHERE b.view_schema = 'traksense' AND (b.materialization_hypertable_schema, b.materialization_hypertable_name)
        = (a.hypertable_schema, a.hypertable_name)
)) ORDER BY 1 LIMIT 10
"""
"""What TimescaleDB would take with it, of its own accord."""

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
    seen = await connection.fetchrow(_SEEN, _TABLES, PUBLIC_TABLES)
    if not seen["schema"]:
        if seen["public_tables"] == len(PUBLIC_TABLES):
            tables = ", ".join(f"public.{table}" for table in PUBLIC_TABLES)
            raise StoreMisconfiguredError(
                "nothing is deleted: the schema traksense is gone, but tables with the names of its tables are there: "
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


async def uninstall(connection: Any, at: Callable[[str], None] = lambda _text: None) -> str:
    """Drop all of it, the data included; says what of it was dropped in pieces, such as `12 chunks`, or nothing.
    Interrupted, it can be repeated. asyncio-flavored.

    Args:
        connection: The owner's, or a superuser's.
        at: Told in words how far it has got.

    Raises:
        StoreMisconfiguredError: A service uses it, or something that others made depends on it. Nothing is dropped.
    """
    found = await look(connection)
    for client_id, seconds in found.alive:
        raise StoreMisconfiguredError(f"a service was using it, {client_id}, {max(seconds, 0):.0f} s ago: {STOP_IT}")
    if not found.present:
        return ""
    # What is dropped in pieces is gone when something at the end holds on to the rest; and CASCADE asks nobody.
    dependent = await connection.fetch(_DEPENDENT, [*PUBLIC_TABLES, *PUBLIC_VIEWS])
    if found.timescaledb:
        dependent += await connection.fetch(_AGGREGATES)
    if dependent:
        names = ", ".join(name for (name,) in dependent)
        raise StoreMisconfiguredError(f"nothing is deleted: still needed by {names}: drop or change that first")
    if found.timescaledb:
        await connection.execute(_JOBS.format(found.timescaledb))
    dropped = 0
    parts, name = (_CHUNKS, "chunks") if found.timescaledb else (_PARTITIONS, "partitions")
    total = await connection.fetchval(f"SELECT count(*) FROM ({parts}) AS p", None)  # noqa: S608  (constants)
    while tables := await connection.fetch(parts, PIECE):
        await connection.execute(f"DROP TABLE {', '.join(table for (table,) in tables)}")
        dropped += len(tables)
        at(f"dropped {dropped:,} of {total:,} {name}")
    async with connection.transaction():
        await connection.execute("DROP SCHEMA traksense CASCADE")
        await connection.execute(f"DROP TABLE IF EXISTS {', '.join(f'public.{table}' for table in PUBLIC_TABLES)}")
    return f"{dropped:,} {name}" if dropped else ""
