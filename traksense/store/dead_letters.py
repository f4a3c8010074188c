"""Dead letters, as operators ask for them: find, show, send again, delete.

A dead letter that was sent again is marked once the broker has it (`mark`): whoever dies before that leaves it open,
and to send it once more harms nobody. Should the service refuse the message again, the dead letter has come again: then
a mark that comes late does not close it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from datetime import datetime
    from typing import TypeAlias

    import asyncpg

    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record]

PAGE_ROWS: Final = 500
PAGE_BYTES: Final = 16 * 1024 * 1024
"""Of payloads, in memory at once: a page ends where this is passed, so a larger one goes alone."""

PURGE_ROWS: Final = 10_000
"""For one DELETE: short transactions, so that the service never waits for the rows."""


@attrs.frozen(kw_only=True)
class Selection:
    """Which dead letters. What is None does not count.

    Attributes:
        ids: These only.
        tenant, reason: As in the columns.
        since: Last received at this time or later.
        until: Last received before this time.
        open_only: Only those that have not been replayed, or came back since.
        limit: This many at most.
    """

    ids: tuple[int, ...] | None = None
    tenant: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    open_only: bool = True
    limit: int | None = None

    @property
    def arguments(self) -> tuple[object, ...]:
        """The first parameters of every statement with a selection."""
        return (self.ids, self.tenant, self.reason, self.since, self.until, self.open_only)


@attrs.frozen
class Summary:
    """A dead letter without its payload, whose size in bytes is `size`. The other names are those of the columns."""

    id: int
    ts: datetime
    last_ts: datetime | None
    replayed_at: datetime | None
    tenant_id: str | None
    reason: str
    detail: str | None
    repeats: int
    topic: str
    size: int

    @property
    def unpublishable(self) -> str | None:
        """Why this cannot be published to its topic as it was, or None if it can."""
        return topic_fault(self.topic)


@attrs.frozen
class Letter:
    """A dead letter with its exact bytes."""

    summary: Summary
    payload: bytes


@attrs.frozen
class Unsent:
    """A dead letter that is to be sent again, as it was read: how often it had come again by then, and when last."""

    id: int
    topic: str
    payload: bytes
    repeats: int
    last_at: datetime


@attrs.frozen
class Count:
    """How many dead letters: `total`, of which `open` have not been replayed; `newest` is the largest id."""

    total: int
    open: int
    newest: int


@attrs.frozen
class Group:
    """Dead letters of one tenant and reason: how many rows, how many messages with repeats, when the first and the last
    came.
    """

    tenant_id: str | None
    reason: str
    letters: int
    messages: int
    first: datetime
    last: datetime


def topic_fault(topic: str) -> str | None:
    """Why a message cannot be published to this topic as it was, or None if it can.

    Source: MQTT 5.0 §4.7.3 (at least one character, no NUL, at most 65,535 bytes), §3.3.2.1 (no wildcards), §4.7.2 ($),
    §1.5.4 (what a server may treat as malformed).
    """
    if not topic:
        return "the topic is empty"
    if "+" in topic or "#" in topic:
        return "the topic has a wildcard"
    if topic.startswith("$"):
        return "topics that begin with $ belong to the broker"
    # Bytes that text cannot hold were stored as escapes: the topic that was meant is not known for sure.
    if _ESCAPE.search(topic):
        return "the topic had bytes that are not UTF-8"
    if len(topic.encode()) > 65_535:
        return "the topic is longer than 65535 bytes"
    # What such a broker ends is the connection, and with it the replay of all others.
    if _MALFORMED.search(topic):
        return "the topic has a control character or a noncharacter, for which brokers end the connection"
    return None


_LAST_OF_PLANES: Final = "".join(chr(plane << 16 | last) for plane in range(17) for last in (0xFFFE, 0xFFFF))
_MALFORMED: Final = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_LAST_OF_PLANES}]")
"""What MQTT lets a receiver end the connection for. Source: MQTT 5.0 §1.5.4."""
_ESCAPE: Final = re.compile(r"\\x[0-9a-f]{2}|\\ud[89a-f][0-9a-f]{2}")


async def select(connection: Connection, selection: Selection) -> list[Summary]:
    """Those that came last come first. asyncio-flavored."""
    rows = await connection.fetch(_SELECT, *selection.arguments, selection.limit)
    return [Summary(*row) for row in rows]


async def next_page(connection: Connection, selection: Selection, *, after: int, newest: int) -> list[Summary]:
    """The next ones by id up to `newest`, few enough to hold their payloads in memory; empty at the end.

    asyncio-flavored.
    """
    limit = PAGE_ROWS if selection.limit is None else min(PAGE_ROWS, selection.limit)
    page: list[Summary] = []
    size = 0
    for row in await connection.fetch(_SELECT_PAGE, *selection.arguments, limit, after, newest):
        summary = Summary(*row)
        size += summary.size
        if page and size > PAGE_BYTES:
            break
        page.append(summary)
    return page


async def fetch(connection: Connection, number: int) -> Letter | None:
    """The dead letter with this id, or None. asyncio-flavored."""
    row = await connection.fetchrow(_FETCH, number)
    return None if row is None else Letter(Summary(*tuple(row)[:-1]), row["payload"])


async def count(connection: Connection, selection: Selection) -> Count:
    """How many there are; `limit` does not count. asyncio-flavored."""
    row = await connection.fetchrow(_COUNT, *selection.arguments)
    assert row is not None  # an aggregate has a row
    return Count(*row)


async def groups(connection: Connection, selection: Selection) -> list[Group]:
    """By tenant and reason, the most frequent first; `limit` counts groups. asyncio-flavored."""
    return [Group(*row) for row in await connection.fetch(_GROUPS, *selection.arguments, selection.limit)]


async def read(connection: Connection, ids: Sequence[int], *, open_only: bool) -> list[Unsent]:
    """These, by id; those that are gone, or replayed by somebody else meanwhile, are left out. asyncio-flavored."""
    return [Unsent(*row) for row in await connection.fetch(_READ, list(ids), open_only)]


async def mark(connection: Connection, sent: Sequence[Unsent]) -> None:
    """Mark these as replayed, but for those that have come again since they were read. asyncio-flavored."""
    await connection.execute(
        _MARK, *([getattr(letter, name) for letter in sent] for name in ("id", "repeats", "last_at"))
    )


async def purge(
    connection: Connection, selection: Selection, *, newest: int, note: Callable[[int], None] = lambda _deleted: None
) -> int:
    """Delete them, the oldest first; returns how many.

    Args:
        connection: An operator's.
        selection: Which.
        newest: The largest id that may be deleted: what came later was not part of the question.
        note: Told after each transaction how many are deleted by now.

    asyncio-flavored.
    """
    deleted = 0
    while selection.limit is None or deleted < selection.limit:
        rows = PURGE_ROWS if selection.limit is None else min(PURGE_ROWS, selection.limit - deleted)
        status = await connection.execute(_PURGE, *selection.arguments, rows, newest)
        now = int(status.split()[-1])
        deleted += now
        if not now:
            break
        note(deleted)
    return deleted


_COLUMNS: Final = (
    "id, ts, last_ts, replayed_at, tenant_id, reason, detail, repeats, topic, octet_length(payload) AS size"
)

_WHERE: Final = """
WHERE ($1::bigint[] IS NULL OR id = ANY ($1))
    AND ($2::text IS NULL OR tenant_id = $2)
    AND ($3::text IS NULL OR reason = $3)
    AND ($4::timestamptz IS NULL OR coalesce(last_ts, ts) >= $4)
    AND ($5::timestamptz IS NULL OR coalesce(last_ts, ts) < $5)
    AND (NOT $6::bool OR replayed_at IS NULL)
"""

_SELECT: Final = f"""
SELECT {_COLUMNS} FROM public.ingest_errors {_WHERE} ORDER BY coalesce(last_ts, ts) DESC, id DESC LIMIT $7
"""  # noqa: S608  (constants)

_SELECT_PAGE: Final = f"""
SELECT {_COLUMNS} FROM public.ingest_errors {_WHERE} AND id > $8 AND id <= $9 ORDER BY id LIMIT $7
"""  # noqa: S608  (constants)

_FETCH: Final = f"SELECT {_COLUMNS}, payload FROM public.ingest_errors WHERE id = $1"  # noqa: S608  (constants)

_COUNT: Final = f"""
SELECT count(*), count(*) FILTER (WHERE replayed_at IS NULL), coalesce(max(id), 0) FROM public.ingest_errors {_WHERE}
"""  # noqa: S608  (constants)

_GROUPS: Final = f"""
SELECT tenant_id, reason, count(*), count(*) + sum(repeats), min(ts), max(coalesce(last_ts, ts))
FROM public.ingest_errors {_WHERE} GROUP BY tenant_id, reason ORDER BY 4 DESC, 1, 2 LIMIT $7
"""  # noqa: S608  (constants)

_READ: Final = """
SELECT id, topic, payload, repeats, coalesce(last_ts, ts) FROM public.ingest_errors
WHERE id = ANY ($1::bigint[]) AND (NOT $2::bool OR replayed_at IS NULL) ORDER BY id
"""

_MARK: Final = """
UPDATE public.ingest_errors e SET replayed_at = now()
FROM unnest($1::bigint[], $2::int[], $3::timestamptz[]) AS k (id, repeats, last_at)
WHERE e.id = k.id AND e.repeats = k.repeats AND coalesce(e.last_ts, e.ts) = k.last_at
"""

_PURGE: Final = f"""
DELETE FROM public.ingest_errors
WHERE id IN (SELECT id FROM public.ingest_errors {_WHERE} AND id <= $8 ORDER BY coalesce(last_ts, ts), id LIMIT $7)
"""  # noqa: S608  (constants)
