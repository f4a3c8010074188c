"""Which messages are signs of life."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from traksense.config import load
from traksense.model import Delivery, Event, Kind, Message, Reason, Rejection, Route
from traksense.store.maintenance import Seen

if TYPE_CHECKING:
    from traksense.model import Item

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
REJECTION = Rejection(Reason.PARSE_ERROR, "not JSON")


def delivery(payload: bytes = b"{}", *, event: str | None = None, dead: bool = False, retain: bool = False) -> Delivery:
    """A message of the device, received at noon."""
    kind = Kind.TELEM if event is None else Kind.EVENT
    route = Route("acme", "plant-1", "pump-1", kind)
    message = Message(f"traksense/{route.path}/{kind}", payload, 1, 1, 1, False, NOON, route, retain=retain)
    items: list[Item] = [Event(event, NOON)] if event is not None else []
    return Delivery(message, items, 0, REJECTION if dead else None)


@pytest.mark.parametrize(
    ("of", "seen"),
    [
        (delivery(), True),
        (delivery(dead=True), True),
        (delivery(event="boot"), True),
        (delivery(event="offline_mode_entered"), True),
        (delivery(retain=True), False),
        (delivery(event="boot", retain=True), False),
        (delivery(event="last_will"), False),
        (delivery(event="Connection-Lost"), False),
        (delivery(b"offline", dead=True), False),
        (delivery(b' "OFFLINE"\n', dead=True), False),
        (delivery(b"\xff\xfe", dead=True), True),
        (delivery(b"offline " * 1000, dead=True), True),
        (delivery(b"offline"), True),  # somebody's format for a value
    ],
)
def test_sign_of_life(of: Delivery, seen: bool) -> None:
    """A device lives if it says something now; a last will says that it does not, and what was retained is old."""
    noted = Seen(load({}).gone_words)
    noted.add([of])

    assert [NOON] * seen == [at for _, at in noted.take()]


def test_words_are_configured() -> None:
    """A fleet may call it otherwise."""
    noted = Seen(load({"INGEST_GONE_WORDS": "power off, Aus"}).gone_words)
    noted.add([delivery(event="POWER_OFF"), delivery(event="aus")])
    assert [] == noted.take()
    noted.add([delivery(event="offline")])
    assert 1 == len(noted.take())


def test_a_will_leaves_what_was_seen_before() -> None:
    """The device was there until then."""
    noted = Seen(load({}).gone_words)
    last = delivery(event="last_will")
    last.message.received_at = NOON + timedelta(minutes=1)
    noted.add([delivery(), last])

    assert [NOON] == [at for _, at in noted.take()]
