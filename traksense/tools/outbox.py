"""What a publisher has taken over and the broker has not confirmed: a state machine without I/O.

    taken over ─▶ waiting ─▶ sent on this connection ─▶ confirmed, or refused
                     ▲                    │
                     └── connection lost ─┘

Invariant: a message is confirmed only by the PUBACK to its own packet identifier on the connection that sent it last.
What was sent belongs to one connection; when it is lost, all of it waits again, in order and ahead of what never went.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Any, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

WINDOW_MAX: Final = 65_534
"""One less than there are packet identifiers, so that a free one is always found. Source: MQTT 5.0 §2.2.1."""

NO_MATCHING_SUBSCRIBERS: Final = 0x10
FAILURE: Final = 0x80
NOT_AUTHORIZED: Final = 0x87
PACKET_TOO_LARGE: Final = 0x95
"""PUBACK reason codes. Source: MQTT 5.0 §3.4.2.1 and §2.4; the last one is our own use: the message was never sent."""

HUNG_UP: Final = 0x100
"""Our own, which no broker can send: it ended the connection over this message each time, see `Outbox`."""

_PACKET_OVERHEAD_BYTES: Final = 16
"""Of a PUBLISH, beside topic and payload: the fixed header, two lengths, the identifier, no properties."""

_REFUSALS: Final = {
    FAILURE: "unspecified error",
    0x83: "implementation specific error",
    NOT_AUTHORIZED: "not authorized",
    0x90: "topic name invalid",
    PACKET_TOO_LARGE: "packet too large",
    0x97: "quota exceeded",
    0x99: "payload format invalid",
}


def in_words(reason: int) -> str:
    """A reason code of PUBACK, with its name."""
    return f"0x{reason:02X} {_REFUSALS.get(reason, '')}".rstrip()


@attrs.define
class Counters:
    """What became of the messages.

    Attributes:
        published: Taken over.
        confirmed: QoS 1 messages whose PUBACK said success.
        refused: Messages that the broker refused, or would: nobody has them.
        unmatched: Those of the confirmed that had no subscriber, if the broker says so: nobody has them either.
        retransmitted: Published again because their connection was lost before their PUBACK.
        reconnections: Connections after the first.
    """

    published: int = 0
    confirmed: int = 0
    refused: int = 0
    unmatched: int = 0
    retransmitted: int = 0
    reconnections: int = 0


@attrs.define(eq=False)
class Outgoing:
    """One message; `tag` is the caller's name for it."""

    topic: str
    payload: bytes
    retain: bool
    tag: Any
    transmitted: bool = False
    hangups: int = 0

    @property
    def packet_bytes(self) -> int:
        """The most that its PUBLISH packet can take."""
        return len(self.payload) + len(self.topic.encode()) + _PACKET_OVERHEAD_BYTES


@attrs.define(eq=False)
class Link:
    """The connection, as far as the outbox is concerned.

    Attributes:
        send: Queues a QoS 1 PUBLISH and gives its packet identifier; one that is in use if it could not.
        limit: The broker's Receive Maximum, or None.
        packet_max_bytes: The broker's Maximum Packet Size, or None.
    """

    send: Callable[[Outgoing], int]
    limit: int | None = None
    packet_max_bytes: int | None = None

    def takes(self, message: Outgoing) -> bool:
        """Whether the broker accepts packets of this size; it would end the connection over a larger one."""
        return self.packet_max_bytes is None or message.packet_bytes <= self.packet_max_bytes


class Outbox:
    """See the module.

    Args:
        window: Unconfirmed messages at most.
        window_bytes: Their payloads at most, together; a single larger one may go alone.
        on_confirmed: Called with the tag of each message that is confirmed.
        on_refused: Called with the tag of each refused message, and the reason code.
        hangups_max: A message that was alone under way so many times when its connection was lost is refused. What a
            lost connection leaves is sent one by one for that. None: every message is sent until it is answered.
    """

    def __init__(
        self,
        *,
        window: int,
        window_bytes: int,
        on_confirmed: Callable[[Any], None],
        on_refused: Callable[[Any, int], None],
        hangups_max: int | None = None,
    ) -> None:
        if not 1 <= window <= WINDOW_MAX:
            raise ValueError(f"window must be 1-{WINDOW_MAX}, not {window}")
        self.counters = Counters()
        self._window = window
        self._window_bytes = window_bytes
        self._on_confirmed = on_confirmed
        self._on_refused = on_refused
        self._hangups_max = hangups_max
        self._suspects = 0
        self._link: Link | None = None
        self._waiting: deque[Outgoing] = deque()
        self._sent: dict[int, Outgoing] = {}
        self._bytes = 0

    @property
    def unconfirmed(self) -> int:
        """Messages taken over and neither confirmed nor refused."""
        return len(self._waiting) + len(self._sent)

    @property
    def in_flight_max(self) -> int:
        """How many may be sent and not confirmed: the window, or the broker's Receive Maximum if that is less."""
        limit = self._link.limit if self._link else None
        return min(self._window, limit or self._window)

    def has_room(self, size: int) -> bool:
        """Whether a payload of so many bytes may be taken over now."""
        return self.unconfirmed < self._window and (not self._bytes or self._bytes + size <= self._window_bytes)

    def add(self, message: Outgoing) -> None:
        """Take over a message."""
        self.counters.published += 1
        self._bytes += len(message.payload)
        self._waiting.append(message)

    def transmit(self) -> None:
        """Send what waits, as far as there is a connection and the window allows."""
        link = self._link
        if link is None:
            return
        limit = self.in_flight_max
        while self._waiting and len(self._sent) < (1 if self._suspects else limit):
            message = self._waiting.popleft()
            if not link.takes(message):
                self._bytes -= len(message.payload)
                self.refuse(message, PACKET_TOO_LARGE)
                continue
            # paho counts identifiers up without looking; with one that is in use it sends nothing.
            while (packet_id := link.send(message)) in self._sent:
                pass
            self._sent[packet_id] = message
            self.counters.retransmitted += message.transmitted
            message.transmitted = True

    def settle(self, packet_id: int, reason: int) -> None:
        """A PUBACK came on the present connection."""
        message = self._sent.pop(packet_id, None)
        if message is None:
            return
        self._bytes -= len(message.payload)
        self._suspects = max(0, self._suspects - 1)
        if reason >= FAILURE:
            self.refuse(message, reason)
            return
        self.counters.confirmed += 1
        self.counters.unmatched += reason == NO_MATCHING_SUBSCRIBERS
        self._on_confirmed(message.tag)

    def refuse(self, message: Outgoing, reason: int) -> None:
        """The broker does not take a message."""
        self.counters.refused += 1
        self._on_refused(message.tag, reason)

    def connected(self, link: Link) -> None:
        """There is a connection, and nothing was sent on it yet."""
        self._link = link

    def disconnected(self) -> None:
        """It is gone: no PUBACK of it counts any more, and what it left goes first on the next one."""
        self._link = None
        left = list(self._sent.values())
        self._sent.clear()
        if left and self._hangups_max is not None:
            left = self._suspect(left, self._hangups_max)
        self._waiting.extendleft(reversed(left))

    def _suspect(self, left: list[Outgoing], hangups_max: int) -> list[Outgoing]:
        """Which of them are sent again: one by one, since nobody knows over which of them the broker hung up."""
        self._suspects = max(self._suspects, len(left))
        if len(left) > 1:
            return left
        (alone,) = left
        alone.hangups += 1
        if alone.hangups < hangups_max:
            return left
        self._suspects -= 1
        self._bytes -= len(alone.payload)
        self.refuse(alone, HUNG_UP)
        return []
