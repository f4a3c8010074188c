"""Gives up the topics that this replica no longer has, once another replica reads them.

A session keeps its subscriptions at the broker when `MQTT_TOPICS` or the shards change, and MQTT cannot list them. So
each replica writes into the database what its session holds, before it gives anything up, and what it claims: what its
configuration wants and the broker has granted.

# Invariant: a filter is given up only when everything that it could bring of the tenants and sites in `MQTT_TENANTS`,
# of every kind, is claimed by replicas that live.

Until then the old replica reads on, and what both read is stored once. So replicas may be changed in any order, and a
replica that never comes is a replica that the old one stands in for; when the broker has forgotten the session, what
was kept is asked for again. What nobody will ever claim, since it is not wanted any more, has to be named in
`MQTT_UNSUBSCRIBE`. So has a filter with kinds that nobody claims: `traksense/acme/#`, and the others read
`traksense/acme/+/+/telem`.

A filter that leaves the tenant open is given up although tenants that are in no list have no other reader then:
`traksense shards check --listen` finds them, before.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, Protocol

import trio

from traksense.errors import StoreError
from traksense.shards import Filters

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from traksense.shards import Layout

logger = logging.getLogger(__name__)

CHECK_EVERY_SECONDS: Final = 2.0
"""Between two looks at what others claim. Chosen by guess: it costs a query, and only while there is something to give
up."""

SOON_SECONDS: Final = 0.1
"""Between two looks whether we are subscribed. A process that ends before it has written down what its session holds
leaves its successor in the dark: what that does not want it goes on to read, which costs work and loses nothing."""

AGAIN_SECONDS: Final = 30.0
"""Between two looks whether what is written down is still so: somebody else, such as a backup, may have changed it."""

TOPICS_SHOWN: Final = 10
"""Filters in one log line."""


class SubscriptionLog(Protocol):
    """Remembers what sessions are subscribed to."""

    async def subscriptions(self, client_id: str) -> tuple[frozenset[str], frozenset[str]]:
        """What this session holds, and what it claims.

        Raises:
            StoreError: It cannot be told now.
        """
        ...

    async def claims_of_others(self, client_id: str, broker: str) -> frozenset[str]:
        """What the other sessions at this broker claim, as far as they were alive a moment ago.

        Raises:
            StoreError: It cannot be told now.
        """
        ...

    async def remember(self, client_id: str, held: Collection[str], claimed: Collection[str]) -> None:
        """Record both, if the session itself is recorded.

        Raises:
            StoreError: It was not recorded.
        """
        ...


class Session(Protocol):
    """Our session at the broker."""

    @property
    def subscribed(self) -> bool:
        """Whether everything that is wanted was granted on the present connection."""
        ...

    @property
    def refused(self) -> bool:
        """Whether the broker has answered on the present connection, and not granted everything that is wanted."""
        ...

    def keep(self, topics: Collection[str]) -> None:
        """What the session shall have besides what is wanted, should the broker have forgotten it. Never blocks."""
        ...

    async def unsubscribe(self, topics: Sequence[str]) -> frozenset[str]:
        """Give up these filters; those for which the broker has confirmed it."""
        ...


class Handover:
    """See the module. One task runs `run`.

    Attributes:
        kept: Filters that the session holds and the configuration does not want.
        done: Set when there were none left once.
    """

    def __init__(
        self,
        log: SubscriptionLog,
        session: Session,
        *,
        client_id: str,
        broker: str,
        topics: Iterable[str],
        layout: Layout | None,
        unsubscribe: Iterable[str],
        assumed: Iterable[str] = (),
        patience: float,
    ) -> None:
        """Do nothing yet.

        Args:
            log: Where sessions are remembered.
            session: Ours.
            client_id: Its name.
            broker: Where it is; only sessions at the same broker can take over.
            topics: What the configuration wants.
            layout: How topics are divided, or None.
            unsubscribe: What shall be given up whoever reads it.
            assumed: What the session may hold although the log does not say so.
            patience: For so many seconds everything has to be claimed without a break.
        """
        self._log = log
        self._session = session
        self._client_id = client_id
        self._broker = broker
        self._topics = frozenset(topics)
        self._layout = layout
        self._unsubscribe = frozenset(unsubscribe)
        self._assumed = frozenset(assumed)
        self._patience = patience
        self._claimed_since: dict[str, float] = {}
        self._told: frozenset[str] = frozenset()
        self._lost = False
        self._connected = trio.Event()
        self.kept: frozenset[str] = frozenset()
        self.done = trio.Event()

    def connected(self, session_present: bool) -> None:  # noqa: FBT001  (the flag of CONNACK)
        """CONNACK came, and said whether the broker had our session. Never blocks."""
        self._lost = self._lost or not session_present
        self._connected.set()

    async def run(self) -> None:
        """Settle, and again from time to time and whenever a connection may have ended what was so, until cancelled."""
        while True:
            await self.settle()
            self._connected = trio.Event()
            with trio.move_on_after(AGAIN_SECONDS):
                await self._connected.wait()

    async def settle(self) -> None:
        """Until the session holds what the configuration wants and nothing else, which is so at once as a rule.

        Error handling: what the database or the broker does not do now is tried again.
        """
        while True:
            try:
                if self._lost or self._session.refused:
                    await self._claim_nothing()
                if self._session.subscribed:
                    self._unsubscribe -= await self._step(self._unsubscribe)
                    if not self.kept and not self._lost and await self._recorded():
                        self.done.set()
                        return
            except StoreError as error:
                logger.debug("handover_failed", extra={"traksense_reason": str(error)})
                await trio.sleep(CHECK_EVERY_SECONDS)
            await trio.sleep(CHECK_EVERY_SECONDS if self.kept or self._session.refused else SOON_SECONDS)

    async def _claim_nothing(self) -> None:
        """The broker does not queue for us what we claimed: until it has granted it (again), nobody may rely on us."""
        noted, claimed = await self._log.subscriptions(self._client_id)
        if claimed:
            await self._log.remember(self._client_id, noted, ())
        self._lost = False

    async def _recorded(self) -> bool:
        """Whether the log says so too: the session itself may not have been recorded yet."""
        return await self._log.subscriptions(self._client_id) == (self._topics, self._topics)

    async def _step(self, forced: frozenset[str]) -> frozenset[str]:
        """Look once; returns what was given up."""
        noted, claimed = await self._log.subscriptions(self._client_id)
        held = noted | self._topics | self._assumed
        self.kept = (held | forced) - self._topics
        if (noted, claimed) != (held, self._topics):
            # Invariant: what the session may hold is in the log before anything is given up, so that it is not
            # forgotten.
            await self._log.remember(self._client_id, held, self._topics)
        if not self.kept:
            self._session.keep(())
            return frozenset()
        claims = await self._log.claims_of_others(self._client_id, self._broker)
        ready = forced | self._claimed_long_enough(claims)
        # What others claim already need not be asked for again; what we only assume was perhaps never ours.
        self._session.keep((self.kept & noted) - forced - self._claimed_since.keys())
        self._tell_kept(self.kept - ready)
        if not ready:
            return frozenset()
        released = await self._session.unsubscribe(sorted(ready))
        if released:
            self.kept -= released
            self._assumed -= released
            await self._log.remember(self._client_id, self.kept | self._topics, self._topics)
            logger.info("subscriptions_given_up", extra=self._extra(released))
        return released

    def _claimed_long_enough(self, claims: frozenset[str]) -> frozenset[str]:
        now = trio.current_time()
        read = Filters(claims | self._topics)
        claimed = {topic for topic in self.kept if self._taken_over(topic, read)}
        self._claimed_since = {topic: self._claimed_since.get(topic, now) for topic in claimed}
        return frozenset(topic for topic, since in self._claimed_since.items() if now - since >= self._patience)

    def _taken_over(self, topic: str, read: Filters) -> bool:
        if read.cover(topic):
            return True
        parts = self._layout.parts(topic) if self._layout is not None else []
        return bool(parts) and all(read.cover(part) for part in parts)

    def _tell_kept(self, kept: frozenset[str]) -> None:
        """Once for each change."""
        waiting = kept - self._claimed_since.keys()
        if waiting and waiting != self._told:
            logger.warning("subscriptions_kept", extra=self._extra(waiting))
        self._told = waiting

    def _extra(self, topics: frozenset[str]) -> dict[str, object]:
        return {
            "traksense_client_id": self._client_id,
            "traksense_topics": sorted(topics)[:TOPICS_SHOWN],
            "traksense_topics_count": len(topics),
        }
