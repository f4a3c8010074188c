"""The check of what a third-party adapter returns."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import attrs
import msgspec
import pytest

from traksense.adapters import ConformanceError, check_items
from traksense.model import CommandAck, Event, Point, Telemetry

TS = datetime(2025, 10, 7, 15, 30, tzinfo=UTC)
TELEMETRY = Telemetry(TS, [Point("a", 1.0)], b'{"fw":"1"}')
ACK = CommandAck("c-1", True, b'{"cmd_id":"c-1"}', TS, "late")
EVENT = Event("boot", TS, "e-1", b"[1]")


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "items",
    [
        [TELEMETRY, ACK, EVENT],
        [Telemetry(TS, [Point("a", True, "bool", "x" * 64, 2), Point("a" * 128, "", "enum")])],
        [CommandAck("c", False, b"{}"), Event("b", TS, "e")],
        [CommandAck("c" * 128, False, b"{}"), Event("b" * 128, TS, "\ud7ff\ue000")],
    ],
)
def test_check_items_conforming(items: list[object]) -> None:
    """Items that can be stored pass."""
    check_items(items)


def changed(item: Any, **members: Any) -> object:
    """The item with members that the type checker would not let pass."""
    change = attrs.evolve if attrs.has(type(item)) else msgspec.structs.replace
    return change(item, **members)


def point(**members: Any) -> Telemetry:
    defaults: dict[str, Any] = {"name": "a", "v": 1.0, "t": "num", "u": None, "q": 0}
    return Telemetry(TS, [Point("a", 1.0), Point(**(defaults | members))])


@pytest.mark.parametrize(
    ("item", "fault"),
    [
        ("text", "items[1]: expected Telemetry, CommandAck or Event, got str"),
        (changed(TELEMETRY, points=[]), "items[1].points: expected a list of at least one Point, got []"),
        (
            changed(TELEMETRY, points=(Point("a", 1.0),)),
            "items[1].points: expected a list of at least one Point, got (Point(",
        ),
        (changed(TELEMETRY, points=["a"]), "items[1].points[0]: expected Point, got str"),
        (changed(TELEMETRY, ts="now"), "items[1].ts: expected a datetime with tzinfo=UTC, got 'now'"),
        (changed(TELEMETRY, ts=TS.replace(tzinfo=None)), "expected a datetime with tzinfo=UTC"),
        (
            changed(TELEMETRY, ts=TS.astimezone(timezone(timedelta(hours=-3)))),
            "expected a datetime with tzinfo=UTC",
        ),
        (changed(TELEMETRY, meta={"fw": "1"}), "items[1].meta: expected bytes, got dict"),
        (changed(TELEMETRY, meta=b"[1]"), "items[1].meta: expected a JSON object, got b'[1]'"),
        (changed(TELEMETRY, meta=b"{"), "items[1].meta: expected JSON that can be stored: parse_error"),
        (changed(TELEMETRY, meta=b'{"a":"\\u0000"}'), "nul_character"),
        (changed(TELEMETRY, meta=b'{"a":"\xff"}'), "parse_error"),
        (changed(TELEMETRY, meta=b'{"a":1e400}'), "number_out_of_range"),
        (changed(TELEMETRY, meta=b'{"a":%s}' % (b"[" * 600 + b"]" * 600)), "nested_too_deep"),
        (point(name=""), "items[1].points[1].name: is empty"),
        (point(name="a" * 129), "items[1].points[1].name: has 129 characters, the limit is 128"),
        (point(name=b"a"), "items[1].points[1].name: expected str, got bytes"),
        (point(name="\0"), "items[1].points[1].name: has U+0000"),
        (point(name="\ud800"), "items[1].points[1].name: has a lone surrogate"),
        (point(name="a\udfff"), "items[1].points[1].name: has a lone surrogate"),
        (point(u="x" * 65), "items[1].points[1].u: has 65 characters, the limit is 64"),
        (point(t="double"), "items[1].points[1].t: expected one of float, num, int, bool, enum, text, got 'double'"),
        (point(t=["num"]), "items[1].points[1].t: expected one of float, num, int, bool, enum, text, got ['num']"),
        (point(v=1), "items[1].points[1].v: expected float (t is num), got int"),
        (point(v=True), "items[1].points[1].v: expected float (t is num), got bool"),
        (point(v="1", t="bool"), "items[1].points[1].v: expected bool (t is bool), got str"),
        (point(v=Text("a"), t="text"), "items[1].points[1].v: expected str (t is text), got Text"),
        (point(v="\0", t="text"), "items[1].points[1].v: has U+0000"),
        (point(v=float("nan")), "items[1].points[1].v: expected a finite number, got nan"),
        (point(v=float("-inf")), "items[1].points[1].v: expected a finite number, got -inf"),
        (point(q=3), "items[1].points[1].q: expected 0, 1 or 2, got 3"),
        (point(q=True), "items[1].points[1].q: expected 0, 1 or 2, got True"),
        (changed(ACK, cmd_id=""), "items[1].cmd_id: is empty"),
        (changed(ACK, ok=1), "items[1].ok: expected bool, got 1"),
        (changed(ACK, payload="{}"), "items[1].payload: expected bytes, got str"),
        (changed(ACK, ts_exec=TS.replace(tzinfo=None)), "items[1].ts_exec"),
        (changed(ACK, err=7), "items[1].err: expected str, got int"),
        (changed(EVENT, event_type="a" * 129), "items[1].event_type: has 129 characters, the limit is 128"),
        (changed(EVENT, event_id=""), "items[1].event_id: is empty"),
        (changed(EVENT, ts=None), "items[1].ts"),
        (changed(EVENT, data=b""), "items[1].data: expected JSON that can be stored: parse_error"),
    ],
)
def test_check_items_broken(item: object, fault: str) -> None:
    """What could not be stored is found, and the text says what and where."""
    with pytest.raises(ConformanceError) as caught:
        check_items([TELEMETRY, item])

    assert fault in str(caught.value)


def test_check_items_none() -> None:
    """A message that makes nothing is not accounted for, so an adapter must not return nothing."""
    with pytest.raises(ConformanceError, match="no items"):
        check_items([])
