"""The publisher against a real Mosquitto: what it calls confirmed, the broker has."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import attrs
import pytest
import trio

from tests.patience import HANG_SECONDS
from traksense.config import Broker, Secret
from traksense.errors import BrokerError, BrokerRefusedError
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream
from traksense.tools.outbox import PACKET_TOO_LARGE
from traksense.tools.publisher import open_publisher
from traksense.tools.stack import BrokerOptions, free_port

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess


def where(broker: BrokerProcess) -> Broker:
    """The address of a broker."""
    return Broker(host=broker.host, port=broker.port, tls=False)


@attrs.define
class Subscriber:
    """Keeps what a persistent session brings, over as many connections as the test makes."""

    broker: BrokerProcess
    client_id: str
    topic: str
    payloads: list[bytes] = attrs.field(factory=list)

    @asynccontextmanager
    async def connected(self) -> AsyncIterator[Subscriber]:
        """Receive and acknowledge until the end of the block."""
        codec = PahoCodec(client_id=self.client_id, session_expiry=600)
        connection = Connection(await open_stream(self.broker.host, self.broker.port, None), codec, keepalive=30)
        subscribed = trio.Event()

        async def receive() -> None:
            await connection.handshake()
            codec.subscribe([self.topic], 1)
            connection.wake()
            while True:
                if await connection.receive():
                    subscribed.set()
                self.payloads += [message.payload for message in codec.messages]
                connection.acknowledge([message.packet_id for message in codec.messages if message.qos])
                codec.messages.clear()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run, receive)
            await subscribed.wait()
            yield self
            nursery.cancel_scope.cancel()

    async def wait_for(self, count: int) -> None:
        """Wait until so many different payloads came."""
        await until(lambda: len(set(self.payloads)) >= count)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that comes from a socket, and sets no Event of ours."""
    while True:
        if condition():
            return
        await trio.sleep(0.001)


async def test_publisher_confirms_what_was_delivered(
    broker: BrokerProcess, tenant: str, unique: Callable[[str], str]
) -> None:
    """Every message is confirmed once, by its own tag, and a subscriber has each one once and in order."""
    confirmed: list[int] = []
    subscriber = Subscriber(broker, unique("subscriber"), f"traksense/{tenant}/#")
    with trio.fail_after(HANG_SECONDS):
        async with (
            subscriber.connected(),
            open_publisher(where(broker), client_id=unique("publisher"), on_confirmed=confirmed.append) as publisher,
        ):
            for number in range(1000):
                await publisher.publish(f"traksense/{tenant}/s/d/telem", b"%d" % number, tag=number)
            await publisher.drain()
            await subscriber.wait_for(1000)

    assert list(range(1000)) == sorted(confirmed)
    assert [b"%d" % number for number in range(1000)] == subscriber.payloads
    assert (1000, 1000, 0, 0, 0) == attrs.astuple(publisher.counters)[:5]


async def test_publisher_loses_nothing_over_broker_restarts(
    own_broker: OwnBroker, tenant: str, unique: Callable[[str], str]
) -> None:
    """With the broker restarted three times meanwhile, all is confirmed in the end, and all of it is there."""
    broker = own_broker()
    topic = f"traksense/{tenant}/s/d/telem"
    confirmed: list[int] = []
    subscriber = Subscriber(broker, unique("subscriber"), topic)
    with trio.fail_after(HANG_SECONDS):
        async with subscriber.connected():
            pass
        async with (
            open_publisher(where(broker), client_id=unique("publisher"), on_confirmed=confirmed.append) as publisher,
            trio.open_nursery() as nursery,
        ):

            async def publish() -> None:
                for number in range(20_000):
                    await publisher.publish(topic, b"%d" % number, tag=number)
                await publisher.drain()

            nursery.start_soon(publish)
            for share in (1, 2, 3):
                enough = 4000 * share
                await until(lambda: len(confirmed) >= enough)  # noqa: B023  (it is called here and now)
                await broker.restart()
        async with subscriber.connected():
            await subscriber.wait_for(20_000)

    assert list(range(20_000)) == sorted(confirmed)
    assert {b"%d" % number for number in range(20_000)} == set(subscriber.payloads)
    assert 3 == publisher.counters.reconnections
    assert publisher.counters.retransmitted <= 3 * 200


async def test_publisher_waits_for_the_window(own_broker: OwnBroker, tenant: str, unique: Callable[[str], str]) -> None:
    """With the broker away, as many messages are taken over as the window holds; the next one waits, none is lost."""
    broker = own_broker()
    taken: list[int] = []
    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(where(broker), client_id=unique("publisher"), window=10) as publisher:
            await broker.stop()
            await until(lambda: publisher.away)
            with trio.move_on_after(0.5) as gave_up:
                for number in range(20):
                    await publisher.publish(f"traksense/{tenant}/s/d/telem", b"x", tag=number)
                    taken.append(number)
            unconfirmed = publisher.unconfirmed
            await broker.start()
            await publisher.drain()
            assert (None, False) == (publisher.fault, publisher.away)

    assert gave_up.cancelled_caught
    assert (list(range(10)), 10) == (taken, unconfirmed)
    assert (10, 10) == (publisher.counters.published, publisher.counters.confirmed)


async def test_publisher_keeps_to_the_brokers_packet_size(
    own_broker: OwnBroker, tenant: str, unique: Callable[[str], str]
) -> None:
    """A message above the broker's Maximum Packet Size is refused here; sent, it would end the connection, for ever."""
    broker = own_broker(options=BrokerOptions(max_packet_bytes=10_000))
    refused: list[tuple[str, int]] = []
    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(
            where(broker), client_id=unique("publisher"), on_refused=lambda tag, reason: refused.append((tag, reason))
        ) as publisher:
            for tag, size in (("small", 100), ("large", 20_000), ("fitting", 9_900)):
                await publisher.publish(f"traksense/{tenant}/s/d/telem", b"x" * size, tag=tag)
            await publisher.drain()

    assert [("large", PACKET_TOO_LARGE)] == refused
    assert (2, 0) == (publisher.counters.confirmed, publisher.counters.reconnections)


async def test_publisher_says_when_nobody_subscribes(
    broker: BrokerProcess, tenant: str, unique: Callable[[str], str]
) -> None:
    """A confirmed message without a subscriber is counted: nobody has it."""
    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(where(broker), client_id=unique("publisher")) as publisher:
            # Other tests' sessions on this broker may be subscribed to traksense/.
            await publisher.publish(f"unread/{tenant}", b"x")
            await publisher.drain()

    assert (1, 1) == (publisher.counters.confirmed, publisher.counters.unmatched)


async def test_publisher_qos_0_is_bounded_and_arrives(
    broker: BrokerProcess, tenant: str, unique: Callable[[str], str]
) -> None:
    """Many QoS 0 messages arrive in order although nothing acknowledges them, and none counts as confirmed."""
    subscriber = Subscriber(broker, unique("subscriber"), f"traksense/{tenant}/#")
    with trio.fail_after(HANG_SECONDS):
        async with (
            subscriber.connected(),
            open_publisher(where(broker), client_id=unique("publisher")) as publisher,
        ):
            for number in range(2000):
                await publisher.publish(f"traksense/{tenant}/s/d/telem", b"%d" % number, qos=0)
            await publisher.drain()
            await subscriber.wait_for(2000)

    assert [b"%d" % number for number in range(2000)] == subscriber.payloads
    assert (2000, 0, 0) == (publisher.counters.published, publisher.counters.confirmed, publisher.unconfirmed)


async def test_publisher_says_that_the_broker_confirms_nothing(
    own_broker: OwnBroker, unique: Callable[[str], str]
) -> None:
    """A broker that takes QoS 0 only would end the connection over each message, for ever."""
    broker = own_broker(options=BrokerOptions(extra_config=("max_qos 0",)))
    with trio.fail_after(HANG_SECONDS):
        async with open_publisher(where(broker), client_id=unique("publisher")) as publisher:
            await publisher.publish("traksense/t/s/d/telem", b"x", qos=0)
            with pytest.raises(BrokerError, match="takes QoS 0 only"):
                await publisher.publish("traksense/t/s/d/telem", b"x")
        broker.options = attrs.evolve(broker.options, extra_config=())
        await broker.restart()
        with pytest.raises(BrokerError, match="takes QoS 0 only"):  # noqa: PT012  (it is raised where the block waits)
            async with open_publisher(where(broker), client_id=unique("publisher")) as publisher:
                broker.kill()
                await publisher.publish("traksense/t/s/d/telem", b"x")
                broker.options = attrs.evolve(broker.options, extra_config=("max_qos 0",))
                await broker.start()
                await trio.sleep_forever()


async def test_publisher_first_connection_must_succeed() -> None:
    """Without a broker, opening fails at once, with one plain error."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(BrokerError, match="cannot connect: Connection refused"):
        async with open_publisher(Broker("127.0.0.1", free_port(), tls=False), client_id="nobody"):
            pass


async def test_publisher_wrong_password_is_refused(own_broker: OwnBroker, unique: Callable[[str], str]) -> None:
    """Credentials that the broker refuses are named as such; the right ones in the address are taken."""
    broker = own_broker(options=BrokerOptions(users={"fleet": "right"}))
    address = Broker(broker.host, broker.port, tls=False, username="fleet", password=Secret("right"))
    with trio.fail_after(HANG_SECONDS):
        with pytest.raises(BrokerRefusedError):
            async with open_publisher(address, client_id=unique("publisher"), password=Secret("wrong")):
                pass
        async with open_publisher(address, client_id=unique("publisher")) as publisher:
            await publisher.publish("traksense/t/s/d/telem", b"x")
            await publisher.drain()

    assert 1 == publisher.counters.confirmed


async def test_publisher_callers_error_leaves_as_it_is(broker: BrokerProcess, unique: Callable[[str], str]) -> None:
    """What the block raises comes out of it unwrapped, and a topic with a wildcard is a ValueError."""
    with trio.fail_after(HANG_SECONDS), pytest.raises(ValueError, match="not a topic"):
        async with open_publisher(where(broker), client_id=unique("publisher")) as publisher:
            await publisher.publish("traksense/+/s/d/telem", b"x")
