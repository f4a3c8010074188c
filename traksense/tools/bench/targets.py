"""What was promised (issue 4), beside what was measured."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import attrs

from traksense.tools.bench.results import FIGURES, Key

if TYPE_CHECKING:
    from collections.abc import Iterator

    from traksense.tools.bench.results import Results

TEN: Final = "10-point messages"
ONE: Final = "1-point messages"
RSS_MIB: Final = 256

_ABSOLUTE: Final = (
    # scenario, case, reader, figure, limit
    ("backlog", TEN, "paho", "of_ceiling", 0.35),
    ("backlog", TEN, "paho", "points_per_second", 170_000),
    ("backlog", TEN, "mqtt5", "of_ceiling", 0.65),
    ("backlog", ONE, "paho", "messages_per_second", 33_000),
    ("backlog", ONE, "mqtt5", "messages_per_second", 110_000),
    ("backlog", TEN, "paho", "cpu_seconds", 4.0),
    ("steady", "5,000 points/s", "paho", "p50_ms", 20),
    ("steady", "5,000 points/s", "paho", "p99_ms", 100),
    ("steady", "50,000 points/s", "paho", "p50_ms", 50),
    ("steady", "50,000 points/s", "paho", "p99_ms", 250),
)

_RELATIVE: Final = (
    # group's first case, other case, least share of the first's throughput
    ("1,000 series", "100,000 series", 0.8),
    ("1,000 series", "1,000,000 series", 0.8),
    ("1 tenant", "100 tenants", 0.8),
    ("1 tenant", "10,000 tenants", 0.8),
    ("0% duplicates", "20% duplicates", 0.6),
)


@attrs.frozen
class Target:
    """One line."""

    what: str
    wanted: str
    measured: str
    met: bool


def targets(results: Results) -> list[Target]:
    """The targets for which there are figures, of this checkout."""
    return [*_absolute(results), *_relative(results), *_memory(results)]


def _absolute(results: Results) -> Iterator[Target]:
    for scenario, case, reader, name, limit in _ABSOLUTE:
        value = results.median(Key(scenario, case, reader), name)
        if value is None:
            continue
        figure = FIGURES[name]
        more = figure.better == "more"
        unit = f" {figure.unit}" if figure.unit else ""
        yield Target(
            f"{scenario}, {case}, {reader}: {figure.words}",
            f"{'≥' if more else '≤'} {limit:,}{unit}",
            f"{value:,.{figure.digits}f}{unit}",
            value >= limit if more else value <= limit,
        )


def _relative(results: Results) -> Iterator[Target]:
    for reader in ("paho", "mqtt5"):
        for first, other, limit in _RELATIVE:
            before = results.median(Key("growth", first, reader), "points_per_second")
            after = results.median(Key("growth", other, reader), "points_per_second")
            if before and after:
                yield Target(
                    f"growth, {other}, {reader}: throughput beside {first}",
                    f"≥ {limit:.2f}",
                    f"{after / before:.2f}",
                    after / before >= limit,
                )


def _memory(results: Results) -> Iterator[Target]:
    for reader in ("paho", "mqtt5"):
        peaks = [
            value
            for key in results.keys()  # noqa: SIM118  (not a dict)
            if key.contender == reader and (value := results.median(key, "peak_mib")) is not None
        ]
        if peaks:
            yield Target(
                f"memory of the service in any state, {reader}",
                f"≤ {RSS_MIB} MiB",
                f"{max(peaks):,.0f} MiB",
                max(peaks) <= RSS_MIB,
            )
