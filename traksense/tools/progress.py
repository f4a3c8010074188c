"""Says how far long work has got: a line every few seconds, so that it reads the same on a terminal and in a log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Callable

EVERY_SECONDS: Final = 5.0
"""Work that is done sooner says nothing but its end. Chosen by guess."""


@attrs.define
class Progress:
    """One piece of work.

    Attributes:
        did: What is done with each, as "deleted".
        total: How many there are.
        say: Prints a line.
    """

    did: str
    total: int
    say: Callable[[str], None]
    _told_at: float = attrs.field(init=False, factory=time.monotonic)

    def note(self, done: int) -> None:
        """So many are done by now."""
        if time.monotonic() - self._told_at >= EVERY_SECONDS:
            self._told_at = time.monotonic()
            self.say(f"{self.did} {done:,} of {self.total:,} so far")
