"""paho-mqtt as a codec: it believes that it has a socket, which is a pair of buffers.

Everything that paho would do to a socket by itself (resolve, connect, TLS, select, ping) is Trio's here, so nothing
blocks and no thread exists. Packets are cut out of the byte stream here; paho gets each of them whole, but for PUBLISH
at QoS 0 and 1, which is read here: paho takes three `recv` calls, a `Properties` object and a topic match for it,
fifteen times the rest of the work (ops/decisions/0004). PUBACKs are written here too, as one piece for many: `ack()`
does not know connections, and paho would make a packet object of each.

Private names of paho 2.2 that this relies on: `_create_socket` (called by `reconnect`). setup.cfg pins paho to 2.2.*,
and tests/contract/test_codec.py holds the behaviour. Traps, with their place in paho 2.2.0 `client.py`:

* `clean_start` must be passed as False, or the first CONNECT of each process wipes the session (l.3491).
* `reconnect_on_failure=False`, or a refused protocol version makes paho reconnect inside `loop_read` (l.3865).
* `loop_read` reads one packet for a QoS 1 subscriber, whatever its argument says (l.2096).
* An exception in a callback makes paho replay the packet for ever (l.3147): the callbacks here only append.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode
from paho.mqtt.subscribeoptions import SubscribeOptions

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

_PINGREQ: Final = b"\xc0\x00"
_PUBREL: Final = 0x62
_PUBREL_BYTES: Final = 4
_PUBCOMP: Final = b"\x70\x02"
_ANSWERS: Final = frozenset(
    {
        PacketTypes.CONNACK,
        PacketTypes.PUBACK,
        PacketTypes.SUBACK,
        PacketTypes.UNSUBACK,
        PacketTypes.PINGRESP,
        PacketTypes.DISCONNECT,
    }
)


class PahoCodec:
    """See `mqtt.codec.Codec`.

    Args:
        client_id: Names the session at the broker.
        version: "5" or "3.1.1".
        generation: Goes into every message.
        keepalive: In seconds, for CONNECT; sending PINGREQ is the reader's task.
        receive_maximum: How many unacknowledged messages the broker may have under way (MQTT 5).
        session_expiry: In seconds (MQTT 5; with 3.1.1 the broker decides).
        clean: Start with an empty session, and leave none.
        username, password: Credentials, or None.
    """

    def __init__(
        self,
        *,
        client_id: str,
        version: str = "5",
        generation: int = 0,
        keepalive: int = 30,
        receive_maximum: int = 65535,
        session_expiry: int = 0,
        clean: bool = False,
        username: str | None = None,
        password: Secret | None = None,
    ) -> None:
        self.version = version
        self.messages: deque[Message] = deque()
        self._keepalive = keepalive
        self._receive_maximum = receive_maximum
        self._session_expiry = session_expiry
        self._clean = clean
        self._v5 = version == "5"
        self._reader = PacketReader(self.messages, generation=generation, properties=self._v5)
        self._wire = _Wire()
        self._events: list[Event] = []
        client = self._client = _BufferedClient(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            clean_session=None if self._v5 else clean,
            protocol=paho.MQTTv5 if self._v5 else paho.MQTTv311,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.wire = self._wire
        # Our own publications wait in our own window, not in paho's.
        client.max_inflight_messages_set(0)
        if username is not None:
            client.username_pw_set(username, password.reveal() if password is not None else None)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_unsubscribe
        client.on_publish = self._on_publish

    @property
    def outgoing_bytes(self) -> int:
        """How much is queued for `take`."""
        return len(self._wire.outgoing)

    def connect(self) -> None:
        """Queue CONNECT."""
        arguments: dict[str, Any] = {"keepalive": self._keepalive}
        if self._v5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho annotates half of it
            properties.ReceiveMaximum = self._receive_maximum
            properties.SessionExpiryInterval = self._session_expiry
            properties.MaximumPacketSize = PACKET_MAX_BYTES
            arguments |= {"clean_start": self._clean, "properties": properties}
        # paho checks the address that it will not use.
        self._client.connect("broker", 1883, **arguments)

    def subscribe(self, filters: Sequence[str], qos: int, *, retained: bool = False) -> int:
        """Queue SUBSCRIBE; returns its packet identifier. For `retained` see `mqtt.codec.Codec` (Retain Handling 0 or
        1).
        """
        if self._v5:
            _, packet_id = self._client.subscribe(
                [(topic, SubscribeOptions(qos=qos, retainHandling=int(not retained))) for topic in filters]
            )
        else:
            _, packet_id = self._client.subscribe([(topic, qos) for topic in filters])
        if packet_id is None:
            raise ProtocolError("SUBSCRIBE on a closed connection")
        return packet_id

    def unsubscribe(self, filters: Sequence[str]) -> int:
        """Queue UNSUBSCRIBE; returns its packet identifier."""
        _, packet_id = self._client.unsubscribe(list(filters))
        if packet_id is None:
            raise ProtocolError("UNSUBSCRIBE on a closed connection")
        return packet_id

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Queue PUBLISH; returns its packet identifier (0 at QoS 0)."""
        info = self._client.publish(topic, payload, qos=qos, retain=retain)
        return info.mid if qos else 0

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """Queue PUBACKs, in this order, as one piece. Reason code 0 and no properties may be left out (MQTT 5.0
        §3.4.2.1).
        """
        self._wire.outgoing += self._reader.acknowledgements(packet_ids)

    def ping(self) -> None:
        """Queue PINGREQ."""
        self._wire.outgoing += _PINGREQ

    def disconnect(self) -> None:
        """Queue DISCONNECT; without properties, so that the session keeps its expiry interval (MQTT 5.0
        §3.14.2.2.2).
        """
        self._client.disconnect()

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the peer; messages go to `messages`, the rest is returned.

        Raises:
            ProtocolError: The bytes are not MQTT.
        """
        for packet in self._reader.feed(data):
            if packet[0] == _PUBREL and len(packet) >= _PUBREL_BYTES:
                # With `manual_ack` paho does not answer it (l.4179), and its place in the window would be lost.
                self._wire.outgoing += _PUBCOMP + packet[2:4]
            elif packet[0] >> 4 not in _ANSWERS:
                # paho would answer some of them, and a broker that floods us with those would fill our memory.
                raise ProtocolError(f"an unexpected packet of type {packet[0] >> 4}")
            elif packet == OLD_REFUSAL:
                # To the version that it asks for, paho takes it for a breach of the protocol (l.3865).
                reason = ReasonCode(PacketTypes.CONNACK, identifier=UNSUPPORTED_VERSION)
                self._events.append(Connected(reason.value, str(reason), session_present=False))
                break
            elif self._hand_to_paho(packet):
                break  # the peer said goodbye: what follows means nothing
        events, self._events = self._events, []
        return events

    def _hand_to_paho(self, packet: bytes) -> bool:
        """Let paho handle one whole packet; says whether the connection is over."""
        self._wire.feed(packet)
        while self._wire.readable:
            code = self._client.loop_read()
            if code != MQTTErrorCode.MQTT_ERR_SUCCESS:
                # paho calls every refusal of MQTT 5 a protocol error; the event says what it is.
                if self._events and _is_farewell(self._events[-1]):
                    return True
                raise ProtocolError(f"paho: {paho.error_string(code)}")
        return bool(self._events) and _is_farewell(self._events[-1])

    def take(self) -> bytes:
        """All that is to be sent now; empty if nothing is."""
        if self._client.want_write():
            self._client.loop_write()  # packets queued by paho inside a callback
        outgoing = bytes(self._wire.outgoing)
        self._wire.outgoing.clear()
        return outgoing

    # --- paho's callbacks: they must not raise ----------------------------------------------------------------------

    def _on_connect(
        self, _client: Any, _userdata: Any, flags: paho.ConnectFlags, reason: ReasonCode, properties: Properties | None
    ) -> None:
        names = ("ServerKeepAlive", "ReceiveMaximum", "MaximumPacketSize", "SessionExpiryInterval", "MaximumQoS")
        limits = (getattr(properties, name, None) for name in names)
        self._events.append(Connected(reason.value, str(reason), bool(flags.session_present), *limits))

    def _on_disconnect(
        self, _client: Any, _userdata: Any, flags: paho.DisconnectFlags, reason: ReasonCode, _properties: Any
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._events.append(Disconnected(reason.value, str(reason)))

    def _on_subscribe(
        self, _client: Any, _userdata: Any, mid: int, reasons: Sequence[ReasonCode], _properties: Any
    ) -> None:
        self._events.append(Subscribed(mid, tuple(reason.value for reason in reasons)))

    def _on_unsubscribe(
        self, _client: Any, _userdata: Any, mid: int, reasons: Sequence[ReasonCode], _properties: Any
    ) -> None:
        self._events.append(Unsubscribed(mid, tuple(reason.value for reason in reasons) if self._v5 else None))

    def _on_publish(self, _client: Any, _userdata: Any, mid: int, reason: ReasonCode, _properties: Any) -> None:
        self._events.append(Published(mid, reason.value))


def _is_farewell(event: Event) -> bool:
    """Whether the connection is over after this event."""
    return isinstance(event, Disconnected) or (isinstance(event, Connected) and event.reason != 0)


class _BufferedClient(paho.Client):
    wire: _Wire

    def _create_socket(self) -> Any:
        return self.wire


class _Wire:
    """What paho takes for a connected non-blocking socket."""

    def __init__(self) -> None:
        self.outgoing = bytearray()
        self._incoming = b""
        self._position = 0

    @property
    def readable(self) -> bool:
        return self._position < len(self._incoming)

    def feed(self, data: bytes) -> None:
        # paho consumes whatever is there, so there is nothing left to append to.
        self._incoming = self._incoming[self._position :] + data if self.readable else data
        self._position = 0

    def recv(self, count: int) -> bytes:
        begin = self._position
        data = self._incoming[begin : begin + count]
        if not data:
            raise BlockingIOError
        self._position = begin + len(data)
        return data

    def send(self, data: bytes) -> int:
        self.outgoing += data
        return len(data)

    def setblocking(self, flag: bool) -> None:  # noqa: FBT001  (socket's signature)
        pass

    def close(self) -> None:
        pass

    def fileno(self) -> int:
        return -1
