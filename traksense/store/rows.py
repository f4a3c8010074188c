"""Deliveries to rows, for each table in the shape in which it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import attrs

from traksense.model import DETAIL_MAX, CommandAck, Event, Reason, Rejection, Telemetry
from traksense.store.devices import NO_POINTS
from traksense.store.dictionary import Missing
from traksense.store.digests import digest
from traksense.store.meta_numbers import (
    INLINE_BYTES_MAX,
    INLINE_POINTS_MAX,
    META_LENGTH_MAX,
    NOVEL_META_MAX,
)
from traksense.store.packing import HEAD_BYTES, PackedRows, pack_meta, pack_middle, pack_numbers, pack_row

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from datetime import datetime

    from traksense.model import Delivery, Route
    from traksense.store.devices import Device, Layout
    from traksense.store.dictionary import Dictionary


@attrs.define
class Rows:
    """What a batch becomes.

    Attributes:
        token: The dictionary whose numbers they have (`Dictionary.token`).
        measures: Rows of measurements, in receive order.
        points: How many rows of measurements.
        acks: Rows for `cmd_ack`, one for each command: the newest of the batch.
        superseded: Indices of deliveries whose command acknowledgement is not the newest of its command in this batch.
        events: Rows for `device_event`, each with the index of its delivery, and whether its id is made of its content.
        errors: Rows for `ingest_errors`, by the index of their delivery.
        tenants: Whose acks, events and errors these are, by the topics of the messages.
    """

    token: str = ""
    measures: list[PackedRows] = attrs.field(factory=list)
    points: int = 0
    acks: dict[tuple[str, str, str], tuple[int, tuple[Any, ...]]] = attrs.field(factory=dict)
    superseded: set[int] = attrs.field(factory=set)
    events: list[tuple[int, tuple[Any, ...], bool]] = attrs.field(factory=list)
    errors: dict[int, tuple[Any, ...]] = attrs.field(factory=dict)
    tenants: set[str] = attrs.field(factory=set)

    @property
    def only_measures(self) -> bool:
        """Whether a single COPY stores all of it."""
        return not (self.acks or self.events or self.errors)

    def touched(self) -> frozenset[int]:
        """The indices of all deliveries that have something to store beside their dead letters."""
        return frozenset(
            {packed.delivery for packed in self.measures}
            | {index for index, _ in self.acks.values()}
            | self.superseded
            | {index for index, _, _ in self.events}
        )


def build(batch: Sequence[Delivery], dictionary: Dictionary) -> tuple[Rows, Missing]:
    """Make the rows of a batch; if anything is missing in the dictionary, they are not complete and must be made
    again.
    """
    rows = Rows(dictionary.token)
    missing = Missing(dictionary.forgotten)
    for index, delivery in enumerate(batch):
        if delivery.rejection is not None:
            rows.errors[index] = error_row(delivery, delivery.rejection)
            rows.tenants |= topic_tenants(delivery)
        route = delivery.message.route
        if route is None or not delivery.items:
            continue
        device = dictionary.device(route)
        if device is None:
            missing.devices[route.path] = route
        for item in delivery.items:
            if isinstance(item, Telemetry):
                if device is None:
                    _miss(item, NO_POINTS, route, missing)
                else:
                    _add_measures(rows, index, item, delivery.points, route, device, dictionary, missing)
                continue
            rows.tenants |= topic_tenants(delivery)
            if isinstance(item, CommandAck):
                _add_ack(rows, index, item, route, delivery.message.received_at)
            else:
                rows.events.append((index, _event_row(item, route), item.id_of_content))
    return rows, missing


def topic_tenants(delivery: Delivery) -> set[str]:
    """The tenant of a message: from the topic itself rather than from the row, so that the database's check is a check.
    Empty if the topic names none.
    """
    return {delivery.message.topic.split("/", 2)[1]} if delivery.message.route is not None else set()


def refuse_devices(batch: Sequence[Delivery], unknown: Container[str]) -> dict[int, Rejection]:
    """Rejections for the deliveries of devices that are not registered (strict provisioning), by their paths."""
    rejections = {}
    for index, delivery in enumerate(batch):
        route = delivery.message.route
        if delivery.items and route is not None and route.path in unknown:
            rejections[index] = Rejection(
                Reason.UNKNOWN_DEVICE, f"{route.path} is not in traksense.device (INGEST_PROVISIONING=strict)"
            )
    return rejections


def _add_measures(
    rows: Rows,
    index: int,
    item: Telemetry,
    points: int,
    route: Route,
    device: Device,
    dictionary: Dictionary,
    missing: Missing,
) -> None:
    meta_id: int | None = None
    meta: bytes | None = None
    if item.meta is not None:
        meta_id = dictionary.meta(route.tenant, item.meta)
        if meta_id is None:
            if device.novel_meta < NOVEL_META_MAX and len(item.meta) <= META_LENGTH_MAX:
                missing.meta[(route.tenant, item.meta)] = device
            elif points > INLINE_POINTS_MAX and len(item.meta) * points > INLINE_BYTES_MAX:
                missing.meta.setdefault((route.tenant, item.meta))
            else:
                meta = pack_meta(item.meta)
    places, heads = device.layout.places, device.heads
    middle = pack_middle(item.ts, meta_id)
    parts: list[bytes | float] = []
    others: list[bytes] = []
    try:
        for point in item.points:
            place = places[point.u][point.name]
            value = point.v
            if type(value) is float and not point.q:
                parts += (heads[place : place + HEAD_BYTES], middle, value)
            else:
                head = heads[place : place + HEAD_BYTES]
                others.append(pack_row(head, item.ts, value, point.q or None, meta_id))
    except KeyError:
        _miss(item, device.layout, route, missing)
        return
    if parts:
        packed = pack_numbers(parts, len(middle))
        count = len(parts) // 3
        rows.measures.append(PackedRows(packed, count, len(packed) // count, item.ts, index, meta))
        rows.points += count
    if others:
        rows.measures.append(PackedRows(b"".join(others), len(others), 0, item.ts, index, meta))
        rows.points += len(others)


def _miss(item: Telemetry, known: Layout, route: Route, missing: Missing) -> None:
    for point in item.points:
        key = (point.name, point.u)
        if not known.has(key):
            missing.series[(route.path, key)] = route


def _add_ack(rows: Rows, index: int, ack: CommandAck, route: Route, received_at: datetime) -> None:
    """Keep the newest acknowledgement of each command: one statement cannot update a row twice (SQLSTATE 21000)."""
    key = (route.tenant, route.device, ack.cmd_id)
    row = (
        route.tenant,
        route.site,
        route.device,
        ack.cmd_id,
        ack.ok,
        ack.ts_exec,
        ack.err,
        ack.payload.decode(),
        received_at,
    )
    previous = rows.acks.get(key)
    if previous is None:
        rows.acks[key] = (index, row)
        return
    older = previous[1][5]
    if older is None or (ack.ts_exec is not None and ack.ts_exec >= older):
        rows.superseded.add(previous[0])
        rows.acks[key] = (index, row)
    else:
        rows.superseded.add(index)


def _event_row(event: Event, route: Route) -> tuple[Any, ...]:
    data = event.data.decode() if event.data is not None else None
    return (route.tenant, route.site, route.device, event.event_id, event.event_type, event.ts, data)


def error_row(delivery: Delivery, rejection: Rejection) -> tuple[Any, ...]:
    """The row for `ingest_errors`."""
    message = delivery.message
    # PostgreSQL's text takes neither NUL nor surrogates; the topic in a dead letter is for people.
    topic = _storable(message.topic)
    return (
        message.route.tenant if message.route else None,
        topic,
        message.payload,
        str(rejection.reason),
        _storable(rejection.detail)[:DETAIL_MAX],
        message.received_at,
        digest(topic.encode(), message.payload),
    )


def _storable(text: str) -> str:
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
