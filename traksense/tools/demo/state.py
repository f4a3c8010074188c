"""What the demo knows of the running system: plain data, and the figures that follow from it."""

from __future__ import annotations

import enum
from collections import deque
from typing import TYPE_CHECKING, Final

import attrs

if TYPE_CHECKING:
    from collections.abc import Sequence
    from datetime import datetime

    from traksense.tools.fleet import Tally
    from traksense.tools.stack import Samples

RATE_SECONDS: Final = 3.0
"""«Now» in points a second is the mean of so long: a fleet's messages come in gusts."""
LATENCY_SECONDS: Final = 10.0
"""The quantiles are those of so long."""
HISTORY_SECONDS: Final = 60

OUTCOMES: Final = ("stored", "duplicate", "dead")


class Phase(enum.Enum):
    """What the demo is doing."""

    RUNNING = "running"
    ENDING = "ending"
    ENDED = "ended"


@attrs.frozen
class Addresses:
    """Where everything is."""

    broker: str
    broker_kind: str
    database: str
    metrics: str
    directory: str


@attrs.frozen
class Scrape:
    """One reading of `/metrics`, at a time of the monotonic clock."""

    at: float
    samples: Samples

    @property
    def points(self) -> float:
        """Points stored so far."""
        return self.samples.value("ingest_points_total")

    @property
    def received(self) -> int:
        """Messages received so far."""
        return int(self.samples.total("ingest_messages_total"))

    @property
    def in_flight(self) -> int:
        """Messages received and not ended."""
        return int(self.samples.value("ingest_in_flight_messages"))

    def ended(self, outcome: str) -> int:
        """Messages that ended this way so far."""
        return int(self.samples.value("ingest_messages_ended_total", outcome=outcome))

    @property
    def balanced(self) -> bool:
        """Whether received = stored + duplicate + dead + in flight."""
        return self.received == sum(map(self.ended, OUTCOMES)) + self.in_flight

    @property
    def dead_reasons(self) -> list[tuple[str, int]]:
        """Dead letters by reason, in an order that does not change."""
        counts = (
            (dict(labels)["reason"], int(value))
            for (name, labels), value in self.samples.items()
            if name == "ingest_errors_total"
        )
        return [(reason, count) for reason, count in counts if count]

    def latency_buckets(self) -> list[tuple[float, float]]:
        """Upper bound in seconds and cumulative count."""
        return sorted(
            (float(dict(labels)["le"]), value)
            for (name, labels), value in self.samples.items()
            if name == "ingest_latency_seconds_bucket"
        )


@attrs.frozen
class LatestValue:
    """The newest row of one point, as `ts_measure` shows it."""

    tenant: str
    site: str
    device: str
    point: str
    value: float | bool | str
    unit: str
    ts: datetime


@attrs.frozen
class DeadLetter:
    """The newest row of `ingest_errors`."""

    reason: str
    detail: str
    topic: str
    size: int
    ts: datetime


@attrs.define
class State:
    """Everything that is shown. The observers write it, the views read it."""

    addresses: Addresses
    fleet: str
    tally: Tally
    started_at: float
    now: float
    wall: datetime
    seconds: float | None = None
    scrapes: deque[Scrape] = attrs.field(factory=deque)
    history: deque[float] = attrs.field(factory=lambda: deque(maxlen=HISTORY_SECONDS))
    ready: bool = False
    not_ready: str = "starting"
    values: list[LatestValue] = attrs.field(factory=list)
    newest_dead: DeadLetter | None = None
    rows: int = 0
    series: int = 0
    database_bytes: int = 0
    memory_bytes: int = 0
    publisher_fault: str | None = None
    phase: Phase = Phase.RUNNING

    @property
    def scrape(self) -> Scrape | None:
        """The newest one."""
        return self.scrapes[-1] if self.scrapes else None

    @property
    def elapsed(self) -> float:
        """Seconds since the fleet started."""
        return max(0.0, self.now - self.started_at)

    def add(self, scrape: Scrape) -> None:
        """Take in a reading of the metrics."""
        whole = int(scrape.at - self.started_at)
        if self.scrapes and whole > int(self.scrapes[-1].at - self.started_at):
            self.history.append(self.rate_between(self._since(scrape.at - 1.0), scrape))
        self.scrapes.append(scrape)
        self.memory_bytes = int(scrape.samples.value("process_resident_memory_bytes"))
        while self.scrapes[0].at < scrape.at - LATENCY_SECONDS - 1.0:
            self.scrapes.popleft()

    @property
    def rate(self) -> float:
        """Points stored a second, now."""
        if not self.scrapes:
            return 0.0
        newest = self.scrapes[-1]
        return self.rate_between(self._since(newest.at - RATE_SECONDS), newest)

    @staticmethod
    def rate_between(earlier: Scrape, later: Scrape) -> float:
        """Points a second between two readings."""
        elapsed = later.at - earlier.at
        return (later.points - earlier.points) / elapsed if elapsed > 0 else 0.0

    def latency(self, share: float) -> float | None:
        """The quantile of the recent latency in seconds; None if nothing was stored lately."""
        if not self.scrapes:
            return None
        newest = self.scrapes[-1]
        return quantile(self._since(newest.at - LATENCY_SECONDS).latency_buckets(), newest.latency_buckets(), share)

    def _since(self, at: float) -> Scrape:
        """The newest reading that is not after this time, or the oldest that there is."""
        found = self.scrapes[0]
        for scrape in self.scrapes:
            if scrape.at > at:
                break
            found = scrape
        return found


def quantile(
    earlier: Sequence[tuple[float, float]], later: Sequence[tuple[float, float]], share: float
) -> float | None:
    """The quantile of what came between two readings of a cumulative histogram, interpolated within its bucket.

    Returns:
        Seconds; the last finite bound if it lies beyond; None if nothing came.
    """
    counts = [(bound, after - before) for (bound, after), (_, before) in zip(later, earlier, strict=True)]
    if not counts or counts[-1][1] <= 0:
        return None
    wanted = share * counts[-1][1]
    low, below = 0.0, 0.0
    for bound, count in counts:
        if count >= wanted:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (wanted - below) / (count - below)
        low, below = bound, count
    return low
