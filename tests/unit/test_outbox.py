"""The publisher's outbox: nothing is lost, nothing is confirmed that was not, whatever happens to the connection."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from traksense.tools.outbox import (
    HUNG_UP,
    NO_MATCHING_SUBSCRIBERS,
    PACKET_TOO_LARGE,
    WINDOW_MAX,
    Link,
    Outbox,
    Outgoing,
)

WINDOW = 5
WINDOW_BYTES = 1000


class Broker:
    """The far end of one connection: what it was sent, by packet identifier, and not answered."""

    def __init__(self) -> None:
        self.open: dict[int, Outgoing] = {}
        self.received: list[Any] = []
        self._next = 0

    def send(self, message: Outgoing) -> int:
        """As paho: identifiers count up from 1 to 7 and around; one in use sends nothing."""
        self._next = self._next % 7 + 1
        if self._next not in self.open:
            self.open[self._next] = message
            self.received.append(message.tag)
        return self._next


class OutboxMachine(RuleBasedStateMachine):
    """Messages come, connections come and go, PUBACKs come in any order."""

    hangups_max: int | None = None

    def __init__(self) -> None:
        super().__init__()
        self.confirmed: list[int] = []
        self.refused: list[int] = []
        self.outbox = Outbox(
            window=WINDOW,
            window_bytes=WINDOW_BYTES,
            on_confirmed=self.confirmed.append,
            on_refused=lambda tag, _reason: self.refused.append(tag),
            hangups_max=self.hangups_max,
        )
        self.taken = 0
        self.acknowledged: set[int] = set()
        self.broker: Broker | None = None
        self.limit = WINDOW

    @rule(size=st.integers(0, 2000))
    def publish(self, size: int) -> None:
        if self.outbox.has_room(size):
            self.outbox.add(Outgoing("t", b"x" * size, False, self.taken))
            self.taken += 1
            self.outbox.transmit()

    @precondition(lambda self: self.broker is None)
    @rule(limit=st.sampled_from([None, 1, 3, 100]), largest=st.sampled_from([None, 500]))
    def connect(self, limit: int | None, largest: int | None) -> None:
        self.broker = Broker()
        self.limit = min(WINDOW, limit or WINDOW)
        self.outbox.connected(Link(self.broker.send, limit, largest))
        self.outbox.transmit()

    @precondition(lambda self: self.broker is not None)
    @rule()
    def disconnect(self) -> None:
        self.outbox.disconnected()
        self.broker = None

    @precondition(lambda self: self.broker is not None and self.broker.open)
    @rule(data=st.data(), reason=st.sampled_from([0, NO_MATCHING_SUBSCRIBERS, 0x97]))
    def acknowledge(self, data: st.DataObject, reason: int) -> None:
        assert self.broker is not None
        packet_id = data.draw(st.sampled_from(sorted(self.broker.open)))
        message = self.broker.open.pop(packet_id)
        if reason < 0x80:
            self.acknowledged.add(message.tag)
        self.outbox.settle(packet_id, reason)
        self.outbox.transmit()

    @rule(packet_id=st.integers(100, 200))
    def acknowledge_something_else(self, packet_id: int) -> None:
        self.outbox.settle(packet_id, 0)

    @invariant()
    def nothing_is_lost(self) -> None:
        """Invariant: taken over = confirmed + refused + unconfirmed, each once."""
        assert self.taken == len(self.confirmed) + len(self.refused) + self.outbox.unconfirmed
        assert len(set(self.confirmed + self.refused)) == len(self.confirmed + self.refused)

    @invariant()
    def only_the_acknowledged_is_confirmed(self) -> None:
        assert set(self.confirmed) <= self.acknowledged

    @invariant()
    def limits_are_respected(self) -> None:
        assert self.outbox.unconfirmed <= WINDOW
        if self.broker is not None:
            assert len(self.broker.open) <= self.limit

    @invariant()
    def order_is_kept(self) -> None:
        """On one connection, messages go in the order in which they were taken over."""
        if self.broker is not None:
            assert sorted(self.broker.received) == self.broker.received


TestOutbox = OutboxMachine.TestCase
TestOutbox.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)


class GivingUpMachine(OutboxMachine):
    """The same promises, but for a message that is refused for the connections that ended over it."""

    hangups_max = 2


TestGivingUp = GivingUpMachine.TestCase
TestGivingUp.settings = TestOutbox.settings


def outbox(**arguments: Any) -> Outbox:
    """An outbox that tells nobody."""
    defaults: dict[str, Any] = {
        "window": WINDOW,
        "window_bytes": WINDOW_BYTES,
        "on_confirmed": lambda _tag: None,
        "on_refused": lambda _tag, _reason: None,
    }
    return Outbox(**defaults | arguments)


def test_outbox_old_acknowledgement_does_not_count_on_a_new_connection() -> None:
    """The identifier of a PUBACK means the message that the present connection sent with it, and no other."""
    confirmed: list[str] = []
    box = outbox(on_confirmed=confirmed.append)
    first, second = Broker(), Broker()
    box.connected(Link(first.send))
    for tag in ("a", "b"):
        box.add(Outgoing("t", b"", False, tag))
    box.transmit()
    box.settle(1, 0)
    box.disconnected()
    box.settle(2, 0)
    box.connected(Link(second.send))
    box.transmit()
    box.settle(1, 0)

    assert ["a", "b"] == first.received
    assert ["b"] == second.received
    assert ["a", "b"] == confirmed
    assert (2, 2, 1) == (box.counters.published, box.counters.confirmed, box.counters.retransmitted)


def test_outbox_finds_out_over_which_message_the_broker_hangs_up() -> None:
    """What a lost connection left goes one by one; who is alone each time is refused, and then all go at once again."""
    refused: list[tuple[str, int]] = []
    box = outbox(on_refused=lambda tag, reason: refused.append((tag, reason)), hangups_max=2)
    for tag in "abcd":
        box.add(Outgoing("t", b"", False, tag))
    received = []
    while box.unconfirmed:
        broker = Broker()
        box.connected(Link(broker.send, limit=3))
        box.transmit()
        while broker.open:
            packet_id, message = broker.open.popitem()
            if "b" in broker.received:
                break
            assert message.tag != "b"
            box.settle(packet_id, 0)
            box.transmit()
        received.append("".join(broker.received))
        box.disconnected()

    assert ["abc", "ab", "b", "cd"] == received
    assert [("b", HUNG_UP)] == refused
    assert 3 == box.counters.confirmed


def test_outbox_large_message_goes_alone() -> None:
    """A payload above the whole window of bytes waits until nothing else is under way, and then may go."""
    box = outbox()

    assert box.has_room(5000)
    box.add(Outgoing("t", b"x", False, None))
    assert not box.has_room(5000)
    assert box.has_room(10)


def test_outbox_message_above_the_brokers_limit_is_refused_not_sent() -> None:
    """A broker would end the connection over a larger packet than it announced, again and again."""
    refused: list[tuple[str, int]] = []
    box, broker = outbox(on_refused=lambda tag, reason: refused.append((tag, reason))), Broker()
    box.connected(Link(broker.send, packet_max_bytes=100))
    box.add(Outgoing("t", b"x" * 100, False, "large"))
    box.add(Outgoing("t", b"x" * 50, False, "small"))
    box.transmit()

    assert ["small"] == broker.received
    assert [("large", PACKET_TOO_LARGE)] == refused


def test_outbox_counts_what_nobody_subscribes_to() -> None:
    """A PUBACK with the reason «no matching subscribers» is a success that nobody has."""
    box, broker = outbox(), Broker()
    box.connected(Link(broker.send))
    box.add(Outgoing("t", b"", False, None))
    box.transmit()
    box.settle(1, NO_MATCHING_SUBSCRIBERS)

    assert (1, 1, 0) == (box.counters.confirmed, box.counters.unmatched, box.unconfirmed)


@pytest.mark.parametrize("window", [0, WINDOW_MAX + 1])
def test_outbox_window_is_within_the_packet_identifiers(window: int) -> None:
    """A window that leaves no free packet identifier is refused."""
    with pytest.raises(ValueError, match="window"):
        outbox(window=window)
