"""What every codec promises, byte for byte; the reader tests hold the same against a real broker."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from datetime import UTC, datetime
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import mqtt5
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from traksense.config import Secret, load
from traksense.mqtt.codec import (
    PACKET_MAX_BYTES,
    Connected,
    Disconnected,
    ProtocolError,
    Published,
    Subscribed,
    Unsubscribed,
)
from traksense.mqtt.codecs import codec_factory
from traksense.mqtt.mqtt5_codec import Mqtt5Codec
from traksense.mqtt.packets import ANSWER_MAX_BYTES
from traksense.mqtt.paho_codec import PahoCodec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from traksense.model import Message
    from traksense.mqtt.codec import Codec, Event

CONNACK = bytes.fromhex("20 03 00 00 00")
TOPIC = "traksense/tenant/site/device/telem"
CODECS: dict[str, type[PahoCodec | Mqtt5Codec]] = {"paho": PahoCodec, "mqtt5": Mqtt5Codec}


class MakeCodec(Protocol):
    """Makes a codec of the kind under test."""

    def __call__(self, **arguments: Any) -> Codec:
        """Before CONNECT."""


@pytest.fixture(params=CODECS)
def make_codec(request: pytest.FixtureRequest) -> MakeCodec:
    """The kind under test."""
    return lambda **arguments: CODECS[request.param](**({"client_id": "client", "generation": 7} | arguments))


@pytest.fixture
def codec(make_codec: MakeCodec) -> Codec:
    """A codec whose connection is accepted and has nothing to send."""
    return connected(make_codec())


def connected(codec: Codec) -> Codec:
    codec.connect()
    codec.take()
    assert [Connected(0, "Success", session_present=False)] == codec.feed(CONNACK)
    return codec


def publish_packet(
    payload: bytes,
    *,
    topic: str | bytes = TOPIC,
    qos: int = 1,
    packet_id: int = 1,
    dup: bool = False,
    retain: bool = False,
    properties: bytes = b"",
) -> bytes:
    """PUBLISH as a broker sends it (MQTT 5.0 §3.3), whatever the parts are."""
    name = topic.encode() if isinstance(topic, str) else topic
    body = struct.pack("!H", len(name)) + name + (struct.pack("!H", packet_id) if qos else b"")
    body += variable_byte_integer(len(properties)) + properties + payload
    return bytes([0x30 | dup << 3 | qos << 1 | retain]) + variable_byte_integer(len(body)) + body


def variable_byte_integer(value: int) -> bytes:
    result = bytearray()
    while True:
        value, low = divmod(value, 128)
        result.append(low | (0x80 if value else 0))
        if not value:
            return bytes(result)


def seen(messages: Iterable[Message]) -> list[tuple[Any, ...]]:
    """Messages without the time of their receipt."""
    return [(m.topic, m.payload, m.qos, m.packet_id, m.generation, m.redelivered) for m in messages]


# --- CONNECT and CONNACK ----------------------------------------------------------------------------------------------


def test_connect_asks_for_a_session_that_lasts(make_codec: MakeCodec) -> None:
    """CONNECT keeps the session and states its expiry, our window and the largest packet, and the credentials."""
    codec = make_codec(
        keepalive=33, receive_maximum=1000, session_expiry=86400, username="user", password=Secret("word")
    )

    codec.connect()
    packet, _ = mqtt5.read(memoryview(codec.take()))

    assert isinstance(packet, mqtt5.ConnectPacket)
    assert ("client", False, 33) == (packet.client_id, packet.clean_start, packet.keep_alive)
    assert (1000, 86400) == (packet.receive_max, packet.session_expiry_interval)
    assert packet.max_packet_size == PACKET_MAX_BYTES
    assert ("user", b"word") == (packet.username, packet.password)
    assert b"" == codec.take()


def test_connect_clean_without_credentials(make_codec: MakeCodec) -> None:
    """A publisher can ask for a new session, as nobody in particular."""
    codec = make_codec(clean=True)

    codec.connect()
    packet, _ = mqtt5.read(memoryview(codec.take()))

    assert isinstance(packet, mqtt5.ConnectPacket)
    assert (True, None, None) == (packet.clean_start, packet.username, packet.password)


def test_connack_limits_are_told(make_codec: MakeCodec) -> None:
    """What the broker says of the session and of its limits is passed on."""
    codec = make_codec()
    codec.connect()

    # Server Keep Alive 20, Receive Maximum 10, Maximum Packet Size 65536.
    events = codec.feed(bytes.fromhex("20 0e 01 00 0b 13 0014 21 000a 27 00010000"))

    assert [Connected(0, "Success", True, 20, 10, 65536)] == events


@pytest.mark.parametrize(
    ("reason", "text"),
    [
        (0x80, "Unspecified error"),
        (0x84, "Unsupported protocol version"),
        (0x85, "Client identifier not valid"),
        (0x86, "Bad user name or password"),
        (0x87, "Not authorized"),
        (0x88, "Server unavailable"),
        (0x8A, "Banned"),
        (0x9B, "QoS not supported"),
    ],
)
def test_connack_refusal_is_an_event(make_codec: MakeCodec, reason: int, text: str) -> None:
    """A refusal is told with its reason in words, the same in every codec, and is no protocol error."""
    codec = make_codec()
    codec.connect()

    assert [Connected(reason, text, session_present=False)] == codec.feed(bytes([0x20, 3, 0, reason, 0]))


def test_connack_of_an_old_broker_is_a_refusal(make_codec: MakeCodec) -> None:
    """A broker without MQTT 5 answers in the words of 3.1.1: that is an unsupported version, not nonsense."""
    codec = make_codec()
    codec.connect()

    events = codec.feed(bytes.fromhex("20 02 00 01"))

    assert [Connected(0x84, "Unsupported protocol version", session_present=False)] == events


def test_connack_and_messages_in_one_piece(make_codec: MakeCodec) -> None:
    """The session's backlog may come right behind CONNACK."""
    codec = make_codec()
    codec.connect()

    events = codec.feed(bytes.fromhex("20 03 01 00 00") + publish_packet(b"1"))

    assert [Connected(0, "Success", session_present=True)] == events
    assert [(TOPIC, b"1", 1, 1, 7, False)] == seen(codec.messages)


# --- what we send -----------------------------------------------------------------------------------------------------


def test_subscribe_asks_for_retained_messages_once(codec: Codec) -> None:
    """SUBSCRIBE names the filters with their QoS and asks for retained messages only if the subscription is new."""
    packet_id = codec.subscribe(["a/+/c", "d/#"], 1)

    packet, _ = mqtt5.read(memoryview(codec.take()))

    assert isinstance(packet, mqtt5.SubscribePacket)
    assert packet_id == packet.packet_id
    assert [("a/+/c", 1, 1, False), ("d/#", 1, 1, False)] == [
        (f.pattern, f.max_qos, f.retain_handling, f.no_local) for f in packet.topic_filters
    ]


def test_subscribe_asks_for_retained_messages_again_where_they_are_wanted(codec: Codec) -> None:
    """What is published only when it changes would not be known after a reconnection."""
    codec.subscribe(["a"], 0, retained=True)

    packet, _ = mqtt5.read(memoryview(codec.take()))

    assert isinstance(packet, mqtt5.SubscribePacket)
    assert [0] == [f.retain_handling for f in packet.topic_filters]


def test_suback_tells_each_filter(codec: Codec) -> None:
    """SUBACK is told with its packet identifier and one reason for each filter."""
    packet_id = codec.subscribe(["a", "b", "c"], 1)

    events = codec.feed(b"\x90\x06" + struct.pack("!H", packet_id) + b"\x00\x01\x00\x87")

    assert [Subscribed(packet_id, (1, 0, 0x87))] == events


def test_unsubscribe_names_the_filters(codec: Codec) -> None:
    """UNSUBSCRIBE has an identifier of its own and the filters as they are, shared ones too."""
    filters = ["a/+/c", "$share/g/d/#"]
    subscribed, packet_id = codec.subscribe(["a"], 1), codec.unsubscribe(filters)

    raw = memoryview(codec.take())
    _, size = mqtt5.read(raw)
    packet, _ = mqtt5.read(raw[size:])

    assert isinstance(packet, mqtt5.UnsubscribePacket)
    assert subscribed != packet_id == packet.packet_id
    assert filters == packet.patterns


def test_unsuback_tells_each_filter(codec: Codec) -> None:
    """UNSUBACK is told with its packet identifier and one reason for each filter."""
    packet_id = codec.unsubscribe(["a", "b", "c"])

    events = codec.feed(b"\xb0\x06" + struct.pack("!H", packet_id) + b"\x00\x00\x11\x87")

    assert [Unsubscribed(packet_id, (0, 0x11, 0x87))] == events


def test_unsuback_of_mqtt_3_has_no_reasons() -> None:
    """MQTT 3.1.1 §3.11: only the identifier."""
    codec = PahoCodec(client_id="client", version="3.1.1")
    codec.connect()
    codec.feed(bytes.fromhex("20 02 00 00"))
    packet_id = codec.unsubscribe(["a"])

    assert [Unsubscribed(packet_id, None)] == codec.feed(b"\xb0\x02" + struct.pack("!H", packet_id))


def test_publish_sends_what_was_given(codec: Codec) -> None:
    """PUBLISH has topic, payload, QoS and retain as they were given; identifiers differ, and QoS 0 has none."""
    ids = [codec.publish(TOPIC, b"\x00\xff" * n, qos=n % 2, retain=n == 1) for n in range(4)]
    raw = memoryview(codec.take())
    sent = []
    while raw:
        packet, size = mqtt5.read(raw)
        assert isinstance(packet, mqtt5.PublishPacket)
        sent.append((packet.topic, packet.payload, packet.qos, packet.retain, packet.packet_id or 0))
        raw = raw[size:]

    assert [(TOPIC, b"\x00\xff" * n, n % 2, n == 1, ids[n]) for n in range(4)] == sent
    assert (0, 0) == (ids[0], ids[2])
    assert 0 < ids[1] != ids[3] > 0


def test_puback_tells_what_became_of_our_message(codec: Codec) -> None:
    """PUBACK is told with its reason: short, with a reason, with properties. One that is not ours is nothing."""
    first, second, third = (codec.publish(TOPIC, b"", qos=1) for _ in range(3))

    events = codec.feed(
        b"\x40\x02" + struct.pack("!H", first)
        + b"\x40\x03" + struct.pack("!HB", second, 0x10)
        + b"\x40\x02" + struct.pack("!H", 999)
        + b"\x40\x08" + struct.pack("!HB", third, 0x97) + bytes.fromhex("04 1f 0001 78")
        + b"\x40\x02" + struct.pack("!H", first)
    )  # fmt: skip

    assert [Published(first, 0), Published(second, 0x10), Published(third, 0x97)] == events


def test_acknowledge_is_exact_and_in_order(codec: Codec) -> None:
    """PUBACKs go out four bytes each, in the order given, all that is queued in one piece, and once."""
    codec.acknowledge([3, 1, 65535])
    codec.acknowledge(iter([2]))

    assert bytes.fromhex("40020003 40020001 4002ffff 40020002") == codec.take()
    assert b"" == codec.take()


def test_ping_and_disconnect_bytes(codec: Codec) -> None:
    """PINGREQ and DISCONNECT are the shortest there are: the session keeps its expiry interval."""
    codec.ping()
    assert bytes.fromhex("c000") == codec.take()

    codec.acknowledge([1])
    codec.disconnect()
    assert bytes.fromhex("40020001 e000") == codec.take()


# --- messages ---------------------------------------------------------------------------------------------------------


def test_message_is_what_was_sent(codec: Codec) -> None:
    """Topic, exact bytes, QoS, identifier, DUP and generation; properties and retain change nothing."""
    properties = bytes.fromhex("01 01  02 00000064  26 0001 61 0001 62  0b 05")

    events = codec.feed(
        publish_packet(b"\x00\xff", packet_id=65535)
        + publish_packet(b"dup", packet_id=2, dup=True)
        + publish_packet(b"zero", qos=0)
        + publish_packet(b"", retain=True, packet_id=3)
        + publish_packet(b"p", packet_id=4, properties=properties)
        + publish_packet(b"q", packet_id=5, properties=bytes.fromhex("26 0001 61 00a0") + b"x" * 160)
    )

    assert [] == events
    assert [
        (TOPIC, b"\x00\xff", 1, 65535, 7, False),
        (TOPIC, b"dup", 1, 2, 7, True),
        (TOPIC, b"zero", 0, 0, 7, False),
        (TOPIC, b"", 1, 3, 7, False),
        (TOPIC, b"p", 1, 4, 7, False),
        (TOPIC, b"q", 1, 5, 7, False),
    ] == seen(codec.messages)
    assert {bytes} == {type(m.payload) for m in codec.messages}
    assert b"" == codec.take()


def test_messages_of_one_read_share_the_clock(codec: Codec) -> None:
    """The messages of one read were received at one moment."""
    before = datetime.now(UTC)
    codec.feed(publish_packet(b"1") + publish_packet(b"2"))
    codec.feed(publish_packet(b"3"))
    first, second, third = codec.messages

    assert before <= first.received_at == second.received_at <= third.received_at <= datetime.now(UTC)


def test_topic_that_is_not_utf8_becomes_escapes(codec: Codec) -> None:
    """Such a topic is poison for others; here it is shown with escapes, so that its message can be a dead letter."""
    codec.feed(publish_packet(b"1", topic=b"a/\xff\xfe") + publish_packet(b"2", topic=b"a/\xed\xa0\x80"))
    codec.feed(publish_packet(b"3", topic="é/\x00"))

    assert ["a/\\xff\\xfe", "a/\\xed\\xa0\\x80", "é/\x00"] == [m.topic for m in codec.messages]


@pytest.mark.parametrize("megabytes", [1, 4])
def test_large_message_in_socket_sized_pieces(codec: Codec, megabytes: int) -> None:
    """A payload of megabytes is put together from the pieces in which a socket brings it."""
    payload = bytes(range(256)) * (megabytes * 4096)
    for piece in pieces(publish_packet(payload) + publish_packet(b"next", packet_id=2), 65536):
        assert [] == codec.feed(piece)

    assert [payload, b"next"] == [m.payload for m in codec.messages]


def test_large_message_costs_no_more_than_its_bytes(codec: Codec) -> None:
    """A packet in 32,768 pieces takes a moment; were each a copy of all before it, it would take an hour."""
    payload = bytes(15 * 1024 * 1024)
    for piece in pieces(publish_packet(payload), 480):
        codec.feed(piece)

    assert len(payload) == len(codec.messages[0].payload)


def pieces(stream: bytes, size: int) -> list[bytes]:
    return [stream[begin : begin + size] for begin in range(0, len(stream), size)]


# A busy machine is no failure.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


# --- the stream may be cut anywhere -----------------------------------------------------------------------------------


@attrs.frozen
class Sent:
    """A packet and what must come of it."""

    raw: bytes
    message: tuple[Any, ...] | None = None
    event: Event | None = None


payloads = st.binary(max_size=40) | st.sampled_from([b"x" * n for n in (90, 127, 128, 300)])
topics = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


@st.composite
def publishes(draw: st.DrawFn) -> Sent:
    qos = draw(st.integers(0, 1))
    topic, payload, dup = draw(topics), draw(payloads), bool(qos and draw(st.booleans()))
    packet_id = draw(st.integers(1, 65535)) if qos else 0
    properties = draw(st.sampled_from([b"", b"\x01\x01", b"\x26\x00\x01a\x00\x01b" * 30]))
    raw = publish_packet(
        payload, topic=topic, qos=qos, packet_id=packet_id, dup=dup, retain=draw(st.booleans()), properties=properties
    )
    return Sent(raw, message=(topic, payload, qos, packet_id, 7, dup))


others = st.sampled_from(
    [
        Sent(bytes.fromhex("d000")),
        Sent(bytes.fromhex("9004 0005 00 01"), event=Subscribed(5, (1,))),
        Sent(bytes.fromhex("9006 0006 00 01 87 80"), event=Subscribed(6, (1, 0x87, 0x80))),
    ]
)


def cut(stream: bytes, places: Sequence[int]) -> list[bytes]:
    """The stream in pieces."""
    edges = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[begin:end] for begin, end in pairwise(edges) if begin < end]


@pytest.mark.parametrize("kind", CODECS)
@unhurried
@given(sent=st.lists(publishes() | others, max_size=8), places=st.lists(st.integers(0, 100_000), max_size=12))
def test_stream_may_be_cut_anywhere(kind: str, sent: list[Sent], places: list[int]) -> None:
    """However the bytes arrive, the same messages and events come out, in order."""
    codec = connected(CODECS[kind](client_id="client", generation=7))
    events: list[Event] = []
    for piece in cut(b"".join(s.raw for s in sent), places):
        events += codec.feed(piece)

    assert [s.message for s in sent if s.message] == seen(codec.messages)
    assert [s.event for s in sent if s.event] == events


@pytest.mark.parametrize("kind", CODECS)
@unhurried
@given(sent=st.lists(publishes() | others, max_size=2))
def test_stream_byte_by_byte(kind: str, sent: list[Sent]) -> None:
    """Even one byte at a time."""
    codec = connected(CODECS[kind](client_id="client", generation=7))
    events: list[Event] = []
    for byte in b"".join(s.raw for s in sent):
        events += codec.feed(bytes([byte]))

    assert [s.message for s in sent if s.message] == seen(codec.messages)
    assert [s.event for s in sent if s.event] == events


# --- the end, and nonsense --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("raw", ["e0 01 8e", "e0 02 8e 00", "e0 0a 8e 08 1f 0005 6f74686572"])
def test_disconnect_taken_over_is_told(codec: Codec, raw: str) -> None:
    """DISCONNECT with reason 0x8E, in each of its forms: another client has our session."""
    assert [Disconnected(0x8E, "Session taken over")] == codec.feed(bytes.fromhex(raw))


def test_disconnect_ends_it(codec: Codec) -> None:
    """A DISCONNECT is told with its reason; messages before it count, and what follows is not looked at."""
    events = codec.feed(publish_packet(b"before") + bytes.fromhex("e0 01 8b") + bytes.fromhex("20 03 00 00 00"))

    assert [Disconnected(0x8B, "Server shutting down")] == events
    assert [b"before"] == [m.payload for m in codec.messages]


def test_pingresp_is_nothing(codec: Codec) -> None:
    """PINGRESP is neither event nor message, and is not answered."""
    assert [] == codec.feed(bytes.fromhex("d000"))
    assert (0, b"") == (len(codec.messages), codec.take())


@pytest.mark.parametrize(
    "raw",
    [
        "00 00",  # no packet has type 0
        "f0 00",  # AUTH, though nothing was said of it
        "36 08 0002 6162 0007 00 61",  # QoS 3
        "30 ff ff ff ff 01",  # a length of five bytes
        "30 02 0009",  # a topic longer than its packet
        "32 04 0002 6162",  # no packet identifier
        "30 05 0001 61 7f 61",  # properties longer than their packet
        "30 04 0001 61 80",  # half a length of properties
        "20 03 00 55 00",  # CONNACK with a reason that there is not
        "e0 01 55",  # DISCONNECT likewise
        "90 04 0001 00 55",  # SUBACK likewise
        "d0 01 00",  # PINGRESP with a body
        "20 00",  # CONNACK without one
        "40 01 00",  # half a packet identifier
        "10 0d 0004 4d515454 05 02 001e 00 0000",  # CONNECT is for clients
        "c0 00",  # so is PINGREQ: to answer a flood of them would fill our memory
        "50 02 0001",  # PUBREC for what we never send
        "70 02 0001",  # PUBCOMP likewise
        "60 02 0001",  # PUBREL with wrong flags
        "32 06 0001 61 0000 00",  # a packet identifier of 0
        "30 03 0000 00",  # no topic
        "30 06 0000 03 23 0001",  # a topic alias, though we allow none
    ],
)
def test_nonsense_is_a_protocol_error(codec: Codec, raw: str) -> None:
    """What is not MQTT, or not for us, ends the connection in one way; messages before it have been taken."""
    # More bytes behind it: a packet must not borrow from the next one.
    with pytest.raises(ProtocolError):
        codec.feed(publish_packet(b"before") + bytes.fromhex(raw) + publish_packet(b"behind"))

    assert b"before" == codec.messages[0].payload


@pytest.mark.parametrize("kind", CODECS)
@unhurried
@given(data=st.binary(max_size=60), first=st.sampled_from(range(256)))
def test_garbage_is_a_protocol_error_or_waits(kind: str, data: bytes, first: int) -> None:
    """Whatever comes: an event, a message, waiting for more, or ProtocolError. Nothing else is raised."""
    codec = connected(CODECS[kind](client_id="client"))
    with contextlib.suppress(ProtocolError):
        codec.feed(bytes([first]) + data)
        codec.feed(data)


@pytest.mark.parametrize("kind", CODECS)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # mqtt5 0.8 panics over broken UTF-8
@unhurried
@given(
    data=st.data(),
    packet=st.sampled_from(["2003010000", "9006000500018780", "4008000397041f000178", "e00a8e081f00056f74686572"]),
)
def test_damaged_packets_are_protocol_errors(kind: str, data: st.DataObject, packet: str) -> None:
    """A packet with one byte changed is read, waited for, or refused with ProtocolError."""
    raw = bytearray.fromhex(packet)
    raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    codec = connected(CODECS[kind](client_id="client"))
    with contextlib.suppress(ProtocolError):
        codec.feed(bytes(raw))


# --- what differs -----------------------------------------------------------------------------------------------------


def test_packet_beyond_our_limit_is_refused_at_once(codec: Codec) -> None:
    """A peer that claims a packet of more than we announced is not waited for: memory stays bounded."""
    with pytest.raises(ProtocolError, match=f"{PACKET_MAX_BYTES + 1} bytes"):
        codec.feed(b"\x30" + variable_byte_integer(PACKET_MAX_BYTES + 1))


@pytest.mark.parametrize("first", [0x20, 0x40, 0x62, 0x90, 0xB0, 0xD0, 0xE0, 0xF0])
def test_answer_beyond_all_reason_is_refused_at_once(codec: Codec, first: int) -> None:
    """Half a megabyte of user properties would keep paho busy for half a minute, and nothing else would run."""
    with pytest.raises(ProtocolError, match=f"type {first >> 4} with {ANSWER_MAX_BYTES + 1} bytes"):
        codec.feed(bytes([first]) + variable_byte_integer(ANSWER_MAX_BYTES + 1))


def test_packet_in_crumbs_takes_no_more_memory_than_its_bytes(codec: Codec) -> None:
    """Two bytes at a time, as objects of their own, would be thirty times as much."""
    packet = publish_packet(bytes(500_000))
    crumbs = pieces(packet[:-2], 2)[::-1]
    tracemalloc.start()
    try:
        while crumbs:
            codec.feed(crumbs.pop())
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(packet) * 2 > held


def test_queued_bytes_are_told(codec: Codec) -> None:
    """What the peer asks of us can be bounded."""
    codec.feed(b"\x62\x02\x00\x01" * 100)

    assert 400 == codec.outgoing_bytes == len(codec.take())
    assert 0 == codec.outgoing_bytes


def test_retain_flag_is_told(codec: Codec) -> None:
    """What the broker had kept is not what happens now."""
    codec.feed(publish_packet(b"kept", retain=True) + publish_packet(b"live", packet_id=2))

    assert [(b"kept", True), (b"live", False)] == [(m.payload, m.retain) for m in codec.messages]


def test_qos_2_is_confirmed_after_it_is_stored(codec: Codec) -> None:
    """A session that somebody else subscribed at QoS 2: PUBREC goes out when a message is acknowledged, not before."""
    codec.feed(publish_packet(b"1", packet_id=8) + publish_packet(b"2", qos=2, packet_id=9))

    assert [(TOPIC, b"1", 1, 8, 7, False), (TOPIC, b"2", 2, 9, 7, False)] == seen(codec.messages)
    assert b"" == codec.take()
    codec.acknowledge([8, 9])
    assert bytes.fromhex("40020008 50020009") == codec.take()
    assert [] == codec.feed(bytes.fromhex("6202 0009"))
    assert bytes.fromhex("70020009") == codec.take()
    codec.acknowledge([9])
    assert bytes.fromhex("40020009") == codec.take()


def test_mqtt5_packet_identifiers_in_use_are_not_used_again() -> None:
    """Identifiers go round, past those that still wait for their PUBACK."""
    codec = connected(Mqtt5Codec(client_id="client"))
    first = codec.publish(TOPIC, b"", qos=1)
    for _ in range(65534):
        codec.feed(b"\x40\x02" + struct.pack("!H", codec.publish(TOPIC, b"", qos=1)))

    assert (1, 2) == (first, codec.publish(TOPIC, b"", qos=1))


def test_reader_takes_the_codec_that_is_configured() -> None:
    """`MQTT_READER` decides, and what the settings say reaches CONNECT."""
    for kind, class_ in CODECS.items():
        settings = load({"MQTT_READER": kind, "MQTT_CLIENT_ID": "me", "INGEST_QUEUE_MAX": "123"})
        codec = codec_factory(settings)(settings, 3)
        codec.connect()
        packet, _ = mqtt5.read(memoryview(codec.take()))

        assert isinstance(codec, class_)
        assert isinstance(packet, mqtt5.ConnectPacket)
        assert ("me", 123, 30) == (packet.client_id, packet.receive_max, packet.keep_alive)
        assert 14 * 86400 == packet.session_expiry_interval
