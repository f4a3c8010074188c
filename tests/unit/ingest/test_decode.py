"""What becomes of a message: stored, a dead letter, both, or nothing at all."""

from __future__ import annotations

import gc
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from traksense.adapters import Registry
from traksense.config import load
from traksense.ingest.decode import MESSAGES_A_READING, Decoder, read_topic
from traksense.ingest.ledger import Ledger
from traksense.model import DETAIL_MAX, Delivery, Message, Reason, Rejection, Telemetry

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOPIC = "traksense/tenant/site/device/telem"
LEDGER = Ledger()


def decode(payload: object, *, topic: str = TOPIC, ledger: Ledger = LEDGER, **environ: str) -> Delivery:
    raw = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    message = Message(topic, raw, 1, 1, 1, redelivered=False, received_at=NOON, route=read_topic(topic))
    return Decoder(load(environ), Registry(), now=lambda: NOON, ledger=ledger).decode(message)


def envelope(*points: object) -> dict[str, Any]:
    return {"schema": "v1", "ts": NOON.isoformat(), "points": points}


def names(delivery: Delivery) -> list[str]:
    return [point.name for item in delivery.items if isinstance(item, Telemetry) for point in item.points]


def test_good_points_beside_a_bad_one() -> None:
    """Both outcomes: the good points are items, and one rejection names the path and the reason of what is not."""
    ledger = Ledger()
    delivery = decode(
        envelope({"name": "a", "v": 1}, {"name": "b", "v": "abc"}, {"name": "c", "v": None}, {"name": "", "v": 1}),
        ledger=ledger,
    )

    assert (["a"], 1) == (names(delivery), delivery.points)
    assert (
        Rejection(
            Reason.TYPE_MISMATCH,
            "2 faults, and the rest is stored: "
            "type_mismatch: `t` is num, its default, but the value is a text, which needs `t`: enum, text"
            " - at `$.points[1].v`; "
            "invalid_field: Expected `str` of length >= 1 - at `$.points[3].name`",
        )
        == delivery.rejection
    )
    assert 1 == ledger.points_absent


def test_no_good_point() -> None:
    """It is a plain dead letter for the first fault, and says the others as well."""
    one = decode(envelope({"name": "b", "v": "abc"}))
    two = decode(envelope({"name": "b", "v": "abc"}, {"name": "", "v": 1}, {"name": "c", "v": None}))

    assert ([], 0) == (one.items, one.points) == (two.items, two.points)
    assert one.rejection == Rejection(
        Reason.TYPE_MISMATCH,
        "`t` is num, its default, but the value is a text, which needs `t`: enum, text - at `$.points[0].v`",
    )
    assert two.rejection == Rejection(
        Reason.TYPE_MISMATCH,
        "`t` is num, its default, but the value is a text, which needs `t`: enum, text - at `$.points[0].v`; "
        "invalid_field: Expected `str` of length >= 1 - at `$.points[1].name`",
    )


@pytest.mark.parametrize("value", [b"null", b"NaN", b'"nan"'])
def test_no_reading_at_all(value: bytes) -> None:
    """Nothing is wrong, and there is nothing to store."""
    ledger = Ledger()
    delivery = decode(json.dumps(envelope({"name": "a", "v": "@"})).encode().replace(b'"@"', value), ledger=ledger)

    assert ([], 0, None, 1) == (delivery.items, delivery.points, delivery.rejection, ledger.points_absent)


@pytest.mark.parametrize("bad", [2, 20, 9999])
@pytest.mark.parametrize("good", [0, 1])
def test_detail_is_bounded(bad: int, good: int) -> None:
    """However many faults there are, the detail is short, and says how many it leaves out."""
    delivery = decode(envelope(*[{"name": "a", "v": 1}] * good, *[{"name": "", "v": 1}] * bad))

    assert delivery.rejection is not None
    detail = delivery.rejection.detail
    assert len(detail) <= DETAIL_MAX
    assert (good == 1) == detail.startswith(f"{bad} faults, and the rest is stored")
    named = detail.count("- at `$.points[")
    if named < bad:
        assert len(detail) > DETAIL_MAX - 200
        assert detail.endswith(f"; and {bad - named} more")


def test_points_are_counted_with_those_at_fault() -> None:
    """Too many points are too many, good or bad."""
    points = [{"name": "a", "v": 1}, {"name": "b", "v": None}, {"name": "c", "v": "abc"}]

    assert decode(envelope(*points), INGEST_POINTS_MAX="3").items
    refused = decode(envelope(*points), INGEST_POINTS_MAX="2")
    assert ([], Rejection(Reason.TOO_MANY_POINTS, "3 points, the limit is 2")) == (refused.items, refused.rejection)


def test_one_time_outside_the_window() -> None:
    """In a pack of several times, it is a fault beside the others; alone, it is the message's."""
    old, new = NOON - timedelta(days=36500), NOON
    late = {"n": "late", "v": 1, "t": int(new.timestamp()) + 2 * 86400}
    fine = {"n": "fine", "v": 1, "t": int(new.timestamp())}
    delivery = decode([fine, late, {"n": "bad", "v": "x", "t": int(new.timestamp())}])
    alone = decode(envelope({"name": "a", "v": 1}) | {"ts": old.isoformat()})

    assert ["fine"] == names(delivery)
    assert delivery.rejection is not None
    assert Reason.INVALID_FIELD == delivery.rejection.reason
    assert "timestamp_out_of_window: 2026-11-22T12:00:00+00:00 is not between" in delivery.rejection.detail
    assert alone.rejection is not None
    assert Reason.TIMESTAMP_OUT_OF_WINDOW == alone.rejection.reason
    assert alone.rejection.detail.startswith("1926-")
    both = decode([fine, late])
    assert (["fine"], Reason.TIMESTAMP_OUT_OF_WINDOW) == (names(both), both.rejection and both.rejection.reason)


@pytest.mark.parametrize("topic", [TOPIC, "traksense/tenant/site/device/ack", "homeassistant/light/config"])
def test_empty_payload_says_nothing(topic: str) -> None:
    """That is how MQTT clears a retained topic, be it ours or not: counted, and nothing else. White space is not."""
    ledger = Ledger()
    delivery = decode(b"", topic=topic, ledger=ledger)

    assert ([], 0, None, 1) == (delivery.items, delivery.points, delivery.rejection, ledger.empty)
    assert decode(b" ", topic=topic, ledger=ledger).rejection is not None
    assert decode(b"\0", topic=topic, ledger=ledger).rejection is not None
    assert 1 == ledger.empty


def test_partial_message_leaves_no_cycle_behind() -> None:
    """A large message of which a part is bad is freed at once, too."""
    payload = json.dumps(envelope({"name": "a", "v": 1}, {"name": "b", "v": "x" * 70_000})).encode()
    decode(payload)
    before = sys.getrefcount(payload)
    gc.collect()
    gc.disable()
    try:
        assert decode(payload).items
        assert before == sys.getrefcount(payload)
    finally:
        gc.enable()


def test_part_of_a_delivery_is_rejected_later() -> None:
    """What was said before is kept, and the reason is that of the first fault."""
    delivery = decode([{"n": "a", "v": 1, "t": 1552594568}, {"n": "b", "v": 1, "t": 1552594569}])
    later = Rejection(Reason.TIMESTAMP_OUT_OF_WINDOW, "too old")

    delivery.reject_all_but(delivery.items[1:], later)
    assert (["b"], 1, later) == (names(delivery), delivery.points, delivery.rejection)
    delivery.reject_all_but([], Rejection(Reason.INVALID_FIELD, "bad"))
    assert Rejection(Reason.TIMESTAMP_OUT_OF_WINDOW, "too old; invalid_field: bad") == delivery.rejection


def test_clock_is_read_again() -> None:
    """An old reading refuses nothing, and is not used for ever."""
    now = NOON
    decoder = Decoder(load({}), Registry(), now=lambda: now)

    def refused(ts: datetime) -> bool:
        raw = json.dumps(envelope({"name": "a", "v": 1}) | {"ts": ts.isoformat()}).encode()
        message = Message(TOPIC, raw, 1, 1, 1, redelivered=False, received_at=NOON, route=read_topic(TOPIC))
        return decoder.decode(message).rejection is not None

    assert not refused(NOON)
    now = NOON + timedelta(hours=5)
    assert not refused(NOON + timedelta(hours=28))  # ahead of the old window, inside the new one
    now = NOON - timedelta(days=3)
    assert True in [refused(NOON) for _ in range(MESSAGES_A_READING)]
