"""A dump never takes the place of an earlier one, and comes back: ops/backup.sh and ops/restore.sh."""

from __future__ import annotations

import fcntl
import os
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from tests.patience import HANG_SECONDS

if TYPE_CHECKING:
    from collections.abc import Mapping

    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

ROOT: Final = Path(__file__).parents[2]


def run(place: Path, script: str, *arguments: str, **environment: str) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of a script of ops/."""
    done = subprocess.run(
        ["sh", str(ROOT / "ops" / script), *arguments],
        cwd=place,
        env={name: value for name, value in os.environ.items() if name != "DATABASE_URL"} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=HANG_SECONDS,
    )
    return done.returncode, done.stdout, done.stderr


def programs(database: Database, place: Path, **more: str) -> Mapping[str, str]:
    """A PATH with this server's clients, and with programs of the tests in front."""
    folder = place / "bin"
    folder.mkdir(exist_ok=True)
    for name, text in more.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    bindir = f"{database.server.bindir}:" if database.server.bindir else ""
    return {"PATH": f"{folder}:{bindir}{os.environ['PATH']}", "DATABASE_URL": database.dsn}


def becoming(database: Database) -> str:
    """What stands for root's becoming postgres: this database's superuser is somebody else."""
    login = conninfo_to_dict(database.admin)
    names = [name for name in ("host", "port", "user", "password") if name in login]
    return "\n".join(["shift 3", *(f"export PG{name.upper()}={login[name]}" for name in names), 'exec "$@"'])


def names(place: Path) -> set[str]:
    """What is in the folder, but for the tests' programs."""
    return {path.name for path in place.iterdir()} - {"bin"}


def dumped(place: Path, environment: Mapping[str, str], **more: str) -> Path:
    """A new dump."""
    status, out, error = run(place, "backup.sh", ".", **{**environment, **more})
    assert (0, "") == (status, error)
    dump = Path(out.rstrip())
    assert (place, 0o600) == (dump.parent, dump.stat().st_mode & 0o777)
    return dump


@pytest.fixture
def stored(migrated: Database) -> Database:
    """A database with points of three months and a dead letter."""
    series = migrated.add_series("acme", "pump", "pressure")
    migrated.run(
        "SELECT traksense.ensure_partitions(now() - interval '90 days', now())",
        "INSERT INTO traksense.measure (series_id, ts, v_num) "
        f"SELECT {series}, now() - make_interval(days => 9 * n), n FROM generate_series(0, 9) AS n",
        "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, digest)"
        " VALUES ('acme', 't', '{}', 'r', sha256('d'))",
    )
    return migrated


def test_dump_comes_back(stored: Database, other_bare: Database, tmp_path: Path) -> None:
    """Into a new database, with TimescaleDB too, in which nothing is left to migrate."""
    login = conninfo_to_dict(other_bare.admin)
    environment = programs(stored, tmp_path, runuser=becoming(other_bare))

    dump = dumped(tmp_path, environment)
    done = run(ROOT, "restore.sh", str(dump), str(login["dbname"]), **environment)

    assert (0, "", "") == done
    status, _, error = run(ROOT, "restore.sh", str(dump), str(login["dbname"]), **environment)
    assert (1, True) == (status, error.endswith("has a schema traksense: restore into an empty one\n"))
    for query in ("SELECT count(*), sum(v_num) FROM traksense.measure", "SELECT count(*) FROM ingest_errors"):
        assert stored.rows(query) == other_bare.rows(query)
    assert 10 == other_bare.value("SELECT count(*) FROM traksense.measure")
    assert not other_bare.migrate().applied
    other_bare.aggregate()
    assert 0 < other_bare.value("SELECT count(*) FROM traksense.measure WHERE ts > now() - interval '1 d'")


def test_dumps_beside_each_other(stored: Database, tmp_path: Path) -> None:
    """The newest stay, and files of other names."""
    stay = {"traksense-2020-01-02T023000.dump", "traksense.dump", "traksense-20200101.dump", "x.dump"}
    for name in {*stay, "traksense-2020-01-01T023000.dump"}:
        (tmp_path / name).write_text("earlier\n")
    # Of a run that was killed.
    (tmp_path / "traksense-2020-01-03T023000.dump.new").write_text("half\n")
    environment = programs(stored, tmp_path)

    dump = dumped(tmp_path, environment, KEEP="2")

    assert {*stay, dump.name} == names(tmp_path)
    subprocess.run(["pg_restore", "--list", str(dump)], check=True, env=environment, capture_output=True)


def test_dumps_that_may_be_the_last_good_ones(stored: Database, tmp_path: Path) -> None:
    """What is much larger than the dump of now stays, however old, and is named; so is what is of the future, and the
    dump of now is not taken for an old one.
    """
    large, small, future = (f"traksense-{day}T023000.dump" for day in ("2020-01-01", "2020-01-02", "2099-01-01"))
    for name in (large, small, future):
        (tmp_path / name).write_text("earlier\n")
    with (tmp_path / large).open("ab") as file:
        file.truncate(100_000_000)

    status, out, error = run(tmp_path, "backup.sh", ".", **{**programs(stored, tmp_path), "KEEP": "1"})

    assert 0 == status
    assert {large, future, Path(out.rstrip()).name} == names(tmp_path)
    first, second = error.splitlines()
    assert f"{large} is more than twice as large as the dump of now: it stays" in first
    assert f"{future} has a later date than now" in second


def test_dump_beside_a_compression(stored: Database, other_bare: Database, tmp_path: Path) -> None:
    """TimescaleDB empties the chunk that it has compressed, for snapshots of before, too: no row is missing."""
    if not stored.server.timescaledb:
        pytest.skip("plain PostgreSQL compresses nothing")
    environment = programs(stored, tmp_path, runuser=becoming(other_bare))
    with psycopg.connect(stored.dsn) as job:
        job.execute("SELECT compress_chunk(show_chunks('traksense.measure', older_than => interval '30 days'))")
        with subprocess.Popen(
            ["sh", str(ROOT / "ops" / "backup.sh"), "."],
            cwd=tmp_path,
            env={**os.environ, **environment},
            stdout=subprocess.PIPE,
            text=True,
        ) as backup:
            waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND database = %s"
            number = stored.value("SELECT oid FROM pg_database WHERE datname = current_database()")
            while not stored.value(waits, number):
                time.sleep(0.01)
            job.commit()
            assert backup.stdout is not None
            dump = backup.stdout.read().rstrip()

    done = run(ROOT, "restore.sh", dump, str(conninfo_to_dict(other_bare.admin)["dbname"]), **environment)

    assert (0, "", "") == done
    assert 10 == other_bare.value("SELECT count(*) FROM traksense.measure")


def test_restore_that_fails(stored: Database, other_bare: Database, tmp_path: Path) -> None:
    """TimescaleDB is told that it is over: rows that come now would else be lost later."""
    environment = programs(stored, tmp_path, runuser=becoming(other_bare))
    dump = dumped(tmp_path, environment)
    other_bare.run("CREATE TABLE public.cmd_ack ()")

    status, _, error = run(
        ROOT, "restore.sh", str(dump), str(conninfo_to_dict(other_bare.admin)["dbname"]), **environment
    )

    assert (1, True) == (status, 'relation "cmd_ack" already exists' in error)
    assert other_bare.value("SELECT current_setting('timescaledb.restoring', true)") in (None, "", "off")
    assert 2 == run(ROOT, "restore.sh", str(dump), "", **environment)[0]


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("half restored", "the database is empty, or half restored"),
        ("uninstalled", "the database cannot be read, or traksense is not in it"),
        ("away", "the database cannot be read, or traksense is not in it"),
        ("half", "disk full\nbackup.sh: pg_dump failed"),
        ("at the same time", "another backup is running"),
        ("KEEP", "KEEP=0: give the number of dumps to keep, at least 1"),
    ],
)
def test_dump_that_cannot_be_made(migrated: Database, bare: Database, tmp_path: Path, fault: str, said: str) -> None:
    """It says so, leaves nothing of its own, and none that was there is touched."""
    (tmp_path / "traksense-2020-01-01T023000.dump").write_text("earlier\n")
    more = {"pg_dump": "echo part; echo disk full >&2; exit 1"} if fault == "half" else {}
    environment = dict(programs(bare if fault == "uninstalled" else migrated, tmp_path, **more))
    if fault == "away":
        environment["DATABASE_URL"] = "postgresql://127.0.0.1:1/x"
    if fault == "half restored":
        migrated.run("TRUNCATE traksense.schema_version")
    folder = os.open(tmp_path, os.O_RDONLY)
    if fault == "at the same time":
        fcntl.flock(folder, fcntl.LOCK_EX)

    status, out, error = run(tmp_path, "backup.sh", ".", KEEP="0" if fault == "KEEP" else "1", **environment)

    os.close(folder)
    assert (1, "") == (status, out)
    assert error.endswith(f"{said}: no dump was made, and those before are as they were\n")
    assert {"traksense-2020-01-01T023000.dump"} == names(tmp_path)
    assert "earlier\n" == (tmp_path / "traksense-2020-01-01T023000.dump").read_text()
