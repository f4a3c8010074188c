"""A reader with a pipeline that a test plays by hand, and a publisher."""

from __future__ import annotations

import math
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from tests.patience import HANG_SECONDS
from traksense.config import Settings, load
from traksense.ingest.ack import Acknowledger
from traksense.ingest.decode import Router
from traksense.ingest.health import Health
from traksense.ingest.intake import Intake
from traksense.ingest.ledger import Ledger
from traksense.model import Message
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.reader import Reader
from traksense.mqtt.stream import open_stream

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from traksense.tools.stack import BrokerProcess


class Watch:
    """Notes what the reader tells it."""

    def __init__(self) -> None:
        self.present: list[bool] = []
        self.deliveries = 0
        self.uptimes: list[float] = []
        self.counts: list[int] = []

    def connected(self, session_present: bool) -> None:
        self.present.append(session_present)

    def delivered(self) -> None:
        self.deliveries += 1

    def uptime(self, seconds: float) -> None:
        self.uptimes.append(seconds)

    def dropped_so_far(self, count: int) -> None:
        self.counts.append(count)


class Bench:
    """A reader with a pipeline that a test plays by hand."""

    def __init__(self, settings: Settings, *, queue_max: float = math.inf, max_bytes: int = 2**40) -> None:
        self.ledger = Ledger()
        self.acknowledger = Acknowledger()
        self.health = Health(["broker", "subscription"])
        self.watch = Watch()
        self.present = self.watch.present
        send, self.messages = trio.open_memory_channel[Message](queue_max)
        self.reader = Reader(
            settings,
            intake=Intake(
                send, router=Router(), ledger=self.ledger, acknowledger=self.acknowledger, max_bytes=max_bytes
            ),
            acknowledger=self.acknowledger,
            health=self.health,
            watch=self.watch,
        )

    async def wait_subscribed(self) -> None:
        while not self.health.ready:
            await trio.sleep(0.01)

    async def receive(self, count: int) -> list[Message]:
        return [await self.messages.receive() for _ in range(count)]

    def settle(self, messages: Sequence[Message]) -> None:
        self.ledger.stored += len(messages)
        self.ledger.settle(messages)
        self.acknowledger.settle(messages)


def settings_for(broker: BrokerProcess, client_id: str, tenant: str, **more: str) -> Settings:
    topics = f"traksense/{tenant}/+/+/telem,traksense/{tenant}/+/+/ack"
    return load({"MQTT_URL": broker.url, "MQTT_TOPICS": topics, "MQTT_CLIENT_ID": client_id} | more)


@asynccontextmanager
async def reading(settings: Settings, **limits: float) -> AsyncIterator[Bench]:
    """A reader that runs, subscribed; it is cut off without a word at the end, as by SIGKILL."""
    bench = Bench(settings, **limits)  # type: ignore[arg-type]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.reader.run)
        with trio.fail_after(HANG_SECONDS):
            await bench.wait_subscribed()
            yield bench
        nursery.cancel_scope.cancel()


async def publish(broker: BrokerProcess, topic: str, payloads: Sequence[bytes], *, qos: int = 1) -> None:
    """Publish and, at QoS 1, wait for every PUBACK."""
    codec = PahoCodec(client_id="", clean=True)
    connection = Connection(await open_stream(broker.host, broker.port, None), codec, keepalive=30)

    async def body() -> None:
        await connection.handshake()
        waiting = len(payloads) if qos else 0
        for begin in range(0, len(payloads), 100):
            for payload in payloads[begin : begin + 100]:
                codec.publish(topic, payload, qos=qos)
            connection.wake()
            while waiting > max(0, len(payloads) - begin - 100) and qos:
                waiting -= len(await connection.receive())
        await connection.close()

    await connection.run(body)
