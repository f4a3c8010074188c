"""Brokers that a test writes as a coroutine, each of their connections on memory streams: no network, any clock."""

from __future__ import annotations

import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, cast

import mqtt5
import trio
from reader_bench import Bench
from trio.testing import memory_stream_pair

from traksense.config import Settings, load
from traksense.mqtt import reader as module

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    import pytest
    from trio import StapledStream
    from trio.testing import MemoryReceiveStream, MemorySendStream

    from traksense.mqtt.stream import Stream

CONNACK = bytes.fromhex("2003000000")


class Peer:
    """The broker's end of one connection; `number` counts them from 1."""

    def __init__(self, stream: StapledStream[MemorySendStream, MemoryReceiveStream], number: int) -> None:
        self.stream = stream
        self.number = number
        self._bytes = b""

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self) -> mqtt5.Packet | None:
        """The next packet, or None at the end."""
        while True:
            try:
                packet, size = mqtt5.read(memoryview(self._bytes))
            except IndexError:
                data = await self.stream.receive_some()
                if not data:
                    return None
                self._bytes += bytes(data)
            else:
                self._bytes = self._bytes[size:]
                return packet

    async def accept(self) -> None:
        """Take CONNECT and say yes."""
        await self.receive()
        await self.send(CONNACK)

    async def serve(
        self,
        on_publish: Callable[[mqtt5.PublishPacket], Awaitable[None]] | None = None,
        *,
        subscribes: float = float("inf"),
    ) -> None:
        """Answer as a broker does, until the client goes or so many SUBSCRIBEs were answered."""
        while subscribes > 0 and (packet := await self.receive()) is not None:
            match packet:
                case mqtt5.SubscribePacket():
                    codes = bytes(min(1, int(f.max_qos)) for f in packet.topic_filters)
                    await self.send(suback(packet.packet_id, codes))
                    subscribes -= 1
                case mqtt5.PingReqPacket():
                    await self.send(b"\xd0\x00")
                case mqtt5.PublishPacket() if on_publish is not None:
                    await on_publish(packet)


def suback(packet_id: int, codes: bytes) -> bytes:
    return b"\x90" + bytes([3 + len(codes)]) + struct.pack("!H", packet_id) + b"\x00" + codes


def settings_of(kind: str, **more: str) -> Settings:
    topics = "traksense/acme/+/+/telem,traksense/acme/+/+/event"
    return load({"MQTT_URL": "mqtt://broker.example:1883", "MQTT_TOPICS": topics, "MQTT_READER": kind} | more)


@asynccontextmanager
async def against(
    patch: pytest.MonkeyPatch, settings: Settings, script: Callable[[Peer], Awaitable[None]]
) -> AsyncIterator[Bench]:
    """A reader whose connections all lead to the script; when that ends, so does the connection."""
    bench = Bench(settings)
    count = 0

    async with trio.open_nursery() as nursery:

        async def open_stream(*_: object) -> Stream:
            nonlocal count
            count += 1
            ours, theirs = memory_stream_pair()
            nursery.start_soon(run, Peer(theirs, count))
            await trio.lowlevel.checkpoint()
            return cast("Stream", ours)

        async def run(peer: Peer) -> None:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await script(peer)
            await peer.stream.aclose()

        patch.setattr(module, "open_stream", open_stream)
        nursery.start_soon(bench.reader.run)
        yield bench
        nursery.cancel_scope.cancel()
