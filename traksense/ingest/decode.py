"""Bytes to items, or a rejection. Pure but for the clock that it is given."""

from __future__ import annotations

import gc
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from traksense.adapters.base import Context
from traksense.errors import DecodeError
from traksense.model import CommandAck, Delivery, Kind, Reason, Rejection, Route, Telemetry

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.adapters import Registry
    from traksense.config import Settings
    from traksense.model import Item, Message

NAME_MAX: Final = 128
"""Longest tenant, site and device name, in characters. With it the index entry of a series stays below the 2,704 bytes
that a PostgreSQL btree page can hold (five names of at most four bytes a character)."""

LARGE_PAYLOAD_BYTES: Final = 64 * 1024
"""A refused message of this size is worth a look of the garbage collector at its youngest objects: milliseconds."""

ROUTES_MAX: Final = 200_000
"""How many topics the router remembers: enough for 100,000 devices with two kinds. Chosen by guess; about 70 MB when
full."""


_now: Final = partial(datetime.now, UTC)


class Router:
    """Reads topics, `traksense/{tenant}/{site}/{device}/{kind}`, and remembers them: a fleet repeats its topics for
    ever.
    """

    def __init__(self) -> None:
        self._routes: dict[str, Route] = {}
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
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
                self._names.clear()
            self._routes[topic] = route
        return route

    def _share(self, name: str) -> str:
        return self._names.setdefault(name, name)


def read_topic(topic: str, *, share: Callable[[str], str] = str) -> Route | None:
    """Read a topic; None if it is not `traksense/{tenant}/{site}/{device}/{kind}` with names of 1-128 characters.

    Args:
        topic: Its text.
        share: Returns one object for equal names of tenants and sites.
    """
    levels = topic.split("/")
    if len(levels) != 5 or levels[0] != "traksense" or not all(0 < len(name) <= NAME_MAX for name in levels[1:4]):
        return None
    if "\x00" in topic or any("\ud800" <= character <= "\udfff" for character in topic):
        return None
    try:
        return Route(share(levels[1]), share(levels[2]), levels[3], Kind(levels[4]))
    except ValueError:
        return None


class Decoder:
    """Applies the adapters and the limits that hold for every format."""

    def __init__(self, settings: Settings, registry: Registry, *, now: Callable[[], datetime] = _now) -> None:
        self._decode = registry.decode
        self._payload_max_bytes = settings.payload_max_bytes
        self._points_max = settings.points_max
        self._ts_min = settings.ts_min
        self._ts_ahead = timedelta(seconds=settings.ts_ahead)
        self._now = now

    def decode(self, message: Message) -> Delivery:
        """Decode one message. Whatever is wrong with it ends up as the delivery's rejection; nothing is raised."""
        route = message.route
        try:
            if route is None:
                raise DecodeError(Reason.INVALID_TOPIC, _describe_topic(message.topic))
            if len(message.payload) > self._payload_max_bytes:
                raise DecodeError(
                    Reason.PAYLOAD_TOO_LARGE, f"{len(message.payload)} bytes, the limit is {self._payload_max_bytes}"
                )
            context = Context(route.tenant, route.site, route.device, message.received_at)
            items = self._decode(route.kind, message.payload, context)
            return Delivery(message, items, self._check(items))
        except DecodeError as error:
            _forget_frames(error)
            if len(message.payload) >= LARGE_PAYLOAD_BYTES:
                # The adapters' own frames may still form a cycle with an error that they handled.
                gc.collect(1)
            return Delivery(message, [], 0, Rejection(error.reason, error.detail))

    def _check(self, items: list[Item]) -> int:
        """Check the limits that hold for every format; returns how many points there are."""
        points = 0
        latest = self._now() + self._ts_ahead
        for item in items:
            if isinstance(item, Telemetry):
                points += len(item.points)
                ts: datetime | None = item.ts
            elif isinstance(item, CommandAck):
                ts = item.ts_exec
            else:
                ts = item.ts
            if ts is not None and not self._ts_min <= ts <= latest:
                raise DecodeError(
                    Reason.TIMESTAMP_OUT_OF_WINDOW,
                    f"{ts.isoformat()} is not between {self._ts_min.isoformat()} and "
                    f"{latest.isoformat(timespec='seconds')}",
                )
        if points > self._points_max:
            raise DecodeError(Reason.TOO_MANY_POINTS, f"{points} points, the limit is {self._points_max}")
        return points


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
    return f"not traksense/{{tenant}}/{{site}}/{{device}}/telem|ack|event: {shown}"
