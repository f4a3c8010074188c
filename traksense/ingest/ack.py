"""Which PUBACKs may go out: those of the longest settled prefix, in receive order, on the connection that brought them.

Sources: MQTT 5.0 §4.6 [MQTT-4.6.0-2] (PUBACKs in the order in which the PUBLISHes were received; EMQX's durable
sessions stall on any other order) and §4.4 (unacknowledged messages are sent again only on a new connection).
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from traksense.ingest.ports import SendPubacks
    from traksense.model import Message


class Acknowledger:
    """The window of one connection after another.

    Messages are tracked by their place in the order of arrival, never by packet identifier: identifiers repeat
    (Mosquitto assigns them when it queues a message, so a backlog of more than 65,535 has some twice).
    """

    def __init__(self) -> None:
        self._window: deque[Message] = deque()
        self._generation = 0
        self._send_pubacks: SendPubacks | None = None
        self.acknowledged = 0
        self.abandoned = 0

    def connected(self, generation: int, send_pubacks: SendPubacks) -> None:
        """Start the window of a new connection, once CONNACK is there. The old one's PUBACKs will never be sent.

        Its messages stay in the pipeline and are stored; the broker sends them again, and those copies count as
        duplicates.
        """
        self._abandon()
        self._generation = generation
        self._send_pubacks = send_pubacks

    def disconnected(self) -> None:
        """Forget the connection; what is settled from now on belongs to nobody."""
        self._abandon()
        self._send_pubacks = None

    def received(self, messages: Iterable[Message]) -> None:
        """Add messages to the window. A message at QoS 0 needs no PUBACK and takes no place."""
        generation = self._generation
        self._window.extend([message for message in messages if message.qos and message.generation == generation])

    def settle(self, messages: Iterable[Message]) -> None:
        """All that came of these messages is committed: acknowledge what has become the settled prefix."""
        for message in messages:
            message.settled = True
            # It may wait long for one that came before it. What waits then is a few numbers, not its bytes: the ledger
            # no longer counts them.
            message.payload = b""
        window = self._window
        ready: list[int] = []
        while window and window[0].settled:
            ready.append(window.popleft().packet_id)
        if ready and self._send_pubacks is not None:
            self.acknowledged += len(ready)
            self._send_pubacks(ready)

    @property
    def unacknowledged(self) -> int:
        """Messages of the current connection that wait for their PUBACK."""
        return len(self._window)

    @property
    def oldest(self) -> Message | None:
        """The message at the head of the window: the first that the broker sends again on the next connection."""
        return self._window[0] if self._window else None

    @property
    def oldest_received_at(self) -> datetime | None:
        """When the message at the head of the window was received: the one that holds back all behind it."""
        return self._window[0].received_at if self._window else None

    def _abandon(self) -> None:
        self.abandoned += len(self._window)
        self._window.clear()
