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
* `decode` refuses a message for its first fault. `salvage` then leaves out the sensors that are at fault, and those
  whose value is null: they have no reading.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import Name, Unit  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import ABSENT, check_json, decode_json, refuse_nul
from traksense.adapters.salvage import at, check_count, members_of, read_number, rejection, strictly
from traksense.adapters.timestamps import from_unix_milliseconds, parse_timestamp
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


class _Value(msgspec.Struct):
    value: msgspec.Raw


class _Reading(msgspec.Struct):
    sensors: Annotated[list[msgspec.Raw], msgspec.Meta(min_length=1)]
    timestamp: str | None = None
    device_id: msgspec.Raw = ABSENT


class _Message(msgspec.Struct):
    sensors: msgspec.Raw = ABSENT
    payload: msgspec.Raw = ABSENT
    ts: msgspec.Raw = ABSENT


_MESSAGE: Final = msgspec.json.Decoder(_Message)
_READING: Final = msgspec.json.Decoder(_Reading)
_SENSOR: Final = msgspec.json.Decoder(_Sensor)
_VALUE: Final = msgspec.json.Decoder(_Value)
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

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: PARSE_ERROR, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER, NUMBER_OUT_OF_RANGE,
                NESTED_TOO_DEEP.
        """
        refuse_nul(payload)
        partial = strictly(self.salvage(payload, context))
        if partial.absent:
            raise DecodeError(Reason.INVALID_FIELD, "Expected `float | bool | str`, got `null`")
        return partial

    def salvage(self, payload: bytes, context: Context) -> Partial:
        """One `Telemetry` of the good sensors, if there are any.

        Raises:
            DecodeError: As `decode`, but for what is wrong with a sensor.
        """
        message = members_of(_MESSAGE, payload)
        wrapped = bytes(message.sensors) == b"null" and bytes(message.payload) != b"null"
        reading = members_of(_READING, _unwrapped(message.payload) if wrapped else payload)
        check_count(len(reading.sensors), context.points_max)
        partial = Partial()
        sensors: list[tuple[_Sensor, Point]] = []
        for index, raw in enumerate(reading.sensors):
            try:
                sensors.append(_sensor(bytes(raw)))
            except DecodeError as error:
                if _has_no_reading(bytes(raw)):
                    partial.absent += 1
                else:
                    partial.faults.append(rejection(at(error, f"$.sensors[{index}]")))
        if not sensors:
            return partial
        if reading.timestamp is not None:
            ts = parse_timestamp(reading.timestamp, "$.timestamp")
        else:
            ts = _wrapper_time(message.ts if wrapped else ABSENT)
        meta = _meta(reading.device_id, [sensor for sensor, _ in sensors])
        partial.append(Telemetry(ts, [point for _, point in sensors], meta))
        return partial


def _sensor(raw: bytes) -> tuple[_Sensor, Point]:
    sensor = decode_json(_SENSOR, raw)
    check_json(raw, "$")
    value = sensor.value
    if type(value) is float:
        value = read_number(bytes(_VALUE.decode(raw).value))
    return sensor, Point(sensor.sensor_id, value, _TYPE_OF[type(sensor.value)], sensor.unit)


def _has_no_reading(raw: bytes) -> bool:
    try:
        return bytes(_VALUE.decode(raw).value) == b"null"
    except msgspec.DecodeError:
        return False


def _unwrapped(payload: msgspec.Raw) -> bytes:
    raw = bytes(payload)
    return decode_json(_TEXT, raw, allow_nul=True).encode() if raw.startswith(b'"') else raw


def _wrapper_time(ts: msgspec.Raw) -> datetime:
    milliseconds = decode_json(_MILLISECONDS, bytes(ts))
    if milliseconds is None:
        raise DecodeError(Reason.MISSING_TIMESTAMP, "neither `timestamp` nor a wrapper's `ts`")
    return from_unix_milliseconds(milliseconds, "$.ts")


def _meta(device_id: msgspec.Raw, sensors: list[_Sensor]) -> bytes | None:
    refuse_nul(bytes(device_id))
    meta = _present(device_id=device_id)
    # The inner keys make the distinct descriptions of a sensor, in order, however many there are.
    descriptions: dict[str, dict[bytes, msgspec.Raw]] = {}
    for sensor in sensors:
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
