"""Topics, limits, the ledger, the intake's bounds, health."""

from __future__ import annotations

import gc
import sys
import tracemalloc
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.patience import HANG_SECONDS
from traksense.adapters import load_registry
from traksense.config import load
from traksense.ingest.ack import Acknowledger
from traksense.ingest.decode import ROUTES_MAX, Decoder, Router, read_topic
from traksense.ingest.health import STALLED_AFTER_SECONDS, Health, watch_progress
from traksense.ingest.intake import Intake
from traksense.ingest.ledger import MESSAGE_OVERHEAD_BYTES, Ledger, cost_bytes
from traksense.model import Kind, Message, Reason, Route

if TYPE_CHECKING:
    from trio.testing import MockClock

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
TOPIC = "traksense/tenant/site/device/telem"


def message(payload: bytes = b"", *, topic: str = TOPIC, packet_id: int = 1) -> Message:
    m = Message(topic, payload, 1, packet_id, 1, redelivered=False, received_at=NOON)
    m.route = read_topic(topic)
    return m


# --- topics ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", list(Kind))
def test_topic_of_each_kind_is_read(kind: Kind) -> None:
    """The four names are taken as they are."""
    route = read_topic(f"traksense/a b/ç/d-1/{kind}")

    assert Route("a b", "ç", "d-1", kind) == route
    assert route is not None
    assert "a b/ç/d-1" == route.path


@pytest.mark.parametrize(
    "topic",
    [
        "",
        "traksense",
        "other/t/s/d/telem",
        "traksense/t/s/telem",
        "traksense/t/s/d/e/telem",
        "traksense//s/d/telem",
        "traksense/t/s/d/",
        "traksense/t/s/d/TELEM",
        "traksense/t/s/d/other",
        f"traksense/{'t' * 129}/s/d/telem",
        "traksense/t\x00/s/d/telem",
        "traksense/t\ud800/s/d/telem",
    ],
)
def test_topic_that_is_not_ours_is_none(topic: str) -> None:
    """Anything else has no route."""
    assert read_topic(topic) is None


@given(st.text(max_size=60))
def test_router_agrees_with_reading(topic: str) -> None:
    """The cache changes nothing, on the first look and on the second."""
    router = Router()

    assert read_topic(topic) == router.route(topic) == router.route(topic)


def test_router_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics without end do not fill the memory."""
    monkeypatch.setattr("traksense.ingest.decode.ROUTES_MAX", 10)
    router = Router()
    for n in range(100):
        router.route(f"traksense/acme/site/{n}/telem")

    assert 10 >= len(router._routes)
    assert 10 < ROUTES_MAX


# --- limits ---------------------------------------------------------------------------------------------------------


def decode(payload: bytes, topic: str = TOPIC, **environ: str) -> tuple[int, Reason | None]:
    delivery = Decoder(load(environ), load_registry(), now=lambda: NOON).decode(message(payload, topic=topic))
    return delivery.points, delivery.rejection.reason if delivery.rejection else None


def envelope(ts: datetime = NOON, points: int = 1) -> bytes:
    body = ",".join(f'{{"name":"p{n}","v":{n}}}' for n in range(points))
    return f'{{"schema":"v1","ts":"{ts.isoformat()}","points":[{body}]}}'.encode()


def test_decode_limits() -> None:
    """Size, number of points, the window of time: each limit at its edge and one beyond."""
    size = len(envelope())
    assert (1, None) == decode(envelope(), INGEST_PAYLOAD_MAX_BYTES=str(size))
    assert (0, Reason.PAYLOAD_TOO_LARGE) == decode(envelope(), INGEST_PAYLOAD_MAX_BYTES=str(size - 1))
    assert (3, None) == decode(envelope(points=3), INGEST_POINTS_MAX="3")
    assert (0, Reason.TOO_MANY_POINTS) == decode(envelope(points=4), INGEST_POINTS_MAX="3")
    day, tick = timedelta(days=1), timedelta(microseconds=1)
    assert (1, None) == decode(envelope(NOON + day))
    assert (0, Reason.TIMESTAMP_OUT_OF_WINDOW) == decode(envelope(NOON + day + tick))
    assert (1, None) == decode(envelope(datetime(2000, 1, 1, tzinfo=UTC)))
    assert (0, Reason.TIMESTAMP_OUT_OF_WINDOW) == decode(envelope(datetime(2000, 1, 1, tzinfo=UTC) - tick))


def test_decode_checks_the_time_of_acks_and_events() -> None:
    """The window holds for every kind; an acknowledgement without a time has none to check."""
    late = b'{"schema":"v1","event_type":"boot","ts":"1990-01-01T00:00:00Z"}'
    assert (0, Reason.TIMESTAMP_OUT_OF_WINDOW) == decode(late, TOPIC.replace("telem", "event"))
    ack = b'{"schema":"v1","cmd_id":"c","ok":true,"ts_exec":"1990-01-01T00:00:00Z"}'
    assert (0, Reason.TIMESTAMP_OUT_OF_WINDOW) == decode(ack, TOPIC.replace("telem", "ack"))
    assert (0, None) == decode(b'{"schema":"v1","cmd_id":"c","ok":true}', TOPIC.replace("telem", "ack"))


@given(st.binary(max_size=300), st.sampled_from([*Kind, "other"]))
def test_decode_raises_nothing(payload: bytes, kind: str) -> None:
    """Whatever arrives: a delivery, with items or with a rejection."""
    delivery = Decoder(load({}), load_registry()).decode(message(payload, topic=f"traksense/t/s/d/{kind}"))

    assert delivery.rejection is not None or bool(delivery.items) == bool(payload)


@pytest.mark.parametrize("payload", [b"??", b'{"schema":"v2"}', b"[1]" + b" " * 70_000, b'{"di1":7}' + b" " * 70_000])
def test_decode_leaves_no_cycle_behind(payload: bytes) -> None:
    """A refused message is freed at once if it is large, or refused by the default adapter."""
    decoder = Decoder(load({}), load_registry())
    decoder.decode(message(payload))
    gc.collect()
    before = sys.getrefcount(payload)
    gc.disable()
    try:
        assert decoder.decode(message(payload)).rejection
        assert before == sys.getrefcount(payload)
    finally:
        gc.enable()


def test_router_remembers_only_our_topics() -> None:
    """Foreign topics may be long, and new each time: they must not fill the memory."""
    router = Router()

    for number in range(3):
        assert router.route(f"traksense/{'x' * 60_000}/{number}") is None
        assert router.route(f"traksense/tenant/site/device-{number}/telem") is not None

    assert 3 == len(router._routes)
    tenants = {id(route.tenant) for route in router._routes.values()}
    assert 1 == len(tenants)


# --- ledger and intake ----------------------------------------------------------------------------------------------


def test_ledger_overhead_is_what_a_message_costs() -> None:
    """The constant is an upper bound of what 20,000 queued messages really take, and not a wild one."""
    count = 20_000
    now = [NOON + timedelta(seconds=n) for n in range(count)]
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        ledger, acknowledger = Ledger(), Acknowledger()
        acknowledger.connected(1, lambda _ids: None)
        send, receive = trio.open_memory_channel[Message](count)
        intake = Intake(send, router=Router(), ledger=ledger, acknowledger=acknowledger, max_bytes=2**40)
        intake.accept(
            [
                Message(TOPIC, b"x" * 100 + b"%d" % n, 1, n, 1, redelivered=False, received_at=now[n])
                for n in range(count)
            ]
        )
        assert intake.flush_nowait()
        each = (tracemalloc.get_traced_memory()[0] - before) / count
    finally:
        tracemalloc.stop()
    assert count == receive.statistics().current_buffer_used

    assert MESSAGE_OVERHEAD_BYTES / 4 <= each - 100 <= MESSAGE_OVERHEAD_BYTES


class Bench:
    """An intake whose far end a test holds."""

    def __init__(self, *, queue_max: int = 3, max_bytes: int = 2**40) -> None:
        self.ledger = Ledger()
        send, self.messages = trio.open_memory_channel[Message](queue_max)
        self.intake = Intake(
            send, router=Router(), ledger=self.ledger, acknowledger=Acknowledger(), max_bytes=max_bytes
        )

    def settle(self, *messages: Message) -> None:
        self.ledger.stored += len(messages)
        self.ledger.settle(messages)


async def test_intake_keeps_what_it_could_not_pass_on() -> None:
    """A cancelled flush loses nothing and reorders nothing; the next one goes on where it stopped."""
    bench = Bench(queue_max=3)
    messages = [message(b"%d" % n) for n in range(10)]
    bench.intake.accept(messages)
    with trio.move_on_after(0.01) as waited:
        await bench.intake.flush()
    assert waited.cancelled_caught

    async def receive() -> list[Message]:
        return [await bench.messages.receive() for _ in range(10)]

    received: list[Message] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(bench.intake.flush)
        received += await receive()

    assert messages == received
    assert (10, 10, True) == (bench.ledger.received_total, bench.ledger.in_flight, bench.ledger.balanced)


def test_intake_gives_each_message_an_instant_of_its_own() -> None:
    """One read brings many at one time, and the clock may stand still or go back: still each is later than the last, by
    as little as can be.
    """
    bench = Bench()
    messages = [message() for _ in range(120)]
    messages[60].received_at = NOON - timedelta(days=3)
    messages[90].received_at = NOON + timedelta(seconds=1)
    bench.intake.accept(messages[:40])
    bench.intake.accept(messages[40:])

    tick = timedelta(microseconds=1)
    expected = [NOON + n * tick for n in range(90)] + [NOON + timedelta(seconds=1) + n * tick for n in range(30)]
    assert expected == [m.received_at for m in messages]


async def test_intake_waits_for_bytes_not_only_for_places(nursery: trio.Nursery) -> None:
    """With places free but the byte budget used up, the intake waits until something is settled."""
    first, second = message(b"x" * 1000), message(b"y" * 1000)
    bench = Bench(queue_max=100, max_bytes=cost_bytes(first) + 10)
    bench.intake.accept([first, second])
    assert not bench.intake.flush_nowait()

    nursery.start_soon(bench.intake.flush)
    await trio.testing.wait_all_tasks_blocked()
    assert first is bench.messages.receive_nowait()
    with pytest.raises(trio.WouldBlock):
        bench.messages.receive_nowait()
    bench.settle(first)

    assert second is await bench.messages.receive()


async def test_intake_lets_a_message_larger_than_the_budget_pass_alone() -> None:
    """A message beyond the whole budget does not wait for ever."""
    bench = Bench(max_bytes=100)
    large = message(b"x" * 1000)
    bench.intake.accept([large])
    with trio.fail_after(HANG_SECONDS):
        await bench.intake.flush()

    assert large is bench.messages.receive_nowait()


@given(
    sizes=st.lists(st.integers(0, 5000), max_size=40),
    queue_max=st.integers(1, 10),
    max_bytes=st.integers(1000, 10_000),
    hold=st.integers(0, 3),
)
def test_intake_never_exceeds_its_bounds(sizes: list[int], queue_max: int, max_bytes: int, hold: int) -> None:
    """For any load: order kept, nothing lost, and what was passed on is within bytes, or a single message."""

    async def main() -> None:
        bench = Bench(queue_max=queue_max, max_bytes=max_bytes)
        messages = [message(b"x" * size) for size in sizes]
        received: list[Message] = []

        async def consume() -> None:
            held: list[Message] = []
            async with bench.messages:
                async for m in bench.messages:
                    received.append(m)
                    held.append(m)
                    passed_on = bench.ledger.in_flight_bytes - bench.intake._pending_bytes
                    assert passed_on <= max_bytes or bench.ledger.in_flight - len(bench.intake._pending) == 1
                    if len(held) > hold or sum(map(cost_bytes, held)) > max_bytes // 2:
                        bench.settle(*held)
                        held.clear()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(consume)
            for begin in range(0, len(messages), 5):
                bench.intake.accept(messages[begin : begin + 5])
                with trio.move_on_after(1):
                    await bench.intake.flush()
            bench.intake.close()
        remaining = list(bench.intake._pending)
        assert messages == received + remaining
        assert bench.ledger.balanced

    trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))


# --- health ---------------------------------------------------------------------------------------------------------


async def test_health_is_ready_when_everything_holds() -> None:
    """Each condition counts; a failing one is reported with its reason and how long it has been so."""
    health = Health(["broker", "database"])
    ready = [health.ready]
    health.set("broker")
    health.set("database", "away")
    ready.append(health.ready)
    assert {"ok": False, "seconds": 0.0, "reason": "away"} == health.report()["database"]
    health.set("database")
    ready.append(health.ready)

    assert [False, False, True] == ready
    assert health.holds("database")


async def test_health_logs_changes_only(caplog: pytest.LogCaptureFixture) -> None:
    """Saying the same again makes no second line."""
    health = Health(["broker"])
    with caplog.at_level("INFO"):
        for reason in ("a", "a", "b", None, None):
            health.set("broker", reason)

    assert ["condition_fails", "condition_fails", "condition_holds"] == [r.message for r in caplog.records]


async def test_health_logs_a_reason_once_while_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    """Voices that meet one trouble in turns are one line for each reason, until the condition holds again."""
    health = Health(["database"])
    health.set("database")
    with caplog.at_level("INFO"):
        for _ in range(2):
            for _ in range(3):
                health.set("database", "lost", voice="writer 1")
                health.set("database", "refused", voice="writer 2")
                health.set("database", "lost", voice="writer 2")
                health.set("database", "refused", voice="writer 1")
            health.set("database", voice="writer 1")
            health.set("database", voice="writer 2")
            health.set("database")

    assert 2 * ["condition_fails", "condition_fails", "condition_holds"] == [r.message for r in caplog.records]


async def test_watchdog_tells_once_that_nothing_is_committed(
    autojump_clock: MockClock, nursery: trio.Nursery, caplog: pytest.LogCaptureFixture
) -> None:
    """However many messages come to wait behind the first."""
    health, ledger, acknowledger = Health(["progress"]), Ledger(), Acknowledger()
    acknowledger.connected(1, lambda _ids: None)
    nursery.start_soon(watch_progress, health, ledger, acknowledger)
    with caplog.at_level("WARNING"):
        for number in range(int(2 * STALLED_AFTER_SECONDS)):
            waiting = message(packet_id=number + 1)
            ledger.receive([waiting])
            acknowledger.received([waiting])
            await trio.sleep(1)

    assert ["condition_fails"] == [r.message for r in caplog.records]


async def test_watchdog_fails_when_nothing_is_committed(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """Messages wait and none is committed for a minute: not ready, with the age of the oldest; then ready again."""
    health, ledger, acknowledger = Health(["progress"]), Ledger(), Acknowledger()
    acknowledger.connected(1, lambda _ids: None)
    nursery.start_soon(watch_progress, health, ledger, acknowledger)
    stuck = message()
    ledger.receive([stuck])
    acknowledger.received([stuck])
    await trio.sleep(STALLED_AFTER_SECONDS - 2)
    assert health.holds("progress")
    await trio.sleep(5)
    reason = str(health.report()["progress"]["reason"])
    assert "messages wait and none was committed for more than 60 s" in reason
    assert NOON.isoformat() in reason

    ledger.stored += 1
    ledger.settle([stuck])
    await trio.sleep(2)

    assert health.holds("progress")


async def test_watchdog_is_calm_while_commits_happen(autojump_clock: MockClock, nursery: trio.Nursery) -> None:
    """A system under load for hours is not stalled."""
    health, ledger = Health(["progress"]), Ledger()
    nursery.start_soon(watch_progress, health, ledger, Acknowledger())
    ledger.receive([message()])
    for _ in range(20):
        await trio.sleep(STALLED_AFTER_SECONDS / 2)
        ledger.receive([message()])
        ledger.stored += 1
        ledger.settle([message()])
        assert health.holds("progress")
