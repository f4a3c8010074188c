"""A codec that knows how much of what was queued the socket has not taken yet."""

from __future__ import annotations

from typing import Any

import trio

from traksense.mqtt.paho_codec import PahoCodec


class CountingCodec(PahoCodec):
    """Slows QoS 0 down: without acknowledgements, nothing else would.

    Attributes:
        buffered_bytes: What whoever publishes has queued since the last `take`; they count it themselves.
        taken: Set at the next `take`, and replaced.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.buffered_bytes = 0
        self.taken = trio.Event()

    def take(self) -> bytes:
        """All that is to be sent now. Called when everything that was taken before has been sent."""
        self.release()
        return super().take()

    def release(self) -> None:
        """Let those go on who wait for room."""
        self.buffered_bytes = 0
        self.taken.set()
        self.taken = trio.Event()
