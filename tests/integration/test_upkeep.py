"""Background work that does not get on is known; work that does is not suspected."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
import trio
import trio.testing
from trio_asyncio import aio_as_trio

from tests.command_line import argv, environment
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.ingest.clock import ClockWatch
from traksense.ingest.health import Health
from traksense.store import maintenance
from traksense.store.asyncio_loop import open_asyncio_loop
from traksense.store.upkeep import Upkeep

if TYPE_CHECKING:
    from schema_servers import Database

pytest_plugins = ("schema_fixtures",)

TAKE = "SELECT traksense.take_turn('drop')"
"""A row that no job of the scheduler uses."""

MARK = "SELECT traksense.mark_dirty(now(), now())"


NOTICING_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Where a shell has started the tests in the background it is ignored, and by what they start, too."""


async def nothing(_connection: Any) -> None:
    """asyncio-flavored."""


async def after_a_round(database: Database) -> tuple[Upkeep, str | None, bool]:
    """What is known after a round of a service that has just started: the reason of the condition, and whether it is
    ready.
    """
    health = Health(["database"], ["maintenance"])
    health.set("database")
    upkeep = Upkeep(load({"DATABASE_URL": database.dsn}), health, nothing)
    async with open_asyncio_loop(), trio.open_nursery() as nursery:
        done = trio.Event()

        async def call(function: object) -> None:
            if done.is_set():
                await trio.sleep_forever()
            try:
                await aio_as_trio(function)()
            finally:
                done.set()

        nursery.start_soon(upkeep.run, call)
        await done.wait()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    reason = health.report()["maintenance"].get("reason")
    return upkeep, str(reason) if reason is not None else None, health.ready


def test_round_that_does_everything(migrated: Database) -> None:
    """After a round of a fresh service all steps are known, and none is in trouble."""
    upkeep, reason, ready = trio.run(after_a_round, migrated)

    last = "compress" if migrated.server.timescaledb else "partitions"
    assert {"aggregate", "drop", "purge", last} == {state.name for state in upkeep.states}
    assert (None, True) == (reason, ready)
    assert {0} == set(upkeep.failures.values())


@pytest.mark.parametrize(("off", "done"), [(timedelta(hours=1), timedelta()), (-timedelta(days=2), timedelta(days=1))])
def test_clock_of_the_database_decides_what_is_late(migrated: Database, off: timedelta, done: timedelta) -> None:
    """A clock that is ahead does not make late what was just done; one that is behind does not hide what is late."""
    states = trio.run(after_a_round, migrated)[0].states

    async def judge() -> object:
        watch = ClockWatch(Health(["clock"]), now=lambda: datetime.now(UTC) + off)
        watch.note(-off)
        health = Health([], ["maintenance"])
        upkeep = Upkeep(load({"DATABASE_URL": migrated.dsn}), health, nothing, now=watch.store_now)
        upkeep.states = [attrs.evolve(state, succeeded_at=state.succeeded_at - done) for state in states]
        upkeep._judge()
        return health.report()["maintenance"]["ok"]

    assert (done == timedelta()) == trio.run(judge)


def test_step_that_fails_keeps_no_other_from_being_done(migrated: Database) -> None:
    """Aggregates that cannot be computed are named with the error, the service is ready all the same, and the rest is
    done; once they can be, nothing is said any more.
    """
    if migrated.server.timescaledb:
        pytest.skip("the scheduler's jobs aggregate")
    migrated.add_series("acme", "device", "point")
    migrated.run("SELECT traksense.ensure_partitions(now(), now())", MARK)
    migrated.run("ALTER TABLE traksense.rollup_1h RENAME v_sum TO other")
    upkeep, reason, ready = trio.run(after_a_round, migrated)

    assert reason is not None
    assert reason.startswith("aggregate has failed since ")
    assert reason.endswith("does not exist (SQLSTATE 42703)")
    assert ready
    assert {"aggregate": 1} == {name: count for name, count in upkeep.failures.items() if count}
    assert 7 <= len(migrated.rows("SELECT traksense.partition_ranges()"))
    [(waiting, since)] = [(s.waiting, s.waiting_since) for s in upkeep.states if s.name == "aggregate"]
    assert waiting == 1
    assert since is not None
    # Another replica knows it too.
    states = {state.name: state.failing_since for state in upkeep.states}
    assert states["aggregate"] == migrated.value("SELECT failing_since FROM traksense.step WHERE name = 'aggregate'")

    migrated.run("ALTER TABLE traksense.rollup_1h RENAME other TO v_sum")
    upkeep, reason, ready = trio.run(after_a_round, migrated)
    assert (None, True) == (reason, ready)
    assert 0 == migrated.value("SELECT count(*) FROM traksense.dirty")


async def test_maintain_interrupted_says_what_it_has_done(migrated: Database) -> None:
    """Ctrl-C while one of its steps waits for somebody's lock: what came before is done."""
    if migrated.server.timescaledb:
        pytest.skip("the scheduler's jobs aggregate")
    waits = "SELECT EXISTS (SELECT FROM pg_locks WHERE relation = 'ingest_errors'::regclass AND NOT granted)"
    migrated.add_series("acme", "device", "point")
    migrated.run("SELECT traksense.ensure_partitions(now(), now())", MARK)
    with psycopg.connect(migrated.dsn) as holder, trio.fail_after(HANG_SECONDS):
        holder.execute("LOCK TABLE ingest_errors")
        process = await trio.lowlevel.open_process(
            [sys.executable, "-c", NOTICING_CTRL_C, *argv("maintain")],
            env=environment({"DATABASE_URL": migrated.dsn}),
            stderr=subprocess.PIPE,
        )
        assert process.stderr is not None  # it is a pipe
        while not migrated.value(waits):
            await trio.sleep(0.02)
        process.send_signal(signal.SIGINT)
        said = b"".join([piece async for piece in process.stderr])
        status = await process.wait()

    done = "aggregated 1 time range, dropped 0 partitions, deleted 0 rows"
    told = f"traksense: {done}; stopped before the end: repeat the command for the rest\n"
    assert (130, told) == (status, said.decode())


def test_step_that_goes_on_failing_is_logged_once(migrated: Database, caplog: pytest.LogCaptureFixture) -> None:
    """However many rounds it fails in; and again if it fails once more after it has succeeded."""
    if migrated.server.timescaledb:
        pytest.skip("the scheduler's jobs aggregate")
    migrated.add_series("acme", "device", "point")
    migrated.run("SELECT traksense.ensure_partitions(now(), now())")

    async def rounds() -> None:
        upkeep = Upkeep(load({"DATABASE_URL": migrated.dsn}), Health(["database"], ["maintenance"]), nothing)
        async with open_asyncio_loop():
            for _ in range(2):
                migrated.run(MARK, "ALTER TABLE traksense.rollup_1h RENAME v_sum TO other")
                for _ in range(3):
                    await aio_as_trio(upkeep.round)()
                migrated.run("ALTER TABLE traksense.rollup_1h RENAME other TO v_sum")
                await aio_as_trio(upkeep.round)()
        assert 6 == upkeep.failures["aggregate"]

    trio.run(rounds)

    assert ["aggregate"] * 2 == [
        vars(line)["traksense_step"] for line in caplog.records if line.getMessage() == "maintenance_failed"
    ]


def test_what_another_replica_does_is_not_claimed(migrated: Database) -> None:
    """While another session aggregates, or hangs in it, this one does not say that it is done."""
    if migrated.server.timescaledb:
        pytest.skip("the scheduler's jobs aggregate")
    migrated.run("UPDATE traksense.step SET succeeded_at = now() - interval '1 hour' WHERE name = 'aggregate'")
    with migrated.connect() as other, other.transaction():
        other.execute("SELECT traksense.roll_up()")
        _, reason, _ = trio.run(after_a_round, migrated)

    assert reason is not None
    assert reason.startswith("aggregate has not been done since ")


def test_job_that_nobody_runs_is_late(migrated: Database) -> None:
    """A refresh that the scheduler does not run is late after ten minutes; raw points that have expired wait for it."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL has no scheduler")
    migrated.run(
        "SELECT alter_job(job_id, scheduled => false) FROM timescaledb_information.jobs"
        " WHERE proc_schema = 'traksense'",
        # Whoever has it running now is let finish.
        "CALL traksense.refresh_aggregates()",
        "UPDATE traksense.step SET succeeded_at = now() - interval '1 day' WHERE name = 'aggregate'",
        "UPDATE traksense.setting SET value = '30 days' WHERE name = 'retain_raw'",
        "INSERT INTO traksense.measure (series_id, ts, v_num) VALUES (1, now() - interval '60 days', 1)",
    )
    _, reason, ready = trio.run(after_a_round, migrated)
    assert reason is not None
    assert reason.startswith("aggregate has not been done since ")
    assert ready
    migrated.run("CALL traksense.lifecycle_job(0, NULL)")
    assert 1 == migrated.value("SELECT count(*) FROM traksense.measure")
    assert "raw: raw points that have expired are kept" in str(
        migrated.value("SELECT string_agg(error, '') FROM traksense.step")
    )

    report = maintenance.Report()
    maintenance.run_once(migrated.dsn, "test", lambda c: maintenance.maintain(c, report, jobs=True))
    assert 2 == report.jobs
    assert 0 == migrated.value("SELECT count(*) FROM traksense.measure")
    assert (None, True) == trio.run(after_a_round, migrated)[1:]


def be_at_it(session: psycopg.Connection[Any]) -> None:
    """Take a turn, and run a statement until the session is ended."""
    with pytest.raises(psycopg.OperationalError):
        session.execute(f"BEGIN; {TAKE}; SELECT pg_sleep(1); COMMIT; SELECT pg_sleep(60)".encode())


def test_turns_of_a_refresh(migrated: Database) -> None:
    """A session has its turn for as long as it runs a statement; a dead or idle one keeps nobody waiting."""
    if not migrated.server.timescaledb:
        pytest.skip("plain PostgreSQL does a piece in one transaction")
    with migrated.connect() as one, migrated.connect() as other:
        assert (True,) == other.execute(TAKE).fetchone()
        pid = one.info.backend_pid
        sleeper = threading.Thread(target=be_at_it, args=(one,))
        sleeper.start()
        # By a third session: the other one would be at it itself while it asks.
        while "PgSleep" != migrated.value(f"SELECT wait_event FROM pg_stat_activity WHERE pid = {pid}"):
            pass
        # It may have to wait for the other's transaction, and is told the truth then.
        assert (False,) == other.execute(TAKE).fetchone()
        other.execute("SELECT pg_terminate_backend(%s, 5000)", (pid,))
        assert (True,) == other.execute(TAKE).fetchone()
        sleeper.join()
    assert datetime.now(UTC) > migrated.value("SELECT holder_since FROM traksense.work WHERE name = 'drop'")
