"""What proves that a broker has the session that it says it has not."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from traksense.model import Message
from traksense.mqtt.kept_session import KeptSession

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOPIC = "traksense/acme/site/device/telem"


def message(
    packet_id: int = 7,
    *,
    topic: str = TOPIC,
    payload: bytes = b"1",
    qos: int = 1,
    dup: bool = True,
    retain: bool = False,
) -> Message:
    return Message(topic, payload, qos, packet_id, 1, dup, NOON, retain=retain)


@pytest.mark.parametrize("present", [True, False])
@pytest.mark.parametrize("early", [True, False])
def test_message_before_our_subscribe_proves_it(early: bool, present: bool) -> None:
    """To a new session nothing is subscribed. Where there is one, nothing has to be proved."""
    proofs: list[bool] = []
    kept = KeptSession(lambda: proofs.append(True))

    kept.connected([message(dup=False)] if early else [], session_present=present)

    assert (early and not present) == bool(proofs)
    assert kept.open == (not present and not early)


@pytest.mark.parametrize("welcome", [message(dup=False, retain=True), message(0, qos=0, dup=False)])
def test_what_a_broker_may_send_by_itself_proves_nothing(welcome: Message) -> None:
    """A retained message on a topic to which the broker itself subscribes each client, or a greeting at QoS 0."""
    proofs: list[bool] = []
    kept = KeptSession(lambda: proofs.append(True))

    kept.connected([welcome], session_present=False)

    assert ([], True) == (proofs, kept.open)


@pytest.mark.parametrize(
    ("first", "proved"),
    [
        ([message()], True),
        ([message(0, qos=0, dup=False), message(6), message()], True),
        ([message(dup=False)], False),
        ([message(8)], False),
        ([message(topic=TOPIC + "x")], False),
        ([message(payload=b"2")], False),
        ([], False),
    ],
)
def test_what_we_had_not_acknowledged_proves_it(first: list[Message], proved: bool) -> None:
    """The same message under the same identifier, marked as sent again: a new session knows none of these. Only what
    comes first is looked at, although it may be more than one read until then.
    """
    proofs: list[bool] = []
    kept = KeptSession(lambda: proofs.append(True))
    kept.disconnected(message(dup=False))
    kept.connected([], session_present=False)
    kept.look([message(0, qos=0, dup=False)])
    assert kept.open
    kept.look(first)

    assert proved == bool(proofs)
    assert kept.open == (not first)


def test_without_a_message_in_hand_nothing_is_proved() -> None:
    """The DUP flag alone may be the publisher's."""
    proofs: list[bool] = []
    kept = KeptSession(lambda: proofs.append(True))
    kept.disconnected(None)
    kept.connected([], session_present=False)
    kept.look([message()])

    assert [] == proofs
