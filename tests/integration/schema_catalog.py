"""What a schema is, as the catalogs tell it: to be compared with another database's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from schema_servers import Database

_OURS: Final = """
n.nspname IN ('public', 'traksense')
    AND NOT EXISTS (
        SELECT FROM pg_depend e WHERE e.classid = {catalog}::regclass AND e.objid = {oid} AND e.deptype = 'e'
    )
"""
_RELATIONS: Final = "pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
_OURS_ONLY: Final = _OURS.format(catalog="'pg_class'", oid="c.oid")


def _rights(acl: str, kind: str, owner: str) -> str:
    """Who may do what, whatever the order in which it was granted; what is the default is said as well."""
    return (
        "(SELECT array_agg(one ORDER BY one) FROM ("
        "SELECT concat_ws(' ', coalesce(r.rolname, 'PUBLIC'), a.privilege_type, a.is_grantable) AS one"
        f" FROM aclexplode(coalesce({acl}, acldefault('{kind}', {owner}))) AS a"
        " LEFT JOIN pg_roles AS r ON r.oid = a.grantee) AS rights)"
    )


_QUERIES: Final = {
    "schemas": f"""
        SELECT n.nspname, n.nspowner::regrole::text, {_rights("n.nspacl", "n", "n.nspowner")},
            obj_description(n.oid, 'pg_namespace')
        FROM pg_namespace n WHERE n.nspname IN ('public', 'traksense')
    """,
    "relations": f"""
        SELECT n.nspname, c.relname, c.relkind::text, c.relpersistence::text, c.relowner::regrole::text, c.reloptions,
            c.relrowsecurity, c.relforcerowsecurity, pg_get_partkeydef(c.oid),
            {_rights("c.relacl", "r", "c.relowner")}, obj_description(c.oid, 'pg_class')
        FROM {_RELATIONS} WHERE {_OURS_ONLY}
    """,
    "columns": f"""
        SELECT n.nspname, c.relname, a.attnum, a.attname, format_type(a.atttypid, a.atttypmod), a.attnotnull,
            pg_get_expr(d.adbin, d.adrelid), a.attidentity::text, a.attgenerated::text,
            a.attcollation::regcollation::text,
            nullif(a.attstattarget, -1), {_rights("a.attacl", "c", "c.relowner")}, col_description(c.oid, a.attnum)
        FROM {_RELATIONS} JOIN pg_attribute a ON a.attrelid = c.oid
        LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
        WHERE {_OURS_ONLY} AND a.attnum > 0 AND NOT a.attisdropped
    """,
    "sequences": """
        SELECT schemaname, sequencename, data_type::text, start_value, min_value, max_value, increment_by, cycle
        FROM pg_sequences WHERE schemaname IN ('public', 'traksense')
    """,
    "constraints": f"""
        SELECT n.nspname, c.relname, k.conname, pg_get_constraintdef(k.oid), k.convalidated
        FROM {_RELATIONS} JOIN pg_constraint k ON k.conrelid = c.oid WHERE {_OURS_ONLY}
    """,
    "indexes": f"""
        SELECT n.nspname, c.relname, pg_get_indexdef(i.indexrelid), i.indisunique, i.indisprimary, i.indisvalid
        FROM {_RELATIONS} JOIN pg_index i ON i.indexrelid = c.oid WHERE {_OURS_ONLY}
    """,
    "views": f"""
        SELECT n.nspname, c.relname, pg_get_viewdef(c.oid)
        FROM {_RELATIONS} WHERE c.relkind IN ('v', 'm') AND {_OURS_ONLY}
            AND NOT (n.nspname = 'traksense' AND c.relname LIKE 'rollup%%')  -- see continuous_aggregates
    """,
    "functions": f"""
        SELECT p.oid::regprocedure::text, pg_get_functiondef(p.oid), p.proowner::regrole::text,
            {_rights("p.proacl", "f", "p.proowner")}, obj_description(p.oid, 'pg_proc')
        FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        WHERE {_OURS.format(catalog="'pg_proc'", oid="p.oid")}
    """,
    "policies": """
        SELECT schemaname, tablename, policyname, permissive, roles::text[], cmd, qual, with_check
        FROM pg_policies WHERE schemaname IN ('public', 'traksense')
    """,
    "triggers": f"""
        SELECT n.nspname, c.relname, pg_get_triggerdef(t.oid)
        FROM {_RELATIONS} JOIN pg_trigger t ON t.tgrelid = c.oid WHERE NOT t.tgisinternal AND {_OURS_ONLY}
    """,
    "settings": "SELECT name, value FROM traksense.setting",
    "work": "SELECT name FROM traksense.work UNION ALL SELECT name FROM traksense.step",
    "versions": "SELECT version, name FROM traksense.schema_version",
}

_TIMESCALEDB: Final = {
    "dimensions": """
        SELECT hypertable_schema, hypertable_name, column_name, time_interval FROM timescaledb_information.dimensions
    """,
    "continuous_aggregates": """
        SELECT view_name, materialization_hypertable_name, materialized_only, compression_enabled, view_definition
        FROM timescaledb_information.continuous_aggregates
    """,
    "columnstores": """
        SELECT hypertable_name, attname, segmentby_column_index, orderby_column_index, orderby_asc, orderby_nullsfirst
        FROM timescaledb_information.compression_settings
    """,
    "jobs": """
        SELECT proc_schema, proc_name, schedule_interval, max_runtime, retry_period, scheduled, fixed_schedule,
            owner::text, config - 'mat_hypertable_id', hypertable_name
        FROM timescaledb_information.jobs WHERE job_id >= 1000
    """,
}


def read_catalog(database: Database) -> dict[str, list[str]]:
    """What is in the schemas `public` and `traksense`, by kind, each thing a line; nothing of an extension's."""
    queries = _QUERIES | (_TIMESCALEDB if database.server.timescaledb else {})
    return {kind: sorted(map(repr, database.rows(query))) for kind, query in queries.items()}
