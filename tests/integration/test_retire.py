"""A session is ended only when the broker itself has said that nothing is left in it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
from reader_bench import publish, reading, settings_for

from traksense.config import load
from traksense.ingest.health import Health
from traksense.mqtt.sys_topics import SYS_TOPICS
from traksense.tools.shards import retire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio.testing import MockClock

    from traksense.config import Settings
    from traksense.tools.stack import BrokerProcess


class Pipeline(SimpleNamespace):
    """As much of a service as `retire` looks at; `answer` is what the broker does when it is asked."""

    def __init__(self, answer: Callable[[Pipeline], bool]) -> None:
        done = trio.Event()
        done.set()
        super().__init__(
            handover=SimpleNamespace(done=done),
            ledger=SimpleNamespace(in_flight=0, received_total=7),
            health=SimpleNamespace(holds=lambda _name: True),
            drained=False,
            asked_at=[],
        )
        self.reader = self
        self._answer = answer

    async def unsubscribe(self, topics: Sequence[str]) -> frozenset[str]:
        await trio.lowlevel.checkpoint()
        self.asked_at.append(trio.current_time())
        return frozenset(topics) if self._answer(self) else frozenset()

    def drain(self) -> None:
        self.drained = True


async def watched(pipeline: Any, seconds: float) -> bool:
    with trio.move_on_after(seconds):
        await retire._Emptied(load({})).watch(pipeline)
    drained: bool = pipeline.drained
    return drained


@pytest.mark.parametrize(
    ("env", "missing"),
    [({}, f"{retire.UNSHARDED}\n"), ({"MQTT_TENANTS": "acme", "MQTT_SHARD_COUNT": "2"}, "")],
    ids=["unsharded", "sharded"],
)
async def test_who_waits_in_vain_is_told_what_may_be_missing(
    env: dict[str, str], missing: str, autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    """First the broker, in any case; without the shards' variables nobody knows that several replicas read together
    what the session had, or that nobody shall. Each is said once.
    """
    pipeline: Any = Pipeline(lambda _: True)
    pipeline.handover.done = trio.Event()
    pipeline.health = Health(["broker"])
    pipeline.health.set("broker", "cannot connect: Connection refused")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(retire._Emptied(load(env)).watch, pipeline)
        await trio.sleep(150)
        away = capsys.readouterr().err
        pipeline.health.set("broker")
        await trio.sleep(150)
        nursery.cancel_scope.cancel()

    assert "still waiting for the broker: cannot connect: Connection refused\n" == away
    assert missing == capsys.readouterr().err
    assert "--unread" in retire.UNSHARDED


async def test_silence_without_an_answer_is_no_end(autojump_clock: MockClock) -> None:
    """A broker that stalls says nothing, however long."""
    assert not await watched(Pipeline(lambda _: False), 100)


async def test_what_comes_before_the_answer_begins_the_wait_anew(autojump_clock: MockClock) -> None:
    """The queue goes on behind the stall."""

    def answer(pipeline: Pipeline) -> bool:
        pipeline.ledger.received_total += len(pipeline.asked_at) == 1
        return True

    pipeline = Pipeline(answer)
    assert await watched(pipeline, 100)
    first, second = pipeline.asked_at
    assert second - first >= retire.QUIET_SECONDS


@pytest.fixture(params=["5", "3.1.1"])
def settings(
    request: pytest.FixtureRequest, broker: BrokerProcess, unique: Callable[[str], str], tenant: str
) -> Settings:
    return settings_for(broker, unique("retired"), tenant, MQTT_VERSION=request.param)


async def test_a_session_that_nobody_knows_is_told_from_one_that_is_kept(settings: Settings) -> None:
    """The broker says which; after the look at one that is not there, none is left behind."""
    assert not await retire.has_session(settings)
    await retire._end_session(settings)
    assert not await retire.has_session(settings)
    assert await retire.has_session(settings)


async def test_a_queue_is_seen_and_left(
    settings: Settings, broker: BrokerProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look takes nothing away: the message comes to the next one that reads; then the session is empty."""
    monkeypatch.setattr(retire, "QUIET_SECONDS", 0.3)
    topic = settings.mqtt_topics[0].replace("+/+", "site/device")
    async with reading(settings):
        pass
    await publish(broker, topic, [b"left"])

    assert not await retire.is_empty(settings)
    # Somebody's, on the topic of heartbeats: ours come at QoS 0.
    assert not await retire.is_empty(attrs.evolve(settings, mqtt_heartbeat_topic=topic))
    async with reading(settings) as bench:
        messages = await bench.receive(1)
        assert [b"left"] == [message.payload for message in messages]
        bench.settle(messages)
        await bench.reader.unsubscribe([*settings.mqtt_topics, *SYS_TOPICS])
        bench.reader.stop_reading()
        bench.reader.close()
        await trio.testing.wait_all_tasks_blocked(0.05)
    assert await retire.is_empty(settings)
