"""Reading the wire: MQTT packets and PostgreSQL's commits, however the bytes arrive."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from traksense.mqtt.paho_codec import PahoCodec
from traksense.tools.prove import frames


def packet(first: int, body: bytes) -> bytes:
    length, encoded = len(body), bytearray()
    while True:
        length, low = divmod(length, 128)
        encoded.append(low | (0x80 if length else 0))
        if not length:
            return bytes((first, *encoded)) + body


def publish_packet(topic: bytes, payload: bytes, *, packet_id: int, qos: int = 1, dup: bool = False) -> bytes:
    body = len(topic).to_bytes(2, "big") + topic + (packet_id.to_bytes(2, "big") if qos else b"") + b"\x00" + payload
    return packet(0x30 | dup << 3 | qos << 1, body)


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


STARTUP = (8).to_bytes(4, "big") + (80877103).to_bytes(4, "big") + (9).to_bytes(4, "big") + b"\x00\x03\x00\x00\x00"


@given(
    packets=st.lists(st.tuples(st.integers(1, 14), st.binary(max_size=300)), max_size=8),
    cuts=st.lists(st.integers(0, 2000), max_size=10),
)
def test_frames_are_the_same_however_the_bytes_are_cut(packets: list[tuple[int, bytes]], cuts: list[int]) -> None:
    """Whatever the pieces, exactly the packets come out, in order."""
    stream = b"".join(packet(kind << 4, body) for kind, body in packets)
    places = sorted({0, len(stream), *(cut % (len(stream) + 1) for cut in cuts)})
    reader = frames.MqttFrames()

    found = [f for begin, end in itertools.pairwise(places) for f in reader.feed(stream[begin:end])]

    assert packets == [(f.kind, f.body) for f in found]


def test_frame_with_an_endless_length_is_refused() -> None:
    """A Remaining Length of more than four bytes is not MQTT."""
    with pytest.raises(frames.MalformedError):
        frames.MqttFrames().feed(b"\x30\xff\xff\xff\xff\x01")


@given(
    topic=st.text(min_size=1, max_size=50).map(str.encode),
    payload=st.binary(max_size=400),
    packet_id=st.integers(1, 65535),
    dup=st.booleans(),
)
def test_publish_is_read_back(topic: bytes, payload: bytes, packet_id: int, dup: bool) -> None:
    """Topic, payload, identifier and DUP are what was sent."""
    (frame,) = frames.MqttFrames().feed(publish_packet(topic, payload, packet_id=packet_id, dup=dup))

    assert frames.Publish(topic, payload, 1, dup, packet_id) == frames.read_publish(frame)


def test_publish_at_qos_0_and_of_mqtt_3_have_other_layouts() -> None:
    """No identifier at QoS 0, no properties in MQTT 3.1.1."""
    (at_0,) = frames.MqttFrames().feed(publish_packet(b"t", b"x", packet_id=0, qos=0))
    (of_3,) = frames.MqttFrames().feed(packet(0x32, b"\x00\x01t\x00\x07x"))

    assert frames.Publish(b"t", b"x", 0, False, 0) == frames.read_publish(at_0)
    assert frames.Publish(b"t", b"x", 1, False, 7) == frames.read_publish(of_3, level=4)


@pytest.mark.parametrize("body", [b"", b"\x00\x05ab", b"\x00\x01t\x00", b"\x00\x01t\x00\x07", b"\x00\x01t\x00\x07\x09"])
def test_publish_that_ends_too_early_is_refused(body: bytes) -> None:
    """A torn packet is an error, never half a message."""
    with pytest.raises(frames.MalformedError):
        frames.read_publish(frames.Frame(frames.PUBLISH, 0x02, body))


@pytest.mark.parametrize(("version", "level"), [("5", 5), ("3.1.1", 4)])
@pytest.mark.parametrize("clean", [True, False])
def test_connect_of_the_real_codec_is_understood(version: str, level: int, clean: bool) -> None:
    """What our own reader sends says its protocol level and whether it wants a clean session."""
    codec = PahoCodec(client_id="c", version=version, clean=clean)
    codec.connect()

    (frame,) = frames.MqttFrames().feed(codec.take())

    assert frames.CONNECT == frame.kind
    assert clean == frames.starts_clean(frame)
    assert level == frames.protocol_level(frame)


def test_puback_without_reason_is_success() -> None:
    """MQTT 5.0 §3.4.2.1: reason code and properties may be left out."""
    assert (258, 0) == frames.read_puback(frames.Frame(frames.PUBACK, 0, b"\x01\x02"))
    assert (258, 0x87) == frames.read_puback(frames.Frame(frames.PUBACK, 0, b"\x01\x02\x87"))
    with pytest.raises(frames.MalformedError):
        frames.read_puback(frames.Frame(frames.PUBACK, 0, b"\x01"))


@pytest.mark.parametrize(
    ("messages", "commits"),
    [
        ([message(b"Q", b"BEGIN;\0"), message(b"Q", b"COMMIT;\0")], 1),
        ([message(b"Q", b"BEGIN;\0"), message(b"Q", b"ROLLBACK;\0")], 0),
        ([message(b"Q", b"COPY t FROM STDIN\0"), message(b"d", b"xx"), message(b"c")], 1),
        # Inside a transaction the end of a COPY commits nothing.
        ([message(b"Q", b"BEGIN;\0"), message(b"c"), message(b"Q", b"COMMIT;\0")], 1),
        ([message(b"Q", b"BEGIN;\0"), message(b"c"), message(b"Q", b"ROLLBACK;\0"), message(b"c")], 1),
        ([message(b"P", b"COMMIT\0"), message(b"S"), message(b"Q", b"SELECT 'COMMIT'\0"), message(b"Q", b"\0")], 0),
    ],
)
def test_commits_are_spotted_byte_by_byte(messages: list[bytes], commits: int) -> None:
    """A COMMIT and the end of an autocommitted COPY ask for a commit, and nothing else does."""
    spotter = frames.CommitSpotter()

    spotted = [spotter.feed(bytes([byte])) for byte in STARTUP + b"".join(messages)]

    assert commits == spotted.count(True) == spotter.commits
