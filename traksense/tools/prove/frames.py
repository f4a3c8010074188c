"""What a witness reads off the wire: MQTT packets, and the few PostgreSQL messages that ask for a commit. No I/O.

Sources: MQTT 5.0 §2.1.1 (fixed header), §1.5.5 (variable byte integer), §3.3 (PUBLISH), §3.4 (PUBACK), §3.2 (CONNACK);
PostgreSQL 18 documentation §54.7 (message formats), §54.2.6 (COPY operations).
"""

from __future__ import annotations

import struct
from typing import Final

import attrs

CONNECT: Final = 1
CONNACK: Final = 2
PUBLISH: Final = 3
PUBACK: Final = 4

MQTT_5: Final = 5

_CLEAN_START: Final = 0x02
_SESSION_PRESENT: Final = 0x01


class MalformedError(Exception):
    """The bytes are not what they should be."""


@attrs.frozen
class Frame:
    """One MQTT control packet: its type, its flags, and what follows the fixed header."""

    kind: int
    flags: int
    body: bytes


@attrs.frozen
class Publish:
    """A PUBLISH; `packet_id` is 0 at QoS 0."""

    topic: bytes
    payload: bytes
    qos: int
    dup: bool
    packet_id: int


class MqttFrames:
    """Cuts a stream of bytes into packets, however the bytes arrive."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[Frame]:
        """The packets that these bytes complete.

        Raises:
            MalformedError: A length of more than four bytes.
        """
        self._buffer += data
        frames = []
        position = 0
        while (end := self._end(position)) is not None:
            begin, stop = end
            first = self._buffer[position]
            frames.append(Frame(first >> 4, first & 0x0F, bytes(self._buffer[begin:stop])))
            position = stop
        del self._buffer[:position]
        return frames

    def _end(self, position: int) -> tuple[int, int] | None:
        """Where the body of the packet at this position begins and ends, or None if it is not all there."""
        length = 0
        for place in range(4):
            at = position + 1 + place
            if at >= len(self._buffer):
                return None
            byte = self._buffer[at]
            length |= (byte & 0x7F) << (7 * place)
            if not byte & 0x80:
                stop = at + 1 + length
                return (at + 1, stop) if stop <= len(self._buffer) else None
        raise MalformedError("a Remaining Length of more than four bytes")


def read_publish(frame: Frame, *, level: int = MQTT_5) -> Publish:
    """Read a PUBLISH packet.

    Raises:
        MalformedError: It is too short.
    """
    qos = frame.flags >> 1 & 0x03
    body = frame.body
    try:
        (length,) = struct.unpack_from("!H", body)
        topic, position = body[2 : 2 + length], 2 + length
        packet_id = 0
        if qos:
            (packet_id,) = struct.unpack_from("!H", body, position)
            position += 2
        if level == MQTT_5:
            properties, position = _variable_byte_integer(body, position)
            position += properties
    except (struct.error, IndexError):
        raise MalformedError("a PUBLISH that ends too early") from None
    if position > len(body):
        raise MalformedError("a PUBLISH that ends too early")
    return Publish(topic, body[position:], qos, bool(frame.flags & 0x08), packet_id)


def read_puback(frame: Frame) -> tuple[int, int]:
    """The packet identifier and the reason code of a PUBACK; no reason code means success.

    Raises:
        MalformedError: It is too short.
    """
    if len(frame.body) < 2:
        raise MalformedError("a PUBACK without packet identifier")
    return int.from_bytes(frame.body[:2], "big"), frame.body[2] if len(frame.body) > 2 else 0


def session_present(frame: Frame) -> bool:
    """Whether a CONNACK says that the broker has our session."""
    return bool(frame.body[:1] and frame.body[0] & _SESSION_PRESENT)


def client_id(frame: Frame) -> str:
    """The client identifier in a CONNECT. Source: MQTT 5.0 §3.1.2 (name, level, flags, keep alive, properties), §3.1.3.

    Raises:
        MalformedError: It is too short.
    """
    try:
        (length,) = struct.unpack_from("!H", frame.body)
        position = 2 + length + 4
        if protocol_level(frame) == MQTT_5:
            properties, position = _variable_byte_integer(frame.body, position)
            position += properties
        (length,) = struct.unpack_from("!H", frame.body, position)
    except (struct.error, IndexError):
        raise MalformedError("a CONNECT that ends too early") from None
    return frame.body[position + 2 : position + 2 + length].decode(errors="replace")


def starts_clean(frame: Frame) -> bool:
    """Whether a CONNECT asks the broker to forget the session."""
    # Protocol name (length and text), protocol level, flags.
    name = int.from_bytes(frame.body[:2], "big")
    return bool(frame.body[name + 3] & _CLEAN_START)


def protocol_level(frame: Frame) -> int:
    """The version that a CONNECT speaks: 5, or 4 for MQTT 3.1.1."""
    return frame.body[int.from_bytes(frame.body[:2], "big") + 2]


def _variable_byte_integer(body: bytes, position: int) -> tuple[int, int]:
    value = 0
    for place in range(4):
        byte = body[position + place]
        value |= (byte & 0x7F) << (7 * place)
        if not byte & 0x80:
            return value, position + place + 1
    raise MalformedError("a property length of more than four bytes")


class CommitSpotter:
    """Follows what a PostgreSQL client sends and spots each message whose success is a commit.

    That is a simple query COMMIT, and the end of a COPY outside a transaction (it commits by itself, so there is no
    COMMIT). asyncpg sends both as simple queries.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._started = False
        self._in_transaction = False
        self.commits = 0

    def feed(self, data: bytes) -> bool:
        """Whether these bytes complete a message that asks for a commit."""
        self._buffer += data
        before = self.commits
        while (message := self._next()) is not None:
            self._read(*message)
        return self.commits > before

    def _next(self) -> tuple[bytes, bytes] | None:
        header = 1 if self._started else 0
        if len(self._buffer) < header + 4:
            return None
        length = int.from_bytes(self._buffer[header : header + 4], "big")
        if len(self._buffer) < header + length:
            return None
        kind = bytes(self._buffer[:header])
        body = bytes(self._buffer[header + 4 : header + length])
        del self._buffer[: header + max(length, 4)]
        return kind, body

    def _read(self, kind: bytes, body: bytes) -> None:
        if not self._started:
            # SSLRequest and GSSENCRequest are untyped too and come before the real start.
            self._started = int.from_bytes(body[:4], "big") not in (80877103, 80877104)
        elif kind == b"Q":
            word = body.split(None, 1)[0].strip(b";\0").upper() if body.strip(b"\0 ;") else b""
            if word in (b"BEGIN", b"START"):
                self._in_transaction = True
            elif word in (b"COMMIT", b"END"):
                self._in_transaction = False
                self.commits += 1
            elif word in (b"ROLLBACK", b"ABORT"):
                self._in_transaction = False
        elif kind == b"c" and not self._in_transaction:
            self.commits += 1
