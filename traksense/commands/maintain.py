"""`traksense maintain`: one round of maintenance, for cron."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from traksense.terminal import counted, say

if TYPE_CHECKING:
    import argparse

APPLICATION: Final = "traksense maintain"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Whether to run TimescaleDB's jobs too."""
    parser.add_argument(
        "--jobs", action="store_true", help="also run TimescaleDB's jobs, for a server whose scheduler is off"
    )
    parser.epilog = (
        "Does what the service does by itself while it runs: updates the aggregates, creates partitions in advance, "
        "and drops and deletes what the policy no longer keeps. DATABASE_URL is the service's, or the owner's, which "
        "--jobs needs. Safe while services run. Exit status: 1 if a step failed."
    )


def main(arguments: argparse.Namespace) -> int:
    """Do one round, and say what was done."""
    import os

    from traksense import config
    from traksense.cli import DONE, FAILED
    from traksense.errors import TraksenseError
    from traksense.store import maintenance
    from traksense.store.fault_words import describe
    from traksense.tools.progress import Progress

    database = config.load(os.environ).database
    report = maintenance.Report()

    def done() -> str:
        jobs = f", ran {counted(report.jobs, 'job')}" if arguments.jobs else ""
        return (
            f"aggregated {counted(report.marks, 'time range')}, dropped {counted(report.dropped, 'partition')}, "
            f"deleted {counted(report.purged, 'row')}{jobs}"
        )

    try:
        with Progress() as progress:
            maintenance.run_once(
                database.dsn.reveal(),
                APPLICATION,
                lambda c: maintenance.maintain(c, report, jobs=arguments.jobs, at=progress.at),
            )
    except (KeyboardInterrupt, TraksenseError):
        if report.marks or report.dropped or report.purged or report.jobs:
            say(f"traksense: {done()}; stopped before the end: repeat the command for the rest", to=sys.stderr)
        raise
    say(done(), hanging=2)
    for name, error in report.failed.items():
        say(f"failed: {name}: {database}: {describe(error)}")
    return FAILED if report.failed else DONE
