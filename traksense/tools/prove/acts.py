"""What an operator did to what is stored, and which of the messages it explains. No I/O."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import attrs

if TYPE_CHECKING:
    from collections.abc import Iterable

    from traksense.tools.prove.messages import Key


@attrs.define(eq=False, kw_only=True)
class Act:
    """One deletion, truncation, restoration or renaming; times are on the clock of the fates.

    A message that was first published after `ended` has nothing to do with it: its rows must be there, under their own
    names. One from before may have been stored before, during or after it.

    Attributes:
        ended: When it was over; infinite while it lasts.
        covers: How the keys of the rows that it took hold of begin; () for all.
        saved: What was acknowledged before this it leaves as it was: when the dump was begun that was restored.
        renamed: How those keys begin since then; None if the rows are gone.
    """

    ended: float = math.inf
    covers: Key = ()
    saved: float = -math.inf
    renamed: Key | None = None

    def may_have_removed(self, key: Key, published_at: float, acknowledged_at: float | None) -> bool:
        """Whether a row with this key may be missing because of it."""
        return (
            self.renamed is None
            and as_measured(key)[: len(self.covers)] == self.covers
            and published_at < self.ended
            and (acknowledged_at is None or acknowledged_at >= self.saved)
        )

    def original(self, key: Key) -> Key | None:
        """The key that a row had before it was renamed; None if it was not."""
        if self.renamed is None or key[: len(self.renamed)] != self.renamed:
            return None
        return (*self.covers, *key[len(self.renamed) :])


def as_measured(key: Key) -> Key:
    """The key, with the relation in which its row is: a message without a time of its own is told by its value."""
    return ("measure", *key[1:]) if key[0] == "untimed" else key


def removed(acts: Iterable[Act], key: Key, published_at: float, acknowledged_at: float | None) -> bool:
    """Whether one of these acts explains that a row is missing."""
    return any(act.may_have_removed(key, published_at, acknowledged_at) for act in acts)


def explains(acts: Iterable[Act], key: Key, published_at: float, acknowledged_at: float | None) -> bool:
    """Whether one of these acts explains that a row is not there under its own name."""
    acts = tuple(acts)
    return removed(acts, key, published_at, acknowledged_at) or any(
        act.renamed is not None and key[: len(act.covers)] == act.covers and published_at < act.ended for act in acts
    )
