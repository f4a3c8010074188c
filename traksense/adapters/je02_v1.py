"""Telemetry and information of JE02 v1 inverters.

Source: PAYLOADS, `telem`, JE02 v1 inverter:

* `DATA.TS`: Unix seconds, UTC.
* Points: `status` (enum: `FAULT` if INPUT2 is 1, else `RUN` if INPUT1 is 1, else `STOP`), `fault` (bool),
  `rssi` (dBm), `uptime` (s), `cntserr`, `var0` (VAR0 / 10, °C), `var1` (VAR1 / 10, %), `rele` (bool).
* INFO carries no points: it is an event of type `info`.

Where that is silent: `null` means absent (no reading, which is counted) and other members are ignored; a member
of DATA that is absent makes no point, and what is wrong with one leaves the others alone. `status` needs INPUT1
unless INPUT2 is 1, `fault` needs INPUT2. DATA without TS has no time (MISSING_TIMESTAMP).

INFO has neither an identifier nor a time of its own. Its identifier is taken from its content, so that a
redelivery is the same event: `info-` and the first 32 hexadecimal digits of the SHA-256 of INFO with its
members sorted and without white space. Its time is DATA.TS if DATA comes in the same message, else the time
of receipt.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Final

import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import read_bit
from traksense.adapters.json_checks import ABSENT, json_object, refuse_nul
from traksense.adapters.numbers import may_round, number, tenth
from traksense.adapters.salvage import Parts, members_of, read_number, strictly
from traksense.adapters.timestamps import from_unix_seconds
from traksense.errors import DecodeError
from traksense.model import Event, Exact, Kind, Point, Reason, Telemetry

if TYPE_CHECKING:
    from datetime import datetime

    from traksense.adapters.base import Context
    from traksense.model import Item


class _Data(msgspec.Struct, gc=False, rename="upper"):
    ts: float | None = None
    input1: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    input2: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    var0: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    var1: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    wrssi: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    rele: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    cntserr: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    uptime: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


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
        refuse_nul(payload)
        partial = strictly(self.salvage(payload, context))
        if not partial:
            raise DecodeError(Reason.INVALID_FIELD, "no measurement - at `$.DATA`")
        return partial

    def salvage(self, payload: bytes, context: Context) -> Partial:
        """The same of what is good in DATA.

        Raises:
            DecodeError: As `decode`, but for what is wrong with a measurement.
        """
        message = members_of(_MESSAGE, payload)
        refuse_nul(bytes(message.info))
        info = json_object(message.info, "$.INFO")
        partial = Partial()
        ts = context.received_at
        if message.data is not None:
            ts = _time(message.data)
            points = _points(message.data, Parts(partial))
            if points:
                partial.append(Telemetry(ts, points))
            elif not (partial.absent or partial.faults):
                raise DecodeError(Reason.INVALID_FIELD, "no measurement - at `$.DATA`")
        elif info is None:
            raise DecodeError(Reason.INVALID_FIELD, "Object missing required field `DATA` or `INFO`")
        if info is not None:
            partial.append(_information(info, ts))
        return partial


def _time(data: _Data) -> datetime:
    if data.ts is None:
        raise DecodeError(Reason.MISSING_TIMESTAMP, "Object missing required field `TS` - at `$.DATA`")
    return from_unix_seconds(data.ts, "$.DATA.TS")


def _points(data: _Data, parts: Parts) -> list[Point]:
    running = parts.take(read_bit, data.input1, "$.DATA.INPUT1")
    fault = parts.take(read_bit, data.input2, "$.DATA.INPUT2")
    rssi = parts.take(read_number, data.wrssi, "$.DATA.WRSSI")
    uptime = parts.take(read_number, data.uptime, "$.DATA.UPTIME")
    errors = parts.take(read_number, data.cntserr, "$.DATA.CNTSERR")
    temperature = parts.take(_read_tenths, data.var0, "$.DATA.VAR0")
    humidity = parts.take(_read_tenths, data.var1, "$.DATA.VAR1")
    relay = parts.take(read_bit, data.rele, "$.DATA.RELE")
    # With a second input that cannot be read, it may be running or faulty: nobody knows.
    known = fault is not None or isinstance(data.input2, msgspec.UnsetType) or bytes(data.input2) == b"null"
    status = "FAULT" if fault else None if running is None or not known else "RUN" if running else "STOP"
    numbers = (
        ("rssi", rssi, "dBm"),
        ("uptime", uptime, "s"),
        ("cntserr", errors, None),
        ("var0", temperature, "°C"),
        ("var1", humidity, "%"),
    )
    return [
        *([] if status is None else [Point("status", status, "enum")]),
        *([] if fault is None else [Point("fault", fault, "bool")]),
        *(Point(name, value, u=unit) for name, value, unit in numbers if value is not None),
        *([] if relay is None else [Point("rele", relay, "bool")]),
    ]


def _read_tenths(raw: bytes) -> float:
    return tenth(read_number(raw))


def _said(text: str) -> float | str:
    value = number(text)
    if isinstance(value, Exact):
        return value.digits
    return int(text) if text.lstrip("-").isdigit() else value


def _information(info: bytes, ts: datetime) -> Event:
    # Where a double says all of a number, the identifier is that of earlier releases.
    exactly = may_round(info)
    document = json.loads(info, parse_float=_said, parse_int=_said) if exactly else msgspec.json.decode(info)
    canonical = msgspec.json.encode(document, order="deterministic")
    return Event("info", ts, f"info-{hashlib.sha256(canonical).hexdigest()[:32]}", info, id_of_content=True)
