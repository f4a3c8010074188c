"""What the pipeline needs of the world: a way to acknowledge and a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from datetime import datetime

    from traksense.model import Delivery, Rejection

    SendPubacks = Callable[[Sequence[int]], None]
    """Queue PUBACKs for these packet identifiers, in this order, on the connection they belong to. Never blocks."""


@attrs.frozen
class WriteResult:
    """What one committed transaction did.

    Attributes:
        points_stored: Rows that are new.
        points_duplicate: Points whose key was there already with the same value.
        points_conflicting: Points whose key was there already with another value.
        duplicates: Indices of the deliveries of which nothing was new. If deliveries of one batch share a new key, any
            of them may be the one that brought it.
        rejected: Deliveries that became dead letters in this transaction, by their index: a point of theirs has another
            value than the one that is stored. What else they brought is stored.
    """

    points_stored: int = 0
    points_duplicate: int = 0
    points_conflicting: int = 0
    duplicates: frozenset[int] = frozenset()
    rejected: Mapping[int, Rejection] = attrs.field(factory=dict)


class Store(Protocol):
    """Where deliveries end up."""

    async def write(self, batch: Sequence[Delivery]) -> WriteResult:
        """Store a batch in one transaction: all of it or nothing. When this returns, it is committed.

        Writing the same batch again is harmless, whatever came of the first time.

        Raises:
            StoreUnavailableError: Wait, then write the whole batch again.
            StoreMisconfiguredError: Wait for an operator, then write the whole batch again.
            DeliveriesRefusedError: The store names the deliveries that it cannot take; nothing was written.
            DataRefusedError: The data of at least one delivery is refused; nothing was written.
            UnclassifiedStoreError: Nobody knows; nothing was written as far as can be told.
        """
        ...

    async def probe(self) -> None:
        """Make sure that the database would take a write now.

        Raises:
            StoreError: It would not.
        """
        ...


class BrokerWatch(Protocol):
    """Is told of connections to the broker, and of what it says of itself. No method blocks."""

    def connected(self, session_present: bool) -> None:  # noqa: FBT001  (the flag of CONNACK)
        """CONNACK came, and said whether the broker had our session."""
        ...

    def delivered(self) -> None:
        """On this connection something came that was queued for us before it, whatever CONNACK said."""
        ...

    def uptime(self, seconds: float) -> None:
        """For how long the broker has been running, at some time after CONNACK."""
        ...

    def dropped_so_far(self, count: int) -> None:
        """How many messages the broker has dropped since it was started."""
        ...


@attrs.frozen
class Told:
    """What a broker has said of itself; None for what it has not.

    Attributes:
        started_seconds: For how long it has been running, at least.
        dropped: How many messages it has dropped in that time.
        denies_session: Whether it has said that it had no session for us, and delivered what was queued in it.
    """

    started_seconds: float | None = None
    dropped: int | None = None
    denies_session: bool | None = None


@attrs.frozen
class Remembered:
    """What is known of a session, and of its broker, from before a connection.

    Attributes:
        last_alive: When the session was last known to be alive.
        seconds: How long ago that is, by the store's clock.
        told: What the broker had said by then; its `started_seconds` have gone on.
    """

    last_alive: datetime
    seconds: float
    told: Told


class SessionLog(Protocol):
    """Remembers the broker sessions that we have had, across restarts."""

    async def remembered(self, client_id: str, broker: str, at: datetime) -> Remembered | None:
        """What is known from before the connection of `at`, or None if there was no session at this broker.

        Raises:
            StoreError: It would not say.
        """
        ...

    async def connected(self, client_id: str, broker: str, at: datetime) -> None:
        """Record a connection; twice is as good as once.

        Raises:
            StoreError: It was not recorded.
        """
        ...

    async def alive(self, client_id: str, connected_at: datetime, told: Told) -> bool:
        """Record that the session is alive, by the store's clock, and what its broker has said, if the connection of
        `connected_at` is the one that the store knows, and was not left. If it is not, nothing is recorded.

        Returns:
            Whether the store knows that connection, or another process has connected to the session since.

        Raises:
            StoreError: It was not recorded.
        """
        ...

    async def left(self, client_id: str, connected_at: datetime, told: Told, was_alive: bool) -> None:  # noqa: FBT001
        """Record that the session is not used any more, and with `was_alive` that it was alive until now; unless
        another process has connected to it since `connected_at`.

        Raises:
            StoreError: It was not recorded.
        """
        ...
