"""The database away under load: nothing is lost, memory stays bounded, /readyz tells the truth, and the backlog is
caught up.
"""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import trio

from tests.acceptance.service_bench import envelope, query, running_service
from tests.acceptance.test_shutdown import migrated
from tests.patience import HANG_SECONDS
from traksense.config import load
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import BrokerOptions

if TYPE_CHECKING:
    from tests.acceptance.service_bench import ServiceBench
    from tests.conftest import OwnBroker
    from traksense.tools.stack import PostgresProcess

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
OUTAGE_SECONDS = float(os.environ.get("TRAKSENSE_TEST_OUTAGE_SECONDS", "8"))
MESSAGES_PER_SECOND = 500
POINTS = 10
RSS_MAX_MIB = 256


async def test_outage_loses_nothing_and_stays_small(
    own_broker: OwnBroker, lone_postgres: PostgresProcess, tenant: str, tmp_path: Path
) -> None:
    """5,000 points/s while the database is stopped (TRAKSENSE_TEST_OUTAGE_SECONDS, shortened here), then caught up."""
    broker = own_broker()
    dsn = await migrated(lone_postgres.dsn)
    async with running_service(broker, dsn, tenant, tmp_path) as bench, trio.open_nursery() as nursery:
        published = await nursery.start(publish_steadily, bench)
        await wait_stored(bench, 500)
        lone_postgres.kill()
        await wait_not_ready(bench)
        peak = await sample_rss(bench, OUTAGE_SECONDS)
        status, body = await bench.service.readiness()
        assert (503, False) == (status, body["conditions"]["database"]["ok"])
        await lone_postgres.start()
        with trio.fail_after(HANG_SECONDS):
            while (await bench.service.readiness())[0] != 200:
                await trio.sleep(0.05)
        published.stopping.set()
        await published.done.wait()
        with trio.fail_after(HANG_SECONDS):
            await bench.wait_ended(published.confirmed)
        peak = max(peak, await sample_rss(bench, 0))
        rows = await query(dsn, "SELECT count(*), count(DISTINCT (point_id, ts)) FROM ts_measure")

    assert [(POINTS * published.confirmed,) * 2] == rows
    assert published.confirmed >= MESSAGES_PER_SECOND * OUTAGE_SECONDS / 2
    assert peak < RSS_MAX_MIB


async def test_flood_of_large_and_bad_messages_stays_small(
    own_broker: OwnBroker, lone_postgres: PostgresProcess, tenant: str, tmp_path: Path
) -> None:
    """With the database away, 300 payloads of 1 MiB, half of them bad, wait at the broker; then each one ends as it
    should.
    """
    broker = own_broker(options=BrokerOptions(max_packet_bytes=4 * 1024 * 1024))
    dsn = await migrated(lone_postgres.dsn)
    async with running_service(broker, dsn, tenant, tmp_path) as bench:
        lone_postgres.kill()
        good = [
            envelope([{"name": "a", "v": n}], ts=NOON + timedelta(seconds=n), meta={"x": "x" * 1_000_000})
            for n in range(150)
        ]
        bad = [b"%d " % n + b"?" * 1_000_000 for n in range(150)]
        await bench.publish(*((bench.topic(), payload) for pair in zip(good, bad, strict=True) for payload in pair))
        peak = await sample_rss(bench, 2)
        await lone_postgres.start()
        with trio.fail_after(HANG_SECONDS):
            await bench.wait_ended(300)
        peak = max(peak, await sample_rss(bench, 0))
        rows = await query(
            dsn,
            "SELECT (SELECT count(*) FROM ts_measure),"
            " (SELECT count(*) FROM ingest_errors WHERE reason = 'parse_error')",
        )

    assert [(150, 150)] == rows
    assert peak < RSS_MAX_MIB


class Published:
    """A publisher at work."""

    def __init__(self) -> None:
        self.confirmed = 0
        self.stopping = trio.Event()
        self.done = trio.Event()


async def publish_steadily(bench: ServiceBench, task_status: trio.TaskStatus[Published]) -> None:
    published = Published()
    task_status.started(published)
    where = load({"MQTT_URL": bench.broker.url}).broker
    began = trio.current_time()
    async with open_publisher(where, client_id=f"steady-{bench.tenant}", window=1000) as publisher:
        number = 0
        while not published.stopping.is_set():
            points = [{"name": f"p{i}", "v": number} for i in range(POINTS)]
            await publisher.publish(
                bench.topic(device=f"d{number % 20}"), envelope(points, ts=NOON + timedelta(milliseconds=number))
            )
            number += 1
            await trio.sleep_until(began + number / MESSAGES_PER_SECOND)
        await publisher.drain()
    published.confirmed = number
    published.done.set()


async def wait_stored(bench: ServiceBench, count: int) -> None:
    with trio.fail_after(HANG_SECONDS):
        while (await bench.service.metrics()).value("ingest_messages_ended_total", outcome="stored") < count:
            await trio.sleep(0.02)


async def wait_not_ready(bench: ServiceBench) -> None:
    with trio.fail_after(HANG_SECONDS):
        while (await bench.service.readiness())[0] != 503:
            await trio.sleep(0.02)


async def sample_rss(bench: ServiceBench, seconds: float) -> float:
    """The largest resident set over this time, in MiB; the ledger balances at every look."""
    peak = 0.0
    with trio.move_on_after(seconds):
        while True:
            peak = max(peak, rss_mib(bench.service.pid))
            metrics = await bench.service.metrics()
            received = metrics.total("ingest_messages_total")
            assert received == metrics.total("ingest_messages_ended_total") + metrics.value("ingest_in_flight_messages")
            await trio.sleep(0.1)
    return max(peak, rss_mib(bench.service.pid))


def rss_mib(pid: int) -> float:
    """The highest resident set so far (VmHWM), in MiB."""
    match = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    if match is None:
        pytest.fail("no VmHWM in /proc: this test needs Linux")
    return int(match[1]) / 1024
