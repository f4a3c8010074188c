"""Topics among several readers, on a real Mosquitto: shards of many filters, filters given up, shared subscriptions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs
import pytest
import trio
from reader_bench import Bench, publish, reading, settings_for

from tests.patience import HANG_SECONDS
from traksense.mqtt.subscriptions import FILTERS_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.tools.stack import BrokerProcess


@pytest.fixture(params=["paho", "mqtt5"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every codec, as `MQTT_READER` names them."""
    kind: str = request.param
    return kind


async def payloads(bench: Bench, count: int) -> list[bytes]:
    """So many messages, settled."""
    messages = await bench.receive(count)
    found = [message.payload for message in messages]
    bench.settle(messages)
    return found


async def test_a_shard_of_many_tenants_reads_them_all(
    broker: BrokerProcess, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """More filters than fit into one packet: the first and the last bring messages."""
    names = [f"{tenant}-{number}" for number in range(2 * FILTERS_MAX + 1)]
    settings = settings_for(
        broker,
        unique("reader"),
        tenant,
        MQTT_READER=kind,
        MQTT_TOPICS="traksense/+/+/+/telem",
        MQTT_TENANTS=",".join(names),
        MQTT_SHARD_COUNT="1",
        MQTT_SHARD="1",
    )
    async with reading(settings) as bench:
        for name in (names[0], names[-1]):
            await publish(broker, f"traksense/{name}/s/d/telem", [name.encode()])

        assert {names[0].encode(), names[-1].encode()} == set(await payloads(bench, 2))


# More than the window, which is ours with MQTT 5, and the broker's 2,000 with 3.1.1.
@pytest.mark.parametrize(("version", "backlog"), [("5", 500), ("3.1.1", 2_500)])
async def test_what_is_queued_for_a_filter_still_comes_after_it_is_given_up(
    broker: BrokerProcess, unique: Callable[[str], str], tenant: str, kind: str, version: str, backlog: int
) -> None:
    """UNSUBSCRIBE ends what is new, not what waits in the session (MQTT 5.0 §3.10.4 leaves that to the broker)."""
    if kind == "mqtt5" and version != "5":
        pytest.skip("mqtt5 speaks MQTT 5 only")
    settings = settings_for(
        broker, unique("reader"), tenant, MQTT_READER=kind, MQTT_VERSION=version, INGEST_QUEUE_MAX="10"
    )
    topic = f"traksense/{tenant}/s/d/telem"
    async with reading(settings):
        pass
    queued = [b"%d" % number for number in range(backlog)]
    await publish(broker, topic, queued)
    async with reading(settings) as bench:
        with trio.fail_after(HANG_SECONDS):
            async with trio.open_nursery() as nursery:
                released: list[frozenset[str]] = []

                async def release() -> None:
                    released.append(await bench.reader.unsubscribe([settings.topics[0]]))

                nursery.start_soon(release)
                received: list[bytes] = []
                while len(received) < len(queued):
                    received += await payloads(bench, 1)
            await publish(broker, topic, [b"new"])
            await publish(broker, f"traksense/{tenant}/s/d/ack", [b"other"])
            last = await payloads(bench, 1)

    assert [frozenset({settings.topics[0]})] == released
    assert queued == received
    assert [b"other"] == last


async def test_shared_subscription_divides_messages(
    broker: BrokerProcess, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """`$share/group/filter` works in MQTT_TOPICS: both are ready, and each message goes to one of them."""
    shared = {"MQTT_READER": kind, "MQTT_TOPICS": f"$share/{tenant}/traksense/{tenant}/+/+/telem"}
    one = settings_for(broker, unique("reader"), tenant, **shared)
    two = settings_for(broker, unique("reader"), tenant, **shared)
    sent = [b"%d" % number for number in range(100)]
    async with reading(one) as first, reading(two) as second:
        await publish(broker, f"traksense/{tenant}/s/d/telem", sent)
        received = [await payloads(first, 50), await payloads(second, 50)]

    assert sorted(sent) == sorted(received[0] + received[1])


async def test_shared_subscription_strands_what_a_dead_reader_was_dealt(
    broker: BrokerProcess, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """Mosquitto deals messages to sessions of the group that are away, and passes them on to nobody: they wait until
    that very client id is back. That is why replicas have shards there.
    """
    shared = {"MQTT_READER": kind, "MQTT_TOPICS": f"$share/{tenant}/traksense/{tenant}/+/+/telem"}
    one = settings_for(broker, unique("reader"), tenant, **shared)
    two = settings_for(broker, unique("reader"), tenant, **shared)
    sent = [b"%d" % number for number in range(100)]
    async with reading(one):
        pass
    async with reading(two) as living:
        await publish(broker, f"traksense/{tenant}/s/d/telem", sent)
        received = await payloads(living, 50)
        with trio.move_on_after(0.5) as waited:
            await living.receive(1)
    async with reading(attrs.evolve(one)) as back:
        stranded = await payloads(back, 50)

    assert waited.cancelled_caught
    assert sorted(sent) == sorted(received + stranded)
