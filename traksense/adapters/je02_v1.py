"""Telemetry and information of JE02 v1 inverters.

Source: PAYLOADS, `telem`, JE02 v1 inverter:

* `DATA.TS`: Unix seconds, UTC.
* Points: `status` (enum: `FAULT` if INPUT2 is 1, else `RUN` if INPUT1 is 1, else `STOP`), `fault` (bool),
  `rssi` (dBm), `uptime` (s), `cntserr`, `var0` (VAR0 / 10, °C), `var1` (VAR1 / 10, %), `rele` (bool).
* INFO carries no points: it is an event of type `info`.

Where that is silent: `null` means absent and other members are ignored; a member of DATA that is absent makes
no point, and `status` needs INPUT1 unless INPUT2 is 1, `fault` needs INPUT2. DATA without TS has no time
(MISSING_TIMESTAMP).

INFO has neither an identifier nor a time of its own. Its identifier is taken from its content, so that a
redelivery is the same event: `info-` and the first 32 hexadecimal digits of the SHA-256 of INFO with its
members sorted and without white space. Its time is DATA.TS if DATA comes in the same message, else the time
of receipt.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Final

import msgspec

from traksense.adapters.fields import Bit  # noqa: TC001  (msgspec resolves the annotations at run time)
from traksense.adapters.json_checks import ABSENT, decode_json, json_object
from traksense.adapters.timestamps import from_unix_seconds
from traksense.errors import DecodeError
from traksense.model import Event, Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from datetime import datetime

    from traksense.adapters.base import Context
    from traksense.model import Item


class _Data(msgspec.Struct, gc=False, rename="upper"):
    ts: float | None = None
    input1: Bit | None = None
    input2: Bit | None = None
    var0: float | None = None
    var1: float | None = None
    wrssi: float | None = None
    rele: Bit | None = None
    cntserr: float | None = None
    uptime: float | None = None


class _Message(msgspec.Struct, rename="upper"):
    data: _Data | None = None
    info: msgspec.Raw = ABSENT


_MESSAGE: Final = msgspec.json.Decoder(_Message)


class Je02V1:
    """Telemetry and information of a JE02 v1 inverter."""

    name = "je02_v1"
    kind = Kind.TELEM

    def claims(self, payload: bytes, members: frozenset[str] | None) -> bool:  # noqa: ARG002 (the interface)
        """Whether it has DATA or INFO and does not say that it is of some schema."""
        return members is not None and "schema" not in members and not members.isdisjoint({"DATA", "INFO"})

    def decode(self, payload: bytes, context: Context) -> list[Item]:
        """Turn the payload into a `Telemetry`, an `Event` of type `info`, or one of each.

        Raises:
            DecodeError: PARSE_ERROR, INVALID_FIELD, MISSING_TIMESTAMP, NUL_CHARACTER, NUMBER_OUT_OF_RANGE,
                NESTED_TOO_DEEP.
        """
        message = decode_json(_MESSAGE, payload)
        info = json_object(message.info, "$.INFO")
        items: list[Item] = []
        ts = context.received_at
        if message.data is not None:
            telemetry = _telemetry(message.data)
            items.append(telemetry)
            ts = telemetry.ts
        if info is not None:
            items.append(_information(info, ts))
        if not items:
            raise DecodeError(Reason.INVALID_FIELD, "Object missing required field `DATA` or `INFO`")
        return items


def _telemetry(data: _Data) -> Telemetry:
    if data.ts is None:
        raise DecodeError(Reason.MISSING_TIMESTAMP, "Object missing required field `TS` - at `$.DATA`")
    points = [
        *_state(data),
        *_number("rssi", data.wrssi, "dBm"),
        *_number("uptime", data.uptime, "s"),
        *_number("cntserr", data.cntserr, None),
        *_number("var0", data.var0, "°C", divisor=10),
        *_number("var1", data.var1, "%", divisor=10),
        *([] if data.rele is None else [Point("rele", bool(data.rele), "bool")]),
    ]
    if not points:
        raise DecodeError(Reason.INVALID_FIELD, "no measurement - at `$.DATA`")
    return Telemetry(from_unix_seconds(data.ts, "$.DATA.TS"), points)


def _state(data: _Data) -> list[Point]:
    points = []
    if data.input2:
        points.append(Point("status", "FAULT", "enum"))
    elif data.input1 is not None:
        points.append(Point("status", "RUN" if data.input1 else "STOP", "enum"))
    if data.input2 is not None:
        points.append(Point("fault", bool(data.input2), "bool"))
    return points


def _number(name: str, value: float | None, unit: str | None, divisor: int = 1) -> list[Point]:
    return [] if value is None else [Point(name, value / divisor, u=unit)]


def _information(info: bytes, ts: datetime) -> Event:
    canonical = msgspec.json.encode(msgspec.json.decode(info), order="deterministic")
    return Event("info", ts, f"info-{hashlib.sha256(canonical).hexdigest()[:32]}", info)
