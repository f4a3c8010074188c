"""The acknowledger: the longest settled prefix, in receive order, on the connection that brought it."""

from __future__ import annotations

from datetime import UTC, datetime

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from traksense.ingest.ack import Acknowledger
from traksense.model import Message


def message(packet_id: int, *, generation: int = 1, qos: int = 1) -> Message:
    return Message(
        "t", b"", qos, packet_id, generation, redelivered=False, received_at=datetime(2026, 1, 1, tzinfo=UTC)
    )


def connected(generation: int = 1) -> tuple[Acknowledger, list[int]]:
    sent: list[int] = []
    acknowledger = Acknowledger()
    acknowledger.connected(generation, sent.extend)
    return acknowledger, sent


def test_ack_out_of_order_waits_for_the_head() -> None:
    """A message that is settled early is not acknowledged before those that were received before it."""
    acknowledger, sent = connected()
    first, second, third = message(1), message(2), message(3)
    for m in (first, second, third):
        acknowledger.received([m])

    acknowledger.settle([third, second])

    assert [] == sent
    assert 3 == acknowledger.unacknowledged
    acknowledger.settle([first])
    assert [1, 2, 3] == sent
    assert 0 == acknowledger.unacknowledged


def test_ack_repeated_packet_ids_are_told_apart() -> None:
    """Two messages with one packet identifier are two: the order of arrival is the key."""
    acknowledger, sent = connected()
    first, again = message(7), message(7)
    acknowledger.received([first])
    acknowledger.received([again])

    acknowledger.settle([again])

    assert [] == sent
    acknowledger.settle([first])
    assert [7, 7] == sent


def test_ack_of_an_old_connection_is_never_sent() -> None:
    """A message of an earlier connection is not acknowledged on the present one, even under the same packet
    identifier.
    """
    acknowledger, sent_on_first = connected(1)
    old = message(1, generation=1)
    acknowledger.received([old])
    sent_on_second: list[int] = []
    acknowledger.connected(2, sent_on_second.extend)
    new = message(1, generation=2)
    acknowledger.received([new])

    acknowledger.settle([old])

    assert ([], []) == (sent_on_first, sent_on_second)
    acknowledger.settle([new])
    assert ([], [1]) == (sent_on_first, sent_on_second)
    assert 1 == acknowledger.abandoned


def test_ack_after_disconnect_goes_nowhere() -> None:
    """Between two connections nothing is sent."""
    acknowledger, sent = connected()
    m = message(1)
    acknowledger.received([m])
    acknowledger.disconnected()

    acknowledger.settle([m])

    assert [] == sent


def test_ack_qos_0_takes_no_place() -> None:
    """A message at QoS 0 has no PUBACK and holds back none."""
    acknowledger, sent = connected()
    unconfirmed, confirmed = message(0, qos=0), message(1)
    acknowledger.received([unconfirmed])
    acknowledger.received([confirmed])

    acknowledger.settle([confirmed])

    assert [1] == sent


def test_ack_what_waits_behind_the_head_holds_no_payload() -> None:
    """A settled message that waits for an earlier one gives its bytes up: memory stays bounded."""
    acknowledger, _ = connected()
    head, behind = message(1), message(2)
    behind.payload = b"x" * 1000
    acknowledger.received([head])
    acknowledger.received([behind])

    acknowledger.settle([behind])

    assert (2, b"") == (acknowledger.unacknowledged, behind.payload)


def test_ack_oldest_is_the_head() -> None:
    """The age in the metrics is that of the message that holds back the others."""
    acknowledger, _ = connected()
    assert acknowledger.oldest_received_at is None
    acknowledger.received([message(1)])

    assert datetime(2026, 1, 1, tzinfo=UTC) == acknowledger.oldest_received_at


class AcknowledgerMachine(RuleBasedStateMachine):
    """Any interleaving of receiving, settling and reconnecting, against a model that keeps everything."""

    def __init__(self) -> None:
        super().__init__()
        self.acknowledger = Acknowledger()
        self.generation = 0
        self.sent: dict[int, list[int]] = {}
        self.received: list[Message] = []
        self.settled: set[int] = set()

    @rule()
    def connect(self) -> None:
        self.generation += 1
        log = self.sent[self.generation] = []
        self.acknowledger.connected(self.generation, log.extend)

    @rule()
    def disconnect(self) -> None:
        self.acknowledger.disconnected()

    @precondition(lambda self: self.generation > 0)
    @rule(packet_id=st.integers(1, 5), qos=st.integers(0, 1), stale=st.booleans())
    def receive(self, packet_id: int, qos: int, stale: bool) -> None:
        m = message(packet_id, qos=qos, generation=self.generation - (stale and self.generation > 1))
        self.received.append(m)
        self.acknowledger.received([m])

    @precondition(lambda self: len(self.settled) < len(self.received))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        waiting = [place for place in range(len(self.received)) if place not in self.settled]
        chosen = data.draw(st.lists(st.sampled_from(waiting), unique=True, min_size=1))
        self.settled.update(chosen)
        self.acknowledger.settle([self.received[place] for place in chosen])

    @invariant()
    def acknowledged_is_a_settled_prefix_of_its_connection(self) -> None:
        for generation, sent in self.sent.items():
            mine = [place for place, m in enumerate(self.received) if m.qos and m.generation == generation]
            assert [self.received[place].packet_id for place in mine[: len(sent)]] == sent
            assert self.settled.issuperset(mine[: len(sent)])

    @invariant()
    def nothing_ready_is_held_back(self) -> None:
        window = self.acknowledger._window
        assert not window or not window[0].settled


TestAcknowledgerMachine = AcknowledgerMachine.TestCase
