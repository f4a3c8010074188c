"""`traksense uninstall`: nothing of ours stays, whatever there was, and nothing of others' goes."""

from __future__ import annotations

import re
import signal
import subprocess
from typing import TYPE_CHECKING

import psycopg
import pytest
from schema_servers import user_of

from tests.command_line import argv, environment, run_command
from tests.patience import HANG_SECONDS
from traksense.config import DatabaseUrl, Secret
from traksense.errors import StoreMisconfiguredError, StoreUnavailableError
from traksense.store import uninstall as module
from traksense.store.maintenance import run_once
from traksense.store.uninstall import look, uninstall

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

OTHERS = "CREATE TABLE public.orders (id int PRIMARY KEY)"
MADE_HERE = """
SELECT 'schema', nspname FROM pg_namespace WHERE oid >= 16384
UNION ALL SELECT 'relation', oid::regclass::text FROM pg_class
    WHERE oid >= 16384 AND relnamespace <> 'pg_toast'::regnamespace
UNION ALL SELECT 'routine', oid::regprocedure::text FROM pg_proc WHERE oid >= 16384
UNION ALL SELECT 'event trigger', evtname FROM pg_event_trigger
"""


def made_here(database: Database) -> list[str]:
    """What PostgreSQL itself does not bring along."""
    found = sorted(map(str, database.rows(MADE_HERE)))
    if database.server.timescaledb:
        found += map(
            str, database.rows("SELECT proc_schema, proc_name FROM timescaledb_information.jobs ORDER BY 1, 2")
        )
    return found


DAYS = 12


def fill(database: Database) -> None:
    """Partitions or chunks of several days, aggregates, and an event."""
    series = database.add_series("acme", "press-1", "temp")
    if not database.server.timescaledb:
        database.run(f"SELECT traksense.ensure_partitions(now() - interval '{DAYS} days', now())")
    database.run(
        "INSERT INTO traksense.measure (series_id, ts, v_num)"
        f" SELECT {series}, now() - i * interval '1 day', i FROM generate_series(1, {DAYS}) i",
        "INSERT INTO public.device_event (tenant_id, site_id, device_id, event_type, ts)"
        " VALUES ('acme', 'site', 'press-1', 'boot', now())",
    )
    database.aggregate()


def test_nothing_stays(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """All is as it was before `migrate`, after several pieces; what others made there is still there."""
    monkeypatch.setattr(module, "PIECE", 5)
    bare.run(OTHERS)
    before = made_here(bare)
    bare.migrate()
    fill(bare)
    bare.run("CREATE INDEX ON public.cmd_ack (created_at)", "CREATE PUBLICATION theirs FOR TABLE public.cmd_ack")

    said: list[str] = []
    dropped = run_once(bare.dsn, "test", lambda c: uninstall(c, said.append))

    number, name = dropped.split()
    assert int(number) >= DAYS
    assert name == ("chunks" if bare.server.timescaledb else "partitions")
    pieces = [text for text in said if text != "deleted TimescaleDB's jobs"]
    assert [f"dropped 5 of {dropped}", f"dropped {number} of {dropped}"] == [pieces[0], pieces[-1]]
    assert before == made_here(bare)
    assert not run_once(bare.dsn, "test", look, schema=False).present
    assert run_once(bare.dsn, "test", uninstall, schema=False) == "", "again, and in a database that never had it"


def test_a_plain_owner_may(owned: Database) -> None:
    """It takes no superuser."""
    run_once(owned.dsn, "test", uninstall)

    assert [] == owned.rows("SELECT relname FROM pg_class WHERE relname ~ '^(ts_measure|cmd_ack|device_event)'")


def test_not_by_others(owned: Database) -> None:
    """Whoever may is named, also without --yes."""
    for function in (look, uninstall):
        with pytest.raises(StoreMisconfiguredError, match=f"must be that of {user_of(owned.dsn)}, or a superuser's"):
            run_once(owned.create_app_role(), "test", function)


def test_not_what_others_made_under_our_name(bare: Database) -> None:
    """Their schema, and a table beside it."""
    bare.run("CREATE SCHEMA traksense CREATE TABLE invoices ()", "CREATE TABLE public.cmd_ack ()")
    before = made_here(bare)

    for function in (look, uninstall):
        with pytest.raises(StoreMisconfiguredError, match="none of traksense's tables"):
            run_once(bare.dsn, "test", function, schema=False)

    assert before == made_here(bare)


def test_what_is_left_without_the_schema(migrated: Database) -> None:
    """Data are left, which is said; whose they are, only a person knows."""
    tables = "ingest_session", "dictionary_epoch", "tenant_retention"
    migrated.run(f"DROP TABLE {', '.join(f'traksense.{table}' for table in tables)} CASCADE")
    with pytest.raises(StoreMisconfiguredError, match=r"if it is not, DROP SCHEMA traksense CASCADE, and repeat this$"):
        run_once(migrated.dsn, "test", uninstall, schema=False)
    migrated.run("DROP SCHEMA traksense CASCADE")
    migrated.run("DROP TABLE public.cmd_ack", "CREATE TABLE public.cmd_ack (theirs int)")
    with pytest.raises(StoreMisconfiguredError, match="if they are traksense's, DROP TABLE") as refused:
        run_once(migrated.dsn, "test", uninstall, schema=False)
    statement = str(refused.value).partition("if they are traksense's, ")[2]
    assert statement == "DROP TABLE public.device_event, public.ingest_errors"
    migrated.run(statement)

    assert run_once(migrated.dsn, "test", uninstall, schema=False) == ""


def test_what_is_under_another_name(migrated: Database) -> None:
    """Without its public tables, too, the data are there; the remedy works."""
    migrated.run('ALTER SCHEMA traksense RENAME TO "old One"', "DROP TABLE public.cmd_ack")

    with pytest.raises(
        StoreMisconfiguredError, match="nothing is deleted: the schema traksense is gone, but"
    ) as refused:
        run_once(migrated.dsn, "test", look, schema=False)

    migrated.run(str(refused.value).partition("if it is that one, ")[2].removesuffix(", and repeat this"))
    assert run_once(migrated.dsn, "test", look).present


def test_not_under_a_running_service(migrated: Database) -> None:
    """Whose client id is named; one that stopped a minute ago, or was left just now, is no obstacle."""
    migrated.run(
        "INSERT INTO traksense.ingest_session (client_id, broker, connected_at, last_alive_at, left_at)"
        " VALUES ('old', 'b', now(), now() - interval '1 minute', NULL), ('gone', 'b', now(), now(), now()),"
        " ('traksense-ingest', 'b', now(), now(), NULL)"
    )

    with pytest.raises(StoreMisconfiguredError, match="traksense-ingest, 0 s ago: stop it first"):
        run_once(migrated.dsn, "test", uninstall)

    assert run_once(migrated.dsn, "test", look).present


NEEDING = {
    "view public.m1": "CREATE VIEW public.m1 AS SELECT point_id FROM public.ts_measure",
    "materialized view public.m2": "CREATE MATERIALIZED VIEW public.m2 AS SELECT bucket FROM public.ts_measure_1h",
    "table constraint m3_letter_fkey on public.m3": """
        CREATE TABLE public.m3 (letter bigint REFERENCES public.ingest_errors)
    """,
    "function public.m4()": """
        CREATE FUNCTION public.m4() RETURNS bigint BEGIN ATOMIC SELECT count(*) FROM public.cmd_ack; END
    """,
    "function public.m5(traksense.device)": """
        CREATE FUNCTION public.m5(traksense.device) RETURNS int LANGUAGE sql AS 'SELECT 1'
    """,
    "table column public.m6.kept": "CREATE TABLE public.m6 (kept traksense.device)",
    "table public.m7": "CREATE TABLE public.m7 () INHERITS (public.cmd_ack)",
    "rule theirs on public.orders": """
        CREATE RULE theirs AS ON DELETE TO public.orders DO ALSO DELETE FROM public.device_event
    """,
    "policy theirs on public.orders": """
        CREATE POLICY theirs ON public.orders USING (EXISTS (SELECT FROM public.cmd_ack))
    """,
    "trigger theirs on public.orders": """
        CREATE TRIGGER theirs AFTER INSERT ON public.orders EXECUTE FUNCTION traksense.refuse_nameless_points()
    """,
}
CONTINUOUS = """
CREATE MATERIALIZED VIEW public.m8 WITH (timescaledb.continuous) AS
    SELECT time_bucket('1 day', ts) AS day, count(*) FROM traksense.measure GROUP BY 1 WITH NO DATA
"""


THERE = {
    "table traksense.my_notes": "CREATE TABLE traksense.my_notes (id serial PRIMARY KEY, series bigint)",
    "view traksense.my_points": "CREATE VIEW traksense.my_points AS SELECT * FROM traksense.measure",
    "type traksense.my_range": "CREATE TYPE traksense.my_range AS RANGE (subtype = int)",
    "function traksense.mine()": "CREATE FUNCTION traksense.mine() RETURNS int LANGUAGE sql AS 'SELECT 1'",
    "table traksense.readings": """
        CREATE TABLE traksense.readings (id int) PARTITION BY RANGE (id);
        CREATE TABLE traksense.readings_1 PARTITION OF traksense.readings FOR VALUES FROM (1) TO (2)
    """,
    "table traksense.orders_1": """
        CREATE TABLE public.orders_of_all (id int) PARTITION BY RANGE (id);
        CREATE TABLE traksense.orders_1 PARTITION OF public.orders_of_all FOR VALUES FROM (1) TO (2)
    """,
}
ATTACHED = """
CREATE SCHEMA archive;
CREATE TABLE archive.measure_2019 (LIKE traksense.measure INCLUDING ALL);
ALTER TABLE traksense.measure ATTACH PARTITION archive.measure_2019 FOR VALUES FROM ('2019-01-01') TO ('2020-01-01')
"""
HSTORE = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'hstore')"


@pytest.mark.parametrize("made", [NEEDING, THERE], ids=["need it", "are there"])
def test_not_under_what_others_made(migrated: Database, made: dict[str, str]) -> None:
    """It would go as well, or keep the rest from going when the points are gone: it is named, and all stays."""
    fill(migrated)
    migrated.run(OTHERS, *made.values())
    needing = [*made]
    if made is THERE and migrated.value(HSTORE):
        migrated.run("CREATE EXTENSION hstore SCHEMA traksense")
        needing.append("extension hstore")
    if made is THERE and not migrated.server.timescaledb:
        migrated.run(ATTACHED)
        needing.append("table archive.measure_2019")
    if made is NEEDING and migrated.server.timescaledb:
        migrated.run(CONTINUOUS)
        needing.append("continuous aggregate public.m8")
    before = made_here(migrated)

    with pytest.raises(StoreMisconfiguredError) as refused:
        run_once(migrated.dsn, "test", uninstall)

    where, _, named = str(refused.value).partition(
        ": nothing is deleted, since what is not traksense's would go as well: "
    )
    assert str(DatabaseUrl(Secret(migrated.dsn))) == where
    assert sorted(needing) == sorted(named.removesuffix(": drop, move or change that first").split(", "))
    assert before == made_here(migrated)
    assert [(DAYS,)] == migrated.rows("SELECT count(*) FROM traksense.measure")


def test_what_a_newer_release_made_is_ours(migrated: Database) -> None:
    """Which names it gave, this one cannot know."""
    migrated.run(
        "CREATE TYPE traksense.newer AS ENUM ('a')",
        "CREATE TABLE traksense.newest (id serial PRIMARY KEY, newer traksense.newer)",
        "INSERT INTO traksense.schema_version (version, name) VALUES (9999, 'newer')",
    )

    run_once(migrated.dsn, "test", uninstall, schema=False)

    assert not run_once(migrated.dsn, "test", look, schema=False).present


@pytest.mark.usefixtures("interrupt_has_its_meaning")
def test_a_table_in_use(migrated: Database) -> None:
    """Who has it is said; interrupted there, it says how far it has got, and can be repeated."""
    fill(migrated)
    name = "chunks" if migrated.server.timescaledb else "partitions"
    command = argv("uninstall", "--yes")
    with psycopg.connect(migrated.dsn, application_name="their psql") as reader:
        # So that nothing waits for ever.
        reader.execute(f"SET idle_in_transaction_session_timeout = '{HANG_SECONDS:.0f}s'")
        reader.execute("SELECT count(*) FROM public.cmd_ack")
        with subprocess.Popen(
            command, env=environment({"DATABASE_URL": migrated.dsn}), stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            waits = process.stderr.readline()
            process.send_signal(signal.SIGINT)
            stopped = process.stderr.read()
        pid = reader.info.backend_pid

    session = f"session {pid}, their psql, user {user_of(migrated.dsn)}"
    assert waits == f"traksense: another transaction uses public.cmd_ack ({session}): trying again\n"
    assert process.returncode == 130
    pattern = rf"traksense: dropped (\d+) of \1 {name}; stopped before the end: repeat the command for the rest\n"
    assert re.fullmatch(pattern, stopped)
    said: list[str] = []
    assert run_once(migrated.dsn, "test", lambda c: uninstall(c, said.append)) == ""
    assert said == [], "there was nothing left to drop in pieces"


DEADLOCK = """
CREATE SEQUENCE public.tries;
CREATE FUNCTION public.deadlock() RETURNS event_trigger LANGUAGE plpgsql AS $$
BEGIN
    IF nextval('public.tries') < 3 THEN RAISE EXCEPTION 'deadlock detected' USING ERRCODE = '40P01'; END IF;
END
$$;
CREATE EVENT TRIGGER deadlock ON ddl_command_start WHEN TAG IN ('DROP SCHEMA') EXECUTE FUNCTION public.deadlock()
"""


def test_a_deadlock(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again, as often as for a table in use; jobs of TimescaleDB refresh aggregates meanwhile."""
    monkeypatch.setattr(module, "BETWEEN_TRIES_SECONDS", 0)
    monkeypatch.setattr(module, "TABLE_TRIES", 1)
    migrated.run(DEADLOCK)
    with pytest.raises(
        StoreUnavailableError, match=r"another transaction uses a table of .*: end that, and repeat this"
    ):
        run_once(migrated.dsn, "test", uninstall)
    monkeypatch.undo()
    monkeypatch.setattr(module, "BETWEEN_TRIES_SECONDS", 0)

    said: list[str] = []
    run_once(migrated.dsn, "test", lambda c: uninstall(c, waits=said.append))

    assert said == ["another transaction uses a table of traksense: trying again"]
    assert not run_once(migrated.dsn, "test", look, schema=False).present


async def test_it_has_to_be_meant(migrated: Database) -> None:
    """Without --yes it says what it would do, with the status of wrong arguments."""
    env = {"DATABASE_URL": migrated.dsn}

    refused = await run_command(env, "uninstall")
    done = await run_command(env, "uninstall", "--yes")
    empty = await run_command(env, "uninstall")

    assert (refused.status, refused.stderr.count("would delete all data in postgresql://")) == (2, 1)
    assert (done.status, done.text.split(" is left in ")[0]) == (0, "nothing of traksense")
    assert (empty.status, empty.text.split(" is in ")[0]) == (0, "nothing of traksense")
