"""The broker's count of what it has dropped."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from traksense.model import Message
from traksense.mqtt.codec import Subscribed
from traksense.mqtt.drops import DROPPED_TOPIC, UNANSWERED_MAX, BrokerDrops

if TYPE_CHECKING:
    from collections.abc import Sequence

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


@pytest.mark.parametrize("payload", [b"9" * 4301, b"9" * 21, b"", b"-1", b"1.5", b"\xb2"])
def test_what_is_no_count_is_ignored(payload: bytes) -> None:
    """Whoever may publish there: more digits than a counter has, which Python would not even read, are none."""
    drops = BrokerDrops()
    for count in (b"1", payload, b"4"):
        drops.note(Message(DROPPED_TOPIC, count, 0, 0, 1, False, NOON))

    assert 3 == drops.total


class Asked:
    """A codec that notes what was subscribed to."""

    def __init__(self) -> None:
        self.asked = 0

    def subscribe(self, _filters: Sequence[str], _qos: int) -> int:
        self.asked += 1
        return 7


def test_broker_that_hangs_up_is_not_asked_again() -> None:
    """Nor because another packet, on a later connection, is answered under the number that the question had."""
    drops, codec = BrokerDrops(), Asked()
    for _ in range(UNANSWERED_MAX + 3):
        drops.ask(codec)  # type: ignore[arg-type]
        if codec.asked == UNANSWERED_MAX and drops.answered:
            drops.handle(Subscribed(7, (0,)))

    assert UNANSWERED_MAX == codec.asked
