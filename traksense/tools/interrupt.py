"""Ctrl-C, SIGTERM and a terminal that is closed, for commands that have something to put right before they end."""

from __future__ import annotations

import os
import signal
import sys
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import attrs
import trio

from traksense import signals
from traksense.terminal import say

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

INTERRUPTED: Final = 130
"""The exit status after a signal: what shells say of Ctrl-C, and what `cli.main` gives for KeyboardInterrupt."""


@attrs.define(eq=False)
class Interruption:
    """What the first signal does: it cancels the guarded block or, where there has been none yet, the whole body.

    Attributes:
        happened: Whether there was a signal.
        remains: What a second signal leaves behind, and how to remove that; empty if nothing.
    """

    happened: bool = False
    remains: str = ""
    _guarded: trio.CancelScope | None = None

    @contextmanager
    def guard(self) -> Iterator[None]:
        """A block that a signal cancels. Connections that are needed to put things right are opened before it."""
        with trio.CancelScope() as self._guarded:
            yield

    def interrupt(self, body: trio.CancelScope) -> None:
        """There was a signal."""
        self.happened = True
        (self._guarded or body).cancel()


async def run_interruptible(body: Callable[[Interruption], Awaitable[None]]) -> bool:
    """Run the body; returns whether SIGINT, SIGTERM or SIGHUP interrupted it (`signals.wanted`). A second one ends the
    process at once, but for SIGHUP: of a terminal that is closed, both the shell and the kernel tell.

    Trio-flavored.
    """
    interruption = Interruption()
    watching = trio.Event()
    # Of its own: who watches is not cancelled with the body, which may still have something to put right.
    whole = trio.CancelScope()

    async def watch() -> None:
        with trio.open_signal_receiver(*signals.wanted()) as received:
            watching.set()
            await anext(received)
            interruption.interrupt(whole)
            while await anext(received) == signal.SIGHUP:
                pass
            with suppress(OSError):  # the terminal is gone
                sys.stdout.flush()
            with suppress(OSError):
                if interruption.remains:
                    say(f"traksense: {interruption.remains}", to=sys.stderr, flush=True)
            os._exit(INTERRUPTED)

    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            await watching.wait()
            with whole:
                await body(interruption)
            nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery is our own affair: what the body raised leaves as it is.
        if len(group.exceptions) > 1:
            raise
        failure = group.exceptions[0]
    if failure is not None:
        raise failure
    return interruption.happened
