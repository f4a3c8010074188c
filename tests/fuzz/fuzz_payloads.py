"""Payloads of any kind, through adapters and limits: `Decoder.decode` as the pipeline calls it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from traksense.adapters import Registry, check_items
from traksense.config import load
from traksense.ingest.decode import Decoder
from traksense.model import DETAIL_MAX, Delivery, Exact, Kind, Message, Reason, Route, Telemetry, count_points

NOON: Final = datetime(2026, 11, 20, 12, tzinfo=UTC)
DECODER: Final = Decoder(load({}), Registry(), now=lambda: NOON)
ROUTES: Final = [Route("acme", "plant-1", "dev-7", kind) for kind in Kind]


def one_input(data: bytes) -> None:
    """Whatever the payload: what comes of it can be stored, and nothing is raised."""
    for route in ROUTES:
        message = Message(f"traksense/{route.path}/{route.kind}", data, 1, 1, 1, False, NOON, route)
        check(DECODER.decode(message))


def check(delivery: Delivery) -> None:
    """Its items keep the contract of adapters; a rejection can be stored, too."""
    rejection = delivery.rejection
    if delivery.items:
        check_items(delivery.items)
    assert delivery.points == count_points(delivery.items)
    if rejection is not None:
        assert rejection.reason not in {Reason.ADAPTER_FAILED, Reason.INVALID_TOPIC, Reason.DATABASE_REFUSED}
        assert rejection.detail.isprintable()
        assert 0 < len(rejection.detail) <= DETAIL_MAX
    check_numbers(delivery)


def check_numbers(delivery: Delivery) -> None:
    """Each number of an envelope in which nothing is at fault is stored as it was sent, to the last digit."""
    payload = delivery.message.payload
    if delivery.rejection is not None or not delivery.points or not payload.startswith(b'{"schema":"v1"'):
        return
    try:
        sent = json.loads(payload, parse_float=Decimal, parse_int=Decimal)["points"]
    except ValueError:  # padding, bare NaN
        return
    stored = [point.v for item in delivery.items if isinstance(item, Telemetry) for point in item.points]
    numbers = [point["v"] for point in sent if type(point["v"]) is Decimal]
    assert numbers == [said(value) for value in stored if isinstance(value, float)]


def said(value: float) -> Decimal:
    """What a reader makes of `v_num` and `v_text` (ops/reading.md)."""
    if isinstance(value, Exact):
        return Decimal(value.digits)
    return Decimal(int(value)) if value.is_integer() and -(2**63) <= value < 2**63 else Decimal(repr(value))
