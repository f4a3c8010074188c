"""Where packets begin and end in a stream of bytes, and the one packet that must be cheap: PUBLISH.

All that a broker sends to a subscriber, but for a handful of packets, is PUBLISH. Read here, in one loop over the bytes
as they came, it takes less than 2 µs, a third of which is making the Message. Ready-made parsers build a packet object
with all its properties first (paho 2.2: 15 µs; mqtt5 0.8, in Rust: more than this loop, once its fields are fetched)
and judge what is not ours to judge: a user property that is not UTF-8, which some brokers let pass (EMQX without
`strict_mode`), would end the connection, come again on the next one, and so stop everything behind it. Here properties
are skipped by their length.

Source: MQTT 5.0 §2.1 (fixed header), §1.5.5 (variable byte integer), §3.3 (PUBLISH).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from traksense.model import Message
from traksense.mqtt.codec import PACKET_MAX_BYTES, ProtocolError

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable

PUBLISH: Final = 3
ANSWER_MAX_BYTES: Final = 16 * 1024
"""The largest packet that is not PUBLISH. paho's time for those grows with the square of their properties, and nothing
else runs meanwhile: 16 KiB took it 0.06 s, 256 KiB 6.5 s (measured). SUBACK for all filters of one packet has half a
kilobyte. Chosen by guess."""

_QOS_RESERVED: Final = 3
_PUBACK: Final = b"\x40\x02"
_PUBREC: Final = b"\x50\x02"


class PacketReader:
    """Cuts the bytes of one connection into packets.

    Args:
        messages: Where PUBLISHes go, as messages.
        generation: Goes into every message.
        properties: Whether packets have properties, as in MQTT 5.

    Attributes:
        exactly_once: Packet identifiers of the messages that came at QoS 2 and are not acknowledged.
    """

    def __init__(self, messages: deque[Message], *, generation: int, properties: bool = True) -> None:
        self._messages = messages
        self._generation = generation
        self._properties = properties
        self.exactly_once: set[int] = set()
        # One piece of memory: a list of pieces of a few bytes each would be thirty times what it holds.
        self._held = bytearray()
        self._needed_bytes = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take bytes from the peer, cut anywhere; returns the packets that are not PUBLISH, each whole, in order.

        A packet that comes in many pieces is put together once, when its last piece is there.

        Raises:
            ProtocolError: The bytes are not MQTT; the messages before them have been taken.
        """
        if self._held:
            self._held += data
            if len(self._held) < self._needed_bytes:
                return []
            data = bytes(self._held)
            self._held = bytearray()
        others: list[bytes] = []
        try:
            position = self._read(data, others)
        except IndexError:
            raise ProtocolError("PUBLISH ends within its header") from None
        if position < len(data):
            self._held += data[position:]
        return others

    def acknowledgements(self, packet_ids: Iterable[int]) -> bytes:
        """What confirms receipt of these messages, in this order: PUBACK or, at QoS 2, PUBREC.

        Reason code 0 and no properties may be left out (MQTT 5.0 §3.4.2.1).
        """
        exactly_once = self.exactly_once
        if not exactly_once:
            return b"".join([_PUBACK + packet_id.to_bytes(2, "big") for packet_id in packet_ids])
        pieces = []
        for packet_id in packet_ids:
            pieces.append((_PUBREC if packet_id in exactly_once else _PUBACK) + packet_id.to_bytes(2, "big"))
            exactly_once.discard(packet_id)
        return b"".join(pieces)

    def _read(self, data: bytes, others: list[bytes]) -> int:
        """Read all whole packets; returns where the first that is not whole begins."""
        generation, properties = self._generation, self._properties
        append = self._messages.append
        now = datetime.now(UTC)  # one clock reading for all messages of one read
        position, size = 0, len(data)
        while size - position >= 2:
            first, length, begin = data[position], data[position + 1], position + 2
            if length > 127:
                second = data[begin] if begin < size else 0
                if 0 < second < 128:  # nearly always: a call for each would be dear
                    length, begin = length & 127 | second << 7, begin + 1
                else:
                    whole = _variable_byte_integer(data, position + 1)
                    if whole is None:
                        break
                    length, begin = whole
                if length > PACKET_MAX_BYTES:
                    raise ProtocolError(f"a packet of {length} bytes, though we announced {PACKET_MAX_BYTES} at most")
                if length > ANSWER_MAX_BYTES and first >> 4 != PUBLISH:
                    raise ProtocolError(f"a packet of type {first >> 4} with {length} bytes")
            end = begin + length
            if end > size:
                self._needed_bytes = end - position
                return position
            if first >> 4 != PUBLISH:
                others.append(data[position:end])
                position = end
                continue
            at = begin + 2 + (data[begin] << 8 | data[begin + 1])
            if at == begin + 2:
                # We allow no topic aliases, so nobody could say what it is about.
                raise ProtocolError("PUBLISH without a topic")
            # Not remembered: looking up a long-known topic takes as long, and 100,000 of them 30 MB.
            topic = data[begin + 2 : at].decode("utf-8", "backslashreplace")
            qos, packet_id = first >> 1 & 3, 0
            if qos:
                packet_id = data[at] << 8 | data[at + 1]
                at += 2
                if not packet_id:
                    raise ProtocolError("PUBLISH with the packet identifier 0")
                if qos > 1:
                    self._note_unusual_qos(qos, packet_id)
            if properties:
                if skip := data[at]:
                    at = _after_properties(data, at, skip)
                else:
                    at += 1
            if at > end:
                raise ProtocolError("PUBLISH ends within its header")
            append(Message(topic, data[at:end], qos, packet_id, generation, first & 8 != 0, now))
            if first & 1:
                self._messages[-1].retain = True
            position = end
        self._needed_bytes = 0
        return position

    def _note_unusual_qos(self, qos: int, packet_id: int) -> None:
        if qos == _QOS_RESERVED:
            raise ProtocolError("PUBLISH with QoS 3")
        self.exactly_once.add(packet_id)


def _variable_byte_integer(data: bytes, at: int) -> tuple[int, int] | None:
    """The number at a position and where it ends; None if its end is not there yet.

    Raises:
        ProtocolError: It has more than four bytes.
    """
    value = 0
    for shift in (0, 7, 14, 21):
        if at >= len(data):
            return None
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ProtocolError("a length of more than four bytes")


def _after_properties(data: bytes, at: int, length: int) -> int:
    """Where the payload begins."""
    if length < 0x80:
        return at + 1 + length
    whole = _variable_byte_integer(data, at)
    if whole is None:
        raise ProtocolError("PUBLISH ends within its header")
    return whole[1] + whole[0]
