"""What a tenant's session can try to learn of another tenant. It may run any SQL, but it names its own tenant."""

from __future__ import annotations

import itertools
import re
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from psycopg import sql
from walls_data import DAY, FOREIGN, MARK, NUMBER, OWN

if TYPE_CHECKING:
    from schema_servers import Database

    Session = psycopg.Connection[tuple[Any, ...]]

pytest_plugins = ("schema_fixtures", "walls_fixtures")

RELATIONS = (
    "SELECT c.oid::regclass::text, n.nspname::text || '.' || c.relname FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S', 't', 'i') AND n.nspname NOT LIKE 'pg_temp%%' ORDER BY 1"
)
PUBLIC = (
    "SELECT oid::regclass::text FROM pg_class WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'v')"
    " AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = pg_class.oid AND d.deptype = 'e') ORDER BY 1"
)
COLUMNS = (
    "SELECT attname::text, atttypid::regtype::text FROM pg_attribute"
    " WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"
)


ACK = "INSERT INTO public.cmd_ack (tenant_id, site_id, device_id, cmd_id, ok, payload)"


def public(database: Database) -> list[str]:
    return [row[0] for row in database.rows(PUBLIC)]


def outcome(session: Session, statement: str) -> str:
    """All that a session is told: rows, notices, error with its detail, hint and context."""
    told: list[str] = []

    def notice(diagnostic: psycopg.errors.Diagnostic) -> None:
        told.append(f"{diagnostic.message_primary} {diagnostic.message_detail} {diagnostic.context}")

    session.add_notice_handler(notice)
    try:
        cursor = session.execute(statement.encode())
        while True:
            if cursor.description is not None:
                told.extend(map(repr, cursor.fetchall()))
            if not cursor.nextset():
                break
    except psycopg.Error as error:
        d = error.diag
        told.append(f"{error} {d.message_detail} {d.message_hint} {d.context} {d.internal_query}")
    finally:
        session.remove_notice_handler(notice)
    return "\n".join(told)


def test_fixture_has_something_to_find(walled: Database) -> None:
    """An operator does see the foreign tenant everywhere: an attack that finds nothing proves something."""
    for relation in public(walled):
        found = walled.value(f"SELECT string_agg(t::text, '') FROM (SELECT * FROM {relation}) t")
        assert MARK in (found or ""), relation
        assert "own" in found, relation


def test_every_relation(walled: Database, session: Session) -> None:
    """No table, view, index, sequence or catalog of any schema shows anything foreign."""
    leaks = []
    for name, qualified in walled.rows(RELATIONS):
        told = outcome(session, f"SELECT t::text FROM {name} AS t")
        if MARK in told or str(NUMBER) in told:
            leaks.append((qualified, told[:200]))

    assert [] == leaks


def test_every_public_relation_shows_the_own_tenant_only(walled: Database, session: Session) -> None:
    """What is visible has the own tenant's name on it."""
    for relation in public(walled):
        rows = session.execute(f"SELECT DISTINCT tenant_id FROM {relation}".encode()).fetchall()
        assert rows in ([(OWN,)], []), relation


def test_private_schema_is_shut(walled: Database, session: Session) -> None:
    """No relation and no function of the private schema can be named."""
    for (name,) in walled.rows(
        "SELECT relname::text FROM pg_class"
        " WHERE relnamespace = 'traksense'::regnamespace AND relkind IN ('r', 'p', 'v', 'S')"
    ):
        assert "permission denied" in outcome(session, f'SELECT * FROM traksense."{name}"')
    for (name,) in walled.rows(
        "SELECT DISTINCT proname::text FROM pg_proc WHERE pronamespace = 'traksense'::regnamespace"
    ):
        assert "permission denied for schema" in outcome(session, f"SELECT traksense.{name}()")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT * FROM pg_stats",
        "SELECT * FROM pg_stats_ext",
        "SELECT * FROM pg_statistic",
        "SELECT * FROM pg_stat_activity",
        "SELECT * FROM pg_sequences",
        "SELECT pg_sequence_last_value(oid) FROM pg_class WHERE relkind = 'S'",
        "SELECT nextval('traksense.series_series_id_seq')",
        "SELECT last_value FROM traksense.series_series_id_seq",
        "SELECT table_to_xml('traksense.series', true, true, '')",
        "SELECT query_to_xml('SELECT * FROM traksense.series', true, true, '')",
        "SELECT schema_to_xml('public', true, true, '')",
        "SELECT database_to_xml(true, true, '')",
        "SELECT * FROM ts_stat('SELECT to_tsvector(device_id) FROM public.cmd_ack')",
        "SELECT pg_read_file('postgresql.conf')",
        "SELECT pg_ls_dir('base')",
        "SELECT lo_import('/etc/hostname')",
        "SELECT pg_stat_get_activity(NULL)",
        "SELECT pg_current_logfile()",
        "SELECT * FROM pg_file_settings",
        "SELECT * FROM pg_hba_file_rules",
        "SELECT pg_get_viewdef('public.ts_measure'::regclass)",
        "SELECT pg_get_partition_constraintdef(oid) FROM pg_class",
        "SELECT obj_description(oid) FROM pg_class",
        "SELECT col_description(attrelid, attnum) FROM pg_attribute",
        "SELECT * FROM information_schema.columns",
        "SELECT * FROM pg_policies",
        "SELECT * FROM pg_prepared_statements",
        "SELECT * FROM pg_cursors",
        "SELECT * FROM pg_locks",
        "SHOW ALL",
        "COPY (SELECT * FROM public.ts_measure) TO STDOUT",
        "COPY traksense.measure TO STDOUT",
        "COPY public.cmd_ack TO '/tmp/acks'",
        "COPY public.cmd_ack TO PROGRAM 'cat'",
        "SET row_security = off; TABLE public.cmd_ack; TABLE public.device_event; TABLE public.ingest_errors",
        f"SET app.tenant_ids = '{FOREIGN}'; TABLE public.cmd_ack; TABLE public.ts_measure",
        "SET app.tenant_id = 'acme'' OR true --'; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET app.tenant_id = '%'; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET app.tenant_id = ''; TABLE public.ts_measure; TABLE public.cmd_ack",
        "RESET app.tenant_id; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET app.tenant_id TO DEFAULT; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET app.tenant_id = U&'\\+10FFFF'; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET ROLE traksense_ingest; TABLE public.ts_measure",
        "SET ROLE postgres; TABLE public.ts_measure",
        "SET ROLE pg_read_all_data; TABLE public.ts_measure",
        "SET SESSION AUTHORIZATION postgres; TABLE public.ts_measure",
        "SET ROLE NONE; TABLE public.ts_measure; TABLE public.cmd_ack",
        "SET session_replication_role = replica; TABLE public.cmd_ack",
        "SET default_transaction_isolation = serializable; TABLE public.cmd_ack; TABLE public.ts_measure",
        "SET search_path = traksense, public; TABLE cmd_ack; TABLE measure",
        "SET transform_null_equals = on; SELECT * FROM public.ingest_errors WHERE tenant_id = NULL",
        "SELECT * FROM public.ingest_errors WHERE tenant_id IS NULL",
        "SELECT * FROM public.cmd_ack TABLESAMPLE SYSTEM (100)",
        "SELECT ctid, xmin, tableoid::regclass, * FROM public.cmd_ack",
        (
            "SELECT * FROM public.cmd_ack WHERE ctid = ANY (ARRAY(SELECT format('(%s,%s)', p, i)::tid"
            " FROM generate_series(0, 9) p, generate_series(1, 99) i))"
        ),
        "SELECT * FROM public.cmd_ack FOR UPDATE",
        "SELECT * FROM ONLY public.cmd_ack",
        "DECLARE c CURSOR WITH HOLD FOR SELECT * FROM public.ts_measure; FETCH ALL c; CLOSE c",
        "DO $$ DECLARE r record; BEGIN FOR r IN TABLE public.ts_measure LOOP RAISE NOTICE '%', r; END LOOP; END $$",
        "CREATE TEMP TABLE stolen AS SELECT * FROM public.ts_measure; TABLE stolen; DROP TABLE stolen",
        "CREATE TEMP VIEW mine AS SELECT * FROM public.cmd_ack; TABLE mine; DROP VIEW mine",
        "CREATE TEMP TABLE child () INHERITS (public.cmd_ack)",
        "BEGIN; CREATE TEMP TABLE current_setting (x int); TABLE public.ts_measure; ROLLBACK",
    ],
)
def test_statement(session: Session, statement: str) -> None:
    """A statement that might show more than the public relations do shows nothing foreign."""
    if statement.startswith("COPY"):
        with session.cursor() as cursor:
            try:
                with cursor.copy(statement.encode()) as copy:
                    told = b"".join(bytes(block) for block in copy).decode()
            except psycopg.Error as error:
                told = str(error)
    else:
        told = outcome(session, statement)

    # A tenant's own name in a setting is its own doing.
    assert not re.search(f"{MARK}|{NUMBER}", told.replace(FOREIGN, ""))


@pytest.mark.parametrize(
    "statement",
    [
        f"{ACK} VALUES ('{FOREIGN}', 's', 'd', 'c', true, '{{}}')",
        f"{ACK} VALUES ('{FOREIGN}', '{MARK}', '{MARK} device 1', '{MARK} command 1', true, '{{}}')",
        "INSERT INTO public.ts_measure (tenant_id) VALUES ('acme')",
        "UPDATE public.cmd_ack SET ok = false",
        "UPDATE public.ts_measure SET v_num = 0",
        "DELETE FROM public.device_event",
        "DELETE FROM public.ingest_errors",
        "TRUNCATE public.cmd_ack",
        "BEGIN; LOCK public.cmd_ack IN ACCESS EXCLUSIVE MODE",
        "CREATE TABLE public.probe (t text REFERENCES public.cmd_ack)",
        "CREATE TEMP TABLE probe (t text, d text, c text, FOREIGN KEY (t, d, c) REFERENCES public.cmd_ack)",
        "CREATE INDEX ON public.cmd_ack (err)",
        "CREATE UNIQUE INDEX ON public.cmd_ack (device_id)",
        "CREATE STATISTICS s ON device_id, err FROM public.cmd_ack",
        "CREATE TRIGGER t AFTER INSERT ON public.cmd_ack EXECUTE FUNCTION suppress_redundant_updates_trigger()",
        "CREATE RULE r AS ON SELECT TO public.cmd_ack DO INSTEAD SELECT 1",
        "CREATE POLICY p ON public.cmd_ack USING (true)",
        "ALTER TABLE public.cmd_ack DISABLE ROW LEVEL SECURITY",
        "ALTER TABLE public.cmd_ack ALTER COLUMN device_id SET STATISTICS 1000",
        "ALTER VIEW public.ts_measure RESET (security_barrier)",
        "CREATE OR REPLACE VIEW public.ts_measure AS SELECT 1",
        "CREATE SCHEMA mine",
        "CREATE PUBLICATION p FOR ALL TABLES",
        "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER FUNCTION pg_catalog.texteq(text, text) LEAKPROOF",
        "CREATE FUNCTION pg_temp.f(text) RETURNS boolean LANGUAGE sql LEAKPROOF AS 'SELECT true'",
        "CREATE ROLE mine",
        "GRANT traksense_ingest TO CURRENT_USER",
        "ALTER ROLE CURRENT_USER BYPASSRLS",
        "COMMENT ON VIEW public.ts_measure IS 'mine'",
        "REFRESH MATERIALIZED VIEW traksense.rollup_1m",
        "CLUSTER public.cmd_ack",
        "REINDEX TABLE public.cmd_ack",
        "LOAD 'auto_explain'",
        "SET log_statement = 'all'",
    ],
)
def test_statement_is_refused(session: Session, statement: str) -> None:
    """A reader changes nothing, and is refused for want of rights: before any key could be probed."""
    with pytest.raises(psycopg.Error) as caught:
        session.execute(statement.encode())

    assert caught.value.sqlstate in ("42501", "42P16", "55000", "0A000"), caught.value
    assert not caught.value.diag.message_detail or MARK not in caught.value.diag.message_detail


LEAK = (
    "CREATE OR REPLACE FUNCTION pg_temp.leak(anyelement) RETURNS boolean LANGUAGE plpgsql COST 0.0000001 AS"
    " $$ BEGIN RAISE NOTICE 'saw %', $1; RETURN true; END $$"
)


@pytest.mark.parametrize("setting", ["enable_nestloop = off", "enable_indexscan = off", "enable_hashjoin = off"])
def test_leaky_function(walled: Database, session: Session, setting: str) -> None:
    """A cheap function that tells what it is given is given nothing foreign, for any column, in any clause."""
    session.execute(LEAK)
    session.execute(f"SET {setting}".encode())
    # A plan of a disabled kind costs so much by reckoning that each of these would be compiled, for seconds.
    session.execute("SET jit = off")
    session.execute("SET client_min_messages = notice")
    for relation in public(walled):
        for column, _ in walled.rows(COLUMNS, relation):
            for query in (
                f"SELECT count(*) FROM {relation} WHERE pg_temp.leak({column})",
                f"SELECT count(*) FROM {relation} a JOIN (VALUES (1)) b ON pg_temp.leak(a.{column}::text)",
                f"SELECT max(1) FROM {relation} GROUP BY {column} HAVING pg_temp.leak({column}::text)",
            ):
                told = outcome(session, query)
                assert not re.search(f"{MARK}|{NUMBER}", told), (query, told[:300])


def test_error_messages(walled: Database, session: Session) -> None:
    """An error that is raised for some rows only, or quotes a value, is never raised for a foreign row."""
    for relation in public(walled):
        for column, kind in walled.rows(COLUMNS, relation):
            probes = [f"SELECT ({column}::text)::inet FROM {relation}", f"SELECT ({column}::text)::bit FROM {relation}"]
            if kind == "text":
                probes.append(
                    f"SELECT count(*) FROM {relation} WHERE 1 / (position('{MARK}' in {column}) - 1) < 9 OR true"
                )
            if kind == "double precision":
                probes.append(f"SELECT 1 FROM {relation} WHERE 1 / ({column} - {NUMBER}) > 0")
            for probe in probes:
                told = outcome(session, probe)
                assert "division by zero" not in told, probe
                assert not re.search(f"{MARK}|{NUMBER}", told.replace(f"'{MARK}'", "")), (probe, told[:300])


SETTINGS = [
    "",
    "SET enable_nestloop = off; SET enable_indexscan = off; SET enable_bitmapscan = off",
    "SET enable_seqscan = off; SET enable_hashjoin = off; SET enable_mergejoin = off",
    "SET enable_sort = off; SET enable_hashagg = off; SET enable_seqscan = off; SET enable_material = off",
]


@pytest.mark.parametrize("options", ["COSTS", "ANALYZE, COSTS, TIMING off, SUMMARY off, BUFFERS off"])
def test_explain_does_not_tell_a_good_guess_from_a_bad_one(walled: Database, session: Session, options: str) -> None:
    """Estimates and counts of a query for a foreign name or value are those of one that nobody has."""
    guesses = {
        "text": [(f"'{value}'", "'nobody has this'") for value in _foreign_texts(walled)],
        "double precision": [(str(NUMBER), "434343.75")],
        "jsonb": [(f'\'{{"{MARK}": "{MARK}"}}\'', '\'{"nobody": "has"}\'')],
        "bytea": [
            (f"'\\x{walled.value('SELECT md5(%s)', MARK + '7')}'", f"'\\x{walled.value('SELECT md5(%s)', 'no')}'")
        ],
    }
    session.execute("SET max_parallel_workers_per_gather = 0; SET jit = off")
    told = []
    for setting, relation in itertools.product(SETTINGS, public(walled)):
        if setting:
            session.execute(setting.encode())
        for column, kind in walled.rows(COLUMNS, relation):
            for good, bad in guesses.get(kind, ()):
                plans = [
                    _plan(session, f"EXPLAIN ({options}) SELECT * FROM {relation} WHERE {column} = {guess}", guess)
                    for guess in (good, bad)
                ]
                if plans[0] != plans[1]:
                    told.append((relation, column, good, *plans))
        session.execute("RESET ALL")
        session.execute("SELECT set_config('app.tenant_id', %s, false)", (OWN,))
        session.execute("SET max_parallel_workers_per_gather = 0; SET jit = off")

    assert [] == told


def _foreign_texts(database: Database) -> list[str]:
    names = (FOREIGN, f"{MARK} device 1", f"{MARK} point 1", MARK, f"{MARK} unit", f"{MARK} text", f"{MARK} command 7")
    return [*names, f"{MARK} event 7", f"{MARK} type", f"{MARK} err", f"{MARK} reason", f"{MARK} detail"]


def _plan(session: Session, query: str, guess: str) -> str:
    text = "\n".join(row[0] for row in session.execute(query.encode()).fetchall())
    text = text.replace(guess.strip("'"), "GUESS")
    # Costs and memory may differ by the length of the constant; rows may not.
    return re.sub(r"cost=\S+|width=\d+|Memory(?: Usage)?: \d+kB|Heap Blocks: .*|Memory: .*", "", text)


def test_names_of_partitions_and_chunks_say_nothing(walled: Database) -> None:
    """Whatever the catalogs show to everybody has no tenant in its name."""
    names = walled.rows(
        "SELECT relname::text FROM pg_class UNION ALL SELECT proname::text FROM pg_proc"
        " UNION ALL SELECT nspname::text FROM pg_namespace UNION ALL SELECT polname::text FROM pg_policy"
    )

    assert not [name for (name,) in names if MARK in name or OWN in name]


def test_other_sessions_are_not_seen(walled: Database, reader: str, session: Session) -> None:
    """What a session of another login, even of the same role, is running is hidden."""
    other = walled.create_member("traksense_app")
    with psycopg.connect(other, autocommit=True) as busy:
        busy.execute(sql.SQL("SELECT set_config('app.tenant_id', {}, false) /* busy */").format(FOREIGN))
        told = outcome(session, "SELECT query FROM pg_stat_activity")

    assert MARK not in told


def test_prepared_statement_outlives_no_tenant(session: Session) -> None:
    """A plan made for one tenant serves the next one's rows, whichever way plans are cached."""
    for mode in ("force_generic_plan", "force_custom_plan", "auto"):
        session.execute(f"SET plan_cache_mode = {mode}".encode())
        session.execute(
            "PREPARE attack AS SELECT tenant_id FROM ts_measure UNION SELECT tenant_id FROM cmd_ack"
            " UNION SELECT tenant_id FROM device_event UNION SELECT tenant_id FROM ingest_errors"
        )
        for tenant in (OWN, FOREIGN, "", OWN, "nobody", FOREIGN, OWN) * 2:
            session.execute("SELECT set_config('app.tenant_id', %s, false)", (tenant,))
            expected = [(tenant,)] if tenant in (OWN, FOREIGN) else []
            assert expected == session.execute("EXECUTE attack").fetchall()
        session.execute("DEALLOCATE attack")


def test_cursor_keeps_the_tenant_it_was_opened_for(session: Session) -> None:
    """A cursor that is still open when the tenant changes shows one tenant, never both."""
    with session.transaction():
        session.execute("DECLARE c CURSOR FOR SELECT tenant_id FROM ts_measure ORDER BY ts")
        seen = session.execute("FETCH 5 FROM c").fetchall()
        session.execute("SELECT set_config('app.tenant_id', %s, true)", (FOREIGN,))
        seen += session.execute("FETCH ALL FROM c").fetchall()

    assert {(OWN,)} == set(seen)


@pytest.mark.parametrize(
    "between",
    ["DISCARD ALL", "RESET ALL", "RESET app.tenant_id", "SELECT set_config('app.tenant_id', '', false)"],
)
def test_pool_in_session_mode(reader: str, between: str) -> None:
    """A pooled session that is reset between two users shows the second one nothing of the first."""
    with psycopg.connect(reader, autocommit=True) as pooled:
        pooled.execute("SELECT set_config('app.tenant_id', %s, false)", (FOREIGN,))
        assert pooled.execute("SELECT count(*) FROM ts_measure").fetchone() != (0,)
        pooled.execute(between.encode())

        assert (0, 0) == pooled.execute(
            "SELECT (SELECT count(*) FROM ts_measure), (SELECT count(*) FROM cmd_ack)"
        ).fetchone()


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
def test_pool_in_transaction_mode(reader: str, end: str) -> None:
    """SET LOCAL ends with the transaction, however it ends, and a savepoint does not keep it either."""
    with psycopg.connect(reader, autocommit=True) as pooled:
        for tenant in (FOREIGN, OWN):
            pooled.execute("BEGIN")
            pooled.execute("SELECT set_config('app.tenant_id', %s, true)", (tenant,))
            assert [(tenant,)] == pooled.execute("SELECT DISTINCT tenant_id FROM ts_measure").fetchall()
            pooled.execute("SAVEPOINT s")
            pooled.execute("SELECT set_config('app.tenant_id', %s, true)", (FOREIGN,))
            pooled.execute("ROLLBACK TO s")
            assert [(tenant,)] == pooled.execute("SELECT DISTINCT tenant_id FROM cmd_ack").fetchall()
            pooled.execute(end.encode())
            assert [] == pooled.execute("SELECT tenant_id FROM ts_measure").fetchall()


def test_time_condition_is_pushed_down(walled: Database, session: Session) -> None:
    """The walls do not cost the indexes: device and time are still conditions of an index scan."""
    session.execute("SET enable_seqscan = off")
    plan = outcome(
        session,
        "EXPLAIN SELECT * FROM ts_measure"
        f" WHERE device_id = 'own device 1' AND ts >= '{DAY}' AND ts < '2026-01-01 01:00Z'",
    )

    assert re.search(r"Index Cond: .*\bts >= ", plan)
