"""Asks the broker what it still owes the service: takes over its session for a moment, and acknowledges nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.mqtt.connection import Connection
from traksense.mqtt.paho_codec import PahoCodec
from traksense.mqtt.stream import open_stream

if TYPE_CHECKING:
    from traksense.config import Broker

QUIET_SECONDS: Final = 0.5
"""After this much silence there is nothing more. Mosquitto sends what it has right behind CONNACK; the acceptance tests
see a session that owes something."""

LONGEST_SECONDS: Final = 10.0
FIRST_PART_MAX: Final = 60_000


async def owed(broker: Broker, client_id: str, *, version: str) -> list[bytes]:
    """The payloads that wait in the session, which is left as it was.

    Raises:
        BrokerError: It cannot be asked.

    Trio-flavored.
    """
    codec = PahoCodec(
        client_id=client_id, version=version, receive_maximum=FIRST_PART_MAX, session_expiry=86_400, keepalive=30
    )
    connection = Connection(await open_stream(broker.host, broker.port, None), codec, keepalive=30)
    payloads: list[bytes] = []

    async def ask() -> None:
        await connection.handshake()
        with trio.move_on_after(LONGEST_SECONDS):
            while True:
                payloads.extend(message.payload for message in codec.messages if message.qos)
                codec.messages.clear()
                with trio.move_on_after(QUIET_SECONDS) as quiet:
                    await connection.receive()
                if quiet.cancelled_caught:
                    return

    await connection.run(ask)
    return payloads
