"""What the broker says of itself under `$SYS`."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from traksense.model import Message
from traksense.mqtt.codec import Subscribed
from traksense.mqtt.sys_topics import DROPPED_TOPIC, SYS_TOPICS, UNANSWERED_MAX, UPTIME_TOPIC, SysTopics

if TYPE_CHECKING:
    from collections.abc import Sequence

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)


class Watch:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[float] = []

    def uptime(self, seconds: float) -> None:
        self.told.append(seconds)

    dropped_so_far = uptime


class Codec:
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.given_up: list[str] = []

    def subscribe(self, filters: Sequence[str], _qos: int, *, retained: bool) -> int:
        assert retained
        self.asked.append(tuple(filters))
        return 7

    def unsubscribe(self, filters: Sequence[str]) -> int:
        self.given_up += filters
        return 8


def message(topic: str, payload: bytes, *, retain: bool = False) -> Message:
    return Message(topic, payload, 0, 0, 1, False, NOON, retain=retain)


@pytest.mark.parametrize("payload", [b"9" * 4301, b"9" * 21, b"", b"-1", b"1.5", b"\xb2"])
def test_what_is_no_count_is_ignored(payload: bytes) -> None:
    """Whoever may publish there: more digits than a counter has, which Python would not even read, are none."""
    watch = Watch()
    topics = SysTopics(watch)  # type: ignore[arg-type]
    for count in (b"1", payload, b"18446744073709551615"):
        topics.note(message(DROPPED_TOPIC, count, retain=True))

    assert [1, 2**64 - 1] == watch.told


def test_uptime_is_that_of_now_and_asked_for_once() -> None:
    """What was retained, or came before SUBACK, may be older than the connection; other forms are other brokers'. It is
    given up then, or a broker that queues QoS 0 would queue one after the other while we are away.
    """
    watch, codec = Watch(), Codec()
    topics = SysTopics(watch)  # type: ignore[arg-type]
    for _ in range(2):
        topics.ask(codec)  # type: ignore[arg-type]
        topics.note(message(UPTIME_TOPIC, b"1 seconds"))
        topics.handle(Subscribed(7, (0, 0)))
        topics.note(message(UPTIME_TOPIC, b"2 seconds", retain=True))
        for payload in (b"3", b"4 minutes", b"12345678901 seconds", b"5 seconds", b"6 seconds"):
            topics.note(message(UPTIME_TOPIC, payload))

    assert [5, 5] == watch.told
    assert ([SYS_TOPICS] * 2, [UPTIME_TOPIC] * 2) == (codec.asked, codec.given_up)


def test_broker_that_hangs_up_is_not_asked_again() -> None:
    """Nor because another packet, on a later connection, is answered under the number that the question had."""
    topics, codec = SysTopics(Watch()), Codec()  # type: ignore[arg-type]
    for _ in range(UNANSWERED_MAX + 3):
        topics.ask(codec)  # type: ignore[arg-type]
        if len(codec.asked) == UNANSWERED_MAX and topics.answered:
            topics.handle(Subscribed(7, (0,)))

    assert UNANSWERED_MAX == len(codec.asked)
