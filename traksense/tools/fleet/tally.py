"""What the broker confirmed of a fleet's publications, in the terms of a database that it can be compared with."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import attrs

from traksense.model import Kind, Reason
from traksense.tools.fleet.faults import BEYOND_DEFAULT_TOPICS, REASONS, Fault

if TYPE_CHECKING:
    from traksense.tools.fleet.formats import Format
    from traksense.tools.fleet.sequence import Publication


@attrs.define
class Count:
    """Messages, and the points that they bring."""

    messages: int = 0
    points: int = 0

    def add(self, points: int) -> None:
        """One more message."""
        self.messages += 1
        self.points += points


@attrs.define
class Tally:
    """Counts; `publish` enters what was sent, `confirm` and `refuse` what the broker said.

    Attributes:
        published: Messages handed to the publisher.
        published_points: The points in them, also those that nobody should store twice.
        confirmed: Messages that the broker has.
        refused: Messages that it does not take, by the reason code of their PUBACK.
        oversize: Those of them that are meant to be larger than anybody takes.
        telemetry: Confirmed telemetry by format: each point is one row, somewhere.
        events, acknowledgements: Confirmed, each a row.
        bad: Confirmed messages with a fault, each a dead letter.
        repeats: Confirmed messages that had been published before, which store nothing.
        late: Those of the telemetry that went after later ones of their device.
    """

    published: int = 0
    published_points: int = 0
    confirmed: int = 0
    refused: Counter[int] = attrs.field(factory=Counter)
    oversize: int = 0
    telemetry: dict[Format, Count] = attrs.field(factory=dict)
    events: int = 0
    acknowledgements: int = 0
    bad: Counter[Fault] = attrs.field(factory=Counter)
    repeats: Count = attrs.field(factory=Count)
    late: Count = attrs.field(factory=Count)

    def publish(self, publication: Publication) -> None:
        """The publisher has taken it over."""
        self.published += 1
        self.published_points += publication.points

    def confirm(self, publication: Publication) -> None:
        """The broker has it."""
        self.confirmed += 1
        if publication.fault is not None:
            self.bad[publication.fault] += 1
        elif publication.kind is Kind.EVENT:
            self.events += 1
        elif publication.kind is Kind.ACK:
            self.acknowledgements += 1
        elif publication.repeat:
            self.repeats.add(publication.points)
        else:
            assert publication.format is not None  # what is left is telemetry
            self.telemetry.setdefault(publication.format, Count()).add(publication.points)
            if publication.late:
                self.late.add(publication.points)

    def refuse(self, publication: Publication, reason: int) -> None:
        """The broker does not take it."""
        self.refused[reason] += 1
        self.oversize += publication.fault is Fault.OVERSIZE

    @property
    def unconfirmed(self) -> int:
        """Messages of which the broker has said nothing."""
        return self.published - self.confirmed - self.refused.total()

    @property
    def telemetry_messages(self) -> int:
        """Confirmed telemetry, without repeats."""
        return sum(count.messages for count in self.telemetry.values())

    @property
    def points(self) -> int:
        """Confirmed points, without repeats: rows of `ts_measure`."""
        return sum(count.points for count in self.telemetry.values())

    def dead(self, *, all_topics: bool) -> Counter[Reason]:
        """The dead letters to expect, by reason.

        Args:
            all_topics: The service subscribes to more than the default topics, such as `traksense/#`.
        """
        reasons: Counter[Reason] = Counter()
        for fault, count in self.bad.items():
            if all_topics or fault not in BEYOND_DEFAULT_TOPICS:
                reasons[REASONS[fault]] += count
        return reasons

    def as_dict(self) -> dict[str, Any]:
        """The counts for a machine."""
        return {
            "messages": {
                "published": self.published,
                "confirmed": self.confirmed,
                "refused": self.refused.total(),
                "unconfirmed": self.unconfirmed,
            },
            "telem": {
                "messages": self.telemetry_messages,
                "points": self.points,
                "late_messages": self.late.messages,
                "by_format": {format_: attrs.asdict(count) for format_, count in sorted(self.telemetry.items())},
            },
            "event": {"messages": self.events},
            "ack": {"messages": self.acknowledgements},
            "repeated": attrs.asdict(self.repeats),
            "bad": {
                "messages": self.bad.total(),
                "by_fault": dict(sorted(self.bad.items())),
                "by_reason": dict(sorted(self.dead(all_topics=True).items())),
                "beyond_default_topics": sum(self.bad[fault] for fault in BEYOND_DEFAULT_TOPICS),
            },
        }
