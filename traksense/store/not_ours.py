"""What the removal of our schema would take with it that is not ours."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from traksense.store.sql_files import LATEST, migrations

if TYPE_CHECKING:
    from collections.abc import Sequence

PUBLIC_TABLES: Final = ("cmd_ack", "device_event", "ingest_errors")
"""What is not in the schema `traksense`, but for views, which go with what they read."""

PUBLIC_VIEWS: Final = ("ts_measure", "ts_measure_1m", "ts_measure_5m", "ts_measure_1h", "latest", "device_status")

_MADE: Final = re.compile(r"(?:TABLE|VIEW|FUNCTION|PROCEDURE) traksense\.(\w+)|traksense\.(rollup_\w+)")
"""How the migrations name what they make; the aggregates are made in a loop."""

_VERSION: Final = "SELECT max(version) FROM traksense.schema_version"

_NOT_OURS: Final = """
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
        OR n.nspname = 'traksense' AND ($2::text[] IS NULL OR c.relname = ANY ($2))
    UNION
    SELECT 'pg_proc'::regclass::oid, p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
    WHERE n.nspname = 'traksense' AND ($2 IS NULL OR p.proname = ANY ($2))
    UNION
    SELECT 'pg_type'::regclass::oid, t.oid FROM pg_type t JOIN pg_namespace n ON n.oid = t.typnamespace
    WHERE n.nspname = 'traksense' AND $2 IS NULL
    UNION
    SELECT e.classid, e.objid FROM ours JOIN edge e ON (e.refclassid, e.refobjid) = (ours.classid, ours.objid)
        LEFT JOIN pg_class c ON e.classid = 'pg_class'::regclass AND c.oid = e.objid
        LEFT JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname ~ '^_timescaledb' OR e.deptype <> 'n'
        AND (c.relispartition AND c.relkind NOT IN ('i', 'I') AND n.nspname <> 'traksense') IS NOT TRUE
)
SELECT DISTINCT o.type || ' ' || o.identity
FROM ours JOIN edge e ON (e.refclassid, e.refobjid) = (ours.classid, ours.objid)
    LEFT JOIN pg_depend x ON (x.classid, x.objid, x.deptype) = (e.classid, e.objid, 'e')
    CROSS JOIN pg_identify_object(
        coalesce(x.refclassid, e.classid), coalesce(x.refobjid, e.objid), coalesce(x.refobjsubid, e.objsubid)
    ) o
WHERE (e.classid, e.objid) NOT IN (SELECT classid, objid FROM ours) AND NOT EXISTS (
    SELECT FROM pg_depend part JOIN pg_depend whole ON (whole.classid, whole.objid) = (part.refclassid, part.refobjid)
    WHERE (part.classid, part.objid) = (e.classid, e.objid) AND part.deptype IN ('a', 'i')
        AND (part.refclassid, part.refobjid) <> (part.classid, part.objid)
        AND whole.refclassid = 'pg_namespace'::regclass AND whole.refobjid = to_regnamespace('traksense')
        AND (whole.classid, whole.objid) NOT IN (SELECT classid, objid FROM ours)
) ORDER BY 1 LIMIT 10
"""
"""What CASCADE would take with it. Ours is what the migrations make, and what cannot be without it: what depends on
something in another way than normally (`n`) is a part of that, such as an index, a table's own constraints or a
partition; but a partition in another schema was put there by somebody. Ours are TimescaleDB's chunks and inner
views, too. For a view, its relation stands in place of the rule that reads; for what an extension brought, the
extension. A part, such as a sequence, of what is named is not named; a partitioned table, which depends on itself
by its key, is no part of itself. Source: PostgreSQL, "pg_depend"."""

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


async def not_ours(connection: Any, *, timescaledb: bool) -> Sequence[str]:
    """What others made in our schema, or of what is ours; some of it, if it is much. asyncio-flavored."""
    made: list[str] | None = [name for found in _MADE.finditer(_sql()) for name in found.groups() if name]
    # What a newer release has made in the schema, this one does not know.
    if await connection.fetchval("SELECT to_regclass('traksense.schema_version') IS NOT NULL"):
        made = made if (await connection.fetchval(_VERSION) or 0) <= LATEST else None
    found = await connection.fetch(_NOT_OURS, [*PUBLIC_TABLES, *PUBLIC_VIEWS], made)
    if timescaledb:
        found += await connection.fetch(_AGGREGATES)
    return [name for (name,) in found]


def _sql() -> str:
    return "\n".join(migration.sql for migration in migrations())
