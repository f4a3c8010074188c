"""Signals for a Trio task: each counts, whenever it comes."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import trio
import trio.testing

from tests.patience import HANG_SECONDS
from traksense.signal_receiver import SignalReceiver

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

FLOOD = 5_000
"""Far more than the stack has room for."""


class FloodedToken:
    """Where each signal that is told of meets the next one."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self.left = FLOOD

    def run_sync_soon(self, function: Callable[[], Any]) -> None:
        if self.left:
            self.left -= 1
            signal.raise_signal(signal.SIGUSR2)
        self._token.run_sync_soon(function)


async def test_signal_in_the_middle_of_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both are received, and telling of the first is not begun again in the middle, which would use up the stack."""
    token = FloodedToken()
    monkeypatch.setattr(trio.lowlevel, "current_trio_token", lambda: token)
    with trio.fail_after(HANG_SECONDS), SignalReceiver([signal.SIGUSR2], noted=list) as receiver:
        monkeypatch.undo()
        signal.raise_signal(signal.SIGUSR2)
        assert [signal.SIGUSR2] * 2 == [await receiver.receive(), await receiver.receive()]


async def test_signal_is_awaited_and_each_counts() -> None:
    """What was noted comes first; what is handled afterwards is as it was before."""
    before = signal.getsignal(signal.SIGUSR2)
    with trio.fail_after(HANG_SECONDS), SignalReceiver([signal.SIGUSR2], noted=lambda: [signal.SIGTERM]) as receiver:
        assert signal.SIGTERM == await receiver.receive()
        async with trio.open_nursery() as nursery:

            async def twice() -> None:
                assert [signal.SIGUSR2] * 2 == [await receiver.receive(), await receiver.receive()]

            nursery.start_soon(twice)
            await trio.testing.wait_all_tasks_blocked()
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR2)

    assert before is signal.getsignal(signal.SIGUSR2)
