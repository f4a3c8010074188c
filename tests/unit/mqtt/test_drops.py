"""The broker's count of what it has dropped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

from traksense.model import Message
from traksense.mqtt.drops import DROPPED_TOPIC, BrokerDrops

if TYPE_CHECKING:
    import pytest

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


def test_drops_are_counted_over_restarts_of_the_broker(caplog: pytest.LogCaptureFixture) -> None:
    """The first count is where we begin; a broker that was restarted begins at 0 again, and drops on."""
    drops = BrokerDrops()
    totals = []
    for count in ("270", "270", "275", "0", "3", "18446744073709551615"):
        drops.note(Message(DROPPED_TOPIC, count.encode(), 0, 0, 1, False, NOON))
        totals.append(drops.total)

    assert [0, 0, 5, 5, 8, 8 + 2**64 - 1 - 3] == totals
    assert ["broker_dropped_messages"] * 3 == [record.getMessage() for record in caplog.records]
