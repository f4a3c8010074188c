"""The queries of `traksense dlq`, against a real database."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import attrs
import psycopg
import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.config import DatabaseUrl, Secret
from traksense.errors import ConfigError, StoreMisconfiguredError, StoreUnavailableError
from traksense.store import dead_letters
from traksense.store.connecting import check_operator
from traksense.store.connection import open_connection
from traksense.store.dead_letters import Selection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from traksense.store.connection import DatabaseConnection

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)

EVERY_BYTE = bytes(range(256)) + b"\x00\xff\xc3\x28"


@attrs.define
class Letters:
    """Writes dead letters as the service does."""

    connection: psycopg.Connection[Any]

    def add(
        self,
        payload: bytes = b"{}",
        *,
        topic: str = "traksense/acme/site/device/telem",
        tenant: str | None = "acme",
        reason: str = "parse_error",
        ts: datetime = NOON,
        last_ts: datetime | None = None,
        replayed_at: datetime | None = None,
    ) -> int:
        """One dead letter; its id."""
        digest = blake2b(topic.encode() + payload, digest_size=16).digest()
        row = self.connection.execute(
            "INSERT INTO ingest_errors (tenant_id, topic, payload, reason, detail, ts, last_ts, replayed_at, digest)"
            " VALUES (%s, %s, %s, %s, 'why', %s, %s, %s, %s) RETURNING id",
            (tenant, topic, payload, reason, ts, last_ts, replayed_at, digest),
        ).fetchone()
        assert row is not None
        return int(row[0])

    def add_many(self, count: int, size: int = 1) -> None:
        """So many dead letters, with so many bytes each."""
        self.connection.execute(
            "INSERT INTO ingest_errors (topic, payload, reason, digest)"
            " SELECT 'traksense/acme/site/device/telem', convert_to(repeat('x', %s), 'UTF8'), 'parse_error',"
            " decode(md5(i::text), 'hex') FROM generate_series(1, %s) i",
            (size, count),
        )

    def come_again(self, number: int) -> None:
        """What the service does when it refuses the same message again."""
        self.connection.execute(
            "UPDATE ingest_errors SET replayed_at = NULL, repeats = repeats + 1, last_ts = ts WHERE id = %s", (number,)
        )

    def open_ids(self) -> set[int]:
        """The ids of those that have not been replayed."""
        return {row[0] for row in self.connection.execute("SELECT id FROM ingest_errors WHERE replayed_at IS NULL")}


@pytest.fixture
def letters(database: str) -> Iterator[Letters]:
    """An operator's second session."""
    with psycopg.connect(database, autocommit=True) as connection:
        yield Letters(connection)


@pytest.fixture
async def connection(database: str) -> AsyncIterator[DatabaseConnection]:
    """The command's session."""
    with trio.fail_after(HANG_SECONDS):
        async with open_connection(url(database), application="test") as opened:
            yield opened


def url(dsn: str) -> DatabaseUrl:
    return DatabaseUrl(Secret(dsn))


async def selected(connection: DatabaseConnection, **filters: Any) -> list[int]:
    return [s.id for s in await connection.call(dead_letters.select, Selection(**filters))]


async def test_select_gives_what_came_last_first(connection: DatabaseConnection, letters: Letters) -> None:
    """A dead letter that came again lately is listed before one that came once, later than its first time."""
    again = letters.add(b"1", ts=NOON, last_ts=NOON + 3 * HOUR)
    once = letters.add(b"2", ts=NOON + HOUR)

    assert [again, once] == await selected(connection)
    assert [again] == await selected(connection, limit=1)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({"tenant": "acme"}, {"early", "late", "replayed"}),
        ({"tenant": "nobody"}, set()),
        ({"reason": "invalid_topic"}, {"nameless"}),
        ({"since": NOON + 2 * HOUR}, {"late", "nameless"}),
        ({"until": NOON + 2 * HOUR}, {"early", "replayed"}),
        ({"since": NOON, "until": NOON + HOUR}, {"early", "replayed"}),
        ({"tenant": "acme", "open_only": True}, {"early", "late"}),
        ({"tenant": "acme", "reason": "parse_error", "since": NOON + HOUR}, {"late"}),
    ],
)
async def test_select_wants_every_filter_to_hold(
    connection: DatabaseConnection, letters: Letters, filters: dict[str, Any], expected: set[str]
) -> None:
    """Tenant, reason, time of last receipt and state each narrow the selection; the end of a time is excluded."""
    ids = {
        "early": letters.add(b"early"),
        "late": letters.add(b"late", last_ts=NOON + 2 * HOUR),
        "nameless": letters.add(b"?", tenant=None, reason="invalid_topic", ts=NOON + 3 * HOUR),
        "replayed": letters.add(b"replayed", replayed_at=NOON + HOUR),
    }

    assert {ids[name] for name in expected} == set(await selected(connection, **({"open_only": False} | filters)))


async def test_fetch_gives_the_exact_bytes(connection: DatabaseConnection, letters: Letters) -> None:
    """The payload comes back byte for byte, NUL and invalid UTF-8 included."""
    number = letters.add(EVERY_BYTE)

    letter = await connection.call(dead_letters.fetch, number)

    assert letter is not None
    assert EVERY_BYTE == letter.payload
    assert len(EVERY_BYTE) == letter.summary.size
    assert await connection.call(dead_letters.fetch, number + 1) is None


async def test_read_gives_what_is_to_be_sent_and_mark_closes_it(
    connection: DatabaseConnection, letters: Letters
) -> None:
    """Open until it is marked; then only a replay of all gets it again."""
    number = letters.add(EVERY_BYTE)

    unsent = await connection.call(dead_letters.read, [number], open_only=True)

    assert [(number, EVERY_BYTE)] == [(letter.id, letter.payload) for letter in unsent]
    assert {number} == letters.open_ids()
    await connection.call(dead_letters.mark, unsent)
    assert set() == letters.open_ids()
    assert [] == await connection.call(dead_letters.read, [number], open_only=True)
    assert [number] == [letter.id for letter in await connection.call(dead_letters.read, [number], open_only=False)]


async def test_mark_leaves_open_what_has_come_again(connection: DatabaseConnection, letters: Letters) -> None:
    """The service may refuse a message again before the broker's confirmation of it has been noted."""
    number, other = letters.add(), letters.add(b"other")
    unsent = await connection.call(dead_letters.read, [number, other], open_only=True)
    letters.come_again(number)

    await connection.call(dead_letters.mark, unsent)

    assert {number} == letters.open_ids()


async def test_next_page_goes_through_all_by_id(connection: DatabaseConnection, letters: Letters) -> None:
    """Pages hold a bounded number of dead letters, and together every one of them once, but none that came later."""
    letters.add_many(2 * dead_letters.PAGE_ROWS + 2)
    newest = max(letters.open_ids()) - 1
    letters.add(b"later")
    pages: list[list[int]] = [[0]]
    while pages[-1]:
        page = await connection.call(dead_letters.next_page, Selection(), after=pages[-1][-1], newest=newest)
        pages.append([summary.id for summary in page])

    assert [dead_letters.PAGE_ROWS, dead_letters.PAGE_ROWS, 1, 0] == [len(page) for page in pages[1:]]
    assert sorted(letters.open_ids())[:-2] == [number for page in pages[1:] for number in page]


async def test_next_page_is_bounded_in_bytes(connection: DatabaseConnection, letters: Letters) -> None:
    """A page ends before its payloads pass the budget; one that is larger than the budget goes alone."""
    letters.add_many(5, size=dead_letters.PAGE_BYTES // 2 - 1)
    large = letters.add(b"x" * (dead_letters.PAGE_BYTES + 1))

    page = await connection.call(dead_letters.next_page, Selection(), after=0, newest=large)
    alone = await connection.call(dead_letters.next_page, Selection(), after=large - 1, newest=large)

    assert 2 == len(page)
    assert [large] == [summary.id for summary in alone]


async def test_purge_deletes_what_was_counted_and_nothing_that_came_since(
    connection: DatabaseConnection, letters: Letters
) -> None:
    """Dead letters that arrive between question and answer stay."""
    letters.add(b"1")
    letters.add(b"2")
    count = await connection.call(dead_letters.count, Selection())
    late = letters.add(b"3")

    assert (2, 2) == (count.total, count.open)
    assert 2 == await connection.call(dead_letters.purge, Selection(), newest=count.newest)
    assert {late} == letters.open_ids()


async def test_purge_works_in_portions_and_stops_at_its_limit(
    connection: DatabaseConnection, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many dead letters go in several transactions; with a limit, the oldest ones and no more than it says."""
    monkeypatch.setattr(dead_letters, "PURGE_ROWS", 10)
    letters.add_many(35)
    newest = (await connection.call(dead_letters.count, Selection())).newest

    assert 12 == await connection.call(dead_letters.purge, Selection(limit=12), newest=newest)
    done: list[int] = []
    assert 23 == await connection.call(dead_letters.purge, Selection(), newest=newest, note=done.append)
    assert [10, 20, 23] == done


MALFORMED = "the topic has a control character or a noncharacter, for which brokers end the connection"


@pytest.mark.parametrize(
    ("topic", "fault"),
    [
        ("traksense/acme/site/device/telem", None),
        ("traksense/açaí/µ/☃/telem", None),
        ("traksense/a\\b/site/device/telem", None),
        ("", "the topic is empty"),
        ("traksense/+/site/device/telem", "the topic has a wildcard"),
        ("traksense/#", "the topic has a wildcard"),
        ("$SYS/broker", "topics that begin with $ belong to the broker"),
        ("traksense/\\xff/site/device/telem", "the topic had bytes that are not UTF-8"),
        ("traksense/\\x00/site/device/telem", "the topic had bytes that are not UTF-8"),
        ("traksense/\\udcff/site/device/telem", "the topic had bytes that are not UTF-8"),
        ("x" * 65_536, "the topic is longer than 65535 bytes"),
        *(
            (f"traksense/a{character}/site/device/telem", MALFORMED)
            for character in "\n\x1b\x7f\x9f\ufdd0\uffff\U0010fffe"
        ),
        ("traksense/a\u00a0\ufffd\U0010fffd/site/device/telem", None),
    ],
)
def test_topic_fault_names_why_a_topic_cannot_be_published_to(topic: str, fault: str | None) -> None:
    """Topics with wildcards or escaped bytes are not published to: the broker would refuse, or it would be another."""
    assert fault == dead_letters.topic_fault(topic)


async def test_check_operator_refuses_a_role_that_sees_a_part(database: str, letters: Letters) -> None:
    """A role that row security binds is refused, instead of being shown its part as if it were all."""
    letters.connection.execute("CREATE ROLE dlq_reader LOGIN PASSWORD 'x'; GRANT SELECT ON ingest_errors TO dlq_reader")
    try:
        reader = url(re.sub("//postgres:[^@]*@", "//dlq_reader:x@", database))
        with trio.fail_after(HANG_SECONDS):
            async with open_connection(reader, application="test") as connection:
                with pytest.raises(StoreMisconfiguredError, match="not an operator"):
                    await connection.call(check_operator)
    finally:
        letters.connection.execute("DROP OWNED BY dlq_reader; DROP ROLE dlq_reader")


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda dsn: dsn.replace("postgres:", "postgres:not", 2), ConfigError, "password authentication failed"),
        (lambda dsn: f"{dsn}-not", ConfigError, "does not exist"),
        (lambda _: "postgresql://u:geheim@127.0.0.1:1/x", StoreUnavailableError, "127.0.0.1:1/x: the database"),
        (
            lambda _: "postgresql://u:geheim@127.0.0.1/x?sslmode=what",
            ConfigError,
            "/x: a parameter of the URL cannot be used: `sslmode` parameter must be",
        ),
    ],
)
async def test_open_connection_fails_in_one_line_without_the_password(
    database: str, change: Callable[[str], str], error: type[Exception], text: str
) -> None:
    """What cannot be reached or entered is named with the fault and without credentials."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(error) as caught:
        async with open_connection(url(change(database)), application="test"):
            pass

    assert text in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "geheim" not in str(caught.value)


async def test_open_connection_lets_the_caller_s_exception_through_as_it_is(database: str) -> None:
    """An exception of the block is not wrapped in the groups of the loop's nurseries."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(ZeroDivisionError):
        async with open_connection(url(database), application="test"):
            _ = 1 / 0
