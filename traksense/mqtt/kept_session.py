"""Finds out a broker that says that it has no session for us, and has it all the same: ActiveMQ Classic 5.17 says so on
every connection (seen on the wire), and delivers what it has queued.

Two things prove it. Other signs do not: a message before SUBACK may be a new one [MQTT-3.8.4-3], and so may one with
the DUP flag where a broker passes on the publisher's.

    early   a message in front of our SUBSCRIBE: to a session that is new nothing is subscribed. A retained one, or one
            at QoS 0, proves nothing: EMQX's auto-subscription sends the first, and some brokers welcome with the other
    again   a message that we had received and not acknowledged, under its packet identifier and with the DUP flag: only
            the session knows both
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from traksense.model import Message


class KeptSession:
    """Looks for the proof on connections on which there should be no session.

    Attributes:
        open: Whether it is still looked for. Only the first messages that come are of interest, since a broker sends
            first what was not acknowledged (MQTT 5.0 §4.4).
    """

    def __init__(self, proved: Callable[[], None]) -> None:
        """Look for nothing yet; `proved` is called at most once a connection."""
        self.open = False
        self._proved = proved
        self._unacknowledged: tuple[int, str, int] | None = None

    def connected(self, early: Collection[Message], *, session_present: bool) -> None:
        """CONNACK came, with these messages behind it; nothing has been sent since CONNECT."""
        self.open = not session_present
        if self.open and any(message.qos and not message.retain for message in early):
            self._end()

    def look(self, messages: Collection[Message]) -> None:
        """Take the messages of one read."""
        queued = [message for message in messages if message.qos]
        if not queued:
            return
        self.open = False
        if self._unacknowledged in [_identity(message) for message in queued if message.redelivered]:
            self._end()

    def disconnected(self, unacknowledged: Message | None) -> None:
        """The connection has ended; the oldest message that had no PUBACK, if there was one."""
        self.open = False
        self._unacknowledged = _identity(unacknowledged) if unacknowledged is not None else None

    def _end(self) -> None:
        self.open = False
        self._proved()


def _identity(message: Message) -> tuple[int, str, int]:
    return message.packet_id, message.topic, hash(message.payload)
