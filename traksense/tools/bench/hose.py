"""Publishes packets that are ready to send, at QoS 1, as fast as the broker confirms them or at a rate.

It speaks only as much MQTT as that takes, so that it leaves the machine to those who are measured.
"""

from __future__ import annotations

import secrets
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import trio

from traksense.config import Settings
from traksense.mqtt.codec import Connected
from traksense.mqtt.connection import READ_BYTES
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream
from traksense.tools.bench.load import PACKET_IDS
from traksense.tools.stack import StackError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from traksense.mqtt.stream import Stream
    from traksense.tools.stack import BrokerProcess

SESSION_SECONDS: Final = 86_400
HANDSHAKE_SECONDS: Final = 10.0
TICK_SECONDS: Final = 0.005
"""How often messages that are due are sent, at a rate."""

_PUBACK: Final = 4
_PUBACK_BYTES: Final = 4


class Hose:
    """See `open_hose`.

    Attributes:
        sent, confirmed: Messages.
    """

    def __init__(self, stream: Stream, window: int) -> None:
        self.sent = 0
        self.confirmed = 0
        self._stream = stream
        self._window = window
        self._progress = trio.Event()
        self._held = b""

    async def send(self, packets: bytes, count: int) -> None:
        """Send packets; waits while too many are unconfirmed."""
        while self.sent - self.confirmed + count > self._window:
            await self._progress.wait()
        self.sent += count
        await self._stream.send_all(packets)

    async def send_all(self, chunks: Iterable[tuple[bytes, int]]) -> None:
        """Send chunk after chunk and wait until all is confirmed."""
        for packets, count in chunks:
            await self.send(packets, count)
        await self.drain()

    async def drain(self) -> None:
        """Wait until the broker has confirmed everything."""
        while self.confirmed < self.sent:
            await self._progress.wait()

    async def receive(self) -> None:
        """Count PUBACKs until cancelled.

        Raises:
            StackError: The broker refuses a message, has no subscriber for it, or went away.
        """
        while data := await self._stream.receive_some(READ_BYTES):
            self.take(bytes(data))
            self._progress.set()
            self._progress = trio.Event()
        raise StackError("the broker closed the publisher's connection")

    def take(self, data: bytes) -> None:
        """Count the PUBACKs in what came, cut anywhere."""
        data = self._held + data
        whole = len(data) // _PUBACK_BYTES * _PUBACK_BYTES
        kinds, lengths = data[0:whole:_PUBACK_BYTES], data[1:whole:_PUBACK_BYTES]
        if kinds and kinds == b"\x40" * len(kinds) and lengths == b"\x02" * len(lengths):
            # All of them short, as they are when all is well: Mosquitto leaves out reason code 0.
            self.confirmed += len(kinds)
            self._held = data[whole:]
            return
        at = 0
        while at < len(data):
            if data[at] >> 4 != _PUBACK:
                raise StackError(f"the broker answers a PUBLISH with {data[at:][:20].hex(' ')}")
            if len(data) - at < 2 or len(data) - at < data[at + 1] + 2:
                break
            if data[at + 1] > 2 and (reason := data[at + 4]):
                raise StackError(f"the broker does not keep a message for the service: reason 0x{reason:02x}")
            self.confirmed += 1
            at += data[at + 1] + 2
        self._held = data[at:]


@asynccontextmanager
async def open_hose(broker: BrokerProcess) -> AsyncIterator[Hose]:
    """A connection to publish on. Trio-flavored."""
    stream, connected = await _connect(broker, f"bench-publisher-{secrets.token_hex(4)}", clean=True, expiry=0)
    try:
        # The window is half of what the broker allows, so that it never has to count at the edge.
        hose = Hose(stream, max(1, (connected.receive_maximum or 65_535) // 2))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hose.receive)
            yield hose
            nursery.cancel_scope.cancel()
    finally:
        await trio.aclose_forcefully(stream)


async def open_session(broker: BrokerProcess, client_id: str) -> None:
    """Leave a session at the broker, subscribed as the service does it. Trio-flavored."""
    stream, _ = await _connect(broker, client_id, clean=False, expiry=SESSION_SECONDS)
    codec = PahoCodec(client_id=client_id)
    codec.connect()
    codec.take()
    codec.subscribe(Settings().mqtt_topics, 1)
    await stream.send_all(codec.take())
    with trio.fail_after(HANDSHAKE_SECONDS):
        await stream.receive_some(READ_BYTES)  # SUBACK
    await stream.send_all(b"\xe0\x00")
    await trio.aclose_forcefully(stream)


async def end_session(broker: BrokerProcess, client_id: str) -> None:
    """Make the broker forget a session and what it has queued. Trio-flavored."""
    stream, _ = await _connect(broker, client_id, clean=True, expiry=0)
    await stream.send_all(b"\xe0\x00")
    await trio.aclose_forcefully(stream)


class Packets(Protocol):
    """Makes PUBLISH packets; see `Fleet.packet`."""

    def __call__(self, number: int, at: int, packet_id: int, /) -> bytes:
        """The message of this number with this timestamp."""
        ...


class LivePackets:
    """Makes messages whose timestamp is the moment at which they are made; no two have the same."""

    def __init__(self, make: Packets) -> None:
        self.number = 0
        self._make = make
        self._before = 0

    def next(self, count: int) -> bytes:
        """So many more messages, as one piece."""
        packets = []
        for number in range(self.number, self.number + count):
            self._before = max(self._before + 1, time.time_ns() // 1000)
            packets.append(self._make(number, self._before, number % PACKET_IDS + 1))
        self.number += count
        return b"".join(packets)


async def publish_at_rate(hose: Hose, packets: LivePackets, rate: float, *, stop: Callable[[], bool]) -> None:
    """Publish so many messages a second until told to stop. Trio-flavored."""
    started, first = trio.current_time(), packets.number
    while not stop():
        due = int((trio.current_time() - started) * rate) - (packets.number - first)
        if due > 0:
            await hose.send(packets.next(due), due)
        await trio.sleep(TICK_SECONDS)


async def _connect(broker: BrokerProcess, client_id: str, *, clean: bool, expiry: int) -> tuple[Stream, Connected]:
    stream = await open_stream(broker.host, broker.port, None)
    codec = PahoCodec(client_id=client_id, clean=clean, session_expiry=expiry)
    codec.connect()
    await stream.send_all(codec.take())
    with trio.fail_after(HANDSHAKE_SECONDS):
        while True:
            for event in codec.feed(bytes(await stream.receive_some(READ_BYTES))):
                if isinstance(event, Connected):
                    if event.reason:
                        raise StackError(f"the broker refuses the publisher: {event.reason_text}")
                    return stream, event
