"""Subscriptions in as many packets as it takes."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.mqtt.codec import ProtocolError, Subscribed, Unsubscribed
from traksense.mqtt.subscriptions import FILTERS_MAX, Subscriptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from traksense.mqtt.codec import Codec

MANY = [f"traksense/tenant-{number}/#" for number in range(2 * FILTERS_MAX + 1)]


class FakeCodec:
    """Notes what is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def subscribe(self, filters: Sequence[str], _qos: int) -> int:
        self.asked.append(list(filters))
        return len(self.asked)

    def unsubscribe(self, filters: Sequence[str]) -> int:
        return self.subscribe(filters, 0)


def connected(topics: Sequence[str]) -> tuple[Subscriptions, FakeCodec]:
    subscriptions, codec = Subscriptions(topics, 1), FakeCodec()
    subscriptions.connected(cast("Codec", codec), session_present=True)
    return subscriptions, codec


def test_many_filters_take_several_packets() -> None:
    """All of them are asked for; they are answered when the last packet is."""
    subscriptions, codec = connected(MANY)

    assert [FILTERS_MAX, FILTERS_MAX, 1] == [len(part) for part in codec.asked]
    assert MANY == [topic for part in codec.asked for topic in part]
    done = [subscriptions.handle(Subscribed(n, (1,) * len(codec.asked[n - 1]))) for n in (2, 1, 3)]
    assert [False, False, True] == done
    assert subscriptions.answered
    assert subscriptions.fault is None


def test_a_refusal_in_any_packet_is_a_fault() -> None:
    """The first three are named."""
    subscriptions, codec = connected(MANY)
    for n, part in enumerate(codec.asked, 1):
        subscriptions.handle(Subscribed(n, (0x87,) * len(part) if n == 2 else (1,) * len(part)))

    fault = subscriptions.fault or ""
    assert f"traksense/tenant-{FILTERS_MAX}/#" in fault
    assert f"and {FILTERS_MAX - 3} more" in fault


def test_no_filters_are_answered_at_once() -> None:
    """A shard without tenants, or a session that is being retired."""
    subscriptions, codec = connected([])

    assert [] == codec.asked
    assert subscriptions.answered
    assert subscriptions.fault is None


def test_a_lost_connection_answers_nothing() -> None:
    """What was asked for has to be asked for again."""
    subscriptions, _ = connected(MANY)
    subscriptions.disconnected()

    assert not subscriptions.answered
    assert not subscriptions.handle(Subscribed(1, (1,) * FILTERS_MAX)) or not subscriptions.answered


async def test_release_tells_what_the_broker_confirmed() -> None:
    """A filter that there was no subscription for is given up too; a refused one is not."""
    subscriptions, _ = connected([])
    release = subscriptions.release(["a", "b", "c"])
    assert release is not None

    subscriptions.handle(Unsubscribed(1, (0, 0x11, 0x87)))
    with trio.fail_after(HANG_SECONDS):
        await release.ended.wait()

    assert {"a", "b"} == release.confirmed


@pytest.mark.parametrize("count", [0, 2, 4])
def test_suback_answers_for_each_filter(count: int) -> None:
    """With fewer or more reason codes nobody knows what was granted: it counts for nothing."""
    subscriptions, _ = connected(["a", "b", "c"])

    with pytest.raises(ProtocolError, match=f"SUBACK with {count} reason codes for 3 topic filters"):
        subscriptions.handle(Subscribed(1, (1,) * count))

    assert not subscriptions.granted


@pytest.mark.parametrize("count", [0, 1, 3])
def test_unsuback_answers_for_each_filter(count: int) -> None:
    """Likewise what was given up."""
    subscriptions, _ = connected([])
    release = subscriptions.release(["a", "b"])
    assert release is not None

    with pytest.raises(ProtocolError, match=f"UNSUBACK with {count} reason codes for 2 topic filters"):
        subscriptions.handle(Unsubscribed(1, (0,) * count))

    assert set() == release.confirmed


async def test_release_of_mqtt_3_has_no_reasons() -> None:
    """UNSUBACK of MQTT 3.1.1 is empty: it means all."""
    subscriptions, _ = connected([])
    release = subscriptions.release(["a", "b"])
    assert release is not None

    subscriptions.handle(Unsubscribed(1, None))

    assert {"a", "b"} == release.confirmed
    assert release.ended.is_set()


async def test_release_ends_with_the_connection() -> None:
    """Nobody waits for an answer that cannot come; and without a connection nothing is asked."""
    subscriptions, _ = connected([])
    release = subscriptions.release(MANY)
    assert release is not None

    subscriptions.disconnected()

    assert release.ended.is_set()
    assert set() == release.confirmed
    assert subscriptions.release(["a"]) is None


async def test_release_on_a_closed_connection_asks_nothing() -> None:
    """Paho may have read a DISCONNECT that the reader has not come to yet."""

    class ClosedCodec(FakeCodec):
        def unsubscribe(self, _filters: Sequence[str]) -> int:
            raise ProtocolError("UNSUBSCRIBE on a closed connection")

    subscriptions = Subscriptions([], 1)
    subscriptions.connected(cast("Codec", ClosedCodec()), session_present=True)

    assert subscriptions.release(["a"]) is None


def test_a_session_that_was_forgotten_is_given_what_it_kept() -> None:
    """At once if it is known by then, else when it is; a session that is there has it already."""
    subscriptions, codec = connected(["a"])
    subscriptions.keep(["b"])
    assert [["a"]] == codec.asked
    subscriptions.disconnected()

    subscriptions.connected(cast("Codec", codec), session_present=False)
    assert ["a", "b"] == codec.asked[-1]
    assert not subscriptions.keep(["b"])
    assert subscriptions.keep(["b", "c"])

    assert ["c"] == codec.asked[-1]


def test_a_refusal_of_what_was_kept_is_said_and_stops_nothing() -> None:
    """What is wanted is granted: it may be claimed, and the rest given up."""
    subscriptions, codec = connected(["a"])
    subscriptions.keep(["b"])
    subscriptions.connected(cast("Codec", codec), session_present=False)
    subscriptions.handle(Subscribed(2, (1, 0x87)))

    assert subscriptions.granted
    assert "subscription to b" in (subscriptions.fault or "")
    subscriptions.release(["b"])
    subscriptions.handle(Unsubscribed(3, (0x11,)))
    assert subscriptions.fault is None
    assert frozenset() == subscriptions.kept
