"""Bytes of a broker, through each codec and what the reader does with its events: packets, properties, `$SYS`.

The first byte of an input chooses the codec and whether CONNACK comes before the rest; the second, into pieces of how
many bytes it is cut.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from traksense.ingest.ack import Acknowledger
from traksense.mqtt.codec import PACKET_MAX_BYTES, Connected, ProtocolError, Published, Subscribed, Unsubscribed
from traksense.mqtt.mqtt5_codec import Mqtt5Codec
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.subscriptions import Subscriptions
from traksense.mqtt.sys_topics import SYS_TOPICS, SysTopics

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Callable

    from traksense.model import Message
    from traksense.mqtt.codec import Codec, Event

CODECS: Final[list[Callable[[], Codec]]] = [
    lambda: PahoCodec(client_id="c"),
    lambda: Mqtt5Codec(client_id="c"),
    lambda: PahoCodec(client_id="c", version="3.1.1"),
]
CONNACK: Final = [bytes.fromhex("2003000000"), bytes.fromhex("2003000000"), bytes.fromhex("20020000")]


def one_input(data: bytes) -> None:
    """Whatever the bytes: messages and events that are sane, or ProtocolError; and what is held stays in proportion."""
    if len(data) < 3:
        return
    kind, size = data[0] % 3, data[1] + 1
    conversation = Conversation(CODECS[kind]())
    stream = (CONNACK[kind] if data[0] < 128 else b"") + data[2:]
    try:
        for begin in range(0, len(stream), size):
            conversation.take(stream[begin : begin + size])
    except ProtocolError as error:
        require_printable(str(error))


class Watch:
    """What the broker says of itself is sane."""

    def connected(self, session_present: bool) -> None:
        pass

    def delivered(self) -> None:
        pass

    def uptime(self, seconds: float) -> None:
        assert 0 <= seconds < 10**10

    def dropped_so_far(self, count: int) -> None:
        assert 0 <= count < 10**20


class Conversation:
    """What the reader does on one connection, without its tasks."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self.fed = 0
        self.accepted = False
        self.sys_topics = SysTopics(Watch())
        self.subscriptions = Subscriptions(["a/#", "b/+"], 1)
        self.acknowledger = Acknowledger()
        codec.connect()
        codec.take()

    def take(self, piece: bytes) -> None:
        """One read of the socket."""
        self.fed += len(piece)
        for event in self.codec.feed(piece):
            self.handle(event)
        check(self.codec.messages)
        if self.accepted:
            self.accept(self.codec.messages)
        self.codec.messages.clear()
        # PUBACK has four bytes, and so has what answers the shortest packet that wants an answer.
        assert self.codec.outgoing_bytes <= 4 * self.fed + 1000
        held = self.codec._reader._held  # type: ignore[attr-defined]
        assert len(held) <= min(self.fed, PACKET_MAX_BYTES + 5)

    def accept(self, messages: deque[Message]) -> None:
        """Store them at once."""
        for message in messages:
            if message.topic in SYS_TOPICS and not message.qos:
                self.sys_topics.note(message)
        self.acknowledger.received(messages)
        self.acknowledger.settle(messages)
        assert not self.acknowledger.unacknowledged

    def handle(self, event: Event) -> None:
        """As the reader does."""
        self.sys_topics.handle(event)
        self.subscriptions.handle(event)
        require_printable(getattr(event, "reason_text", ""))
        match event:
            case Connected(reason=0) if not self.accepted:
                self.accepted = True
                self.acknowledger.connected(0, self.codec.acknowledge)
                self.subscriptions.connected(self.codec, session_present=event.session_present)
                self.subscriptions.release(["c"])
                self.sys_topics.ask(self.codec)
                self.codec.publish("a/b", b"", qos=1)
            case Subscribed() | Unsubscribed():
                assert all(0 <= code <= 0xFF for code in event.reasons or ())
            case Published():
                assert event.packet_id


def require_printable(text: str) -> None:
    """It reaches logs and terminals."""
    assert text.isprintable()


def check(messages: deque[Message]) -> None:
    """What the pipeline may take for granted."""
    for message in messages:
        assert message.topic
        assert message.topic.encode()  # no surrogates
        assert type(message.payload) is bytes
        assert message.qos in {0, 1, 2}
        assert bool(message.packet_id) == bool(message.qos)
        assert message.packet_id <= 0xFFFF
