"""What the reader needs of an MQTT implementation: a state machine without I/O."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeAlias

import attrs

if TYPE_CHECKING:
    from collections import deque
    from collections.abc import Iterable, Sequence

    from traksense.model import Message

PACKET_MAX_BYTES: Final = 16 * 1024 * 1024
"""Maximum Packet Size that we announce. A broker silently discards what is larger [MQTT-3.1.2-25], so this is well
above any payload limit that can be set (8 MiB): a payload over that limit must arrive, to become a dead letter with
its exact bytes. Not higher, since one packet on its way takes three times its size beside the queue's budget
(measured)."""

OLD_REFUSAL: Final = b"\x20\x02\x00\x01"
"""CONNACK, "unacceptable protocol version" of MQTT 3.1.1 §3.2.2.3. Brokers without MQTT 5 answer it to that, too."""

UNSUPPORTED_VERSION: Final = 0x84
"""What MQTT 5 calls it. Source: MQTT 5.0 §3.2.2.2."""


@attrs.frozen
class Connected:
    """CONNACK: `reason` is 0 for success; `keepalive` is what the server wants instead of ours, if it said so.

    `receive_maximum`, `packet_max_bytes` and `qos_max` are the server's limits for what we publish, `session_expiry` is
    how many seconds it keeps our session instead of what we asked for; if it said so.
    """

    reason: int
    reason_text: str
    session_present: bool
    keepalive: int | None = None
    receive_maximum: int | None = None
    packet_max_bytes: int | None = None
    session_expiry: int | None = None
    qos_max: int | None = None


@attrs.frozen
class Subscribed:
    """SUBACK: one reason code for each topic filter: the granted QoS, or 0x80 and above for a refusal."""

    packet_id: int
    reasons: tuple[int, ...]


@attrs.frozen
class Unsubscribed:
    """UNSUBACK: one reason code for each topic filter; None with MQTT 3.1.1, which has no reasons there."""

    packet_id: int
    reasons: tuple[int, ...] | None


@attrs.frozen
class Published:
    """PUBACK for a message that we published; a reason of 0x80 and above means that the broker refused it."""

    packet_id: int
    reason: int


@attrs.frozen
class Disconnected:
    """DISCONNECT from the server (MQTT 5 only)."""

    reason: int
    reason_text: str


Event: TypeAlias = Connected | Subscribed | Unsubscribed | Published | Disconnected


class ProtocolError(Exception):
    """The peer broke the protocol; the connection is of no further use."""


class Codec(Protocol):
    """One connection's state. Methods that produce packets queue them for `take`.

    Attributes:
        version: Of MQTT, as `MQTT_VERSION` names it.
        messages: PUBLISHes in receive order; the reader empties it after each `feed`.
    """

    version: str
    messages: deque[Message]

    @property
    def outgoing_bytes(self) -> int:
        """How much is queued for `take`."""
        ...

    def connect(self) -> None:
        """Queue CONNECT."""
        ...

    def subscribe(self, filters: Sequence[str], qos: int, *, retained: bool = False) -> int:
        """Queue SUBSCRIBE; returns its packet identifier.

        With `retained`, retained messages are wanted although the session is subscribed already; otherwise not, where
        the protocol lets one say so (MQTT 5): subscribing again on each connection must not bring them again.
        """
        ...

    def unsubscribe(self, filters: Sequence[str]) -> int:
        """Queue UNSUBSCRIBE; returns its packet identifier."""
        ...

    def publish(self, topic: str, payload: bytes, *, qos: int, retain: bool = False) -> int:
        """Queue PUBLISH; returns its packet identifier (0 at QoS 0)."""
        ...

    def acknowledge(self, packet_ids: Iterable[int]) -> None:
        """Queue PUBACKs, in this order."""
        ...

    def ping(self) -> None:
        """Queue PINGREQ."""
        ...

    def disconnect(self) -> None:
        """Queue DISCONNECT; the session stays for its expiry interval."""
        ...

    def feed(self, data: bytes) -> list[Event]:
        """Take bytes from the peer; messages go to `messages`, the rest is returned.

        Raises:
            ProtocolError: The bytes are not MQTT.
        """
        ...

    def take(self) -> bytes:
        """All that is to be sent now; empty if nothing is."""
        ...
