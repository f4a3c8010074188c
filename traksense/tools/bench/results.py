"""The figures of every round, and what is made of them: medians, and ratios between contenders of the same round."""

from __future__ import annotations

from statistics import median
from typing import TYPE_CHECKING, Final, Literal

import attrs

if TYPE_CHECKING:
    from collections.abc import Mapping


@attrs.frozen
class Figure:
    """What a number means.

    Attributes:
        words: What is measured.
        unit: In which unit.
        heading: Of its column, in two lines.
        digits: How many digits behind the point are worth printing.
        better: Which direction is.
    """

    words: str
    unit: str
    heading: tuple[str, str]
    digits: int = 0
    better: Literal["more", "less"] = "more"


_CPU: Final = "s per million points"

FIGURES: Final = {
    "rows_per_second": Figure("rows stored", "rows/s", ("", "rows/s")),
    "points_per_second": Figure("points stored or recognised as duplicates", "points/s", ("", "points/s")),
    "messages_per_second": Figure("the same in messages", "messages/s", ("", "messages/s")),
    "of_ceiling": Figure("points/s divided by the ceiling's rows/s of the same round", "", ("of the", "ceiling"), 2),
    "p50_ms": Figure("half of the messages were stored sooner", "ms", ("p50", "ms"), 1, "less"),
    "p95_ms": Figure("95 % of the messages were stored sooner", "ms", ("p95", "ms"), 1, "less"),
    "p99_ms": Figure("99 % of the messages were stored sooner", "ms", ("p99", "ms"), 1, "less"),
    "written_p50_ms": Figure("p50 by the commit's stamp, before its flush", "ms", ("p50", "unflushed"), 1, "less"),
    "written_p99_ms": Figure("p99 by the commit's stamp, before its flush", "ms", ("p99", "unflushed"), 1, "less"),
    "cpu_seconds": Figure("processor time of the service", _CPU, ("CPU s/M", "service"), 2, "less"),
    "database_cpu_seconds": Figure("processor time of the database", _CPU, ("CPU s/M", "database"), 2, "less"),
    "broker_cpu_seconds": Figure("processor time of the broker", _CPU, ("CPU s/M", "broker"), 2, "less"),
    "rows_per_commit": Figure("rows stored by one transaction, mean", "rows", ("rows a", "commit")),
    "peak_mib": Figure("most resident memory of the service", "MiB", ("peak", "MiB"), 0, "less"),
    "outage_mib": Figure("its memory at the end of the outage", "MiB", ("outage", "MiB"), 0, "less"),
    "catch_up_multiple": Figure(
        "how many times the incoming rate was stored during catch-up", "", ("catch-up", "multiple"), 1
    ),
    "catch_up_seconds": Figure("until what is stored was new again", "s", ("catch-up", "s"), 1, "less"),
}


@attrs.frozen
class Key:
    """What was measured: a scenario, a case of it, and whose service (empty for the ceiling)."""

    scenario: str
    case: str
    contender: str = ""


@attrs.frozen
class Summary:
    """One figure over all rounds."""

    median: float
    minimum: float
    maximum: float
    rounds: tuple[float, ...]


@attrs.define
class Results:
    """Collects the figures."""

    _values: dict[Key, list[dict[str, float]]] = attrs.field(factory=dict)
    faults: list[str] = attrs.field(factory=list)

    def add(self, key: Key, figures: Mapping[str, float]) -> None:
        """Take the figures of one round."""
        unknown = set(figures) - set(FIGURES)
        if unknown:
            raise ValueError(f"no such figures: {unknown}")
        self._values.setdefault(key, []).append(dict(figures))

    def keys(self) -> list[Key]:
        """What was measured, in the order in which it came first."""
        return list(self._values)

    def summaries(self, key: Key) -> dict[str, Summary]:
        """Every figure of one key over all rounds that have it."""
        rounds = self._values[key]
        result = {}
        for name in FIGURES:
            values = tuple(figures[name] for figures in rounds if name in figures)
            if values:
                result[name] = Summary(median(values), min(values), max(values), values)
        return result

    def median(self, key: Key, name: str) -> float | None:
        """The median of one figure, if there is one."""
        summary = self.summaries(key).get(name) if key in self._values else None
        return summary.median if summary else None

    def latest(self, key: Key, name: str) -> float | None:
        """The figure of the last round, if there is one."""
        rounds = self._values.get(key)
        return rounds[-1].get(name) if rounds else None

    def ratios(self, key: Key, other: Key) -> dict[str, Summary]:
        """Each figure divided by the other's of the same round."""
        result = {}
        pairs = list(zip(self._values.get(key, []), self._values.get(other, []), strict=False))
        for name in FIGURES:
            values = tuple(a[name] / b[name] for a, b in pairs if name in a and b.get(name))
            if values:
                result[name] = Summary(median(values), min(values), max(values), values)
        return result


def quantile(buckets: Mapping[float, float], share: float) -> float:
    """A quantile from the cumulative counts of a histogram, on a straight line within its bucket.

    Args:
        buckets: For each upper bound, how many values are not above it; one bound is infinite.
        share: 0.5 for the median.

    Returns 0 if the histogram is empty; beyond the last finite bound, that bound.
    """
    bounds = sorted(buckets)
    rank = share * (buckets[bounds[-1]] if bounds else 0)
    if not rank:
        return 0.0
    low, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                return low
            return low + (bound - low) * (rank - below) / (buckets[bound] - below)
        low, below = bound, buckets[bound]
    return low
