"""One connection on memory streams and a mock clock: keepalive, pauses, handshakes, the last words."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from tests.patience import HANG_SECONDS
from traksense.errors import BrokerError, BrokerRefusedError
from traksense.mqtt.connection import HANDSHAKE_TIMEOUT_SECONDS, Connection
from traksense.mqtt.paho_codec import PahoCodec

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio import StapledStream
    from trio.testing import MemoryReceiveStream, MemorySendStream

    from traksense.mqtt.stream import Stream

CONNACK = bytes.fromhex("2003000000")
PINGREQ, PINGRESP = b"\xc0\x00", b"\xd0\x00"
KEEPALIVE = 30.0


class Peer:
    """A connection, and the broker's end of it in the test's hand."""

    def __init__(self, version: str = "5") -> None:
        ours, self.stream = memory_stream_pair()
        self.codec = PahoCodec(client_id="c", version=version)
        self.connection = Connection(cast("Stream", ours), self.codec, keepalive=KEEPALIVE)

    async def run(self, body: Callable[[], Awaitable[None]], broker: Callable[[Broker], Awaitable[None]]) -> None:
        failure: BrokerError | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(broker, self.stream)
            try:
                await self.connection.run(body)
            except BrokerError as error:
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure


if TYPE_CHECKING:
    Broker = StapledStream[MemorySendStream, MemoryReceiveStream]


async def read_for_ever(peer: Peer) -> None:
    await peer.connection.handshake()
    while True:
        await peer.connection.receive()


@pytest.mark.parametrize(
    ("connack", "keepalive"), [(CONNACK, KEEPALIVE), (bytes.fromhex("20060000031300") + b"\x02", 2)]
)
async def test_connection_pings_twice_in_a_keepalive(
    autojump_clock: MockClock, connack: bytes, keepalive: float
) -> None:
    """PINGREQ goes out every half keepalive, ours or what the broker wants instead, from the handshake on
    [MQTT-3.2.2-21], and an answering peer is never given up.
    """
    peer = Peer()
    pings = 0

    async def broker(stream: Broker) -> None:
        nonlocal pings
        await stream.receive_some()
        await stream.send_all(connack)
        while True:
            pings += (await stream.receive_some()).count(PINGREQ)
            await stream.send_all(PINGRESP)

    with trio.move_on_after(keepalive * 10.2) as lived:
        await peer.run(lambda: read_for_ever(peer), broker)

    assert lived.cancelled_caught
    assert 20 == pings


async def test_connection_gives_up_a_silent_peer(autojump_clock: MockClock) -> None:
    """A peer that accepts bytes and says nothing is dead after one and a half keepalives."""
    peer = Peer()

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(CONNACK)
        while True:
            await stream.receive_some()

    with pytest.raises(BrokerError, match="no answer from the broker for 45 s"):
        await peer.run(lambda: read_for_ever(peer), broker)

    assert pytest.approx(KEEPALIVE * 2, abs=KEEPALIVE / 2 + 1) == trio.current_time()


async def test_connection_paused_for_hours_is_kept(autojump_clock: MockClock) -> None:
    """While backpressure keeps us from reading, we ping and expect nothing; afterwards silence counts again."""
    peer = Peer()
    pings = 0

    async def broker(stream: Broker) -> None:
        nonlocal pings
        await stream.receive_some()
        await stream.send_all(CONNACK)
        while True:
            pings += (await stream.receive_some()).count(PINGREQ)

    async def body() -> None:
        await peer.connection.handshake()
        peer.connection.pause(True)
        await trio.sleep(3600)
        peer.connection.pause(False)
        await trio.sleep(3600)

    with pytest.raises(BrokerError, match="no answer"):
        await peer.run(body, broker)

    assert 240 <= pings
    assert 3600 < trio.current_time() < 3600 + 3 * KEEPALIVE


async def test_connection_without_connack_is_given_up(autojump_clock: MockClock) -> None:
    """A peer that does not speak MQTT is not waited for."""
    peer = Peer()

    async def broker(stream: Broker) -> None:
        await trio.sleep_forever()

    async def body() -> None:
        await peer.connection.handshake()

    with pytest.raises(BrokerError, match="no CONNACK"):
        await peer.run(body, broker)

    assert HANDSHAKE_TIMEOUT_SECONDS == pytest.approx(trio.current_time(), abs=0.1)


@pytest.mark.parametrize(
    ("reason", "error"),
    [(0x86, BrokerRefusedError), (0x87, BrokerRefusedError), (0x88, BrokerError), (0x97, BrokerError)],
)
async def test_connection_refusals_are_told_apart(reason: int, error: type[BrokerError]) -> None:
    """Wrong credentials are a configuration error; a busy broker is not."""
    peer = Peer()

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(bytes([0x20, 3, 0, reason, 0]))

    async def body() -> None:
        await peer.connection.handshake()

    with trio.fail_after(HANG_SECONDS), pytest.raises(BrokerError) as caught:
        await peer.run(body, broker)

    assert error is type(caught.value)


@pytest.mark.parametrize(
    ("version", "reply", "variable", "advice"),
    [
        ("5", "2003008400", "MQTT_VERSION", "set MQTT_VERSION=3.1.1"),
        ("5", "20020001", "MQTT_VERSION", "set MQTT_VERSION=3.1.1"),
        ("3.1.1", "20020001", "MQTT_VERSION", "set MQTT_VERSION=5"),
        ("5", "2003008500", "MQTT_CLIENT_ID", "23 letters and digits"),
        ("3.1.1", "20020002", "MQTT_CLIENT_ID", "23 letters and digits"),
        ("5", "2003008600", "MQTT_USERNAME", "MQTT_PASSWORD, or user and password in MQTT_URL"),
        ("3.1.1", "20020004", "MQTT_USERNAME", "MQTT_PASSWORD"),
        ("5", "2003008700", "MQTT_USERNAME", "MQTT_CLIENT_ID"),
        ("3.1.1", "20020005", "MQTT_USERNAME", "MQTT_CLIENT_ID"),
        ("5", "2003008a00", "MQTT_CLIENT_ID", "list of bans"),
        ("5", "2003008c00", "MQTT_USERNAME", "MQTT_CERT_FILE"),
    ],
)
async def test_connection_refusal_names_the_variable(version: str, reply: str, variable: str, advice: str) -> None:
    """What ends the start says where to look, and what would be right."""
    peer = Peer(version)

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(bytes.fromhex(reply))

    async def body() -> None:
        await peer.connection.handshake()

    with trio.fail_after(HANG_SECONDS), pytest.raises(BrokerRefusedError) as caught:
        await peer.run(body, broker)

    assert variable == caught.value.variable
    assert advice in str(caught.value)


@pytest.mark.parametrize("nonsense", [b"\xff\xff\xff\xff\xff\xff", b"\x30\x02\x00\x05", b"\x00" * 40])
async def test_connection_nonsense_ends_it(nonsense: bytes) -> None:
    """A peer that breaks the protocol, or closes, ends the connection with one line that says so."""
    peer = Peer()

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(CONNACK + nonsense)
        await stream.aclose()

    with trio.fail_after(HANG_SECONDS), pytest.raises(BrokerError, match=r"protocol|closed"):
        await peer.run(lambda: read_for_ever(peer), broker)


async def test_connection_coalesces_what_is_queued(autojump_clock: MockClock) -> None:
    """PUBACKs that are queued in one go leave in one piece, in order."""
    peer = Peer()
    pieces: list[bytes] = []

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(CONNACK)
        while data := await stream.receive_some():
            pieces.append(bytes(data))

    async def body() -> None:
        await peer.connection.handshake()
        for packet_id in range(1, 101):
            peer.connection.acknowledge([packet_id])
        await trio.sleep(1)

    await peer.run(body, broker)

    assert [b"".join(b"\x40\x02" + n.to_bytes(2, "big") for n in range(1, 101))] == pieces


async def test_connection_close_sends_everything_first(autojump_clock: MockClock) -> None:
    """The last PUBACKs are sent, then DISCONNECT; what still arrives is read and dropped until the peer closes."""
    peer = Peer()
    said = bytearray()

    async def broker(stream: Broker) -> None:
        await stream.receive_some()
        await stream.send_all(CONNACK)
        while not said.endswith(b"\xe0\x00"):
            said.extend(await stream.receive_some())
            await stream.send_all(b"\x30\x03\x00\x01a")
        await stream.aclose()

    async def body() -> None:
        await peer.connection.handshake()
        peer.connection.acknowledge([1, 2])
        await peer.connection.close()

    await peer.run(body, broker)

    assert bytes.fromhex("40020001" + "40020002" + "e000") == bytes(said)
