from __future__ import annotations

import asyncio
import inspect
import logging
import os
import re
import secrets
import shutil
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import asyncpg
import psycopg
import pytest
from schema_servers import give_to_plain_owner, with_parts

from tests.command_line import argv, environment
from tests.patience import HANG_SECONDS
from tests.terminals import left, run_on_terminal
from traksense.commands.migrate import WORDS, Words
from traksense.config import DatabaseUrl, Secret
from traksense.errors import (
    ConfigError,
    SchemaNewerError,
    StoreMisconfiguredError,
    StoreUnavailableError,
    TraksenseError,
)
from traksense.log import fields
from traksense.store import migrate as module
from traksense.store import migration_lock, roles, sql_files
from traksense.store.migrate import migrate
from traksense.store.schema_version import read_version
from traksense.store.sql_files import LATEST, Migration, migrations

if TYPE_CHECKING:
    from schema_servers import Database, Server

    from traksense.store.migrate import MigrationReport

pytest_plugins = ("schema_fixtures",)

log = logging.getLogger(__name__)
NAMES = tuple(str(migration) for migration in migrations())
SQL_DIRECTORY = Path(__file__).parents[2] / "sql"


def engine_of(database: Database) -> str:
    return "timescaledb" if database.server.timescaledb else "postgresql"


def run_migrate(dsn: str) -> TraksenseError:
    """The error that migrate ends with."""
    with pytest.raises(TraksenseError) as caught:
        asyncio.run(migrate(dsn, log=log))
    return caught.value


def version_of(dsn: str) -> int | None:
    async def read() -> int | None:
        connection = await asyncpg.connect(dsn)
        try:
            return await read_version(connection)
        finally:
            await connection.close()

    return asyncio.run(read())


def test_latest_is_newest_file() -> None:
    """The number that the service asks for is the number of the newest SQL file."""
    versions = [int(path.name[:4]) for path in SQL_DIRECTORY.glob("[0-9]*.sql")]

    assert max(versions) == LATEST


def test_checksum_ignores_line_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkout with other line ends has the same migrations."""
    for path in SQL_DIRECTORY.glob("*.sql"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    original = [migration.checksum for migration in migrations()]
    monkeypatch.setattr(sql_files, "_sql_directory", lambda: tmp_path)

    assert original == [migration.checksum for migration in migrations()]


def test_missing_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without its SQL files says so instead of calling an empty database up to date."""
    monkeypatch.setattr(sql_files, "_sql_directory", lambda: tmp_path)

    with pytest.raises(StoreMisconfiguredError, match="install it again"):
        migrations()


def test_migrate_fresh(bare: Database) -> None:
    """An empty database gets every migration, and the report says what was done on what."""
    report = bare.migrate()

    assert (None, LATEST, NAMES, engine_of(bare)) == (
        report.from_version,
        report.to_version,
        report.applied,
        report.engine,
    )
    assert bare.value("SELECT split_part(current_setting('server_version'), ' ', 1)") == report.server_version


def test_migrate_records_checksums(migrated: Database) -> None:
    """Each applied migration is recorded with its name and the checksum of its file."""
    rows = migrated.rows("SELECT version, name, checksum FROM traksense.schema_version ORDER BY version")

    assert [(m.version, m.name, m.checksum) for m in migrations()] == rows


def test_migrate_twice(migrated: Database) -> None:
    """A second run finds nothing to do."""
    report = migrated.migrate()

    assert (LATEST, LATEST, ()) == (report.from_version, report.to_version, report.applied)


def test_migrate_by_plain_owner(bare: Database) -> None:
    """The owner of the database needs no attribute of its role to migrate it."""
    report = give_to_plain_owner(bare).migrate()

    assert report.applied == NAMES


def test_migrate_four_at_once(bare: Database) -> None:
    """Of several replicas that start at once, each migration is applied by one, and all find everything done."""

    async def race() -> list[MigrationReport]:
        return await asyncio.gather(*(migrate(bare.dsn, log=log) for _ in range(4)))

    reports = asyncio.run(race())
    assert list(NAMES) == sorted(name for report in reports for name in report.applied)
    assert {LATEST} == {report.to_version for report in reports}


@pytest.mark.parametrize("fresh", [True, False], ids=["no-schema-yet", "schema"])
def test_migrate_tells_of_waiting(
    bare: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fresh: bool
) -> None:
    """A wait for another replica's migration is logged when it begins and when it ends."""
    if not fresh:
        with monkeypatch.context() as patch:
            patch.setattr(module, "migrations", lambda: migrations()[:1])
            asyncio.run(migrate(bare.dsn, log=log, roles=False))
    caplog.set_level(logging.INFO)
    caplog.clear()
    with psycopg.connect(bare.dsn) as other:
        # As the first migration begins, or as any other.
        other.execute(b"CREATE SCHEMA traksense" if fresh else migration_lock.LOCK.encode())
        waiter = threading.Thread(target=bare.migrate)
        waiter.start()
        deadline = time.monotonic() + HANG_SECONDS
        while "migration_lock_waited_for" not in caplog.messages and time.monotonic() < deadline:
            time.sleep(0.01)
        other.rollback()
    waiter.join(HANG_SECONDS)

    assert ["migration_lock_waited_for", "migration_lock_taken", "migration_applied"] == caplog.messages[:3]
    assert bare.migrate().applied == ()


def test_migrate_lock_wait_is_bounded(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lock that is never released ends in an error that says so."""
    monkeypatch.setattr(migration_lock, "LOCK_WAIT_SECONDS", 0.0)
    with psycopg.connect(migrated.dsn) as other:
        other.execute(migration_lock.LOCK.encode())
        error = run_migrate(migrated.dsn)

    assert StoreUnavailableError is type(error)
    assert ": another migration of this database has been running" in str(error)


def test_migrate_lets_writers_go_on_beside_a_reader(
    bare: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader with an open transaction holds up the migration, but those who write only for a moment at a time."""
    with monkeypatch.context() as patch:
        patch.setattr(module, "migrations", lambda: migrations()[:11])
        asyncio.run(migrate(bare.dsn, log=log, roles=False))
    monkeypatch.setattr(module, "TABLE_LOCK_SECONDS", 0.2)
    monkeypatch.setattr(module, "BETWEEN_TRIES_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    event = (
        "INSERT INTO device_event (tenant_id, site_id, device_id, event_type, ts) VALUES ('a', 'b', 'c', 'd', now())"
    )
    with psycopg.connect(bare.dsn) as reader:
        reader.execute("SELECT count(*) FROM device_event")
        waiter = threading.Thread(target=bare.migrate)
        waiter.start()
        while caplog.messages.count("migration_table_waited_for") < 2:
            time.sleep(0.01)
        bare.run("SET lock_timeout = '5s'", event)
        reader.rollback()
    waiter.join(HANG_SECONDS)

    assert LATEST == version_of(bare.dsn)


def test_migrate_waits_for_a_table_to_give_the_roles_their_rights(
    migrated: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The roles are tried again as the migrations are: a missing policy needs a table that a reader has open."""
    migrated.run("DROP POLICY IF EXISTS ingest ON device_event")
    monkeypatch.setattr(module, "TABLE_LOCK_SECONDS", 0.2)
    monkeypatch.setattr(module, "BETWEEN_TRIES_SECONDS", 0.2)
    caplog.set_level(logging.INFO)
    with psycopg.connect(migrated.dsn) as reader:
        reader.execute("SELECT count(*) FROM device_event")
        waiter = threading.Thread(target=migrated.migrate)
        waiter.start()
        deadline = time.monotonic() + HANG_SECONDS
        while caplog.messages.count("migration_table_waited_for") < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
        reader.rollback()
    waiter.join(HANG_SECONDS)

    assert 1 == migrated.value(
        "SELECT count(*) FROM pg_policies WHERE tablename = 'device_event' AND policyname = 'ingest'"
    )
    assert {"roles.sql"} == {fields(record)["migration"] for record in caplog.records}


def test_migrate_gives_rights_beside_somebody_who_does_so_too(
    migrated: Database, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as a job of TimescaleDB, which changes a table at the same time: whoever comes second tries again."""
    monkeypatch.setattr(module, "BETWEEN_TRIES_SECONDS", 0.2)
    monkeypatch.setattr(module, "TABLE_LOCK_SECONDS", HANG_SECONDS)
    caplog.set_level(logging.INFO)
    reports: list[object] = []
    with psycopg.connect(migrated.dsn) as other:
        other.execute("GRANT SELECT ON traksense.measure TO PUBLIC")
        waiter = threading.Thread(target=lambda: reports.append(migrated.migrate()))
        waiter.start()
        deadline = time.monotonic() + HANG_SECONDS
        waits = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        while not migrated.value(waits) and time.monotonic() < deadline:
            time.sleep(0.01)
        other.commit()
    waiter.join(HANG_SECONDS)

    assert 1 == len(reports)
    assert ["migration_table_waited_for"] == caplog.messages


def test_migrate_says_which_migration_it_is_at(bare: Database) -> None:
    """Before each, with how many there are; then the roles."""
    said: list[str] = []
    asyncio.run(migrate(bare.dsn, log=log, at=said.append))

    assert said[0] == f"migration 1 of {LATEST}: first_schema; it may take long"
    assert said[-2].startswith(f"migration {LATEST} of {LATEST}: ")
    assert said[-1] == "the roles and their rights"


@pytest.mark.parametrize("sqlstate", ["55P03", "57014", "57P01", "53300"])
def test_migrate_that_was_interrupted_is_no_refusal(
    bare: Database, monkeypatch: pytest.MonkeyPatch, sqlstate: str
) -> None:
    """Nothing is wrong with the database or the role: it may be tried again."""
    monkeypatch.setattr(module, "TABLE_TRIES", 1)
    raising = Migration(1, "first", f"DO $$ BEGIN RAISE EXCEPTION 'no' USING ERRCODE = '{sqlstate}'; END $$")
    monkeypatch.setattr(module, "migrations", lambda: (raising,))

    assert StoreUnavailableError is type(run_migrate(bare.dsn))


def test_migrate_refuses_newer_schema(migrated: Database) -> None:
    """A database that a newer release has migrated is left alone."""
    migrated.run(f"INSERT INTO traksense.schema_version (version, name) VALUES ({LATEST + 1}, 'of_the_future')")
    error = run_migrate(migrated.dsn)

    assert SchemaNewerError is type(error)
    expected = f"the database has schema version {LATEST + 1}, this release knows {LATEST}: upgrade traksense"
    assert f"{DatabaseUrl(Secret(migrated.dsn))}: {expected}" == str(error)


def test_migrate_refuses_changed_file(migrated: Database) -> None:
    """A file that was edited after it had been applied is noticed and named."""
    migrated.run("UPDATE traksense.schema_version SET checksum = repeat('0', 64) WHERE version = 1")
    error = run_migrate(migrated.dsn)

    assert StoreMisconfiguredError is type(error)
    assert str(error).endswith(
        ": migration 0001_first_schema is not the one that this database was given: its checksum differs"
    )


def test_migrate_refuses_gap(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A later migration without an earlier one is refused rather than applied in the wrong order."""
    skipped, last = Migration(LATEST + 1, "skipped", "SELECT 1"), Migration(LATEST + 2, "last", "SELECT 1")
    more = (*migrations(), skipped, last)
    monkeypatch.setattr(module, "migrations", lambda: more)
    monkeypatch.setattr(module, "LATEST", last.version)
    migrated.run(f"INSERT INTO traksense.schema_version (version, name) VALUES ({last.version}, 'last')")
    error = run_migrate(migrated.dsn)

    assert str(error).endswith(
        f": migration {skipped} was skipped: the database is at version {last.version} without it"
    )


def test_migrate_rolls_failure_back(migrated: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that fails leaves nothing behind, and those before it stay."""
    more = (*migrations(), Migration(LATEST + 1, "failing", "CREATE TABLE public.half_done (); SELECT 1 / 0"))
    monkeypatch.setattr(module, "migrations", lambda: more)
    error = run_migrate(migrated.dsn)

    assert StoreMisconfiguredError is type(error)
    assert f"{DatabaseUrl(Secret(migrated.dsn))}: division by zero (SQLSTATE 22012)" == str(error)
    assert (None, LATEST) == migrated.rows(
        "SELECT to_regclass('public.half_done'), max(version) FROM traksense.schema_version"
    )[0]


@pytest.mark.parametrize("arguments", [(), ("-1", "-v", "ON_ERROR_STOP=1")], ids=["plain", "one-transaction"])
def test_psql_can_run_the_files(bare: Database, schema_server: Server, arguments: tuple[str, ...]) -> None:
    """The files work in psql whatever the search_path, and migrate adopts what psql has applied."""
    psql = str(schema_server.bindir / "psql") if schema_server.bindir else shutil.which("psql")
    if psql is None or not Path(psql).exists():
        pytest.skip("no psql here")
    files = [argument for path in sorted(SQL_DIRECTORY.glob("*.sql")) for argument in ("-f", str(path))]
    done = subprocess.run(
        [psql, "-X", "-q", "-d", bare.dsn, *arguments, *files],
        env={**os.environ, "PGOPTIONS": "-c search_path= -c client_min_messages=warning"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert version_of(bare.dsn) == LATEST
    assert () == bare.migrate().applied
    rows = bare.rows("SELECT checksum FROM traksense.schema_version ORDER BY version")
    assert [(m.checksum,) for m in migrations()] == rows


def test_read_version_without_schema(bare: Database) -> None:
    """A database that was never migrated has no version, which is not an error."""
    version = version_of(bare.dsn)

    assert version is None


def test_read_version_without_rights(migrated: Database) -> None:
    """A role that may not look is told which right it lacks."""
    dsn = migrated.create_role("stranger")

    with pytest.raises(StoreMisconfiguredError, match=r"a privilege is missing: .* permission denied for schema"):
        version_of(dsn)


def test_migrate_refuses_old_server(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is too old is named with its version before anything is tried on it."""
    monkeypatch.setattr(module, "SERVER_MINIMUM", 99)
    error = run_migrate(bare.dsn)

    assert StoreMisconfiguredError is type(error)
    where, _, said = str(error).partition(": ")
    assert (str(DatabaseUrl(Secret(bare.dsn))), True) == (where, "traksense needs 99 or newer" in said)
    assert re.search(r"this server is PostgreSQL \d+\.\d+,", said)


def test_migrate_refuses_other_encodings(bare: Database) -> None:
    """A database that cannot hold every character is refused."""
    name = f"ascii_{secrets.token_hex(4)}"
    bare.run(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'SQL_ASCII' LC_COLLATE 'C' LC_CTYPE 'C'")
    try:
        dsn = with_parts(bare.dsn, database=name)
        error = run_migrate(dsn)
    finally:
        bare.run(f"DROP DATABASE {name} WITH (FORCE)")

    assert str(error).startswith(f"{DatabaseUrl(Secret(dsn))}: this database has the encoding SQL_ASCII, ")


@pytest.mark.parametrize(
    ("others", "words"),
    [
        (
            "CREATE TABLE public.device_event (id int)",
            "something else in the database has this name: rename it, or take another database",
        ),
        ("CREATE SCHEMA traksense", "this schema is somebody else's: take another database; or it was changed by hand"),
    ],
)
def test_migrate_beside_what_others_made(bare: Database, others: str, words: str) -> None:
    """Nobody has changed our schema, and no backup helps."""
    bare.run(others)
    error = run_migrate(bare.dsn)

    assert StoreMisconfiguredError is type(error)
    assert f": {words}: " in str(error)


def test_migrate_without_rights(bare: Database) -> None:
    """A role that may not create a schema is told so in one line, and nothing is left behind."""
    stranger = bare.create_role("stranger")
    error = run_migrate(stranger)

    assert StoreMisconfiguredError is type(error)
    assert str(error).startswith(f"{DatabaseUrl(Secret(stranger))}: a privilege is missing: ")
    assert "traksense migrate" not in str(error)
    assert str(error).endswith(f": permission denied for database {urlsplit(bare.dsn).path[1:]} (SQLSTATE 42501)")
    assert version_of(bare.dsn) is None


def test_migrate_with_wrong_password(bare: Database) -> None:
    """A wrong password is a refused login, and is not repeated in the message."""
    error = run_migrate(with_parts(bare.dsn, user="postgres", password="s3cret-but-wrong"))

    assert ConfigError is type(error)
    assert "the database server refuses the login: " in str(error)
    assert "s3cret" not in str(error)


def test_migrate_without_database(bare: Database) -> None:
    """A database that does not exist is named."""
    error = run_migrate(with_parts(bare.dsn, database="nobody_made_this"))

    assert ConfigError is type(error)
    assert 'does not exist: database "nobody_made_this" does not exist (SQLSTATE 3D000)' in str(error)


def test_migrate_unreachable() -> None:
    """A server that is not there is transient trouble, told in one line without the password."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        error = run_migrate(f"postgresql://user:s3cret@127.0.0.1:{port}/traksense")

    assert StoreUnavailableError is type(error)
    unreachable = "the database server in DATABASE_URL cannot be reached: Connection refused"
    assert f"postgresql://user:***@127.0.0.1:{port}/traksense: {unreachable}" == str(error)


@pytest.mark.parametrize(
    "dsn",
    ["nonsense:s3cret@", "postgresql://user:s3cret@host:port/db", "postgresql://u:s3cret@h/db?sslmode=maybe"],
)
def test_migrate_with_unreadable_dsn(dsn: str) -> None:
    """A connection string that cannot be read is not quoted, since it holds a password."""
    error = run_migrate(dsn)

    assert ConfigError is type(error)
    assert str(error).startswith("DATABASE_URL: ")
    assert "s3cret" not in str(error)


def test_migrate_is_cancelled_cleanly(bare: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """A migration that is cancelled half-way is rolled back, and the next one is not kept waiting."""
    slow = Migration(1, "slow", "CREATE TABLE public.half_done (); SELECT pg_sleep(30)")

    async def cancel() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(module, "migrations", lambda: (slow,))
            task = asyncio.create_task(migrate(bare.dsn, log=log))
            await asyncio.sleep(0.5)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancel())

    assert bare.migrate().applied == NAMES
    assert bare.value("SELECT to_regclass('public.half_done')") is None


def test_search_path_of_the_role_does_not_matter(bare: Database) -> None:
    """Tables of the same names in front of ours are not touched or looked at."""
    bare.run("CREATE SCHEMA evil", "CREATE TABLE evil.measure (x int)", "CREATE TABLE evil.pg_class (x int)")
    with psycopg.connect(bare.dsn, autocommit=True) as connection:
        connection.execute(f'ALTER DATABASE "{connection.info.dbname}" SET search_path = evil, pg_catalog')

    assert bare.migrate().applied == NAMES
    assert bare.value("SELECT count(*) FROM traksense.ensure_partitions(now(), now())") == 1


def test_migrate_on_a_terminal_is_for_people(bare: Database) -> None:
    """Sentences instead of the log, whatever LOG_FORMAT says; nothing longer than the terminal is wide."""
    env = environment({"DATABASE_URL": bare.dsn, "LOG_FORMAT": "json"})
    status, text = run_on_terminal(argv("migrate"), env)
    lines = left(text)

    assert 0 == status
    assert lines[0].startswith("0001_first_schema: applied in ")
    assert f"schema 0 -> {LATEST} ({engine_of(bare)}): applied 0001_first_schema," in " ".join(lines)
    assert all(len(line) <= 80 and not line.startswith("{") for line in lines)


def test_every_event_of_a_migration_has_words() -> None:
    """A terminal is shown no event names."""
    names = {"migration_table_waited_for", "roles_missing"}
    for source in (module, migration_lock, roles):
        names |= set(re.findall(r'log\.\w+\(\s*"(\w+)"', inspect.getsource(source)))

    assert names == set(WORDS)
    for name in names:
        record = logging.LogRecord("x", logging.INFO, "", 1, name, None, None)
        record.__dict__.update(
            {f"traksense_{field}": 1.0 for field in ("migration", "seconds", "waited_seconds", "roles")}
        )
        assert "_" not in Words().format(record).replace("migration_by_psql", "")
