"""A session full of messages, and a service that is started on it: how fast it empties it, and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.bench import tables
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
    stage: Stage, contender: Contender, load: Load, chunks: Iterable[tuple[bytes, int]], dsn: str
) -> dict[str, float]:
    """Queue the messages, start the service, wait until all is stored; the figures. Trio-flavored.

    Raises:
        StackError: The service fails, is too slow, or rows are lost, doubled or dead-lettered.
    """
    async with (
        stage.backlog(chunks) as client_id,
        stage.service(contender, dsn, client_id) as watched,
    ):
        await watched.wait_ended(load.published, GRACE_SECONDS + load.published / SLOWEST_PER_SECOND)
        await watched.stop()
        async with stage.connection(dsn) as database:
            begin = load.begin if not load.spread_days else load.begin - load.spread_days * 86_400_000_000
            await check_counts(database, begin, load.rows)
            commits = await database.call(tables.commits, begin)
        return figures(load, commits, watched)


async def check_counts(database: DatabaseConnection, begin: int, expected: int) -> None:
    """Make sure that exactly so many rows with timestamps from `begin` on are stored, and no dead letter.

    Raises:
        StackError: Something is lost, doubled or refused.
    """
    counts = await database.call(tables.count, begin)
    if counts.rows != expected or counts.dead:
        what = (
            "are lost" if counts.rows < expected else "are doubled" if counts.rows > expected else "are as they should"
        )
        raise StackError(
            f"{counts.rows} rows are stored and {expected} were published: {abs(expected - counts.rows)} {what}; "
            f"dead letters: {counts.dead}"
        )


def figures(load: Load, commits: list[tables.Commit], watched: Watched) -> dict[str, float]:
    """From the first commit to the last; what the first one stored was worked on before and does not count."""
    if len(commits) < 2:
        raise StackError("everything was stored in one transaction: give more messages to measure a rate")
    begin, end = commits[0].at, commits[-1].at
    share = 1 - commits[0].rows / load.rows
    messages = load.published * share
    points = messages * load.fleet.points
    seconds = max(end - begin, 1e-6)
    millions = points / 1e6
    return {
        "points_per_second": points / seconds,
        "messages_per_second": messages / seconds,
        "cpu_seconds": watched.service_cpu.between(begin, end) / millions,
        "database_cpu_seconds": watched.database_cpu.between(begin, end) / millions,
        "broker_cpu_seconds": watched.broker_cpu.between(begin, end) / millions,
        "rows_per_commit": load.rows / len(commits),
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
