"""The broker's own count of what it has dropped, for brokers that tell."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from traksense.mqtt.codec import Subscribed

if TYPE_CHECKING:
    from traksense.model import Message
    from traksense.mqtt.codec import Codec, Event

logger = logging.getLogger(__name__)

DROPPED_TOPIC: Final = "$SYS/broker/publish/messages/dropped"
"""Where Mosquitto says how many messages it has dropped: of all clients, since its start. EMQX has no such topic;
watch its `emqx_delivery_dropped` instead."""

UNANSWERED_MAX: Final = 2
"""So many connections in a row may end before that subscription is answered; more would be its own doing."""

DIGITS_MAX: Final = 20
"""Those of 2^64. Python refuses to read more than 4,300."""


class BrokerDrops:
    """What the broker has dropped while we knew its count, over our connections to it.

    Attributes:
        total: How many messages.
        answered: Whether the broker has answered on the present connection, or was not asked.
    """

    def __init__(self) -> None:
        self.total = 0
        self.answered = True
        self._known: int | None = None
        self._packet_id = 0
        self._unanswered = 0

    def ask(self, codec: Codec) -> None:
        """Subscribe to the count, in a packet of its own: a refusal is no fault.

        rumqttd (iotcore) hangs up instead of answering: such a broker is not asked again.
        """
        self._packet_id = 0  # that of the last connection may be another packet's now
        self.answered = self._unanswered >= UNANSWERED_MAX
        if not self.answered:
            self._unanswered += 1
            self._packet_id = codec.subscribe([DROPPED_TOPIC], 0)

    def handle(self, event: Event) -> None:
        """Take an event: it may be the answer."""
        if isinstance(event, Subscribed) and event.packet_id == self._packet_id:
            self.answered = True
            self._unanswered = 0

    def note(self, message: Message) -> None:
        """Take a message with the count. What is no count is ignored: whoever may publish there is not always the
        broker.
        """
        digits = message.payload
        if not digits.isdigit() or len(digits) > DIGITS_MAX:
            return
        count = int(digits)
        known, self._known = self._known, count
        if known is None:
            return
        # A broker that was restarted counts from 0 again.
        dropped = count - known if count >= known else count
        if dropped:
            self.total += dropped
            logger.error("broker_dropped_messages", extra={"traksense_dropped": dropped, "traksense_total": count})
