"""Telemetry of TrakSense sensors, plain and wrapped by a broker rule."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from traksense.adapters.trak_sensors import TrakSensors
from traksense.model import Point, Reason, Telemetry

if TYPE_CHECKING:
    from .conftest import Decode, Refuse

TS = datetime(2025, 10, 20, 14, 30, tzinfo=UTC)
EXAMPLE = b"""{"device_id": "GW-1760908415", "timestamp": "2025-10-20T14:30:00Z",
 "sensors": [{"sensor_id": "temp-amb-01", "value": 23.5, "unit": "celsius", "type": "temperature", "labels": {}}]}
"""
EXPECTED = Telemetry(
    TS,
    [Point("temp-amb-01", 23.5, u="celsius")],
    b'{"device_id":"GW-1760908415","sensors":{"temp-amb-01":{"type":"temperature","labels":{}}}}',
)


def reading(*sensors: dict[str, Any], **members: Any) -> dict[str, Any]:
    default = {"sensor_id": "a", "value": 1}
    return {"timestamp": "2025-10-20T14:30:00Z", "sensors": list(sensors) or [default]} | members


def wrapped(payload: object, **members: Any) -> dict[str, Any]:
    return {"client_id": "GW-1", "topic": "traksense/t/s/d/telem", "payload": payload} | members


def test_trak_sensors_example(decode: Decode) -> None:
    """The example of the specification decodes to its point, and all else that it says is in meta."""
    assert [EXPECTED] == decode(TrakSensors(), EXAMPLE)


@pytest.mark.parametrize("payload", [json.loads(EXAMPLE), EXAMPLE.decode()])
def test_trak_sensors_wrapped(decode: Decode, payload: object) -> None:
    """A broker rule's wrapper makes no difference, be the payload an object or a text, and its time is not used."""
    assert [EXPECTED] == decode(TrakSensors(), wrapped(payload, ts=1729216200000))


def test_trak_sensors_payload_beside_sensors(decode: Decode) -> None:
    """Sensors beside a member that happens to be called payload are not wrapped."""
    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(TrakSensors(), reading(payload={"on": 1}))


@pytest.mark.parametrize("timestamp", [{}, {"timestamp": None}])
@pytest.mark.parametrize("as_text", [False, True])
def test_trak_sensors_wrapper_time(decode: Decode, timestamp: dict[str, object], as_text: bool) -> None:
    """The wrapper's milliseconds count only where the payload has no timestamp."""
    inner = {"sensors": [{"sensor_id": "a", "value": 1}]} | timestamp
    payload = wrapped(json.dumps(inner) if as_text else inner, ts=1729216200250)
    ts = datetime(2024, 10, 18, 1, 50, 0, 250000, tzinfo=UTC)

    assert [Telemetry(ts, [Point("a", 1.0)])] == decode(TrakSensors(), payload)


def test_trak_sensors_wrapper_time_unused(decode: Decode) -> None:
    """A wrapper's time that is not needed is not looked at."""
    assert [Telemetry(TS, [Point("a", 1.0)])] == decode(TrakSensors(), wrapped(reading(), ts="soon"))


@pytest.mark.parametrize(
    ("value", "point"),
    [
        (23.5, Point("a", 23.5)),
        (7, Point("a", 7.0)),
        (True, Point("a", True, "bool")),
        ("open", Point("a", "open", "text")),
    ],
)
def test_trak_sensors_value(decode: Decode, value: object, point: Point) -> None:
    """The value itself says whether the point is a number, a bool or a text."""
    assert [Telemetry(TS, [point])] == decode(TrakSensors(), reading({"sensor_id": "a", "value": value}))


@pytest.mark.parametrize(
    ("members", "sensors", "meta"),
    [
        ({}, [{}], None),
        ({"device_id": 7}, [{}], b'{"device_id":7}'),
        ({}, [{"type": "t"}], b'{"sensors":{"a":{"type":"t"}}}'),
        ({}, [{"labels": {"x": [1, "°"]}}], b'{"sensors":{"a":{"labels":{"x": [1, "\\u00b0"]}}}}'),
        ({}, [{"type": None, "labels": None}], None),
        ({}, [{"type": "t"}, {"type": "t"}], b'{"sensors":{"a":{"type":"t"}}}'),
        ({}, [{"type": "t"}, {"type": "h"}], b'{"sensors":{"a":[{"type":"t"},{"type":"h"}]}}'),
        ({}, [{"type": "t"}, {"sensor_id": "b"}], b'{"sensors":{"a":{"type":"t"}}}'),
    ],
)
def test_trak_sensors_meta(
    decode: Decode, members: dict[str, object], sensors: list[dict[str, object]], meta: bytes | None
) -> None:
    """What describes the device and its sensors is kept as it came, without what is absent."""
    described = [{"sensor_id": "a", "value": 1} | sensor for sensor in sensors]
    (telemetry,) = decode(TrakSensors(), reading(*described, **members))

    assert isinstance(telemetry, Telemetry)
    assert meta == telemetry.meta


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (reading(timestamp=None), Reason.MISSING_TIMESTAMP),
        (reading(timestamp=None, ts=1729216200000), Reason.MISSING_TIMESTAMP),
        (wrapped(reading(timestamp=None)), Reason.MISSING_TIMESTAMP),
        (wrapped(reading(timestamp=None), ts=None), Reason.MISSING_TIMESTAMP),
        (wrapped(reading(timestamp=None), ts="soon"), Reason.INVALID_FIELD),
        (wrapped(reading(timestamp=None), ts=1e30), Reason.INVALID_FIELD),
        (reading(timestamp="soon"), Reason.INVALID_FIELD),
        (reading(timestamp=1760970600), Reason.INVALID_FIELD),
        (reading(sensors=[]), Reason.INVALID_FIELD),
        (reading(sensors=None), Reason.INVALID_FIELD),
        (reading({"sensor_id": "a"}), Reason.INVALID_FIELD),
        (reading({"value": 1}), Reason.INVALID_FIELD),
        (reading({"sensor_id": "a", "value": None}), Reason.INVALID_FIELD),
        (reading({"sensor_id": "", "value": 1}), Reason.INVALID_FIELD),
        (reading({"sensor_id": "a" * 129, "value": 1}), Reason.INVALID_FIELD),
        (reading({"sensor_id": "a", "value": 1, "unit": "x" * 65}), Reason.INVALID_FIELD),
        (wrapped(None), Reason.INVALID_FIELD),
        (wrapped(1), Reason.INVALID_FIELD),
        (wrapped([]), Reason.INVALID_FIELD),
        (wrapped(wrapped(reading())), Reason.INVALID_FIELD),
        (wrapped("on"), Reason.PARSE_ERROR),
        (wrapped(r'{"a": "\ud800"}'), Reason.PARSE_ERROR),
        (b'{"sensors": [', Reason.PARSE_ERROR),
        (reading({"sensor_id": "a", "value": "\0"}), Reason.NUL_CHARACTER),
        (wrapped(json.dumps(reading({"sensor_id": "a\0", "value": 1}))), Reason.NUL_CHARACTER),
        (wrapped(reading(), topic="\0"), Reason.NUL_CHARACTER),
        ('{"sensors": [{"sensor_id": "a", "value": 1e999}]}', Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(reading(device_id=0)).replace("0}", "1e999}"), Reason.NUMBER_OUT_OF_RANGE),
        (json.dumps(reading(device_id=0)).replace("0}", "[" * 600 + "]" * 600 + "}"), Reason.NESTED_TOO_DEEP),
        (wrapped("[" * 1_000_000 + "]" * 1_000_000), Reason.NESTED_TOO_DEEP),
    ],
)
def test_trak_sensors_refused(refuse: Refuse, payload: object, expected: Reason) -> None:
    """Each fault has its own reason, outside and inside the wrapper."""
    reason, _ = refuse(TrakSensors(), payload)

    assert expected == reason


def test_trak_sensors_claims() -> None:
    """It claims objects with sensors or with a broker rule's payload, unless they are of some schema."""
    adapter = TrakSensors()

    assert adapter.claims(b"", frozenset({"sensors"}))
    assert adapter.claims(b"", frozenset({"payload", "topic"}))
    assert adapter.claims(b"", frozenset({"payload", "client_id", "ts"}))
    assert not adapter.claims(b"", frozenset({"payload"}))
    assert not adapter.claims(b"", frozenset({"sensors", "schema"}))
    assert not adapter.claims(b"", frozenset({"topic"}))
    assert not adapter.claims(b"", None)
