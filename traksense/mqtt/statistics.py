"""What happened to the session, as metrics have it."""

from __future__ import annotations

import attrs
import trio


@attrs.define
class SessionStatistics:
    """What happened to the session; exposed as metrics.

    Attributes:
        connections: How often CONNACK said success.
        takeovers: How often another client took our client id, as far as the broker said so.
        paused_at: Since when it is not read now, on Trio's clock, or None.
        paused_seconds: How long the socket was not read because the pipeline was full.
    """

    connections: int = 0
    takeovers: int = 0
    paused_seconds: float = 0.0
    paused_at: float | None = None

    def paused_total(self) -> float:
        """`paused_seconds`, with the pause that goes on now."""
        return self.paused_seconds + (trio.current_time() - self.paused_at if self.paused_at is not None else 0.0)
