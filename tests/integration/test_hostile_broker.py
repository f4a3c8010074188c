"""What a broker may do to us: nothing that it sends ends the reader or fills memory, and the reason is right."""

from __future__ import annotations

import logging
import struct
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import mqtt5
import pytest
import trio
from scripted_broker import CONNACK, Peer, against, settings_of, suback

from tests.contract.test_codec import publish_packet
from traksense.mqtt.connection import HANDSHAKE_TIMEOUT_SECONDS
from traksense.mqtt.reader import UNSENT_MAX_BYTES, Reader
from traksense.mqtt.subscriptions import UNANSWERED, UNANSWERED_SECONDS
from traksense.mqtt.sys_topics import DROPPED_TOPIC

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from reader_bench import Bench
    from trio.testing import MockClock

TOPIC = "traksense/acme/site/device/telem"
SUSPICION = "is another client using the client id"


@pytest.fixture(params=["paho", "mqtt5"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every codec, as `MQTT_READER` names them."""
    kind: str = request.param
    return kind


async def reasons(bench: Bench, count: int) -> list[str]:
    """What /readyz says of the broker after each of so many failures."""
    said: list[str] = []
    with trio.fail_after(1000):
        while len(said) < count:
            while bench.reader.failures.count <= len(said):
                await trio.sleep(0.05)
            said.append(str(bench.health.report()["broker"].get("reason")))
    return said


# --- nothing ends the reader ------------------------------------------------------------------------------------------


async def test_count_of_drops_that_is_none_is_ignored(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """`$SYS` is read only where it holds a number of sane length; anybody may be able to publish there."""
    odd = [b"9" * 4301, b"9" * 21, "١٢".encode(), b"-1", b"", b"1e9", b"0x10", b"\xff", b" 7"]

    async def broker(peer: Peer) -> None:
        await peer.accept()
        await peer.serve(subscribes=2)
        for payload in [b"5", *odd, b"7"]:
            await peer.send(publish_packet(payload, topic=DROPPED_TOPIC, qos=0))
        await peer.send(publish_packet(b"real", topic=TOPIC))
        await peer.serve()

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        (message,) = await bench.receive(1)

    assert (b"real", [5, 7], 0) == (message.payload, bench.watch.counts, bench.reader.failures.count)


@pytest.mark.parametrize("subscribes", [0, 2])
async def test_bug_is_said_once_and_the_reader_goes_on(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    subscribes: int,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever is raised while we handle what came: the connection ends, /readyz says why, one traceback is kept."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        await peer.serve(subscribes=subscribes)
        await peer.send(publish_packet(b"poison", topic=TOPIC))
        await peer.serve()

    def accept(self: Reader, messages: object) -> None:
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(Reader, "_accept", accept)
    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 5)
        mishandled = bench.reader.failures.mishandled

    assert 5 == mishandled
    assert all("a bug of traksense" in reason and "KeyError" in reason for reason in said), said
    (told,) = [record for record in caplog.records if record.getMessage() == "broker_input_mishandled"]
    assert told.exc_info


@pytest.mark.parametrize(
    ("sent", "reason"),
    [
        (b"", "1 reason codes for 2 topic filters"),
        (b"", "3 reason codes for 2 topic filters"),
        (CONNACK, "a second CONNACK"),
        (bytes.fromhex("f000"), "broke the protocol"),
        (b"\xff" * 8, "broke the protocol"),
        (publish_packet(b"1", topic=TOPIC, packet_id=0), "packet identifier 0"),
        (publish_packet(b"1", topic=""), "without a topic"),
        (bytes.fromhex("e0018b"), "Server shutting down"),
        (bytes.fromhex("e000"), "the broker disconnects"),
    ],
)
async def test_known_causes_raise_no_suspicion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, sent: bytes, reason: str
) -> None:
    """Where the broker breaks the protocol or says why it goes, that is the reason, and nobody else is suspected."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        if "reason codes" in reason:
            subscribe = await peer.receive()
            assert isinstance(subscribe, mqtt5.SubscribePacket)
            await peer.send(suback(subscribe.packet_id, b"\x01" * int(reason[0])))
        else:
            await peer.serve(subscribes=1)
            await peer.send(sent)
        await peer.serve()

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 6)

    assert all(reason in text for text in said), said
    assert SUSPICION not in str(said)
    assert 0 == bench.reader.failures.mishandled


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        ("2003008800", "refuses the connection for now: Server unavailable"),
        (
            "",
            (
                "closed the connection instead of answering CONNECT: if this is its port for TLS, write mqtts:// in "
                "MQTT_URL; if it speaks MQTT 3.1.1 only, set MQTT_VERSION=3.1.1"
            ),
        ),
        ("9004000500 01", "Subscribed before CONNACK"),
        ("3004000161 00", "PUBLISH before CONNACK"),
    ],
)
async def test_refusals_raise_no_suspicion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, reply: str, reason: str
) -> None:
    """A broker that does not accept us has its own reasons."""

    async def broker(peer: Peer) -> None:
        await peer.receive()
        await peer.send(bytes.fromhex(reply))

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 6)

    assert all(reason in text for text in said), said
    assert SUSPICION not in str(said)


@pytest.mark.parametrize("answered", [0, 1])
async def test_broker_that_hangs_up_on_a_subscription_raises_no_suspicion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, answered: int
) -> None:
    """Some end the connection over many filters, others over `$SYS`: that is our own doing, and it is said."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        await peer.serve(subscribes=answered)
        # The next SUBSCRIBE, unless it was sent in one piece with the last.
        await peer.receive()

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 2)

    assert all("it had not answered SUBSCRIBE" in text for text in said), said
    assert SUSPICION not in str(said)


async def test_broker_that_restarts_raises_no_suspicion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Closed, out of reach, closed again: a broker that comes and goes, which no second client can cause."""

    async def broker(peer: Peer) -> None:
        if peer.number % 3:
            await peer.accept()
            await peer.serve(subscribes=2)

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 12)

    assert SUSPICION not in str(said)


async def test_connections_closed_without_a_word_are_suspicious(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Accepted, answered, closed: three in a row look like a second client."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        await peer.serve(subscribes=2)

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        said = await reasons(bench, 3)

    assert [False, False, True] == [SUSPICION in text for text in said]


# --- nothing fills memory ---------------------------------------------------------------------------------------------


async def test_flood_that_wants_answers_is_given_up(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A broker that asks (PUBREL) and never reads the answers cannot make us keep them."""
    flood = b"".join(b"\x62\x02" + struct.pack("!H", n) for n in range(1, 16_000))
    held = 0

    async def broker(peer: Peer) -> None:
        nonlocal held
        await peer.accept()
        await peer.serve(subscribes=2)
        connection = bench.reader._connection
        assert connection is not None
        # A memory stream takes whatever is sent.
        cast("Any", connection._stream).send_stream.send_all_hook = never
        for _ in range(60):
            await peer.send(flood)
            held = max(held, connection.unsent_bytes)

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        (said,) = await reasons(bench, 1)

    assert "the broker reads nothing" in said
    assert UNSENT_MAX_BYTES < held < UNSENT_MAX_BYTES + 3 * len(flood)


async def never(*_: object) -> None:
    await trio.sleep_forever()


# --- SIGTERM ----------------------------------------------------------------------------------------------------------


async def silent(peer: Peer) -> None:
    await peer.stream.receive_some()
    await trio.sleep_forever()


async def silent_after_connack(peer: Peer) -> None:
    await peer.accept()
    await trio.sleep_forever()


async def absent(peer: Peer) -> None:
    await peer.stream.aclose()


@pytest.mark.parametrize("broker", [silent, silent_after_connack, absent])
async def test_reader_that_waits_for_the_broker_stops_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, broker: Callable[[Peer], Awaitable[None]]
) -> None:
    """With nothing in memory there is nothing to wait for: not CONNACK, not SUBACK, not the next attempt."""
    async with against(monkeypatch, settings_of(kind), broker) as bench:
        await trio.sleep(HANDSHAKE_TIMEOUT_SECONDS / 2)
        stopped_at = trio.current_time()
        bench.reader.stop_reading()
        bench.reader.close()
        with pytest.raises(trio.EndOfChannel):
            await bench.messages.receive()

        assert pytest.approx(0, abs=0.01) == trio.current_time() - stopped_at


async def test_reader_that_cannot_connect_stops_at_once(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Likewise where the network swallows what we send, TCP's or TLS's handshake with it."""
    async with against(monkeypatch, settings_of(kind), silent) as bench:
        monkeypatch.setattr("traksense.mqtt.reader.open_stream", never)
        await trio.sleep(60)
        stopped_at = trio.current_time()
        bench.reader.stop_reading()
        with pytest.raises(trio.EndOfChannel):
            await bench.messages.receive()

        assert pytest.approx(0, abs=0.01) == trio.current_time() - stopped_at


async def test_no_packet_has_more_filters_than_brokers_take(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """AWS IoT Core takes eight in a SUBSCRIBE, or the connection ends; three tenants of three kinds make nine."""
    topics = [f"traksense/{tenant}/+/+/{kind}" for tenant in "abc" for kind in ("telem", "ack", "event")]
    asked: list[str] = []

    async def script(peer: Peer) -> None:
        await peer.accept()
        while (packet := await peer.receive()) is not None:
            if isinstance(packet, mqtt5.SubscribePacket):
                if len(packet.topic_filters) > 8:
                    return
                asked.extend(f.pattern for f in packet.topic_filters if not f.pattern.startswith("$SYS"))
                await peer.send(suback(packet.packet_id, b"\1" * len(packet.topic_filters)))

    async with against(monkeypatch, settings_of(kind, MQTT_TOPICS=",".join(topics)), script) as bench:
        with trio.fail_after(60):
            while not bench.reader.subscribed:
                await trio.sleep(1)

    assert topics == asked


async def test_stop_keeps_what_is_in_memory(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """What an earlier connection left in memory is passed on, although the next one is only being made."""

    async def broker(peer: Peer) -> None:
        if peer.number > 1:
            await silent(peer)
        await peer.accept()
        await peer.serve(subscribes=2)
        await peer.send(publish_packet(b"1", topic=TOPIC) + publish_packet(b"2", topic=TOPIC, packet_id=2))

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        await trio.sleep(1)
        bench.reader.stop_reading()
        messages = await bench.receive(2)
        with pytest.raises(trio.EndOfChannel):
            await bench.messages.receive()

    assert [b"1", b"2"] == [message.payload for message in messages]


# --- the heartbeat ----------------------------------------------------------------------------------------------------

HEARTBEAT = {"MQTT_HEARTBEAT_TOPIC": "traksense-heartbeat", "MQTT_HEARTBEAT_SECONDS": "10"}


@pytest.mark.parametrize("other", [False, True])
async def test_heartbeat_finds_a_broker_that_delivers_nothing(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, other: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Granted and silent is seen after three heartbeats; the first message, ours or another, ends it."""
    caplog.set_level(logging.INFO)

    async def broker(peer: Peer) -> None:
        await peer.accept()

        async def forward(packet: mqtt5.PublishPacket) -> None:
            if 100 < trio.current_time() < 200 or trio.current_time() > 300:
                topic = TOPIC if other else packet.topic
                await peer.send(publish_packet(packet.payload, topic=topic, qos=0))

        await peer.serve(forward)

    async with against(monkeypatch, settings_of(kind, **HEARTBEAT), broker) as bench:
        seen = []
        for at in (20, 95, 150, 215, 295, 350):
            await trio.sleep(at - trio.current_time())
            seen.append(bench.health.holds("subscription"))
        assert bench.health.holds("broker")
        received = bench.messages.statistics().current_buffer_used

    assert [True, False, True, True, False, True] == seen
    assert other == bool(received)
    reason = next(
        str(record.__dict__["traksense_reason"])
        for record in caplog.records
        if record.__dict__.get("traksense_condition") == "subscription" and record.levelname == "WARNING"
    )
    assert "delivers nothing, not even the heartbeat: no message for 30 s" in reason
    assert 0 == bench.reader.failures.count


def fill(patch: pytest.MonkeyPatch, bench: Bench, wait: Callable[[], Awaitable[object]]) -> None:
    """From now on the pipeline is full: it takes what the reader has only after such a wait."""
    intake = bench.reader._intake
    flush = intake.flush

    async def late() -> None:
        await wait()
        await flush()

    patch.setattr(intake, "flush", late)
    patch.setattr(intake, "flush_nowait", lambda: not intake._pending)


@pytest.mark.parametrize("full", [True, False], ids=["full pipeline", "fast pipeline"])
async def test_backlog_in_front_of_suback_is_said(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, *, full: bool
) -> None:
    """A session that is there is delivered before SUBACK, and that may take long. It is the reason, at the start and
    after a lost connection; nothing holds before the answer, and nothing ends the connection, however late it comes.
    """

    async def broker(peer: Peer) -> None:
        await peer.accept()
        for number in range(1, 4):
            await peer.send(publish_packet(b"1", topic=TOPIC, packet_id=number))
            await trio.sleep(10)
        # One large message over a slow line: for a long time not a single packet is complete.
        for byte in publish_packet(b"x" * 500, topic=TOPIC, packet_id=4):
            await peer.send(bytes([byte]))
            await trio.sleep(1)
        await peer.serve(subscribes=2)
        await trio.sleep(1000)

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        if full:
            fill(monkeypatch, bench, partial(trio.sleep, 200))
        for number in range(1, 3):
            with trio.fail_after(5000):
                while bench.reader.statistics.connections < number:
                    await trio.sleep(1)
                for _ in range(10):
                    await trio.sleep(2 * UNANSWERED_SECONDS)
                    assert UNANSWERED == bench.health.report()["broker"].get("reason")
                await bench.wait_subscribed()
            assert bench.reader.statistics.connections == number


@pytest.mark.parametrize("again", [True, False])
async def test_broker_that_keeps_a_session_and_denies_it_is_found_out(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str, *, again: bool
) -> None:
    """By the message that it sends again, although an attempt in between has not come as far as CONNACK."""

    async def broker(peer: Peer) -> None:
        if peer.number == 2:
            return  # it is still starting
        await peer.accept()
        await peer.serve(subscribes=2)
        await peer.send(publish_packet(b"1", topic=TOPIC, packet_id=7, dup=again and peer.number > 1))
        if peer.number == 1:
            await trio.sleep(1)
        else:
            await peer.serve()

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        with trio.fail_after(1000):
            await bench.receive(2)

    assert ([False, False], int(again)) == (bench.present, bench.watch.deliveries)


async def test_heartbeat_expects_nothing_while_reading_is_paused(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With a full pipeline nothing is read, heartbeats neither."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        await peer.serve(subscribes=3)
        await trio.sleep(5)
        await peer.send(publish_packet(b"1", topic=TOPIC))
        await peer.serve()

    async with against(monkeypatch, settings_of(kind, **HEARTBEAT), broker) as bench:
        await bench.wait_subscribed()
        room = trio.Event()
        fill(monkeypatch, bench, room.wait)
        await trio.sleep(300)
        paused = bench.health.holds("subscription")
        room.set()
        await trio.sleep(15)
        going_on = bench.health.holds("subscription")
        await trio.sleep(45)

        assert (True, True, False) == (paused, going_on, bench.health.holds("subscription"))


async def test_heartbeat_that_is_refused_is_said(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """An access rule that forbids it is named, not taken for a silent broker."""

    async def broker(peer: Peer) -> None:
        await peer.accept()
        while (packet := await peer.receive()) is not None:
            assert not isinstance(packet, mqtt5.PublishPacket)
            if isinstance(packet, mqtt5.SubscribePacket):
                refused = packet.topic_filters[0].pattern == HEARTBEAT["MQTT_HEARTBEAT_TOPIC"]
                await peer.send(suback(packet.packet_id, b"\x87" if refused else b"\x01" * len(packet.topic_filters)))
            elif isinstance(packet, mqtt5.PingReqPacket):
                await peer.send(b"\xd0\x00")

    async with against(monkeypatch, settings_of(kind, **HEARTBEAT), broker) as bench:
        await trio.sleep(100)
        reason = str(bench.health.report()["subscription"]["reason"])

    assert "refuses the subscription to the heartbeat's topic traksense-heartbeat" in reason


@pytest.mark.parametrize(("properties", "told"), [("00", []), ("05 11 00000000", [0]), ("05 11 0000003c", [60])])
async def test_session_that_is_kept_for_less_than_asked_is_said(
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    properties: str,
    told: list[int],
) -> None:
    """Once, and not again at each reconnection: an outage that is longer loses what is queued."""
    after_length = bytes.fromhex("0000" + properties)

    async def broker(peer: Peer) -> None:
        await peer.receive()
        await peer.send(bytes([0x20, len(after_length)]) + after_length)
        await peer.serve(subscribes=2)
        if peer.number > 2:
            await peer.serve()

    async with against(monkeypatch, settings_of(kind), broker) as bench:
        with trio.fail_after(1000):
            while bench.reader.statistics.connections < 3:
                await trio.sleep(0.05)

    shortened = [record for record in caplog.records if record.message == "session_expiry_shortened"]
    assert told == [record.__dict__["traksense_seconds"] for record in shortened]
