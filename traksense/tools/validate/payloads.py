"""What `validate` publishes: good payloads, and one of each kind of bad one."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.model import Reason

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

NAME_TOO_LONG: Final = "x" * 129
"""A device of this name makes the topic invalid, although `+` matches it. Source: `names.NAME_MAX`."""

_NESTED: Final = 20_000
"""Levels of nesting, beyond any decoder's limit."""


@attrs.frozen
class Bad:
    """A payload that must become a dead letter with this reason."""

    name: str
    payload: bytes
    reason: Reason


def envelope(ts: datetime, points: Iterable[Mapping[str, Any]], meta: Mapping[str, Any] | None = None) -> bytes:
    """Telemetry, envelope v1."""
    document: dict[str, Any] = {"schema": "v1", "ts": iso(ts), "points": list(points)}
    return _json(document if meta is None else {**document, "meta": meta})


def numbers(ts: datetime, values: Mapping[str, float]) -> bytes:
    """Telemetry of plain numbers by point, envelope v1."""
    return envelope(ts, [{"name": name, "v": value} for name, value in values.items()])


def ack(cmd_id: str, *, ok: bool, ts_exec: datetime, err: str | None = None) -> bytes:
    """A command's acknowledgement, v1."""
    return _json({"schema": "v1", "cmd_id": cmd_id, "ok": ok, "ts_exec": iso(ts_exec), "err": err})


def event(event_type: str, ts: datetime, *, event_id: str | None = None, data: Any = None) -> bytes:
    """An event, v1."""
    document = {"schema": "v1", "event_type": event_type, "ts": iso(ts), "data": data}
    return _json(document if event_id is None else {**document, "event_id": event_id})


def bad_payloads(now: datetime) -> list[Bad]:
    """Telemetry that cannot be stored, each for another reason."""
    point = {"name": "p", "t": "float", "v": 1.0}
    good = {"schema": "v1", "ts": iso(now), "points": [point]}
    huge = _json({**good, "points": [{"name": "p", "v": 0}]}).replace(b'"v":0', b'"v":1e400')
    return [
        Bad("not JSON", b'{"schema": "v1", ', Reason.PARSE_ERROR),
        Bad("NUL and invalid UTF-8", b"\x00\xff\xfe\x80 \x00{}\xc3\x28\x00", Reason.PARSE_ERROR),
        Bad("blank", b" \n", Reason.PARSE_ERROR),
        Bad("no known format", b'{"traksense_validate": true}', Reason.UNKNOWN_FORMAT),
        Bad("schema v2", _json({**good, "schema": "v2"}), Reason.UNKNOWN_SCHEMA),
        Bad("no points", _json({**good, "points": []}), Reason.INVALID_FIELD),
        Bad("no ts", _json({"schema": "v1", "points": [point]}), Reason.MISSING_TIMESTAMP),
        Bad("type mismatch", _json({**good, "points": [{**point, "v": True}]}), Reason.TYPE_MISMATCH),
        Bad(
            "NUL in a text", _json({**good, "points": [{"name": "p", "t": "text", "v": "a\0b"}]}), Reason.NUL_CHARACTER
        ),
        Bad("a number out of range", huge, Reason.NUMBER_OUT_OF_RANGE),
        Bad("year 1900", _json({**good, "ts": "1900-01-01T00:00:00Z"}), Reason.TIMESTAMP_OUT_OF_WINDOW),
        Bad(
            "nested too deep",
            b'{"schema":"v1","meta":' + b"[" * _NESTED + b"]" * _NESTED + b"}",
            Reason.NESTED_TOO_DEEP,
        ),
    ]


def iso(instant: datetime) -> str:
    """As devices write it: to the microsecond, with Z."""
    return instant.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _json(document: object) -> bytes:
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode()
