"""A session full of messages, and a service that is started on it: how fast it empties it, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.bench import tables
from traksense.tools.bench.load import TICK_MICROSECONDS
from traksense.tools.bench.readings import MIB
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from traksense.store.connection import DatabaseConnection
    from traksense.tools.bench.load import Load
    from traksense.tools.bench.stage import Contender, Stage, Watched

SLOWEST_PER_SECOND: Final = 500
"""Messages; a service that is slower than this is given up on."""

GRACE_SECONDS: Final = 60.0


async def drain(
    stage: Stage,
    contender: Contender,
    load: Load,
    chunks: Iterable[tuple[bytes, int]],
    dsn: str,
    *,
    warm: bool = False,
) -> dict[str, float]:
    """Queue the messages, start the service, wait until all is stored; the figures. Trio-flavored.

    Args:
        stage: Where.
        contender: Whose service.
        load: What is queued.
        chunks: Its packets.
        dsn: The database.
        warm: Leave out the first message of each device, so that what the service must look up once does not count.

    Raises:
        StackError: The service fails, is too slow, or rows are lost, doubled or dead-lettered.
    """
    async with (
        stage.backlog(chunks) as client_id,
        stage.service(contender, dsn, client_id) as watched,
    ):
        await watched.wait_ended(load.published, GRACE_SECONDS + load.published / SLOWEST_PER_SECOND)
        await watched.stop()
    since = load.begin - load.spread_days * 86_400_000_000
    async with stage.connection(dsn) as database:
        await check_counts(database, since, load.rows)
        connected_at = await database.call(tables.connected_at, client_id)
        commits = await database.call(tables.commits, load.begin + TICK_MICROSECONDS if warm else since)
    return figures(load, commits, watched, None if warm else connected_at)


async def check_counts(database: DatabaseConnection, begin: int, expected: int) -> None:
    """Make sure that exactly so many rows with timestamps from `begin` on are stored, and no dead letter.

    Raises:
        StackError: Something is lost, doubled or refused.
    """
    counts = await database.call(tables.count, begin)
    if counts.rows < expected:
        raise StackError(
            f"{counts.rows} rows are stored and {expected} were published: {expected - counts.rows} are lost"
        )
    if counts.rows > expected:
        more = counts.rows - expected
        raise StackError(f"{counts.rows} rows are stored and {expected} were published: {more} are too many")
    if counts.dead:
        raise StackError(f"all rows are stored, but {counts.dead} messages became dead letters")


def figures(load: Load, commits: list[tables.Commit], watched: Watched, connected_at: float | None) -> dict[str, float]:
    """From the moment when the broker accepted the service to the last commit.

    Without that moment: from the first commit on, and what it stored does not count.
    """
    if len(commits) < 2:
        raise StackError("everything was stored in one transaction: give more messages to measure a rate")
    begin, end = connected_at or commits[0].at, commits[-1].at
    rows = sum(commit.rows for commit in commits) - (0 if connected_at else commits[0].rows)
    messages = rows / load.rows * load.published
    points = messages * load.fleet.points
    seconds = max(end - begin, 1e-6)
    millions = points / 1e6
    return {
        "points_per_second": points / seconds,
        "messages_per_second": messages / seconds,
        "cpu_seconds": watched.service_cpu.between(begin, end) / millions,
        "database_cpu_seconds": watched.database_cpu.between(begin, end) / millions,
        "broker_cpu_seconds": watched.broker_cpu.between(begin, end) / millions,
        "rows_per_commit": sum(commit.rows for commit in commits) / len(commits),
        "peak_mib": watched.peak_bytes / MIB,
    }


@attrs.frozen
class Prepared:
    """A load whose packets were made once for all rounds."""

    load: Load
    chunks: list[tuple[bytes, int]]

    @classmethod
    def of(cls, load: Load) -> Prepared:
        """Make the packets."""
        return cls(load, list(load.chunks()))
