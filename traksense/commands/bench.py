"""`traksense bench`: how fast, on this machine, beside what the database alone could do."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Final

from traksense.commands import arguments as types
from traksense.terminal import say

if TYPE_CHECKING:
    from pathlib import Path

    from traksense.tools.bench.run import Plan
    from traksense.tools.interrupt import Interruption

SCENARIOS: Final = ("ceiling", "backlog", "steady", "growth", "outage")
READERS: Final = ("paho", "mqtt5")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What to measure, and how much."""
    parser.description = (
        "Starts a Mosquitto and a PostgreSQL of its own and measures the service against them: the database's ceiling, "
        "throughput of a backlog, latency at a rate, CPU time, memory, and how they change as the table grows. Needs "
        "no configuration."
    )
    parser.epilog = (
        "Takes several minutes for each round, with --quick for everything. Exit status 1 if rows were lost or "
        "duplicated, or a measurement failed."
    )
    parser.add_argument("--rounds", type=types.count, metavar="N", help="number of rounds (default: 3; 1 with --quick)")
    parser.add_argument("--quick", action="store_true", help="smaller amounts: at most 10 million rows in the table")
    parser.add_argument(
        "--only",
        type=_scenarios,
        default=SCENARIOS,
        metavar="A,B",
        help=f"only these: {', '.join(SCENARIOS)} (default: all)",
    )
    parser.add_argument(
        "--reader", choices=(*READERS, "both"), help="MQTT_READER of the service (default: both, if installed)"
    )
    parser.add_argument(
        "--compare",
        type=types.path,
        metavar="DIR",
        help="measure another checkout in alternation, and print the ratio",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, with the figures of each round")
    parser.add_argument(
        "--plots",
        type=types.path,
        metavar="DIR",
        help="write SVG charts, and the report as text and JSON, to this directory",
    )
    amounts = parser.add_argument_group("amounts")
    amounts.add_argument("--messages", type=types.count, metavar="N", help="10-point messages in the backlog")
    amounts.add_argument(
        "--rates", type=_rates, default=(5_000, 50_000), metavar="N,M", help="points per second (default: 5000,50000)"
    )
    amounts.add_argument("--seconds", type=types.positive, metavar="N", help="how long each rate and the outage last")
    amounts.add_argument(
        "--writers", type=types.count, metavar="N", help="connections that write (default: as in the service)"
    )
    amounts.add_argument("--no-meta", action="store_true", help="publish messages without a meta object")
    parser.add_argument(
        "--directory",
        type=types.path,
        metavar="DIR",
        help="keep data and logs in this directory (default: a temporary one)",
    )


def main(arguments: argparse.Namespace) -> int:
    """Measure and report."""
    import json

    import trio

    from traksense.cli import DONE, FAILED
    from traksense.tools.bench import report
    from traksense.tools.bench.plot import write_plots
    from traksense.tools.bench.run import run
    from traksense.tools.bench.run import say as say_aside
    from traksense.tools.interrupt import INTERRUPTED, run_interruptible
    from traksense.tools.places import make_directory

    plan = _plan(arguments)
    if arguments.plots is not None:
        # Now, rather than after all the measuring.
        arguments.plots = make_directory(arguments.plots, "--plots")
    found = []

    async def measure(interruption: Interruption) -> None:
        found.append(await run(plan, say_aside, interruption))

    if trio.run(run_interruptible, measure):
        return INTERRUPTED
    ((results, environment),) = found
    lines = list(report.text(results, environment, plan.baseline))
    document = json.dumps(report.as_json(results, environment, plan.baseline), indent=1)
    say(document if arguments.json else "\n".join(lines))
    if arguments.plots is not None:
        subtitle = (
            f"{environment['cpus']} CPUs for everything, {environment['broker']}, PostgreSQL {environment['postgres']}"
        )
        write_plots(results, arguments.plots, f"{subtitle}, median of {plan.rounds}")
        (arguments.plots / "bench.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
        (arguments.plots / "bench.json").write_text(document + "\n", encoding="utf-8")
    return FAILED if results.faults else DONE


def _plan(arguments: argparse.Namespace) -> Plan:
    from importlib.util import find_spec

    from traksense.errors import ConfigError
    from traksense.tools.bench.run import Plan

    faults = []
    compare: Path | None = arguments.compare
    if compare is not None and not (compare / "traksense" / "__main__.py").is_file():
        faults.append(f"--compare: no checkout of traksense: {compare}")
    fast = find_spec("mqtt5") is not None
    if arguments.reader in ("mqtt5", "both") and not fast:
        faults.append("--reader: the package mqtt5 is missing: pip install traksense[fast]")
    if faults:
        raise ConfigError(faults)
    readers = READERS if fast else ("paho",)
    return Plan(
        rounds=arguments.rounds or (1 if arguments.quick else 3),
        quick=arguments.quick,
        only=arguments.only,
        readers=readers if arguments.reader in (None, "both") else (arguments.reader,),
        compare=compare,
        rates=arguments.rates,
        seconds=arguments.seconds,
        messages=arguments.messages,
        writers=arguments.writers,
        meta=not arguments.no_meta,
        directory=arguments.directory,
    )


def _scenarios(text: str) -> tuple[str, ...]:
    wanted = {name.strip() for name in text.split(",")}
    if not wanted <= set(SCENARIOS):
        raise argparse.ArgumentTypeError(f"must be some of {', '.join(SCENARIOS)}, not {text!r}")
    return tuple(name for name in SCENARIOS if name in wanted)


def _rates(text: str) -> tuple[int, ...]:
    return tuple(types.count(part) for part in text.split(","))
