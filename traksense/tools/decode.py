"""What the service would make of one payload, said for people or as the rows of the tables."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from traksense.errors import TraksenseError
from traksense.ingest.decode import Decoder, read_topic
from traksense.model import CommandAck, Event, Exact, Message, Telemetry
from traksense.terminal import say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.adapters import Registry
    from traksense.config import Settings
    from traksense.model import Delivery, Item, Point, Route

    Row = tuple[str, dict[str, Any]]


def read_payload(name: str) -> bytes:
    """The bytes of a file; `-` is standard input.

    Raises:
        TraksenseError: It cannot be read.
    """
    if name == "-":
        if sys.stdin.isatty():
            say("traksense: type or paste the payload, then press Ctrl-D", to=sys.stderr)
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except (OSError, ValueError) as error:
        raise TraksenseError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


def decode(
    settings: Settings, registry: Registry, topic: str, payload: bytes, *, received_at: datetime | None = None
) -> Delivery:
    """Decode it as if it had been received then, or just now."""
    message = Message(
        topic=topic,
        payload=payload,
        qos=1,
        packet_id=1,
        generation=0,
        redelivered=False,
        received_at=received_at or datetime.now(UTC),
        route=read_topic(topic),
    )
    return Decoder(settings, registry).decode(message)


def as_json(delivery: Delivery) -> Iterator[str]:
    """One line for each row: the table, and its columns that are not NULL."""
    for table, row in _rows(delivery):
        columns = {name: value for name, value in row.items() if value is not None}
        yield json.dumps({"table": table, **columns}, ensure_ascii=False, default=_stamp)


def as_text(delivery: Delivery) -> Iterator[str]:
    """The same for people; what all points share is said once."""
    if not delivery.message.payload:
        yield "nothing: an empty payload, by which MQTT clears a retained topic"
    for item in delivery.items:
        if isinstance(item, Telemetry):
            yield f"{_count(item)} at {_stamp(item.ts)}, to ts_measure"
            if item.meta is not None:
                yield f"  meta {item.meta.decode()}"
            yield from _table([_cells(point) for point in item.points])
        else:
            table, row = _other(item, {})
            yield f"1 row, to {table}"
            yield from _table([(name, _shown(value)) for name, value in row.items() if value is not None])
    if delivery.rejection is not None:
        yield f"dead letter, {delivery.rejection.reason}: {delivery.rejection.detail}"
    elif delivery.message.payload and not delivery.items:
        yield "nothing: no point has a reading"


def _rows(delivery: Delivery) -> Iterator[Row]:
    route = delivery.message.route
    if route is not None:
        names = _names(route)
        for item in delivery.items:
            if isinstance(item, Telemetry):
                meta = json.loads(item.meta) if item.meta is not None else None
                for point in item.points:
                    yield "ts_measure", {**names, **_measure(item, point), "meta": meta}
            else:
                yield _other(item, names)
    if delivery.rejection is not None:
        rejection = delivery.rejection
        tenant = route.tenant if route is not None else None
        yield (
            "ingest_errors",
            {
                "tenant_id": tenant,
                "topic": delivery.message.topic,
                "reason": str(rejection.reason),
                "detail": rejection.detail,
            },
        )


def _names(route: Route) -> dict[str, Any]:
    return {"tenant_id": route.tenant, "site_id": route.site, "device_id": route.device}


def _measure(item: Telemetry, point: Point) -> dict[str, Any]:
    value = point.v
    return {
        "point_id": point.name,
        "ts": item.ts,
        "v_num": float(value) if isinstance(value, float) else None,
        "v_bool": value if isinstance(value, bool) else None,
        "v_text": value.digits if isinstance(value, Exact) else value if isinstance(value, str) else None,
        "unit": point.u,
        "qual": point.q,
    }


def _other(item: Item, names: dict[str, Any]) -> Row:
    if isinstance(item, CommandAck):
        payload = json.loads(item.payload)
        return "cmd_ack", {
            **names,
            "cmd_id": item.cmd_id,
            "ok": item.ok,
            "ts_exec": item.ts_exec,
            "err": item.err,
            "payload": payload,
        }
    assert isinstance(item, Event)
    data = json.loads(item.data) if item.data is not None else None
    return "device_event", {
        **names,
        "event_id": item.event_id,
        "event_type": item.event_type,
        "ts": item.ts,
        "data": data,
    }


def _count(item: Telemetry) -> str:
    number = len(item.points)
    return f"{number} point{'s' * (number != 1)}"


def _cells(point: Point) -> tuple[str, ...]:
    value = point.v.digits if isinstance(point.v, Exact) else point.v
    quality = ("", "suspect", "bad")[point.q]
    return point.name, _shown(value), point.u or "", quality


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return _stamp(value)
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value, ensure_ascii=False)


def _stamp(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")


def _table(rows: list[tuple[str, ...]]) -> Iterator[str]:
    """In columns as wide as what is in them; one long name does not widen all others."""
    widths = [min(max(map(len, column)), 40) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  " + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
