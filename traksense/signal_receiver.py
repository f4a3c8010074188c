"""Signals, as a Trio task waits for them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any, Self

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from types import FrameType


class SignalReceiver:
    """Takes signals for the duration, those that came before included.

    As `trio.open_signal_receiver`, but that each signal counts, and that to tell of one is not begun in the middle of
    telling of another: there, a flood of them uses up the stack.
    """

    def __init__(self, numbers: Iterable[int], *, noted: Callable[[], list[int]]) -> None:
        """Take nothing yet.

        Args:
            numbers: What to take.
            noted: Says what has come already, once signals are taken.
        """
        self._numbers = tuple(numbers)
        self._noted = noted
        self._received: list[int] = []
        self._token = trio.lowlevel.current_trio_token()
        self._arrived = trio.Event()
        self._telling = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        self._before = {number: signal.signal(number, self._handle) for number in self._numbers}
        self._received[:0] = self._noted()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    async def receive(self) -> int:
        """The next one. Cancellation: none is lost."""
        while not self._received:
            self._arrived = trio.Event()
            await self._arrived.wait()
        return self._received.pop(0)

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(number)
        # Python may run this again in the middle of it.
        if not self._telling:
            self._telling = True
            self._token.run_sync_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        self._arrived.set()
