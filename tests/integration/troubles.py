"""What may befall a database under a running service: how it is brought about and ended, and what is true meanwhile.

A disk that is full needs one that is small. Root gets one, a tablespace on a tmpfs with a file in it that takes all the
room; for others, triggers raise what PostgreSQL raises then (SQLSTATE 53100).
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs
import psycopg

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from traksense.tools.stack import PostgresProcess

SERVICE: Final = "traksense_service"
TABLES: Final = (
    *("traksense.tenant", "traksense.device", "traksense.series", "traksense.meta", "traksense.measure"),
    *("public.cmd_ack", "public.device_event", "public.ingest_errors"),
)
ROWS_OF_A_PAGE: Final = 150
_CLOCK: Final = "CREATE FUNCTION pg_catalog.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE AS"
_FULL: Final = """
CREATE FUNCTION public.full_disk() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = 'disk_full'; END $$
"""


@attrs.frozen
class Trouble:
    """A state of the world.

    Attributes:
        name: For reports.
        lasts: Brings it about, for the duration.
        storable: Whether a fresh message of every kind can be stored meanwhile.
        reason: What the health must name, if it cannot.
        clock: Whether the database's clock agrees with ours.
        answers: Whether the store's answer can be had within seconds.
    """

    name: str
    lasts: Callable[[Scene], Iterator[None]] = attrs.field(repr=False)
    storable: bool = False
    reason: str = ""
    clock: bool = True
    answers: bool = True


class Scene:
    """A server of its own, its superuser, and a small disk if there is one."""

    def __init__(self, server: PostgresProcess, database: str, small: Path | None) -> None:
        self.server = server
        self.database = database
        self.small = small
        # A server dies with the thread that has started it, so one does that which lives on.
        self.hand = ThreadPoolExecutor(1)

    def run(self, *statements: str) -> None:
        """As superuser, whatever the server was told."""
        with psycopg.connect(self.server.dsn_of(self.database), autocommit=True) as connection:
            connection.execute("SET default_transaction_read_only = off; SET synchronous_commit = local")
            for statement in statements:
                connection.execute(statement.encode())

    def fill_pages(self) -> None:
        """On a full disk there is room in the pages that there are: use it up."""
        row = b"INSERT INTO traksense.measure (series_id, ts, v_num) VALUES (-1, clock_timestamp(), 0)"
        refused = 0
        with psycopg.connect(self.server.dsn_of(self.database), autocommit=True) as connection:
            while refused < ROWS_OF_A_PAGE:
                try:
                    connection.execute(row)
                except psycopg.errors.DiskFull:
                    refused += 1

    def end_sessions(self) -> None:
        """Of the service."""
        self.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{SERVICE}'")


@contextmanager
def small_disk(directory: Path) -> Iterator[Path | None]:
    """A file system of 48 MB, or None where there is none to be had."""
    if os.geteuid() != 0:
        yield None
        return
    directory.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=48m,mode=0777", "traksense-test", os.fspath(directory)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


def _none(_scene: Scene) -> Iterator[None]:
    yield


def _sessions_ended(scene: Scene) -> Iterator[None]:
    scene.end_sessions()
    yield


def _stopped(scene: Scene) -> Iterator[None]:
    scene.server.stop_sync()
    yield
    scene.server.start_sync()


def _killed(scene: Scene) -> Iterator[None]:
    scene.server.kill()
    yield
    scene.server.start_sync()


def _silent(scene: Scene) -> Iterator[None]:
    """As behind a black hole: connections are taken, and nothing is ever answered."""
    with psycopg.connect(scene.server.dsn) as connection:
        rows = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
    pids = [scene.server.pid, *(row[0] for row in rows)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP)
    yield
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def _full(scene: Scene) -> Iterator[None]:
    if scene.small is None:
        trigger = "CREATE TRIGGER disk_full BEFORE INSERT ON {} EXECUTE FUNCTION public.full_disk()"
        scene.run(_FULL, *map(trigger.format, TABLES))
        yield
        scene.run("DROP FUNCTION public.full_disk() CASCADE")
        return
    ballast = scene.small / "ballast"
    with ballast.open("wb") as file, suppress(OSError):
        while True:
            os.write(file.fileno(), bytes(8192))
    scene.fill_pages()
    yield
    ballast.unlink()


def _without_descriptors(scene: Scene) -> Iterator[None]:
    """Of this process, and no connection of before."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with psycopg.connect(scene.server.dsn, autocommit=True) as connection, ExitStack() as stack:
        # Below this are those that are open always.
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        stack.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
        # One that is being opened has its descriptor, and is no session yet.
        connection.execute(f"ALTER ROLE {SERVICE} NOLOGIN".encode())
        stack.callback(connection.execute, f"ALTER ROLE {SERVICE} LOGIN".encode())
        sessions = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{SERVICE}'"
        connection.execute(sessions.encode())
        yield


def _locked(table: str) -> Callable[[Scene], Iterator[None]]:
    def lasts(scene: Scene) -> Iterator[None]:
        with psycopg.connect(scene.server.dsn_of(scene.database)) as connection:
            connection.execute(f"LOCK TABLE {table} IN SHARE ROW EXCLUSIVE MODE".encode())
            yield

    return lasts


def _sql(begin: str, end: str, *, sessions: bool = False) -> Callable[[Scene], Iterator[None]]:
    """Between statements; those of one side are separated by semicolons. With new sessions of the service if asked."""

    def lasts(scene: Scene) -> Iterator[None]:
        scene.run(*begin.split(";"))
        if sessions:
            scene.end_sessions()
        yield
        scene.run(*end.split(";"))

    return lasts


HEALTHY: Final = Trouble("healthy", _none, storable=True)
READ_ONLY: Final = Trouble(
    "database read-only",
    _sql(
        "ALTER DATABASE health SET default_transaction_read_only = on",
        "ALTER DATABASE health RESET default_transaction_read_only",
        sessions=True,
    ),
    reason="read-only",
)
GENERAL: Final = (
    HEALTHY,
    Trouble("stopped", _stopped, reason="cannot be reached"),
    Trouble("sessions ended", _sessions_ended, storable=True),
    Trouble("disk full", _full, reason="disk is full"),
    Trouble(
        "server read-only",
        _sql(
            "ALTER SYSTEM SET default_transaction_read_only = on; SELECT pg_reload_conf()",
            "ALTER SYSTEM RESET default_transaction_read_only; SELECT pg_reload_conf()",
        ),
        reason="read-only",
    ),
    Trouble(
        "standby missing",
        _sql(
            "ALTER SYSTEM SET synchronous_standby_names = '*'; SELECT pg_reload_conf()",
            "ALTER SYSTEM RESET synchronous_standby_names; SELECT pg_reload_conf()",
        ),
        reason="waiting for the synchronous standby",
        answers=False,
    ),
    Trouble(
        "no connections",
        _sql(f"ALTER ROLE {SERVICE} CONNECTION LIMIT 0", f"ALTER ROLE {SERVICE} CONNECTION LIMIT -1", sessions=True),
        reason="no connection left",
    ),
    Trouble("killed", _killed, reason="cannot be reached"),
    Trouble("no descriptors", _without_descriptors, reason="no file descriptors left"),
    Trouble(
        "clock wrong",
        _sql(
            "ALTER FUNCTION pg_catalog.clock_timestamp() RENAME TO true_clock;"
            f"{_CLOCK} $$ SELECT pg_catalog.true_clock() + interval '3 days' $$",
            "DROP FUNCTION pg_catalog.clock_timestamp();"
            "ALTER FUNCTION pg_catalog.true_clock() RENAME TO clock_timestamp",
            sessions=True,  # a statement that is prepared keeps its function
        ),
        storable=True,
        clock=False,
    ),
    Trouble("silent", _silent, reason="does not answer in time", answers=False),
    Trouble("session log locked", _locked("traksense.ingest_session"), storable=True),
)


def locked(table: str) -> Trouble:
    """Somebody holds a lock that writers wait for."""
    return Trouble(f"{table} locked", _locked(table), reason="holds a lock")


def without_right(table: str) -> Trouble:
    """The service may not insert."""
    statements = f"REVOKE INSERT ON {table} FROM traksense_ingest", f"GRANT INSERT ON {table} TO traksense_ingest"
    return Trouble(f"no right to insert into {table}", _sql(*statements), reason="a privilege is missing")


def renamed(table: str) -> Trouble:
    """As by somebody who tidies up."""
    schema, name = table.split(".")
    begin, end = f"ALTER TABLE {table} RENAME TO elsewhere", f"ALTER TABLE {schema}.elsewhere RENAME TO {name}"
    return Trouble(f"{table} renamed", _sql(begin, end), reason="not as this release needs it")


TROUBLES: Final = (READ_ONLY, *GENERAL, *(kind(table) for kind in (locked, without_right, renamed) for table in TABLES))
