"""The witness on the wire between service and broker: what was delivered, what was acknowledged, in which order.

It sits in the proxy, so it knows what the service was given even if the service forgets, and what the service promised
even if the broker forgets.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.prove import frames

if TYPE_CHECKING:
    from collections.abc import Callable

REMARKS_MAX: Final = 20
"""Faults that are described; all are counted."""


@attrs.define
class Remarks:
    """A count, with the first of its cases in words."""

    count: int = 0
    texts: list[str] = attrs.field(factory=list)

    def add(self, text: str) -> None:
        """One more."""
        self.count += 1
        if len(self.texts) < REMARKS_MAX:
            self.texts.append(text)

    def extend(self, others: Remarks) -> None:
        """Those as well."""
        self.count += others.count
        self.texts = [*self.texts, *others.texts][:REMARKS_MAX]


@attrs.define(eq=False)
class Witness:
    """What all connections of a run have shown.

    Attributes:
        number_of: Which of our messages has this payload; None if none.
        on_acknowledged: Told the number of each message whose PUBACK passes.
        delivered: How often each message was sent to the service.
        acknowledged: Messages whose PUBACK the service has sent.
        redelivered: Deliveries of a message that had been delivered before, or with the DUP flag.
        disorder: PUBACKs out of the order of their PUBLISHes, or for nothing.
        clean_starts: Connections on which the service asked the broker to forget its session.
        connections: CONNACKs that said success.
        known: Client identifiers that were connected before.
        sessions_lost: CONNACKs, after the first for their client identifier, without a session.
    """

    number_of: Callable[[bytes], int | None]
    on_acknowledged: Callable[[int], None] = lambda _number: None
    delivered: Counter[int] = attrs.field(factory=Counter)
    acknowledged: set[int] = attrs.field(factory=set)
    redelivered: int = 0
    disorder: Remarks = attrs.field(factory=Remarks)
    clean_starts: int = 0
    connections: int = 0
    sessions_lost: int = 0
    known: set[str] = attrs.field(factory=set)

    def observe(self) -> Connection:
        """An observer for a new connection."""
        return Connection(self)


class Connection:
    """One connection's window: the PUBLISHes that wait for their PUBACK, in receive order. See `proxy.Observer`."""

    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self._to_broker = frames.MqttFrames()
        self._to_service = frames.MqttFrames()
        self._level = frames.MQTT_5
        self._client_id = ""
        self._window: deque[tuple[int, int | None]] = deque()

    def from_client(self, data: bytes) -> bool:
        """The service has sent this. Nothing in it is an outcome to cut at."""
        try:
            for frame in self._to_broker.feed(data):
                if frame.kind == frames.PUBACK:
                    self._acknowledge(*frames.read_puback(frame))
                elif frame.kind == frames.CONNECT:
                    self._level = frames.protocol_level(frame)
                    self._client_id = frames.client_id(frame)
                    self._witness.clean_starts += frames.starts_clean(frame)
        except frames.MalformedError as error:
            self._witness.disorder.add(f"the service sent {error}")
        return False

    def from_server(self, data: bytes) -> None:
        """The broker has sent this."""
        for frame in self._to_service.feed(data):
            if frame.kind == frames.PUBLISH:
                self._deliver(frames.read_publish(frame, level=self._level))
            elif frame.kind == frames.CONNACK:
                witness = self._witness
                witness.sessions_lost += self._client_id in witness.known and not frames.session_present(frame)
                witness.known.add(self._client_id)
                witness.connections += 1

    def _deliver(self, publish: frames.Publish) -> None:
        if not publish.qos:
            return
        witness = self._witness
        number = witness.number_of(publish.payload)
        self._window.append((publish.packet_id, number))
        if number is None:
            return
        witness.redelivered += publish.dup or witness.delivered[number] > 0
        witness.delivered[number] += 1

    def _acknowledge(self, packet_id: int, reason: int) -> None:
        witness = self._witness
        place = next((n for n, (waiting, _) in enumerate(self._window) if waiting == packet_id), None)
        if place is None:
            witness.disorder.add(f"PUBACK {packet_id} for nothing that was sent on this connection")
            return
        if place:
            witness.disorder.add(f"PUBACK {packet_id} overtook {place} others, the first being {self._window[0][0]}")
        _, number = self._window[place]
        del self._window[place]
        if number is not None and reason < 0x80:
            witness.acknowledged.add(number)
            witness.on_acknowledged(number)
