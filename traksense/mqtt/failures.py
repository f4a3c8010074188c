"""How connections ended, in words for `/readyz`."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from traksense.errors import BrokerError, ConnectionLostError
from traksense.mqtt.stream import root

if TYPE_CHECKING:
    from traksense.config import Settings

logger = logging.getLogger(__name__)

STABLE_SECONDS: Final = 10.0
"""A connection that held this long was a success."""

SUSPICIOUS_CLOSURES: Final = 3
"""So many connections in a row that the broker accepted, answered and soon closed without a word look like a second
client with our client id: Mosquitto 2.0.11 does not send the DISCONNECT with reason 0x8E that MQTT 5.0 §4.13 describes
(seen on the wire; tests/integration/test_reader.py holds it)."""

SHOWN: Final = 200
"""Characters of an exception in the reason of a condition."""


class Failures:
    """The failures of one session's connections.

    Attributes:
        count: How often a connection failed or could not be made.
        mishandled: How often we could not handle what the broker sent: a bug.
        suspicious: Connections in a row whose end only a second client would explain.
    """

    def __init__(self, settings: Settings) -> None:
        self.count = 0
        self.mishandled = 0
        self.suspicious = 0
        self._settings = settings
        self._told = ""

    def explain(self, error: Exception, *, accepted: bool, answered: bool, seconds: float) -> str:
        """Count a failure; returns what happened, and what it may mean.

        A second client is suspected only where nothing else explains it: not where the broker said why or broke the
        protocol, not where it could not be reached in between, not where it had not answered SUBSCRIBE.

        Args:
            error: The failure. What is not a BrokerError is a bug: the log has its traceback, once for as long as it
                keeps us from staying connected.
            accepted: Whether the broker had accepted the connection.
            answered: Whether it had answered all that we had asked for.
            seconds: How long the connection lasted.
        """
        self.count += 1
        if seconds > STABLE_SECONDS:
            self._told = ""
        text = f"{error if isinstance(error, BrokerError) else self._mishandled(error)} ({self._settings.broker})"
        if seconds > STABLE_SECONDS or not accepted or not isinstance(error, ConnectionLostError):
            self.suspicious = 0
        elif not answered:
            # Some brokers hang up on what they do not like: many filters, or $SYS.
            text += "; it had not answered SUBSCRIBE"
        else:
            self.suspicious += 1
            if self.suspicious >= SUSPICIOUS_CLOSURES:
                text += (
                    f"; {self.suspicious} connections in a row were accepted and soon lost: is another client using "
                )
                text += f"the client id {self._settings.client_id}?"
        return text

    def _mishandled(self, error: Exception) -> str:
        self.mishandled += 1
        what = repr(root(error))[:SHOWN]
        if what != self._told:
            self._told = what
            logger.error("broker_input_mishandled", exc_info=error, extra={"traksense_reason": what})
        return f"a bug of traksense in handling what the broker sent: {what}; the log has its traceback"
