"""The reader against a real Mosquitto: sessions, order of acknowledgement, refusals, TLS, backpressure."""

from __future__ import annotations

import re
import ssl
import subprocess
from functools import partial
from typing import TYPE_CHECKING, Any

import attrs
import pytest
import trio
import trustme
from reader_bench import Bench, publish, reading, settings_for

from tests.patience import HANG_SECONDS
from traksense.config import Broker, Settings
from traksense.errors import BrokerError, BrokerRefusedError, SessionTakenOverError
from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import PLAIN_PORT, open_stream
from traksense.tools.stack import BrokerOptions, TlsFiles, find_mosquitto

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from tests.conftest import OwnBroker
    from traksense.tools.stack import BrokerProcess


@pytest.fixture(params=["paho", "mqtt5"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every codec, as `MQTT_READER` names them."""
    kind: str = request.param
    return kind


@pytest.fixture
def settings(broker: BrokerProcess, unique: Callable[[str], str], tenant: str, kind: str) -> Settings:
    """Those of a service on the shared broker, with a session and a tenant of its own."""
    return settings_for(broker, unique("reader"), tenant, MQTT_READER=kind)


def topic_of(settings: Settings) -> str:
    return settings.mqtt_topics[0].replace("+/+", "site/device")


async def test_reader_delivers_in_order_and_acknowledges(settings: Settings, broker: BrokerProcess) -> None:
    """Messages arrive in order with their exact bytes; once settled they do not come again."""
    payloads = [b"%d\x00\xff" % n for n in range(300)]
    async with reading(settings) as bench:
        await publish(broker, topic_of(settings), payloads)
        messages = await bench.receive(300)
        received = [m.payload for m in messages]
        bench.settle(messages)
        bench.reader.stop_reading()
        bench.reader.close()
        await trio.testing.wait_all_tasks_blocked(0.05)
        # A busy broker may see the next connection first, and gives away a session with the PUBACKs unread.
        await publish(broker, "elsewhere", [b""])

    assert payloads == received
    async with reading(settings) as again:
        with trio.move_on_after(0.5) as waited:
            await again.receive(1)
    assert waited.cancelled_caught
    assert ([False], [True]) == (bench.present, again.present)


async def test_reader_unacknowledged_messages_come_again(settings: Settings, broker: BrokerProcess) -> None:
    """Killed before it acknowledged, the next run gets the same messages again, marked as redelivered, in order."""
    payloads = [b"%d" % n for n in range(20)]
    async with reading(settings) as bench:
        await publish(broker, topic_of(settings), payloads)
        messages = await bench.receive(20)
        # Only a prefix may be acknowledged: 10..19 are settled, but 5..9 are not.
        bench.settle([*messages[:5], *messages[10:]])
        await trio.testing.wait_all_tasks_blocked(0.05)

    async with reading(settings) as again:
        redelivered = await again.receive(15)

    assert payloads[5:] == [m.payload for m in redelivered]
    assert {True} == {m.redelivered for m in redelivered}
    assert 15 == again.ledger.redelivered


async def test_reader_collects_what_was_published_while_it_was_away(settings: Settings, broker: BrokerProcess) -> None:
    """The broker's session is the durable buffer: what is published while nobody reads is delivered later."""
    async with reading(settings):
        pass
    await publish(broker, topic_of(settings), [b"%d" % n for n in range(1500)])

    async with reading(settings) as bench:
        received = [m.payload for m in await bench.receive(1500)]

    assert [b"%d" % n for n in range(1500)] == received


@pytest.mark.parametrize(("kind", "version"), [("paho", "5"), ("paho", "3.1.1"), ("mqtt5", "5")])
async def test_reader_reconnects_after_the_broker_restarts(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str, version: str
) -> None:
    """A broker that restarts is found again, the session with it, and the subscription is renewed."""
    broker = own_broker()
    settings = settings_for(broker, unique("reader"), tenant, MQTT_READER=kind, MQTT_VERSION=version)
    async with reading(settings) as bench:
        await broker.restart()
        while len(bench.present) < 2 or not bench.health.ready:
            await trio.sleep(0.05)
        await publish(broker, topic_of(settings), [b"after"])
        messages = await bench.receive(1)

    assert [b"after"] == [m.payload for m in messages]
    assert [False, True] == bench.present
    assert 2 <= messages[0].generation
    assert 1 <= bench.reader.failures.count


async def test_reader_old_acknowledgements_stay_with_the_old_connection(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """A message that was received before a reconnect and settled after it is delivered again, never acknowledged
    blindly.
    """
    broker = own_broker()
    settings = settings_for(broker, unique("reader"), tenant, MQTT_READER=kind)
    async with reading(settings) as bench:
        await publish(broker, topic_of(settings), [b"once"])
        (old,) = await bench.receive(1)
        await broker.restart()
        (again,) = await bench.receive(1)
        bench.settle([old])
        assert 1 == bench.acknowledger.unacknowledged
        bench.settle([again])

        assert 0 == bench.acknowledger.unacknowledged
    assert (1, 1) == (bench.acknowledger.acknowledged, bench.acknowledger.abandoned)


async def test_reader_takeover_ends_it(settings: Settings) -> None:
    """A broker that says that another client took our session: we stop, instead of a tug of war, and the pipeline
    drains.
    """

    async def broker_that_says_so(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(bytes.fromhex("2003000000" + "e0018e"))

    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    bench = Bench(attrs.evolve(settings, broker=Broker("127.0.0.1", port, tls=False)))
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, broker_that_says_so, listeners)
            with pytest.raises(SessionTakenOverError, match="our client id"):
                await bench.reader.run()
            nursery.cancel_scope.cancel()
        with pytest.raises(trio.EndOfChannel):
            await bench.messages.receive()
    assert 1 == bench.reader.statistics.takeovers


async def test_reader_silent_takeover_is_suspected(settings: Settings) -> None:
    """A broker that closes the older of two clients without a word (Mosquitto 2.0.11): we keep trying, and say what it
    may be.
    """
    first, second = Bench(settings), Bench(settings)
    suspicion = f"is another client using the client id {settings.mqtt_client_id}?"
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(first.reader.run)
            nursery.start_soon(second.reader.run)
            while suspicion not in str([first.health.report(), second.health.report()]):
                await trio.sleep(0.05)
            nursery.cancel_scope.cancel()


async def test_reader_wrong_password_is_a_wrong_configuration(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """Refused credentials at the first connection end the run at once, with the reason."""
    broker = own_broker(options=BrokerOptions(users={"ingest": "right"}))
    settings = settings_for(
        broker, unique("reader"), tenant, MQTT_READER=kind, MQTT_USERNAME="ingest", MQTT_PASSWORD="wrong"
    )
    with trio.fail_after(HANG_SECONDS), pytest.raises(BrokerRefusedError, match="refuses the connection"):
        await Bench(settings).reader.run()

    right = settings_for(
        broker, unique("reader"), tenant, MQTT_READER=kind, MQTT_USERNAME="ingest", MQTT_PASSWORD="right"
    )
    async with reading(right) as bench:
        assert bench.health.ready


async def test_reader_full_pipeline_stops_reading(settings: Settings, broker: BrokerProcess) -> None:
    """With a queue of ten and nobody taking, the socket is left alone: what was read is bounded, and nothing is
    lost.
    """
    async with reading(settings, queue_max=10) as bench:
        await publish(broker, topic_of(settings), [b"x" * 1000] * 2000)
        await trio.testing.wait_all_tasks_blocked(0.2)
        # Ten in the channel, one at its door, and what one read of 64 KiB can bring.
        assert 10 + 1 + 66 >= bench.ledger.in_flight
        for _ in range(2000):
            bench.settle(await bench.receive(1))

    assert (2000, 0) == (bench.ledger.stored, bench.ledger.in_flight)
    assert 0 < bench.reader.statistics.paused_seconds


async def test_reader_byte_budget_bounds_large_messages(settings: Settings, broker: BrokerProcess) -> None:
    """The pipeline is bounded in bytes, whatever their number: megabyte payloads wait at the broker."""
    megabyte = 1024 * 1024
    async with reading(settings, max_bytes=4 * megabyte) as bench:
        await publish(broker, topic_of(settings), [b"x" * megabyte] * 30)
        await trio.testing.wait_all_tasks_blocked(0.2)
        assert 6 * megabyte >= bench.ledger.in_flight_bytes
        for _ in range(30):
            bench.settle(await bench.receive(1))

    assert 30 == bench.ledger.stored


async def test_reader_refused_subscription_is_not_ready(settings: Settings) -> None:
    """SUBACK is read: a filter that the broker refuses is named, and the service is not ready."""

    async def broker_that_refuses(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(bytes.fromhex("2003000000"))
        subscribe = await stream.receive_some()
        await stream.send_all(b"\x90\x05" + subscribe[2:4] + b"\x00\x01\x87")
        await trio.sleep_forever()

    reason = await subscription_fault(settings, broker_that_refuses)

    refused = settings.mqtt_topics[1]
    assert f"the broker refuses the subscription to {refused}: give this user the right to read it" == reason


async def subscription_fault(settings: Settings, handler: Callable[[trio.SocketStream], Awaitable[None]]) -> object:
    """What the health says of the subscription after a handshake with this broker."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    bench = Bench(attrs.evolve(settings, broker=Broker("127.0.0.1", port, tls=False)))
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handler, listeners)
            nursery.start_soon(bench.reader.run)
            while not bench.health.holds("broker"):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()
    return bench.health.report()["subscription"]["reason"]


async def test_reader_lowered_qos_is_not_ready(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """A broker that grants QoS 0 where 1 was asked for cannot keep messages for us: that is said, and we are not
    ready.
    """
    broker = own_broker(options=BrokerOptions(extra_config=("max_qos 0",)))
    bench = Bench(settings_for(broker, unique("reader"), tenant, MQTT_READER=kind))
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.reader.run)
            while not bench.health.holds("broker"):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    assert "the broker granted QoS 0 instead of 1" in str(bench.health.report()["subscription"]["reason"])


@pytest.mark.parametrize("mutual", [False, True])
async def test_reader_tls(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, stack_directory: Path, mutual: bool, kind: str
) -> None:
    """TLS with a private authority, and mutual TLS with a client certificate; plain paho would have needed threads for
    it.
    """
    ca = trustme.CA()
    server, client = ca.issue_cert("localhost"), ca.issue_cert("client@example.org")
    files = {
        name: stack_directory / f"{unique('tls')}-{name}" for name in ("ca", "cert", "key", "client", "client_key")
    }
    ca.cert_pem.write_to_path(files["ca"])
    server.cert_chain_pems[0].write_to_path(files["cert"])
    server.private_key_pem.write_to_path(files["key"])
    client.cert_chain_pems[0].write_to_path(files["client"])
    client.private_key_pem.write_to_path(files["client_key"])
    tls = TlsFiles(ca=files["ca"], cert=files["cert"], key=files["key"], require_certificate=mutual)
    broker = own_broker(options=BrokerOptions(tls=tls))
    own = {"MQTT_CERT_FILE": str(files["client"]), "MQTT_KEY_FILE": str(files["client_key"])} if mutual else {}
    settings = settings_for(
        broker,
        unique("reader"),
        tenant,
        **{"MQTT_URL": broker.tls_url, "MQTT_CA_FILE": str(files["ca"]), "MQTT_READER": kind, **own},
    )

    async with reading(settings) as bench:
        await publish(broker, topic_of(settings), [b"x" * 100_000, b"y"])
        messages = await bench.receive(2)
        sizes = [len(m.payload) for m in messages]
        bench.settle(messages)
        bench.reader.stop_reading()
        bench.reader.close()

    assert [100_000, 1] == sizes


@pytest.mark.parametrize(
    ("ours", "said"),
    [
        (False, "cannot connect: the certificate of the broker is not trusted ("),
        (True, "connection lost: the broker asks for a certificate: set MQTT_CERT_FILE and MQTT_KEY_FILE (mqtts://"),
    ],
)
async def test_reader_says_what_is_wrong_with_certificates(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, stack_directory: Path, ours: bool, said: str
) -> None:
    """A broker whose certificate we do not trust is not used, and one that wants ours has it from a variable."""
    ca, other = trustme.CA(), trustme.CA()
    server = ca.issue_cert("localhost")
    files = {name: stack_directory / f"{unique('tls')}-{name}" for name in ("ca", "cert", "key")}
    (ca if ours else other).cert_pem.write_to_path(files["ca"])
    server.cert_chain_pems[0].write_to_path(files["cert"])
    server.private_key_pem.write_to_path(files["key"])
    tls = TlsFiles(ca=files["ca"], cert=files["cert"], key=files["key"], require_certificate=ours)
    broker = own_broker(options=BrokerOptions(tls=tls))
    settings = settings_for(broker, unique("reader"), tenant, MQTT_URL=broker.tls_url, MQTT_CA_FILE=str(files["ca"]))
    bench = Bench(settings)
    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(bench.reader.run)
            while bench.reader.failures.count == 0:
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

    reason = str(bench.health.report()["broker"]["reason"])
    assert (True, False) == (said in reason, PLAIN_PORT in reason)


async def test_tls_to_a_plain_port_is_called_so(broker: BrokerProcess) -> None:
    """A broker that knows nothing of TLS hangs up, rudely or not; others answer in their own words."""

    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()

    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    with trio.fail_after(HANG_SECONDS):
        async with trio.open_nursery() as nursery:
            ports = [broker.port]
            for serve in (hang_up, answer):
                (listener,) = await nursery.start(partial(trio.serve_tcp, serve, 0, host="127.0.0.1"))
                ports.append(listener.socket.getsockname()[1])
            for port in ports:
                with pytest.raises(BrokerError, match=re.escape(PLAIN_PORT)):
                    await open_stream("127.0.0.1", port, ssl.create_default_context())
            nursery.cancel_scope.cancel()


async def test_broker_overruns_receive_maximum(own_broker: OwnBroker, tenant: str) -> None:
    """Mosquitto before 2.0.13 (Debian 12 has 2.0.11) sends far more than Receive Maximum when it has a backlog.

    That is why the reader has a bound of its own. On a broker without the fault, the window is kept.
    """
    window, backlog = 20, 3000
    broker = own_broker()
    await with_session(broker, tenant, window, lambda connection: connection.receive())
    await publish(broker, f"traksense/{tenant}/site/device/telem", [b"x" * 100] * backlog)

    most = await with_session(broker, tenant, window, lambda connection: drain_one_by_one(connection, backlog))

    if mosquitto_version() < (2, 0, 13):
        assert 10 * window < most
    else:
        assert window >= most


async def with_session(
    broker: BrokerProcess, tenant: str, window: int, body: Callable[[Connection], Awaitable[Any]]
) -> Any:
    """Connect to the session "overrun", subscribe, and run something."""
    codec = PahoCodec(client_id="overrun", session_expiry=1000, receive_maximum=window)
    connection = Connection(await open_stream(broker.host, broker.port, None), codec, keepalive=30)
    result: list[Any] = []

    async def run() -> None:
        await connection.handshake()
        codec.subscribe([f"traksense/{tenant}/#"], 1)
        connection.wake()
        result.append(await body(connection))
        await connection.close()

    with trio.fail_after(HANG_SECONDS):
        await connection.run(run)
    return result[0]


async def drain_one_by_one(connection: Connection, count: int) -> int:
    """Acknowledge one message at a time, in order; returns how many were unacknowledged at most."""
    waiting: list[int] = []
    acknowledged = most = 0
    while acknowledged < count:
        if not waiting or connection.codec.messages or acknowledged < 300:
            with trio.move_on_after(0.01):
                await connection.receive()
        waiting += [m.packet_id for m in connection.codec.messages]
        connection.codec.messages.clear()
        most = max(most, len(waiting))
        if waiting:
            connection.acknowledge([waiting.pop(0)])
            acknowledged += 1
    return most


def mosquitto_version() -> tuple[int, ...]:
    path = find_mosquitto()
    assert path is not None
    output = subprocess.run([path, "-h"], capture_output=True, text=True, check=False).stdout
    return tuple(map(int, output.split()[2].split(".")))


async def test_reader_holds_its_bounds_when_receive_maximum_is_overrun(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """Whatever the broker sends: the queue's length and one read of the socket is all that is held, and nothing is
    lost.
    """
    broker = own_broker()
    window, backlog = 20, 3000
    settings = settings_for(broker, unique("reader"), tenant, MQTT_READER=kind, INGEST_QUEUE_MAX=str(window))
    async with reading(settings):
        pass
    await publish(broker, topic_of(settings), [b"%d" % n + b"x" * 1000 for n in range(backlog)])

    held = 0
    seen: list[bytes] = []
    async with reading(settings, queue_max=window) as bench:
        while len(seen) < backlog:
            # One by one: each PUBACK makes the broker send another window, and the excess piles up at its end.
            messages = await bench.receive(1)
            held = max(held, bench.ledger.in_flight)
            seen += [m.payload for m in messages]
            bench.settle(messages)

    assert [b"%d" % n for n in range(backlog)] == [payload.rstrip(b"x") for payload in seen]
    # The channel, one message at its door, one in our hand, and what one read of 64 KiB can bring.
    assert window + 2 + 64 >= held


@pytest.mark.parametrize(("kind", "version"), [("paho", "5"), ("paho", "3.1.1"), ("mqtt5", "5")])
async def test_reader_heartbeat_comes_back_and_goes_nowhere(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str, version: str
) -> None:
    """A real broker brings our heartbeats back; they are neither counted nor passed on, and devices' messages are."""
    broker = own_broker()
    settings = settings_for(
        broker,
        unique("reader"),
        tenant,
        MQTT_READER=kind,
        MQTT_VERSION=version,
        MQTT_HEARTBEAT_TOPIC="traksense-heartbeat",
        MQTT_HEARTBEAT_SECONDS="1",
    )
    async with reading(settings) as bench:
        assert bench.reader._heartbeat is not None
        heard_at: set[float] = set()
        # One is the start, others what the broker says of itself.
        while len(heard_at) < 7:
            heard_at.add(bench.reader._heartbeat._heard_at)
            await trio.sleep(0.05)
        assert bench.health.ready
        assert 0 == bench.ledger.received_total
        await publish(broker, topic_of(settings), [b"1"])
        (message,) = await bench.receive(1)

    assert b"1" == message.payload


@pytest.mark.parametrize(("kind", "version"), [("paho", "5"), ("paho", "3.1.1"), ("mqtt5", "5")])
async def test_reader_is_told_on_each_connection_what_the_broker_dropped(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str, version: str
) -> None:
    """Mosquitto publishes the count when it changes, and the session is subscribed already; the uptime, however, comes
    by itself.
    """
    broker = own_broker(options=BrokerOptions(max_queued_messages=10))
    settings = settings_for(broker, unique("reader"), tenant, MQTT_READER=kind, MQTT_VERSION=version)
    async with reading(settings) as bench:
        while not (bench.watch.counts and bench.watch.uptimes):
            await trio.sleep(0.05)
    await publish(broker, topic_of(settings), [b"%d" % n for n in range(100)])
    async with reading(settings) as again:
        while 90 not in again.watch.counts or not again.watch.uptimes:
            await trio.sleep(0.05)
        assert 0 == again.ledger.received_total - len(await again.receive(10))
    async with reading(settings) as third:
        while not third.watch.counts:
            await trio.sleep(0.05)

    assert ([0], [90], [True]) == (bench.watch.counts, third.watch.counts, third.present)
    assert again.watch.uptimes > bench.watch.uptimes


async def test_reader_asks_again_for_what_a_forgotten_session_kept(
    own_broker: OwnBroker, unique: Callable[[str], str], tenant: str, kind: str
) -> None:
    """A broker that lost the session would send nothing of what is kept for a replica that is not there."""
    broker = own_broker()
    settings = settings_for(broker, unique("reader"), tenant, MQTT_READER=kind)
    kept = f"traksense/{unique('other')}/+/+/telem"
    async with reading(settings) as bench:
        bench.reader.keep([kept])
        while not bench.reader.subscribed:
            await trio.sleep(0.01)
        await publish(broker, kept.replace("+/+", "s/d"), [b"1"])
        await bench.receive(1)
        broker.kill()
        (broker.directory / "mosquitto.db").unlink(missing_ok=True)
        await broker.start()
        while len(bench.present) < 2 or not bench.reader.subscribed:
            await trio.sleep(0.05)
        await publish(broker, kept.replace("+/+", "s/d"), [b"2"])
        messages = await bench.receive(1)

    assert ([b"2"], [False, False]) == ([message.payload for message in messages], bench.present)
