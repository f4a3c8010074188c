"""Ctrl-C and SIGTERM for commands that have something to put back before they end."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Final

import trio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

INTERRUPTED: Final = 130
"""The exit status after a signal: what shells say of Ctrl-C, and what `cli.main` gives for KeyboardInterrupt."""


async def run_interruptible(body: Callable[[], Awaitable[None]]) -> bool:
    """Run the body; the first SIGINT or SIGTERM cancels it. Returns whether one did.

    From then on the signals have their usual effect again, so a second one ends the process at once.

    Cancellation: the body's clean-up belongs into a shielded scope with a deadline.
    """
    interrupted = False

    async def watch(task_status: trio.TaskStatus[None]) -> None:
        nonlocal interrupted
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            task_status.started()
            await anext(signals)
            interrupted = True
        nursery.cancel_scope.cancel()

    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch)
            await body()
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is our own affair: what the body raised leaves as it is.
        if len(group.exceptions) > 1:
            raise
        failure = group.exceptions[0]
    if failure is not None:
        raise failure
    return interrupted
