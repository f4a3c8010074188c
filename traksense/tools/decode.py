"""What the service would make of one payload, said for people or as the rows of the tables."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

import attrs
import msgspec

from traksense.cells import Column
from traksense.errors import TraksenseError
from traksense.ingest.decode import Decoder, read_topic
from traksense.model import CommandAck, Event, Exact, Message, Point, Telemetry
from traksense.names import canonical_point, canonical_unit, printable
from traksense.store.conflicts import reject
from traksense.store.duplicates import Conflict
from traksense.terminal import WHOLE, say
from traksense.tools.json_text import ascii_json

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

    from traksense.adapters import Registry
    from traksense.config import Settings
    from traksense.model import Delivery, Item, Route
    from traksense.store.dictionary import Dictionary
    from traksense.store.duplicates import Comparable
    from traksense.terminal import Screen

    Row = tuple[str, dict[str, Any]]

POINTS: Final = (Column(), Column(least=16), Column(least=16), Column(least=8), Column())
"""An indentation; name, value, unit and quality of a point."""

COLUMNS: Final = (Column(), Column(), Column(least=24))
"""An indentation; name and value."""

MQTT_PAYLOAD_MAX: Final = 268_435_455
"""Bytes; the longest packet. Source: MQTT 3.1.1, 2.2.3, "Remaining Length"."""


def read_payload(name: str) -> bytes:
    """The bytes of a file; `-` is standard input.

    Raises:
        TraksenseError: It cannot be read, or is longer than any message.
    """
    try:
        if name != "-":
            with Path(name).open("rb") as file:
                return _read(file, name)
        if sys.stdin is None:
            raise TraksenseError("cannot read the payload: standard input is closed")
        if sys.stdin.isatty():
            say("traksense: type or paste the payload, then press Ctrl-D", to=sys.stderr)
        return _read(sys.stdin.buffer, "standard input")
    except (OSError, ValueError) as error:
        raise TraksenseError(f"cannot read {name}: {getattr(error, 'strerror', None) or error}") from None


def _read(file: BinaryIO, name: str) -> bytes:
    payload = file.read(MQTT_PAYLOAD_MAX + 1)
    if len(payload) > MQTT_PAYLOAD_MAX:
        raise TraksenseError(f"{name} is longer than {MQTT_PAYLOAD_MAX} bytes, and no MQTT message is")
    return payload


def decode(
    settings: Settings, registry: Registry, topic: str, payload: bytes, *, received_at: datetime | None = None
) -> Delivery:
    """Decode it as if it had been received then, or just now, and store it in an empty database: names and units are
    those of the tables, and of points with one key one is left.
    """
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
    delivery = Decoder(settings, registry).decode(message)
    _store(delivery, replacing=settings.conflicts == "replace")
    return delivery


@attrs.define
class _Series:
    """The numbers of series, and what they are called: as the dictionary has it of a device that it did not know."""

    numbers: dict[tuple[str, str | None], int] = attrs.field(factory=dict)
    spellings: set[tuple[str, str | None]] = attrs.field(factory=set)

    def number(self, point: Point) -> int:
        """The one of a point."""
        self.spellings.add((point.name, point.u))
        return self.numbers.setdefault(_canonical(point.name, point.u), len(self.numbers))

    def names(self, _route: Route) -> dict[int, str]:
        """As `Dictionary.names`."""
        return {
            self.numbers[_canonical(name, unit)]: name if unit is None else f"{name} ({unit})"
            for name, unit in sorted(self.spellings, key=lambda spelling: (spelling[0], spelling[1] or ""))
        }


def _store(delivery: Delivery, *, replacing: bool) -> None:
    """As `store.duplicates` does it."""
    series = _Series()
    points: list[tuple[tuple[int, datetime], Point]] = []
    counting: dict[tuple[int, datetime], Point] = {}
    for item in delivery.items:
        if not isinstance(item, Telemetry):
            continue
        # Plain numbers of good quality are packed before others (`store.rows`), and the first that is packed counts.
        for point in sorted(item.points, key=lambda point: type(point.v) is not float or point.q != 0):
            key = series.number(point), item.ts
            points.append((key, point))
            if replacing or key not in counting:
                counting[key] = point
    conflicts = [
        Conflict(0, *key, _columns(point), _columns(counting[key]))
        for key, point in points
        if not replacing and _columns(point) != _columns(counting[key])
    ]
    if conflicts:
        rejections, _ = reject([delivery], cast("Dictionary", series), conflicts, set())
        delivery.rejection = rejections[0]
    kept = set(map(id, counting.values()))
    delivery.items = [
        msgspec.structs.replace(item, points=[_spelt(point) for point in item.points if id(point) in kept])
        if isinstance(item, Telemetry)
        else item
        for item in delivery.items
    ]


def _canonical(name: str, unit: str | None) -> tuple[str, str | None]:
    return canonical_point(name), canonical_unit(unit)


def _spelt(point: Point) -> Point:
    name, unit = _canonical(point.name, point.u)
    return msgspec.structs.replace(point, name=name, u=unit)


def _columns(point: Point) -> Comparable:
    value = point.v
    if isinstance(value, bool):
        return None, value, None
    if isinstance(value, str):
        return None, None, value
    return float(value), None, value.digits if isinstance(value, Exact) else None


def as_json(delivery: Delivery) -> Iterator[str]:
    """One line for each row: the table, and its columns that are not NULL."""
    for table, row in _rows(delivery):
        columns = {name: value for name, value in row.items() if value is not None}
        yield ascii_json(msgspec.json.encode({"table": table, **columns}).decode())


def as_text(delivery: Delivery, screen: Screen = WHOLE) -> Iterator[str]:
    """The same for people, on this screen; what all points share is said once."""
    if not delivery.message.payload:
        yield "nothing: an empty payload, by which MQTT clears a retained topic"
    for item in delivery.items:
        if isinstance(item, Telemetry):
            if not item.points:
                continue
            yield f"{_count(item)} at {_stamp(item.ts)}, to ts_measure"
            if item.meta is not None:
                yield f"  meta {_shown(_raw(item.meta))}"
            yield from screen.table(POINTS, [("", *_cells(point)) for point in item.points])
        else:
            table, row = _other(item, {})
            yield f"1 row, to {table}"
            columns = [("", name, _shown(value)) for name, value in row.items() if value is not None]
            yield from screen.table(COLUMNS, columns)
    if delivery.rejection is not None:
        yield f"dead letter, {delivery.rejection.reason}: {printable(delivery.rejection.detail)}"
    elif delivery.message.payload and not delivery.items:
        yield "nothing: no point has a reading"


def _rows(delivery: Delivery) -> Iterator[Row]:
    route = delivery.message.route
    if route is not None:
        names = _names(route)
        for item in delivery.items:
            if isinstance(item, Telemetry):
                meta = _raw(item.meta)
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
    number, truth, text = _columns(point)
    return {
        "point_id": point.name,
        "ts": item.ts,
        "v_num": number,
        "v_bool": truth,
        "v_text": text,
        "unit": point.u,
        "qual": point.q,
    }


def _other(item: Item, names: dict[str, Any]) -> Row:
    if isinstance(item, CommandAck):
        return "cmd_ack", {
            **names,
            "cmd_id": item.cmd_id,
            "ok": item.ok,
            "ts_exec": item.ts_exec,
            "err": item.err,
            "payload": _raw(item.payload),
        }
    assert isinstance(item, Event)
    return "device_event", {
        **names,
        "event_id": item.event_id,
        "event_type": item.event_type,
        "ts": item.ts,
        "data": _raw(item.data),
    }


def _count(item: Telemetry) -> str:
    number = len(item.points)
    return f"{number} point{'s' * (number != 1)}"


def _cells(point: Point) -> tuple[str, ...]:
    value = point.v.digits if isinstance(point.v, Exact) else point.v
    quality = ("", "suspect", "bad")[point.q]
    return printable(point.name), _shown(value), printable(point.u or ""), quality


def _shown(value: object) -> str:
    if isinstance(value, datetime):
        return _stamp(value)
    if isinstance(value, str) and value.isprintable():
        return value
    text = msgspec.json.encode(value).decode()
    return text if text.isprintable() else ascii_json(text)


def _raw(document: bytes | None) -> msgspec.Raw | None:
    """On one line, its numbers as they are."""
    return msgspec.Raw(msgspec.json.format(document, indent=-1)) if document is not None else None


def _stamp(value: datetime) -> str:
    return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
