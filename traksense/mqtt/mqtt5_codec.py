"""The `mqtt5` package (Rust, MQTT 5 only) as a codec.

PUBLISH is read by `mqtt.packets`, which is faster still and forgives what only concerns the properties; the package
reads and writes everything else. Traps of mqtt5 0.8.0:

* A string that is not UTF-8 makes it panic: `pyo3_runtime.PanicException`, which is not an Exception.
* `read` says IndexError both for a packet that is not whole and for one that promises more than it holds; whole packets
  are cut out beforehand, so here it means the latter.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

import mqtt5
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.reasoncodes import ReasonCode

from traksense.mqtt.codec import (
    OLD_REFUSAL,
    PACKET_MAX_BYTES,
    UNSUPPORTED_VERSION,
    Connected,
    Disconnected,
    Event,
    ProtocolError,
    Published,
    Subscribed,
    Unsubscribed,
)
from traksense.mqtt.packets import PacketReader

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from traksense.config import Secret
    from traksense.model import Message

RECEIVE_MAXIMUM_DEFAULT: Final = 65535
"""What a peer allows that does not say. Source: MQTT 5.0 §3.2.2.3.3."""

PACKET_ID_MAX: Final = 65535

SEND_IF_NEW: Final = mqtt5.RetainHandling.SEND_IF_SUBSCRIPTION_NOT_EXISTS

_PUBCOMP: Final = b"\x70\x02"


class Mqtt5Codec:
    """See `mqtt.codec.Codec`.

    A message at QoS 2, which comes only from a session that somebody else subscribed, is treated like the others:
    receipt is confirmed (PUBREC) when it is acknowledged, so after it was stored.

    Args:
        client_id: Names the session at the broker.
        generation: Goes into every message.
        keepalive: In seconds, for CONNECT; sending PINGREQ is the reader's task.
        receive_maximum: How many unacknowledged messages the broker may have under way.
        session_expiry: In seconds.
        clean: Start with an empty session.
        username, password: Credentials, or None.
    """

    def __init__(
        self,
        *,
        client_id: str,
        generation: int = 0,
        keepalive: int = 30,
        receive_maximum: int = 65535,
        session_expiry: int = 0,
        clean: bool = False,
        username: str | None = None,
        password: Secret | None = None,
    ) -> None:
        self.version = "5"
        self.messages: deque[Message] = deque()
        self._connect = mqtt5.ConnectPacket(
            client_id,
            username=username,
            password=password.reveal().encode() if username is not None and password is not None else None,
            clean_start=clean,
            keep_alive=keepalive,
            session_expiry_interval=session_expiry,
            receive_max=receive_maximum,
            max_packet_size=PACKET_MAX_BYTES,
        )
        self._reader = PacketReader(self.messages, generation=generation)
        self._outgoing = bytearray()
        self._last_packet_id = 0
        self._unconfirmed: set[int] = set()

    @property
    def outgoing_bytes(self) -> int:
        """How much is queued for `take`."""
        return len(self._outgoing)

    def connect(self) -> None:
        """Queue CONNECT."""
        self._outgoing += self._connect.write()

    def subscribe(self, filters: Sequence[str], qos: int, *, retained: bool = False) -> int:
        """Queue SUBSCRIBE; returns its packet identifier. For `retained` see `mqtt.codec.Codec`."""
        handling = mqtt5.RetainHandling.SEND_ALWAYS if retained else SEND_IF_NEW
        packet_id = self._next_packet_id()
        wanted = [
            mqtt5.TopicFilter(
                topic,
                max_qos=mqtt5.QoS(qos),
                retain_as_published=False,
                retain_handling=handling,
            )
            for topic in filters
        ]
        self._outgoing += mqtt5.SubscribePacket(packet_id, wanted).write()
        return packet_id

    def unsubscribe(self, filters: Sequence[str]) -> int:
        """Queue UNSUBSCRIBE; returns its packet identifier."""
        packet_id = self._next_packet_id()
        self._outgoing += mqtt5.UnsubscribePacket(packet_id, list(filters)).write()
        return packet_id

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Queue PUBLISH; returns its packet identifier (0 at QoS 0)."""
        packet_id = self._next_packet_id() if qos else 0
        packet = mqtt5.PublishPacket(
            topic, payload, qos=mqtt5.QoS(qos), retain=retain, packet_id=packet_id if qos else None
        )
        self._outgoing += packet.write()
        if qos:
            self._unconfirmed.add(packet_id)
        return packet_id

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """Queue PUBACKs, in this order, as one piece. Reason code 0 and no properties may be left out (MQTT 5.0
        §3.4.2.1).
        """
        self._outgoing += self._reader.acknowledgements(packet_ids)

    def ping(self) -> None:
        """Queue PINGREQ."""
        self._outgoing += mqtt5.PingReqPacket().write()

    def disconnect(self) -> None:
        """Queue DISCONNECT; without properties, so that the session keeps its expiry interval (MQTT 5.0
        §3.14.2.2.2).
        """
        self._outgoing += mqtt5.DisconnectPacket().write()

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the peer; messages go to `messages`, the rest is returned."""
        events: list[Event] = []
        for raw in self._reader.feed(data):
            event = self._event(raw)
            if event is not None:
                events.append(event)
                if isinstance(event, Disconnected) or (isinstance(event, Connected) and event.reason):
                    break  # nothing counts after a farewell
        return events

    def take(self) -> bytes:
        """All that is to be sent now; empty if nothing is."""
        outgoing = bytes(self._outgoing)
        self._outgoing.clear()
        return outgoing

    def _event(self, raw: bytes) -> Event | None:
        """What a packet says, if it is an event."""
        if raw == OLD_REFUSAL:
            return Connected(
                UNSUPPORTED_VERSION, _text(PacketTypes.CONNACK, UNSUPPORTED_VERSION), session_present=False
            )
        packet = _read(raw)
        match packet:
            case mqtt5.ConnAckPacket():
                return _connected(packet)
            case mqtt5.SubAckPacket():
                return Subscribed(packet.packet_id, tuple(map(int, packet.reason_codes)))
            case mqtt5.UnsubAckPacket():
                return Unsubscribed(packet.packet_id, tuple(map(int, packet.reason_codes)))
            case mqtt5.PubAckPacket():
                if packet.packet_id not in self._unconfirmed:
                    return None
                self._unconfirmed.remove(packet.packet_id)
                return Published(packet.packet_id, int(packet.reason_code))
            case mqtt5.DisconnectPacket():
                return Disconnected(int(packet.reason_code), _text(PacketTypes.DISCONNECT, packet.reason_code))
            case mqtt5.PubRelPacket():
                self._outgoing += _PUBCOMP + packet.packet_id.to_bytes(2, "big")
                return None
            case mqtt5.PingRespPacket():
                return None
        raise ProtocolError(f"an unexpected {type(packet).__name__.removesuffix('Packet')}")

    def _next_packet_id(self) -> int:
        """The next identifier that is not in use. A publisher whose window is full of all of them is a bug."""
        for _ in range(PACKET_ID_MAX):
            self._last_packet_id = self._last_packet_id % PACKET_ID_MAX + 1
            if self._last_packet_id not in self._unconfirmed:
                return self._last_packet_id
        raise ValueError("all packet identifiers are in use")


def _read(raw: bytes) -> mqtt5.Packet:
    """Parse one whole packet."""
    try:
        packet, size = mqtt5.read(memoryview(raw))
    except (ValueError, IndexError) as error:
        raise ProtocolError(f"mqtt5: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ProtocolError("mqtt5: a text is not UTF-8") from error
    if size != len(raw):
        raise ProtocolError(f"a packet of {len(raw)} bytes says that it has {size}")
    return packet


def _connected(packet: mqtt5.ConnAckPacket) -> Connected:
    limit = packet.receive_max
    return Connected(
        int(packet.reason_code),
        _text(PacketTypes.CONNACK, packet.reason_code),
        packet.session_present,
        packet.server_keep_alive,
        limit if limit != RECEIVE_MAXIMUM_DEFAULT else None,
        packet.max_packet_size,
        packet.session_expiry_interval,
        int(packet.max_qos) if packet.max_qos != mqtt5.QoS.EXACTLY_ONCE else None,
    )


def _text(packet_type: int, reason: int) -> str:
    """The reason in the words of the other codec."""
    return str(ReasonCode(packet_type, identifier=int(reason)))
