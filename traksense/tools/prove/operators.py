"""Operators at work on the database while the service runs: they delete, rename, empty and restore."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove.acts import Act
from traksense.tools.stack.postgres import SUPERUSER
from traksense.tools.stack.postgres_programs import server_environment
from traksense.tools.stack.processes import last_words, run_to_end

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from traksense.tools.prove.messages import Key
    from traksense.tools.prove.schedule import Injection
    from traksense.tools.prove.stage import Stage

PATIENCE_SECONDS: Final = 20.0
"""How long an operator tries, with the service's locks in the way."""

RENAMED_POINT: Final = "p0"
"""Every message of telemetry has it."""


_EMPTY: Final = (
    "DROP SCHEMA traksense, prove, public CASCADE; "
    "CREATE SCHEMA public AUTHORIZATION pg_database_owner; GRANT USAGE ON SCHEMA public TO PUBLIC"
)


async def delete_device(stage: Stage, injection: Injection) -> bool:
    """A device with its series and what they measured, as one would type it: in one transaction, or without."""
    where = stage.publishing.traffic.device(injection.draw)
    names = _names(where)
    series = f"SELECT series_id FROM traksense.series WHERE {names}"  # noqa: S608  (our own names)
    statements = [
        f"DELETE FROM traksense.measure WHERE series_id IN ({series})",  # noqa: S608
        f"DELETE FROM traksense.series WHERE {names}",  # noqa: S608
        f"DELETE FROM traksense.device WHERE {names}",  # noqa: S608
    ]
    if injection.draw % 2:
        statements = ["BEGIN", *statements, "COMMIT"]
    return await _do(stage, statements, covers=("measure", *where))


async def rename_series(stage: Stage, injection: Injection) -> bool:
    """One point of a device; the device does not know."""
    where = stage.publishing.traffic.device(injection.draw)
    name = f"{RENAMED_POINT}-{len(stage.acts)}"
    statement = (
        f"UPDATE traksense.series SET point_id = '{name}' WHERE {_names(where)} "  # noqa: S608
        f"AND point_id = '{RENAMED_POINT}'"
    )
    before: Key = ("measure", *where, RENAMED_POINT)
    return await _do(stage, [statement], covers=before, renamed=("measure", *where, name))


async def truncate(stage: Stage, injection: Injection) -> bool:
    """Measurements and names; the next series may get the numbers that other ones had."""
    numbers = "RESTART" if injection.draw % 2 else "CONTINUE"
    statement = (
        "TRUNCATE traksense.measure, traksense.series, traksense.meta, traksense.device, traksense.tenant "
        f"{numbers} IDENTITY CASCADE"
    )
    return await _do(stage, [statement], covers=("measure",))


async def restore(stage: Stage, injection: Injection) -> bool:
    """Dump the database, go on for a while, and put the dump in its place, by one transaction."""
    dump = stage.directory / "database.sql"
    with _act(stage) as act, trio.move_on_after(PATIENCE_SECONDS) as scope:
        act.saved = trio.current_time()
        while not await _run(stage, "pg_dump", f"--file={dump}"):
            await trio.sleep(0.1)
            act.saved = trio.current_time()
        await trio.sleep(injection.seconds)
        # Not pg_restore --clean: it cannot drop the key of a partition (seen with 18.6).
        options = ("--quiet", "--no-psqlrc", "--single-transaction", "--set=ON_ERROR_STOP=1")
        while not await _run(stage, "psql", *options, "-c", _EMPTY, "-f", dump):
            await trio.sleep(0.1)
    return not scope.cancelled_caught


def _names(where: Key) -> str:
    tenant, site, device = where
    return f"tenant_id = '{tenant}' AND site_id = '{site}' AND device_id = '{device}'"


async def _do(stage: Stage, statements: list[str], *, covers: Key, renamed: Key | None = None) -> bool:
    """Try until it succeeds: an operator who meets a deadlock repeats the command."""
    with _act(stage, covers, renamed), trio.move_on_after(PATIENCE_SECONDS) as scope:
        await stage.database.execute_at_last(*statements)
    return not scope.cancelled_caught


@contextmanager
def _act(stage: Stage, covers: Key = (), renamed: Key | None = None) -> Iterator[Act]:
    act = Act(covers=covers, renamed=renamed)
    stage.acts.append(act)
    try:
        yield act
    finally:
        act.ended = trio.current_time()


async def _run(stage: Stage, program: str, *arguments: str | Path) -> bool:
    """Run a program of PostgreSQL's on the run's database; what it complains of is in `operator.log`."""
    server, name = stage.servers.primary, stage.database_name
    where = ("--host", server.host, "--port", str(server.port), "--username", SUPERUSER, f"--dbname={name}")
    argv: list[str | Path] = [server.bindir / program, *where, *arguments]
    environment = server_environment() | {"PGPASSWORD": server.password}
    done = await trio.to_thread.run_sync(functools.partial(run_to_end, argv, env=environment))
    if done.returncode != 0:
        with (stage.directory / "operator.log").open("a", encoding="utf-8") as log:
            log.write(f"{program}: {last_words(done)}\n")
    return done.returncode == 0


async def count_nameless(stage: Stage) -> int:
    """Rows that nobody can read: their series is gone, all the same."""
    rows = await stage.database.execute(
        "SELECT count(*) FROM traksense.measure m WHERE NOT EXISTS "
        "(SELECT FROM traksense.series s WHERE s.series_id = m.series_id)"
    )
    return int(rows[0][0])
