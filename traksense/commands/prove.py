"""`traksense prove`: kills everything, repeatedly, and counts."""

from __future__ import annotations

import argparse
import secrets

from traksense.commands.arguments import count, path, positive, seed
from traksense.terminal import say

REVEALING = {
    "ack-early": ("service-kill", "service-kill-mid-batch", "database-freeze"),
    "not-replaced": ("service-loss",),
    "hasty-handover": ("service-reshard",),
    "no-unique-key": ("service-kill-before-puback", "broker-reset", "database-ambiguous"),
    "hasty-repeats": ("database-failover",),
    "no-dictionary-check": ("operator-delete", "operator-truncate"),
    "no-clock-check": ("service-clock",),
    "coarse-instants": ("message-untimed",),
    "whole-message": ("message-partial",),
    "lockable": ("reader-locks",),
    "unhealed": ("database-strangers", "pooler-kill"),
}
"""What can be broken, and for each the faults that bring it to light soonest: the default then."""

BREAKAGES = tuple(REVEALING)

BROKEN = {
    "ack-early": "a service that acknowledges before it has stored",
    "not-replaced": "a replica that dies and is not replaced (with --replicas)",
    "hasty-handover": "a replica that gives topics up before another reads them (with --replicas)",
    "no-unique-key": "a table without its unique key",
    "hasty-repeats": "a service that acknowledges repeats before the standby has them",
    "no-dictionary-check": "writers that do not look whether names have changed",
    "no-clock-check": "a clock that is believed",
    "coarse-instants": "messages without a time that share one",
    "whole-message": "good points that are lost with a bad one",
    "lockable": "writers that wait for what a reader locks",
    "unhealed": "faults that are not undone",
}
"""The same in words."""

REPLICAS_MAX = 16
"""They share this machine."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """How long, how often, what goes wrong."""
    parser.description = (
        "Starts a broker (Mosquitto), a PostgreSQL and the service, publishes uniquely numbered messages, breaks "
        "everything in turn, repairs it, and compares message by message what the broker confirmed with what is stored."
    )
    parser.epilog = "Exit status: 0 if nothing was lost, duplicated or acknowledged out of order; 1 otherwise."
    parser.add_argument(
        "--seconds",
        type=positive,
        default=60.0,
        metavar="N",
        help="how long faults are injected in each run (default: 60)",
    )
    parser.add_argument(
        "--runs", type=count, default=1, metavar="R", help="number of runs, with the seeds S, S+1, … (default: 1)"
    )
    parser.add_argument("--seed", type=seed, metavar="S", help="the same seed breaks the same things (default: random)")
    parser.add_argument(
        "--replicas",
        type=_replicas,
        default=1,
        metavar="N",
        help="replicas of the service, each with a shard of the tenants (default: 1)",
    )
    parser.add_argument(
        "--rate",
        type=positive,
        default=150.0,
        metavar="N",
        help="maximum number of messages per second (default: 150)",
    )
    parser.add_argument(
        "--faults", metavar="A,B,...", help="inject only these faults; see --list-faults (default: all)"
    )
    parser.add_argument(
        "--break",
        dest="breakage",
        choices=BREAKAGES,
        metavar="BUG",
        help=f"negative control: build a bug in, and expect the run to fail; one of {', '.join(BREAKAGES)}",
    )
    parser.add_argument(
        "--patience",
        type=positive,
        default=30.0,
        metavar="N",
        help="seconds within which new messages must be stored after a fault has ended (default: 30)",
    )
    parser.add_argument("--json", action="store_true", help="print the result, with the schedule, as one JSON object")
    parser.add_argument(
        "--directory",
        type=path,
        metavar="DIR",
        help="new or empty directory to keep state and logs in (default: kept only after a failure)",
    )
    parser.add_argument(
        "--list-faults", action="store_true", help="list the faults that can be injected, and do nothing else"
    )


def main(arguments: argparse.Namespace) -> int:
    """Prove it, or list the faults."""
    from traksense.cli import DONE
    from traksense.errors import ConfigError
    from traksense.tools.prove.run import Options
    from traksense.tools.prove.schedule import CATALOGUE
    from traksense.tools.prove.session import Request, prove

    if arguments.list_faults:
        width = max(map(len, CATALOGUE))
        for fault in CATALOGUE.values():
            say(f"{fault.name:<{width}}  {fault.summary}", hanging=width + 2)
        return DONE
    faults = REVEALING.get(arguments.breakage, tuple(CATALOGUE))
    if arguments.faults is not None:
        faults = tuple(name.strip() for name in arguments.faults.split(",") if name.strip())
    unknown = [f"--faults: no such fault: {name}" for name in faults if name not in CATALOGUE]
    if unknown:
        raise ConfigError([*unknown, "`traksense prove --list-faults` names them all"])
    return prove(
        Request(
            options=Options(
                seconds=arguments.seconds,
                rate=arguments.rate,
                faults=faults,
                replicas=arguments.replicas,
                breakage=arguments.breakage,
                patience=arguments.patience,
            ),
            seed=arguments.seed if arguments.seed is not None else secrets.randbelow(1_000_000),
            runs=arguments.runs,
            directory=arguments.directory,
            as_json=arguments.json,
            chosen=arguments.faults is not None or arguments.breakage is not None,
        )
    )


def _replicas(text: str) -> int:
    replicas = count(text)
    if replicas > REPLICAS_MAX:
        raise argparse.ArgumentTypeError(f"must be at most {REPLICAS_MAX}, not {replicas}")
    return replicas
