"""What the broker says of itself under `$SYS`, for brokers that do: how long it has been running, what it has dropped.

The topics and the form are Mosquitto's (mosquitto(8), "Broker status"). EMQX, RMQTT and NanoMQ have others, with the
name of the node in them, and EMQX shows them to nobody by default; watch its `emqx_delivery_dropped` instead. Artemis
and HiveMQ without an extension have none. Of those, what is restarted with its sessions has kept their queues on disk,
or says that it has no session.
"""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from traksense.mqtt.codec import ProtocolError, Subscribed

if TYPE_CHECKING:
    from traksense.ingest.ports import BrokerWatch
    from traksense.model import Message
    from traksense.mqtt.codec import Codec, Event

DROPPED_TOPIC: Final = "$SYS/broker/publish/messages/dropped"
"""How many messages the broker has dropped: of all clients, since its start. Mosquitto publishes it when it changes."""

UPTIME_TOPIC: Final = "$SYS/broker/uptime"
"""For how long it has been running. Mosquitto publishes it every `sys_interval`, 10 seconds by default."""

SYS_TOPICS: Final = (DROPPED_TOPIC, UPTIME_TOPIC)

UNANSWERED_MAX: Final = 2
"""So many connections in a row may end before that subscription is answered; more would be its own doing."""

DIGITS_MAX: Final = 20
"""Those of 2^64. Python refuses to read more than 4,300."""

_UPTIME: Final = re.compile(rb"([0-9]{1,10}) seconds")
"""Others say it in another form, and perhaps in another unit."""


class SysTopics:
    """Asks for them on each connection.

    Attributes:
        answered: Whether the broker has answered on the present connection, or was not asked.
    """

    def __init__(self, watch: BrokerWatch) -> None:
        self.answered = True
        self._watch = watch
        self._codec: Codec | None = None
        self._packet_id = 0
        self._unanswered = 0
        self._wants_uptime = False

    def ask(self, codec: Codec) -> None:
        """Subscribe, in a packet of its own: a refusal is no fault.

        rumqttd (iotcore) hangs up instead of answering: such a broker is not asked again.
        """
        self._packet_id = 0  # that of the last connection may be another packet's now
        self._codec = codec
        self._wants_uptime = False
        self.answered = self._unanswered >= UNANSWERED_MAX
        if not self.answered:
            self._unanswered += 1
            # The count is retained, and published only when it changes: the one of now is needed on each connection.
            self._packet_id = codec.subscribe(SYS_TOPICS, 0, retained=True)

    def handle(self, event: Event) -> None:
        """Take an event: it may be the answer."""
        if isinstance(event, Subscribed) and event.packet_id == self._packet_id and not self.answered:
            self.answered = self._wants_uptime = True
            self._unanswered = 0

    def note(self, message: Message) -> None:
        """Take a message on one of the topics. What is no number is ignored: whoever may publish there is not always
        the broker.
        """
        if message.topic == UPTIME_TOPIC:
            self._note_uptime(message)
        elif message.payload.isdigit() and len(message.payload) <= DIGITS_MAX:
            self._watch.dropped_so_far(int(message.payload))

    def _note_uptime(self, message: Message) -> None:
        # What was retained is that of some time before, and so is what was queued, before SUBACK.
        found = _UPTIME.fullmatch(message.payload)
        if found is None or message.retain or not self._wants_uptime or self._codec is None:
            return
        self._wants_uptime = False
        self._watch.uptime(int(found[1]))
        # A broker that queues QoS 0 as well would queue one every few seconds while we are away, in place of messages.
        with suppress(ProtocolError):  # the connection has just ended
            self._codec.unsubscribe([UPTIME_TOPIC])
