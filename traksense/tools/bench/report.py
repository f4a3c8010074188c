"""The results, for people and for machines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import attrs

from traksense.tools.bench.results import FIGURES
from traksense.tools.bench.targets import targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from traksense.tools.bench.results import Key, Results, Summary

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
    "a backlog is timed by the server's commit timestamps, first to last; what the first stored is left out",
    "after each run the rows are counted: none lost, none twice, no dead letter, unless it says FAILED below",
)


def text(results: Results, environment: Mapping[str, Any], baseline: str | None) -> Iterator[str]:
    """The report, line by line."""
    about = environment
    yield (
        f"traksense {about['version']}, {about['cpus']} CPUs ({about['cpu_model']}), Python {about['python']}, "
        f"PostgreSQL {about['postgres']}, {about['broker']}"
    )
    yield f"{about['rounds']} round{'s' if about['rounds'] != 1 else ''}; each figure is the median (least – most)"
    for condition in CONDITIONS:
        yield f"  - {condition}"
    for note in about["notes"]:
        yield f"  ! {note}"
    scenario = ""
    for key in results.keys():  # noqa: SIM118  (not a dict)
        if key.scenario != scenario:
            scenario = key.scenario
            yield ""
            yield HEADINGS[scenario]
        yield f"  {_title(key)}"
        for name, summary in results.summaries(key).items():
            yield f"    {_line(name, summary)}"
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


def _line(name: str, summary: Summary) -> str:
    figure = FIGURES[name]
    value = number(summary.median, figure.digits)
    spread = ""
    if len(summary.rounds) > 1:
        spread = f"  ({number(summary.minimum, figure.digits)} – {number(summary.maximum, figure.digits)})"
    return f"{value:>12} {figure.unit:<22} {figure.words}{spread}"


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
            better = (summary.median > 1) == (figure.better == "more")
            verdict = "same" if abs(summary.median - 1) < 0.005 else "better" if better else "worse"
            spread = f"({summary.minimum:.3f} – {summary.maximum:.3f})"
            yield f"    {summary.median:>8.3f}  {spread}  {verdict:<6}  {figure.words}"
