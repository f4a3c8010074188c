"""How the service ends and begins: SIGTERM under load, SIGKILL, a second signal, a deadline, wrong configurations."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING

import psycopg
import pytest
import trio

from tests.acceptance.service_bench import envelope, query, running_service
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import open_service

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from tests.acceptance.service_bench import ServiceBench
    from traksense.tools.stack import BrokerProcess, PostgresProcess, ServiceProcess

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DEADLINE_SECONDS = 5


class Load:
    """Publishes numbered messages as fast as they are confirmed, until told to stop."""

    def __init__(self, bench: ServiceBench) -> None:
        self.bench = bench
        self.confirmed = 0
        self.stopping = trio.Event()

    async def run(self) -> None:
        where = load({"MQTT_URL": self.bench.broker.url}).broker
        async with open_publisher(where, client_id=f"load-{self.bench.tenant}", window=100) as publisher:
            number = 0
            while not self.stopping.is_set():
                points = [{"name": f"p{i}", "v": number} for i in range(3)]
                payload = envelope(points, ts=NOON + timedelta(milliseconds=number))
                await publisher.publish(self.bench.topic(device=f"d{number % 7}"), payload)
                number += 1
            await publisher.drain()
            self.confirmed = number


async def end_under_load(bench: ServiceBench, number: signal.Signals, *, after: int) -> tuple[int, int]:
    """Signal the service once it has stored some messages under load; the exit status, and how many were confirmed."""
    under_load = Load(bench)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(under_load.run)
        with trio.fail_after(HANG_SECONDS):
            while (await bench.service.metrics()).value("ingest_messages_ended_total", outcome="stored") < after:
                await trio.sleep(0.01)
            bench.service.send_signal(number)
            status = await bench.service.wait()
        under_load.stopping.set()
    return status, under_load.confirmed


async def finish(bench: ServiceBench, directory: Path, confirmed: int) -> tuple[int, int, int]:
    """Start the service again and let it take the rest; rows, distinct keys and distinct values then."""
    async with open_service(bench.environ, directory, name="second") as service:
        await service.wait_ready()
        with trio.fail_after(HANG_SECONDS):
            rows: Sequence[tuple[int, int, int]] = []
            while not rows or rows[0][2] < confirmed:
                rows = await query(
                    bench.dsn,
                    "SELECT count(*), count(DISTINCT (device_id, point_id, ts)), count(DISTINCT v_num) FROM ts_measure",
                )
                await trio.sleep(0.05)
        assert 0 == await service.stop()
    return rows[0]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
async def test_signal_under_load_loses_and_doubles_nothing(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path, number: signal.Signals
) -> None:
    """What was published and confirmed equals what is stored after a restart, no row twice; SIGTERM exits 0 in time."""
    async with running_service(
        broker, database, tenant, tmp_path, INGEST_SHUTDOWN_SECONDS=str(DEADLINE_SECONDS)
    ) as bench:
        with trio.fail_after(HANG_SECONDS):
            status, confirmed = await end_under_load(bench, number, after=500)
        expected = -signal.SIGKILL if number == signal.SIGKILL else 0
        assert expected == status
        assert 500 <= confirmed
        assert (3 * confirmed, 3 * confirmed, confirmed) == await finish(bench, tmp_path, confirmed)


async def test_drain_acknowledges_what_it_stored(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path
) -> None:
    """After a drain the broker owes nothing that was stored: the next run meets no duplicate."""
    async with running_service(broker, database, tenant, tmp_path) as bench:
        status, confirmed = await end_under_load(bench, signal.SIGTERM, after=500)
        async with open_service(bench.environ, tmp_path, name="second") as second:
            await second.wait_ready()
            with trio.fail_after(HANG_SECONDS):
                while (
                    not (rows := await query(database, "SELECT count(*) FROM ts_measure")) or rows[0][0] < 3 * confirmed
                ):
                    await trio.sleep(0.05)
            metrics = await second.metrics()

    assert 0 == status
    assert 0 == metrics.value("ingest_points_duplicate_total")
    assert "left_to_broker" in bench.service.log_path.read_text()


async def test_drain_gives_up_at_its_deadline(
    broker: BrokerProcess, lone_postgres: PostgresProcess, tenant: str, tmp_path: Path
) -> None:
    """With the database away a drain cannot end: at the deadline the rest is left to the broker, exit 0, nothing
    lost.
    """
    dsn = await migrated(lone_postgres.dsn)
    async with running_service(broker, dsn, tenant, tmp_path, INGEST_SHUTDOWN_SECONDS="1") as bench:
        lone_postgres.kill()
        await bench.publish(
            *((bench.topic(), envelope([{"name": "a", "v": n}], ts=NOON + timedelta(seconds=n))) for n in range(50))
        )
        await wait_in_flight(bench.service, 50)
        bench.service.terminate()
        with trio.fail_after(HANG_SECONDS):
            assert 0 == await bench.service.wait()
        assert "drain_abandoned" in bench.service.log_path.read_text()
        await lone_postgres.start()
        async with open_service(bench.environ, tmp_path, name="second") as second:
            await second.wait_ready()
            with trio.fail_after(HANG_SECONDS):
                while await query(dsn, "SELECT count(*) FROM ts_measure") != [(50,)]:
                    await trio.sleep(0.05)


IN_USE = "SELECT coalesce(left_at < last_alive_at, true) FROM traksense.ingest_session"


@pytest.mark.parametrize("locked", [False, True])
async def test_clean_exit_is_written_down_and_waits_for_nobody(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path, locked: bool
) -> None:
    """A session that was left is nobody's from the first moment on; if that cannot be recorded, it is said, and the end
    is the same.
    """
    async with running_service(broker, database, tenant, tmp_path, INGEST_SHUTDOWN_SECONDS="4") as bench:
        with trio.fail_after(30):
            while await query(database, IN_USE) != [(True,)]:
                await trio.sleep(0.05)
        with psycopg.connect(database) as owner:
            if locked:
                owner.execute("LOCK TABLE traksense.ingest_session")
            assert 0 == await bench.service.stop()
            owner.rollback()
        assert [(locked,)] == await query(database, IN_USE)

    log = bench.service.log_path.read_text()
    assert (False, locked) == ("drain_abandoned" in log, "session_log_failed" in log)


SEEN = "SELECT last_seen_at IS NOT NULL FROM traksense.device WHERE tenant_id = $1"
ROUNDS = "SELECT 1 FROM pg_stat_activity WHERE application_name = 'traksense maintenance ingest-' || $1"


@pytest.mark.parametrize("locked", [False, True])
async def test_clean_exit_remembers_when_devices_were_heard(
    broker: BrokerProcess, database: str, tenant: str, tmp_path: Path, locked: bool
) -> None:
    """A device that was heard since the last round is not silent afterwards; if that cannot be recorded, it is said,
    and the end is the same.
    """
    async with running_service(broker, database, tenant, tmp_path, INGEST_SHUTDOWN_SECONDS="4") as bench:
        # The first round is done, and the next one comes in half a minute.
        with trio.fail_after(HANG_SECONDS):
            while not any(name == "ingest_rollup_marks" for name, _ in await bench.service.metrics()):
                await trio.sleep(0.05)
            while await bench.query(ROUNDS, tenant):
                await trio.sleep(0.05)
        await bench.publish((bench.topic(), envelope([{"name": "p", "v": 1}], ts=NOON)))
        await bench.wait_ended(1)
        with psycopg.connect(database) as owner:
            if locked:
                owner.execute("LOCK TABLE traksense.device")
            assert 0 == await bench.service.stop()
            owner.rollback()
        assert [(not locked,)] == await bench.query(SEEN, tenant)

    log = bench.service.log_path.read_text()
    assert (False, locked) == ("drain_abandoned" in log, "last_seen_failed" in log)


@pytest.mark.parametrize("how", ["killed", "frozen"])
async def test_second_signal_exits_at_once(
    broker: BrokerProcess, lone_postgres: PostgresProcess, tenant: str, tmp_path: Path, how: str
) -> None:
    """A second SIGTERM waits neither for the drain nor for a server that does not even answer that it is to stop."""
    dsn = await migrated(lone_postgres.dsn)
    async with (
        running_service(broker, dsn, tenant, tmp_path, INGEST_SHUTDOWN_SECONDS="600") as bench,
        contextlib.AsyncExitStack() as thawing,
    ):
        backends = await query(dsn, "SELECT pid FROM pg_stat_activity WHERE backend_type = 'client backend'")
        if how == "killed":
            lone_postgres.kill()
        else:
            for (pid,) in backends:
                with contextlib.suppress(ProcessLookupError):  # our own
                    os.kill(pid, signal.SIGSTOP)
                    thawing.callback(thaw, pid)
        await bench.publish((bench.topic(), envelope([{"name": "a", "v": 1}], ts=NOON)))
        await wait_in_flight(bench.service, 1)
        bench.service.terminate()
        with trio.fail_after(HANG_SECONDS):
            while "draining" not in bench.service.log_path.read_text():
                await trio.sleep(0.02)
            bench.service.terminate()
            assert 0 == await bench.service.wait()


@pytest.mark.parametrize("scheme", ["mqtt", "mqtts"])
async def test_signal_while_the_broker_says_nothing_exits_at_once(
    database: str, tenant: str, tmp_path: Path, scheme: str
) -> None:
    """A server that accepts and is silent, in TLS's handshake or in MQTT's: with nothing in memory, SIGTERM does not
    wait for it.
    """
    heard = trio.Event()

    async def silent(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        heard.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, silent, 0, host="127.0.0.1"))
        url = f"{scheme}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        environ = {
            "MQTT_URL": url,
            "MQTT_CLIENT_ID": tenant,
            "DATABASE_URL": database,
            "INGEST_SHUTDOWN_SECONDS": "600",
        }
        async with open_service(environ, tmp_path) as service:
            with trio.move_on_after(30):
                await heard.wait()
            assert heard.is_set(), (service.status, service.log_path.read_text())
            with trio.fail_after(HANG_SECONDS):
                service.terminate()
                assert 0 == await service.wait()
            log = service.log_path.read_text()
        nursery.cancel_scope.cancel()

    # It did not wait until it would have given up by itself.
    assert "no CONNACK within" not in log
    assert "no connection within" not in log
    assert '"left_to_broker": 0' in log


async def migrated(dsn: str) -> str:
    """Migrate this database with the real command."""
    await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "traksense", "migrate"], env={"DATABASE_URL": dsn}, check=True, capture_output=True
        )
    )
    return dsn


def thaw(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has ended since
        os.kill(pid, signal.SIGCONT)


async def wait_in_flight(service: ServiceProcess, count: int) -> None:
    with trio.fail_after(HANG_SECONDS):
        while (await service.metrics()).value("ingest_in_flight_messages") < count:
            await trio.sleep(0.02)


@pytest.mark.parametrize(
    ("environ", "status", "words"),
    [
        ({"MQTT_QOS": "2", "INGEST_BATCH_MS": "soon"}, 2, ["MQTT_QOS: ", "INGEST_BATCH_MS: "]),
        ({"DATABASE_URL": "postgresql://nobody:secret@127.0.0.1:{port}/traksense"}, 2, ["DATABASE_URL: "]),
        ({"DATABASE_URL": "{dsn}-missing"}, 2, ["does not exist", "DATABASE_URL: "]),
        ({"METRICS_PORT": "{port}"}, 2, ["cannot listen on", "METRICS_PORT: "]),
    ],
)
async def test_wrong_configuration_exits_2(
    broker: BrokerProcess, database: str, environ: dict[str, str], status: int, words: list[str], tenant: str
) -> None:
    """A configuration that can never work ends at once with status 2 and one line for each fault, without secrets."""
    match = re.search(r":(\d+)/", database)
    assert match is not None
    filled = {name: value.format(dsn=database, port=match[1]) for name, value in environ.items()}
    full = {
        "MQTT_URL": broker.url,
        "MQTT_CLIENT_ID": tenant,
        "DATABASE_URL": database,
        "METRICS_PORT": "0",
        "METRICS_HOST": "127.0.0.1",
    }
    result = await trio.to_thread.run_sync(
        lambda: subprocess.run(
            [sys.executable, "-m", "traksense"],
            env=full | filled,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )
    )

    lines = result.stderr.strip().splitlines()
    assert status == result.returncode, result.stdout + result.stderr
    assert all(line.startswith("traksense: ") for line in lines), result.stderr
    assert len(lines) == len(environ)
    assert all(word in result.stderr for word in words), result.stderr
    assert "secret" not in result.stdout + result.stderr


async def test_missing_schema_waits_and_says_so(
    broker: BrokerProcess, empty_database: str, tenant: str, tmp_path: Path
) -> None:
    """A database without the schema is an operator's to fix: the service waits, says what to run, and goes on when it
    is done.
    """
    environ = {
        "MQTT_URL": broker.url,
        "MQTT_TOPICS": f"traksense/{tenant}/+/+/+",
        "MQTT_CLIENT_ID": tenant,
        "DATABASE_URL": empty_database,
    }
    async with open_service(environ, tmp_path) as service:
        with trio.fail_after(HANG_SECONDS):
            while True:
                status, body = await service.readiness()
                if status == 503 and "run `traksense migrate`" in body["conditions"]["database"].get("reason", ""):
                    break
                await trio.sleep(0.05)
        await migrated(empty_database)
        await service.wait_ready()
        assert 0 == await service.stop()
