"""Telemetry of Parsec v1 inverters.

Source: PAYLOADS, `telem`, Parsec v1 inverter:

* `di1`: 1 → point `status` (enum) `RUN`, 0 → `STOP`. `di2`: point `fault` (bool).
* `rssi`: optional, point `rssi`, dBm. `fw` goes to `meta`, with `"src": "parsec_v1"`.
* `ts` and at least one of `di1`, `di2` are required.

Where that is silent: `null` means absent, `fw` may be any JSON value and is kept as it came, other members
are ignored, and a message without `ts` has no time of its own (MISSING_TIMESTAMP).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from traksense.adapters.fields import Bit  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import ABSENT, decode_json, json_value
from traksense.adapters.timestamps import parse_timestamp
from traksense.errors import DecodeError
from traksense.model import Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from traksense.adapters.base import Context
    from traksense.model import Item


class _Reading(msgspec.Struct, gc=False):
    di1: Bit | None = None
    di2: Bit | None = None
    rssi: float | None = None
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

    def decode(self, payload: bytes, context: Context) -> list[Item]:  # noqa: ARG002 (the interface)
        """Turn the payload into one `Telemetry`.

        Raises:
            DecodeError: PARSE_ERROR, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER, NUMBER_OUT_OF_RANGE,
                NESTED_TOO_DEEP.
        """
        reading = decode_json(_READING, payload)
        if reading.di1 is None and reading.di2 is None:
            raise DecodeError(Reason.INVALID_FIELD, "Object missing required field `di1` or `di2`")
        if reading.ts is None:
            raise DecodeError(Reason.MISSING_TIMESTAMP, "Object missing required field `ts`")
        return [Telemetry(parse_timestamp(reading.ts, "$.ts"), _points(reading), _meta(reading))]


def _points(reading: _Reading) -> list[Point]:
    points = []
    if reading.di1 is not None:
        points.append(Point("status", "RUN" if reading.di1 else "STOP", "enum"))
    if reading.di2 is not None:
        points.append(Point("fault", bool(reading.di2), "bool"))
    if reading.rssi is not None:
        points.append(Point("rssi", reading.rssi, u="dBm"))
    return points


def _meta(reading: _Reading) -> bytes:
    firmware = json_value(reading.fw, "$.fw")
    described = {"src": "parsec_v1"} if firmware is None else {"fw": msgspec.Raw(firmware), "src": "parsec_v1"}
    return msgspec.json.encode(described)
