"""What is published: every message is unique, and says what has to become of it.

A message's number is in its value, its identifier or its text, and in its device time, so that any row and any dead
letter names the one message that it came from.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from random import Random
from typing import TYPE_CHECKING, Final, TypeAlias

import attrs

from traksense.tools.prove import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

Key: TypeAlias = tuple[str, ...]
"""What identifies a row: its relation, then the columns of its unique key as text."""

TENANTS: Final = 3
DEVICES: Final = 4
POINTS_MAX: Final = 10

REFUSED_TEXT: Final = "the database refuses this"
"""The CHECK constraints of `database.REFUSALS` let no row with this text in. Everything that a decoder accepts can be
stored, as far as we know: so a message that only the database refuses has to be made."""

UNTIMED_POINT: Final = plain.POINT

ANY_REASON: Final = "*"
"""Of a dead letter whose reason is not ours to say."""

SENTINEL: Final = "sentinel"
"""Type of the event that is published last: once it is acknowledged, so is everything before it."""

LATE_DAYS: Final = 20
"""How late late messages are at most: they need partitions that are not there yet."""

_SHARES: Final = (
    ("telemetry", 160), ("late", 8), ("acknowledgement", 12), ("event", 6), ("nameless_event", 4),
    ("broken", 6), ("unknown_schema", 2), ("refused_point", 1), ("refused_event", 1),
)  # fmt: skip
"""Of 200 messages, so many of each sort. Few are refused by the database only: each costs a bisection."""

_SORTS: Final = tuple(sort for sort, share in _SHARES for _ in range(share))

UNTIMED: Final = "untimed"
PARTIAL: Final = "partial"
STRANGER: Final = "stranger"
NEW_DAY: Final = "new_day"
EVENT: Final = "event"
"""Sorts that can be asked for."""

MORE_SHARE: Final = 12
"""Of 200 messages, as many of each further sort that a run wants."""

_OLD_DAYS: Final = 40
_MONTH_DAYS: Final = 31


@attrs.frozen
class Sent:
    """A message, and the rows that have to come of it.

    Attributes:
        number: From 0, in the order of publication.
        topic: Where to.
        payload: The exact bytes.
        rows: The keys of its rows, with their values as text; those of a poison message are its dead letter.
    """

    number: int
    topic: str
    payload: bytes
    rows: Mapping[Key, str]

    @property
    def poison(self) -> bool:
        """Whether it has to become a dead letter."""
        return next(iter(self.rows))[0] == "dead"


def tenant_count(replicas: int) -> int:
    """How many tenants there are, so that each replica has one."""
    return max(TENANTS, replicas)


class Traffic:
    """Makes the messages of a run; the same seed makes the same ones, apart from the time."""

    def __init__(self, seed: int, epoch_microseconds: int, *, tenants: int = TENANTS, more: Iterable[str] = ()) -> None:
        self._tenants = tenants
        self._sorts = (*_SORTS, *(sort for sort in sorted(more) for _ in range(MORE_SHARE)))
        self._strangers = 0
        self._days = LATE_DAYS
        self._random = Random(seed)  # noqa: S311  (repeatable, not secret)
        self._epoch = epoch_microseconds
        self._number = 0

    def __iter__(self) -> Iterator[Sent]:
        while True:
            yield self.next()

    def device(self, draw: int) -> Key:
        """Tenant, site and device of one of those that publish."""
        site = f"site-{draw // 3 % 2}"
        return (f"tenant-{draw % self._tenants}", site, f"{site}-device-{draw // 7 % DEVICES}")

    def next(self, sort: str | None = None) -> Sent:
        """The next message; of this sort, if one is named."""
        number = self._number
        self._number += 1
        random = self._random
        tenant, site = f"tenant-{random.randrange(self._tenants)}", f"site-{random.randrange(2)}"
        where = (tenant, site, f"{site}-device-{random.randrange(DEVICES)}")
        sort = sort or random.choice(self._sorts)
        ts = self._epoch + number * 1000
        if sort == "late":
            sort, ts = "telemetry", ts - random.randint(1, LATE_DAYS) * 86_400_000_000
        made: Sent = getattr(self, f"_{sort}")(number, where, ts)
        return made

    def sentinel(self, tenant: int = 0) -> Sent:
        """The last one of a tenant, by its number."""
        number = self._number
        self._number += 1
        where = (f"tenant-{tenant}", "site-0", "site-0-device-0")
        return _event(number, where, self._epoch + number * 1000, SENTINEL, f"sentinel-{number}")

    def _telemetry(self, number: int, where: Key, ts: int) -> Sent:
        random = self._random
        points: list[dict[str, object]] = []
        rows: dict[Key, str] = {}
        for index in range(random.randint(1, POINTS_MAX)):
            point, value = _point(number, index)
            points.append(point)
            rows[("measure", *where, str(point["name"]), str(ts))] = value
        document: dict[str, object] = {"schema": "v1", "ts": timestamp(ts), "points": points}
        shape = random.randrange(8)
        if shape < 3:
            document["meta"] = {"fw": f"1.{shape}", "src": "prove"}
        elif shape == 3:
            document["meta"] = {"uptime": number}
        return Sent(number, _topic(where, "telem"), _encode(document), rows)

    def _stranger(self, number: int, where: Key, ts: int) -> Sent:
        """Of a device that nobody has heard of, and never will again."""
        self._strangers += 1
        return self._telemetry(number, (*where[:2], f"stranger-{self._strangers}"), ts)

    def _new_day(self, number: int, where: Key, ts: int) -> Sent:
        """Of a day, or beyond 40 days of a month, of which there is nothing yet."""
        self._days += 1 if self._days < _OLD_DAYS else _MONTH_DAYS
        return self._telemetry(number, where, ts - self._days * 86_400_000_000)

    def _untimed(self, number: int, where: Key, _ts: int) -> Sent:
        """A plain number, and no time."""
        rows: dict[Key, str] = {(UNTIMED, *where, UNTIMED_POINT, str(number)): str(number)}
        return Sent(number, _topic(where, "telem"), str(number).encode(), rows)

    def _partial(self, number: int, where: Key, ts: int) -> Sent:
        """Good points around a bad one: they are stored, and the message is a dead letter all the same."""
        good = [_point(number, index) for index in (0, 1)]
        points = [good[0][0], {"name": "bad", "t": "float", "v": f"no number {number}"}, good[1][0]]
        payload = _encode({"schema": "v1", "ts": timestamp(ts), "points": points})
        topic = _topic(where, "telem")
        rows: dict[Key, str] = {("measure", *where, str(point["name"]), str(ts)): value for point, value in good}
        return Sent(number, topic, payload, rows | {("dead", topic, payload.hex()): ANY_REASON})

    def _acknowledgement(self, number: int, where: Key, ts: int) -> Sent:
        tenant, _, device = where
        ok = bool(number % 2)
        error = None if ok else f"error {number}"
        name = f"command-{number}"
        document = {"schema": "v1", "cmd_id": name, "ok": ok, "ts_exec": timestamp(ts), "err": error}
        rows: dict[Key, str] = {("ack", tenant, device, name): f"{ok} {error} {ts}"}
        return Sent(number, _topic(where, "ack"), _encode(document), rows)

    def _event(self, number: int, where: Key, ts: int) -> Sent:
        return _event(number, where, ts, "boot", f"event-{number}")

    def _nameless_event(self, number: int, where: Key, ts: int) -> Sent:
        return _event(number, where, ts, "door", None)

    def _broken(self, number: int, where: Key, _ts: int) -> Sent:
        payload = f'{{"schema": "v1", "number": {number}, "points": ['.encode()
        return _dead(number, _topic(where, "telem"), payload, "parse_error")

    def _unknown_schema(self, number: int, where: Key, ts: int) -> Sent:
        payload = _encode({"schema": "v9", "ts": timestamp(ts), "points": [_point(number, 0)[0]]})
        return _dead(number, _topic(where, "telem"), payload, "unknown_schema")

    def _refused_point(self, number: int, where: Key, ts: int) -> Sent:
        points = [_point(number, 0)[0], {"name": "note", "t": "text", "v": REFUSED_TEXT}]
        payload = _encode({"schema": "v1", "ts": timestamp(ts), "points": points})
        return _dead(number, _topic(where, "telem"), payload, "database_refused")

    def _refused_event(self, number: int, where: Key, ts: int) -> Sent:
        document = {"schema": "v1", "event_type": REFUSED_TEXT, "ts": timestamp(ts), "data": {"number": number}}
        return _dead(number, _topic(where, "event"), _encode(document), "database_refused")


def timestamp(microseconds: int) -> str:
    """ISO 8601 with Z; exact, unlike a float of seconds."""
    seconds, rest = divmod(microseconds, 1_000_000)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{rest:06}Z"


def _point(number: int, index: int) -> tuple[dict[str, object], str]:
    """A point, and its value as the database's text for it."""
    if index == 3:
        return {"name": f"p{index}", "t": "bool", "v": bool(number % 2)}, "true" if number % 2 else "false"
    if index == 4:
        return {"name": f"p{index}", "t": "text", "v": f"text {number}"}, f"text {number}"
    # A whole number below 2**53: exact as a double.
    return {"name": f"p{index}", "t": "float", "v": number * 16 + index}, str(number * 16 + index)


def _event(number: int, where: Key, ts: int, kind: str, name: str | None) -> Sent:
    tenant, _, device = where
    document: dict[str, object] = {"schema": "v1", "event_type": kind, "ts": timestamp(ts), "data": {"number": number}}
    if name is not None:
        document["event_id"] = name
    rows: dict[Key, str] = {("event", tenant, device, kind, str(ts), name or ""): str(number)}
    return Sent(number, _topic(where, "event"), _encode(document), rows)


def _dead(number: int, topic: str, payload: bytes, reason: str) -> Sent:
    return Sent(number, topic, payload, {("dead", topic, payload.hex()): reason})


def _topic(where: Key, kind: str) -> str:
    return "/".join(("traksense", *where, kind))


def _encode(document: Mapping[str, object]) -> bytes:
    return json.dumps(document, ensure_ascii=False).encode()
