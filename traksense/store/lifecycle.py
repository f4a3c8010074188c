"""The policy against the database: what differs, what would go, and carrying it out.

The policy that counts is the one in the database (`traksense.setting`, and the jobs of TimescaleDB): the service and
the jobs go by it. `plan` compares it with what the environment says, `apply` makes it so. asyncio-flavored throughout.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.store import migrate
from traksense.store.connecting import check_operator
from traksense.store.maintenance import call_when_free
from traksense.store.policy import in_years, write_duration

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.store.policy import Policy

GRACE: Final = timedelta(days=1)
"""Setting retain_grace: how much later than they are refused points are dropped."""

LEVELS: Final = ("1m", "5m", "1h")

TIMESCALEDB_ONLY: Final = ("chunk_interval", "compress_after", "compress_aggregates_after")
"""What plain PostgreSQL has no use for: there, a difference is none."""


@attrs.frozen
class Change:
    """One difference: what, its value now, and the one wanted."""

    what: str
    now: str
    wanted: str

    def __str__(self) -> str:
        return f"{self.what}: {in_years(self.now)} -> {in_years(self.wanted)}"


@attrs.frozen
class Parts:
    """Some of the partitions or chunks of a relation.

    Attributes:
        relation: `measure`, or an aggregate.
        number: How many.
        size: Their bytes.
        begin: The least instant that has its place in one of them.
        end: The first instant after all of them.
    """

    relation: str
    number: int
    size: int
    begin: datetime
    end: datetime


@attrs.frozen
class Plan:
    """What `apply` would do.

    Attributes:
        engine: `postgresql` or `timescaledb`.
        changes: Differences between the policy wanted and the one in the database.
        compress: What the wanted policy would compress now.
        expired: What the wanted policy would drop now.
        purge: What it would delete now: kind and rows.
    """

    engine: str
    changes: list[Change]
    compress: list[Parts]
    expired: list[Parts]
    purge: list[tuple[str, int]]


async def plan(connection: Any, policy: Policy) -> Plan:
    """Compare, and say what would go; changes nothing.

    Raises:
        StoreMisconfiguredError: The role is not an operator's, as for the others.
    """
    await check_operator(connection)
    engine = await migrate.read_engine(connection)
    changes = await _differences(connection, policy, engine)
    schema, sql = "", _EXPIRED_PARTITIONS
    if engine == "timescaledb":
        schema = await connection.fetchval("SELECT quote_ident(traksense.timescaledb_schema())")
        sql = _EXPIRED_CHUNKS.replace("{schema}", schema)
    compress, expired = [], []
    for level in ("raw", *LEVELS):
        keep = getattr(policy, f"retain_{level}")
        relation = "measure" if level == "raw" else f"rollup_{level}"
        cut = None
        if keep is not None:
            cut = datetime.now(UTC) - keep - GRACE
            row = await connection.fetchrow(sql, relation, cut)
            if row["number"]:
                expired.append(Parts(relation, **row))
        after = policy.compress_after if level == "raw" else policy.compress_aggregates_after
        if engine == "timescaledb" and after is not None:
            due = datetime.now(UTC) - after
            row = await connection.fetchrow(_DUE_CHUNKS.replace("{schema}", schema), relation, due, cut)
            if row["number"]:
                compress.append(Parts(relation, **row))
    purge = []
    for kind, (relation, at) in _ROWS.items():
        tenants = {tenant: keep for (tenant, k), keep in policy.tenants.items() if k == kind}
        number = await connection.fetchval(
            _PURGE.format(relation=relation, at=at),
            list(tenants),
            list(tenants.values()),
            getattr(policy, f"retain_{kind}"),
        )
        if number:
            purge.append((relation, number))
    return Plan(engine, changes, compress, expired, purge)


async def apply(connection: Any, policy: Policy, at: Callable[[str], None] = lambda _text: None) -> list[Change]:
    """Make the database's policy the wanted one, in one transaction; returns what was changed.

    Args:
        connection: The owner's.
        policy: What is wanted.
        at: Told in words what is being done, before it is done.
    """
    await check_operator(connection)
    engine = await migrate.read_engine(connection)
    if engine == "timescaledb":
        at("aggregate ts_measure, before less of it is looked at")
        await _catch_up(connection, policy.retain_raw)
    at("write the policy into the database")
    async with connection.transaction():
        changes = await _differences(connection, policy, engine)
        for name, value in policy.items().items():
            await connection.execute(_SET, name, _stored(value))
        await connection.execute("DELETE FROM traksense.tenant_retention")
        await connection.executemany(
            "INSERT INTO traksense.tenant_retention (tenant_id, kind, keep) VALUES ($1, $2, $3)",
            [(tenant, kind, keep) for (tenant, kind), keep in policy.tenants.items()],
        )
        if engine == "timescaledb":
            schema = await connection.fetchval("SELECT quote_ident(traksense.timescaledb_schema())")
            at("the length of the next chunks of ts_measure")
            await connection.execute(
                f"SELECT {schema}.set_chunk_time_interval('traksense.measure', $1::interval)", policy.chunk_interval
            )
    return changes


async def _catch_up(connection: Any, retain_raw: timedelta | None) -> None:
    """Aggregate all that was looked at so far, before less is: what goes out of sight may be dropped next.
    asyncio-flavored.
    """
    now = await connection.fetchval("SELECT value FROM traksense.setting WHERE name = 'retain_raw'")
    if retain_raw is not None and now != _stored(retain_raw):
        await call_when_free(connection, "CALL traksense.refresh_aggregates()")


async def _differences(connection: Any, policy: Policy, engine: str) -> list[Change]:
    settings = {
        row["name"]: row["value"] for row in await connection.fetch("SELECT name, value FROM traksense.setting")
    }
    if engine == "timescaledb":
        settings["chunk_interval"] = write_duration(await connection.fetchval(_CHUNK_INTERVAL))
    changes = [
        Change(name, settings.get(name) or "forever", write_duration(value))
        for name, value in policy.items().items()
        if (settings.get(name) or "") != _stored(value) and not (engine == "postgresql" and name in TIMESCALEDB_ONLY)
    ]
    own = {
        (row["tenant_id"], row["kind"]): row["keep"]
        for row in await connection.fetch("SELECT tenant_id, kind, keep FROM traksense.tenant_retention")
    }
    for key in sorted(own.keys() | policy.tenants.keys()):
        now = write_duration(own[key]) if key in own else "as for all tenants"
        wanted = write_duration(policy.tenants[key]) if key in policy.tenants else "as for all tenants"
        if now != wanted:
            changes.append(Change(f"retain_{key[1]} of {key[0]}", now, wanted))
    return changes


def _stored(value: timedelta | None) -> str:
    return "" if value is None else write_duration(value)


async def status(connection: Any, policy: Policy) -> dict[str, Any]:
    """How things are: drift from the policy, sizes, compression, the times that are covered, next jobs."""
    await check_operator(connection)
    engine = await migrate.read_engine(connection)
    timescaledb = engine == "timescaledb"
    sizes, compression = _SIZES, ""
    if timescaledb:
        schema = await connection.fetchval("SELECT quote_ident(traksense.timescaledb_schema())")
        sizes, compression = _SIZES_CHUNKS.replace("{schema}", schema), _COMPRESSION.replace("{schema}", schema)
    result: dict[str, Any] = {
        "engine": engine,
        "drift": [
            f"{change.what}: {in_years(change.now)} in the database, {in_years(change.wanted)} in the environment"
            for change in await _differences(connection, policy, engine)
        ],
        "relations": [dict(row) for row in await connection.fetch(sizes)],
        "tables": [dict(row) for row in await connection.fetch(_TABLES)],
        "behind": None if timescaledb else dict(await connection.fetchrow(_BEHIND)),
        "compression": [],
        "jobs": [],
    }
    if timescaledb:
        result["compression"] = [dict(row) for row in await connection.fetch(compression)]
        result["jobs"] = [dict(job) for job in await connection.fetch(_JOBS)]
    return result


_SET: Final = """
INSERT INTO traksense.setting (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value
"""

_ROWS: Final = {
    "events": ("device_event", "ts"),
    "acks": ("cmd_ack", "updated_at"),
    "errors": ("ingest_errors", "coalesce(last_ts, ts)"),
}

_PURGE: Final = """
SELECT count(*) FROM public.{relation} e
LEFT JOIN unnest($1::text[], $2::interval[]) AS k (tenant_id, keep) ON k.tenant_id = e.tenant_id
WHERE {at} < now() - CASE WHEN k.tenant_id IS NOT NULL THEN k.keep ELSE $3::interval END
"""

_BOUNDS: Final = """
SELECT i.inhparent::regclass AS parent, c.oid,
    substring(bound FROM $re$FROM \\('([^']+)'\\)$re$)::timestamptz AS lower,
    substring(bound FROM $re$TO \\('([^']+)'\\)$re$)::timestamptz AS upper
FROM pg_catalog.pg_inherits i
JOIN pg_catalog.pg_class c ON c.oid = i.inhrelid
CROSS JOIN LATERAL pg_get_expr(c.relpartbound, c.oid) AS bound
WHERE c.relpartbound IS NOT NULL
"""

_EXPIRED_PARTITIONS: Final = f"""
SELECT count(*) AS number, coalesce(sum(pg_total_relation_size(oid)), 0)::bigint AS size,
    min(lower) AS begin, max(upper) AS "end"
FROM ({_BOUNDS}) AS b WHERE parent = ('traksense.' || $1::text)::regclass AND upper <= $2::timestamptz
"""  # noqa: S608  (constants)

_HYPERTABLES: Final = """
SELECT 'measure' AS relation, 'traksense' AS schema, 'measure' AS name
UNION ALL
SELECT view_name, materialization_hypertable_schema, materialization_hypertable_name
FROM timescaledb_information.continuous_aggregates WHERE view_schema = 'traksense'
"""

_CHUNKS: Final = f"""
SELECT h.relation, c.range_start, c.range_end, c.is_compressed AND k.status & 8 = 0 AS is_compressed, s.total_bytes
FROM ({_HYPERTABLES}) AS h
LEFT JOIN timescaledb_information.chunks c ON c.hypertable_schema = h.schema AND c.hypertable_name = h.name
LEFT JOIN LATERAL {{schema}}.chunks_detailed_size(format('%I.%I', h.schema, h.name)::regclass) AS s
    ON s.chunk_schema = c.chunk_schema AND s.chunk_name = c.chunk_name
LEFT JOIN _timescaledb_catalog.chunk k ON k.schema_name = c.chunk_schema AND k.table_name = c.chunk_name
"""  # noqa: S608  (constants)
# Status bit 8: late points came in, the chunk is compressed again. As in `traksense.compress_next()`.

_EXPIRED_CHUNKS: Final = f"""
SELECT count(*) AS number, coalesce(sum(total_bytes), 0)::bigint AS size,
    min(range_start) AS begin, max(range_end) AS "end"
FROM ({_CHUNKS}) AS c WHERE relation = $1::text AND range_end <= $2::timestamptz
"""  # noqa: S608  (constants)

_DUE_CHUNKS: Final = f"""
SELECT count(*) AS number, coalesce(sum(total_bytes), 0)::bigint AS size,
    min(range_start) AS begin, max(range_end) AS "end"
FROM ({_CHUNKS}) AS c
WHERE relation = $1::text AND NOT is_compressed AND range_end < $2::timestamptz
    AND (range_end > $3::timestamptz) IS NOT FALSE
"""  # noqa: S608  (constants)

_SIZES: Final = f"""
SELECT relation, count(b.oid) AS parts, coalesce(sum(pg_total_relation_size(b.oid)), 0)::bigint AS bytes,
    min(b.lower) FILTER (WHERE pg_relation_size(b.oid) > 0) AS oldest,
    max(b.upper) FILTER (WHERE pg_relation_size(b.oid) > 0) AS newest
FROM unnest(ARRAY['measure', 'rollup_1m', 'rollup_5m', 'rollup_1h']) AS relation
LEFT JOIN ({_BOUNDS}) AS b ON b.parent = ('traksense.' || relation)::regclass
GROUP BY 1 ORDER BY 1
"""  # noqa: S608  (constants)

_SIZES_CHUNKS: Final = f"""
SELECT relation, count(range_end) AS parts, coalesce(sum(total_bytes), 0)::bigint AS bytes,
    min(range_start) AS oldest, max(range_end) AS newest
FROM ({_CHUNKS}) AS c GROUP BY 1 ORDER BY 1
"""  # noqa: S608  (constants)

_TABLES: Final = """
SELECT relation, pg_total_relation_size(('public.' || relation)::regclass) AS bytes
FROM unnest(ARRAY['cmd_ack', 'device_event', 'ingest_errors']) AS relation
"""

_BEHIND: Final = "SELECT count(*) AS marks, min(low) AS oldest FROM traksense.dirty"

_CHUNK_INTERVAL: Final = """
SELECT time_interval FROM timescaledb_information.dimensions
WHERE hypertable_schema = 'traksense' AND hypertable_name = 'measure'
"""

_COMPRESSION: Final = f"""
SELECT h.relation, s.number_compressed_chunks AS chunks, s.before_compression_total_bytes::bigint AS bytes_before,
    s.after_compression_total_bytes::bigint AS bytes_after
FROM ({_HYPERTABLES}) AS h
CROSS JOIN LATERAL {{schema}}.hypertable_compression_stats(format('%I.%I', h.schema, h.name)::regclass) AS s
WHERE s.number_compressed_chunks > 0 ORDER BY 1
"""  # noqa: S608  (constants)

_JOBS: Final = """
SELECT j.job_id, j.proc_name::text AS name, j.hypertable_name::text AS relation, s.next_start, s.last_run_status,
    s.total_failures, CASE WHEN s.last_run_status = 'Failed' THEN (
        SELECT e.err_message FROM timescaledb_information.job_errors e
        WHERE e.job_id = j.job_id ORDER BY e.finish_time DESC LIMIT 1
    ) END AS last_error
FROM timescaledb_information.jobs j LEFT JOIN timescaledb_information.job_stats s USING (job_id)
WHERE j.proc_schema = 'traksense' ORDER BY 1
"""
