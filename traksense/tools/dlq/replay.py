"""Sends dead letters to their topics again, through the broker: the service takes them as it takes any message.

Harmless to repeat: what can be stored is stored once whatever happens, and what still cannot opens its dead letter
again.
"""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense.mqtt.stream import tls_context
from traksense.store import dead_letters
from traksense.tools.outbox import HUNG_UP, in_words
from traksense.tools.publisher import open_publisher

if TYPE_CHECKING:
    from collections.abc import Callable

    from traksense.config import Settings
    from traksense.store.connection import DatabaseConnection
    from traksense.store.dead_letters import Selection
    from traksense.tools.publisher import Publisher

CONFIRM_SECONDS: Final = 30.0
"""How long the broker may leave all that is under way unanswered, reconnections included. Chosen by guess."""

HANGUPS_MAX: Final = 3
"""So often a message is sent alone and the broker ends the connection, until it is left alone. A broker that is
restarted does that once."""


@attrs.define
class Counts:
    """What became of the dead letters that were asked for.

    Attributes:
        selected: How many there were.
        published: Confirmed by the broker, or with a dry run those that would be published.
        unpublishable: Left alone: their topic cannot be published to.
        refused: The broker refused them, or ended the connection over them, or no subscriber was there to take them;
            still open.
        unconfirmed: The broker did not answer in time; still open.
        missing: No longer there, or replayed by somebody else meanwhile.
    """

    selected: int = 0
    published: int = 0
    unpublishable: int = 0
    refused: int = 0
    unconfirmed: int = 0
    missing: int = 0

    @property
    def complete(self) -> bool:
        """Whether everything that was asked for was done."""
        return self.published == self.selected


@attrs.define(eq=False)
class Replay:
    """One run.

    Attributes:
        counts: What became of them so far.
        say: Told, in one line each, what could not be published and why.
        note: Told after each page how far it has got.
    """

    settings: Settings
    database: DatabaseConnection
    selection: Selection
    say: Callable[[str], None]
    note: Callable[[str], None] = lambda _text: None
    counts: Counts = attrs.field(factory=Counts)
    _missing: set[int] = attrs.field(factory=set)
    _confirmed: set[int] = attrs.field(factory=set)
    _refused: set[int] = attrs.field(factory=set)
    _unmatched: int = 0
    _publisher: Publisher | None = None
    _patience: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    async def run(self, *, dry: bool = False) -> None:
        """Publish them, page by page. With `dry`, only find out what would be published.

        Raises:
            BrokerError: There is no connection to the broker.
            StoreError: The database refused or failed.

        Cancellation: what the broker had not confirmed stays open.

        Trio-flavored.
        """
        if dry:
            await self._pages(publish=False)
            return
        # What could not be marked (a read-only database, a missing right) would be published again and again.
        await self.database.call(dead_letters.mark, [])
        async with open_publisher(
            self.settings.broker,
            client_id=f"traksense-dlq-{secrets.token_hex(5)}",
            version=self.settings.mqtt_version,
            username=self.settings.username,
            password=self.settings.password,
            tls=tls_context(self.settings),
            on_confirmed=self._on_confirmed,
            on_refused=self._on_refused,
            hangups_max=HANGUPS_MAX,
        ) as self._publisher:
            await self._pages(publish=True)

    async def _pages(self, *, publish: bool) -> None:
        selection = self.selection
        self._missing.update(selection.ids or ())
        after = 0
        # What is dead-lettered from now on, be it for our own sake, is not part of the question.
        count = await self.database.call(dead_letters.count, selection)
        total = count.total if selection.limit is None else min(count.total, selection.limit)
        while selection.limit is None or selection.limit > 0:
            page = await self.database.call(dead_letters.next_page, selection, after=after, newest=count.newest)
            if not page:
                self._count_missing_ids()
                return
            after = page[-1].id
            if selection.limit is not None:
                selection = attrs.evolve(selection, limit=selection.limit - len(page))
            self.counts.selected += len(page)
            self._missing.difference_update(summary.id for summary in page)
            ids = []
            for summary in page:
                if (why := summary.unpublishable) is None:
                    ids.append(summary.id)
                else:
                    self.counts.unpublishable += 1
                    self.say(f"{summary.id}: left alone: {why}")
            if not publish:
                self.counts.published += len(ids)
            elif not await self._publish(ids):
                return
            did, done = ("published", self.counts.published) if publish else ("looked at", self.counts.selected)
            self.note(f"{did} {done:,} of {total:,}")

    async def _publish(self, ids: list[int]) -> bool:
        """Publish a page; says whether it is worth going on."""
        assert self._publisher is not None  # opened by run
        # Of the page before, all were answered.
        self._confirmed.clear()
        self._refused.clear()
        letters = await self.database.call(dead_letters.read, ids, open_only=self.selection.open_only)
        self.counts.missing += len(ids) - len(letters)
        for number in sorted(set(ids) - {letter.id for letter in letters}):
            self.say(f"{number}: deleted or replayed by somebody else meanwhile")
        try:
            with trio.move_on_after(CONFIRM_SECONDS) as self._patience:
                for letter in letters:
                    await self._publisher.publish(letter.topic, letter.payload, tag=letter.id)
                await self._publisher.drain()
        finally:
            sent = [letter for letter in letters if letter.id in self._confirmed]
            refused = sum(letter.id in self._refused for letter in letters)
            unconfirmed = len(letters) - len(sent) - refused
            self.counts.published += len(sent)
            self.counts.refused += refused
            self.counts.unconfirmed += unconfirmed
            if sent:
                # Shielded: they would be sent once more. asyncpg has a time-out.
                with trio.CancelScope(shield=True):
                    await self.database.call(dead_letters.mark, sent)
        if self._patience.cancelled_caught:
            why = self._publisher.fault or "no answer"
            self.say(f"stopped: no confirmation of {unconfirmed} within {CONFIRM_SECONDS:.0f} s ({why})")
        return not self._patience.cancelled_caught

    def _count_missing_ids(self) -> None:
        """Ids that were asked for and are not there."""
        if self.selection.limit is None:
            self.counts.selected += len(self._missing)
            self.counts.missing += len(self._missing)
            for number in sorted(self._missing):
                self.say(f"{number}: there is no such dead letter, or the other options exclude it")

    def _on_confirmed(self, number: int) -> None:
        assert self._publisher is not None  # it is calling
        self._patience.deadline = trio.current_time() + CONFIRM_SECONDS
        unmatched = self._publisher.counters.unmatched
        if unmatched > self._unmatched:
            # Confirmed, but by a broker that had nobody to give it to.
            self._unmatched = unmatched
            self._refused.add(number)
            self.say(f"{number}: no client subscribes to its topic: does the service's session exist?")
        else:
            self._confirmed.add(number)

    def _on_refused(self, number: int, reason: int) -> None:
        self._patience.deadline = trio.current_time() + CONFIRM_SECONDS
        self._refused.add(number)
        if reason == HUNG_UP:
            assert self._publisher is not None  # it is calling
            self.say(
                f"{number}: left alone: sent {HANGUPS_MAX} times, and the broker ended the connection each time "
                f"({self._publisher.fault}): its log and access rules say why"
            )
        else:
            self.say(f"{number}: the broker refuses it (reason code {in_words(reason)})")
