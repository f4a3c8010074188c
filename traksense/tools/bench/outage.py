"""The database stops while the broker floods: what the service holds in memory, and how fast it catches up."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.bench import tables
from traksense.tools.bench.backlog import GRACE_SECONDS, SLOWEST_PER_SECOND, check_counts
from traksense.tools.bench.hose import LivePackets, end_session, open_hose, publish_at_rate
from traksense.tools.bench.load import CHUNK_MESSAGES
from traksense.tools.bench.readings import MIB
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from traksense.tools.bench.hose import Hose
    from traksense.tools.bench.load import Fleet
    from traksense.tools.bench.stage import Contender, Stage, Watched

CALM_SECONDS: Final = 3.0
CAUGHT_UP_SECONDS: Final = 1.0
"""Caught up: what is stored is not older than this."""


async def outage(
    stage: Stage, contender: Contender, fleet: Fleet, *, rate: float, seconds: float, flood: int
) -> dict[str, float]:
    """Publish at a rate all the time, and a flood besides while the database is down; the figures. Trio-flavored.

    Args:
        stage: Where.
        contender: Whose service.
        fleet: Who publishes; an even number of devices.
        rate: Points a second that come in before, meanwhile and after.
        seconds: How long the database is down, at least.
        flood: Messages that come in addition, as fast as the broker takes them.

    Raises:
        StackError: The service fails, or rows are lost, doubled or dead-lettered.
    """
    client_id = f"bench-outage-{time.time_ns():x}"
    async with stage.database(contender, fleet) as dsn, stage.service(contender, dsn, client_id) as watched:
        try:
            await watched.process.wait_ready()
            play = _Play(stage, watched, fleet, rate / fleet.points)
            begun_at = time.time_ns() // 1000
            async with open_hose(stage.broker) as hose:
                await play.run(hose, seconds, flood)
            await watched.wait_ended(play.published, GRACE_SECONDS)
            await watched.stop()
        finally:
            with trio.move_on_after(60, shield=True):
                await stage.postgres.start()
                await end_session(stage.broker, client_id)
        async with stage.connection(dsn) as database:
            await check_counts(database, begun_at, play.published * fleet.points)
            commits = await database.call(tables.commits, begun_at)
    return _figures([c for c in commits if c.at > play.restarted_at], rate, play.outage_bytes, watched.peak_bytes)


class _Play:
    """What happens, in order."""

    def __init__(self, stage: Stage, watched: Watched, fleet: Fleet, rate: float) -> None:
        self._stage = stage
        self._watched = watched
        self._fleet = fleet
        self._rate = rate
        self._over = False
        self.published = 0
        self.restarted_at = 0.0
        self.outage_bytes = 0

    async def run(self, hose: Hose, seconds: float, flood: int) -> None:
        """Calm, outage with flood, catching up."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish, hose)
            await trio.sleep(CALM_SECONDS)
            await self._stage.postgres.stop()
            stopped = trio.current_time()
            await self._flood(flood)
            await trio.sleep(max(0.0, stopped + seconds - trio.current_time()))
            self.outage_bytes = self._watched.note_memory()
            await self._stage.postgres.start()
            self.restarted_at = time.time()
            await self._wait_caught_up(hose, flood)
            self._over = True
        await hose.drain()

    async def _publish(self, hose: Hose) -> None:
        packets = LivePackets(lambda number, at, packet_id: self._fleet.packet(2 * number, at, packet_id))
        await publish_at_rate(hose, packets, self._rate, stop=lambda: self._over)
        self.published += packets.number

    async def _flood(self, messages: int) -> None:
        """As fast as the broker takes them, on a connection of their own."""
        # Odd numbers, and even ones for the steady rate: so no device has both, and no key comes twice.
        packets = LivePackets(lambda number, at, packet_id: self._fleet.packet(2 * number + 1, at, packet_id))
        async with open_hose(self._stage.broker) as hose:
            while packets.number < messages:
                count = min(CHUNK_MESSAGES, messages - packets.number)
                await hose.send(packets.next(count), count)
            await hose.drain()
        self.published += messages

    async def _wait_caught_up(self, hose: Hose, flood: int) -> None:
        deadline = trio.current_time() + GRACE_SECONDS + (hose.sent + flood) / SLOWEST_PER_SECOND
        while True:
            await trio.sleep(0.5)
            sent = hose.sent + flood
            samples = await self._watched.process.metrics()
            if samples.total("ingest_messages_ended_total") >= sent - self._rate * CAUGHT_UP_SECONDS / 2:
                return
            if trio.current_time() > deadline:
                raise StackError("the service did not catch up after the outage")


def _figures(commits: list[tables.Commit], rate: float, outage_bytes: int, peak_bytes: int) -> dict[str, float]:
    """From the first commit after the outage until what is stored is new again."""
    if not commits:
        raise StackError("nothing was stored after the outage")
    rows, end = 0, commits[-1].at
    for commit in commits[1:]:
        rows += commit.rows
        if commit.at - commit.oldest < CAUGHT_UP_SECONDS:
            end = commit.at
            break
    seconds = max(end - commits[0].at, 1e-3)
    return {
        "points_per_second": rows / seconds,
        "catch_up_multiple": rows / seconds / rate,
        "catch_up_seconds": seconds,
        "outage_mib": outage_bytes / MIB,
        "peak_mib": peak_bytes / MIB,
    }
