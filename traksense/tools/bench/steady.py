"""A fleet that publishes at a rate: how old a message is when it is stored, by the device's clock."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.bench import tables
from traksense.tools.bench.backlog import GRACE_SECONDS, check_counts
from traksense.tools.bench.hose import LivePackets, end_session, open_hose, publish_at_rate
from traksense.tools.bench.readings import MIB
from traksense.tools.bench.results import quantile

if TYPE_CHECKING:
    from collections.abc import Mapping

    from traksense.tools.bench.hose import Hose
    from traksense.tools.bench.load import Fleet
    from traksense.tools.bench.stage import Contender, Stage
    from traksense.tools.stack import Samples

WARM_UP_SECONDS: Final = 2.0
"""From the first message on; then the dictionaries are known and caches warm."""

QUANTILES: Final = {"p50_ms": 0.5, "p95_ms": 0.95, "p99_ms": 0.99}
WRITTEN: Final = {"written_p50_ms": 0.5, "written_p99_ms": 0.99}
LATENCY: Final = "ingest_latency_seconds_bucket"


async def hold(stage: Stage, contender: Contender, fleet: Fleet, *, rate: float, seconds: float) -> dict[str, float]:
    """Publish so many points a second for so long; the figures. Trio-flavored.

    Raises:
        StackError: The service fails, or rows are lost, doubled or dead-lettered.
    """
    client_id = f"bench-steady-{time.time_ns():x}"
    async with stage.database(contender, fleet) as dsn, stage.service(contender, dsn, client_id) as watched:
        try:
            await watched.process.wait_ready()
            begun_at = time.time_ns() // 1000
            packets = LivePackets(fleet.packet)
            async with open_hose(stage.broker) as hose:
                await _publish_for(WARM_UP_SECONDS, hose, packets, rate / fleet.points)
                before, from_at = await watched.process.metrics(), time.time()
                await _publish_for(seconds, hose, packets, rate / fleet.points)
                after, until_at = await watched.process.metrics(), time.time()
                await hose.drain()
            await watched.wait_ended(packets.number, GRACE_SECONDS)
            await watched.stop()
        finally:
            with trio.move_on_after(30, shield=True):
                await end_session(stage.broker, client_id)
        period = int(from_at * 1e6), int(until_at * 1e6)
        async with stage.connection(dsn) as database:
            await check_counts(database, begun_at, packets.number * fleet.points)
            written = await database.call(tables.latencies, *period, list(WRITTEN.values()), fleet.points)
            commits = await database.call(tables.commits, *period)
    points = sum(commit.rows for commit in commits)
    buckets = histogram(before, after)
    return {
        "points_per_second": points / (until_at - from_at),
        **{name: 1000 * quantile(buckets, share) for name, share in QUANTILES.items()},
        **{name: 1000 * value for name, value in zip(WRITTEN, written, strict=True)},
        "cpu_seconds": watched.service_cpu.between(from_at, until_at) / points * 1e6,
        "database_cpu_seconds": watched.database_cpu.between(from_at, until_at) / points * 1e6,
        "broker_cpu_seconds": watched.broker_cpu.between(from_at, until_at) / points * 1e6,
        "rows_per_commit": points / len(commits),
        "peak_mib": watched.peak_bytes / MIB,
    }


async def _publish_for(seconds: float, hose: Hose, packets: LivePackets, rate: float) -> None:
    end = trio.current_time() + seconds
    await publish_at_rate(hose, packets, rate, stop=lambda: trio.current_time() > end)


def histogram(before: Samples, after: Samples) -> Mapping[float, float]:
    """What the service's latency histogram counted between two scrapes, by upper bound in seconds."""
    result = {}
    for (name, labels), value in after.items():
        if name == LATENCY:
            bound = dict(labels)["le"]
            result[float(bound)] = value - before.value(LATENCY, le=bound)
    return result
