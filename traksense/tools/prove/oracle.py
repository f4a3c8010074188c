"""The judgement: what was confirmed to the publisher against what is stored, message by message. No I/O.

Whose loss is a message that was confirmed and is nowhere?

* The service's, if it acknowledged the message: it promised.
* The broker's, if the broker was killed (SIGKILL) soon after it had confirmed the message, and the service never
  acknowledged it: the broker still owned it, and forgot. Its confirmation is not tied to its disk; it saves later.
* Else the service's all the same: a broker that did not crash forgets nothing unless it is told to.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.prove.witness import Remarks

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

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
        delivered: How often it was sent to the service.
        owed: Whether the broker still had it for the service at the very end.
    """

    published_at: float
    confirmed_at: float | None = None
    acknowledged: bool = False
    delivered: int = 0
    owed: bool = False


@attrs.define
class Judgement:
    """Counts of messages, unless said otherwise; what must be zero is described.

    Attributes:
        confirmed: Confirmed to the publisher.
        stored: All of their rows are there.
        dead: Poison messages that are dead letters.
        lost: Confirmed, and not (or not wholly) there, by the service's fault.
        doubled: Rows that are there more than once.
        misfiled: Good messages among the dead letters, poison that was stored, or a wrong reason.
        altered: Rows with another value than was sent.
        phantom: Rows that nobody sent.
        lost_by_broker: Confirmed by the broker, which was killed and forgot them.
        undelivered: Not there, but the broker still has them: the run ended too early.
    """

    confirmed: int = 0
    stored: int = 0
    dead: int = 0
    lost: Remarks = attrs.field(factory=Remarks)
    doubled: Remarks = attrs.field(factory=Remarks)
    misfiled: Remarks = attrs.field(factory=Remarks)
    altered: Remarks = attrs.field(factory=Remarks)
    phantom: Remarks = attrs.field(factory=Remarks)
    lost_by_broker: Remarks = attrs.field(factory=Remarks)
    undelivered: Remarks = attrs.field(factory=Remarks)

    @property
    def faults(self) -> dict[str, Remarks]:
        """What must be zero."""
        names = ("lost", "doubled", "misfiled", "altered", "phantom", "undelivered")
        return {name: getattr(self, name) for name in names}


def judge(
    messages: Iterable[Sent],
    fates: Mapping[int, Fate],
    rows: Iterable[tuple[Key, str]],
    *,
    broker_kills: Sequence[float] = (),
) -> Judgement:
    """Compare.

    Args:
        messages: All that were given to the publisher.
        fates: What is known of each, by number.
        rows: Every row of the database: its key and its value as text. A key twice is a row twice.
        broker_kills: When the broker was killed, on the clock of `fates`.
    """
    judgement = Judgement()
    found: dict[Key, list[str]] = {}
    for key, value in rows:
        found.setdefault(key, []).append(value)
    for key, values in found.items():
        if len(values) > 1:
            judgement.doubled.add(f"{len(values)} rows for {_shown(key)}")
    explained: set[Key] = set()
    for sent in messages:
        judgement.confirmed += fates[sent.number].confirmed_at is not None
        explained.update(sent.rows.keys())
        letter = ("dead", sent.topic, sent.payload.hex())
        explained.add(letter)
        if not sent.poison and letter in found:
            judgement.misfiled.add(f"message {sent.number} is good and a dead letter: {found[letter][0]}")
        else:
            _judge_one(judgement, sent, fates[sent.number], found, broker_kills)
    for key in found:
        if key not in explained:
            judgement.phantom.add(f"nobody sent {_shown(key)}")
    return judgement


def _judge_one(
    judgement: Judgement, sent: Sent, fate: Fate, found: Mapping[Key, list[str]], broker_kills: Sequence[float]
) -> None:
    missing = [key for key in sent.rows if key not in found]
    wrong = [key for key, value in sent.rows.items() if key in found and value not in found[key]]
    if wrong:
        kind = judgement.misfiled if sent.poison else judgement.altered
        kind.add(f"message {sent.number}: {_shown(wrong[0])} is {found[wrong[0]][0]}, not {sent.rows[wrong[0]]}")
    if not missing:
        judgement.stored += not sent.poison
        judgement.dead += sent.poison
        return
    if len(missing) < len(sent.rows):
        # Whatever became of the rest: a transaction was torn.
        judgement.lost.add(f"message {sent.number} is stored in part: {len(missing)} of {len(sent.rows)} rows missing")
        return
    if fate.confirmed_at is None and not fate.acknowledged:
        return
    story = f"message {sent.number} ({sent.topic.rpartition('/')[2]}), delivered {fate.delivered} times"
    if fate.acknowledged:
        judgement.lost.add(f"{story}, was acknowledged by the service and is nowhere")
    elif fate.owed:
        judgement.undelivered.add(f"{story}, is not stored; the broker still has it")
    elif any(_explains(kill, fate) for kill in broker_kills):
        judgement.lost_by_broker.add(
            f"{story}, was never acknowledged by the service; the broker was killed soon after"
        )
    else:
        judgement.lost.add(f"{story}, was never acknowledged by the service, and no broker was killed soon after")


def _explains(kill: float, fate: Fate) -> bool:
    """Whether the broker may have forgotten the message when it was killed: confirmed, and not saved yet."""
    if fate.confirmed_at is None or kill < fate.published_at:
        return False
    return -CLOCK_SECONDS <= kill - fate.confirmed_at <= UNSAVED_SECONDS


def _shown(key: Key) -> str:
    text = " ".join(key)
    return text if len(text) <= 160 else f"{text[:160]}…"
