"""Telemetry of Parsec v1 inverters.

Source: PAYLOADS, `telem`, Parsec v1 inverter:

* `di1`: 1 → point `status` (enum) `RUN`, 0 → `STOP`. `di2`: point `fault` (bool).
* `rssi`: optional, point `rssi`, dBm. `fw` goes to `meta`, with `"src": "parsec_v1"`.
* `ts` and at least one of `di1`, `di2` are required.

Where that is silent: `null` means absent (no reading, which is counted), `fw` may be any JSON value and is kept
as it came, other members are ignored, and a message without `ts` has no time of its own (MISSING_TIMESTAMP).
What is wrong with one input leaves the others alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import read_bit
from traksense.adapters.json_checks import ABSENT, json_value, refuse_nul
from traksense.adapters.salvage import Parts, members_of, read_number, strictly
from traksense.adapters.timestamps import parse_timestamp
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from traksense.adapters.base import Context
    from traksense.model import Item


class _Reading(msgspec.Struct, gc=False):
    di1: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    di2: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    rssi: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    fw: msgspec.Raw = ABSENT
    ts: str | None = None


_READING: Final = msgspec.json.Decoder(_Reading)


class ParsecV1:
    """Telemetry of a Parsec v1 inverter."""

    name = "parsec_v1"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it has one of the digital inputs and does not say that it is of some schema."""
        return members is not None and "schema" not in members and not members.isdisjoint({"di1", "di2"})

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: PARSE_ERROR, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER, NUMBER_OUT_OF_RANGE,
                NESTED_TOO_DEEP.
        """
        refuse_nul(payload)
        partial = strictly(self.salvage(payload, context))
        if not any(point.name != "rssi" for item in partial if isinstance(item, Telemetry) for point in item.points):
            raise DecodeError(Reason.INVALID_FIELD, "Object missing required field `di1` or `di2`")
        return partial

    def salvage(self, payload: bytes, context: Context) -> Partial:  # noqa: ARG002 (the interface)
        """One `Telemetry` of the good inputs, if there are any.

        Raises:
            DecodeError: As `decode`, but for what is wrong with an input.
        """
        reading = members_of(_READING, payload)
        if reading.ts is None:
            raise DecodeError(Reason.MISSING_TIMESTAMP, "Object missing required field `ts`")
        ts = parse_timestamp(reading.ts, "$.ts")
        refuse_nul(bytes(reading.fw))
        meta = _meta(reading)
        partial = Partial()
        points = _points(reading, Parts(partial))
        if points:
            partial.append(Telemetry(ts, points, meta))
        return partial


def _points(reading: _Reading, parts: Parts) -> list[Point]:
    points = []
    if (running := parts.take(read_bit, reading.di1, "$.di1")) is not None:
        points.append(Point("status", "RUN" if running else "STOP", "enum"))
    if (fault := parts.take(read_bit, reading.di2, "$.di2")) is not None:
        points.append(Point("fault", fault, "bool"))
    if (rssi := parts.take(read_number, reading.rssi, "$.rssi")) is not None:
        points.append(Point("rssi", rssi, u="dBm"))
    return points


def _meta(reading: _Reading) -> bytes:
    firmware = json_value(reading.fw, "$.fw")
    described = {"src": "parsec_v1"} if firmware is None else {"fw": msgspec.Raw(firmware), "src": "parsec_v1"}
    return msgspec.json.encode(described)
