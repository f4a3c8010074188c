"""The judgement: what was confirmed to the publisher against what is stored, message by message. No I/O.

Whose loss is a message that was confirmed and is nowhere?

* The service's, if it acknowledged the message: it promised.
* The broker's, if the broker was killed (SIGKILL) soon after it had confirmed the message, and the service never
  acknowledged it: the broker still owned it, and forgot. Its confirmation is not tied to its disk; it saves later.
* Else the service's all the same: a broker that did not crash forgets nothing unless it is told to.

Nobody's, if an operator has removed it (`acts`). What was published after that must be there, under its own name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.prove.acts import removed
from traksense.tools.prove.messages import ANY_REASON, UNTIMED_POINT
from traksense.tools.prove.witness import Remarks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from traksense.tools.prove.acts import Act
    from traksense.tools.prove.messages import Key, Sent

UNSAVED_SECONDS: Final = 5.0
"""What the broker confirmed earlier than this before it was killed, it has saved: `stage` has it save every second. The
rest is for a slow disk."""

CLOCK_SECONDS: Final = 1.0
"""A confirmation that was under way when the broker was killed may be noted so much later."""


@attrs.define
class Fate:
    """What is known of a message from outside the service; times are on one clock, in seconds.

    Attributes:
        published_at: When it was first given to the publisher.
        confirmed_at: When the broker confirmed it, or None.
        acknowledged: Whether the service sent a PUBACK for it.
        acknowledged_at: When it sent the first one, or None.
        delivered: How often it was sent to the service.
        owed: Whether the broker still had it for the service at the very end.
    """

    published_at: float
    confirmed_at: float | None = None
    acknowledged: bool = False
    acknowledged_at: float | None = None
    delivered: int = 0
    owed: bool = False


@attrs.define
class Judgement:
    """Counts of messages, unless said otherwise; what must be zero is described.

    Attributes:
        confirmed: Confirmed to the publisher.
        stored: All of their rows are there.
        dead: Poison messages that are dead letters.
        removed: Not (or not wholly) there, because an operator has removed them.
        repeated: Rows too many of messages without a time of their own: a redelivery gets another one.
        lost: Confirmed, and not (or not wholly) there, by the service's fault.
        doubled: Rows that are there more than once.
        misfiled: Good messages among the dead letters, poison that was stored, or a wrong reason.
        altered: Rows with another value than was sent.
        phantom: Rows that nobody sent.
        misnamed: Rows under a name that an operator gave to their series before their message was published.
        lost_by_broker: Confirmed by the broker, which was killed and forgot them.
        undelivered: Not there, but the broker still has them: the run ended too early.
    """

    confirmed: int = 0
    stored: int = 0
    dead: int = 0
    removed: int = 0
    repeated: int = 0
    lost: Remarks = attrs.field(factory=Remarks)
    doubled: Remarks = attrs.field(factory=Remarks)
    misfiled: Remarks = attrs.field(factory=Remarks)
    altered: Remarks = attrs.field(factory=Remarks)
    phantom: Remarks = attrs.field(factory=Remarks)
    misnamed: Remarks = attrs.field(factory=Remarks)
    lost_by_broker: Remarks = attrs.field(factory=Remarks)
    undelivered: Remarks = attrs.field(factory=Remarks)

    @property
    def faults(self) -> dict[str, Remarks]:
        """What must be zero."""
        names = ("lost", "doubled", "misfiled", "altered", "phantom", "misnamed", "undelivered")
        return {name: getattr(self, name) for name in names}


def judge(
    messages: Iterable[Sent],
    fates: Mapping[int, Fate],
    rows: Iterable[tuple[Key, str]],
    *,
    broker_kills: Sequence[float] = (),
    acts: Sequence[Act] = (),
) -> Judgement:
    """Compare.

    Args:
        messages: All that were given to the publisher.
        fates: What is known of each, by number.
        rows: Every row of the database: its key and its value as text. A key twice is a row twice.
        broker_kills: When the broker was killed, on the clock of `fates`.
        acts: What operators did, on the same clock.
    """
    return _Court(fates, rows, broker_kills, acts).judge(messages)


class _Court:
    def __init__(
        self,
        fates: Mapping[int, Fate],
        rows: Iterable[tuple[Key, str]],
        broker_kills: Sequence[float],
        acts: Sequence[Act],
    ) -> None:
        self._fates = fates
        self._broker_kills = broker_kills
        self._acts = acts
        self._judgement = Judgement()
        self._found: dict[Key, list[str]] = {}
        # By the key that they had before.
        self._renamed: dict[Key, tuple[str, Act]] = {}
        for key, value in rows:
            self._found.setdefault(_told_by_value(key, value), []).append(value)

    def judge(self, messages: Iterable[Sent]) -> Judgement:
        judgement, found = self._judgement, self._found
        for key, values in found.items():
            if len(values) > 1 and key[0] == "untimed":
                judgement.repeated += len(values) - 1
            elif len(values) > 1:
                judgement.doubled.add(f"{len(values)} rows for {_shown(key)}")
        self._note_renamed()
        explained: set[Key] = set()
        for sent in messages:
            judgement.confirmed += self._fates[sent.number].confirmed_at is not None
            explained.update(sent.rows.keys())
            letter = ("dead", sent.topic, sent.payload.hex())
            explained.add(letter)
            if letter in found and letter not in sent.rows:
                judgement.misfiled.add(f"message {sent.number} is good and a dead letter: {found[letter][0]}")
            else:
                self._judge_one(sent)
        for key in (*found, *self._renamed):
            if key not in explained:
                judgement.phantom.add(f"nobody sent {_shown(key)}")
        return judgement

    def _note_renamed(self) -> None:
        for act in self._acts:
            for key in list(self._found) if act.renamed is not None else ():
                original = act.original(key)
                if original is not None:
                    self._renamed[original] = (self._found.pop(key)[0], act)

    def _judge_one(self, sent: Sent) -> None:
        judgement, found, fate = self._judgement, self._found, self._fates[sent.number]
        there: dict[Key, str] = {}
        for key in sent.rows:
            if key in found:
                there[key] = found[key][0] if sent.rows[key] not in found[key] else sent.rows[key]
            elif key in self._renamed:
                there[key], act = self._renamed[key]
                if fate.published_at >= act.ended:
                    judgement.misnamed.add(f"message {sent.number}: {_shown(key)} is stored as {act.renamed}")
        wrong = [key for key, value in there.items() if sent.rows[key] not in (value, ANY_REASON)]
        if wrong:
            kind = judgement.misfiled if sent.poison else judgement.altered
            kind.add(f"message {sent.number}: {_shown(wrong[0])} is {there[wrong[0]]}, not {sent.rows[wrong[0]]}")
        missing = [key for key in sent.rows if key not in there]
        if not missing:
            judgement.stored += not sent.poison
            judgement.dead += sent.poison
            return
        lost = [key for key in missing if not removed(self._acts, key, fate.published_at, fate.acknowledged_at)]
        if not lost:
            judgement.removed += 1
        elif there:
            # Whatever became of the rest: a transaction was torn.
            judgement.lost.add(f"message {sent.number} is stored in part: {len(lost)} of {len(sent.rows)} rows missing")
        else:
            self._blame(sent, fate)

    def _blame(self, sent: Sent, fate: Fate) -> None:
        """Nothing of it is there, and no operator has removed it."""
        judgement = self._judgement
        if fate.confirmed_at is None and not fate.acknowledged:
            return
        story = f"message {sent.number} ({sent.topic.rpartition('/')[2]}), delivered {fate.delivered} times"
        if fate.acknowledged:
            judgement.lost.add(f"{story}, was acknowledged by the service and is nowhere")
        elif fate.owed:
            judgement.undelivered.add(f"{story}, is not stored; the broker still has it")
        elif any(_explains(kill, fate) for kill in self._broker_kills):
            judgement.lost_by_broker.add(
                f"{story}, was never acknowledged by the service; the broker was killed soon after"
            )
        else:
            judgement.lost.add(f"{story}, was never acknowledged by the service, and no broker was killed soon after")


def _told_by_value(key: Key, value: str) -> Key:
    """The key of a row; where its time says nothing of its message, with the value instead."""
    return ("untimed", *key[1:5], value) if key[0] == "measure" and key[4] == UNTIMED_POINT else key


def _explains(kill: float, fate: Fate) -> bool:
    """Whether the broker may have forgotten the message when it was killed: confirmed, and not saved yet."""
    if fate.confirmed_at is None or kill < fate.published_at:
        return False
    return -CLOCK_SECONDS <= kill - fate.confirmed_at <= UNSAVED_SECONDS


def _shown(key: Key) -> str:
    text = " ".join(key)
    return text if len(text) <= 160 else f"{text[:160]}…"
