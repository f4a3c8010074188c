"""What is published, and what became of it as far as publisher and witness know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import trio

from traksense.tools.prove import oracle

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from traksense.tools.prove.messages import Sent, Traffic
    from traksense.tools.publisher import Publisher

TICK_SECONDS: Final = 0.02
SWITCH_SECONDS: Final = 5.0


class Publishing:
    """Publishes at a rate, and whatever a fault asks for beside it.

    Attributes:
        messages: All of them, by number.
        fates: What is known of each.
        only: The sort that all messages have for now; None for the usual mix.
        paused: Whether nothing is published for now but what is asked for.
    """

    def __init__(self, traffic: Traffic, rate: float, on_stored: Callable[[], None]) -> None:
        self.traffic = traffic
        self.messages: dict[int, Sent] = {}
        self.fates: dict[int, oracle.Fate] = {}
        self.only: str | None = None
        self.paused = False
        self._rate = rate
        self._on_stored = on_stored
        self._numbers: dict[bytes, int] = {}
        self._publisher: Publisher | None = None
        self._back_to_usual = False
        self._news = trio.Event()

    async def run(self, publisher: Publisher) -> None:
        """Publish until cancelled."""
        self._publisher = publisher
        due = trio.current_time()
        while True:
            # What could not be sent in time is not made up for: the rate is an upper bound.
            due = max(due, trio.current_time() - (0 if self.paused else TICK_SECONDS))
            while due <= trio.current_time() and not self.paused:
                due += 1 / self._rate
                await self.publish(publisher, self.traffic.next(self.only))
            await trio.sleep_until(due + TICK_SECONDS)

    async def send(self, sort: str, count: int) -> list[int]:
        """Publish so many messages of a sort at once; their numbers."""
        if self._publisher is None:
            return []
        numbers = []
        for _ in range(count):
            sent = self.traffic.next(sort)
            await self.publish(self._publisher, sent)
            numbers.append(sent.number)
        return numbers

    async def publish(self, publisher: Publisher, sent: Sent) -> None:
        """Publish this one."""
        self.messages[sent.number] = sent
        self._numbers[sent.payload] = sent.number
        self.fates[sent.number] = oracle.Fate(published_at=trio.current_time())
        try:
            await publisher.publish(sent.topic, sent.payload, tag=sent.number)
        except trio.Cancelled:
            # The publisher took nothing over.
            del self.messages[sent.number], self.fates[sent.number]
            raise

    async def switch_to(self, sort: str) -> None:
        """From now on only this sort, with nothing of another still under way; that is waited for, but not for ever."""
        self.paused = True
        with trio.move_on_after(SWITCH_SECONDS):
            await self.wait_acknowledged(list(self.fates))
        self.only = sort

    def back_to_usual(self) -> None:
        """The usual mix again, as soon as one message more is stored."""
        self._back_to_usual = True

    async def wait_acknowledged(self, numbers: Iterable[int]) -> None:
        """Wait until the service has acknowledged all of these."""
        while not all(self.fates[number].acknowledged for number in numbers):
            await self._news.wait()

    def number_of(self, payload: bytes) -> int | None:
        """Which message this is, if it is one of ours."""
        return self._numbers.get(payload)

    def on_confirmed(self, number: int) -> None:
        """The broker has confirmed it to the publisher."""
        self.fates[number].confirmed_at = trio.current_time()

    def on_acknowledged(self, number: int) -> None:
        """The service has acknowledged it to the broker."""
        fate = self.fates[number]
        if fate.acknowledged:
            return
        fate.acknowledged, fate.acknowledged_at = True, trio.current_time()
        if self._back_to_usual:
            self.only, self._back_to_usual = None, False
        self._on_stored()
        self._news.set()
        self._news = trio.Event()
