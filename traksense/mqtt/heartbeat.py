"""A message of our own to ourselves, if the operator allows it: the only way to tell a broker that has nothing for us
from one that grants the subscription and then delivers nothing (amqtt 0.12 does, after some reconnects).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.mqtt.codec import Subscribed

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.mqtt.codec import Event
    from traksense.mqtt.connection import Connection

MISSED_MAX: Final = 3
"""So many heartbeats in a row may get lost: they go at QoS 0, so that they are never queued for us while we are away,
and need no acknowledgement among those of the messages."""


class Heartbeat:
    """The heartbeat of one connection.

    Any message that comes is as good as a heartbeat: it shows that the broker delivers. While reading is paused,
    nothing is expected.

    Attributes:
        fault: What is wrong, or None.
    """

    def __init__(self, topic: str, every: float, connection: Connection, tell: Callable[[], None]) -> None:
        """Send nothing yet.

        Args:
            topic: Where to; empty for nowhere.
            every: Seconds between two heartbeats.
            connection: Whose delivery is watched.
            tell: Called whenever `fault` has changed.
        """
        self.fault: str | None = None
        self._topic = topic
        self._every = every
        self._connection = connection
        self._tell = tell
        self._packet_id = 0
        self._granted = trio.Event()
        self._heard_at = 0.0

    def subscribe(self) -> None:
        """Queue SUBSCRIBE, in a packet of its own: the broker may refuse this and grant the rest."""
        if self._topic:
            self._packet_id = self._connection.codec.subscribe([self._topic], 0)

    def handle(self, event: Event) -> None:
        """Take an event: it may be the answer."""
        if isinstance(event, Subscribed) and event.packet_id == self._packet_id:
            if any(code >= 0x80 for code in event.reasons):
                self._set(f"the broker refuses the subscription to the heartbeat's topic {self._topic}")
            else:
                self._granted.set()

    def heard(self) -> None:
        """A message came, or reading goes on after a pause."""
        self._heard_at = trio.current_time()
        if self.fault is not None and self._granted.is_set():
            self._set(None)

    async def run(self) -> None:
        """Send heartbeats, and see that something comes, until cancelled."""
        await self._granted.wait()
        self._heard_at = trio.current_time()
        while True:
            self._connection.codec.publish(self._topic, b"traksense", qos=0)
            self._connection.wake()
            await trio.sleep(self._every)
            silent = trio.current_time() - self._heard_at
            if silent >= self._every * MISSED_MAX and not self._connection.paused:
                self._set(
                    f"the broker has granted the subscription and delivers nothing, not even the heartbeat: no message "
                    f"for {self._every * MISSED_MAX:.0f} s (may this user publish to {self._topic} and read it?)"
                )

    def _set(self, fault: str | None) -> None:
        if fault != self.fault:
            self.fault = fault
            self._tell()
