"""The results, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.tools.bench.results import FIGURES
from traksense.tools.bench.targets import targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from traksense.tools.bench.results import Figure, Key, Results, Summary

WIDTH: Final = 10
SPREAD: Final = 19
"""Columns."""

SAME: Final = 0.01
"""Ratios that differ by less than this all round are no difference."""

HEADINGS: Final = {
    "ceiling": "Ceiling: the same rows by COPY into the same empty table, no MQTT, from as many connections",
    "backlog": "Backlog: a session full of messages is drained, each acknowledged after its commit",
    "steady": "Steady: a fleet publishes at a rate; latency from the device's timestamp to the commit",
    "growth": "Growth: backlogs of 10-point messages under harder conditions",
    "outage": "Outage: the database stops for a while, the broker floods",
}

CONDITIONS: Final = (
    "fsync, full_page_writes and synchronous_commit are on",
    "the broker keeps its queue and drops nothing, but does not save it during a run (autosave off: a save stops it)",
    "broker, database, service and publisher share this machine",
    "a backlog is timed from the moment when the broker accepts the service to the server's last commit timestamp",
    "after each run the rows are counted: none lost, none twice, no dead letter, unless it says FAILED below",
)


def text(results: Results, environment: Mapping[str, Any], baseline: str | None) -> Iterator[str]:
    """The report, line by line."""
    about = environment
    yield (
        f"traksense {about['version']}, {about['cpus']} CPUs ({about['cpu_model']}), Python {about['python']}, "
        f"PostgreSQL {about['postgres']}, {about['broker']}"
    )
    yield f"{about['rounds']} round{'s' if about['rounds'] != 1 else ''}; figures are medians of them"
    for condition in CONDITIONS:
        yield f"  - {condition}"
    for note in about["notes"]:
        yield f"  ! {note}"
    for scenario, heading in HEADINGS.items():
        keys = [key for key in results.keys() if key.scenario == scenario]  # noqa: SIM118  (not a dict)
        if keys:
            yield ""
            yield heading
            yield from _table(results, keys)
    yield from _legend(results)
    yield from _targets(results)
    if baseline is not None:
        yield from _comparison(results, baseline)
    for fault in results.faults:
        yield f"FAILED: {fault}"


def as_json(results: Results, environment: Mapping[str, Any], baseline: str | None) -> dict[str, Any]:
    """Everything, with the rounds."""
    return {
        "environment": dict(environment),
        "figures": {name: attrs.asdict(figure) for name, figure in FIGURES.items()},
        "results": [
            attrs.asdict(key) | {name: attrs.asdict(s) for name, s in results.summaries(key).items()}
            for key in results.keys()  # noqa: SIM118  (not a dict)
        ],
        "targets": [attrs.asdict(target) for target in targets(results)],
        "ratios": [
            attrs.asdict(key) | {"to": attrs.asdict(other)} | {name: attrs.asdict(s) for name, s in ratios.items()}
            for key, other, ratios in _ratios(results, baseline)
        ],
        "faults": list(results.faults),
    }


def number(value: float, digits: int) -> str:
    """With thousands apart."""
    return f"{value:,.{digits}f}"


def _title(key: Key) -> str:
    return f"{key.case}, {key.contender}" if key.contender else key.case


def _table(results: Results, keys: Sequence[Key]) -> Iterator[str]:
    """One line a case; the spread is that of the first figure."""
    summaries = [results.summaries(key) for key in keys]
    names = [name for name in FIGURES if any(name in summary for summary in summaries)]
    rows = [[f"{line:>{WIDTH}}" for line in (FIGURES[name].heading[place] for name in names)] for place in range(2)]
    titles = ["", ""]
    many = any(len(each.rounds) > 1 for summary in summaries for each in summary.values())
    if many:
        rows[0].insert(1, f"{'least –':>{SPREAD}}")
        rows[1].insert(1, f"{'most':>{SPREAD}}")
    for key, summary in zip(keys, summaries, strict=True):
        cells = [f"{number(summary[n].median, FIGURES[n].digits) if n in summary else '':>{WIDTH}}" for n in names]
        if many:
            cells.insert(1, f"{_spread(summary[names[0]], FIGURES[names[0]].digits):>{SPREAD}}")
        rows.append(cells)
        titles.append(_title(key))
    width = max(map(len, titles))
    for title, cells in zip(titles, rows, strict=True):
        yield f"  {title:<{width}} {' '.join(cells)}".rstrip()


def _spread(summary: Summary, digits: int) -> str:
    return f"{number(summary.minimum, digits)} – {number(summary.maximum, digits)}"


def _legend(results: Results) -> Iterator[str]:
    yield ""
    yield "What the columns mean"
    shown = {name for key in results.keys() for name in results.summaries(key)}  # noqa: SIM118  (not a dict)
    for name, figure in FIGURES.items():
        if name in shown:
            unit = f", {figure.unit}" if figure.unit else ""
            yield f"  {' '.join(filter(None, figure.heading)):<18} {figure.words}{unit}"


def _targets(results: Results) -> Iterator[str]:
    found = targets(results)
    if found:
        yield ""
        yield "Targets"
    for target in found:
        yield f"  {'met ' if target.met else 'MISS'}  {target.what}: {target.measured} (target {target.wanted})"


def _ratios(results: Results, baseline: str | None) -> Iterator[tuple[Key, Key, dict[str, Summary]]]:
    """Each key of ours with the baseline's."""
    if baseline is None:
        return
    for key in results.keys():  # noqa: SIM118  (not a dict)
        if key.contender and not key.contender.startswith(f"{baseline} "):
            other = attrs.evolve(key, contender=f"{baseline} {key.contender}")
            if ratios := results.ratios(key, other):
                yield key, other, ratios


def _comparison(results: Results, baseline: str) -> Iterator[str]:
    yield ""
    yield f"Compared with {baseline}, round by round: this divided by that, median (least – most)"
    for key, _, ratios in _ratios(results, baseline):
        yield f"  {key.scenario}: {_title(key)}"
        for name, summary in ratios.items():
            figure = FIGURES[name]
            spread = f"({summary.minimum:.3f} – {summary.maximum:.3f})"
            column = " ".join(figure.heading).strip()
            yield f"    {summary.median:>8.3f}  {spread}  {_verdict(summary, figure):<7}  {column}"


def _verdict(summary: Summary, figure: Figure) -> str:
    """Better or worse only if every round says so."""
    if summary.minimum <= 1 <= summary.maximum:
        return "unclear" if summary.maximum - summary.minimum > SAME else "same"
    return "better" if (summary.median > 1) == (figure.better == "more") else "worse"
