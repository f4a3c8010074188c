"""What an adapter owes to everything behind it, as a check of what it returned.

`Registry` applies it to third-party adapters, whose mistake would otherwise surface as a refusal of the
database, and an adapter's own tests can call it. The built-in adapters keep these promises by construction,
and property tests hold them to it.
"""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

import msgspec

from traksense.adapters.base import Partial
from traksense.adapters.fields import CLASS_OF, MAX_NAME, MAX_UNIT
from traksense.adapters.json_checks import check_json, decode_json
from traksense.adapters.numbers import number
from traksense.errors import DecodeError
from traksense.model import CommandAck, Event, Exact, Point, Reason, Rejection, Telemetry

if TYPE_CHECKING:
    from collections.abc import Sequence

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:e[+-]?[0-9]+)?")
_JSON: Final = msgspec.json.Decoder(msgspec.Raw)


class ConformanceError(ValueError):
    """An adapter returned something that could not be stored; the text says what and where."""


def check_items(items: Sequence[object]) -> None:
    """Check that these items, returned by an adapter for one message, can be stored.

    Raises:
        ConformanceError: There is none, or one of them breaks a rule of the adapter contract (see
            ops/adapters.md).
    """
    if isinstance(items, Partial):
        _check_partial(items)
    else:
        _expect(len(items) > 0, "no items")
    for index, item in enumerate(items):
        where = f"items[{index}]"
        if isinstance(item, Telemetry):
            _check_telemetry(item, where)
        elif isinstance(item, CommandAck):
            _check_ack(item, where)
        elif isinstance(item, Event):
            _check_event(item, where)
        else:
            raise ConformanceError(f"{where}: expected Telemetry, CommandAck or Event, got {type(item).__name__}")


def _check_partial(partial: Partial) -> None:
    _expect(
        type(partial.absent) is int and partial.absent >= 0,
        f"absent: expected a number of points, got {partial.absent!r}",
    )
    _expect(bool(partial or partial.faults or partial.absent), "no items, no faults, and nothing absent")
    for index, fault in enumerate(partial.faults):
        _expect(
            isinstance(fault, Rejection) and isinstance(fault.reason, Reason) and isinstance(fault.detail, str),
            f"faults[{index}]: expected a Rejection of a Reason and a str, got {fault!r}",
        )


def _check_telemetry(telemetry: Telemetry, where: str) -> None:
    _check_time(telemetry.ts, f"{where}.ts")
    _expect(
        isinstance(telemetry.points, list) and bool(telemetry.points),
        f"{where}.points: expected a list of at least one Point, got {telemetry.points!r:.100}",
    )
    for index, point in enumerate(telemetry.points):
        _check_point(point, f"{where}.points[{index}]")
    if telemetry.meta is not None:
        _check_stored_json(telemetry.meta, f"{where}.meta")
        _expect(
            telemetry.meta.lstrip().startswith(b"{"),
            f"{where}.meta: expected a JSON object, got {telemetry.meta!r:.100}",
        )


def _check_point(point: object, where: str) -> None:
    if not isinstance(point, Point):
        raise ConformanceError(f"{where}: expected Point, got {type(point).__name__}")
    _check_text(point.name, f"{where}.name", shortest=1, longest=MAX_NAME)
    if point.u is not None:
        _check_text(point.u, f"{where}.u", longest=MAX_UNIT)
    _expect(
        isinstance(point.t, str) and point.t in CLASS_OF,
        f"{where}.t: expected one of {', '.join(CLASS_OF)}, got {point.t!r}",
    )
    class_ = float if isinstance(point.v, Exact) else type(point.v)
    _expect(
        class_ is CLASS_OF[point.t],
        f"{where}.v: expected {CLASS_OF[point.t].__name__} (t is {point.t}), got {type(point.v).__name__}",
    )
    if isinstance(point.v, str):
        _check_text(point.v, f"{where}.v")
    _expect(
        not isinstance(point.v, float) or math.isfinite(point.v),
        f"{where}.v: expected a finite number, got {point.v!r}",
    )
    _expect(
        not isinstance(point.v, Exact) or _is_exact(point.v),
        f"{where}.v: expected an Exact made by number(), got {point.v!r}",
    )
    quality: object = point.q  # nothing but msgspec holds it to its annotation
    _expect(type(quality) is int and quality in {0, 1, 2}, f"{where}.q: expected 0, 1 or 2, got {quality!r}")


def _is_exact(value: Exact) -> bool:
    try:
        return _NUMBER.fullmatch(value.digits) is not None and number(value.digits) == value
    except DecodeError:
        return False


def _check_ack(ack: CommandAck, where: str) -> None:
    _check_text(ack.cmd_id, f"{where}.cmd_id", shortest=1, longest=MAX_NAME)
    _expect(type(ack.ok) is bool, f"{where}.ok: expected bool, got {ack.ok!r}")
    _check_stored_json(ack.payload, f"{where}.payload")
    if ack.ts_exec is not None:
        _check_time(ack.ts_exec, f"{where}.ts_exec")
    if ack.err is not None:
        _check_text(ack.err, f"{where}.err")


def _check_event(event: Event, where: str) -> None:
    _check_text(event.event_type, f"{where}.event_type", shortest=1, longest=MAX_NAME)
    if event.event_id is not None:
        _check_text(event.event_id, f"{where}.event_id", shortest=1, longest=MAX_NAME)
    _check_time(event.ts, f"{where}.ts")
    if event.data is not None:
        _check_stored_json(event.data, f"{where}.data")


def _check_time(ts: object, where: str) -> None:
    if not isinstance(ts, datetime) or ts.utcoffset() != timedelta(0) or ts.tzinfo is not UTC:
        raise ConformanceError(f"{where}: expected a datetime with tzinfo=UTC, got {ts!r}")


def _check_text(text: object, where: str, *, shortest: int = 0, longest: int | None = None) -> None:
    if not isinstance(text, str):
        raise ConformanceError(f"{where}: expected str, got {type(text).__name__}")
    _expect("\0" not in text, f"{where}: has U+0000, which PostgreSQL cannot store")
    _expect(
        not any("\ud800" <= character <= "\udfff" for character in text),
        f"{where}: has a lone surrogate, which UTF-8 cannot encode",
    )
    _expect(shortest <= len(text), f"{where}: is empty")
    _expect(longest is None or len(text) <= longest, f"{where}: has {len(text)} characters, the limit is {longest}")


def _check_stored_json(raw: object, where: str) -> None:
    if not isinstance(raw, bytes):
        raise ConformanceError(f"{where}: expected bytes, got {type(raw).__name__}")
    try:
        decode_json(_JSON, raw)
        check_json(raw, where)
    except DecodeError as exc:
        raise ConformanceError(f"{where}: expected JSON that can be stored: {exc}") from exc


def _expect(condition: bool, otherwise: str) -> None:  # noqa: FBT001 (an assertion: the condition is the subject)
    if not condition:
        raise ConformanceError(otherwise)
