"""Whole conversations with a reader that a broker makes up, connection after connection: it always goes on."""

from __future__ import annotations

import struct
from contextlib import contextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scripted_broker import CONNACK, Peer, against, settings_of
from trio.testing import MockClock

from tests.contract.test_codec import publish_packet, variable_byte_integer
from traksense.errors import BrokerRefusedError, SessionTakenOverError
from traksense.mqtt.sys_topics import DROPPED_TOPIC, UPTIME_TOPIC

if TYPE_CHECKING:
    from collections.abc import Iterator

    from reader_bench import Bench

TOPIC = "traksense/acme/site/device/telem"
GOOD = b"the last word"
HEARTBEAT = "traksense-heartbeat"


@attrs.frozen
class Say:
    """Bytes, in pieces of so many."""

    data: bytes
    size: int = 1 << 16


@attrs.frozen
class Wait:
    """Nothing for so many seconds."""

    seconds: float


properties = st.sampled_from(
    [
        b"",
        b"\x1f\x00\x02ok",
        b"\x1f\x00\x01\xff",
        b"\x26\x00\x01a\x00\x01b" * 50,
        b"\x13\x00\x01",
        b"\x21\x00\x00",
        b"\x7f",
    ]
)
packet_ids = st.sampled_from([0, 1, 2, 3, 4, 5, 9, 65535])


def packet(first: int, body: bytes) -> bytes:
    return bytes([first]) + variable_byte_integer(len(body)) + body


@st.composite
def answers(draw: st.DrawFn) -> bytes:
    """CONNACK, PUBACK, SUBACK, UNSUBACK, DISCONNECT, AUTH and what is for servers only, with any properties."""
    first = draw(st.sampled_from([0x20, 0x40, 0x50, 0x62, 0x70, 0x90, 0xB0, 0xC0, 0xD0, 0xE0, 0xF0]))
    head = struct.pack("!H", draw(packet_ids)) if first not in (0xC0, 0xD0, 0xE0, 0xF0) else b""
    some = draw(properties)
    codes = bytes(draw(st.lists(st.sampled_from([0, 1, 2, 0x11, 0x80, 0x87, 0x8B, 0x55]), max_size=4)))
    with_properties = variable_byte_integer(len(some)) + some
    body = head + (with_properties + codes if first in (0x90, 0xB0) else codes[:1] + with_properties)
    return packet(first, draw(st.sampled_from([body, head, b""])))


@st.composite
def messages(draw: st.DrawFn) -> bytes:
    """PUBLISH, on topics of ours and others."""
    topic = draw(st.sampled_from([TOPIC, DROPPED_TOPIC, UPTIME_TOPIC, HEARTBEAT, "", "a/\x00"]))
    payload = draw(st.sampled_from([b"", b"7", b"7 seconds", b"9" * 4301, b"{}", b"x" * 5000]))
    return publish_packet(
        payload,
        topic=topic,
        qos=draw(st.integers(0, 3)),
        packet_id=draw(packet_ids),
        dup=draw(st.booleans()),
        retain=draw(st.booleans()),
        properties=draw(properties),
    )


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A packet with a byte changed, cut short, or twice."""
    raw = bytearray(draw(answers() | messages()))
    raw[draw(st.integers(0, len(raw) - 1))] = draw(st.integers(0, 255))
    return bytes(draw(st.sampled_from([raw, raw[:-1], raw * 2])))


words = answers() | messages() | damaged() | st.binary(max_size=30) | st.just(CONNACK)
steps = st.builds(Say, words, st.sampled_from([1, 7, 1 << 16])) | st.builds(Wait, st.sampled_from([0.1, 5, 50]))
scripts = st.lists(st.tuples(st.booleans(), st.lists(steps, max_size=6)), min_size=1, max_size=4)


@pytest.mark.parametrize("kind", ["paho", "mqtt5"])
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mqtt5 0.8 panics over broken UTF-8
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(conversations=scripts)
def test_reader_goes_on_after_any_conversation(kind: str, conversations: list[tuple[bool, list[Say | Wait]]]) -> None:
    """Whatever the broker said before: the first connection on which it behaves brings its messages; no bug was met."""

    async def broker(peer: Peer) -> None:
        if peer.number > len(conversations):
            await behave(peer)
            return
        accept, script = conversations[peer.number - 1]
        if accept:
            await peer.accept()
        for step in script:
            if isinstance(step, Wait):
                await trio.sleep(step.seconds)
                continue
            for begin in range(0, len(step.data), step.size):
                await peer.send(step.data[begin : begin + step.size])

    async def run() -> None:
        with pytest.MonkeyPatch.context() as patch:
            # Both end the process by design: the broker refuses what is configured, or another client took over.
            configured = settings_of(kind, MQTT_HEARTBEAT_TOPIC=HEARTBEAT)
            with suppress_in_groups(BrokerRefusedError, SessionTakenOverError), trio.fail_after(1000):
                async with against(patch, configured, broker) as bench:
                    await goes_on(bench)

    trio.run(run, clock=MockClock(autojump_threshold=0))


@contextmanager
def suppress_in_groups(*kinds: type[Exception]) -> Iterator[None]:
    try:
        yield
    except* kinds:
        pass


async def behave(peer: Peer) -> None:
    await peer.accept()
    await peer.send(publish_packet(GOOD, topic=TOPIC))
    await peer.serve()


async def goes_on(bench: Bench) -> None:
    payload = b""
    while payload != GOOD:
        message = await bench.messages.receive()
        payload = message.payload
        bench.settle([message])
    assert 0 == bench.reader.failures.mishandled
    assert (0, 0) == (bench.acknowledger.unacknowledged, bench.ledger.in_flight)
