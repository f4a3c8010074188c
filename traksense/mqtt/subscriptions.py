"""What our session is subscribed to: asked for on every connection, in as many packets as it takes, and given up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.mqtt.codec import ProtocolError, Subscribed, Unsubscribed

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from traksense.ingest.health import Health
    from traksense.mqtt.codec import Codec, Event

FILTERS_MAX: Final = 8
"""Topic filters in one packet; some brokers end the connection at more. Source: AWS IoT Core, "Maximum subscriptions
per subscribe request"."""

UNANSWERED: Final = "connected, but it has not answered SUBSCRIBE yet: it may deliver the session's backlog first"
UNANSWERED_SECONDS: Final = 1.0
"""After so many that is said of the broker; an answer that comes at once makes no line in the log."""


@attrs.define(eq=False)
class _Release:
    """UNSUBSCRIBEs that belong together."""

    pending: dict[int, Sequence[str]]
    confirmed: set[str] = attrs.field(factory=set)
    ended: trio.Event = attrs.field(factory=trio.Event)


class Subscriptions:
    """The topic filters of one session, over its connections.

    Attributes:
        topics: What we want; may be empty.
        kept: What the session may have besides, and shall have again if the broker has forgotten it.
    """

    def __init__(self, topics: Sequence[str], qos: int) -> None:
        self.topics = tuple(topics)
        self.kept: frozenset[str] = frozenset()
        self._qos = qos
        self._forgotten = False
        self._codec: Codec | None = None
        self._pending: dict[int, Sequence[str]] = {}
        self._granted: dict[str, int] = {}
        self._releases: list[_Release] = []

    @property
    def answered(self) -> bool:
        """Whether the broker has answered for all of them on this connection."""
        return self._codec is not None and not self._pending

    @property
    def granted(self) -> bool:
        """Whether everything that we want was granted on this connection."""
        return self.answered and all(self._qos <= self._granted.get(topic, 0x80) < 0x80 for topic in self.topics)

    @property
    def fault(self) -> str | None:
        """What is wrong with what was granted; None if nothing is."""
        refused = [topic for topic, code in self._granted.items() if code >= 0x80]
        if refused:
            return f"the broker refuses the subscription to {_few(refused)}: give this user the right to read it"
        lowered = [topic for topic, code in self._granted.items() if code < self._qos]
        if lowered:
            return f"the broker granted QoS 0 instead of {self._qos} for {_few(lowered)}: messages can be lost"
        return None

    def connected(self, codec: Codec, *, session_present: bool) -> None:
        """Queue the SUBSCRIBEs of a new connection. To a session that is new also those for what it had besides."""
        self._codec = codec
        self._granted.clear()
        self._pending.clear()
        self._forgotten = not session_present
        self._subscribe(self.topics if session_present else [*self.topics, *sorted(self.kept - {*self.topics})])

    def keep(self, topics: Collection[str]) -> bool:
        """See `kept`; whether SUBSCRIBE was queued for any, since the session of this connection lacks them."""
        new = frozenset(topics) - self.kept - {*self.topics}
        self.kept = frozenset(topics)
        if self._codec is None or not self._forgotten or not new:
            return False
        self._subscribe(sorted(new))
        return True

    def _subscribe(self, topics: Sequence[str]) -> None:
        if self._codec is not None:
            self._pending |= {self._codec.subscribe(part, self._qos): part for part in _parts(topics)}

    async def tell_unanswered(self, health: Health) -> None:
        """Say what a new connection waits for, in place of an older reason, until all are answered.

        There is no deadline: what the broker sends first may come slowly, and a new connection would only make it begin
        again.
        """
        while not self.answered:
            await trio.sleep(UNANSWERED_SECONDS)
            if self._codec is not None and self._pending and not health.holds("broker"):
                health.set("broker", UNANSWERED)

    def disconnected(self) -> None:
        """What was not answered never will be."""
        self._codec = None
        for release in self._releases:
            release.ended.set()
        self._releases.clear()

    def handle(self, event: Event) -> bool:
        """Take an event; whether it is the SUBACK after which all are answered.

        Raises:
            ProtocolError: It does not answer for each filter that was asked for.
        """
        if isinstance(event, Subscribed) and event.packet_id in self._pending:
            part = self._pending.pop(event.packet_id)
            require_one_each("SUBACK", part, event.reasons)
            self._granted.update(zip(part, event.reasons, strict=True))
            return not self._pending
        if isinstance(event, Unsubscribed):
            self._release(event)
        return False

    def release(self, topics: Sequence[str]) -> _Release | None:
        """Queue UNSUBSCRIBE; `ended` of what is returned says when that is answered. None without a connection."""
        if self._codec is None:
            return None
        try:
            release = _Release({self._codec.unsubscribe(part): part for part in _parts(topics)})
        except ProtocolError:
            # The peer has said goodbye, and who reads the connection has not come to it yet.
            return None
        self._releases.append(release)
        return release

    def _release(self, event: Unsubscribed) -> None:
        for release in self._releases:
            if event.packet_id in release.pending:
                part = release.pending.pop(event.packet_id)
                # MQTT 3.1.1 has no reasons in UNSUBACK; 0x11 of MQTT 5 says that there was no such subscription.
                reasons = event.reasons if event.reasons is not None else (0,) * len(part)
                require_one_each("UNSUBACK", part, reasons)
                release.confirmed.update(topic for topic, code in zip(part, reasons, strict=True) if code < 0x80)
                for topic in release.confirmed.difference(self.topics):
                    self._granted.pop(topic, None)
                self.kept -= release.confirmed
                if not release.pending:
                    release.ended.set()
                    self._releases.remove(release)
                return


def require_one_each(packet: str, topics: Sequence[str], reasons: Sequence[int]) -> None:
    """Source: MQTT 5.0 §3.9.3 and §3.11.3, a reason code for each topic filter; which of them is missing nobody knows.

    Raises:
        ProtocolError: There are more or fewer.
    """
    if len(topics) != len(reasons):
        raise ProtocolError(f"{packet} with {len(reasons)} reason codes for {len(topics)} topic filters")


def _parts(topics: Sequence[str]) -> Iterator[Sequence[str]]:
    for begin in range(0, len(topics), FILTERS_MAX):
        yield topics[begin : begin + FILTERS_MAX]


def _few(topics: Sequence[str]) -> str:
    """Enough of them for people."""
    return ", ".join(topics[:3]) + (f" and {len(topics) - 3} more" if len(topics) > 3 else "")
