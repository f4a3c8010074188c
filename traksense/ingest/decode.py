"""Bytes to items, or a rejection. Pure but for the clock that it is given."""

from __future__ import annotations

import gc
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from traksense.adapters.base import Context, Partial
from traksense.errors import DecodeError
from traksense.ingest.clock import ClockDoubtError
from traksense.ingest.ledger import Ledger
from traksense.memory import shares
from traksense.model import (
    DETAIL_MAX,
    REST_IS_STORED,
    CommandAck,
    Delivery,
    Kind,
    Reason,
    Rejection,
    Route,
    Telemetry,
    count_points,
)
from traksense.names import canonical_name, name_fault, tenant_fault

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from traksense.adapters import Registry
    from traksense.config import Settings
    from traksense.ingest.clock import ClockWatch
    from traksense.model import Item, Message

LARGE_PAYLOAD_BYTES: Final = 64 * 1024
"""A refused message of this size is worth a look of the garbage collector at its youngest objects: milliseconds."""

MESSAGES_A_READING: Final = 64
"""So many messages may be accepted by one reading of the clock, however long they take; none is refused by an old one.
Only a clock that is set back makes a difference, and only to them."""

ROUTE_BYTES: Final = 340
"""What a topic takes (measured with tracemalloc), its names included; one with long names counts for several."""

ROUTE_NAMES_BYTES: Final = 290
"""Its names: those of a topic of 45 characters."""

ROUTES_MAX: Final = 200_000
"""How many topics the router remembers: enough for 100,000 devices with two kinds. Chosen by guess; about 70 MB when
full."""


_KINDS: Final = frozenset(Kind)

_now: Final = partial(datetime.now, UTC)


class Router:
    """Reads topics, `traksense/{tenant}/{site}/{device}/{kind}`, and remembers them: a fleet repeats its topics for
    ever.
    """

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
        self._shares = 0
        # A fleet has many devices and few tenants and sites, which share their names here. (`sys.intern` would keep
        # each name for ever on some releases of Python 3.12.)
        self._names: dict[str, str] = {}

    def route(self, topic: str) -> Route | None:
        """What the topic says, or None if it is not one of ours."""
        try:
            return self._routes[topic]
        except KeyError:
            pass
        route = read_topic(topic, share=self._share)
        # What is not ours may be long, and new each time.
        if route is not None:
            if self._shares >= ROUTES_MAX:
                self._routes.clear()
                self._names.clear()
                self._shares = 0
            self._shares += shares(ROUTE_BYTES, ROUTE_NAMES_BYTES, topic, route.path, route.site, route.device)
            self._routes[topic] = route
        return route

    def _share(self, name: str) -> str:
        return self._names.setdefault(name, name)


def read_topic(topic: str, *, share: Callable[[str], str] = str) -> Route | None:
    """Read a topic; None if it is not `traksense/{tenant}/{site}/{device}/{kind}` with names that can be.

    Names of sites and devices are brought to one spelling; that of a tenant is a wall, and has to have it.

    Args:
        topic: Its text.
        share: Returns one object for equal names of tenants and sites.
    """
    if _topic_fault(topic) is not None:
        return None
    _, tenant, site, device, kind = topic.split("/")
    return Route(share(tenant), share(canonical_name(site)), canonical_name(device), Kind(kind))


def _topic_fault(topic: str) -> str | None:
    """Why this topic is not one of ours, or None."""
    levels = topic.split("/")
    if len(levels) != 5 or levels[0] != "traksense" or levels[4] not in _KINDS:
        return "not traksense/{tenant}/{site}/{device}/telem|ack|event"
    if fault := tenant_fault(levels[1]):
        return f"the tenant's name {fault}"
    for what, name in (("site", levels[2]), ("device", levels[3])):
        if fault := name_fault(canonical_name(name)):
            return f"the {what}'s name {fault}"
    return None


class Decoder:
    """Applies the adapters and the limits that hold for every format."""

    def __init__(
        self,
        settings: Settings,
        registry: Registry,
        *,
        now: Callable[[], datetime] = _now,
        clock: ClockWatch | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self._decode = registry.decode
        self._salvage = registry.salvage
        self._payload_max_bytes = settings.payload_max_bytes
        self._points_max = settings.points_max
        self._ts_min = settings.ts_min
        self._ts_ahead = timedelta(seconds=settings.ts_ahead)
        self._now = now
        self._clock = clock
        self._judged = 0
        self._latest = settings.ts_min
        self._ledger = ledger if ledger is not None else Ledger()

    def decode(self, message: Message) -> Delivery:
        """Decode one message. Whatever is wrong with it ends up in the delivery's rejection; nothing is raised."""
        route = message.route
        payload = message.payload
        try:
            if not payload:
                # So MQTT clears a retained topic: it says nothing, on whatever topic.
                self._ledger.empty += 1
                return Delivery(message, [], 0)
            if route is None:
                raise DecodeError(Reason.INVALID_TOPIC, _describe_topic(message.topic))
            if len(payload) > self._payload_max_bytes:
                raise DecodeError(
                    Reason.PAYLOAD_TOO_LARGE, f"{len(payload)} bytes, the limit is {self._payload_max_bytes}"
                )
            context = Context(route.tenant, route.site, route.device, message.received_at, self._points_max)
            try:
                items = self._decode(route.kind, payload, context)
            except DecodeError as refusal:
                salvaged = self._salvage(route.kind, payload, context)
                if salvaged is None:
                    raise
                _let_go(refusal, payload)
                return self._sift(message, salvaged)
            if type(items) is not list:
                return self._sift(message, items)
            if len(items) == 1 and type(item := items[0]) is Telemetry:
                # Nearly always; as `_check`, which would be called for each message.
                if not self._judged % MESSAGES_A_READING:
                    self._latest = self._now() + self._ts_ahead
                self._judged += 1
                points = len(item.points)
                if points <= self._points_max and self._ts_min <= item.ts <= self._latest:
                    return Delivery(message, items, points)
            elif (found := self._check(items)) is not None:
                return Delivery(message, items, found)
            return self._sift(message, items)
        except DecodeError as error:
            _let_go(error, payload)
            return Delivery(message, [], 0, Rejection(error.reason, error.detail))

    def _check(self, items: list[Item]) -> int | None:
        """How many points there are, or None if one of the items is outside the window of time.

        Raises:
            DecodeError: TOO_MANY_POINTS.
        """
        points = 0
        earliest, latest = self._ts_min, self._now() + self._ts_ahead
        for item in items:
            if isinstance(item, Telemetry):
                points += len(item.points)
                ts: datetime | None = item.ts
            elif isinstance(item, CommandAck):
                ts = item.ts_exec
            else:
                ts = item.ts
            if ts is not None and not earliest <= ts <= latest:
                return None
        if points > self._points_max:
            self._check_count(points)
        return points

    def _check_count(self, points: int) -> None:
        if points > self._points_max:
            raise DecodeError(Reason.TOO_MANY_POINTS, f"{points} points, the limit is {self._points_max}")

    def _sift(self, message: Message, items: list[Item]) -> Delivery:
        """A delivery of the items that are inside the window of time, and of the faults of all else.

        Raises:
            DecodeError: TOO_MANY_POINTS.
            ClockDoubtError: One is ahead of the window, but our clock may be what is behind.
        """
        faults, absent = (items.faults, items.absent) if isinstance(items, Partial) else ([], 0)
        self._check_count(count_points(items) + len(faults) + absent)
        latest = self._now() + self._ts_ahead
        good: list[Item] = []
        for item in items:
            ts = item.ts_exec if isinstance(item, CommandAck) else item.ts
            if ts is None or self._ts_min <= ts <= latest:
                good.append(item)
            elif ts > latest and self._clock is not None and self._clock.doubtful:
                # What is too old is so by any clock.
                raise ClockDoubtError(message)
            else:
                fault = (
                    f"{ts.isoformat()} is not between {self._ts_min.isoformat()} and "
                    f"{latest.isoformat(timespec='seconds')}"
                )
                faults = [*faults, Rejection(Reason.TIMESTAMP_OUT_OF_WINDOW, fault)]
        self._ledger.points_absent += absent
        return Delivery(message, good, count_points(good), _summary(faults, beside=bool(good)) if faults else None)


def _summary(faults: Sequence[Rejection], *, beside: bool) -> Rejection:
    """One rejection for the faults of a message: the reason of the first, and each with its own reason in the detail.

    Args:
        faults: At least one.
        beside: Whether the rest of the message is good.
    """
    said = [f"{fault.reason}: {fault.detail}" for fault in faults]
    if beside:
        detail = f"{len(faults)} fault{'s' * (len(faults) > 1)}{REST_IS_STORED}: {said.pop(0)}"
    else:
        # As if it were the only one; it is what the reason is about.
        detail, _ = faults[0].detail, said.pop(0)
    while said:
        more = f"; and {len(said) - 1} more" if len(said) > 1 else ""
        if len(detail) + len("; ") + len(said[0]) + len(more) > DETAIL_MAX:
            return Rejection(faults[0].reason, f"{detail}; and {len(said)} more")
        detail += f"; {said.pop(0)}"
    return Rejection(faults[0].reason, detail)


def _let_go(error: DecodeError, payload: bytes) -> None:
    _forget_frames(error)
    if len(payload) >= LARGE_PAYLOAD_BYTES:
        # The adapters' own frames may still form a cycle with an error that they handled.
        gc.collect(1)


def _forget_frames(error: BaseException) -> None:
    """Drop the tracebacks of an error and of those behind it, and their links.

    A frame that keeps an error in a variable, and is in that error's traceback, is a cycle that holds the payload until
    the garbage collector comes by, which is rarely (`traksense.memory`). Found by a flood of large bad messages.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()  # causes and contexts may form a ring
    while waiting:
        behind = waiting.pop()
        if behind is not None and id(behind) not in seen:
            seen.add(id(behind))
            waiting += [behind.__cause__, behind.__context__]
            behind.__traceback__ = behind.__cause__ = behind.__context__ = None


def _describe_topic(topic: str) -> str:
    shown = topic if len(topic) <= 200 else f"{topic[:200]}… ({len(topic)} characters)"
    return f"{_topic_fault(topic)}: {shown}"
