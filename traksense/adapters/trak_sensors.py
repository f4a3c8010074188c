"""Telemetry of TrakSense sensors: what the field's older firmware sends through a broker rule.

Source: PAYLOADS, `telem`, TrakSense sensors: `device_id`, `timestamp`, and `sensors` with `sensor_id`,
`value`, `unit`, `type`, `labels`; also wrapped as `client_id`, `topic`, `payload` (an object, or a text with
the JSON of one) and `ts` in milliseconds, which is used only if the payload has no timestamp.

How that becomes points:

* `sensor_id` → `name`, `unit` → `u`; the class of `value` says what `t` is: a number `num`, true or false
  `bool`, a text `text`. There is at least one sensor.
* `meta` is `{"device_id": …, "sensors": {sensor_id: {"type": …, "labels": …}}}`, with the values as they came
  and without what is absent. A sensor that is described twice, differently, has the list of its descriptions.
* Neither a timestamp nor a `ts` of the wrapper: MISSING_TIMESTAMP. `null` means absent; other members are
  ignored.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from traksense.adapters.fields import Name, Unit  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import ABSENT, check_json, decode_json
from traksense.adapters.timestamps import from_unix_seconds, parse_timestamp
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from datetime import datetime

    from traksense.adapters.base import Context
    from traksense.model import Item, ValueType


class _Sensor(msgspec.Struct):
    sensor_id: Name
    value: float | bool | str
    unit: Unit | None = None
    type: msgspec.Raw = ABSENT
    labels: msgspec.Raw = ABSENT


class _Reading(msgspec.Struct):
    sensors: Annotated[list[_Sensor], msgspec.Meta(min_length=1)]
    timestamp: str | None = None
    device_id: msgspec.Raw = ABSENT


class _Message(msgspec.Struct):
    sensors: msgspec.Raw = ABSENT
    payload: msgspec.Raw = ABSENT
    ts: msgspec.Raw = ABSENT


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_READING: Final = msgspec.json.Decoder(_Reading)
_TEXT: Final = msgspec.json.Decoder(str)
_MILLISECONDS: Final = msgspec.json.Decoder(float | None)

_TYPE_OF: Final[dict[type, ValueType]] = {float: "num", bool: "bool", str: "text"}


class TrakSensors:
    """Telemetry of TrakSense sensors, plain or wrapped by a broker rule."""

    name = "trak_sensors"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it has sensors, or a payload beside what a broker rule adds, and no schema."""
        if members is None or "schema" in members:
            return False
        return "sensors" in members or ("payload" in members and not members.isdisjoint({"client_id", "topic"}))

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: PARSE_ERROR, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER, NUMBER_OUT_OF_RANGE,
                NESTED_TOO_DEEP.
        """
        message = decode_json(_MESSAGE, payload)
        wrapped = bytes(message.sensors) == b"null" and bytes(message.payload) != b"null"
        reading = decode_json(_READING, _unwrapped(message.payload) if wrapped else payload)
        if reading.timestamp is not None:
            ts = parse_timestamp(reading.timestamp, "$.timestamp")
        else:
            ts = _wrapper_time(message.ts if wrapped else ABSENT)
        points = [Point(s.sensor_id, s.value, _TYPE_OF[type(s.value)], s.unit) for s in reading.sensors]
        return [Telemetry(ts, points, _meta(reading))]


def _unwrapped(payload: msgspec.Raw) -> bytes:
    raw = bytes(payload)
    return decode_json(_TEXT, raw).encode() if raw.startswith(b'"') else raw


def _wrapper_time(ts: msgspec.Raw) -> datetime:
    milliseconds = decode_json(_MILLISECONDS, bytes(ts))
    if milliseconds is None:
        raise DecodeError(Reason.MISSING_TIMESTAMP, "neither `timestamp` nor a wrapper's `ts`")
    return from_unix_seconds(milliseconds / 1000, "$.ts")


def _meta(reading: _Reading) -> bytes | None:
    meta = _present(device_id=reading.device_id)
    # The inner keys make the distinct descriptions of a sensor, in order, however many there are.
    descriptions: dict[str, dict[bytes, msgspec.Raw]] = {}
    for sensor in reading.sensors:
        description = msgspec.json.encode(_present(type=sensor.type, labels=sensor.labels))
        if description != b"{}":
            descriptions.setdefault(sensor.sensor_id, {})[description] = msgspec.Raw(description)
    described = {name: _one_or_all(list(distinct.values())) for name, distinct in descriptions.items()}
    if described:
        meta["sensors"] = described
    if not meta:
        return None
    encoded = msgspec.json.encode(meta)
    check_json(encoded, "meta")
    return encoded


def _present(**members: msgspec.Raw) -> dict[str, Any]:
    return {name: raw for name, raw in members.items() if bytes(raw) != b"null"}


def _one_or_all(values: list[msgspec.Raw]) -> msgspec.Raw | list[msgspec.Raw]:
    return values[0] if len(values) == 1 else values
